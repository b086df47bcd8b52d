package gallop

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// embedder is a context that gives hidden states, made when it is first needed.
type embedder struct {
	turn  chan struct{} // of cap 1: full while a request uses it
	ctx   *llama.Context
	batch *llama.Batch
}

// Embed gives each input's embedding (Embd,): the mean of its tokens' final hidden states, of
// length 1. It is computed beside the answers, by the whole model with its adapters, one
// request after the other. Errors: [ErrRequest], [ErrTooLong], [ErrClosed], ctx's own, or one
// of llama's.
func (e *Engine) Embed(ctx context.Context, inputs [][]llama.Token) (out [][]float32, err error) {
	if err := e.slots.begin(); err != nil {
		return nil, err
	}
	defer e.slots.end()
	for _, tokens := range inputs {
		switch {
		case len(tokens) == 0:
			return nil, fmt.Errorf("%w: an input without tokens", ErrRequest)
		case len(tokens) > e.nCtx:
			return nil, fmt.Errorf("%w: %d tokens, the context holds %d", ErrTooLong, len(tokens), e.nCtx)
		}
		if err := e.checkTokens(tokens); err != nil {
			return nil, err
		}
	}
	b, err := e.embedding()
	if err != nil {
		return nil, err
	}
	until, end := context.WithCancel(ctx)
	defer end()
	defer context.AfterFunc(e.closing, end)()
	defer func() {
		switch {
		case err == nil || until.Err() == nil:
		case ctx.Err() != nil:
			out, err = nil, ctx.Err()
		default:
			out, err = nil, fmt.Errorf("engine: %w", ErrClosed)
		}
	}()
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-until.Done():
		return nil, until.Err()
	}
	defer b.ctx.AbortOn(until)()
	out = make([][]float32, len(inputs))
	for i, tokens := range inputs {
		if out[i], err = b.embed(tokens, e.model.NEmbd); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// embedding makes the embedder at its first use.
func (e *Engine) embedding() (*embedder, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.embedder != nil {
		return e.embedder, nil
	}
	o := e.opts.Context
	o.NCtx, o.Embeddings, o.NSeqMax, o.KVUnified = e.nCtx, true, 0, false
	c, err := e.model.NewContext(&o)
	if err != nil {
		return nil, err
	}
	if len(e.loras) > 0 {
		if err := c.SetLoRA(e.loras...); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	batch, err := llama.NewBatch(c.NUBatch(), nil)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	e.embedder = &embedder{turn: make(chan struct{}, 1), ctx: c, batch: batch}
	return e.embedder, nil
}

func (b *embedder) embed(tokens []llama.Token, n int) ([]float32, error) {
	b.ctx.Clear()
	sum := make([]float64, n)
	for at := 0; at < len(tokens); {
		b.batch.Clear()
		part := tokens[at:min(at+b.batch.Cap(), len(tokens))]
		for i, t := range part {
			if err := b.batch.Add(t, at+i, true, 0); err != nil {
				return nil, err
			}
		}
		if err := b.ctx.Decode(b.batch, skip.Mask{}); err != nil {
			return nil, err
		}
		for i := range part {
			state, err := b.ctx.Embedding(i)
			if err != nil {
				return nil, err
			}
			for k, v := range state {
				sum[k] += float64(v)
			}
		}
		at += len(part)
	}
	length := 0.0
	for _, v := range sum {
		length += v * v
	}
	length = math.Sqrt(length)
	out := make([]float32, n)
	for k, v := range sum {
		if length > 0 {
			out[k] = float32(v / length)
		}
	}
	return out, nil
}

func (b *embedder) close() error { return errors.Join(b.batch.Close(), b.ctx.Close()) }
