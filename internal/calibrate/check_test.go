package calibrate

import (
	"context"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// TestKeepBetter has a task whose own set is worse on prompts that no search has
// seen than the set for all, one whose own set is better, and one with too few of
// them to tell.
func TestKeepBetter(t *testing.T) {
	r := &run{
		tasks: []string{"better", "few", "worse"},
		candidates: []router.Candidate{
			{}, {Mask: skip.Layers(1), Depth: 1, Task: general}, {Mask: skip.Layers(2), Depth: 1, Task: "better"},
			{Mask: skip.Layers(3), Depth: 1, Task: "worse"}, {Mask: skip.Layers(4), Depth: 1, Task: "few"},
			{Mask: skip.Layers(5, 6), Depth: 2, Task: general}, {Mask: skip.Layers(6, 7), Depth: 2, Task: "worse + better"},
		},
	}
	for i := range 3 * leastUnseen {
		c := score.Case{Own: true, Task: r.tasks[i%3]}
		r.cases = append(r.cases, c)
		r.losses = append(r.losses, map[string][]float64{
			"better": {0, 2, 1, 9, 9, 4, 3}, "worse": {0, 2, 9, 3, 9, 4, 5}, "few": {0, 2, 9, 9, 3, 4, 9},
		}[c.Task])
		if c.Task != "few" || i > 3 {
			r.unsearched = append(r.unsearched, i)
		}
	}
	r.keepBetter()
	var left []string
	for _, c := range r.candidates {
		left = append(left, c.Mask.String()+" "+c.Task)
	}
	require.Equal(t, []string{" ", "1 general + worse", "2 better", "4 few", "5,6 general + worse", "6,7 better"}, left)
	require.Equal(t, []float64{0, 2, 1, 9, 4, 3}, r.losses[0], "the losses stay beside their sets")
}

// TestContest lets a bad set for all prompts lose to a better baseline.
func TestContest(t *testing.T) {
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	m := llamatest.Open(t, llamatest.Write(t, spec))
	s, err := score.NewScorer(m, &score.Options{Threads: 1})
	require.NoError(t, err)
	defer s.Close()
	log, err := search.OpenLog(filepath.Join(t.TempDir(), LogFile), "")
	require.NoError(t, err)
	defer log.Close()
	r := &run{
		Options: Options{Prefill: skip.FullPrefill, Progress: func(string, int, int) {}},
		model:   m, scorer: s, log: log, tokens: map[scored][]score.TokenScore{},
	}
	e, err := gallop.New(m, &gallop.Options{Parallel: 1, NoCosts: true, Shortlist: -1, Context: llama.ContextOptions{NCtx: 64, Threads: 1}})
	require.NoError(t, err)
	defer e.Close()
	for i := range 6 {
		prompt := []llama.Token{1, llama.Token(20 + i), llama.Token(40 + 3*i)}
		a, err := e.Answer(t.Context(), gallop.Request{Tokens: prompt, Sampling: &llama.Sampling{}, MaxTokens: 5})
		require.NoError(t, err)
		if said := slices.DeleteFunc(a.Tokens, m.Vocab.IsEnd); len(said) > 0 {
			r.cases = append(r.cases, score.Case{Prompt: prompt, Answers: [][]llama.Token{said}, Own: true})
		}
	}
	require.NotEmpty(t, r.cases)
	mean := func(mask skip.Mask) float64 {
		values, err := r.lossesFrom(0)(context.Background(), mask, search.All(len(r.cases)))
		require.NoError(t, err)
		return stats.Mean(values)
	}
	require.Less(t, mean(skip.Mask{}), 1e-5)
	a, b := skip.Layers(1), skip.Layers(2)
	if mean(a) < mean(b) {
		a, b = b, a
	}
	require.Greater(t, mean(a), mean(b))
	greedy := router.Candidate{Mask: a, Depth: 1, Task: router.BaselineGreedy}
	r.candidates = []router.Candidate{{}, {Mask: a, Depth: 1, Task: general}}
	r.baselines = []router.Candidate{greedy, {Mask: b, Depth: 1, Task: router.BaselineRandom}, {Mask: skip.Layers(1, 2), Depth: 2, Task: router.BaselineRandom}}
	require.NoError(t, r.contest(context.Background()))
	require.Equal(t, router.Candidate{Mask: b, Depth: 1, Task: general}, r.candidates[1])
	require.Equal(t, b, r.baselines[0].Mask)

	r.candidates[1].Mask, r.baselines[0].Mask, r.baselines[1].Mask = b, b, a
	require.NoError(t, r.contest(context.Background()))
	require.Equal(t, b, r.candidates[1].Mask, "the better one stays")
}

// TestChunksFitIntoTheCache so that prompts are decoded once for all candidates.
func TestChunksFitIntoTheCache(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 3))
	s, err := score.NewScorer(m, &score.Options{Threads: 1, NCtx: 256, Sequences: 70})
	require.NoError(t, err)
	defer s.Close()
	r := &run{scorer: s}
	for i := range 100 {
		prompt := make([]llama.Token, 100)
		if i >= 5 {
			prompt = prompt[:1]
		}
		r.cases = append(r.cases, score.Case{Prompt: prompt, Answers: [][]llama.Token{{1, 2, 3}}})
	}
	var ends []int
	for from := 0; from < len(r.cases); from = r.chunkFrom(from) {
		to := r.chunkFrom(from)
		require.True(t, s.Fit(r.cases[from:to]))
		for _, n := range []int{from, to - 1} {
			a, b := r.chunkOf(n)
			require.Equal(t, []int{from, to}, []int{a, b})
		}
		ends = append(ends, to)
	}
	require.Equal(t, []int{2, 4, 68, 100}, ends, "two long prompts, or lossChunk")
}
