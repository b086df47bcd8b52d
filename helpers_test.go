package gallop_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/costs"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// small opens a small random model. What it says is noise, but always the same
// noise under greedy sampling: enough to compare one way of decoding with another.
func small(t testing.TB) *llama.Model {
	t.Helper()
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Layers = 4
	return llamatest.Open(t, llamatest.Write(t, spec))
}

// demoModel opens the demo model, whose profile is beside it.
func demoModel(t testing.TB) *llama.Model {
	t.Helper()
	llamatest.Library(t)
	path, err := demo.Path()
	require.NoError(t, err)
	return llamatest.Open(t, path)
}

// options are those of an engine that answers one request at a time, always alike.
func options(nCtx int) gallop.Options {
	return gallop.Options{
		Parallel: 1, Profile: gallop.NoProfile, Shortlist: -1, NoCosts: true, Context: llama.ContextOptions{NCtx: nCtx, Threads: 1},
	}
}

func engine(t testing.TB, m *llama.Model, o gallop.Options) *gallop.Engine {
	t.Helper()
	e, err := gallop.New(m, &o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return e
}

// greedy is a request without anything to be answered yet.
func greedy(tokens int) gallop.Request {
	return gallop.Request{Sampling: &llama.Sampling{}, MaxTokens: tokens}
}

func user(text string) []gallop.Message { return []gallop.Message{{Role: "user", Content: text}} }

// session is a greedy conversation with an engine of its own.
func session(t testing.TB, m *llama.Model, o gallop.Options, r gallop.Request) *gallop.Session {
	t.Helper()
	return engine(t, m, o).NewSession(r)
}

// tryAsk asks and gives what was answered.
func tryAsk(t testing.TB, s *gallop.Session, text string) (a gallop.Answer, failed error) {
	t.Helper()
	var streamed strings.Builder
	for d, err := range s.Ask(t.Context(), text) {
		require.True(t, utf8.ValidString(d.Text) || strings.ContainsRune(d.Text, utf8.RuneError), "%q", d.Text)
		streamed.WriteString(d.Text)
		if d.Answer != nil {
			a = *d.Answer
			require.Equal(t, a.Text, streamed.String(), "what was streamed is the answer")
		}
		failed = err
	}
	return a, failed
}

func ask(t testing.TB, s *gallop.Session, text string) gallop.Answer {
	t.Helper()
	a, err := tryAsk(t, s, text)
	require.NoError(t, err)
	return a
}

// promptOf is a conversation's in tokens.
func promptOf(t testing.TB, m *llama.Model, messages ...gallop.Message) []llama.Token {
	t.Helper()
	text, err := m.Render(llama.Conversation{Messages: messages, Answer: true})
	require.NoError(t, err)
	tokens, err := m.Vocab.TokenizeText(text)
	require.NoError(t, err)
	return tokens
}

// measure lets a weigher find out that a mask is twice as fast.
func measure(w *costs.Weigher, mask skip.Mask) {
	w.Begin(mask, true, 1.2, 0, 0)
	for range 2000 {
		token := costs.Token{Whole: w.Next(), Seconds: 1}
		if token.Whole {
			token.Seconds = 2
		}
		w.Saw(token, 0, 1, 0)
	}
	w.End()
}
