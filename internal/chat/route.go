package chat

import (
	"fmt"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// When says at which questions a session chooses the layers to skip.
type When string

// When a session chooses.
const (
	EachTurn When = "turn" // at every one, if a change is worth decoding the conversation again
	EachChat When = "chat" // at a conversation's first; it stays with that
	Never    When = "off"
)

// ParseWhen reads "turn", "chat" or "off".
func ParseWhen(text string) (When, error) {
	switch w := When(text); w {
	case EachTurn, EachChat, Never:
		return w, nil
	}
	return "", fmt.Errorf("route is %q, want turn, chat or off", text)
}

// Routing lets a session choose the layers to skip by what is asked.
type Routing struct {
	Profile *router.Profile // open for the session's model; the session does not close it
	Policy  router.Policy
	When    When // "" = EachTurn

	// Escalate is the cascade's threshold for masks that are chosen, in place of
	// [Options].Escalate: what the profile's calibration found. 0 = that of the options.
	Escalate float64
}

// Routed is what was chosen for an answer, and why.
type Routed struct {
	router.Decision
	Kept   bool   // the conversation's mask stays, though this question alone had another
	Reason string // one sentence
}

// expectedAnswer is how many tokens an answer is expected to have where no
// bound is set, for weighing a change of masks.
const expectedAnswer = 128

// route chooses the mask for the newest question of a conversation that is
// prompt in tokens. nil: nothing is chosen, the session's mask is as it was set.
func (s *Session) route(prompt []llama.Token) (*Routed, error) {
	r := s.opts.Routing
	if r == nil || r.When == Never || s.fixed {
		return nil, nil
	}
	if r.When == EachChat && s.routed != nil && len(s.messages) > 1 {
		return &Routed{s.routed.Decision, true, "the conversation stays with its first choice"}, nil
	}
	x, err := router.NewPrompt(s.model, s.messages[len(s.messages)-1].Content)
	if err != nil {
		return nil, err
	}
	if s.drafter != nil && len(r.Profile.Drafts) > 0 {
		return nil, s.drafter.route(r.Profile, x)
	}
	next, err := r.Profile.Choose(x, r.Policy)
	if err != nil {
		return nil, err
	}
	if s.escalate() > 0 {
		if err := checkCascade(next.Mask, s.opts.Prefill); err != nil {
			return nil, err
		}
	}
	routed := &Routed{Decision: next, Reason: next.Reason}
	if s.routed != nil && s.opts.Prefill == skip.MaskedPrefill {
		expected := expectedAnswer
		if s.opts.MaxTokens > 0 {
			expected = min(expected, s.opts.MaxTokens)
		}
		move, reason := router.Switch(s.routed.Decision, next, s.shared(prompt), expected, router.CostModel{Layers: s.model.NLayer})
		if !move && next.Mask != s.routed.Mask {
			return &Routed{s.routed.Decision, true, reason}, nil
		}
	}
	s.mask, s.routed = next.Mask, routed
	return routed, nil
}

// escalate is the cascade's threshold for the next answer; 0 = no cascade.
func (s *Session) escalate() float64 {
	if s.drafter != nil {
		return 0 // the whole model decides every token
	}
	if !s.fixed && s.opts.Routing != nil && s.opts.Routing.Escalate > 0 {
		return s.opts.Routing.Escalate
	}
	return s.opts.Escalate
}

// shared is how many tokens of prompt are in the KV cache, under any mask.
func (s *Session) shared(prompt []llama.Token) (n int) {
	for n < min(len(s.cached), len(prompt)) && s.cached[n] == prompt[n] {
		n++
	}
	return n
}
