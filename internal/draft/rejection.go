package draft

import (
	"math/rand/v2"

	"github.com/gallop-llm/gallop/llama"
)

// rejectionSampler decides over drafted tokens by rejection sampling, which leaves the
// distribution of the answer as it is without drafts (Leviathan, Kalman, Matias:
// Fast Inference from Transformers via Speculative Decoding, arXiv 2211.17192;
// Chen et al., arXiv 2302.01318): a token drawn from the draft's distribution q
// is accepted with the chance min(1, p/q) of the whole model's p; in place of
// one that is not, a token is drawn from what p exceeds q by. A token that was
// not drawn but looked up has q = 1. Greedily p and q are single tokens, and
// what is accepted is what is equal.
type rejectionSampler struct {
	random *rand.Rand
	excess []float32 // (nVocab,) scratch, zeros between calls
}

// accepts tells whether the token, drawn from q, stands in for one drawn from p.
func (j *rejectionSampler) accepts(p, q *llama.Distribution, t llama.Token) bool {
	pt, qt := p.Of(t), q.Of(t)
	return pt >= qt || j.random.Float32()*qt < pt
}

// instead draws the token that takes the place of one that was not accepted.
func (j *rejectionSampler) instead(p, q *llama.Distribution) llama.Token {
	for i, t := range q.Tokens {
		j.excess[t] = q.P[i]
	}
	sum := float32(0)
	for i, t := range p.Tokens {
		sum += max(p.P[i]-j.excess[t], 0)
	}
	at := j.random.Float32() * sum
	chosen := llama.NoToken
	for i, t := range p.Tokens {
		if rest := p.P[i] - j.excess[t]; rest > 0 {
			chosen = t
			if at -= rest; at < 0 {
				break
			}
		}
	}
	for _, t := range q.Tokens {
		j.excess[t] = 0
	}
	if chosen == llama.NoToken { // p is q but for rounding, and nothing exceeds
		return j.draw(p)
	}
	return chosen
}

// draw takes a token from a distribution.
func (j *rejectionSampler) draw(p *llama.Distribution) llama.Token {
	if len(p.Tokens) == 1 {
		return p.Tokens[0]
	}
	at := j.random.Float32()
	for i, share := range p.P {
		if at -= share; at < 0 {
			return p.Tokens[i]
		}
	}
	return p.Tokens[len(p.Tokens)-1]
}
