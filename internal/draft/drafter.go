package draft

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/gallop-llm/gallop/internal/costs"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// MaxDraft is the longest draft, in tokens: the bound of γ in the papers.
const MaxDraft = 16

// Options makes answers those of the whole model, only faster: the
// model without some of its layers drafts a few tokens, or they are looked up in
// what was said before, and the whole model verifies all of them in one batch,
// in the same context, with the same weights and KV cache (Zhang et al.: Draft &
// Verify, arXiv 2309.08168). Greedy answers are the same tokens; drawn ones have
// the same distribution. Ours differs in how drafts end: their length follows
// from measured times and acceptance, and where no draft is expected to win,
// tokens are decoded one at a time.
type Options struct {
	// Masks are what drafts may be made under; which one wins shows while
	// generating. None = drafts are only looked up.
	Masks []Mask

	MaxDraft int  // tokens in a draft at most, 1 to [MaxDraft]; 0 = MaxDraft
	NoLookup bool // drafts come from masks only

	// Fixed drafts MaxDraft tokens each time, under the first mask or, without
	// one, looked up, whether it pays or not: for tests and measurements.
	Fixed bool
}

// Mask is a mask to draft under, and what is known of it beforehand.
type Mask struct {
	Mask       skip.Mask
	Cost       float64 // of a drafted token, as a share of the whole model's; 0 = by the bytes of weights that are read
	Acceptance float64 // share of its tokens that is expected to be accepted, 0 to 1; 0 = not known
}

// Stats is what drafts brought for an answer.
type Stats struct {
	Rounds   int               // drafts that were verified
	Lengths  [MaxDraft + 1]int // rounds by how many of their tokens were accepted
	Drafted  int               // tokens
	Accepted int               // of these
	LookedUp int               // of Drafted: were looked up
	Masks    map[skip.Mask]int // drafted tokens by mask
	Plain    time.Duration     // what generating would have taken one token at a time: their number times the time of one

	// Possible is the speed-up that the cost model predicts, given the acceptance rate
	// of this answer and the best length of drafts, where the source that drafted most
	// has something to draft; 0 = nothing was drafted.
	Possible float64

	// Rounding is how far a token's logits are apart at most when it is decoded
	// alone and in a batch, as seen so far: where the whole model's likeliest
	// tokens are closer than that, answers may part. 0 = to the last bit the same.
	Rounding float64
}

// Add adds the counts of another answer.
func (d *Stats) Add(other *Stats) {
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
func (d *Stats) Acceptance() float64 { return float64(d.Accepted) / float64(max(d.Drafted, 1)) }

// TokensPerRound is how many tokens a verification gave, its own included.
func (d *Stats) TokensPerRound() float64 {
	return float64(d.Accepted+d.Rounds) / float64(max(d.Rounds, 1))
}

// Check refuses what cannot be drafted with. The error wraps [ErrLossless] or [skip.ErrMask].
func (o *Options) Check(m *llama.Model) error {
	if err := checkForgetting(m); err != nil {
		return err
	}
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
	mask       skip.Mask
	lookup     bool
	cost       draftCost
	acceptance acceptance
	prior      float64 // chance of acceptance that was believed before anything was tried
}

// Beliefs of before anything was tried. Low ones would keep a good source from
// ever being tried, and a bad one shows soon.
const (
	priorMask   = 0.8
	priorLookup = 0.6
)

// Drafter makes drafts and has them verified, for one session. What it learns of
// the machine and of the masks stays from answer to answer.
type Drafter struct {
	model     *llama.Model
	seq       Sequence       // of this answer
	answer    Answer         // likewise
	sampler   *llama.Sampler // likewise; not closed here
	stats     *Stats
	isolation llama.Isolation // what of a verification is computed token by token
	company   bool            // other answers took part in a decode of this step: its time tells nothing
	most      int             // tokens in a draft
	fixed     bool
	costs     costModel
	listed    []Mask
	known     map[skip.Mask]*source
	masks     []*source // to draft under now
	lookup    *source   // nil = nothing is looked up
	reject    rejectionSampler

	drawing *llama.Sampler // the draft's sampler, which follows the answer's; nil before the first answer
	text    lookup         // of the conversation
	tokens  []llama.Token  // (γ,) the draft
	class   []int          // (γ,) how sure the draft is of each
	q       [MaxDraft]llama.Distribution
	p       llama.Distribution // of the whole model, for one token
	batch   []llama.Token      // (γ+1,) scratch
	took    []float64          // (γ,) scratch: tokens' time of each token of a draft

	mean, lower, upper [MaxDraft]float64 // (γ,) scratch: chances of a draft's tokens: likely, at least, at most

	drafted map[*source]*decided // in this answer
	bare    int                  // tokens of this answer for which no source had a draft

	same      compared
	reference []float32 // (nVocab,) logits that pending was sampled from
	row       int       // of the last batch, that pending was sampled from; -1 = its last output
	first     int       // place of the answer's first token

	expected llama.Token // what was looked up for the next token, whether it is drafted or not
	match    int         // of expected; 0 = nothing was found

	ahead    float64       // tokens' time won over one at a time, and what may be lost; see costs.LossShare
	steps    int           // drafts since the time of a single token was last measured
	singles  int           // tokens decoded alone since the last batch
	switched time.Duration // time of the first of them, which has a graph to build; 0 = booked
	turned   bool          // the next single token follows another graph because of a draft
	trying   bool          // the draft is made to find out what its source is worth
	trial    *source       // whose one token is held against the one that the whole model chooses alone; nil = none
	rounds   int
	emitted  time.Duration // in which a draft's tokens were given to the caller

	learned bool // something that [Options].Learned does not have
}

// New makes a drafter for a model, which knows what was learnt of batches earlier (nil =
// nothing). The error wraps [ErrLossless] or [skip.ErrMask].
func New(m *llama.Model, o *Options, known *costs.Batches) (*Drafter, error) {
	if err := o.Check(m); err != nil {
		return nil, err
	}
	d := &Drafter{model: m, known: map[skip.Mask]*source{}, isolation: llama.AttentionAlone}
	d.set(o)
	d.reject.excess = make([]float32, m.Vocab.Size)
	if d.recall(known); d.isolation == llama.AttentionAlone {
		d.costs.apart = apart(m)
	}
	return d, nil
}

// Set changes how drafts are made from the next answer on. What was learned stays.
func (d *Drafter) Set(o *Options) error {
	if err := o.Check(d.model); err != nil {
		return err
	}
	d.set(o)
	return nil
}

func (d *Drafter) set(o *Options) {
	d.most, d.fixed, d.listed = cmp.Or(o.MaxDraft, MaxDraft), o.Fixed, o.Masks
	switch {
	case o.NoLookup:
		d.lookup = nil
	case d.lookup == nil:
		d.lookup = &source{lookup: true, prior: priorLookup}
	}
}

// recall takes in what was learnt earlier of batches.
func (d *Drafter) recall(b *costs.Batches) {
	if b == nil || b.Compared == 0 && len(b.Costs) == 0 {
		return
	}
	d.isolation, d.same = b.Isolation, compared{sizes: b.Compared, most: b.Rounding, anyway: b.Rounding > 0}
	d.costs.recall(b.Graph, b.Costs)
}

// Learned is what was learnt of batches; nil = nothing new.
func (d *Drafter) Learned() *costs.Batches {
	if !d.learned {
		return nil
	}
	d.learned = false
	b := &costs.Batches{Isolation: d.isolation, Compared: d.same.sizes, Rounding: d.same.most, Graph: d.costs.graph, Costs: map[int]float64{}}
	for n, cost := range d.costs.cost {
		if d.costs.seen[n].N() >= trusted {
			b.Costs[n] = cost
		}
	}
	return b
}

// Isolation is how exactly an answer's tokens must come out as if each were decoded alone.
func (d *Drafter) Isolation() llama.Isolation { return d.isolation }

// decode is the sequence's, and notes whether other answers took part.
func (d *Drafter) decode(tokens []llama.Token, mask skip.Mask, outputs int) error {
	err := d.seq.Decode(tokens, mask, outputs)
	d.company = d.company || !d.seq.Alone()
	return err
}

// SetMasks says what drafts may be made under: first if that skips something,
// then what the options list. What was learned of a mask stays.
func (d *Drafter) SetMasks(first skip.Mask) {
	d.masks = d.masks[:0]
	if !first.IsEmpty() {
		d.masks = append(d.masks, d.source(Mask{Mask: first}))
	}
	for _, m := range d.listed {
		if m.Mask != first || first.IsEmpty() {
			d.masks = append(d.masks, d.source(m))
		}
	}
}

// List takes the profile's masks to draft under, with what is expected of them
// for a prompt, in place of the options'.
func (d *Drafter) List(drafts []router.Draft) {
	d.listed = nil
	for _, draft := range drafts {
		m := Mask{Mask: draft.Mask, Cost: 1 - draft.Depth/float64(d.model.NLayer), Acceptance: draft.Acceptance}
		d.source(m).prior = min(max(m.Acceptance, leastPrior), mostAcceptance)
		d.listed = append(d.listed, m)
	}
}

// leastPrior is the lowest acceptance that is believed beforehand: predictions err.
const leastPrior = 0.05

// source is what is known of a mask.
func (d *Drafter) source(m Mask) *source {
	if src, ok := d.known[m.Mask]; ok {
		return src
	}
	src := &source{mask: m.Mask, prior: priorMask}
	if m.Acceptance > 0 {
		src.prior = min(m.Acceptance, mostAcceptance)
	}
	if src.cost.each = m.Cost; m.Cost == 0 {
		src.cost.each = 1 - skippedShare(d.model, m.Mask)
	}
	d.known[m.Mask] = src
	return src
}

// skippedShare is the share of the weights' bytes that a token does not read under
// a mask.
func skippedShare(m *llama.Model, mask skip.Mask) float64 {
	read, _ := m.TokenBytes()
	return float64(search.SizesOf(m.Tensors, m.NLayer).Bytes(mask)) / float64(max(read, 1))
}

// Close frees the sampler. Further calls do nothing.
func (d *Drafter) Close() error {
	if d == nil || d.drawing == nil {
		return nil
	}
	return d.drawing.Close()
}

// Begin prepares for an answer in a sequence that holds its prompt; the first token is not
// sampled yet. seed is of the choices over drafts.
func (d *Drafter) Begin(seq Sequence, answer Answer, sampler *llama.Sampler, prompt []llama.Token, seed uint32) {
	d.seq, d.answer, d.sampler, d.stats = seq, answer, sampler, &Stats{Masks: map[skip.Mask]int{}}
	d.drafted, d.bare = map[*source]*decided{}, 0
	d.ahead = min(d.ahead, wonBefore)
	d.singles, d.switched, d.turned, d.row, d.first, d.match = 0, 0, false, -1, d.seq.Len(), 0
	if seed == llama.RandomSeed {
		seed = rand.Uint32()
	}
	d.reject.random = rand.New(rand.NewPCG(uint64(seed), 0))
	if d.lookup != nil {
		d.text.reset(prompt)
	}
}

// AddPrompt takes in how long n tokens of a prompt took, decoded with nothing beside them.
func (d *Drafter) AddPrompt(n int, took time.Duration) { d.costs.addPrompt(n, took) }

// End sums up what drafts brought for the answer of so many tokens.
func (d *Drafter) End(tokens int) *Stats {
	s := d.stats
	s.Plain = time.Duration(float64(tokens-1) * d.costs.one * float64(time.Second))
	s.Possible, s.Rounding = d.possible(tokens), d.same.most
	d.seq, d.answer, d.sampler = nil, nil, nil
	return s
}

// Generate goes on with the answer after its first token. A token that is
// decoded alone comes from the sampler as without drafts.
func (d *Drafter) Generate(pending llama.Token) (err error) {
	for {
		d.remember(pending)
		more := true
		d.company = false
		switch src, length := d.choose(d.answer.Room()); {
		case src == nil:
			pending, err = d.single(pending)
		case length == 0:
			pending, err = d.try(src, pending)
		default:
			pending, more, err = d.round(src, length, pending)
		}
		if err != nil || !more || !d.answer.Take(pending, d.row, false) {
			return err
		}
	}
}

// remember takes in the answer's next token. What was looked up for it is counted
// whether it was drafted or not: how well looking up does is known for nothing.
func (d *Drafter) remember(t llama.Token) {
	if d.lookup == nil {
		return
	}
	if d.match > 0 {
		d.lookup.acceptance.count(matchClass(d.match), t == d.expected)
	}
	d.text.add(t)
	var next [1]llama.Token
	if _, d.match = d.text.draft(next[:0], 1); d.match > 0 {
		d.expected = next[0]
	}
}

// try drafts the token behind pending and does not have it verified in a batch: it is
// held against the token that the whole model gives when it decodes pending alone.
// That shows how often a mask is right for the price of its own tokens.
func (d *Drafter) try(src *source, pending llama.Token) (next llama.Token, err error) {
	began, base := time.Now(), d.seq.Len()
	d.cut(0)
	d.took = d.took[:0]
	if err := d.draft(src, 1, pending); err != nil {
		return llama.NoToken, err
	}
	d.seq.Forget(base)
	d.turn()
	if !d.company {
		d.ahead -= min(d.costs.tokens(time.Since(began)), d.costs.graph+src.dearest())
	}
	if len(d.tokens) == 0 { // a grammar's dead end
		return d.single(pending)
	}
	d.trial = src
	next, err = d.single(pending)
	d.trial = nil
	return next, err
}

// turn notes that the next token decoded alone has a graph to build because of a draft.
func (d *Drafter) turn() { d.singles, d.turned = 0, true }

// sample chooses the token that follows one decoded alone. Where that was drafted
// for a try, it is accepted or rejected like any draft.
func (d *Drafter) sample() (next llama.Token, err error) {
	if d.trial == nil {
		return d.sampler.Sample(d.seq.Context(), d.seq.Row(-1))
	}
	if err := d.sampler.Distribution(d.seq.Context(), d.seq.Row(-1), &d.p); err != nil {
		return llama.NoToken, err
	}
	next = d.tokens[0]
	kept := d.reject.accepts(&d.p, &d.q[0], next)
	if !kept {
		next = d.reject.instead(&d.p, &d.q[0])
	}
	d.sampler.Take(next)
	d.trial.acceptance.count(d.class[0], kept)
	return next, nil
}

// single decodes one token by the whole model and samples the next.
func (d *Drafter) single(pending llama.Token) (next llama.Token, err error) {
	began := time.Now()
	d.batch = append(d.batch[:0], pending)
	if err := d.decode(d.batch, skip.Mask{}, 1); err != nil {
		return llama.NoToken, err
	}
	if next, err = d.sample(); err != nil {
		return llama.NoToken, err
	}
	took := time.Since(began)
	d.row = -1
	if d.company {
		d.singles, d.switched, d.turned = 0, 0, false
		return next, nil
	}
	d.ahead += costs.LossShare
	switch d.singles++; {
	case d.singles == 1: // it has a graph to build
		d.switched = took
		if d.turned {
			d.ahead -= min(max(d.costs.tokens(took)-1, 0), d.costs.graph)
			d.turned = false
		}
		return next, nil
	case d.switched > 0:
		d.costs.addBatch(1, took)
		d.costs.addGraph(d.switched)
		d.switched = 0
	default:
		d.costs.addBatch(1, took)
	}
	d.steps = 0
	return next, nil
}

// remeasure is after how many drafts single tokens are timed again: that time
// grows with the context.
const remeasure = 20

// wonBefore is how much of what was won in earlier answers, or not spent on
// finding out, may be lost in another one, in tokens' time.
const wonBefore = 0.6

// mostRisk bounds the expected loss of one draft, in tokens' time, until more than
// twice as much was won: it leaves out drafts that can hardly win, like one token
// where batches of two are dear.
const mostRisk = 1.7

// tryMost bounds drafts that are made to find out what a source is worth.
const tryMost = 3

// tryTokens is how many tokens of a mask are tried without a draft at most: if so
// many do not show that a draft would pay, batches are too dear.
const tryTokens = 12

// tryEvery is how often a source other than the best one is tried, in drafts.
const tryEvery = 16

// choose decides over the next step: the source of a draft and how long it may
// get, 0 for a try, or nil for a single token. No draft gets so long that it is
// expected to lose more than was won so far, and what may be lost, by what its
// source has shown; while that is nothing, it is expected to fail.
func (d *Drafter) choose(room int) (src *source, length int) {
	most := d.bound(room)
	since := d.seq.Len() - d.first
	if most < 1 || since < 1 {
		return nil, 0
	}
	if d.fixed {
		if len(d.masks) > 0 {
			return d.masks[0], most
		}
		return d.lookup, most
	}
	if !d.seq.Alone() { // what a draft costs beside other answers is not known
		return nil, 0
	}
	if since < leastLead || d.costs.one == 0 || d.steps >= remeasure {
		return nil, 0
	}
	if len(d.masks) == 0 && d.match == 0 {
		d.bare++
		return nil, 0
	}
	var best, promising, hopeful *source
	var bestLength, promisingLength int
	rate, promise, wish := 1.0, 1.0, 1.0
	risk := min(d.ahead, max(mostRisk, d.ahead/2))
	consider := func(s *source) {
		cost := d.costOf(s)
		d.setChances(s, most)
		longest := d.costs.cautious.affordable(&cost, d.lower[:most], risk, d.extra)
		if n, r := d.costs.best(&cost, d.mean[:longest]); r > rate {
			best, bestLength, rate = s, n, r
			if !s.lookup {
				bestLength = longest // it ends where the next token would not pay
			}
		}
		try := min(longest, tryMost)
		if s.lookup {
			try = longest
		}
		n, r := d.costs.optimistic.best(&cost, d.upper[:try])
		if r > promise {
			promising, promisingLength, promise = s, n, r
		}
		if tried, _ := s.acceptance.sums(); s.lookup || tried >= tryTokens || d.ahead < cost.each+2*d.costs.graph {
			return
		}
		if _, r := d.costs.optimistic.best(&cost, d.upper[:most]); r > wish { // if batches are cheap
			hopeful, wish = s, r
		}
	}
	for _, s := range d.masks {
		consider(s)
	}
	if d.match > 0 {
		consider(d.lookup)
	}
	if best == nil && promising == nil {
		d.trying = true
		return hopeful, 0
	}
	d.trying = best == nil || promising != best && promise > rate && d.rounds%tryEvery == tryEvery-1
	if d.trying {
		return promising, promisingLength
	}
	return best, bestLength
}

// extra is how many tokens more a batch has that is compared; see [compared].
func (d *Drafter) extra(n int) int {
	if d.same.known(batchSize(n + 1)) {
		return 0
	}
	return 1
}

// costOf is what drafts of a source cost. Where it is not known yet, a draft costs
// a graph: that of the mask, or, looked up, that of the token behind it.
func (d *Drafter) costOf(s *source) draftCost {
	cost := draftCost{once: s.cost.once, each: s.cost.each}
	if s.cost.first.N() < trusted {
		cost.once = d.costs.graph
	}
	return cost
}

// setChances works out with what chances the tokens of a source's next draft are
// accepted. How often what is looked up is right is counted without drafts, so
// its upper bound is its mean.
func (d *Drafter) setChances(s *source, most int) {
	mean, upper := s.acceptance.mean(s.prior), s.acceptance.upper(s.prior)
	tried, kept := s.acceptance.sums()
	lower := kept / (tried + 1)
	for i := range most {
		if s.lookup {
			class := matchClass(d.match + i)
			lower = s.acceptance.lower(class)
			mean = max(s.acceptance.of(class, s.prior), lower)
			upper = mean
		}
		d.mean[i], d.lower[i], d.upper[i] = min(mean, mostAcceptance), min(lower, mostAcceptance), min(upper, mostAcceptance)
	}
}

// bound is the longest draft that there is room for, when room more tokens may
// be taken: with one of the whole model's own behind it.
func (d *Drafter) bound(room int) int {
	most := d.most
	if !d.fixed {
		most = min(most, MaxDraft/columns*columns-1) // and the token before it
	}
	return min(most, room-1, d.seq.Most()-columns, d.seq.Room()-1)
}

// round drafts after pending, the last token that was taken, and lets the whole
// model verify it. next is the token that follows those that were accepted; more
// is false when the answer has ended with one of them.
func (d *Drafter) round(src *source, length int, pending llama.Token) (next llama.Token, more bool, err error) {
	began, base := time.Now(), d.seq.Len()
	d.cut(0)
	d.took, d.emitted = d.took[:0], 0
	if err := d.keepReference(); err != nil {
		return llama.NoToken, false, err
	}
	if src.lookup {
		d.lookUp(length)
	} else if err := d.draft(src, length, pending); err != nil {
		return llama.NoToken, false, err
	}
	if len(d.tokens) == 0 { // nothing that is worth being verified
		d.seq.Forget(base)
		d.turn()
		next, err = d.single(pending)
		d.account(src, 1, 1, time.Since(began))
		return next, true, err
	}
	verifying := time.Now()
	lead := d.lead()
	if err := d.verifiable(pending, base, lead); err != nil {
		return llama.NoToken, false, err
	}
	accepted, next, more, err := d.verify(lead)
	d.seq.Forget(base + 1 + accepted)
	d.row = lead + accepted
	d.addBatch(len(d.batch), time.Since(verifying)-d.emitted)
	if !src.lookup { // what is looked up is counted when it is remembered
		for i, class := range d.class[:min(accepted+1, len(d.tokens))] {
			src.acceptance.count(class, i < accepted)
		}
	}
	d.stats.count(src, len(d.tokens), accepted)
	if d.drafted[src] == nil {
		d.drafted[src] = &decided{}
	}
	d.drafted[src].accepted += accepted
	d.drafted[src].decided += min(accepted+1, len(d.tokens))
	d.steps++
	d.rounds++
	d.turn()
	d.account(src, len(d.batch), accepted+1, time.Since(began)-d.emitted)
	return next, more, err
}

// decided counts drafted tokens that were accepted, and those that were decided
// over: what comes behind one that was not accepted is not.
type decided struct{ accepted, decided int }

// possible is [Stats].Possible for an answer of so many tokens.
func (d *Drafter) possible(tokens int) float64 {
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
	cost := d.costOf(most)
	_, rate := d.costs.best(&cost, fill(d.mean[:d.most], float64(j.accepted)/float64(j.decided)))
	return float64(tokens) / (float64(d.bare) + float64(tokens-d.bare)/max(rate, 1))
}

// addBatch takes in the time of a batch.
func (d *Drafter) addBatch(n int, took time.Duration) {
	if d.company {
		return
	}
	d.costs.addBatch(n, took)
	d.learned = d.learned || d.costs.seen[n].N() <= trusted
}

// account books what a step with a batch of n tokens won over one token at a
// time, or lost. What it took beyond what it can cost was an interruption by
// another program: nobody's loss.
func (d *Drafter) account(src *source, n, tokens int, took time.Duration) {
	if d.company {
		return
	}
	most := d.costOf(src).once + float64(len(d.took))*src.dearest() + max(d.costs.cautious.of(n), d.costs.cost[n])
	d.ahead += float64(tokens)*(1+costs.LossShare) - min(d.costs.tokens(took), most)
}

// dearest is what a drafted token costs at most.
func (s *source) dearest() float64 {
	if s.lookup || s.cost.later.N() >= trusted {
		return s.cost.each
	}
	return max(s.cost.each, 1)
}

// verify takes the drafted tokens that the whole model accepts, whose logits are
// there behind lead others, and chooses the token after them.
func (d *Drafter) verify(lead int) (accepted int, next llama.Token, more bool, err error) {
	for i, t := range d.tokens {
		if err := d.sampler.Distribution(d.seq.Context(), d.seq.Row(lead+i), &d.p); err != nil {
			return i, llama.NoToken, false, err
		}
		if !d.reject.accepts(&d.p, &d.q[i], t) {
			next = d.reject.instead(&d.p, &d.q[i])
			d.sampler.Take(next)
			return i, next, true, nil
		}
		d.sampler.Take(t)
		emitting := time.Now()
		more := d.answer.Take(t, lead+i, true)
		if d.emitted += time.Since(emitting); !more {
			return i + 1, llama.NoToken, false, nil
		}
		d.remember(t)
	}
	next, err = d.sampler.Sample(d.seq.Context(), d.seq.Row(lead+len(d.tokens)))
	return len(d.tokens), next, err == nil, err
}

// lookUp drafts what came behind the text's last tokens where they last occurred.
func (d *Drafter) lookUp(length int) {
	var match int
	d.tokens, match = d.text.draft(d.tokens, length)
	for i, t := range d.tokens {
		d.class = append(d.class, matchClass(match+i))
		d.q[i].Tokens, d.q[i].P = append(d.q[i].Tokens[:0], t), append(d.q[i].P[:0], 1)
	}
}

// draft generates tokens under the source's mask: most of them if that is fixed
// or a try, else as many as pay.
func (d *Drafter) draft(src *source, most int, pending llama.Token) error {
	if d.drawing == nil {
		var err error
		if d.drawing, err = d.sampler.Clone(); err != nil {
			return err
		}
	} else if err := d.drawing.Follow(d.sampler); err != nil {
		return err
	}
	defer func() {
		if !d.company {
			src.cost.learn(d.took)
		}
	}()
	always, mean := d.fixed || d.trying, min(src.acceptance.mean(src.prior), mostAcceptance)
	cost := d.costOf(src)
	_, rate := d.costs.best(&cost, fill(d.mean[:most], mean))
	rate = max(rate, 1) // that the time could bring otherwise
	reach := 1.0        // chance that all tokens so far are accepted
	for token := pending; len(d.tokens) < most; {
		n, began := len(d.tokens), time.Now()
		d.batch = append(d.batch[:0], token)
		if err := d.decode(d.batch, src.mask, 1); err != nil {
			return err
		}
		q := &d.q[n]
		if err := d.drawing.Distribution(d.seq.Context(), d.seq.Row(-1), q); errors.Is(err, llama.ErrNoToken) {
			return nil // a grammar that the draft has led into a dead end
		} else if err != nil {
			return err
		}
		token = d.reject.draw(q)
		d.drawing.Take(token)
		sure, err := d.sureOf(q)
		if err != nil {
			return err
		}
		d.took = append(d.took, d.costs.tokens(time.Since(began)))
		class := probabilityClass(sure)
		chance := min(src.acceptance.of(class, src.prior), mostAcceptance)
		ends := d.model.Vocab.IsEnd(token)
		goOn := !ends && (always || d.costs.goOn(n+1, reach*chance, &cost, mean, rate, most))
		if !goOn && !ends && !always && reach*chance < rate*(d.costs.of(n+2)-d.costs.of(n+1)) {
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
func (d *Drafter) sureOf(q *llama.Distribution) (float64, error) {
	if len(q.P) > 1 {
		return float64(slices.Max(q.P)), nil
	}
	logits, err := d.seq.Context().Logits(d.seq.Row(-1))
	if err != nil {
		return 0, err
	}
	_, p := llama.TopProbability(logits)
	return p, nil
}

func (d *Stats) count(src *source, drafted, accepted int) {
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
