package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/gallop-llm/gallop/internal/files"
)

// maxLine is the longest line that is read from a pipe, in bytes: far more than
// any context holds.
const maxLine = 16 << 20

// lineSource gives what a person or a pipe says, a line at a time, and io.EOF at the
// end. A line goes on in the next one where it ends with a backslash, and up to the
// closing quotes where it begins with three.
type lineSource interface {
	Next() (string, error)
	Close() // gives the terminal back as it was
}

// newLines reads from in: with an editor and a history, which is kept in a file unless
// that is "", when it is a terminal, else as plain lines.
func newLines(in io.Reader, out io.Writer, history string) (lines lineSource, interactive bool) {
	if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return newEditor(f, out, history), true
	}
	scanner := bufio.NewScanner(in)
	scanner.Buffer(nil, maxLine)
	return pipe{scanner}, false
}

type pipe struct{ *bufio.Scanner }

func (pipe) Close() {}

func (p pipe) Next() (string, error) {
	var line string
	for n := 0; p.Scan(); n++ {
		next, err := files.Text(p.Bytes())
		if err != nil {
			return "", err
		}
		if n > 0 {
			line += "\n"
		}
		if line += next; strings.HasSuffix(line, `\`) {
			line = strings.TrimSuffix(line, `\`)
		} else if !unclosed(line) {
			return unquoted(line), nil
		}
		if len(line) > maxLine {
			return "", fmt.Errorf("it has over %d bytes", maxLine)
		}
	}
	if unclosed(line) {
		return "", fmt.Errorf("%s opens a text that nothing closes", quotes)
	}
	if line != "" { // it ended with a backslash
		return line, nil
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
// is typed: during an answer Ctrl-C must be a signal. What is typed meanwhile waits.
type editor struct {
	file  *os.File
	out   io.Writer
	found *term.State // of the terminal; nil = not known
	stop  func()      // what is done at signals

	mu          sync.Mutex
	raw         bool      // a line is typed
	asked       time.Time // when it was asked for
	interrupted time.Time // when an answer, or the model's loading, was first; zero = not
	typing
}

func newEditor(f *os.File, out io.Writer, history string) *editor {
	e := &editor{file: f, out: out, typing: typing{in: bufio.NewReader(f), out: out, plain: isDumb()}}
	e.found, _ = term.GetState(int(f.Fd()))
	e.stop = e.leaveOnSignal()
	takeLongLines(f)
	if history != "" {
		h := &historyFile{path: history}
		for _, line := range h.read() {
			e.history = append(e.history, characters(line))
		}
		e.keep = h.add
	}
	return e
}

// quotes stand around a text of several lines.
const quotes = `"""`

// unclosed tells whether a line opens quotes that it does not close.
func unclosed(line string) bool {
	return strings.HasPrefix(line, quotes) && strings.Count(line, quotes)%2 == 1
}

// unquoted is what a line says. What stood in quotes is text, a / in front too.
func unquoted(line string) string {
	if inner, found := strings.CutPrefix(line, quotes); found && strings.Count(line, quotes) == 2 {
		if inner, found = strings.CutSuffix(strings.TrimRight(inner, " \t\r"), quotes); found {
			return "\n" + strings.Trim(inner, "\r\n")
		}
	}
	return line
}

// Next reads a line; lines pasted together come as one.
func (e *editor) Next() (string, error) {
	e.mu.Lock()
	_, err := term.MakeRaw(int(e.file.Fd()))
	e.raw, e.asked, e.interrupted = err == nil, time.Now(), time.Time{}
	e.mu.Unlock()
	if err != nil {
		return "", err
	}
	defer takeLongLines(e.file)
	defer e.giveBack()
	e.columns = usualColumns
	if width, _, err := term.GetSize(int(e.file.Fd())); err == nil && width > len(prompt) {
		e.columns = width
	}
	if !e.plain {
		io.WriteString(e.out, "\x1b[?2004h") // pasted text is marked as such
	}
	line, err := e.read()
	return unquoted(line), err
}

// giveBack leaves the terminal as it was found.
func (e *editor) giveBack() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.restore()
}

// restore needs mu.
func (e *editor) restore() {
	if e.raw && !e.plain {
		io.WriteString(e.out, "\x1b[?2004l") // pasted text is no longer marked
	}
	e.raw = false
	if e.found != nil {
		_ = term.Restore(int(e.file.Fd()), e.found)
	}
}

// Close gives the terminal back as it was found.
func (e *editor) Close() {
	e.stop()
	e.giveBack()
}

// isDumb tells whether the terminal is one that shows escape sequences as they are, or
// nobody knows. Windows' console has no TERM.
func isDumb() bool {
	name := os.Getenv("TERM")
	return name == "dumb" || name == "unknown" || name == "" && runtime.GOOS != "windows"
}

// leaveOnSignal gives the terminal back before a signal ends the process: the shell would
// find it in another mode otherwise. stop ends that.
func (e *editor) leaveOnSignal() (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-signals:
				if e.leave(s) {
					end(s)
					return
				}
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(done)
	}
}

// leave gives the terminal back for good if s is to end the process: a line that is asked for
// in this moment never takes it.
func (e *editor) leave(s os.Signal) bool {
	e.mu.Lock()
	if s == os.Interrupt {
		now := time.Now()
		since := e.asked // it may have been for the answer that ended just now
		if !e.raw {
			if e.interrupted.IsZero() {
				e.interrupted = now
			}
			since = e.interrupted
		}
		if now.Sub(since) <= sameSignal {
			e.mu.Unlock()
			return false
		}
	}
	e.restore()
	return true // with mu locked
}

// end ends the process as s would have.
func end(s os.Signal) {
	signal.Reset(s)
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Signal(s)
	}
	if err != nil { // as on Windows
		os.Exit(exitInterrupted)
	}
}
