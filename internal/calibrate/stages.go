package calibrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/batch"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// encode turns the examples into tokens.
func (r *run) encode(context.Context) (err error) {
	if r.cases, err = score.Encode(r.model, r.Examples); err != nil {
		return err
	}
	prompts, err := r.prompts(r.Examples)
	if err != nil {
		return err
	}
	if err := r.features.Fit(prompts); err != nil {
		return err
	}
	r.vectors, err = r.features.Vectors(prompts)
	return err
}

// prompts are what the router sees of examples.
func (r *run) prompts(examples []dataset.Example) (prompts []router.Prompt, err error) {
	for _, e := range examples {
		p, err := router.NewPrompt(r.model, e.Prompt)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Where, err)
		}
		prompts = append(prompts, p)
	}
	return prompts, nil
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
	if r.Train > 0 {
		kept := map[string]int{}
		var some []int
		for _, i := range rand.New(rand.NewPCG(r.Seed, 0)).Perm(len(r.cases)) { // the first of a file may all be alike
			if task := r.cases[i].Task; kept[task] < r.Train {
				kept[task]++
				some = append(some, i)
			}
		}
		r.keep(some)
	}
	return r.checkAnswers()
}

// keep leaves only some cases, in this order.
func (r *run) keep(some []int) {
	var cases []score.Case
	var vectors [][]float32
	for _, i := range some {
		cases, vectors = append(cases, r.cases[i]), append(vectors, r.vectors[i])
	}
	r.cases, r.vectors = cases, vectors
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

// What is done with a limit of time on a machine that is too slow for all prompts.
const (
	// promptShare is the share of the time that may go into reading prompts: to
	// answer them, to search with some, to measure all, about promptReads times.
	promptShare = 0.3
	promptReads = 2.5

	// leastPrompts is how many are looked at in any case: with fewer the router
	// can be sure of nothing.
	leastPrompts = 32
)

// answer lets the whole model answer the prompts that have no answer: what a
// mask changes is measured against that. The answers are kept in the log. With a
// limit of time, prompts that would take too long are left out.
func (r *run) answer(ctx context.Context) error {
	if r.Shard != nil {
		return r.shared(ctx, r.answerOpen)
	}
	return r.answerOpen(ctx)
}

func (r *run) answerOpen(ctx context.Context) error {
	var open []int
	for i, c := range r.cases {
		if len(c.Answers) == 0 {
			open = append(open, i)
		}
	}
	if len(open) == 0 {
		return nil
	}
	// In the log: the answers' tokens, and for how many prompts there is time.
	name := func(n int) string { return fmt.Sprint("answer ", n) }
	known := func(n int) bool { return r.log.Kept(name(n), skip.Mask{}) != nil }
	const counted = "prompts that there is time for"
	most := len(open)
	if kept := r.log.Kept(counted, skip.Mask{}); kept != nil {
		most = min(most, int(kept[0]))
	}
	for from := 0; from < most; from += answerChunk {
		chunk := search.All(len(open))[from:min(from+answerChunk, len(open))]
		if !slices.ContainsFunc(chunk, func(n int) bool { return !known(n) }) {
			continue
		}
		if r.sharing && r.theirs(r.part(from/answerChunk, (most+answerChunk-1)/answerChunk).first) {
			continue
		}
		r.Progress("answering", from, len(open))
		start := r.elapsed()
		own, err := r.answerChunk(ctx, pick(open, chunk))
		if err != nil {
			return err
		}
		if from == 0 && r.Time > 0 {
			each := (r.elapsed() - start) / time.Duration(len(own))
			most = min(most, max(leastPrompts, int(promptShare/promptReads*float64(r.Time)/float64(each))))
			if err := r.log.Keep(counted, skip.Mask{}, []float64{float64(most)}); err != nil {
				return err
			}
		}
		for k, n := range chunk {
			tokens := make([]float64, len(own[k]))
			for i, t := range own[k] {
				tokens[i] = float64(t)
			}
			if err := r.log.Keep(name(n), skip.Mask{}, tokens); err != nil {
				return err
			}
		}
	}
	if len(r.missing) > 0 {
		return errMissing
	}
	for n, i := range open {
		var tokens []llama.Token
		for _, t := range r.log.Kept(name(n), skip.Mask{}) {
			tokens = append(tokens, llama.Token(t))
		}
		if tokens != nil {
			r.cases[i].Answers, r.cases[i].Own = [][]llama.Token{tokens}, true
		}
	}
	r.keep(slices.DeleteFunc(search.All(len(r.cases)), func(i int) bool { return len(r.cases[i].Answers) == 0 }))
	return nil
}

// answerChunk gives the whole model's own answers to some of the cases' prompts, which depend on
// no others: the engine is new, since logits depend in their last digits on what else is in its cache.
func (r *run) answerChunk(ctx context.Context, some []int) ([][]llama.Token, error) {
	e, err := r.engine(some)
	if err != nil {
		return nil, err
	}
	defer e.Close()
	return r.answers(ctx, e, some)
}

// answers gives the whole model's own answers to some of the cases' prompts.
func (r *run) answers(ctx context.Context, e *gallop.Engine, some []int) (own [][]llama.Token, err error) {
	var requests []gallop.Request
	for _, i := range some {
		requests = append(requests, gallop.Request{Tokens: r.cases[i].Prompt, Skip: gallop.Nothing(), Sampling: &llama.Sampling{}, MaxTokens: r.Answer})
	}
	generated, err := batch.Answer(ctx, e, requests)
	if err != nil {
		return nil, err
	}
	for _, a := range generated {
		if n := len(a.Tokens) - 1; r.model.Vocab.IsEnd(a.Tokens[n]) { // of which there may be several
			a.Tokens[n] = score.End(r.model)
		}
		own = append(own, a.Tokens)
	}
	return own, nil
}

// atOnce is how many prompts are answered at once.
const atOnce = 16

// engine answers some of the cases' prompts. Its KV cache is no larger than the scorer's will be.
func (r *run) engine(some []int) (*gallop.Engine, error) {
	room := 0
	for _, i := range some {
		room = max(room, len(r.cases[i].Prompt)+r.Answer)
	}
	return gallop.New(r.model, &gallop.Options{
		Parallel: max(min(atOnce, score.DefaultNCtx/room), 1), Profile: gallop.NoProfile, Shortlist: -1, NoCosts: true,
		Isolate: r.Pause == nil, // else a near tie is decided by which requests happen to share a decode
		Context: llama.ContextOptions{NCtx: room, Threads: r.Threads}, Pause: r.Pause,
	})
}

// searchedShare is the share of a limited time's prompts that searches look at:
// the others judge what they find.
const searchedShare = 0.6

// split picks the cases that the searches look at.
func (r *run) split(context.Context) error {
	tasks := map[string]bool{}
	for _, c := range r.cases {
		tasks[c.Task] = true
	}
	most := r.PerTask
	if r.Time > 0 {
		most = min(most, max(1, int(searchedShare*float64(len(r.cases))/float64(len(tasks)))))
	}
	r.byTask = map[string][]score.Case{}
	for i, c := range r.cases {
		if len(r.byTask[c.Task]) < most {
			r.byTask[c.Task] = append(r.byTask[c.Task], c)
		} else {
			r.unsearched = append(r.unsearched, i)
		}
	}
	r.tasks = slices.Sorted(maps.Keys(r.byTask))
	// Cases of every task in turn, twice as many as a task's search sees: what SLEB calls
	// calibration data, for sets that know no task.
	for i := range r.PerTask {
		for _, task := range r.tasks {
			if i < len(r.byTask[task]) && len(r.mixed) < 2*r.PerTask {
				r.mixed = append(r.mixed, r.byTask[task][i])
			}
		}
	}
	r.sample = r.unsearched
	if len(r.sample) == 0 {
		r.sample = search.All(len(r.cases))
	}
	if n, most := len(r.sample), min(escalationCases, r.PerTask*len(r.tasks)); n > most { // an even choice: cases may come task by task
		even := make([]int, most)
		for k := range even {
			even[k] = r.sample[k*n/most]
		}
		r.sample = even
	}
	return nil
}

// pursuit is a search that a calibration does.
type pursuit struct {
	name    string
	cases   []score.Case
	units   []search.Unit
	depth   float64
	prefill skip.Prefill
	value   func(score.Score) float64 // of a case, that is made small
}

// lossesOf are a search's, from the log where they are known; else their owner computes them.
func (r *run) lossesOf(p pursuit, owner func(skip.Mask) int) search.Losses {
	return r.wrap(p.name, r.valuesOf(p.cases, p.prefill, p.value), owner, false)
}

// forAll is the search of the sets that know no task.
func (r *run) forAll() pursuit {
	return pursuit{general, r.mixed, Units(r.Unit, r.sizes), slices.Max(r.Depths), r.Prefill, loss}
}

// forTask are a task's searches: by loss, and where there are wrong answers by margin.
func (r *run) forTask(task string) []pursuit {
	p := pursuit{task, r.byTask[task], Units(r.Unit, r.sizes), slices.Max(r.Depths), r.Prefill, loss}
	all := []pursuit{p}
	if len(p.cases[0].Answers) > 1 {
		p.name, p.value = task+" by margin", func(s score.Score) float64 { return s.Margin }
		all = append(all, p)
	}
	return all
}

// find does a search. budget 0 = no limit.
func (r *run) find(ctx context.Context, p pursuit, budget time.Duration) ([]search.Step, error) {
	influence, err := r.influence(ctx, p.units)
	if err != nil {
		return nil, err
	}
	o := r.options("searching "+p.name, p.depth, influence, budget)
	var owner func(skip.Mask) int
	if r.sharing {
		owner = r.dividing(p, o)
	}
	return search.Greedy(ctx, p.units, len(p.cases), r.lossesOf(p, owner), o)
}

// firstOwner is the shard that computes what a search does not ask for in its rounds.
func (r *run) firstOwner(name string) func(skip.Mask) int {
	return func(skip.Mask) int { return r.ownersOf(name).first }
}

// loss is what a search makes small and a router predicts. Against the whole
// model's own answers that is the divergence from the whole model: the loss of the
// tokens that happen to be in the answer says far less of a mask.
func loss(s score.Score) float64 {
	if !math.IsNaN(s.KL) {
		return s.KL
	}
	return s.Loss
}

// valuesOf gives a value of the scores of cases under masks.
func (r *run) valuesOf(cases []score.Case, prefill skip.Prefill, value func(score.Score) float64) search.Losses {
	return func(ctx context.Context, mask skip.Mask, examples []int) ([]float64, error) {
		if err := r.holdPrompts(ctx, cases, prefill); err != nil {
			return nil, err
		}
		part := make([]score.Case, len(examples))
		for k, i := range examples {
			part[k] = cases[i]
		}
		scores, err := r.scorer.Score(ctx, part, mask, prefill)
		values := make([]float64, len(scores))
		for i, s := range scores {
			values[i] = value(s)
		}
		return values, err
	}
}

// holdPrompts makes what is scored next depend on cases alone, and not on what was
// scored before: a token's logits depend in their last digits on where in the
// cache its keys lie, and a run that was killed has to come to the same result.
func (r *run) holdPrompts(ctx context.Context, cases []score.Case, prefill skip.Prefill) error {
	if len(cases) > 0 && len(r.heldCases) == len(cases) && &r.heldCases[0] == &cases[0] && r.heldFor == prefill {
		return nil
	}
	r.heldCases, r.heldFor = nil, prefill
	if prefill != skip.FullPrefill {
		if err := r.scorer.Refer(ctx, cases); err != nil {
			return err
		}
		r.heldCases = cases
		return nil
	}
	held, err := r.scorer.Hold(ctx, cases)
	if held {
		r.heldCases = cases
	}
	return err
}

// Units lists what a search skips at once.
func Units(u Unit, sizes search.Sizes) []search.Unit {
	switch u {
	case Layers:
		return search.LayerUnits(sizes)
	case FeedForwards:
		return slices.DeleteFunc(search.SublayerUnits(sizes), func(u search.Unit) bool { return !u.Mask.KVComplete() })
	}
	return search.SublayerUnits(sizes)
}

// pooled is how many units a search with a limit of time lets race in each round
// after the first.
const pooled = 8

// options are those of a search. budget 0 = no limit.
func (r *run) options(stage string, depth float64, influence []float64, budget time.Duration) *search.Options {
	o := &search.Options{
		Depth: depth, PerByte: r.Unit != Layers, Budget: budget, Influence: influence,
		Progress: func(done, total int) { r.Progress(stage, done, max(total, done, 1)) },
	}
	if o.Held = r.Pause.Held; budget > 0 {
		o.Pool = pooled
	}
	return o
}

// searchShare is the share of a limited time after which the search of the sets
// for all prompts has to end.
const searchShare = 0.5

// searchBudget is one search's part of Budget; 0 = there is no limit.
func (r *run) searchBudget() time.Duration {
	return max(r.Budget/time.Duration(len(r.tasks)+1), min(r.Budget, time.Nanosecond))
}

// searchAll finds the sets that know no task, and the baselines.
func (r *run) searchAll(ctx context.Context) error {
	r.candidates, r.baselines = []router.Candidate{{}}, nil
	if r.Preset != nil {
		r.candidates = r.Preset
		return nil
	}
	budget := r.searchBudget()
	if r.Time > 0 {
		budget = max(r.left()-time.Duration((1-searchShare)*float64(r.Time)), time.Nanosecond)
	}
	all, start := r.forAll(), r.elapsed()
	path, err := r.find(ctx, all, budget)
	if err != nil && !errors.Is(err, search.ErrBudget) {
		return err
	}
	if r.cut = err != nil; r.cut {
		for _, step := range path {
			if !math.IsNaN(step.Loss) {
				r.reached = step.Depth
			}
		}
	}
	r.searched = r.elapsed() - start
	r.take(general, path)
	return r.baseline(ctx, all)
}

// searchTasks finds each task's sets. With a limit of time it does so for all
// tasks or none, and more tells whether it did.
func (r *run) searchTasks(ctx context.Context) (more bool, err error) {
	budget := r.searchBudget()
	if r.Time > 0 {
		// Half as many examples as for all prompts take half of that time, and the new
		// sets are measured on all prompts afterwards, like those so far.
		budget = r.left()/time.Duration(len(r.tasks)) - r.measured
		if budget < r.searched/2 {
			return false, nil
		}
	}
	type found struct {
		name string
		path []search.Step
	}
	var all []found
	r.unitLosses = nil
	for _, task := range r.tasks {
		for _, p := range r.forTask(task) {
			path, err := r.find(ctx, p, budget)
			if errors.Is(err, search.ErrBudget) && r.Time > 0 {
				return false, nil
			}
			if err != nil && !errors.Is(err, search.ErrBudget) {
				return false, err
			}
			all = append(all, found{p.name, path})
		}
		if r.Time > 0 {
			continue
		}
		if err := r.unitLossesOf(ctx, task); err != nil && !(r.sharing && errors.Is(err, errMissing)) { // a shard goes on with the next task
			return false, err
		}
	}
	for _, f := range all {
		r.take(f.name, f.path)
	}
	return true, nil
}

// unitLossesOf measures what each unit skipped alone costs a task.
func (r *run) unitLossesOf(ctx context.Context, task string) error {
	p := r.forTask(task)[0]
	losses := r.lossesOf(p, r.firstOwner(task))
	whole, err := losses(ctx, skip.Mask{}, search.All(len(p.cases)))
	if err != nil {
		return err
	}
	alone, err := search.Singles(ctx, p.units, len(p.cases), losses)
	if err != nil {
		return err
	}
	row := slices.Repeat([]float64{math.NaN()}, 2*r.model.NLayer)
	for i, u := range p.units {
		l := u.Mask.Highest()
		if u.Mask.Skipped(l)&skip.Attention != 0 {
			row[2*l] = alone[i] - stats.Mean(whole)
		}
		if u.Mask.Skipped(l)&skip.FeedForward != 0 {
			row[2*l+1] = alone[i] - stats.Mean(whole)
		}
	}
	r.unitLosses = append(r.unitLosses, row)
	return nil
}

// How much text block influence is measured on: the mean over some thousand tokens
// has long settled, and that over fewer orders the layers nearly the same.
const (
	influenceTokens = 4096
	fewTokens       = 512 // with a limit of time
)

// influence gives ShortGPT's block influence of every unit. It is measured once.
func (r *run) influence(ctx context.Context, units []search.Unit) ([]float64, error) {
	name := fmt.Sprintf("block influence of %d units from %s", len(units), units[0].Mask)
	if kept := r.log.Kept(name, skip.Mask{}); kept != nil && r.Time == 0 {
		return kept, nil
	}
	if r.influenceCtx == nil {
		if err := r.measureInfluence(ctx); err != nil {
			return nil, err
		}
	}
	values := search.Influences(units, r.influenceCtx)
	return values, r.log.Keep(name, skip.Mask{}, values)
}

func (r *run) measureInfluence(ctx context.Context) error {
	longest := 0
	cases := r.mixed
	for _, c := range cases {
		longest = max(longest, len(c.Prompt))
	}
	c, err := r.model.NewContext(&llama.ContextOptions{NCtx: longest, NBatch: longest, Threads: r.Threads, Influence: true})
	if err != nil {
		return err
	}
	c.PauseWith(r.Pause)
	r.influenceCtx = c // Run closes it
	defer c.AbortOn(ctx)()
	b, err := llama.NewBatch(longest, nil)
	if err != nil {
		return err
	}
	defer b.Close()
	tokens, most := 0, influenceTokens
	if r.Time > 0 {
		most = fewTokens
	}
	for i, k := range cases {
		if tokens >= most {
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
			return cmp.Or(ctx.Err(), err)
		}
		tokens += len(k.Prompt)
	}
	return nil
}

// take makes a task's candidates of a search's path, one for each depth.
func (r *run) take(task string, path []search.Step) {
	for _, depth := range r.Depths {
		mask := maskAt(path, depth)
		c := router.Candidate{Mask: mask, Depth: r.sizes.Depth(mask), Task: task}
		if at := slices.IndexFunc(r.candidates, func(have router.Candidate) bool { return have.Mask == c.Mask }); at < 0 {
			r.candidates = append(r.candidates, c)
		} else {
			r.candidates[at].AddTask(task)
		}
		if task == general {
			c.Task = router.BaselineGreedy
			r.baselines = append(r.baselines, c)
		}
	}
}

// maskAt is the mask of a search's path that is nearest to this depth.
func maskAt(path []search.Step, depth float64) skip.Mask {
	return slices.MinFunc(path, func(a, b search.Step) int {
		return cmp.Compare(math.Abs(a.Depth-depth), math.Abs(b.Depth-depth))
	}).Mask
}

// baseline finds what a router has to beat: sets found without looking at tasks.
func (r *run) baseline(ctx context.Context, p pursuit) error {
	units, losses := p.units, r.lossesOf(p, r.firstOwner(general))
	influence, err := r.influence(ctx, units)
	if err != nil {
		return err
	}
	for _, depth := range r.Depths {
		byInfluence, err := search.ByInfluence(units, influence, depth)
		if err != nil {
			return err
		}
		random, err := search.Random(units, depth, r.Seed)
		if err != nil {
			return err
		}
		sets := []router.Candidate{{Task: router.BaselineInfluence, Mask: byInfluence}, {Task: router.BaselineRandom, Mask: random}}
		run, err := search.Step{}, error(search.ErrSearch)
		if r.Time == 0 { // it looks at every run
			run, err = search.Contiguous(ctx, units, len(p.cases), losses, depth)
		}
		switch {
		case err == nil:
			sets = append(sets, router.Candidate{Task: router.BaselineContiguous, Mask: run.Mask})
		case !errors.Is(err, search.ErrSearch): // that is, units without neighbours, as feed-forward halves
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

// chunkFrom is where the chunk ends that begins with a case: before lossChunk others, and
// before prompts that do not fit into the cache beside it. These would be decoded again for
// each candidate.
func (r *run) chunkFrom(from int) (to int) {
	for to = from + 1; to < min(from+lossChunk, len(r.cases)) && r.scorer.Fit(r.cases[from:to+1]); to++ {
	}
	return to
}

// chunkOf is the chunk that a case is in.
func (r *run) chunkOf(n int) (from, to int) {
	for to <= n {
		from, to = to, r.chunkFrom(to)
	}
	return from, to
}

// lossesFrom gives the losses of a chunk of cases under masks. It keeps what the
// escalation needs of them.
func (r *run) lossesFrom(from int) search.Losses {
	to := r.chunkFrom(from)
	return r.wrap(fmt.Sprint("candidates from ", from), func(ctx context.Context, mask skip.Mask, examples []int) ([]float64, error) {
		scores, err := r.scoreChunk(ctx, r.cases[from:to], mask, examples)
		values := make([]float64, len(scores))
		for k, s := range scores {
			values[k] = loss(s)
			if i := from + examples[k]; len(scores) == to-from { // only then are they what they will be another time
				if _, in := slices.BinarySearch(r.sample, i); in {
					r.tokens[scored{i, mask}] = s.Tokens
				}
				if r.sharing {
					err = cmp.Or(err, r.keepTokens(i, mask))
				}
			}
		}
		return values, err
	}, r.chunkOwner(from), true)
}

// scoreChunk scores some of a chunk of cases.
func (r *run) scoreChunk(ctx context.Context, chunk []score.Case, mask skip.Mask, examples []int) ([]score.Score, error) {
	if err := r.holdPrompts(ctx, chunk, r.Prefill); err != nil {
		return nil, err
	}
	part := make([]score.Case, len(examples))
	for k, i := range examples {
		part[k] = chunk[i]
	}
	return r.scorer.Score(ctx, part, mask, r.Prefill)
}

// tokensOf gives how a case's tokens score under a mask: as measured, or measured
// again with its chunk where the losses came from the log.
func (r *run) tokensOf(ctx context.Context, n int, mask skip.Mask) ([]score.TokenScore, error) {
	if known, ok := r.tokens[scored{n, mask}]; ok {
		return known, nil
	}
	if kept := r.keptTokens(n, mask); kept != nil {
		return kept, nil
	}
	from, to := r.chunkOf(n)
	chunk := r.cases[from:to]
	scores, err := r.scoreChunk(ctx, chunk, mask, search.All(len(chunk)))
	if err != nil {
		return nil, err
	}
	for k, s := range scores {
		if _, in := slices.BinarySearch(r.sample, from+k); in {
			r.tokens[scored{from + k, mask}] = s.Tokens
		}
	}
	return r.tokens[scored{n, mask}], nil
}

// measure finds each prompt's loss under each candidate.
func (r *run) measure(ctx context.Context) error {
	start := r.elapsed()
	r.losses = make([][]float64, len(r.cases))
	for from, to := 0, 0; from < len(r.cases); from = to {
		to = r.chunkFrom(from)
		losses := r.lossesFrom(from)
		for n, c := range r.candidates {
			r.Progress("measuring candidates", from*len(r.candidates)+n*(to-from), len(r.cases)*len(r.candidates))
			values, err := losses(ctx, c.Mask, search.All(to-from))
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
	r.measured = r.elapsed() - start
	return nil
}
