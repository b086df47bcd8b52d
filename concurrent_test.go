package gallop_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
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
				all[i].Skip = gallop.Layers(skip.Layers(4, 5))
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
	n := 300
	if long() {
		n = 10000
	}
	all := requests(n, 11)
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
	t.Logf("%d of %d cancelled", cancelled.Load(), n)
}
