package eval

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/gallop-llm/gallop/internal/report"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// Table measures the ways to choose masks that a profile knows, against each
// other, on the same cases: the rows of `gallop eval`.
type Table struct {
	Scorer  *Scorer
	Model   *llama.Model
	Cases   []Case
	Prompts []router.Prompt // (len(Cases),) as the router sees them
	Seed    uint64          // of the bootstrap

	Progress func(masks int) // told how many masks are measured; may be nil

	scores map[scored][]Score // (len(Cases),)
	speed  map[skip.Mask]float64
	done   int
}

// scored is what a score hangs on.
type scored struct {
	mask    skip.Mask
	prefill skip.Prefill
}

// speedRounds and speedSteps are how decode speed is measured: rounds over all
// masks in turn, of which the median counts.
const (
	speedRounds = 5
	speedSteps  = 24 // tokens of a round
	speedPrompt = 8  // tokens in front of them
)

// What rows are called, and how the names of rows with a setting begin.
const (
	Routed   = "routed"
	Adaptive = "adaptive"
	Cascade  = "routed, cascade"
)

// Whole is the row of the whole model.
func (t *Table) Whole(ctx context.Context) (report.Row, error) {
	return t.row(ctx, "whole model", skip.MaskedPrefill, 0, make([]skip.Mask, len(t.Cases)))
}

// Fixed gives the rows of a profile at one depth: the sets that know no task or
// prompt, the sets of each task, what the router chooses, and the best that
// could be chosen for each prompt. unit names what the profile's sets skip.
func (t *Table) Fixed(ctx context.Context, p *router.Profile, unit string, prefill skip.Prefill, depth float64) ([]report.Row, error) {
	var group []router.Candidate
	for _, c := range p.Candidates[1:] {
		if c.At(depth) {
			group = append(group, c)
		}
	}
	if len(group) == 0 {
		return nil, nil
	}
	var rows []report.Row
	add := func(method string, masks []skip.Mask) error {
		row, err := t.row(ctx, method, prefill, depth, masks)
		row.Unit = unit
		rows = append(rows, row)
		return err
	}
	for _, b := range p.Baselines {
		if b.At(depth) {
			if err := add(b.Task, slices.Repeat([]skip.Mask{b.Mask}, len(t.Cases))); err != nil {
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
		if err := add("each task's own set", perTask); err != nil {
			return nil, err
		}
	}
	routed := make([]skip.Mask, len(t.Cases))
	for i, x := range t.Prompts {
		d, err := p.Choose(x, router.Policy{Depth: depth})
		if err != nil {
			return nil, err
		}
		routed[i] = d.Mask
	}
	if err := add(Routed, routed); err != nil {
		return nil, err
	}
	best := make([]skip.Mask, len(t.Cases))
	least := slices.Repeat([]float64{math.Inf(1)}, len(t.Cases))
	for _, c := range group {
		scores, err := t.score(ctx, c.Mask, prefill)
		if err != nil {
			return nil, err
		}
		for i, s := range scores {
			if s.Loss < least[i] {
				best[i], least[i] = c.Mask, s.Loss
			}
		}
	}
	return rows, add("oracle for each prompt", best)
}

// Adaptive is the row of a profile's router under a quality budget.
func (t *Table) Adaptive(ctx context.Context, p *router.Profile, unit string, prefill skip.Prefill, quality float64) (report.Row, error) {
	masks := make([]skip.Mask, len(t.Cases))
	for i, x := range t.Prompts {
		d, err := p.Choose(x, router.Policy{Quality: quality})
		if err != nil {
			return report.Row{}, err
		}
		masks[i] = d.Mask
	}
	row, err := t.row(ctx, fmt.Sprintf("%s, quality %g", Adaptive, quality), prefill, math.NaN(), masks)
	row.Unit = unit
	return row, err
}

// Generated is the row of routed masks of one depth with answers that are
// generated, not teacher-forced, so it has no losses. A threshold above 0 adds
// the confidence cascade.
func (t *Table) Generated(ctx context.Context, p *router.Profile, unit string, prefill skip.Prefill, depth, threshold float64) (report.Row, error) {
	g := Generation{Prefill: prefill, Escalate: threshold}
	prompts := make([][]llama.Token, len(t.Cases))
	depths, meanDepth := make([]float64, len(t.Cases)), 0.0
	for i, c := range t.Cases {
		d, err := p.Choose(t.Prompts[i], router.Policy{Depth: depth})
		if err != nil {
			return report.Row{}, err
		}
		g.Masks = append(g.Masks, d.Mask)
		prompts[i] = c.Prompt
		depths[i] = d.Depth
		meanDepth += d.Depth / float64(len(t.Cases))
		g.MaxTokens = max(g.MaxTokens, len(c.Answers[c.Right])+1)
	}
	generated, err := t.Scorer.Generate(ctx, prompts, g)
	if err != nil {
		return report.Row{}, err
	}
	hits := make([]float64, len(generated))
	steps, escalated, cost := 0, 0, 0.0
	for i, a := range generated {
		want := t.Cases[i].Answers[t.Cases[i].Right]
		if a.Ended {
			a.Tokens = append(a.Tokens, End(t.Model))
		}
		if slices.Equal(a.Tokens, want) {
			hits[i] = 1
		}
		steps, escalated = steps+a.Steps, escalated+a.Escalated
		cost += float64(a.Steps)*(1-depths[i]/float64(t.Model.NLayer)) + float64(a.Escalated)
	}
	row := report.Row{
		Method: "routed, generated", Unit: unit, Prefill: prefill.String(), Depth: report.Figure(depth),
		Accuracy: report.Figure(Mean(hits)), MeanDepth: report.Figure(meanDepth),
		Cost: report.Figure(cost / float64(steps)), Escalated: report.Figure(float64(escalated) / float64(steps)),
	}
	if threshold > 0 {
		row.Method = fmt.Sprintf("%s %g", Cascade, threshold)
	}
	low, high := Bootstrap(hits, t.Seed)
	row.AccuracyLow, row.AccuracyHigh = &low, &high
	return row, nil
}

// score measures all cases under a mask, once.
func (t *Table) score(ctx context.Context, mask skip.Mask, prefill skip.Prefill) ([]Score, error) {
	if mask.IsEmpty() {
		prefill = skip.MaskedPrefill // it is the same
	}
	key := scored{mask, prefill}
	if scores, ok := t.scores[key]; ok {
		return scores, nil
	}
	scores, err := t.Scorer.Score(ctx, t.Cases, mask, prefill)
	if err != nil {
		return nil, err
	}
	if t.scores == nil {
		t.scores = map[scored][]Score{}
	}
	t.scores[key] = scores
	return scores, nil
}

// row measures one mask for each case.
func (t *Table) row(ctx context.Context, method string, prefill skip.Prefill, depth float64, masks []skip.Mask) (report.Row, error) {
	n := len(t.Cases)
	hits, losses, chosen := make([]float64, n), make([]float64, n), make([]Score, n)
	differences := make([]Difference, n)
	sizes := skip.SizesOf(t.Model.Tensors, t.Model.NLayer)
	meanDepth, ratio := 0.0, 0.0
	for mask, of := range byMask(masks) {
		scores, err := t.score(ctx, mask, prefill)
		if err != nil {
			return report.Row{}, err
		}
		var cases []Case
		for _, i := range of {
			chosen[i], losses[i] = scores[i], scores[i].Loss
			cases = append(cases, t.Cases[i])
		}
		if mask.IsEmpty() {
			for _, i := range of {
				differences[i] = Difference{Agreement: 1}
			}
		} else {
			found, err := t.Scorer.Compare(ctx, cases, mask, prefill)
			if err != nil {
				return report.Row{}, err
			}
			for k, i := range of {
				differences[i] = found[k]
			}
		}
		share, err := t.time(mask)
		if err != nil {
			return report.Row{}, err
		}
		weight := float64(len(of)) / float64(n)
		meanDepth += weight * sizes.Depth(mask)
		ratio += weight * share
		if t.Progress != nil {
			t.done++
			t.Progress(t.done)
		}
	}
	var kl, agreement float64
	for i, c := range t.Cases {
		hits[i] = hit(c, chosen[i])
		kl += differences[i].KL / float64(n)
		agreement += differences[i].Agreement / float64(n)
	}
	low, high := Bootstrap(hits, t.Seed)
	return report.Row{
		Method: method, Prefill: prefill.String(), Depth: report.Figure(depth), Cost: report.Figure(1 - meanDepth/float64(t.Model.NLayer)),
		Accuracy: report.Figure(Mean(hits)), AccuracyLow: &low, AccuracyHigh: &high, Loss: report.Figure(Mean(losses)),
		KL: &kl, Agreement: &agreement, MeanDepth: &meanDepth, Speedup: report.Figure(1 / ratio),
	}, nil
}

// hit is 1 for a right answer: the likeliest choice, or an exact free answer.
func hit(c Case, s Score) float64 {
	if len(c.Answers) > 1 && s.Choice() == c.Right || len(c.Answers) == 1 && s.Exact {
		return 1
	}
	return 0
}

// byMask lists the cases of each mask.
func byMask(masks []skip.Mask) map[skip.Mask][]int {
	of := map[skip.Mask][]int{}
	for i, m := range masks {
		of[m] = append(of[m], i)
	}
	return of
}

// time is a token's decode time under a mask as a share of the whole model's,
// measured in turns with it, with the model's default number of threads.
func (t *Table) time(mask skip.Mask) (float64, error) {
	if mask.IsEmpty() {
		return 1, nil
	}
	if share, ok := t.speed[mask]; ok {
		return share, nil
	}
	c, err := t.Model.NewContext(&llama.ContextOptions{NCtx: 256})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	b, err := llama.NewBatch(1, nil)
	if err != nil {
		return 0, err
	}
	defer b.Close()
	decode := func(m skip.Mask) (float64, error) {
		c.Clear()
		var start time.Time
		for pos := range speedPrompt + speedSteps {
			if pos == speedPrompt {
				start = time.Now()
			}
			b.Clear()
			if err := b.Add(t.Cases[0].Prompt[pos%len(t.Cases[0].Prompt)], pos, true, 0); err != nil {
				return 0, err
			}
			if err := c.Decode(b, m); err != nil {
				return 0, err
			}
		}
		return time.Since(start).Seconds(), nil
	}
	var shares []float64
	for range speedRounds {
		whole, err := decode(skip.Mask{})
		if err != nil {
			return 0, err
		}
		masked, err := decode(mask)
		if err != nil {
			return 0, err
		}
		shares = append(shares, masked/whole)
	}
	slices.Sort(shares)
	if t.speed == nil {
		t.speed = map[skip.Mask]float64{}
	}
	t.speed[mask] = shares[len(shares)/2]
	return t.speed[mask], nil
}
