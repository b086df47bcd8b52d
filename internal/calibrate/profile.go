package calibrate

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// confidence that the predicted loss increase is no more than it is taken for,
// where the user asks for none.
const confidence = 0.9

// profile trains the router and puts everything but drafts together.
func (r *run) profile(ctx context.Context) (*router.Profile, error) {
	p := &router.Profile{
		Model:      r.id,
		Candidates: slices.Clone(r.candidates), Baselines: r.baselines, Spec: r.features.Spec(), Tasks: r.tasks, Units: r.unitLosses,
		Defaults: router.Defaults{Prefill: r.Prefill, Quality: r.Quality, Confidence: confidence},
	}
	var err error
	depths := make([]float64, len(r.candidates))
	for i, c := range r.candidates {
		depths[i] = c.Depth
	}
	r.Progress("training the router", 0, 1)
	var report router.Report
	if p.Router, report, err = router.Train(r.vectors, r.losses, &router.TrainOptions{Depths: depths, Seed: r.Seed, Between: func() error { return r.Pause.Wait(ctx) }}); err != nil {
		return nil, err
	}
	task := make([]int, len(r.cases))
	for i, c := range r.cases {
		task[i] = slices.Index(r.tasks, c.Task)
	}
	if p.Novelty, err = router.NewNovelty(r.vectors, task); err != nil {
		return nil, err
	}
	p.Baselines = slices.Concat(p.Baselines, r.static())
	if r.Prefill == skip.FullPrefill {
		if err := r.escalation(ctx, p); err != nil {
			return nil, err
		}
	}
	if r.saving, err = r.savingOf(ctx, p, report.Valid); err != nil {
		return nil, err
	}
	p.Defaults.Speed, p.Defaults.Off = r.saving.speed, r.saving.speed < leastSpeedup
	p.Provenance = []router.Note{
		{Key: "data", Value: dataset.Hash(r.Examples)},
		{Key: "examples", Value: fmt.Sprint(len(r.cases))},
		{Key: "unit", Value: string(r.Unit)},
		{Key: "prefill", Value: r.Prefill.String()},
		{Key: "depths", Value: fmt.Sprint(r.Depths)},
		{Key: "seed", Value: fmt.Sprint(r.Seed)},
		{Key: "validation regret, routed", Value: fmt.Sprintf("%.4f", report.Regret)},
		{Key: "validation regret, best single set", Value: fmt.Sprintf("%.4f", report.Static)},
		{Key: "saved by default, share of bytes", Value: fmt.Sprintf("%.4f", r.saving.bytes)},
	}
	if r.cut {
		p.Provenance = append(p.Provenance, router.Note{Key: "searched to depth", Value: fmt.Sprintf("%.2f, then the time was over", r.reached)})
	}
	return p, nil
}

// static is the best single set of each depth: of all candidates, the one with
// the lowest mean loss on the calibration data.
func (r *run) static() (sets []router.Candidate) {
	for _, depth := range r.Depths {
		best, least := 0, math.Inf(1)
		for c, candidate := range r.candidates {
			if c == 0 || !candidate.At(depth) {
				continue
			}
			sum := 0.0
			for _, row := range r.losses {
				sum += row[c]
			}
			if sum < least {
				best, least = c, sum
			}
		}
		if best > 0 {
			c := r.candidates[best]
			c.Task = router.BaselineStatic
			sets = append(sets, c)
		}
	}
	return sets
}

// Thresholds and qualities that escalation is calibrated for.
var (
	thresholds = []float64{0, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999}
	qualities  = []float64{0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999}
)

// escalationCases is how many cases escalation is calibrated on at most.
const escalationCases = 256

// escalating lists the candidates of a depth that escalation can go with.
func (r *run) escalating(depth float64) (group []int) {
	for c, candidate := range r.candidates {
		if c > 0 && candidate.Mask.KVComplete() && candidate.At(depth) {
			group = append(group, c)
		}
	}
	return group
}

// routed is which candidate of a group the router chooses for a case.
func (r *run) routed(p *router.Profile, group []int, i int) int {
	predicted := make([]float64, len(r.candidates))
	p.Router.Predict(predicted, r.vectors[i])
	return slices.MinFunc(group, func(a, b int) int { return cmp.Compare(predicted[a], predicted[b]) })
}

// escalation finds, for each quality, the depth and the threshold of the lowest
// cost: routed masks of that depth decode each token, and the whole model again
// those whose probability is below the threshold. It looks at the answers'
// tokens given the ones before (generation differs where an answer does), on
// cases that no search has seen, if there are any.
func (r *run) escalation(ctx context.Context, p *router.Profile) error {
	type point struct{ depth, threshold, cost, loss float64 }
	var points []point
	for _, depth := range r.Depths {
		group := r.escalating(depth)
		if len(group) == 0 {
			continue
		}
		curve := make([]point, len(thresholds))
		tokens, decoded := 0, 0
		for n, i := range r.sample {
			r.Progress("calibrating escalation", n, len(r.sample))
			best := r.routed(p, group, i)
			whole, err := r.tokensOf(ctx, i, skip.Mask{})
			if err != nil {
				return err
			}
			masked, err := r.tokensOf(ctx, i, r.candidates[best].Mask)
			if err != nil {
				return err
			}
			tokens += len(masked)
			decoded += len(masked) - 1
			for j, t := range masked {
				if j == 0 {
					continue // comes from the prompt's own pass, by the whole model
				}
				for h := range curve {
					curve[h].cost += 1 - r.candidates[best].Depth/float64(r.model.NLayer)
					switch {
					case t.Top < thresholds[h]:
						curve[h].cost++
					case r.cases[i].Own:
						curve[h].loss += t.KL
					default:
						curve[h].loss += whole[j].LogP - t.LogP
					}
				}
			}
		}
		for h := range curve {
			curve[h].depth, curve[h].threshold = depth, thresholds[h]
			curve[h].cost /= float64(decoded)
			curve[h].loss /= float64(tokens)
		}
		points = append(points, curve...)
	}
	for _, q := range qualities {
		best := point{cost: 1}
		for _, at := range points {
			if at.loss <= -math.Log(q) && at.cost < best.cost {
				best = at
			}
		}
		if best.cost < 1 {
			p.Defaults.Escalate = append(p.Defaults.Escalate, router.Escalation{
				Quality: q, Threshold: best.threshold, Depth: best.depth, Cost: best.cost,
			})
		}
	}
	return nil
}
