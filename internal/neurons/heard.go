package neurons

import "github.com/gallop-llm/gallop/llama"

// Heard is how active the neurons of each layer were in some tokens: sums of shares, in which
// later tokens may count more.
type Heard struct {
	sums   [][]float32 // by layer, (width,); nil = nothing
	tokens []float64   // by layer, what the sums are of
}

// NewHeard is nothing of a model's layers.
func NewHeard(layers int) *Heard { return &Heard{make([][]float32, layers), make([]float64, layers)} }

// Decay makes what was heard so far count as this share of what comes, 0 to 1.
func (h *Heard) Decay(share float64) {
	for l := range h.sums {
		for i := range h.sums[l] {
			h.sums[l][i] *= float32(share)
		}
		h.tokens[l] *= share
	}
}

// Hear adds what a context measured of a sequence since it was last asked, and lets it forget that.
// Layers whose tokens are not all there, as the last one's are not in a prompt, are left out if least is more.
func (h *Heard) Hear(c *llama.Context, seq, least int) {
	for l := range h.sums {
		a := c.Activity(seq, l)
		if a.Tokens < max(least, 1) {
			continue
		}
		if h.sums[l] == nil {
			h.sums[l] = make([]float32, len(a.Sums))
		}
		for i, s := range a.Sums {
			h.sums[l][i] += s
		}
		h.tokens[l] += float64(a.Tokens)
	}
	c.ResetActivity(seq)
}

// Clone is a copy.
func (h *Heard) Clone() *Heard {
	if h == nil {
		return nil
	}
	c := NewHeard(len(h.sums))
	for l := range h.sums {
		c.sums[l] = append([]float32(nil), h.sums[l]...)
		c.tokens[l] = h.tokens[l]
	}
	return c
}

// Tokens is how many tokens the first layer's shares are of.
func (h *Heard) Tokens() float64 {
	if h == nil || len(h.tokens) == 0 {
		return 0
	}
	return h.tokens[0]
}

// score is each neuron's mean share in a layer, and of how many tokens; nil = nothing is known.
func (h *Heard) score(layer int) (shares []float32, tokens float64) {
	if h == nil || h.tokens[layer] == 0 {
		return nil, 0
	}
	score := make([]float32, len(h.sums[layer]))
	for i, s := range h.sums[layer] {
		score[i] = s / float32(h.tokens[layer])
	}
	return score, h.tokens[layer]
}

// Plus is h with weight times the mean of other added to its own mean, where other knows one.
func (h *Heard) Plus(other *Heard, weight float32) *Heard {
	sum := h.Clone()
	for l := range sum.sums {
		more, _ := other.score(l)
		own, tokens := h.score(l)
		if more == nil || own == nil {
			continue
		}
		for i := range more {
			sum.sums[l][i] = (own[i] + weight*more[i]) * float32(tokens)
		}
	}
	return sum
}
