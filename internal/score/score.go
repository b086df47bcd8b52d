package score

import (
	"context"
	"fmt"
	"math"

	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Case is an example in tokens.
type Case struct {
	Prompt  []llama.Token   // at least one
	Answers [][]llama.Token // at least one token each; a single one is a free answer
	Right   int             // which of Answers is right
	Task    string
	Text    bool // plain text: the answer is all of it but its first token, the prompt
	Own     bool // the only answer is the whole model's own, greedy one

	// AnswerBytes (len(Answers),) are the lengths of the answers' texts, without
	// the space in front; nil = unknown. Only [Accuracy] needs them.
	AnswerBytes []int
}

// Score is how a model under a mask takes a case.
type Score struct {
	LogLik []float64 // (len(Answers),) sum of ln p over each answer's tokens
	Loss   float64   // task loss: nats per token of the right answer

	// Margin is the right answer's loss minus the mean loss of the wrong ones:
	// PuDDing's second criterion, gold minus others, as a loss, so lower is better.
	// Without wrong answers it is Loss.
	Margin float64

	// KL is the mean of KL(whole || masked) over the tokens of the whole model's own
	// answer, in nats: by how much a token that the whole model draws there becomes
	// less likely under the mask. Unlike Loss it doesn't fall where a mask only makes
	// the model surer of itself. NaN where [Scorer.Hold] or [Scorer.Refer] have not
	// seen the case, or the answer is another's.
	KL float64

	Exact bool // each token of the right answer is the likeliest after those before it

	Tokens []TokenScore // of the right answer

	// All (len(Answers),) are the tokens of each answer, Tokens among them; KL is
	// known of the right one's alone.
	All [][]TokenScore

	referred bool // KL is known
}

// TokenScore is how a model takes one token, given those before it.
type TokenScore struct {
	LogP float64 // ln of its probability
	Top  float64 // probability of the likeliest token
	KL   float64 // KL(whole || masked), nats; 0 where the score's is NaN
}

// Difference is how far a model under a mask is from the whole one at the right
// answer's tokens of a case.
type Difference struct {
	KL        float64 // mean of KL(whole || masked), nats
	Agreement float64 // share of tokens at which both have the same likeliest one, 0 to 1

	Tokens []TokenDifference // of the right answer
}

// TokenDifference is how far a model under a mask is from the whole one at one
// token, given those before it.
type TokenDifference struct {
	KL    float64 // KL(whole || masked), nats
	Agree bool    // both have the same likeliest token
	Top   float64 // probability of the masked model's likeliest token
}

// checkCases finds cases that cannot be measured.
func checkCases(cases []Case) error {
	for i, c := range cases {
		if len(c.Prompt) == 0 {
			return fmt.Errorf("%w: case %d has no prompt", ErrEmpty, i)
		}
		if c.Right < 0 || c.Right >= len(c.Answers) {
			return fmt.Errorf("%w: case %d: answer %d of %d is said to be right", ErrCase, i, c.Right, len(c.Answers))
		}
		for a, answer := range c.Answers {
			if len(answer) == 0 {
				return fmt.Errorf("%w: answer %d of case %d has no tokens", ErrEmpty, a, i)
			}
		}
	}
	return nil
}

// Score measures the cases under mask. The error wraps [ErrEmpty], [ErrCase],
// [ErrTooLong], [skip.ErrMask], ctx's own, or one of llama's.
func (s *Scorer) Score(ctx context.Context, cases []Case, mask skip.Mask, p skip.Prefill) ([]Score, error) {
	if err := checkCases(cases); err != nil {
		return nil, err
	}
	jobs, err := s.jobs(cases)
	if err != nil {
		return nil, err
	}
	if len(s.references) > 0 {
		for i := range jobs {
			jobs[i].references = s.references[s.inputsKey(&jobs[i])]
		}
	}
	scores := newScores(cases)
	err = s.work(ctx, jobs, mask, p, s.ctx.NCtx(), func(group []job) error {
		return s.pass(group, mask, p, s.firstLayer(group, mask, p), func(p place, logits []float32) { note(cases, scores, p, logits) })
	})
	if err != nil {
		return nil, err
	}
	for i := range scores {
		scores[i].finish(&cases[i])
	}
	return scores, nil
}

// newScores makes the scores of cases of which nothing is known yet.
func newScores(cases []Case) []Score {
	scores := make([]Score, len(cases))
	for i, c := range cases {
		scores[i] = Score{LogLik: make([]float64, len(c.Answers)), Exact: true}
		for _, answer := range c.Answers {
			scores[i].All = append(scores[i].All, make([]TokenScore, len(answer)))
		}
		scores[i].Tokens = scores[i].All[c.Right]
	}
	return scores
}

// note adds the logits at a place to the scores of cases.
func note(cases []Case, scores []Score, p place, logits []float32) {
	top, lse := logSumExp(logits)
	score, from, to := &scores[p.job.number], p.answer, p.answer+1
	if p.answer < 0 {
		from, to = 0, len(p.job.answers)
	}
	for a := from; a < to; a++ {
		token := p.job.answers[a][p.token]
		logP := float64(logits[token]) - lse
		score.LogLik[p.job.first+a] += logP
		t := TokenScore{LogP: logP, Top: math.Exp(float64(logits[top]) - lse)}
		if p.job.first+a == cases[p.job.number].Right {
			score.Exact = score.Exact && token == top
			if p.job.references != nil {
				t.KL = p.job.references[p.token].divergence(logits, lse)
				score.referred = true
			}
		}
		score.All[p.job.first+a][p.token] = t
	}
}

// finish derives the losses from the log-likelihoods.
func (s *Score) finish(c *Case) {
	var wrong []float64
	for a, l := range s.LogLik {
		loss := -l / float64(len(c.Answers[a]))
		if a == c.Right {
			s.Loss = loss
		} else {
			wrong = append(wrong, loss)
		}
	}
	s.KL = math.NaN()
	if s.referred {
		s.KL = 0
		for _, t := range s.Tokens {
			s.KL += t.KL / float64(len(s.Tokens))
		}
	}
	s.Margin = s.Loss
	if len(wrong) > 0 {
		s.Margin -= stats.Mean(wrong)
	}
}

// Compare measures the cases under each of masks, and how far the model then is
// from the whole one at the right answers: both (len(masks), len(cases)). The
// whole model sees each case once, and its logits are kept for as many cases as
// are in the cache at once, however many masks there are. Errors are those of
// [Scorer.Score].
func (s *Scorer) Compare(ctx context.Context, cases []Case, masks []skip.Mask, p skip.Prefill) ([][]Score, [][]Difference, error) {
	if err := checkCases(cases); err != nil {
		return nil, nil, err
	}
	scores, differences := make([][]Score, len(masks)), make([][]Difference, len(masks))
	for k, mask := range masks {
		if err := mask.Check(s.model.NLayer); err != nil {
			return nil, nil, err
		}
		scores[k], differences[k] = newScores(cases), make([]Difference, len(cases))
		for i, c := range cases {
			differences[k][i].Tokens = make([]TokenDifference, len(c.Answers[c.Right]))
		}
	}
	jobs, err := s.jobs(cases)
	if err != nil {
		return nil, nil, err
	}
	right := func(p place) bool {
		a := cases[p.job.number].Right - p.job.first
		return 0 <= a && a < len(p.job.answers) && (p.answer == a || p.answer < 0)
	}
	keep := func(p place, logits []float32) {
		if right(p) {
			s.whole = append(s.whole, logits...)
		}
	}
	err = s.work(ctx, jobs, skip.Mask{}, p, s.rows, func(group []job) error {
		s.whole = s.whole[:0]
		if err := s.pass(group, skip.Mask{}, p, 0, keep); err != nil {
			return err
		}
		for k, mask := range masks {
			rest := s.whole
			err := s.pass(group, mask, p, 0, func(p place, logits []float32) {
				note(cases, scores[k], p, logits)
				if !right(p) {
					return
				}
				t := divergence(rest[:len(logits)], logits)
				rest = rest[len(logits):]
				d := &differences[k][p.job.number]
				n := float64(len(d.Tokens))
				d.Tokens[p.token] = t
				d.KL += t.KL / n
				if t.Agree {
					d.Agreement += 1 / n
				}
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	for k := range masks {
		for i := range scores[k] {
			scores[k][i].finish(&cases[i])
		}
	}
	return scores, differences, nil
}

// logSumExp is the likeliest token of logits (nVocab,), the first of equals, and
// ln of the sum of their exponentials: a token's ln p is its logit minus that.
func logSumExp(logits []float32) (top llama.Token, lse float64) {
	top, p := llama.TopProbability(logits)
	return top, float64(logits[top]) - math.Log(p)
}

// divergence compares the distributions with these logits (nVocab,): p is the
// whole model's, q the masked one's.
func divergence(p, q []float32) (d TokenDifference) {
	topP, lseP := logSumExp(p)
	topQ, lseQ := logSumExp(q)
	for i := range p {
		lnP := float64(p[i]) - lseP
		if prob := math.Exp(lnP); prob > 0 {
			d.KL += prob * (lnP - (float64(q[i]) - lseQ))
		}
	}
	d.KL = max(d.KL, 0) // rounding may give a little less
	d.Agree, d.Top = topP == topQ, math.Exp(float64(q[topQ])-lseQ)
	return d
}
