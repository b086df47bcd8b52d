package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
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
func stdout(cmd *cobra.Command) io.Writer {
	if o, ok := cmd.OutOrStdout().(*output); ok {
		return o.Writer
	}
	return cmd.OutOrStdout()
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

// answers is where answers go: a terminal gets them harmless, a file or pipe as
// the model wrote them.
func answers(out io.Writer) io.Writer {
	if isTerminal(out) {
		return harmlessWriter{out}
	}
	return out
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
