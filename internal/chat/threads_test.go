package chat_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/chat"
)

// Answers are the same whatever the number of threads is, and whenever it changes.
// More threads than any machine has cores keep the controller trying.
func TestAnswersDoNotDependOnThreads(t *testing.T) {
	m := small(t)
	opts := options(512)
	opts.MaxTokens = 120 // with the questions less than the cache's first 256 cells
	want := ask(t, session(t, m, opts), "one")
	require.Equal(t, chat.Threads{}, want.Threads, "-t fixes the number")

	s := session(t, m, opts)
	s.Pace(64)
	got := ask(t, s, "one")
	require.Equal(t, want.Text, got.Text)
	require.Equal(t, 64, got.Threads.Most)
	require.NotEmpty(t, got.Threads.String())
}

func TestThreadsSayWhy(t *testing.T) {
	for _, x := range []struct {
		threads chat.Threads
		want    string
	}{
		{chat.Threads{}, ""},
		{chat.Threads{Now: 4, Most: 4}, "4; changed 0 times"},
		{chat.Threads{Now: 3, Most: 4, Changes: 1}, "3 of 4: other programs use the other cores; changed 1 times"},
		{chat.Threads{Now: 4, Most: 4, Changes: 2, Crowded: true}, "4: other programs use every core; changed 2 times"},
	} {
		require.Equal(t, x.want, x.threads.String())
	}
}
