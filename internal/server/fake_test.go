package server

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// fake is an engine without a model: a token is a byte, and an answer is what the test says.
type fake struct {
	info   gallop.Info
	says   func(gallop.Request) []string // the pieces of an answer; nil = "Hello", ", ", "world"
	delay  time.Duration                 // before each piece
	hold   chan struct{}                 // if not nil, pieces wait until it is closed
	err    error                         // of each request
	errAt  int                           // pieces that come before err
	finish gallop.Finish

	stopped string // the stop text that ends an answer
	missed  string // why nothing was cached; "" = 3 tokens were

	mu       sync.Mutex
	requests []gallop.Request

	begun, ended, cancelled atomic.Int64
	waiting                 atomic.Int64
	closed                  atomic.Bool
}

func newFake() *fake {
	return &fake{
		info: gallop.Info{Path: "/models/fake.gguf", Name: "fake", Architecture: "llama", Layers: 12, Context: 64, TrainContext: 128,
			Vocab: 256, Embd: 4, Size: 1000, Params: 500, Template: "{{ messages }}", Parallel: 2, Profile: "fake.gallop.gguf"},
		finish: gallop.FinishStop,
	}
}

func (f *fake) asked() []gallop.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.requests
}

func (f *fake) prompt(r gallop.Request) []llama.Token {
	if r.Tokens != nil {
		return r.Tokens
	}
	text, _ := f.Render(r)
	tokens, _ := f.Tokenize(text, false, false)
	return tokens
}

func (f *fake) Stream(ctx context.Context, r gallop.Request) iter.Seq2[gallop.Delta, error] {
	return func(yield func(gallop.Delta, error) bool) {
		f.mu.Lock()
		f.requests = append(f.requests, r)
		f.mu.Unlock()
		f.begun.Add(1)
		defer f.ended.Add(1)
		prompt := f.prompt(r)
		if len(prompt) > f.info.Context {
			yield(gallop.Delta{}, fmt.Errorf("%w: by the fake", gallop.ErrTooLong))
			return
		}
		says := []string{"Hello", ", ", "world"}
		if f.says != nil {
			says = f.says(r)
		}
		a := gallop.Answer{
			Finish: f.finish, Stopped: f.stopped, Usage: gallop.Usage{Prompt: len(prompt), Cached: 3}, Escalated: 1,
			Plan:   gallop.Plan{Mask: skip.Layers(4, 6), Prefill: skip.FullPrefill, LayersRun: 10, Choice: &gallop.Choice{Task: "math", Reason: "because"}},
			Timing: gallop.Timing{Prefill: time.Second, Decode: 2 * time.Second},
		}
		if f.missed != "" {
			a.Usage.Cached, a.Usage.Missed = 0, f.missed
		}
		if r.PromptLogprobs {
			a.Prompt = tokens(prompt, r.Logprobs)
			a.Prompt[0].LogProb = nan
			a.Prompt[0].Top = nil
		}
		if r.ScoreOnly {
			says = nil
		}
		for i, piece := range says {
			if f.err != nil && i == f.errAt {
				break
			}
			select {
			case <-ctx.Done():
			case <-f.holding():
			}
			if f.delay > 0 {
				select {
				case <-ctx.Done():
				case <-time.After(f.delay):
				}
			}
			if ctx.Err() != nil {
				f.cancelled.Add(1)
				yield(gallop.Delta{Answer: &a}, context.Cause(ctx))
				return
			}
			if f.closed.Load() {
				yield(gallop.Delta{Answer: &a}, gallop.ErrClosed)
				return
			}
			ids, _ := f.Tokenize(piece, false, false)
			a.Text += piece
			a.Tokens = append(a.Tokens, ids...)
			a.Usage.Generated += len(ids)
			d := gallop.Delta{Text: piece}
			if r.Detail || r.Logprobs != 0 {
				d.Tokens = tokens(ids, r.Logprobs)
			}
			if !yield(d, nil) {
				f.cancelled.Add(1)
				return
			}
		}
		if f.err != nil {
			yield(gallop.Delta{}, f.err)
			return
		}
		yield(gallop.Delta{Answer: &a}, nil)
	}
}

var open = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func (f *fake) holding() chan struct{} {
	if f.hold == nil {
		return open
	}
	return f.hold
}

// tokens are scored by their ids.
func tokens(ids []llama.Token, top int) []gallop.Token {
	list := make([]gallop.Token, len(ids))
	for i, id := range ids {
		list[i] = gallop.Token{ID: id, Text: string([]byte{byte(id)}), Source: gallop.FromMask, LogProb: -float64(id) / 100}
		for j := range max(top, 0) {
			list[i].Top = append(list[i].Top, gallop.Alternative{ID: llama.Token('a' + j), Text: string(rune('a' + j)), LogProb: -float64(j)})
		}
	}
	return list
}

func (f *fake) Count(r gallop.Request) (int, error) { return len(f.prompt(r)), nil }

func (f *fake) Render(r gallop.Request) (string, error) {
	if r.Prompt != "" {
		return r.Prompt, nil
	}
	text := ""
	for _, m := range r.Messages {
		if m.Role == "broken" {
			return "", llama.ErrTemplate
		}
		text += m.Content
	}
	return text, nil
}

func (f *fake) Tokenize(text string, bos, special bool) ([]llama.Token, error) {
	var list []llama.Token
	if bos {
		list = append(list, 1)
	}
	for _, b := range []byte(text) {
		list = append(list, llama.Token(b))
	}
	return list, nil
}

func (f *fake) Detokenize(list []llama.Token) string {
	b := make([]byte, len(list))
	for i, t := range list {
		b[i] = byte(t)
	}
	return string(b)
}

func (f *fake) Embed(ctx context.Context, inputs [][]llama.Token) ([][]float32, error) {
	out := make([][]float32, len(inputs))
	for i, in := range inputs {
		if len(in) == 0 {
			return nil, errors.New("nothing to embed")
		}
		out[i] = []float32{float32(len(in)), 0, 0, 1}
	}
	return out, ctx.Err()
}

func (f *fake) Sampling() llama.Sampling { s := llama.DefaultSampling(); s.TopK = 33; return s }

func (f *fake) Info() gallop.Info { return f.info }

func (f *fake) Stats() gallop.Stats {
	return gallop.Stats{
		Running: int(f.begun.Load() - f.ended.Load()), Waiting: int(f.waiting.Load()), Requests: uint64(f.ended.Load()), Cancelled: uint64(f.cancelled.Load()),
		PromptTokens: 100, CachedTokens: 40, Generated: 50, Escalated: 5, Drafted: 20, Accepted: 10, Decodes: 60, PrefillSeconds: 2, DecodeSeconds: 5,
		WeightsRead: 0.75, CacheUsed: 30, CacheOf: 120, Slots: []gallop.Slot{{Busy: f.begun.Load() > f.ended.Load(), Prompt: 7, Generated: 2}, {}},
	}
}

func (f *fake) Close() error {
	f.closed.Store(true)
	return nil
}

type gallopRequest = gallop.Request
