package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/skip"
)

// measure scores all entries' examples, benchmark by benchmark, as far as they are not
// known. What was scored is kept after each entry.
func (l *lab) measure(ctx context.Context, entries []entry) error {
	start := time.Now()
	for b, bench := range benchmarks {
		tests := l.tests[b*l.test : (b+1)*l.test]
		cases := casesOf(tests)
		held := false
		for _, p := range []skip.Prefill{skip.FullPrefill, skip.MaskedPrefill} { // the prompts' keys and values serve all full ones
			for _, e := range entries {
				open := map[way][]int{}
				var order []way
				for i, w := range e.ways[b*l.test : (b+1)*l.test] {
					if _, known := l.scoresOf(w.String(), bench.name)[i]; known || w.prefill != p && !w.mask.IsEmpty() {
						continue
					}
					if w.mask.IsEmpty() {
						w = way{prefill: skip.FullPrefill}
					}
					if open[w] == nil {
						order = append(order, w)
					}
					open[w] = append(open[w], i)
				}
				if len(order) == 0 {
					continue
				}
				if p == skip.FullPrefill && !held {
					if _, err := l.scorer.Hold(ctx, cases); err != nil {
						return err
					}
					held, l.held = true, false
				}
				for _, w := range order {
					records, err := l.score(ctx, bench, cases, open[w], w)
					if err != nil {
						return fmt.Errorf("%s, %s, %q: %w", e.method, bench.name, w, err)
					}
					known := l.scoresOf(w.String(), bench.name)
					for k, i := range open[w] {
						known[i] = records[k]
					}
				}
				l.lap("accuracy", &start)
				if err := l.keep(); err != nil {
					return err
				}
			}
		}
		l.progress("%s is measured", bench.title)
	}
	return nil
}

// score measures some of a benchmark's cases in one way.
func (l *lab) score(ctx context.Context, b benchmark, cases []score.Case, some []int, w way) ([]record, error) {
	part := make([]score.Case, len(some))
	for k, i := range some {
		part[k] = cases[i]
	}
	scores, err := l.scorer.Score(ctx, part, w.mask, w.prefill)
	if err != nil {
		return nil, err
	}
	escalated := make([]int, len(some))
	if w.escalate > 0 {
		whole, err := l.scorer.Score(ctx, part, skip.Mask{}, w.prefill)
		if err != nil {
			return nil, err
		}
		for k := range scores {
			escalated[k] = escalate(&scores[k], &whole[k], part[k].Right, w.escalate)
		}
	}
	records := make([]record, len(some))
	for k, s := range scores {
		records[k] = newRecord(b, part[k], s)
		records[k].Escalated = escalated[k]
	}
	return records, nil
}

// escalate puts the whole model's tokens in place of those that the cascade would decide
// again, and counts these in the right answer. The first token is the whole model's anyway.
func escalate(masked, whole *score.Score, right int, threshold float64) (escalated int) {
	for a, tokens := range masked.All {
		masked.LogLik[a] = 0
		for i := range tokens {
			if i > 0 && tokens[i].Top < threshold {
				tokens[i] = whole.All[a][i]
				if a == right {
					escalated++
				}
			}
			masked.LogLik[a] += tokens[i].LogP
		}
	}
	return escalated
}

// newRecord is what counts of a score.
func newRecord(b benchmark, c score.Case, s score.Score) record {
	r := record{LogP: s.LogLik[c.Right], Tokens: len(c.Answers[c.Right])}
	if len(c.Answers) > 1 {
		var bytes []int
		if b.byByte {
			bytes = c.AnswerBytes
		}
		r.Right = s.ChoiceNorm(bytes) == c.Right
	}
	for _, t := range s.All[c.Right] {
		if isLikeliest(t) {
			r.Likeliest++
		}
	}
	return r
}

// isLikeliest tells whether a token is the likeliest one at its place: its probability is
// that of the likeliest, up to rounding.
func isLikeliest(t score.TokenScore) bool {
	const rounding = 1e-9
	return probability(t) >= t.Top*(1-rounding)
}

// records are an entry's, benchmark by benchmark; ok is false where some are missing.
func (l *lab) records(e entry) (all [][]record, ok bool) {
	for b, bench := range benchmarks {
		var some []record
		for i, w := range e.ways[b*l.test : (b+1)*l.test] {
			r, known := l.Scores[w.String()][bench.name][i]
			if !known {
				return nil, false
			}
			some = append(some, r)
		}
		all = append(all, some)
	}
	return all, true
}

// weights lists an entry's ways with the share of the examples that each serves, the most
// frequent first.
func (e entry) weights() (ways []way, share map[way]float64) {
	share = map[way]float64{}
	for _, w := range e.ways {
		if share[w] == 0 {
			ways = append(ways, w)
		}
		share[w] += 1 / float64(len(e.ways))
	}
	slices.SortStableFunc(ways, func(a, b way) int {
		switch {
		case share[a] > share[b]:
			return -1
		case share[a] < share[b]:
			return 1
		}
		return 0
	})
	return ways, share
}

// probability is a token's.
func probability(t score.TokenScore) float64 { return math.Exp(t.LogP) }
