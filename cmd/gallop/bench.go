package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/draft"
	"github.com/gallop-llm/gallop/internal/inspect"
	"github.com/gallop-llm/gallop/internal/lab/bench"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/internal/shortlist"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// benchmark holds the flags of `gallop bench`.
type benchmark struct {
	models, shapes, types, masks      []string
	depths, percents                  []float64
	profile, output, outputErr        string
	asJSON, remove                    bool
	prompt, decode, rounds            int
	threads, batch, ubatch, gpuLayers int
	flash, cacheK, cacheV             string
	pruned                            bool
	faint                             float64
	faintEnds                         bool
	shortlist                         string
	listed                            int // tokens of --shortlist

	lossless    bool // measured in place of masks
	draftMax    []int
	draftSource string
}

func newBenchCommand() *cobra.Command {
	var f benchmark
	cmd := &cobra.Command{
		Use:   "bench [model.gguf... | --shape llama-3.2-1b] [--skip 4,6 | --depth 4 | --percent 10,20]",
		Short: "Measure speed and memory under masks, beside the whole model",
		Long: `Measure prefill and decode under masks, in turns with the whole model, and compare
with it, with what the skipped bytes and operations allow at best, and with
--pruned with a file that lacks the layers.

Where a model cannot be had, --shape makes one of random weights with its exact
shape in the cache folder: speed does not depend on the values. With a
vocabulary shortlist built-in prompts and the model's own words are decoded. That
of random weights is learnt anew each time, and no list is made longer.
Shapes:
` + wrapWords(randmodel.ShapeNames(), 80),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.models = append(f.models, args...)
			return runBench(cmd, &f)
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVarP(&f.models, "model", "m", nil, "model: a GGUF file, or a name as `gallop models` lists them; repeatable (default: the demo model)")
	flags.StringSliceVar(&f.shapes, "shape", nil, "random weights in the shape of this model instead; repeatable")
	flags.StringSliceVar(&f.types, "type", []string{"q4_0"}, "type of their weights, repeatable: "+strings.Join(typeNames(), ", ")+" (as in Q4_K_M)")
	flags.StringArrayVar(&f.masks, "skip", nil, "layers to skip, as in 4,6,9-11,a5,f7; l0-3,w256+4: local attention; v1024: a vocabulary shortlist; repeatable")
	flags.StringVar(&f.shortlist, "shortlist", "off", "also measure a vocabulary shortlist of this many tokens; auto: as many as were found best")
	flags.Float64SliceVar(&f.depths, "depth", nil, "skip this many layers' worth: the profile's first set of that depth, else whole layers, evenly spread")
	flags.Float64SliceVar(&f.percents, "percent", nil, "skip this share of the layers, whole ones, evenly spread (default 25 when nothing else is named)")
	flags.BoolVar(&f.pruned, "pruned", false, "compare each mask with a file that lacks its layers, too")
	flags.StringVar(&f.profile, "profile", "", "profile whose sets --depth takes and whose routing is timed (default: the model's)")
	flags.IntVarP(&f.prompt, "n-prompt", "p", 512, "tokens of the prompt")
	flags.IntVarP(&f.decode, "n-gen", "n", 128, "tokens decoded after it")
	flags.IntVarP(&f.rounds, "repetitions", "r", 5, "rounds; one more runs first and is not counted")
	addThreads(flags, &f.threads, "threads", "t", "threads; -1 = physical cores, fewer for a tiny model")
	flags.IntVarP(&f.batch, "batch-size", "b", 2048, "tokens decoded in one call at most")
	flags.IntVar(&f.ubatch, "ub", 512, "tokens computed at once")
	flags.IntVar(&f.gpuLayers, "ngl", -1, "layers on the GPU; -1 = all, 0 = none")
	flags.StringVar(&f.flash, "fa", "auto", "attention: on or off (llama.cpp's flash attention), grouped (Gallop's kernel for CPUs), or auto, which is llama.cpp's choice")
	flags.StringVar(&f.cacheK, "ctk", "f16", "type of cached keys: f32, f16, bf16, q8_0, q4_0")
	flags.StringVar(&f.cacheV, "ctv", "f16", "type of cached values, likewise")
	flags.StringVarP(&f.output, "output", "o", "md", "what to print: "+strings.Join(bench.Formats, ", "))
	flags.StringVar(&f.outputErr, "oe", "", "what to print on stderr as well (default: nothing)")
	flags.BoolVar(&f.asJSON, "json", false, "as -o json")
	flags.Float64Var(&f.faint, "faint", 1, "scale what the inner layers of --shape contribute by this, for a model that hardly needs them")
	flags.BoolVar(&f.faintEnds, "faint-ends", false, "with --faint, scale the first and the last layer too: the model's text then repeats itself")
	flags.BoolVar(&f.lossless, "lossless", false, "measure lossless drafts against one token at a time, on built-in prompts, instead of masks (--skip: to draft under)")
	flags.IntSliceVar(&f.draftMax, "draft-max", []int{draft.MaxDraft}, "tokens in a draft at most; repeatable")
	flags.StringVar(&f.draftSource, "draft-source", "both", "where drafts come from: mask, lookup or both")
	flags.BoolVar(&f.remove, "delete", false, "delete the file that --shape made, or used, after measuring")
	return cmd
}

// wrapWords joins words by commas, in lines of at most width columns.
func wrapWords(words []string, width int) string {
	var text, line string
	for i, word := range words {
		if i < len(words)-1 {
			word += ","
		}
		if len(line)+1+len(word) > width {
			text, line = text+line+"\n", ""
		}
		line = strings.TrimPrefix(line+" "+word, " ")
	}
	return text + line
}

// job is one model to be measured.
type job struct {
	path    string // "" = to be made
	shape   string // of random weights; "" = a model of its own
	typ     gguf.Type
	masks   []skip.Mask
	chosen  []string        // how masks that are not named were chosen, a sentence each
	profile *router.Profile // nil = none
}

func runBench(cmd *cobra.Command, f *benchmark) error {
	o, err := f.options(cmd)
	if err != nil {
		return err
	}
	jobs, err := f.jobs(cmd)
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	var rows []bench.Row
	var losslessRows []bench.LosslessRow
	for _, j := range jobs {
		if j.shape != "" {
			progress, done := byteBar(cmd.ErrOrStderr(), "making "+j.shape)
			j.path, err = randmodel.Cached(ctx, j.shape, j.typ, f.faint, f.faintEnds, progress)
			done()
			if err != nil {
				return err
			}
		}
		var more []bench.Row
		if f.lossless {
			var drafted []bench.LosslessRow
			drafted, err = j.measureLossless(ctx, cmd, f, o)
			losslessRows = append(losslessRows, drafted...)
		} else {
			more, err = j.measure(ctx, cmd, f, o)
		}
		if f.remove && j.shape != "" {
			err = errors.Join(err, os.Remove(j.path))
		}
		if err != nil {
			return err
		}
		for _, row := range more {
			row.Shape = j.shape
			rows = append(rows, row)
		}
	}
	if f.lossless {
		if f.outputErr != "" {
			if err := bench.WriteLossless(cmd.ErrOrStderr(), f.outputErr, losslessRows); err != nil {
				return err
			}
		}
		return bench.WriteLossless(cmd.OutOrStdout(), f.output, losslessRows)
	}
	if f.outputErr != "" {
		if err := bench.Write(cmd.ErrOrStderr(), f.outputErr, rows); err != nil {
			return err
		}
	}
	return bench.Write(cmd.OutOrStdout(), f.output, rows)
}

// jobs reads all that the flags name, so that a mistake shows before anything is
// measured.
func (f *benchmark) jobs(cmd *cobra.Command) (jobs []job, err error) {
	models := f.models
	if len(models) == 0 && len(f.shapes) == 0 {
		models = []string{""}
	}
	for _, model := range models {
		path, err := modelPath(cmd, model)
		if err != nil {
			return nil, err
		}
		file, err := inspect.Read(path)
		if err != nil {
			return nil, err
		}
		j := job{path: path}
		if _, found := router.Find(path); found || f.profile != "" {
			if j.profile, err = readProfile(path, f.profile); err != nil {
				return nil, err
			}
		}
		if j.masks, j.chosen, err = f.allMasks(len(file.Layers), j.profile); err != nil {
			return nil, err
		}
		jobs = append(jobs, j)
	}
	for _, shape := range f.shapes {
		spec, err := randmodel.Shape(shape)
		if err != nil {
			return nil, usageError{fmt.Errorf("--shape: %w", err)}
		}
		masks, chosen, err := f.allMasks(spec.Layers, nil)
		if err != nil {
			return nil, err
		}
		for _, name := range f.types {
			typ, ok := gguf.ParseType(name)
			if !ok || !slices.Contains(randmodel.Types, typ) {
				return nil, usageError{fmt.Errorf("--type is %q, want one of %s", name, strings.Join(typeNames(), ", "))}
			}
			jobs = append(jobs, job{shape: shape, typ: typ, masks: masks, chosen: chosen})
		}
	}
	return jobs, nil
}

// options checks the flags and turns them into options.
func (f *benchmark) options(cmd *cobra.Command) (bench.Options, error) {
	o := bench.Options{
		Prompt: f.prompt, Decode: f.decode, Rounds: f.rounds, Pruned: f.pruned, GPULayers: gpuLayers(f.gpuLayers),
		Context: llama.ContextOptions{NBatch: f.batch, NUBatch: f.ubatch, Threads: max(f.threads, 0)},
	}
	if f.asJSON {
		if cmd.Flags().Changed("output") && f.output != "json" {
			return o, usageError{fmt.Errorf("--json and -o %s exclude each other", f.output)}
		}
		f.output = "json"
	}
	for flag, format := range map[string]string{"-o": f.output, "-oe": f.outputErr} {
		if !slices.Contains(bench.Formats, format) && (format != "" || flag == "-o") {
			return o, usageError{fmt.Errorf("%s is %q, want one of %s", flag, format, strings.Join(bench.Formats, ", "))}
		}
	}
	for _, n := range []int{f.prompt, f.decode, f.rounds, f.batch, f.ubatch} {
		if n < 1 {
			return o, usageError{fmt.Errorf("-p is %d, -n %d, -r %d, -b %d and -ub %d, want at least 1 of each", f.prompt, f.decode, f.rounds, f.batch, f.ubatch)}
		}
	}
	var err error
	if f.listed, err = parseShortlist(f.shortlist); err != nil {
		return o, err
	}
	if f.lossless && f.listed != 0 {
		return o, usageError{errors.New("--lossless drafts with the vocabulary shortlist that --skip names, as in --skip f14,v1024: leave out --shortlist")}
	}
	if f.pruned && f.listed != 0 {
		return o, usageError{errors.New("--pruned: no file can have a vocabulary shortlist; leave out one of --pruned and --shortlist")}
	}
	if f.remove && len(f.shapes) == 0 {
		return o, usageError{errors.New("--delete goes with --shape: no model of your own is deleted")}
	}
	if f.lossless && (f.pruned || len(f.depths)+len(f.percents) > 0 || len(f.masks) > 1) {
		return o, usageError{errors.New("--lossless measures drafts under one --skip, or under what the profile or the model suggests: leave out --pruned, --depth and --percent")}
	}
	if f.lossless && (f.output == "csv" || f.outputErr == "csv") {
		return o, usageError{errors.New("--lossless prints md, json or jsonl, not csv")}
	}
	for _, n := range f.draftMax {
		if n < 1 || n > draft.MaxDraft {
			return o, usageError{fmt.Errorf("--draft-max is %d, want 1 to %d", n, draft.MaxDraft)}
		}
	}
	if !(f.faint > 0) {
		return o, usageError{fmt.Errorf("--faint is %g, want above 0", f.faint)}
	}
	if f.profile != "" && len(f.shapes) > 0 {
		return o, usageError{errors.New("--profile goes with -m: nothing can be learned from random weights")}
	}
	return o, setCache(&o.Context, f.flash, f.cacheK, f.cacheV)
}

// typeNames lists what --type takes.
func typeNames() (names []string) {
	for _, typ := range randmodel.Types {
		names = append(names, strings.ToLower(typ.String()))
	}
	return names
}

// needsShortlist gives the largest shortlist that the masks, or --shortlist, ask for; ok =
// false: they ask for none.
func (j job) needsShortlist(f *benchmark) (size int, ok bool) {
	for _, mask := range j.masks {
		size = max(size, mask.Shortlist())
	}
	return size, size > 0 || f.listed != 0
}

// learnShortlist makes the model's shortlist ready. That of random weights is not kept: its
// states are those of no text, so it is good for speed alone, and how many exact logits a token
// would need says nothing.
func (j job) learnShortlist(ctx context.Context, cmd *cobra.Command, m *llama.Model, size, threads int) (l *shortlist.Learner, err error) {
	dir, err := shortlist.Dir()
	if err != nil {
		return nil, err
	}
	if j.shape != "" {
		if dir, err = os.MkdirTemp(filepath.Dir(j.path), "shortlist-"); err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
	}
	l = openShortlist(cmd, m, dir, threads)
	if err := learnShortlist(ctx, cmd, m, size, l.Made() != nil, l.Why(), l.Learn); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if j.shape != "" {
		l.Made().List.Margin = -math.MaxFloat32
	}
	return l, nil
}

// measure measures one model.
func (j job) measure(ctx context.Context, cmd *cobra.Command, f *benchmark, o bench.Options) ([]bench.Row, error) {
	for _, sentence := range j.chosen {
		fmt.Fprintln(cmd.ErrOrStderr(), sentence)
	}
	bench.ResetPeak()
	m, err := openModel(ctx, cmd, j.path, &llama.ModelOptions{GPULayers: o.GPULayers})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	if j.profile != nil {
		if err := j.profile.Open(m.Path); err != nil {
			return nil, err
		}
		defer j.profile.Close()
		o.Route = func(prompt string) error {
			x, err := router.NewPrompt(m, prompt)
			if err == nil {
				_, err = j.profile.Choose(x, router.Policy{})
			}
			return err
		}
	}
	if size, ok := j.needsShortlist(f); ok {
		l, err := j.learnShortlist(ctx, cmd, m, size, o.Context.Threads)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		o.Shortlist = l.Made().List
		if f.listed == autoShortlist {
			j.masks = append(j.masks, skip.Mask{}.WithShortlist(l.Made().Size))
		}
	}
	progress, done := stageProgress(cmd.ErrOrStderr())
	defer done()
	name := "measuring " + strings.TrimSuffix(filepath.Base(j.path), ".gguf")
	progress(name, 0, 1)
	o.Progress = func(done, total int) { progress(name, done, total) }
	return bench.Run(ctx, m, j.masks, o)
}

// measureLossless measures drafts of each length on one model.
func (j job) measureLossless(ctx context.Context, cmd *cobra.Command, f *benchmark, o bench.Options) (rows []bench.LosslessRow, err error) {
	m, err := openModel(ctx, cmd, j.path, &llama.ModelOptions{GPULayers: o.GPULayers})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	opts := gallop.Options{Parallel: 1, Profile: gallop.NoProfile, NoCosts: true, Shortlist: -1, Context: o.Context, Model: llama.ModelOptions{GPULayers: o.GPULayers}}
	opts.Context.NCtx = min(m.NCtxTrain, o.Decode+gallop.DefaultContext)
	opts.Context.Threads = cmp.Or(o.Context.Threads, m.DefaultThreads())
	size, listed := j.needsShortlist(f)
	if listed {
		opts.Shortlist = 0
	}
	if listed && j.shape != "" { // see learnShortlist
		if opts.Cache, err = os.MkdirTemp(filepath.Dir(j.path), "shortlist-"); err != nil {
			return nil, err
		}
		defer os.RemoveAll(opts.Cache)
	}
	r := gallop.Request{Lossless: true, Sampling: &llama.Sampling{}, Skip: gallop.Routed()}
	if len(f.masks) > 0 {
		r.Skip = gallop.Layers(j.masks[0])
	} else if j.profile != nil {
		found, _ := router.Find(m.Path)
		opts.Profile = cmp.Or(f.profile, found)
	}
	e, err := gallop.New(m, &opts)
	if err != nil {
		return nil, err
	}
	defer e.Close()
	if listed {
		known := e.Shortlist()
		if err := learnShortlist(ctx, cmd, m, size, known.List != nil, known.Why, e.LearnShortlist); err != nil {
			return nil, err
		}
		if j.shape != "" {
			e.Shortlist().List.Margin = -math.MaxFloat32
		}
	}
	progress, done := stageProgress(cmd.ErrOrStderr())
	defer done()
	for _, n := range f.draftMax {
		name := fmt.Sprintf("drafting up to %d on %s", n, strings.TrimSuffix(filepath.Base(j.path), ".gguf"))
		if r.Drafts, err = draftsFrom(f.draftSource, n); err != nil {
			return nil, err
		}
		if knowsMasks := len(f.masks) > 0 || j.profile != nil && len(j.profile.Drafts) > 0; !r.Drafts.NoMasks && !knowsMasks {
			probed, err := draft.Probe(m, opts.Context.Threads)
			if err != nil {
				return nil, err
			}
			for _, p := range probed {
				r.Drafts.Masks = append(r.Drafts.Masks, p.Mask)
			}
		}
		row, err := bench.RunLossless(ctx, bench.LosslessOptions{
			Engine: e, Threads: opts.Context.Threads, Request: r, Decode: o.Decode, Rounds: o.Rounds,
			Progress: func(done, total int) { progress(name, done, total) },
		})
		if err != nil {
			return nil, err
		}
		row.Shape, row.Faint, row.Ends = j.shape, f.faint, f.faintEnds
		rows = append(rows, row)
	}
	return rows, nil
}

// allMasks gives the masks that the flags name for a model, each once, and
// tells how those of --depth and --percent were chosen.
func (f *benchmark) allMasks(nLayer int, p *router.Profile) (masks []skip.Mask, chosen []string, err error) {
	for _, text := range f.masks {
		mask, err := skip.Parse(text)
		if err == nil && mask.IsEmpty() {
			err = errors.New("it names no layers; the whole model is measured anyway")
		}
		if err == nil {
			err = mask.Check(nLayer)
		}
		if err != nil {
			return nil, nil, usageError{fmt.Errorf("--skip: %w", err)}
		}
		masks = append(masks, mask)
	}
	if f.listed > 0 {
		masks = append(masks, skip.Mask{}.WithShortlist(f.listed))
	}
	add := func(flag, how string, mask skip.Mask) {
		chosen = append(chosen, fmt.Sprintf("%s: skips %s, %s", flag, mask, how))
		masks = append(masks, mask)
	}
	for _, depth := range f.depths {
		flag := fmt.Sprintf("--depth %g", depth)
		if p != nil {
			at := slices.IndexFunc(p.Candidates, func(c router.Candidate) bool { return !c.Mask.IsEmpty() && c.At(depth) })
			if at >= 0 {
				add(flag, "the profile's set for "+p.Candidates[at].Task, p.Candidates[at].Mask)
				continue
			}
		}
		mask, err := bench.Spread(nLayer, int(math.Round(depth)))
		if err != nil {
			return nil, nil, usageError{fmt.Errorf("%s: %w", flag, err)}
		}
		add(flag, "whole layers, evenly spread", mask)
	}
	percents := f.percents
	if len(masks)+len(percents) == 0 && f.listed == 0 {
		const quarter = 25
		percents = []float64{quarter}
	}
	for _, percent := range percents {
		flag := fmt.Sprintf("--percent %g", percent)
		mask, err := bench.Spread(nLayer, int(math.Round(percent/100*float64(nLayer))))
		if err != nil {
			return nil, nil, usageError{fmt.Errorf("%s: %w", flag, err)}
		}
		add(flag, "whole layers, evenly spread", mask)
	}
	var once []skip.Mask
	for _, mask := range masks {
		if _, only := mask.WholeLayers(); f.pruned && !only {
			return nil, nil, usageError{fmt.Errorf("--pruned: no file can leave out what %s does; name whole layers or leave out --pruned", mask)}
		}
		if !slices.Contains(once, mask) {
			once = append(once, mask)
		}
	}
	return once, chosen, nil
}
