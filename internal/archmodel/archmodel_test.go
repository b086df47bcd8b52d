package archmodel_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/archmodel"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
)

// TestMasksOnManyArchitectures has one shape of each kind of layer that the hook tells
// apart; `make test-architectures` has all.
func TestMasksOnManyArchitectures(t *testing.T) {
	llamatest.Library(t)
	lib, err := llama.FindLibrary([]string{llama.Dir()})
	require.NoError(t, err)
	maker, err := archmodel.NewMaker(t.Context(), t.TempDir(), "../../third_party/llama.cpp/include", lib)
	require.NoError(t, err)
	for name, refused := range map[string]int{
		"chameleon-swin":    13, // its feed-forward reads what attention adds: no halves
		"cohere2":           0,  // halves side by side
		"deepseek2":         0,  // latent attention, experts beside a shared one
		"gemma4-e2b":        6,  // layers that use the KV caches of others; a scale and an embedding for each layer
		"granitehybrid-moe": 0,  // recurrent mixers beside attention, experts
		"hy_v4":             21, // several streams, mixed in each layer
		"lfm2":              0,  // convolutions
		"minimax-01":        0,  // the stream is normed in each layer
		"nanbeige-loops":    0,  // blocks that run twice, with a norm between
		"nemotron_h":        0,  // a layer is a mixer, attention or a feed-forward
		"qwen3next":         0,  // gated delta nets
		"rwkv6":             0,  // states for both halves
		"talkie":            0,  // the embedding is added in each layer
	} {
		t.Run(name, func(t *testing.T) {
			m, err := archmodel.Find(name)
			require.NoError(t, err)
			path := filepath.Join(t.TempDir(), "model.gguf")
			require.NoError(t, maker.Write(t.Context(), m, path))
			r, err := archmodel.Check(t.Context(), m, path, t.TempDir())
			require.NoError(t, err)
			for _, result := range r.Results {
				require.NotEqual(t, archmodel.Wrong, result.Outcome, "%+v", result)
			}
			require.Zero(t, r.PairsWrong)
			t.Log(r.Count(archmodel.Exact), "exact,", r.Count(archmodel.Refused), "refused,", r.Pairs, "pairs, rows", r.Rows, r.RowsReason)
			require.Equal(t, refused, r.Count(archmodel.Refused))
			require.NotEqual(t, archmodel.Wrong, r.Rows, r.RowsReason)
		})
	}
}
