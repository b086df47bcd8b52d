package llama_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/prune"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// wide is a model whose matrices are many pages large: 8 layers, 30 million weights.
func wide(typ gguf.Type) randmodel.Spec {
	spec := randmodel.Small("llama")
	spec.Embd, spec.FF, spec.Type = 512, 2048, typ
	return spec
}

func load(t testing.TB, path string, opts llama.ModelOptions) *llama.Model {
	t.Helper()
	opts.GPULayers = llama.CPUOnly
	m, err := llama.LoadModel(context.Background(), path, &opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

func resident(t testing.TB, m *llama.Model) uint64 {
	t.Helper()
	n, err := m.ResidentWeights()
	require.NoError(t, err)
	return n
}

// processMemory is what the system counts as this process's memory, in bytes.
func processMemory(t testing.TB) (bytes uint64) {
	t.Helper()
	debug.FreeOSMemory() // what the tests have used so far is not the model's
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(status), "VmRSS:")
	require.True(t, ok)
	_, err = fmt.Sscan(rest, &bytes)
	require.NoError(t, err)
	return bytes << 10
}

// TestReleaseWeights compares with the file from which the layers are removed.
func TestReleaseWeights(t *testing.T) {
	llamatest.Library(t)
	mask := skip.Layers(2, 3, 4, 6)
	for _, c := range []struct {
		typ      gguf.Type
		noRepack bool
	}{{gguf.F16, false}, {gguf.Q4_0, false}, {gguf.Q4_0, true}} {
		t.Run(fmt.Sprintf("%s, no repack %t", c.typ, c.noRepack), func(t *testing.T) {
			opts := llama.ModelOptions{NoRepack: c.noRepack}
			path, prunedPath := llamatest.Write(t, wide(c.typ)), filepath.Join(t.TempDir(), "pruned.gguf")
			layers, _ := mask.WholeLayers()
			require.NoError(t, prune.Layers(context.Background(), path, prunedPath, layers, nil))
			pruned := load(t, prunedPath, opts)
			decode(t, small(t, pruned), prompt(4), 0, none)
			least := resident(t, pruned)

			m := load(t, path, opts)
			require.True(t, m.Releasable())
			ctx := small(t, m)
			run := func(mask skip.Mask) []float32 {
				ctx.Clear()
				return decode(t, ctx, prompt(4), 0, mask)
			}
			whole, masked := run(none), run(mask)
			const around = 5 << 20 // the system maps some pages around each that is needed
			require.InDelta(t, m.Size, resident(t, m), around, "each weight is in memory once")
			before := processMemory(t)
			for range 2 {
				require.NoError(t, m.ReleaseWeights(mask))
				require.InEpsilon(t, least, resident(t, m), 0.05)
			}
			require.Less(t, processMemory(t), before-(m.Size-least)*3/4, "the system has them")
			require.Equal(t, masked, run(mask))
			require.InEpsilon(t, least, resident(t, m), 0.05, "what is skipped stays away")

			require.Equal(t, whole, run(none), "what is needed comes back")
			require.InDelta(t, m.Size, resident(t, m), around)
			require.NoError(t, m.ReleaseWeights(none))
			require.InDelta(t, m.Size, resident(t, m), around, "nothing is skipped")

			require.NoError(t, m.ReleaseWeights(mask))
			require.NoError(t, m.ReleaseWeights(skip.Layers(2)))
			require.InEpsilon(t, least, resident(t, m), 0.05)
			other := run(skip.Layers(2))
			require.Equal(t, whole, run(none))
			require.Equal(t, other, run(skip.Layers(2)))
		})
	}
}

// TestReleaseIsExact goes through all architectures, repacked where that can be:
// what a mask keeps must be there, whatever the tensors are called.
func TestReleaseIsExact(t *testing.T) {
	llamatest.Library(t)
	for _, name := range randmodel.SmallNames() {
		t.Run(name, func(t *testing.T) {
			spec := randmodel.Small(name)
			spec.Embd, spec.HeadDim, spec.FF, spec.Type = 256, 256/spec.Heads, 256, gguf.Q4_0
			m := load(t, llamatest.Write(t, spec), llama.ModelOptions{})
			ctx := small(t, m)
			for _, mask := range masks(spec.Layers, 1) {
				ctx.Clear()
				want := decode(t, ctx, prompt(3), 0, mask)
				require.NoError(t, m.ReleaseWeights(mask))
				ctx.Clear()
				require.Equal(t, want, decode(t, ctx, prompt(3), 0, mask), "%s", mask)
			}
		})
	}
}

func TestReleaseBesideDecodes(t *testing.T) {
	llamatest.Library(t)
	spec := wide(gguf.Q4_0)
	spec.Layers, spec.FF = 4, 512
	m := load(t, llamatest.Write(t, spec), llama.ModelOptions{})
	var running sync.WaitGroup
	for _, mask := range []skip.Mask{none, skip.Layers(1), skip.Layers(2).With(1, skip.FeedForward)} {
		ctx := small(t, m)
		want := decode(t, ctx, prompt(3), 0, mask)
		batch := llamatest.Batch(t, prompt(3), 0)
		running.Go(func() {
			for range 30 {
				ctx.Clear()
				err := errors.Join(m.ReleaseWeights(mask), ctx.Decode(batch, mask))
				if err == nil {
					var logits []float32
					logits, err = ctx.Logits(-1)
					for i, v := range logits {
						if v != want[i] {
							err = fmt.Errorf("logit %d under %s is %g, want %g", i, mask, v, want[i])
						}
					}
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	running.Wait()
}

func TestNothingToRelease(t *testing.T) {
	llamatest.Library(t)
	path := llamatest.Write(t, randmodel.Small("llama"))
	for name, opts := range map[string]llama.ModelOptions{
		"read": {NoMmap: true}, "locked": {Mlock: true}, "no weights": {VocabOnly: true},
	} {
		t.Run(name, func(t *testing.T) {
			m := load(t, path, opts)
			require.False(t, m.Releasable())
			before := resident(t, m)
			require.NoError(t, m.ReleaseWeights(skip.Layers(1, 2)))
			require.Equal(t, before, resident(t, m))
		})
	}
	m := load(t, path, llama.ModelOptions{})
	require.NoError(t, m.Close())
	require.ErrorIs(t, m.ReleaseWeights(none), llama.ErrClosed)
	_, err := m.ResidentWeights()
	require.ErrorIs(t, err, llama.ErrClosed)
}

// BenchmarkReleaseWeights is what a change of masks costs: with nothing to give
// back, and with four layers that come and go, of some 2 MB each.
func BenchmarkReleaseWeights(b *testing.B) {
	llamatest.Library(b)
	b.Run("32 layers, nothing resident", func(b *testing.B) {
		m := load(b, llamatest.Tiny(b, 32), llama.ModelOptions{})
		for b.Loop() {
			require.NoError(b, m.ReleaseWeights(skip.Layers(8, 9, 10, 11)))
		}
	})
	for _, noRepack := range []bool{false, true} {
		for _, release := range []bool{false, true} {
			b.Run(fmt.Sprintf("no repack %t/release %t", noRepack, release), func(b *testing.B) {
				m := load(b, llamatest.Write(b, wide(gguf.Q4_0)), llama.ModelOptions{NoRepack: noRepack})
				s := stepper{llamatest.Context(b, m, &llama.ContextOptions{NCtx: 256, Threads: 1}), llamatest.Batch(b, prompt(1), 0)}
				mask := skip.Layers(2, 3, 4, 5)
				for b.Loop() {
					require.NoError(b, s.step(mask))
					if release {
						require.NoError(b, m.ReleaseWeights(mask))
					}
					require.NoError(b, s.step(none))
				}
			})
		}
	}
}
