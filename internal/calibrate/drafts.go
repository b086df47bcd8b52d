package calibrate

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// drafting names the search for masks to draft under among the tasks.
const drafting = "drafting"

// draftShares are how much of the inner layers drafts skip: which depth is best
// depends on the machine, so each of them is kept. Deeper masks than for answers
// pay, because the whole model verifies.
var draftShares = []float64{0.3, 0.45, 0.6, 0.75, 0.9}

// wrong is the share of a case's answer's tokens that the model
// under a mask would have drafted wrongly: those that are not its likeliest after
// the whole model's prompt and the answer's tokens before. The first token comes
// from the prompt's own pass and is never drafted. The share is a little too
// high for drafts, which begin anew every few tokens from what the whole model
// has verified.
func wrong(s score.Score) (share float64) {
	drafted := s.Tokens[1:]
	for _, t := range drafted {
		if math.Exp(t.LogP) < t.Top*(1-likeliestRounding) {
			share += 1 / float64(len(drafted))
		}
	}
	return share
}

// likeliestRounding is how much a probability may fall short of the likeliest
// token's, from rounding, and be taken for it.
const likeliestRounding = 1e-6

// forDrafts is the search of masks to draft under: over the halves of layers, for the
// fewest wrong tokens per byte saved, on all tasks together.
func (r *run) forDrafts() pursuit {
	units := search.SublayerUnits(r.sizes)
	return pursuit{drafting, r.mixed, units, draftShares[len(draftShares)-1] * inner(units), skip.FullPrefill, wrong}
}

// inner is the depth of all units.
func inner(units []search.Unit) (depth float64) {
	for _, u := range units {
		depth += u.Depth
	}
	return depth
}

// drafts finds masks to draft under. What becomes of each prompt's tokens under each mask is
// what acceptance is predicted by.
func (r *run) drafts(ctx context.Context, p *router.Profile) error {
	if r.Preset != nil {
		return nil
	}
	if err := r.findDrafts(ctx, p); err != nil {
		return err
	}
	rows, err := r.measureDrafts(ctx, p)
	if err != nil {
		return err
	}
	p.Drafter, _, err = router.Train(r.vectors, rows, &router.TrainOptions{Hidden: draftHidden, Nets: 1, Seed: r.Seed, Between: func() error { return r.Pause.Wait(ctx) }})
	return err
}

// findDrafts searches the masks.
func (r *run) findDrafts(ctx context.Context, p *router.Profile) error {
	s := r.forDrafts()
	path, err := r.find(ctx, s, r.searchBudget())
	if err != nil && !errors.Is(err, search.ErrBudget) {
		return err
	}
	for _, share := range draftShares {
		mask := maskAt(path, share*inner(s.units))
		if !slices.ContainsFunc(p.Drafts, func(d router.Draft) bool { return d.Mask == mask }) {
			p.Drafts = append(p.Drafts, router.Draft{Mask: mask, Depth: r.sizes.Depth(mask)})
		}
	}
	return nil
}

// measureDrafts measures every prompt under every draft: (len(r.cases), 1 + len(p.Drafts)).
func (r *run) measureDrafts(ctx context.Context, p *router.Profile) (rows [][]float64, err error) {
	rows = make([][]float64, len(r.cases))
	for from, to := 0, 0; from < len(r.cases); from = to {
		to = r.chunkFrom(from)
		losses := r.wrap(fmt.Sprint(drafting, " from ", from), r.valuesOf(r.cases[from:to], skip.FullPrefill, wrong), r.chunkOwner(from), true)
		for i := from; i < to; i++ {
			rows[i] = []float64{0} // nothing drafted is never wrong
		}
		for n, d := range p.Drafts {
			r.Progress("measuring drafts", from*len(p.Drafts)+n*(to-from), len(r.cases)*len(p.Drafts))
			values, err := losses(ctx, d.Mask, search.All(to-from))
			if err != nil {
				return nil, err
			}
			for i, v := range values {
				rows[from+i] = append(rows[from+i], v)
				p.Drafts[n].Acceptance += (1 - v) / float64(len(r.cases))
			}
		}
	}
	for n := range p.Drafts {
		p.Drafts[n].Acceptance = min(max(p.Drafts[n].Acceptance, 0), 1) // sums round
	}
	return rows, nil
}

// draftHidden is the width of the network that predicts acceptance. It only
// orders the masks that are tried first, so it can be small.
const draftHidden = 16
