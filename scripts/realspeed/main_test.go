package main

import (
	"math"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/llama"
)

// The README shows what docs/real.json has, a copy of what `make real-speed` wrote.
func TestREADMEHasTheMeasuredFigures(t *testing.T) {
	all, err := read("../../docs/real.json")
	require.NoError(t, err)
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	_, shown, ok := strings.Cut(string(readme), "<!-- realspeed -table docs/real.json -->\n")
	require.True(t, ok)
	shown, _, ok = strings.Cut(shown, "<!-- end -->")
	require.True(t, ok)
	require.Equal(t, all.table(), shown)
}

func TestDistance(t *testing.T) {
	p := &llama.Distribution{Tokens: []llama.Token{1, 2}, P: []float32{0.75, 0.25}}
	q := &llama.Distribution{Tokens: []llama.Token{2, 3}, P: []float32{0.5, 0.5}}
	require.InDelta(t, 0, distance(p, p), 1e-9)
	require.InDelta(t, 0.75, distance(p, q), 1e-9)
	require.False(t, math.IsNaN(distance(&llama.Distribution{}, q)))
}
