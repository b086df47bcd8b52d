package llama_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/skip"
)

// Sizes of the models below.
const (
	parLayers = 4
	parEmbd   = 32
	parHeads  = 2
	parFF     = 48
)

// parallelTensors lists a layer's tensors (without "blk.N.") in architectures
// whose attention and feed-forward both read the layer's input.
var parallelTensors = map[string]map[string][]uint64{
	"gptneox": {
		"attn_norm.weight": {parEmbd}, "attn_norm.bias": {parEmbd}, "ffn_norm.weight": {parEmbd}, "ffn_norm.bias": {parEmbd},
		"attn_qkv.weight": {parEmbd, 3 * parEmbd}, "attn_qkv.bias": {3 * parEmbd},
		"attn_output.weight": {parEmbd, parEmbd}, "attn_output.bias": {parEmbd},
		"ffn_up.weight": {parEmbd, parFF}, "ffn_up.bias": {parFF}, "ffn_down.weight": {parFF, parEmbd}, "ffn_down.bias": {parEmbd},
	},
	"phi2": {
		"attn_norm.weight": {parEmbd}, "attn_norm.bias": {parEmbd},
		"attn_qkv.weight": {parEmbd, 3 * parEmbd}, "attn_qkv.bias": {3 * parEmbd},
		"attn_output.weight": {parEmbd, parEmbd}, "attn_output.bias": {parEmbd},
		"ffn_up.weight": {parEmbd, parFF}, "ffn_up.bias": {parFF}, "ffn_down.weight": {parFF, parEmbd}, "ffn_down.bias": {parEmbd},
	},
	"falcon": {
		"attn_norm.weight": {parEmbd}, "attn_norm.bias": {parEmbd}, "attn_qkv.weight": {parEmbd, 3 * parEmbd},
		"attn_output.weight": {parEmbd, parEmbd}, "ffn_up.weight": {parEmbd, parFF}, "ffn_down.weight": {parFF, parEmbd},
	},
	"command-r": {
		"attn_norm.weight": {parEmbd}, "attn_q.weight": {parEmbd, parEmbd}, "attn_k.weight": {parEmbd, parEmbd},
		"attn_v.weight": {parEmbd, parEmbd}, "attn_output.weight": {parEmbd, parEmbd},
		"ffn_gate.weight": {parEmbd, parFF}, "ffn_up.weight": {parEmbd, parFF}, "ffn_down.weight": {parFF, parEmbd},
	},
}

// parallelModel writes a model of random weights; sequential is for gptneox, which
// can be either.
func parallelModel(t *testing.T, arch string, sequential bool) string {
	t.Helper()
	from, err := gguf.Open(llamatest.Tiny(t, 1)) // for its tokenizer
	require.NoError(t, err)
	defer from.Close()
	meta := gguf.Metadata{{Key: gguf.KeyArchitecture, Value: arch}}
	for _, kv := range from.Metadata {
		if strings.HasPrefix(kv.Key, "tokenizer.") {
			meta.Set(kv.Key, kv.Value)
		}
	}
	for key, value := range map[string]any{
		"block_count": uint32(parLayers), "context_length": uint32(512), "embedding_length": uint32(parEmbd),
		"feed_forward_length": uint32(parFF), "attention.head_count": uint32(parHeads), "attention.head_count_kv": uint32(parHeads),
		"attention.layer_norm_epsilon": float32(1e-5), "rope.dimension_count": uint32(parEmbd / parHeads),
		"use_parallel_residual": !sequential, "logit_scale": float32(1),
	} {
		meta.Set(meta.ArchKey(key), value)
	}
	var sources []gguf.Source
	add := func(name string, shape ...uint64) {
		seed := fnv.New64a()
		seed.Write([]byte(name))
		random := rand.New(rand.NewPCG(seed.Sum64(), 1))
		tensor := gguf.Tensor{Name: name, Shape: shape, Type: gguf.F32}
		data := make([]byte, 4*tensor.Elements())
		for i := range tensor.Elements() {
			v := random.NormFloat64() / math.Sqrt(float64(shape[0]))
			if strings.HasSuffix(name, "norm.weight") {
				v++
			}
			binary.LittleEndian.PutUint32(data[4*i:], math.Float32bits(float32(v)))
		}
		sources = append(sources, gguf.Source{Tensor: tensor, Data: gguf.Bytes(data)})
	}
	vocab, err := from.Metadata.Strings("tokenizer.ggml.tokens")
	require.NoError(t, err)
	n := uint64(len(vocab))
	add("token_embd.weight", parEmbd, n)
	for l := range parLayers {
		for name, shape := range parallelTensors[arch] {
			add(fmt.Sprintf("blk.%d.%s", l, name), shape...)
		}
	}
	add("output_norm.weight", parEmbd)
	if arch != "command-r" {
		add("output_norm.bias", parEmbd)
		add("output.weight", parEmbd, n)
	}
	if arch == "phi2" {
		add("output.bias", n)
	}
	path := filepath.Join(t.TempDir(), arch+".gguf")
	require.NoError(t, gguf.Write(context.Background(), path, meta, sources, nil))
	return path
}

// TestParallelSublayers has models whose halves are side by side: layers and halves are
// skipped exactly, wherever the graph adds them up.
func TestParallelSublayers(t *testing.T) {
	llamatest.Library(t)
	for arch := range parallelTensors {
		t.Run(arch, func(t *testing.T) {
			path := parallelModel(t, arch, false)
			m := llamatest.Open(t, path)
			c := small(t, m)
			whole := decode(t, c, prompt(9), 0, none)
			var list []skip.Mask
			for bits := 1; bits < 1<<parLayers-1; bits++ {
				list = append(list, layersOf(bits, parLayers))
			}
			for l := range parLayers {
				list = append(list, none.With(l, skip.Attention), none.With(l, skip.FeedForward),
					skip.Layers((l+1)%parLayers).With(l, skip.FeedForward).With((l+2)%parLayers, skip.Attention))
			}
			for _, mask := range list {
				reference := llamatest.Open(t, llamatest.Zeroed(t, path, identity(mask)))
				want := decode(t, small(t, reference), prompt(9), 0, none)
				c.Clear()
				requireSameBits(t, want, decode(t, c, prompt(9), 0, mask), mask.String())
				require.Positive(t, difference(want, whole))
			}
			c.Clear()
			requireSameBits(t, whole, decode(t, c, prompt(9), 0, none), "after the masks")
		})
	}
}

// TestSequentialTwin is gptneox with its halves one after the other, where
// skipping one of them is exact.
func TestSequentialTwin(t *testing.T) {
	llamatest.Library(t)
	path := parallelModel(t, "gptneox", true)
	m := llamatest.Open(t, path)
	c := small(t, m)
	for l := range parLayers {
		for _, half := range []skip.Half{skip.Attention, skip.FeedForward, skip.Whole} {
			mask := none.With(l, half)
			reference := llamatest.Open(t, llamatest.Zeroed(t, path, identity(mask)))
			want := decode(t, small(t, reference), prompt(9), 0, none)
			c.Clear()
			requireSameBits(t, want, decode(t, c, prompt(9), 0, mask), mask.String())
		}
	}
}

// layersOf is the mask of whole layers whose bits are set.
func layersOf(bits, nLayer int) (m skip.Mask) {
	for l := range nLayer {
		if bits>>l&1 == 1 {
			m = m.With(l, skip.Whole)
		}
	}
	return m
}
