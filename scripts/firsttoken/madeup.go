package main

import (
	"math/rand/v2"

	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// The sizes of a profile as `gallop calibrate` makes it.
const (
	madeUpSets   = 24      // candidate masks: eight tasks, three depths
	madeUpHidden = 3 * 64  // of the router
	madeUpDepth  = 1. / 6  // share of the layers that a mask skips
	madeUpWeight = 1. / 64 // scale of the random weights
)

// madeUp writes a profile to path, with random sets of feed-forward halves and a router of
// random weights. Its features, sizes and way of choosing are those of a real one.
func madeUp(m *llama.Model, path string) error {
	id, err := router.FingerprintOf(m.Path)
	if err != nil {
		return err
	}
	features, err := router.NewFeatures(router.FeatureSpec{}, &router.Sources{Model: m.Path})
	if err != nil {
		return err
	}
	defer features.Close()
	var prompts []router.Prompt
	for _, e := range dataset.Starter() {
		x, err := router.NewPrompt(m, e.Prompt)
		if err != nil {
			return err
		}
		prompts = append(prompts, x)
	}
	if err := features.Fit(prompts); err != nil {
		return err
	}
	vectors, err := features.Vectors(prompts)
	if err != nil {
		return err
	}
	p := &router.Profile{
		Model: id, Candidates: []router.Candidate{{}}, Spec: features.Spec(),
		Defaults: router.Defaults{
			Prefill: skip.FullPrefill, Quality: 0.98, Confidence: 0.9,
			Escalate: []router.Escalation{{Quality: 0.98, Threshold: 0.9, Depth: madeUpDepth * float64(m.NLayer)}},
		},
	}
	if p.Novelty, err = router.NewNovelty(vectors, make([]int, len(vectors))); err != nil {
		return err
	}
	units := search.SublayerUnits(search.SizesOf(m.Tensors, m.NLayer))
	var halves []search.Unit
	for _, u := range units {
		if u.Mask.KVComplete() {
			halves = append(halves, u)
		}
	}
	for seed := range uint64(madeUpSets) {
		mask, err := search.Random(halves, madeUpDepth*float64(m.NLayer), seed)
		if err != nil {
			return err
		}
		p.Candidates = append(p.Candidates, router.Candidate{Mask: mask, Depth: madeUpDepth * float64(m.NLayer), Task: "none"})
	}
	random := rand.New(rand.NewPCG(1, 1))
	weights := func(n int) []float32 {
		list := make([]float32, n)
		for i := range list {
			list[i] = madeUpWeight * float32(random.NormFloat64())
		}
		return list
	}
	out := len(p.Candidates)
	p.Router = &router.Predictor{
		In: features.Dim(), Hidden: madeUpHidden, Out: out,
		W1: weights(features.Dim() * madeUpHidden), B1: weights(madeUpHidden), W2: weights(out * madeUpHidden), B2: weights(out),
		Squeeze: 1, Mean: weights(out), Std: make([]float32, out), Residuals: make([][]float32, out),
	}
	for i := range out {
		p.Router.Std[i] = 1
		p.Router.Residuals[i] = []float32{0}
	}
	return p.Write(path)
}
