package main

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
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
	lines, interactive := newLines(terminal, &screen, "")
	defer lines.Close()
	require.True(t, interactive)
	_, err := keys.WriteString("hello there\r")
	require.NoError(t, err)
	line, err := lines.Next()
	require.NoError(t, err)
	require.Equal(t, "hello there", line)
	require.Contains(t, screen.String(), "> hello there\r\n", "it is one line on the screen, too")
}

// TestLongLineWhileNobodyReads types before the first line is asked for and between two, as
// while the model loads or answers.
func TestLongLineWhileNobodyReads(t *testing.T) {
	terminal, keys := llamatest.Terminal(t)
	found, err := unix.IoctlGetTermios(int(terminal.Fd()), getTermios)
	require.NoError(t, err)
	require.NotZero(t, found.Lflag&unix.ICANON)
	go io.Copy(io.Discard, keys) // what the terminal echoes
	lines, _ := newLines(terminal, io.Discard, "")
	for range 2 {
		want := strings.Repeat("word ", 2000)
		typed := make(chan error)
		go func() {
			_, err := keys.WriteString(want + "\r")
			typed <- err
		}()
		time.Sleep(100 * time.Millisecond)
		line, err := lines.Next()
		require.NoError(t, err)
		require.NoError(t, <-typed)
		require.Equal(t, len(want), len(line))
		require.Equal(t, want, line)
	}
	lines.Close()
	left, err := unix.IoctlGetTermios(int(terminal.Fd()), getTermios)
	require.NoError(t, err)
	require.Equal(t, found, left)
}

// TestDumbTerminals types on terminals that know no escape sequences, or may not.
func TestDumbTerminals(t *testing.T) {
	terminal, keys := llamatest.Terminal(t)
	for name, escapes := range map[string]bool{"dumb": false, "unknown": false, "": false, "xterm": true} {
		t.Setenv("TERM", name)
		var screen bytes.Buffer
		lines, _ := newLines(terminal, &screen, "")
		defer lines.Close()
		_, err := keys.WriteString("hello\r")
		require.NoError(t, err)
		line, err := lines.Next()
		require.NoError(t, err)
		require.Equal(t, "hello", line)
		require.Equal(t, escapes, strings.Contains(screen.String(), "\x1b"), "%q: %q", name, screen.String())
	}
}

func TestLinesOfAPipe(t *testing.T) {
	lines, interactive := newLines(strings.NewReader("\ufeff/skip 4\r\nWhy?"), io.Discard, "")
	require.False(t, interactive)
	for _, want := range []string{"/skip 4", "Why?"} {
		line, err := lines.Next()
		require.NoError(t, err)
		require.Equal(t, want, line)
	}
	_, err := lines.Next()
	require.ErrorIs(t, err, io.EOF)

	lines, _ = newLines(strings.NewReader("one\\\ntwo\r\n\"\"\"/skip 4\nis text\n\"\"\"\n\"\"\"one line\"\"\"\n\"\"\" is a quote: \"\"\" here\nthe end\\"), io.Discard, "")
	for _, want := range []string{"one\ntwo", "\n/skip 4\nis text", "\none line", "\"\"\" is a quote: \"\"\" here", "the end"} {
		line, err := lines.Next()
		require.NoError(t, err)
		require.Equal(t, want, line)
		require.False(t, commandPattern.MatchString(line))
	}
	_, err = lines.Next()
	require.ErrorIs(t, err, io.EOF)
	lines, _ = newLines(strings.NewReader("\"\"\"tell\nme"), io.Discard, "")
	_, err = lines.Next()
	require.ErrorContains(t, err, "that nothing closes")

	lines, _ = newLines(strings.NewReader("\xff\xfeH\x00"), io.Discard, "")
	_, err = lines.Next()
	require.ErrorContains(t, err, "is not UTF-8 text")
	lines, _ = newLines(strings.NewReader(strings.Repeat("x", 17<<20)), io.Discard, "")
	_, err = lines.Next()
	require.ErrorContains(t, err, "over 16777216 bytes")
}

// TestHistoryIsKept types in two chats, one after the other.
func TestHistoryIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gallop", "history")
	typed := func(keys string) string {
		terminal, other := llamatest.Terminal(t)
		lines, _ := newLines(terminal, io.Discard, path)
		defer lines.Close()
		_, err := other.WriteString(keys)
		require.NoError(t, err)
		line, err := lines.Next()
		require.NoError(t, err)
		return line
	}
	require.Equal(t, "\n日本\ntwo", typed("\"\"\"日本\rtwo\"\"\"\r"))
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	require.Equal(t, "\n日本\ntwo", typed("\x1b[A\r"), "all of it, as it was typed")

	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	for i := range 3 * historyLines {
		_, err := f.Write(historyLine(strconv.Itoa(i)))
		require.NoError(t, err)
	}
	_, err = f.WriteString("\"cut off by a cra")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.Equal(t, "2999", typed("\x1b[A\r"))
	kept, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, historyLines, strings.Count(string(kept), "\n"), "a long history is made short")

	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Mkdir(path, 0o700))
	require.Equal(t, "hello", typed("hello\r"), "no history is no reason not to chat")
}

// TestSignalLeavesTheTerminalUsable ends a chat as `kill` and `timeout` do, at its prompt, with
// a line half typed and while it answers: the shell must find the terminal as it was.
func TestSignalLeavesTheTerminalUsable(t *testing.T) {
	llamatest.Library(t)
	alone(t)
	self, err := os.Executable()
	require.NoError(t, err)
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT} {
		if signal.Ignored(s) { // as below nohup: programs that are started leave it so
			continue
		}
		for _, typed := range []string{"", "half", "Hello\r"} {
			if s == syscall.SIGINT && strings.HasSuffix(typed, "\r") {
				continue // stops the answer alone
			}
			terminal, keys := llamatest.Terminal(t)
			before, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
			require.NoError(t, err)
			cmd := exec.Command(self, "chat", "-t", "1")
			cmd.Env = append(os.Environ(), asProgram+"=1")
			cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, terminal, terminal
			require.NoError(t, cmd.Start())
			shown := readUntil(t, keys, "> ")
			_, err = keys.WriteString(typed)
			require.NoError(t, err)
			if typed != "" {
				shown += readUntil(t, keys, strings.TrimSpace(typed))
			}
			if s == syscall.SIGINT {
				time.Sleep(2 * sameSignal) // else it may be the last answer's
			}
			require.NoError(t, cmd.Process.Signal(s))
			go io.Copy(io.Discard, keys)
			var ended *exec.ExitError
			require.ErrorAs(t, cmd.Wait(), &ended)
			if s == syscall.SIGQUIT { // which Go shows its goroutines at
				require.Equal(t, exitUsage, ended.ExitCode(), shown)
			} else {
				require.Equal(t, s, ended.Sys().(syscall.WaitStatus).Signal(), shown)
			}
			after, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
			require.NoError(t, err)
			require.Equal(t, before, after, "%s with %q typed", s, typed)
		}
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

// TestEditor types keys and looks at the line and at where the cursor is.
func TestEditor(t *testing.T) {
	const left, up, down, home, deleteKey = "\x1b[D", "\x1b[A", "\x1b[B", "\x1b[H", "\x1b[3~"
	for name, c := range map[string]struct{ keys, want string }{
		"plain":                 {"hello\r", "hello"},
		"wide characters":       {"日本語テスト\x7f\x7f" + left + left + "X\r", "日本X語テ"},
		"one character, many":   {"a👩‍👩‍👧e\u0301" + left + left + "b\r", "ab👩‍👩‍👧e\u0301"},
		"deleted as one":        {"a👩‍👩‍👧e\u0301\x7f\x7f\r", "a"},
		"a flag":                {"🇩🇪🇫🇷\x7f\r", "🇩🇪"},
		"start and delete":      {"abc" + home + deleteKey + "\r", "bc"},
		"words":                 {"one two three\x17\x1bb\x0b\r", "one "},
		"cleared":               {"abc\x15def\x03ghi\r", "ghi"},
		"paste":                 {"\x1b[200~one\r\ttwo\nthree\x1b[201~\r", "one\n\ttwo\nthree"},
		"alt and enter":         {"one\x1b\rtwo\r", "one\ntwo"},
		"backslash and enter":   {"one\\\rtwo\r", "one\ntwo"},
		"pasted backslashes":    {"\x1b[200~a \\\rb\x1b[201~\r", "a \\\nb"},
		"quotes":                {"\"\"\"one\rtwo\"\"\"\r", "\"\"\"one\ntwo\"\"\""},
		"a paste, recalled":     {"\x1b[200~one\rtwo\x1b[201~\r" + up + "!\r", "one\ntwo!"},
		"searched":              {"\x12one\r", "number one"},
		"searched, the older":   {"\x12number\x12\r", "number one"},
		"searched, changed":     {"\x12numx\x7f" + left + "!\r", "number tw!o"},
		"searched, given up":    {"mine\x12one\x07\r", "mine"},
		"searched, not there":   {"mine\x12zzz\r", "mine"},
		"unknown keys":          {"a\x1b[15~\x1b[99;7Xb\x00\x1c\r", "ab"},
		"more than 4096":        {strings.Repeat("word ", 1000) + "\r", strings.Repeat("word ", 1000)},
		"history":               {"x\r" + up + left + "y\r", "yx"},
		"back from the history": {"x\rnew" + up + down + "er\r", "newer"},
		"interrupted and empty": {"\x03ok\r", "ok"},
	} {
		in := bufio.NewReader(strings.NewReader(c.keys))
		e := typing{in: in, out: io.Discard, columns: 20, history: [][]string{characters("number one"), characters("number two")}}
		got, err := e.read()
		require.NoError(t, err, name)
		if in.Buffered() > 0 {
			got, err = e.read()
			require.NoError(t, err, name)
		}
		require.Equal(t, c.want, got, name)
	}
	_, err := (&typing{in: bufio.NewReader(strings.NewReader("\x04")), out: io.Discard, columns: 20}).read()
	require.ErrorIs(t, err, io.EOF)

	// Five cells, of which the prompt takes two: the second character is on the next row.
	var screen strings.Builder
	e := typing{out: &screen, columns: 5, line: []string{"日", "本", "語"}, at: 0}
	e.draw()
	require.Equal(t, "\r\x1b[J> 日本語\r\x1b[1A\x1b[2C", screen.String())
	screen.Reset()
	e.at = 3
	e.draw()
	require.Equal(t, "\r\x1b[J> 日本語", screen.String())
	require.Equal(t, 1, e.row)
	screen.Reset()
	e.draw()
	require.Equal(t, "\r\x1b[1A\x1b[J> 日本語", screen.String(), "all of it anew")
	screen.Reset()
	e.line, e.at, e.row = []string{"a", "b", "c"}, 3, 0
	e.draw()
	require.Equal(t, "\r\x1b[J> abc\r\n", screen.String(), "a full row")
	require.Equal(t, 1, e.row)
}
