package calibrate

import (
	"context"
	"fmt"
	"slices"

	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// contestCases is how many prompts that no search has seen compare sets at most.
const contestCases = 24

// contest lets the sets for all prompts and the baselines of about the same depth
// compete on prompts that no search has seen; the best of them is the set for all
// prompts then. A search that had too little time, or too few examples, may have
// found less than a draw of lots. Only the whole model's own answers are compared:
// a divergence from few prompts says enough, a loss does not.
func (r *run) contest(ctx context.Context) error {
	if r.Preset != nil {
		return nil
	}
	n := r.unsearched
	if len(n) == 0 {
		n = search.All(len(r.cases))
	}
	from, to := r.chunkOf(n[len(n)/2]) // the chunk that has the middle one: prompts are decoded again for every chunk
	var unseen []int                   // in the chunk
	for _, i := range n {
		if i >= from && i < to && len(unseen) < contestCases && r.cases[i].Own {
			unseen = append(unseen, i-from)
		}
	}
	if len(unseen) == 0 {
		return nil
	}
	losses, chunk := r.lossesFrom(from), search.All(to-from)
	for c := 1; c < len(r.candidates); c++ {
		r.Progress("comparing with sets that nobody searched", c-1, len(r.candidates)-1)
		found := r.candidates[c]
		values, err := losses(ctx, found.Mask, chunk) // all are measured soon anyway, at once
		if err != nil {
			return err
		}
		least := stats.Mean(pick(values, unseen))
		for _, b := range r.baselines {
			if b.Task == router.BaselineGreedy || !b.At(found.Depth) || slices.ContainsFunc(r.candidates, func(have router.Candidate) bool { return have.Mask == b.Mask }) {
				continue
			}
			values, err := losses(ctx, b.Mask, unseen)
			if err != nil {
				return err
			}
			if value := stats.Mean(values); value < least {
				least = value
				r.candidates[c].Mask, r.candidates[c].Depth = b.Mask, b.Depth
			}
		}
		for i, b := range r.baselines {
			if b.Task == router.BaselineGreedy && b.Mask == found.Mask {
				r.baselines[i].Mask, r.baselines[i].Depth = r.candidates[c].Mask, r.candidates[c].Depth
			}
		}
	}
	return nil
}

// leastUnseen is how many of a task's prompts that no search has seen can judge
// its sets.
const leastUnseen = 4

// keepBetter gives a task the set for all prompts in place of its own where that
// is better on the task's prompts that no search has seen: few examples can
// mislead a search. Only the whole model's own answers judge.
func (r *run) keepBetter() {
	unseen := map[string][]int{}
	for _, i := range r.unsearched {
		if r.cases[i].Own {
			unseen[r.cases[i].Task] = append(unseen[r.cases[i].Task], i)
		}
	}
	for _, task := range r.tasks {
		if len(unseen[task]) < leastUnseen {
			continue
		}
		mean := func(c int) (sum float64) {
			for _, i := range unseen[task] {
				sum += r.losses[i][c] / float64(len(unseen[task]))
			}
			return sum
		}
		for own := range r.candidates {
			if !r.candidates[own].For(task) {
				continue
			}
			best := own
			for c := 1; c < len(r.candidates); c++ {
				if r.candidates[c].For(general) && r.candidates[c].At(r.candidates[own].Depth) && mean(c) < mean(best) {
					best = c
				}
			}
			if best != own {
				r.candidates[own].DropTask(task)
				r.candidates[best].AddTask(task)
			}
		}
	}
	var kept []int
	for c, candidate := range r.candidates {
		if c == 0 || candidate.Task != "" {
			kept = append(kept, c)
		}
	}
	r.candidates = pick(r.candidates, kept)
	for i, row := range r.losses {
		r.losses[i] = pick(row, kept)
	}
}

// pick is some of values.
func pick[T any](values []T, some []int) []T {
	out := make([]T, len(some))
	for k, i := range some {
		out[k] = values[i]
	}
	return out
}

// leastSpeedup is how many times as fast as by the whole model tokens have to be decoded
// for routing to be worth its while: choosing masks takes time too, and what is measured is
// off by a percent or two.
const leastSpeedup = 1.02

// saving is what a profile saves by its defaults, on prompts that its router did
// not learn from.
type saving struct {
	routed float64 // share of the prompts that get a mask
	bytes  float64 // share of the bytes of a token that is saved, mean of all prompts; below 0: more are read
	speed  float64 // times as fast as by the whole model tokens are decoded, as measured; 1 = nothing is routed
}

// savingOf finds out what a profile saves by its defaults, as chat and run use
// them, on these cases.
func (r *run) savingOf(ctx context.Context, p *router.Profile, cases []int) (s saving, err error) {
	policy, twice := router.Policy{}, 0.0 // twice: share of the tokens that the whole model decides again
	if e, ok := p.Defaults.EscalationFor(p.Defaults.Quality); ok && p.Defaults.Prefill == skip.FullPrefill {
		policy = router.Policy{Depth: e.Depth, Guard: true}
		twice = e.Cost - (1 - e.Depth/float64(r.model.NLayer))
	}
	share, shares := r.layersShare(), map[skip.Mask]float64{}
	for _, i := range cases {
		d, err := p.ChooseBy(r.vectors[i], policy)
		if err != nil {
			return s, err
		}
		if d.Candidate > 0 {
			s.routed += 1 / float64(len(cases))
			shares[d.Mask] += 1 / float64(len(cases))
			s.bytes += (d.Depth/float64(r.model.NLayer)*share - twice) / float64(len(cases))
		}
	}
	if s.speed = 1; len(shares) > 0 {
		s.speed, err = r.speedOf(ctx, shares, max(twice, 0))
	}
	return s, err
}

// layersShare is the layers' share of the bytes that a token reads: of all weights
// but the token embeddings, unless these are the output matrix too.
func (r *run) layersShare() float64 {
	all, _ := r.model.TokenBytes()
	var layers uint64
	for l := range r.sizes.Attention {
		layers += r.sizes.Attention[l] + r.sizes.FeedForward[l]
	}
	return float64(layers) / float64(max(all, 1))
}

// has says in a sentence what a profile has to offer.
func (r *run) has(p *router.Profile, s saving) string {
	sets := fmt.Sprintf("%d sets of layers", len(p.Candidates)-1)
	switch {
	case p.Router == nil:
		return sets + " for fixed depths"
	case s.routed == 0:
		return fmt.Sprintf("%s, which do not pay: at the default quality of %g no held-out prompt can spare any, so chat and run use the whole model unless --quality, --depth or --profile asks for them",
			sets, p.Defaults.Quality)
	case p.Defaults.Off:
		return fmt.Sprintf("%s, which do not pay: at the default quality of %g held-out prompts decode %.2f times as fast with them on this machine, as measured, so chat and run use the whole model unless --quality, --depth or --profile asks for them",
			sets, p.Defaults.Quality, s.speed)
	}
	return fmt.Sprintf("%s: at the default quality of %g, %.0f %% of held-out prompts skip layers, which saves %.1f %% of a token's bytes and makes decoding %.2f times as fast, as measured",
		sets, p.Defaults.Quality, 100*s.routed, 100*s.bytes, s.speed)
}
