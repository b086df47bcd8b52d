package gallop_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/llama"
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
				o := options(512)
				o.ReleaseSkipped = release
				s := session(t, m, o, greedy(24))
				for _, mask := range masks {
					s.Request().Skip = gallop.Layers(mask).Prefill(prefill)
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
	o := options(256)
	o.ReleaseSkipped = true
	e := engine(t, m, o)
	r := greedy(4)
	r.Messages = user("one")
	r.Skip = gallop.Layers(skip.Mask{}.With(1, skip.FeedForward)).Prefill(skip.FullPrefill).Escalate(0.5)
	_, err := e.Answer(t.Context(), r)
	require.ErrorIs(t, err, gallop.ErrRequest)
	require.ErrorContains(t, err, "escalation")
	r = lossless(4, nil)
	r.Messages = user("one")
	_, err = e.Answer(t.Context(), r)
	require.ErrorIs(t, err, gallop.ErrRequest)
	require.ErrorContains(t, err, "verifies each draft")

	read, err := llama.LoadModel(context.Background(), m.Path, &llama.ModelOptions{GPULayers: llama.CPUOnly, NoMmap: true})
	require.NoError(t, err)
	defer read.Close()
	_, err = gallop.New(read, &o)
	require.ErrorIs(t, err, gallop.ErrRequest)
	o.ReleaseSkipped = false
	r = greedy(4)
	r.Skip = gallop.Layers(skip.Layers(1))
	e, err = gallop.New(read, &o)
	require.NoError(t, err, "only the flag asks for it")
	ask(t, e.NewSession(r), "one")
	require.NoError(t, e.Close())
}
