package prune_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/prune"
	"github.com/gallop-llm/gallop/internal/randmodel"
)

func ExampleLayers() {
	dir, err := os.MkdirTemp("", "prune")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	src, dst := filepath.Join(dir, "model.gguf"), filepath.Join(dir, "pruned.gguf")
	if err := randmodel.Write(src, randmodel.Small("llama")); err != nil {
		log.Fatal(err)
	}

	if err := prune.Layers(context.Background(), src, dst, []int{2, 5}, nil); err != nil {
		log.Fatal(err)
	}
	f, err := gguf.Open(dst)
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	layers, err := f.Metadata.LayerCount()
	if err != nil {
		log.Fatal(err)
	}
	pruned, _ := f.Metadata.Lookup(prune.KeyPruned)
	fmt.Println(layers, "layers left, without", pruned)
	// Output: 6 layers left, without [2 5]
}

// model writes a small random model with changed metadata and gives its path.
func model(t *testing.T, name string, change func(*gguf.Metadata)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.gguf")
	require.NoError(t, randmodel.Write(path, randmodel.Small(name)))
	if change == nil {
		return path
	}
	f := open(t, path)
	meta := f.Metadata
	change(&meta)
	var tensors []gguf.Source
	for _, tensor := range f.Tensors {
		tensors = append(tensors, f.Copy(tensor))
	}
	changed := filepath.Join(t.TempDir(), "changed.gguf")
	require.NoError(t, gguf.Write(context.Background(), changed, meta, tensors, nil))
	return changed
}

func open(t *testing.T, path string) *gguf.File {
	t.Helper()
	f, err := gguf.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return f
}

// pruned prunes a model that must be prunable and opens the result.
func pruned(t *testing.T, src string, layers ...int) *gguf.File {
	t.Helper()
	dst := filepath.Join(t.TempDir(), "pruned.gguf")
	require.NoError(t, prune.Layers(context.Background(), src, dst, layers, nil))
	return open(t, dst)
}

func content(t *testing.T, f *gguf.File, tensor gguf.Tensor) []byte {
	t.Helper()
	b, err := io.ReadAll(f.Reader(tensor))
	require.NoError(t, err)
	return b
}

// TestPruneKeepsTheRest compares every tensor and every key with the original.
func TestPruneKeepsTheRest(t *testing.T) {
	kept := []int{1, 2, 4, 5, 6}
	for _, name := range []string{"llama", "llama-moe", "qwen2", "qwen3", "qwen3moe", "phi3"} {
		t.Run(name, func(t *testing.T) {
			src := model(t, name, nil)
			old, small := open(t, src), pruned(t, src, 7, 0, 3, 3) // unsorted, one twice
			for _, tensor := range small.Tensors {
				oldName := tensor.Name
				if layer, rest, ok := gguf.SplitLayer(tensor.Name); ok {
					oldName = fmt.Sprintf("blk.%d.%s", kept[layer], rest)
				}
				from, ok := old.Tensor(oldName)
				require.True(t, ok, oldName)
				require.Equal(t, from.Shape, tensor.Shape)
				require.Equal(t, from.Type, tensor.Type)
				require.Equal(t, content(t, old, from), content(t, small, tensor), oldName)
			}
			perLayer := 0
			for _, tensor := range old.Tensors {
				if strings.HasPrefix(tensor.Name, "blk.0.") {
					perLayer++
				}
			}
			require.Len(t, small.Tensors, len(old.Tensors)-3*perLayer)

			want := old.Metadata
			want.Set(old.Metadata.ArchKey(gguf.KeyBlockCount), uint32(5))
			want.Set(prune.KeyPruned, []uint32{0, 3, 7})
			require.Equal(t, want, small.Metadata)
		})
	}
}

func TestPruneShortensLayerArrays(t *testing.T) {
	src := model(t, "llama", func(m *gguf.Metadata) {
		m.Set("llama.attention.head_count", []uint32{0, 1, 2, 3, 4, 5, 6, 7})
		m.Set("llama.attention.head_count_kv", []int32{0, 1, 2, 3, 4, 5, 6, 7})
		m.Set("llama.feed_forward_length", []uint64{0, 1, 2, 3, 4, 5, 6, 7})
		m.Set("llama.attention.sliding_window_pattern", []bool{true, false, true, false, true, false, true, true})
		m.Set("llama.rope.dimension_sections", []int32{0, 1, 2, 3, 4, 5, 6, 7}) // not of layers
		m.Set("llama.classifier.output_labels", []string{"a", "b", "c", "d", "e", "f", "g", "h"})
		m.Set("llama.unknown", []uint32{1, 2, 3}) // not of layers, by its length
		m.Set("tokenizer.ggml.eight", []string{"a", "b", "c", "d", "e", "f", "g", "h"})
	})
	m := pruned(t, src, 1, 2).Metadata
	for key, want := range map[string]any{
		"llama.block_count":                      uint32(6),
		"llama.attention.head_count":             []uint32{0, 3, 4, 5, 6, 7},
		"llama.attention.head_count_kv":          []int32{0, 3, 4, 5, 6, 7},
		"llama.feed_forward_length":              []uint64{0, 3, 4, 5, 6, 7},
		"llama.attention.sliding_window_pattern": []bool{true, false, true, false, true, true},
		"llama.rope.dimension_sections":          []int32{0, 1, 2, 3, 4, 5, 6, 7},
		"llama.classifier.output_labels":         []string{"a", "b", "c", "d", "e", "f", "g", "h"},
		"llama.unknown":                          []uint32{1, 2, 3},
		"tokenizer.ggml.eight":                   []string{"a", "b", "c", "d", "e", "f", "g", "h"},
	} {
		got, ok := m.Lookup(key)
		require.True(t, ok)
		require.Equal(t, want, got, key)
	}
}

func TestPruneLeadingDenseLayers(t *testing.T) {
	src := model(t, "llama", func(m *gguf.Metadata) {
		m.Set("llama.leading_dense_block_count", uint32(3))
		m.Set("llama.nextn_predict_layers", uint32(0)) // says nothing
	})
	for _, c := range []struct {
		layers []int
		want   uint32
	}{{[]int{0}, 2}, {[]int{3}, 3}, {[]int{1, 2, 6}, 1}, {[]int{0, 1, 2}, 0}, {[]int{3, 4, 5, 6, 7}, 3}} {
		got, _ := pruned(t, src, c.layers...).Metadata.Lookup("llama.leading_dense_block_count")
		require.Equal(t, c.want, got, c.layers)
	}
}

// TestPruneTwice makes sure that the record speaks of the original layers.
func TestPruneTwice(t *testing.T) {
	once := pruned(t, model(t, "llama", nil), 1, 2, 7) // 0 3 4 5 6 stay
	twice := pruned(t, once.Path, 0, 2)                // 3 5 6 stay
	record, err := twice.Metadata.Uints(prune.KeyPruned)
	require.NoError(t, err)
	require.Equal(t, []uint64{0, 1, 2, 4, 7}, record)
}

func TestPruneToOneLayer(t *testing.T) {
	n, err := pruned(t, model(t, "llama", nil), 0, 1, 2, 3, 4, 5, 6).Metadata.LayerCount()
	require.NoError(t, err)
	require.Equal(t, 1, n)
}

func TestPruneRefuses(t *testing.T) {
	arch := func(name string) func(*gguf.Metadata) {
		return func(m *gguf.Metadata) {
			m.Set("general.architecture", name)
			m.Set(name+".block_count", uint32(8))
		}
	}
	set := func(key string, value any) func(*gguf.Metadata) {
		return func(m *gguf.Metadata) { m.Set(key, value) }
	}
	for name, c := range map[string]struct {
		layers []int
		change func(*gguf.Metadata)
		kind   error
		text   string
	}{
		"none":     {nil, nil, prune.ErrLayers, "none are given"},
		"negative": {[]int{-1}, nil, prune.ErrLayers, "the model has 0 to 7"},
		"too high": {[]int{1, 8}, nil, prune.ErrLayers, "the model has 0 to 7"},
		"all":      {[]int{0, 1, 2, 3, 4, 5, 6, 7}, nil, prune.ErrLayers, "at least one must stay"},

		"gemma3":   {[]int{1}, arch("gemma3"), prune.ErrUnprunable, "gemma3: which of its layers see a sliding window goes by their number"},
		"smollm3":  {[]int{1}, arch("smollm3"), prune.ErrUnprunable, "encode positions"},
		"qwen3vl":  {[]int{1}, arch("qwen3vl"), prune.ErrUnprunable, "images"},
		"glm4moe":  {[]int{1}, arch("glm4moe"), prune.ErrUnprunable, "further tokens"},
		"newcomer": {[]int{1}, arch("newcomer"), prune.ErrUnprunable, "newcomer: it is not known"},

		"no architecture": {[]int{1}, set("general.architecture", uint32(1)), prune.ErrUnprunable, "general.architecture"},
		"no model":        {[]int{1}, func(m *gguf.Metadata) { m.Delete("llama.block_count") }, prune.ErrUnprunable, "no language model"},
		"window period":   {[]int{1}, set("llama.attention.sliding_window_pattern", uint32(4)), prune.ErrUnprunable, "sliding_window_pattern"},
		"next tokens":     {[]int{1}, set("llama.nextn_predict_layers", uint32(1)), prune.ErrUnprunable, "nextn_predict_layers"},
		"shared cache":    {[]int{1}, set("llama.attention.shared_kv_layers", uint32(2)), prune.ErrUnprunable, "shared_kv_layers"},
		"expert step":     {[]int{1}, set("llama.interleave_moe_layer_step", uint32(2)), prune.ErrUnprunable, "interleave_moe_layer_step"},
		"image layers":    {[]int{1}, set("llama.deepstack_mapping", []int32{-1, 0}), prune.ErrUnprunable, "deepstack_mapping"},
		"unknown array":   {[]int{1}, set("llama.unknown", make([]float32, 8)), prune.ErrUnprunable, "one for each layer"},
		"short array":     {[]int{1}, set("llama.attention.head_count", make([]uint32, 7)), prune.ErrUnprunable, "7 values for 8 layers"},
		"fewer layers":    {[]int{1}, set("llama.block_count", uint32(7)), prune.ErrUnprunable, `tensor "blk.7.`},
		"odd record":      {[]int{1}, set(prune.KeyPruned, "4"), prune.ErrUnprunable, prune.KeyPruned},
		"absurd record":   {[]int{1}, set(prune.KeyPruned, []uint32{1 << 31}), prune.ErrUnprunable, prune.KeyPruned},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			src := model(t, "llama", c.change)
			err := prune.Layers(context.Background(), src, filepath.Join(dir, "out.gguf"), c.layers, nil)
			require.ErrorIs(t, err, c.kind)
			require.ErrorContains(t, err, c.text)
			require.ErrorContains(t, err, src)
			require.NotContains(t, err.Error(), "\n")
			requireFiles(t, dir)
		})
	}
}

// requireFiles makes sure that a folder holds just these files.
func requireFiles(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	found := []string{}
	for _, e := range entries {
		found = append(found, e.Name())
	}
	require.Equal(t, append([]string{}, names...), found)
}

func TestPruneSource(t *testing.T) {
	dst := filepath.Join(t.TempDir(), "out.gguf")
	err := prune.Layers(context.Background(), "none.gguf", dst, []int{1}, nil)
	require.ErrorIs(t, err, os.ErrNotExist)
	text := filepath.Join(t.TempDir(), "text.gguf")
	require.NoError(t, os.WriteFile(text, []byte("no model"), 0o600))
	require.ErrorIs(t, prune.Layers(context.Background(), text, dst, []int{1}, nil), gguf.ErrNotGGUF)
}

func TestPruneTarget(t *testing.T) {
	src := model(t, "llama", nil)
	before, err := os.ReadFile(src)
	require.NoError(t, err)
	dir := filepath.Dir(src)
	link := filepath.Join(dir, "link.gguf")
	require.NoError(t, os.Symlink(src, link))
	replace := &prune.Options{Overwrite: true}
	for _, dst := range []string{src, link, filepath.Join(dir, ".", "model.gguf")} {
		require.ErrorIs(t, prune.Layers(context.Background(), src, dst, []int{1}, replace), prune.ErrTarget)
	}
	after, err := os.ReadFile(src)
	require.NoError(t, err)
	require.Equal(t, before, after)

	other := filepath.Join(t.TempDir(), "other.gguf")
	require.NoError(t, os.WriteFile(other, []byte("mine"), 0o600))
	err = prune.Layers(context.Background(), src, other, []int{1}, nil)
	require.ErrorIs(t, err, prune.ErrTarget)
	require.ErrorContains(t, err, "there already")
	mine, err := os.ReadFile(other)
	require.NoError(t, err)
	require.Equal(t, "mine", string(mine))

	require.NoError(t, prune.Layers(context.Background(), src, other, []int{1}, replace))
	open(t, other)
	require.ErrorContains(t, prune.Layers(context.Background(), src, filepath.Join(other, "x.gguf"), []int{1}, nil), "not a directory")
}

func TestPruneCancelled(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	calls := 0
	stop := &prune.Options{Progress: func(done, total int64) {
		require.LessOrEqual(t, done, total)
		calls++
		cancel()
	}}
	err := prune.Layers(ctx, model(t, "llama", nil), filepath.Join(dir, "out.gguf"), []int{1}, stop)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, 1, calls)
	requireFiles(t, dir)
}
