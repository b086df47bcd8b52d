package llama

/*
#cgo linux LDFLAGS: -lm
#include "glue.h"
*/
import "C"

import (
	"math"
)

// Influence is the block influence of ShortGPT (Men et al., arXiv 2403.03853),
// of layers and of their halves: how far each turns the residual stream, as the
// mean over tokens of 1 - cos(input, output). 0 leaves the direction alone, 2
// turns it round. Each slice is (nLayer,) and new.
//
// The means are over all tokens decoded since the context was made or
// [Context.ResetInfluence] was called, except those decoded under a mask and
// those whose stream is all zeros. llama.cpp drops the tokens that are no outputs
// inside the last layer, so that layer's means are over outputs alone.
//
// NaN stands where nothing was measured: no tokens so far, layers outside of
// the graph, and in attention and feedForward also layers whose halves do not
// follow each other. Models that attend in both directions are not measured.
//
// Measuring leaves every result as it is, to the last bit on CPU. It stops the
// graph twice a layer: prompts in large batches hardly notice, but single tokens
// on several threads, which then fall asleep and wake up as often, may take
// many times as long.
//
// All slices are nil in a context that is closed or was made without
// [ContextOptions].Influence.
func (c *Context) Influence() (attention, feedForward, layer []float64) {
	if c.ptr == nil || c.own.influence == nil {
		return nil, nil, nil
	}
	in := c.own.influence
	return c.angles(&in.attention), c.angles(&in.feed_forward), c.angles(&in.whole)
}

// angles gives the mean of each layer.
func (c *Context) angles(sums *[C.LAYERSKIP_MAX_LAYERS]C.struct_gallop_angle_sum) []float64 {
	means := make([]float64, c.Model.NLayer)
	for l := range means {
		means[l] = math.NaN()
		if l < len(sums) && sums[l].n > 0 {
			means[l] = float64(sums[l].sum) / float64(sums[l].n)
		}
	}
	return means
}

// ResetInfluence makes [Context.Influence] begin anew.
func (c *Context) ResetInfluence() {
	if c.ptr != nil && c.own.influence != nil {
		C.gallop_reset_influence(c.own.influence)
	}
}
