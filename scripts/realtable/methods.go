package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// entry is a row of the table before it is measured: how each example is answered.
type entry struct {
	method string
	depth  float64 // wanted, in layers' worth of weights; 0 = the method decides
	ways   []way   // (len(tests),)
}

// What methods are called.
const (
	whole        = "whole model"
	randomLayers = "random layers"
	contiguous   = "contiguous"
	shortGPT     = "ShortGPT"
	sleb         = "SLEB"
	taskSets     = "task sets"
	routedLayers = "routed layers"
	randomHalves = "random halves"
	ffnSkip      = "FFN-SkipLLM"
	igPruning    = "IG-Pruning"
	knapSpec     = "KnapSpec"
	routedHalves = "routed halves"
	cascade      = "cascade"
	budget       = "quality"
)

// threshold is the cascade's: a token is decided by the whole model where the
// likeliest one has less probability under the mask.
const threshold = 0.9

// qualities are the budgets that are compared.
var qualities = []float64{0.90, 0.95, 0.98}

// plan gathers the entries of a table.
type plan struct {
	*lab
	entries []entry
}

// wants tells whether one of these methods was asked for: all are where none is named.
func (o *options) wants(methods ...string) bool {
	return o.methodNames == "" || slices.ContainsFunc(strings.Split(o.methodNames, ","), func(name string) bool { return slices.Contains(methods, name) })
}

// add takes a method's masks, if it is wanted: that of an example at a depth by its places
// in tests and depths.
func (p *plan) add(method string, prefill skip.Prefill, mask func(depth, test int) (skip.Mask, error)) error {
	if !p.wants(method) {
		return nil
	}
	for d, depth := range p.depths {
		e := entry{method: method, depth: depth}
		for t := range p.tests {
			m, err := mask(d, t)
			if err != nil {
				return fmt.Errorf("%s: %w", method, err)
			}
			e.ways = append(e.ways, way{mask: m, prefill: prefill})
		}
		p.entries = append(p.entries, e)
	}
	return nil
}

// everywhere is one mask a depth for all examples.
func everywhere(masks []skip.Mask) func(d, t int) (skip.Mask, error) {
	return func(d, _ int) (skip.Mask, error) { return masks[d], nil }
}

// inTurn gives the draws (draws, len(depths)) to the examples in turn.
func inTurn(masks [][]skip.Mask) func(d, t int) (skip.Mask, error) {
	return func(d, t int) (skip.Mask, error) { return masks[t%draws][d], nil }
}

// routed lets a profile choose.
func (p *plan) routed(profile *router.Profile) func(d, t int) (skip.Mask, error) {
	return func(d, t int) (skip.Mask, error) {
		decision, err := profile.Choose(p.tests[t].prompt, router.Policy{Depth: p.depths[d]})
		return decision.Mask, err
	}
}

// methods assigns a way to each example by each method.
func (l *lab) methods(ctx context.Context) ([]entry, error) {
	p := &plan{lab: l, entries: []entry{{method: whole, ways: make([]way, len(l.tests))}}}
	if err := p.ofLayers(ctx); err != nil {
		return nil, err
	}
	if err := p.ofHalves(ctx); err != nil {
		return nil, err
	}
	return p.entries, p.ofProfile(ctx)
}

// ofLayers are the methods that skip whole layers, for prompt and answer.
func (p *plan) ofLayers(ctx context.Context) error {
	units := search.LayerUnits(p.sizes)
	drawn, err := p.random(units)
	if err == nil {
		err = p.add(randomLayers, skip.MaskedPrefill, inTurn(drawn))
	}
	if err != nil {
		return err
	}
	for _, fixed := range []struct {
		method string
		find   func() ([]skip.Mask, error)
	}{
		{shortGPT, func() ([]skip.Mask, error) { return p.shortGPT(ctx, units) }},
		{sleb, func() ([]skip.Mask, error) {
			return p.greedy(ctx, units, skip.MaskedPrefill, search.All(len(p.cases)), false)
		}},
		{contiguous, func() ([]skip.Mask, error) { return p.contiguous(ctx, units) }},
	} {
		if !p.wants(fixed.method) {
			continue
		}
		masks, err := p.found(fixed.method, fixed.find)
		if err == nil {
			err = p.add(fixed.method, skip.MaskedPrefill, everywhere(masks))
		}
		if err != nil {
			return err
		}
	}
	if !p.wants(taskSets, routedLayers) {
		return nil
	}
	byTask := make([][]skip.Mask, len(benchmarks))
	for b := range benchmarks {
		if byTask[b], err = p.found("task "+benchmarks[b].name, func() ([]skip.Mask, error) {
			return p.greedy(ctx, units, skip.MaskedPrefill, p.places(func(_ int, e example) bool { return e.benchmark == b }), false)
		}); err != nil {
			return err
		}
	}
	if err := p.add(taskSets, skip.MaskedPrefill, func(d, t int) (skip.Mask, error) { return byTask[p.tests[t].benchmark][d], nil }); err != nil {
		return err
	}
	if !p.wants(routedLayers) {
		return nil
	}
	profile, err := p.layerProfile(ctx, byTask)
	if err != nil {
		return err
	}
	return p.add(routedLayers, skip.MaskedPrefill, p.routed(profile))
}

// ofHalves are the methods that skip halves of layers for the answer alone, without a profile.
func (p *plan) ofHalves(ctx context.Context) error {
	halves := search.SublayerUnits(p.sizes)
	feedForwards := slices.DeleteFunc(slices.Clone(halves), func(u search.Unit) bool { return !u.Mask.KVComplete() })
	drawn, err := p.random(feedForwards)
	if err == nil {
		err = p.add(randomHalves, skip.FullPrefill, inTurn(drawn))
	}
	if err == nil && p.wants(ffnSkip) {
		var byPrompt [][]skip.Mask
		if byPrompt, err = p.ffnSkip(ctx, feedForwards); err == nil {
			err = p.add(ffnSkip, skip.FullPrefill, func(d, t int) (skip.Mask, error) { return byPrompt[d][t], nil })
		}
	}
	if err == nil && p.wants(knapSpec) {
		var packed []skip.Mask
		if packed, err = p.found(knapSpec, func() ([]skip.Mask, error) { return p.knapSpec(ctx, halves) }); err == nil {
			err = p.add(knapSpec, skip.FullPrefill, everywhere(packed))
		}
	}
	if err == nil && p.wants(igPruning) {
		var masks [][]skip.Mask
		var nearest []int
		if masks, nearest, err = p.clusters(ctx, halves); err == nil {
			err = p.add(igPruning, skip.FullPrefill, func(d, t int) (skip.Mask, error) { return masks[nearest[t]][d], nil })
		}
	}
	return err
}

// ofProfile are the methods that use what `gallop calibrate --quick` makes.
func (p *plan) ofProfile(ctx context.Context) error {
	if !p.wants(routedHalves, cascade, budget) {
		return nil
	}
	profile, err := p.profile(ctx)
	if err != nil {
		return err
	}
	defer profile.Close()
	if err := p.add(routedHalves, skip.FullPrefill, p.routed(profile)); err != nil {
		return err
	}
	from := len(p.entries)
	if err := p.add(cascade, skip.FullPrefill, p.routed(profile)); err != nil {
		return err
	}
	for _, e := range p.entries[from:] {
		for t := range e.ways {
			e.ways[t].escalate = threshold
		}
	}
	if !p.wants(budget) {
		return nil
	}
	for _, q := range qualities {
		e := entry{method: fmt.Sprintf("%s %.2f", budget, q)}
		for _, test := range p.tests {
			decision, err := profile.Choose(test.prompt, router.Policy{Quality: q})
			if err != nil {
				return err
			}
			e.ways = append(e.ways, way{mask: decision.Mask, prefill: skip.FullPrefill})
		}
		p.entries = append(p.entries, e)
	}
	return nil
}

// found is state.sets with the time that a search takes.
func (l *lab) found(name string, find func() ([]skip.Mask, error)) ([]skip.Mask, error) {
	return l.sets(name, func() ([]skip.Mask, error) {
		l.progress("searching %s", name)
		start := time.Now()
		defer l.lap("sets", &start) // before it is kept
		return find()
	})
}

// shortGPT skips the layers that turn the residual stream least.
func (l *lab) shortGPT(ctx context.Context, units []search.Unit) (masks []skip.Mask, err error) {
	turns, err := l.turn(ctx, units)
	if err != nil {
		return nil, err
	}
	for _, depth := range l.depths {
		mask, err := search.ByInfluence(units, turns, depth)
		if err != nil {
			return nil, err
		}
		masks = append(masks, mask)
	}
	return masks, nil
}

// layerProfile is PuDDing's router (arXiv 2502.04348) over all tasks' sets.
func (l *lab) layerProfile(ctx context.Context, byTask [][]skip.Mask) (*router.Profile, error) {
	p := &router.Profile{Candidates: []router.Candidate{{}}, Spec: l.features.Spec(), Features: l.features}
	for b, masks := range byTask {
		for _, mask := range masks {
			if !slices.ContainsFunc(p.Candidates, func(c router.Candidate) bool { return c.Mask == mask }) {
				p.Candidates = append(p.Candidates, router.Candidate{Mask: mask, Depth: l.sizes.Depth(mask), Task: benchmarks[b].name})
			}
		}
	}
	all := search.All(len(l.cases))
	losses := make([][]float64, len(all))
	depths := make([]float64, len(p.Candidates))
	for c, candidate := range p.Candidates {
		values, err := l.losses(skip.MaskedPrefill, all)(ctx, candidate.Mask, all)
		if err != nil {
			return nil, err
		}
		depths[c] = candidate.Depth
		for i, v := range values {
			losses[i] = append(losses[i], v)
		}
	}
	for _, row := range losses {
		whole := row[0]
		for c := range row {
			row[c] -= whole
		}
	}
	var err error
	p.Router, _, err = router.Train(l.vectors, losses, &router.TrainOptions{Depths: depths, Seed: seed})
	return p, err
}

// coldShare is the share of the layers at either end whose feed-forward halves
// FFN-SkipLLM always runs.
const coldShare = 1. / 8

// ffnSkip is FFN-SkipLLM (Jaiswal et al., arXiv 2404.03865) with one mask a prompt:
// (len(depths), len(tests)). The paper compares what goes into each feed-forward half with
// what comes out, token by token, and leaves out the next halves where both point the same
// way. A mask is chosen before a decode, so here the prompt's own tokens, which the whole
// model decodes, are compared: the halves that turn them least are left out of the answer,
// as many as the depth says. A threshold in place of the depth would leave out nothing of
// one benchmark and much of another. The halves at both ends, the paper's cold regions,
// always run.
func (l *lab) ffnSkip(ctx context.Context, units []search.Unit) ([][]skip.Mask, error) {
	cold := int(coldShare * float64(l.model.NLayer))
	units = slices.DeleteFunc(slices.Clone(units), func(u search.Unit) bool {
		return u.Mask.Lowest() < cold || u.Mask.Lowest() >= l.model.NLayer-cold
	})
	var names, open []string
	var prompts [][]llama.Token
	for i, e := range l.tests {
		name := fmt.Sprintf("test %s %d", benchmarks[e.benchmark].name, i-e.benchmark*l.test)
		if names = append(names, name); l.Turns[name] == nil {
			open, prompts = append(open, name), append(prompts, e.Prompt)
		}
	}
	if len(open) > 0 {
		l.progress("measuring how far feed-forward halves turn %d prompts", len(open))
		start := time.Now()
		err := l.influence(ctx, prompts, func(i int, c *llama.Context) bool {
			_, turns, _ := c.Influence()
			for layer, v := range turns {
				if math.IsNaN(v) { // JSON knows none; the last layer is never a unit
					turns[layer] = mostTurn
				}
			}
			l.Turns[open[i]] = turns
			return true
		})
		l.lap("turns", &start)
		if err = errors.Join(err, l.keep()); err != nil {
			return nil, err
		}
	}
	masks := make([][]skip.Mask, len(l.depths))
	for d, depth := range l.depths {
		for _, name := range names {
			turns := make([]float64, len(units))
			for i, u := range units {
				turns[i] = l.Turns[name][u.Mask.Lowest()]
			}
			mask, err := search.ByInfluence(units, turns, depth)
			if err != nil {
				return nil, err
			}
			masks[d] = append(masks[d], mask)
		}
	}
	return masks, nil
}

// mostTurn is how far a half can turn the stream: right round.
const mostTurn = 2

// knapSpec measures the halves' times and turns and packs them.
func (l *lab) knapSpec(ctx context.Context, units []search.Unit) ([]skip.Mask, error) {
	turns, err := l.turn(ctx, units)
	if err != nil {
		return nil, err
	}
	if l.Halves, err = l.halfTimes(ctx); err != nil {
		return nil, err
	}
	return knapsack(units, turns, l.Halves[0], l.Halves[1], l.depths), nil
}

// clusterCount is how many groups of prompts IG-Pruning's masks are for.
const clusterCount = 4

// clusters is IG-Pruning (Qiao et al., arXiv 2511.02213): prompts are clustered by their
// features, each cluster gets a mask of halves, and a prompt takes that of the nearest
// centroid. The paper trains the masks (L0) and embeds prompts by a sentence encoder; here
// a greedy search finds them, and the features are the router's.
func (l *lab) clusters(ctx context.Context, units []search.Unit) (masks [][]skip.Mask, nearest []int, err error) {
	assigned, centroids := router.KMeans(l.vectors, clusterCount, seed)
	masks = make([][]skip.Mask, clusterCount)
	for k := range masks {
		members := l.places(func(i int, _ example) bool { return assigned[i] == k })
		if len(members) == 0 {
			continue // its centroid repeats another's, which comes first
		}
		masks[k], err = l.found(fmt.Sprintf("cluster %d", k), func() ([]skip.Mask, error) {
			return l.greedy(ctx, units, skip.FullPrefill, members, true)
		})
		if err != nil {
			return nil, nil, err
		}
	}
	vector := make([]float32, l.features.Dim())
	for _, test := range l.tests {
		if err := l.features.Vector(vector, test.prompt); err != nil {
			return nil, nil, err
		}
		best, least := 0, float32(0)
		for k, centroid := range centroids {
			sum := float32(0)
			for i, v := range vector {
				sum += (v - centroid[i]) * (v - centroid[i])
			}
			if masks[k] != nil && (k == 0 || sum < least) {
				best, least = k, sum
			}
		}
		nearest = append(nearest, best)
	}
	return masks, nearest, nil
}
