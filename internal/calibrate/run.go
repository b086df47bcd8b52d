package calibrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// general is the task of sets that are found on all tasks together, as SLEB does.
const general = "general"

// run is one calibration. Its methods are the stages, in order.
type run struct {
	Options
	start  time.Time
	model  *llama.Model
	scorer *score.Scorer
	log    *search.Log
	sizes  search.Sizes
	id     router.Fingerprint

	cases  []score.Case            // each with an answer
	tasks  []string                // sorted
	byTask map[string][]score.Case // what the searches look at
	mixed  []score.Case            // what those look at that know no task

	unsearched []int                         // the other cases
	sample     []int                         // cases that escalation is calibrated on, ascending
	tokens     map[scored][]score.TokenScore // of the sample

	influenceCtx *llama.Context // has measured block influence; nil = not yet

	heldCases []score.Case // whose prompts the scorer's cache holds, or whose references it has; nil = none for sure
	heldFor   skip.Prefill

	features *router.Features
	vectors  [][]float32 // (len(cases), features)

	candidates []router.Candidate // the empty mask first
	baselines  []router.Candidate // Task is the method
	saving     saving             // of the last profile
	searched   time.Duration      // that the search for all prompts took
	cut        bool               // that search's time ended before its depth was reached
	reached    float64            // depth to which it searched then, in layers; what is deeper is a guess
	measured   time.Duration      // that the candidates took to be measured
	unitLosses [][]float64        // (len(tasks), 2 layers) loss increase of each sublayer skipped alone; NaN = not searched
	losses     [][]float64        // (len(cases), len(candidates)) loss increase over the empty mask

	sharing bool              // losses of other shards are waited for, and not computed
	missing map[int]bool      // shards that have not computed yet what was asked for
	did     bool              // something was computed
	owners  map[string]shards // of the searches, by name; nil = not divided yet
	chunks  []int             // where chunks of cases begin; nil = not known yet
}

// scored is a case under a mask.
type scored struct {
	n    int // of the case
	mask skip.Mask
}

// Run makes a profile for m: omission sets, router and policy. The same data,
// settings and seed give the same profile, but for the speed that is measured in the
// end, also when a run was killed and started again with the same folder, and when several
// shared it. A shard that has nothing left to do gives a nil profile, or [MissingError].
func Run(ctx context.Context, m *llama.Model, o Options) (*router.Profile, error) {
	r := &run{Options: o, start: time.Now(), model: m, sizes: search.SizesOf(m.Tensors, m.NLayer), tokens: map[scored][]score.TokenScore{}}
	if err := r.defaults(); err != nil {
		return nil, err
	}
	var err error
	if r.id, err = router.FingerprintOf(m.Path); err != nil {
		return nil, err
	}
	defer func() {
		if r.scorer != nil {
			r.scorer.Close()
		}
	}()
	defer func() {
		if r.influenceCtx != nil {
			r.influenceCtx.Close()
		}
	}()
	if r.Shard != nil {
		err = r.openShards(ctx)
	} else if r.log, err = search.OpenLog(filepath.Join(r.Folder, LogFile), r.key()); errors.Is(err, search.ErrLogKey) || errors.Is(err, search.ErrLog) { // other settings, or an older version's
		r.log, err = search.CreateLog(filepath.Join(r.Folder, LogFile), r.key())
	}
	if err != nil {
		return nil, err
	}
	defer r.log.Close()
	spec := router.FeatureSpec{Kind: r.Features, Seed: r.Seed}
	if r.features, err = router.NewFeatures(spec, &router.Sources{Model: m.Path}); err != nil {
		return nil, err
	}
	defer r.features.Close()
	if err := r.through(ctx, r.encode, r.group, r.answer, r.split, r.openScorer); err != nil {
		return nil, err
	}
	if r.Shard != nil {
		if err := r.share(ctx); err != nil || !r.Shard.merges() {
			return nil, err
		}
	}
	if err := r.through(ctx, r.searchAll, r.contest, r.measure); err != nil {
		return nil, err
	}
	p, err := r.profile(ctx)
	if err != nil {
		return nil, err
	}
	if err := r.tell(p); err != nil || r.Preset != nil {
		return p, err
	}
	more, err := r.searchTasks(ctx)
	if err != nil || !more {
		return p, err
	}
	if err := r.measure(ctx); err != nil {
		return nil, err
	}
	r.keepBetter()
	if p, err = r.profile(ctx); err != nil {
		return nil, err
	}
	if r.Time == 0 {
		if err := r.drafts(ctx, p); err != nil {
			return nil, err
		}
	}
	return p, r.tell(p)
}

// through does stages in order.
func (r *run) through(ctx context.Context, stages ...func(context.Context) error) error {
	for _, stage := range stages {
		if err := stage(ctx); err != nil {
			return err
		}
	}
	return nil
}

// tell hands over a profile that can be used.
func (r *run) tell(p *router.Profile) error {
	if r.Usable == nil {
		return nil
	}
	has := r.has(p, r.saving)
	if r.cut {
		has += fmt.Sprintf("; the time for the search was over at %.2f of %g layers, so deeper sets are guesses: more time (--budget) or a machine with less to do finds better ones", r.reached, slices.Max(r.Depths))
	}
	return r.Usable(p, has)
}

// openScorer makes the scorer, when what answers the prompts is closed: each has a KV cache.
func (r *run) openScorer(context.Context) (err error) {
	r.scorer, err = score.NewScorer(r.model, r.scoring())
	return err
}

// scoring is how the scorer works.
func (r *run) scoring() *score.Options {
	o := &score.Options{Threads: r.Threads, Pause: r.Pause}
	if r.Pause != nil {
		o.Sequences, o.InputBytes = pausedSequences, pausedInputs
	}
	return o
}

// elapsed is how long the run has been at work, pauses apart.
func (r *run) elapsed() time.Duration { return time.Since(r.start) - r.Pause.Held() }

// left is how much of Time is left; never less than a moment.
func (r *run) left() time.Duration { return max(r.Time-r.elapsed(), time.Nanosecond) }

// defaults fills in what was left open.
func (r *run) defaults() error {
	r.Unit = cmp.Or(r.Unit, Sublayers)
	r.PerTask = cmp.Or(r.PerTask, 64)
	r.Answer = cmp.Or(r.Answer, 64)
	r.Clusters = cmp.Or(r.Clusters, 8)
	r.Quality = cmp.Or(r.Quality, 0.98)
	if r.Depths == nil {
		shares := []float64{1. / 12, 1. / 6, 1. / 4, 1. / 3}
		if r.quick {
			shares = shares[:len(shares)-1]
		}
		for _, share := range shares {
			r.Depths = append(r.Depths, max(1, math.Round(share*float64(r.model.NLayer))))
		}
		r.Depths = slices.Compact(r.Depths)
	}
	if r.Progress == nil {
		r.Progress = func(string, int, int) {}
	}
	for _, c := range r.Preset {
		if err := c.Mask.Check(r.model.NLayer); err != nil {
			return fmt.Errorf("the preset is for a model of 32 layers, LLaMA-3.1-8B: %w", err)
		}
	}
	most := float64(r.model.NLayer - 2)
	if deepest := slices.Max(r.Depths); deepest > most || slices.Min(r.Depths) <= 0 {
		return fmt.Errorf("depths are %v, want more than 0 and at most %g: the first and the last of %d layers are kept", r.Depths, most, r.model.NLayer)
	}
	if err := os.MkdirAll(r.Folder, 0o755); err != nil {
		return fmt.Errorf("make the folder for what is measured: %w", err)
	}
	return nil
}

// key names what the measurements depend on: the model, the data, and which of
// the data are in which task.
func (r *run) key() string {
	return fmt.Sprintf("%v data %s prefill %s, first token with the prompt, answers of %d, %d a task, %d searched, %d clusters by %q, seed %d, threads %d, own answers by divergence",
		r.id, dataset.Hash(r.Examples), r.Prefill, r.Answer, r.Train, r.PerTask, r.Clusters, r.Features, r.Seed, r.Threads)
}
