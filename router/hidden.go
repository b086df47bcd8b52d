package router

import (
	"errors"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// hiddenLayers is how many of the model's layers run for the features of kind
// [Hidden].
const hiddenLayers = 2

// HiddenState gives what [Sources].Hidden needs: a function for the mean over a
// prompt's tokens of the hidden state after the model's first layers, the others
// masked. It owns a context of the model; close frees that. One goroutine at a time.
func HiddenState(m *llama.Model, threads int) (state func(tokens []llama.Token) ([]float32, error), close func() error, err error) {
	c, err := m.NewContext(&llama.ContextOptions{NCtx: 2 * endTokens, NBatch: 2 * endTokens, Threads: threads, Embeddings: true})
	if err != nil {
		return nil, nil, err
	}
	b, err := llama.NewBatch(c.NBatch(), nil)
	if err != nil {
		return nil, nil, errors.Join(err, c.Close())
	}
	var mask skip.Mask
	for l := hiddenLayers; l < m.NLayer; l++ {
		mask = mask.With(l, skip.Whole)
	}
	mean := make([]float32, m.NEmbd)
	return func(tokens []llama.Token) ([]float32, error) {
		c.Clear()
		b.Clear()
		for pos, t := range tokens {
			if err := b.Add(t, pos, true, 0); err != nil {
				return nil, err
			}
		}
		if len(tokens) == 0 {
			return make([]float32, m.NEmbd), nil
		}
		if err := c.Decode(b, mask); err != nil {
			return nil, err
		}
		return mean, c.MeanEmbedding(mean)
	}, func() error { return errors.Join(b.Close(), c.Close()) }, nil
}
