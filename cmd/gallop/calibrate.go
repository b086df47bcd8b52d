package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop/internal/calibrate"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// calibration holds the flags of `gallop calibrate`.
type calibration struct {
	model, template, out, unit, prefill, features, depths, preset string
	shard, work                                                   string
	merge, wait                                                   bool
	data                                                          []string
	quick, skipBad                                                bool
	threads, gpuLayers, perTask                                   int
	quality                                                       float64
	budget                                                        time.Duration
	seed                                                          uint64
}

func newCalibrateCommand() *cobra.Command {
	var f calibration
	cmd := &cobra.Command{
		Use:   "calibrate [model.gguf] [--data prompts.jsonl]",
		Short: "Find which layers which prompts can spare, and train the router",
		Long: `Find which layers which prompts can spare, train the router that chooses among
them, and write the model's profile beside it. chat and run use it from then on.

Bare prompts are enough: the whole model's own answers are the reference, and
prompts are grouped by likeness. Without --data it takes built-in prompts. The
profile is there as soon as it can be used, and replaced when it has become better;
one that saves nothing worth its while says so, and is not used unless asked for.
Data
is JSONL with "prompt" and, where known, "answer" and "task"; published files of
ARC, BoolQ, HellaSwag, PIQA, WinoGrande, OpenBookQA, SciQ, MathQA and GSM8K are
read as they are.

A run that was stopped goes on where it was when it is started again.

Several machines share the work by a folder that all of them see: each runs
--shard i/n --work DIR, with i from 0, and one runs --merge --work DIR, all with the same
other flags. Without --wait a shard ends when it has done what it can until others have
done theirs, and is to be started again; --merge then exits with 75 and prints which
shards those are. With --wait, all n run at once and wait for each other. The profile is
that of one machine, to the bit where the processors are of one kind.`,
		Args: oneModel,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if f.model, err = namedModel(cmd, f.model, args); err != nil {
				return err
			}
			return runCalibrate(cmd, &f)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.model, "model", "m", "", "model: a GGUF file, or a name as `gallop models` lists them (default: the demo model)")
	addTemplate(flags, &f.template)
	flags.StringArrayVar(&f.data, "data", nil, "file with calibration data; repeatable (default: built-in prompts)")
	flags.BoolVar(&f.skipBad, "skip-bad", false, "leave out lines that cannot be used instead of stopping at them")
	flags.StringVarP(&f.out, "output", "o", "", "profile to write (default: model.gallop.gguf beside the model, or in the cache folder where it cannot be there)")
	flags.BoolVar(&f.quick, "quick", false, "look at less: within 5 minutes for a model of a billion parameters on two cores")
	flags.StringVar(&f.unit, "unit", string(calibrate.FeedForwards), "what is skipped at once: layer, sublayer, or feed-forward (halves only, which allows escalation)")
	flags.StringVar(&f.prefill, "prefill", skip.FullPrefill.String(), "how prompts are decoded: masked or full")
	flags.StringVar(&f.depths, "depths", "", "depths to find sets for, in layers, as in 2,3,4 (default: a twelfth to a third of the layers)")
	flags.StringVar(&f.features, "features", "", "what the router sees: ngram, embedding, or both joined by + (default: both)")
	flags.StringVar(&f.preset, "preset", "", "published sets to take instead of searching: pudding-llama-3.1-8b")
	flags.Float64Var(&f.quality, "quality", 0, "quality that the profile keeps by default, above 0 to 1 (default 0.98)")
	flags.IntVar(&f.perTask, "per-task", 0, "examples of each task that the search looks at (default 64)")
	flags.DurationVar(&f.budget, "budget", 0, "time for all searches together, as in 30m (default: no limit); with --quick, for everything (default: 5m)")
	flags.Uint64VarP(&f.seed, "seed", "s", 1, "seed of all that is random")
	addThreads(flags, &f.threads, "threads", "t", "threads; -1 = physical cores, fewer for a tiny model")
	flags.StringVar(&f.shard, "shard", "", "compute share i of n, as in 0/4, into --work")
	flags.BoolVar(&f.merge, "merge", false, "make the profile of what the shards have computed in --work; exits with 75 while losses are missing")
	flags.BoolVar(&f.wait, "wait", false, "with --shard and --merge: wait for other shards instead of ending")
	flags.StringVar(&f.work, "work", "", "folder that all shards share")
	flags.IntVar(&f.gpuLayers, "ngl", -1, "layers on the GPU; -1 = all, 0 = none")
	return cmd
}

func runCalibrate(cmd *cobra.Command, f *calibration) error {
	o, err := f.options(cmd)
	if err != nil {
		return err
	}
	path, err := modelPath(cmd, f.model)
	if err != nil {
		return err
	}
	fingerprint, err := router.FingerprintOf(path)
	if err != nil {
		return err
	}
	if o.Shard != nil {
		o.Folder = f.work
	} else if err := setFolder(o, fingerprint); err != nil {
		return err
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	m, err := openModel(ctx, cmd, path, &llama.ModelOptions{GPULayers: gpuLayers(f.gpuLayers)})
	if err != nil {
		return err
	}
	defer m.Close()
	if err := useTemplate(cmd, m, f.template, ""); err != nil {
		return err
	}
	if o.Examples, err = leaveOut(cmd.ErrOrStderr(), o.Examples, f.skipBad, fits(m)); err != nil {
		return err
	}
	report, done := stageProgress(cmd.ErrOrStderr())
	o.Progress = report
	out := f.out
	if out == "" {
		if out, err = profilePath(path, fingerprint); err != nil {
			return err
		}
	}
	start := time.Now()
	o.Usable = func(p *router.Profile, has string) error {
		done()
		if err := p.Write(out); err != nil {
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "usable after %s: %s\n", time.Since(start).Round(time.Second), has)
		return nil
	}
	_, err = calibrate.Run(ctx, m, *o)
	done()
	var missing *calibrate.MissingError
	switch {
	case errors.As(err, &missing) && f.merge:
		fmt.Fprintln(cmd.OutOrStdout(), missing.List())
		return err
	case errors.As(err, &missing):
		fmt.Fprintf(cmd.ErrOrStderr(), "shard %s has done its share so far: %v\n", f.shard, missing)
		return nil
	case err != nil:
		return err
	case o.Shard != nil && !f.merge:
		fmt.Fprintf(cmd.ErrOrStderr(), "shard %s has nothing left to do: `gallop calibrate --merge` makes the profile\n", f.shard)
		return nil
	}
	fmt.Fprintln(cmd.OutOrStdout(), out)
	return nil
}

// shards is what the flags say of shards; nil = this process does all.
func (f *calibration) shards() (*calibrate.Shard, error) {
	if f.shard == "" && !f.merge {
		if f.work != "" || f.wait {
			return nil, usageError{errors.New("--work and --wait go with --shard or --merge")}
		}
		return nil, nil
	}
	if f.work == "" || f.merge && f.shard != "" {
		return nil, usageError{errors.New("write --shard i/n --work DIR to compute a share, and --merge --work DIR to make the profile")}
	}
	if f.quick || f.budget > 0 {
		return nil, usageError{errors.New("shards have no limit of time, which would make the result depend on the machines: leave out --quick and --budget")}
	}
	if f.merge {
		return &calibrate.Shard{Number: calibrate.Merge, Wait: f.wait}, nil
	}
	number, of, ok := strings.Cut(f.shard, "/")
	i, err := strconv.Atoi(number)
	n, err2 := strconv.Atoi(of)
	if !ok || err != nil || err2 != nil || i < 0 || i >= n || n > mostShards {
		return nil, usageError{fmt.Errorf("--shard is %q, want i/n with i from 0 to n-1 and n at most %d, as in 0/4", f.shard, mostShards)}
	}
	return &calibrate.Shard{Number: i, Of: n, Wait: f.wait}, nil
}

// mostShards is how many logs each shard reads at most.
const mostShards = 10_000

// setFolder names the folder for what is measured of a model, and forgets what old
// calibrations measured.
func setFolder(o *calibrate.Options, fingerprint router.Fingerprint) error {
	cache, err := os.UserCacheDir()
	if err != nil {
		return fmt.Errorf("find the cache folder: %w", err)
	}
	measured := filepath.Join(cache, "gallop", "calibrate")
	forget(measured)
	o.Folder = filepath.Join(measured, fmt.Sprintf("%s-%s-%s-%.8s", fingerprint, o.Unit, o.Prefill, dataset.Hash(o.Examples)))
	return nil
}

// profilePath is where a model's profile goes: beside the model, or into the cache
// folder where the model is another program's blob, or in a folder that takes none.
func profilePath(model string, fingerprint router.Fingerprint) (string, error) {
	if strings.EqualFold(filepath.Ext(model), ".gguf") && takesFiles(filepath.Dir(model)) {
		return router.DefaultPath(model), nil
	}
	return router.CachePath(fingerprint)
}

// keepMeasured is how long measurements stay that no calibration added to: one of
// the same data with other depths, or that was killed, goes on from them.
const keepMeasured = 30 * 24 * time.Hour

// forget removes from folder what old calibrations measured. What cannot be
// removed stays: it is in nobody's way.
func forget(folder string) {
	logs, _ := filepath.Glob(filepath.Join(folder, "*", calibrate.LogFile))
	for _, log := range logs {
		if info, err := os.Stat(log); err == nil && time.Since(info.ModTime()) > keepMeasured {
			_ = os.RemoveAll(filepath.Dir(log))
		}
	}
}

// options turns the flags into calibration options, with the data read.
func (f *calibration) options(cmd *cobra.Command) (*calibrate.Options, error) {
	o := &calibrate.Options{
		Features: f.features, PerTask: f.perTask, Quality: f.quality, Budget: f.budget, Threads: max(f.threads, 0), Seed: f.seed,
	}
	var err error
	if f.quick {
		o.Time, o.Budget = f.budget, 0
		fmt.Fprintln(cmd.ErrOrStderr(), o.Quick())
	}
	if o.Unit, err = calibrate.ParseUnit(f.unit); err != nil {
		return nil, usageError{fmt.Errorf("--unit: %w", err)}
	}
	if o.Prefill, err = skip.ParsePrefill(f.prefill); err != nil {
		return nil, usageError{fmt.Errorf("--prefill: %w", err)}
	}
	if f.quality < 0 || f.quality > 1 || f.perTask < 0 || f.budget < 0 {
		return nil, usageError{fmt.Errorf("--quality is %g, --per-task %d and --budget %s, want 0 to 1 and nothing negative", f.quality, f.perTask, f.budget)}
	}
	if o.Depths, err = parseDepths(f.depths); err != nil {
		return nil, err
	}
	if f.preset != "" {
		if o.Preset, err = router.Preset(f.preset); err != nil {
			return nil, usageError{fmt.Errorf("--preset: %w", err)}
		}
	}
	if o.Shard, err = f.shards(); err != nil {
		return nil, err
	}
	o.Examples = dataset.Starter()
	if len(f.data) > 0 {
		o.Examples, err = readData(cmd.ErrOrStderr(), f.data, f.skipBad)
	}
	return o, err
}

// parseDepths reads "2,3,4"; "" is nil.
func parseDepths(text string) (depths []float64, err error) {
	if text == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		depth, err := strconv.ParseFloat(strings.TrimSpace(part), 64)
		if err != nil || !(depth > 0) || math.IsInf(depth, 0) {
			return nil, usageError{fmt.Errorf("--depths %q: write numbers of layers, as in 2,3,4", text)}
		}
		depths = append(depths, depth)
	}
	return depths, nil
}

// mostProblems is how many bad lines are shown one by one.
const mostProblems = 5

// readData reads examples and tells of the lines that were left out.
func readData(w io.Writer, paths []string, skipBad bool) ([]dataset.Example, error) {
	examples, problems, err := dataset.Read(paths, &dataset.Options{SkipBad: skipBad})
	if err == nil {
		tellProblems(w, problems)
	}
	return examples, err
}

// leaveOut gives the examples that check has nothing against. The first other one
// is the error; with skipBad they are left out and told of.
func leaveOut(w io.Writer, examples []dataset.Example, skipBad bool, check func(dataset.Example) error) ([]dataset.Example, error) {
	var usable []dataset.Example
	var problems []error
	for _, e := range examples {
		err := check(e)
		switch {
		case err == nil:
			usable = append(usable, e)
		case !skipBad:
			return nil, err
		default:
			problems = append(problems, err)
		}
	}
	tellProblems(w, problems)
	if len(usable) == 0 {
		return nil, fmt.Errorf("%w: none can be used", dataset.ErrEmpty)
	}
	return usable, nil
}

// fits finds out whether an example has room in the model's context.
func fits(m *llama.Model) func(dataset.Example) error {
	return func(e dataset.Example) error {
		_, err := score.Encode(m, []dataset.Example{e})
		return err
	}
}

func tellProblems[E error](w io.Writer, problems []E) {
	for i, problem := range problems {
		if i == mostProblems {
			fmt.Fprintf(w, "gallop: left out %d more lines\n", len(problems)-i)
			break
		}
		fmt.Fprintln(w, "gallop: left out", problem)
	}
}

// stageProgress shows a bar for each stage of a long job, on a terminal, and a
// line for each otherwise.
func stageProgress(w io.Writer) (report func(stage string, done, total int), finish func()) {
	var bar *progressbar.ProgressBar
	last := ""
	finish = func() {
		if bar != nil {
			bar.Finish()
			fmt.Fprintln(w)
			bar = nil
		}
	}
	return func(stage string, done, total int) {
		if !isTerminal(w) {
			if stage != last {
				fmt.Fprintln(w, stage)
			}
			last = stage
			return
		}
		if stage != last || bar == nil {
			finish()
			bar = progressbar.NewOptions(total, progressbar.OptionSetWriter(w), progressbar.OptionSetDescription(stage),
				progressbar.OptionSetPredictTime(true), progressbar.OptionThrottle(100*time.Millisecond))
		}
		last = stage
		bar.ChangeMax(max(total, 1))
		bar.Set(min(done, total))
	}, finish
}
