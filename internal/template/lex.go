package template

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

type tokenKind int

const (
	dataToken tokenKind = iota
	variableBegin
	variableEnd
	blockBegin
	blockEnd
	nameToken
	stringToken
	integerToken
	floatToken
	operatorToken
	endToken
)

// token is a piece of a template's source.
type token struct {
	kind tokenKind
	text string // decoded, of a string
	line int    // from 1
}

func (t token) String() string {
	switch t.kind {
	case variableEnd:
		return "}}"
	case blockEnd:
		return "%}"
	case endToken:
		return "the template's end"
	case dataToken, variableBegin, blockBegin:
		return "text"
	}
	return strconv.Quote(t.text)
}

var (
	newline    = regexp.MustCompile(`\r\n|\r`)
	rawBegin   = regexp.MustCompile(`^\{%[-+]?\s*raw\s*(?:-%\}\s*|%\})`)
	rawEnd     = regexp.MustCompile(`\{%([-+]?)\s*endraw\s*(?:\+%\}|-%\}\s*|%\}\n?)`)
	commentEnd = regexp.MustCompile(`\+#\}|-#\}\s*|#\}\n?`)
	varEnd     = regexp.MustCompile(`^(?:-\}\}\s*|\}\})`)
	tagEnd     = regexp.MustCompile(`^(?:\+%\}|-%\}\s*|%\}\n?)`)
	spaces     = regexp.MustCompile(`^\s+`)
	float      = regexp.MustCompile(`^(?:\d+_)*\d+(?:(?:\.(?:\d+_)*\d+)?[eE][+-]?(?:\d+_)*\d+|\.(?:\d+_)*\d+)`)
	integer    = regexp.MustCompile(`^(?:0[bB](?:_?[0-1])+|0[oO](?:_?[0-7])+|0[xX](?:_?[\da-fA-F])+|[1-9](?:_?\d)*|0(?:_?0)*)`)
	identifier = regexp.MustCompile(`^[\p{L}_][\p{L}\p{N}_]*`)
	quoted     = regexp.MustCompile(`(?s)^(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")`)
	operator   = regexp.MustCompile(`^(?://|\*\*|==|!=|>=|<=|[-+/*%~\[\](){}><=.:|,;])`)
)

// lexer cuts a template's source into tokens.
type lexer struct {
	src          string
	pos          int
	line         int  // of pos
	lineStarting bool // what came before pos ends its line
	tokens       []token
}

func lex(src string) ([]token, error) {
	src = strings.TrimSuffix(newline.ReplaceAllString(src, "\n"), "\n")
	l := &lexer{src: src, line: 1, lineStarting: true}
	for l.pos < len(src) {
		if err := l.next(); err != nil {
			return nil, &Error{Line: l.line, Message: err.Error()}
		}
	}
	l.emit(endToken, "")
	return l.tokens, nil
}

func (l *lexer) emit(kind tokenKind, text string) {
	l.tokens = append(l.tokens, token{kind, text, l.line})
}

// advance goes n bytes on.
func (l *lexer) advance(n int) string {
	part := l.src[l.pos : l.pos+n]
	l.line += strings.Count(part, "\n")
	l.pos += n
	if n > 0 {
		l.lineStarting = part[n-1] == '\n'
	}
	return part
}

// next reads text up to a tag, and the tag.
func (l *lexer) next() error {
	rest := l.src[l.pos:]
	at := 0
	for {
		i := strings.IndexByte(rest[at:], '{')
		if i < 0 || at+i+1 >= len(rest) {
			l.data(rest, 0, false)
			return nil
		}
		if at += i; strings.IndexByte("{%#", rest[at+1]) >= 0 {
			break
		}
		at++
	}
	var sign byte
	if at+2 < len(rest) {
		sign = rest[at+2]
	}
	tag := rest[at+1]
	l.data(rest[:at], sign, tag != '{')
	rest = rest[at:]
	open := 2
	if sign == '-' || sign == '+' {
		open = 3
	}
	switch {
	case tag == '#':
		end := commentEnd.FindStringIndex(rest[open:])
		if end == nil {
			return fmt.Errorf("a comment without end")
		}
		l.advance(open + end[1])
		return nil
	case tag == '%':
		if begin := rawBegin.FindString(rest); begin != "" {
			return l.raw(begin)
		}
		l.emit(blockBegin, "")
		l.advance(open)
		return l.expression(tagEnd, blockEnd)
	}
	l.emit(variableBegin, "")
	l.advance(open)
	return l.expression(varEnd, variableEnd)
}

// data is text in front of a tag with this sign; lstrip tells that the tag takes
// the indentation in front of it away.
func (l *lexer) data(text string, sign byte, lstrip bool) {
	kept := text
	switch {
	case sign == '-':
		kept = strings.TrimRightFunc(text, isSpace)
	case sign != '+' && lstrip:
		start := strings.LastIndexByte(text, '\n') + 1
		if (start > 0 || l.lineStarting) && strings.TrimLeftFunc(text[start:], isSpace) == "" {
			kept = text[:start]
		}
	}
	if kept != "" {
		l.emit(dataToken, kept)
	}
	starting := l.lineStarting
	l.advance(len(text))
	if text == "" {
		l.lineStarting = starting
	}
}

func (l *lexer) raw(begin string) error {
	l.advance(len(begin))
	end := rawEnd.FindStringSubmatchIndex(l.src[l.pos:])
	if end == nil {
		return fmt.Errorf("raw without endraw")
	}
	text := l.src[l.pos : l.pos+end[0]]
	var sign byte
	if end[2] < end[3] {
		sign = l.src[l.pos+end[2]]
	}
	l.data(text, sign, true)
	l.advance(end[1] - end[0])
	return nil
}

// expression reads the tokens of a tag.
func (l *lexer) expression(end *regexp.Regexp, kind tokenKind) error {
	var open []byte // brackets
	for l.pos < len(l.src) {
		rest := l.src[l.pos:]
		if len(open) == 0 {
			if m := end.FindString(rest); m != "" {
				l.emit(kind, "")
				l.advance(len(m))
				return nil
			}
		}
		if m := spaces.FindString(rest); m != "" {
			l.advance(len(m))
			continue
		}
		if m := float.FindString(rest); m != "" && (l.pos == 0 || l.src[l.pos-1] != '.') {
			l.emit(floatToken, strings.ReplaceAll(m, "_", ""))
			l.advance(len(m))
			continue
		}
		if m := integer.FindString(rest); m != "" {
			l.emit(integerToken, strings.ReplaceAll(m, "_", ""))
			l.advance(len(m))
			continue
		}
		if m := identifier.FindString(rest); m != "" {
			l.emit(nameToken, m)
			l.advance(len(m))
			continue
		}
		if m := quoted.FindString(rest); m != "" {
			l.emit(stringToken, unescape(m[1:len(m)-1]))
			l.advance(len(m))
			continue
		}
		m := operator.FindString(rest)
		if m == "" {
			r, _ := utf8.DecodeRuneInString(rest)
			return fmt.Errorf("unexpected %q", r)
		}
		switch m {
		case "(", "[", "{":
			open = append(open, m[0])
		case ")", "]", "}":
			if len(open) == 0 || open[len(open)-1] != map[string]byte{")": '(', "]": '[', "}": '{'}[m] {
				return fmt.Errorf("unexpected %q", m)
			}
			open = open[:len(open)-1]
		}
		l.emit(operatorToken, m)
		l.advance(len(m))
	}
	return fmt.Errorf("a tag without end")
}

// unescape decodes Python's string escapes; unknown ones stay as they are.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		if at := strings.IndexByte("abfnrtv\\'\"", s[i]); at >= 0 {
			b.WriteByte("\a\b\f\n\r\t\v\\'\""[at])
			continue
		}
		digits, base := 0, 16
		switch s[i] {
		case '\n':
			continue
		case 'x':
			digits = 2
		case 'u':
			digits = 4
		case 'U':
			digits = 8
		case '0', '1', '2', '3', '4', '5', '6', '7':
			i--
			base = 8
			for digits < 3 && i+1+digits < len(s) && s[i+1+digits] >= '0' && s[i+1+digits] <= '7' {
				digits++
			}
		}
		if digits > 0 && i+1+digits <= len(s) {
			if code, err := strconv.ParseUint(s[i+1:i+1+digits], base, 32); err == nil {
				b.WriteRune(rune(code))
				i += digits
				continue
			}
		}
		b.WriteByte('\\')
		b.WriteByte(s[i])
	}
	return b.String()
}
