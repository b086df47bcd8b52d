package gallop_test

import (
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// TestGPULossless asks held-out prompts plainly and with drafts. On a GPU a batch
// rounds otherwise than a single token, so an answer may part from the plain one, but
// only where the two tokens' logits are nearly the same.
func TestGPULossless(t *testing.T) {
	if os.Getenv(llamatest.EnvGPULayers) == "" {
		t.Skip("for models on a GPU: make test-gpu")
	}
	m, examples := demoPrompts(t)
	every := 160 // 6 of 960 prompts
	if long() {
		every = 10
	}
	o := options(256)
	plain := engine(t, m, o)
	c := llamatest.Context(t, m, &o.Context)
	engines, drafts := map[string]*gallop.Engine{}, map[string]*gallop.DraftOptions{
		"drafts of 4":  fixed(skip.Layers(5, 8), 4),
		"drafts of 16": fixed(skip.Mask{}.With(3, skip.FeedForward).With(7, skip.FeedForward), 16),
		"looked up":    lookedUp(0),
	}
	for name := range drafts {
		engines[name] = engine(t, m, o)
	}
	const nearTie = 0.1 // between logits; those of a sure token lead by 5 to 15
	same, parted, rounding, widest := 0, 0, 0.0, 0.0
	for i := 0; i < len(examples); i += every {
		r := greedy(24)
		r.Messages = user(examples[i].Prompt)
		want, err := plain.Answer(t.Context(), r)
		require.NoError(t, err)
		for name, e := range engines {
			r := lossless(24, drafts[name])
			r.Messages = user(examples[i].Prompt)
			got, err := e.Answer(t.Context(), r)
			require.NoError(t, err)
			rounding = max(rounding, got.Drafts.Rounding)
			if slices.Equal(want.Tokens, got.Tokens) {
				same++
				continue
			}
			parted++
			at := 0
			for at < min(len(want.Tokens), len(got.Tokens)) && want.Tokens[at] == got.Tokens[at] {
				at++
			}
			require.Less(t, at, min(len(want.Tokens), len(got.Tokens)), "one ends where the other goes on")
			c.Clear()
			prompt := promptOf(t, m, r.Messages...)
			require.NoError(t, c.Decode(llamatest.Batch(t, prompt, 0), skip.Mask{}))
			for i, token := range want.Tokens[:at] {
				require.NoError(t, c.Decode(llamatest.Batch(t, []llama.Token{token}, len(prompt)+i), skip.Mask{}))
			}
			logits, err := c.Logits(-1)
			require.NoError(t, err)
			gap := float64(logits[want.Tokens[at]] - logits[got.Tokens[at]])
			widest = max(widest, gap)
			require.Less(t, gap, nearTie, "%s: %s", name, examples[i].Prompt)
		}
	}
	t.Logf("%d answers are the plain ones, %d part from them where logits are apart by up to %.2g; batches round by up to %.2g", same, parted, widest, rounding)
	require.Greater(t, same, parted)
}
