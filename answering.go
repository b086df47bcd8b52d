package gallop

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gallop-llm/gallop/internal/costs"
	"github.com/gallop-llm/gallop/internal/draft"
	"github.com/gallop-llm/gallop/internal/engine"
	"github.com/gallop-llm/gallop/internal/neurons"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// answering is an answer in the making. It belongs to one goroutine.
type answering struct {
	e      *Engine
	ctx    context.Context
	r      Request
	began  time.Time
	a      Answer
	plan   *plan
	prompt []llama.Token
	emit   func(Delta) // gets the answer piece by piece
	gate   func()      // see [engine.WithGate]; nil = none

	sampler *llama.Sampler
	chosen  *choosing
	seat    *engine.Seat
	list    listing
	heard   *neurons.Heard // of the conversation; nil = nothing was
	choice  *choice        // of neurons; nil = none
	weigher *costs.Weigher // nil = the mask is not weighed
	drafter *draft.Drafter // nil = this answer drafts nothing: it is not lossless, or another one drafts
	slot    *slot

	text    llama.Detokenizer
	stop    stopper
	out     strings.Builder
	limit   int       // tokens
	source  Source    // of the next token
	tokens  []Token   // that are still to be told of
	control []Control // the same; At counts from the answer's beginning
	scratch [1]llama.Token
	mask    *skip.Mask // of the answer; nil until it is chosen
	under   skip.Mask  // of the last decode
	spared  bool       // there was one
}

// run is a prompt's way through the house: text → template → tokens → prefill → first
// token → mask → decode → text. The mask is chosen beside the prefill or after the first
// token, unless the prefill is masked.
func (x *answering) run() (err error) {
	x.began = time.Now()
	x.a.Finish = FinishLength
	if err := x.prepare(); err != nil {
		return err
	}
	defer x.sampler.Close()
	defer x.chosen.end()
	if err := x.enter(); err != nil {
		return err
	}
	defer x.leave()
	if err = x.prefill(); err == nil {
		err = x.generate()
	}
	x.end()
	return err
}

// because says why an answer ended with err, and gives the error that the caller gets.
func (x *answering) because(err error) error {
	ended := x.ctx.Err()
	switch {
	case ended != nil && (errors.Is(err, llama.ErrAborted) || errors.Is(err, ErrClosed) || errors.Is(err, context.Cause(x.ctx))):
		x.a.Finish = FinishCancelled
		return ended
	case errors.Is(err, ErrClosed):
		x.a.Finish = FinishCancelled
	default:
		x.a.Finish = ""
	}
	return err
}

// prepare does what needs no seat.
func (x *answering) prepare() (err error) {
	if err := x.r.check(); err != nil {
		return err
	}
	if x.plan, err = x.e.resolve(&x.r); err != nil {
		return err
	}
	if x.r.Lossless {
		if err := checkDrafts(x.e.model, x.r.Drafts); err != nil {
			return err
		}
	}
	if x.prompt, err = x.e.fit(&x.r, &x.a); err != nil {
		return err
	}
	start := time.Now()
	if x.sampler, err = x.e.sampler(&x.r, x.prompt); err != nil {
		return err
	}
	x.a.Timing.Sampler = time.Since(start)
	x.chosen = x.e.choose(x.plan)
	return nil
}

// enter waits for a seat. Where the prompt is decoded under the answer's mask, that is
// chosen before.
func (x *answering) enter() (err error) {
	p := x.plan
	if x.chosen != nil && p.promptMasked() {
		x.waitForChoice()
		if x.chosen.err != nil {
			return x.chosen.err
		}
	}
	start := time.Now()
	x.seat, err = x.e.loop.Enter(x.ctx, x.prompt, x.r.MaxTokens, func(note any, shared int) skip.Mask {
		if before, ok := note.(*left); ok {
			x.heard = before.heard
		}
		if x.chosen != nil && p.promptMasked() {
			x.e.take(p, x.chosen, &x.r, note, shared)
		}
		return p.prefill.Mask(p.answerMask())
	})
	x.a.Timing.Queued = time.Since(start)
	if err != nil {
		return err
	}
	x.slot = x.e.slots.take(len(x.prompt))
	return nil
}

// waitForChoice waits until the router has chosen and notes for how long.
func (x *answering) waitForChoice() {
	start := time.Now()
	x.chosen.make()
	x.a.Timing.Routing, x.a.Timing.Waited = x.chosen.took, max(x.chosen.ended.Sub(start), 0)
}

// settle makes what was chosen the answer's mask, after a full prefill.
func (x *answering) settle() error {
	if x.chosen == nil || x.plan.promptMasked() {
		return nil
	}
	x.seat.Away() // the first token is sampled: others need not wait for the router
	x.waitForChoice()
	x.seat.Back()
	switch c := x.chosen; {
	case c.err != nil:
		return c.err
	case c.drafts != nil:
		if x.drafter != nil {
			x.drafter.List(c.drafts)
		}
		return nil // and the plan's mask stays empty
	default:
		if x.plan.escalate > 0 {
			if err := checkEscalation(c.decision.Mask, x.plan.prefill); err != nil {
				return err
			}
		}
		x.e.take(x.plan, c, &x.r, nil, 0)
	}
	return nil
}

// prefill decodes what the KV cache does not hold of the prompt yet. The last token is
// decoded in any case: the answer's first is sampled from its logits.
func (x *answering) prefill() error {
	x.a.Usage.Cached, x.a.Usage.Missed = x.seat.Cached, x.seat.Missed
	if x.r.NoCache {
		x.seat.Forget(0)
		x.a.Usage.Cached, x.a.Usage.Missed = 0, "the request does not want it"
	}
	if err := x.beginDrafts(); err != nil {
		return err
	}
	x.list.begin(x)
	if err := x.listen(); err != nil {
		return err
	}
	mask := x.plan.prefill.Mask(x.plan.answerMask())
	start := time.Now()
	defer func() { x.a.Timing.Prefill = time.Since(start) }()
	if x.r.PromptLogprobs {
		return x.scorePrompt(mask)
	}
	return x.decode(x.prompt[x.seat.Len():], mask, 1)
}

// generate samples the first token from the prompt's own pass, and lets tokens under the
// answer's mask, or drafts, follow.
func (x *answering) generate() error {
	if x.r.ScoreOnly {
		return nil
	}
	x.limit = x.e.nCtx - len(x.prompt)
	if x.r.MaxTokens > 0 {
		x.limit = min(x.limit, x.r.MaxTokens)
	}
	x.text.Vocab, x.stop.stops = x.e.model.Vocab, x.r.Stop
	if d := x.drafter; d != nil {
		if x.seat.Alone() {
			d.AddPrompt(x.a.Usage.Prompt-x.a.Usage.Cached, x.a.Timing.Prefill)
		}
		d.Begin(sequence{x}, x, x.sampler, x.prompt, x.e.sampling(&x.r).Seed)
		defer func() {
			stats := Drafts(*d.End(x.a.Usage.Generated))
			x.a.Drafts = &stats
		}()
	}
	first, err := x.sampler.Sample(x.seat.Context(), x.seat.Row(-1))
	if err != nil {
		return err
	}
	x.a.Timing.FirstToken = time.Since(x.began)
	x.source = FromPrompt
	more := x.Take(first, -1, false)
	if err := x.settle(); err != nil {
		return err
	}
	if more {
		if err := x.chooseNeurons(); err != nil {
			return err
		}
	}
	mask := shown(x.plan.answerMask())
	x.mask = &mask
	start := time.Now()
	defer func() { x.a.Timing.Decode = time.Since(start) }()
	if !more {
		return nil
	}
	if x.drafter != nil {
		x.source = FromWhole
		x.drafter.SetMasks(x.plan.mask)
		return x.drafter.Generate(first)
	}
	x.weigh()
	return x.follow(first)
}

// follow decodes tokens one at a time and samples the next ones.
func (x *answering) follow(token llama.Token) (err error) {
	for more := true; more; more = x.Take(token, -1, false) {
		if err := x.decodeNext(token); err != nil {
			return err
		}
		if token, err = x.sampler.Sample(x.seat.Context(), x.seat.Row(-1)); err != nil {
			return err
		}
	}
	return nil
}

// decodeNext runs the token that the next one is sampled after, and again by the whole model
// if the mask leaves the next one in doubt. It tells what that took to what weighs the mask.
func (x *answering) decodeNext(token llama.Token) error {
	mask, took := x.plan.answerMask(), costs.Token{}
	if x.weigher != nil && x.seat.Alone() {
		took.Whole = x.weigher.Next()
	} else if x.weigher != nil { // beside other answers nothing can be compared
		took.Whole = x.weigher.Off()
	}
	if took.Whole {
		mask = skip.Mask{}
	}
	x.source = FromMask
	if mask.IsEmpty() {
		x.source = FromWhole
	}
	x.scratch[0] = token
	start := time.Now()
	if err := x.decode(x.scratch[:], mask, 1); err != nil {
		return err
	}
	alone := x.seat.Alone()
	var err error
	if took.Doubted, err = x.inDoubt(mask); err != nil {
		return err
	}
	took.Seconds = time.Since(start).Seconds()
	if took.Doubted {
		x.a.Escalated++
		x.source = FromEscalated
		x.seat.Forget(x.seat.Len() - 1)
		if err := x.decode(x.scratch[:], skip.Mask{}, 1); err != nil {
			return err
		}
		took.Again = time.Since(start).Seconds() - took.Seconds
	}
	switch {
	case x.weigher == nil:
	case alone && x.seat.Alone():
		x.weigher.Saw(took, x.list.size, x.seat.Threads(), x.seat.Len())
	default:
		x.weigher.Beside(took)
	}
	return nil
}

// inDoubt tells whether the last decode, under mask, leaves the next token to the whole model.
func (x *answering) inDoubt(mask skip.Mask) (bool, error) {
	if x.plan.escalate == 0 || mask.IsEmpty() {
		return false, nil
	}
	logits, err := x.seat.Context().Logits(x.seat.Row(-1))
	if err != nil {
		return false, err
	}
	_, p := llama.TopProbability(logits)
	return p < x.plan.escalate, nil
}

// decode appends tokens to the sequence; the last outputs of them have logits.
func (x *answering) decode(tokens []llama.Token, mask skip.Mask, outputs int) error {
	if !x.spared || x.under != mask {
		spare, err := x.e.spare(x.plan, mask)
		if err != nil {
			return err
		}
		x.seat.Spare(spare)
		x.spared, x.under = true, mask
	}
	run := mask
	single := len(tokens) == 1 && outputs == 1
	if single && (!x.plan.lossless || !mask.IsEmpty()) { // lossless mode verifies with the whole matrix
		run = x.list.mask(x, mask)
	}
	err := x.seat.Decode(tokens, run, outputs)
	if err != nil && run != mask && x.list.refused(err) {
		run = mask
		err = x.seat.Decode(tokens, mask, outputs)
	}
	if err != nil {
		return err
	}
	x.a.Removed = x.seat.Context().Stats() // here, as others' decodes go on when the answer is over
	if single {
		x.list.see(x, run)
	}
	return nil
}

// Take appends a token to the answer; more is false when that has ended it. row is the
// output of the last decode that chose it.
func (x *answering) Take(token llama.Token, row int, drafted bool) (more bool) {
	x.a.Tokens = append(x.a.Tokens, token)
	x.a.Usage.Generated++
	x.slot.generated.Add(1)
	if x.r.Detail || x.r.Logprobs != 0 {
		source := x.source
		if drafted {
			source = FromDraft
		}
		x.tokens = append(x.tokens, x.detail(token, row, source))
	}
	if x.e.model.Vocab.IsEnd(token) {
		x.a.Finish = FinishStop
		x.say("")
		return false
	}
	text := ""
	if vocab := x.e.model.Vocab; x.r.Controls && vocab.IsControl(token) {
		control := string(vocab.AppendPiece(nil, token, true))
		x.control = append(x.control, Control{x.out.Len() + len(x.stop.held), control})
	} else {
		text = x.text.Next(token)
	}
	piece, found := x.stop.next(text)
	x.say(piece)
	if x.gate != nil {
		x.gate()
	}
	if found {
		x.a.Finish, x.a.Stopped = FinishStop, x.stop.found
	}
	return !found && x.Room() > 0
}

// Room is how many more tokens may be taken.
func (x *answering) Room() int { return x.limit - x.a.Usage.Generated }

func (x *answering) say(piece string) {
	var controls []Control
	for len(x.control) > 0 && x.control[0].At <= x.out.Len()+len(piece) { // others stand behind what is held back
		controls = append(controls, Control{x.control[0].At - x.out.Len(), x.control[0].Text})
		x.control = x.control[1:]
	}
	if piece == "" && len(x.tokens) == 0 && controls == nil {
		return
	}
	x.out.WriteString(piece)
	x.emit(Delta{Text: piece, Tokens: x.tokens, Mask: x.mask, Controls: controls})
	x.tokens = nil
}

// end says what was held back and sums the answer up, whatever has ended it.
func (x *answering) end() {
	if x.stop.found == "" { // nothing is said behind a stop text
		piece, found := x.stop.next(x.text.Flush())
		if x.say(piece); found {
			x.a.Finish, x.a.Stopped = FinishStop, x.stop.found
		}
		x.say(x.stop.flush())
	}
	a := &x.a
	a.Text, a.Plan = x.out.String(), x.e.planOf(x.plan)
	a.Shortlist = x.list.end()
	if x.weigher != nil {
		a.Weighed = Weighed(x.weigher.End())
	}
	if a.Weighed.Whole > 0 && a.Weighed.Masked == 0 {
		a.Plan.Mask, a.Plan.LayersRun = skip.Mask{}, x.e.LayersRun(skip.Mask{})
	}
	if a.Shortlist.Rows > 0 && !x.plan.lossless {
		a.Plan.Mask = a.Plan.Mask.WithShortlist(a.Shortlist.Size)
	}
	if x.plan.lossless && a.Drafts == nil {
		a.Drafts = &Drafts{Masks: map[skip.Mask]int{}}
	}
	a.Threads = Threads(x.e.loop.Threads())
	x.sumWeights()
}

// sumWeights works out [Answer].WeightsRead.
func (x *answering) sumWeights() {
	a := &x.a
	tokens := a.Usage.Generated - 1
	if tokens <= 0 {
		return
	}
	cost := func(m skip.Mask) float64 {
		if a.Shortlist.Rows > 0 {
			m = m.WithShortlist(a.Shortlist.Size)
		}
		return x.e.tokenCost(m)
	}
	sum := 0.0
	switch d := a.Drafts; {
	case d != nil:
		sum = float64(max(d.Rounds, tokens-d.Accepted)) // verified with the whole matrix, or decoded one at a time
		for mask, drafted := range d.Masks {
			sum += float64(drafted) * cost(mask)
		}
	default:
		whole := a.Weighed.Whole
		sum = float64(tokens-whole)*cost(x.plan.answerMask()) + float64(whole+a.Escalated)*cost(skip.Mask{})
	}
	a.WeightsRead = sum / float64(tokens)
}

// leave gives back what the answer used.
func (x *answering) leave() {
	note := &left{heard: x.heard}
	if x.plan.choice != nil {
		note.said = &said{x.plan.decision, x.plan.prefill}
	}
	x.seat.Leave(note)
	if x.choice != nil {
		x.e.sparing.give(x.choice)
		x.choice = nil
	}
	if x.weigher != nil {
		x.weigher = nil
		x.e.weighing.Unlock()
	}
	if x.drafter != nil {
		x.drafter = nil
		x.e.drafting.Unlock()
	}
	x.e.slots.give(x.slot)
}

// weigh settles whether the answer's mask is weighed. One that was asked for is not: by hand,
// or at a depth that is always to be skipped. Nor is one that the prompt was decoded under
// too, which nothing can be put between. What is measured must not decide where answers are
// to be the same each time.
func (x *answering) weigh() {
	p := x.plan
	if !p.routes || p.lossless || x.e.opts.ReleaseSkipped || x.e.opts.Isolate || p.prefill != skip.FullPrefill ||
		p.policy.Depth > 0 && !p.policy.Guard || !x.e.weighing.TryLock() {
		return
	}
	x.weigher = &x.e.weigher
	x.weigher.Begin(p.mask, p.mask.KVComplete(), 1/(1-x.e.skippedShare(p.mask)), x.list.size, len(x.prompt))
}

// beginDrafts takes the engine's drafter for a lossless answer, unless another one uses it:
// drafts are only made for an answer that runs alone.
func (x *answering) beginDrafts() error {
	if !x.plan.lossless {
		return nil
	}
	x.seat.Isolation = llama.AttentionAlone
	if !x.e.drafting.TryLock() {
		return nil
	}
	o := draftOptions(x.r.Drafts)
	var err error
	if x.e.drafter == nil {
		var known *costs.Batches
		if file := costs.Read(x.e.costsPath); file != nil {
			known = &file.Batches
		}
		x.e.drafter, err = draft.New(x.e.model, o, known)
	} else {
		err = x.e.drafter.Set(o)
	}
	if err != nil {
		x.e.drafting.Unlock()
		return err
	}
	x.drafter = x.e.drafter
	x.seat.Isolation = x.drafter.Isolation()
	return nil
}

func draftOptions(o *DraftOptions) *draft.Options {
	if o == nil {
		return &draft.Options{}
	}
	d := &draft.Options{MaxDraft: o.MaxDraft, NoLookup: o.NoLookup, Fixed: o.Fixed}
	for _, m := range o.Masks {
		d.Masks = append(d.Masks, draft.Mask{Mask: m})
	}
	return d
}

// checkDrafts refuses what cannot be drafted with.
func checkDrafts(m *llama.Model, o *DraftOptions) error {
	if o == nil {
		o = &DraftOptions{}
	}
	if err := draftOptions(o).Check(m); err != nil {
		return fmt.Errorf("%w: %w", ErrRequest, err)
	}
	return nil
}

// sequence is where an answer's drafts are decoded.
type sequence struct{ *answering }

func (s sequence) Decode(tokens []llama.Token, mask skip.Mask, outputs int) error {
	return s.decode(tokens, mask, outputs)
}
func (s sequence) Forget(n int)                { s.seat.Forget(n) }
func (s sequence) Len() int                    { return s.seat.Len() }
func (s sequence) Tokens() []llama.Token       { return s.seat.Tokens() }
func (s sequence) Room() int                   { return s.seat.Room() }
func (s sequence) Most() int                   { return s.seat.Most() }
func (s sequence) Row(i int) int               { return s.seat.Row(i) }
func (s sequence) Context() *llama.Context     { return s.seat.Context() }
func (s sequence) Alone() bool                 { return s.seat.Alone() }
func (s sequence) Isolate(how llama.Isolation) { s.seat.Isolation = how }
