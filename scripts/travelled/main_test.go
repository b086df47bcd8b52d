package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/llama"
)

func TestPageHasTheMeasuredFigures(t *testing.T) {
	rows, err := readRows("../../docs/travel.json")
	require.NoError(t, err)
	page, err := os.ReadFile("../../docs/results.md")
	require.NoError(t, err)
	_, shown, ok := strings.Cut(string(page), begin)
	require.True(t, ok)
	shown, _, ok = strings.Cut(shown, end)
	require.True(t, ok)
	require.Equal(t, table(rows), shown)
}

// TestWritePage adds a model to one that is there, and measures one anew.
func TestWritePage(t *testing.T) {
	dir := t.TempDir()
	document, kept, one, two := filepath.Join(dir, "d.md"), filepath.Join(dir, "kept.json"), filepath.Join(dir, "1.json"), filepath.Join(dir, "2.json")
	require.NoError(t, os.WriteFile(document, []byte("before\n"+begin+"old\n"+end+"\nafter\n"), 0o644))
	require.NoError(t, writeRows(one, []row{{Model: "a", Quantisation: "q4_0", Way: "depth 1", Questions: 3}}))
	require.NoError(t, writeRows(two, []row{{Model: "b", Quantisation: "q4_0", Way: "depth 1"}}))
	require.NoError(t, writePage(document, kept, []string{one}))
	require.NoError(t, writeRows(one, []row{{Model: "a", Quantisation: "q4_0", Way: "depth 1", Questions: 5}}))
	require.NoError(t, writePage(document, kept, []string{one, two}))
	text, err := os.ReadFile(document)
	require.NoError(t, err)
	require.Regexp(t, `^before\n<!-- .*\n(\|.*\n){2}\| a \| q4_0 \| 5 .*\n\| b .*\n<!-- end -->\nafter\n$`, string(text))
	require.ErrorContains(t, writePage(two, kept, nil), "no place for the table")
}

func TestEscalated(t *testing.T) {
	c := &score.Case{Answers: [][]llama.Token{{1, 2, 3}}}
	half, sure := math.Log(0.5), math.Log(0.9)
	masked := found{score: score.Score{All: [][]score.TokenScore{{{LogP: half, Top: 0.5}, {LogP: -3, Top: 0.4}, {LogP: sure, Top: 0.9}}}},
		diff: score.Difference{Tokens: []score.TokenDifference{{KL: 0.3}, {KL: 0.6}, {KL: 0.9, Agree: true}}}}
	whole := found{score: score.Score{All: [][]score.TokenScore{{{LogP: half, Top: 0.5}, {LogP: sure, Top: 0.9}, {LogP: sure, Top: 0.9}}}}}
	e := escalated(c, masked, whole, 0.6)
	require.Equal(t, 1, e.again, "the second token: the first is the whole model's")
	require.InDelta(t, half+2*sure, e.score.LogLik[0], 1e-9)
	require.InDelta(t, (0.3+0.9)/3, e.diff.KL, 1e-9)
	require.InDelta(t, 2./3, e.diff.Agreement, 1e-9)
	require.True(t, e.score.Exact)
	require.False(t, escalated(c, masked, whole, 0).score.Exact)
}
