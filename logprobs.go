package gallop

import (
	"cmp"
	"math"
	"slices"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// detail is a token of the answer, as it is told.
func (x *answering) detail(t llama.Token, row int, source Source) Token {
	d := Token{ID: t, Text: string(x.e.model.Vocab.AppendPiece(nil, t, true)), Source: source}
	logits, err := x.seat.Context().Logits(x.seat.Row(row))
	if err != nil {
		d.LogProb = math.NaN()
		return d
	}
	d.LogProb, d.Top = x.e.logprobs(logits, t, max(x.r.Logprobs, 0))
	return d
}

// logprobs gives ln of a token's probability by logits (nVocab,), and the n likeliest tokens,
// the likeliest first.
func (e *Engine) logprobs(logits []float32, t llama.Token, n int) (own float64, top []Alternative) {
	likeliest, p := llama.TopProbability(logits)
	sum := float64(logits[likeliest]) - math.Log(p) // of the exponentials, as ln
	own = float64(logits[t]) - sum
	if n == 0 {
		return own, nil
	}
	best := make([]llama.Token, 0, n+1) // sorted, the likeliest first
	for i, v := range logits {
		if len(best) == n && v <= logits[best[n-1]] {
			continue
		}
		at, _ := slices.BinarySearchFunc(best, v, func(b llama.Token, v float32) int {
			if logits[b] >= v { // of equals, the first comes first
				return -1
			}
			return cmp.Compare(v, logits[b])
		})
		best = slices.Insert(best, at, llama.Token(i))
		best = best[:min(len(best), n)]
	}
	for _, b := range best {
		top = append(top, Alternative{b, string(e.model.Vocab.AppendPiece(nil, b, true)), float64(logits[b]) - sum})
	}
	return own, top
}

// scoredRows is how many tokens of a prompt get logits in one decode: each takes a row as
// long as the vocabulary.
const scoredRows = 64

// scorePrompt decodes all of the prompt, with logits for each token.
func (x *answering) scorePrompt(mask skip.Mask) error {
	x.seat.Forget(0)
	x.a.Usage.Cached, x.a.Usage.Missed = 0, "each token's log-probability is asked for"
	vocab := x.e.model.Vocab
	x.a.Prompt = append(x.a.Prompt, Token{ID: x.prompt[0], Text: string(vocab.AppendPiece(nil, x.prompt[0], true)), Source: FromPrompt, LogProb: math.NaN()})
	for at := 0; at < len(x.prompt); {
		n := min(scoredRows, x.seat.Most(), len(x.prompt)-at)
		if err := x.decode(x.prompt[at:at+n], mask, n); err != nil {
			return err
		}
		for i := range n {
			next := at + i + 1
			if next == len(x.prompt) {
				break
			}
			logits, err := x.seat.Context().Logits(x.seat.Row(i))
			if err != nil {
				return err
			}
			t := Token{ID: x.prompt[next], Text: string(vocab.AppendPiece(nil, x.prompt[next], true)), Source: FromPrompt}
			t.LogProb, t.Top = x.e.logprobs(logits, t.ID, max(x.r.Logprobs, 0))
			x.a.Prompt = append(x.a.Prompt, t)
		}
		at += n
	}
	return nil
}
