package server

import (
	"strings"
	"unicode"

	"github.com/gallop-llm/gallop/internal/server/wire"
)

// plain is the splitter of answers that are text and nothing else.
type plain struct{}

func (plain) Add(text string) []wire.Piece {
	if text == "" {
		return nil
	}
	return []wire.Piece{{Text: text}}
}

func (plain) End() []wire.Piece { return nil }

// thinkTags enclose what models think before they answer.
var thinkTags = [][2]string{{"<think>", "</think>"}, {"[THINK]", "[/THINK]"}, {"<seed:think>", "</seed:think>"}}

// tagsOf finds the tags in a chat template. Text that looks like them is left alone in the
// answers of models whose templates do not know them.
func tagsOf(template string) (tags [2]string, ok bool) {
	for _, tags := range thinkTags {
		if strings.Contains(template, tags[1]) {
			return tags, true
		}
	}
	return tags, false
}

// thinking takes what the model thinks out of an answer. What follows goes to another splitter.
type thinking struct {
	tags  [2]string
	after Splitter
	state thinkState
	begun bool   // some of the thought was given
	held  string // that may be the begin of a tag, or space at the end of a part
}

type thinkState int

const (
	beforeThought thinkState = iota // nothing but space has come
	inThought
	afterThought // nothing but space has come since
	inAnswer
)

// newThinking begins inside of the thought where the prompt has opened it.
func newThinking(tags [2]string, open bool, after Splitter) *thinking {
	t := &thinking{tags: tags, after: after}
	if open {
		t.state = inThought
	}
	return t
}

func (t *thinking) Add(text string) (pieces []wire.Piece) {
	t.held += text
	for {
		switch t.state {
		case beforeThought:
			rest := strings.TrimLeftFunc(t.held, unicode.IsSpace)
			switch {
			case strings.HasPrefix(rest, t.tags[0]):
				t.held, t.state = rest[len(t.tags[0]):], inThought
				continue
			case strings.HasPrefix(t.tags[0], rest): // not known yet
				return pieces
			}
			t.state = inAnswer
		case inThought:
			thought, rest, closed := strings.Cut(t.held, t.tags[1])
			if !closed {
				// Space at the end waits too: it may be the one in front of the tag.
				keep := len(strings.TrimRightFunc(t.held[:len(t.held)-overlap(t.held, t.tags[1])], unicode.IsSpace))
				thought, t.held = t.held[:keep], t.held[keep:]
			} else {
				thought, t.held, t.state = strings.TrimRightFunc(thought, unicode.IsSpace), rest, afterThought
			}
			pieces = append(pieces, t.think(thought)...)
			if !closed {
				return pieces
			}
		case afterThought:
			if t.held = strings.TrimLeftFunc(t.held, unicode.IsSpace); t.held == "" {
				return pieces
			}
			t.state = inAnswer
		case inAnswer:
			text, t.held = t.held, ""
			return append(pieces, t.after.Add(text)...)
		}
	}
}

// think is a part of the thought, without the space that it begins with.
func (t *thinking) think(text string) []wire.Piece {
	if !t.begun {
		text = strings.TrimLeftFunc(text, unicode.IsSpace)
	}
	if text == "" {
		return nil
	}
	t.begun = true
	return []wire.Piece{{Reasoning: text}}
}

func (t *thinking) End() (pieces []wire.Piece) {
	switch t.state {
	case inThought:
		pieces = t.think(strings.TrimRightFunc(t.held, unicode.IsSpace))
	case beforeThought:
		pieces = t.after.Add(t.held)
	}
	t.held = ""
	return append(pieces, t.after.End()...)
}

// overlap is the length of the longest end of text that tag begins with.
func overlap(text, tag string) int {
	for n := min(len(tag)-1, len(text)); n > 0; n-- {
		if strings.HasSuffix(text, tag[:n]) {
			return n
		}
	}
	return 0
}
