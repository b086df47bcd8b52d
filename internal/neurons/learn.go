package neurons

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/learnt"
	"github.com/gallop-llm/gallop/internal/practice"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// learnPrompts is how many built-in prompts, with their answers, static scores come from; fewer in tests.
var learnPrompts = 16

// kind is what the files hold.
var kind = learnt.Kind{Name: "neurons", What: "the order of neurons", Version: 1}

// Dir is the folder of the user's cache where orders are kept.
func Dir() (string, error) { return kind.Dir() }

// ErrNoOrder is returned where a model's order was not learnt yet.
var ErrNoOrder = errors.New("which neurons are active on the whole was not learnt yet")

// ColumnType is the type of a matrix's columns in their order: those of a type whose blocks are larger than [llama.NeuronBlock] are quantised anew
// in another one.
func ColumnType(of string) (gguf.Type, error) {
	if t, ok := columnTypes[of]; ok {
		return t, nil
	}
	return 0, fmt.Errorf("%w: columns of type %s", llama.ErrNeurons, of)
}

var columnTypes = map[string]gguf.Type{
	"F32": gguf.F32, "F16": gguf.F16, "BF16": gguf.BF16, "Q8_0": gguf.Q8_0,
	"Q4_0": gguf.Q4_0, "Q4_1": gguf.Q4_1, "Q5_0": gguf.Q5_0, "Q5_1": gguf.Q5_1, "IQ4_NL": gguf.IQ4NL,
	"Q4_K": gguf.Q4_1, "Q5_K": gguf.Q5_1, "Q6_K": gguf.Q8_0, "Q3_K": gguf.Q4_0, "Q2_K": gguf.Q4_0,
}

// Read opens the order that was learnt of a model. The error wraps [ErrNoOrder] where there is none, or
// [llama.ErrNeurons] where there can be none.
func Read(m *llama.Model, dir string) (*Order, error) {
	ff, err := m.FeedForwards()
	if err != nil {
		return nil, err
	}
	path := kind.Path(dir, m)
	f, err := gguf.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoOrder
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoOrder, err)
	}
	o := &Order{model: m, file: f}
	if err := o.read(ff); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %s: %w", ErrNoOrder, path, err), f.Close())
	}
	return o, nil
}

// read fills in the layers from the file.
func (o *Order) read(ff []llama.FeedForward) error {
	if err := kind.Check(o.file.Metadata, o.model); err != nil {
		return err
	}
	for l, f := range ff {
		layer := Layer{ff: f}
		if f.Width > 0 {
			if err := o.readLayer(l, &layer); err != nil {
				return fmt.Errorf("layer %d: %w", l, err)
			}
		}
		o.Layers = append(o.Layers, layer)
	}
	return nil
}

func (o *Order) readLayer(l int, layer *Layer) error {
	width := uint64(layer.ff.Width)
	data := func(name string, t gguf.Type, into func([]byte)) error {
		tensor, ok := o.file.Tensor(fmt.Sprintf("%s.%d", name, l))
		if !ok || tensor.Type != t || !slices.Equal(tensor.Shape, []uint64{width}) {
			return fmt.Errorf("its %s is missing or has another shape", name)
		}
		b, err := io.ReadAll(o.file.Reader(tensor))
		into(b)
		return err
	}
	if err := data("order", gguf.I32, func(b []byte) { layer.IDs = learnt.Numbers[int32](b) }); err != nil {
		return err
	}
	if err := data("static", gguf.F32, func(b []byte) { layer.Static = learnt.Numbers[float32](b) }); err != nil {
		return err
	}
	seen := make([]bool, width)
	for _, id := range layer.IDs {
		if id < 0 || uint64(id) >= width || seen[id] {
			return errors.New("its order has a neuron twice or one that there is not")
		}
		seen[id] = true
	}
	for _, s := range layer.Static {
		if !(s >= 0 && s <= 1) {
			return errors.New("its scores are out of range")
		}
	}
	want, err := ColumnType(layer.ff.Down.Type)
	if err != nil {
		return err
	}
	tensor, ok := o.file.Tensor(fmt.Sprintf("down.%d", l))
	if !ok || tensor.Type != want || !slices.Equal(tensor.Shape, layer.ff.Down.Shape) {
		return errors.New("its columns are missing or have another shape")
	}
	layer.down = tensor
	return nil
}

// Learn finds the order of a model's neurons from built-in prompts and answers of its own, and
// keeps it in dir. progress, if given, gets the share of the work that is done. threads as in
// [llama.ContextOptions]. The error wraps [llama.ErrNeurons] where there can be none.
func Learn(ctx context.Context, m *llama.Model, dir string, threads int, progress func(float64)) error {
	ff, err := m.FeedForwards()
	if err != nil {
		return err
	}
	for _, f := range ff {
		if f.Width > 0 {
			if _, err := ColumnType(f.Down.Type); err != nil {
				return err
			}
		}
	}
	if progress == nil {
		progress = func(float64) {}
	}
	const reading = 0.9 // of the time
	static, err := measure(ctx, m, threads, func(share float64) { progress(reading * share) })
	if err != nil {
		return err
	}
	var tensors []gguf.Source
	for l := range ff {
		f := &ff[l]
		if f.Width == 0 {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		progress(reading + (1-reading)*float64(l)/float64(len(ff)))
		score, _ := static.score(l)
		if score == nil {
			return fmt.Errorf("%w: layer %d was never seen at work", llama.ErrNeurons, l)
		}
		ids := sorted(score)
		to, err := ColumnType(f.Down.Type)
		if err != nil {
			return err
		}
		weights := slices.Clone(score)
		for i := range weights {
			weights[i] = max(weights[i], 1e-3/float32(f.Width)) // a neuron that was never active may be
		}
		down, err := m.SortDown(f, ids, to, weights)
		if err != nil {
			return err
		}
		add := func(name string, t gguf.Type, data []byte, shape ...uint64) {
			tensors = append(tensors, learnt.Tensor(fmt.Sprintf("%s.%d", name, l), t, data, shape...))
		}
		add("order", gguf.I32, learnt.Bytes(ids), uint64(f.Width))
		add("static", gguf.F32, learnt.Bytes(score), uint64(f.Width))
		add("down", to, down, f.Down.Shape...)
	}
	meta := kind.Head(m)
	meta.Set(kind.Key("prompts"), uint32(learnPrompts))
	return kind.Write(ctx, kind.Path(dir, m), meta, tensors)
}

// measure lets the model read and answer prompts. Each prompt counts the same, and its own tokens as much
// as its answer's.
func measure(ctx context.Context, m *llama.Model, threads int, progress func(float64)) (*Heard, error) {
	p, err := practice.New(ctx, m, threads)
	if err != nil {
		return nil, err
	}
	static := NewHeard(m.NLayer)
	read := func() error {
		if err := p.Context.MeasureActivity(true); err != nil {
			return err
		}
		for i := range learnPrompts {
			if err := p.Prompt(func(int) error { return nil }); err != nil {
				return err
			}
			static.equally(p.Context)
			if err := p.Continue(func(t llama.Token) error { return p.Decode([]llama.Token{t}, skip.Mask{}) }); err != nil {
				return err
			}
			static.equally(p.Context)
			progress(float64(i+1) / float64(learnPrompts))
		}
		return nil
	}
	err = read()
	return static, errors.Join(err, p.Close())
}

// equally adds the mean share of what was measured, as of one token.
func (h *Heard) equally(c *llama.Context) {
	for l := range h.sums {
		a := c.Activity(0, l)
		if a.Tokens == 0 {
			continue
		}
		if h.sums[l] == nil {
			h.sums[l] = make([]float32, len(a.Sums))
		}
		for i, s := range a.Sums {
			h.sums[l][i] += s / float32(a.Tokens)
		}
		h.tokens[l]++
	}
	c.ResetActivity(0)
}
