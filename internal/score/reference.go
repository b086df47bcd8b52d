package score

import (
	"cmp"
	"context"
	"math"
	"slices"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// referenceTokens is how many of the whole model's likeliest tokens are kept of a
// distribution; the others count together. On SmolLM2 a divergence of 0.79 over all
// tokens comes to 0.76.
const referenceTokens = 128

// distribution is what the whole model expects at a token of an answer: 1 KiB.
type distribution struct {
	tokens []llama.Token // (referenceTokens,) the likeliest, in order of their ids
	logP   []float32     // (referenceTokens,) ln of each one's probability
	rest   float64       // probability of all others
}

// newDistribution keeps what matters of the whole model's logits (nVocab,).
func newDistribution(logits []float32) distribution {
	_, lse := logSumExp(logits)
	r := distribution{tokens: likeliestTokens(logits, referenceTokens), rest: 1}
	for _, t := range r.tokens {
		logP := float64(logits[t]) - lse
		r.logP = append(r.logP, float32(logP))
		r.rest -= math.Exp(logP)
	}
	return r
}

// likeliestTokens gives the n tokens of the highest logits, or all, in order of
// their ids. Of equal logits the lower ids are taken.
func likeliestTokens(logits []float32, n int) []llama.Token {
	var best []llama.Token // ascending by logit, equal ones descending by id
	order := func(a, b llama.Token) int {
		return cmp.Or(cmp.Compare(logits[a], logits[b]), cmp.Compare(b, a))
	}
	for i, v := range logits {
		if len(best) == n {
			if v <= logits[best[0]] {
				continue
			}
			best = slices.Delete(best, 0, 1)
		}
		at, _ := slices.BinarySearchFunc(best, llama.Token(i), order)
		best = slices.Insert(best, at, llama.Token(i))
	}
	slices.Sort(best)
	return best
}

// leastRest is the probability of all other tokens together from which on they
// count: below it, rounding decides.
const leastRest = 1e-5

// divergence is KL(whole || masked) in nats, the tokens that are not kept taken as
// one: a little less than that of all tokens apart. lse is that of the masked
// model's logits (nVocab,).
func (r *distribution) divergence(logits []float32, lse float64) (kl float64) {
	rest := 1.0
	for i, t := range r.tokens {
		logP, logQ := float64(r.logP[i]), float64(logits[t])-lse
		if p := math.Exp(logP); p > 0 {
			kl += p * (logP - logQ)
		}
		rest -= math.Exp(logQ)
	}
	if r.rest > leastRest {
		kl += r.rest * math.Log(r.rest/max(rest, leastRest))
	}
	return max(kl, 0) // rounding may give a little less
}

// Refer notes what the whole model expects at each token of its own answers
// ([Case].Own), so that [Scorer.Score] can tell how far from that it is under a
// mask. That is kept, 1 KiB a token, until Refer
// or [Scorer.Hold] are called with others.
// The cache is empty afterwards. The error is one of [Scorer.Score]'s.
func (s *Scorer) Refer(ctx context.Context, cases []Case) error {
	own := slices.DeleteFunc(slices.Clone(cases), func(c Case) bool { return !c.Own })
	jobs, err := s.jobs(own)
	if err != nil {
		return err
	}
	s.inputs = nil
	s.ctx.Clear()
	s.reset()
	if !slices.ContainsFunc(jobs, func(j job) bool { return s.references[s.inputsKey(&j)] == nil }) {
		return nil // as when the same cases are asked for again
	}
	s.references = map[string][]distribution{}
	err = s.work(ctx, jobs, skip.Mask{}, skip.FullPrefill, s.ctx.NCtx(), func(group []job) error {
		return s.pass(group, skip.Mask{}, skip.FullPrefill, 0, func(p place, logits []float32) { s.refer(own, p, logits) })
	})
	s.ctx.Clear()
	s.reset()
	return err
}

// refer notes what the whole model expects at a place of its own answer.
func (s *Scorer) refer(cases []Case, p place, logits []float32) {
	if cases[p.job.number].Own {
		name := s.inputsKey(p.job)
		if p.token == 0 {
			s.references[name] = nil // of an equal case
		}
		s.references[name] = append(s.references[name], newDistribution(logits))
	}
}
