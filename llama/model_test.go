package llama_test

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

var onCPU = &llama.ModelOptions{GPULayers: llama.CPUOnly}

// none is the empty mask.
var none = skip.Mask{}

func TestModelFacts(t *testing.T) {
	llamatest.Library(t)
	for _, opts := range []llama.ModelOptions{{}, {NoMmap: true}, {NoRepack: true}} {
		spec := randmodel.Small("qwen3")
		path := llamatest.Write(t, spec)
		opts.GPULayers = llama.CPUOnly
		m, err := llama.LoadModel(context.Background(), path, &opts)
		require.NoError(t, err)
		require.Equal(t, path, m.Path)
		require.Equal(t, "qwen3", m.Architecture)
		require.Contains(t, m.Description, "qwen3")
		require.Equal(t, []int{8, 64, 4, 2, 4096}, []int{m.NLayer, m.NEmbd, m.NHead, m.NHeadKV, m.NCtxTrain})
		require.Equal(t, spec.Vocab, m.Vocab.Size)
		require.Equal(t, "64", m.Metadata["qwen3.embedding_length"])
		require.Equal(t, "qwen3", m.Metadata["general.architecture"])

		f, err := gguf.Open(path)
		require.NoError(t, err)
		require.Len(t, m.Tensors, len(f.Tensors))
		params, size := uint64(0), uint64(0)
		for i, tensor := range f.Tensors {
			require.Equal(t, llama.Tensor{Name: tensor.Name, Shape: tensor.Shape, Type: "F32", Size: tensor.Size}, m.Tensors[i])
			params += tensor.Elements()
			size += tensor.Size
		}
		require.NoError(t, f.Close())
		require.Equal(t, params, m.NParams)
		require.Equal(t, size, m.Size)
		require.NoError(t, m.Close())
	}
}

// TestVocabOnly needs no weights for text, and has no use for them.
func TestVocabOnly(t *testing.T) {
	llamatest.Library(t)
	m, err := llama.LoadModel(context.Background(), llamatest.Tiny(t, 2), &llama.ModelOptions{VocabOnly: true})
	require.NoError(t, err)
	defer m.Close()
	require.Equal(t, []int{2, 32, 2, 1}, []int{m.NLayer, m.NEmbd, m.NHead, m.NHeadKV})
	tokens, err := m.Vocab.Tokenize("hi", false)
	require.NoError(t, err)
	require.Equal(t, "hi", m.Vocab.Text(tokens, false))
	_, err = m.NewContext(nil)
	require.ErrorIs(t, err, llama.ErrModel)
	require.ErrorContains(t, err, "without its weights")
}

func TestLoadProgress(t *testing.T) {
	llamatest.Library(t)
	path := llamatest.Write(t, randmodel.Small("llama"))
	var shares []float32
	m, err := llama.LoadModel(context.Background(), path,
		&llama.ModelOptions{GPULayers: llama.CPUOnly, Progress: func(share float32) { shares = append(shares, share) }})
	require.NoError(t, err)
	require.NoError(t, m.Close())
	require.NotEmpty(t, shares)
	require.IsNonDecreasing(t, shares)
	require.GreaterOrEqual(t, shares[0], float32(0))
	require.EqualValues(t, 1, shares[len(shares)-1])
}

func TestLoadCancelled(t *testing.T) {
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Layers, spec.Embd, spec.FF = 24, 512, 4096 // large enough that reading it takes several looks at progress
	path := llamatest.Write(t, spec)

	before, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := llama.LoadModel(before, path, onCPU)
	require.ErrorIs(t, err, context.Canceled)

	during, cancel := context.WithCancel(context.Background())
	defer cancel()
	opts := &llama.ModelOptions{GPULayers: llama.CPUOnly, NoMmap: true, Progress: func(float32) { cancel() }}
	m, err := llama.LoadModel(during, path, opts)
	if err == nil { // loaded before the first look: the cancel came with the last report
		require.NoError(t, m.Close())
	} else {
		require.ErrorIs(t, err, context.Canceled)
	}
}

// TestLoadRefuses has one clear sentence for every file that is no model.
func TestLoadRefuses(t *testing.T) {
	llamatest.Library(t)
	good := llamatest.Tiny(t, 2)
	data, err := os.ReadFile(good)
	require.NoError(t, err)
	file := func(content []byte) string {
		path := filepath.Join(t.TempDir(), "bad.gguf")
		require.NoError(t, os.WriteFile(path, content, 0o644))
		return path
	}
	changed := func(key string, value any) string {
		return llamatest.Rewrite(t, good, func(meta *gguf.Metadata) { meta.Set(key, value) })
	}
	corrupt := append([]byte{}, data...)
	corrupt[16] = 0xff // the number of metadata entries
	for name, c := range map[string]struct {
		path string
		kind error
		says string
	}{
		"missing":           {filepath.Join(t.TempDir(), "no.gguf"), fs.ErrNotExist, "no.gguf"},
		"folder":            {t.TempDir(), gguf.ErrNotGGUF, "folder"},
		"empty":             {file(nil), gguf.ErrNotGGUF, ""},
		"text":              {file([]byte(strings.Repeat("once upon a time ", 100))), gguf.ErrNotGGUF, ""},
		"truncated header":  {file(data[:len(data)/100]), gguf.ErrTruncated, ""},
		"truncated data":    {file(data[:len(data)-1000]), gguf.ErrTruncated, ""},
		"corrupt":           {file(corrupt), nil, ""},
		"no architecture":   {llamatest.Rewrite(t, good, func(meta *gguf.Metadata) { meta.Delete(gguf.KeyArchitecture) }), llama.ErrModel, "no architecture"},
		"unsupported":       {changed(gguf.KeyArchitecture, "abacus"), llama.ErrModel, "unknown model architecture: 'abacus'"},
		"wrong shapes":      {changed("llama.embedding_length", uint32(96)), llama.ErrModel, "'token_embd.weight' has wrong shape; expected 96, 260"},
		"too few layers":    {changed("llama.block_count", uint32(3)), llama.ErrModel, "'blk.2.attn_norm.weight' not found"},
		"absurd layers":     {changed("llama.block_count", uint32(1<<30)), llama.ErrModel, "1073741824"},
		"no layers":         {changed("llama.block_count", uint32(0)), llama.ErrModel, ""},
		"text for a number": {changed("llama.attention.head_count", "two"), llama.ErrModel, "llama.attention.head_count"},
		"odd rotation":      {changed("llama.rope.dimension_count", uint32(7)), llama.ErrModel, "7"},
		"no tokenizer":      {llamatest.Rewrite(t, good, func(meta *gguf.Metadata) { meta.Delete("tokenizer.ggml.model") }), llama.ErrModel, "tokenizer.ggml.model"},
	} {
		t.Run(name, func(t *testing.T) {
			live := llama.Live()
			var m *llama.Model
			var err error
			require.Empty(t, llamatest.Printed(t, func() { m, err = llama.LoadModel(context.Background(), c.path, onCPU) }))
			require.Error(t, err)
			require.Nil(t, m)
			if c.kind != nil {
				require.ErrorIs(t, err, c.kind)
			}
			require.ErrorContains(t, err, c.says)
			require.NotContains(t, err.Error(), "\n")
			require.Equal(t, live, llama.Live())
		})
	}
}

// TestCloseInAnyOrder closes the model first and everything twice.
func TestCloseInAnyOrder(t *testing.T) {
	llamatest.Library(t)
	m, err := llama.LoadModel(context.Background(), llamatest.Tiny(t, 2), onCPU)
	require.NoError(t, err)
	c, err := m.NewContext(&llama.ContextOptions{NCtx: 256, Threads: 1})
	require.NoError(t, err)
	s, err := m.NewSampler(llama.Sampling{TopK: 3, Temp: 1})
	require.NoError(t, err)
	b := llamatest.Batch(t, prompt(5), 0)

	require.NoError(t, m.Close())
	require.NoError(t, m.Close())
	_, err = m.NewContext(nil)
	require.ErrorIs(t, err, llama.ErrClosed)
	_, err = m.NewSampler(llama.Sampling{})
	require.ErrorIs(t, err, llama.ErrClosed)
	_, err = m.Vocab.Tokenize("x", false)
	require.ErrorIs(t, err, llama.ErrClosed)
	require.Empty(t, m.Vocab.Text([]llama.Token{65}, true))
	_, err = m.ApplyTemplate([]llama.Message{{Role: "user", Content: "x"}}, true)
	require.ErrorIs(t, err, llama.ErrClosed)
	_, err = m.LoadLoRA(m.Path)
	require.ErrorIs(t, err, llama.ErrClosed)

	// What was open goes on.
	require.NoError(t, c.Decode(b, none))
	_, err = s.Sample(c, -1)
	require.NoError(t, err)

	require.NoError(t, c.Close())
	require.NoError(t, c.Close())
	require.ErrorIs(t, c.Decode(b, none), llama.ErrClosed)
	_, err = s.Sample(c, -1)
	require.ErrorIs(t, err, llama.ErrClosed)
	_, err = c.Logits(0)
	require.ErrorIs(t, err, llama.ErrClosed)
	_, err = c.Embedding(0)
	require.ErrorIs(t, err, llama.ErrClosed)
	_, err = c.Save(0)
	require.ErrorIs(t, err, llama.ErrClosed)
	for _, err := range []error{
		c.Restore(&llama.Saved{}, 0), c.Remove(0, 0, -1),
		c.Copy(0, 0, 0, -1), c.SetThreads(1, 1), c.SetLoRA(),
	} {
		require.ErrorIs(t, err, llama.ErrClosed)
	}
	c.Clear()
	c.AbortOn(context.Background())()
	first, last := c.Positions(0)
	require.Equal(t, []int{0, 0, -1, -1}, []int{c.NCtx(), c.NBatch(), first, last})
	require.Zero(t, c.Stats())

	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	_, err = s.Sample(c, -1)
	require.ErrorIs(t, err, llama.ErrClosed)
	_, err = s.Clone()
	require.ErrorIs(t, err, llama.ErrClosed)
	s.Reset()
	s.Accept(1)

	require.NoError(t, b.Close())
	require.NoError(t, b.Close())
	require.ErrorIs(t, b.Add(1, 0, true, 0), llama.ErrClosed)
	require.ErrorIs(t, b.AddEmbedding(nil, 0, true, 0), llama.ErrClosed)
}

func TestNewContextRefuses(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 1))
	for name, c := range map[string]struct {
		opts llama.ContextOptions
		kind error
	}{
		"negative size":                 {llama.ContextOptions{NCtx: -1}, llama.ErrOption},
		"absurd size":                   {llama.ContextOptions{NCtx: 1 << 40}, llama.ErrOption},
		"negative batch":                {llama.ContextOptions{NBatch: -1}, llama.ErrOption},
		"absurd batch":                  {llama.ContextOptions{NUBatch: 1 << 40}, llama.ErrOption},
		"sequences":                     {llama.ContextOptions{NSeqMax: 257}, llama.ErrOption},
		"more sequences than room":      {llama.ContextOptions{NCtx: 3, NSeqMax: 200}, llama.ErrOption},
		"more sequences than batch":     {llama.ContextOptions{NCtx: 256, NBatch: 1, NSeqMax: 2}, llama.ErrOption},
		"threads":                       {llama.ContextOptions{Threads: 513}, llama.ErrOption},
		"cache type":                    {llama.ContextOptions{KType: 77}, llama.ErrOption},
		"flash":                         {llama.ContextOptions{Flash: 4}, llama.ErrOption},
		"quantised V without attention": {llama.ContextOptions{NCtx: 256, VType: llama.CacheQ8_0, Flash: llama.FlashOff}, llama.ErrModel},
	} {
		t.Run(name, func(t *testing.T) {
			live := llama.Live()
			_, err := m.NewContext(&c.opts)
			require.ErrorIs(t, err, c.kind)
			require.NotContains(t, err.Error(), "\n")
			require.Equal(t, live, llama.Live())
		})
	}
	for _, opts := range []llama.ContextOptions{
		{NCtx: 1, Threads: 1}, {NCtx: 256, NUBatch: 1, NSeqMax: 4, Threads: 1}, {NCtx: 256, NBatch: 4, NSeqMax: 4, Threads: 1},
	} {
		c := llamatest.Context(t, m, &opts)
		require.NoError(t, c.Decode(llamatest.Batch(t, prompt(1), 0), none))
	}
}
