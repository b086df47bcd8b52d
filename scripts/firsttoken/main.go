// Command firsttoken measures when the first token of an answer comes: with the
// default settings, that is, routed by the model's profile, beside the whole
// model alone (`--route off`), for prompts of 20, 200 and 2,000 tokens. Both ways
// use one engine and take turns, in the other order in every second pair.
//
//	go run ./scripts/firsttoken -m model.gguf
//
// A model without a profile, or whose profile does not pay, is routed by a made-up one of
// the usual size: what choosing costs does not depend on what is chosen. A line of JSON on stdout
// names every part of the time.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// result is the line of JSON.
type result struct {
	Name            string   `json:"name"`
	Profile         string   `json:"profile"` // file, or "made up"
	Threads         int      `json:"threads"`
	FirstTokenRatio float64  `json:"first_token_ratio"` // the worst of the prompts'
	Prompts         []length `json:"prompts"`
}

// length is what prompts of one length came to.
type length struct {
	PromptTokens int     `json:"prompt_tokens"`
	Pairs        int     `json:"pairs"`
	Ratio        float64 `json:"ratio"` // default over stock: median of the pairs'
	RatioLow     float64 `json:"ratio_low"`
	RatioHigh    float64 `json:"ratio_high"`
	Stock        parts   `json:"stock"`
	Default      parts   `json:"default"`
	LoopMS       float64 `json:"loop_ms,omitempty"` // decoding the prompt's tokens and sampling, and nothing else; not measured for long prompts
}

// parts are where the time to the first token goes, in milliseconds: medians.
type parts struct {
	FirstTokenMS float64 `json:"first_token_ms"`
	TemplateMS   float64 `json:"template_ms"`
	TokenizeMS   float64 `json:"tokenize_ms"`
	SamplerMS    float64 `json:"sampler_ms"`
	PrefillMS    float64 `json:"prefill_ms"`
	SampleMS     float64 `json:"sample_ms"` // and what is not named
	RoutingMS    float64 `json:"routing_ms"`
	WaitedMS     float64 `json:"waited_ms"` // of routing, between the first token and the second
}

func main() {
	var o options
	flag.StringVar(&o.model, "m", "", "GGUF file (default: the demo model)")
	flag.StringVar(&o.profile, "profile", "", "profile to route by (default: the model's if it pays, else a made-up one)")
	flag.IntVar(&o.threads, "t", 0, "threads; 0 = as `gallop run`")
	flag.DurationVar(&o.budget, "budget", 75*time.Second, "time for all pairs; one of each length is measured in any case")
	flag.IntVar(&o.pairs, "pairs", 60, "pairs of each length at most")
	flag.Parse()
	r, err := o.measure(context.Background())
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(r)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "firsttoken:", err)
		os.Exit(1)
	}
}

type options struct {
	model, profile string
	threads, pairs int
	budget         time.Duration
}

// lengths are those of the prompts in tokens, template and all.
var lengths = []int{20, 200, 2000}

// answerTokens follow each prompt, the first included: the decode before a prompt
// is one under the mask then, as in a chat.
const answerTokens = 4

// longPrompt is from how many tokens on the plain loop is left out: there is
// nothing to see beside a second of decoding.
const longPrompt = 1000

func (o *options) measure(ctx context.Context) (*result, error) {
	if _, err := libs.Load(); err != nil {
		return nil, err
	}
	if o.model == "" {
		path, err := demo.Path()
		if err != nil {
			return nil, err
		}
		o.model = path
	}
	m, err := llama.LoadModel(ctx, o.model, nil)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	e, err := o.open(m)
	if err != nil {
		return nil, err
	}
	defer e.Close()
	r := &result{Name: strings.TrimSuffix(filepath.Base(o.model), ".gguf"), Profile: o.profile, Threads: o.threads}
	if r.Threads == 0 {
		r.Threads = m.DefaultThreads()
	}
	// Short prompts first: what they leave of the time is the long ones'.
	deadline := time.Now().Add(o.budget)
	for i, n := range lengths {
		text, err := prompt(m, min(n, e.Info().Context-answerTokens))
		if err != nil {
			return nil, err
		}
		until := time.Now().Add(time.Until(deadline) / time.Duration(len(lengths)-i))
		l, err := o.pairsOf(ctx, e, text, until)
		if err != nil {
			return nil, fmt.Errorf("a prompt of %d tokens: %w", n, err)
		}
		r.Prompts = append(r.Prompts, l)
		r.FirstTokenRatio = max(r.FirstTokenRatio, l.Ratio)
		if l.PromptTokens < n/2 {
			break // longer ones do not fit either
		}
	}
	return r, nil
}

// pairsOf measures prompts of one length.
func (o *options) pairsOf(ctx context.Context, e *gallop.Engine, text string, until time.Time) (l length, err error) {
	var ratios, loops []float64
	var all [2][]gallop.Answer
	loop, err := newLoop(e, text)
	if err != nil {
		return l, err
	}
	defer loop.Close()
	for pair := -1; pair < o.pairs; pair++ { // the first reads the weights, and is not counted
		if pair > 0 && time.Now().After(until) {
			break
		}
		var both [2]gallop.Answer
		for k := range both {
			way := (k + pair + 2) % 2
			both[way], err = e.Answer(ctx, gallop.Request{
				Messages: []gallop.Message{{Role: "user", Content: text}}, Skip: []gallop.Skip{gallop.Nothing(), gallop.Routed()}[way],
				MaxTokens: answerTokens, NoCache: true,
			})
			if err != nil {
				return l, err
			}
		}
		l.PromptTokens = both[0].Usage.Prompt
		took := time.Duration(0)
		if l.PromptTokens < longPrompt {
			if took, err = loop.run(); err != nil {
				return l, err
			}
		} else if pair < 0 {
			pair++ // warm from the shorter ones
		}
		if pair < 0 {
			continue
		}
		ratios = append(ratios, both[1].Timing.FirstToken.Seconds()/both[0].Timing.FirstToken.Seconds())
		loops = append(loops, ms(took))
		for way := range both {
			all[way] = append(all[way], both[way])
		}
	}
	l.Pairs, l.Ratio, l.LoopMS = len(ratios), round(stats.Median(ratios)), round(stats.Median(loops))
	l.RatioLow, l.RatioHigh = interval(ratios)
	l.Stock, l.Default = partsOf(all[0]), partsOf(all[1])
	return l, nil
}

// interval is the 95 % confidence interval of the median, between order
// statistics: by the normal approximation, so that few values give their range.
func interval(values []float64) (low, high float64) {
	sorted := slices.Sorted(slices.Values(values))
	n := float64(len(sorted))
	out := int(max(math.Floor((n-1.96*math.Sqrt(n))/2), 0))
	return round(sorted[out]), round(sorted[len(sorted)-1-out])
}

func partsOf(answers []gallop.Answer) parts {
	of := func(part func(a gallop.Answer) time.Duration) float64 {
		var values []float64
		for _, a := range answers {
			values = append(values, ms(part(a)))
		}
		return round(stats.Median(values))
	}
	return parts{
		FirstTokenMS: of(func(a gallop.Answer) time.Duration { return a.Timing.FirstToken }),
		TemplateMS:   of(func(a gallop.Answer) time.Duration { return a.Timing.Template }),
		TokenizeMS:   of(func(a gallop.Answer) time.Duration { return a.Timing.Tokenize }),
		SamplerMS:    of(func(a gallop.Answer) time.Duration { return a.Timing.Sampler }),
		PrefillMS:    of(func(a gallop.Answer) time.Duration { return a.Timing.Prefill }),
		SampleMS: of(func(a gallop.Answer) time.Duration {
			return a.Timing.FirstToken - a.Timing.Template - a.Timing.Tokenize - a.Timing.Sampler - a.Timing.Prefill
		}),
		RoutingMS: of(func(a gallop.Answer) time.Duration { return a.Timing.Routing }),
		WaitedMS:  of(func(a gallop.Answer) time.Duration { return a.Timing.Waited }),
	}
}

func ms(d time.Duration) float64 { return d.Seconds() * 1000 }

// round leaves four digits behind the point: tenths of a microsecond.
func round(v float64) float64 { return math.Round(v*1e4) / 1e4 }

// prompt is a text of built-in prompts that has nearly n tokens with the model's
// template.
func prompt(m *llama.Model, n int) (string, error) {
	var words []string
	for _, e := range dataset.Starter() {
		words = append(words, strings.Fields(e.Prompt)...)
	}
	for len(words) < n { // a word has a token at least
		words = append(words, words...)
	}
	text := func(k int) string { return strings.Join(words[:k], " ") }
	tokens := func(k int) (int, error) {
		templated, err := m.ApplyTemplate([]llama.Message{{Role: "user", Content: text(k)}}, true)
		if err != nil {
			return 0, err
		}
		list, err := m.Vocab.Tokenize(templated, true)
		return len(list), err
	}
	low, high := 1, len(words)+1
	for high-low > 1 {
		middle := (low + high) / 2
		got, err := tokens(middle)
		if err != nil {
			return "", err
		}
		if got <= n {
			low = middle
		} else {
			high = middle
		}
	}
	return text(low), nil
}

// loop is the least that a first token takes: one decode of the prompt's tokens
// and a sampler's choice.
type loop struct {
	ctx     *llama.Context
	batch   *llama.Batch
	sampler *llama.Sampler
	tokens  []llama.Token
}

func newLoop(e *gallop.Engine, text string) (*loop, error) {
	m := e.Model()
	templated, err := m.ApplyTemplate([]llama.Message{{Role: "user", Content: text}}, true)
	if err != nil {
		return nil, err
	}
	l := &loop{}
	if l.tokens, err = m.Vocab.Tokenize(templated, true); err != nil {
		return nil, err
	}
	if l.ctx, err = m.NewContext(&llama.ContextOptions{NCtx: e.Info().Context}); err != nil {
		return nil, err
	}
	if l.batch, err = llama.NewBatch(l.ctx.NBatch(), nil); err != nil {
		l.ctx.Close()
		return nil, err
	}
	if l.sampler, err = m.NewSampler(m.Sampling()); err != nil {
		l.batch.Close()
		l.ctx.Close()
	}
	return l, err
}

func (l *loop) run() (time.Duration, error) {
	l.ctx.Clear()
	start := time.Now()
	token, err := l.decode(0, l.tokens...)
	took := time.Since(start)
	for i := 1; i < answerTokens && err == nil; i++ {
		token, err = l.decode(len(l.tokens)+i-1, token)
	}
	return took, err
}

func (l *loop) decode(pos int, tokens ...llama.Token) (llama.Token, error) {
	l.batch.Clear()
	for i, t := range tokens {
		if err := l.batch.Add(t, pos+i, i == len(tokens)-1, 0); err != nil {
			return llama.NoToken, err
		}
	}
	if err := l.ctx.Decode(l.batch, skip.Mask{}); err != nil {
		return llama.NoToken, err
	}
	return l.sampler.Sample(l.ctx, -1)
}

func (l *loop) Close() {
	l.sampler.Close()
	l.batch.Close()
	l.ctx.Close()
}

// open starts an engine that routes by the model's profile, or by one that is made up, also
// where the model's does not pay and so is not routed by.
func (o *options) open(m *llama.Model) (*gallop.Engine, error) {
	path := o.profile
	if found, ok := router.Find(m.Path); path == "" && ok {
		p, err := router.Read(found)
		if err != nil {
			return nil, err
		}
		if !p.Defaults.Off {
			path = found
		}
	}
	if o.profile = filepath.Base(path); path == "" {
		folder, err := os.MkdirTemp("", "firsttoken")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(folder)
		path, o.profile = filepath.Join(folder, "profile.gguf"), "made up"
		if err := madeUp(m, path); err != nil {
			return nil, err
		}
	}
	return gallop.New(m, &gallop.Options{Parallel: 1, Profile: path, NoCosts: true, Shortlist: -1, Context: llama.ContextOptions{Threads: o.threads}})
}
