package chat

import (
	"cmp"
	"fmt"
	"runtime"
	"sync"
	"time"

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

// NewRouting routes by a profile under a policy; the zero one is the profile's own. A
// quality budget is kept by the calibrated cascade, if there is one for it and prompts
// are decoded in full.
func NewRouting(p *router.Profile, policy router.Policy, prefill skip.Prefill) *Routing {
	r := &Routing{Profile: p, Policy: policy}
	if policy.Depth > 0 || prefill != skip.FullPrefill {
		return r
	}
	if c, ok := p.Defaults.Cascade(cmp.Or(policy.Quality, p.Defaults.Quality)); ok {
		r.Policy, r.Escalate = router.Policy{Depth: c.Depth, Guard: true}, c.Threshold
	}
	return r
}

// DefaultRouting is how chat and run route by a profile unless they are told otherwise;
// nil = not at all: its calibration found that this doesn't pay.
func DefaultRouting(p *router.Profile) *Routing {
	if p.Defaults.Off {
		return nil
	}
	return NewRouting(p, router.Policy{}, p.Defaults.Prefill)
}

// SetRouting makes the session choose by r from the next answer on, with prompts decoded
// as prefill says; while a mask that was set by hand is in use, from [Session.Route] on.
// Between answers only. The profile of before is no longer used.
func (s *Session) SetRouting(r *Routing, prefill skip.Prefill) {
	s.opts.Routing, s.opts.Prefill, s.routed = r, prefill, nil
	s.fixed = s.byHand
	s.idleCore = s.hasIdleCore()
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

// choice is what the router says to the newest question. Making it touches
// nothing of the session, and the profile belongs to it meanwhile.
type choice struct {
	make   func() // fills in the rest; returns when that is there, however often it is called
	beside bool   // a goroutine of its own has begun to

	decision router.Decision
	drafts   []router.Draft // in place of a decision, for lossless answers whose profile has some
	took     time.Duration
	ended    time.Time
	err      error
}

// choose lets the router choose for the newest question, beside what follows if
// there is a core for that, else at [Session.settle]. nil: nothing is chosen anew.
func (s *Session) choose() *choice {
	r := s.opts.Routing
	if r == nil || r.When == Never || s.fixed || s.staysWithFirst() {
		return nil
	}
	question, forDrafts := s.messages[len(s.messages)-1].Content, s.drafter != nil && len(r.Profile.Drafts) > 0
	c := &choice{beside: s.idleCore}
	c.make = sync.OnceFunc(func() {
		start := time.Now()
		c.err = c.ask(s.model, r, question, forDrafts)
		c.ended = time.Now()
		c.took = c.ended.Sub(start)
	})
	if c.beside {
		go c.make()
	}
	return c
}

// ask asks the router.
func (c *choice) ask(m *llama.Model, r *Routing, question string, forDrafts bool) error {
	x, err := router.NewPrompt(m, question)
	if err != nil {
		return err
	}
	if forDrafts {
		c.drafts, err = r.Profile.PredictDrafts(x)
	} else {
		c.decision, err = r.Profile.Choose(x, r.Policy)
	}
	return err
}

// end returns when no goroutine is at work on the choice.
func (c *choice) end() {
	if c != nil && c.beside {
		c.make()
	}
}

// hasIdleCore tells whether there is a core for the router while all threads of
// the prompt's pass are at work. Hidden states are decoded with threads of their own.
func (s *Session) hasIdleCore() bool {
	threads := cmp.Or(s.opts.Context.ThreadsBatch, s.opts.Context.Threads, s.model.DefaultThreads())
	return threads < runtime.GOMAXPROCS(0) && !s.opts.Routing.Profile.Spec.Has(router.Hidden)
}

// staysWithFirst tells whether the conversation keeps the mask of its first question.
func (s *Session) staysWithFirst() bool {
	return s.opts.Routing.When == EachChat && s.routed != nil && len(s.messages) > 1
}

// promptMasked tells whether the prompt is decoded under the answer's mask, which
// has to be known first then.
func (s *Session) promptMasked() bool {
	return s.drafter == nil && s.opts.Prefill == skip.MaskedPrefill
}

// settle waits for a choice and makes it the session's mask, unless the
// conversation's stays. It notes in a what was chosen.
func (s *Session) settle(c *choice, prompt []llama.Token, a *Answer) (err error) {
	if c != nil {
		start := time.Now()
		c.make()
		a.Routing, a.Timing.Waited = c.took, max(c.ended.Sub(start), 0)
	}
	a.Routed, err = s.take(c, prompt)
	a.Mask = s.answerMask()
	return err
}

// take makes what was chosen for the conversation that is prompt in tokens the
// session's mask. nil: nothing was chosen, the session's mask is as it was set.
func (s *Session) take(c *choice, prompt []llama.Token) (*Routed, error) {
	r := s.opts.Routing
	switch {
	case c == nil && r != nil && r.When != Never && !s.fixed:
		return &Routed{s.routed.Decision, true, "the conversation stays with its first choice"}, nil
	case c == nil:
		return nil, nil
	case c.err != nil:
		return nil, c.err
	case c.drafts != nil:
		s.drafter.list(c.drafts)
		return nil, nil
	}
	next := c.decision
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
