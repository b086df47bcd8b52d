package chat_test

import (
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/chat"
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
	if chat.Long() {
		every = 10
	}
	opts := options(256)
	plain := session(t, m, opts)
	c := llamatest.Context(t, m, &opts.Context)
	sessions := map[string]*chat.Session{}
	for name, o := range map[string]*chat.Lossless{
		"drafts of 4":  fixed(skip.Layers(5, 8), 4),
		"drafts of 16": fixed(skip.Mask{}.With(3, skip.FeedForward).With(7, skip.FeedForward), 16),
		"looked up":    {Fixed: true},
	} {
		opts.Lossless = o
		sessions[name] = session(t, m, opts)
	}
	const nearTie = 0.1 // between logits; those of a sure token lead by 5 to 15
	same, parted, rounding, widest := 0, 0, 0.0, 0.0
	for i := 0; i < len(examples); i += every {
		plain.Reset()
		want := ask(t, plain, examples[i].Prompt)
		for name, s := range sessions {
			s.Reset()
			got := ask(t, s, examples[i].Prompt)
			rounding = max(rounding, got.Drafting.Rounding)
			if slices.Equal(want.Generated, got.Generated) {
				same++
				continue
			}
			parted++
			at := 0
			for at < min(len(want.Generated), len(got.Generated)) && want.Generated[at] == got.Generated[at] {
				at++
			}
			require.Less(t, at, min(len(want.Generated), len(got.Generated)), "one ends where the other goes on")
			c.Clear()
			tokens := append(slices.Clone(plain.Tokens()[:want.PromptTokens]), want.Generated[:at]...)
			require.NoError(t, c.Decode(llamatest.Batch(t, tokens[:want.PromptTokens], 0), skip.Mask{}))
			for pos := want.PromptTokens; pos < len(tokens); pos++ {
				require.NoError(t, c.Decode(llamatest.Batch(t, []llama.Token{tokens[pos]}, pos), skip.Mask{}))
			}
			logits, err := c.Logits(-1)
			require.NoError(t, err)
			gap := float64(logits[want.Generated[at]] - logits[got.Generated[at]])
			widest = max(widest, gap)
			require.Less(t, gap, nearTie, "%s: %s", name, examples[i].Prompt)
		}
	}
	t.Logf("%d answers are the plain ones, %d part from them where logits are apart by up to %.2g; batches round by up to %.2g", same, parted, widest, rounding)
	require.Greater(t, same, parted)
}
