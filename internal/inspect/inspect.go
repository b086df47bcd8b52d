// Package inspect reads what there is to know about a GGUF model without
// loading it: shape, quantisation, tokenizer, and where the bytes lie, layer by
// layer.
package inspect

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/prune"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/skip"
)

// Model is what a GGUF file says of itself. What the file does not say is zero.
type Model struct {
	Path         string `json:"path"`
	Name         string `json:"name"`
	Architecture string `json:"architecture"` // "llama", "qwen3"
	Parameters   uint64 `json:"parameters"`   // elements of all tensors
	FileBytes    int64  `json:"file_bytes"`
	TensorBytes  uint64 `json:"tensor_bytes"`

	OutputBytes uint64  `json:"output_bytes"` // of the output matrix, which may be the embedding
	OutputShare float64 `json:"output_share"` // of the bytes that a token needs, 0 to 1

	Types []TypeShare `json:"types"` // most bytes first

	ContextLength  uint64   `json:"context_length"`  // tokens that the model was trained on at once
	EmbeddingWidth uint64   `json:"embedding_width"` // of the residual stream
	Heads          []uint64 `json:"heads"`           // (nLayer,) query heads
	KVHeads        []uint64 `json:"kv_heads"`        // (nLayer,) key/value heads
	FeedForward    []uint64 `json:"feed_forward"`    // (nLayer,) width of the feed-forward
	CacheBytes     uint64   `json:"cache_bytes"`     // that the keys and values of a token take in an F16 KV cache
	Experts        uint64   `json:"experts"`         // in each layer; 0 = no mixture of experts
	ExpertsUsed    uint64   `json:"experts_used"`    // for each token

	Tokenizer    string `json:"tokenizer"`     // "gpt2 (byte-level BPE)"
	Vocabulary   int    `json:"vocabulary"`    // tokens
	ChatTemplate string `json:"chat_template"` // Jinja source

	PrunedLayers []uint64 `json:"pruned_layers,omitempty"` // by their numbers before `gallop prune`
	SplitFiles   uint64   `json:"split_files,omitempty"`   // files that make up the model; Path is the first

	Layers []Layer `json:"layers"` // (nLayer,); none when the file is no language model

	NoText string `json:"no_text,omitempty"` // why no text comes of it; "" = some may
}

// TypeShare tells how much of the file has one tensor type.
type TypeShare struct {
	Type    string  `json:"type"` // "Q4_0"
	Tensors int     `json:"tensors"`
	Bytes   uint64  `json:"bytes"`
	Share   float64 `json:"share"` // of all tensors' bytes, 0 to 1
}

// Layer tells what a layer's two halves weigh: what skipping either saves.
type Layer struct {
	Attention   uint64 `json:"attention_bytes"`
	FeedForward uint64 `json:"feed_forward_bytes"`
}

// Bytes is the weight of the whole layer.
func (l Layer) Bytes() uint64 { return l.Attention + l.FeedForward }

// LayerBytes is the weight of all layers. The rest of TensorBytes is the
// embedding, the output matrix and what belongs to no layer.
func (m *Model) LayerBytes() uint64 {
	var sum uint64
	for _, l := range m.Layers {
		sum += l.Bytes()
	}
	return sum
}

// Read looks into the file at path. Its errors are those of gguf.Open, and
// gguf.ErrCorrupt when tensors and metadata contradict each other.
func Read(path string) (*Model, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m := &Model{Path: path, FileBytes: f.Size, Types: []TypeShare{}, NoText: f.NoText()}
	m.readMetadata(f.Metadata)
	nLayer, err := f.Metadata.LayerCount()
	if errors.Is(err, gguf.ErrKeyType) {
		return nil, fmt.Errorf("%s: %w: %w", path, gguf.ErrCorrupt, err)
	}
	m.readShape(f.Metadata, nLayer)
	const float16 = 2 // bytes
	keys, values := f.CacheWidths()
	m.CacheBytes = (keys + values) * float16
	m.Layers = make([]Layer, nLayer)
	return m, m.readTensors(f.Tensors)
}

// tokenizers are the kinds that tokenizer.ggml.model names.
var tokenizers = map[string]string{
	"llama": "SentencePiece", "gpt2": "byte-level BPE", "bert": "WordPiece", "t5": "Unigram", "rwkv": "greedy",
	"plamo2": "Aho-Corasick", "gemma4": "SentencePiece-style BPE", "none": "no text",
}

// readMetadata fills in what does not depend on the layers.
func (m *Model) readMetadata(meta gguf.Metadata) {
	m.Name = text(meta, "general.name")
	m.Architecture = text(meta, gguf.KeyArchitecture)
	m.ContextLength = number(meta, meta.ArchKey("context_length"))
	m.EmbeddingWidth = number(meta, meta.ArchKey("embedding_length"))
	m.Experts = number(meta, meta.ArchKey("expert_count"))
	m.ExpertsUsed = number(meta, meta.ArchKey("expert_used_count"))
	m.SplitFiles = number(meta, gguf.KeySplitCount)
	m.ChatTemplate = text(meta, "tokenizer.chat_template")
	m.PrunedLayers, _ = meta.Uints(prune.KeyPruned)
	m.Tokenizer = text(meta, "tokenizer.ggml.model")
	if kind := tokenizers[m.Tokenizer]; kind != "" {
		m.Tokenizer += " (" + kind + ")"
	}
	tokens, _ := meta.Strings("tokenizer.ggml.tokens")
	m.Vocabulary = cmp.Or(len(tokens), int(number(meta, meta.ArchKey("vocab_size"))))
}

// readShape fills in what may differ from layer to layer.
func (m *Model) readShape(meta gguf.Metadata, nLayer int) {
	perLayer := func(key string) []uint64 {
		values, _ := meta.UintPerLayer(meta.ArchKey(key), nLayer)
		return values
	}
	m.Heads = perLayer("attention.head_count")
	m.KVHeads = perLayer("attention.head_count_kv")
	m.FeedForward = perLayer("feed_forward_length")
	if m.KVHeads == nil {
		m.KVHeads = m.Heads // as llama.cpp has it
	}
}

// readTensors adds up the bytes.
func (m *Model) readTensors(tensors []gguf.Tensor) error {
	types := map[string]*TypeShare{}
	for _, t := range tensors {
		m.Parameters += t.Elements()
		m.TensorBytes += t.Size
		share := types[t.Type.String()]
		if share == nil {
			share = &TypeShare{Type: t.Type.String()}
			types[share.Type] = share
		}
		share.Tensors++
		share.Bytes += t.Size
		layer, half, ok := search.HalfOf(t.Name)
		switch {
		case !ok || len(m.Layers) == 0:
		case layer >= len(m.Layers):
			return fmt.Errorf("%s: %w: it has a tensor %q, but says that it has %d layers", m.Path, gguf.ErrCorrupt, t.Name, len(m.Layers))
		case half == skip.FeedForward:
			m.Layers[layer].FeedForward += t.Size
		default:
			m.Layers[layer].Attention += t.Size
		}
	}
	all, output := gguf.TokenBytes(func(yield func(string, uint64) bool) {
		for _, t := range tensors {
			if !yield(t.Name, t.Size) {
				return
			}
		}
	})
	m.OutputBytes, m.OutputShare = output, float64(output)/float64(max(all, 1))
	for _, share := range types {
		share.Share = float64(share.Bytes) / float64(max(m.TensorBytes, 1))
		m.Types = append(m.Types, *share)
	}
	slices.SortFunc(m.Types, func(a, b TypeShare) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Type, b.Type))
	})
	return nil
}

// text gives a text value, "" when there is none.
func text(meta gguf.Metadata, key string) string {
	s, _ := meta.String(key)
	return s
}

// number gives a whole number, 0 when there is none.
func number(meta gguf.Metadata, key string) uint64 {
	n, _ := meta.Uint(key)
	return n
}
