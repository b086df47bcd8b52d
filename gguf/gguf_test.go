package gguf

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// everyKind has one entry for each metadata type, arrays and edges included.
func everyKind() Metadata {
	return Metadata{
		{KeyArchitecture, "llama"},
		{"u8", uint8(255)}, {"i8", int8(-128)},
		{"u16", uint16(65535)}, {"i16", int16(-32768)},
		{"u32", uint32(math.MaxUint32)}, {"i32", int32(math.MinInt32)},
		{"u64", uint64(math.MaxUint64)}, {"i64", int64(math.MinInt64)},
		{"f32", float32(1.5)}, {"f64", math.Inf(-1)},
		{"f32.nan", math.Float32frombits(0x7f800001)}, // signalling, with a payload
		{"true", true}, {"false", false},
		{"text", "Grüße\x00\xff"}, {"text.empty", ""},
		{"a.u8", []uint8{1, 2}}, {"a.i8", []int8{-1}},
		{"a.u16", []uint16{3}}, {"a.i16", []int16{-3}},
		{"a.u32", []uint32{4, 5}}, {"a.i32", []int32{}},
		{"a.u64", []uint64{6}}, {"a.i64", []int64{-6}},
		{"a.f32", []float32{0.25}}, {"a.f64", []float64{0.125}},
		{"a.bool", []bool{true, false, true}},
		{"a.text", []string{"", "b", "ćc"}},
		{"a.nested", []any{[]uint32{1}, []any{[]string{"x"}, []any{}}}},
	}
}

// source makes a tensor filled with a running byte.
func source(name string, typ Type, shape ...uint64) Source {
	size, err := typ.Size(shape)
	if err != nil {
		panic(err)
	}
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i)
	}
	return Source{Tensor: Tensor{Name: name, Type: typ, Shape: shape}, Data: Bytes(b)}
}

// write makes a file in a fresh folder and gives its path.
func write(t testing.TB, meta Metadata, tensors ...Source) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.gguf")
	require.NoError(t, Write(context.Background(), path, meta, tensors, nil))
	return path
}

func open(t testing.TB, path string) *File {
	t.Helper()
	f, err := Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return f
}

// requireAlone makes sure that nothing but the named files is in the folder.
func requireAlone(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	found := []string{}
	for _, e := range entries {
		found = append(found, e.Name())
	}
	require.Equal(t, append([]string{}, names...), found)
}

func TestRoundTripKeepsEveryKind(t *testing.T) {
	tensors := []Source{source("scalar", F32), source("odd", I8, 3), source("q", Q4_K, 512, 3, 2, 2)}
	path := write(t, everyKind(), tensors...)
	f := open(t, path)
	require.Equal(t, uint32(3), f.Version)
	require.Len(t, f.Metadata, len(everyKind()))
	for i, kv := range everyKind() {
		if kv.Key == "f32.nan" { // not equal to itself, so compare the bits
			require.Equal(t, uint32(0x7f800001), math.Float32bits(f.Metadata[i].Value.(float32)))
			continue
		}
		require.Equal(t, kv, f.Metadata[i])
	}
	for i, s := range tensors {
		require.Equal(t, s.Tensor.Name, f.Tensors[i].Name)
		require.Equal(t, s.Tensor.Type, f.Tensors[i].Type)
		require.ElementsMatch(t, s.Tensor.Shape, f.Tensors[i].Shape)
		require.Equal(t, tensorBytes(t, s.Data), tensorBytes(t, f.Copy(f.Tensors[i]).Data))
	}
	require.EqualValues(t, 512*3*2*2, f.Tensors[2].Elements())
}

func tensorBytes(t *testing.T, data func(io.Writer) error) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, data(&b))
	return b.Bytes()
}

// TestRewriteIsIdentical is the property on which pruning stands: reading a
// file and writing it again gives the same bytes.
func TestRewriteIsIdentical(t *testing.T) {
	const seed = 7
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := range 50 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			f := open(t, write(t, randomMetadata(rng), randomTensors(rng)...))
			sources := make([]Source, len(f.Tensors))
			for i, tensor := range f.Tensors {
				sources[i] = f.Copy(tensor)
			}
			again := write(t, f.Metadata, sources...)
			want, err := os.ReadFile(f.Path)
			require.NoError(t, err)
			got, err := os.ReadFile(again)
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, got))
		})
	}
}

func randomMetadata(rng *rand.Rand) Metadata {
	meta := everyKind()
	rng.Shuffle(len(meta), func(i, j int) { meta[i], meta[j] = meta[j], meta[i] })
	meta = meta[:rng.IntN(len(meta))]
	if rng.IntN(2) == 0 {
		meta = append(meta, KV{KeyAlignment, uint32(1) << rng.IntN(13)})
	}
	tokens := make([]string, rng.IntN(2000))
	for i := range tokens {
		tokens[i] = strings.Repeat("t", rng.IntN(9))
	}
	return append(meta, KV{"tokens", tokens})
}

func randomTensors(rng *rand.Rand) []Source {
	types := []Type{F32, F16, Q4_0, Q6_K, I8, MXFP4, IQ1S}
	tensors := make([]Source, rng.IntN(8))
	for i := range tensors {
		typ := types[rng.IntN(len(types))]
		elems, _ := typ.Block()
		shape := []uint64{elems * uint64(1+rng.IntN(3)), uint64(1 + rng.IntN(5)), uint64(1 + rng.IntN(3))}
		tensors[i] = source(fmt.Sprintf("blk.%d.w", i), typ, shape[:1+rng.IntN(3)]...)
	}
	return tensors
}

func TestTypeSize(t *testing.T) {
	for _, c := range []struct {
		typ   Type
		shape []uint64
		want  uint64
		err   string
	}{
		{F32, nil, 4, ""},
		{Q4_0, []uint64{64, 3}, 2 * 18 * 3, ""},
		{NVFP4, []uint64{128}, 72, ""},
		{Q4_0, []uint64{33}, 0, "multiple of 32"},
		{Q4_0, nil, 0, "multiple of 32"},
		{F32, []uint64{4, 0}, 0, "empty dimension"},
		{F32, []uint64{0}, 0, "empty dimension"},
		{F32, []uint64{1, 1, 1, 1, 1}, 0, "5 dimensions"},
		{F32, []uint64{1 << 40, 1 << 40}, 0, "too large"},
		{F32, []uint64{1 << 61}, 0, "too large"},
		{Type(4), []uint64{32}, 0, "unknown tensor type 4"},
	} {
		got, err := c.typ.Size(c.shape)
		if c.err != "" {
			require.ErrorContains(t, err, c.err)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, c.want, got)
	}
}

func TestParseType(t *testing.T) {
	for typ := range typeTable {
		got, ok := ParseType(strings.ToLower(typ.String()))
		require.True(t, ok)
		require.Equal(t, typ, got)
	}
	_, ok := ParseType("Q9_9")
	require.False(t, ok)
}

func TestGetters(t *testing.T) {
	m := everyKind()
	u, err := m.Uint("u64")
	require.NoError(t, err)
	require.Equal(t, uint64(math.MaxUint64), u)
	i, err := m.Int("i8")
	require.NoError(t, err)
	require.Equal(t, int64(-128), i)
	x, err := m.Float("u8")
	require.NoError(t, err)
	require.Equal(t, 255.0, x)
	b, err := m.Bool("true")
	require.NoError(t, err)
	require.True(t, b)
	texts, err := m.Strings("a.text")
	require.NoError(t, err)
	require.Len(t, texts, 3)
	bits, err := m.Uints("a.bool")
	require.NoError(t, err)
	require.Equal(t, []uint64{1, 0, 1}, bits)
	floats, err := m.Floats("a.f32")
	require.NoError(t, err)
	require.Equal(t, []float64{0.25}, floats)

	_, err = m.Uint("i8")
	require.ErrorIs(t, err, ErrKeyType)
	_, err = m.Int("u64")
	require.ErrorIs(t, err, ErrKeyType)
	_, err = m.Uints("a.i8")
	require.ErrorIs(t, err, ErrKeyType)
	_, err = m.String("a.text")
	require.ErrorContains(t, err, `"a.text" is an array of 3 values ([]string), not a text`)
	_, err = m.Float("nowhere")
	require.ErrorIs(t, err, ErrNoKey)
}

func TestSetDelete(t *testing.T) {
	m := Metadata{{"a", uint8(1)}, {"b", uint8(2)}}
	m.Set("a", "new")
	m.Set("c", true)
	m.Delete("b")
	require.Equal(t, Metadata{{"a", "new"}, {"c", true}}, m)
}

func TestUintPerLayer(t *testing.T) {
	m := Metadata{{"one", uint32(8)}, {"each", []int32{8, 0, 4}}, {"text", "8"}}
	for key, want := range map[string][]uint64{"one": {8, 8, 8}, "each": {8, 0, 4}} {
		got, err := m.UintPerLayer(key, 3)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	_, err := m.UintPerLayer("each", 4)
	require.ErrorContains(t, err, "has 3 values, the model has 4 layers")
	_, err = m.UintPerLayer("text", 4)
	require.ErrorIs(t, err, ErrKeyType)
	_, err = m.UintPerLayer("none", 4)
	require.ErrorIs(t, err, ErrNoKey)
}

func TestLayerCount(t *testing.T) {
	m := Metadata{{KeyArchitecture, "qwen3"}, {"qwen3.block_count", uint32(28)}}
	n, err := m.LayerCount()
	require.NoError(t, err)
	require.Equal(t, 28, n)
	for _, bad := range []any{uint32(0), uint32(MaxLayers + 1), "28"} {
		m.Set("qwen3.block_count", bad)
		_, err = m.LayerCount()
		require.ErrorIs(t, err, ErrKeyType)
	}
	_, err = Metadata{}.LayerCount()
	require.ErrorIs(t, err, ErrNoKey)
}

func TestTokenBytes(t *testing.T) {
	const embedding, output, layer = 300, 200, 500
	count := func(sizes map[string]uint64) [2]uint64 {
		all, output := TokenBytes(maps.All(sizes))
		return [2]uint64{all, output}
	}
	require.Equal(t, [2]uint64{layer + output, output},
		count(map[string]uint64{EmbeddingName: embedding, OutputName: output, "blk.0.ffn_up.weight": layer}))
	require.Equal(t, [2]uint64{layer + embedding, embedding},
		count(map[string]uint64{EmbeddingName: embedding, "blk.0.ffn_up.weight": layer}), "tied")
	require.Equal(t, [2]uint64{}, count(nil))
}

func TestSplitLayer(t *testing.T) {
	layer, rest, ok := SplitLayer("blk.12.attn_q.weight")
	require.True(t, ok)
	require.Equal(t, 12, layer)
	require.Equal(t, "attn_q.weight", rest)
	for _, name := range []string{"output.weight", "blk.", "blk.x.w", "blk.-1.w", "blk.01.w", "blk.3", "3.w", ""} {
		_, _, ok := SplitLayer(name)
		require.False(t, ok, name)
	}
}

// header assembles a file by hand, for what Write would refuse.
type header struct{ bytes.Buffer }

func (h *header) add(values ...any) *header {
	for _, v := range values {
		if s, ok := v.(string); ok {
			h.add(uint64(len(s)))
			h.WriteString(s)
			continue
		}
		if err := binary.Write(h, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	return h
}

// begin starts a version 3 file.
func begin(nTensors, nKV uint64) *header {
	h := &header{}
	h.WriteString(magic)
	return h.add(uint32(3), nTensors, nKV)
}

func TestOpenRefuses(t *testing.T) {
	u32, u64 := func(v uint32) uint32 { return v }, func(v uint64) uint64 { return v }
	const huge = math.MaxUint64
	for name, c := range map[string]struct {
		content []byte
		kind    error
		text    string
	}{
		"empty":       {nil, ErrNotGGUF, "empty"},
		"three bytes": {[]byte("GGU"), ErrNotGGUF, `"GGU"`},
		"text":        {[]byte("hello, this is a text"), ErrNotGGUF, `does not begin with "GGUF"`},
		"lfs pointer": {[]byte("version https://git-lfs.github.com/spec/v1\noid"), ErrNotGGUF, "git lfs pull"},
		"web page":    {[]byte("<!DOCTYPE html><html>"), ErrNotGGUF, "web page"},
		"old ggml":    {[]byte("tjgg\x03\x00\x00\x00"), ErrNotGGUF, "2023"},
		"magic alone": {[]byte("GGUF"), ErrTruncated, "header"},
		"version 1":   {(&header{*bytes.NewBufferString(magic)}).add(u32(1), u64(0), u64(0)).Bytes(), ErrVersion, "too old"},
		"version 4":   {(&header{*bytes.NewBufferString(magic)}).add(u32(4), u64(0), u64(0)).Bytes(), ErrVersion, "newer"},
		"big endian":  {(&header{*bytes.NewBufferString(magic)}).add(u32(3<<24), u64(0), u64(0)).Bytes(), ErrVersion, "big-endian"},

		"huge key count":     {begin(0, huge).Bytes(), ErrTruncated, "metadata"},
		"huge tensor count":  {begin(huge, 0).Bytes(), ErrTruncated, "tensor list"},
		"huge key":           {begin(0, 1).add(u64(huge), u64(0), u64(0)).Bytes(), ErrTruncated, "texts"},
		"huge text":          {begin(0, 1).add("k", kindString, u64(huge)).Bytes(), ErrTruncated, "texts"},
		"huge array":         {begin(0, 1).add("k", kindArray, kindUint64, u64(huge)).Bytes(), ErrTruncated, "metadata"},
		"huge text array":    {begin(0, 1).add("k", kindArray, kindString, u64(huge)).Bytes(), ErrTruncated, "metadata"},
		"huge bool array":    {begin(0, 1).add("k", kindArray, kindBool, u64(huge)).Bytes(), ErrTruncated, "metadata"},
		"unknown kind":       {begin(0, 1).add("k", u32(13), u64(0)).Bytes(), ErrCorrupt, "unknown value type 13"},
		"unknown array kind": {begin(0, 1).add("k", kindArray, u32(13), u64(0)).Bytes(), ErrCorrupt, "unknown type 13"},
		"bad bool":           {begin(0, 1).add("k", kindBool, uint8(2)).Bytes(), ErrCorrupt, "truth value"},
		"empty key":          {begin(0, 1).add("", kindBool, uint8(1)).Bytes(), ErrCorrupt, "0 bytes"},
		"key twice":          {begin(0, 2).add("k", kindBool, uint8(1), "k", kindBool, uint8(1)).Bytes(), ErrCorrupt, `"k" is there twice`},
		"bad alignment":      {begin(0, 1).add(KeyAlignment, kindUint32, u32(48)).Bytes(), ErrCorrupt, "power of two"},
		"alignment kind":     {begin(0, 1).add(KeyAlignment, kindUint64, u64(32)).Bytes(), ErrCorrupt, "uint32"},
		"deep nesting": {begin(0, 1).add("k", kindArray, bytes.Repeat([]byte{9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}, 100)).Bytes(),
			ErrCorrupt, "nests more than 8"},

		"empty tensor name": {begin(1, 0).add("", u32(1), u64(4), F32, u64(0), u64(0)).Bytes(), ErrCorrupt, "tensor name"},
		"long tensor name":  {begin(1, 0).add(strings.Repeat("n", 64), u32(1), u64(4), F32, u64(0)).Bytes(), ErrCorrupt, "64 bytes"},
		"five dimensions":   {begin(1, 0).add("t", u32(5), make([]uint64, 6)).Bytes(), ErrCorrupt, "5 dimensions"},
		"huge dimension":    {begin(1, 0).add("t", u32(2), u64(huge), u64(huge), F32, u64(0)).Bytes(), ErrCorrupt, "too large"},
		"unknown type":      {begin(1, 0).add("t", u32(1), u64(32), u32(31), u64(0)).Bytes(), ErrCorrupt, "type 31"},
		"broken rows":       {begin(1, 0).add("t", u32(1), u64(33), Q4_0, u64(0)).Bytes(), ErrCorrupt, "multiple of 32"},
		"empty tensor":      {begin(1, 0).add("t", u32(1), u64(0), F32, u64(0)).Bytes(), ErrCorrupt, "empty dimension"},
		"gap":               {begin(1, 0).add("t", u32(1), u64(8), F32, u64(32), make([]byte, 99)).Bytes(), ErrCorrupt, "begins at byte 32"},
		"tensor twice": {begin(2, 0).add("t", u32(1), u64(8), F32, u64(0), "t", u32(1), u64(8), F32, u64(32), make([]byte, 99)).Bytes(),
			ErrCorrupt, `"t" is there twice`},
		"two make 2^63": {begin(2, 0).add("t", u32(1), u64(1<<62), I8, u64(0), "u", u32(1), u64(1<<62), I8, u64(1<<62)).Bytes(),
			ErrCorrupt, "too large"},
		"no data": {begin(1, 0).add("t", u32(1), u64(1<<40), F32, u64(0)).Bytes(), ErrTruncated, "download is not complete"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bad.gguf")
			require.NoError(t, os.WriteFile(path, c.content, 0o600))
			_, err := Open(path)
			require.ErrorIs(t, err, c.kind)
			require.ErrorContains(t, err, c.text)
			require.ErrorContains(t, err, path)
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestOpenRefusesWhatIsNoFile(t *testing.T) {
	_, err := Open(filepath.Join(t.TempDir(), "none.gguf"))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "none.gguf")
	_, err = Open(t.TempDir())
	require.ErrorIs(t, err, ErrNotGGUF)
	require.ErrorContains(t, err, "folder")
	_, err = Open(os.DevNull)
	require.ErrorIs(t, err, ErrNotGGUF)
	require.ErrorContains(t, err, "no regular file")
}

// TestOpenTruncated cuts a good file at every length: no cut may pass or panic.
func TestOpenTruncated(t *testing.T) {
	path := write(t, everyKind(), source("a", F32, 5), source("b", Q8_0, 64))
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	f := open(t, path)
	last := f.Tensors[1]
	end := int(uint64(f.DataOffset) + last.Offset + last.Size) // padding behind the last tensor may miss
	for n := range end {
		_, err := parse(bytes.NewReader(whole[:n]), int64(n))
		switch {
		case n < len(magic):
			require.ErrorIs(t, err, ErrNotGGUF, n)
		default:
			require.ErrorIs(t, err, ErrTruncated, n)
		}
	}
	_, err = parse(bytes.NewReader(whole[:end]), int64(end))
	require.NoError(t, err)
}

// TestOpenHugeHeader makes sure that a sparse file cannot make Open allocate
// what its size would allow.
func TestOpenHugeHeader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sparse.gguf")
	content := begin(0, 1).add("k", kindArray, kindUint64, uint64(1<<32)).Bytes()
	require.NoError(t, os.WriteFile(path, content, 0o600))
	require.NoError(t, os.Truncate(path, 1<<40))
	_, err := Open(path)
	require.ErrorIs(t, err, ErrCorrupt)
	require.ErrorContains(t, err, "96 MiB")
}

func TestOpenVersion2(t *testing.T) {
	content := begin(0, 0).Bytes()
	content[4] = 2
	f, err := parse(bytes.NewReader(content), int64(len(content)))
	require.NoError(t, err)
	require.Equal(t, uint32(2), f.Version)
}

func TestCloseTwice(t *testing.T) {
	f := open(t, write(t, nil))
	require.NoError(t, f.Close())
	require.NoError(t, f.Close())
}

func TestTensorByName(t *testing.T) {
	f := open(t, write(t, nil, source("a", F32, 5)))
	_, ok := f.Tensor("a")
	require.True(t, ok)
	_, ok = f.Tensor("b")
	require.False(t, ok)
}

func TestWriteRefuses(t *testing.T) {
	type list = []Source
	bad := func(s Source) list { return list{s} }
	for name, c := range map[string]struct {
		meta    Metadata
		tensors list
		kind    error
	}{
		"value type":     {Metadata{{"k", 1}}, nil, ErrInvalid},
		"element type":   {Metadata{{"k", []any{1}}}, nil, ErrInvalid},
		"nested type":    {Metadata{{"k", []any{[]int{1}}}}, nil, ErrInvalid},
		"nil value":      {Metadata{{"k", nil}}, nil, ErrInvalid},
		"key twice":      {Metadata{{"k", true}, {"k", true}}, nil, ErrInvalid},
		"empty key":      {Metadata{{"", true}}, nil, ErrInvalid},
		"alignment":      {Metadata{{KeyAlignment, uint32(3)}}, nil, ErrInvalid},
		"tensor twice":   {nil, list{source("a", F32, 1), source("a", F32, 1)}, ErrInvalid},
		"empty name":     {nil, bad(source("", F32, 1)), ErrInvalid},
		"long name":      {nil, bad(source(strings.Repeat("n", 64), F32, 1)), ErrInvalid},
		"shape":          {nil, bad(Source{Tensor: Tensor{Name: "a", Type: Q4_0, Shape: []uint64{31}}}), ErrInvalid},
		"no data":        {nil, bad(Source{Tensor: Tensor{Name: "a", Shape: []uint64{1}}}), ErrTensorSize},
		"too few bytes":  {nil, bad(Source{Tensor{Name: "a", Shape: []uint64{2}}, Bytes(make([]byte, 7))}), ErrTensorSize},
		"too many bytes": {nil, bad(Source{Tensor{Name: "a", Shape: []uint64{2}}, Bytes(make([]byte, 9))}), ErrTensorSize},
		"failing data": {nil, bad(Source{Tensor{Name: "a", Shape: []uint64{2}}, func(io.Writer) error { return io.ErrClosedPipe }}),
			io.ErrClosedPipe},
		"dropped error": {nil, bad(Source{Tensor{Name: "a", Shape: []uint64{2}}, func(w io.Writer) error {
			_, _ = w.Write(make([]byte, 9))
			_, _ = w.Write(make([]byte, 8))
			return nil
		}}), ErrTensorSize},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "out.gguf")
			err := Write(context.Background(), path, c.meta, c.tensors, nil)
			require.ErrorIs(t, err, c.kind)
			require.ErrorContains(t, err, path)
			requireAlone(t, dir)
		})
	}
}

func TestWriteKeepsTheOldFileOnFailure(t *testing.T) {
	path := write(t, Metadata{{"k", "old"}})
	err := Write(context.Background(), path, nil, []Source{{Tensor: Tensor{Name: "a"}}}, nil)
	require.ErrorIs(t, err, ErrTensorSize)
	old, err := open(t, path).Metadata.String("k")
	require.NoError(t, err)
	require.Equal(t, "old", old)
	requireAlone(t, filepath.Dir(path), "model.gguf")
}

func TestWriteReplaces(t *testing.T) {
	path := write(t, Metadata{{"k", "old"}})
	require.NoError(t, Write(context.Background(), path, Metadata{{"k", "new"}}, nil, nil))
	text, err := open(t, path).Metadata.String("k")
	require.NoError(t, err)
	require.Equal(t, "new", text)
}

func TestWriteNeedsAFolderAndAFileName(t *testing.T) {
	err := Write(context.Background(), filepath.Join(t.TempDir(), "none", "out.gguf"), nil, nil, nil)
	require.ErrorIs(t, err, os.ErrNotExist)
	err = Write(context.Background(), t.TempDir(), nil, nil, nil)
	require.ErrorContains(t, err, "no regular file")
}

func TestWriteStopsWithItsContext(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	endless := Source{Tensor{Name: "a", Type: I8, Shape: []uint64{1 << 24}}, func(w io.Writer) error {
		for {
			if _, err := w.Write(make([]byte, 1<<16)); err != nil {
				return errors.Join(err)
			}
			cancel()
		}
	}}
	require.ErrorIs(t, Write(ctx, filepath.Join(dir, "out.gguf"), nil, []Source{endless}, nil), context.Canceled)
	requireAlone(t, dir)
}

func TestWriteLooksForRoomFirst(t *testing.T) {
	dir := t.TempDir()
	huge := Source{Tensor{Name: "a", Type: I8, Shape: []uint64{1 << 60}}, func(io.Writer) error {
		t.Fatal("it began to write")
		return nil
	}}
	err := Write(context.Background(), filepath.Join(dir, "out.gguf"), nil, []Source{huge}, nil)
	require.ErrorIs(t, err, syscall.ENOSPC)
	require.Regexp(t, `^cannot write \S+out.gguf, \d+ bytes: no space left on device, \d+ bytes are free$`, err.Error())
	requireAlone(t, dir)
}

func TestWriteProgress(t *testing.T) {
	var last, total int64
	progress := func(d, n int64) {
		require.GreaterOrEqual(t, d, last)
		last, total = d, n
	}
	path := filepath.Join(t.TempDir(), "out.gguf")
	tensors := []Source{source("a", F32, 5), source("b", F32, 500)}
	require.NoError(t, Write(context.Background(), path, nil, tensors, &WriteOptions{Progress: progress}))
	require.Equal(t, total, last)
	require.EqualValues(t, 32+2016, total)
}

// FuzzOpen feeds the parser damaged headers. Whatever it accepts must be
// written back as the same bytes, but for the version and the padding.
func FuzzOpen(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 0))
	for range 4 {
		content, err := os.ReadFile(write(f, randomMetadata(rng)[:1], randomTensors(rng)...))
		require.NoError(f, err)
		f.Add(content)
	}
	content, err := os.ReadFile(write(f, everyKind(), source("t", F32, 3)))
	require.NoError(f, err)
	f.Add(content)
	f.Add(begin(0, 1).add(KeyAlignment, kindUint32, uint32(64)).Bytes())
	f.Fuzz(func(t *testing.T, content []byte) {
		file, err := parse(bytes.NewReader(content), int64(len(content)))
		if err != nil {
			return
		}
		_, _ = file.CacheWidths()
		sources := make([]Source, len(file.Tensors))
		for i, tensor := range file.Tensors {
			sources[i] = file.Copy(tensor)
			n, err := io.Copy(io.Discard, file.Reader(tensor))
			require.NoError(t, err)
			require.EqualValues(t, tensor.Size, n)
		}
		again, _, err := encodeHeader(file.Metadata, sources)
		require.NoError(t, err)
		again[4] = byte(file.Version)
		unpadded := bytes.TrimRight(again, "\x00")
		require.True(t, bytes.HasPrefix(content, unpadded))
	})
}
