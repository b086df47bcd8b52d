package llama_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
)

// TestVocabularyWithoutBytes takes the texts that such a vocabulary can express, and
// refuses the others by the character at fault.
func TestVocabularyWithoutBytes(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Rewrite(t, llamatest.Write(t, randmodel.Small("llama")), func(meta *gguf.Metadata) {
		tokens, err := meta.Strings("tokenizer.ggml.tokens")
		require.NoError(t, err)
		own := append([]string{"<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "é", "<0xE6>", "<0x97>", "<0xA5>"}, tokens[11:]...)
		for i := range own[11:] {
			own[11+i] = strings.Repeat("z", i+5) // none of one character
		}
		types := make([]int32, len(own))
		for i := range types {
			types[i] = 1
		}
		own[20], types[20] = "<|user|>", 4
		own[21], types[21] = "<|end|>", 3
		types[0], types[1], types[2] = 2, 3, 3
		scores := make([]float32, len(own))
		meta.Set("tokenizer.ggml.model", "llama")
		meta.Set("tokenizer.ggml.tokens", own)
		meta.Set("tokenizer.ggml.token_type", types)
		meta.Set("tokenizer.ggml.scores", scores)
		meta.Set("tokenizer.ggml.bos_token_id", uint32(1))
		meta.Set("tokenizer.ggml.eos_token_id", uint32(2))
	}))
	before := llama.Escapes()
	for _, text := range []string{"", "a", "ab ba", "é", "日", "<|user|>a<|user|>"} {
		_, err := m.Vocab.Tokenize(text, false)
		require.NoError(t, err, text)
		_, err = m.Vocab.Tokenize(text+"<|end|>", true)
		require.NoError(t, err, text)
	}
	for text, char := range map[string]string{"ac": `"c"`, "日本": `"本"`, "a\nb": `"\n"`, "\xff": `"\xff"`, "\xe6\x97": "", "<|end|>": `"<"`, "ab\xe6c\xa5": `"\xe6c\xa5"`} {
		_, err := m.Vocab.Tokenize(text, false)
		if char == "" {
			require.NoError(t, err, "%q", text)
			continue
		}
		require.ErrorIs(t, err, llama.ErrTokenize, "%q", text)
		require.ErrorContains(t, err, char)
	}
	require.Equal(t, before, llama.Escapes())
}

// TestHostileLoRA has adapters refused that llama.cpp would end the process over.
func TestHostileLoRA(t *testing.T) {
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Layers = 2
	m := llamatest.Open(t, llamatest.Write(t, spec))
	good := llamatest.OutputLoRA(t, spec)
	l, err := m.LoadLoRA(good)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	before := llama.Escapes()
	for says, change := range map[string]func(meta *gguf.Metadata){
		`"general.type" is to be "adapter"`:      func(meta *gguf.Metadata) { meta.Set("general.type", uint32(5)) },
		`"adapter.type" is "other"`:              func(meta *gguf.Metadata) { meta.Set("adapter.type", "other") },
		`"adapter.type" is to be "lora"`:         func(meta *gguf.Metadata) { meta.Delete("adapter.type") },
		`it was made for "qwen3"`:                func(meta *gguf.Metadata) { meta.Set(gguf.KeyArchitecture, "qwen3") },
		`"general.architecture" is to be`:        func(meta *gguf.Metadata) { meta.Set(gguf.KeyArchitecture, []string{"llama"}) },
		"its alpha is 8, of the type string":     func(meta *gguf.Metadata) { meta.Set("adapter.lora.alpha", "8") },
		"its alpha is 8, of the type uint32":     func(meta *gguf.Metadata) { meta.Set("adapter.lora.alpha", uint32(8)) },
		"its alpha is 8, of the type float64":    func(meta *gguf.Metadata) { meta.Set("adapter.lora.alpha", 8.0) },
		"its invocation tokens are of the type":  func(meta *gguf.Metadata) { meta.Set("adapter.alora.invocation_tokens", "1") },
		"its invocation tokens are of the type ": func(meta *gguf.Metadata) { meta.Set("adapter.alora.invocation_tokens", []int32{1}) },
	} {
		_, err := m.LoadLoRA(llamatest.Rewrite(t, good, change))
		require.ErrorIs(t, err, llama.ErrModel, says)
		require.ErrorContains(t, err, says)
	}
	const name = "blk.0.attn_q.weight"
	f, err := gguf.Open(good)
	require.NoError(t, err)
	meta := slices.Clone(f.Metadata)
	require.NoError(t, f.Close())
	in, out := uint64(spec.Embd), uint64(spec.Heads*spec.HeadDim)
	const norm = "blk.1.attn_norm.weight"
	for says, tensors := range map[string]map[string][]uint64{
		"":                             {name + ".lora_a": {in, 2}, name + ".lora_b": {2, out, 1, 1}},
		"does not fit the weight's":    {name + ".lora_a": {in, 2, 2}, name + ".lora_b": {2, out, 2}},
		"lora_b\" has the shape":       {name + ".lora_a": {in, 2}, name + ".lora_b": {2, out, 3}},
		"lora_a\" has the shape":       {name + ".lora_a": {in, 2, 1, 2}, name + ".lora_b": {2, out}},
		"has incorrect shape":          {name + ".lora_a": {in * 2}, name + ".lora_b": {2 * out}},
		"lora_a tensor is not transpo": {name + ".lora_a": {in, 3}, name + ".lora_b": {2, out}},
		// What would have no effect, and no word of it.
		`changes "` + norm + `", a vector`: {norm + ".lora_a": {in, 1}, norm + ".lora_b": {1, 1}},
		`replaces "` + norm + `", which`:   {name + ".lora_a": {in, 2}, name + ".lora_b": {2, out}, norm: {in}},
		`replaces "` + name + `", which`:   {name: {in, out}},
		"it has no tensors":                {},
		`replaces "blk.0.attn_q.other"`:    {"blk.0.attn_q.other": {in}},
	} {
		path := filepath.Join(t.TempDir(), "lora.gguf")
		var sources []gguf.Source
		for tensor, shape := range tensors {
			n := uint64(4)
			for _, size := range shape {
				n *= size
			}
			sources = append(sources, gguf.Source{Tensor: gguf.Tensor{Name: tensor, Type: gguf.F32, Shape: shape}, Data: gguf.Bytes(make([]byte, n))})
		}
		require.NoError(t, gguf.Write(t.Context(), path, meta, sources, nil))
		l, err := m.LoadLoRA(path)
		if says == "" {
			require.NoError(t, err)
			require.NoError(t, l.Close())
			continue
		}
		require.ErrorIs(t, err, llama.ErrModel, says)
		require.ErrorContains(t, err, says)
	}
	other := spec
	other.Untied = false
	tied := llamatest.Open(t, llamatest.Write(t, other))
	_, err = tied.LoadLoRA(good)
	require.ErrorContains(t, err, `it changes "output.weight", which the model does not have`)
	require.Equal(t, before, llama.Escapes())
}
