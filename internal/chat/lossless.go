package chat

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// noRounding is a distance of logits that practically never decides over a token.
const noRounding = 1e-3

// MaxDraft is the longest draft, in tokens: the bound of γ in the papers.
const MaxDraft = 16

// Lossless makes a session's answers those of the whole model, only faster: the
// model without some of its layers drafts a few tokens, or they are looked up in
// what was said before, and the whole model verifies all of them in one batch,
// in the same context, with the same weights and KV cache (Zhang et al.: Draft &
// Verify, arXiv 2309.08168). Greedy answers are the same tokens; drawn ones have
// the same distribution. Ours differs in how drafts end: their length follows
// from measured times and acceptance, and where no draft is expected to win,
// tokens are decoded one at a time.
type Lossless struct {
	// Masks are what drafts may be made under; which one wins shows while
	// generating. None = drafts are only looked up.
	Masks []DraftMask

	MaxDraft int  // tokens in a draft at most, 1 to [MaxDraft]; 0 = MaxDraft
	NoLookup bool // drafts come from masks only

	// Fixed drafts MaxDraft tokens each time, under the first mask or, without
	// one, looked up, whether it pays or not: for tests and measurements.
	Fixed bool
}

// DraftMask is a mask to draft under, and what is known of it beforehand.
type DraftMask struct {
	Mask       skip.Mask
	Cost       float64 // of a drafted token, as a share of the whole model's; 0 = by the number of sublayers
	Acceptance float64 // share of its tokens that is expected to be accepted, 0 to 1; 0 = not known
}

// Drafting is what drafts brought for an answer.
type Drafting struct {
	Rounds   int               // drafts that were verified
	Lengths  [MaxDraft + 1]int // rounds by how many of their tokens were accepted
	Drafted  int               // tokens
	Accepted int               // of these
	LookedUp int               // of Drafted: were looked up
	Masks    map[skip.Mask]int // drafted tokens by mask
	Plain    time.Duration     // what generating would have taken one token at a time: their number times the time of one

	// Possible is the speed-up that the cost model expects where the source that
	// drafted most has something to draft, with drafts of the best length, at the
	// acceptance that was seen, and none elsewhere; 0 = nothing was drafted.
	Possible float64

	// Rounding is how far a token's logits are apart at most when it is decoded
	// alone and in a batch, as seen at the session's start: where the whole model's
	// likeliest tokens are closer than that, answers may part. 0 = to the last bit
	// the same.
	Rounding float64
}

// Add adds the counts of another answer.
func (d *Drafting) Add(other *Drafting) {
	d.Rounds += other.Rounds
	d.Drafted += other.Drafted
	d.Accepted += other.Accepted
	d.LookedUp += other.LookedUp
	for i, n := range other.Lengths {
		d.Lengths[i] += n
	}
	for mask, n := range other.Masks {
		d.Masks[mask] += n
	}
}

// Acceptance is the share of drafted tokens that was accepted, 0 to 1.
func (d *Drafting) Acceptance() float64 { return float64(d.Accepted) / float64(max(d.Drafted, 1)) }

// TokensPerRound is how many tokens a verification gave, its own included.
func (d *Drafting) TokensPerRound() float64 {
	return float64(d.Accepted+d.Rounds) / float64(max(d.Rounds, 1))
}

// check refuses what cannot be drafted with.
func (o *Lossless) check(m *llama.Model) error {
	if o.MaxDraft < 0 || o.MaxDraft > MaxDraft {
		return fmt.Errorf("%w: drafts of %d tokens, want 1 to %d", ErrLossless, o.MaxDraft, MaxDraft)
	}
	for _, d := range o.Masks {
		if err := d.Mask.Check(m.NLayer); err != nil {
			return err
		}
		if d.Mask.IsEmpty() && !o.Fixed {
			return fmt.Errorf("%w: a draft by the whole model wins nothing; skip something", ErrLossless)
		}
	}
	return nil
}

// source is where drafts come from: a mask, or looking up.
type source struct {
	mask   skip.Mask
	lookup bool
	cost   draftCost
	odds   odds
	prior  float64 // chance of acceptance that was believed before anything was tried
}

// Beliefs of before anything was tried. Low ones would keep a good source from
// ever being tried, and a bad one shows soon.
const (
	priorMask   = 0.8
	priorLookup = 0.6
)

// drafter makes drafts and has them verified, for one session. What it learns of
// the machine and of the masks stays from answer to answer.
type drafter struct {
	s      *Session
	most   int // tokens in a draft
	fixed  bool
	pace   pace
	listed []DraftMask
	known  map[skip.Mask]*source
	masks  []*source // to draft under now
	lookup *source   // nil = nothing is looked up
	judge  judge

	drawing *llama.Sampler // the draft's sampler, which follows the answer's; nil before the first answer
	text    lookup         // of the conversation
	tokens  []llama.Token  // (γ,) the draft
	class   []int          // (γ,) how sure the draft is of each
	q       [MaxDraft]llama.Distribution
	p       llama.Distribution // of the whole model, for one token
	batch   []llama.Token      // (γ+1,) scratch
	took    []float64          // (γ,) scratch: tokens' time of each token of a draft

	drafted  map[*source]*judged // in this answer
	bare     int                 // tokens of this answer for which no source had a draft
	rounding float64             // see [Drafting]

	ahead   float64 // tokens' time won over one at a time; negative = lost
	steps   int     // drafts since the time of a single token was last measured
	singles int     // tokens decoded alone since the last draft
	trying  bool    // the draft is made to find out what its source is worth
	rounds  int
}

func newDrafter(s *Session, o *Lossless) (*drafter, error) {
	if err := o.check(s.model); err != nil {
		return nil, err
	}
	d := &drafter{s: s, most: o.MaxDraft, fixed: o.Fixed, listed: o.Masks, known: map[skip.Mask]*source{}}
	if d.most == 0 {
		d.most = MaxDraft
	}
	if !o.NoLookup {
		d.lookup = &source{lookup: true, prior: priorLookup}
	}
	d.judge.excess = make([]float32, s.model.Vocab.Size)
	if err := d.measure(); err != nil {
		return nil, err
	}
	if d.lookup != nil {
		d.lookup.cost.once = d.pace.graph // which the token behind it needs
	}
	return d, nil
}

// setMasks says what drafts may be made under: first if that skips something,
// then what the options list. What was learned of a mask stays.
func (d *drafter) setMasks(first skip.Mask) {
	d.masks = d.masks[:0]
	if !first.IsEmpty() {
		d.masks = append(d.masks, d.source(DraftMask{Mask: first}))
	}
	for _, m := range d.listed {
		if m.Mask != first || first.IsEmpty() {
			d.masks = append(d.masks, d.source(m))
		}
	}
}

// list takes the profile's masks to draft under, with what is expected of them
// for a prompt, in place of the options'.
func (d *drafter) list(drafts []router.Draft) {
	d.listed = nil
	for _, draft := range drafts {
		m := DraftMask{Mask: draft.Mask, Cost: 1 - draft.Depth/float64(d.s.model.NLayer), Acceptance: draft.Acceptance}
		d.source(m).prior = min(max(m.Acceptance, leastPrior), mostOdds)
		d.listed = append(d.listed, m)
	}
}

// leastPrior is the lowest acceptance that is believed beforehand: predictions err.
const leastPrior = 0.05

// source is what is known of a mask.
func (d *drafter) source(m DraftMask) *source {
	if src, ok := d.known[m.Mask]; ok {
		return src
	}
	src := &source{mask: m.Mask, prior: priorMask}
	if m.Acceptance > 0 {
		src.prior = min(m.Acceptance, mostOdds)
	}
	share := m.Cost
	if share == 0 {
		share = 1 - float64(m.Mask.Sublayers())/float64(2*d.s.model.NLayer)
	}
	src.cost.each, src.cost.once = share, d.pace.graph
	d.known[m.Mask] = src
	return src
}

// Close frees the sampler. Further calls do nothing.
func (d *drafter) Close() error {
	if d == nil || d.drawing == nil {
		return nil
	}
	return d.drawing.Close()
}

// measureFor bounds the time that measuring may take at a session's start.
const measureFor = 500 * time.Millisecond

// measure finds out how verifications must be computed to come out as one token
// at a time, and what they cost: the least of the steps of [llama.Alone] at which
// a batch gives the very logits of single tokens. Where none does, as on a GPU,
// they only cost time.
func (d *drafter) measure() error {
	for _, d.s.alone = range []llama.Alone{llama.AttendAlone, llama.MultiplyUntiled, llama.MultiplyAlone} {
		if err := d.measureBatches(true); err != nil || d.rounding == 0 {
			return err
		}
	}
	d.s.alone = llama.AttendAlone
	return d.measureBatches(false)
}

// measureBatches takes the time of batches of some sizes, on tokens that are
// forgotten again. The rest is learned while generating. With equal, it ends at a
// batch that does not give the logits of a single token.
func (d *drafter) measureBatches(equal bool) error {
	s := d.s
	d.pace, d.rounding = pace{}, 0
	tokens := make([]llama.Token, MaxDraft+1)
	sizes := []int{1, 1, 1, 1, 4, 1, 1, 8, 1, 1, 4, 1, 1, 8, 2, 16}
	const warmUp = 2 // reads the weights into memory, and makes room
	if d.fixed {
		sizes = []int{1, 1, 1, 4} // as much as finds out whether tokens can be forgotten, and how batches round
	}
	var alone []float32 // (nVocab,) of the first token
	start := time.Now()
	for i, n := range sizes {
		if i == warmUp {
			start = time.Now()
		}
		if n > min(s.batch.Cap(), s.ctx.NCtx()) || i > warmUp && time.Since(start) > measureFor {
			break
		}
		began := time.Now()
		if err := s.decode(tokens[:n], skip.Mask{}, n); err != nil {
			return err
		}
		logits, err := s.ctx.Logits(0) // waits for a GPU
		if err != nil {
			return err
		}
		switch {
		case i < warmUp:
		case n == 1 && sizes[i-1] > 1:
			d.pace.sawGraph(time.Since(began))
		default:
			d.pace.saw(n, time.Since(began))
		}
		if n == 1 {
			alone = append(alone[:0], logits...)
		}
		for j, x := range logits {
			d.rounding = max(d.rounding, math.Abs(float64(x-alone[j])))
		}
		if equal && d.rounding > 0 {
			return s.forget(0) // so these times are of no use
		}
		if n > 1 {
			if err := s.forget(1); err != nil {
				return fmt.Errorf("%w: %w", ErrLossless, err)
			}
		}
		if err := s.forget(0); err != nil {
			return err
		}
	}
	return nil
}

// begin prepares for the answer to a prompt whose first token is not sampled yet.
func (d *drafter) begin(g *generation, prompt []llama.Token) (err error) {
	g.a.Drafting = &Drafting{Masks: map[skip.Mask]int{}}
	d.drafted, d.bare = map[*source]*judged{}, 0
	d.ahead = min(d.ahead, wonBefore)
	seed := d.s.opts.Sampling.Seed
	if seed == llama.RandomSeed {
		seed = rand.Uint32()
	}
	d.judge.random = rand.New(rand.NewPCG(uint64(seed), 0))
	if d.lookup != nil {
		d.text.reset(prompt)
	}
	if d.drawing == nil {
		d.drawing, err = g.sampler.Clone()
	}
	return err
}

// end sums up what drafts brought for the answer.
func (d *drafter) end(g *generation) {
	g.a.Drafting.Plain = time.Duration(float64(g.a.Tokens-1) * d.pace.one * float64(time.Second))
	g.a.Drafting.Possible, g.a.Drafting.Rounding = d.possible(g.a.Tokens), d.rounding
}

// generate goes on with the answer after its first token. A token that is
// decoded alone comes from the sampler as without drafts.
func (d *drafter) generate(g *generation, pending llama.Token) (err error) {
	for {
		d.remember(pending)
		more := true
		if src, length := d.choose(g.room()); src == nil {
			pending, err = d.single(g, pending)
		} else {
			pending, more, err = d.round(g, src, length, pending)
		}
		if err != nil || !more || !g.take(pending) {
			return err
		}
	}
}

func (d *drafter) remember(t llama.Token) {
	if d.lookup != nil {
		d.text.add(t)
	}
}

// single decodes one token by the whole model and samples the next.
func (d *drafter) single(g *generation, pending llama.Token) (next llama.Token, err error) {
	began := time.Now()
	d.batch = append(d.batch[:0], pending)
	if err := d.s.decode(d.batch, skip.Mask{}, 1); err != nil {
		return llama.NoToken, err
	}
	if next, err = g.sampler.Sample(d.s.ctx, -1); err != nil {
		return llama.NoToken, err
	}
	if d.singles++; d.singles > 1 { // the first one after a draft has a graph to build
		d.pace.saw(1, time.Since(began))
		d.steps = 0
	}
	d.ahead += lossShare
	return next, nil
}

// remeasure is after how many drafts single tokens are timed again: that time
// grows with the context.
const remeasure = 20

// lossShare is the share of the time of plain decoding that drafts may cost
// where they fail, and lossTokens how many tokens' time beside that, to begin with.
const (
	lossShare  = 0.005
	lossTokens = 3
)

// wonBefore is how much of what was won in earlier answers may be lost in
// another one, in tokens' time.
const wonBefore = 6

// tryMost bounds drafts that are made to find out what a source is worth.
const tryMost = 3

// tryEvery is how often a source other than the best one is tried, in drafts.
const tryEvery = 16

// choose decides over the next step: the source of a draft and how long it may
// get, or nil for a single token. No draft gets so long that its failure would
// cost more than was won so far, and what may be lost.
func (d *drafter) choose(room int) (src *source, length int) {
	most := d.bound(room)
	if most < 1 {
		return nil, 0
	}
	if d.fixed {
		if len(d.masks) > 0 {
			return d.masks[0], most
		}
		return d.lookup, most
	}
	if d.steps >= remeasure {
		return nil, 0
	}
	sources, match := d.masks, 0
	if d.lookup != nil {
		if _, match = d.text.draft(d.tokens[:0], 1); match > 0 {
			sources = append(sources[:len(sources):len(sources)], d.lookup)
		}
	}
	if len(sources) == 0 {
		d.bare++
	}
	var best, promising *source
	var bestLength, promisingLength int
	rate, promise, hope := 1.0, 1.0, &d.pace.hoped
	for _, s := range sources {
		longest := d.pace.affordable(&s.cost, 1+lossTokens+d.ahead, most)
		odds := s.odds.mean(s.prior)
		if s.lookup {
			odds = s.odds.of(matchClass(match), s.prior)
		}
		if n, r := d.pace.best(&s.cost, min(odds, mostOdds), longest); r > rate {
			best, bestLength, rate = s, n, r
			if !s.lookup {
				bestLength = longest // it ends where the next token would not pay
			}
		}
		try := hope.affordable(&s.cost, 1+lossTokens+min(d.ahead, 0), min(most, tryMost))
		if _, r := hope.best(&s.cost, s.odds.hope(s.prior), try); r > promise {
			promising, promisingLength, promise = s, try, r
		}
	}
	d.trying = best == nil || promising != best && promise > rate && d.rounds%tryEvery == tryEvery-1
	if d.trying {
		return promising, promisingLength
	}
	return best, bestLength
}

// bound is the longest draft that there is room for, when room more tokens may
// be taken: with one of the whole model's own behind it.
func (d *drafter) bound(room int) int {
	return min(d.most, room-1, d.s.batch.Cap()-1, d.s.ctx.NCtx()-len(d.s.cached)-1)
}

// round drafts after pending, the last token that was taken, and lets the whole
// model verify it. next is the token that follows those that were accepted; more
// is false when the answer has ended with one of them.
func (d *drafter) round(g *generation, src *source, length int, pending llama.Token) (next llama.Token, more bool, err error) {
	s, began, base := d.s, time.Now(), len(d.s.cached)
	d.tokens, d.class = d.tokens[:0], d.class[:0]
	if src.lookup {
		d.lookUp(length)
	} else if err := d.draft(g, src, length, pending); err != nil {
		return llama.NoToken, false, err
	}
	if len(d.tokens) == 0 { // nothing that is worth being verified
		if err := s.forget(base); err != nil {
			return llama.NoToken, false, err
		}
		d.singles = 0
		next, err = d.single(g, pending)
		d.account(src, 1, time.Since(began))
		return next, true, err
	}
	verifying := time.Now()
	if err := s.forget(base); err != nil { // what the draft left in the KV cache lacks layers
		return llama.NoToken, false, err
	}
	d.batch = append(append(d.batch[:0], pending), d.tokens...)
	if err := s.decode(d.batch, skip.Mask{}, len(d.batch)); err != nil {
		return llama.NoToken, false, err
	}
	accepted, next, more, err := d.verify(g)
	if err == nil {
		err = s.forget(base + 1 + accepted)
	}
	d.pace.saw(len(d.batch), time.Since(verifying))
	for i, class := range d.class[:min(accepted+1, len(d.tokens))] {
		src.odds.count(class, i < accepted)
	}
	g.a.Drafting.count(src, len(d.tokens), accepted)
	if d.drafted[src] == nil {
		d.drafted[src] = &judged{}
	}
	d.drafted[src].accepted += accepted
	d.drafted[src].decided += min(accepted+1, len(d.tokens))
	d.steps++
	d.rounds++
	d.singles = 0
	d.account(src, accepted+1, time.Since(began))
	return next, more, err
}

// judged counts drafted tokens that were accepted, and those that were decided
// over: what comes behind one that was not accepted is not.
type judged struct{ accepted, decided int }

// possible is [Drafting].Possible for an answer of so many tokens.
func (d *drafter) possible(tokens int) float64 {
	var most *source
	for src, j := range d.drafted {
		if most == nil || j.decided > d.drafted[most].decided {
			most = src
		}
	}
	if most == nil {
		return 0
	}
	j := d.drafted[most]
	_, rate := d.pace.best(&most.cost, float64(j.accepted)/float64(j.decided), d.most)
	return float64(tokens) / (float64(d.bare) + float64(tokens-d.bare)/max(rate, 1))
}

// account books what a step won over one token at a time, or lost. What it took
// beyond the usual was an interruption by another program: nobody's loss.
func (d *drafter) account(src *source, tokens int, took time.Duration) {
	usual := src.cost.once + float64(len(d.tokens))*src.cost.each + d.pace.of(len(d.tokens)+1)
	d.ahead += float64(tokens)*(1+lossShare) - min(d.pace.tokens(took), usual)
}

// verify takes the drafted tokens that the whole model accepts, whose logits are
// there, and chooses the token after them.
func (d *drafter) verify(g *generation) (accepted int, next llama.Token, more bool, err error) {
	for i, t := range d.tokens {
		if err := g.sampler.Distribution(d.s.ctx, i, &d.p); err != nil {
			return i, llama.NoToken, false, err
		}
		if !d.judge.accepts(&d.p, &d.q[i], t) {
			next = d.judge.instead(&d.p, &d.q[i])
			g.sampler.Take(next)
			return i, next, true, nil
		}
		g.sampler.Take(t)
		if !g.take(t) {
			return i + 1, llama.NoToken, false, nil
		}
		d.remember(t)
	}
	next, err = g.sampler.Sample(d.s.ctx, len(d.tokens))
	return len(d.tokens), next, err == nil, err
}

// lookUp drafts what came behind the text's last tokens where they last occurred.
func (d *drafter) lookUp(length int) {
	var match int
	d.tokens, match = d.text.draft(d.tokens, length)
	for i, t := range d.tokens {
		d.class = append(d.class, matchClass(match))
		d.q[i].Tokens, d.q[i].P = append(d.q[i].Tokens[:0], t), append(d.q[i].P[:0], 1)
	}
}

// draft generates tokens under the source's mask: most of them if that is fixed
// or a try, else as many as pay.
func (d *drafter) draft(g *generation, src *source, most int, pending llama.Token) error {
	if err := d.drawing.Follow(g.sampler); err != nil {
		return err
	}
	d.took = d.took[:0]
	defer func() { src.cost.learn(d.took) }()
	always, mean := d.fixed || d.trying, min(src.odds.mean(src.prior), mostOdds)
	_, rate := d.pace.best(&src.cost, mean, most)
	rate = max(rate, 1) // that the time could bring otherwise
	reach := 1.0        // chance that all tokens so far are accepted
	for token := pending; len(d.tokens) < most; {
		n, began := len(d.tokens), time.Now()
		d.batch = append(d.batch[:0], token)
		if err := d.s.decode(d.batch, src.mask, 1); err != nil {
			return err
		}
		q := &d.q[n]
		if err := d.drawing.Distribution(d.s.ctx, -1, q); errors.Is(err, llama.ErrNoToken) {
			return nil // a grammar that the draft has led into a dead end
		} else if err != nil {
			return err
		}
		token = d.judge.draw(q)
		d.drawing.Take(token)
		sure, err := d.sureOf(q)
		if err != nil {
			return err
		}
		d.took = append(d.took, d.pace.tokens(time.Since(began)))
		class := probabilityClass(sure)
		chance := min(src.odds.of(class, src.prior), mostOdds)
		ends := d.s.model.Vocab.IsEnd(token)
		goOn := !ends && (always || d.pace.goOn(n+1, reach*chance, &src.cost, mean, rate, most))
		if !goOn && !ends && !always && reach*chance < rate*(d.pace.of(n+2)-d.pace.of(n+1)) {
			return nil // not even this token is worth being verified
		}
		d.tokens, d.class = append(d.tokens, token), append(d.class, class)
		if reach *= chance; !goOn {
			return nil
		}
	}
	return nil
}

// sureOf is the probability of the draft's likeliest token: under greedy
// sampling, of which q says nothing, before sampling.
func (d *drafter) sureOf(q *llama.Distribution) (float64, error) {
	if len(q.P) > 1 {
		return float64(slices.Max(q.P)), nil
	}
	logits, err := d.s.ctx.Logits(-1)
	if err != nil {
		return 0, err
	}
	_, p := llama.TopProbability(logits)
	return p, nil
}

func (d *Drafting) count(src *source, drafted, accepted int) {
	d.Rounds++
	d.Lengths[accepted]++
	d.Drafted += drafted
	d.Accepted += accepted
	if src.lookup {
		d.LookedUp += drafted
	} else {
		d.Masks[src.mask] += drafted
	}
}
