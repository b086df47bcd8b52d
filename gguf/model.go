package gguf

import (
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
