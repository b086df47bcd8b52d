package llama_test

import (
	"context"
	"encoding/binary"
	"math"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// small is the context of most tests.
func small(t *testing.T, m *llama.Model) *llama.Context {
	t.Helper()
	return llamatest.Context(t, m, &llama.ContextOptions{NCtx: 256, Threads: 1})
}

// decode runs tokens at the positions from pos on and returns the last logits.
func decode(t testing.TB, c *llama.Context, tokens []llama.Token, pos int, mask skip.Mask) []float32 {
	t.Helper()
	b, err := llama.NewBatch(len(tokens), nil)
	require.NoError(t, err)
	defer b.Close()
	for i, tok := range tokens {
		require.NoError(t, b.Add(tok, pos+i, i == len(tokens)-1, 0))
	}
	require.NoError(t, c.Decode(b, mask))
	logits, err := c.Logits(-1)
	require.NoError(t, err)
	return slices.Clone(logits)
}

func TestBatchBounds(t *testing.T) {
	llamatest.Library(t)
	for _, capacity := range []int{-1, 0, 1 << 25} {
		_, err := llama.NewBatch(capacity, nil)
		require.ErrorIs(t, err, llama.ErrBatch)
	}
	for _, opts := range []llama.BatchOptions{{Sequences: 257}, {Embd: -1}, {Embd: math.MaxInt}} {
		_, err := llama.NewBatch(8, &opts)
		require.ErrorIs(t, err, llama.ErrBatch)
	}
	b := llamatest.Batch(t, prompt(2), 0)
	require.Equal(t, []int{2, 2}, []int{b.Len(), b.Cap()})
	require.ErrorContains(t, b.Add(1, 2, true, 0), "full at 2 tokens")
	b.Clear()
	require.Zero(t, b.Len())
	for _, err := range []error{
		b.Add(1, -1, true, 0), b.Add(1, math.MaxInt32+1, true, 0), b.Add(1, 0, true), b.Add(1, 0, true, 0, 1),
		b.Add(1, 0, true, -1), b.Add(1, 0, true, 256), b.AddEmbedding(make([]float32, 4), 0, true, 0),
	} {
		require.ErrorIs(t, err, llama.ErrBatch)
	}
	require.Zero(t, b.Len())

	two, err := llama.NewBatch(2, &llama.BatchOptions{Sequences: 2, Embd: 4})
	require.NoError(t, err)
	defer two.Close()
	require.ErrorIs(t, two.Add(1, 0, true, 0), llama.ErrBatch)
	require.ErrorIs(t, two.AddEmbedding(make([]float32, 3), 0, true, 0), llama.ErrBatch)
	require.ErrorIs(t, two.AddEmbedding(make([]float32, 4), 0, true, 1, 1), llama.ErrBatch)
	require.NoError(t, two.AddEmbedding(make([]float32, 4), 0, true, 0, 1))
}

// TestDecodeRefuses checks each bad batch, and that the context is none the worse.
func TestDecodeRefuses(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 2))
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 512, NBatch: 32, NSeqMax: 2, Threads: 1})
	decode(t, c, prompt(5), 0, none)
	want := decode(t, c, prompt(6)[5:], 5, none)
	require.NoError(t, c.Remove(0, 5, -1))
	type entry struct {
		token llama.Token
		pos   int
		seqs  []int
	}
	var many []entry
	for i := range 33 {
		many = append(many, entry{1, 5 + i, []int{0}})
	}
	zero := []int{0}
	for name, bad := range map[string]struct {
		entries []entry
		says    string
	}{
		"empty":                 {nil, "empty"},
		"too many":              {many, "33 tokens, the context takes 32 at once"},
		"token too large":       {[]entry{{llama.Token(m.Vocab.Size), 5, zero}}, "invalid token[0] = 260"},
		"negative token":        {[]entry{{-1, 5, zero}}, "invalid token[0] = -1"},
		"no such sequence":      {[]entry{{1, 0, []int{2}}}, "2 >= 2"},
		"gap":                   {[]entry{{1, 5, zero}, {1, 8, zero}}, "not continuous"},
		"backwards":             {[]entry{{1, 6, zero}, {1, 5, zero}}, "decreasing"},
		"gap behind the cache":  {[]entry{{1, 9, zero}}, "do not continue"},
		"inside the cache":      {[]entry{{1, 2, zero}}, "do not continue"},
		"shared without unifed": {[]entry{{1, 5, []int{0, 1}}}, "KVUnified"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := llama.NewBatch(64, &llama.BatchOptions{Sequences: 2})
			require.NoError(t, err)
			defer b.Close()
			for _, e := range bad.entries {
				require.NoError(t, b.Add(e.token, e.pos, true, e.seqs...))
			}
			require.Empty(t, llamatest.Printed(t, func() { err = c.Decode(b, none) }))
			require.ErrorIs(t, err, llama.ErrBatch)
			require.ErrorContains(t, err, bad.says)
			require.NotContains(t, err.Error(), "\n")
			_, err = c.Logits(0)
			require.ErrorIs(t, err, llama.ErrNoOutput)

			first, last := c.Positions(0)
			require.Equal(t, []int{0, 4}, []int{first, last}, "the cache must be as it was")
			requireSameBits(t, want, decode(t, c, prompt(6)[5:], 5, none), "after the refusal")
			require.NoError(t, c.Remove(0, 5, -1))
		})
	}
	wrong, err := llama.NewBatch(1, &llama.BatchOptions{Embd: 31})
	require.NoError(t, err)
	defer wrong.Close()
	require.NoError(t, wrong.AddEmbedding(make([]float32, 31), 5, true, 0))
	require.ErrorContains(t, c.Decode(wrong, none), "embeddings of 31 numbers, the model has 32")
}

func TestDecodeFull(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 2))
	c := small(t, m)
	n := c.NCtx()
	require.Equal(t, 256, n)
	decode(t, c, prompt(n-1), 0, none)
	require.ErrorIs(t, c.Decode(llamatest.Batch(t, prompt(2), n-1), none), llama.ErrFull)
	decode(t, c, prompt(1), n-1, skip.Layers(1)) // the last place
	err := c.Decode(llamatest.Batch(t, prompt(1), n), skip.Layers(1))
	require.ErrorIs(t, err, llama.ErrFull)
	require.ErrorContains(t, err, "1 more tokens do not fit into 256")
	require.NoError(t, c.Remove(0, n-1, -1))
	decode(t, c, prompt(1), n-1, none)
}

func TestOutputs(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 2))
	c := small(t, m)
	_, err := c.Logits(-1)
	require.ErrorIs(t, err, llama.ErrNoOutput)
	b, err := llama.NewBatch(4, nil)
	require.NoError(t, err)
	defer b.Close()
	for i, tok := range prompt(4) {
		require.NoError(t, b.Add(tok, i, i%2 == 1, 0)) // outputs at 1 and 3
	}
	require.NoError(t, c.Decode(b, none))
	for _, i := range []int{0, 2, 4, math.MaxInt, -3, -5, math.MinInt} {
		_, err := c.Logits(i)
		require.ErrorIs(t, err, llama.ErrNoOutput, "%d", i)
	}
	third, err := c.Logits(3)
	require.NoError(t, err)
	last, err := c.Logits(-1)
	require.NoError(t, err)
	require.Len(t, last, m.Vocab.Size)
	require.Same(t, &third[0], &last[0])
	_, err = c.Embedding(3)
	require.ErrorIs(t, err, llama.ErrNoOutput)

	c.Clear()
	require.ErrorIs(t, c.Decode(b, skip.Layers(0, 1)), llama.ErrMask)
	_, err = c.Logits(3)
	require.ErrorIs(t, err, llama.ErrNoOutput, "a failed decode has no output")
}

// tensor reads the float32 values of a tensor.
func tensor(t *testing.T, path, name string) []float32 {
	t.Helper()
	f, err := gguf.Open(path)
	require.NoError(t, err)
	defer f.Close()
	entry, ok := f.Tensor(name)
	require.True(t, ok)
	values := make([]float32, entry.Elements())
	require.NoError(t, binary.Read(f.Reader(entry), binary.LittleEndian, values))
	return values
}

// TestEmbeddingBatch puts the rows of the embedding matrix in the tokens' place.
func TestEmbeddingBatch(t *testing.T) {
	llamatest.Library(t)
	for _, arch := range []string{"llama", "qwen3", "phi3"} { // gemma3 scales the embeddings of tokens alone
		path := llamatest.Write(t, randmodel.Small(arch))
		m := llamatest.Open(t, path)
		matrix := tensor(t, path, "token_embd.weight")
		c := small(t, m)
		for _, mask := range []skip.Mask{none, skip.Layers(0), skip.Layers(2, 7), none.With(0, skip.Attention).With(7, skip.FeedForward)} {
			want := decode(t, c, prompt(9), 0, mask)
			c.Clear()
			b, err := llama.NewBatch(9, &llama.BatchOptions{Embd: m.NEmbd})
			require.NoError(t, err)
			for i, tok := range prompt(9) {
				require.NoError(t, b.AddEmbedding(matrix[int(tok)*m.NEmbd:][:m.NEmbd], i, i == 8, 0))
			}
			require.NoError(t, c.Decode(b, mask))
			got, err := c.Logits(-1)
			require.NoError(t, err)
			requireSameBits(t, want, got, arch+" "+mask.String())
			require.NoError(t, b.Close())
			c.Clear()
		}
	}
}

// TestSequences covers remove, copy and keep: what is left decodes as if it had
// been alone from the start.
func TestSequences(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 3))
	alone := small(t, m)
	want := decode(t, alone, prompt(8), 0, none)
	for _, unified := range []bool{false, true} {
		c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 768, NSeqMax: 3, Threads: 1, KVUnified: unified})
		require.NoError(t, c.Decode(llamatest.Batch(t, prompt(7), 0, 0, 1), none))
		require.NoError(t, c.Copy(0, 2, 0, -1))
		requirePositions(t, c, 2, 0, 6)
		require.NoError(t, c.Remove(0, 0, -1))
		require.NoError(t, c.Remove(1, 0, -1))
		requirePositions(t, c, 0, -1, -1)
		requirePositions(t, c, 1, -1, -1)
		require.NoError(t, c.Decode(llamatest.Batch(t, prompt(8)[7:], 7, 2), none))
		got, err := c.Logits(0)
		require.NoError(t, err)
		requireClose(t, want, got)
		require.NoError(t, c.Remove(2, 3, -1))
		requirePositions(t, c, 2, 0, 2)
		require.NoError(t, c.Remove(-1, 0, -1))
		requirePositions(t, c, 2, -1, -1)

		require.NoError(t, c.Decode(llamatest.Batch(t, prompt(7), 0, 0), none))
		err = c.Copy(0, 1, 0, 4)
		if unified {
			require.NoError(t, err)
			requirePositions(t, c, 1, 0, 3)
			shared, err := llama.NewBatch(1, &llama.BatchOptions{Sequences: 2})
			require.NoError(t, err)
			require.NoError(t, c.Remove(0, 4, -1))
			require.NoError(t, shared.Add(prompt(5)[4], 4, true, 0, 1))
			require.NoError(t, c.Decode(shared, none))
			requirePositions(t, c, 1, 0, 4)
			require.NoError(t, shared.Close())
		} else {
			require.ErrorIs(t, err, llama.ErrOption)
		}
		nothing, err := c.Save(2)
		require.NoError(t, err)
		defer nothing.Close()
		for _, seq := range []int{-2, 3, math.MaxInt, math.MinInt} {
			if seq > 0 {
				require.ErrorIs(t, c.Remove(seq, 0, -1), llama.ErrOption)
			}
			require.ErrorIs(t, c.Copy(seq, 0, 0, -1), llama.ErrOption)
			require.ErrorIs(t, c.Copy(0, seq, 0, -1), llama.ErrOption)
			_, err := c.Save(seq)
			require.ErrorIs(t, err, llama.ErrOption)
			require.ErrorIs(t, c.Restore(nothing, seq), llama.ErrOption)
			requirePositions(t, c, seq, -1, -1)
		}
		require.NoError(t, c.Remove(0, math.MinInt, math.MaxInt))
		requirePositions(t, c, 0, -1, -1)
	}
}

func requirePositions(t *testing.T, c *llama.Context, seq, first, last int) {
	t.Helper()
	f, l := c.Positions(seq)
	require.Equal(t, []int{first, last}, []int{f, l})
}

// tolerance is for logits, of order one, that were computed in another order or
// from rounded keys: F16 keeps 11 bits.
const tolerance = 0.05

func requireClose(t *testing.T, want, got []float32) {
	t.Helper()
	require.InDeltaSlice(t, want, got, tolerance)
}

// difference is the largest between two rows of logits.
func difference(a, b []float32) (most float64) {
	for i := range a {
		most = max(most, math.Abs(float64(a[i]-b[i])))
	}
	return most
}

func TestCacheTypesAndThreads(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	mask := skip.Layers(3).With(5, skip.Attention)
	want := decode(t, llamatest.Context(t, m, &llama.ContextOptions{NCtx: 256, Threads: 1, KType: llama.CacheF32, VType: llama.CacheF32}), prompt(20), 0, mask)
	sizes := map[llama.CacheType]int{} // bytes of the saved cache
	for _, kind := range []llama.CacheType{llama.CacheDefault, llama.CacheF16, llama.CacheBF16, llama.CacheQ8_0} {
		c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 256, Threads: 1, KType: kind, VType: kind, Flash: llama.FlashOn})
		got := decode(t, c, prompt(20), 0, mask)
		require.Less(t, difference(want, got), 0.3, "%d", kind) // Q8_0 and BF16 keep 8 bits, through 7 layers
		saved, err := c.Save(0)
		require.NoError(t, err)
		sizes[kind] = saved.Size()
		require.NoError(t, saved.Close())
	}
	require.Equal(t, sizes[llama.CacheF16], sizes[llama.CacheDefault])
	require.Less(t, sizes[llama.CacheQ8_0], sizes[llama.CacheF16]*6/10) // 8.5 bits in place of 16
	c := small(t, m)
	one := decode(t, c, prompt(20), 0, none)
	require.NoError(t, c.SetThreads(2, 0))
	c.Clear()
	requireSameBits(t, one, decode(t, c, prompt(20), 0, none), "two threads")
	for _, n := range []int{-1, 513} {
		require.ErrorIs(t, c.SetThreads(n, 1), llama.ErrOption)
		require.ErrorIs(t, c.SetThreads(1, n), llama.ErrOption)
	}
}

// TestAbort ends decodes from outside, before and during.
func TestAbort(t *testing.T) {
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Context = 8192
	m := llamatest.Open(t, llamatest.Write(t, spec))
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 4096, NBatch: 4096, NUBatch: 64, Threads: 1})
	want := decode(t, c, prompt(9), 0, skip.Layers(2))
	c.Clear()

	ended, cancel := context.WithCancel(context.Background())
	cancel()
	release := c.AbortOn(ended)
	require.ErrorIs(t, c.Decode(llamatest.Batch(t, prompt(9), 0), skip.Layers(2)), llama.ErrAborted)
	release()
	release() // does nothing

	long := llamatest.Batch(t, prompt(4096), 0)
	during, cancel := context.WithCancel(context.Background())
	release = c.AbortOn(during)
	timer := time.AfterFunc(20*time.Millisecond, cancel) // the whole takes seconds
	require.ErrorIs(t, c.Decode(long, skip.Layers(2)), llama.ErrAborted)
	timer.Stop()
	release()
	_, err := c.Logits(-1)
	require.ErrorIs(t, err, llama.ErrNoOutput)

	c.Clear()
	requireSameBits(t, want, decode(t, c, prompt(9), 0, skip.Layers(2)), "after the abort")

	// A new watch takes the old one's place, and Close ends the last.
	c.AbortOn(ended)
	c.AbortOn(context.Background())
	c.Clear()
	decode(t, c, prompt(9), 0, none)
	watched, cancel := context.WithCancel(context.Background())
	release = c.AbortOn(watched)
	require.NoError(t, c.Close())
	cancel()
	release()
}

// TestSave takes a conversation out of the cache and puts it back into another sequence, in
// cells that lie apart; it goes on as if nothing had happened.
func TestSave(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	mask := skip.Layers(1)
	for name, opts := range map[string]llama.ContextOptions{
		"a buffer each": {NCtx: 512, NSeqMax: 3, Threads: 1},
		"unified":       {NCtx: 512, NSeqMax: 3, Threads: 1, KVUnified: true},
		"transposed":    {NCtx: 512, NSeqMax: 3, Threads: 1, KVUnified: true, Flash: llama.FlashOff},
		"quantised":     {NCtx: 512, NSeqMax: 3, Threads: 1, KVUnified: true, KType: llama.CacheQ8_0, VType: llama.CacheQ8_0, Flash: llama.FlashOn},
	} {
		t.Run(name, func(t *testing.T) {
			c := llamatest.Context(t, m, &opts)
			next := func(seq int) []float32 {
				require.NoError(t, c.Decode(llamatest.Batch(t, prompt(8)[7:], 7, seq), mask))
				logits, err := c.Logits(0)
				require.NoError(t, err)
				return slices.Clone(logits)
			}
			require.NoError(t, c.Decode(llamatest.Batch(t, prompt(7), 0, 0), mask))
			want := next(0)
			require.NoError(t, c.Remove(0, 7, -1))
			p, err := c.Save(0)
			require.NoError(t, err)
			require.Positive(t, p.Size())
			require.NoError(t, c.Remove(0, 0, -1))
			for i := range 12 { // neighbours leave holes that are too small for it
				require.NoError(t, c.Decode(llamatest.Batch(t, prompt(1), i/2, i%2), mask))
			}
			require.NoError(t, c.Remove(1, 0, -1))
			for range 2 { // it may be put back more than once
				require.NoError(t, c.Restore(p, 2))
				requirePositions(t, c, 2, 0, 6)
				requireClose(t, want, next(2))
			}
			require.NoError(t, p.Close())
			require.NoError(t, p.Close())
			require.ErrorIs(t, c.Restore(p, 2), llama.ErrClosed)
		})
	}
}

// TestSaveWindow: a cache with sliding windows saves the last window, and the sequence goes on at its end.
func TestSaveWindow(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Small(t, "gemma3")
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 512, NSeqMax: 2, Threads: 1, KVUnified: true})
	long := prompt(100)
	require.NoError(t, c.Decode(llamatest.Batch(t, long[:99], 0, 0), none))
	p, err := c.Save(0)
	require.NoError(t, err)
	defer p.Close()
	var want []float32
	for seq := range 2 {
		require.NoError(t, c.Decode(llamatest.Batch(t, long[99:], 99, seq), none))
		got, err := c.Logits(0)
		require.NoError(t, err)
		if seq == 0 {
			want = slices.Clone(got)
			require.NoError(t, c.Restore(p, 1))
			first, last := c.Positions(1)
			require.Equal(t, 98, last)
			require.Positive(t, first, "positions in front of the window are gone")
			continue
		}
		requireClose(t, want, got)
	}
}

// TestSaveRefuses: what cannot be put back is refused, and the context stays usable.
func TestSaveRefuses(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 3))
	opts := llama.ContextOptions{NCtx: 256, NSeqMax: 2, Threads: 1, KVUnified: true}
	c := llamatest.Context(t, m, &opts)
	require.NoError(t, c.Decode(llamatest.Batch(t, prompt(200), 0, 0), none))
	p, err := c.Save(0)
	require.NoError(t, err)
	defer p.Close()
	require.NoError(t, c.Remove(0, 0, -1))
	other := llamatest.Context(t, m, &opts)
	require.ErrorContains(t, other.Restore(p, 0), "another context")
	require.NoError(t, c.Decode(llamatest.Batch(t, prompt(100), 0, 0), none))
	require.ErrorIs(t, c.Restore(p, 1), llama.ErrState, "200 cells are not free")
	requirePositions(t, c, 0, 0, 99)
	requirePositions(t, c, 1, -1, -1)
	require.NoError(t, c.Remove(0, 0, -1))
	require.NoError(t, c.Restore(p, 1))
	requirePositions(t, c, 1, 0, 199)
	require.NoError(t, c.Close())
	require.ErrorIs(t, c.Restore(p, 1), llama.ErrClosed)
	_, err = c.Save(1)
	require.ErrorIs(t, err, llama.ErrClosed)
}

// loraFile writes an adapter of rank 2 for the query projections of m's layers.
func loraFile(t *testing.T, m *llama.Model, arch string, embd, q int) string {
	t.Helper()
	values := func(name string, in, out uint64) gguf.Source {
		data := make([]byte, 4*in*out)
		for i := range in * out {
			v := float32(math.Sin(float64(i)*0.7+float64(len(name)))) / 2
			binary.LittleEndian.PutUint32(data[4*i:], math.Float32bits(v))
		}
		return gguf.Source{Tensor: gguf.Tensor{Name: name, Shape: []uint64{in, out}, Type: gguf.F32}, Data: gguf.Bytes(data)}
	}
	var sources []gguf.Source
	for l := range m.NLayer {
		name := "blk." + string(rune('0'+l)) + ".attn_q.weight.lora_"
		sources = append(sources, values(name+"a", uint64(embd), 2), values(name+"b", 2, uint64(q)))
	}
	meta := gguf.Metadata{
		{Key: "general.type", Value: "adapter"}, {Key: gguf.KeyArchitecture, Value: arch},
		{Key: "adapter.type", Value: "lora"}, {Key: "adapter.lora.alpha", Value: float32(2)},
	}
	path := filepath.Join(t.TempDir(), "lora.gguf")
	require.NoError(t, gguf.Write(context.Background(), path, meta, sources, nil))
	return path
}

func TestLoRA(t *testing.T) {
	llamatest.Library(t)
	path := llamatest.Write(t, randmodel.Small("llama"))
	m := llamatest.Open(t, path)
	file := loraFile(t, m, "llama", 64, 128)
	l, err := m.LoadLoRA(file)
	require.NoError(t, err)
	c := small(t, m)
	with := func(mask skip.Mask, adapters ...llama.ScaledLoRA) []float32 {
		require.NoError(t, c.SetLoRA(adapters...))
		c.Clear()
		return decode(t, c, prompt(12), 0, mask)
	}
	mask := skip.Layers(0, 4).With(7, skip.FeedForward)
	for _, mask := range []skip.Mask{none, mask} {
		base := with(mask)
		requireSameBits(t, base, with(mask, llama.ScaledLoRA{LoRA: l}), "scale 0")
		full := with(mask, llama.ScaledLoRA{LoRA: l, Scale: 1})
		require.Greater(t, difference(base, full), 0.01)
		require.Greater(t, difference(full, with(mask, llama.ScaledLoRA{LoRA: l, Scale: 2})), 0.01)
		requireSameBits(t, base, with(mask), "taken off again")
	}

	// With an adapter too, skipping equals projections of zero.
	zeroed := randmodel.Small("llama")
	zeroed.Scale = randmodel.Times(0, identity(mask))
	reference := llamatest.Open(t, llamatest.Write(t, zeroed))
	rl, err := reference.LoadLoRA(file)
	require.NoError(t, err)
	rc := small(t, reference)
	require.NoError(t, rc.SetLoRA(llama.ScaledLoRA{LoRA: rl, Scale: 1}))
	got := with(mask, llama.ScaledLoRA{LoRA: l, Scale: 1})
	requireSameBits(t, decode(t, rc, prompt(12), 0, none), got, "zeroed reference")

	require.ErrorIs(t, c.SetLoRA(llama.ScaledLoRA{LoRA: rl, Scale: 1}), llama.ErrModel, "of another model")
	// Closed while in use: the context keeps it alive.
	require.NoError(t, l.Close())
	require.NoError(t, l.Close())
	require.NoError(t, rl.Close())
	require.ErrorIs(t, c.SetLoRA(llama.ScaledLoRA{LoRA: l, Scale: 1}), llama.ErrClosed)
	require.ErrorIs(t, c.SetLoRA(llama.ScaledLoRA{}), llama.ErrClosed)
	c.Clear()
	requireSameBits(t, got, decode(t, c, prompt(12), 0, mask), "closed adapter in use")

	for name, bad := range map[string]string{
		"missing":            filepath.Join(t.TempDir(), "no.gguf"),
		"no adapter":         path,
		"other architecture": loraFile(t, m, "qwen2", 64, 128),
		"other shape":        loraFile(t, m, "llama", 32, 128),
	} {
		t.Run(name, func(t *testing.T) {
			var err error
			require.Empty(t, llamatest.Printed(t, func() { _, err = m.LoadLoRA(bad) }))
			require.Error(t, err)
			require.NotContains(t, err.Error(), "\n")
			t.Log(err)
		})
	}
}

func TestDevices(t *testing.T) {
	llamatest.Library(t)
	var kinds []llama.DeviceKind
	for _, d := range llama.Devices() {
		kinds = append(kinds, d.Kind)
		require.NotEmpty(t, d.Name)
		require.NotEmpty(t, d.Description)
	}
	require.Contains(t, kinds, llama.CPU)
	require.Positive(t, llama.DefaultThreads())
	require.NotEmpty(t, llama.Version())
	require.NotEmpty(t, llama.SystemInfo())
	require.ErrorContains(t, llama.LoadBackend(filepath.Join(t.TempDir(), "libggml-none.so")), "cannot be loaded")
	require.NoError(t, llama.MasksAvailable())
}

// TestContextMemory has contexts that a machine has memory for, and one byte less.
func TestContextMemory(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	const cell, f16 = 48, 8 * 2 * 64 * 2 // bytes of a token: in 8 layers 64 numbers for keys and for values
	require.EqualValues(t, f16, m.CacheBytes(llama.CacheDefault, llama.CacheF16))
	for name, c := range map[string]struct {
		opts llama.ContextOptions
		want uint64
	}{
		"as trained":        {llama.ContextOptions{}, 4096 * (cell + f16)},
		"a length":          {llama.ContextOptions{NCtx: 1000}, 1000 * (cell + f16)},
		"sequences":         {llama.ContextOptions{NCtx: 1000, NSeqMax: 4}, 1000 * (cell + f16)},
		"all that can be":   {llama.ContextOptions{NCtx: 1 << 26}, 1 << 26 * (cell + f16)},
		"whole numbers":     {llama.ContextOptions{NCtx: 1000, KType: llama.CacheF32, VType: llama.CacheF32}, 1000 * (cell + 2*f16)},
		"bytes":             {llama.ContextOptions{NCtx: 1000, KType: llama.CacheQ8_0, VType: llama.CacheQ8_0}, 1000 * (cell + f16/2*34/32)},
		"four bits for one": {llama.ContextOptions{NCtx: 1000, VType: llama.CacheQ4_0}, 1000 * (cell + f16/2 + f16/4*18/32)},
	} {
		const all = 1 << 50
		require.NoError(t, llama.CheckMemory(m, c.opts, c.want, all), name)
		err := llama.CheckMemory(m, c.opts, c.want-1, all)
		require.ErrorIs(t, err, llama.ErrMemory, name)
		require.ErrorContains(t, err, "ask for a shorter context (-c)", name)
	}

	const tokens = 1 << 20
	for name, c := range map[string]struct {
		opts llama.ContextOptions
		want uint64
	}{
		"an attention mask":          {llama.ContextOptions{NCtx: tokens, NBatch: tokens, NUBatch: tokens}, tokens * tokens * 2},
		"of fewer at once":           {llama.ContextOptions{NCtx: tokens, NBatch: 4096, NUBatch: tokens}, 4096 * tokens * 2},
		"of as many as there can be": {llama.ContextOptions{NCtx: 1 << 26, NBatch: 1 << 26, NUBatch: 1 << 26}, 1 << 53},
		"as usual":                   {llama.ContextOptions{NCtx: tokens}, 512 * tokens * 2},
		"logits":                     {llama.ContextOptions{NCtx: 512}, 512 * uint64(m.Vocab.Size) * 4},
	} {
		const free = 1 << 60
		require.NoError(t, llama.CheckMemory(m, c.opts, free, c.want), name)
		err := llama.CheckMemory(m, c.opts, free, c.want-1)
		require.ErrorIs(t, err, llama.ErrMemory, name)
		require.ErrorContains(t, err, "ask for fewer at once (-ub)", name)
	}
	require.NoError(t, llama.CheckMemory(m, llama.ContextOptions{NCtx: 1 << 26}, 0, 0), "where the system says nothing")

	_, err := m.NewContext(&llama.ContextOptions{NCtx: 1 << 26, NBatch: 1 << 26, NUBatch: 1 << 26}) // 8 PiB
	require.ErrorIs(t, err, llama.ErrMemory)
}
