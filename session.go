package gallop

import (
	"context"
	"iter"
	"slices"
)

// Session is a conversation that is kept for you. It belongs to one goroutine; its engine is
// shared with all others.
type Session struct {
	engine *Engine
	base   Request
	turns  []Message
}

// NewSession begins a conversation whose questions are answered as r says. r's messages come
// first in it, as a system prompt does; they stay when turns are forgotten.
func (e *Engine) NewSession(r Request) *Session { return &Session{engine: e, base: r} }

// Ask answers text as the conversation's next turn; see [Engine.Stream]. When ctx ends or the
// loop is left, the answer so far is kept; after an error, or where there is none, the
// conversation is as it was before.
func (s *Session) Ask(ctx context.Context, text string) iter.Seq2[Delta, error] {
	return func(yield func(Delta, error) bool) {
		r := s.base
		r.Messages = append(s.Messages(), Message{Role: "user", Content: text})
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
	s.turns = append(slices.Clone(s.turns[min(forgotten, len(s.turns)):]),
		Message{Role: "user", Content: question}, Message{Role: "assistant", Content: answer})
}

// Messages is the conversation so far.
func (s *Session) Messages() []Message { return append(slices.Clone(s.base.Messages), s.turns...) }

// Turns counts the messages since the conversation's beginning that are still known.
func (s *Session) Turns() int { return len(s.turns) }

// Reset forgets what was said. What was said in another conversation may take its place.
func (s *Session) Reset(earlier ...Message) { s.turns = slices.Clone(earlier) }

// Request is how the next questions are answered; it may be changed between them.
func (s *Session) Request() *Request { return &s.base }
