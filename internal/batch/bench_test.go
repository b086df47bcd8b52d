package batch

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// BenchmarkAnswer answers all held-out prompts of the demo model.
func BenchmarkAnswer(b *testing.B) {
	llamatest.Library(b)
	path, err := demo.Path()
	require.NoError(b, err)
	m := llamatest.Open(b, path)
	data, err := os.ReadFile("../../demo/test.jsonl")
	require.NoError(b, err)
	mask := skip.Mask{}.With(3, skip.FeedForward).With(5, skip.FeedForward).With(8, skip.FeedForward)
	for _, parallel := range []int{16, 32} {
		for _, escalate := range []float64{0, 0.9} {
			b.Run(fmt.Sprintf("%d at once, escalate %g", parallel, escalate), func(b *testing.B) {
				var requests []gallop.Request
				for line := range strings.Lines(string(data)) {
					var e struct{ Prompt string }
					require.NoError(b, json.Unmarshal([]byte(line), &e))
					requests = append(requests, gallop.Request{
						Messages: []gallop.Message{{Role: "user", Content: e.Prompt}}, Sampling: &llama.Sampling{}, MaxTokens: 64,
						Skip: gallop.Layers(mask).Prefill(skip.FullPrefill).Escalate(escalate),
					})
				}
				e, err := gallop.New(m, &gallop.Options{
					Parallel: parallel, Queue: -1, Profile: gallop.NoProfile, NoCosts: true, Shortlist: -1, Context: llama.ContextOptions{NCtx: 256},
				})
				require.NoError(b, err)
				defer func() { require.NoError(b, e.Close()) }()
				tokens := 0
				for b.Loop() {
					answers, err := Answer(b.Context(), e, requests)
					require.NoError(b, err)
					for _, a := range answers {
						tokens += a.Usage.Generated - 1
					}
				}
				b.ReportMetric(float64(tokens)/b.Elapsed().Seconds(), "tokens/s")
			})
		}
	}
}
