package calibrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

const (
	// timedMasks is how many of the masks that prompts get are timed: those that the most get.
	timedMasks = 4
	// timedContext is the context of the timing, in tokens, and timedPrompt how many of
	// them are a prompt.
	timedContext, timedPrompt = 256, 64
	// timedRun is how many tokens are decoded in a row one way; the first has a graph to
	// build and is not counted.
	timedRun = 6
	// leastRounds and mostRounds are how often all ways take turns, and timedFor after what
	// time that ends.
	leastRounds, mostRounds, timedFor = 5, 100, 3 * time.Second
)

// timing decodes tokens by the whole model and under masks, in turns, and keeps how long
// each took.
type timing struct {
	c      *llama.Context
	b      *llama.Batch
	prompt []llama.Token
	pos    int
}

func newTiming(m *llama.Model, threads int, prompt []llama.Token) (*timing, error) {
	c, err := m.NewContext(&llama.ContextOptions{NCtx: timedContext, NBatch: timedPrompt, Threads: threads})
	if err != nil {
		return nil, err
	}
	b, err := llama.NewBatch(timedPrompt, nil)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &timing{c: c, b: b, prompt: prompt[:min(len(prompt), timedPrompt)]}, nil
}

func (t *timing) Close() error { return errors.Join(t.b.Close(), t.c.Close()) }

// decode appends tokens, the last with an output. A full context starts anew with the prompt.
func (t *timing) decode(tokens []llama.Token, mask skip.Mask) error {
	if t.pos == 0 || t.pos+len(tokens) > t.c.NCtx() {
		t.c.Clear()
		t.pos = 0
		tokens = t.prompt
	}
	t.b.Clear()
	for i, token := range tokens {
		if err := t.b.Add(token, t.pos+i, i == len(tokens)-1, 0); err != nil {
			return err
		}
	}
	if err := t.c.Decode(t.b, mask); err != nil {
		return err
	}
	t.pos += len(tokens)
	return nil
}

// next decodes one token, and looks at its probability as escalation does.
func (t *timing) next(mask skip.Mask, escalate bool) (took time.Duration, err error) {
	start := time.Now()
	if err := t.decode(t.prompt[len(t.prompt)-1:], mask); err != nil {
		return 0, err
	}
	if escalate {
		logits, err := t.c.Logits(-1)
		if err != nil {
			return 0, err
		}
		llama.TopProbability(logits)
	}
	return time.Since(start), nil
}

// run decodes tokens in a row and adds their times to those known.
func (t *timing) run(times []time.Duration, mask skip.Mask, escalate bool) ([]time.Duration, error) {
	for i := range timedRun {
		took, err := t.next(mask, escalate)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			times = append(times, took)
		}
	}
	return times, nil
}

// again decides the last token, decoded under mask, by the whole model, goes on under
// mask, and gives what that took beyond a token under mask whose graph is there.
func (t *timing) again(mask skip.Mask, usual time.Duration) (time.Duration, error) {
	start := time.Now()
	if err := t.c.Remove(0, t.pos-1, -1); err != nil {
		return 0, err
	}
	t.pos--
	if err := t.decode(t.prompt[len(t.prompt)-1:], skip.Mask{}); err != nil {
		return 0, err
	}
	decided := time.Since(start)
	back, err := t.next(mask, true)
	return decided + max(back-usual, 0), err
}

// speedOf measures how many times as fast as by the whole model tokens are decoded on
// this machine by prompts of which these shares get these masks, and the others the whole
// model. twice is the share of the tokens under a mask that the whole model decides again.
func (r *run) speedOf(ctx context.Context, shares map[skip.Mask]float64, twice float64) (float64, error) {
	masks := slices.SortedFunc(maps.Keys(shares), func(a, b skip.Mask) int {
		return cmp.Or(cmp.Compare(shares[b], shares[a]), cmp.Compare(a.String(), b.String()))
	})
	masks = masks[:min(len(masks), timedMasks)]
	t, err := newTiming(r.model, r.Threads, r.cases[0].Prompt)
	if err != nil {
		return 0, err
	}
	defer t.Close()
	t.c.PauseWith(r.Pause)
	defer t.c.AbortOn(ctx)()
	speed, err := t.compare(masks, shares, twice, func(done time.Duration) {
		r.Progress("timing masks", int(done.Milliseconds()), int(timedFor.Milliseconds()))
	})
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return 0, fmt.Errorf("time the masks: %w", err)
	}
	return speed, nil
}

// compare lets the whole model and the masks take turns.
func (t *timing) compare(masks []skip.Mask, shares map[skip.Mask]float64, twice float64, progress func(time.Duration)) (speed float64, err error) {
	var whole, again []time.Duration
	masked, usual := make([][]time.Duration, len(masks)), map[skip.Mask]time.Duration{}
	start := time.Now()
	for round := 0; round < leastRounds || round < mostRounds && time.Since(start) < timedFor; round++ {
		progress(time.Since(start))
		if whole, err = t.run(whole, skip.Mask{}, false); err != nil {
			return 0, err
		}
		for i, mask := range masks {
			if masked[i], err = t.run(masked[i], mask, twice > 0); err != nil {
				return 0, err
			}
			if twice == 0 {
				continue
			}
			took, err := t.again(mask, median(masked[i]))
			if err != nil {
				return 0, err
			}
			again = append(again, took)
		}
	}
	for i, mask := range masks {
		usual[mask] = median(masked[i])
	}
	second := time.Duration(0)
	if twice > 0 {
		second = median(again)
	}
	return speedup(median(whole), usual, second, shares, twice), nil
}

// speedup is how many times as fast as by the whole model prompts decode of which these
// shares get these masks. Masks that were not timed count as the mean of those that were.
func speedup(whole time.Duration, masked map[skip.Mask]time.Duration, second time.Duration, shares map[skip.Mask]float64, twice float64) float64 {
	timed, took, routed := 0.0, 0.0, 0.0
	for mask, share := range shares {
		routed += share
		if t, ok := masked[mask]; ok {
			timed += share
			took += share * (t.Seconds() + twice*second.Seconds())
		}
	}
	return whole.Seconds() / ((1-routed)*whole.Seconds() + routed*took/timed)
}

func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}
