package llama_test

import (
	"context"
	"encoding/binary"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// The tests of this package put their models on a GPU where llamatest.EnvGPULayers
// says so: `make test-gpu`. What is in this file has a meaning only there, or shows
// more there.

// gpuRun tells whether this run's models are on a GPU.
func gpuRun() bool { return os.Getenv(llamatest.EnvGPULayers) != "" }

// needGPU skips a test that says nothing about the CPU.
func needGPU(t *testing.T) {
	t.Helper()
	if !gpuRun() {
		t.Skip("for models on a GPU: make test-gpu")
	}
}

// needCPU skips a test of what is refused for models on a GPU.
func needCPU(t *testing.T, why string) {
	t.Helper()
	if gpuRun() {
		t.Skip(why)
	}
}

// fusedRounding is how far numbers of order 1 may be apart on a GPU when two graphs
// that mean the same gave them. A GPU fuses an operation with its neighbours, so
// where those are others it rounds otherwise, in the last bits of 32-bit numbers and
// then, where these are rounded to 16 bits, in one of 2^11. Another mask's numbers
// are apart by several units.
const fusedRounding = 0.02

// requireSame wants the same bits, but on a GPU numbers within fusedRounding.
func requireSame(t *testing.T, want, got []float32, what string) {
	t.Helper()
	if !gpuRun() {
		requireSameBits(t, want, got, what)
		return
	}
	require.Len(t, got, len(want), what)
	apart := difference(want, got)
	noteApart(apart)
	require.LessOrEqual(t, apart, fusedRounding, what)
}

// mostApart is the largest distance that requireSame met, in millionths.
var mostApart atomic.Int64

func noteApart(d float64) {
	for n := int64(d * 1e6); ; {
		most := mostApart.Load()
		if n <= most || mostApart.CompareAndSwap(most, n) {
			return
		}
	}
}

// logApart tells the largest distance since it was last told.
func logApart(t *testing.T) {
	t.Helper()
	if gpuRun() {
		t.Logf("numbers that mean the same were apart by up to %.6f", float64(mostApart.Swap(0))/1e6)
	}
}

// TestGPUEqualsCPU decodes on both under many masks. Their kernels differ in all that
// may be: the order of sums, the precision of products, what is fused.
func TestGPUEqualsCPU(t *testing.T) {
	needGPU(t)
	llamatest.Library(t)
	v := variant{"", llama.ContextOptions{NCtx: 512, Threads: 1}, []int{0}}
	for i, arch := range randmodel.SmallNames() {
		t.Run(arch, func(t *testing.T) {
			path := llamatest.Write(t, randmodel.Small(arch))
			gpu := llamatest.Open(t, path)
			cpu, err := llama.LoadModel(context.Background(), path, onCPU)
			require.NoError(t, err)
			defer cpu.Close()
			list := masks(gpu.NLayer, uint64(i))
			if os.Getenv("GALLOP_LONG") == "" {
				list = list[:6]
			}
			whole, _ := run(t, cpu, v, skip.Mask{})
			var middles, mosts, others []float64
			for _, mask := range list {
				want, _ := run(t, cpu, v, mask)
				got, _ := run(t, gpu, v, mask)
				rows := rowDistances(want, got, gpu.Vocab.Size)
				middles, mosts = append(middles, rows[len(rows)/2]), append(mosts, rows[len(rows)-1])
				if !mask.IsEmpty() {
					other := rowDistances(want, whole, gpu.Vocab.Size)
					others = append(others, other[len(other)/2])
				}
			}
			t.Logf("logits of GPU and CPU are apart by up to %.2g (half of the tokens: %.2g); those of another mask by %.2g at least",
				slices.Max(mosts), slices.Max(middles), slices.Min(others))
			// A router of experts decides otherwise at a near-tie, which parts the logits of
			// that token and of those behind it. TestMaskEqualsIdentityLayers tells there.
			if !strings.Contains(arch, "moe") {
				require.Less(t, slices.Max(middles), slices.Min(others)/10, "or equality would prove nothing")
			}
		})
	}
}

// rowDistances is how far the rows of width numbers of a and b are apart, sorted.
func rowDistances(a, b []float32, width int) (rows []float64) {
	for at := 0; at < len(a); at += width {
		rows = append(rows, difference(a[at:at+width], b[at:at+width]))
	}
	slices.Sort(rows)
	return rows
}

// TestGPUHoldsTheMatrix is how the other tests know that their models are on the GPU:
// the last of the layers, which counts as one, is the output matrix.
func TestGPUHoldsTheMatrix(t *testing.T) {
	needGPU(t)
	for _, name := range []string{"llama", "gemma3"} { // gemma3's file has one matrix for input and output
		_, err := llamatest.Small(t, name).OutputMatrix()
		require.ErrorIs(t, err, llama.ErrShortlist)
		require.ErrorContains(t, err, "GPU")
		t.Log(err)
	}
}

// envReplay makes this test binary write the numbers of TestSwitchBetweenReplays into
// the file that it names.
const envReplay = "GALLOP_TEST_REPLAY"

// replayModels are models whose graphs a GPU may keep: with and without experts.
var replayModels = []string{"llama", "llama-moe", "gemma3", "qwen3"}

// replay generates under masks that change after a few tokens each, as cascades,
// drafts and answers do, and returns all logits.
func replay(t *testing.T) (numbers []float32) {
	work := []skip.Mask{none, skip.Layers(2, 3), none.With(5, skip.FeedForward), skip.Layers(0), none.With(7, skip.Attention), skip.Layers(6, 7)}
	for _, name := range replayModels {
		c := llamatest.Context(t, llamatest.Small(t, name), &llama.ContextOptions{NCtx: 512, Threads: 1})
		tokens := prompt(300)
		require.NoError(t, c.Decode(llamatest.Batch(t, tokens[:promptTokens], 0), none))
		pos := promptTokens
		for round := range 24 {
			for range []int{1, 2, 3, 9}[round%4] { // a CUDA graph is captured for the second and replayed from the third
				numbers = append(numbers, decode(t, c, tokens[pos:pos+1], pos, work[round*5%len(work)])...)
				pos++
			}
		}
	}
	return numbers
}

// TestSwitchBetweenReplays generates with every way in which llama.cpp uses a graph
// again, and once more without any: the numbers are the same, so nothing stale was used.
func TestSwitchBetweenReplays(t *testing.T) {
	llamatest.Library(t)
	if file := os.Getenv(envReplay); file != "" {
		data, err := binary.Append(nil, binary.LittleEndian, replay(t))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, data, 0o600))
		return
	}
	var captured atomic.Int64
	llama.SetLogger(slog.New(countLines{"CUDA graph warmup complete", &captured}))
	got := replay(t)
	llama.SetLogger(nil)
	t.Logf("%d CUDA graphs captured", captured.Load())
	cuda := slices.ContainsFunc(llama.Devices(), func(d llama.Device) bool { return strings.HasPrefix(d.Name, "CUDA") })
	if gpuRun() && cuda && os.Getenv("GGML_CUDA_DISABLE_GRAPHS") == "" {
		require.Positive(t, captured.Load(), "or there was nothing to be stale")
	}

	file := filepath.Join(t.TempDir(), "numbers")
	exe, err := os.Executable()
	require.NoError(t, err)
	child := exec.Command(exe, "-test.run=^TestSwitchBetweenReplays$")
	child.Env = append(os.Environ(), envReplay+"="+file, "GGML_CUDA_DISABLE_GRAPHS=1", "LLAMA_GRAPH_REUSE_DISABLE=1")
	out, err := child.CombinedOutput()
	require.NoError(t, err, "%s", out)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	want := make([]float32, len(data)/4)
	_, err = binary.Decode(data, binary.LittleEndian, want)
	require.NoError(t, err)
	requireSameBits(t, want, got, "with graphs that are used again")
}

// countLines is a log handler that counts the lines with a text.
type countLines struct {
	text string
	n    *atomic.Int64
}

func (c countLines) Enabled(context.Context, slog.Level) bool { return true }
func (c countLines) WithAttrs([]slog.Attr) slog.Handler       { return c }
func (c countLines) WithGroup(string) slog.Handler            { return c }
func (c countLines) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, c.text) {
		c.n.Add(1)
	}
	return nil
}

// TestCPUOnlyUsesNoGPU shows that with CPUOnly a GPU gets no long batches to multiply
// either, by the buffer that llama.cpp plans for that.
func TestCPUOnlyUsesNoGPU(t *testing.T) {
	needGPU(t)
	llamatest.Library(t)
	path := llamatest.Tiny(t, 2)
	devices := llama.Devices()
	gpu := devices[slices.IndexFunc(devices, llama.Device.IsGPU)].Name
	for layers, wanted := range map[int]bool{llama.CPUOnly: false, 1: true} {
		var planned atomic.Int64
		llama.SetLogger(slog.New(countLines{gpu + " compute buffer", &planned}))
		m, err := llama.LoadModel(context.Background(), path, &llama.ModelOptions{GPULayers: layers})
		require.NoError(t, err)
		decode(t, small(t, m), prompt(64), 0, none)
		require.NoError(t, m.Close())
		llama.SetLogger(nil)
		require.Equal(t, wanted, planned.Load() > 0, "%d layers on the GPU", layers)
	}
}

// TestGPUQuarterOfTheLayers puts 4 of 16 layers on the GPU, and the output matrix, under masks on
// both sides of where the stream changes to the GPU and across it.
func TestGPUQuarterOfTheLayers(t *testing.T) {
	needGPU(t)
	llamatest.Library(t)
	quarter := &llama.ModelOptions{GPULayers: 4 + 1}
	v := variant{"", llama.ContextOptions{NCtx: 512, Threads: 1}, []int{0}}
	for _, arch := range []string{"llama", "gemma3", "qwen3moe"} {
		t.Run(arch, func(t *testing.T) {
			spec := randmodel.Small(arch)
			spec.Layers = 16
			path := llamatest.Write(t, spec)
			var offloaded atomic.Int64
			llama.SetLogger(slog.New(countLines{"offloaded 5/17 layers to GPU", &offloaded}))
			m, err := llama.LoadModel(context.Background(), path, quarter)
			llama.SetLogger(nil)
			require.NoError(t, err)
			defer m.Close()
			require.EqualValues(t, 1, offloaded.Load())
			whole, _ := run(t, m, v, none)
			for _, mask := range append(masks(16, 2)[1:],
				skip.Layers(11), skip.Layers(12), skip.Layers(11, 12), skip.Layers(10, 11, 12, 13), skip.Layers(12, 13, 14, 15), // the first on the GPU is 12
				none.With(11, skip.FeedForward).With(12, skip.Attention), none.With(11, skip.Attention).With(12, skip.FeedForward)) {
				reference, err := llama.LoadModel(context.Background(), llamatest.Zeroed(t, path, identity(mask)), quarter)
				require.NoError(t, err)
				want, _ := run(t, reference, v, none)
				got, _ := run(t, m, v, mask)
				require.NoError(t, reference.Close())
				requireSame(t, want, got, mask.String())
				require.Greater(t, difference(whole, got), 10*fusedRounding, "or equality would prove nothing")
			}
			logApart(t)
		})
	}
}

// TestGPUFlashAttention has heads of 64 numbers, for which every GPU module has flash
// attention, not all have it for the small models' 32, and weights of several types.
func TestGPUFlashAttention(t *testing.T) {
	needGPU(t)
	llamatest.Library(t)
	v := variant{"flash attention", llama.ContextOptions{NCtx: 512, Threads: 1, Flash: llama.FlashOn}, []int{0}}
	for _, arch := range []string{"llama", "qwen3", "gemma3"} {
		for _, typ := range []gguf.Type{gguf.F16, gguf.Q4_0, gguf.Q8_0, gguf.Q4_K} {
			t.Run(arch+" "+typ.String(), func(t *testing.T) {
				path := aloneModel(t, arch, typ)
				m := llamatest.Open(t, path)
				for _, mask := range masks(m.NLayer, 1)[1:20] {
					reference, err := llama.LoadModel(context.Background(), llamatest.Zeroed(t, path, identity(mask)),
						&llama.ModelOptions{GPULayers: llamatest.GPULayers(t)})
					require.NoError(t, err)
					want, _ := run(t, reference, v, skip.Mask{})
					got, _ := run(t, m, v, mask)
					require.NoError(t, reference.Close())
					requireSame(t, want, got, mask.String())
				}
				logApart(t)
			})
		}
	}
}
