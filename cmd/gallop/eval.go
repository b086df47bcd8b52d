package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/lab/report"
	"github.com/gallop-llm/gallop/internal/lab/table"
	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/internal/shortlist"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// evaluation holds the flags of `gallop eval`.
type evaluation struct {
	model, template, depths, prefills, out string
	data, profiles, skips                  []string
	qualities, thresholds                  []float64
	skipBad, asJSON                        bool
	threads, gpuLayers                     int
	seed                                   uint64
	shortlist                              string
}

func newEvalCommand() *cobra.Command {
	var f evaluation
	cmd := &cobra.Command{
		Use:   "eval [model.gguf] --data test.jsonl [--profile file]",
		Short: "Compare ways to choose layers: accuracy, loss, agreement and speed on test data",
		Long: `Compare ways to choose layers on test data with known answers: the whole model,
sets that serve every prompt, each task's own set, what the router chooses, and
the best choice for each prompt. Accuracy is exact match, or the likeliest choice
where there are choices; its 95 % confidence interval is bootstrapped. Choices
are counted as lm-evaluation-harness does, too: acc and acc_norm. Lines of plain
text, {"text": "..."}, give perplexity. The time to the first token is that of
decoding a prompt of median length, and of routing where that comes before, with
a masked prefill.`,
		Args: oneModel,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if f.model, err = namedModel(cmd, f.model, args); err != nil {
				return err
			}
			return runEval(cmd, &f)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.model, "model", "m", "", "model: a GGUF file, or a name as `gallop models` lists them (default: the demo model)")
	addTemplate(flags, &f.template)
	flags.StringArrayVar(&f.data, "data", nil, "file with test data; repeatable")
	flags.BoolVar(&f.skipBad, "skip-bad", false, "leave out lines that cannot be used instead of stopping at them")
	flags.StringArrayVar(&f.profiles, "profile", nil, "profile to measure; repeatable; NAME=FILE names its rows (default: the model's)")
	flags.StringArrayVar(&f.skips, "skip", nil, "measure a mask, as in 4,6,f9, with a masked prefill, and no profile unless --profile names one; repeatable")
	flags.StringVar(&f.depths, "depths", "", "depths to compare at, in layers (default: those of the profile)")
	flags.StringVar(&f.prefills, "prefill", "", "masked, full, or both joined by a comma (default: the profile's)")
	flags.Float64SliceVar(&f.qualities, "quality", nil, "also measure the router under these quality budgets")
	flags.Float64SliceVar(&f.thresholds, "escalate", nil, "also generate with escalation at these thresholds; 0 = without it")
	flags.StringVar(&f.shortlist, "shortlist", "off", "score all but the whole model with a vocabulary shortlist of this many tokens; auto: as many as were found best")
	flags.StringVarP(&f.out, "output", "o", "", "folder for eval.json and pictures (default: none are written)")
	flags.BoolVar(&f.asJSON, "json", false, "print JSON instead of the table")
	addThreads(flags, &f.threads, "threads", "t", "threads for losses; -1 = physical cores, fewer for a tiny model; speed is always measured with that")
	flags.IntVar(&f.gpuLayers, "ngl", -1, "layers on the GPU; -1 = all, 0 = none")
	flags.Uint64VarP(&f.seed, "seed", "s", 1, "seed of the bootstrap")
	return cmd
}

// named is a profile and what its rows are called.
type named struct {
	name string
	*router.Profile
	depths []float64 // that are measured
}

func runEval(cmd *cobra.Command, f *evaluation) error {
	if len(f.data) == 0 {
		return usageError{errors.New("no test data: name a file with --data")}
	}
	masks := make([]skip.Mask, len(f.skips))
	for i, text := range f.skips {
		var err error
		if masks[i], err = skip.Parse(text); err != nil {
			return usageError{fmt.Errorf("--skip: %w", err)}
		}
	}
	path, err := modelPath(cmd, f.model)
	if err != nil {
		return err
	}
	profiles, err := f.read(path)
	if err != nil {
		return err
	}
	if err := f.chooseDepths(cmd, profiles); err != nil {
		return err
	}
	listed, err := parseShortlist(f.shortlist)
	if err != nil {
		return err
	}
	examples, err := readData(cmd.ErrOrStderr(), f.data, f.skipBad)
	if err != nil {
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
	t := &table.Table{Model: m, Seed: f.seed}
	examples, err = leaveOut(cmd.ErrOrStderr(), examples, f.skipBad, func(e dataset.Example) error {
		if !e.Labelled() {
			return fmt.Errorf("%s: the prompt has no answer to compare with", e.Where)
		}
		return fits(m)(e)
	})
	if err != nil {
		return err
	}
	for _, e := range examples {
		x, err := router.NewPrompt(m, e.Prompt)
		if err != nil {
			return fmt.Errorf("%s: %w", e.Where, err)
		}
		t.Prompts = append(t.Prompts, x)
	}
	if t.Cases, err = score.Encode(m, examples); err != nil {
		return err
	}
	scoring := &score.Options{Threads: max(f.threads, 0)}
	if listed != 0 {
		dir, err := shortlist.Dir()
		if err != nil {
			return err
		}
		l := openShortlist(cmd, m, dir, scoring.Threads)
		defer l.Close()
		if err := learnShortlist(ctx, cmd, m, max(listed, 0), l.Made() != nil, l.Why(), l.Learn); err != nil {
			return err
		}
		scoring.Shortlist, t.Shortlist = l.Made().List, listed
		if listed == autoShortlist {
			t.Shortlist = l.Made().Size
		}
	}
	if t.Scorer, err = score.NewScorer(m, scoring); err != nil {
		return err
	}
	defer t.Scorer.Close()
	if len(f.thresholds) > 0 {
		if t.Engine, err = f.engine(m, t.Cases, listed != 0); err != nil {
			return err
		}
		defer t.Engine.Close()
	}
	progress, done := stageProgress(cmd.ErrOrStderr())
	defer done()

	whole, err := t.Whole(ctx)
	if err != nil {
		return err
	}
	rows := []report.Row{whole}
	if t.Shortlist > 0 {
		alone, err := t.Listed(ctx)
		if err != nil {
			return err
		}
		rows = append(rows, alone)
	}
	for _, mask := range masks {
		row, err := t.Under(ctx, mask)
		if err != nil {
			return err
		}
		rows = append(rows, row)
	}
	for _, p := range profiles {
		if err := p.Open(m.Path); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		defer p.Close()
		prefills := []skip.Prefill{p.Defaults.Prefill}
		if f.prefills != "" {
			prefills = nil
			for text := range strings.SplitSeq(f.prefills, ",") {
				prefill, err := skip.ParsePrefill(text)
				if err != nil {
					return usageError{fmt.Errorf("--prefill: %w", err)}
				}
				prefills = append(prefills, prefill)
			}
		}
		t.Progress = func(done, total int) { progress("measuring "+p.name, done, total) }
		for _, prefill := range prefills {
			for _, depth := range p.depths {
				more, err := t.Fixed(ctx, p.Profile, p.name, prefill, depth)
				if err != nil {
					return err
				}
				rows = append(rows, more...)
				for _, threshold := range f.thresholds {
					if threshold > 0 && (prefill != skip.FullPrefill || !p.KVComplete()) {
						continue // escalation cannot be had there
					}
					row, err := t.Generated(ctx, p.Profile, p.name, prefill, depth, threshold)
					if err != nil {
						return err
					}
					rows = append(rows, row)
				}
			}
			for _, quality := range f.qualities {
				row, err := t.Adaptive(ctx, p.Profile, p.name, prefill, quality)
				if err != nil {
					return err
				}
				rows = append(rows, row)
			}
		}
	}
	done()
	if f.out != "" {
		if err := os.MkdirAll(f.out, 0o755); err != nil {
			return err
		}
		if err := report.WriteJSON(filepath.Join(f.out, "eval.json"), rows); err != nil {
			return err
		}
		if err := drawEval(f.out, rows); err != nil {
			return err
		}
	}
	if f.asJSON {
		return writeJSON(cmd.OutOrStdout(), rows)
	}
	columns, cells := report.Results(rows)
	return report.Table(cmd.OutOrStdout(), columns, cells)
}

// atOnce is how many answers are generated at once: more are hardly faster.
const atOnce = 16

// engine generates the answers to cases.
func (f *evaluation) engine(m *llama.Model, cases []score.Case, listed bool) (*gallop.Engine, error) {
	o := gallop.Options{Parallel: atOnce, Profile: gallop.NoProfile, NoCosts: true, Shortlist: -1}
	if listed {
		o.Shortlist = 0
	}
	o.Context.Threads = max(f.threads, 0)
	answer := 0
	for _, c := range cases {
		o.Context.NCtx = max(o.Context.NCtx, len(c.Prompt))
		if !c.Text {
			answer = max(answer, len(c.Answers[c.Right]))
		}
	}
	o.Context.NCtx += answer + 1
	return gallop.New(m, &o)
}

// read reads the profiles. A shortlist alone needs none, and masks that are given do not.
func (f *evaluation) read(model string) ([]named, error) {
	files := f.profiles
	if len(files) == 0 {
		_, found := router.Find(model)
		if f.depths == "" && len(f.qualities)+len(f.thresholds) == 0 && (len(f.skips) > 0 || !found && f.shortlist != "off") {
			return nil, nil
		}
		files = []string{"profile="}
	}
	var profiles []named
	for _, entry := range files {
		name, file := nameProfile(entry)
		p, err := readProfile(model, file)
		if err != nil {
			return nil, err
		}
		profiles = append(profiles, named{name: name, Profile: p})
	}
	return profiles, nil
}

// chooseDepths finds the depths to measure each profile at, and says which of
// --depths it has no sets for. The error is for where that leaves nothing.
func (f *evaluation) chooseDepths(cmd *cobra.Command, profiles []named) error {
	wanted, err := parseDepths(f.depths)
	if err != nil {
		return err
	}
	var lacking []error
	left := 0
	for i := range profiles {
		p := &profiles[i]
		if wanted == nil {
			p.depths = p.Depths()
			continue
		}
		var missing []float64
		for _, depth := range wanted {
			if slices.ContainsFunc(p.Candidates[1:], func(c router.Candidate) bool { return c.At(depth) }) {
				p.depths = append(p.depths, depth)
			} else {
				missing = append(missing, depth)
			}
		}
		if missing != nil {
			lacking = append(lacking, fmt.Errorf("%s has no sets of layers at depth %s: there are sets at %s",
				p.name, list(missing, "or"), list(p.Depths(), "and")))
		}
		left += len(p.depths)
	}
	if wanted != nil && left == 0 && len(f.qualities) == 0 {
		return lacking[0]
	}
	for _, err := range lacking {
		fmt.Fprintln(cmd.ErrOrStderr(), "gallop:", err)
	}
	return nil
}

// list writes numbers as in "2, 3 and 4".
func list(numbers []float64, last string) string {
	var text strings.Builder
	for i, n := range numbers {
		switch {
		case i > 0 && i == len(numbers)-1:
			text.WriteString(" " + last + " ")
		case i > 0:
			text.WriteString(", ")
		}
		fmt.Fprintf(&text, "%g", n)
	}
	return text.String()
}

// nameProfile takes NAME=FILE apart; a file alone gives its name.
func nameProfile(entry string) (name, file string) {
	if name, file, ok := strings.Cut(entry, "="); ok {
		return name, file
	}
	return strings.TrimSuffix(filepath.Base(entry), ".gallop.gguf"), entry
}

// drawEval draws accuracy against depth and against cost: of all the rows those
// that tell the story, the best set without a router, the router, and escalation.
func drawEval(folder string, rows []report.Row) error {
	const percent = 100
	if rows[0].Accuracy == nil {
		return nil // plain text alone
	}
	byDepth, byCost := newCurves(), newCurves()
	for _, r := range rows {
		name, escalated := r.Method, false
		switch {
		case r.Method == rows[0].Method, r.Method == router.BaselineGreedy, r.Method == table.Routed:
		case strings.HasPrefix(r.Method, table.Adaptive):
			name = table.Adaptive
		case strings.HasPrefix(r.Method, table.Escalation):
			name, escalated = fmt.Sprintf("%s from %g", table.Escalation, *r.Depth), true
		default:
			continue
		}
		if r.Unit != "" {
			name += ": " + r.Unit + ", " + r.Prefill
		}
		byCost.add(name, *r.Cost, percent**r.Accuracy)
		if !escalated {
			byDepth.add(name, *r.MeanDepth, percent**r.Accuracy)
		}
	}
	for _, picture := range []struct {
		file, title, x string
		curves         *curves
	}{
		{"accuracy-depth.png", "Accuracy and how much is skipped", "layers' worth of weights skipped, mean", byDepth},
		{"accuracy-cost.png", "Accuracy and what a token costs", "weight bytes read for a token, share of the whole model's", byCost},
	} {
		if err := report.CurvePNG(filepath.Join(folder, picture.file), picture.title, picture.x, "accuracy, %", picture.curves.sorted()); err != nil {
			return err
		}
	}
	return nil
}

// curves gathers points by name, in the order of their first points.
type curves struct {
	series []report.Series
	at     map[string]int
}

func newCurves() *curves { return &curves{at: map[string]int{}} }

func (c *curves) add(name string, x, y float64) {
	i, ok := c.at[name]
	if !ok {
		i = len(c.series)
		c.at[name] = i
		c.series = append(c.series, report.Series{Name: name})
	}
	c.series[i].X, c.series[i].Y = append(c.series[i].X, x), append(c.series[i].Y, y)
}

// sorted gives the curves, each from left to right.
func (c *curves) sorted() []report.Series {
	for i := range c.series {
		x, y := c.series[i].X, c.series[i].Y
		order := make([]int, len(x))
		for k := range order {
			order[k] = k
		}
		slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(x[a], x[b]) })
		c.series[i].X, c.series[i].Y = make([]float64, len(x)), make([]float64, len(x))
		for k, from := range order {
			c.series[i].X[k], c.series[i].Y[k] = x[from], y[from]
		}
	}
	return c.series
}
