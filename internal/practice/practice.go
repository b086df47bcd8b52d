// Package practice lets a model read built-in prompts and answer them, for whoever learns
// something of it meanwhile.
package practice

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"

	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/template"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

const (
	// batchTokens is how many tokens are decoded at once, each with a row of logits.
	batchTokens = 32
	// contextTokens is the context, in tokens: longer prompts are cut.
	contextTokens = 512
	// Answer is how many tokens an answer has at most.
	Answer = 48
)

// Practice is a context of its own in which built-in prompts are decoded and answered.
type Practice struct {
	Context *llama.Context // what was decoded last can be read from it

	model   *llama.Model
	batch   *llama.Batch
	prompts []dataset.Example
	pos     int // tokens in the cache
}

// New makes the context; threads as in [llama.ContextOptions]. The end of ctx ends what is decoded.
func New(ctx context.Context, m *llama.Model, threads int) (*Practice, error) {
	c, err := m.NewContext(&llama.ContextOptions{NCtx: min(contextTokens, m.NCtxTrain), NBatch: batchTokens, NUBatch: batchTokens, Threads: threads})
	if err != nil {
		return nil, err
	}
	batch, err := llama.NewBatch(batchTokens, nil)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	c.AbortOn(ctx)
	prompts := dataset.Starter()
	// Tasks stand together in the list; a few prompts should be of many.
	rand.New(rand.NewPCG(7, 7)).Shuffle(len(prompts), func(i, j int) { prompts[i], prompts[j] = prompts[j], prompts[i] })
	return &Practice{Context: c, model: m, batch: batch, prompts: prompts}, nil
}

// Close frees the context.
func (p *Practice) Close() error { return errors.Join(p.batch.Close(), p.Context.Close()) }

// Prompt empties the cache and decodes the next built-in prompt; see gets each token's row. The
// prompts begin again when all were used.
func (p *Practice) Prompt(see func(row int) error) error {
	next := p.prompts[0]
	p.prompts = append(p.prompts[1:], next)
	text, err := p.model.Render(llama.Conversation{Messages: []llama.Message{{Role: "user", Content: next.Prompt}}, Answer: true})
	if err != nil {
		text = template.Typed(next.Prompt)
	}
	tokens, err := p.model.Vocab.TokenizeText(text)
	if err != nil {
		return err
	}
	tokens = tokens[:min(len(tokens), p.Context.NCtx()/2)]
	p.Clear()
	for chunk := range slices.Chunk(tokens, batchTokens) {
		if err := p.Decode(chunk, skip.Mask{}); err != nil {
			return err
		}
		for row := range chunk {
			if err := see(row); err != nil {
				return err
			}
		}
	}
	return nil
}

// Clear empties the cache.
func (p *Practice) Clear() {
	p.Context.Clear()
	p.pos = 0
}

// Full tells whether the cache has no room for another token.
func (p *Practice) Full() bool { return p.pos >= p.Context.NCtx() }

// Decode appends tokens, each with an output.
func (p *Practice) Decode(tokens []llama.Token, mask skip.Mask) error {
	return p.DecodeBy(tokens, func(b *llama.Batch) error { return p.Context.Decode(b, mask) })
}

// DecodeBy is Decode by something else than the context's own method.
func (p *Practice) DecodeBy(tokens []llama.Token, decode func(*llama.Batch) error) error {
	p.batch.Clear()
	for i, t := range tokens {
		if err := p.batch.Add(t, p.pos+i, true, 0); err != nil {
			return err
		}
	}
	if err := decode(p.batch); err != nil {
		return err
	}
	p.pos += len(tokens)
	return nil
}

// Next is the likeliest next token; end tells that the answer is over.
func (p *Practice) Next() (token llama.Token, end bool, err error) {
	logits, err := p.Context.Logits(-1)
	if err != nil {
		return llama.NoToken, true, err
	}
	token, _ = llama.TopProbability(logits)
	return token, p.model.Vocab.IsEnd(token) || p.Full(), nil
}

// Continue answers the prompt with up to [Answer] likeliest tokens: add appends each.
func (p *Practice) Continue(add func(token llama.Token) error) error {
	for range Answer {
		token, end, err := p.Next()
		if err != nil || end {
			return err
		}
		if err := add(token); err != nil {
			return err
		}
	}
	return nil
}
