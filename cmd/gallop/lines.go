package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/term"

	"github.com/gallop-llm/gallop/internal/files"
)

// maxLine is the longest line that is read from a pipe, in bytes: far more than
// any context holds.
const maxLine = 16 << 20

// lineSource gives what a person or a pipe says, a line at a time, and io.EOF at the
// end.
type lineSource interface {
	Next() (string, error)
}

// newLines reads from in: with an editor and a history when it is a terminal,
// else as plain lines.
func newLines(in io.Reader, out io.Writer) (lines lineSource, interactive bool) {
	if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return newEditor(f, out), true
	}
	scanner := bufio.NewScanner(in)
	scanner.Buffer(nil, maxLine)
	return pipe{scanner}, false
}

type pipe struct{ *bufio.Scanner }

func (p pipe) Next() (string, error) {
	if p.Scan() {
		return files.Text(p.Bytes())
	}
	if err := p.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			err = fmt.Errorf("it has over %d bytes", maxLine)
		}
		return "", err
	}
	return "", io.EOF
}

// editor is a line editor on a terminal, which is in raw mode only while a line
// is typed: during an answer Ctrl-C must be a signal.
type editor struct {
	file   *os.File
	term   *term.Terminal
	pastes bool // the terminal can tell pasted lines from typed ones
}

func newEditor(f *os.File, out io.Writer) *editor {
	screen := struct {
		io.Reader
		io.Writer
	}{ctrlCClearsLine{f}, out}
	return &editor{file: f, term: term.NewTerminal(screen, "> "), pastes: !isDumb()}
}

// isDumb tells whether the terminal is one that shows escape sequences as they are.
func isDumb() bool { return os.Getenv("TERM") == "dumb" }

// restoreOnSignal calls restore before a signal ends the process: the shell would find
// the terminal in raw mode otherwise. stop ends that.
func restoreOnSignal(restore func()) (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		select {
		case s := <-signals:
			restore()
			signal.Reset(s)
			if self, err := os.FindProcess(os.Getpid()); err == nil {
				_ = self.Signal(s) // to end as it would have
			}
		case <-done:
		}
	}()
	return func() {
		signal.Stop(signals)
		close(done)
	}
}

// Next reads a line; lines pasted together come as one.
func (e *editor) Next() (string, error) {
	state, err := term.MakeRaw(int(e.file.Fd()))
	if err != nil {
		return "", err
	}
	restore := sync.OnceFunc(func() {
		if e.pastes {
			e.term.SetBracketedPasteMode(false)
		}
		term.Restore(int(e.file.Fd()), state)
	})
	defer restore()
	defer restoreOnSignal(restore)()
	if width, height, err := term.GetSize(int(e.file.Fd())); err == nil && width > 0 && height > 0 { // 0 = not known
		e.term.SetSize(width, height)
	}
	if e.pastes {
		e.term.SetBracketedPasteMode(true)
	}
	var pasted []string
	for {
		line, err := e.term.ReadLine()
		pasted = append(pasted, line)
		if !errors.Is(err, term.ErrPasteIndicator) {
			return strings.Join(pasted, "\n"), err
		}
	}
}

// ctrlCClearsLine turns Ctrl-C into Ctrl-U: the terminal's editor would take it
// for the end of the input.
type ctrlCClearsLine struct{ io.Reader }

func (r ctrlCClearsLine) Read(p []byte) (int, error) {
	const ctrlC, ctrlU = 3, 21
	n, err := r.Reader.Read(p)
	for i := range p[:n] {
		if p[i] == ctrlC {
			p[i] = ctrlU
		}
	}
	return n, err
}
