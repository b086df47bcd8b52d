package gallop

import (
	"cmp"
	"fmt"
	"sync"
	"time"

	"github.com/gallop-llm/gallop/internal/neurons"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// plan is how a request is to be answered.
type plan struct {
	mask     skip.Mask // of the answer; the router's choice takes its place
	byHand   bool      // mask is not the router's
	neurons  int       // the share to leave out once the prompt is read, in thousandths; then mask has them
	routes   bool      // the router chooses
	policy   router.Policy
	profile  *sharedProfile // the engine's; nil = none
	prefill  skip.Prefill
	escalate float64
	perChat  bool
	lossless bool
	choice   *Choice
	decision router.Decision

	question  string // that the router chooses for
	later     bool   // it is not the conversation's first
	ownDrafts bool   // the request says what is drafted under, in place of the profile
}

// answerMask is what tokens of the answer are decoded under.
func (p *plan) answerMask() skip.Mask {
	if p.lossless {
		return skip.Mask{}
	}
	return p.mask
}

// promptMasked tells whether the prompt is decoded under the answer's mask, which has to be
// known first then.
func (p *plan) promptMasked() bool { return !p.lossless && p.prefill == skip.MaskedPrefill }

// resolve turns what a request says into a plan. [plan.end] ends its use.
func (e *Engine) resolve(r *Request) (*plan, error) {
	p := &plan{lossless: r.Lossless, profile: e.useProfile()}
	if err := e.fill(p, r); err != nil {
		p.end(e)
		return nil, err
	}
	return p, nil
}

// end says that the plan's profile is not needed any more.
func (p *plan) end(e *Engine) { e.doneWith(p.profile) }

// fill resolves a request into p.
func (e *Engine) fill(p *plan, r *Request) error {
	asked := r.Skip.or(e.opts.Skip)
	p.perChat = asked.perChat
	switch asked.kind {
	case skipDefault, skipRouted:
		p.routes = p.profile != nil && (asked.kind == skipRouted || r.Lossless || !p.profile.Defaults.Off)
	case skipDepth, skipQuality:
		if p.profile == nil {
			return fmt.Errorf("%w: make one with `gallop calibrate -m %s`", ErrNoProfile, e.model.Path)
		}
		p.routes = true
		if asked.kind == skipDepth {
			p.policy.Depth = asked.amount
		} else {
			p.policy.Quality = asked.amount
		}
	case skipLayers:
		p.mask, p.byHand, p.neurons = asked.mask.WithShortlist(0).WithNeurons(0, 0), true, asked.mask.Neurons()
		if err := p.mask.Check(e.model.NLayer); err != nil {
			return err
		}
		if n := asked.mask.Shortlist(); n > 0 && r.Shortlist == 0 {
			r.Shortlist = n
		}
		if p.neurons > 0 {
			if err := e.sparing.check(p.neurons); err != nil {
				return fmt.Errorf("%w: %w", ErrUnskippable, err)
			}
		}
	}
	if d := r.Drafts; r.Lossless && d != nil {
		p.ownDrafts = d.NoMasks || len(d.Masks) > 0
		if d.NoMasks {
			p.routes, p.mask = false, skip.Mask{}
		}
	}
	if p.routes {
		p.prefill = p.profile.Defaults.Prefill
		p.question, p.later = question(e.model, r, p.perChat), turns(r) > 1 || r.opening != ""
	}
	if asked.hasFill {
		p.prefill = asked.prefill
	}
	switch {
	case asked.hasEsc:
		p.escalate = asked.escalate
	case p.routes && !e.opts.ReleaseSkipped:
		p.calibratedEscalation()
	}
	return e.checkPlan(p, asked)
}

// calibratedEscalation keeps a quality budget by the profile's escalation, if it has one for that
// and the prompt is decoded in full.
func (p *plan) calibratedEscalation() {
	if p.policy.Depth > 0 || p.prefill != skip.FullPrefill {
		return
	}
	d := p.profile.Defaults
	if c, ok := d.EscalationFor(cmp.Or(p.policy.Quality, d.Quality)); ok {
		p.policy, p.escalate = router.Policy{Depth: c.Depth, Guard: true}, c.Threshold
	}
}

func (e *Engine) checkPlan(p *plan, asked Skip) error {
	if p.lossless {
		switch {
		case e.opts.ReleaseSkipped:
			return fmt.Errorf("%w: the whole model verifies each draft and would read released weights again each time; leave out one of the two", ErrRequest)
		case p.neurons > 0:
			return fmt.Errorf("%w: drafts leave out layers and halves, not neurons; leave out n%g%%", ErrLossless, float64(p.neurons)*100/skip.NeuronUnits)
		case asked.hasEsc && asked.escalate > 0:
			return fmt.Errorf("%w: escalation and lossless exclude each other: lossless answers are all the whole model's", ErrRequest)
		}
		p.escalate = 0
		return nil
	}
	if e.opts.ReleaseSkipped {
		if p.escalate > 0 {
			return fmt.Errorf("%w: escalation decides single tokens by the whole model, which would read released weights again each time; leave out one of the two", ErrRequest)
		}
	}
	if p.escalate > 0 && p.byHand {
		return checkEscalation(p.mask, p.prefill)
	}
	if p.escalate > 0 && p.routes && p.prefill != skip.FullPrefill {
		return checkEscalation(skip.Mask{}, p.prefill)
	}
	return nil
}

// checkEscalation finds out whether single tokens can be decoded by the whole model between
// others under mask.
func checkEscalation(mask skip.Mask, prefill skip.Prefill) error {
	switch {
	case !mask.KVComplete():
		return fmt.Errorf("%w: the mask %s skips attention, whose keys and values the whole model would miss; skip feed-forward halves, as in f4,f7, or have them written, as in k4",
			ErrEscalate, mask)
	case prefill != skip.FullPrefill:
		return fmt.Errorf("%w: its prompt has to be decoded whole, with --prefill full", ErrEscalate)
	}
	return nil
}

func (e *Engine) planOf(p *plan) Plan {
	mask := shown(p.answerMask())
	if p.neurons > 0 { // they are not chosen yet where nothing is decoded
		mask = mask.WithNeurons(p.neurons, 0)
	}
	return Plan{
		Mask: mask, Prefill: p.prefill, Escalate: p.escalate, Depth: p.policy.Depth, Quality: p.policy.Quality,
		LayersRun: e.LayersRun(mask), Choice: p.choice,
	}
}

// choosing is what the router says to a question.
type choosing struct {
	make   func() // fills in the rest; returns when that is there, however often it is called
	beside bool   // a goroutine of its own has begun to

	decision router.Decision
	drafts   []router.Draft // in place of a decision, for lossless answers whose profile has some
	took     time.Duration
	ended    time.Time
	err      error
}

// choose lets the router choose for a request, beside what follows if there is a core for
// that. nil: nothing is chosen.
func (e *Engine) choose(p *plan) *choosing {
	if !p.routes {
		return nil
	}
	c := &choosing{beside: e.idleCore && !p.promptMasked()}
	c.make = sync.OnceFunc(func() {
		start := time.Now()
		defer func() {
			if p := recover(); p != nil { // beside the answer nothing else would catch it
				c.err = fmt.Errorf("internal error: the router: %v", p)
			}
			c.ended = time.Now()
			c.took = c.ended.Sub(start)
		}()
		c.err = c.ask(e, p)
	})
	if c.beside {
		go c.make()
	}
	return c
}

// ask asks the router.
func (c *choosing) ask(e *Engine, p *plan) error {
	x, err := router.NewPrompt(e.model, p.question)
	if err != nil {
		return err
	}
	if p.lossless && len(p.profile.Drafts) > 0 && !p.ownDrafts {
		c.drafts, err = p.profile.PredictDrafts(x)
	} else {
		c.decision, err = p.profile.Choose(x, p.policy)
	}
	return err
}

// end returns when no goroutine is at work on the choice.
func (c *choosing) end() {
	if c != nil && c.beside {
		c.make()
	}
}

// left is the note that an answer leaves with its sequence.
type left struct {
	said  *said          // nil = nothing was chosen
	heard *neurons.Heard // which neurons were active; nil = nothing was measured
}

// said is what was chosen for an answer.
type said struct {
	decision router.Decision
	prefill  skip.Prefill
}

// saidIn is what a note says of a choice.
func saidIn(note any) (*said, bool) {
	if l, ok := note.(*left); ok && l.said != nil {
		return l.said, true
	}
	return nil, false
}

// expectedAnswer is how many tokens an answer is expected to have where no bound is set,
// for weighing a change of masks.
const expectedAnswer = 128

// take makes what was chosen the plan's mask, unless the conversation's, as its note has
// it, stays: a change would have to decode shared tokens of the prompt again.
func (e *Engine) take(p *plan, c *choosing, r *Request, note any, shared int) {
	next := c.decision
	p.mask, p.choice, p.decision = next.Mask, choiceOf(next), next
	before, ok := saidIn(note)
	switch {
	case p.perChat && p.later:
		p.choice.Kept, p.choice.Reason = true, "the conversation stays with its first choice"
	case ok && p.prefill == skip.MaskedPrefill && before.prefill == skip.MaskedPrefill && shared > 0:
		expected := expectedAnswer
		if r.MaxTokens > 0 {
			expected = min(expected, r.MaxTokens)
		}
		move, reason := router.Switch(before.decision, next, shared, expected, router.CostModel{Layers: e.model.NLayer})
		if !move && next.Mask != before.decision.Mask {
			p.mask, p.decision, p.choice = before.decision.Mask, before.decision, choiceOf(before.decision)
			p.choice.Kept, p.choice.Reason = true, reason
		}
	}
}

// turns counts the questions of a conversation.
func turns(r *Request) (n int) {
	for _, m := range r.Messages {
		if m.Role == "user" {
			n++
		}
	}
	return n
}

// spare is what of the answer's weights will not be needed soon when it is decoded under mask.
func (e *Engine) spare(p *plan, mask skip.Mask) (skip.Mask, error) {
	switch {
	case e.opts.ReleaseSkipped:
		return mask, nil
	case p.lossless || p.prefill == skip.FullPrefill || p.escalate > 0: // the whole model will be needed
		return skip.Mask{}, nil
	case !p.routes:
		return mask, nil
	}
	return p.profile.NeverKept(p.policy)
}
