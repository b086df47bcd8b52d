package tools

import (
	"regexp"
	"strings"
)

// recipient and channel are parts of the header of gpt-oss's messages.
var (
	recipient = regexp.MustCompile(`to=([^\s<]+)`)
	channel   = regexp.MustCompile(`<\|channel\|>\s*(\w+)`)
)

const maxHeader = 512 // bytes

// messages reads an answer of gpt-oss: messages with a channel each, the first of
// which began in the prompt.
func (s *scanner) messages() {
	thought := false
	for begun := true; s.more(); {
		s.advance()
		inside := s.skip(harmonyStart)
		if inside || s.has(harmonyChannel) || begun && s.has(" to=") {
			begun = false
			header, _, ok := s.until(maxHeader, harmonyMessage)
			if !ok {
				s.plain()
				continue
			}
			to, in := first(recipient, header), first(channel, header)
			name, isCall := strings.CutPrefix(to, "functions.")
			if isCall && s.calls && functionName.MatchString(name) {
				s.skipSpace()
				ok, began := s.arguments(name, "")
				if !ok && !began {
					s.plain()
				}
				s.skipSpace()
				s.skip(harmonyCall)
				continue
			}
			kind := Content
			if in == "analysis" || to != "" && !isCall {
				kind = Reasoning
			}
			s.paragraph(kind, &thought)
			continue
		}
		if begun && isSpace(s.peek()) {
			s.pos++ // before the first header, or a text without one
			s.held += string(s.in[s.pos-1])
			continue
		}
		begun = false
		s.text(Content, s.messageEnd)
	}
}

// first is the first group of a match, "" for none.
func first(re *regexp.Regexp, text string) string {
	if m := re.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return ""
}

// paragraph reads a message's text, apart from what came before.
func (s *scanner) paragraph(kind Kind, thought *bool) {
	s.skipSpace()
	switch {
	case kind == Content && s.said:
		s.held = "\n\n"
	case kind == Content:
		s.held = ""
	case *thought:
		s.emit(Event{Kind: Reasoning, Text: "\n\n"})
	default:
		*thought = true
	}
	s.text(kind, s.messageEnd)
}

// messageEnd reads a message's end, or stands before the next one.
func (s *scanner) messageEnd() bool {
	return s.skip(harmonyEnd) || s.skip(harmonyReturn) || s.skip(harmonyCall) || s.has(harmonyStart)
}

// plain makes content of what was read, which turned out to be no message. Where the answer
// was cut off, it may have become one, and is dropped.
func (s *scanner) plain() {
	if s.brokeOff() {
		return
	}
	for _, r := range s.since(s.mark) {
		s.content(string(r))
	}
	s.advance()
}
