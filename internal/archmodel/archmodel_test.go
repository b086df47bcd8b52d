package archmodel_test

import (
	"bytes"
	"cmp"
	"errors"
	"log/slog"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/archmodel"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// newMaker compiles a maker of models.
func newMaker(t *testing.T) *archmodel.Maker {
	t.Helper()
	llamatest.Library(t)
	lib, err := llama.FindLibrary([]string{llama.Dir()})
	require.NoError(t, err)
	maker, err := archmodel.NewMaker(t.Context(), t.TempDir(), "../../third_party/llama.cpp/include", lib)
	require.NoError(t, err)
	return maker
}

// write makes a model and gives its path.
func write(t *testing.T, maker *archmodel.Maker, name string) (archmodel.Model, string) {
	t.Helper()
	m, err := archmodel.Find(name)
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "model.gguf")
	require.NoError(t, maker.Write(t.Context(), m, path))
	return m, path
}

// TestMasksOnManyArchitectures has a shape of each kind of layer that the hook tells
// apart, and some of the masks; `make test-architectures` has all of both.
func TestMasksOnManyArchitectures(t *testing.T) {
	maker := newMaker(t)
	const step = 3
	for name, refused := range map[string]string{ // what all refusals say, none = no refusals
		"chameleon-swin":    "cannot be told apart",   // its feed-forward reads what attention adds
		"cohere2":           "",                       // halves side by side
		"deepseek2":         "",                       // latent attention, experts beside a shared one
		"gemma4-e2b":        "reads the KV cache of",  // of the last that has its own; a scale and an embedding for each layer
		"granitehybrid-moe": "",                       // recurrent mixers beside attention, experts
		"hy_v4":             "to one residual stream", // several, mixed in each layer
		"lfm2":              "",                       // convolutions
		"minimax-01":        "",                       // the stream is normed in each layer
		"nanbeige-loops":    "",                       // blocks that run twice, with a norm between
		"nemotron_h":        "that could be skipped",  // a layer is a mixer, attention or a feed-forward
		"qwen3next":         "",                       // gated delta nets
		"rwkv7":             "",                       // states for both halves, values of the first layer used in all
		"talkie":            "",                       // the embedding is added in each layer
	} {
		t.Run(name, func(t *testing.T) {
			m, path := write(t, maker, name)
			r, err := archmodel.Check(t.Context(), m, path, t.TempDir(), step)
			require.NoError(t, err)
			refusals := 0
			for _, result := range r.Results {
				require.NotEqual(t, archmodel.Wrong, result.Outcome, "%+v", result)
				if result.Outcome == archmodel.Refused {
					refusals++
					require.ErrorContains(t, errors.New(result.Reason), cmp.Or(refused, "no refusal"), result.Mask)
				}
			}
			require.Equal(t, refused != "", refusals > 0)
			require.Zero(t, r.PairsWrong)
			require.NotEqual(t, archmodel.Wrong, r.Rows, r.RowsReason)
		})
	}
}

// TestLocalOnManyArchitectures makes attention local on shapes of each kind of it.
func TestLocalOnManyArchitectures(t *testing.T) {
	maker := newMaker(t)
	for name, refused := range map[string]string{ // what the refusal says, none = it is exact
		"bloom":          "", // biases by distance in the attention mask
		"chameleon-swin": "in a way that cannot be local",
		"cohere2":        "", // halves side by side, sliding windows
		"deepseek2":      "", // latent attention: the values are a part of the keys
		"gemma2":         "", // capped logits between product and softmax
		"gemma4-e2b":     "", // layers that read another one's cache
		"gpt-oss":        "", // sinks of its own in the softmax
		"hy_v4":          "to one residual stream",
		"mamba":          "no attention to cached tokens",
		"mistral4":       "",
		"nanbeige-loops": "", // blocks that run twice, each time with a cache of its own
		"qwen2vl":        "", // four positions for each token
	} {
		t.Run(name, func(t *testing.T) {
			m, path := write(t, maker, name)
			outcome, reason, err := archmodel.Local(t.Context(), m, path)
			require.NoError(t, err)
			if refused == "" {
				require.Equal(t, archmodel.Exact, outcome, reason)
			} else {
				require.Equal(t, archmodel.Refused, outcome, reason)
				require.Contains(t, reason, refused)
			}
		})
	}
}

// TestRowsWithoutHalves has sequences under masks that would be refused alone.
func TestRowsWithoutHalves(t *testing.T) {
	maker := newMaker(t)
	for name, c := range map[string]struct {
		mask skip.Mask
		says string
	}{
		"chameleon-swin": {skip.Mask{}.With(1, skip.Attention), "layer 1's attention and feed-forward cannot be told apart"},
		"mamba":          {skip.Mask{}.With(2, skip.FeedForward), "layer 2 has no feed-forward that could be skipped"},
		"gemma4-e2b":     {skip.Layers(1), "a kept layer reads the KV cache of layer 1"},
	} {
		t.Run(name, func(t *testing.T) {
			_, path := write(t, maker, name)
			at := llamatest.Context(t, llamatest.Open(t, path), &llama.ContextOptions{NCtx: 64, NSeqMax: 2, KVUnified: true, Threads: 1})
			b := llamatest.Batch(t, []llama.Token{1, 2}, 0, 0, 1)
			require.NoError(t, b.SetMask(1, c.mask))
			err := at.Decode(b, skip.Mask{})
			require.ErrorIs(t, err, llama.ErrMask)
			require.ErrorContains(t, err, c.says)
		})
	}
}

// TestInfluenceOfUnlikeLayers has halves without an influence of their own, and layers
// without any.
func TestInfluenceOfUnlikeLayers(t *testing.T) {
	maker := newMaker(t)
	for name, halves := range map[string]string{ // of each layer: B both, - neither
		"cohere2":    "-----",  // side by side
		"gemma4-e2b": "BBBBB",  // scaled behind each
		"nemotron_h": "------", // one of the two
		"jamba":      "BBBBB",
		"deci-noffn": "BB.BB", // nothing at all
	} {
		t.Run(name, func(t *testing.T) {
			_, path := write(t, maker, name)
			at := llamatest.Context(t, llamatest.Open(t, path), &llama.ContextOptions{NCtx: 64, Threads: 1, Influence: true})
			require.NoError(t, at.Decode(llamatest.Batch(t, []llama.Token{1, 2, 3}, 0, 0), skip.Mask{}))
			attention, feedForward, layer := at.Influence()
			require.Len(t, layer, len(halves))
			for l, both := range halves {
				require.Equal(t, both != 'B', math.IsNaN(attention[l]), "attention %d", l)
				require.Equal(t, both != 'B', math.IsNaN(feedForward[l]), "feed-forward %d", l)
				require.Equal(t, both == '.', math.IsNaN(layer[l]), "layer %d", l)
			}
		})
	}
}

// TestReleaseWhereLayersShareWeights skips one run of a block whose weights the other run
// needs: they are not given back.
func TestReleaseWhereLayersShareWeights(t *testing.T) {
	maker := newMaker(t)
	for name, releasable := range map[string]bool{"nanbeige": true, "nanbeige-loops": false, "hrm_text": false} {
		t.Run(name, func(t *testing.T) {
			_, path := write(t, maker, name)
			m := llamatest.Open(t, path)
			require.Equal(t, releasable, m.Releasable())
			at := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 64, Threads: 1})
			run := func(mask skip.Mask) []float32 {
				at.Clear()
				require.NoError(t, at.Decode(llamatest.Batch(t, []llama.Token{1, 2, 3}, 0, 0), mask))
				logits, err := at.Logits(-1)
				require.NoError(t, err)
				return slices.Clone(logits)
			}
			for layer := range m.NLayer {
				mask := skip.Layers(layer)
				want := run(mask)
				require.NoError(t, m.ReleaseWeights(mask))
				require.Equal(t, want, run(mask), mask)
			}
		})
	}
}

// kvBuffer is how llama.cpp's log names the size of a KV cache.
var kvBuffer = regexp.MustCompile(`KV buffer size = +([0-9.]+) MiB`)

// TestCacheBytesOfManyArchitectures compares with what llama.cpp says that it takes: more
// must not be said, or contexts were refused that there is memory for.
func TestCacheBytesOfManyArchitectures(t *testing.T) {
	maker := newMaker(t)
	for name, share := range map[string]float64{ // of what is taken
		"cohere2":           1,      // sliding windows
		"deepseek2":         1,      // compressed keys
		"deepseek2-lite":    2. / 3, // keys and values of each head, but for the rotated part
		"gemma4-shared":     0.5,    // layers without a cache of their own; values are the keys again
		"granitehybrid-moe": 1,      // recurrent layers
		"kimi-linear":       1,      // recurrent layers with keys
		"llama":             1,
		"minimax-01":        1,   // linear attention
		"nanbeige-loops":    0.5, // each block runs twice
		"phi3":              1,   // keys in one matrix with queries
		"qwen3next":         1,   // linear attention
		"rwkv7":             0,   // no attention
	} {
		t.Run(name, func(t *testing.T) {
			_, path := write(t, maker, name)
			m := llamatest.Open(t, path)
			var log bytes.Buffer
			llama.SetLogger(slog.New(slog.NewTextHandler(&log, nil)))
			defer llama.SetLogger(nil)
			const tokens = 1 << 15
			llamatest.Context(t, m, &llama.ContextOptions{NCtx: tokens, KType: llama.CacheF32, VType: llama.CacheF32})
			taken := 0.0 // bytes of a token
			for _, found := range kvBuffer.FindAllStringSubmatch(log.String(), -1) {
				size, err := strconv.ParseFloat(found[1], 64)
				require.NoError(t, err)
				taken += size * (1 << 20) / tokens
			}
			got := float64(m.CacheBytes(llama.CacheF32, llama.CacheF32))
			require.InDelta(t, share*taken, got, 0.01*taken)
		})
	}
}

// TestShortlistOnManyArchitectures has a preview that is the output matrix itself: its list
// begins with the likeliest token.
func TestShortlistOnManyArchitectures(t *testing.T) {
	maker := newMaker(t)
	for name, refused := range map[string]string{
		"gemma2": "does not end in one product with the output matrix", // but in a cap
		"llama":  "",
		"plamo3": "", // its results have no names
	} {
		t.Run(name, func(t *testing.T) {
			_, path := write(t, maker, name)
			m := llamatest.Open(t, path)
			o, err := m.OutputMatrix()
			require.NoError(t, err)
			same := make([]float32, o.NEmbd*o.NEmbd)
			for i := range o.NEmbd {
				same[i*o.NEmbd+i] = 1
			}
			preview, err := o.Preview(t.Context(), same, 1)
			require.NoError(t, err)
			list, err := o.NewShortlist(same, preview, nil, 1)
			require.NoError(t, err)
			defer list.Close()
			c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 64, Threads: 1})
			likeliest := func(pos int, mask skip.Mask) (int, error) {
				if err := c.Decode(llamatest.Batch(t, []llama.Token{7}, pos), mask); err != nil {
					return 0, err
				}
				logits, err := c.Logits(-1)
				require.NoError(t, err)
				return slices.Index(logits, slices.Max(logits)), c.Remove(0, pos, -1)
			}
			want, err := likeliest(0, skip.Mask{})
			require.NoError(t, err)
			require.NoError(t, c.SetShortlist(list))
			got, err := likeliest(0, skip.Mask{}.WithShortlist(32))
			if refused != "" {
				require.ErrorIs(t, err, llama.ErrMask)
				require.ErrorContains(t, err, refused)
				return
			}
			require.NoError(t, err)
			require.Equal(t, want, got)
			require.Equal(t, 1, c.ShortlistUse().Rows)
			require.NoError(t, c.Hidden(0, make([]float32, m.NEmbd)), "for learners")
		})
	}
}
