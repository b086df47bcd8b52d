package calibrate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/gallop-llm/gallop/internal/eval"
	"github.com/gallop-llm/gallop/internal/files"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// encode turns the examples into tokens.
func (r *run) encode(context.Context) (err error) {
	if r.cases, err = eval.Encode(r.model, r.Examples); err != nil {
		return err
	}
	var prompts []router.Prompt
	for _, e := range r.Examples {
		p, err := router.NewPrompt(r.model, e.Prompt)
		if err != nil {
			return fmt.Errorf("%s: %w", e.Where, err)
		}
		prompts = append(prompts, p)
	}
	if err := r.features.Fit(prompts); err != nil {
		return err
	}
	r.vectors, err = r.features.Vectors(prompts)
	return err
}

// group finds the tasks. Prompts that came without an answer are bare: their
// tasks are the clusters that they form. Of each task, Train cases are kept.
func (r *run) group(context.Context) error {
	var bare []int
	for i, e := range r.Examples {
		if !e.Labelled() {
			bare = append(bare, i)
		}
	}
	if len(bare) > 0 {
		var x [][]float32
		for _, i := range bare {
			x = append(x, r.vectors[i])
		}
		assigned, _ := router.KMeans(x, min(r.Clusters, len(x)), r.Seed)
		for k, i := range bare {
			r.cases[i].Task = fmt.Sprintf("cluster %d", assigned[k]+1)
		}
	}
	kept := map[string]int{}
	var cases []eval.Case
	var vectors [][]float32
	for i, c := range r.cases {
		if kept[c.Task]++; r.Train == 0 || kept[c.Task] <= r.Train {
			cases, vectors = append(cases, c), append(vectors, r.vectors[i])
		}
	}
	r.cases, r.vectors = cases, vectors
	return r.checkAnswers()
}

// checkAnswers refuses tasks about which a full prefill tells nothing: the first
// token of an answer comes from the prompt's own pass, by the whole model.
func (r *run) checkAnswers() error {
	if r.Prefill != skip.FullPrefill {
		return nil
	}
	tells := map[string]bool{}
	for _, c := range r.cases {
		short := len(c.Answers) > 0 && !slices.ContainsFunc(c.Answers, func(a []llama.Token) bool { return len(a) > 1 })
		tells[c.Task] = tells[c.Task] || !short
	}
	for _, task := range slices.Sorted(maps.Keys(tells)) {
		if !tells[task] {
			return fmt.Errorf("task %q: all its answers are single tokens, which a full prefill takes from the prompt's own pass whatever is skipped; leave its answers out, so that the model's own are taken, or use --prefill masked", task)
		}
	}
	return nil
}

// answerChunk is how many prompts are answered between two saves.
const answerChunk = 32

// answer lets the whole model answer the prompts that have no answer: what a
// mask changes is measured against that. The answers are kept in a file.
func (r *run) answer(ctx context.Context) error {
	var open []int
	for i, c := range r.cases {
		if len(c.Answers) == 0 {
			open = append(open, i)
		}
	}
	if len(open) == 0 {
		return nil
	}
	type kept struct {
		Key     string          `json:"key"`
		Answers [][]llama.Token `json:"answers"`
	}
	path := filepath.Join(r.Folder, "answers.json")
	var k kept
	if data, err := os.ReadFile(path); err == nil {
		if json.Unmarshal(data, &k) != nil || k.Key != r.key() {
			k = kept{}
		}
	}
	k.Key = r.key()
	for len(k.Answers) < len(open) {
		r.Progress("answering", len(k.Answers), len(open))
		var prompts [][]llama.Token
		for _, i := range open[len(k.Answers):min(len(k.Answers)+answerChunk, len(open))] {
			prompts = append(prompts, r.cases[i].Prompt)
		}
		generated, err := r.scorer.Generate(ctx, prompts, eval.Generation{MaxTokens: r.Answer})
		if err != nil {
			return err
		}
		for _, g := range generated {
			if g.Ended {
				g.Tokens = append(g.Tokens, eval.End(r.model))
			}
			k.Answers = append(k.Answers, g.Tokens)
		}
		data, err := json.Marshal(k)
		if err != nil {
			return err
		}
		if err := files.Write(path, data); err != nil {
			return fmt.Errorf("keep the whole model's answers: %w", err)
		}
	}
	for n, i := range open {
		r.cases[i].Answers = [][]llama.Token{k.Answers[n]}
	}
	return nil
}

// split picks the cases that the searches look at.
func (r *run) split(context.Context) error {
	r.byTask = map[string][]eval.Case{}
	for i, c := range r.cases {
		if len(r.byTask[c.Task]) < r.PerTask {
			r.byTask[c.Task] = append(r.byTask[c.Task], c)
		} else {
			r.unsearched = append(r.unsearched, i)
		}
	}
	r.tasks = slices.Sorted(maps.Keys(r.byTask))
	return nil
}

// lossesOf gives the task losses of cases under masks, from the log where they
// are known.
func (r *run) lossesOf(task string, cases []eval.Case, margin bool) skip.Losses {
	if margin {
		return r.valuesOf(task, cases, r.Prefill, func(s eval.Score) float64 { return s.Margin })
	}
	return r.valuesOf(task, cases, r.Prefill, func(s eval.Score) float64 { return s.Loss })
}

// valuesOf gives a value of the scores of cases under masks, likewise.
func (r *run) valuesOf(name string, cases []eval.Case, prefill skip.Prefill, value func(eval.Score) float64) skip.Losses {
	return r.log.Wrap(name, func(ctx context.Context, mask skip.Mask, examples []int) ([]float64, error) {
		if err := r.settle(ctx, cases, prefill); err != nil {
			return nil, err
		}
		part := make([]eval.Case, len(examples))
		for k, i := range examples {
			part[k] = cases[i]
		}
		scores, err := r.scorer.Score(ctx, part, mask, prefill)
		values := make([]float64, len(scores))
		for i, s := range scores {
			values[i] = value(s)
		}
		return values, err
	})
}

// settle makes what is scored next hang on cases alone, and not on what was
// scored before: a token's logits depend in their last digits on where in the
// cache its keys lie, and a run that was killed has to come to the same result.
func (r *run) settle(ctx context.Context, cases []eval.Case, prefill skip.Prefill) error {
	if prefill != skip.FullPrefill || len(cases) > 0 && len(r.held) == len(cases) && &r.held[0] == &cases[0] {
		return nil
	}
	held, err := r.scorer.Hold(ctx, cases)
	if r.held = nil; held {
		r.held = cases
	}
	return err
}

// Units lists what a search skips at once.
func Units(u Unit, sizes skip.Sizes) []skip.Unit {
	switch u {
	case Layers:
		return skip.LayerUnits(sizes)
	case FeedForwards:
		return slices.DeleteFunc(skip.SublayerUnits(sizes), func(u skip.Unit) bool { return !u.Mask.KVComplete() })
	}
	return skip.SublayerUnits(sizes)
}

// search finds each task's sets, the general ones and the baselines.
func (r *run) search(ctx context.Context) error {
	r.candidates = []router.Candidate{{}}
	if r.Preset != nil {
		r.candidates = r.Preset
		return nil
	}
	units := Units(r.Unit, r.sizes)
	influence, err := r.influence(ctx, units)
	if err != nil {
		return err
	}
	deepest := slices.Max(r.Depths)
	stages := len(r.tasks) + 1
	for n, task := range append([]string{general}, r.tasks...) {
		cases := r.byTask[task]
		if task == general {
			cases = r.mixed()
		}
		options := &skip.SearchOptions{
			Depth: deepest, PerByte: r.Unit != Layers, Budget: r.Budget / time.Duration(stages),
			Progress: func(done, total int) {
				r.Progress("searching "+task, n*1000+done*1000/max(total, done, 1), stages*1000)
			},
		}
		if r.Budget > 0 { // two thirds of the units come further in the same time, but what may be skipped is among the rest at times
			options.Influence = influence
		}
		for _, margin := range []bool{false, true} {
			name := task
			if margin {
				if len(cases[0].Answers) < 2 {
					break
				}
				name += " by margin"
			}
			path, err := skip.Greedy(ctx, units, len(cases), r.lossesOf(name, cases, margin), options)
			if err != nil && !errors.Is(err, skip.ErrBudget) {
				return err
			}
			if err := r.take(name, path, units, influence); err != nil {
				return err
			}
		}
		if task == general {
			if err := r.baseline(ctx, units, influence, cases); err != nil {
				return err
			}
			continue
		}
		whole, err := r.lossesOf(task, cases, false)(ctx, skip.Mask{}, skip.All(len(cases)))
		if err != nil {
			return err
		}
		alone, err := skip.Singles(ctx, units, len(cases), r.lossesOf(task, cases, false))
		if err != nil {
			return err
		}
		row := slices.Repeat([]float64{math.NaN()}, 2*r.model.NLayer)
		for i, u := range units {
			l := u.Mask.Last()
			if u.Mask.Skipped(l)&skip.Attention != 0 {
				row[2*l] = alone[i] - eval.Mean(whole)
			}
			if u.Mask.Skipped(l)&skip.FeedForward != 0 {
				row[2*l+1] = alone[i] - eval.Mean(whole)
			}
		}
		r.heat = append(r.heat, row)
	}
	return nil
}

// mixed takes cases of every task in turn, twice as many as a task's search sees:
// what SLEB calls calibration data, for sets that know no task.
func (r *run) mixed() (cases []eval.Case) {
	for i := range r.PerTask {
		for _, task := range r.tasks {
			if i < len(r.byTask[task]) && len(cases) < 2*r.PerTask {
				cases = append(cases, r.byTask[task][i])
			}
		}
	}
	return cases
}

// influenceTokens is how much text block influence is measured on: the mean over
// some thousand tokens has long settled.
const influenceTokens = 4096

// influence gives ShortGPT's block influence of every unit. It is measured once.
func (r *run) influence(ctx context.Context, units []skip.Unit) ([]float64, error) {
	if r.turned == nil {
		if err := r.measureInfluence(ctx); err != nil {
			return nil, err
		}
	}
	return skip.Influences(units, r.turned), nil
}

func (r *run) measureInfluence(ctx context.Context) error {
	longest := 0
	cases := r.mixed()
	for _, c := range cases {
		longest = max(longest, len(c.Prompt))
	}
	c, err := r.model.NewContext(&llama.ContextOptions{NCtx: longest, NBatch: longest, Threads: r.Threads, Influence: true})
	if err != nil {
		return err
	}
	r.turned = c // Run closes it
	b, err := llama.NewBatch(longest, nil)
	if err != nil {
		return err
	}
	defer b.Close()
	tokens := 0
	for i, k := range cases {
		if tokens >= influenceTokens {
			break
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		r.Progress("measuring block influence", i, len(cases))
		b.Clear()
		for pos, t := range k.Prompt {
			// Only the last layer, which is never a unit, is measured at outputs alone.
			if err := b.Add(t, pos, pos == len(k.Prompt)-1, 0); err != nil {
				return err
			}
		}
		c.Clear()
		if err := c.Decode(b, skip.Mask{}); err != nil {
			return err
		}
		tokens += len(k.Prompt)
	}
	return nil
}

// take makes a task's candidates of a search's path, one for each depth.
func (r *run) take(task string, path []skip.Step, units []skip.Unit, influence []float64) error {
	for _, depth := range r.Depths {
		mask, err := r.maskAt(path, units, influence, depth)
		if err != nil {
			return err
		}
		c := router.Candidate{Mask: mask, Depth: r.sizes.Depth(mask), Task: task}
		if at := slices.IndexFunc(r.candidates, func(have router.Candidate) bool { return have.Mask == c.Mask }); at < 0 {
			r.candidates = append(r.candidates, c)
		} else {
			r.candidates[at].Task += router.TaskSeparator + task
		}
		if task == general {
			c.Task = router.BaselineGreedy
			r.baselines = append(r.baselines, c)
		}
	}
	return nil
}

// baseline finds what a router has to beat: sets found without looking at tasks.
func (r *run) baseline(ctx context.Context, units []skip.Unit, influence []float64, cases []eval.Case) error {
	losses := r.lossesOf(general, cases, false)
	for _, depth := range r.Depths {
		byInfluence, err := skip.ByInfluence(units, influence, depth)
		if err != nil {
			return err
		}
		random, err := skip.Random(units, depth, r.Seed)
		if err != nil {
			return err
		}
		sets := []router.Candidate{{Task: router.BaselineInfluence, Mask: byInfluence}, {Task: router.BaselineRandom, Mask: random}}
		run, err := skip.Contiguous(ctx, units, len(cases), losses, depth)
		switch {
		case err == nil:
			sets = append(sets, router.Candidate{Task: router.BaselineContiguous, Mask: run.Mask})
		case !errors.Is(err, skip.ErrSearch): // that is, units without neighbours, as feed-forward halves
			return err
		}
		for _, c := range sets {
			c.Depth = r.sizes.Depth(c.Mask)
			r.baselines = append(r.baselines, c)
		}
	}
	return nil
}

// lossChunk is how many cases go through all candidates together: their prompts
// stay in the scorer's cache meanwhile.
const lossChunk = 64

// measure finds each prompt's loss under each candidate.
func (r *run) measure(ctx context.Context) error {
	r.losses = make([][]float64, len(r.cases))
	for from := 0; from < len(r.cases); from += lossChunk {
		to := min(from+lossChunk, len(r.cases))
		losses := r.lossesOf(fmt.Sprint("candidates from ", from), r.cases[from:to], false)
		for n, c := range r.candidates {
			r.Progress("measuring candidates", from*len(r.candidates)+n*(to-from), len(r.cases)*len(r.candidates))
			values, err := losses(ctx, c.Mask, skip.All(to-from))
			if err != nil {
				return err
			}
			for i, v := range values {
				r.losses[from+i] = append(r.losses[from+i], v)
			}
		}
	}
	for i, row := range r.losses {
		whole := row[0]
		for c := range row {
			r.losses[i][c] -= whole
		}
	}
	return nil
}
