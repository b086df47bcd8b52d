package compare

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gallop-llm/gallop/internal/chat"
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
	Profile string // file that it routes by; "" = a mask set by hand
	Options chat.Options
}

// escalate is the way's cascade threshold; 0 = no cascade.
func (w Way) escalate() float64 {
	if r := w.Options.Routing; r != nil && r.Escalate > 0 {
		return r.Escalate
	}
	return w.Options.Escalate
}

// Stock is the name of the whole model's column.
const Stock = "stock"

// Options says how to compare. nil and zero are the defaults.
type Options struct {
	// Rounds is how often each way answers each prompt; the medians of the times
	// count. 0 = 1.
	Rounds int

	// Progress, when set, is told after each prompt how many are done.
	Progress func(stage string, done, total int)
}

// Run answers the examples' prompts with the whole model and in each of the
// ways. Prompts of benchmarks are asked as a user would, too. The whole model
// takes its settings from the first way. The error wraps [ErrNothing], ctx's
// own, or one of packages chat, eval and llama.
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
	stock := Way{Name: Stock, Options: ways[0].Options}
	stock.Options.Mask, stock.Options.Routing, stock.Options.Escalate, stock.Options.Shortlist = skip.Mask{}, nil, 0, nil
	ways = append([]Way{stock}, ways...)

	r := &Result{Settings: settings(m, stock.Options, examples, o.Rounds), Prompts: make([]Prompt, len(examples))}
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

// answer fills in the answers and their speeds. cases (len(examples),) are the
// prompts with stock's answers, in tokens.
func (r *Result) answer(ctx context.Context, m *llama.Model, ways []Way, examples []dataset.Example, o *Options) ([]score.Case, error) {
	sessions := make([]*chat.Session, len(ways))
	for i := range ways {
		s, err := chat.New(m, &ways[i].Options)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", ways[i].Name, err)
		}
		defer s.Close()
		sessions[i] = s
		if err := warmUp(ctx, s, examples[0]); err != nil {
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
				t, err := ask(ctx, sessions[w], e, nil)
				if err == nil && t.Finish == chat.FinishCancelled {
					err = ctx.Err()
				}
				if err != nil {
					return nil, fmt.Errorf("%s: %w", e.Where, err)
				}
				runs[w] = append(runs[w], t)
			}
		}
		r.Prompts[i] = newPrompt(e)
		for w := range ways {
			t := usual(runs[w])
			r.Prompts[i].Answers = append(r.Prompts[i].Answers, newAnswer(t, m.NLayer, sizes.Depth(t.Mask), shortlistOf(ways)))
			if w == 0 {
				cases[i] = newCase(t, score.End(m))
			}
		}
		r.Prompts[i].relate()
		o.Progress("answering", i+1, len(examples))
	}
	return cases, nil
}

// timed is an answer and how long it took.
type timed struct {
	chat.Answer
	total  time.Duration
	first  time.Duration // until its first piece
	tokens []llama.Token // as [chat.Session.Tokens]
}

// usual is the first of some answers to the same prompt with the medians of
// their times, that of decoding for each token: sampled answers differ in length.
func usual(runs []timed) timed {
	t := runs[0]
	steps := func(t timed) time.Duration { return time.Duration(max(t.Tokens-1, 1)) }
	medianOf := func(of func(t timed) time.Duration) time.Duration {
		all := make([]float64, len(runs))
		for i, t := range runs {
			all[i] = float64(of(t))
		}
		return time.Duration(stats.Median(all))
	}
	t.total = medianOf(func(t timed) time.Duration { return t.total })
	t.first = medianOf(func(t timed) time.Duration { return t.first })
	t.Routing = medianOf(func(t timed) time.Duration { return t.Routing })
	t.Prefill = medianOf(func(t timed) time.Duration { return t.Prefill })
	t.Decode = steps(t) * medianOf(func(t timed) time.Duration { return t.Decode / steps(t) })
	return t
}

// newCase is a prompt with its answer in tokens; without an answer where none
// was decoded.
func newCase(t timed, end llama.Token) score.Case {
	c := score.Case{Prompt: t.tokens[:t.PromptTokens]}
	said := t.tokens[t.PromptTokens:]
	if t.Finish == chat.FinishStop {
		said = append(said, end)
	}
	if len(said) > 0 {
		c.Answers = [][]llama.Token{said}
	}
	return c
}

// warmUp generates one token, so that what happens once, such as reading the
// weights from disk, counts for no answer.
func warmUp(ctx context.Context, s *chat.Session, e dataset.Example) error {
	one, cancel := context.WithCancel(ctx)
	defer cancel()
	_, err := ask(one, s, e, cancel)
	return cmp.Or(err, ctx.Err())
}

// ask answers an example's prompt from nothing. onFirst is called at the first
// piece of the answer, unless it is nil.
func ask(ctx context.Context, s *chat.Session, e dataset.Example, onFirst func()) (t timed, err error) {
	s.Reset(earlier(e)...)
	s.Clear()
	start := time.Now()
	t.Answer, err = s.Ask(ctx, e.Prompt, func(string) {
		if t.first == 0 {
			t.first = time.Since(start)
			if onFirst != nil {
				onFirst()
			}
		}
	})
	t.total = time.Since(start)
	t.first = cmp.Or(t.first, t.total)
	t.tokens = s.Tokens()
	return t, err
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
	scorer, err := score.NewScorer(m, &score.Options{NCtx: room, Sequences: measureSequences, Threads: ways[0].Options.Context.Threads, Shortlist: shortlistOf(ways)})
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
			_, all, err := scorer.Compare(ctx, part, []skip.Mask{mask}, ways[w].Options.Prefill)
			if err != nil {
				return fmt.Errorf("%s: %w", ways[w].Name, err)
			}
			for k, i := range of {
				r.Prompts[i].Answers[w].differ(all[0][k], ways[w].escalate())
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
		if l := w.Options.Shortlist; l != nil && l.Made() != nil {
			return l.Made().List
		}
	}
	return nil
}

// differ notes a difference at stock's answer. Tokens that the cascade leaves to
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
