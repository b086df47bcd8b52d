package archmodel

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Outcome is what a mask came to.
type Outcome string

const (
	Exact   Outcome = "exact"   // the reference's logits, to the last bit
	Refused Outcome = "refused" // [llama.ErrMask]
	Wrong   Outcome = "wrong"   // other logits
)

// Kind is what a mask skips.
type Kind string

const (
	OneLayer       Kind = "layer"        // one whole layer
	OneAttention   Kind = "attention"    // the attention, or the recurrent mixer, of one layer
	OneFeedForward Kind = "feed-forward" // the feed-forward of one layer
	Several        Kind = "several"      // more than one layer's
)

// Result is what one mask came to.
type Result struct {
	Mask    string  `json:"mask"`
	Kind    Kind    `json:"kind"`
	Outcome Outcome `json:"outcome"`
	Reason  string  `json:"reason,omitempty"` // of a refusal; what differs, of a wrong one
}

// Report is what a model came to.
type Report struct {
	Results    []Result
	Pairs      int     // ordered pairs of masks that were decoded one after the other
	PairsWrong int     // of which the second had other logits than in a fresh context
	Rows       Outcome // of sequences under different masks in one decode
	RowsReason string  // why they are refused, or what differs
}

// Count is how many masks came to this.
func (r Report) Count(o Outcome) (n int) {
	for _, result := range r.Results {
		if result.Outcome == o {
			n++
		}
	}
	return n
}

// What ends each half: with these at zero it adds nothing. A norm that follows is of zeros.
var (
	attentionEnd   = regexp.MustCompile(`^(attn_output(_b)?|ssm_out|time_mix_output|shortconv\.out_proj)\.(weight|bias|lora_b)$`)
	feedForwardEnd = regexp.MustCompile(`^(ffn_down(_exps|_shexp|_chexps)?|ffn_routed_up|channel_mix_value)\.(weight|bias|lora_b)$`)
)

const (
	promptTokens = 24
	firstTokens  = 13 // of them, where the prompt comes in two batches
	singleTokens = 4
	ctxTokens    = 128
	seqTokens    = 6 // of each sequence under a mask of its own
)

// checker holds what all masks of a model share.
type checker struct {
	ctx    context.Context
	shape  Model
	path   string
	opts   llama.ContextOptions
	model  *llama.Model
	zeroed string // path of the reference
	data   []byte // of the file
	file   *gguf.File
}

// Check decodes the model at path, made of m, under masks of all kinds, or under each
// step-th of them. dir is a folder for a second file of its size. An error is none of the masks' fault: the
// model cannot be loaded, or gives other logits each time it is asked.
func Check(ctx context.Context, m Model, path, dir string, step int) (r Report, err error) {
	c := &checker{ctx: ctx, shape: m, path: path, zeroed: filepath.Join(dir, m.Name+".zeroed.gguf"),
		opts: llama.ContextOptions{NCtx: ctxTokens, Threads: 1}}
	if m.NoFlash {
		c.opts.Flash = llama.FlashOff
	}
	if c.model, err = llama.LoadModel(ctx, path, &llama.ModelOptions{GPULayers: llama.CPUOnly}); err != nil {
		return r, err
	}
	defer c.model.Close()
	if c.data, err = os.ReadFile(path); err != nil {
		return r, err
	}
	if c.file, err = gguf.Open(path); err != nil {
		return r, err
	}
	defer c.file.Close()
	defer os.Remove(c.zeroed)

	whole, err := run(c.model, c.opts, skip.Mask{})
	if err != nil {
		return r, fmt.Errorf("the whole model: %w", err)
	}
	again, err := run(c.model, c.opts, skip.Mask{})
	if err != nil {
		return r, fmt.Errorf("the whole model: %w", err)
	}
	if !same(whole, again) {
		return r, errors.New("the whole model gives other logits each time")
	}
	var usable []skip.Mask
	for i, mask := range c.masks() {
		if i%step != 0 {
			continue
		}
		result, err := c.check(mask, whole)
		if err != nil {
			return r, fmt.Errorf("mask %s: %w", mask, err)
		}
		if result.Outcome != Refused {
			usable = append(usable, mask)
		}
		r.Results = append(r.Results, result)
	}
	if r.Pairs, r.PairsWrong, err = c.pairs(append(usable, skip.Mask{})); err != nil {
		return r, err
	}
	r.Rows, r.RowsReason, err = c.rows(usable)
	return r, err
}

// check compares the model under a mask with the reference.
func (c *checker) check(mask skip.Mask, whole []float32) (Result, error) {
	r := Result{Mask: mask.String(), Kind: c.kind(mask)}
	got, err := run(c.model, c.opts, mask)
	if errors.Is(err, llama.ErrMask) {
		r.Outcome = Refused
		r.Reason = strings.TrimPrefix(err.Error(), llama.ErrMask.Error()+": ")
		return r, nil
	}
	if err != nil {
		return r, err
	}
	if err := c.zero(mask); err != nil {
		return r, err
	}
	reference, err := llama.LoadModel(c.ctx, c.zeroed, &llama.ModelOptions{GPULayers: llama.CPUOnly})
	if err != nil {
		return r, err
	}
	defer reference.Close()
	want, err := run(reference, c.opts, skip.Mask{})
	if err != nil {
		return r, fmt.Errorf("reference: %w", err)
	}
	r.Outcome = Exact
	switch {
	case same(want, whole):
		r.Outcome, r.Reason = Wrong, "the reference is the whole model"
	case !same(got, want):
		r.Outcome, r.Reason = Wrong, fmt.Sprintf("logits off by %.3g of the %.3g that the mask changes", difference(got, want), difference(whole, want))
	}
	return r, nil
}

// zero writes the file in which what mask skips adds nothing. A block that is run more
// than once has its half at zero where all its layers skip it.
func (c *checker) zero(mask skip.Mask) error {
	data := slices.Clone(c.data)
	for _, t := range c.file.Tensors {
		block, name, ok := gguf.SplitLayer(t.Name)
		if !ok {
			continue
		}
		half := mask.Skipped(block)
		if c.shape.Blocks != nil {
			half = skip.Whole
			for layer, b := range c.shape.Blocks {
				if b == block {
					half &= mask.Skipped(layer)
				}
			}
		}
		if half&skip.Attention != 0 && attentionEnd.MatchString(name) || half&skip.FeedForward != 0 && feedForwardEnd.MatchString(name) {
			clear(data[c.file.Place(t):][:t.Size])
		}
	}
	return os.WriteFile(c.zeroed, data, 0o666)
}

func (c *checker) kind(mask skip.Mask) Kind {
	layers, half := 0, skip.Half(0)
	for b := range c.blocks() {
		if h := mask.Skipped(c.layersOf(b)[0]); h != 0 {
			layers++
			half = h
		}
	}
	switch {
	case layers != 1:
		return Several
	case half == skip.Attention:
		return OneAttention
	case half == skip.FeedForward:
		return OneFeedForward
	}
	return OneLayer
}

// blocks is how many blocks of weights run.
func (c *checker) blocks() int {
	if c.shape.Blocks == nil {
		return c.model.NLayer
	}
	return slices.Max(c.shape.Blocks) + 1
}

// layersOf are the layers that run a block.
func (c *checker) layersOf(block int) (layers []int) {
	if c.shape.Blocks == nil {
		return []int{block}
	}
	for layer, b := range c.shape.Blocks {
		if b == block {
			layers = append(layers, layer)
		}
	}
	return layers
}

// masks are each layer alone, each half of most layers alone, and mixtures.
func (c *checker) masks() (list []skip.Mask) {
	n := c.blocks()
	with := func(m skip.Mask, block int, half skip.Half) skip.Mask {
		for _, layer := range c.layersOf(block) {
			m = m.With(layer, half)
		}
		return m
	}
	var none skip.Mask
	halves := make([]int, n)
	for b := range n {
		list = append(list, with(none, b, skip.Whole))
		halves[b] = b
	}
	if n > 8 { // of a model with many layers, some
		halves = []int{0, 1, n / 2, n - 2, n - 1}
	}
	for _, b := range halves {
		list = append(list, with(none, b, skip.Attention), with(none, b, skip.FeedForward))
	}
	if n > 2 {
		list = append(list, with(with(none, 0, skip.Whole), n-1, skip.Whole))
	}
	random := rand.New(rand.NewPCG(uint64(n), 7))
	for len(list) < n+2*len(halves)+5 {
		var m skip.Mask
		for b := range n {
			half := skip.Half(random.IntN(4) & random.IntN(4))
			if len(list)%2 == 0 && half != 0 {
				half = skip.Whole
			}
			m = with(m, b, half)
		}
		if !m.IsEmpty() && m.Check(c.model.NLayer) == nil && !slices.Contains(list, m) {
			list = append(list, m)
		}
	}
	return list
}

func token(i int) llama.Token { return llama.Token((i*37 + 11) % 250) }

// run gives the logits of: a prompt in one batch, each token's; the prompt in two
// batches and single tokens; and, behind a part that is taken back where the model
// can, a second turn.
func run(m *llama.Model, opts llama.ContextOptions, mask skip.Mask) (logits []float32, err error) {
	c, err := m.NewContext(&opts)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	b, err := llama.NewBatch(promptTokens, nil)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	pos := 0
	decode := func(n int, all bool) {
		if err != nil {
			return
		}
		b.Clear()
		for i := range n {
			if err = b.Add(token(pos+i), pos+i, all || i == n-1, 0); err != nil {
				return
			}
		}
		if err = c.Decode(b, mask); err != nil {
			return
		}
		for i := range n {
			if all || i == n-1 {
				var row []float32
				if row, err = c.Logits(i); err != nil {
					return
				}
				logits = append(logits, row...)
			}
		}
		pos += n
	}
	decode(promptTokens, true)
	c.Clear()
	pos = 0
	decode(firstTokens, false)
	decode(promptTokens-firstTokens, false)
	for range singleTokens {
		decode(1, false)
	}
	pos = promptTokens - 4
	if err == nil && c.Remove(0, pos, -1) != nil { // a recurrent model
		c.Clear()
		pos = 0
	}
	decode(8, false)
	decode(1, false)
	return logits, err
}

// pairs decodes masks one after the other in one context, each behind each, and
// compares with a fresh context.
func (c *checker) pairs(masks []skip.Mask) (pairs, wrong int, err error) {
	b, err := llama.NewBatch(8, nil)
	if err != nil {
		return 0, 0, err
	}
	defer b.Close()
	decode := func(at *llama.Context, n int, mask skip.Mask) ([]float32, error) {
		at.Clear()
		b.Clear()
		for i := range n {
			if err := b.Add(token(i), i, i == n-1, 0); err != nil {
				return nil, err
			}
		}
		if err := at.Decode(b, mask); err != nil {
			return nil, err
		}
		return at.Logits(-1)
	}
	bad := map[[2]int]bool{}
	for _, n := range []int{1, 5} {
		var want [][]float32
		for _, mask := range masks {
			fresh, err := c.model.NewContext(&c.opts)
			if err != nil {
				return 0, 0, err
			}
			logits, err := decode(fresh, n, mask)
			want = append(want, slices.Clone(logits))
			fresh.Close()
			if err != nil {
				return 0, 0, fmt.Errorf("mask %s: %w", mask, err)
			}
		}
		shared, err := c.model.NewContext(&c.opts)
		if err != nil {
			return 0, 0, err
		}
		defer shared.Close()
		before := -1
		step := func(i int) error {
			logits, err := decode(shared, n, masks[i])
			if err != nil {
				return fmt.Errorf("mask %s after another: %w", masks[i], err)
			}
			if !same(logits, want[i]) {
				bad[[2]int{before, i}] = true
			}
			before = i
			return nil
		}
		for i := range masks { // i, i+1, i, i+2, i, …: both orders of each pair
			for j := i + 1; j < len(masks); j++ {
				if err := errors.Join(step(i), step(j)); err != nil {
					return 0, 0, err
				}
			}
			if err := step(i); err != nil {
				return 0, 0, err
			}
		}
	}
	return len(masks) * (len(masks) - 1), len(bad), nil
}

// rows decodes sequences under different masks together and compares each with itself
// alone. Batches differ from single sequences by rounding, without masks too.
func (c *checker) rows(masks []skip.Mask) (Outcome, string, error) {
	if len(masks) == 0 {
		return Refused, "no mask can be used", nil
	}
	own := []skip.Mask{{}, masks[0], masks[len(masks)/2], masks[len(masks)-1]}
	opts := c.opts
	opts.NSeqMax, opts.KVUnified = len(own), true
	none := make([]skip.Mask, len(own))
	got, err := c.sequences(opts, own, true)
	if errors.Is(err, llama.ErrMask) {
		return Refused, strings.TrimPrefix(err.Error(), llama.ErrMask.Error()+": "), nil
	}
	var runs [3][]float32
	for i, masks := range [][]skip.Mask{own, none, none} {
		if err == nil {
			runs[i], err = c.sequences(opts, masks, i == 2)
		}
	}
	if err != nil {
		return "", "", fmt.Errorf("sequences under different masks: %w", err)
	}
	want, wholeAlone, whole := runs[0], runs[1], runs[2]
	// The cache's 16-bit numbers make rounding errors of one part in 2^11.
	const rounding = 1.0 / 2048
	off, usual := difference(got, want), max(difference(whole, wholeAlone), rounding)
	if off > 8*usual {
		return Wrong, fmt.Sprintf("logits off by %.3g, those of an unmasked batch by %.3g", off, usual), nil
	}
	return Exact, "", nil
}

// sequences decodes a prompt and single tokens of as many sequences as there are masks,
// in one decode each or each sequence alone, and gives the logits of all, by sequence.
func (c *checker) sequences(opts llama.ContextOptions, masks []skip.Mask, together bool) ([]float32, error) {
	at, err := c.model.NewContext(&opts)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	b, err := llama.NewBatch(seqTokens*len(masks), nil)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	b.Isolation = llama.AllAlone
	logits := make([][]float32, len(masks))
	var owners []int
	flush := func(mask skip.Mask) error {
		if err := at.Decode(b, mask); err != nil {
			return err
		}
		for i, s := range owners {
			if s >= 0 {
				row, err := at.Logits(i)
				if err != nil {
					return err
				}
				logits[s] = append(logits[s], row...)
			}
		}
		owners = owners[:0]
		b.Clear()
		return nil
	}
	for pos := 0; pos < seqTokens+3; {
		n := 1
		if pos == 0 {
			n = seqTokens
		}
		for k := range masks {
			s := (k*3 + 2) % len(masks) // in no order
			mask := masks[s]
			for i := range n {
				output := i == n-1 || s%2 == 0 // of some, all
				if err := b.Add(token(pos+i+10*s), pos+i, output, s); err != nil {
					return nil, err
				}
				owners = append(owners, s)
				if !output {
					owners[len(owners)-1] = -1
				}
			}
			if together {
				if err := b.SetMask(s, mask); err != nil {
					return nil, err
				}
			} else if err := flush(mask); err != nil {
				return nil, err
			}
		}
		if together {
			if err := flush(skip.Mask{}); err != nil {
				return nil, err
			}
		}
		pos += n
	}
	return slices.Concat(logits...), nil
}

// same compares bits, but for the sign of zeros.
func same(a, b []float32) bool { return slices.Equal(a, b) }

func difference(a, b []float32) (most float64) {
	if len(a) != len(b) {
		return math.Inf(1)
	}
	for i := range a {
		most = max(most, math.Abs(float64(a[i])-float64(b[i])))
	}
	return most
}
