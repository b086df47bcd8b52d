package gguf

import (
	"cmp"
	"fmt"
	"iter"
	"strconv"
	"strings"
)

// Metadata keys that the project reads in more than one place.
const (
	KeyArchitecture = "general.architecture" // text: the prefix of the model's own keys
	KeyAlignment    = "general.alignment"    // uint32: tensor offsets are multiples of it
	KeySplitCount   = "split.count"          // whole number: files that make up the model
	KeySplitNo      = "split.no"             // whole number: which of them this is, from 0
	KeySplitTensors = "split.tensors.count"  // whole number: tensors of all of them

	// KeyBlockCount is the number of layers, under the architecture's prefix.
	KeyBlockCount = "block_count"
)

// MaxLayers is the largest number of layers that llama.cpp v0.5.0 loads.
const MaxLayers = 512

// Architecture gives the model family ("llama", "qwen3"), the prefix of the
// model's own metadata keys.
func (m Metadata) Architecture() (string, error) {
	return m.String(KeyArchitecture)
}

// ArchKey puts the architecture in front of a key: "block_count" becomes
// "llama.block_count". Without an architecture the key comes back alone.
func (m Metadata) ArchKey(key string) string {
	if arch, err := m.Architecture(); err == nil {
		return arch + "." + key
	}
	return key
}

// LayerCount gives the number of transformer layers, 1 to [MaxLayers]. It
// fails with [ErrNoKey] when the file is no language model.
func (m Metadata) LayerCount() (int, error) {
	key := m.ArchKey(KeyBlockCount)
	n, err := m.Uint(key)
	if err != nil {
		return 0, err
	}
	if n < 1 || n > MaxLayers {
		return 0, fmt.Errorf("%w: %q is %d, possible are 1 to %d", ErrKeyType, key, n, MaxLayers)
	}
	return int(n), nil
}

// SplitLayer takes the name of a layer's tensor apart: "blk.3.attn_q.weight"
// is layer 3 and "attn_q.weight". ok is false for tensors outside the layers.
func SplitLayer(name string) (layer int, rest string, ok bool) {
	number, rest, found := strings.Cut(strings.TrimPrefix(name, "blk."), ".")
	layer, err := strconv.Atoi(number)
	if !found || !strings.HasPrefix(name, "blk.") || err != nil || strconv.Itoa(layer) != number || layer < 0 {
		return 0, "", false
	}
	return layer, rest, true
}

// feedForwardNames are the beginnings of the names of the feed-forward's tensors.
var feedForwardNames = []string{"ffn_", "post_ffw_norm", "exp_probs_b", "channel_mix_"}

// FeedForward tells a layer's feed-forward tensors, by the part of the name
// behind the layer, from those of its attention, or what stands in its place.
func FeedForward(rest string) bool {
	for _, prefix := range feedForwardNames {
		if strings.HasPrefix(rest, prefix) {
			return true
		}
	}
	return false
}

// The names of the matrices on both sides of the layers.
const (
	EmbeddingName = "token_embd.weight" // a row for each token; the output matrix too, where there is no other
	OutputName    = "output.weight"
)

// TokenBytes adds up what one token needs of a model's tensors, given by name and
// size in bytes: all of them, but of an embedding beside an output matrix only a row,
// which is left out. output is the output matrix's part.
func TokenBytes(tensors iter.Seq2[string, uint64]) (all, output uint64) {
	var embedding uint64
	for name, size := range tensors {
		all += size
		switch name {
		case EmbeddingName:
			embedding = size
		case OutputName:
			output = size
		}
	}
	if output == 0 {
		return all, embedding
	}
	return all - embedding, output
}

// CacheWidths adds up over the layers how many numbers the keys of one token take in a KV
// cache, and its values: by the shapes of the tensors that make them, or by a layer's heads
// where one tensor makes the queries too. Keys that are kept compressed, as in multi-head
// latent attention (DeepSeek-V2, arXiv:2405.04434), count as they are kept. Recurrent
// layers and linear attention keep none. Values that are the keys again do not count.
func (f *File) CacheWidths() (keys, values uint64) {
	nLayer, err := f.Metadata.LayerCount()
	if err != nil {
		return 0, 0
	}
	perLayer := func(key string) []uint64 {
		all, _ := f.Metadata.UintPerLayer(f.Metadata.ArchKey(key), nLayer)
		return all
	}
	heads, kvHeads := perLayer("attention.head_count"), perLayer("attention.head_count_kv")
	if kvHeads == nil {
		kvHeads = heads // as llama.cpp has it
	}
	shared, _ := f.Metadata.Uint(f.Metadata.ArchKey("attention.shared_kv_layers")) // the last ones read those of earlier ones
	outputs := make([]map[string]uint64, nLayer)                                   // of a layer's tensors, by name
	for _, t := range f.Tensors {
		if n, rest, ok := SplitLayer(t.Name); ok && n < nLayer && len(t.Shape) == 2 {
			if outputs[n] == nil {
				outputs[n] = map[string]uint64{}
			}
			outputs[n][rest] = t.Shape[1]
		}
	}
	width, _ := f.Metadata.Uint(f.Metadata.ArchKey("embedding_length"))
	headWidth, _ := f.Metadata.Uint(f.Metadata.ArchKey("attention.key_length"))
	var fused uint64 // of keys, and of values
	for n, out := range outputs[:nLayer-int(min(shared, uint64(nLayer)))] {
		if kvHeads != nil && kvHeads[n] == 0 {
			continue // a recurrent layer, whatever its tensors are called
		}
		switch {
		case out["attn_k.weight"] > 0 || out["attn_v.weight"] > 0:
			keys, values = keys+out["attn_k.weight"], values+out["attn_v.weight"]
		case out["attn_kv_b.weight"] > 0:
			keys += out["attn_kv_b.weight"] // values too
		case out["attn_kv_a_mqa.weight"] > 0:
			keys += out["attn_kv_a_mqa.weight"]
		case out["attn_qkv.weight"] > 0 && heads != nil && heads[0] > 0:
			fused += kvHeads[n] * cmp.Or(headWidth, width/heads[0])
		}
	}
	if keys == 0 { // beside layers with keys of their own, others' belong to linear attention
		return fused, fused
	}
	return keys, values
}
