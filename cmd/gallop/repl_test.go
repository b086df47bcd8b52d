package main

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
)

func TestCommandsAndText(t *testing.T) {
	for line, want := range map[string]bool{
		"/skip 4,6": true, "/skip": true, "/skip ": true, "/help\t": true, "/nonsense": true, "/save a file": true,
		"/?": true, "/bye": true, "/clear": true, "exit": true, "quit ": true, " exit": false, "exit now": false, "/?x": false,
		"/etc/hosts?": false, "/* add */": false, "/* add */\nint add(int a);": false, "// a comment": false, "/": false, "/ x": false,
		" /skip 4": false, "/skip 4\nWhat is this?": false, "/Users": false, "/4": false, "hello": false, "": false,
	} {
		require.Equal(t, want, commandPattern.MatchString(line), "%q", line)
	}
}

// full is a disk without room.
type full struct{ wrote int }

var errFull = errors.New("no space left")

func (f *full) Write([]byte) (int, error) { f.wrote++; return 0, errFull }

func TestUnwrittenAnswer(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	e, err := gallop.New(m, &gallop.Options{Parallel: 1, NoCosts: true, Context: llama.ContextOptions{NCtx: 512, Threads: 1}})
	require.NoError(t, err)
	defer func() { require.NoError(t, e.Close()) }()
	var out full
	request := gallop.Request{Sampling: &llama.Sampling{}, MaxTokens: 400}
	r := &repl{engine: e, session: e.NewSession(request), out: &out, notes: new(bytes.Buffer), interrupt: context.WithCancel}
	more, err := r.line(t.Context(), "one")
	require.True(t, more)
	require.ErrorIs(t, err, errFull)
	require.Less(t, e.Stats().Generated, uint64(200), "the answer ended when nobody could read it")
}
