package llama_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/prune"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// TestSplitModel compares a model in three files with the same in one: whole and
// masked, pruned, and with weights given back and taken again.
func TestSplitModel(t *testing.T) {
	llamatest.Library(t)
	path := llamatest.Write(t, wide(gguf.Q4_0))
	split := llamatest.Split(t, path, 3)
	whole, parts := load(t, path, llama.ModelOptions{}), load(t, split, llama.ModelOptions{})
	require.Equal(t, whole.Tensors, parts.Tensors)
	require.Equal(t, whole.Size, parts.Size)
	require.Equal(t, whole.Fingerprint(), parts.Fingerprint())
	one, err := router.FingerprintOf(path)
	require.NoError(t, err)
	other, err := router.FingerprintOf(split)
	require.NoError(t, err)
	require.Equal(t, one, other, "one profile serves both")
	require.Equal(t, filepath.Join(filepath.Dir(split), "model.gallop.gguf"), router.DefaultPath(split))

	a, b := small(t, whole), small(t, parts)
	mask := skip.Layers(2, 3, 4, 6)
	for _, m := range []skip.Mask{none, mask, skip.Mask{}.With(0, skip.Attention).With(7, skip.FeedForward)} {
		a.Clear()
		b.Clear()
		require.Equal(t, decode(t, a, prompt(4), 0, m), decode(t, b, prompt(4), 0, m), m)
	}

	layers, _ := mask.WholeLayers()
	want, got := filepath.Join(t.TempDir(), "want.gguf"), filepath.Join(t.TempDir(), "got.gguf")
	require.NoError(t, prune.Layers(context.Background(), path, want, layers, nil))
	require.NoError(t, prune.Layers(context.Background(), split, got, layers, nil))
	wanted, err := os.ReadFile(want)
	require.NoError(t, err)
	pruned, err := os.ReadFile(got)
	require.NoError(t, err)
	require.True(t, bytes.Equal(wanted, pruned))
	for _, part := range []string{"model-00001-of-00003.gguf", "model-00003-of-00003.gguf"} {
		err := prune.Layers(context.Background(), split, filepath.Join(filepath.Dir(split), part), layers, &prune.Options{Overwrite: true})
		require.ErrorIs(t, err, prune.ErrTarget, "a part of the model itself")
	}

	require.True(t, parts.Releasable())
	b.Clear()
	before := decode(t, b, prompt(4), 0, none)
	all := resident(t, parts)
	require.NoError(t, parts.ReleaseWeights(mask))
	require.Less(t, resident(t, parts), all-all/4, "four of eight layers, in both files that have any")
	b.Clear()
	require.Equal(t, before, decode(t, b, prompt(4), 0, none), "what was given back is right again")
}
