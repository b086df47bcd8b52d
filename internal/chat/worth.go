package chat

import (
	"fmt"
	"math"

	"github.com/gallop-llm/gallop/skip"
)

// worth finds out, while answers are generated, whether the mask that was chosen is
// faster than the whole model on this machine and for this text, and lets the answer go
// on with the whole model where it is not: the better answer for the same time.
//
// A mask's tokens cost 1/speed of the whole model's, and those in doubt are decided
// again. How much faster a token is under the mask hangs on the machine; how many are in
// doubt hangs on the text. Both are measured on the answer's own tokens. To compare, now
// and then a few tokens in a row are decoded the other way: by the whole model while the
// mask is in use, under the mask while it is not. What that costs is bounded by [lossShare].
type worth struct {
	known map[skip.Mask]*maskCost // by what tokens are decoded under, the shortlist included
	fresh bool                    // there is something to keep

	mask     skip.Mask // of the answer; empty = nothing is weighed
	complete bool      // tokens by the whole model and under the mask may follow each other
	prior    float64   // speed of the mask by the bytes that it leaves out, as of maskCost
	off      bool      // the whole model goes on
	run      int       // tokens left to be decoded the other way; 0 = none
	since    int       // tokens since the last run
	ahead    float64   // seconds that finding out may take now
	turn     float64   // seconds more that a token took whose graph was built anew, last
	count    Weighed

	// What is measured of the answer's tokens.
	key      skip.Mask // the mask, with the shortlist that was in use
	cost     *maskCost // of key
	threads  int
	masked   times     // seconds of a token under the mask whose graph was there
	whole    times     // … by the whole model
	compared bool      // the other way has been tried since speed was worked out last
	before   tokenTime // the token before
	began    bool      // there was one
}

// maskCost is what is known of a mask on this machine.
type maskCost struct {
	speed times   // of the whole model's token over the mask's; above 1 = the mask is faster
	again times   // time to decide a token again, with the graphs that are built for it, in tokens by the whole model
	doubt float64 // share of the tokens that were decided again, of late
	seen  int     // tokens under the mask
}

// tokenTime is what a token took.
type tokenTime struct {
	whole   bool    // decoded by the whole model alone
	seconds float64 // without again
	doubted bool    // the whole model decided it again
	again   float64 // seconds for that
}

// Weighed tells what was found out about the mask that an answer began with.
type Weighed struct {
	Speed  float64 // of the whole model's time for a token over that under the mask, second decodes included; 0 = not measured
	Masked int     // tokens decoded under the mask
	Whole  int     // tokens decoded by the whole model alone, to compare or because the mask did not pay
	Off    bool    // the mask did not pay in the end
}

const (
	// leastSpeedup is from which on a mask pays: what is measured is off by a percent or two.
	leastSpeedup = 1.03
	// wholeRun and maskedRun are how many tokens are decoded the other way at once. The
	// first has its graph to build. Under the mask some tokens must show the share in doubt.
	wholeRun  = 3
	maskedRun = 12
	// leastTimes is how many times tell what a token usually takes, leastTried how many
	// of a run do.
	leastTimes = 3
	leastTried = 2
	// unknownAgain is what deciding a token again is taken for before it was measured.
	unknownAgain = 1.2
	// doubtMemory is how many tokens are remembered of the share in doubt, and doubtPrior
	// as how many tokens without doubt an unknown mask counts.
	doubtMemory = 32
	doubtPrior  = 8
	// savedUp bounds what is not spent on finding out, in tokens.
	savedUp = 4
	// steady is how many tokens pass at least between runs once a mask's speed is well known.
	steady = 200
)

// begin prepares for an answer under mask, with a shortlist of list tokens; an empty mask
// is not weighed. complete says whether tokens by the whole model and under the mask may
// follow each other, prior how fast the mask is believed to be.
func (w *worth) begin(mask skip.Mask, complete bool, prior float64, list int) {
	w.count, w.run, w.began = Weighed{}, 0, false
	if mask != w.mask {
		w.masked = times{}
	}
	if w.mask, w.complete, w.prior, w.off = mask, complete, prior, false; mask.IsEmpty() {
		return
	}
	w.use(mask.WithShortlist(list), w.threads)
	w.off = w.lost()
}

// use makes the costs those of a mask with its shortlist on so many threads: times
// compare only at one number.
func (w *worth) use(key skip.Mask, threads int) {
	if key == w.key && threads == w.threads && w.cost != nil {
		return
	}
	w.key, w.threads, w.masked, w.whole, w.compared = key, threads, times{}, times{}, false
	if w.cost = w.known[key]; w.cost == nil {
		w.cost = &maskCost{}
		if w.known == nil {
			w.known = map[skip.Mask]*maskCost{}
		}
		w.known[key] = w.cost
	}
}

// next says whether the whole model decodes the next token, in place of the mask.
func (w *worth) next() (whole bool) {
	if w.mask.IsEmpty() {
		return false
	}
	if w.run == 0 {
		if w.run = w.affordable(); w.run > 0 && w.off {
			w.masked = times{}
		} else if w.run > 0 {
			w.whole = times{}
		}
	}
	return w.off != (w.run > 0)
}

// affordable is how many tokens may be decoded the other way now; 0 = none.
func (w *worth) affordable() int {
	if w.cost.speed.n >= recent && w.since < steady {
		return 0
	}
	n, times, more, possible := wholeRun, &w.masked, w.speed()-1, w.complete || w.count.Masked == 0
	if w.off {
		n, times, more, possible = maskedRun, &w.whole, w.total()-1, w.complete
	}
	price := float64(n)*max(more, 0)*times.at(usualTime) + 2*w.turnTime()
	if !possible || times.n < leastTimes || w.ahead < price {
		return 0
	}
	return n
}

// turnTime is what a graph's being built anew is taken to cost, in seconds.
func (w *worth) turnTime() float64 {
	if w.turn > 0 {
		return w.turn
	}
	return max(w.masked.at(usualTime), w.whole.at(usualTime))
}

// saw takes in a token, decoded as next said, with a shortlist of list tokens.
func (w *worth) saw(t tokenTime, list, threads int) {
	if w.mask.IsEmpty() {
		return
	}
	w.use(w.mask.WithShortlist(list), threads)
	w.fresh = true
	this, other := &w.masked, &w.whole
	if t.whole {
		this, other = other, this
		w.count.Whole++
	} else {
		w.count.Masked++
		w.cost.seeDoubt(t.doubted)
	}
	extra := 0.0
	if built := !w.began || t.whole != w.before.whole || w.before.doubted; !built {
		this.add(t.seconds)
	} else if this.n > 0 {
		extra = max(t.seconds-this.at(usualTime), 0)
		w.turn = extra
	}
	if usual := w.wholeTime(); w.began && w.before.doubted && usual > 0 {
		w.cost.again.add((w.before.again + extra) / usual)
	}
	w.ahead += lossShare * (t.seconds + t.again)
	w.since++
	switch {
	case w.run > 0: // the other way
		w.ahead -= max(t.seconds+t.again-other.at(usualTime), 0)
		w.run--
		w.since = 0
		w.compared = w.compared || w.run == 0
	case w.began && t.whole != w.before.whole: // back
		w.ahead -= extra
	}
	w.before, w.began = t, true
	if w.compared && w.run == 0 && w.masked.n >= leastTimes && w.whole.n >= leastTried {
		w.cost.speed.add(w.whole.at(usualTime) / w.masked.at(usualTime))
		w.compared = false
	}
	if w.run == 0 && (w.complete || w.off) {
		w.off = w.lost()
	}
}

// wholeTime is the usual time of a token by the whole model, in seconds; 0 = not known.
func (w *worth) wholeTime() float64 {
	if w.masked.n == 0 {
		return w.whole.at(usualTime)
	}
	return w.speed() * w.masked.at(usualTime)
}

// speed is the median of what was measured, or what is believed before.
func (w *worth) speed() float64 {
	if w.cost.speed.n == 0 {
		return w.prior
	}
	return w.cost.speed.at(0.5)
}

// total is what a token costs under the mask, in tokens by the whole model, second
// decodes included; 0 while that is not known.
func (w *worth) total() float64 {
	if w.cost.speed.n == 0 {
		return 0
	}
	again := unknownAgain
	if w.cost.again.n >= leastTimes {
		again = w.cost.again.at(0.5)
	}
	return 1/w.speed() + w.cost.doubt*again
}

// lost tells whether the mask was measured not to pay. Where that is not tried again, it
// takes more than one measurement.
func (w *worth) lost() bool {
	return w.total() > 1/leastSpeedup && (w.complete || w.cost.speed.n >= leastTimes)
}

// end gives the answer's account.
func (w *worth) end() Weighed {
	usual := max(w.masked.at(usualTime), w.whole.at(usualTime))
	w.ahead = min(w.ahead, savedUp*usual)
	if w.mask.IsEmpty() {
		return Weighed{}
	}
	w.count.Off = w.off
	if total := w.total(); total > 0 {
		w.count.Speed = 1 / total
	}
	return w.count
}

// seeDoubt takes in whether a token was decided again.
func (c *maskCost) seeDoubt(doubted bool) {
	c.seen++
	x := 0.0
	if doubted {
		x = 1
	}
	c.doubt += (x - c.doubt) / float64(min(c.seen+doubtPrior, doubtMemory))
}

// weighing settles whether an answer's mask is weighed, once it is known. One that was
// asked for is not: by hand, or at a depth that is always to be skipped. Nor is one that
// the prompt was decoded under too, which nothing can be put between.
func (s *Session) weighing() {
	r := s.opts.Routing
	mask := skip.Mask{}
	if r != nil && r.When != Never && !s.fixed && s.drafter == nil && !s.opts.ReleaseSkipped &&
		s.opts.Prefill == skip.FullPrefill && (r.Policy.Depth == 0 || r.Policy.Guard) {
		mask = s.mask
	}
	s.worth.begin(mask, mask.KVComplete(), 1/(1-skippedShare(s.model, mask)), s.list.size)
}

// threadsNow is the number of threads that the last token was decoded with; 0 = it is fixed.
func (s *Session) threadsNow() int {
	if s.pacer == nil {
		return 0
	}
	return s.pacer.now
}

// String says in a sentence what was found out; "" = nothing was weighed.
func (w Weighed) String() string {
	switch {
	case w.Masked+w.Whole == 0:
		return ""
	case w.Off:
		return fmt.Sprintf("does not pay: %.2f times as fast as the whole model, as measured; %d of %d tokens by the whole model", w.Speed, w.Whole, w.Masked+w.Whole)
	case w.Speed == 0:
		return "not measured yet whether it pays"
	}
	return fmt.Sprintf("pays: %.2f times as fast as the whole model, as measured", w.Speed)
}

// maskKept is a mask's costs in a file.
type maskKept struct {
	Speed float64 `json:"speed"`
	Again float64 `json:"again,omitempty"` // 0 = not measured
	Doubt float64 `json:"doubt"`
	Seen  int     `json:"seen"`
}

// valid tells whether what a file says can be.
func (k maskKept) valid() bool {
	return k.Speed > 0 && !math.IsInf(k.Speed, 0) && k.Again >= 0 && k.Doubt >= 0 && k.Doubt <= 1 && k.Seen >= 0
}

// recall takes in what a file keeps. Masks that cannot be read are measured again.
func (w *worth) recall(kept map[string]maskKept, ahead float64) {
	w.known = map[skip.Mask]*maskCost{}
	w.ahead = max(ahead, 0)
	for text, k := range kept {
		mask, err := skip.Parse(text)
		if err != nil {
			continue
		}
		c := &maskCost{doubt: k.Doubt, seen: k.Seen}
		c.speed.add(k.Speed)
		for range leastTimes {
			if k.Again > 0 {
				c.again.add(k.Again)
			}
		}
		w.known[mask] = c
	}
}

// keep gives what a file is to keep.
func (w *worth) keep() map[string]maskKept {
	kept := map[string]maskKept{}
	for mask, c := range w.known {
		if c.speed.n == 0 {
			continue
		}
		k := maskKept{Speed: c.speed.at(0.5), Doubt: c.doubt, Seen: min(c.seen, doubtMemory)}
		if c.again.n >= leastTimes {
			k.Again = c.again.at(0.5)
		}
		kept[mask.String()] = k
	}
	return kept
}
