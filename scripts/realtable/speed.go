package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/gallop-llm/gallop/internal/shortlist"
	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// How speed is measured: after a prompt, the same tokens are decoded one at a time by each
// variant in turn, in rounds.
const (
	steps         = 16 // tokens that are timed, after one that is not: a new mask needs a new graph
	runnerContext = 512
)

// runner decodes one text.
type runner struct {
	c      *llama.Context
	b      *llama.Batch
	prompt []llama.Token
	answer []llama.Token // (steps+1,)
}

// newRunner takes a worked answer and decodes its prompt by the whole model, with the
// model's default threads.
func (l *lab) newRunner() (*runner, error) {
	r := &runner{}
	for _, e := range l.calibrations {
		if a := e.Answers[e.Right]; len(a) > steps && len(e.Prompt)+len(a) > len(r.prompt)+len(r.answer) {
			r.prompt, r.answer = e.Prompt, a
		}
	}
	if r.answer == nil {
		return nil, fmt.Errorf("%w: no calibration example has an answer of more than %d tokens to decode; take more with -calibration", errData, steps)
	}
	r.answer = r.answer[:steps+1]
	var err error
	if r.c, err = l.model.NewContext(&llama.ContextOptions{NCtx: runnerContext, NBatch: longest}); err != nil {
		return nil, err
	}
	if r.b, err = llama.NewBatch(longest, nil); err != nil {
		return nil, errors.Join(err, r.c.Close())
	}
	for i, t := range r.prompt {
		err = errors.Join(err, r.b.Add(t, i, i == len(r.prompt)-1, 0))
	}
	if err == nil {
		err = r.c.Decode(r.b, skip.Mask{})
	}
	if err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Close frees what decodes. Further calls do nothing.
func (r *runner) Close() error { return errors.Join(r.b.Close(), r.c.Close()) }

// decode puts one token behind pos tokens.
func (r *runner) decode(t llama.Token, pos int, mask skip.Mask) error {
	r.b.Clear()
	if err := r.b.Add(t, pos, true, 0); err != nil {
		return err
	}
	return r.c.Decode(r.b, mask)
}

// run decodes the answer under mask and gives the seconds that its tokens took but the
// first. With a threshold, tokens below it are decoded again by the whole model; again
// counts them. each sees every token's logits, outside of the time; it may be nil.
func (r *runner) run(mask skip.Mask, threshold float64, each func(i int, logits []float32)) (seconds float64, again int, err error) {
	if err := r.c.Remove(0, len(r.prompt), -1); err != nil {
		return 0, 0, err
	}
	for i, t := range r.answer {
		pos := len(r.prompt) + i
		start := time.Now()
		if err := r.decode(t, pos, mask); err != nil {
			return 0, 0, err
		}
		if threshold > 0 && !mask.WithShortlist(0).IsEmpty() {
			logits, err := r.c.Logits(0)
			if err != nil {
				return 0, 0, err
			}
			if _, p := llama.TopProbability(logits); p < threshold {
				if err := r.c.Remove(0, pos, -1); err != nil {
					return 0, 0, err
				}
				if err := r.decode(t, pos, skip.Mask{}.WithShortlist(mask.Shortlist())); err != nil {
					return 0, 0, err
				}
				if i > 0 {
					again++
				}
			}
		}
		if i > 0 {
			seconds += time.Since(start).Seconds()
		}
		if each != nil {
			logits, err := r.c.Logits(0)
			if err != nil {
				return 0, 0, err
			}
			each(i, logits)
		}
	}
	return seconds, again, nil
}

// likeliest collects the likeliest token at each place.
func (r *runner) likeliest(mask skip.Mask, threshold float64) ([]llama.Token, error) {
	var tokens []llama.Token
	_, _, err := r.run(mask, threshold, func(_ int, logits []float32) {
		t, _ := llama.TopProbability(logits)
		tokens = append(tokens, t)
	})
	return tokens, err
}

// leastTime is what a time below it, or below zero, is taken for: in milliseconds.
const leastTime = 1e-3

// halfTimes measures how many milliseconds of a token the attention and the feed-forward
// halves of all layers take.
func (l *lab) halfTimes(ctx context.Context) (ms [2]float64, err error) {
	r, err := l.newRunner()
	if err != nil {
		return ms, err
	}
	defer r.Close()
	var without [2]skip.Mask
	n := 0
	for layer := 1; layer < l.model.NLayer-1; layer += 2 {
		without[0] = without[0].With(layer, skip.Attention)
		without[1] = without[1].With(layer, skip.FeedForward)
		n++
	}
	var rounds [2][]float64
	for range l.rounds {
		if ctx.Err() != nil {
			return ms, ctx.Err()
		}
		all, _, err := r.run(skip.Mask{}, 0, nil)
		if err != nil {
			return ms, err
		}
		for h, mask := range without {
			some, _, err := r.run(mask, 0, nil)
			if err != nil {
				return ms, err
			}
			rounds[h] = append(rounds[h], (all-some)/steps*1000*float64(l.model.NLayer)/float64(n))
		}
	}
	for h := range ms {
		ms[h] = stats.Median(rounds[h])
		if ms[h] < leastTime {
			l.progress("other work disturbs: the times of halves came out as %.3f ms, which KnapSpec takes for %g; measure it anew on a quiet machine", ms[h], leastTime)
			ms[h] = leastTime
		}
	}
	return ms, nil
}

// measuredWays are the ways whose speed stands for an entry's: those of some examples, at even
// distances.
func (l *lab) measuredWays(e entry) []way {
	ways, _ := e.weights()
	if len(ways) <= l.ways {
		return ways
	}
	var some []way
	for i := range l.ways {
		some = append(some, e.ways[(2*i+1)*len(e.ways)/(2*l.ways)])
	}
	return some
}

// measureSpeeds measures the ways of all entries that have not been, until the time is up; done is
// false then.
func (l *lab) measureSpeeds(ctx context.Context, entries []entry, limit time.Duration) (done bool, err error) {
	start, end := time.Now(), time.Now().Add(limit)
	var open []way
	seen := map[way]bool{}
	for _, e := range entries {
		for _, w := range l.measuredWays(e) {
			w.prefill = skip.FullPrefill // a token's time is the same either way
			if _, known := l.Speeds[w.String()]; !known && !seen[w] {
				seen[w], open = true, append(open, w)
			}
		}
	}
	if len(open) == 0 {
		return true, nil
	}
	r, err := l.newRunner()
	if err != nil {
		return false, err
	}
	defer r.Close()
	learner, err := shortlist.Learned(ctx, l.model, func(text string) { l.progress("%s", text) })
	if err != nil {
		return false, err
	}
	size := 0
	if learner != nil {
		defer learner.Close()
		made, err := learner.Use(r.c)
		if err != nil {
			return false, err
		}
		if made != nil {
			size = made.Size
		}
	}
	for i, w := range open {
		if limit > 0 && time.Now().After(end) || ctx.Err() != nil {
			l.progress("%d of %d speeds are left", len(open)-i, len(open))
			return false, ctx.Err()
		}
		s, err := l.speed(r, w, size)
		if err != nil {
			return false, fmt.Errorf("speed of %q: %w", w, err)
		}
		l.Speeds[w.String()] = s
		l.speeds.Took += time.Since(start).Seconds()
		start = time.Now()
		if err := l.keepSpeeds(); err != nil {
			return false, err
		}
	}
	return true, nil
}

// speed measures a way in turns with stock, with and without a shortlist of this size.
func (l *lab) speed(r *runner, w way, size int) (s speed, err error) {
	before := r.c.ShortlistUse()
	if size > 0 { // which also warms up
		plain, err := r.likeliest(w.mask, w.escalate)
		if err != nil {
			return s, err
		}
		short, err := r.likeliest(w.mask.WithShortlist(size), w.escalate)
		if err != nil {
			return s, err
		}
		for i := range plain {
			if s.Of++; plain[i] == short[i] {
				s.Same++
			}
		}
	}
	again := 0
	for round := range l.rounds {
		variants := []skip.Mask{{}, w.mask, w.mask.WithShortlist(size)}
		if size == 0 {
			variants = variants[:2]
		}
		took := make([]float64, len(variants))
		for k := range variants {
			v := (k + round) % len(variants)
			threshold := w.escalate
			if v == 0 {
				threshold = 0
			}
			n := 0
			if took[v], n, err = r.run(variants[v], threshold, nil); err != nil {
				return s, err
			}
			if v == 1 {
				again += n
			}
		}
		s.Stock = append(s.Stock, steps/took[0])
		s.Ratio = append(s.Ratio, took[0]/took[1])
		if size > 0 {
			s.Short = append(s.Short, took[0]/took[2])
		}
	}
	s.Again = float64(again) / float64(l.rounds*steps)
	if use := r.c.ShortlistUse().Since(before); use.Rows > 0 {
		s.Extended = (float64(use.Exact)/float64(use.Rows) - float64(size)) / float64(l.model.Vocab.Size)
	}
	return s, nil
}

// speedOf is an entry's speed over stock's, the mean over ways of the medians of rounds:
// NaN where it was not measured. short is with the shortlist.
func (l *lab) speedOf(e entry) (ratio, short float64, same, of int, whole float64) {
	_, share := e.weights()
	ways := l.measuredWays(e)
	total := 0.0
	for _, w := range ways {
		weight := 1.0
		if len(share) <= l.ways {
			weight = share[w]
		}
		w.prefill = skip.FullPrefill
		s, known := l.Speeds[w.String()]
		if !known {
			return math.NaN(), math.NaN(), 0, 0, math.NaN()
		}
		// Times add up, not speeds.
		total += weight
		ratio += weight / stats.Median(s.Ratio)
		short += weight / stats.Median(s.Short)
		whole += weight * s.Extended
		same, of = same+s.Same, of+s.Of
	}
	return total / ratio, total / short, same, of, whole / total
}

// list says what the shortlist reads of a token's bytes; nil = the model has none yet.
func (l *lab) list() (*list, error) {
	dir, err := shortlist.Dir()
	if err != nil {
		return nil, err
	}
	learner := shortlist.Open(l.model, dir, 0, func(error) {})
	defer learner.Close()
	made := learner.Made()
	if made == nil {
		return nil, nil
	}
	matrix, err := l.model.OutputMatrix()
	if err != nil {
		return nil, err
	}
	const previewBits = 4.5 // of a number, its share of a block's scale counted
	preview := float64(matrix.NVocab*made.List.Rank) * previewBits / 8
	rows := float64(made.Size) * float64(matrix.Size) / float64(matrix.NVocab)
	return &list{Tokens: made.Size, Bytes: preview + rows, Matrix: float64(matrix.Size)}, nil
}
