package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/llamatest"
)

// published writes a file for each benchmark, n examples long, and gives the folder.
func published(t *testing.T, n int) string {
	t.Helper()
	forms := map[string]string{
		"arc_easy":      `{"id": "x%[1]d", "question": "What is %[1]d and one?", "choices": {"text": ["%[2]d", "a hen", "the sea"], "label": ["A", "B", "C"]}, "answerKey": "A"}`,
		"arc_challenge": `{"id": "y%[1]d", "question": "Which of %[1]d and %[2]d is more?", "choices": {"text": ["the first one", "the last"], "label": ["A", "B"]}, "answerKey": "B"}`,
		"openbookqa":    `{"id": "7-%[1]d", "question_stem": "In %[1]d days", "choices": {"text": ["the hen sings", "it is over"], "label": ["A", "B"]}, "answerKey": "B"}`,
		"piqa":          `{"goal": "count to %[1]d", "sol1": "Begin at one and go on.", "sol2": "Begin at %[2]d and go back home.", "label": 0}`,
		"winogrande":    `{"sentence": "Room %[1]d is larger than room %[2]d because the _ has more chairs.", "option1": "first", "option2": "second", "answer": "1"}`,
		"social_i_qa":   `{"prompt": "Ann gave Bo %[1]d pens. How does Bo feel?", "choices": ["glad", "like a hen", "late"], "answer": 0}`,
		"boolq":         `{"prompt": "Is %[1]d a number? Answer yes or no.", "choices": ["Yes", "No"], "answer": 0}`,
		"mathqa":        `{"Problem": "what is %[1]d + 1 ?", "options": "a ) %[1]d , b ) %[2]d , c ) 99", "correct": "b"}`,
		"gsm8k":         `{"question": "Mo has %[1]d pens and buys one. How many now?", "answer": "Mo has %[1]d pens and buys one more pen in the shop, so that is %[1]d+1=%[2]d pens now.\n#### %[2]d"}`,
	}
	folder := t.TempDir()
	for _, b := range benchmarks {
		var lines strings.Builder
		for i := range n {
			fmt.Fprintf(&lines, forms[b.name]+"\n", i+2, i+3)
		}
		require.NoError(t, os.WriteFile(filepath.Join(folder, b.name+".jsonl"), []byte(lines.String()), 0o600))
	}
	return folder
}

// TestTable makes the table of the demo model, whose profile is there already, in two
// runs: the second one finds everything measured.
func TestTable(t *testing.T) {
	llamatest.Library(t)
	path, err := demo.Path()
	require.NoError(t, err)
	profile, err := os.ReadFile("../../demo/gallop-demo.gallop.gguf")
	require.NoError(t, err)
	folder := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(folder, "demo.gallop.gguf"), profile, 0o600))
	o := &options{
		data: published(t, 6), folder: folder, out: filepath.Join(folder, "out.json"), parts: "accuracy,speed,table",
		test: 2, calibration: 2, rounds: 1, ways: 2, threads: 1,
	}
	files, err := readData(o.data)
	require.NoError(t, err)
	require.NoError(t, o.one(t.Context(), "demo", path, files))
	first, err := os.ReadFile(filepath.Join(folder, "demo.json"))
	require.NoError(t, err)

	all, err := readResults(o.out)
	require.NoError(t, err)
	require.Len(t, all.Models, 1)
	m := all.Models[0]
	var names []string
	for _, r := range m.Rows {
		names = append(names, r.named())
		require.Len(t, r.Benchmarks, len(benchmarks), r.named())
		require.NotNil(t, r.Speed, r.named())
		if r.Depth > 0 && !slices.Contains([]string{routedHalves, cascade}, r.Method) { // the demo's profile has no sets of one layer
			require.InDelta(t, r.Depth, r.Skipped, 0.5, r.named())
		}
		if r.Method != cascade {
			require.InDelta(t, 1-r.Skipped/float64(m.Layers)*m.LayersShare, r.Cost, 1e-3, r.named())
		}
	}
	require.Equal(t, []string{
		"whole model", "random layers at 1", "random layers at 2", "ShortGPT at 1", "ShortGPT at 2", "SLEB at 1", "SLEB at 2",
		"contiguous at 1", "contiguous at 2", "task sets at 1", "task sets at 2", "routed layers at 1", "routed layers at 2",
		"random halves at 1", "random halves at 2", "FFN-SkipLLM at 1", "FFN-SkipLLM at 2", "KnapSpec at 1", "KnapSpec at 2",
		"IG-Pruning at 1", "IG-Pruning at 2", "routed halves at 1", "routed halves at 2", "cascade at 1", "cascade at 2",
		"quality 0.90", "quality 0.95", "quality 0.98",
	}, names)
	require.Equal(t, interval{}, m.Rows[0].Difference)
	require.Contains(t, all.page(), "## demo")

	require.NoError(t, o.one(t.Context(), "demo", path, files))
	second, err := os.ReadFile(filepath.Join(folder, "demo.json"))
	require.NoError(t, err)
	require.Equal(t, string(first), string(second))
}

// TestSample draws no example twice, and the same ones first when more are wanted.
func TestSample(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 3))
	files, err := readData(published(t, 6))
	require.NoError(t, err)
	few, fewOthers, err := sample(m, files, 1, 2)
	require.NoError(t, err)
	more, others, err := sample(m, files, 4, 2)
	require.NoError(t, err)
	require.Equal(t, fewOthers, others)
	for b := range benchmarks {
		require.Equal(t, few[b], more[4*b])
		seen := map[string]bool{}
		for _, e := range append(more[4*b:4*b+4:4*b+4], others[2*b:2*b+2]...) {
			require.Equal(t, b, e.benchmark)
			require.False(t, seen[e.prompt.Text], e.prompt.Text)
			seen[e.prompt.Text] = true
		}
	}
	_, _, err = sample(m, files, 5, 2)
	require.ErrorContains(t, err, "too few examples")
}
