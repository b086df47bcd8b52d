package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

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

// TestSignalLeavesTheTerminalUsable ends a chat at its prompt as `kill` and `timeout`
// do: the shell must find the terminal as it was.
func TestSignalLeavesTheTerminalUsable(t *testing.T) {
	llamatest.Library(t)
	alone(t)
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP} {
		terminal, keys := llamatest.Terminal(t)
		before, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
		require.NoError(t, err)
		self, err := os.Executable()
		require.NoError(t, err)
		cmd := exec.Command(self, "chat", "-t", "1")
		cmd.Env = append(os.Environ(), asProgram+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
		require.NoError(t, cmd.Start())
		shown := readUntil(t, keys, "> ")
		require.NoError(t, cmd.Process.Signal(s))
		var ended *exec.ExitError
		require.ErrorAs(t, cmd.Wait(), &ended)
		require.Equal(t, s, ended.Sys().(syscall.WaitStatus).Signal(), shown)
		after, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
		require.NoError(t, err)
		require.Equal(t, before, after, s)
	}
}

// readUntil reads what a terminal shows, up to a text.
func readUntil(t *testing.T, keys *os.File, text string) (shown string) {
	t.Helper()
	late := time.AfterFunc(time.Minute, func() { keys.Close() })
	defer late.Stop()
	b := make([]byte, 1<<10)
	for !strings.Contains(shown, text) {
		n, err := keys.Read(b)
		require.NoError(t, err, shown)
		shown += string(b[:n])
	}
	return shown
}
