package router_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// BenchmarkSwitch holds what router.Switch weighs against the clock on the demo
// model: a chat's next turn may move from the whole model to a mask of four
// layers, for which the conversation is decoded again. Both times are in generated
// tokens of the whole model, as there: price is decoding 200 tokens again under
// the mask, gain what the mask saves in an answer of 64 tokens.
func BenchmarkSwitch(b *testing.B) {
	const cached, answer = 200, 64
	llamatest.Library(b)
	path, err := demo.Path()
	require.NoError(b, err)
	m := llamatest.Open(b, path)
	c := llamatest.Context(b, m, &llama.ContextOptions{NCtx: cached + answer, NBatch: cached, Threads: 1})
	batch, err := llama.NewBatch(cached, nil)
	require.NoError(b, err)
	defer batch.Close()
	token, err := m.Vocab.Tokenize("dog", false)
	require.NoError(b, err)
	decode := func(n, pos int, mask skip.Mask) {
		batch.Clear()
		for i := range n {
			require.NoError(b, batch.Add(token[0], pos+i, i == n-1, 0))
		}
		require.NoError(b, c.Decode(batch, mask))
	}
	prefill := [2]time.Duration{time.Hour, time.Hour} // by the whole model, under the mask; the fastest round
	generate := prefill
	masks := [2]skip.Mask{{}, skip.Layers(4, 5, 6, 7)}
	for b.Loop() {
		for k, mask := range masks {
			c.Clear()
			start := time.Now()
			decode(cached, 0, mask)
			prefill[k] = min(prefill[k], time.Since(start))
			start = time.Now()
			for i := range answer {
				decode(1, cached+i, mask)
			}
			generate[k] = min(generate[k], time.Since(start))
		}
	}
	now, next := router.Decision{}, router.Decision{Mask: masks[1], Candidate: 1, Depth: 4}
	_, reason := router.Switch(now, next, cached, answer, router.CostModel{Layers: m.NLayer})
	b.Log("predicted: ", reason)
	perToken := generate[0].Seconds() / answer
	b.ReportMetric((generate[0]-generate[1]).Seconds()/perToken, "gain-tokens")
	b.ReportMetric(prefill[1].Seconds()/perToken, "price-tokens")
	b.ReportMetric(prefill[0].Seconds()/cached/perToken, "prefill/generated")
}
