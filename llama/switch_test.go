package llama_test

import (
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/prune"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// maskOf is the mask whose sublayers' bits are set, two a layer.
func maskOf(bits int) skip.Mask { return skip.Mask{uint64(bits)} }

// TestEveryMask goes through all masks of a model of 4 layers.
func TestEveryMask(t *testing.T) {
	llamatest.Library(t)
	const layers = 4
	path := llamatest.Tiny(t, layers)
	m := llamatest.Open(t, path)
	c := small(t, m)
	seen := map[float32]string{}
	for bits := range 1<<(2*layers) - 1 {
		mask := maskOf(bits)
		reference, err := llama.LoadModel(context.Background(), llamatest.Zeroed(t, path, identity(mask)),
			&llama.ModelOptions{GPULayers: llamatest.GPULayers(t)})
		require.NoError(t, err)
		rc, err := reference.NewContext(&llama.ContextOptions{NCtx: 256, Threads: 1})
		require.NoError(t, err)
		c.Clear()
		prefill := decode(t, c, prompt(6), 0, mask)
		requireSame(t, decode(t, rc, prompt(6), 0, none), prefill, "prefill under "+mask.String())
		requireSame(t, decode(t, rc, prompt(1), 6, none), decode(t, c, prompt(1), 6, mask), "decode under "+mask.String())
		require.NoError(t, rc.Close())
		require.NoError(t, reference.Close())

		// No two masks may give the same, or equality would prove nothing.
		other, ok := seen[prefill[0]]
		require.False(t, ok, "%s gives the same as %s", mask, other)
		seen[prefill[0]] = mask.String()
	}
	require.ErrorIs(t, c.Decode(llamatest.Batch(t, prompt(1), 7), maskOf(1<<(2*layers)-1)), llama.ErrMask)
	logApart(t)
}

// TestMaskEqualsPruned compares with files from which the layers are gone.
func TestMaskEqualsPruned(t *testing.T) {
	llamatest.Library(t)
	for _, arch := range []string{"llama", "llama-moe", "qwen2", "qwen3", "qwen3moe", "phi3"} {
		t.Run(arch, func(t *testing.T) {
			path := llamatest.Write(t, randmodel.Small(arch))
			m := llamatest.Open(t, path)
			for _, layers := range [][]int{{0}, {7}, {3}, {2, 3, 4}, {0, 7}, {1, 3, 5, 6}, {0, 1, 2, 3, 4, 5, 6}, {1, 2, 3, 4, 5, 6, 7}} {
				mask := skip.Layers(layers...)
				dst := filepath.Join(t.TempDir(), "pruned.gguf")
				require.NoError(t, prune.Layers(context.Background(), path, dst, layers, nil))
				there := llamatest.GPULayers(t) // and with them the output: those left of the same layers
				left := there
				for _, l := range layers {
					if l >= m.NLayer+1-there {
						left--
					}
				}
				if !gpuRun() {
					left = llama.CPUOnly
				}
				pruned, err := llama.LoadModel(context.Background(), dst, &llama.ModelOptions{GPULayers: left})
				require.NoError(t, err)
				defer pruned.Close()
				require.Equal(t, 8-len(layers), pruned.NLayer)
				for _, v := range variants {
					want, _ := run(t, pruned, v, none)
					got, stats := run(t, m, v, mask)
					requireSame(t, want, got, mask.String()+", "+v.name)
					require.Equal(t, len(layers), stats.LayersRemoved)
				}
			}
			logApart(t)
		})
	}
}

// TestMaskRefused checks what is refused, and that nothing has happened then.
func TestMaskRefused(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 3))
	c := small(t, m)
	decode(t, c, prompt(5), 0, none)
	want := decode(t, c, prompt(6)[5:], 5, none)
	masked := func() []float32 {
		require.NoError(t, c.Remove(0, 5, -1))
		return decode(t, c, prompt(6)[5:], 5, skip.Layers(1))
	}
	wantMasked := masked()
	require.Positive(t, difference(want, wantMasked))
	require.NoError(t, c.Remove(0, 5, -1))
	for _, bad := range []struct {
		mask skip.Mask
		says string
	}{
		{skip.Layers(3), "names layer 3, but the model's layers end at 2"},
		{none.With(511, skip.Attention), "names layer 511"},
		{skip.Layers(0, 1, 2), "skips all 3 layers"},
	} {
		for range 3 { // the refused graph must not be reused either
			err := c.Decode(llamatest.Batch(t, prompt(6)[5:], 5), bad.mask)
			require.ErrorIs(t, err, llama.ErrMask)
			require.ErrorContains(t, err, bad.says)
			requirePositions(t, c, 0, 0, 4)
			_, err = c.Logits(0)
			require.ErrorIs(t, err, llama.ErrNoOutput)
		}
		requireSameBits(t, want, decode(t, c, prompt(6)[5:], 5, none), "after a refusal")
		requireSameBits(t, wantMasked, masked(), "under a mask after a refusal")
		require.NoError(t, c.Remove(0, 5, -1))
	}
}

// residentBytes is the memory of this process that is in use.
func residentBytes(t *testing.T) int {
	t.Helper()
	if runtime.GOOS != "linux" {
		return 0 // no leak is looked for
	}
	debug.FreeOSMemory() // what Go has freed is no leak
	statm, err := os.ReadFile("/proc/self/statm")
	require.NoError(t, err)
	pages, err := strconv.Atoi(strings.Fields(string(statm))[1])
	require.NoError(t, err)
	return pages * os.Getpagesize()
}

// switchRig is a context with a prefix in each of its sequences, to which short
// batches are appended under changing masks.
type switchRig struct {
	c      *llama.Context
	tokens []llama.Token
}

// prefixes are the lengths of the sequences' prefixes, in tokens.
var prefixes = []int{0, 3, 9}

func newSwitchRig(t *testing.T, m *llama.Model) switchRig {
	t.Helper()
	c, err := m.NewContext(&llama.ContextOptions{NCtx: 768, NUBatch: 4, NSeqMax: len(prefixes), Threads: 1})
	require.NoError(t, err)
	r := switchRig{c, prompt(32)}
	for seq, n := range prefixes {
		if n > 0 {
			r.append(t, seq, 0, n, none)
		}
	}
	return r
}

// append decodes n tokens at position pos of seq and returns the logits of the last.
func (r switchRig) append(t *testing.T, seq, pos, n int, mask skip.Mask) []float32 {
	b, err := llama.NewBatch(n, nil)
	require.NoError(t, err)
	defer b.Close()
	for i := range n {
		require.NoError(t, b.Add(r.tokens[pos+i], pos+i, i == n-1, seq))
	}
	require.NoError(t, r.c.Decode(b, mask))
	logits, err := r.c.Logits(-1)
	require.NoError(t, err)
	return logits
}

// TestSwitchMasks changes mask, batch shape and prefix from decode to decode.
// Each result must be a fresh context's, and memory must stay as it is.
func TestSwitchMasks(t *testing.T) {
	llamatest.Library(t)
	const (
		switches = 10_000
		layers   = 3
		window   = 100 // switches between two looks at memory
		// The halves' lowest looks are 4,500 switches apart and differ by up to 2 MB
		// without a leak. One graph of this model takes over 100 kB: a leak of one in
		// 25 switches, or of 4 kB in each, shows as twice this.
		slack = 8 << 20
	)
	m := llamatest.Open(t, llamatest.Tiny(t, layers))
	type key struct{ bits, seq, n int }
	want := map[key][]float32{}
	reference := func(k key) []float32 {
		if _, ok := want[k]; !ok {
			fresh := newSwitchRig(t, m)
			want[k] = slices.Clone(fresh.append(t, k.seq, prefixes[k.seq], k.n, maskOf(k.bits)))
			require.NoError(t, fresh.c.Close())
		}
		return want[k]
	}
	lengths := []int{1, 2, 4, 7} // of batches; 7 takes two ubatches of different shapes
	for bits := range 1<<(2*layers) - 1 {
		for seq := range prefixes {
			for _, n := range lengths {
				reference(key{bits, seq, n})
			}
		}
	}

	r := newSwitchRig(t, m)
	defer r.c.Close()
	random := rand.New(rand.NewPCG(4, 2))
	var resident []int // bytes after each window
	for i := range switches {
		k := key{random.IntN(1<<(2*layers) - 1), random.IntN(len(prefixes)), lengths[random.IntN(len(lengths))]}
		if random.IntN(4) == 0 {
			k.n = 1 // the usual case: the graph of the last token again, under another mask
		}
		got := r.append(t, k.seq, prefixes[k.seq], k.n, maskOf(k.bits))
		requireSameBits(t, want[k], got, "switch "+strconv.Itoa(i)+" to "+maskOf(k.bits).String())
		require.NoError(t, r.c.Remove(k.seq, prefixes[k.seq], -1))
		if (i+1)%window == 0 {
			resident = append(resident, residentBytes(t))
		}
	}
	// Memory goes up and down by megabytes as Go and the C library take and return
	// it; what a leak lifts is the floor.
	resident = resident[len(resident)/10:] // by now everything has been allocated once
	early, late := slices.Min(resident[:len(resident)/2]), slices.Min(resident[len(resident)/2:])
	t.Logf("resident memory: at least %d kB in the first half, %d kB in the second", early>>10, late>>10)
	require.Less(t, late-early, slack)
}

// TestSwitchUnlikeLayers goes from each layer skipped to each other in a model whose layers are
// of two kinds: the graphs have as many nodes and different inputs, and ggml must not take
// the memory plan of one for the other.
func TestSwitchUnlikeLayers(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Small(t, "gemma3")
	result := func(c *llama.Context, layer int) []float32 {
		c.Clear()
		decode(t, c, prompt(5), 0, skip.Layers(layer))
		return decode(t, c, prompt(1), 5, skip.Layers(layer))
	}
	var want [][]float32
	for layer := range m.NLayer {
		want = append(want, result(small(t, m), layer))
	}
	for first := range m.NLayer {
		c := small(t, m)
		for second := range m.NLayer {
			requireSameBits(t, want[first], result(c, first), "the first layer")
			requireSameBits(t, want[second], result(c, second), "layer "+strconv.Itoa(second)+" after "+strconv.Itoa(first))
		}
	}
}

// TestSwitchAfter changes the mask right after what makes llama.cpp itself drop or
// use its last graph; the result must be that of a context without an earlier mask.
func TestSwitchAfter(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 4))
	embedding := make([]float32, m.NEmbd)
	for i := range embedding {
		embedding[i] = float32(i%5) - 2
	}
	next := func(t *testing.T, c *llama.Context, mask skip.Mask, opts *llama.BatchOptions) []float32 {
		b, err := llama.NewBatch(1, opts)
		require.NoError(t, err)
		defer b.Close()
		_, last := c.Positions(0)
		if opts == nil {
			require.NoError(t, b.Add(9, last+1, true, 0))
		} else {
			require.NoError(t, b.AddEmbedding(embedding, last+1, true, 0))
		}
		require.NoError(t, c.Decode(b, mask))
		logits, err := c.Logits(-1)
		require.NoError(t, err)
		return slices.Clone(logits)
	}
	first, second := skip.Layers(1), none.With(2, skip.FeedForward)
	for name, event := range map[string]func(t *testing.T, c *llama.Context){
		"nothing": func(*testing.T, *llama.Context) {},
		"a cut of the cache": func(t *testing.T, c *llama.Context) {
			require.NoError(t, c.Remove(0, 5, -1))
		},
		"a restored state": func(t *testing.T, c *llama.Context) {
			saved, err := c.Save(0)
			require.NoError(t, err)
			c.Clear()
			require.NoError(t, c.Restore(saved, 0))
			require.NoError(t, saved.Close())
		},
		"a failed decode": func(t *testing.T, c *llama.Context) {
			require.Error(t, c.Decode(llamatest.Batch(t, prompt(1), 100), first))
		},
		"a batch of another shape": func(t *testing.T, c *llama.Context) {
			_, last := c.Positions(0)
			decode(t, c, prompt(3), last+1, none)
		},
	} {
		for kind, opts := range map[string]*llama.BatchOptions{"token": nil, "embedding": {Embd: m.NEmbd}} {
			t.Run(name+"/"+kind, func(t *testing.T) {
				c, fresh := small(t, m), small(t, m)
				decode(t, c, prompt(8), 0, none)
				masked := next(t, c, first, opts)
				require.NoError(t, c.Remove(0, 8, -1))
				event(t, c)
				decode(t, fresh, prompt(8), 0, none)
				event(t, fresh)
				got := next(t, c, second, opts)
				requireSameBits(t, next(t, fresh, second, opts), got, "the second mask")
				require.Positive(t, difference(masked, got))
			})
		}
	}
}

// TestContextsInParallel decodes in several contexts at once under their own masks.
func TestContextsInParallel(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 4))
	work := []skip.Mask{none, skip.Layers(1), none.With(0, skip.Attention).With(3, skip.FeedForward), skip.Layers(0, 3)}
	run := func(c *llama.Context, first int) (numbers []float32, err error) {
		b, err := llama.NewBatch(8, nil)
		if err != nil {
			return nil, err
		}
		defer b.Close()
		for step := range 60 {
			b.Clear()
			for i := range 1 + step%4 {
				_, last := c.Positions(0)
				if err := b.Add(prompt(64)[(step+i)%64], last+1+i, true, 0); err != nil {
					return nil, err
				}
			}
			if err := c.Decode(b, work[(first+step/5)%len(work)]); err != nil {
				return nil, err
			}
			logits, err := c.Logits(-1)
			if err != nil {
				return nil, err
			}
			numbers = append(numbers, logits...)
		}
		return numbers, nil
	}
	var alone, together [4][]float32
	var errs [4]error
	for i := range alone {
		alone[i], errs[i] = run(small(t, m), i)
		require.NoError(t, errs[i])
	}
	var group sync.WaitGroup
	for i := range together {
		c := small(t, m)
		group.Go(func() { together[i], errs[i] = run(c, i) })
	}
	group.Wait()
	for i := range together {
		require.NoError(t, errs[i])
		requireSameBits(t, alone[i], together[i], "context "+strconv.Itoa(i))
	}
	require.Positive(t, difference(alone[0], alone[1]))
}
