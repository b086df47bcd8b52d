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

// Mask is what a decode leaves out: a set of sublayers, what local attention does not
// see, a share of the neurons of feed-forwards, and the tokens outside a vocabulary
// shortlist. The zero value skips nothing. Masks are values: they compare with ==, and are
// keys of maps. A Mask is what llama's Context.Decode takes: bit 2L skips layer L's
// attention, bit 2L+1 its feed-forward; behind these are the shortlist's size, what local.go
// says, and what neurons.go says.
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
	if half&Attention != 0 && m[localWord:windowWord][w] != 0 {
		m.setAttention(layer, skippedAttention)
		m = m.withWindow(m.Window())
	}
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

// Union returns the mask that skips what either skips: with the shorter shortlist and the
// smaller window.
func (m Mask) Union(other Mask) Mask {
	before := m
	for i := range shortlistWord {
		m[i] |= other[i]
	}
	if n := other[shortlistWord]; n != 0 && (m[shortlistWord] == 0 || n < m[shortlistWord]) {
		m[shortlistWord] = n
	}
	m.mergeAttention(&before, &other, less(before.Window(), other.Window()), larger)
	m[neuronWord] = m.mergeNeurons(other)
	return m
}

// Intersection returns the mask that skips what both skip: with the longer
// shortlist, if both have one, a window that sees what either's does, and with neurons, if
// both leave out the same.
func (m Mask) Intersection(other Mask) Mask {
	before := m
	for i := range shortlistWord {
		m[i] &= other[i]
	}
	if n := other[shortlistWord]; n == 0 || m[shortlistWord] != 0 && n > m[shortlistWord] {
		m[shortlistWord] = n
	}
	m.mergeAttention(&before, &other, more(before.Window(), other.Window()), smaller)
	m[neuronWord] = m.commonNeurons(other)
	return m
}

// Minus is m without what other skips: without a shortlist, if other has one, and
// without neurons, if other leaves out some.
func (m Mask) Minus(other Mask) Mask {
	before := m
	for i := range shortlistWord {
		m[i] &^= other[i]
	}
	if other[shortlistWord] != 0 {
		m[shortlistWord] = 0
	}
	m.mergeAttention(&before, &other, before.Window(), without)
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

// KVComplete reports whether every attention sublayer's keys and values are written. A KV
// cache filled under such masks has them all at every position, so it serves any mask: the
// mask may change from token to token.
func (m Mask) KVComplete() bool {
	for l := 0; l <= m.Highest(); l++ {
		if m.attention(l) == skippedAttention {
			return false
		}
	}
	return true
}

// Lowest is the lowest layer that the mask names, -1 when it names none.
func (m Mask) Lowest() int {
	for w := range shortlistWord {
		if named := m.named(w); named != 0 {
			return (w*wordBits + bits.TrailingZeros64(named)) / 2
		}
	}
	return -1
}

// Highest is the highest layer that the mask names, -1 when it names none.
func (m Mask) Highest() int {
	for w := shortlistWord - 1; w >= 0; w-- {
		if named := m.named(w); named != 0 {
			return (w*wordBits + bits.Len64(named) - 1) / 2
		}
	}
	return -1
}

// named has bits of the layers that the mask names, in place of its word w.
func (m *Mask) named(w int) uint64 { return m[w] | m[localWord+w] }

// WholeLayers lists the layers that the mask skips whole, in order. only is
// false when it skips single sublayers or neurons too, makes attention local or has a shortlist.
func (m Mask) WholeLayers() (layers []int, only bool) {
	only = m.Shortlist() == 0 && !m.HasLocal() && m.Neurons() == 0
	for l := 0; l <= m.Highest(); l++ {
		switch m.apart(l) {
		case Whole:
			layers = append(layers, l)
		case Attention, FeedForward:
			only = false
		}
		only = only && !m.Written(l)
	}
	return layers, only
}

// apart is what the mask skips of layer, without attention whose keys and values are written.
func (m Mask) apart(layer int) Half {
	half := m.Skipped(layer)
	if half&Attention != 0 && m.Written(layer) {
		half &^= Attention
	}
	return half
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
// shortened: "4,6,9-11,a5,f7,k8,l0-3,w256+4,n20%,v1024". The empty mask is "".
func (m Mask) String() string {
	var parts []string
	for _, kind := range []struct {
		prefix string
		half   Half
	}{{"", Whole}, {"a", Attention}, {"f", FeedForward}} {
		parts = appendRuns(parts, kind.prefix, m.Highest(), func(l int) bool { return m.apart(l) == kind.half })
	}
	parts = append(parts, m.attentionText()...)
	if n := m.neuronText(); n != "" {
		parts = append(parts, n)
	}
	if n := m.Shortlist(); n != 0 {
		parts = append(parts, fmt.Sprintf("v%d", n))
	}
	return strings.Join(parts, ",")
}

// appendRuns appends the layers up to the highest that in picks, runs of three or more shortened.
func appendRuns(parts []string, prefix string, highest int, in func(layer int) bool) []string {
	for l := 0; l <= highest; l++ {
		if !in(l) {
			continue
		}
		end := l
		for end < highest && in(end+1) {
			end++
		}
		switch end - l {
		case 0:
			parts = append(parts, fmt.Sprintf("%s%d", prefix, l))
		case 1:
			parts = append(parts, fmt.Sprintf("%s%d", prefix, l), fmt.Sprintf("%s%d", prefix, end))
		default:
			parts = append(parts, fmt.Sprintf("%s%d-%d", prefix, l, end))
		}
		l = end
	}
	return parts
}

// Parse reads a mask: layers and runs of layers separated by commas, as in
// "4,6,9-11,a5,f7,k8,l0-3,w256+4,n20%,v1024". In front of layers, "a" means attention alone, "f"
// feed-forward alone, "k" attention alone with its keys and values written, and "l" makes
// attention local: it sees the last 256 tokens and the first 4, or what "w" says.
// "n20%" leaves out a fifth of each feed-forward's neurons; "v1024" is a vocabulary shortlist of 1024 tokens. Where a layer is named twice, more is
// skipped. Spaces are ignored; an empty text is the empty mask. The error wraps [ErrMask].
func Parse(text string) (Mask, error) {
	var m Mask
	window, hasWindow, hasLocal := DefaultWindow, false, false
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
		if size, ok := strings.CutPrefix(part, "w"); ok {
			var err error
			if window, err = parseWindow(size); err != nil {
				return Mask{}, fmt.Errorf("%w: %q in %q: %w", ErrMask, part, text, err)
			}
			hasWindow = true
			continue
		}
		with, run := func(l int) Mask { return m.With(l, Whole) }, part
		for prefix, kind := range map[string]func(l int) Mask{
			"a": func(l int) Mask { return m.With(l, Attention) },
			"f": func(l int) Mask { return m.With(l, FeedForward) },
			"k": func(l int) Mask { return m.WithWritten(l) },
			"l": func(l int) Mask { return m.WithLocal(l, DefaultWindow) },
		} {
			if layers, ok := strings.CutPrefix(part, prefix); ok {
				with, run = kind, layers
				hasLocal = hasLocal || prefix == "l"
			}
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
				m = with(l)
			}
		}
		if err != nil {
			return Mask{}, fmt.Errorf("%w: %q in %q: %w; write layers as in 4,6,9-11,a5,f7", ErrMask, part, text, err)
		}
	}
	if hasWindow && !hasLocal {
		return Mask{}, fmt.Errorf("%w: %q has a window, but no layer that it is for, as in l0-3,%s", ErrMask, text, window)
	}
	return m.withWindow(window), nil
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
