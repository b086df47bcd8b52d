package skip

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

// MaxLayers is the number of layers that a mask has room for.
const MaxLayers = 512

// wordBits is how many bits a word of a mask holds; a layer takes two of them.
const wordBits = 64

// ErrMask is returned when a text is no mask.
var ErrMask = errors.New("not a mask")

// Mask is what a decode leaves out: a set of sublayers, a share of the neurons of
// feed-forwards, and the tokens outside a vocabulary shortlist. The zero value skips nothing. Masks are values: they compare
// with ==, and are keys of maps. A Mask is what llama's Context.Decode takes: bit 2L
// skips layer L's attention, bit 2L+1 its feed-forward; behind these are the
// shortlist's size and the share of neurons.
type Mask [neuronWord + 1]uint64

// shortlistWord is the word behind those of the layers.
const shortlistWord = 2 * MaxLayers / wordBits

// Bounds of a shortlist's size, in tokens.
const (
	MinShortlist = 32
	MaxShortlist = 1 << 20
)

// Half is a part of a layer.
type Half uint64

// The halves of a layer, and both.
const (
	Attention   Half = 1
	FeedForward Half = 2
	Whole       Half = Attention | FeedForward
)

// Layers is the mask that skips these whole layers. Numbers outside 0 to
// MaxLayers-1 are a caller's mistake and panic.
func Layers(layers ...int) Mask {
	var m Mask
	for _, l := range layers {
		m = m.With(l, Whole)
	}
	return m
}

// With returns the mask that skips half of layer too.
func (m Mask) With(layer int, half Half) Mask {
	w, shift := place(layer)
	m[:shortlistWord][w] |= uint64(half) << shift
	return m
}

// Skipped tells which halves of layer the mask skips: 0, one or [Whole].
func (m Mask) Skipped(layer int) Half {
	w, shift := place(layer)
	return Half(m[:shortlistWord][w]>>shift) & Whole
}

// Shortlist is how many tokens get exact logits from the output matrix; 0 = all.
func (m Mask) Shortlist() int { return int(m[shortlistWord]) }

// WithShortlist returns the mask with a shortlist of size tokens, 0 = none.
func (m Mask) WithShortlist(size int) Mask {
	m[shortlistWord] = uint64(size)
	return m
}

func place(layer int) (word, shift int) { return 2 * layer / wordBits, 2 * layer % wordBits }

// Union returns the mask that skips what either skips: with the shorter shortlist.
func (m Mask) Union(other Mask) Mask {
	for i := range shortlistWord {
		m[i] |= other[i]
	}
	if n := other[shortlistWord]; n != 0 && (m[shortlistWord] == 0 || n < m[shortlistWord]) {
		m[shortlistWord] = n
	}
	m[neuronWord] = m.mergeNeurons(other)
	return m
}

// Intersection returns the mask that skips what both skip: with the longer
// shortlist, if both have one, and with neurons, if both leave out the same.
func (m Mask) Intersection(other Mask) Mask {
	for i := range shortlistWord {
		m[i] &= other[i]
	}
	if n := other[shortlistWord]; n == 0 || m[shortlistWord] != 0 && n > m[shortlistWord] {
		m[shortlistWord] = n
	}
	m[neuronWord] = m.commonNeurons(other)
	return m
}

// Minus is m without what other skips: without a shortlist, if other has one, and
// without neurons, if other leaves out some.
func (m Mask) Minus(other Mask) Mask {
	for i := range shortlistWord {
		m[i] &^= other[i]
	}
	if other[shortlistWord] != 0 {
		m[shortlistWord] = 0
	}
	if other.Neurons() != 0 {
		m[neuronWord] = 0
	}
	return m
}

// IsEmpty reports whether the mask skips nothing.
func (m Mask) IsEmpty() bool { return m == Mask{} }

// Len is how many sublayers the mask skips; a whole layer counts two.
func (m Mask) Len() int {
	n := 0
	for _, w := range m[:shortlistWord] {
		n += bits.OnesCount64(w)
	}
	return n
}

// KeepsAttention reports whether the mask keeps every attention sublayer. A KV cache
// filled under such masks has all keys and values at every position, so it
// serves any mask: the mask may change from token to token.
func (m Mask) KeepsAttention() bool {
	for l := 0; l <= m.Highest(); l++ {
		if m.Skipped(l)&Attention != 0 {
			return false
		}
	}
	return true
}

// Lowest is the lowest layer that the mask names, -1 when it names none.
func (m Mask) Lowest() int {
	for w := range shortlistWord {
		if m[w] != 0 {
			return (w*wordBits + bits.TrailingZeros64(m[w])) / 2
		}
	}
	return -1
}

// Highest is the highest layer that the mask names, -1 when it names none.
func (m Mask) Highest() int {
	for w := shortlistWord - 1; w >= 0; w-- {
		if m[w] != 0 {
			return (w*wordBits + bits.Len64(m[w]) - 1) / 2
		}
	}
	return -1
}

// WholeLayers lists the layers that the mask skips whole, in order. only is
// false when it skips single sublayers or neurons too, or has a shortlist.
func (m Mask) WholeLayers() (layers []int, only bool) {
	only = m.Shortlist() == 0 && m.Neurons() == 0
	for l := 0; l <= m.Highest(); l++ {
		switch m.Skipped(l) {
		case Whole:
			layers = append(layers, l)
		case Attention, FeedForward:
			only = false
		}
	}
	return layers, only
}

// Check finds out whether the mask fits a model of nLayer layers: it names no
// other layers, and keeps at least one sublayer. The error wraps [ErrMask].
func (m Mask) Check(nLayer int) error {
	if last := m.Highest(); last >= nLayer {
		return fmt.Errorf("%w for this model: it names layer %d, the layers are 0 to %d", ErrMask, last, nLayer-1)
	}
	if m.Len() == 2*nLayer {
		return fmt.Errorf("%w for this model: it skips all %d layers, keep at least one", ErrMask, nLayer)
	}
	return nil
}

// String writes the mask as Parse reads it, layers in order and runs
// shortened: "4,6,9-11,a5,f7,n20%,v1024". The empty mask is "".
func (m Mask) String() string {
	var parts []string
	for _, kind := range []struct {
		prefix string
		half   Half
	}{{"", Whole}, {"a", Attention}, {"f", FeedForward}} {
		for l := 0; l <= m.Highest(); l++ {
			if m.Skipped(l) != kind.half {
				continue
			}
			end := l
			for end < m.Highest() && m.Skipped(end+1) == kind.half {
				end++
			}
			switch end - l {
			case 0:
				parts = append(parts, fmt.Sprintf("%s%d", kind.prefix, l))
			case 1:
				parts = append(parts, fmt.Sprintf("%s%d", kind.prefix, l), fmt.Sprintf("%s%d", kind.prefix, end))
			default:
				parts = append(parts, fmt.Sprintf("%s%d-%d", kind.prefix, l, end))
			}
			l = end
		}
	}
	if n := m.neuronText(); n != "" {
		parts = append(parts, n)
	}
	if n := m.Shortlist(); n != 0 {
		parts = append(parts, fmt.Sprintf("v%d", n))
	}
	return strings.Join(parts, ",")
}

// Parse reads a mask: layers and runs of layers separated by commas, "a" in
// front for attention alone, "f" for feed-forward alone, as in "4,6,9-11,a5,f7";
// "n20%" leaves out a fifth of each feed-forward's neurons; "v1024" is a vocabulary
// shortlist of 1024 tokens. Spaces are ignored; an empty text is the empty mask. The error wraps [ErrMask].
func Parse(text string) (Mask, error) {
	var m Mask
	text = strings.Join(strings.Fields(text), "")
	if text == "" {
		return m, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		if size, ok := strings.CutPrefix(part, "v"); ok {
			n, err := strconv.Atoi(size)
			if err != nil || n < MinShortlist || n > MaxShortlist {
				return Mask{}, fmt.Errorf("%w: %q in %q: a shortlist has %d to %d tokens, as in v1024",
					ErrMask, part, text, MinShortlist, MaxShortlist)
			}
			m = m.WithShortlist(n)
			continue
		}
		if share, ok := strings.CutPrefix(part, "n"); ok {
			n, err := parseNeurons(share)
			if err != nil {
				return Mask{}, fmt.Errorf("%w: %q in %q: %w", ErrMask, part, text, err)
			}
			m = m.WithNeurons(n, 0)
			continue
		}
		half, run := Whole, part
		switch {
		case strings.HasPrefix(part, "a"):
			half, run = Attention, part[1:]
		case strings.HasPrefix(part, "f"):
			half, run = FeedForward, part[1:]
		}
		first, last, isRun := strings.Cut(run, "-")
		if !isRun {
			last = first
		}
		from, err := parseLayer(first)
		if err == nil {
			var to int
			if to, err = parseLayer(last); err == nil && to < from {
				err = fmt.Errorf("it runs backwards")
			}
			for l := from; err == nil && l <= to; l++ {
				m = m.With(l, half)
			}
		}
		if err != nil {
			return Mask{}, fmt.Errorf("%w: %q in %q: %w; write layers as in 4,6,9-11,a5,f7", ErrMask, part, text, err)
		}
	}
	return m, nil
}

func parseLayer(text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || text[0] == '+' {
		return 0, errors.New("that is no layer number")
	}
	if n >= MaxLayers {
		return 0, fmt.Errorf("layers end at %d", MaxLayers-1)
	}
	return int(n), nil
}

// MarshalText writes the mask as [Mask.String] does.
func (m Mask) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads the mask as [Parse] does.
func (m *Mask) UnmarshalText(text []byte) error {
	parsed, err := Parse(string(text))
	*m = parsed
	return err
}
