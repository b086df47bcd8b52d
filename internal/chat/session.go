package chat

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gallop-llm/gallop/internal/shortlist"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Options says how a session works. nil and zero are the defaults.
type Options struct {
	Context   llama.ContextOptions
	Sampling  llama.Sampling
	System    string    // instructions in front of the conversation; "" = none
	Mask      skip.Mask // layers to skip; empty = the whole model
	Routing   *Routing  // chooses them in place of Mask; nil = never
	MaxTokens int       // of an answer; 0 = until the model ends it or the context is full
	Prefill   skip.Prefill

	// Escalate is the confidence cascade's threshold, 0 to 1: a token whose
	// probability under the mask is below it is decided by the whole model. 0 =
	// never. It needs masks that keep every attention sublayer, and a full prefill.
	Escalate float64

	// Stop ends an answer in front of any of these texts.
	Stop []string

	// Lossless drafts and verifies; nil = never. The answer is the whole model's
	// then: Mask is what drafts are made under, before those of Lossless.
	Lossless *Lossless

	// Learned is the file that keeps what decoding costs on this machine, batches and
	// masks, from process to process; see [LearnedPath]. "" = nothing is kept.
	Learned string

	// Shortlist makes the vocabulary shortlist; nil = the whole output matrix for every
	// token. The session does not close it. A size in Mask, as in v1024, is the number of
	// tokens with exact logits; 0 = what was measured to be best, where it pays.
	Shortlist *shortlist.Learner

	// ReleaseSkipped gives the weights that each mask skips back to the operating
	// system while it is in use. Otherwise that happens only to weights that no
	// mask keeps which may be chosen.
	ReleaseSkipped bool
}

// Finish is why an answer ended.
type Finish string

// Reasons for an answer's end.
const (
	FinishStop      Finish = "stop"      // the model ended it, or one of [Options].Stop
	FinishLength    Finish = "length"    // MaxTokens, or the context is full
	FinishCancelled Finish = "cancelled" // the caller's context ended
)

// Answer is what [Session.Ask] gave and what it cost.
type Answer struct {
	Text         string
	Finish       Finish
	PromptTokens int           // of the whole conversation, the question included
	CachedTokens int           // of these, taken from the KV cache
	Tokens       int           // generated
	Prefill      time.Duration // decoding what was not cached
	Decode       time.Duration // generating
	Timing       Timing        // what else took time, and when the first token came
	Forgotten    int           // turns dropped from the beginning, for want of room
	Mask         skip.Mask     // that the answer was made under
	Escalated    int           // tokens that the mask left in doubt and the whole model decided, of Tokens
	Routed       *Routed       // what was chosen, and why; nil = nothing
	Routing      time.Duration // choosing
	Drafting     *Drafting     // what drafts brought; nil = not lossless
	Listed       Listed        // what the vocabulary shortlist did
	Weighed      Weighed       // whether the mask paid
	Generated    []llama.Token // (Tokens,) the answer
	Threads      Threads       // at the answer's end
}

// PrefillSpeed is the rate of decoding the prompt, in tokens/s; 0 when all of
// it was cached, or it was not read to its end.
func (a Answer) PrefillSpeed() float64 {
	if a.Tokens == 0 && a.Finish == FinishCancelled {
		return 0
	}
	return rate(a.PromptTokens-a.CachedTokens, a.Prefill)
}

// DecodeSpeed is the rate of generation in tokens/s. The first token comes out
// of the prefill and is not counted.
func (a Answer) DecodeSpeed() float64 { return rate(a.Tokens-1, a.Decode) }

// EscalatedShare is the share of tokens that the whole model decided, 0 to 1. The
// first token comes out of the prefill and is not counted.
func (a Answer) EscalatedShare() float64 { return float64(a.Escalated) / float64(max(a.Tokens-1, 1)) }

// DraftSpeedup is how much faster the answer was generated than one token at a
// time, estimated; 0 when nothing was drafted for.
func (a Answer) DraftSpeedup() float64 {
	if a.Drafting == nil || a.Decode <= 0 {
		return 0
	}
	return a.Drafting.Plain.Seconds() / a.Decode.Seconds()
}

func rate(n int, d time.Duration) float64 {
	if n <= 0 || d <= 0 {
		return 0
	}
	return float64(n) / d.Seconds()
}

// Session is one conversation. Close it after use.
type Session struct {
	model    *llama.Model
	ctx      *llama.Context
	batch    *llama.Batch
	opts     Options
	messages []llama.Message // the conversation so far, without the system prompt
	mask     skip.Mask       // of the next answer
	fixed    bool            // nothing is chosen: mask was set by hand, or there is nothing to choose by
	byHand   bool            // mask was set by hand
	routed   *Routed         // the conversation's last choice
	cached   []llama.Token   // in the KV cache at positions 0, 1, …
	under    []skip.Mask     // (len(cached),) what each was decoded under

	escalated int         // tokens of this answer that the mask left in doubt and the whole model decided
	idleCore  bool        // there is a core for the router beside a prompt's pass
	drafter   *drafter    // nil = answers are not lossless
	alone     llama.Alone // what of a draft's verification is computed token by token

	list  listing // the vocabulary shortlist
	worth worth   // whether masks pay
	pacer *pacer  // chooses the number of threads; nil = it is fixed

	released skip.Mask // the decode before was under it, and what of it can be was given back
}

// New makes a session. The error wraps [skip.ErrMask] when the mask does not
// fit the model, or is one of llama's.
func New(m *llama.Model, opts *Options) (*Session, error) {
	s := &Session{model: m}
	if opts != nil {
		s.opts = *opts
	}
	s.list.learner = s.opts.Shortlist
	if slices.Contains(s.opts.Stop, "") {
		return nil, fmt.Errorf("%w: an empty text to stop at", llama.ErrOption)
	}
	if e := s.opts.Escalate; !(e >= 0) { // NaN is not
		return nil, fmt.Errorf("%w: the cascade's threshold is %g, want 0 to 1", llama.ErrOption, e)
	}
	if err := s.SetMask(s.opts.Mask); err != nil {
		return nil, err
	}
	s.byHand = !s.opts.Mask.WithShortlist(0).IsEmpty()
	s.fixed = s.opts.Routing == nil
	s.idleCore = !s.fixed && s.hasIdleCore()
	if err := s.checkRelease(); err != nil {
		return nil, err
	}
	var err error
	if s.ctx, err = m.NewContext(&s.opts.Context); err != nil {
		return nil, err
	}
	if s.batch, err = llama.NewBatch(s.ctx.NBatch(), nil); err != nil {
		return nil, errors.Join(err, s.ctx.Close())
	}
	s.pacer = newPacer(s)
	s.recall()
	if s.opts.Lossless != nil {
		if s.drafter, err = newDrafter(s, s.opts.Lossless); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

// Close frees the session's context; the model stays open. Further calls do nothing.
func (s *Session) Close() error {
	s.keep()
	return errors.Join(s.drafter.Close(), s.batch.Close(), s.ctx.Close())
}

// SetMask changes the layers that the next answers skip, and ends routing until
// [Session.Route].
func (s *Session) SetMask(mask skip.Mask) error {
	if err := mask.Check(s.model.NLayer); err != nil {
		return err
	}
	if s.opts.Escalate > 0 && s.opts.Lossless == nil {
		if err := checkCascade(mask, s.opts.Prefill); err != nil {
			return err
		}
	}
	s.list.wanted = mask.Shortlist()
	s.mask, s.fixed, s.byHand, s.routed = mask.WithShortlist(0), true, true, nil
	return nil
}

// Route lets the session choose masks again. It reports whether it can.
func (s *Session) Route() bool {
	s.byHand = false
	s.fixed = s.opts.Routing == nil
	return !s.fixed
}

// checkCascade finds out whether single tokens can be decoded by the whole model
// between others under mask.
func checkCascade(mask skip.Mask, prefill skip.Prefill) error {
	switch {
	case !mask.KVComplete():
		return fmt.Errorf("%w: the mask %s skips attention, whose keys and values the whole model would miss; skip feed-forward halves only, as in f4,f7",
			ErrEscalate, mask)
	case prefill != skip.FullPrefill:
		return fmt.Errorf("%w: its prompt has to be decoded whole, with --prefill full", ErrEscalate)
	}
	return nil
}

// Mask is what the next answer skips or, lossless, its drafts do.
func (s *Session) Mask() skip.Mask { return s.mask }

// answerMask is what tokens of an answer are decoded under.
func (s *Session) answerMask() skip.Mask {
	if s.drafter != nil {
		return skip.Mask{}
	}
	return s.mask
}

// Prefill is how the session decodes prompts.
func (s *Session) Prefill() skip.Prefill { return s.opts.Prefill }

// NCtx is the number of tokens that the conversation can have.
func (s *Session) NCtx() int { return s.ctx.NCtx() }

// Removed tells what the last decode's mask took out of llama.cpp's graph.
func (s *Session) Removed() llama.Stats { return s.ctx.Stats() }

// Messages is the conversation so far, the system prompt first if there is one.
func (s *Session) Messages() []llama.Message {
	var all []llama.Message
	if s.opts.System != "" {
		all = append(all, llama.Message{Role: "system", Content: s.opts.System})
	}
	return append(all, s.messages...)
}

// Reset forgets the conversation. What was said earlier in another one may take
// its place.
func (s *Session) Reset(earlier ...llama.Message) { s.messages, s.routed = earlier, nil }

// Clear empties the KV cache: the next answer decodes its whole prompt.
func (s *Session) Clear() {
	s.ctx.Clear()
	s.cached, s.under = s.cached[:0], s.under[:0]
}

// Tokens are those in the KV cache: after an answer its prompt and itself, but
// for a last token that ended it or reached its limit.
func (s *Session) Tokens() []llama.Token { return slices.Clone(s.cached) }

// Ask answers text as the conversation's next turn. emit gets the answer piece
// by piece, always whole runes. When ctx ends, the answer so far is kept and
// returned as cancelled; after an error the conversation is as it was before.
func (s *Session) Ask(ctx context.Context, text string, emit func(piece string)) (Answer, error) {
	if strings.TrimSpace(text) == "" {
		return Answer{}, ErrEmpty
	}
	before := s.messages
	s.messages = append(before[:len(before):len(before)], llama.Message{Role: "user", Content: text})
	answer, err := s.answer(ctx, emit)
	if err != nil || answer.Text == "" && answer.Finish == FinishCancelled {
		s.messages = before
		return answer, err
	}
	s.messages = append(s.messages, llama.Message{Role: "assistant", Content: answer.Text})
	return answer, nil
}

// answer is a prompt's way through the house: text → template → tokens →
// prefill → first token → mask → decode → text. The mask is chosen beside the
// prefill or after the first token, unless the prefill is masked.
func (s *Session) answer(ctx context.Context, emit func(string)) (Answer, error) {
	defer s.ctx.AbortOn(ctx)()
	a := Answer{Finish: FinishLength}
	began := time.Now()
	prompt, err := s.fit(&a)
	if err != nil {
		return Answer{}, err
	}
	start := time.Now()
	sampler, err := s.sampler(prompt)
	if err != nil {
		return Answer{}, err
	}
	defer sampler.Close()
	a.Timing.Sampler = time.Since(start)

	chosen := s.choose()
	defer chosen.end()
	if s.promptMasked() {
		if err := s.settle(chosen, prompt, &a); err != nil {
			return Answer{}, err
		}
	}
	s.escalated = 0
	s.list.begin(s)
	start = time.Now()
	a.CachedTokens, err = s.prefill(prompt)
	a.Prefill = time.Since(start)

	g := generation{a: &a, sampler: sampler, vocab: s.model.Vocab, emit: emit, limit: s.ctx.NCtx() - len(prompt)}
	g.text.Vocab, g.stop.stops = s.model.Vocab, s.opts.Stop
	if s.opts.MaxTokens > 0 {
		g.limit = min(g.limit, s.opts.MaxTokens)
	}
	if err == nil {
		start = time.Now()
		err = s.generate(&g, prompt, chosen, began)
		a.Decode = time.Since(start) - a.Timing.Waited
	}
	a.Text, a.Escalated, a.Threads, a.Listed, a.Weighed = g.end(), s.escalated, s.threads(), s.list.end(s.ctx), s.worth.end()
	if a.Weighed.Whole > 0 && a.Weighed.Masked == 0 {
		a.Mask = skip.Mask{}
	}
	if a.Listed.Rows > 0 && s.drafter == nil {
		a.Mask = a.Mask.WithShortlist(a.Listed.Size)
	}
	if errors.Is(err, llama.ErrAborted) && ctx.Err() != nil {
		a.Finish, err = FinishCancelled, nil
	}
	return a, err
}

// generate samples the first token from the prompt's own pass, and lets tokens
// under the answer's mask, or drafts, follow.
func (s *Session) generate(g *generation, prompt []llama.Token, chosen *choice, began time.Time) error {
	if s.drafter != nil {
		s.drafter.begin(g, prompt)
		defer s.drafter.end(g)
	}
	first, err := g.sampler.Sample(s.ctx, -1)
	if err != nil {
		return err
	}
	g.a.Timing.FirstToken = time.Since(began)
	more := g.take(first)
	if !s.promptMasked() {
		if err := s.settle(chosen, prompt, g.a); err != nil {
			return err
		}
	}
	s.weighing()
	switch {
	case !more:
		return nil
	case s.drafter != nil:
		s.drafter.setMasks(s.mask)
		return s.drafter.generate(g, first)
	}
	return s.follow(g, first)
}

// follow decodes tokens one at a time and samples the next ones.
func (s *Session) follow(g *generation, token llama.Token) (err error) {
	for more := true; more; more = g.take(token) {
		if err := s.decodeNext(token); err != nil {
			return err
		}
		if token, err = g.sampler.Sample(s.ctx, -1); err != nil {
			return err
		}
	}
	return nil
}

// generation is an answer in the making.
type generation struct {
	a       *Answer
	sampler *llama.Sampler
	vocab   *llama.Vocab
	text    llama.Detokenizer
	stop    stopper
	out     strings.Builder
	emit    func(piece string)
	limit   int // tokens
}

// take appends a token to the answer; more is false when that has ended it.
func (g *generation) take(token llama.Token) (more bool) {
	g.a.Generated = append(g.a.Generated, token)
	g.a.Tokens++
	if g.vocab.IsEnd(token) {
		g.a.Finish = FinishStop
		return false
	}
	piece, found := g.stop.next(g.text.Next(token))
	g.say(piece)
	if found {
		g.a.Finish = FinishStop
	}
	return !found && g.room() > 0
}

// room is how many more tokens may be taken.
func (g *generation) room() int { return g.limit - g.a.Tokens }

func (g *generation) say(piece string) {
	if piece != "" {
		g.out.WriteString(piece)
		g.emit(piece)
	}
}

// end says what was held back and gives the whole answer.
func (g *generation) end() string {
	if rest := g.text.Flush(); g.a.Finish != FinishStop || rest != "" {
		piece, _ := g.stop.next(rest)
		g.say(piece)
	}
	g.say(g.stop.flush())
	return g.out.String()
}

// fit turns the conversation into tokens and leaves out its oldest turns until
// there is room for an answer. It notes in a what it did.
func (s *Session) fit(a *Answer) (prompt []llama.Token, err error) {
	for {
		start := time.Now()
		text, err := s.model.Render(llama.Conversation{Messages: s.Messages(), Answer: true})
		if err != nil {
			return nil, err
		}
		a.Timing.Template += time.Since(start)
		start = time.Now()
		if prompt, err = s.model.Vocab.TokenizeText(text); err != nil {
			return nil, err
		}
		a.Timing.Tokenize += time.Since(start)
		if a.PromptTokens = len(prompt); len(prompt) == 0 {
			return nil, ErrEmpty
		}
		room := s.ctx.NCtx() - len(prompt)
		if len(s.messages) < 3 && room < 1 {
			return nil, fmt.Errorf("%w: %d tokens, the context holds %d; shorten it or choose a larger context with -c",
				ErrTooLong, len(prompt), s.ctx.NCtx())
		}
		if len(s.messages) < 3 || room >= s.answerRoom() {
			return prompt, nil
		}
		s.messages = s.messages[2:] // a question and its answer
		a.Forgotten += 2
	}
}

// answerRoom is how many tokens an answer should find free: what it may have at
// most, but no more than a quarter of the context.
func (s *Session) answerRoom() int {
	room := s.ctx.NCtx() / 4
	if s.opts.MaxTokens > 0 {
		room = min(room, s.opts.MaxTokens)
	}
	return room
}

// sampler makes the answer's sampler, which has seen what it looks back at of
// the prompt.
func (s *Session) sampler(prompt []llama.Token) (*llama.Sampler, error) {
	o := s.opts.Sampling
	if o.RepeatLastN < 0 { // the whole context
		o.RepeatLastN = min(s.ctx.NCtx(), llama.MostLastN)
	}
	sampler, err := s.model.NewSampler(o)
	if err != nil {
		return nil, err
	}
	for _, t := range prompt[max(len(prompt)-o.LookBack(), 0):] {
		sampler.Accept(t)
	}
	return sampler, nil
}

// prefill decodes what the KV cache does not hold of the prompt yet, and
// returns how many tokens it did hold. A position holds if its token and the
// mask that it was decoded under are the ones that are wanted now. The last
// token is decoded in any case: the answer's first is sampled from its logits.
func (s *Session) prefill(prompt []llama.Token) (cached int, err error) {
	mask := s.opts.Prefill.Mask(s.answerMask())
	for cached < min(len(s.cached), len(prompt)-1) && s.cached[cached] == prompt[cached] && s.under[cached] == mask {
		cached++
	}
	if s.forget(cached) != nil { // recurrent models forget all or nothing
		s.Clear()
		cached = 0
	}
	for rest := prompt[cached:]; len(rest) > 0; {
		part, outputs := rest[:min(len(rest), s.batch.Cap())], 0
		if rest = rest[len(part):]; len(rest) == 0 {
			outputs = 1
		}
		if err := s.decode(part, mask, outputs); err != nil {
			return cached, err
		}
	}
	return cached, nil
}

// decodeNext runs the token that the next one is sampled after, and again by
// the whole model if the mask leaves the next one in doubt. It tells what that took
// to what weighs the mask.
func (s *Session) decodeNext(token llama.Token) error {
	mask, took := s.answerMask(), tokenTime{whole: s.worth.next()}
	if took.whole {
		mask = skip.Mask{}
	}
	next := [1]llama.Token{token}
	start := time.Now()
	if err := s.decode(next[:], mask, 1); err != nil {
		return err
	}
	var err error
	if took.doubted, err = s.inDoubt(mask); err != nil {
		return err
	}
	took.seconds = time.Since(start).Seconds()
	if took.doubted {
		s.escalated++
		if err := s.forget(len(s.cached) - 1); err != nil {
			return err
		}
		if err := s.decode(next[:], skip.Mask{}, 1); err != nil {
			return err
		}
		took.again = time.Since(start).Seconds() - took.seconds
	}
	s.worth.saw(took, s.list.size, s.threadsNow())
	return nil
}

// inDoubt tells whether the last decode, under mask, leaves the next token to the whole model.
func (s *Session) inDoubt(mask skip.Mask) (bool, error) {
	threshold := s.escalate()
	if threshold == 0 || mask.IsEmpty() {
		return false, nil
	}
	logits, err := s.ctx.Logits(-1)
	if err != nil {
		return false, err
	}
	_, p := llama.TopProbability(logits)
	return p < threshold, nil
}

// decode appends tokens to the KV cache; the last outputs of them have logits to
// sample from.
func (s *Session) decode(tokens []llama.Token, mask skip.Mask, outputs int) error {
	s.batch.Clear()
	s.batch.Alone = llama.Together
	if outputs > 1 { // drafts that are verified must come out as one token at a time
		s.batch.Alone = s.alone
	}
	for i, t := range tokens {
		if err := s.batch.Add(t, len(s.cached)+i, i >= len(tokens)-outputs, 0); err != nil {
			return err
		}
	}
	if err := s.releaseWeights(mask); err != nil {
		return err
	}
	run := mask
	single := len(tokens) == 1 && outputs == 1
	if single && (s.drafter == nil || !mask.IsEmpty()) { // lossless mode verifies with the whole matrix
		run = s.list.mask(mask, s.ctx)
	}
	err := s.compute(run)
	if err != nil && s.list.refused(err) {
		err = s.compute(mask)
	}
	if err != nil {
		return err
	}
	if single {
		s.list.see(s.ctx)
	}
	s.cached = append(s.cached, tokens...)
	for range tokens {
		s.under = append(s.under, mask)
	}
	return nil
}

// forget takes the positions from n on out of the KV cache.
func (s *Session) forget(n int) error {
	if err := s.ctx.Remove(0, n, -1); err != nil {
		return err
	}
	s.cached, s.under = s.cached[:n], s.under[:n]
	return nil
}

// SetLoRA makes the session use these adapters from the next answer on.
func (s *Session) SetLoRA(adapters ...llama.ScaledLoRA) error {
	s.cached, s.under = nil, nil // keys and values change with the weights
	s.list.adapted = len(adapters) > 0
	return s.ctx.SetLoRA(adapters...)
}
