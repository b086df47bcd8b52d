package costs

import (
	"cmp"
	"math"
	"math/bits"
	"strconv"
	"strings"

	"github.com/gallop-llm/gallop/skip"
)

// Weigher finds out, while answers are generated, whether the mask that was chosen is
// faster than the whole model on this machine and for this text, and lets the answer go
// on with the whole model where it is not: the better answer for the same time.
//
// A mask's tokens cost 1/speed of the whole model's, and those in doubt are decided
// again. How much faster a token is under the mask depends on the machine; how many are in
// doubt depends on the text. Both are measured on the answer's own tokens. To compare, now
// and then a few tokens in a row are decoded the other way: by the whole model while the
// mask is in use, under the mask while it is not. What that costs is bounded by [LossShare].
type Weigher struct {
	known map[underMask]*maskCost
	fresh bool // there is something to keep

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
	key      underMask
	cost     *maskCost // of key
	threads  int
	masked   Times // seconds of a token under the mask whose graph was there
	whole    Times // … by the whole model
	compared bool  // the other way has been tried since speed was worked out last
	before   Token // the token before
	began    bool  // there was one
}

// underMask is what tokens are decoded under: the mask, with the shortlist in use, and about how many tokens are
// before them. The more there are, the more of the time is attention's, and the less that of weights.
type underMask struct {
	mask   skip.Mask
	length int // as of lengthOf
}

// leastLength is from how many tokens on lengths are told apart, by powers of two.
const leastLength = 1024

// lengthOf is the power of two that a length lies above, counted from leastLength: 0 below leastLength.
func lengthOf(behind int) int { return bits.Len(uint(max(behind, 0) / leastLength)) }

// String is the key in a file: "4,f6" or, from 1,024 tokens on, "4,f6@1024".
func (k underMask) String() string {
	if k.length == 0 {
		return k.mask.String()
	}
	return k.mask.String() + "@" + strconv.Itoa(leastLength<<(k.length-1))
}

// parseUnderMask reads such a key.
func parseUnderMask(text string) (k underMask, err error) {
	mask, behind, long := strings.Cut(text, "@")
	if k.mask, err = skip.Parse(mask); err == nil && long {
		var n int
		n, err = strconv.Atoi(behind)
		k.length = lengthOf(n)
	}
	return k, err
}

// maskCost is what is known of a mask on this machine.
type maskCost struct {
	prior float64 // speed as measured behind fewer tokens; 0 = not measured
	speed Times   // of the whole model's token over the mask's; above 1 = the mask is faster
	again Times   // time to decide a token again, with the graphs that are built for it, in tokens by the whole model
	doubt float64 // share of the tokens that were decided again, of late
	seen  int     // tokens under the mask
}

// Token is what a token took.
type Token struct {
	Whole   bool    // decoded by the whole model alone
	Seconds float64 // without Again
	Doubted bool    // the whole model decided it again
	Again   float64 // seconds for that
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

// Begin prepares for an answer under mask, with a shortlist of list tokens; an empty mask
// is not weighed. complete says whether tokens by the whole model and under the mask may
// follow each other, prior how fast the mask is believed to be, behind how many tokens the
// answer begins.
func (w *Weigher) Begin(mask skip.Mask, complete bool, prior float64, list, behind int) {
	w.count, w.run, w.began = Weighed{}, 0, false
	if mask != w.mask {
		w.masked = Times{}
	}
	if w.mask, w.complete, w.prior, w.off = mask, complete, prior, false; mask.IsEmpty() {
		return
	}
	w.use(underMask{mask.WithShortlist(list), lengthOf(behind)}, w.threads)
	w.off = w.lost()
}

// use makes the costs those of a mask with its shortlist behind about as many tokens, on so many
// threads: Times compare only at one number. What a mask costs behind more tokens than ever before is
// believed to be what it cost behind fewer.
func (w *Weigher) use(key underMask, threads int) {
	if key == w.key && threads == w.threads && w.cost != nil {
		return
	}
	w.key, w.threads, w.masked, w.whole, w.compared = key, threads, Times{}, Times{}, false
	if w.cost = w.known[key]; w.cost == nil {
		w.cost = &maskCost{}
		for shorter := key; shorter.length > 0; {
			shorter.length--
			if c := w.known[shorter]; c != nil {
				w.cost = &maskCost{prior: c.believed(), again: c.again, doubt: c.doubt, seen: c.seen}
				break
			}
		}
		if w.known == nil {
			w.known = map[underMask]*maskCost{}
		}
		w.known[key] = w.cost
	}
}

// Next says whether the whole model decodes the next token, in place of the mask.
func (w *Weigher) Next() (whole bool) {
	if w.mask.IsEmpty() {
		return false
	}
	if w.run == 0 {
		if w.run = w.affordable(); w.run > 0 && w.off {
			w.masked = Times{}
		} else if w.run > 0 {
			w.whole = Times{}
		}
	}
	return w.off != (w.run > 0)
}

// Off tells whether the whole model goes on where nothing can be compared, as beside other
// answers. Such a token is told to [Weigher.Beside].
func (w *Weigher) Off() bool { return w.off }

// Beside takes in a token whose time tells nothing, because its decode was shared with other
// answers: what was being compared is given up.
func (w *Weigher) Beside(t Token) {
	if w.mask.IsEmpty() {
		return
	}
	if t.Whole {
		w.count.Whole++
	} else {
		w.count.Masked++
		w.cost.seeDoubt(t.Doubted)
	}
	w.run, w.began = 0, false
}

// affordable is how many tokens may be decoded the other way now; 0 = none.
func (w *Weigher) affordable() int {
	if w.cost.speed.N() >= Recent && w.since < steady {
		return 0
	}
	n, times, more, possible := wholeRun, &w.masked, w.speed()-1, w.complete || w.count.Masked == 0
	if w.off {
		n, times, more, possible = maskedRun, &w.whole, w.total()-1, w.complete
	}
	price := float64(n)*max(more, 0)*times.At(Usual) + 2*w.turnTime()
	if !possible || times.N() < leastTimes || w.ahead < price {
		return 0
	}
	return n
}

// turnTime is what a graph's being built anew is taken to cost, in seconds.
func (w *Weigher) turnTime() float64 {
	if w.turn > 0 {
		return w.turn
	}
	return max(w.masked.At(Usual), w.whole.At(Usual))
}

// Saw takes in a token, decoded as next said behind so many others, with a shortlist of list tokens.
func (w *Weigher) Saw(t Token, list, threads, behind int) {
	if w.mask.IsEmpty() {
		return
	}
	w.use(underMask{w.mask.WithShortlist(list), lengthOf(behind)}, threads)
	w.fresh = true
	this, other := &w.masked, &w.whole
	if t.Whole {
		this, other = other, this
		w.count.Whole++
	} else {
		w.count.Masked++
		w.cost.seeDoubt(t.Doubted)
	}
	extra := 0.0
	if built := !w.began || t.Whole != w.before.Whole || w.before.Doubted; !built {
		this.Add(t.Seconds)
	} else if this.N() > 0 {
		extra = max(t.Seconds-this.At(Usual), 0)
		w.turn = extra
	}
	if usual := w.wholeTime(); w.began && w.before.Doubted && usual > 0 {
		w.cost.again.Add((w.before.Again + extra) / usual)
	}
	w.ahead += LossShare * (t.Seconds + t.Again)
	w.since++
	switch {
	case w.run > 0: // the other way
		w.ahead -= max(t.Seconds+t.Again-other.At(Usual), 0)
		w.run--
		w.since = 0
		w.compared = w.compared || w.run == 0
	case w.began && t.Whole != w.before.Whole: // back
		w.ahead -= extra
	}
	w.before, w.began = t, true
	if w.compared && w.run == 0 && w.masked.N() >= leastTimes && w.whole.N() >= leastTried {
		w.cost.speed.Add(w.whole.At(Usual) / w.masked.At(Usual))
		w.compared = false
	}
	if w.run == 0 && (w.complete || w.off) {
		w.off = w.lost()
	}
}

// wholeTime is the usual time of a token by the whole model, in seconds; 0 = not known.
func (w *Weigher) wholeTime() float64 {
	if w.masked.N() == 0 {
		return w.whole.At(Usual)
	}
	return w.speed() * w.masked.At(Usual)
}

// speed is the median of what was measured, or what is believed before.
func (w *Weigher) speed() float64 { return cmp.Or(w.cost.believed(), w.prior) }

// believed is the median of what was measured, of a shorter length if not of this one; 0 = neither was.
func (c *maskCost) believed() float64 {
	if c.speed.N() == 0 {
		return c.prior
	}
	return c.speed.At(0.5)
}

// total is what a token costs under the mask, in tokens by the whole model, second
// decodes included; 0 while that is not known.
func (w *Weigher) total() float64 {
	if w.cost.speed.N() == 0 {
		return 0
	}
	again := unknownAgain
	if w.cost.again.N() >= leastTimes {
		again = w.cost.again.At(0.5)
	}
	return 1/w.speed() + w.cost.doubt*again
}

// lost tells whether the mask was measured not to pay. Where that is not tried again, it
// takes more than one measurement.
func (w *Weigher) lost() bool {
	return w.total() > 1/leastSpeedup && (w.complete || w.cost.speed.N() >= leastTimes)
}

// End gives the answer's account.
func (w *Weigher) End() Weighed {
	usual := max(w.masked.At(Usual), w.whole.At(Usual))
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

// Fresh tells whether there is something to keep that was not kept yet.
func (w *Weigher) Fresh() bool { return w.fresh }

// Ahead is what finding out may take now, in seconds.
func (w *Weigher) Ahead() float64 { return w.ahead }

// Kept is a mask's costs in a file.
type Kept struct {
	Speed float64 `json:"speed"`
	Again float64 `json:"again,omitempty"` // 0 = not measured
	Doubt float64 `json:"doubt"`
	Seen  int     `json:"seen"`
}

// valid tells whether what a file says can be.
func (k Kept) valid() bool {
	return k.Speed > 0 && !math.IsInf(k.Speed, 0) && k.Again >= 0 && k.Doubt >= 0 && k.Doubt <= 1 && k.Seen >= 0
}

// Recall takes in what a file keeps. Masks that cannot be read are measured again.
func (w *Weigher) Recall(kept map[string]Kept, ahead float64) {
	w.known = map[underMask]*maskCost{}
	w.ahead = max(ahead, 0)
	for text, k := range kept {
		key, err := parseUnderMask(text)
		if err != nil {
			continue
		}
		c := &maskCost{doubt: k.Doubt, seen: k.Seen}
		c.speed.Add(k.Speed)
		for range leastTimes {
			if k.Again > 0 {
				c.again.Add(k.Again)
			}
		}
		w.known[key] = c
	}
}

// Keep gives what a file is to keep.
func (w *Weigher) Keep() map[string]Kept {
	w.fresh = false
	kept := map[string]Kept{}
	for key, c := range w.known {
		if c.speed.N() == 0 {
			continue
		}
		k := Kept{Speed: c.speed.At(0.5), Doubt: c.doubt, Seen: min(c.seen, doubtMemory)}
		if c.again.N() >= leastTimes {
			k.Again = c.again.At(0.5)
		}
		kept[key.String()] = k
	}
	return kept
}
