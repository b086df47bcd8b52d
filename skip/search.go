package skip

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// Errors of the searches.
var (
	// ErrSearch is returned when units and options allow no search: no units, a
	// depth that they do not reach, options that do not fit them.
	ErrSearch = errors.New("cannot search")

	// ErrLosses is returned when losses come back in another number than asked
	// for, or when no mask has a finite loss.
	ErrLosses = errors.New("unusable losses")

	// ErrBudget is returned, beside the path so far, when a search's time is used
	// up before its depth is reached.
	ErrBudget = errors.New("the time for the search is used up")
)

// Losses gives the task loss of the examples from ≤ i < to when a model runs
// under mask: (to-from,), any unit, lower is better. NaN counts as +Inf. It must
// give the same for the same example whatever the range it is asked for in.
type Losses func(ctx context.Context, mask Mask, from, to int) ([]float64, error)

// Step is a mask on the path of a search.
type Step struct {
	Mask        Mask
	Depth       float64 // layers' worth of weight bytes
	Loss        float64 // mean over all examples
	Evaluations float64 // masks evaluated so far, in whole passes over the examples; part of a pass counts its share
}

// SearchOptions are the options of [Greedy]; nil means the defaults.
type SearchOptions struct {
	// Depth is where the path ends, in layers' worth of weight bytes. A unit is
	// taken if more than half of it fits, so the path ends at most half a unit
	// above or below. Default: half of all units.
	Depth float64

	// PerByte takes the unit of the lowest loss increase per byte saved, for units
	// of different sizes. Default: the unit of the lowest loss.
	PerByte bool

	// Exhaustive evaluates every unit on all examples in each round, as PuDDing
	// and SLEB do. Default: few evaluations, see [Greedy].
	Exhaustive bool

	// Influence (len(units)) is a first guess of what each unit is worth, such as
	// block influence: the third of the units where it is highest (per byte, with
	// PerByte) is not searched, if the others reach the depth. Only the order
	// counts; NaN is the highest. Default: search all units.
	Influence []float64

	// Budget is how long the search may take. A range of losses that is being
	// evaluated is not cut short. Default: no limit.
	Budget time.Duration

	// Start is a mask that the path starts from, with the depth of the units that
	// it covers. Units that it covers in part are never taken. Default: skip nothing.
	Start Mask

	// Progress, when set, is called after every call of losses with the examples
	// evaluated so far and an estimate of how many it will be in all; the last
	// call has both the same.
	Progress func(done, total int)
}

// evaluator asks for losses, chunk by chunk, and counts.
type evaluator struct {
	examples int
	losses   Losses
	deadline time.Time // zero = none
	done     int       // examples evaluated
	progress func()
}

// scored are the losses of a mask, as far as they are known.
type scored struct {
	losses []float64 // (examples,)
	known  []bool    // (chunks,)
}

// mostChunks is how many parts the examples are evaluated in. More would tell
// hopeless masks sooner, but make batches smaller.
const mostChunks = 8

// chunks is how many parts there are.
func (e *evaluator) chunks() int { return min(mostChunks, e.examples) }

// chunk is the range of examples in part c.
func (e *evaluator) chunk(c int) (from, to int) {
	n := e.chunks()
	return c * e.examples / n, (c + 1) * e.examples / n
}

// extend evaluates mask on the chunks that are wanted and not yet known; chunks
// side by side in one go.
func (e *evaluator) extend(ctx context.Context, mask Mask, s *scored, wanted []bool) error {
	if s.losses == nil {
		s.losses, s.known = make([]float64, e.examples), make([]bool, e.chunks())
	}
	for c := 0; c < e.chunks(); c++ {
		if !wanted[c] || s.known[c] {
			continue
		}
		from, to := e.chunk(c)
		last := c
		for last+1 < e.chunks() && wanted[last+1] && !s.known[last+1] {
			last++
			_, to = e.chunk(last)
		}
		if !e.deadline.IsZero() && time.Now().After(e.deadline) {
			return ErrBudget
		}
		losses, err := call(ctx, e.losses, mask, from, to)
		if err != nil {
			return fmt.Errorf("losses of mask %q: %w", mask, err)
		}
		for i, loss := range losses {
			s.losses[from+i] = orInf(loss)
		}
		for ; c <= last; c++ {
			s.known[c] = true
		}
		e.done += to - from
		if e.progress != nil {
			e.progress()
		}
	}
	return nil
}

// all evaluates mask on all examples.
func (e *evaluator) all(ctx context.Context, mask Mask, s *scored) error {
	wanted := make([]bool, e.chunks())
	for c := range wanted {
		wanted[c] = true
	}
	return e.extend(ctx, mask, s, wanted)
}

// mean is the mean loss of all examples under mask.
func (e *evaluator) mean(ctx context.Context, mask Mask) (float64, error) {
	var s scored
	err := e.all(ctx, mask, &s)
	return mean(s.losses), err
}

// evaluations is how many whole passes over the examples were made.
func (e *evaluator) evaluations() float64 { return float64(e.done) / float64(e.examples) }

// call asks for losses and checks what comes back.
func call(ctx context.Context, losses Losses, mask Mask, from, to int) ([]float64, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	out, err := losses(ctx, mask, from, to)
	if err == nil && len(out) != to-from {
		return nil, fmt.Errorf("%w: %d for the examples %d to %d", ErrLosses, len(out), from, to-1)
	}
	return out, err
}

// mean of no values is NaN.
func mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}

// overlap tells whether a sublayer is in both masks.
func overlap(a, b Mask) bool {
	for i := range a {
		if a[i]&b[i] != 0 {
			return true
		}
	}
	return false
}

// fits tells whether more than half of a unit fits between the depth reached and
// the depth wanted.
func fits(u Unit, reached, wanted float64) bool { return wanted-reached > u.Depth/2 }

// checkUnits finds units that no search can work with.
func checkUnits(units []Unit, examples int) error {
	if len(units) == 0 {
		return fmt.Errorf("%w: no units to skip; a model needs three layers at least, the first and the last always run", ErrSearch)
	}
	for i, u := range units {
		if u.Mask.IsEmpty() || !(u.Depth > 0) || math.IsInf(u.Depth, 1) {
			return fmt.Errorf("%w: unit %d is mask %q of depth %g", ErrSearch, i, u.Mask, u.Depth)
		}
	}
	if examples < 1 {
		return fmt.Errorf("%w: no examples", ErrSearch)
	}
	return nil
}

// checkDepth finds out whether units can reach a depth, to half a unit.
func checkDepth(units []Unit, depth float64) error {
	sum, half := 0.0, 0.0
	for _, u := range units {
		sum += u.Depth
		half = max(half, u.Depth/2)
	}
	if !(depth > 0) || depth > sum+half {
		return fmt.Errorf("%w: depth %g is asked for, all %d units together have %.2f", ErrSearch, depth, len(units), sum)
	}
	return nil
}

// Singles gives the mean loss of each unit skipped alone: (len(units),). A
// [Greedy] search needs them too, so with a [Log] it gets them for nothing.
//
// Errors: [ErrSearch], [ErrLosses], those of losses.
func Singles(ctx context.Context, units []Unit, examples int, losses Losses) ([]float64, error) {
	if err := checkUnits(units, examples); err != nil {
		return nil, err
	}
	e := &evaluator{examples: examples, losses: losses}
	means := make([]float64, len(units))
	for i, u := range units {
		var err error
		if means[i], err = e.mean(ctx, u.Mask); err != nil {
			return nil, err
		}
	}
	return means, nil
}

// Greedy finds what to skip: from nothing, or [SearchOptions].Start, it takes
// again and again the unit without which the loss is lowest, until the depth is
// reached. Step i of the path skips one unit more than step i-1.
//
// This is the search of SLEB (Song et al., arXiv 2402.09025) with the task
// losses of PuDDing (Wee et al., arXiv 2502.04348, section 5), over layers or,
// past the papers, over sublayers by loss increase per byte. Where the papers
// evaluate every unit on all examples in each round, this one races the units:
//
//   - The examples are cut into 8 parts. All units see the first; those that do
//     best see the second; and so on, until the few that are left see all.
//   - The parts come in the order of the loss that the mask so far has there: the
//     hard examples tell masks apart.
//   - Beside what a unit did on the parts of this round, it counts what it did in
//     earlier rounds on the others: what it cost is rarely much less later on.
//   - A unit goes as soon as its examples, paired with those of the best, say that
//     it is worse; and is not tried at all where the last round found it
//     far behind all that are kept.
//
// It takes about a third of the evaluations or less. Where two units are nearly
// equal it may take the other one, and the paths part, for better or worse.
// Examples should be in random order, and at least some dozens.
//
// On any error the path so far comes back with it. Errors: [ErrSearch],
// [ErrBudget], [ErrLosses], those of ctx and losses.
func Greedy(ctx context.Context, units []Unit, examples int, losses Losses, o *SearchOptions) ([]Step, error) {
	s, err := newSearch(units, examples, losses, cmp.Or(o, &SearchOptions{}))
	if err != nil {
		return nil, err
	}
	var path []Step
	for {
		candidates := s.candidates()
		if len(candidates) == 0 {
			if s.o.Progress != nil {
				s.o.Progress(s.done, s.done)
			}
			return path, nil
		}
		s.total = s.done + s.remaining(len(candidates))
		if err := s.round(ctx, candidates); err != nil {
			if errors.Is(err, ErrBudget) {
				err = fmt.Errorf("%w: %s have passed, it is at depth %.2f of %.2f", err, s.o.Budget, s.at.Depth, s.o.Depth)
			}
			return path, err
		}
		path = append(path, s.at)
	}
}

// rungs say how a round goes on: when the units have seen so many chunks, this
// share of the round's units stays, but not fewer than least. Tuned on made-up
// losses like those of BenchmarkGreedy, and on the demo model's.
var rungs = []struct {
	chunks int
	share  float64
	least  int
}{{1, 0.5, 4}, {2, 0.4, 3}, {3, 0.3, 3}, {4, 0.2, 2}, {6, 0.1, 2}}

const (
	// boldest and surest are how many standard errors a unit may be behind the
	// best, at the start of the path and at its end. Losses are small at the start
	// and a wrong unit costs little; what the last rounds get wrong stays wrong.
	boldest, surest = 0.8, 2.5

	// fewest is how many examples that takes; fewer have no standard error to speak of.
	fewest = 4

	// patience is how many times the loss increase of the worst unit that is kept
	// another one's may have been in the last round, to be tried again.
	patience = 2.5

	// filtered is the share of units that their influence keeps out.
	filtered = 1.0 / 3

	// raced is about the share of examples that the units of a round see.
	raced = 1.0 / 3
)

// search is a greedy search under way.
type search struct {
	evaluator
	units  []Unit
	o      SearchOptions
	at     Step
	here   []float64   // (examples,) losses under at.Mask; nil = not known
	deltas [][]float64 // (len(units), chunks) sum of each unit's last known loss increases; NaN = none
	total  int         // examples to evaluate, estimated
}

func newSearch(units []Unit, examples int, losses Losses, o *SearchOptions) (*search, error) {
	if err := checkUnits(units, examples); err != nil {
		return nil, err
	}
	s := &search{evaluator: evaluator{examples: examples, losses: losses}, o: *o}
	sum := 0.0
	for _, u := range units {
		sum += u.Depth
		if o.Start.Union(u.Mask) == o.Start && !overlap(u.Mask, s.at.Mask) {
			s.at.Mask = s.at.Mask.Union(u.Mask)
			s.at.Depth += u.Depth
		}
	}
	s.at.Mask = o.Start
	s.o.Depth = cmp.Or(o.Depth, sum/2)
	if err := checkDepth(units, s.o.Depth); err != nil {
		return nil, err
	}
	if o.Influence != nil && len(o.Influence) != len(units) {
		return nil, fmt.Errorf("%w: %d influences for %d units", ErrSearch, len(o.Influence), len(units))
	}
	s.units = prefilter(units, &s.o, s.o.Depth-s.at.Depth)
	for range s.units {
		s.deltas = append(s.deltas, slices.Repeat([]float64{math.NaN()}, s.chunks()))
	}
	if o.Budget > 0 {
		s.deadline = time.Now().Add(o.Budget)
	}
	if o.Progress != nil {
		s.progress = func() { o.Progress(s.done, max(s.total, s.done)) }
	}
	return s, nil
}

// prefilter leaves out the units of the highest influence, if the others
// have the depth.
func prefilter(units []Unit, o *SearchOptions, depth float64) []Unit {
	if o.Exhaustive || o.Influence == nil {
		return units
	}
	influence := slices.Clone(o.Influence)
	if o.PerByte {
		for i, u := range units {
			influence[i] /= u.Depth
		}
	}
	order := byValue(influence)
	kept := order[:len(order)-int(filtered*float64(len(order)))]
	slices.Sort(kept)
	few, sum := []Unit{}, 0.0
	for _, i := range kept {
		few = append(few, units[i])
		if !overlap(units[i].Mask, o.Start) {
			sum += units[i].Depth
		}
	}
	if sum < depth {
		return units
	}
	return few
}

// candidates are the units that may be taken next.
func (s *search) candidates() []int {
	var list []int
	for i, u := range s.units {
		if !overlap(u.Mask, s.at.Mask) && fits(u, s.at.Depth, s.o.Depth) {
			list = append(list, i)
		}
	}
	return list
}

// remaining guesses how many examples are still to be evaluated, from the start
// of a round.
func (s *search) remaining(candidates int) int {
	depth := 0.0
	for _, u := range s.units {
		depth += u.Depth / float64(len(s.units))
	}
	passes := 0
	for left := s.o.Depth - s.at.Depth; left > depth/2 && candidates > 0; left -= depth {
		passes += candidates
		candidates--
	}
	if passes = max(passes, 1); s.o.Exhaustive {
		return passes * s.examples
	}
	return int(raced * float64(passes*s.examples))
}

// round takes the best of the candidates.
func (s *search) round(ctx context.Context, candidates []int) error {
	if s.o.PerByte && s.here == nil {
		start := scored{}
		if err := s.all(ctx, s.at.Mask, &start); err != nil {
			return err
		}
		if s.here = start.losses; math.IsInf(mean(s.here), 1) {
			return fmt.Errorf("%w: mask %q, where the search starts, has no finite loss", ErrLosses, s.at.Mask)
		}
	}
	r := race{search: s, order: s.hardestFirst(), tried: make([]scored, len(s.units))}
	if !s.o.Exhaustive {
		var err error
		if candidates, err = r.run(ctx, candidates); err != nil {
			return err
		}
	}
	for _, i := range candidates {
		if err := r.see(ctx, i, s.chunks()); err != nil {
			return err
		}
	}
	best := r.ranked(candidates)[0]
	loss := mean(r.tried[best].losses)
	if math.IsInf(loss, 1) {
		return fmt.Errorf("%w: beside mask %q no unit can be skipped with a finite loss", ErrLosses, s.at.Mask)
	}
	s.at = Step{
		Mask:        s.at.Mask.Union(s.units[best].Mask),
		Depth:       s.at.Depth + s.units[best].Depth,
		Loss:        loss,
		Evaluations: s.evaluations(),
	}
	r.moveTo(best)
	return nil
}

// hardestFirst orders the chunks by their mean loss so far.
func (s *search) hardestFirst() []int {
	easy := make([]float64, s.chunks())
	for c := range easy {
		if from, to := s.chunk(c); s.here != nil {
			easy[c] = -mean(s.here[from:to])
		}
	}
	return byValue(easy)
}

// race is a round of a search.
type race struct {
	*search
	order []int    // (chunks,) in which the units see them
	tried []scored // (len(units),) each beside the mask so far
}

// run tells which candidates may be the best, the likeliest first.
func (r *race) run(ctx context.Context, candidates []int) ([]int, error) {
	list := r.ranked(candidates)
	for i, rung := range rungs {
		if len(list) == 1 || rung.chunks >= len(r.order) {
			break
		}
		keep := max(rung.least, int(math.Round(rung.share*float64(len(candidates)))))
		for n, unit := range list {
			if i == 0 && n >= keep && r.farBehind(unit, list[:n], keep) {
				list = list[:n] // the rest was further behind still
				break
			}
			if err := r.see(ctx, unit, rung.chunks); err != nil {
				return nil, err
			}
		}
		list = r.ranked(list)
		list = slices.DeleteFunc(list[:min(keep, len(list))], func(unit int) bool {
			return unit != list[0] && r.worse(unit, list[0], rung.chunks)
		})
	}
	return list, nil
}

// see evaluates a unit on the first n chunks.
func (r *race) see(ctx context.Context, unit, n int) error {
	wanted := make([]bool, len(r.order))
	for _, c := range r.order[:n] {
		wanted[c] = true
	}
	if err := r.extend(ctx, r.at.Mask.Union(r.units[unit].Mask), &r.tried[unit], wanted); err != nil {
		return err
	}
	for _, c := range r.order[:n] {
		from, to := r.chunk(c)
		r.deltas[unit][c] = 0
		for i := from; i < to; i++ {
			r.deltas[unit][c] += r.increase(unit, i)
		}
	}
	return nil
}

// increase is the loss increase of example i when unit is skipped too. In a first
// round without a known loss to compare with it is the loss.
func (r *race) increase(unit, i int) float64 {
	delta := r.tried[unit].losses[i]
	if r.here != nil {
		delta -= r.here[i]
	}
	return delta
}

// score is what the best unit is lowest in: the mean loss increase in all chunks
// where it is known, from this round or an earlier one, per layer's worth with
// PerByte. It is -Inf for a unit that was never tried. Once all have been seen in
// this round it is exact.
func (r *race) score(unit int) float64 {
	sum, n := 0.0, 0
	for c, delta := range r.deltas[unit] {
		if from, to := r.chunk(c); !math.IsNaN(delta) {
			sum += delta
			n += to - from
		}
	}
	if n == 0 {
		return math.Inf(-1)
	}
	if r.o.PerByte {
		sum /= r.units[unit].Depth
	}
	return sum / float64(n)
}

// ranked orders units by score, equal ones as they are.
func (r *race) ranked(units []int) []int {
	scores := make([]float64, len(units))
	for i, unit := range units {
		scores[i] = r.score(unit)
	}
	var list []int
	for _, i := range byValue(scores) {
		list = append(list, units[i])
	}
	return list
}

// farBehind tells whether the score of a unit, from earlier rounds, is hopeless
// beside the best of those that were tried in this one, of which keep are kept.
func (r *race) farBehind(unit int, tried []int, keep int) bool {
	worst := r.score(r.ranked(tried)[keep-1])
	return r.score(unit) > patience*max(worst, 0)
}

// worse tells whether the first n chunks say that a unit is worse than the best.
func (r *race) worse(unit, best, n int) bool {
	var gaps []float64
	for _, c := range r.order[:n] {
		from, to := r.chunk(c)
		for i := from; i < to; i++ {
			gap, other := r.increase(unit, i), r.increase(best, i)
			if r.o.PerByte {
				gap, other = gap/r.units[unit].Depth, other/r.units[best].Depth
			}
			gaps = append(gaps, gap-other)
		}
	}
	if len(gaps) < fewest {
		return false
	}
	m, sum := mean(gaps), 0.0
	for _, gap := range gaps {
		sum += (gap - m) * (gap - m)
	}
	// Drawn without replacement: of all the examples, the mean has no error.
	unseen := 1 - float64(len(gaps))/float64(r.examples)
	variance := sum / float64(len(gaps)-1) / float64(len(gaps)) * unseen
	reached := min((r.at.Depth+r.units[unit].Depth)/r.o.Depth, 1)
	allowed := boldest + (surest-boldest)*reached
	return !(m <= allowed*math.Sqrt(variance)) // also for a loss that is +Inf
}

// moveTo makes a unit's losses, which are known for all examples, those that
// increases are counted from.
func (r *race) moveTo(unit int) {
	if r.here == nil { // what was counted from nothing is now counted from here
		for c := range r.order {
			for u := range r.deltas {
				if u != unit {
					r.deltas[u][c] -= r.deltas[unit][c]
				}
			}
		}
	}
	r.here = r.tried[unit].losses
}
