package gallop_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

func TestNoCacheDecodesThePromptAnew(t *testing.T) {
	e := engine(t, small(t), options(256))
	r := greedy(6)
	r.Messages = user("one and two and three")
	first, err := e.Answer(t.Context(), r)
	require.NoError(t, err)
	again, err := e.Answer(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, first.Usage.Prompt-1, again.Usage.Cached)
	r.NoCache = true
	fresh, err := e.Answer(t.Context(), r)
	require.NoError(t, err)
	require.Zero(t, fresh.Usage.Cached)
	require.NotEmpty(t, fresh.Usage.Missed)
	require.Equal(t, first.Tokens, fresh.Tokens)
}

// TestCacheFolder keeps what is learnt where the options say.
func TestCacheFolder(t *testing.T) {
	m, _, o := listed(t)
	o.Cache, o.NoCosts = t.TempDir(), false
	e := engine(t, m, o)
	known := e.Shortlist()
	require.Empty(t, known.Why)
	require.Nil(t, known.List)
	require.Positive(t, known.Share)
	require.NoError(t, e.LearnShortlist(t.Context()))
	known = e.Shortlist()
	require.NotNil(t, known.List)
	require.Positive(t, known.Size)
	require.Positive(t, known.States)
	r := greedy(60)
	r.Messages, r.Lossless, r.Drafts = user("one two"), true, &gallop.DraftOptions{Masks: []skip.Mask{skip.Layers(1)}, Fixed: true}
	_, err := e.Answer(t.Context(), r)
	require.NoError(t, err)
	require.NoError(t, e.Close())
	for _, kind := range []string{"shortlist", "costs"} {
		files, err := filepath.Glob(filepath.Join(o.Cache, kind, "*"))
		require.NoError(t, err)
		require.Len(t, files, 1, kind)
	}
	another := engine(t, m, o)
	require.NotNil(t, another.Shortlist().List, "the next engine has it")

	o.Shortlist = -1
	off := engine(t, m, o)
	require.Equal(t, "it is off", off.Shortlist().Why)
	require.ErrorIs(t, off.LearnShortlist(t.Context()), llama.ErrShortlist)
}

// TestPausedEngine answers nothing while its pause is on, but can be cancelled and closed.
func TestPausedEngine(t *testing.T) {
	m := small(t)
	r := greedy(6)
	r.Messages = user("one and two")
	want, err := engine(t, m, options(256)).Answer(t.Context(), r)
	require.NoError(t, err)

	var pause llama.Pause
	pause.Set(true)
	o := options(256)
	o.Pause = &pause
	e := engine(t, m, o)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = e.Answer(ctx, r)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Zero(t, e.Stats().Generated)
	time.AfterFunc(50*time.Millisecond, func() { pause.Set(false) })
	got, err := e.Answer(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, want.Tokens, got.Tokens)

	pause.Set(true)
	time.AfterFunc(50*time.Millisecond, func() { e.Close() })
	r.NoCache = true
	_, err = e.Answer(t.Context(), r)
	require.ErrorIs(t, err, gallop.ErrClosed)
}
