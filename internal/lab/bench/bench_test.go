package bench

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/prune"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/internal/shortlist"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// TestCost compares with sums by hand. Small models have 8 layers of width 64, 4
// heads and 2 for keys and values of 32 each, 384 tokens, all in F32.
func TestCost(t *testing.T) {
	llamatest.Library(t)
	const (
		float     = 4                         // bytes
		attention = 64*128 + 2*64*64 + 128*64 // q, k and v, output
		dense     = 3 * 64 * 128              // gate, up, down
		experts   = 2 * 3 * 64 * 64           // 2 of 4 are used
		router    = 64 * 4                    // of experts
		output    = 64 * 384
		preview   = 5000                           // bytes of a shortlist's own matrices
		norm      = 64                             // and so long is the embedding's row
		n         = 10                             // tokens of the prompt
		pairs     = (1 + 10) * 10 / 2 * 2 * 4 * 64 // operations: positions, heads, keys and values
	)
	tied := randmodel.Small("llama")
	tied.Untied = false
	for name, test := range map[string]struct {
		spec         randmodel.Spec
		mask         string
		bytes, flops float64
	}{
		"whole": {randmodel.Small("llama"), "",
			float * (8*(attention+norm+dense+norm) + output + 2*norm),
			8*(2*n*attention+pairs) + 7*2*n*dense + 2*dense + 2*output},
		"tied": {tied, "",
			float * (8*(attention+norm+dense+norm) + output + norm),
			8*(2*n*attention+pairs) + 7*2*n*dense + 2*dense + 2*output},
		"masked": {randmodel.Small("llama"), "2,a4,f5",
			float * (6*(attention+norm+dense+norm) + output + 2*norm),
			6*(2*n*attention+pairs) + 5*2*n*dense + 2*dense + 2*output},
		"without the last": {randmodel.Small("llama"), "7",
			float * (7*(attention+norm+dense+norm) + output + 2*norm),
			7*(2*n*attention+pairs) + 7*2*n*dense + 2*output},
		"shortlist": {randmodel.Small("llama"), "v96", // a quarter of the rows
			float*(8*(attention+norm+dense+norm)+output/4+2*norm) + preview,
			8*(2*n*attention+pairs) + 7*2*n*dense + 2*dense + 2*output},
		"experts": {randmodel.Small("llama-moe"), "1",
			float * (7*(attention+norm+experts+router+norm) + output + 2*norm),
			7*(2*n*attention+pairs) + 6*2*n*(experts+router) + 2*(experts+router) + 2*output},
	} {
		t.Run(name, func(t *testing.T) {
			mask, err := skip.Parse(test.mask)
			require.NoError(t, err)
			c := costOf(llamatest.Open(t, llamatest.Write(t, test.spec)), mask, n, &llama.Shortlist{Size: preview})
			require.Equal(t, test.bytes, c.bytes)
			require.Equal(t, test.flops, c.flops)
		})
	}
}

func TestSpread(t *testing.T) {
	for _, test := range []struct {
		layers, n int
		want      string
	}{
		{16, 4, "2,6,9,13"}, {16, 1, "8"}, {16, 14, "1-14"}, {3, 1, "1"}, {32, 3, "6,16,26"},
	} {
		mask, err := Spread(test.layers, test.n)
		require.NoError(t, err)
		require.Equal(t, test.want, mask.String())
	}
	for layers := 3; layers < 60; layers++ {
		for n := 1; n <= layers-2; n++ {
			mask, err := Spread(layers, n)
			require.NoError(t, err)
			require.Equal(t, 2*n, mask.Len())
			require.Zero(t, mask.Skipped(0)|mask.Skipped(layers-1))
		}
	}
	for _, bad := range [][2]int{{16, 0}, {16, 15}, {2, 1}, {1, 1}, {16, -1}} {
		_, err := Spread(bad[0], bad[1])
		require.ErrorIs(t, err, skip.ErrMask)
	}
}

// options are for the least measurement that has all parts.
func options() Options {
	return Options{Prompt: 7, Decode: 3, Rounds: 2, GPULayers: llama.CPUOnly, Context: llama.ContextOptions{NBatch: 4, NUBatch: 4, Threads: 1}}
}

// A shortlist is measured on what the model says itself; only its rows tell of exact logits.
func TestRunWithAShortlist(t *testing.T) {
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Vocab = 1 << 14
	m := llamatest.Open(t, llamatest.Write(t, spec))
	l := shortlist.Open(m, t.TempDir(), 1, func(err error) { t.Error(err) })
	defer l.Close()
	require.NoError(t, l.Learn(context.Background()))
	o := options()
	o.Shortlist = l.Made().List
	short := skip.Mask{}.WithShortlist(1024)
	for margin, exact := range map[float32]float64{-1e9: 1024, 1e9: float64(spec.Vocab)} {
		l.Made().List.Margin = margin
		rows, err := Run(context.Background(), m, []skip.Mask{skip.Layers(3), short}, o)
		require.NoError(t, err)
		require.Len(t, rows, 3)
		require.Nil(t, rows[0].Exact)
		require.Nil(t, rows[1].Exact)
		require.NotNil(t, rows[2].Exact)
		require.InDelta(t, exact, *rows[2].Exact, 64, "a few more than are asked for")
		require.Less(t, rows[2].TokenBytes, rows[0].TokenBytes)
		var table strings.Builder
		require.NoError(t, Write(&table, "md", rows))
		require.Contains(t, table.String(), "exact logits")
	}
}

func TestText(t *testing.T) {
	llamatest.Library(t)
	r := &runner{Options: options(), ctx: context.Background()}
	r.Context.NCtx = 700
	e, err := r.newEngine(llamatest.Small(t, "llama"))
	require.NoError(t, err)
	defer e.Close()
	for _, n := range []int{1, 5, 600} {
		e.context.Clear()
		tokens, err := e.text(n, 3)
		require.NoError(t, err)
		require.Len(t, tokens, n+3)
	}
}

func TestRun(t *testing.T) {
	llamatest.Library(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	masks := []skip.Mask{skip.Layers(2, 5), skip.Layers(3)}
	for name, pruned := range map[string]bool{"masks": false, "with pruned files": true} {
		t.Run(name, func(t *testing.T) {
			m := llamatest.Small(t, "llama") // with pruned files Run closes it
			o := options()
			o.Pruned, o.Rounds = pruned, roundsPerLoad+1
			steps, total, prompts := 0, 0, 0
			o.Progress = func(done, all int) {
				require.Equal(t, steps+1, done)
				steps, total = done, all
			}
			o.Route = func(prompt string) error {
				tokens, err := m.Vocab.Tokenize(prompt, false)
				require.NoError(t, err)
				require.Len(t, tokens, o.Prompt)
				prompts++
				return nil
			}
			rows, err := Run(context.Background(), m, masks, o)
			require.NoError(t, err)
			require.Equal(t, total, steps)
			require.Equal(t, o.Rounds+1, prompts)
			require.Len(t, rows, 3)
			for i, row := range rows {
				require.Equal(t, "model", row.Model)
				require.Equal(t, "F32", row.Type)
				require.Equal(t, 8, row.Layers)
				require.Positive(t, row.Threads)
				require.Contains(t, row.Device, "CPU")
				for _, x := range []struct{ low, median, high float64 }{
					{row.PrefillTPSMin, row.PrefillTPS, row.PrefillTPSMax}, {row.DecodeTPSMin, row.DecodeTPS, row.DecodeTPSMax},
				} {
					require.Positive(t, x.low)
					require.LessOrEqual(t, x.low, x.median)
					require.LessOrEqual(t, x.median, x.high)
				}
				require.Positive(t, row.RatioStock)
				require.Positive(t, row.RatioStockPrefill)
				require.InDelta(t, row.RatioStock, row.RatioIdeal*row.IdealDecode, 1e-9)
				require.InDelta(t, row.RatioStockPrefill, row.RatioIdealPrefill*row.IdealPrefill, 1e-9)
				require.InDelta(t, row.GBPerS, float64(row.TokenBytes)*row.DecodeTPS/1e9, 1e-6)
				require.InDelta(t, row.TTFTMS, 1000*float64(row.Prompt)/row.PrefillTPS, 1e-9)
				require.NotNil(t, row.RouteMS)
				require.Positive(t, row.RSSMB)
				require.GreaterOrEqual(t, row.PeakMB, row.RSSMB)
				if i == 0 {
					require.True(t, row.Mask.IsEmpty())
					require.Equal(t, []float64{0, 1, 1, 1, 1},
						[]float64{row.Depth, row.RatioStock, row.RatioStockPrefill, row.IdealDecode, row.IdealPrefill})
					require.Nil(t, row.RatioPruned)
					require.Nil(t, row.SwitchMS)
					continue
				}
				require.Equal(t, masks[i-1], row.Mask)
				require.Greater(t, row.IdealDecode, 1.0)
				require.Greater(t, row.IdealPrefill, 1.0)
				require.NotNil(t, row.SwitchMS)
				require.Equal(t, pruned, row.RatioPruned != nil)
				require.Equal(t, pruned, row.RatioPrunedPrefill != nil)
				require.Equal(t, pruned, row.RatioPrunedCI != nil)
				require.Equal(t, pruned, row.RatioPrunedPrefillCI != nil)
			}
			require.Greater(t, rows[1].Depth, rows[2].Depth)
			cache, err := randmodel.CacheFolder()
			require.NoError(t, err)
			left, err := os.ReadDir(cache)
			require.True(t, len(left) == 0, "pruned files stay: %v %v", left, err)
		})
	}
}

// TestRatio takes the ratio within each round, whatever the rounds were like.
func TestRatio(t *testing.T) {
	own := []turn{{decode: 2 * time.Second}, {decode: 20 * time.Second}, {decode: 1 * time.Second}}
	other := []turn{{decode: 3 * time.Second}, {decode: 30 * time.Second}, {decode: 9 * time.Second}}
	require.Equal(t, 1.5, ratio(own, other, decodeTime).median)
	require.Equal(t, summary{2.5, 4, 1, 9}, summarise([]float64{9, 3, 1, 2}))
	require.Equal(t, summary{5, 3, 1, 9}, summarise([]float64{9, 3, 1, 2, 7, 8, 4, 6, 5})) // 96 % between the second and the eighth
}

func TestRunStops(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	ctx, cancel := context.WithCancel(context.Background())
	o := options()
	o.Progress = func(int, int) { cancel() }
	_, err := Run(ctx, m, []skip.Mask{skip.Layers(1)}, o)
	require.ErrorIs(t, err, context.Canceled)
}

func TestRunRefusals(t *testing.T) {
	llamatest.Library(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	o := options()
	_, err := Run(context.Background(), llamatest.Small(t, "llama"), []skip.Mask{skip.Layers(9)}, o)
	require.ErrorIs(t, err, llama.ErrMask)
	o.Pruned = true
	_, err = Run(context.Background(), llamatest.Small(t, "llama"), []skip.Mask{skip.Mask{}.With(1, skip.Attention)}, o)
	require.ErrorContains(t, err, "no file can leave out what the mask a1 does")
	_, err = Run(context.Background(), llamatest.Small(t, "gemma3"), []skip.Mask{skip.Layers(1)}, o)
	require.ErrorIs(t, err, prune.ErrUnprunable)
}

func TestWrite(t *testing.T) {
	third, depth := 1.0/3, 2.0
	rows := []Row{
		{Model: "a|b", Type: "Q4_0", Layers: 16, PrefillTPS: 100, DecodeTPS: 10, RatioStock: 1},
		{Model: "a|b", Type: "Q4_0", Layers: 16, Mask: skip.Layers(1, 4), Depth: depth, RatioPruned: &third, RatioPrunedPrefill: &third, RatioPrunedCI: &third, RatioPrunedPrefillCI: &third},
	}
	text := func(format string) string {
		var b bytes.Buffer
		require.NoError(t, Write(&b, format, rows))
		return b.String()
	}
	var back []Row
	require.NoError(t, json.Unmarshal([]byte(text("json")), &back))
	require.Equal(t, rows, back)
	lines := strings.Split(strings.TrimSuffix(text("jsonl"), "\n"), "\n")
	require.Len(t, lines, len(rows))
	for i, line := range lines {
		var row Row
		require.NoError(t, json.Unmarshal([]byte(line), &row))
		require.Equal(t, rows[i], row)
	}
	var fields map[string]any
	require.NoError(t, json.Unmarshal([]byte(lines[0]), &fields))

	table, err := csv.NewReader(strings.NewReader(text("csv"))).ReadAll()
	require.NoError(t, err)
	require.Len(t, table, 1+len(rows))
	require.Len(t, table[0], len(fields))
	cell := map[string]string{}
	for i, name := range table[0] {
		require.Contains(t, fields, name)
		cell[name] = table[2][i]
	}
	require.Equal(t, "1,4", cell["mask"])
	require.Equal(t, "2", cell["depth"])
	require.Equal(t, "0.3333333333333333", cell["ratio_pruned"])
	require.Equal(t, "", cell["switch_ms"])

	md := text("md")
	require.Contains(t, md, `| a\|b  | nothing |`)
	require.Contains(t, md, "of pruned")
	require.NotContains(t, md, "switch", "nothing was measured for that column")
	require.ErrorContains(t, Write(&bytes.Buffer{}, "xml", rows), "want one of md, csv, json, jsonl")
	require.NoError(t, Write(&bytes.Buffer{}, "md", nil))
}

func TestLossless(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	e, err := gallop.New(m, &gallop.Options{Parallel: 1, Profile: gallop.NoProfile, NoCosts: true, Context: llama.ContextOptions{NCtx: 1024, Threads: 1}})
	require.NoError(t, err)
	defer func() { require.NoError(t, e.Close()) }()
	o := LosslessOptions{
		Engine: e, Threads: 1,
		Request: gallop.Request{
			Lossless: true, Drafts: &gallop.DraftOptions{Masks: []skip.Mask{skip.Layers(3)}, MaxDraft: 4, Fixed: true}, Sampling: &llama.Sampling{},
		},
		Decode: 12, Rounds: 2,
	}
	steps := 0
	o.Progress = func(done, total int) {
		steps++
		require.Equal(t, steps, done)
		require.Equal(t, 6, total, "two answers to each of three prompts")
	}
	row, err := RunLossless(context.Background(), o)
	require.NoError(t, err)
	require.Equal(t, 6, steps)
	require.Equal(t, row.ComparedTokens, row.EqualTokens)
	require.Equal(t, 3*12, row.ComparedTokens, "the answer that warms up counts too")
	require.Equal(t, "3", row.Draft)
	require.Len(t, row.Lengths, 5)
	rounds, accepted := 0, 0
	for n, count := range row.Lengths {
		rounds, accepted = rounds+count, accepted+n*count
	}
	require.Positive(t, rounds)
	require.InDelta(t, float64(accepted+rounds)/float64(rounds), row.TokensPerVerify, 1e-9)
	require.Positive(t, row.Speedup)
	require.GreaterOrEqual(t, row.Possible, 1.0)

	for _, format := range []string{"json", "jsonl", "md"} {
		var b bytes.Buffer
		require.NoError(t, WriteLossless(&b, format, []LosslessRow{row}))
		require.Contains(t, b.String(), row.Model)
	}
	require.ErrorContains(t, WriteLossless(&bytes.Buffer{}, "csv", nil), "md, json or jsonl")
}
