package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"unicode"

	"github.com/rivo/uniseg"
	"golang.org/x/term"
)

// output is stdout. It remembers the first error, so that text which went nowhere
// shows in the exit code, whichever command wrote it.
type output struct {
	io.Writer
	err error
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.Writer.Write(p)
	if o.err == nil {
		o.err = err
	}
	return n, err
}

// stdout is the file or buffer itself, for programs that write to it themselves.
func stdout(out io.Writer) io.Writer {
	if o, ok := out.(*output); ok {
		return o.Writer
	}
	return out
}

// harmless is text for a terminal: what could move its cursor, change its colours
// or its title is shown as U+FFFD. Text from models and files may hold such.
func harmless(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' {
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

// harmlessWriter writes text as harmless does.
type harmlessWriter struct{ io.Writer }

func (w harmlessWriter) Write(p []byte) (int, error) {
	if _, err := io.WriteString(w.Writer, harmless(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// answers is where answers go: a terminal gets them harmless and broken between words, a
// file or pipe as the model wrote them.
func answers(out io.Writer) io.Writer {
	f, ok := stdout(out).(*os.File)
	if !ok || !isTerminal(f) {
		return out
	}
	if isDumb() {
		return harmlessWriter{out}
	}
	return harmlessWriter{&wrapper{out: out, columns: func() int { return columns(f) }}}
}

// columns is how wide a terminal is; 0 = it does not tell, or is none.
func columns(out io.Writer) int {
	f, ok := stdout(out).(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// wrapper breaks the lines of text that comes in pieces between its words: a word that
// does not fit is taken back and begins the next line.
type wrapper struct {
	out     io.Writer
	columns func() int // of the terminal; 0 = it does not tell
	column  int        // where the last word begins
	word    string     // its beginning, which is shown already
}

func (w *wrapper) Write(p []byte) (int, error) {
	columns := w.columns()
	var s strings.Builder
	for _, r := range string(p) {
		w.rune(&s, r, columns)
	}
	if _, err := io.WriteString(w.out, s.String()); err != nil {
		return 0, err
	}
	return len(p), nil
}

// rune shows one more.
func (w *wrapper) rune(s *strings.Builder, r rune, columns int) {
	const tab = 8
	end := w.column + uniseg.StringWidth(w.word)
	switch {
	case r == '\n':
		w.column, w.word = 0, ""
	case r == ' ' || r == '\t':
		if w.column, w.word = end+1, ""; r == '\t' {
			w.column = end/tab*tab + tab
		}
		if columns > 0 && w.column > columns { // the line's end is the space
			w.column, r = 0, '\n'
		}
	case uniseg.StringWidth(string(r)) > 1: // as Chinese is written: each is a word
		if columns > 0 && end+2 > columns {
			end = 0
			s.WriteByte('\n')
		}
		w.column, w.word = end+2, ""
	default:
		w.word += string(r)
		if width := uniseg.StringWidth(w.word); columns > 0 && w.column+width > columns {
			if w.column == 0 { // longer than a line: the terminal breaks it
				w.word = string(r)
				break
			}
			fmt.Fprintf(s, "\x1b[%dG\x1b[K\n%s", w.column+1, w.word)
			w.column = 0
			return
		}
	}
	s.WriteRune(r)
}

// notes is a log for people: a line for each warning, with its error.
type notes struct{ io.Writer }

// Enabled leaves out what is not worth a warning.
func (n notes) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }

// Handle writes a line.
func (n notes) Handle(_ context.Context, r slog.Record) error {
	line := "gallop: " + r.Message
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "error" {
			line += ": " + a.Value.String()
		}
		return true
	})
	_, err := fmt.Fprintln(n.Writer, line)
	return err
}

// WithAttrs is n: what is logged needs no names.
func (n notes) WithAttrs([]slog.Attr) slog.Handler { return n }

// WithGroup is n.
func (n notes) WithGroup(string) slog.Handler { return n }
