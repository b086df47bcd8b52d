package template

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Text is a string that knows which of its bytes were typed by somebody and which
// the template wrote. The zero value is empty.
type Text struct {
	s    string
	from string // (len(s),) fromTyped or fromTemplate; "" = all by the template

	// escaped tells that the text is HTML, as the filters safe and escape give it:
	// what is added to it gets its <, > and & escaped.
	escaped bool
}

const (
	fromTemplate = '.'
	fromTyped    = 't'
)

// Own is a text that counts as the template's.
func Own(s string) Text { return Text{s: s} }

// Typed is a text that somebody typed.
func Typed(s string) Text { return Text{s: s, from: strings.Repeat(string(fromTyped), len(s))} }

// String is the text alone.
func (t Text) String() string { return t.s }

// Len is the number of bytes.
func (t Text) Len() int { return len(t.s) }

// Typed reports whether any of the bytes from start to end was typed.
func (t Text) Typed(start, end int) bool {
	return t.from != "" && strings.IndexByte(t.from[start:end], fromTyped) >= 0
}

// Slice is the part of the text from byte start to byte end.
func (t Text) Slice(start, end int) Text {
	if t.from == "" {
		return Text{s: t.s[start:end], escaped: t.escaped}
	}
	return Text{t.s[start:end], t.from[start:end], t.escaped}
}

func (t Text) rest(start int) Text { return t.Slice(start, len(t.s)) }

// like is s with the origin of t's first byte.
func (t Text) like(s string) Text {
	if t.Typed(0, min(1, len(t.s))) {
		return Typed(s)
	}
	return Own(s)
}

// each maps the runes of a text; what replaces one has its origin.
func (t Text) each(f func(r rune) string) Text {
	var b textBuilder
	for i, r := range t.s {
		_, n := utf8.DecodeRuneInString(t.s[i:])
		if r == utf8.RuneError && n == 1 {
			b.add(t.Slice(i, i+1))
			continue
		}
		b.add(t.Slice(i, i+n).like(f(r)))
	}
	return b.text()
}

func (t Text) trim(cut func(rune) bool, left, right bool) Text {
	start, end := 0, len(t.s)
	if left {
		start = len(t.s) - len(strings.TrimLeftFunc(t.s, cut))
	}
	if right {
		end = max(start, len(strings.TrimRightFunc(t.s, cut)))
	}
	return t.Slice(start, end)
}

// isSpace is Python's str.isspace of one character.
func isSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1c && r <= 0x1f }

// split cuts at sep at most n times, from the right if right; n < 0 = always.
func (t Text) split(sep string, n int, right bool) []Text {
	var parts []Text
	if right {
		for ; n != 0; n-- {
			at := strings.LastIndex(t.s, sep)
			if at < 0 {
				break
			}
			parts = append(parts, t.rest(at+len(sep)))
			t = t.Slice(0, at)
		}
		parts = append(parts, t)
		for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
			parts[i], parts[j] = parts[j], parts[i]
		}
		return parts
	}
	for ; n != 0; n-- {
		at := strings.Index(t.s, sep)
		if at < 0 {
			break
		}
		parts = append(parts, t.Slice(0, at))
		t = t.rest(at + len(sep))
	}
	return append(parts, t)
}

// fields cuts at white space at most n times; n < 0 = always.
func (t Text) fields(n int) []Text {
	var parts []Text
	for t = t.trim(isSpace, true, false); t.s != ""; t = t.trim(isSpace, true, false) {
		end := strings.IndexFunc(t.s, isSpace)
		if n == 0 || end < 0 {
			return append(parts, t)
		}
		parts = append(parts, t.Slice(0, end))
		t = t.rest(end)
		n--
	}
	return parts
}

// lines is Python's str.splitlines.
func (t Text) lines(keepEnds bool) []Text {
	var parts []Text
	for t.s != "" {
		end := strings.IndexFunc(t.s, isLineEnd)
		if end < 0 {
			return append(parts, t)
		}
		_, n := utf8.DecodeRuneInString(t.s[end:])
		if strings.HasPrefix(t.s[end:], "\r\n") {
			n = 2
		}
		if keepEnds {
			parts = append(parts, t.Slice(0, end+n))
		} else {
			parts = append(parts, t.Slice(0, end))
		}
		t = t.rest(end + n)
	}
	return parts
}

func isLineEnd(r rune) bool {
	return r >= '\n' && r <= '\r' || r >= 0x1c && r <= 0x1e || r == 0x85 || r == 0x2028 || r == 0x2029
}

// replace puts by in place of old, at most n times; n < 0 = always.
func (t Text) replace(old string, by Text, n int) Text {
	var b textBuilder
	if old == "" { // between all characters, and at both ends
		for i := range t.s {
			if n == 0 {
				b.add(t.rest(i))
				return b.text()
			}
			b.add(by)
			n--
			_, size := utf8.DecodeRuneInString(t.s[i:])
			b.add(t.Slice(i, i+size))
		}
		if n != 0 {
			b.add(by)
		}
		return b.text()
	}
	for i, part := range t.split(old, n, false) {
		if i > 0 {
			b.add(by)
		}
		b.add(part)
	}
	return b.text()
}

// textBuilder puts texts together. It refuses to grow beyond maxOutput.
type textBuilder struct {
	s, from strings.Builder
	typed   bool // from is in use
}

func (b *textBuilder) add(t Text) {
	if b.s.Len()+len(t.s) > maxOutput {
		fail("the text is longer than %d MiB", maxOutput>>20)
	}
	if t.from != "" && !b.typed {
		b.typed = true
		b.from.WriteString(strings.Repeat(string(fromTemplate), b.s.Len()))
	}
	b.s.WriteString(t.s)
	switch {
	case t.from != "":
		b.from.WriteString(t.from)
	case b.typed:
		b.from.WriteString(strings.Repeat(string(fromTemplate), len(t.s)))
	}
}

func (b *textBuilder) own(s string) { b.add(Text{s: s}) }

func (b *textBuilder) text() Text { return Text{s: b.s.String(), from: b.from.String()} }

// Join is the texts one behind the other.
func Join(texts ...Text) Text {
	var b textBuilder
	for _, t := range texts {
		b.add(t)
	}
	return b.text()
}
