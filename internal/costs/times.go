// Package costs knows what decoding costs on this machine: how long tokens take, whether a
// mask pays, and what was learnt of that in earlier processes.
//
// # Basics
//
// [Times] are the last measurements of something. A [Weigher] finds out while answers are
// generated whether a mask is faster than the whole model. A [File] keeps what was found out
// from process to process, at [Path].
//
// # Caveats
//
// Measurements are only of use where nothing else shares the decodes that are measured. A
// weigher belongs to one goroutine at a time.
package costs

import "slices"

// LossShare is the share of the time of plain decoding that finding out what is faster
// may cost.
const LossShare = 0.014

// Recent is how many measurements count: few, because they should be of now, and enough that
// some of them were not interrupted by another program.
const Recent = 5

// Times are the last measurements of something.
type Times struct {
	last [Recent]float64
	n    int
}

// Usual is the share of times that are shorter than what something usually takes.
const Usual = 0.25

// N is how many measurements there were so far.
func (t *Times) N() int { return t.n }

// Add takes in another measurement and gives the usual time: the lower quartile of the last
// ones. What comes between makes times longer, never shorter, and often several in a row.
func (t *Times) Add(x float64) (usual float64) {
	t.last[t.n%Recent] = x
	t.n++
	return t.At(Usual)
}

// At is the time that about this share of the last ones are shorter than; 0 while there are none.
func (t *Times) At(share float64) float64 {
	known := min(t.n, Recent)
	sorted := t.last
	slices.Sort(sorted[:known])
	return sorted[int(share*float64(max(known-1, 0)))]
}
