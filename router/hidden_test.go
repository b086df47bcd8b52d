package router

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
)

func TestHiddenStateOfAModel(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 4))
	state, closeState, err := HiddenState(m, 1)
	require.NoError(t, err)
	defer func() { require.NoError(t, closeState()) }()
	first, err := state([]llama.Token{1, 2, 3})
	require.NoError(t, err)
	require.Len(t, first, m.NEmbd)
	first = slices.Clone(first)
	other, err := state([]llama.Token{7, 2, 9})
	require.NoError(t, err)
	require.NotEqual(t, first, other)
	again, err := state([]llama.Token{1, 2, 3})
	require.NoError(t, err)
	require.Equal(t, first, again, "nothing of the prompt before stays")

	f, err := NewFeatures(FeatureSpec{Kind: Hidden}, &Sources{Model: m.Path, Hidden: state})
	require.NoError(t, err)
	defer f.Close()
	prompts := []Prompt{{"a", []llama.Token{1, 2}}, {"b", []llama.Token{3}}, {"", nil}}
	require.NoError(t, f.Fit(prompts))
	vectors, err := f.Vectors(prompts)
	require.NoError(t, err)
	require.NotEqual(t, vectors[0], vectors[1])
}
