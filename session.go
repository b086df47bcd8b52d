package gallop

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// Session is a conversation that is kept for you. It belongs to one goroutine; its engine is
// shared with all others.
type Session struct {
	engine  *Engine
	base    Request
	turns   []Message
	opening string // the first question; "" = there was none
}

// NewSession begins a conversation whose questions are answered as r says. r's messages come
// first in it, as a system prompt does; they stay when turns are forgotten.
func (e *Engine) NewSession(r Request) *Session { return &Session{engine: e, base: r} }

// Ask answers text as the conversation's next turn; see [Engine.Stream]. When ctx ends or the
// loop is left, the answer so far is kept; after an error, or where there is none, the
// conversation is as it was before.
func (s *Session) Ask(ctx context.Context, text string) iter.Seq2[Delta, error] {
	return func(yield func(Delta, error) bool) {
		if strings.TrimSpace(text) == "" {
			yield(Delta{}, fmt.Errorf("%w: the question is empty: write something to answer", ErrRequest))
			return
		}
		r := s.base
		r.Messages = append(s.Messages(), Message{Role: "user", Content: text})
		r.pinned, r.opening = len(s.base.Messages), s.opening
		said := ""
		var last *Answer
		for d, err := range s.engine.Stream(ctx, r) {
			said += d.Text
			if d.Answer != nil {
				last = d.Answer
				if err == nil || last.Finish == FinishCancelled {
					s.keep(text, last.Text, last.Forgotten)
				}
			}
			if !yield(d, err) {
				break
			}
		}
		if last == nil {
			s.keep(text, said, 0)
		}
	}
}

// keep appends a question and its answer, and drops the turns that were forgotten for it.
func (s *Session) keep(question, answer string, forgotten int) {
	if answer == "" {
		return
	}
	if s.opening == "" {
		s.opening = question
	}
	s.turns = append(slices.Clone(s.turns[min(forgotten, len(s.turns)):]),
		Message{Role: "user", Content: question}, Message{Role: "assistant", Content: answer})
}

// Messages is the conversation so far.
func (s *Session) Messages() []Message { return append(slices.Clone(s.base.Messages), s.turns...) }

// Turns counts the messages since the conversation's beginning that are still known.
func (s *Session) Turns() int { return len(s.turns) }

// Reset forgets what was said. What was said in another conversation may take its place.
func (s *Session) Reset(earlier ...Message) {
	s.turns, s.opening = slices.Clone(earlier), ""
	if i := slices.IndexFunc(earlier, func(m Message) bool { return m.Role == "user" }); i >= 0 {
		s.opening = earlier[i].Content
	}
}

// Request is how the next questions are answered; it may be changed between them.
func (s *Session) Request() *Request { return &s.base }
