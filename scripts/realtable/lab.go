package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gallop-llm/gallop/internal/calibrate"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// lab has a model open and what is known of it.
type lab struct {
	*options
	*state
	name   string
	model  *llama.Model
	scorer *score.Scorer
	sizes  search.Sizes
	depths []float64 // that sets are searched for, in layers' worth of weights

	tests        []example // in the benchmarks' order
	calibrations []example
	cases        []score.Case // of calibrations
	log          *search.Log  // of searches
	held         bool         // the scorer has cases' prompts by the whole model

	features *router.Features
	vectors  [][]float32 // (len(calibrations), features)
}

// seed of all that is drawn.
const seed = 1

// open opens a model. Close the lab after use.
func open(ctx context.Context, o *options, name, path string, files [][]dataset.Example) (l *lab, err error) {
	l = &lab{options: o, name: name}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	if l.model, err = llama.LoadModel(ctx, path, nil); err != nil {
		return l, err
	}
	l.sizes = search.SizesOf(l.model.Tensors, l.model.NLayer)
	for _, share := range []float64{1. / 12, 1. / 6} {
		l.depths = append(l.depths, max(1, math.Round(share*float64(l.model.NLayer))))
	}
	l.depths = slices.Compact(l.depths)
	if l.tests, l.calibrations, err = sample(l.model, files, o.test, o.calibration); err != nil {
		return l, err
	}
	l.cases = casesOf(l.calibrations)
	id, err := router.FingerprintOf(path)
	if err != nil {
		return l, err
	}
	var hashes []string
	for _, file := range files {
		hashes = append(hashes, dataset.Hash(file)[:8])
	}
	key := fmt.Sprintf("%v data %s calibrated on %d a benchmark, seed %d", id, strings.Join(hashes, " "), o.calibration, seed)
	if l.state, err = openState(o.folder, name, key); err != nil {
		return l, err
	}
	if l.scorer, err = score.NewScorer(l.model, &score.Options{Threads: o.threads}); err != nil {
		return l, err
	}
	log := filepath.Join(o.folder, name+".log")
	if l.log, err = search.OpenLog(log, key); errors.Is(err, search.ErrLogKey) || errors.Is(err, search.ErrLog) {
		l.log, err = search.CreateLog(log, key)
	}
	if err != nil {
		return l, err
	}
	var prompts []router.Prompt
	for _, e := range l.calibrations {
		prompts = append(prompts, e.prompt)
	}
	if l.features, err = router.NewFeatures(router.FeatureSpec{Seed: seed}, &router.Sources{Model: path}); err != nil {
		return l, err
	}
	if err = l.features.Fit(prompts); err != nil {
		return l, err
	}
	l.vectors, err = l.features.Vectors(prompts)
	return l, err
}

// Close closes what is open. Further calls do nothing.
func (l *lab) Close() (err error) {
	if l.features != nil {
		err = errors.Join(err, l.features.Close())
	}
	if l.log != nil {
		err = errors.Join(err, l.log.Close())
	}
	if l.scorer != nil {
		err = errors.Join(err, l.scorer.Close())
	}
	if l.model != nil {
		err = errors.Join(err, l.model.Close())
	}
	return err
}

// progress tells on stderr what is being done.
func (l *lab) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s %s: %s\n", time.Now().Format(time.TimeOnly), l.name, fmt.Sprintf(format, args...))
}

// lap adds the time since start to that of a part, and starts it anew.
func (l *lab) lap(part string, start *time.Time) {
	l.Took[part] += time.Since(*start).Seconds()
	*start = time.Now()
}

// losses gives the task losses of some calibration examples under masks, by their place
// in the list.
func (l *lab) losses(p skip.Prefill, examples []int) search.Losses {
	measured := l.log.Wrap(p.String(), func(ctx context.Context, mask skip.Mask, some []int) ([]float64, error) {
		if p == skip.FullPrefill && !l.held {
			if _, err := l.scorer.Hold(ctx, l.cases); err != nil {
				return nil, err
			}
			l.held = true
		}
		l.held = p == skip.FullPrefill
		part := make([]score.Case, len(some))
		for k, i := range some {
			part[k] = l.cases[i]
		}
		scores, err := l.scorer.Score(ctx, part, mask, p)
		values := make([]float64, len(scores))
		for i, s := range scores {
			values[i] = s.Loss
		}
		return values, err
	})
	return func(ctx context.Context, mask skip.Mask, some []int) ([]float64, error) {
		global := make([]int, len(some))
		for k, i := range some {
			global[k] = examples[i]
		}
		return measured(ctx, mask, global)
	}
}

// places lists the calibration examples that take says yes to.
func (l *lab) places(take func(i int, e example) bool) (places []int) {
	for i, e := range l.calibrations {
		if take(i, e) {
			places = append(places, i)
		}
	}
	return places
}

// few are the first n calibration examples of each benchmark.
func (l *lab) few(n int) []int {
	return l.places(func(i int, e example) bool { return i-e.benchmark*l.calibration < n })
}

// pooled is how many units race in each round of a search after the first.
const pooled = 8

// greedy searches sets on some calibration examples: one for each depth.
func (l *lab) greedy(ctx context.Context, units []search.Unit, p skip.Prefill, examples []int, perByte bool) ([]skip.Mask, error) {
	path, err := search.Greedy(ctx, units, len(examples), l.losses(p, examples), &search.Options{
		Depth: slices.Max(l.depths), PerByte: perByte, Pool: pooled,
	})
	if err != nil {
		return nil, err
	}
	masks := make([]skip.Mask, len(l.depths))
	for i, depth := range l.depths {
		nearest := math.Inf(1)
		for _, step := range path {
			if off := math.Abs(step.Depth - depth); off < nearest {
				nearest, masks[i] = off, step.Mask
			}
		}
	}
	return masks, nil
}

// draws is how many masks stand for random choice: the examples take them in turn.
const draws = 4

// random draws masks for each depth: (draws, len(depths)).
func (l *lab) random(units []search.Unit) ([][]skip.Mask, error) {
	masks := make([][]skip.Mask, draws)
	for d := range masks {
		for _, depth := range l.depths {
			mask, err := search.Random(units, depth, seed+uint64(d))
			if err != nil {
				return nil, err
			}
			masks[d] = append(masks[d], mask)
		}
	}
	return masks, nil
}

// contiguous finds the best run of layers for each depth.
func (l *lab) contiguous(ctx context.Context, units []search.Unit) ([]skip.Mask, error) {
	var masks []skip.Mask
	examples := l.few(1)
	for _, depth := range l.depths {
		run, err := search.Contiguous(ctx, units, len(examples), l.losses(skip.MaskedPrefill, examples), depth)
		if err != nil {
			return nil, err
		}
		masks = append(masks, run.Mask)
	}
	return masks, nil
}

// influence opens a context that measures block influence on prompts. each is called
// after every prompt; the context begins anew where it says so.
func (l *lab) influence(ctx context.Context, prompts [][]llama.Token, each func(i int, c *llama.Context) (anew bool)) error {
	longest := 1
	for _, p := range prompts {
		longest = max(longest, len(p))
	}
	c, err := l.model.NewContext(&llama.ContextOptions{NCtx: longest, NBatch: longest, Threads: l.threads, Influence: true})
	if err != nil {
		return err
	}
	defer c.Close()
	b, err := llama.NewBatch(longest, nil)
	if err != nil {
		return err
	}
	defer b.Close()
	defer c.AbortOn(ctx)()
	for i, p := range prompts {
		b.Clear()
		for pos, t := range p {
			if err := b.Add(t, pos, pos == len(p)-1, 0); err != nil {
				return err
			}
		}
		c.Clear()
		if err := c.Decode(b, skip.Mask{}); err != nil {
			return err
		}
		if each(i, c) {
			c.ResetInfluence()
		}
	}
	return nil
}

// turn is how far each unit turns the residual stream, over all calibration prompts.
func (l *lab) turn(ctx context.Context, units []search.Unit) (values []float64, err error) {
	var prompts [][]llama.Token
	for _, c := range l.cases {
		prompts = append(prompts, c.Prompt)
	}
	err = l.influence(ctx, prompts, func(i int, c *llama.Context) bool {
		values = search.Influences(units, c)
		return false
	})
	return values, err
}

// profile is the one that `gallop calibrate --quick` makes from its built-in prompts, with
// sets at the table's depths.
func (l *lab) profile(ctx context.Context) (*router.Profile, error) {
	path := filepath.Join(l.folder, l.name+".gallop.gguf")
	if p, err := router.Read(path); err == nil {
		return p, p.Open(l.model.Path)
	}
	l.progress("calibrating halves as gallop calibrate --quick does")
	start := time.Now()
	o := calibrate.Options{
		Examples: dataset.Starter(), Unit: calibrate.FeedForwards, Prefill: skip.FullPrefill, Depths: l.depths,
		Threads: l.threads, Seed: seed, Folder: filepath.Join(l.folder, l.name+"-profile"),
	}
	o.Quick()
	o.Time *= 4 // other work may stop this meanwhile, and the time goes on
	p, err := calibrate.Run(ctx, l.model, o)
	if err != nil {
		return nil, err
	}
	l.lap("profile", &start)
	if err := errors.Join(p.Write(path), l.keep()); err != nil {
		return nil, err
	}
	return p, p.Open(l.model.Path)
}
