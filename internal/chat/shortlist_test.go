package chat_test

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/chat"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/internal/shortlist"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

func TestAnswersFromAShortlist(t *testing.T) {
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Vocab = 1 << 14
	m := llamatest.Open(t, llamatest.Write(t, spec))
	learner := shortlist.Open(m, t.TempDir(), 1, func(err error) { t.Error(err) })
	defer learner.Close()
	ask := func(o chat.Options) chat.Answer {
		o.Context = llama.ContextOptions{NCtx: 256, Threads: 1}
		o.MaxTokens = 24
		s, err := chat.New(m, &o)
		require.NoError(t, err)
		defer s.Close()
		a, err := s.Ask(context.Background(), "hello there", func(string) {})
		require.NoError(t, err)
		return a
	}
	forced := skip.Mask{}.WithShortlist(2048) // whether it pays is not for a test to say
	early := ask(chat.Options{Shortlist: learner, Mask: forced})
	require.Equal(t, chat.Listed{Why: "it is not learnt yet"}, early.Listed)
	require.True(t, early.Mask.IsEmpty())
	require.NoError(t, learner.Learn(context.Background()))

	whole := ask(chat.Options{})
	require.Equal(t, "it is off", whole.Listed.Why)
	short := ask(chat.Options{Shortlist: learner, Mask: forced})
	require.Equal(t, 2048, short.Listed.Size)
	require.Equal(t, short.Tokens-1, short.Listed.Rows, "the first token comes from the prompt's pass")
	require.Equal(t, forced, short.Mask)
	require.Equal(t, whole.Generated, short.Generated)
	require.Contains(t, chat.Summary(short, m.NLayer), "shortlist v2048")

	masked := ask(chat.Options{Shortlist: learner, Mask: forced.With(2, skip.FeedForward)})
	require.Equal(t, ask(chat.Options{Mask: skip.Mask{}.With(2, skip.FeedForward)}).Generated, masked.Generated)

	for name, s := range map[string]llama.Sampling{
		"a grammar": {Grammar: `root ::= [a-z ]+`},
		"penalties": {RepeatPenalty: 1.1},
		"a bias":    {LogitBias: map[llama.Token]float32{5: 1}},
	} {
		a := ask(chat.Options{Shortlist: learner, Mask: forced, Sampling: s})
		require.Zero(t, a.Listed.Rows, name)
		require.NotEmpty(t, a.Listed.Why, name)
	}
	drafted := &chat.Lossless{Fixed: true, MaxDraft: 3}
	lossless := ask(chat.Options{Shortlist: learner, Mask: forced.With(3, skip.Whole), Lossless: drafted})
	require.Equal(t, ask(chat.Options{Mask: skip.Mask{}.With(3, skip.Whole), Lossless: drafted}).Generated, lossless.Generated)
	require.Positive(t, lossless.Listed.Rows, "drafts come from the shortlist")
}
