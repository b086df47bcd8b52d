package search

import (
	"slices"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Sizes are the bytes of weights in each half of each layer: what skipping it
// saves. Experts count whole, also those that a token does not use.
type Sizes struct {
	Attention   []uint64 // (nLayer,) bytes
	FeedForward []uint64 // (nLayer,) bytes
}

// HalfOf tells which layer a tensor belongs to, by its name: "blk.3.ffn_up.weight"
// to layer 3's feed-forward. What is not the feed-forward's counts to the
// attention, or to what stands in its place. ok is false outside the layers.
func HalfOf(tensor string) (layer int, half skip.Half, ok bool) {
	layer, rest, ok := gguf.SplitLayer(tensor)
	if !ok {
		return 0, 0, false
	}
	if gguf.FeedForward(rest) {
		return layer, skip.FeedForward, true
	}
	return layer, skip.Attention, true
}

// SizesOf adds up a model's tensors. Layers from nLayer on, which llama.cpp
// does not run for ordinary decodes, are left out.
func SizesOf(tensors []llama.Tensor, nLayer int) Sizes {
	s := Sizes{Attention: make([]uint64, nLayer), FeedForward: make([]uint64, nLayer)}
	for _, t := range tensors {
		layer, half, ok := HalfOf(t.Name)
		switch {
		case !ok || layer >= nLayer:
		case half == skip.FeedForward:
			s.FeedForward[layer] += t.Size
		default:
			s.Attention[layer] += t.Size
		}
	}
	return s
}

// Bytes is how many bytes of weights m skips. Attention whose keys and values are written
// counts as kept, as a part of it is read.
func (s Sizes) Bytes(m skip.Mask) (skipped uint64) {
	m = m.Unread()
	for l := range min(len(s.Attention), skip.MaxLayers) { // no mask names later ones
		if m.Skipped(l)&skip.Attention != 0 {
			skipped += s.Attention[l]
		}
		if m.Skipped(l)&skip.FeedForward != 0 {
			skipped += s.FeedForward[l]
		}
	}
	return skipped
}

// Depth is how much m skips, in layers' worth of weight bytes: the bytes that it
// skips over the mean bytes of a layer. It is 0 for a model without layers.
func (s Sizes) Depth(m skip.Mask) float64 {
	var all uint64
	for l := range s.Attention {
		all += s.Attention[l] + s.FeedForward[l]
	}
	if all == 0 {
		return 0
	}
	return float64(s.Bytes(m)) * float64(len(s.Attention)) / float64(all)
}

// Unit is what a search skips at once: a layer or half of one.
type Unit struct {
	Mask  skip.Mask
	Depth float64 // layers' worth of weight bytes, above 0
}

// LayerUnits lists the whole layers but the first and the last, which hardly any
// model does without, in order.
func LayerUnits(s Sizes) []Unit { return s.units(skip.Whole) }

// SublayerUnits lists the halves of all layers but the first and the last, in
// the order of computation: a1, f1, a2, …
func SublayerUnits(s Sizes) []Unit { return s.units(skip.Attention, skip.FeedForward) }

// units leaves out what has no weights: skipping it saves nothing.
func (s Sizes) units(halves ...skip.Half) []Unit {
	var units []Unit
	for l := 1; l < min(len(s.Attention), skip.MaxLayers)-1; l++ {
		for _, half := range halves {
			mask := skip.Mask{}.With(l, half)
			units = append(units, Unit{Mask: mask, Depth: s.Depth(mask)})
		}
	}
	return slices.DeleteFunc(units, func(u Unit) bool { return u.Depth == 0 })
}
