package main

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
)

// fullDisk is a file that takes nothing.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestUnwrittenOutput(t *testing.T) {
	llamatest.Library(t)
	alone(t)
	for _, args := range [][]string{
		{"run", "-t", "1", "hi"}, {"run", "-t", "1", "--json", "hi"}, {"chat", "-t", "1", "-p", "hi"}, {"--help"}, {"help", "chat"},
		{"inspect"}, {"route", "hi"}, {"doctor"}, {"prune", "--skip", "4", "-o", filepath.Join(t.TempDir(), "x.gguf")},
	} {
		var notes bytes.Buffer
		require.Equal(t, exitError, run(args, strings.NewReader(""), fullDisk{}, &notes), args)
		require.Contains(t, notes.String(), "no space left on device", args)
		require.Equal(t, 1, strings.Count(notes.String(), "no space left"), "said once: %s", notes.String())
	}
}

func TestHarmless(t *testing.T) {
	for text, want := range map[string]string{
		"two\nlines\tand a tab": "two\nlines\tand a tab", "\x1b[31mred": "\ufffd[31mred", "\x1b]0;title\a": "\ufffd]0;title\ufffd",
		"\u009b2J": "\ufffd2J", "over\rwritten": "over\ufffdwritten", "Grüße 👩‍👩‍👧 日本": "Grüße 👩‍👩‍👧 日本", "": "",
	} {
		require.Equal(t, want, harmless(text))
		var out bytes.Buffer
		n, err := harmlessWriter{&out}.Write([]byte(text))
		require.NoError(t, err)
		require.Equal(t, len(text), n)
		require.Equal(t, want, out.String())
	}
	require.IsType(t, new(bytes.Buffer), answers(new(bytes.Buffer)), "what is no terminal gets the model's own bytes")
	terminal, keys := llamatest.Terminal(t)
	_, err := answers(&output{Writer: terminal}).Write([]byte("a\x1b[31mb"))
	require.NoError(t, err)
	shown := make([]byte, 100)
	n, err := keys.Read(shown)
	require.NoError(t, err)
	require.Equal(t, "a\ufffd[31mb", string(shown[:n]))
	code, _, notes := runGallop("inspect", "no\x1b[31m.gguf")
	require.Equal(t, exitError, code)
	require.NotContains(t, notes, "\x1b")
	require.Contains(t, notes, "\ufffd[31m")
}

func TestSignals(t *testing.T) {
	for s, code := range map[syscall.Signal]int{syscall.SIGTERM: exitTerminated, syscall.SIGINT: exitInterrupted} {
		ctx, stop := interruptible(&cobra.Command{})
		require.NoError(t, ctx.Err())
		require.NoError(t, syscall.Kill(syscall.Getpid(), s))
		<-ctx.Done()
		require.ErrorIs(t, ctx.Err(), context.Canceled)
		require.Equal(t, code, codeOf(ctx.Err()))
		stop()
	}
	ctx, stop := interruptible(&cobra.Command{})
	stop()
	require.ErrorIs(t, ctx.Err(), context.Canceled)
}
