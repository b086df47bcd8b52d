package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rivo/uniseg"
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
		var cmd cobra.Command
		ctx, stop := interruptible(&cmd)
		inner, end := context.WithCancel(ctx) // as other packages make theirs
		require.NoError(t, inner.Err())
		require.NoError(t, syscall.Kill(syscall.Getpid(), s))
		<-inner.Done()
		require.ErrorIs(t, inner.Err(), context.Canceled)
		require.Equal(t, code, codeOf(cmd.Context(), fmt.Errorf("while it worked: %w", inner.Err())))
		stop()
		end()
	}
	ctx, stop := interruptible(&cobra.Command{})
	stop()
	require.ErrorIs(t, ctx.Err(), context.Canceled)
}

// TestSecondSignalEnds has a program that the first signal does not end.
func TestSecondSignalEnds(t *testing.T) {
	for _, two := range [][2]syscall.Signal{{syscall.SIGINT, syscall.SIGINT}, {syscall.SIGINT, syscall.SIGTERM}, {syscall.SIGTERM, syscall.SIGTERM}, {syscall.SIGTERM, syscall.SIGINT}} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), asDeaf+"=1")
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		said := bufio.NewScanner(out)
		require.True(t, said.Scan())
		require.NoError(t, cmd.Process.Signal(two[0]))
		require.True(t, said.Scan())
		require.Equal(t, "asked to end", said.Text())
		require.NoError(t, cmd.Process.Signal(two[0])) // the same once more, as `timeout` sends it
		time.Sleep(2 * sameSignal)
		require.NoError(t, cmd.Process.Signal(two[1]), "it still runs")
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case err = <-ended:
		case <-time.After(time.Minute):
			require.NoError(t, cmd.Process.Kill())
			require.Fail(t, "it does not end", "%v", two)
		}
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, two[1], exit.Sys().(syscall.WaitStatus).Signal(), two)
	}
}

// TestLinesBreakBetweenWords looks at a screen of ten columns. Text comes a rune at a time
// and all at once.
func TestLinesBreakBetweenWords(t *testing.T) {
	for text, want := range map[string]string{
		"one two three":               "one two\nthree",
		"one  two":                    "one  two",
		"ten column s":                "ten column\ns",
		"exactly te n":                "exactly te\nn",
		"a bcdefghijklmn o":           "a\nbcdefghijk\nlmn o",
		"abcdefghijklmno p":           "abcdefghij\nklmno p",
		"two\nlines of it":            "two\nlines of\nit",
		"日本語日本語":                      "日本語日本\n語",
		"is 日本語日本":                    "is 日本語\n日本",
		"a\tbcd":                      "a\nbcd",
		"e\u0301e\u0301 0123456 8 ab": "e\u0301e\u0301 0123456\n8 ab",
	} {
		for _, step := range []int{1, len(text)} {
			var out bytes.Buffer
			w := &wrapper{out: &out, columns: func() int { return 10 }}
			for piece := []rune(text); len(piece) > 0; piece = piece[min(step, len(piece)):] {
				_, err := io.WriteString(w, string(piece[:min(step, len(piece))]))
				require.NoError(t, err)
			}
			require.Equal(t, want, screen(10, out.String()), "%q in steps of %d: %q", text, step, out.String())
		}
	}
	var out bytes.Buffer
	_, err := io.WriteString(&wrapper{out: &out, columns: func() int { return 0 }}, "a terminal that does not tell its width")
	require.NoError(t, err)
	require.Equal(t, "a terminal that does not tell its width", out.String())
}

// screen is what a terminal shows of a text with the sequences that a wrapper uses.
func screen(columns int, text string) string {
	rows, column := [][]string{{}}, 0
	for text != "" {
		row := &rows[len(rows)-1]
		var at int
		if n, err := fmt.Sscanf(text, "\x1b[%dG\x1b[K", &at); n == 1 && err == nil {
			_, text, _ = strings.Cut(text, "\x1b[K")
			column = min(at, columns) - 1
			*row = (*row)[:column]
			continue
		}
		char, rest, width, _ := uniseg.FirstGraphemeClusterInString(text, -1)
		text = rest
		if char == "\t" {
			width = 8 - column%8
			char = strings.Repeat(" ", min(width, columns-column))
		}
		if char == "\n" || column+width > columns && char[0] != ' ' {
			rows, column = append(rows, []string{}), 0
			row = &rows[len(rows)-1]
		}
		if char == "\n" {
			continue
		}
		*row = append(*row, char)
		for range width - 1 {
			*row = append(*row, "")
		}
		column += width
	}
	var lines []string
	for _, row := range rows {
		lines = append(lines, strings.TrimRight(strings.Join(row, ""), " "))
	}
	return strings.Join(lines, "\n")
}
