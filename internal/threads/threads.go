// Package threads chooses the number of threads for decoding single tokens while
// other programs come and go on the same cores.
//
// llama.cpp's threads meet after each of some hundred nodes of a token's graph. As
// many as there are cores are fastest on a machine that does nothing else. Beside
// one busy core the slowest of them gets half of a core, and all wait for it:
// fewer threads, each with a core of its own, are faster then. Where every core is
// busy, all threads are faster again, as they get a larger share.
//
// # Basics
//
// A [Controller] is told after each token how long it took and how long threads of
// it waited for others that did not run ([llama.Context.Stalled]), and names the
// number for the next one. [Others] tells how many threads of other programs run, so
// that there need be nothing to measure first.
//
// # Caveats
//
// The unit is the token, or as many as take 3 ms: a program that decodes several
// sequences at once passes their number as the work. A controller belongs to one
// goroutine.
package threads

import "time"

// What is tried when. A trial costs a few tokens at another speed.
const (
	// unit is how long decodes take that are looked at as one. A thread that shares
	// its core waits for some milliseconds at a time: of a tiny model's tokens most
	// are not held up at all then, and a few lose more time than the others take.
	unit = 3 * time.Millisecond

	// brief is the time of a token below which the threads' meetings may cost more than all but
	// one of them bring: a smaller number is tried once though none waits for a core.
	brief = 2 * time.Millisecond

	// trialTokens and trialTime are what a trial takes at least, unless it is clear
	// earlier that it fails. The time is that of a few turns of a scheduler.
	trialTokens = 3
	trialTime   = 12 * time.Millisecond

	// settled is after how many tokens the speed of a number is taken for known.
	settled = 2

	// crowded is the share of their time that threads wait for others that do not
	// run, from which on a smaller number is tried. It takes two tokens in a row to
	// come to it: single interruptions happen on every machine.
	crowded = 0.15

	// mostStall bounds what a token counts, for that.
	mostStall = 0.5

	// gain is what a smaller number must win. A larger one need only be as fast:
	// with no thread waiting for a core there is nothing to be lost by it.
	gain = 0.07

	// hopeless is how many times the usual time a number must take to rule out those
	// below it, even if its threads still wait for cores.
	hopeless = 1.6

	// shift is the ratio of a token's time to that at the end of the last round of
	// trials, or the other way round, from which on the next round begins at once:
	// the machine's load has changed.
	shift = 1.4

	// firstPause and lastPause are tokens between rounds of trials that found
	// nothing better. Each of them doubles the pause.
	firstPause = 32
	lastPause  = 128
)

// Weights of the newest token in the means.
const (
	newestTime  = 1.0 / 8
	newestStall = 1.0 / 4
)

// Controller chooses. The zero value is not ready: make one with [New].
type Controller struct {
	most    int
	others  func() int
	n       int     // the number in use, trials apart
	known   int     // tokens since n was changed
	usual   float64 // seconds a token takes on n threads
	stalled float64 // share of the threads' time, 0 to 1
	changes int     // of n
	tiny    bool    // it was tried whether fewer threads decode tokens this short faster
	seen    decodes // that are not yet a unit

	round round
	trial trial
	pause int     // tokens after this round
	wait  int     // tokens until the next round
	then  float64 // what usual was at the end of the last round; 0 = there was none
}

// decodes are some on the same number of threads.
type decodes struct {
	work          float64
	took, stalled time.Duration
}

// round is a search by halving for the largest number whose threads find a core
// each: low do, top do not.
type round struct {
	low, top int // top 0 = no round is going on
	down     bool
}

// trial is of n threads; 0 = none is going on.
type trial struct {
	n       int
	tokens  float64
	seconds float64
	stalled float64 // sum of the tokens' shares
	seen    float64 // decodes
}

// New makes a controller of up to most threads, with which it begins. Below 2
// there is nothing to choose. others is [Others], or what a test puts in its place.
func New(most int, others func() int) *Controller {
	return &Controller{most: most, others: others, n: most, pause: firstPause}
}

// Begin makes the cores that others leave free the number to begin with, and returns it. others
// is how many threads of theirs run. It is for tokens that are brief: of others it takes a few to
// find out, and what runs at one moment may be gone in the next.
func (c *Controller) Begin(others int) int {
	c.n = max(c.most-others, 1)
	return c.n
}

// Threads is how many threads the next token should be decoded with.
func (c *Controller) Threads() int {
	if c.trial.n != 0 {
		return c.trial.n
	}
	return c.n
}

// Settled is the number in use, trials apart.
func (c *Controller) Settled() int { return c.n }

// Most is the number that [New] was given.
func (c *Controller) Most() int { return c.most }

// Changes is how often the number has changed so far, trials apart.
func (c *Controller) Changes() int { return c.changes }

// Crowded reports whether threads wait for others that other programs keep from
// running.
func (c *Controller) Crowded() bool { return c.stalled > crowded }

// Observe takes in a decode on [Controller.Threads] threads: its work, in tokens
// by the whole model, how long it took, and how long its threads, all together,
// waited for others of them that did not run.
func (c *Controller) Observe(work float64, took, stalled time.Duration) {
	if c.most < 2 || work <= 0 || took <= 0 {
		return
	}
	d := decodes{c.seen.work + work, c.seen.took + took, c.seen.stalled + stalled}
	if c.seen = d; d.took < unit {
		return
	}
	c.seen = decodes{}
	work, took, stalled = d.work, d.took, d.stalled
	seconds := took.Seconds() / work
	share := 0.0
	if n := c.Threads(); n > 1 {
		share = min(stalled.Seconds()/took.Seconds()/float64(n-1), 1)
	}
	if c.trial.n != 0 {
		c.try(work, took.Seconds(), share)
		return
	}
	c.known++
	if c.known == 1 {
		c.usual = seconds
	}
	c.usual += newestTime * (min(seconds, 2*c.usual) - c.usual)
	c.stalled += newestStall * (min(share, mostStall) - c.stalled)
	c.wait--
	if c.then != 0 && max(c.usual/c.then, c.then/c.usual) > shift {
		c.wait, c.pause, c.then = 0, firstPause, 0
	}
	if c.known >= settled && c.wait <= 0 {
		c.begin()
	}
}

// begin starts a trial, if some number is worth one.
func (c *Controller) begin() {
	r := &c.round
	switch {
	case r.top != 0:
	case c.n > 1 && (c.Crowded() || !c.tiny && c.usual < brief.Seconds()):
		*r = round{low: 0, top: c.n, down: true}
		c.tiny = true
	case c.n < c.most:
		*r = round{low: c.n, top: c.most + 1}
	default:
		return
	}
	if r.top-r.low < 2 && r.down && c.n < c.most && c.Crowded() { // none below is better: one above may be
		*r = round{low: c.n, top: c.most + 1}
	}
	if n := (r.low + r.top) / 2; r.top-r.low > 1 && !c.taken(n) {
		c.trial = trial{n: n}
		return
	}
	*r = round{}
	c.wait, c.pause, c.then = c.pause, min(2*c.pause, lastPause), c.usual
}

// taken tells whether n threads, more than there are now, would need cores that others use, for
// tokens so brief that one turn of another program is as long as several of them. The threads
// of the last token may still be waiting for the next one.
func (c *Controller) taken(n int) bool {
	return n > c.n && c.usual < brief.Seconds() && n > c.most-max(c.others()-(c.n-1), 0)
}

// try takes in a token of the trial, and ends it when its outcome is clear.
func (c *Controller) try(work, seconds, share float64) {
	t := &c.trial
	t.tokens += work
	t.seconds += seconds
	t.stalled += share
	t.seen++
	bar := c.usual
	if t.n < c.n || t.stalled > crowded*t.seen {
		bar *= 1 - gain
	}
	lost := t.seconds > bar*max(t.tokens, trialTokens)
	if !c.Crowded() && share > crowded && seconds > bar*work {
		lost = true // there is no core for it
	}
	if lost || t.tokens >= trialTokens && t.seconds >= trialTime.Seconds() {
		c.end(!lost)
	}
}

// end closes the trial. What has won is the number in use from now on.
func (c *Controller) end(won bool) {
	t, r := c.trial, &c.round
	c.trial = trial{}
	switch stalled := t.stalled > crowded*t.seen; {
	case t.n < c.n && (!stalled || t.seconds > hopeless*c.usual*t.tokens), t.n > c.n && won:
		r.low = t.n
	default:
		r.top = t.n
	}
	if won {
		c.n, c.usual, c.stalled, c.known = t.n, t.seconds/t.tokens, t.stalled/t.seen, 1
		c.pause, c.then = firstPause, 0
		c.changes++
		return // the next trial is against what is known of this number then
	}
	c.begin()
}
