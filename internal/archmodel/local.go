package archmodel

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// localWindow is what [Local] has tokens see: less than most of a prompt.
var localWindow = skip.Window{Recent: 5, Sinks: 2}

// sumsApart is what logits may differ by where hidden cells are summed in as zeros, in the
// share of what the window changes: attention without flash attention does that.
const sumsApart = 0.02

// Local makes the attention of all layers local that it can be made in, skips that of the others
// that attend to cached tokens, and compares with stock llama.cpp, whose tokens are decoded in
// sequences that hold the window's cells alone. It is Refused where no layer can, or where the cache
// cannot give a sequence some of another's cells; reason then says why, or what differs.
func Local(ctx context.Context, m Model, path string) (outcome Outcome, reason string, err error) {
	model, err := llama.LoadModel(ctx, path, &llama.ModelOptions{GPULayers: llama.CPUOnly})
	if err != nil {
		return "", "", err
	}
	defer model.Close()
	opts := llama.ContextOptions{NCtx: 2 * ctxTokens, Threads: 1, NSeqMax: 2, KVUnified: true}
	if m.NoFlash {
		opts.Flash = llama.FlashOff
	}
	var mask skip.Mask
	for layer := range model.NLayer {
		one := skip.Mask{}.WithLocal(layer, localWindow)
		_, err := windowed(model, opts, one, false)
		switch {
		case err == nil:
			mask = mask.Union(one)
		case errors.Is(err, llama.ErrMask):
			reason = strings.TrimPrefix(err.Error(), llama.ErrMask.Error()+": ")
			if one = (skip.Mask{}).With(layer, skip.Attention); !strings.Contains(reason, "no attention") {
				mask = mask.Union(one)
			}
		default:
			return "", "", fmt.Errorf("local attention in layer %d: %w", layer, err)
		}
	}
	if !mask.HasLocal() {
		return Refused, reason, nil
	}
	got, err := windowed(model, opts, mask, false)
	if errors.Is(err, llama.ErrMask) {
		return Refused, err.Error(), nil
	}
	if err != nil {
		return "", "", err
	}
	whole, err := windowed(model, opts, mask.WithoutLocal(), false)
	if err != nil {
		return "", "", err
	}
	want, err := windowed(model, opts, mask.WithoutLocal(), true)
	if errors.Is(err, llama.ErrState) || errors.Is(err, llama.ErrBatch) {
		return Refused, fmt.Sprintf("cannot be compared: %v", err), nil
	}
	if err != nil {
		return "", "", fmt.Errorf("reference: %w", err)
	}
	switch effect := difference(whole, want); {
	case effect == 0:
		return Refused, "cannot be compared: the window hides nothing that counts", nil
	case difference(got, want) > sumsApart*effect:
		return Wrong, fmt.Sprintf("logits off by %.3g of the %.3g that the window changes", difference(got, want), effect), nil
	}
	return Exact, "", nil
}

// windowed gives the logits of single tokens behind a prompt that is decoded without windows. With
// fork, each is decoded in a sequence that holds no more of the first than [localWindow].
func windowed(m *llama.Model, opts llama.ContextOptions, mask skip.Mask, fork bool) (logits []float32, err error) {
	c, err := m.NewContext(&opts)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	b, err := llama.NewBatch(promptTokens, nil)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	for i := range promptTokens {
		err = errors.Join(err, b.Add(token(i), i, i == promptTokens-1, 0))
	}
	if err != nil {
		return nil, err
	}
	if err := c.Decode(b, mask.WithoutLocal()); err != nil {
		return nil, err
	}
	for pos := promptTokens; pos < promptTokens+singleTokens; pos++ {
		seq := 0
		if fork {
			seq = 1
			err := c.Remove(seq, 0, -1)
			if err == nil {
				err = c.Copy(0, seq, 0, localWindow.Sinks)
			}
			if err == nil {
				err = c.Copy(0, seq, pos-localWindow.Recent+1, pos)
			}
			if err != nil {
				return nil, err
			}
		}
		b.Clear()
		if err := b.Add(token(pos), pos, true, seq); err != nil {
			return nil, err
		}
		if err := c.Decode(b, mask); err != nil {
			return nil, err
		}
		row, err := c.Logits(0)
		if err != nil {
			return nil, err
		}
		logits = append(logits, row...)
		if fork {
			if err := c.Copy(seq, 0, pos, pos+1); err != nil {
				return nil, err
			}
		}
	}
	return logits, nil
}
