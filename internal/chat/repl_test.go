package chat_test

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/chat"
)

func TestCommandsAndText(t *testing.T) {
	for line, want := range map[string]bool{
		"/skip 4,6": true, "/skip": true, "/skip ": true, "/help\t": true, "/nonsense": true, "/save a file": true,
		"/etc/hosts?": false, "/* add */": false, "/* add */\nint add(int a);": false, "// a comment": false, "/": false, "/ x": false,
		" /skip 4": false, "/skip 4\nWhat is this?": false, "/Users": false, "/4": false, "hello": false, "": false,
	} {
		require.Equal(t, want, chat.IsCommand(line), "%q", line)
	}
}

// full is a disk without room.
type full struct{ wrote int }

var errFull = errors.New("no space left")

func (f *full) Write([]byte) (int, error) { f.wrote++; return 0, errFull }

func TestUnwrittenAnswer(t *testing.T) {
	m := small(t)
	opts := options(512)
	opts.MaxTokens = 400
	s := session(t, m, opts)
	var out full
	r := &chat.Repl{Session: s, Model: m, Out: &out, Notes: new(bytes.Buffer), Interrupt: context.WithCancel}
	more, err := r.Line(t.Context(), "one")
	require.True(t, more)
	require.ErrorIs(t, err, errFull)
	require.Less(t, len(s.Tokens()), 200, "the answer ended when nobody could read it")
}
