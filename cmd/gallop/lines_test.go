package main

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
)

func TestTerminalOfNoSize(t *testing.T) {
	terminal, keys := llamatest.Terminal(t)
	var screen bytes.Buffer
	lines, interactive := newLines(terminal, &screen)
	require.True(t, interactive)
	_, err := keys.WriteString("hello there\r")
	require.NoError(t, err)
	line, err := lines.Next()
	require.NoError(t, err)
	require.Equal(t, "hello there", line)
	require.Contains(t, screen.String(), "> hello there\r\n", "it is one line on the screen, too")
}

func TestLinesOfAPipe(t *testing.T) {
	lines, interactive := newLines(strings.NewReader("\ufeff/skip 4\r\nWhy?"), io.Discard)
	require.False(t, interactive)
	for _, want := range []string{"/skip 4", "Why?"} {
		line, err := lines.Next()
		require.NoError(t, err)
		require.Equal(t, want, line)
	}
	_, err := lines.Next()
	require.ErrorIs(t, err, io.EOF)

	lines, _ = newLines(strings.NewReader("\xff\xfeH\x00"), io.Discard)
	_, err = lines.Next()
	require.ErrorContains(t, err, "is not UTF-8 text")
	lines, _ = newLines(strings.NewReader(strings.Repeat("x", 17<<20)), io.Discard)
	_, err = lines.Next()
	require.ErrorContains(t, err, "over 16777216 bytes")
}
