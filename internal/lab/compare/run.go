package compare

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/lab/report"
	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// ErrNothing is returned when there are no prompts, or no ways to compare.
var ErrNothing = errors.New("nothing to compare")

// Way is one way to run a model.
type Way struct {
	Name    string
	Profile string         // file that it routes by; "" = a mask set by hand
	Engine  *gallop.Engine // Run does not close it
	Request gallop.Request // how prompts are answered; its Messages come first

	plan gallop.Plan // of some prompt
}

// Stock is the name of the whole model's column.
const Stock = "stock"

// Options says how to compare. nil and zero are the defaults.
type Options struct {
	// Rounds is how often each way answers each prompt; the medians of the times
	// count. 0 = 1.
	Rounds int

	Threads int // of the engines; 0 = the model's default

	// Progress, when set, is told after each prompt how many are done.
	Progress func(stage string, done, total int)
}

// Run answers the examples' prompts with the whole model and in each of the
// ways. Prompts of benchmarks are asked as a user would, too. The whole model
// takes its settings from the first way. The error wraps [ErrNothing], ctx's
// own, or one of packages gallop, score and llama.
func Run(ctx context.Context, m *llama.Model, ways []Way, examples []dataset.Example, opts *Options) (*Result, error) {
	if len(ways) == 0 || len(examples) == 0 {
		return nil, fmt.Errorf("%w: %d prompts and %d ways beside stock", ErrNothing, len(examples), len(ways))
	}
	var o Options
	if opts != nil {
		o = *opts
	}
	o.Rounds = max(o.Rounds, 1)
	if o.Progress == nil {
		o.Progress = func(string, int, int) {}
	}
	stock := Way{Name: Stock, Engine: ways[0].Engine, Request: ways[0].Request}
	ways = slices.Concat([]Way{stock}, ways)
	for i := range ways {
		probe := ways[i].Request
		probe.Messages = []gallop.Message{{Role: "user", Content: "x"}}
		var err error
		if ways[i].plan, err = ways[i].Engine.Plan(ctx, probe); err != nil {
			return nil, fmt.Errorf("%s: %w", ways[i].Name, err)
		}
	}
	ways[0].beWhole()

	r := &Result{Settings: settings(m, ways[0], examples, &o), Prompts: make([]Prompt, len(examples))}
	for _, w := range ways {
		r.Ways = append(r.Ways, column(w))
	}
	cases, err := r.answer(ctx, m, ways, examples, &o)
	if err != nil {
		return nil, err
	}
	if err := r.measure(ctx, m, ways, cases, &o); err != nil {
		return nil, err
	}
	r.sum()
	return r, nil
}

// beWhole makes a way the whole model alone; its other settings stay.
func (w *Way) beWhole() {
	w.plan = gallop.Plan{Prefill: w.plan.Prefill}
	w.Request.Skip, w.Request.Shortlist = gallop.Nothing().Prefill(w.plan.Prefill), -1
	w.Request.Lossless, w.Request.Drafts = false, nil
}

// answer fills in the answers and their speeds. cases (len(examples),) are the
// prompts with stock's answers, in tokens.
func (r *Result) answer(ctx context.Context, m *llama.Model, ways []Way, examples []dataset.Example, o *Options) ([]score.Case, error) {
	for _, w := range ways {
		if err := w.warmUp(ctx, examples[0]); err != nil {
			return nil, fmt.Errorf("%s: %w", examples[0].Where, err)
		}
	}
	sizes := search.SizesOf(m.Tensors, m.NLayer)
	cases := make([]score.Case, len(examples))
	for i, e := range examples {
		runs := make([][]timed, len(ways)) // of each way, a round each
		for round := range o.Rounds {
			for k := range ways {
				w := (i + round + k) % len(ways)
				t, err := ways[w].ask(ctx, e, nil)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", e.Where, err)
				}
				runs[w] = append(runs[w], t)
			}
		}
		r.Prompts[i] = newPrompt(e)
		for w := range ways {
			t := usual(runs[w])
			r.Prompts[i].Answers = append(r.Prompts[i].Answers, newAnswer(t, m.NLayer, sizes.Depth(t.Plan.Mask), shortlistOf(ways)))
			if w == 0 {
				var err error
				if cases[i], err = ways[w].newCase(t, e, score.End(m)); err != nil {
					return nil, fmt.Errorf("%s: %w", e.Where, err)
				}
			}
		}
		r.Prompts[i].relate()
		o.Progress("answering", i+1, len(examples))
	}
	return cases, nil
}

// timed is an answer and how long it took.
type timed struct {
	gallop.Answer
	total time.Duration
	first time.Duration // until its first piece
}

// usual is the first of some answers to the same prompt with the medians of
// their times, that of decoding for each token: sampled answers differ in length.
func usual(runs []timed) timed {
	t := runs[0]
	steps := func(t timed) time.Duration { return time.Duration(max(t.Usage.Generated-1, 1)) }
	medianOf := func(of func(t timed) time.Duration) time.Duration {
		all := make([]float64, len(runs))
		for i, t := range runs {
			all[i] = float64(of(t))
		}
		return time.Duration(stats.Median(all))
	}
	t.total = medianOf(func(t timed) time.Duration { return t.total })
	t.first = medianOf(func(t timed) time.Duration { return t.first })
	t.Timing.Routing = medianOf(func(t timed) time.Duration { return t.Timing.Routing })
	t.Timing.Prefill = medianOf(func(t timed) time.Duration { return t.Timing.Prefill })
	t.Timing.Decode = steps(t) * medianOf(func(t timed) time.Duration { return t.Timing.Decode / steps(t) })
	return t
}

// newCase is an example's prompt with its answer in tokens; without an answer where none
// was decoded.
func (w Way) newCase(t timed, e dataset.Example, end llama.Token) (c score.Case, err error) {
	messages := w.messages(e)
	messages = slices.Delete(messages, len(w.Request.Messages), len(w.Request.Messages)+t.Forgotten)
	text, err := w.Engine.Model().Render(llama.Conversation{Messages: messages, Answer: true})
	if err != nil {
		return c, err
	}
	if c.Prompt, err = w.Engine.Model().Vocab.TokenizeText(text); err != nil {
		return c, err
	}
	said := slices.Clone(t.Tokens[:max(len(t.Tokens)-1, 0)]) // the last one was not decoded
	if t.Finish == gallop.FinishStop {
		said = append(said, end)
	}
	if len(said) > 0 {
		c.Answers = [][]llama.Token{said}
	}
	return c, nil
}

// warmUp generates one token, so that what happens once, such as reading the
// weights from disk, counts for no answer.
func (w Way) warmUp(ctx context.Context, e dataset.Example) error {
	one, cancel := context.WithCancel(ctx)
	defer cancel()
	if _, err := w.ask(one, e, cancel); err != nil && one.Err() == nil {
		return err
	}
	return ctx.Err()
}

// ask answers an example's prompt from nothing. onFirst is called at the first
// piece of the answer, unless it is nil.
func (w Way) ask(ctx context.Context, e dataset.Example, onFirst func()) (t timed, err error) {
	r := w.Request
	r.Messages, r.NoCache = w.messages(e), true
	start := time.Now()
	for delta, err := range w.Engine.Stream(ctx, r) {
		if t.first == 0 && delta.Text != "" {
			t.first = time.Since(start)
			if onFirst != nil {
				onFirst()
			}
		}
		if delta.Answer != nil {
			t.Answer = *delta.Answer
		}
		if err != nil {
			return t, err
		}
	}
	t.total = time.Since(start)
	t.first = cmp.Or(t.first, t.total)
	return t, nil
}

// messages is an example as a conversation.
func (w Way) messages(e dataset.Example) []gallop.Message {
	return append(slices.Concat(w.Request.Messages, earlier(e)), gallop.Message{Role: "user", Content: e.Prompt})
}

// earlier is what was said before an example's prompt.
func earlier(e dataset.Example) []llama.Message { return e.Messages[:max(len(e.Messages)-1, 0)] }

// leastNCtx is the room for prompts and answers that are measured together.
const leastNCtx = 2048

// measureSequences is how many of them there are at once.
const measureSequences = 16

// measure fills in how far the ways are from stock at the tokens of its answers.
func (r *Result) measure(ctx context.Context, m *llama.Model, ways []Way, cases []score.Case, o *Options) error {
	room := leastNCtx
	for _, c := range cases {
		if c.Answers != nil {
			room = max(room, len(c.Prompt)+len(c.Answers[0]))
		}
	}
	scorer, err := score.NewScorer(m, &score.Options{NCtx: room, Sequences: measureSequences, Threads: o.Threads, Shortlist: shortlistOf(ways)})
	if err != nil {
		return err
	}
	defer scorer.Close()
	done, total := 0, len(cases)*(len(ways)-1)
	for w := 1; w < len(ways); w++ {
		var masks []skip.Mask          // in order of appearance
		under := map[skip.Mask][]int{} // prompts
		for i, c := range cases {
			a := &r.Prompts[i].Answers[w]
			switch {
			case c.Answers == nil:
				done++
			case a.Skip.IsEmpty():
				a.Agreement, a.KL = report.Figure(1), report.Figure(0)
				done++
			default:
				if under[a.Skip] == nil {
					masks = append(masks, a.Skip)
				}
				under[a.Skip] = append(under[a.Skip], i)
			}
		}
		for _, mask := range masks {
			of := under[mask]
			part := make([]score.Case, len(of))
			for k, i := range of {
				part[k] = cases[i]
			}
			_, all, err := scorer.Compare(ctx, part, []skip.Mask{mask}, ways[w].plan.Prefill)
			if err != nil {
				return fmt.Errorf("%s: %w", ways[w].Name, err)
			}
			for k, i := range of {
				r.Prompts[i].Answers[w].differ(all[0][k], ways[w].plan.Escalate)
			}
			done += len(of)
			o.Progress("measuring agreement", done, total)
		}
	}
	return nil
}

// shortlistOf is the vocabulary shortlist of those ways that have one; nil = none has.
func shortlistOf(ways []Way) *llama.Shortlist {
	for _, w := range ways {
		if list := w.Engine.Shortlist().List; list != nil {
			return list
		}
	}
	return nil
}

// differ notes a difference at stock's answer. Tokens that escalation leaves to
// the whole model do not differ.
func (a *Answer) differ(d score.Difference, escalate float64) {
	n := float64(len(d.Tokens))
	var agreed, kl float64
	for _, t := range d.Tokens {
		if t.Top < escalate {
			agreed++
			continue
		}
		kl += t.KL
		if t.Agree {
			agreed++
		}
	}
	a.Agreement, a.KL = report.Figure(agreed/n), report.Figure(kl/n)
}

// newPrompt is an example without its answers.
func newPrompt(e dataset.Example) Prompt {
	p := Prompt{Prompt: e.Prompt, Earlier: earlier(e), Task: e.Task, Want: e.Answer}
	if e.Choices != nil {
		p.Want = e.Choices[e.Right]
	}
	p.Want = strings.TrimSpace(p.Want)
	return p
}
