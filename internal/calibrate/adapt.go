package calibrate

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// What a check of a profile looks at.
const (
	checkTime    = 45 * time.Second // for all; the last stage may take somewhat longer
	answerShare  = 0.3              // of it goes into the whole model's answers
	checkChunk   = 8                // prompts that are answered at once, and at least
	checkPrompts = 96               // at most
	checkAnswer  = 24               // tokens of an answer at most
)

// Adapted is a profile as a check found it on a model.
type Adapted struct {
	Profile *router.Profile // with the thresholds, the speed and the model of the check
	Prompts int             // that were looked at
	Took    time.Duration
	Before  router.Defaults
}

// String says what the check found, in one sentence.
func (a *Adapted) String() string {
	d := a.Profile.Defaults
	text := fmt.Sprintf("checked with %d prompts in %.0f s: ", a.Prompts, a.Took.Seconds())
	if now, ok := d.EscalationFor(d.Quality); ok && d.Prefill == skip.FullPrefill {
		text += fmt.Sprintf("tokens below %g are decided by the whole model", now.Threshold)
		if before, ok := a.Before.EscalationFor(d.Quality); ok && before != now {
			text += fmt.Sprintf(" (before: %g)", before.Threshold)
		}
	} else {
		text += fmt.Sprintf("masks are expected to keep %.3g of a token's probability", d.Quality)
		if a.Before.Quality != d.Quality {
			text += fmt.Sprintf(" (before: %.3g)", a.Before.Quality)
		}
	}
	if d.Off {
		return text + fmt.Sprintf("; decoding is %.2f times as fast here, so chat and run use the whole model unless asked to route", d.Speed)
	}
	return text + fmt.Sprintf("; decoding is %.2f times as fast", d.Speed)
}

// Adapt checks a profile, open for m, on m: its masks and its router stay, the
// thresholds of its cascade and its speed are measured anew, with a few prompts that
// the whole model answers. That takes at most about a minute on a model that a laptop
// runs. For a profile that was made on another quantisation of m, the result is m's own.
// Of o it takes Examples, Threads, Pause, Progress and Time, 0 = 45 s.
func Adapt(ctx context.Context, m *llama.Model, p *router.Profile, o Options) (*Adapted, error) {
	if p.Router == nil {
		return nil, errors.New("the profile has sets for fixed depths alone, and nothing that could be checked")
	}
	if o.Time == 0 {
		o.Time = checkTime
	}
	if o.Progress == nil {
		o.Progress = func(string, int, int) {}
	}
	q := *p
	q.Features = nil // stay p's
	r := &run{
		Options: o, start: time.Now(), model: m, sizes: search.SizesOf(m.Tensors, m.NLayer), tokens: map[scored][]score.TokenScore{},
		features: p.Features, candidates: p.Candidates, tasks: p.Tasks,
	}
	r.Prefill, r.Quality, r.Answer, r.Depths = p.Defaults.Prefill, p.Defaults.Quality, checkAnswer, depthsOf(p.Candidates)
	var err error
	if q.Model, err = router.FingerprintOf(m.Path); err != nil {
		return nil, err
	}
	if r.scorer, err = score.NewScorer(m, r.scoring()); err != nil {
		return nil, err
	}
	defer r.scorer.Close()
	if err := r.answerSome(ctx); err != nil {
		return nil, err
	}
	r.sample = search.All(len(r.cases))
	if r.Prefill == skip.FullPrefill {
		q.Defaults.Escalate = nil
		if err := r.scoreRouted(ctx, &q); err != nil {
			return nil, err
		}
		if err := r.escalation(ctx, &q); err != nil {
			return nil, err
		}
	} else if err := r.requality(ctx, p, &q); err != nil {
		return nil, err
	}
	q.Features = p.Features // to choose by
	saved, err := r.savingOf(ctx, &q, r.sample)
	q.Features = nil
	if err != nil {
		return nil, err
	}
	q.Defaults.Speed, q.Defaults.Off = saved.speed, saved.speed < leastSpeedup
	facts := []router.Note{{Key: "checked with", Value: fmt.Sprintf("%d prompts", len(r.cases))}}
	if p.Travelled(q.Model) {
		facts = append(facts, router.Note{Key: "made on", Value: p.Model.String() + ", another quantisation"})
	}
	q.Provenance = slices.Clone(p.Provenance)
	for _, f := range facts {
		q.Provenance = slices.DeleteFunc(q.Provenance, func(old router.Note) bool { return old.Key == f.Key })
	}
	q.Provenance = append(q.Provenance, facts...)
	return &Adapted{Profile: &q, Prompts: len(r.cases), Took: r.elapsed(), Before: p.Defaults}, nil
}

// depthsOf lists the depths of candidates, those that count as one but once.
func depthsOf(candidates []router.Candidate) (depths []float64) {
	for _, c := range candidates[1:] {
		if !slices.ContainsFunc(depths, c.At) {
			depths = append(depths, c.Depth)
		}
	}
	slices.Sort(depths)
	return depths
}

// answerSome lets the whole model answer examples, spread over all there are, until
// their share of the time is over.
func (r *run) answerSome(ctx context.Context) error {
	n := min(len(r.Examples), checkPrompts)
	var some []dataset.Example
	for k := range n {
		e := r.Examples[k*len(r.Examples)/n]
		e.Answer, e.Choices = "", nil
		some = append(some, e)
	}
	rand.New(rand.NewPCG(1, 0)).Shuffle(n, func(i, j int) { some[i], some[j] = some[j], some[i] })
	r.Examples = some
	var err error
	if r.cases, err = score.Encode(r.model, some); err != nil {
		return err
	}
	prompts, err := r.prompts(some)
	if err != nil {
		return err
	}
	if r.vectors, err = r.features.Vectors(prompts); err != nil {
		return err
	}
	all := search.All(n)
	e, err := r.engine(all)
	if err != nil {
		return err
	}
	defer e.Close()
	var told []int // whose answers have what a mask could change
	for from := 0; from < n && (from == 0 || r.elapsed() < time.Duration(answerShare*float64(r.Time))); from += checkChunk {
		r.Progress("answering", from, n)
		part := all[from:min(from+checkChunk, n)]
		own, err := r.answers(ctx, e, part)
		if err != nil {
			return err
		}
		for k, i := range part {
			if r.cases[i].Answers, r.cases[i].Own = [][]llama.Token{own[k]}, true; len(own[k]) > 1 {
				told = append(told, i)
			}
		}
	}
	r.keep(told)
	if len(r.cases) == 0 {
		return errors.New("the model answers nothing to the prompts, so the profile cannot be checked")
	}
	return nil
}

// scoreRouted scores, for the cascade, each case by the whole model and under the mask
// that the router chooses for it at each depth, and under no other.
func (r *run) scoreRouted(ctx context.Context, p *router.Profile) error {
	for from, to := 0, 0; from < len(r.cases); from = to {
		to = r.chunkFrom(from)
		wanted := map[skip.Mask][]int{{}: search.All(to - from)}
		for _, depth := range r.Depths {
			group := r.escalating(depth)
			if len(group) == 0 {
				continue
			}
			for i := from; i < to; i++ {
				mask := r.candidates[r.routed(p, group, i)].Mask
				wanted[mask] = append(wanted[mask], i-from)
			}
		}
		n := 0
		for mask, some := range wanted {
			r.Progress("checking masks", from*len(wanted)+n*(to-from), len(r.cases)*len(wanted))
			n++
			scores, err := r.scoreChunk(ctx, r.cases[from:to], mask, some)
			if err != nil {
				return err
			}
			for k, s := range scores {
				r.tokens[scored{from + some[k], mask}] = s.Tokens
			}
		}
	}
	return nil
}

// requality makes the default quality stricter where masks that are chosen by it lose
// more than it allows.
func (r *run) requality(ctx context.Context, p, q *router.Profile) error {
	lost, allowed := 0.0, -math.Log(p.Defaults.Quality)
	for i := range r.cases {
		r.Progress("checking masks", i, len(r.cases))
		d, err := p.ChooseBy(r.vectors[i], router.Policy{})
		if err != nil {
			return err
		}
		if d.Candidate == 0 {
			continue
		}
		tokens, err := r.tokensOf(ctx, i, d.Mask)
		if err != nil {
			return err
		}
		for _, t := range tokens {
			lost += t.KL / float64(len(tokens)*len(r.cases))
		}
	}
	if lost > allowed && allowed > 0 {
		q.Defaults.Quality = math.Exp(-allowed * allowed / lost)
	}
	return nil
}
