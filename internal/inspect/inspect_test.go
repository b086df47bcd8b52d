package inspect_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/inspect"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
)

// write makes a file of these tensors, all of them F32 and (8,) long.
func write(t *testing.T, meta gguf.Metadata, tensors ...string) string {
	t.Helper()
	const bytesEach = 8 * 4
	sources := make([]gguf.Source, len(tensors))
	for i, name := range tensors {
		sources[i] = gguf.Source{
			Tensor: gguf.Tensor{Name: name, Shape: []uint64{8}, Type: gguf.F32},
			Data:   gguf.Bytes(make([]byte, bytesEach)),
		}
	}
	path := filepath.Join(t.TempDir(), "model.gguf")
	require.NoError(t, gguf.Write(context.Background(), path, meta, sources, nil))
	return path
}

func read(t *testing.T, path string) *inspect.Model {
	t.Helper()
	m, err := inspect.Read(path)
	require.NoError(t, err)
	return m
}

func TestReadModels(t *testing.T) {
	for _, name := range randmodel.SmallNames() {
		t.Run(name, func(t *testing.T) {
			spec := randmodel.Small(name)
			m := read(t, llamatest.Write(t, spec))
			require.Equal(t, spec.Arch, m.Architecture)
			require.Len(t, m.Layers, spec.Layers)
			require.EqualValues(t, spec.Embd, m.EmbeddingWidth)
			require.EqualValues(t, spec.Context, m.ContextLength)
			require.EqualValues(t, spec.Heads, m.Heads[0])
			require.EqualValues(t, spec.KVHeads, m.KVHeads[spec.Layers-1])
			require.EqualValues(t, spec.Experts, m.Experts)
			require.Equal(t, spec.Vocab, m.Vocabulary)
			require.Equal(t, "gpt2 (byte-level BPE)", m.Tokenizer)
			require.NotEmpty(t, m.ChatTemplate)
			info, err := os.Stat(m.Path)
			require.NoError(t, err)
			require.Equal(t, info.Size(), m.FileBytes)

			var sum float64
			for _, share := range m.Types {
				sum += share.Share
			}
			require.InDelta(t, 1, sum, 1e-9)
			for _, l := range m.Layers {
				require.Positive(t, l.Attention)
				require.Positive(t, l.FeedForward)
			}
			require.Less(t, m.LayerBytes(), m.TensorBytes, "the embedding is in no layer")
		})
	}
}

func TestReadHalves(t *testing.T) {
	path := write(t, gguf.Metadata{
		{Key: gguf.KeyArchitecture, Value: "made-up"},
		{Key: "made-up.block_count", Value: uint32(3)},
		{Key: "made-up.attention.head_count", Value: []uint32{8, 4, 8}},
		{Key: "made-up.vocab_size", Value: uint32(77)},
	}, "token_embd.weight", "blk.0.attn_q.weight", "blk.0.ffn_up.weight", "blk.0.ffn_norm.weight",
		"blk.1.ssm_in.weight", "blk.1.post_attention_norm.weight", "blk.2.exp_probs_b.bias", "blk.2.post_ffw_norm.weight")
	m := read(t, path)
	require.Equal(t, []inspect.Layer{{Attention: 32, FeedForward: 64}, {Attention: 64}, {FeedForward: 64}}, m.Layers)
	require.Equal(t, []uint64{8, 4, 8}, m.Heads)
	require.Equal(t, m.Heads, m.KVHeads)
	require.Equal(t, 77, m.Vocabulary)
	require.EqualValues(t, 64, m.Parameters)
	require.EqualValues(t, 256, m.TensorBytes)
	require.EqualValues(t, 224, m.LayerBytes())
}

func TestReadNoLanguageModel(t *testing.T) {
	m := read(t, write(t, gguf.Metadata{{Key: gguf.KeyArchitecture, Value: "clip"}}, "v.blk.0.attn_q.weight"))
	require.Empty(t, m.Layers)
	require.Contains(t, text(t, m, nil), "none: this is no language model")
}

func TestReadNothing(t *testing.T) {
	m := read(t, write(t, nil))
	require.Equal(t, "size", strings.Fields(strings.Split(text(t, m, nil), "\n")[2])[0])
}

func TestReadErrors(t *testing.T) {
	blocks := func(n any) gguf.Metadata {
		return gguf.Metadata{{Key: gguf.KeyArchitecture, Value: "llama"}, {Key: "llama.block_count", Value: n}}
	}
	_, err := inspect.Read(write(t, blocks(uint32(1)), "blk.1.attn_q.weight"))
	require.ErrorIs(t, err, gguf.ErrCorrupt)
	require.ErrorContains(t, err, `it has a tensor "blk.1.attn_q.weight", but says that it has 1 layers`)
	_, err = inspect.Read(write(t, blocks(uint32(4_000_000_000))))
	require.ErrorIs(t, err, gguf.ErrCorrupt)
	_, err = inspect.Read(write(t, blocks("twelve")))
	require.ErrorIs(t, err, gguf.ErrCorrupt)
	_, err = inspect.Read(filepath.Join(t.TempDir(), "none.gguf"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func text(t *testing.T, m *inspect.Model, opts *inspect.TextOptions) string {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, m.WriteText(&b, opts))
	return b.String()
}

// TestBarsFitTheTerminal looks at the widest line of the picture.
func TestBarsFitTheTerminal(t *testing.T) {
	m := &inspect.Model{Layers: []inspect.Layer{{Attention: 50 << 20, FeedForward: 1000 << 20}, {Attention: 1}}}
	for columns, want := range map[int]int{0: 67, 200: 67, 66: 66, 50: 50, 40: 40, 10: 35} {
		_, picture, _ := strings.Cut(text(t, m, &inspect.TextOptions{Columns: columns}), "\nlayer ")
		widest := 0
		for _, line := range strings.Split(picture, "\n")[1:] {
			widest = max(widest, utf8.RuneCountInString(line))
		}
		require.LessOrEqual(t, widest, want, columns)
	}
}

func TestWriteText(t *testing.T) {
	m := &inspect.Model{
		Path: "tiny.gguf", Name: "Tiny\x1b[2J", Architecture: "llama", Parameters: 1_234_567, FileBytes: 3 << 20,
		TensorBytes: 400, Types: []inspect.TypeShare{{Type: "Q4_0", Bytes: 300, Share: 0.75}, {Type: "F32", Bytes: 100, Share: 0.25}},
		ContextLength: 512, EmbeddingWidth: 64, Heads: []uint64{8, 8}, KVHeads: []uint64{2, 4}, FeedForward: []uint64{128, 128},
		Experts: 4, ExpertsUsed: 2, Tokenizer: "gpt2", Vocabulary: 300, PrunedLayers: []uint64{4, 6},
		OutputBytes: 100, OutputShare: 0.25,
		ChatTemplate: "one\ntwo\nthree\nfour\nfive\nsix\nseven\n",
		Layers:       []inspect.Layer{{Attention: 50, FeedForward: 150}, {Attention: 100}},
	}
	require.Equal(t, `file            tiny.gguf
name            Tiny�[2J
architecture    llama
parameters      1.2 M
size            3.0 MiB
quantisation    Q4_0 75.0 %, F32 25.0 % of the bytes
layers          2, with 300 B, 75.0 % of the weights
context         512 tokens
embedding       64 wide
heads           8, 2 to 4 for keys and values
feed-forward    128 wide
experts         4, 2 for each token
tokenizer       gpt2
vocabulary      300 tokens
output matrix   100 B, 25 % of a token's bytes
pruned          layers 4,6 of the original are gone
chat template   one
                two
                three
                four
                five
                … 2 more lines: --template

layer  █ attention  ░ feed-forward
    0  █████████░░░░░░░░░░░░░░░░░░░░░░░░░░░       50 B +     150 B
    1  ██████████████████                        100 B +       0 B
`, text(t, m, nil))
	colored := text(t, m, &inspect.TextOptions{Color: true})
	require.Contains(t, colored, "    1  \x1b[36m██████████████████\x1b[0m  ")
	require.Equal(t, text(t, m, nil), strings.NewReplacer("\x1b[36m", "", "\x1b[33m", "", "\x1b[0m", "").Replace(colored))
}

func TestPrintable(t *testing.T) {
	require.Equal(t, "a b�[0mé�", inspect.Printable("a\tb\x1b[0mé\u202e"))
}
