package archmodel_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	columns "github.com/gallop-llm/gallop/internal/neurons"
	"github.com/gallop-llm/gallop/internal/prune"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// neurons keeps every second block of a model's neurons, gives the logits of a token, and those of the file
// that has no others.
func neurons(t *testing.T, path string) (got, want []float32, err error) {
	t.Helper()
	m := llamatest.Open(t, path)
	ff, err := m.FeedForwards()
	if err != nil {
		return nil, nil, err
	}
	kept, counts, types := make([]prune.Kept, len(ff)), make([]int, len(ff)), make([]gguf.Type, len(ff))
	for l := range ff {
		types[l] = gguf.F32
		if ff[l].Width == 0 {
			continue
		}
		require.Equal(t, "F32", ff[l].Down.Type)
		for id := range int32(ff[l].Width) {
			if id/llama.NeuronBlock%2 == 0 {
				kept[l].IDs = append(kept[l].IDs, id)
			}
		}
		order, weights, blocks := make([]int32, ff[l].Width), make([]float32, ff[l].Width), []int32(nil)
		for i := range order {
			order[i] = int32(i)
			if i%(2*llama.NeuronBlock) == 0 {
				blocks = append(blocks, int32(i/llama.NeuronBlock))
			}
		}
		down, err := m.SortDown(&ff[l], order, types[l], weights)
		require.NoError(t, err)
		kept[l].Down = columns.Columns(nil, down, types[l], ff[l].Width, blocks)
		counts[l] = len(kept[l].IDs)
	}
	n, err := m.NewNeurons(counts, types)
	require.NoError(t, err)
	defer n.Close()
	for l, k := range kept {
		require.NoError(t, n.Set(l, k.IDs, k.Down))
	}
	token := func(m *llama.Model, mask skip.Mask) ([]float32, error) {
		c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 64, Threads: 1})
		if mask != (skip.Mask{}) {
			require.NoError(t, c.SetNeurons(0, n))
		}
		if err := c.Decode(llamatest.Batch(t, []llama.Token{7, 8, 9}, 0), mask); err != nil {
			return nil, err
		}
		logits, err := c.Logits(-1)
		return append([]float32(nil), logits...), err
	}
	if got, err = token(m, skip.Mask{}.WithNeurons(500, 0)); err != nil {
		return nil, nil, err
	}
	dst := filepath.Join(t.TempDir(), "pruned.gguf")
	require.NoError(t, prune.Neurons(context.Background(), path, dst, kept, nil))
	want, err = token(llamatest.Open(t, dst), skip.Mask{})
	require.NoError(t, err)
	return got, want, nil
}

// TestNeuronsOnManyArchitectures has each way in which feed-forwards are built.
func TestNeuronsOnManyArchitectures(t *testing.T) {
	maker := newMaker(t)
	for name, refused := range map[string]string{
		"bloom":         "", // plain, with biases
		"chatglm":       "", // gate and up in one matrix
		"cohere2":       "", // beside attention
		"deci-nas":      "", // layers of different widths
		"deci-noffn":    "", // a layer without
		"falcon":        "",
		"gemma4-e2b":    "", // weights beside the feed-forward
		"gptneox-par":   "",
		"jais":          "", // gate, up and down with biases
		"nemotron_h":    "", // layers that are feed-forwards alone
		"plamo3":        "", // its results have no names
		"qwen":          "", // its file counts twice as many neurons
		"stablelm":      "",
		"bitnet":        "does more between its products",
		"gemma3n":       "does more between its products",
		"graniteswitch": "not all that it reads",
		"mamba":         "no feed-forwards that are known",
		"qwen2moe":      "mixtures of experts",
		"hrm_text":      "layers share their weights",
	} {
		t.Run(name, func(t *testing.T) {
			_, path := write(t, maker, name)
			got, want, err := neurons(t, path)
			if refused != "" {
				require.ErrorContains(t, err, refused)
				return
			}
			require.NoError(t, err)
			require.Equal(t, want, got)
		})
	}
}
