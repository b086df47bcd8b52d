package table

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/batch"
	"github.com/gallop-llm/gallop/internal/lab/report"
	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// Table measures the ways to choose masks that a profile knows, against each
// other, on the same cases: the rows of `gallop eval`.
type Table struct {
	Scorer  *score.Scorer
	Engine  *gallop.Engine // answers; needed for [Table.Generated] alone
	Model   *llama.Model
	Cases   []score.Case
	Prompts []router.Prompt // (len(Cases),) as the router sees them
	Seed    uint64          // of the bootstrap

	// Shortlist is the vocabulary shortlist of all rows but the whole model's, in tokens;
	// 0 = none. The scorer has its matrices.
	Shortlist int

	// Progress is told how many cases of those that are being measured are done,
	// each under each mask; it may be nil.
	Progress func(done, total int)

	known map[measured]result
	speed map[skip.Mask]timing
}

// measured is what losses depend on.
type measured struct {
	mask    skip.Mask
	prefill skip.Prefill
}

// under is the key of a mask's losses: nothing skipped is the same with either prefill.
func under(mask skip.Mask, prefill skip.Prefill) measured {
	if mask.Len() == 0 {
		prefill = skip.MaskedPrefill
	}
	return measured{mask, prefill}
}

// result is what all cases came to.
type result struct {
	scores      []score.Score      // (len(Cases),)
	differences []score.Difference // (len(Cases),)
}

// timing is how fast a mask is.
type timing struct {
	share float64    // decode time of a token, as a share of the whole model's
	first [2]float64 // milliseconds to decode a prompt of median length, by [skip.Prefill]
}

// ttft is the time to the first token in milliseconds. With a full prefill the
// routing comes beside the prompt or after that token.
func (t timing) ttft(p skip.Prefill, routing time.Duration) float64 {
	if p == skip.FullPrefill {
		return t.first[p]
	}
	return milliseconds(routing) + t.first[p]
}

// How speed is measured: in rounds with the whole model in turn, of which the
// median counts.
const (
	speedRounds = 5
	speedSteps  = 24 // tokens of a round
)

// caseChunk is how many cases go through all masks together: the prompts of so
// many stay in the scorer's cache, and progress shows.
const caseChunk = 64

// What rows are called, and how the names of rows with a setting begin.
const (
	Routed     = "routed"
	Adaptive   = "adaptive"
	Escalation = "routed, escalation"
)

// Whole is the row of the whole model.
func (t *Table) Whole(ctx context.Context) (report.Row, error) {
	return t.row(ctx, "whole model", skip.MaskedPrefill, 0, make([]skip.Mask, len(t.Cases)), 0)
}

// Under is the row of one mask for all cases.
func (t *Table) Under(ctx context.Context, mask skip.Mask) (report.Row, error) {
	return t.row(ctx, fmt.Sprintf("skip %s", mask), skip.MaskedPrefill, t.meanDepth([]skip.Mask{mask}), slices.Repeat([]skip.Mask{mask}, len(t.Cases)), 0)
}

// Listed is the row of the whole model with the vocabulary shortlist.
func (t *Table) Listed(ctx context.Context) (report.Row, error) {
	mask := skip.Mask{}.WithShortlist(t.Shortlist)
	return t.row(ctx, fmt.Sprintf("shortlist %s alone", mask), skip.MaskedPrefill, 0, slices.Repeat([]skip.Mask{mask}, len(t.Cases)), 0)
}

// with gives sets the table's shortlist.
func (t *Table) with(sets []router.Candidate) []router.Candidate {
	sets = slices.Clone(sets)
	for i := range sets {
		sets[i].Mask = sets[i].Mask.WithShortlist(t.Shortlist)
	}
	return sets
}

// Fixed gives the rows of a profile at one depth: the sets that know no task or
// prompt, the sets of each task, what the router chooses, and the best that
// could be chosen for each prompt. unit names what the profile's sets skip.
func (t *Table) Fixed(ctx context.Context, p *router.Profile, unit string, prefill skip.Prefill, depth float64) ([]report.Row, error) {
	var group []router.Candidate
	baselines := t.with(p.Baselines)
	for _, c := range t.with(p.Candidates[1:]) {
		if c.At(depth) {
			group = append(group, c)
		}
	}
	if len(group) == 0 {
		return nil, nil
	}
	var sets []skip.Mask
	for _, c := range slices.Concat(group, baselines) {
		if c.At(depth) {
			sets = append(sets, c.Mask)
		}
	}
	if err := t.measure(ctx, sets, prefill); err != nil {
		return nil, err
	}
	var rows []report.Row
	add := func(method string, masks []skip.Mask, routing time.Duration) error {
		row, err := t.row(ctx, method, prefill, depth, masks, routing)
		row.Unit = unit
		rows = append(rows, row)
		return err
	}
	for _, b := range baselines {
		if b.At(depth) {
			if err := add(b.Task, slices.Repeat([]skip.Mask{b.Mask}, len(t.Cases)), 0); err != nil {
				return nil, err
			}
		}
	}
	perTask := make([]skip.Mask, len(t.Cases))
	known := true
	for i, c := range t.Cases {
		at := slices.IndexFunc(group, func(g router.Candidate) bool { return g.For(c.Task) })
		if known = known && at >= 0; !known {
			break
		}
		perTask[i] = group[at].Mask
	}
	if known {
		if err := add("each task's own set", perTask, 0); err != nil {
			return nil, err
		}
	}
	routed, routing, err := t.choose(p, router.Policy{Depth: depth})
	if err != nil {
		return nil, err
	}
	if err := add(Routed, routed, routing); err != nil {
		return nil, err
	}
	best := make([]skip.Mask, len(t.Cases))
	least := slices.Repeat([]float64{math.Inf(1)}, len(t.Cases))
	for _, c := range group {
		for i, s := range t.known[under(c.Mask, prefill)].scores {
			if s.Loss < least[i] {
				best[i], least[i] = c.Mask, s.Loss
			}
		}
	}
	return rows, add("oracle for each prompt", best, 0)
}

// choose routes every prompt. routing is the mean time that this took.
func (t *Table) choose(p *router.Profile, policy router.Policy) (masks []skip.Mask, routing time.Duration, err error) {
	start := time.Now()
	for _, x := range t.Prompts {
		d, err := p.Choose(x, policy)
		if err != nil {
			return nil, 0, err
		}
		masks = append(masks, d.Mask.WithShortlist(t.Shortlist))
	}
	return masks, time.Since(start) / time.Duration(max(len(masks), 1)), nil
}

// Adaptive is the row of a profile's router under a quality budget.
func (t *Table) Adaptive(ctx context.Context, p *router.Profile, unit string, prefill skip.Prefill, quality float64) (report.Row, error) {
	masks, routing, err := t.choose(p, router.Policy{Quality: quality})
	if err != nil {
		return report.Row{}, err
	}
	row, err := t.row(ctx, fmt.Sprintf("%s, quality %g", Adaptive, quality), prefill, math.NaN(), masks, routing)
	row.Unit = unit
	return row, err
}

// Generated is the row of routed masks of one depth with answers that are
// generated, not teacher-forced, so it has no losses. A threshold above 0 adds
// escalation.
func (t *Table) Generated(ctx context.Context, p *router.Profile, unit string, prefill skip.Prefill, depth, threshold float64) (report.Row, error) {
	masks, routing, err := t.choose(p, router.Policy{Depth: depth})
	if err != nil {
		return report.Row{}, err
	}
	var asked []score.Case
	var under []skip.Mask // (len(asked),)
	most := 0
	for i, c := range t.Cases {
		if !c.Text {
			asked, under = append(asked, c), append(under, masks[i])
			most = max(most, len(c.Answers[c.Right])+1)
		}
	}
	if masks = under; len(asked) == 0 {
		return report.Row{}, fmt.Errorf("%w: plain text asks for no answers", score.ErrEmpty)
	}
	order := search.All(len(asked)) // those with the same mask are answered together
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(masks[a].String(), masks[b].String()) })
	requests := make([]gallop.Request, len(order))
	for k, i := range order {
		requests[k] = gallop.Request{
			Tokens: asked[i].Prompt, Skip: gallop.Layers(masks[i]).Prefill(prefill).Escalate(threshold), Sampling: &llama.Sampling{}, MaxTokens: most,
		}
		if masks[i].Shortlist() == 0 {
			requests[k].Shortlist = -1
		}
	}
	generated, err := batch.Answer(ctx, t.Engine, requests)
	if err != nil {
		return report.Row{}, err
	}
	hits := make([]float64, len(generated))
	steps, escalated, cost := 0, 0, 0.0
	for k, a := range generated {
		i, n := order[k], len(a.Tokens)-1     // the first token comes from the prompt's pass
		if t.Model.Vocab.IsEnd(a.Tokens[n]) { // of which there may be several
			a.Tokens[n] = score.End(t.Model)
		}
		if slices.Equal(a.Tokens, asked[i].Answers[asked[i].Right]) {
			hits[i] = 1
		}
		steps, escalated = steps+n, escalated+a.Escalated
		cost += float64(n)*t.costs(masks[i:i+1]) + float64(a.Escalated)
	}
	speed, err := t.speeds(masks)
	if err != nil {
		return report.Row{}, err
	}
	row := report.Row{
		Method: "routed, generated", Unit: unit, Prefill: prefill.String(), Depth: report.Figure(depth),
		Accuracy: report.Figure(stats.Mean(hits)), MeanDepth: report.Figure(t.meanDepth(masks)),
		TTFT: report.Figure(speed.ttft(prefill, routing)),
		Cost: report.Figure(cost / float64(steps)), Escalated: report.Figure(float64(escalated) / float64(steps)),
	}
	if threshold > 0 {
		row.Method = fmt.Sprintf("%s %g", Escalation, threshold)
	}
	low, high := stats.Bootstrap(hits, t.Seed)
	row.AccuracyLow, row.AccuracyHigh = &low, &high
	return row, nil
}

// measure finds what all cases come to under the masks that are not known yet.
func (t *Table) measure(ctx context.Context, masks []skip.Mask, prefill skip.Prefill) error {
	var open []skip.Mask
	for _, mask := range masks {
		if _, ok := t.known[under(mask, prefill)]; !ok && !slices.Contains(open, mask) {
			open = append(open, mask)
		}
	}
	results := make([]result, len(open))
	for from := 0; from < len(t.Cases) && len(open) > 0; from += caseChunk {
		if t.Progress != nil {
			t.Progress(from*len(open), len(t.Cases)*len(open))
		}
		scores, differences, err := t.Scorer.Compare(ctx, t.Cases[from:min(from+caseChunk, len(t.Cases))], open, prefill)
		if err != nil {
			return err
		}
		for k := range open {
			results[k].scores = append(results[k].scores, scores[k]...)
			results[k].differences = append(results[k].differences, differences[k]...)
		}
	}
	if t.known == nil {
		t.known = map[measured]result{}
	}
	for k, mask := range open {
		for i := range results[k].differences {
			if mask.IsEmpty() {
				results[k].differences[i] = score.Difference{Agreement: 1} // not what rounding leaves
			}
		}
		t.known[under(mask, prefill)] = results[k]
	}
	return nil
}

// row measures one mask for each case, that routing took so long to choose.
func (t *Table) row(ctx context.Context, method string, prefill skip.Prefill, depth float64, masks []skip.Mask, routing time.Duration) (report.Row, error) {
	if err := t.measure(ctx, masks, prefill); err != nil {
		return report.Row{}, err
	}
	speed, err := t.speeds(masks)
	if err != nil {
		return report.Row{}, err
	}
	chosen := make([]score.Score, len(t.Cases))
	var hits, losses, kl, agreement []float64
	for i, c := range t.Cases {
		of := t.known[under(masks[i], prefill)]
		chosen[i] = of.scores[i]
		losses = append(losses, chosen[i].Loss)
		kl = append(kl, of.differences[i].KL)
		agreement = append(agreement, of.differences[i].Agreement)
		if !c.Text {
			hits = append(hits, hit(c, chosen[i]))
		}
	}
	meanDepth := t.meanDepth(masks)
	row := report.Row{
		Method: method, Prefill: prefill.String(), Depth: report.Figure(depth), Cost: report.Figure(t.costs(masks)),
		Accuracy: report.Figure(stats.Mean(hits)), Perplexity: report.Figure(score.Perplexity(chosen, t.Cases)), Loss: report.Figure(stats.Mean(losses)),
		KL: report.Figure(stats.Mean(kl)), Agreement: report.Figure(stats.Mean(agreement)), MeanDepth: &meanDepth,
		Speedup: report.Figure(1 / speed.share), TTFT: report.Figure(speed.ttft(prefill, routing)),
	}
	low, high := stats.Bootstrap(hits, t.Seed)
	row.AccuracyLow, row.AccuracyHigh = report.Figure(low), report.Figure(high)
	acc, norm := score.Accuracy(chosen, t.Cases)
	row.Acc, row.AccNorm = report.Figure(acc), report.Figure(norm)
	return row, nil
}

// hit is 1 for a right answer: the likeliest choice, or an exact free answer.
func hit(c score.Case, s score.Score) float64 {
	if len(c.Answers) > 1 && s.Choice() == c.Right || len(c.Answers) == 1 && s.Exact {
		return 1
	}
	return 0
}

// meanDepth is how much masks skip on average.
func (t *Table) meanDepth(masks []skip.Mask) float64 {
	sizes := search.SizesOf(t.Model.Tensors, t.Model.NLayer)
	sum := 0.0
	for _, mask := range masks {
		sum += sizes.Depth(mask)
	}
	return sum / float64(len(masks))
}

// costs is the mean share of the whole model's bytes that a token needs under masks.
// Without a shortlist the layers' alone count.
func (t *Table) costs(masks []skip.Mask) float64 {
	layers := 1 - t.meanDepth(masks)/float64(t.Model.NLayer)
	list := t.Scorer.Shortlist()
	if list == nil || masks[0].Shortlist() == 0 {
		return layers
	}
	exact := 0.0
	for _, mask := range masks {
		exact += t.Scorer.Exact(mask) / float64(len(masks))
	}
	return list.TokenShare(layers, exact)
}

func milliseconds(d time.Duration) float64 { return d.Seconds() * 1000 }

// speeds is the mean over masks (len(Cases),), each measured once.
func (t *Table) speeds(masks []skip.Mask) (mean timing, err error) {
	for _, mask := range masks {
		of, ok := t.speed[mask]
		if !ok {
			if of, err = t.time(mask); err != nil {
				return timing{}, err
			}
			if t.speed == nil {
				t.speed = map[skip.Mask]timing{}
			}
			t.speed[mask] = of
		}
		mean.share += of.share / float64(len(masks))
		for p := range mean.first {
			mean.first[p] += of.first[p] / float64(len(masks))
		}
	}
	return mean, nil
}

// time measures a mask in turns with the whole model, with the model's default
// number of threads.
func (t *Table) time(mask skip.Mask) (timing, error) {
	prompt := t.medianPrompt()
	c, err := t.Model.NewContext(&llama.ContextOptions{NCtx: len(prompt) + speedSteps, NBatch: len(prompt)})
	if err != nil {
		return timing{}, err
	}
	defer c.Close()
	if err := c.SetShortlist(t.Scorer.Shortlist()); err != nil {
		return timing{}, err
	}
	b, err := llama.NewBatch(len(prompt), nil)
	if err != nil {
		return timing{}, err
	}
	defer b.Close()
	decode := func(tokens []llama.Token, pos int, m skip.Mask) error {
		b.Clear()
		for i, token := range tokens {
			if err := b.Add(token, pos+i, i == len(tokens)-1, 0); err != nil {
				return err
			}
		}
		return c.Decode(b, m)
	}
	prefill := func(m skip.Mask, p skip.Prefill) (ms float64, err error) {
		c.Clear()
		start := time.Now()
		err = decode(prompt, 0, p.Mask(m).WithShortlist(0))
		return milliseconds(time.Since(start)), err
	}
	generate := func(m skip.Mask) (ms float64, err error) {
		start := time.Now()
		for i := 0; i < speedSteps && err == nil; i++ {
			err = decode(prompt[i%len(prompt):][:1], len(prompt)+i, m) // a text: how many exact logits a token needs depends on it
		}
		return milliseconds(time.Since(start)), err
	}
	var shares []float64
	var first [2][]float64
	for range speedRounds {
		_, err1 := prefill(skip.Mask{}, skip.MaskedPrefill)
		whole, err2 := generate(skip.Mask{})
		masked := whole
		var err3 error
		for p := range first {
			ms, err := prefill(mask, skip.Prefill(p))
			first[p] = append(first[p], ms)
			err3 = errors.Join(err3, err)
		}
		if !mask.IsEmpty() {
			var err error
			masked, err = generate(mask)
			err3 = errors.Join(err3, err)
		}
		if err := errors.Join(err1, err2, err3); err != nil {
			return timing{}, err
		}
		shares = append(shares, masked/whole)
	}
	return timing{stats.Median(shares), [2]float64{stats.Median(first[0]), stats.Median(first[1])}}, nil
}

// medianPrompt is the prompt of median length.
func (t *Table) medianPrompt() []llama.Token {
	byLength := slices.Clone(t.Cases)
	slices.SortStableFunc(byLength, func(a, b score.Case) int { return cmp.Compare(len(a.Prompt), len(b.Prompt)) })
	return byLength[len(byLength)/2].Prompt
}
