package router

import (
	"context"
	"encoding/binary"
	"io"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
)

func vector(t testing.TB, f *Features, p Prompt) []float32 {
	t.Helper()
	x := make([]float32, f.Dim())
	require.NoError(t, f.Vector(x, p))
	return x
}

func ngramFeatures(t testing.TB) *Features {
	t.Helper()
	f, err := NewFeatures(FeatureSpec{Kind: Ngrams}, nil)
	require.NoError(t, err)
	return f
}

func TestNgramsSeeWhatMatters(t *testing.T) {
	f := ngramFeatures(t)
	cosine := func(a, b string) float64 {
		return float64(dot32(vector(t, f, Prompt{Text: a})[:defaultBuckets], vector(t, f, Prompt{Text: b})[:defaultBuckets]))
	}
	const tolerance = 1e-6 // of a sum of some dozen float32 products
	require.InDelta(t, 1, cosine("What is 12 + 7?", "WHAT  is\t34 + 9?\n"), 0.4)
	require.InDelta(t, 1, cosine("What is 12?", "WHAT  is\t34?"), tolerance, "case, spaces and digits are alike")
	require.InDelta(t, 1, cosine("Über ÄPFEL", "über äpfel"), tolerance)
	require.Greater(t, cosine("Translate dog to French", "Translate cat to Spanish"), cosine("Translate dog to French", "Sort these numbers: 3, 1"))
	require.Zero(t, cosine("", "something"))
}

func TestScalars(t *testing.T) {
	x := vector(t, ngramFeatures(t), Prompt{Text: "a1\né?"})[defaultBuckets:]
	want := []float64{math.Log1p(6), 1. / 5, 1. / 5, math.Log1p(1), 1}
	for i := range want {
		require.InDelta(t, scalarNorm*want[i], x[i], 1e-6)
	}
}

func TestLongPromptsCountAtBothEndsOnly(t *testing.T) {
	f := ngramFeatures(t)
	start, end := strings.Repeat("ab ", 2000), strings.Repeat("çd ", 2000)
	a := vector(t, f, Prompt{Text: start + strings.Repeat("x", 50_000) + end})
	b := vector(t, f, Prompt{Text: start + strings.Repeat("y", 50_000) + end})
	require.Equal(t, a, b)
	head, tail := ends(strings.Repeat("é€", 5000))
	require.True(t, utf8.ValidString(head) && utf8.ValidString(tail))
	require.InDelta(t, endBytes, len(head), utf8.UTFMax)
	require.InDelta(t, endBytes, len(tail), utf8.UTFMax)
}

func TestNgramsAllocateNothing(t *testing.T) {
	f := ngramFeatures(t)
	x, p := make([]float32, f.Dim()), Prompt{Text: "How many minutes are in 3 hours?"}
	require.Zero(t, testing.AllocsPerRun(10, func() { _ = f.Vector(x, p) }))
}

func TestFeaturesRefuse(t *testing.T) {
	model := filepath.Join(t.TempDir(), "iq4_nl.gguf")
	writeTable(t, model, gguf.IQ4NL, 32, 2)
	for name, c := range map[string]struct {
		spec FeatureSpec
		from *Sources
		want string
	}{
		"unknown kind": {FeatureSpec{Kind: "bert"}, nil, "want ngram or embedding"},
		"twice":        {FeatureSpec{Kind: "ngram+ngram"}, nil, "twice"},
		"no model":     {FeatureSpec{}, nil, "model's file"},
		"type":         {FeatureSpec{Kind: Embedding}, &Sources{Model: model}, "IQ4_NL, read are F32"},
		"size":         {FeatureSpec{Kind: Ngrams, Buckets: -1}, nil, "buckets"},
		"fit":          {FeatureSpec{Kind: Ngrams, Scale: make([]float32, 3)}, nil, "fitted"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewFeatures(c.spec, c.from)
			require.ErrorIs(t, err, ErrFeatures)
			require.ErrorContains(t, err, c.want)
		})
	}
}

// writeTable makes a file with nothing but an embedding table of random blocks.
func writeTable(t testing.TB, path string, typ gguf.Type, nEmbd, nVocab int) {
	t.Helper()
	meta := gguf.Metadata{{Key: gguf.KeyArchitecture, Value: "llama"}, {Key: "llama.block_count", Value: uint32(1)}}
	tensor := gguf.Tensor{Name: tableName, Type: typ, Shape: []uint64{uint64(nEmbd), uint64(nVocab)}}
	size, err := typ.Size(tensor.Shape)
	require.NoError(t, err)
	random := rand.NewChaCha8([32]byte{1})
	data := make([]byte, size)
	_, _ = random.Read(data)
	// Scales of random bits could be infinite: keep them small.
	_, bytes := typ.Block()
	for at := 0; at < len(data); at += int(bytes) {
		b := data[at:][:bytes]
		switch typ {
		case gguf.F32:
			binary.LittleEndian.PutUint32(b, math.Float32bits(float32(int8(b[0]))/64))
		case gguf.BF16, gguf.F16:
			b[1] &= 0xbf
		case gguf.Q6_K:
			b[bytes-1] = 0x20
		case gguf.Q4_1, gguf.Q5_1, gguf.Q4_K, gguf.Q5_K:
			b[1], b[3] = 0x20, 0x20
		default:
			b[1] = 0x20
		}
	}
	require.NoError(t, gguf.Write(context.Background(), path, meta, []gguf.Source{{Tensor: tensor, Data: gguf.Bytes(data)}}, nil))
}

// reference unpacks element i of a row by the format's definition, one element
// at a time.
func reference(typ gguf.Type, b []byte, i int) float32 {
	elems, bytes := typ.Block()
	b = b[i/int(elems)*int(bytes):]
	i %= int(elems)
	switch typ {
	case gguf.F32:
		return math.Float32frombits(binary.LittleEndian.Uint32(b))
	case gguf.F16:
		return half(b)
	case gguf.BF16:
		return math.Float32frombits(uint32(b[0])<<16 | uint32(b[1])<<24)
	case gguf.Q8_0:
		return half(b) * float32(int8(b[2+i]))
	case gguf.Q4_0:
		return half(b) * float32(int(b[2+i%16]>>(i/16*4)&15)-8)
	case gguf.Q4_1:
		return half(b)*float32(b[4+i%16]>>(i/16*4)&15) + half(b[2:])
	case gguf.Q5_0:
		return half(b) * float32(int(b[6+i%16]>>(i/16*4)&15)+16*int(b[2+i/8]>>(i%8)&1)-16)
	case gguf.Q5_1:
		return half(b)*float32(int(b[8+i%16]>>(i/16*4)&15)+16*int(b[4+i/8]>>(i%8)&1)) + half(b[2:])
	case gguf.Q4_K, gguf.Q5_K:
		sub, bits := i/32, func(k int) uint32 { return uint32(b[4+k]) }
		scale, least := bits(sub%4)&63, bits(sub%4+4)&63
		if sub >= 4 {
			scale = bits(sub+4)&15 | bits(sub-4)>>6<<4
			least = bits(sub+4)>>4 | bits(sub)>>6<<4
		}
		low, high := b[16:], byte(0)
		if typ == gguf.Q5_K {
			low, high = b[48:], b[16+i%32]>>sub&1
		}
		q := low[i/64*32+i%32]>>(i%64/32*4)&15 + 16*high
		return half(b)*float32(scale)*float32(q) - half(b[2:])*float32(least)
	case gguf.Q6_K:
		h, in := i/128, i%128
		low := b[h*64+in%64] >> (in / 64 * 4) & 15
		high := b[128+h*32+in%32] >> (in / 32 * 2) & 3
		return half(b[208:]) * float32(int8(b[192+i/16])) * float32(int(low|high<<4)-32)
	}
	panic(typ)
}

func TestTableUnpacksEachType(t *testing.T) {
	const nEmbd, nVocab = 512, 3
	for typ := range unpackers {
		t.Run(typ.String(), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "m.gguf")
			writeTable(t, path, typ, nEmbd, nVocab)
			table, err := openTable(&Sources{Model: path}, nEmbd, 0)
			require.NoError(t, err)
			defer table.close()
			tensor, _ := table.file.Tensor(tableName)
			data, err := io.ReadAll(table.file.Reader(tensor))
			require.NoError(t, err)
			for token := range nVocab {
				row, err := table.lookup(llama.Token(token))
				require.NoError(t, err)
				b := data[token*len(data)/nVocab:]
				for i, v := range row {
					want := reference(typ, b, i)
					require.InDelta(t, want, v, 1e-6*math.Max(1, math.Abs(float64(want)))) // rounding: the factors' order differs
				}
			}
			_, err = table.lookup(nVocab)
			require.ErrorIs(t, err, ErrFeatures)
			_, err = table.lookup(-1)
			require.ErrorIs(t, err, ErrFeatures)
		})
	}
}

func TestHalf(t *testing.T) {
	for bits, want := range map[uint16]float32{0: 0, 0x3c00: 1, 0xc000: -2, 0x7bff: 65504, 1: 1.0 / (1 << 24), 0x83ff: -1023.0 / (1 << 24)} {
		require.Equal(t, want, half(binary.LittleEndian.AppendUint16(nil, bits)))
	}
	require.True(t, math.IsInf(float64(half([]byte{0, 0x7c})), 1))
	require.True(t, math.IsNaN(float64(half([]byte{1, 0x7c}))))
}

func TestProjectionKeepsInnerProducts(t *testing.T) {
	const nEmbd, width, pairs = 2048, 256, 200
	path := filepath.Join(t.TempDir(), "m.gguf")
	writeTable(t, path, gguf.F32, nEmbd, 1)
	table, err := openTable(&Sources{Model: path}, width, 7)
	require.NoError(t, err)
	defer table.close()
	random := rand.New(rand.NewPCG(1, 2))
	var meanError float64
	for range pairs {
		a, b := make([]float32, nEmbd), make([]float32, nEmbd)
		for i := range a {
			a[i] = float32(random.NormFloat64() / math.Sqrt(nEmbd))
			b[i] = (a[i] + float32(random.NormFloat64()/math.Sqrt(nEmbd))) / math.Sqrt2
		}
		pa, pb := make([]float32, width), make([]float32, width)
		table.project(pa, a)
		table.project(pb, b)
		meanError += float64(dot32(pa, pb)-dot32(a, b)) / pairs
	}
	// One inner product of unit vectors varies by about √(2/width); 4 of their mean's.
	require.InDelta(t, 0, meanError, 4*math.Sqrt(2.0/width/pairs))
}

func TestEmbeddingPoolsTheMean(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.gguf")
	writeTable(t, path, gguf.F32, 32, 4)
	f, err := NewFeatures(FeatureSpec{Kind: Embedding}, &Sources{Model: path})
	require.NoError(t, err)
	defer f.Close()
	require.Equal(t, 32+nScalars, f.Dim())
	raw := make([]float32, f.Dim())
	require.NoError(t, f.raw(raw, Prompt{Tokens: []llama.Token{1, 2, 1}}))
	one, _ := f.table.lookup(1)
	two, _ := f.table.lookup(2)
	for i := range 32 {
		require.InDelta(t, (2*one[i]+two[i])/3, raw[i], 1e-6)
	}
	require.ErrorIs(t, f.Vector(raw, Prompt{Tokens: []llama.Token{4}}), ErrFeatures)
	require.ErrorIs(t, f.Vector(raw[1:], Prompt{}), ErrFeatures)
	require.NoError(t, f.Vector(raw, Prompt{}), "a prompt without tokens is a zero vector")
	require.Zero(t, raw[0])
}

func TestFit(t *testing.T) {
	f := ngramFeatures(t)
	require.ErrorIs(t, f.Fit(nil), ErrFeatures)
	require.NoError(t, f.Fit([]Prompt{{Text: "tell me a story"}, {Text: "tell me a joke"}, {Text: "tell me the time"}}))
	common := vector(t, f, Prompt{Text: "tell me a poem"})
	again, err := NewFeatures(f.Spec(), nil)
	require.NoError(t, err)
	require.Equal(t, common, vector(t, again, Prompt{Text: "tell me a poem"}))
	// What every prompt has weighs least.
	plain := ngramFeatures(t)
	cosine := func(f *Features) float32 {
		a, b := vector(t, f, Prompt{Text: "tell me a poem"}), vector(t, f, Prompt{Text: "tell me a lie"})
		return dot32(a[:defaultBuckets], b[:defaultBuckets])
	}
	require.Less(t, cosine(f), cosine(plain))
}

func FuzzVector(f *testing.F) {
	features, err := NewFeatures(FeatureSpec{Kind: Ngrams, Buckets: 64}, nil)
	require.NoError(f, err)
	f.Add("What is 12 + 7?")
	f.Add("\xff\xfeé\u0301 ٣?")
	f.Fuzz(func(t *testing.T, text string) {
		x := make([]float32, features.Dim())
		require.NoError(t, features.Vector(x, Prompt{Text: text}))
		var square float64
		for _, v := range x[:64] {
			square += float64(v) * float64(v)
		}
		if square != 0 {
			require.InDelta(t, 1, square, 1e-5)
		}
	})
}

// thousandTokens is a prompt of 1,000 tokens, 600 of them distinct, as prose
// has them, in a vocabulary of vocab.
func thousandTokens(vocab int) Prompt {
	random := rand.New(rand.NewPCG(1, 1))
	var p Prompt
	words := make([]string, 600)
	for i := range words {
		letters := make([]byte, 2+random.IntN(7))
		for j := range letters {
			letters[j] = byte('a' + random.IntN(26))
		}
		words[i] = string(letters)
	}
	var text strings.Builder
	for range 1000 {
		w := random.IntN(len(words))
		text.WriteString(words[w] + " ")
		p.Tokens = append(p.Tokens, llama.Token(w*7919%vocab))
	}
	p.Text = text.String()
	return p
}

func BenchmarkNgrams(b *testing.B) {
	f := ngramFeatures(b)
	x, p := make([]float32, f.Dim()), thousandTokens(1000)
	for b.Loop() {
		_ = f.Vector(x, p)
	}
}

// BenchmarkEmbedding pools 1,000 tokens of a table of Llama 3.2 1B's shape:
// warm, as in a running chat, and cold, as for the first prompt of a process.
func BenchmarkEmbedding(b *testing.B) {
	const nVocab, nEmbd = 128256, 2048
	p := thousandTokens(nVocab)
	for _, typ := range []gguf.Type{gguf.Q4_0, gguf.Q6_K} {
		path := filepath.Join(b.TempDir(), "m.gguf")
		writeTable(b, path, typ, nEmbd, nVocab)
		f, err := NewFeatures(FeatureSpec{Kind: Embedding}, &Sources{Model: path})
		require.NoError(b, err)
		defer f.Close()
		x := make([]float32, f.Dim())
		b.Run(typ.String()+"/warm", func(b *testing.B) {
			for b.Loop() {
				require.NoError(b, f.Vector(x, p))
			}
		})
		b.Run(typ.String()+"/cold", func(b *testing.B) {
			for b.Loop() {
				clear(f.table.slot)
				f.table.cached = f.table.cached[:0]
				require.NoError(b, f.Vector(x, p))
			}
		})
	}
}

// The table of a real file: randmodel's small llama.
func TestTableOfAModelFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.gguf")
	require.NoError(t, randmodel.Write(path, randmodel.Small("llama")))
	f, err := NewFeatures(FeatureSpec{}, &Sources{Model: path})
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, f.Close())
	require.Equal(t, defaultBuckets+64+nScalars, f.Dim())
}
