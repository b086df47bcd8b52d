package main

import (
	"context"
	"fmt"
	"time"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/neurons"
	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// speed decodes tokens by the whole model and without shares of neurons in turns, and compares with what the
// bytes that are not read would save. Which neurons are kept makes no difference, so any model file will do.
func speed(ctx context.Context, path string, threads, rounds int) error {
	m, err := llama.LoadModel(ctx, path, &llama.ModelOptions{GPULayers: llama.CPUOnly})
	if err != nil {
		return err
	}
	defer m.Close()
	ff, err := m.FeedForwards()
	if err != nil {
		return err
	}
	c, err := m.NewContext(&llama.ContextOptions{NCtx: 512, Threads: threads})
	if err != nil {
		return err
	}
	defer c.Close()
	shares := []int{0, 100, 200, 300, 500}
	ideal := make([]float64, len(shares))
	all, _ := m.TokenBytes()
	for choice, share := range shares[1:] {
		n, size, err := firstNeurons(m, ff, share)
		if err != nil {
			return err
		}
		defer n.Close()
		if err := c.SetNeurons(choice+1, n); err != nil {
			return err
		}
		whole := 0.0
		for l := range ff {
			whole += ff[l].Bytes(m) * float64(ff[l].Width)
		}
		ideal[choice+1] = float64(all) / (float64(all) - whole + float64(size))
	}
	b, err := llama.NewBatch(1, nil)
	if err != nil {
		return err
	}
	defer b.Close()
	took := make([][]float64, len(shares))
	for range rounds {
		for i, share := range shares {
			c.Clear()
			const run = 8 // tokens; the first builds a graph
			for pos := range run {
				b.Clear()
				if err := b.Add(llama.Token(10+pos), pos, true, 0); err != nil {
					return err
				}
				start := time.Now()
				if err := c.Decode(b, skip.Mask{}.WithNeurons(share, i)); err != nil {
					return err
				}
				if pos > 0 {
					took[i] = append(took[i], time.Since(start).Seconds())
				}
			}
		}
	}
	whole := stats.Median(took[0])
	fmt.Printf("%s: %.1f tokens/s by the whole model\n", path, 1/whole)
	for i, share := range shares[1:] {
		ratio := whole / stats.Median(took[i+1])
		fmt.Printf("without %2d %% of the neurons: %.3f times the speed, %.3f by bytes, %.3f of that\n", share/10, ratio, ideal[i+1], ratio/ideal[i+1])
	}
	return nil
}

// firstNeurons keeps the first ones of each layer.
func firstNeurons(m *llama.Model, ff []llama.FeedForward, share int) (n *llama.Neurons, size uint64, err error) {
	kept, types := make([]int, len(ff)), make([]gguf.Type, len(ff))
	for l := range ff {
		kept[l] = neurons.Kept(ff[l].Width, share)
		if types[l], err = neurons.ColumnType(ff[l].Down.Type); err != nil {
			return nil, 0, err
		}
	}
	if n, err = m.NewNeurons(kept, types); err != nil {
		return nil, 0, err
	}
	for l := range ff {
		ids, weights := make([]int32, ff[l].Width), make([]float32, ff[l].Width)
		for i := range ids {
			ids[i], weights[i] = int32(i), 1
		}
		down, err := m.SortDown(&ff[l], ids, types[l], weights)
		if err != nil {
			return n, 0, err
		}
		blocks := make([]int32, kept[l]/llama.NeuronBlock)
		for b := range blocks {
			blocks[b] = int32(b)
		}
		if err := n.Set(l, ids[:kept[l]], neurons.Columns(nil, down, types[l], ff[l].Width, blocks)); err != nil {
			return n, 0, err
		}
	}
	return n, n.Size, nil
}
