package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/llama"
)

// docs/real.md and its pictures show what docs/real-table.json has, a copy of what `make
// real-table` wrote: `build/realtable -page docs/real-table.json` makes them.
func TestPageHasTheMeasuredFigures(t *testing.T) {
	const docs = "../../docs"
	made := t.TempDir()
	require.NoError(t, writePage(filepath.Join(docs, "real-table.json"), made))
	files, err := os.ReadDir(made)
	require.NoError(t, err)
	require.Greater(t, len(files), 1)
	for _, f := range files {
		want, err := os.ReadFile(filepath.Join(made, f.Name()))
		require.NoError(t, err)
		got, err := os.ReadFile(filepath.Join(docs, f.Name()))
		require.NoError(t, err)
		require.Equal(t, string(want), string(got), f.Name())
	}
}

// TestKnapsack packs halves by hand: attention takes the time of one, feed-forward of two.
func TestKnapsack(t *testing.T) {
	sizes := search.Sizes{Attention: []uint64{1, 1, 1, 1}, FeedForward: []uint64{1, 1, 1, 1}}
	units := search.SublayerUnits(sizes) // a1, f1, a2, f2, half a layer each
	turns := []float64{0.1, 0.5, 0.3, 0.2}
	masks := knapsack(units, turns, 1, 2, []float64{0.5, 1, 1.5, 2})
	var texts []string
	for _, m := range masks {
		texts = append(texts, m.String())
	}
	// Of the masks for a time of 2, f2 turns less than a1 and a2 together; for 3, a1 and f2.
	require.Equal(t, []string{"a1", "a1,f2", "2,a1", "1,2"}, texts)
}

func TestEscalate(t *testing.T) {
	token := func(logP, top float64) score.TokenScore { return score.TokenScore{LogP: logP, Top: top} }
	masked := &score.Score{LogLik: make([]float64, 2), All: [][]score.TokenScore{
		{token(-1, 0.1), token(-2, 0.95), token(-3, 0.5)}, {token(-4, 0.99), token(-5, 0.2)},
	}}
	whole := &score.Score{All: [][]score.TokenScore{
		{token(-10, 1), token(-20, 1), token(-30, 1)}, {token(-40, 1), token(-50, 1)},
	}}
	require.Equal(t, 1, escalate(masked, whole, 0, 0.9))
	require.Equal(t, []float64{-1 - 2 - 30, -4 - 50}, masked.LogLik) // first tokens stay: they are the whole model's
}

func TestNewRecord(t *testing.T) {
	c := score.Case{Answers: [][]llama.Token{{1}, {2, 3}}, AnswerBytes: []int{2, 10}, Right: 1}
	s := score.Score{LogLik: []float64{-2, -3}, All: [][]score.TokenScore{{{LogP: -2, Top: 0.5}}, {{LogP: -1, Top: 0.5}, {LogP: -2, Top: 0.1353352832366127}}}}
	require.Equal(t, record{LogP: -3, Tokens: 2, Likeliest: 1}, newRecord(benchmark{}, c, s))
	require.True(t, newRecord(benchmark{byByte: true}, c, s).Right)
}

func TestPerplexity(t *testing.T) {
	p := perplexity([]float64{2, 6}, []float64{1, 3})
	require.InDelta(t, 7.3891, p.Mean, 1e-3) // 8 nats over 4 tokens
	require.Equal(t, p.Mean, p.Low)          // both texts have the same loss a token
}

func TestDataIsMissing(t *testing.T) {
	_, err := readData("")
	require.ErrorIs(t, err, errData)
	require.ErrorContains(t, err, "DATA=")
	_, err = readData(t.TempDir())
	require.ErrorIs(t, err, errData)
	require.ErrorContains(t, err, "arc_easy.jsonl")
}
