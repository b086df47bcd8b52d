package batch

import (
	"context"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

func TestAnswersStandInTheOrderOfTheirRequests(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	open := func(parallel int) *gallop.Engine {
		e, err := gallop.New(m, &gallop.Options{
			Parallel: parallel, Queue: -1, Isolate: true, Profile: gallop.NoProfile, NoCosts: true, Shortlist: -1,
			Context: llama.ContextOptions{NCtx: 128, Threads: 1},
		})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, e.Close()) })
		return e
	}
	var requests []gallop.Request
	for i := range 11 {
		requests = append(requests, gallop.Request{
			Prompt: fmt.Sprintf("prompt number %d of several", i), Skip: gallop.Layers(skip.Layers(1 + i%2)), Sampling: &llama.Sampling{}, MaxTokens: 3 + i,
		})
	}
	alone, several := open(1), open(4)
	answers, err := Answer(t.Context(), several, requests)
	require.NoError(t, err)
	for i, r := range requests {
		want, err := alone.Answer(t.Context(), r)
		require.NoError(t, err)
		require.Equal(t, want.Tokens, answers[i].Tokens, "request %d", i)
	}
	none, err := Answer(t.Context(), several, nil)
	require.NoError(t, err)
	require.Empty(t, none)

	requests[7].Skip = gallop.Layers(skip.Layers(99))
	_, err = Answer(t.Context(), several, requests)
	require.ErrorIs(t, err, gallop.ErrSkip, "and not that the others were ended")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Answer(ctx, several, requests)
	require.ErrorIs(t, err, context.Canceled)
}
