// Package llamatest opens the library and models for tests, closes them again,
// and fails a test that leaves something of C open.
package llamatest

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/llama"
)

// Library makes llama.cpp ready: installed if need be, unless GALLOP_LIB names another
// folder, and loaded. At the end
// of the test it checks that everything opened since is closed.
func Library(t testing.TB) {
	t.Helper()
	if llama.Dir() == "" {
		if os.Getenv(llama.EnvLibrary) == "" {
			_, err := libs.Install(context.Background(), nil)
			require.NoError(t, err)
		}
		_, err := libs.Load()
		require.NoError(t, err)
	}
	before := llama.Live()
	t.Cleanup(func() { require.Equal(t, before, llama.Live(), "C objects left open by this test") })
}

// Write makes a model of random weights in a temporary folder and returns its path.
func Write(t testing.TB, spec randmodel.Spec) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.gguf")
	require.NoError(t, randmodel.Write(path, spec))
	return path
}

// Rewrite copies a GGUF file with changed metadata into a temporary folder and
// returns its path.
func Rewrite(t testing.TB, src string, change func(meta *gguf.Metadata)) string {
	t.Helper()
	f, err := gguf.Open(src)
	require.NoError(t, err)
	defer f.Close()
	meta := f.Metadata
	change(&meta)
	var tensors []gguf.Source
	for _, tensor := range f.Tensors {
		tensors = append(tensors, f.Copy(tensor))
	}
	path := filepath.Join(t.TempDir(), "rewritten.gguf")
	require.NoError(t, gguf.Write(context.Background(), path, meta, tensors, nil))
	return path
}

// OutputLoRA writes an adapter of a small model's output matrix that adds nothing, and
// returns its path.
func OutputLoRA(t testing.TB, spec randmodel.Spec) string {
	t.Helper()
	var meta gguf.Metadata
	meta.Set("general.type", "adapter")
	meta.Set(gguf.KeyArchitecture, spec.Arch)
	meta.Set("adapter.type", "lora")
	meta.Set("adapter.lora.alpha", float32(2))
	const rank, floatBytes = 2, 4
	part := func(name string, rows, cols int) gguf.Source {
		return gguf.Source{
			Tensor: gguf.Tensor{Name: name, Type: gguf.F32, Shape: []uint64{uint64(cols), uint64(rows)}},
			Data:   gguf.Bytes(make([]byte, floatBytes*rows*cols)),
		}
	}
	path := filepath.Join(t.TempDir(), "lora.gguf")
	require.NoError(t, gguf.Write(context.Background(), path, meta, []gguf.Source{
		part(gguf.OutputName+".lora_a", rank, spec.Embd), part(gguf.OutputName+".lora_b", spec.Vocab, rank),
	}, nil))
	return path
}

// Scaled copies a model of the architecture llama into one of granite, whose logits are
// the output matrix's products times a factor, and returns its path.
func Scaled(t testing.TB, src string) string {
	t.Helper()
	return Rewrite(t, src, func(meta *gguf.Metadata) {
		for i, entry := range *meta {
			if name, ok := strings.CutPrefix(entry.Key, "llama."); ok {
				(*meta)[i].Key = "granite." + name
			}
		}
		meta.Set(gguf.KeyArchitecture, "granite")
		meta.Set("granite.logit_scale", float32(8))
	})
}

// Split copies a GGUF file into a temporary folder by [randmodel.Split], and returns
// the first part's path.
func Split(t testing.TB, src string, parts int) string {
	t.Helper()
	path, err := randmodel.Split(src, t.TempDir(), parts)
	require.NoError(t, err)
	return path
}

// Zeroed copies a GGUF file, with the elements of the tensors that zero picks by
// name set to zero, into a temporary folder and returns its path.
func Zeroed(t testing.TB, src string, zero func(tensor string) bool) string {
	t.Helper()
	return filled(t, src, 0, zero)
}

// NaNs copies a GGUF file with the elements of one tensor, of type F32 or F16, set
// to NaN into a temporary folder and returns its path.
func NaNs(t testing.TB, src, tensor string) string {
	t.Helper()
	return filled(t, src, 0xff, func(name string) bool { return name == tensor })
}

// filled copies a GGUF file with all bytes of the picked tensors set to b.
func filled(t testing.TB, src string, b byte, pick func(tensor string) bool) string {
	t.Helper()
	f, err := gguf.Open(src)
	require.NoError(t, err)
	defer f.Close()
	data, err := os.ReadFile(src)
	require.NoError(t, err)
	for _, tensor := range f.Tensors {
		if pick(tensor.Name) {
			part := data[uint64(f.DataOffset)+tensor.Offset:][:tensor.Size]
			for i := range part {
				part[i] = b
			}
		}
	}
	path := filepath.Join(t.TempDir(), "filled.gguf")
	require.NoError(t, os.WriteFile(path, data, 0o644))
	return path
}

// Tiny writes a llama model of random weights by [randmodel.Tiny].
func Tiny(t testing.TB, layers int) string {
	t.Helper()
	return Write(t, randmodel.Tiny(layers))
}

// EnvGPULayers names the environment variable with how many of a model's last
// layers the tests put on a GPU, the output counted as one; unset = none.
const EnvGPULayers = "GALLOP_TEST_NGL"

// GPULayers is what [EnvGPULayers] says, as [llama.ModelOptions] takes it. Where it
// asks for a GPU and there is none the test fails.
func GPULayers(t testing.TB) int {
	t.Helper()
	text := os.Getenv(EnvGPULayers)
	if text == "" {
		return llama.CPUOnly
	}
	n, err := strconv.Atoi(text)
	require.NoError(t, err, EnvGPULayers)
	require.Positive(t, n, EnvGPULayers)
	if llama.Dir() == "" {
		Library(t)
	}
	require.True(t, slices.ContainsFunc(llama.Devices(), llama.Device.IsGPU), "%s is set, but llama.cpp finds no GPU: %+v", EnvGPULayers, llama.Devices())
	return n
}

// Open loads a model, on the CPU unless [EnvGPULayers] is set; the end of the test
// closes it.
func Open(t testing.TB, path string) *llama.Model {
	t.Helper()
	if llama.Dir() == "" {
		Library(t)
	}
	m, err := llama.LoadModel(context.Background(), path, &llama.ModelOptions{GPULayers: GPULayers(t)})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

// Small writes and opens one of randmodel's small models.
func Small(t testing.TB, name string) *llama.Model {
	t.Helper()
	return Open(t, Write(t, randmodel.Small(name)))
}

// Context makes a context of m; the end of the test closes it.
func Context(t testing.TB, m *llama.Model, opts *llama.ContextOptions) *llama.Context {
	t.Helper()
	c, err := m.NewContext(opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	return c
}

// Batch fills a batch with tokens at the positions from pos on, in each of the
// sequences, every one an output; the end of the test closes it.
func Batch(t testing.TB, tokens []llama.Token, pos int, sequences ...int) *llama.Batch {
	t.Helper()
	if len(sequences) == 0 {
		sequences = []int{0}
	}
	b, err := llama.NewBatch(len(tokens)*len(sequences), nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	for _, s := range sequences {
		for i, tok := range tokens {
			require.NoError(t, b.Add(tok, pos+i, true, s))
		}
	}
	return b
}
