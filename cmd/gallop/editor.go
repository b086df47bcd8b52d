package main

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/rivo/uniseg"
)

// prompt stands in front of a line that is typed.
const prompt = "> "

// usualColumns is taken for the width of a terminal that does not tell.
const usualColumns = 80

// typing edits lines on a terminal in raw mode. What is moved over, deleted and
// measured are characters as people see them, which may be several runes and two
// cells wide. Lines have any length.
type typing struct {
	in      *bufio.Reader
	out     io.Writer
	columns int                     // of the terminal
	plain   bool                    // it knows no escape sequences
	history [][]string              // lines, the oldest first
	keep    func(line string) error // keeps what is new in the history; may be nil

	line   []string // character by character
	at     int      // the cursor is in front of this one
	row    int      // of the screen that the cursor is in, from the line's first
	place  int      // in the history; len(history) = a line of its own
	own    []string // that line while the history is shown
	pastes bool     // within what is pasted

	searches bool   // in the history, for
	sought   string // this text
}

// Keys, as terminals send them.
const (
	ctrlA, ctrlB, ctrlC, ctrlD, ctrlE, ctrlF = 1, 2, 3, 4, 5, 6
	ctrlG, ctrlH, ctrlK, ctrlL, ctrlN, ctrlP = 7, 8, 11, 12, 14, 16
	ctrlR, ctrlU, ctrlW, escape, del         = 18, 21, 23, 27, 127
)

// read lets a line be typed. It gives [io.EOF] for Ctrl-D in an empty one.
func (t *typing) read() (string, error) {
	t.line, t.at, t.row, t.place, t.own = nil, 0, 0, len(t.history), nil
	t.draw()
	for {
		key, _, err := t.in.ReadRune()
		if err != nil {
			return "", err
		}
		if t.searches && t.search(key) {
			key = 0
		}
		switch {
		case key == 0:
		case (key == '\r' || key == '\n') && !t.pastes:
			if !t.goesOn() {
				return t.finish(), nil
			}
		case key == ctrlD && len(t.line) == 0:
			return "", io.EOF
		case key == ctrlC && len(t.line) == 0:
			fmt.Fprint(t.out, "\r\nCtrl-D or /bye leaves\r\n")
			t.row = 0
		case key == escape:
			t.escape()
		default:
			t.key(key)
		}
		if t.in.Buffered() == 0 { // more is drawn together
			t.draw()
		}
	}
}

// finish ends the line.
func (t *typing) finish() string {
	t.at = len(t.line)
	t.draw()
	fmt.Fprint(t.out, "\r\n")
	line := strings.Join(t.line, "")
	if n := len(t.history); len(t.line) > 0 && (n == 0 || !slices.Equal(t.history[n-1], t.line)) {
		t.history = append(t.history, t.line)
		if t.keep != nil {
			_ = t.keep(line) // a chat is no worse without a history
		}
	}
	return line
}

// goesOn tells whether the Enter that was pressed begins a new row of the line, and begins it.
func (t *typing) goesOn() bool {
	n := len(t.line)
	switch {
	case n > 0 && t.line[n-1] == `\`:
		t.line = t.line[:n-1]
	case !unclosed(strings.Join(t.line, "")):
		return false
	}
	t.at = len(t.line)
	t.insert('\n')
	return true
}

// search does what a key is for while the history is searched, and tells whether that is
// all. Any other key ends the search and is for the line that was found.
func (t *typing) search(key rune) bool {
	sought, place := t.sought, t.place
	switch {
	case key == ctrlR:
		place-- // the next older one
	case key == ctrlG, key == ctrlC, key == escape && t.in.Buffered() == 0:
		t.searches = false
		t.recall(len(t.history) - t.place)
		return true
	case key == ctrlH, key == del:
		if _, size := utf8.DecodeLastRuneInString(sought); size > 0 {
			sought = sought[:len(sought)-size]
		}
		place = len(t.history) - 1
	case unicode.IsPrint(key):
		sought += string(key)
	default:
		t.searches = false
		return false
	}
	t.sought = sought
	for ; place >= 0 && sought != ""; place-- {
		if place < len(t.history) && strings.Contains(strings.Join(t.history[place], ""), sought) {
			t.recall(place - t.place)
			break
		}
	}
	return true
}

// key does what a key is for; what stands for itself goes into the line.
func (t *typing) key(key rune) {
	switch key {
	case ctrlA:
		t.at = 0
	case ctrlE:
		t.at = len(t.line)
	case ctrlB:
		t.at = max(t.at-1, 0)
	case ctrlF:
		t.at = min(t.at+1, len(t.line))
	case ctrlH, del:
		t.remove(t.at-1, t.at)
	case ctrlD:
		t.remove(t.at, t.at+1)
	case ctrlK:
		t.remove(t.at, len(t.line))
	case ctrlU:
		t.remove(0, t.at)
	case ctrlC:
		t.remove(0, len(t.line))
	case ctrlW:
		t.remove(t.word(-1), t.at)
	case ctrlP:
		t.recall(-1)
	case ctrlN:
		t.recall(1)
	case ctrlR:
		t.searches, t.sought = true, ""
	case ctrlL:
		if !t.plain {
			fmt.Fprint(t.out, "\x1b[H\x1b[2J")
			t.row = 0
		}
	case '\r':
		t.insert('\n')
	case '\n', '\t':
		t.insert(key)
	default:
		if !unicode.IsControl(key) {
			t.insert(key)
		}
	}
}

// escape reads and does an escape sequence.
func (t *typing) escape() {
	key, _, err := t.in.ReadRune()
	switch {
	case err != nil:
		return
	case key == '\r': // Alt-Enter
		t.insert('\n')
		return
	case key == 'b':
		t.at = t.word(-1)
		return
	case key == 'f':
		t.at = t.word(1)
		return
	case key != '[' && key != 'O':
		return
	}
	var parameters strings.Builder
	for {
		if key, _, err = t.in.ReadRune(); err != nil {
			return
		}
		if key >= '@' && key <= '~' {
			break
		}
		parameters.WriteRune(key)
	}
	far := strings.Contains(parameters.String(), ";") // with Ctrl or Alt
	switch string(key) + strings.TrimSuffix(parameters.String(), ";") {
	case "A":
		t.recall(-1)
	case "B":
		t.recall(1)
	case "C":
		t.key(ctrlF)
	case "D":
		t.key(ctrlB)
	case "H", "~1", "~7":
		t.at = 0
	case "F", "~4", "~8":
		t.at = len(t.line)
	case "~3":
		t.key(ctrlD)
	case "~200":
		t.pastes = true
	case "~201":
		t.pastes = false
	default:
		if far && (key == 'C' || key == 'D') {
			t.at = t.word(map[rune]int{'C': 1, 'D': -1}[key])
		}
	}
}

// insert puts a rune in front of the cursor; it may belong to the character there.
func (t *typing) insert(r rune) {
	last := t.at
	text := string(r)
	if t.at > 0 {
		last--
		text = t.line[last] + text
	}
	chars := characters(text)
	t.line = slices.Replace(t.line, last, t.at, chars...)
	t.at = last + len(chars)
}

// characters takes a text apart as people see it.
func characters(text string) (chars []string) {
	for state := -1; text != ""; {
		var char string
		char, text, _, state = uniseg.FirstGraphemeClusterInString(text, state)
		chars = append(chars, char)
	}
	return chars
}

// remove takes characters away.
func (t *typing) remove(from, to int) {
	from, to = max(from, 0), min(to, len(t.line))
	if from >= to {
		return
	}
	t.line = slices.Delete(t.line, from, to)
	t.at = from
}

// word is the place of the next start, or end, of a word in a direction.
func (t *typing) word(step int) int {
	at := t.at
	char := func() string {
		if step < 0 {
			return t.line[at-1]
		}
		return t.line[at]
	}
	inside := func() bool { return step < 0 && at > 0 || step > 0 && at < len(t.line) }
	for inside() && strings.TrimSpace(char()) == "" {
		at += step
	}
	for inside() && strings.TrimSpace(char()) != "" {
		at += step
	}
	return at
}

// recall shows another line of the history, or the line itself behind the last.
func (t *typing) recall(step int) {
	next := t.place + step
	if next < 0 || next > len(t.history) {
		return
	}
	if t.place == len(t.history) {
		t.own = t.line
	}
	if t.place = next; next == len(t.history) {
		t.line = t.own
	} else {
		t.line = slices.Clone(t.history[next])
	}
	t.at = len(t.line)
}

// shown is how a character looks in the line: it has one line on the screen, which
// wraps.
func shown(char string) string {
	switch char {
	case "\n", "\r\n":
		return "↵"
	case "\t":
		return " "
	}
	return char
}

// label is what stands in front of the line.
func (t *typing) label() string {
	if t.searches {
		return fmt.Sprintf("(search %q) ", t.sought)
	}
	return prompt
}

// draw draws the line anew and puts the cursor where it belongs.
func (t *typing) draw() {
	var s strings.Builder
	s.WriteString("\r")
	if !t.plain {
		if t.row > 0 {
			fmt.Fprintf(&s, "\x1b[%dA", t.row)
		}
		s.WriteString("\x1b[J")
	}
	row, column, cursorRow, cursorColumn := 0, 0, 0, 0
	for _, char := range characters(t.label()) {
		width := uniseg.StringWidth(char)
		if column+width > t.columns {
			row, column = row+1, 0
		}
		s.WriteString(char)
		column += width
	}
	for i, char := range t.line {
		width := uniseg.StringWidth(shown(char))
		if column+width > t.columns { // a wide one is not cut in two
			row, column = row+1, 0
		}
		if i == t.at {
			cursorRow, cursorColumn = row, column
		}
		s.WriteString(shown(char))
		column += width
	}
	if column == t.columns { // the terminal waits for more before it wraps
		s.WriteString("\r\n")
		row, column = row+1, 0
	}
	if t.plain {
		s.WriteString(" \b") // where a character was taken away
	}
	if t.at == len(t.line) {
		cursorRow = row
	} else if !t.plain {
		s.WriteString("\r")
		if row > cursorRow {
			fmt.Fprintf(&s, "\x1b[%dA", row-cursorRow)
		}
		if cursorColumn > 0 {
			fmt.Fprintf(&s, "\x1b[%dC", cursorColumn)
		}
	}
	t.row = cursorRow
	io.WriteString(t.out, s.String())
}
