package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/shortlist"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

const (
	compareBatch   = 32
	compareContext = 512
)

// texts are what tokens are compared on: the built-in prompts as the model gets them, and
// this project's documents. The model learnt from some of the prompts' beginnings.
func texts(m *llama.Model) ([]string, error) {
	var all []string
	for _, e := range slices.Backward(dataset.Starter()) {
		text, err := m.ApplyTemplate([]llama.Message{{Role: "user", Content: e.Prompt}}, true)
		if err != nil {
			return nil, err
		}
		all = append(all, text)
	}
	documents, err := filepath.Glob("docs/*.md")
	if err != nil {
		return nil, err
	}
	for _, path := range append([]string{"README.md"}, documents...) {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("run this in the project's folder: %w", err)
		}
		all = append(all, string(data))
	}
	return all, nil
}

// compare decodes texts and compares each token's choice from the shortlist with the whole
// matrix's, and distributions after the default sampling chain.
func (o *options) compare(m *llama.Model, learner *shortlist.Learner, l *listed) error {
	all, err := texts(m)
	if err != nil {
		return err
	}
	c, err := m.NewContext(&llama.ContextOptions{NCtx: compareContext, NBatch: compareBatch, NUBatch: compareBatch})
	if err != nil {
		return err
	}
	defer c.Close()
	made, err := learner.Use(c)
	if err != nil {
		return err
	}
	batch, err := llama.NewBatch(compareBatch, nil)
	if err != nil {
		return err
	}
	defer batch.Close()
	s := llama.DefaultSampling()
	sampler, err := m.NewSampler(s)
	if err != nil {
		return err
	}
	defer sampler.Close()
	mask := skip.Mask{}.WithShortlist(made.Size)
	extended, computed := 0, 0
	short := make([]llama.Distribution, compareBatch)
	var exact llama.Distribution
	for _, text := range all {
		tokens, err := m.Vocab.Tokenize(strings.ToValidUTF8(text, ""), true)
		if err != nil {
			return err
		}
		for part := range slices.Chunk(tokens, compareContext-compareBatch) {
			c.Clear()
			for pos := 0; pos < len(part); pos += compareBatch {
				if l.Rows >= o.rows {
					l.Extended = float64(extended) / float64(l.Rows)
					l.Exact = float64(computed) / float64(l.Rows)
					l.Distance /= float64(max(l.Sampled, 1))
					return nil
				}
				chunk := part[pos:min(pos+compareBatch, len(part))]
				batch.Clear()
				for i, t := range chunk {
					if err := batch.Add(t, pos+i, true, 0); err != nil {
						return err
					}
				}
				sampled := l.Sampled < o.sampled
				if sampled { // as in use, then once more with exact logits
					if err := c.Decode(batch, mask); err != nil {
						return err
					}
					for i := range chunk {
						if err := sampler.Distribution(c, i, &short[i]); err != nil {
							return err
						}
					}
					if err := c.Remove(0, pos, -1); err != nil {
						return err
					}
				}
				err := c.MeasureShortlist(batch, mask, func(_ int, t llama.ShortlistTrial) {
					l.Rows++
					computed += t.Exact
					if t.Extended {
						extended++
					}
					if !t.Equal {
						l.Unequal++
					}
				})
				if err != nil {
					return err
				}
				for i := range chunk {
					if !sampled {
						break
					}
					if err := sampler.Distribution(c, i, &exact); err != nil {
						return err
					}
					l.Distance += distance(&short[i], &exact)
					l.Sampled++
				}
			}
		}
	}
	return fmt.Errorf("the texts have %d tokens, %d are wanted", l.Rows, o.rows)
}

// distance is the total variation distance of two distributions, 0 to 1.
func distance(p, q *llama.Distribution) float64 {
	at := make(map[llama.Token]float64, len(p.Tokens)+len(q.Tokens))
	for i, t := range p.Tokens {
		at[t] += float64(p.P[i])
	}
	for i, t := range q.Tokens {
		at[t] -= float64(q.P[i])
	}
	sum := 0.0
	for _, d := range at {
		sum += math.Abs(d)
	}
	return sum / 2
}
