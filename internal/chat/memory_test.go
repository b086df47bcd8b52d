package chat_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/chat"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// TestReleaseSkipped gives the same answers in less memory.
func TestReleaseSkipped(t *testing.T) {
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Embd, spec.FF, spec.Type = 256, 1024, gguf.Q4_0
	path := llamatest.Write(t, spec)
	masks := []skip.Mask{skip.Layers(1, 2, 3), {}, skip.Layers(3, 4).With(5, skip.FeedForward)}
	for _, prefill := range []skip.Prefill{skip.MaskedPrefill, skip.FullPrefill} {
		t.Run(prefill.String(), func(t *testing.T) {
			var answers [2][]string
			for i, release := range []bool{false, true} {
				m := llamatest.Open(t, path)
				opts := options(512)
				opts.ReleaseSkipped, opts.Prefill = release, prefill
				s := session(t, m, opts)
				for _, mask := range masks {
					require.NoError(t, s.SetMask(mask))
					answers[i] = append(answers[i], ask(t, s, "one").Text)
					resident, err := m.ResidentWeights()
					require.NoError(t, err)
					needed := float64(m.Size - search.SizesOf(m.Tensors, m.NLayer).Bytes(mask))
					if !release && prefill == skip.FullPrefill {
						needed = float64(m.Size) // for the next prompt
					}
					require.InEpsilon(t, needed, resident, 0.15, "%s, release %t", mask, release)
				}
			}
			require.Equal(t, answers[0], answers[1])
		})
	}
}

func TestReleaseSkippedIsRefused(t *testing.T) {
	m := small(t)
	for name, opts := range map[string]chat.Options{
		"cascade":            {Prefill: skip.FullPrefill, Escalate: 0.5},
		"calibrated cascade": {Prefill: skip.FullPrefill, Routing: &chat.Routing{Profile: &router.Profile{}, Escalate: 0.5}},
	} {
		opts.ReleaseSkipped = true
		_, err := chat.New(m, &opts)
		require.ErrorIs(t, err, chat.ErrRelease, name)
		require.ErrorContains(t, err, "cascade", name)
	}
	read, err := llama.LoadModel(context.Background(), m.Path, &llama.ModelOptions{GPULayers: llama.CPUOnly, NoMmap: true})
	require.NoError(t, err)
	defer read.Close()
	_, err = chat.New(read, &chat.Options{ReleaseSkipped: true})
	require.ErrorIs(t, err, chat.ErrRelease)
	s, err := chat.New(read, &chat.Options{Mask: skip.Layers(1), Context: llama.ContextOptions{NCtx: 256}, MaxTokens: 4})
	require.NoError(t, err, "only the flag asks for it")
	defer s.Close()
	ask(t, s, "one")
}
