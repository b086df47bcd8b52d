package table

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// listSize is the shortlist's, in tokens.
const listSize = 512

// cases have prompts of up to 20 tokens and up to 5 answers of up to 8. Some have the
// same prompt.
func cases(random *rand.Rand, n int) []score.Case {
	tokens := func(most int) []llama.Token {
		list := make([]llama.Token, 1+random.IntN(most))
		for i := range list {
			list[i] = llama.Token(random.IntN(randmodel.MinVocab))
		}
		return list
	}
	all := make([]score.Case, n)
	for i := range all {
		all[i].Prompt = tokens(20)
		if i > 0 && random.IntN(6) == 0 {
			all[i].Prompt = all[random.IntN(i)].Prompt
		}
		for range 1 + random.IntN(5) {
			all[i].Answers = append(all[i].Answers, tokens(8))
		}
		all[i].Right = random.IntN(len(all[i].Answers))
	}
	return all
}

// TestTableWithAShortlist: all rows but the whole model's have it, and cost less for it.
func TestTableWithAShortlist(t *testing.T) {
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Layers, spec.Vocab = 6, 1<<14
	m := llamatest.Open(t, llamatest.Write(t, spec))
	e, err := gallop.New(m, &gallop.Options{Parallel: 3, Cache: t.TempDir(), Profile: gallop.NoProfile, Context: llama.ContextOptions{NCtx: 64, Threads: 1}})
	require.NoError(t, err)
	defer func() { require.NoError(t, e.Close()) }()
	require.NoError(t, e.LearnShortlist(t.Context()))
	list := e.Shortlist().List
	list.Margin = -1e9
	s, err := score.NewScorer(m, &score.Options{Shortlist: list})
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	table := &Table{Scorer: s, Engine: e, Model: m, Cases: cases(rand.New(rand.NewPCG(6, 6)), 6), Shortlist: listSize}
	for range table.Cases {
		table.Prompts = append(table.Prompts, router.Prompt{})
	}
	sizes := search.SizesOf(m.Tensors, m.NLayer)
	set := router.Candidate{Mask: skip.Layers(2), Depth: sizes.Depth(skip.Layers(2)), Task: "sums"}
	p := &router.Profile{Candidates: []router.Candidate{{}, set}, Baselines: []router.Candidate{set}}
	whole, err := table.Whole(t.Context())
	require.NoError(t, err)
	require.InDelta(t, 1, *whole.Cost, 1e-9)
	require.InDelta(t, 0, *whole.KL, 1e-9)
	alone, err := table.Listed(t.Context())
	require.NoError(t, err)
	require.Equal(t, "shortlist v512 alone", alone.Method)
	require.Positive(t, *alone.KL)
	require.Zero(t, *alone.MeanDepth)
	all, output := m.TokenBytes()
	least := float64(list.Size) + float64(output)*listSize/float64(m.Vocab.Size)
	least = (float64(all-output) + least) / float64(all)
	require.Greater(t, *alone.Cost, least-1e-9, "a list holds its tokens, and those that are as likely as its last")
	require.Less(t, s.Exact(skip.Mask{}.WithShortlist(listSize)), 1.05*listSize, "few are")
	cost := func(mask skip.Mask) float64 { // by the logits that were computed exactly
		return list.TokenShare(1-sizes.Depth(mask)/float64(m.NLayer), s.Exact(mask))
	}
	require.InDelta(t, cost(skip.Mask{}.WithShortlist(listSize)), *alone.Cost, 1e-9)
	rows, err := table.Fixed(t.Context(), p, "layer", skip.FullPrefill, 1)
	require.NoError(t, err)
	require.Len(t, rows, 3, "the baseline, the router, the oracle")
	for _, r := range rows {
		require.Less(t, *r.Cost, *alone.Cost, r.Method)
		require.Greater(t, *r.KL, *alone.KL, r.Method)
	}
	require.Contains(t, table.known, under(skip.Layers(2).WithShortlist(listSize), skip.FullPrefill))
	require.Equal(t, set.Mask, p.Candidates[1].Mask, "the profile stays as it is")
	generated, err := table.Generated(t.Context(), p, "layer", skip.MaskedPrefill, 1, 0)
	require.NoError(t, err)
	require.InDelta(t, cost(set.Mask.WithShortlist(listSize)), *generated.Cost, 1e-9)
}
