package randmodel

import (
	"context"
	"encoding/binary"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
)

// write makes the model in a fresh folder and opens it.
func write(t *testing.T, s Spec) *gguf.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.gguf")
	require.NoError(t, Write(path, s))
	f, err := gguf.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return f
}

func content(t *testing.T, f *gguf.File, name string) []byte {
	t.Helper()
	tensor, ok := f.Tensor(name)
	require.True(t, ok, name)
	b, err := io.ReadAll(f.Reader(tensor))
	require.NoError(t, err)
	return b
}

func TestSmall(t *testing.T) {
	const mostBytes = 4_000_000
	require.Equal(t, []string{"gemma3", "llama", "llama-moe", "phi3", "qwen2", "qwen3", "qwen3moe"}, SmallNames())
	for _, name := range SmallNames() {
		t.Run(name, func(t *testing.T) {
			s := Small(name)
			f := write(t, s)
			require.Less(t, f.Size, int64(mostBytes))
			layers, err := f.Metadata.LayerCount()
			require.NoError(t, err)
			require.Equal(t, 8, layers)
			tokens, err := f.Metadata.Strings("tokenizer.ggml.tokens")
			require.NoError(t, err)
			require.Len(t, tokens, s.Vocab)
			inLayers := map[int]int{} // tensors of each layer
			for _, tensor := range f.Tensors {
				if layer, _, ok := gguf.SplitLayer(tensor.Name); ok {
					inLayers[layer]++
				}
			}
			require.Len(t, inLayers, 8)
			require.Equal(t, inLayers[0], inLayers[7])
		})
	}
}

func TestArchitecturesHaveTheirTensors(t *testing.T) {
	for name, want := range map[string]map[string][]uint64{
		"llama":     {"blk.7.attn_q.weight": {64, 128}, "blk.7.attn_k.weight": {64, 64}, "output.weight": {64, 384}},
		"llama-moe": {"blk.0.ffn_down_exps.weight": {64, 64, 4}, "blk.0.ffn_gate_inp.weight": {64, 4}},
		"qwen2":     {"blk.0.attn_k.bias": {64}, "blk.0.attn_q.bias": {128}},
		"qwen3":     {"blk.0.attn_q_norm.weight": {32}, "blk.0.attn_k_norm.weight": {32}},
		"qwen3moe":  {"blk.0.attn_k_norm.weight": {32}, "blk.0.ffn_up_exps.weight": {64, 64, 4}},
		"gemma3":    {"blk.0.post_ffw_norm.weight": {64}, "blk.0.post_attention_norm.weight": {64}},
		"phi3":      {"blk.0.attn_qkv.weight": {128, 256}, "blk.0.ffn_up.weight": {128, 256}},
	} {
		f := write(t, Small(name))
		for tensor, shape := range want {
			got, ok := f.Tensor(tensor)
			require.True(t, ok, tensor)
			require.Equal(t, shape, got.Shape, tensor)
		}
	}
}

func TestSameSpecSameFile(t *testing.T) {
	s := Small("qwen2")
	a, err := os.ReadFile(write(t, s).Path)
	require.NoError(t, err)
	b, err := os.ReadFile(write(t, s).Path)
	require.NoError(t, err)
	require.Equal(t, a, b)
	s.Seed++
	c, err := os.ReadFile(write(t, s).Path)
	require.NoError(t, err)
	require.NotEqual(t, a, c)
}

func TestZeroTouchesNothingElse(t *testing.T) {
	for _, typ := range []gguf.Type{gguf.F32, gguf.Q4_0} {
		s := Small("llama-moe")
		s.Type = typ
		whole := write(t, s)
		picked := func(name string) bool {
			return name == "blk.3.attn_output.weight" || strings.HasPrefix(name, "blk.5.ffn_down")
		}
		s.Scale = Times(0, picked)
		zeroed := write(t, s)
		nZero := 0
		for _, tensor := range whole.Tensors {
			b := content(t, zeroed, tensor.Name)
			if picked(tensor.Name) {
				nZero++
				require.Equal(t, make([]byte, len(b)), b)
				continue
			}
			require.Equal(t, content(t, whole, tensor.Name), b, tensor.Name)
		}
		require.Equal(t, 2, nZero)
	}
}

// TestDistributions unpacks the weights of each type and checks mean, spread
// and finiteness.
func TestDistributions(t *testing.T) {
	for _, typ := range []gguf.Type{gguf.F32, gguf.F16, gguf.Q4_0, gguf.Q8_0, gguf.Q4_K, gguf.Q6_K} {
		t.Run(typ.String(), func(t *testing.T) {
			const rows = 50
			tensor := gguf.Tensor{Name: "blk.0.attn_q.weight", Type: typ, Shape: []uint64{1024, rows}}
			var b strings.Builder
			require.NoError(t, Spec{}.data(tensor)(&b))
			values := unpack(t, typ, []byte(b.String()))
			require.Len(t, values, 1024*rows)
			mean, sigma := moments(values)
			require.InDelta(t, 0, mean, 0.05/32)
			require.InDelta(t, 1.0/32, sigma, 0.02/32)
		})
	}
	for name, want := range map[string]float64{"blk.0.attn_norm.weight": 1, "blk.0.attn_q.bias": 0} {
		var b strings.Builder
		require.NoError(t, Spec{}.data(gguf.Tensor{Name: name, Type: gguf.F32, Shape: []uint64{5000}})(&b))
		mean, sigma := moments(unpack(t, gguf.F32, []byte(b.String())))
		require.InDelta(t, want, mean, 0.03)
		require.Greater(t, sigma, 0.05)
	}
}

func moments(values []float64) (mean, sigma float64) {
	var sum, squares float64
	for _, v := range values {
		sum += v
		squares += v * v
	}
	n := float64(len(values))
	return sum / n, math.Sqrt(squares/n - sum*sum/n/n)
}

// unpack decodes blocks as the format says, element order aside.
func unpack(t *testing.T, typ gguf.Type, b []byte) []float64 {
	t.Helper()
	u16 := binary.LittleEndian.Uint16
	_, size := typ.Block()
	out := []float64{}
	for ; len(b) > 0; b = b[size:] {
		switch typ {
		case gguf.F32:
			out = append(out, float64(math.Float32frombits(binary.LittleEndian.Uint32(b))))
		case gguf.F16:
			out = append(out, unhalf(u16(b)))
		case gguf.Q4_0:
			d := unhalf(u16(b))
			for _, q := range b[2:18] {
				out = append(out, d*float64(int(q&15)-8), d*float64(int(q>>4)-8))
			}
		case gguf.Q8_0:
			for _, q := range b[2:34] {
				out = append(out, unhalf(u16(b))*float64(int8(q)))
			}
		case gguf.Q4_K:
			d, dmin := unhalf(u16(b)), unhalf(u16(b[2:]))
			for sub := range 8 {
				scale, minimum := subQ4KScales(b[4:16], sub)
				for i := range 32 {
					q := b[16+32*(sub/2)+i] >> (4 * (sub % 2)) & 15
					out = append(out, d*scale*float64(q)-dmin*minimum)
				}
			}
		case gguf.Q6_K:
			d := unhalf(u16(b[208:]))
			for i := range 256 {
				half, l := i/128, i%128
				low := b[64*half+l%64] >> (4 * (l / 64)) & 15
				high := b[128+32*half+l%32] >> (2 * (l / 32)) & 3
				out = append(out, d*float64(int8(b[192+i/16]))*float64(int(high<<4|low)-32))
			}
		}
	}
	for _, v := range out {
		require.False(t, math.IsNaN(v) || math.IsInf(v, 0))
	}
	return out
}

// subQ4KScales unpacks the two 6-bit numbers of a sub-block of Q4_K.
func subQ4KScales(s []byte, j int) (scale, minimum float64) {
	if j < 4 {
		return float64(s[j] & 63), float64(s[j+4] & 63)
	}
	return float64(s[j+4]&15 | s[j-4]>>6<<4), float64(s[j+4]>>4 | s[j]>>6<<4)
}

func unhalf(h uint16) float64 {
	exponent, fraction := int(h>>10&31), float64(h&1023)
	x := math.Ldexp(fraction, -24)
	if exponent > 0 {
		x = math.Ldexp(1024+fraction, exponent-25)
	}
	if h>>15 != 0 {
		x = -x
	}
	return x
}

// TestHalf goes through every finite float16 and a few values between.
func TestHalf(t *testing.T) {
	const infinity = 31 << 10
	for h := range uint16(infinity) {
		require.Equal(t, h, half(unhalf(h)))
		require.Equal(t, h|1<<15, half(-unhalf(h)))
	}
	for x, want := range map[float64]float64{
		1e9: 65504, 1e-9: 0, 1 + 1.0/2048: 1, 1 + 3.0/2048: 1 + 2.0/1024, 2047.9: 2048,
		math.Ldexp(1023.9, -24): math.Ldexp(1, -14), // the largest subnormal rounds up into the normal ones
	} {
		require.Equal(t, want, unhalf(half(x)), x)
	}
}

func TestShapes(t *testing.T) {
	// Elements of all tensors, as published.
	for name, want := range map[string]uint64{
		"smollm2-135m":  134_515_008,
		"llama-3.2-1b":  1_235_814_432, // rope factors included
		"llama-3.1-8b":  8_030_261_312,
		"qwen2.5-0.5b":  494_032_768,
		"qwen3-0.6b":    596_049_920,
		"qwen3-4b":      4_022_468_096,
		"qwen3-30b-a3b": 30_532_122_624,
		"gemma-3-1b":    999_885_952,
		"phi-3-mini-4k": 3_821_079_552,
	} {
		s, err := Shape(name)
		require.NoError(t, err)
		require.NoError(t, s.check())
		sum := uint64(0)
		for _, tensor := range s.tensors() {
			sum += tensor.Elements()
		}
		require.Equal(t, int(want), int(sum), name)
	}
	_, err := Shape("gpt-5")
	require.ErrorIs(t, err, ErrUnknown)
	require.ErrorContains(t, err, "llama-3.2-1b")
}

func TestEveryShapeIsPossible(t *testing.T) {
	for _, name := range ShapeNames() {
		s, err := Shape(name)
		require.NoError(t, err)
		require.NoError(t, s.check(), name)
		for _, tensor := range s.tensors() {
			_, err := tensor.Type.Size(tensor.Shape)
			require.NoError(t, err, name)
		}
	}
}

func TestTypesFollowLlamaQuantize(t *testing.T) {
	types := func(name string, typ gguf.Type) map[string]gguf.Type {
		s, err := Shape(name)
		require.NoError(t, err)
		s.Type = typ
		byName := map[string]gguf.Type{}
		for _, tensor := range s.tensors() {
			byName[tensor.Name] = tensor.Type
		}
		return byName
	}
	tiedQ4 := types("llama-3.2-1b", gguf.Q4_0)
	require.Equal(t, gguf.Q6_K, tiedQ4["token_embd.weight"])
	require.Equal(t, gguf.Q4_0, tiedQ4["blk.0.ffn_down.weight"])
	require.Equal(t, gguf.F32, tiedQ4["blk.0.attn_norm.weight"])

	require.Equal(t, gguf.Q8_0, types("gemma-3-1b", gguf.Q4_0)["token_embd.weight"]) // 1152 = 4.5 × 256

	mixed := types("llama-3.1-8b", gguf.Q4_K)
	require.Equal(t, gguf.Q4_K, mixed["token_embd.weight"])
	require.Equal(t, gguf.Q6_K, mixed["output.weight"])
	high := 0
	for name, typ := range mixed {
		if strings.HasSuffix(name, "ffn_down.weight") && typ == gguf.Q6_K {
			high++
		}
	}
	require.Equal(t, 16, high) // layers 0-3, 28-31 and 6, 9, …, 27

	require.Equal(t, gguf.Q8_0, types("llama-3.2-1b", gguf.Q8_0)["token_embd.weight"])
}

func TestRopeFactors(t *testing.T) {
	s, err := Shape("llama-3.2-1b")
	require.NoError(t, err)
	factors := s.ropeFactors()
	require.Len(t, factors, 32)
	require.Equal(t, float32(1), factors[0])
	require.Equal(t, float32(32), factors[31])
	for i := 1; i < len(factors); i++ {
		require.GreaterOrEqual(t, factors[i], factors[i-1])
	}
}

func TestVocabulary(t *testing.T) {
	tokens, types, merges := vocabulary(400)
	require.Len(t, tokens, 400)
	require.Len(t, types, 400)
	require.NotEmpty(t, merges)
	number := map[string]int{}
	for i, token := range tokens {
		number[token] = i
	}
	require.Len(t, number, 400) // no token twice
	require.Equal(t, "A", tokens['A'])
	require.Equal(t, "Ġ", tokens[' '])
	require.Equal(t, "<|endoftext|>", tokens[TokenEOS])
	require.Equal(t, "<|begin|>", tokens[TokenBOS])
	require.Equal(t, "<|im_start|>", tokens[TokenMessage])
	require.Equal(t, "<|im_end|>", tokens[TokenEOT])
	require.Contains(t, number, "Ġthe")
	for _, merge := range merges {
		left, right, ok := strings.Cut(merge, " ")
		require.True(t, ok)
		require.Contains(t, number, left)
		require.Contains(t, number, right)
		require.Contains(t, number, left+right)
	}
}

func TestWriteRefuses(t *testing.T) {
	for name, change := range map[string]func(*Spec){
		"no layers":       func(s *Spec) { s.Layers = 0 },
		"too many layers": func(s *Spec) { s.Layers = gguf.MaxLayers + 1 },
		"heads":           func(s *Spec) { s.KVHeads = 3 },
		"odd head":        func(s *Spec) { s.HeadDim = 31 },
		"vocabulary":      func(s *Spec) { s.Vocab = MinVocab - 1 },
		"phi3 width":      func(s *Spec) { s.Arch = "phi3" },
		"qwen2 width":     func(s *Spec) { s.Arch = "qwen2" },
		"no experts":      func(s *Spec) { s.Arch = "qwen3moe" },
		"experts":         func(s *Spec) { s.Arch, s.Experts, s.ExpertsUsed = "qwen3", 4, 2 },
		"experts used":    func(s *Spec) { s.Experts, s.ExpertsUsed = 4, 5 },
		"none used":       func(s *Spec) { s.Experts = 4 },
		"gemma3 output":   func(s *Spec) { s.Arch, s.Window = "gemma3", 8 },
		"type":            func(s *Spec) { s.Type = gguf.IQ1S },
		"row length":      func(s *Spec) { s.Type = gguf.Q4_K },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := Small("llama")
			change(&s)
			require.ErrorIs(t, Write(filepath.Join(dir, "model.gguf"), s), ErrSpec)
			left, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
	require.ErrorIs(t, Write(filepath.Join(t.TempDir(), "m.gguf"), Small("rwkv")), ErrUnknown)
}

func TestCached(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	ctx, cancel := context.WithCancel(context.Background())
	const shape = "smollm2-135m"
	_, err := Cached(ctx, "no-model", gguf.Q4_0, 1, false, nil)
	require.ErrorIs(t, err, ErrUnknown)
	_, err = Cached(ctx, shape, gguf.Q2_K, 1, false, nil)
	require.ErrorIs(t, err, ErrSpec)

	// Stopped half-way, it leaves nothing behind.
	_, err = Cached(ctx, shape, gguf.Q4_0, 1, false, func(done, total int64) { cancel() })
	require.ErrorIs(t, err, context.Canceled)
	folder, err := CacheFolder()
	require.NoError(t, err)
	left, err := os.ReadDir(folder)
	require.NoError(t, err)
	require.Empty(t, left)

	// What is cut short is no model; what is whole is taken as it is.
	path := filepath.Join(folder, shape+"-q4_0.gguf")
	small := filepath.Join(t.TempDir(), "small.gguf")
	require.NoError(t, Write(small, Small("llama")))
	whole, err := os.ReadFile(small)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, whole[:len(whole)/2], 0o644))
	_, err = Cached(ctx, shape, gguf.Q4_0, 1, false, nil)
	require.ErrorIs(t, err, context.Canceled, "it is made anew, which the ended context forbids")
	require.NoError(t, os.WriteFile(path, whole, 0o644))
	got, err := Cached(ctx, shape, gguf.Q4_0, 1, false, nil)
	require.NoError(t, err)
	require.Equal(t, path, got)
}
