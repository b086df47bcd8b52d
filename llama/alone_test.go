package llama_test

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
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

// Tokens of a batch that is decoded with AllAlone give the logits of one token at a time,
// bit for bit, on both sides of the lengths where the CPU's flash attention
// changes its ways; else they do not. Which step of Isolation that takes depends on
// the weights' type and on the CPU module: docs/cpus.md is made from this test.
func TestAloneIsOneAtATime(t *testing.T) {
	llamatest.Library(t)
	all := []gguf.Type{gguf.F32, gguf.F16, gguf.Q4_0, gguf.Q8_0, gguf.Q4_K, gguf.IQ2XXS}
	for _, c := range []struct {
		model string
		types []gguf.Type
		flash llama.FlashAttention
	}{
		{"llama", all, llama.FlashOn},
		{"llama", all, llama.FlashOff},
		{"qwen3", []gguf.Type{gguf.Q4_0, gguf.Q8_0, gguf.Q4_K}, llama.FlashOn},
		{"gemma3", []gguf.Type{gguf.Q4_0, gguf.Q8_0, gguf.Q4_K}, llama.FlashOn},
		{"llama-moe", []gguf.Type{gguf.F32, gguf.Q4_0, gguf.Q4_K, gguf.IQ2XXS}, llama.FlashOn},
	} {
		for _, typ := range c.types {
			what := fmt.Sprint(c.model, " ", typ)
			if c.flash == llama.FlashOff {
				what += " without flash attention"
			}
			t.Run(what, func(t *testing.T) { testAlone(t, aloneModel(t, c.model, typ), typ, c.flash) })
		}
	}
}

// aloneModel writes a small model whose rows are long enough for every type's blocks.
func aloneModel(t *testing.T, name string, typ gguf.Type) string {
	spec := randmodel.Small(name)
	spec.Type, spec.Embd, spec.FF = typ, 256, 256
	spec.Heads, spec.HeadDim = 4, 64
	if typ != gguf.IQ2XXS {
		return llamatest.Write(t, spec)
	}
	// randmodel has no such blocks. Any bytes are valid ones behind a scale.
	const spread = 53.09 // of the elements of random ones, when the scale is 1
	spec.Type = gguf.F16
	f, err := gguf.Open(llamatest.Write(t, spec))
	require.NoError(t, err)
	defer f.Close()
	random := rand.NewChaCha8([32]byte{1})
	var tensors []gguf.Source
	for _, tensor := range f.Tensors {
		if tensor.Type != gguf.F16 || tensor.Name == "token_embd.weight" {
			tensors = append(tensors, f.Copy(tensor))
			continue
		}
		tensor.Type = typ
		size, err := typ.Size(tensor.Shape)
		require.NoError(t, err)
		data := make([]byte, size)
		_, _ = random.Read(data) // never fails
		_, block := typ.Block()
		scale := f16(1 / math.Sqrt(float64(tensor.Shape[0])) / spread)
		for at := 0; at < len(data); at += int(block) {
			data[at], data[at+1] = byte(scale), byte(scale>>8)
		}
		tensors = append(tensors, gguf.Source{Tensor: tensor, Data: gguf.Bytes(data)})
	}
	path := filepath.Join(t.TempDir(), "iq.gguf")
	require.NoError(t, gguf.Write(context.Background(), path, f.Metadata, tensors, nil))
	return path
}

// f16 gives the bits of a float16 not far below x, which is small and normal.
func f16(x float64) uint16 {
	fraction, exponent := math.Frexp(x) // x = fraction × 2^exponent, ½ ≤ fraction < 1
	const bias, bits = 15, 10
	return uint16(exponent-1+bias)<<bits | uint16((2*fraction-1)*(1<<bits))
}

// equalAlone says whether a batch decoded so must give the logits of single tokens.
func equalAlone(alone llama.Isolation, typ gguf.Type) bool {
	switch alone {
	case llama.AllAlone, llama.ProductsUntiled:
		return true
	case llama.AttentionAlone:
		// Kernels for tiles of quantised weights round like those for one token where AVX2 is.
		avx2 := strings.Contains(llama.SystemInfo(), "AVX2 = 1")
		return avx2 || typ != gguf.Q4_0 && typ != gguf.Q8_0
	}
	return false // or by chance
}

func testAlone(t *testing.T, path string, typ gguf.Type, flash llama.FlashAttention) {
	m := llamatest.Open(t, path)
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 1024, Threads: 2, Flash: flash})
	const most = 17
	steps := []llama.Isolation{llama.AttentionAlone, llama.Shared, llama.ProductsUntiled, llama.AllAlone, llama.AttentionAlone} // the same shape each time
	var apart [llama.AllAlone + 1]float64                                                                                       // of logits, at most
	for _, cached := range []int{3, 250, 508} {
		c.Clear()
		tokens := make([]llama.Token, cached+most)
		for i := range tokens {
			tokens[i] = llama.Token((7*i*i + i) % m.Vocab.Size)
		}
		require.NoError(t, c.Decode(llamatest.Batch(t, tokens[:cached], 0), skip.Mask{}))
		want := make([][]float32, most)
		for i := range want {
			require.NoError(t, c.Decode(llamatest.Batch(t, tokens[cached+i:][:1], cached+i), skip.Mask{}))
			logits, err := c.Logits(0)
			require.NoError(t, err)
			want[i] = append(want[i], logits...)
		}
		for _, n := range []int{2, 5, most} {
			for _, alone := range steps {
				require.NoError(t, c.Remove(0, cached, -1))
				b := llamatest.Batch(t, tokens[cached:][:n], cached)
				b.Isolation = alone
				require.NoError(t, c.Decode(b, skip.Mask{}))
				worst := 0.0
				for i := range n {
					logits, err := c.Logits(i)
					require.NoError(t, err)
					for k := range logits {
						worst = max(worst, math.Abs(float64(logits[k]-want[i][k])))
					}
				}
				if equalAlone(alone, typ) {
					require.Zero(t, worst, "%d tokens after %d, Isolation is %d", n, cached, alone)
				}
				apart[alone] = max(apart[alone], worst)
			}
		}
	}
	// scripts/testcpus reads this line.
	t.Logf("logits apart when decoded alone, %s: together %.2g, attention %.2g, untiled %.2g, rows %.2g",
		typ, apart[llama.Shared], apart[llama.AttentionAlone], apart[llama.ProductsUntiled], apart[llama.AllAlone])
	if flash == llama.FlashOn {
		require.Positive(t, apart[llama.Shared], "batches round like single tokens by themselves now: Isolation can go")
	}
}
