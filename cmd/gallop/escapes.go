package main

import (
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// escapes is whether what -p and --reverse-prompt say has escape sequences in it, which
// it has by default, as for llama.cpp's programs. Words and pipes never have.
type escapes struct{ off bool }

// add declares the flags.
func (e *escapes) add(f *pflag.FlagSet) {
	set := func(off func(bool) bool) func(string) error {
		return func(word string) error {
			on, err := strconv.ParseBool(word)
			if err == nil {
				e.off = off(on)
			}
			return err
		}
	}
	f.BoolFuncP("escape", "e", `take \n, \r, \t, \', \", \\ and \xHH in -p and --reverse-prompt for what they stand for (default)`, set(func(on bool) bool { return !on }))
	f.BoolFunc("no-escape", "take them as they are written", set(func(on bool) bool { return on }))
}

// texts is what texts of the command line stand for.
func (e *escapes) texts(written []string) []string {
	texts := make([]string, len(written))
	for i, w := range written {
		texts[i] = e.text(w)
	}
	return texts
}

// text is what a text of the command line stands for. What is no escape sequence stays.
func (e *escapes) text(written string) string {
	if e.off {
		return written
	}
	var s strings.Builder
	for {
		before, rest, found := strings.Cut(written, `\`)
		s.WriteString(before)
		if !found {
			return s.String()
		}
		char, length := escaped(rest)
		if length == 0 {
			char = '\\'
		}
		s.WriteByte(char)
		written = rest[length:]
	}
}

// escaped is the byte that a sequence stands for, which begins behind its backslash, and
// how long the sequence is there: 0 = it is none.
func escaped(sequence string) (char byte, length int) {
	if sequence == "" {
		return 0, 0
	}
	switch sequence[0] {
	case 'n':
		return '\n', 1
	case 'r':
		return '\r', 1
	case 't':
		return '\t', 1
	case '\'', '"', '\\':
		return sequence[0], 1
	case 'x':
		digits := sequence[1:min(len(sequence), 3)]
		for ; digits != ""; digits = digits[:len(digits)-1] { // one or two
			if v, err := strconv.ParseUint(digits, 16, 8); err == nil {
				return byte(v), 1 + len(digits)
			}
		}
	}
	return 0, 0
}
