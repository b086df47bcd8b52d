package gallop_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// requests are made up: of all kinds, with prompts that partly begin alike.
func requests(n int, seed uint64) []gallop.Request {
	random := rand.New(rand.NewPCG(seed, 1))
	masks := []gallop.Skip{
		gallop.Nothing(), gallop.Routed(), gallop.Depth(2), gallop.Quality(0.9),
		gallop.Layers(skip.Mask{}.With(3, skip.FeedForward).With(5, skip.FeedForward)).Prefill(skip.FullPrefill),
		gallop.Layers(skip.Mask{}.With(3, skip.FeedForward).With(6, skip.FeedForward)).Prefill(skip.FullPrefill).Escalate(0.9),
		gallop.Layers(skip.Mask{}.With(4, skip.Whole).With(8, skip.Attention)),
		gallop.Layers(skip.Mask{}.With(7, skip.Attention)).Prefill(skip.FullPrefill),
		gallop.Layers(skip.Mask{}.WithLocal(4, skip.Window{Recent: 8, Sinks: 2}).WithLocal(9, skip.Window{Recent: 8, Sinks: 2}).WithWritten(6)),
		gallop.Layers(skip.Mask{}.WithLocal(4, skip.Window{Recent: 8, Sinks: 2}).With(3, skip.FeedForward)).Prefill(skip.FullPrefill).Escalate(0.9),
	}
	questions := []string{"What is %d plus %d?", "Repeat: the %d quick brown foxes and %d dogs", "Count from %d to %d.", "Sort: %d 5 %d 1 9"}
	all := make([]gallop.Request, n)
	for i := range all {
		text := fmt.Sprintf(questions[random.IntN(len(questions))], random.IntN(20), random.IntN(20))
		messages := []gallop.Message{{Role: "user", Content: text}}
		if random.IntN(3) == 0 {
			messages = append([]gallop.Message{{Role: "user", Content: "What is 1 plus 1?"}, {Role: "assistant", Content: "2"}}, messages...)
		}
		all[i] = gallop.Request{
			Messages: messages, Skip: masks[random.IntN(len(masks))], Sampling: &llama.Sampling{}, MaxTokens: 1 + random.IntN(24), Lossless: random.IntN(4) == 0,
		}
		if all[i].Lossless {
			all[i].Skip = gallop.Nothing()
			if random.IntN(2) == 0 {
				all[i].Skip = gallop.Layers(skip.Layers(4, 5).WithLocal(6, skip.Window{Recent: 8}))
			}
		}
	}
	return all
}

// alone gives each request's tokens where nothing runs beside it.
func alone(t *testing.T, o gallop.Options, all []gallop.Request) (tokens [][]llama.Token) {
	t.Helper()
	e := open(t, o)
	for _, r := range all {
		a, err := e.Answer(t.Context(), r)
		require.NoError(t, err)
		tokens = append(tokens, a.Tokens)
	}
	return tokens
}

// TestTogetherAsAlone starts many requests of all kinds at random moments: with Isolate each
// has the tokens that it has alone. Without, rounding may turn near ties; how many, is told.
func TestTogetherAsAlone(t *testing.T) {
	llamatest.Library(t)
	const n = 64
	all := requests(n, 7)
	o := gallop.Options{Parallel: 8, Context: llama.ContextOptions{NCtx: 256, Threads: 1}, NoCosts: true, Shortlist: -1, Isolate: true}
	want := alone(t, o, all)
	for _, o.Isolate = range []bool{true, false} {
		e := open(t, o)
		got := make([][]llama.Token, n)
		random := rand.New(rand.NewPCG(3, 4))
		var running sync.WaitGroup
		for i, r := range all {
			time.Sleep(time.Duration(random.IntN(3000)) * time.Microsecond)
			running.Go(func() {
				a, err := e.Answer(t.Context(), r)
				if err == nil {
					got[i] = a.Tokens
				}
			})
		}
		running.Wait()
		differ, tokens := 0, 0
		for i := range all {
			tokens += len(want[i])
			if o.Isolate {
				require.Equal(t, want[i], got[i], "request %d: %+v", i, all[i])
			}
			for k, token := range want[i] {
				if k >= len(got[i]) || got[i][k] != token {
					differ++
				}
			}
		}
		t.Logf("isolate %v: %d of %d tokens differ; %d decodes", o.Isolate, differ, tokens, e.Stats().Decodes)
		require.Less(t, differ, tokens/10, "answers under load are those alone but for near ties")
	}
}

// TestCancelledRequests ends many requests at random moments, in the queue, in the prompt's
// pass, while decoding and while drafting. Those that go on have the tokens that they have
// alone, and nothing is left.
func TestCancelledRequests(t *testing.T) {
	llamatest.Library(t)
	n := 1000
	if long() {
		n = 10000
	}
	all := requests(n, 11)
	objects := llama.Live()
	o := gallop.Options{Parallel: 4, Queue: n, Context: llama.ContextOptions{NCtx: 256, Threads: 1}, NoCosts: true, Shortlist: -1, Isolate: true}
	kept := map[int][]llama.Token{}
	for i := 0; i < n; i += n / 20 {
		kept[i] = nil
	}
	e := open(t, o)
	for i := range kept {
		a, err := e.Answer(t.Context(), all[i])
		require.NoError(t, err)
		kept[i] = a.Tokens
	}
	before := runtime.NumGoroutine()
	random := rand.New(rand.NewPCG(5, 6))
	var running sync.WaitGroup
	var cancelled atomic.Int64
	limit := make(chan struct{}, 64)
	for i, r := range all {
		after := time.Duration(random.IntN(300_000)) * time.Microsecond
		limit <- struct{}{}
		running.Go(func() {
			defer func() { <-limit }()
			if want, ok := kept[i]; ok {
				a, err := e.Answer(t.Context(), r)
				if err != nil || !slices.Equal(want, a.Tokens) {
					t.Errorf("request %d: %v, %v, want %v", i, err, a.Tokens, want)
				}
				return
			}
			ctx, cancel := context.WithTimeout(t.Context(), after)
			defer cancel()
			a, err := e.Answer(ctx, r)
			if errors.Is(err, context.DeadlineExceeded) {
				cancelled.Add(1)
			} else if err != nil {
				t.Errorf("request %d: %v after %d tokens", i, err, len(a.Tokens))
			}
		})
	}
	running.Wait()
	require.Positive(t, cancelled.Load())
	s := e.Stats()
	require.Zero(t, s.Running)
	require.Zero(t, s.Waiting)
	for _, slot := range s.Slots {
		require.False(t, slot.Busy)
	}
	for range 1000 {
		if runtime.NumGoroutine() <= before {
			break
		}
		time.Sleep(time.Millisecond)
	}
	require.LessOrEqual(t, runtime.NumGoroutine(), before, "goroutines are left")
	require.NoError(t, e.Close())
	require.Equal(t, objects, llama.Live(), "what C owns is left")
	t.Logf("%d of %d cancelled", cancelled.Load(), n)
}

// words is a text of about n tokens.
func words(n int) string {
	var s strings.Builder
	for i := range n / 2 {
		fmt.Fprintf(&s, "%d ", i%10)
	}
	return s.String()
}

// TestSharedPromptIsDecodedOnce by eight chats that come at the same moment.
func TestSharedPromptIsDecodedOnce(t *testing.T) {
	llamatest.Library(t)
	e := open(t, gallop.Options{Parallel: 8, Context: llama.ContextOptions{NCtx: 512, Threads: 1}, NoCosts: true, Shortlist: -1})
	long := []gallop.Message{{Role: "user", Content: words(200)}, {Role: "assistant", Content: "ok"}}
	conversation := func(i int) []gallop.Message {
		return append(slices.Clone(long), gallop.Message{Role: "user", Content: fmt.Sprintf("What is %d plus 3?", i)})
	}
	var running sync.WaitGroup
	var prompt, cached atomic.Int64
	for i := range 8 {
		running.Go(func() {
			a, err := e.Answer(t.Context(), gallop.Request{
				Messages: conversation(i), Sampling: &llama.Sampling{}, MaxTokens: 8,
			})
			if err != nil {
				t.Error(err)
			}
			prompt.Add(int64(a.Usage.Prompt))
			cached.Add(int64(a.Usage.Cached))
		})
	}
	running.Wait()
	one, err := e.Count(gallop.Request{Messages: conversation(1)})
	require.NoError(t, err)
	own := 8 * 12 // what is not shared: a question in the chat's format, of a dozen tokens
	require.LessOrEqual(t, int(prompt.Load()-cached.Load()), one+own, "%d tokens of prompts, %d cached", prompt.Load(), cached.Load())
}

// TestNextTurnDecodesWhatIsNew: with a full prefill the conversation's prompt serves again, with
// a masked one the answer too.
func TestNextTurnDecodesWhatIsNew(t *testing.T) {
	llamatest.Library(t)
	ffn := skip.Mask{}.With(3, skip.FeedForward)
	for name, s := range map[string]gallop.Skip{
		"whole": gallop.Nothing(), "masked": gallop.Layers(ffn), "full": gallop.Layers(ffn).Prefill(skip.FullPrefill), "routed": gallop.Routed(),
	} {
		for _, parallel := range []int{1, 4} {
			e := open(t, gallop.Options{Parallel: parallel, Context: llama.ContextOptions{NCtx: 512, Threads: 1}, NoCosts: true, Shortlist: -1})
			chat := e.NewSession(gallop.Request{Skip: s, Sampling: &llama.Sampling{}, MaxTokens: 12})
			turn := func(text string) (a gallop.Answer) {
				for d, err := range chat.Ask(t.Context(), text) {
					require.NoError(t, err)
					if d.Answer != nil {
						a = *d.Answer
					}
				}
				return a
			}
			first := turn("What is 12 plus 7?")
			require.Zero(t, first.Usage.Cached)
			require.Equal(t, "nothing was asked before", first.Usage.Missed)
			second := turn("Repeat: one two three")
			require.Empty(t, second.Usage.Missed)
			reusable := first.Usage.Prompt
			if s == gallop.Nothing() || name == "masked" {
				reusable += first.Usage.Generated - 1
			}
			const boundary = 3 // tokens that the next turn's format may join otherwise
			require.GreaterOrEqual(t, second.Usage.Cached, reusable-boundary, "%s, %d at once", name, parallel)
			// Another conversation does not end this one's stay in the cache.
			_, err := e.Answer(t.Context(), gallop.Request{Prompt: "Count from 1 to 5.", Skip: s, MaxTokens: 4})
			require.NoError(t, err)
			third := turn("What is 1 plus 1?")
			require.GreaterOrEqual(t, third.Usage.Cached, second.Usage.Prompt-boundary, name)
		}
	}
}

// nearTie is the most that rounding changes between two log-probabilities of the small models.
const nearTie = 0.05

// choice is a token of an answer, and by how much its log-probability is above the next one's.
type choice struct {
	token  llama.Token
	margin float64
}

func margins(t *testing.T, e *gallop.Engine, r gallop.Request) (all []choice) {
	t.Helper()
	r.Logprobs = 2
	for d, err := range e.Stream(t.Context(), r) {
		require.NoError(t, err)
		for _, token := range d.Tokens {
			all = append(all, choice{token.ID, token.Top[0].LogProb - token.Top[1].LogProb})
		}
	}
	return all
}

// TestConversationsTakeTurns lets more conversations than there are seats take turns; the last
// turn is the first once more. Each is what an engine of its own says, and decodes only what it
// has to.
func TestConversationsTakeTurns(t *testing.T) {
	llamatest.Library(t)
	const conversations, turns, length = 4, 3, 128
	for _, arch := range []string{"llama", "gemma3"} { // gemma3 has sliding windows, shorter than the prompts
		for _, parallel := range []int{1, 3} {
			for _, isolate := range []bool{false, true} {
				m := llamatest.Small(t, arch)
				o := options(4096)
				o.Parallel, o.Isolate = parallel, isolate
				e := engine(t, m, o)
				said := make([][]llama.Token, conversations)
				for turn := range turns + 1 {
					for c := range conversations {
						before := len(said[c])
						for i := range length {
							said[c] = append(said[c], llama.Token(40+(c*31+(before+i)*7)%200))
						}
						r := greedy(8)
						if r.Tokens = said[c]; turn == turns {
							r.Tokens = said[c][:length]
						}
						got, err := e.Answer(t.Context(), r)
						require.NoError(t, err)
						what := fmt.Sprintf("%s, %d at once, isolated %v, turn %d of conversation %d", arch, parallel, isolate, turn, c)
						want := margins(t, engine(t, m, options(4096)), r)
						for i, token := range got.Tokens {
							if token != want[i].token { // rounded otherwise: a prompt in pieces is not one in a pass
								require.Less(t, want[i].margin, nearTie, what)
								break
							}
						}
						said[c] = append(said[c], got.Tokens...)
						switch cached := got.Usage.Cached; {
						case turn == 0:
							require.Zero(t, cached, what)
						case turn < turns && isolate: // whole pieces of the prompt
							require.GreaterOrEqual(t, cached, (before-8)/64*64, what)
						case turn < turns:
							require.Equal(t, before-1, cached, what)
						case arch == "llama":
							require.GreaterOrEqual(t, cached, length/2, what)
						}
					}
				}
			}
		}
	}
}

// TestLongPromptHoldsNobodyUp: while it is read, each decode gives a token to every answer
// that runs.
func TestLongPromptHoldsNobodyUp(t *testing.T) {
	llamatest.Library(t)
	const ubatch = 16
	e := open(t, gallop.Options{Parallel: 3, Context: llama.ContextOptions{NCtx: 2048, NUBatch: ubatch, Threads: 1}, NoCosts: true, Shortlist: -1})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var tokens [2]atomic.Int64
	var running sync.WaitGroup
	for i := range tokens {
		running.Go(func() {
			r := gallop.Request{Prompt: fmt.Sprintf("%d, ", i), Sampling: &llama.Sampling{Temp: 1, Seed: 1}, Detail: true, Skip: gallop.Nothing()}
			for ctx.Err() == nil { // the model may end its answer
				for d, err := range e.Stream(ctx, r) {
					if err == nil {
						tokens[i].Add(int64(len(d.Tokens)))
					}
				}
			}
		})
	}
	for tokens[0].Load() == 0 || tokens[1].Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	before := tokens[0].Load() + tokens[1].Load()
	a, err := e.Answer(t.Context(), gallop.Request{Prompt: words(320), Skip: gallop.Nothing(), MaxTokens: 1})
	require.NoError(t, err)
	got := tokens[0].Load() + tokens[1].Load() - before
	stop()
	running.Wait()
	pieces := a.Usage.Prompt / ubatch
	require.Greater(t, pieces, 10)
	require.GreaterOrEqual(t, int(got), pieces, "tokens of two answers in the %d decodes of a long prompt", pieces)
}

// TestQueue is bounded, in order, and left at once by whoever does not want to wait.
func TestQueue(t *testing.T) {
	llamatest.Library(t)
	e := open(t, gallop.Options{Parallel: 1, Queue: 2, Context: llama.ContextOptions{NCtx: 512, Threads: 1}, NoCosts: true, Shortlist: -1})
	endless := gallop.Request{Prompt: "a", Sampling: &llama.Sampling{LogitBias: map[llama.Token]float32{}}, Skip: gallop.Nothing()}
	for token := range llama.Token(e.Info().Vocab) {
		if e.Model().Vocab.IsEnd(token) {
			endless.Sampling.LogitBias[token] = float32(-1e9)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { e.Answer(ctx, endless) })
	waitFor := func(seated, waiting int) {
		for s := e.Stats(); s.Running != seated || s.Waiting != waiting; s = e.Stats() {
			time.Sleep(time.Millisecond)
		}
	}
	waitFor(1, 0)
	impatient, leave := context.WithCancel(t.Context())
	var left error
	running.Go(func() { _, left = e.Answer(impatient, endless) })
	waitFor(1, 1)
	var second gallop.Answer
	running.Go(func() { second, _ = e.Answer(t.Context(), gallop.Request{Prompt: "b", MaxTokens: 2}) })
	waitFor(1, 2)
	_, err := e.Answer(t.Context(), endless)
	require.ErrorIs(t, err, gallop.ErrBusy)
	leave()
	waitFor(1, 1)
	stop()
	running.Wait()
	require.ErrorIs(t, left, context.Canceled)
	require.Positive(t, second.Usage.Generated)
}
