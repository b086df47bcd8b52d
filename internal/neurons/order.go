package neurons

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"sync"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/prune"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Order is the order in which a model's neurons stand for being chosen, and how active they
// are on the whole.
type Order struct {
	Layers []Layer // (NLayer,)

	model *llama.Model
	file  *gguf.File // with the columns; owned
}

// Layer is a layer's part of an [Order].
type Layer struct {
	IDs    []int32   // (width,) the neurons, by their numbers in the model
	Static []float32 // (width,) static scores, by the same numbers; they sum up to 1

	ff   llama.FeedForward
	down gguf.Tensor // the columns in this order
}

// Close closes the file with the columns.
func (o *Order) Close() error {
	if o == nil || o.file == nil {
		return nil
	}
	return o.file.Close()
}

// sorted is the order of neurons by score, the most active first.
func sorted(score []float32) []int32 {
	ids := make([]int32, len(score))
	for i := range ids {
		ids[i] = int32(i)
	}
	slices.SortStableFunc(ids, func(a, b int32) int { return cmp.Compare(score[b], score[a]) })
	return ids
}

// Kept is how many of a layer's neurons a mask keeps that leaves out this share of them, in
// thousandths: whole blocks, at least one.
func Kept(width, share int) int {
	blocks := width / llama.NeuronBlock
	keep := math.Round(float64(blocks) * float64(skip.NeuronUnits-share) / skip.NeuronUnits)
	return max(int(keep), min(blocks, 1)) * llama.NeuronBlock
}

// kept is [Kept] of each layer.
func (o *Order) kept(share int) []int {
	list := make([]int, len(o.Layers))
	for l := range o.Layers {
		list[l] = Kept(o.Layers[l].ff.Width, share)
	}
	return list
}

// Size is how many bytes the smaller matrices take that a mask with this share needs.
func (o *Order) Size(share int) (bytes uint64) {
	for l, n := range o.kept(share) {
		if n > 0 && n < o.Layers[l].ff.Width {
			bytes += uint64(o.size(l, share))
		}
	}
	return bytes
}

// Spared is how many bytes fewer a token reads under a mask for its neurons.
func (o *Order) Spared(mask skip.Mask) uint64 {
	spared := 0.0
	for l := range o.Layers {
		if mask.Skipped(l)&skip.FeedForward == 0 {
			spared += o.whole(l) - o.size(l, mask.Neurons())
		}
	}
	return uint64(max(spared, 0))
}

// whole is how many bytes a layer's feed-forward takes.
func (o *Order) whole(l int) float64 {
	ff := &o.Layers[l].ff
	return ff.Bytes(o.model) * float64(ff.Width)
}

// size is how many bytes a token reads of a layer's feed-forward.
func (o *Order) size(l, share int) float64 {
	layer := &o.Layers[l]
	n := Kept(layer.ff.Width, share)
	if n == 0 || n == layer.ff.Width {
		return o.whole(l)
	}
	rows := o.whole(l) - float64(layer.ff.Down.Size)
	return (rows + float64(layer.down.Size)) / float64(layer.ff.Width) * float64(n)
}

// Choose gives the blocks of each layer that a mask with this share keeps, in the order's numbers,
// ascending: those with the largest sums of scores. Static scores count as of a few tokens. Layers of which h knows nothing go by their static scores.
func (o *Order) Choose(h *Heard, share int) [][]int32 {
	kept := o.kept(share)
	chosen := make([][]int32, len(o.Layers))
	for l := range o.Layers {
		layer := &o.Layers[l]
		if layer.ff.Width > 0 {
			heard, tokens := h.score(l)
			chosen[l] = layer.choose(heard, tokens, kept[l]/llama.NeuronBlock)
		}
	}
	return chosen
}

// prior is how many tokens static scores count as: they decide about short prompts, and little
// about long ones. In place of 16 as much as the prompt was worse on prompts unlike the built-in ones.
const prior = 16

// choose gives the n best blocks by static scores and those heard of so many tokens, nil = none.
func (l *Layer) choose(heard []float32, tokens float64, n int) []int32 {
	static := float32(1)
	if heard != nil {
		static = float32(prior / tokens)
	}
	all := l.ff.Width / llama.NeuronBlock
	scores, blocks := make([]float32, all), make([]int32, all)
	for b := range all {
		blocks[b] = int32(b)
		for _, id := range l.IDs[b*llama.NeuronBlock:][:llama.NeuronBlock] {
			scores[b] += static * l.Static[id]
			if heard != nil {
				scores[b] += heard[id]
			}
		}
	}
	slices.SortStableFunc(blocks, func(a, b int32) int { return cmp.Compare(scores[b], scores[a]) })
	blocks = blocks[:n]
	slices.Sort(blocks)
	return blocks
}

// Choice are the smaller matrices of chosen neurons.
type Choice struct {
	*llama.Neurons
	Share int

	order  *Order
	blocks [][]int32 // by layer; nil = never filled in
}

// New makes room for the neurons that masks with this share keep.
func (o *Order) New(share int) (*Choice, error) {
	types := make([]gguf.Type, len(o.Layers))
	for l := range o.Layers {
		types[l] = o.Layers[l].down.Type
	}
	n, err := o.model.NewNeurons(o.kept(share), types)
	if err != nil {
		return nil, err
	}
	return &Choice{n, share, o, make([][]int32, len(o.Layers))}, nil
}

// Set fills in the neurons of blocks, as [Order.Choose] gave them. Layers whose blocks are those that are
// there already are left as they are. No decode must use c meanwhile. copied is how many bytes were written.
func (c *Choice) Set(blocks [][]int32) (copied uint64, err error) {
	var mu sync.Mutex
	var running sync.WaitGroup
	work := make(chan int)
	for range runtime.GOMAXPROCS(0) {
		running.Go(func() {
			var whole, columns []byte
			for l := range work {
				var n uint64
				var failed error
				whole, columns, n, failed = c.set(l, blocks[l], whole, columns)
				mu.Lock()
				copied += n
				err = errors.Join(err, failed)
				mu.Unlock()
			}
		})
	}
	for l := range blocks {
		if c.Kept(l) > 0 && !slices.Equal(c.blocks[l], blocks[l]) {
			work <- l
		}
	}
	close(work)
	running.Wait()
	return copied, err
}

// Keep are the kept neurons as a file has them that lacks the others.
func (o *Order) Keep(blocks [][]int32) ([]prune.Kept, error) {
	kept := make([]prune.Kept, len(o.Layers))
	for l := range o.Layers {
		layer := &o.Layers[l]
		if n := len(blocks[l]) * llama.NeuronBlock; n == 0 || n == layer.ff.Width {
			continue
		}
		whole, err := io.ReadAll(o.file.Reader(layer.down))
		if err != nil {
			return nil, fmt.Errorf("read the columns of layer %d's neurons: %w", l, err)
		}
		kept[l] = prune.Kept{
			IDs: IDs(layer.IDs, blocks[l]), Down: Columns(nil, whole, layer.down.Type, layer.ff.Width, blocks[l]), Type: layer.down.Type,
		}
	}
	return kept, nil
}

// set fills in a layer; whole and columns are scratch.
func (c *Choice) set(l int, blocks []int32, whole, columns []byte) ([]byte, []byte, uint64, error) {
	layer := &c.order.Layers[l]
	c.blocks[l] = nil // until it is done
	whole = slices.Grow(whole[:0], int(layer.down.Size))[:layer.down.Size]
	if _, err := io.ReadFull(c.order.file.Reader(layer.down), whole); err != nil {
		return whole, columns, 0, fmt.Errorf("read the columns of layer %d's neurons: %w", l, err)
	}
	columns = Columns(columns, whole, layer.down.Type, layer.ff.Width, blocks)
	ids := IDs(layer.IDs, blocks)
	if err := c.Neurons.Set(l, ids, columns); err != nil {
		return whole, columns, 0, err
	}
	c.blocks[l] = slices.Clone(blocks)
	rows := c.order.whole(l) - float64(layer.ff.Down.Size)
	return whole, columns, uint64(len(columns)) + uint64(rows/float64(layer.ff.Width)*float64(len(ids))), nil
}
