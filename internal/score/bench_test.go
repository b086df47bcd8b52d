package score

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// demoCases are the demo model and the cases of a file beside it, of one task or
// of all.
func demoCases(b *testing.B, file, task string) (*llama.Model, []Case) {
	b.Helper()
	path, err := demo.Path()
	require.NoError(b, err)
	m := llamatest.Open(b, path)
	data, err := os.ReadFile("../../demo/" + file)
	require.NoError(b, err)
	var cases []Case
	for line := range strings.Lines(string(data)) {
		var e struct{ Prompt, Answer, Task string }
		require.NoError(b, json.Unmarshal([]byte(line), &e))
		if task != "" && e.Task != task {
			continue
		}
		text, err := m.ApplyTemplate([]llama.Message{{Role: "user", Content: e.Prompt}}, true)
		require.NoError(b, err)
		c := Case{Task: e.Task}
		c.Prompt, err = m.Vocab.Tokenize(text, true)
		require.NoError(b, err)
		answer, err := m.Vocab.Tokenize(e.Answer, false)
		require.NoError(b, err)
		c.Answers = [][]llama.Token{answer}
		cases = append(cases, c)
	}
	return m, cases
}

// BenchmarkScore is one evaluation of a search: 120 cases of a task without one
// layer after the other. With a full prefill the prompts stay in the cache, except
// where the bench drops them first; held ones start at the layer that is left out.
func BenchmarkScore(b *testing.B) {
	llamatest.Library(b)
	for _, task := range []string{"facts", "story"} {
		m, cases := demoCases(b, "calibration.jsonl", task)
		for name, run := range map[string]struct {
			prefill      skip.Prefill
			forget, hold bool
		}{
			"masked": {prefill: skip.MaskedPrefill}, "full first": {prefill: skip.FullPrefill, forget: true},
			"full again": {prefill: skip.FullPrefill}, "held": {prefill: skip.FullPrefill, hold: true},
		} {
			b.Run(task+"/"+name, func(b *testing.B) {
				s := newScorer(b, m, Options{})
				if run.hold {
					held, err := s.Hold(b.Context(), cases)
					require.NoError(b, err)
					require.True(b, held)
				}
				for i := 0; b.Loop(); i++ {
					if run.forget {
						require.NoError(b, s.forget())
					}
					_, err := s.Score(b.Context(), cases, skip.Layers(1+i%(m.NLayer-2)), run.prefill)
					require.NoError(b, err)
				}
			})
		}
	}
}
