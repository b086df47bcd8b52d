package tools

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
)

// gemmaCall reads call:name{key:value,…} behind its mark.
func (s *scanner) gemmaCall() bool {
	s.skipSpace()
	if !s.skip("call:") {
		return false
	}
	start := s.pos
	for s.more() && s.in[s.pos] != '{' && s.pos-start <= maxName {
		s.pos++
	}
	name := strings.TrimSpace(string(s.in[start:s.pos]))
	if s.peek() != '{' || !functionName.MatchString(name) {
		return false
	}
	s.start(name, "")
	s.finish(s.gemmaValue(s.argument, 0))
	s.closing()
	return true
}

// gemmaValue reads a value whose strings have marks around them, and hands it on as
// JSON.
func (s *scanner) gemmaValue(out func(string), depth int) bool {
	if depth > maxDepth {
		return false
	}
	b := s.peek()
	switch {
	case s.has(s.f.quote):
		return s.gemmaString(out)
	case b == '{' || b == '[':
		s.pos++
		closing := string(b + 2)
		out(string(b))
		for n := 0; ; n++ {
			if s.skipSpace(); s.skip(closing) {
				out(closing)
				return true
			}
			if n > 0 {
				if !s.skip(",") {
					return false
				}
				out(", ")
				s.skipSpace()
			}
			if b == '{' {
				if s.has(s.f.quote) {
					if !s.gemmaString(out) {
						return false
					}
				} else {
					key, _, ok := s.until(maxName, ":")
					if !ok {
						return false
					}
					s.pos--
					out(quoted(strings.TrimSpace(key)))
				}
				if s.skipSpace(); !s.skip(":") {
					return false
				}
				out(": ")
				s.skipSpace()
			}
			if !s.gemmaValue(out, depth+1) {
				return false
			}
		}
	}
	start := s.pos
	for s.more() && !strings.ContainsRune(",}]\n", rune(s.in[s.pos])) {
		s.pos++
	}
	word := strings.TrimSpace(string(s.in[start:s.pos]))
	if word == "" || !s.more() {
		return false
	}
	out(literal(word))
	return true
}

func (s *scanner) gemmaString(out func(string)) bool {
	s.skip(s.f.quote)
	out(`"`)
	for s.more() {
		if s.skip(s.f.quote) {
			out(`"`)
			return true
		}
		if s.brokeOff() {
			return false
		}
		text := quoted(s.rune())
		out(text[1 : len(text)-1])
	}
	return false
}

// literal is a word as JSON: what JSON or Python knows, or else a string.
func literal(word string) string {
	if json.Valid([]byte(word)) {
		return word
	}
	p := &python{in: word}
	if value, ok := p.value(0); ok && p.in == "" {
		return value
	}
	return quoted(word)
}

// python reads a literal of Python, as templates write that know no JSON.
type python struct{ in string }

func (p *python) skip(text string) (ok bool) {
	p.in, ok = strings.CutPrefix(p.in, text)
	return ok
}

func (p *python) space() { p.in = strings.TrimLeft(p.in, " \n\t\r") }

// value gives the next literal as JSON.
func (p *python) value(depth int) (string, bool) {
	for _, word := range []string{"True", "False", "None"} {
		if p.skip(word) {
			return map[string]string{"True": "true", "False": "false", "None": "null"}[word], true
		}
	}
	switch {
	case p.in == "" || depth > maxDepth:
		return "", false
	case p.in[0] == '\'' || p.in[0] == '"':
		text, ok := p.string()
		return quoted(text), ok
	case p.in[0] == '{' || p.in[0] == '[':
		open := p.in[0]
		p.in = p.in[1:]
		closing := string(open + 2) // in ASCII, of both
		var b strings.Builder
		for n := 0; ; n++ {
			if p.space(); p.skip(closing) {
				return string(open) + b.String() + closing, true
			}
			if n > 0 && !p.skip(",") {
				return "", false
			}
			p.space()
			b.WriteString(separator(n))
			if open == '{' {
				key, ok := p.string()
				if p.space(); !ok || !p.skip(":") {
					return "", false
				}
				p.space()
				b.WriteString(quoted(key) + ": ")
			}
			value, ok := p.value(depth + 1)
			if !ok {
				return "", false
			}
			b.WriteString(value)
		}
	}
	n := strings.IndexAny(p.in+",", ",]}) \n")
	word := p.in[:n]
	p.in = p.in[n:]
	return word, json.Valid([]byte(word))
}

// call reads name(key=value, …).
func (p *python) call() (c Call, ok bool) {
	if c.Name, p.in, ok = strings.Cut(p.in, "("); !ok || !functionName.MatchString(c.Name) {
		return c, false
	}
	var b strings.Builder
	for n := 0; ; n++ {
		if p.space(); p.skip(")") {
			c.Arguments = "{" + b.String() + "}"
			return c, true
		}
		if n > 0 && !p.skip(",") {
			return c, false
		}
		p.space()
		key, rest, found := strings.Cut(p.in, "=")
		p.in = rest
		p.space()
		value, ok := p.value(0)
		if !found || !ok {
			return c, false
		}
		b.WriteString(separator(n) + quoted(strings.TrimSpace(key)) + ": " + value)
	}
}

// string reads a text in quotes of either kind.
func (p *python) string() (string, bool) {
	if p.in == "" || p.in[0] != '\'' && p.in[0] != '"' {
		return "", false
	}
	quote := rune(p.in[0])
	var b strings.Builder
	escaped, skip, half := false, 0, rune(0)
	for i, r := range p.in[1:] {
		switch {
		case skip > 0:
			skip--
		case escaped:
			escaped = false
			if at := strings.IndexRune("ntrbf", r); at >= 0 {
				r = rune("\n\t\r\b\f"[at])
			} else if width := map[rune]int{'x': 2, 'u': 4, 'U': 8}[r]; width > 0 {
				code, err := strconv.ParseUint(p.in[min(i+2, len(p.in)):min(i+2+width, len(p.in))], 16, 32)
				if err != nil {
					return "", false
				}
				r, skip = rune(code), width
				if utf16.IsSurrogate(r) { // the halves of a pair come one behind the other
					if half != 0 {
						r = utf16.DecodeRune(half, r)
						half = 0
					} else {
						half = r
						continue
					}
				}
			} else if !strings.ContainsRune(`\'"/`, r) {
				b.WriteRune('\\')
			}
			b.WriteRune(r)
		case r == '\\':
			escaped = true
		case r == quote:
			p.in = p.in[i+2:]
			return b.String(), true
		default:
			b.WriteRune(r)
		}
	}
	return "", false
}

// taggedCall reads a name, and a tag for each argument.
func (s *scanner) taggedCall(mark string) bool {
	tags := s.f.tags
	s.skipSpace()
	if s.peek() == '{' || s.peek() == '[' { // as models of older formats do
		if !s.list(false) {
			return false
		}
		s.closing()
		return true
	}
	ends := []string{"\n", tags.Open, s.f.end}
	if strings.Contains(s.f.begin, "<function=") {
		if mark != "<function=" && !s.skip("<function=") {
			return false
		}
		ends = []string{">"}
	}
	name, end, ok := s.until(maxName, ends...)
	if name = strings.TrimSpace(name); !ok || !functionName.MatchString(name) {
		return false
	}
	if end != "\n" && end != ">" {
		s.pos -= len(end)
	}
	types := propertyTypes(s.offered(name))
	s.start(name, "")
	s.argument("{")
	named, closeTag := strings.TrimSpace(tags.Named), strings.TrimSpace(tags.Close)
	betweenTags := ""
	if i := strings.IndexByte(named[:len(named)-1], '>'); i >= 0 { // glm closes one tag and opens another
		named, betweenTags = named[:i+1], strings.TrimSpace(named[i+1:])
	}
	for n := 0; ; n++ {
		s.skipSpace()
		if !s.skip(tags.Open) {
			break
		}
		key, _, ok := s.until(maxName, named)
		if betweenTags != "" && ok {
			s.skipSpace()
			ok = s.skip(betweenTags)
		}
		if !ok {
			s.finish(false)
			return true
		}
		key = strings.TrimSpace(key)
		s.argument(separator(n) + quoted(key) + ": ")
		if !s.taggedValue(closeTag, types[key]) {
			s.finish(false)
			return true
		}
	}
	ok = false
	for _, part := range strings.FieldsFunc(s.f.end, func(r rune) bool { return r == '\n' }) {
		s.skipSpace()
		ok = s.skip(part) || ok
	}
	if ok {
		s.argument("}")
	}
	s.finish(ok)
	return true
}

// taggedValue reads an argument up to its closing tag, and hands it on as JSON: as a
// string if its type is one, as JSON if it is that, as a string else.
func (s *scanner) taggedValue(closeTag string, types []string) bool {
	line := strings.HasSuffix(s.f.tags.Named, "\n")
	if s.peek() == '\r' && line {
		s.pos++
	}
	if line {
		s.skip("\n")
	}
	if len(types) == 1 && types[0] == "string" {
		// The line break before the tag is no part of the string.
		s.argument(`"`)
		held := ""
		for s.more() {
			if s.skip(closeTag) {
				if !line {
					s.argument(held)
				}
				s.argument(`"`)
				return true
			}
			if s.brokeOff() {
				return false
			}
			text := quoted(s.rune())
			text = text[1 : len(text)-1]
			if s.argument(held); text == `\n` {
				held = text
			} else {
				held = ""
				s.argument(text)
			}
		}
		return false
	}
	raw, _, ok := s.until(0, closeTag)
	if !ok {
		return false
	}
	if line {
		raw = strings.TrimSuffix(raw, "\n")
	}
	raw = strings.ToValidUTF8(raw, "\uFFFD")
	word := strings.TrimSpace(raw)
	switch {
	case slices.Contains(types, "string") && !(slices.Contains(types, "null") && (word == "null" || word == "None")), word == "":
		s.argument(quoted(raw))
	default:
		if value := literal(word); strings.HasPrefix(value, `"`) && !strings.HasPrefix(word, `"`) {
			s.argument(quoted(raw))
		} else {
			s.argument(value)
		}
	}
	return true
}

// propertyTypes are the types that a function's parameters may have, by name.
func propertyTypes(fn *Function) map[string][]string {
	types := map[string][]string{}
	if fn == nil {
		return types
	}
	var parameters struct {
		Properties map[string]json.RawMessage `json:"properties"`
	}
	if json.Unmarshal(fn.Parameters, &parameters) != nil {
		return types
	}
	for name, p := range parameters.Properties {
		var is struct {
			Type any `json:"type"`
		}
		if json.Unmarshal(p, &is) != nil {
			continue // true or false
		}
		switch t := is.Type.(type) {
		case string:
			types[name] = []string{t}
		case []any:
			for _, x := range t {
				if s, ok := x.(string); ok {
					types[name] = append(types[name], s)
				}
			}
		}
	}
	return types
}
