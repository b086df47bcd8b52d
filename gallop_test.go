package gallop_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
)

func open(t *testing.T, o gallop.Options) *gallop.Engine {
	t.Helper()
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	path, err := demo.Path()
	require.NoError(t, err)
	e, err := gallop.Open(t.Context(), path, &o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return e
}

func TestSmoke(t *testing.T) {
	llamatest.Library(t)
	greedy := llama.Sampling{}
	for _, parallel := range []int{1, 4} {
		for _, lossless := range []bool{false, true} {
			for _, s := range []gallop.Skip{gallop.Routed(), gallop.Nothing()} {
				e := open(t, gallop.Options{Parallel: parallel, Context: llama.ContextOptions{NCtx: 512}})
				for _, q := range []string{"What is 12 plus 7?", "Repeat: the quick brown fox"} {
					r := gallop.Request{Messages: []gallop.Message{{Role: "user", Content: q}}, Skip: s, Sampling: &greedy, MaxTokens: 40, Lossless: lossless, Detail: true, Logprobs: 2}
					var text strings.Builder
					for d, err := range e.Stream(context.Background(), r) {
						require.NoError(t, err)
						text.WriteString(d.Text)
						if d.Answer != nil {
							require.Equal(t, d.Answer.Text, text.String())
							t.Logf("%d %v %v %q %+v %+v %+v", parallel, lossless, s, d.Answer.Text, d.Answer.Usage, d.Answer.Plan, d.Answer.Drafts)
						}
					}
				}
				t.Logf("%+v", e.Stats())
			}
		}
	}
}

// long says that tests may take minutes.
func long() bool { return os.Getenv("GALLOP_LONG") != "" }
