package engine

import (
	"slices"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// grain is the size of the pieces in which isolated prompts are decoded, in tokens from the
// prompt's start: how many columns are multiplied at once decides over the last bits. Only
// whole pieces serve again.
const grain = 64

// probeRows is how many tokens are compared alone and together, and probeLen how many lie
// before each: processors multiply by up to eight columns at a time.
const (
	probeRows = 8
	probeLen  = 3
)

// findIsolation finds the cheapest way to decode several sequences' tokens so that each comes
// out as if it were decoded alone, by trying: which one it is depends on the processor and on
// the weights' types. Where none does, as on a GPU, tokens are decoded together.
func (l *Loop) findIsolation() error {
	rows := min(probeRows, l.opts.Parallel)
	defer l.ctx.Clear()
	decode := func(seqs []int, pos int, output bool) error {
		l.batch.Clear()
		for _, seq := range seqs {
			if err := l.batch.Add(l.probeToken(seq, pos), pos, output, seq); err != nil {
				return err
			}
		}
		return l.ctx.Decode(l.batch, skip.Mask{})
	}
	var alone [][]float32
	all := make([]int, rows)
	for seq := range rows {
		all[seq] = seq
		for pos := range probeLen + 1 {
			if err := decode([]int{seq}, pos, pos == probeLen); err != nil {
				return err
			}
		}
		logits, err := l.ctx.Logits(0)
		if err != nil {
			return err
		}
		alone = append(alone, slices.Clone(logits))
	}
	for _, l.exactly = range []llama.Isolation{llama.AttentionAlone, llama.ProductsUntiled, llama.AllAlone} {
		for _, seq := range all {
			if err := l.ctx.Remove(seq, probeLen, -1); err != nil {
				l.exactly = llama.Shared
				return nil // a recurrent model computes its sequences one by one
			}
		}
		l.batch.Isolation = l.exactly
		if err := decode(all, probeLen, true); err != nil {
			return err
		}
		equal := true
		for i, want := range alone {
			logits, err := l.ctx.Logits(i)
			if err != nil {
				return err
			}
			equal = equal && slices.Equal(want, logits)
		}
		if equal {
			return nil
		}
	}
	l.exactly = llama.Shared
	return nil
}

// probeToken is a token of the vocabulary's, another one at each place.
func (l *Loop) probeToken(seq, pos int) llama.Token {
	const step = 7919
	return llama.Token((1 + (seq*(probeLen+1)+pos)*step) % l.model.Vocab.Size)
}
