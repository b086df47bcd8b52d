package draft

import (
	"fmt"

	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// probeTokens is how much text the block influence is measured on: enough for
// the order of the layers, a second on a laptop for a model of a billion weights.
const probeTokens = 256

// probeShares are how much of the inner layers the masks of [Probe] skip.
// Which depth is best depends on the machine and the text; it shows while drafting.
var probeShares = []float64{0.5, 0.7, 0.3, 0.85}

// Probe gives masks to draft under for a model of which nothing is known:
// at several depths the halves of layers that turn the residual stream least
// (ShortGPT's block influence, arXiv 2403.03853), measured on built-in prompts
// that the whole model reads once.
func Probe(m *llama.Model, threads int) ([]Mask, error) {
	prompts, err := probePrompts(m)
	if err != nil {
		return nil, err
	}
	c, err := m.NewContext(&llama.ContextOptions{NCtx: probeTokens, NBatch: probeTokens, Threads: threads, Influence: true})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	b, err := llama.NewBatch(probeTokens, nil)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	for _, tokens := range prompts {
		b.Clear()
		c.Clear()
		for i, t := range tokens {
			if err := b.Add(t, i, true, 0); err != nil {
				return nil, err
			}
		}
		if err := c.Decode(b, skip.Mask{}); err != nil {
			return nil, err
		}
	}
	units := search.SublayerUnits(search.SizesOf(m.Tensors, m.NLayer))
	influence := search.Influences(units, c)
	var masks []Mask
	for _, share := range probeShares {
		mask, err := search.ByInfluence(units, influence, share*float64(m.NLayer-2))
		if err != nil {
			return nil, fmt.Errorf("%w: no mask to draft under: %w", ErrLossless, err)
		}
		masks = append(masks, Mask{Mask: mask})
	}
	return masks, nil
}

// probePrompts gives built-in prompts of probeTokens tokens together.
func probePrompts(m *llama.Model) (prompts [][]llama.Token, err error) {
	total := 0
	for _, e := range dataset.Starter() {
		tokens, err := m.Vocab.Tokenize(e.Prompt, true)
		if err != nil {
			return nil, err
		}
		tokens = tokens[:min(len(tokens), probeTokens-total)]
		if total += len(tokens); len(tokens) == 0 {
			break
		}
		prompts = append(prompts, tokens)
	}
	return prompts, nil
}
