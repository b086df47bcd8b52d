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

// Losses gives the task loss of examples, each by its number from 0, when a model
// runs under mask: (len(examples),), any unit, lower is better. NaN counts as
// +Inf. It must give the same for the same example whichever others it is asked
// for with.
type Losses func(ctx context.Context, mask Mask, examples []int) ([]float64, error)

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

	// Budget is how long the search may take. Losses that are being evaluated are
	// not cut short. Default: no limit.
	Budget time.Duration

	// Start is a mask that the path starts from, with the depth of the units that
	// it covers. Units that it covers in part are never taken. Default: skip nothing.
	Start Mask

	// Progress, when set, is called after every call of losses with the examples
	// evaluated so far and an estimate of how many it will be in all; the last
	// call has both the same.
	Progress func(done, total int)
}

// evaluator asks for losses and counts.
type evaluator struct {
	examples int
	losses   Losses
	deadline time.Time // zero = none
	done     int       // examples evaluated
	progress func()
}

// scored are the losses of a mask, as far as they are known.
type scored []float64 // (examples,) NaN = not known; nil = none is

// see evaluates mask on those of the examples that are not known.
func (e *evaluator) see(ctx context.Context, mask Mask, s *scored, examples []int) error {
	if *s == nil {
		*s = slices.Repeat(scored{math.NaN()}, e.examples)
	}
	var open []int
	for _, i := range examples {
		if math.IsNaN((*s)[i]) {
			open = append(open, i)
		}
	}
	if len(open) == 0 {
		return nil
	}
	if !e.deadline.IsZero() && time.Now().After(e.deadline) {
		return ErrBudget
	}
	slices.Sort(open)
	losses, err := call(ctx, e.losses, mask, open)
	if err != nil {
		return fmt.Errorf("losses of mask %q: %w", mask, err)
	}
	for k, i := range open {
		(*s)[i] = orInf(losses[k])
	}
	e.done += len(open)
	if e.progress != nil {
		e.progress()
	}
	return nil
}

// All lists the numbers of n examples.
func All(n int) []int {
	examples := make([]int, n)
	for i := range examples {
		examples[i] = i
	}
	return examples
}

// mean is the mean loss of all examples under mask.
func (e *evaluator) mean(ctx context.Context, mask Mask) (float64, error) {
	var s scored
	err := e.see(ctx, mask, &s, All(e.examples))
	return mean(s), err
}

// evaluations is how many whole passes over the examples were made.
func (e *evaluator) evaluations() float64 { return float64(e.done) / float64(e.examples) }

// call asks for losses and checks what comes back.
func call(ctx context.Context, losses Losses, mask Mask, examples []int) ([]float64, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	out, err := losses(ctx, mask, examples)
	if err == nil && len(out) != len(examples) {
		return nil, fmt.Errorf("%w: %d for %d examples", ErrLosses, len(out), len(examples))
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
// reached. Step i of the path skips one unit more than step i-1; the last step may
// have another unit in the place of one.
//
// This is the search of SLEB (Song et al., arXiv 2402.09025) with the task
// losses of PuDDing (Wee et al., arXiv 2502.04348, section 5), over layers or,
// past the papers, over sublayers by loss increase per byte. Where the papers
// evaluate every unit on all examples in each round, this one races the units:
//
//   - Only those that did best in the last round are tried again. They see an
//     eighth of the examples; those that do best see the next; and so on, until
//     the one that is left sees all.
//   - The examples come in the order of the loss that the mask so far has there:
//     the hard ones tell masks apart.
//   - Beside what a unit did on the examples of this round, it counts what it did
//     in earlier rounds on the others: what it cost is rarely much less later on.
//   - A unit goes as soon as its examples, paired with those of the best, say that
//     it is worse.
//
// What this leaves of a third of the evaluations is spent on exchanges at the
// end: the best units left out are tried in the place of each that was taken, as
// in floating search (Pudil et al. 1994), and stay where the loss is lower for no
// less depth. Where two units are nearly equal the race may take the other one,
// and the paths part, for better or worse. Examples should be at least some dozens.
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
			break
		}
		s.total = s.done + s.remaining(len(candidates))
		s.exhaustive += len(candidates)
		if err := s.round(ctx, candidates); err != nil {
			if errors.Is(err, ErrBudget) {
				err = fmt.Errorf("%w: %s have passed, it is at depth %.2f of %.2f", err, s.o.Budget, s.at.Depth, s.o.Depth)
			}
			return path, err
		}
		path = append(path, s.at)
	}
	if !s.o.Exhaustive && len(path) > 0 {
		for again := true; again; {
			again, err = s.exchange(ctx)
			s.at.Evaluations = s.evaluations()
			if path[len(path)-1] = s.at; err != nil && !errors.Is(err, ErrBudget) { // the depth is reached in any case
				return path, err
			}
		}
	}
	if s.o.Progress != nil {
		s.o.Progress(s.done, s.done)
	}
	return path, nil
}

// rungs say how a round goes on: when the units have seen this share of the
// examples, this share of all units stays, but not fewer than least. This and
// what follows was chosen on the demo model's losses, those of one half of the
// examples that BenchmarkSearch in internal/calibrate knows.
var rungs = []struct {
	seen, stay float64
	least      int
}{{1. / 8, 0.4, 4}, {2. / 8, 0.3, 3}, {3. / 8, 0.2, 2}, {4. / 8, 0.2, 2}, {6. / 8, 0.1, 1}}

const (
	// boldest and surest are how many standard errors a unit may be behind the
	// best, at the start of the path and at its end. Losses are small at the start
	// and a wrong unit costs little; what the last rounds get wrong stays wrong.
	boldest, surest = 0.8, 2.5

	// fewest is how many examples that takes; fewer have no standard error to speak of.
	fewest = 4

	// tried is the share of units that a round tries after the first one, leastTried
	// how many at least: those that did best so far.
	tried, leastTried = 0.6, 6

	// filtered is the share of units that their influence keeps out.
	filtered = 1.0 / 3

	// raced is the share of the exhaustive search's evaluations that a search makes.
	raced = 1.0 / 3
)

// search is a greedy search under way.
type search struct {
	evaluator
	units      []Unit
	o          SearchOptions
	at         Step
	taken      []int    // units, in order
	here       scored   // losses under at.Mask; nil = not known
	deltas     []scored // (len(units),) each unit's last known loss increases; NaN = none
	total      int      // examples to evaluate, estimated
	exhaustive int      // masks that the exhaustive search evaluates on this path
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
		s.deltas = append(s.deltas, slices.Repeat(scored{math.NaN()}, examples))
	}
	// Per byte or not is the same for units of one size, but needs a loss to count from.
	s.o.PerByte = o.PerByte && slices.ContainsFunc(s.units, func(u Unit) bool { return u.Depth != s.units[0].Depth })
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
		if err := s.see(ctx, s.at.Mask, &s.here, All(s.examples)); err != nil {
			s.here = nil
			return err
		}
		if math.IsInf(mean(s.here), 1) {
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
		if err := r.try(ctx, i, 1); err != nil {
			return err
		}
	}
	best := r.ranked(candidates)[0]
	loss := mean(r.tried[best])
	if math.IsInf(loss, 1) {
		return fmt.Errorf("%w: beside mask %q no unit can be skipped with a finite loss", ErrLosses, s.at.Mask)
	}
	s.at = Step{
		Mask:        s.at.Mask.Union(s.units[best].Mask),
		Depth:       s.at.Depth + s.units[best].Depth,
		Loss:        loss,
		Evaluations: s.evaluations(),
	}
	s.taken = append(s.taken, best)
	r.moveTo(best)
	return nil
}

// hardestFirst orders the examples by their loss so far.
func (s *search) hardestFirst() []int {
	if s.here == nil {
		return All(s.examples)
	}
	order := byValue(s.here)
	slices.Reverse(order)
	return order
}

// first gives the first share of order, at least one of it.
func first(order []int, share float64) []int {
	return order[:max(1, int(math.Round(share*float64(len(order)))))]
}

// race is a round of a search.
type race struct {
	*search
	order []int    // (examples,) in which the units see them
	tried []scored // (len(units),) each beside the mask so far
}

// run tells which candidates may be the best, the likeliest first.
func (r *race) run(ctx context.Context, candidates []int) ([]int, error) {
	list := r.ranked(candidates)
	if r.here != nil && r.score(list[0]) != math.Inf(-1) {
		list = list[:min(len(list), r.share(tried, leastTried))]
	}
	for _, rung := range rungs {
		if len(list) == 1 {
			break
		}
		for _, unit := range list {
			if err := r.try(ctx, unit, rung.seen); err != nil {
				return nil, err
			}
		}
		list = r.ranked(list)
		list = slices.DeleteFunc(list[:min(len(list), r.share(rung.stay, rung.least))], func(unit int) bool {
			return unit != list[0] && r.worse(unit, list[0], first(r.order, rung.seen))
		})
	}
	return list, nil
}

// share is a share of the units' number, but not less than least.
func (s *search) share(share float64, least int) int {
	return max(least, int(math.Round(share*float64(len(s.units)))))
}

// try evaluates a unit on a share of the examples.
func (r *race) try(ctx context.Context, unit int, share float64) error {
	examples := first(r.order, share)
	if err := r.see(ctx, r.at.Mask.Union(r.units[unit].Mask), &r.tried[unit], examples); err != nil {
		return err
	}
	for _, i := range examples {
		r.deltas[unit][i] = r.increase(unit, i)
	}
	return nil
}

// increase is the loss increase of example i when unit is skipped too. In a first
// round without a known loss to compare with it is the loss.
func (r *race) increase(unit, i int) float64 {
	delta := r.tried[unit][i]
	if r.here != nil {
		delta -= r.here[i]
	}
	return delta
}

// score is what the best unit is lowest in: the mean loss increase on all examples
// where it is known, from this round or an earlier one, per layer's worth with
// PerByte. It is -Inf for a unit that was never tried. Once all have been seen in
// this round it is exact.
func (s *search) score(unit int) float64 {
	sum, n := 0.0, 0
	for _, delta := range s.deltas[unit] {
		if !math.IsNaN(delta) {
			sum += delta
			n++
		}
	}
	if n == 0 {
		return math.Inf(-1)
	}
	if s.o.PerByte {
		sum /= s.units[unit].Depth
	}
	return sum / float64(n)
}

// ranked orders units by score, equal ones as they are.
func (s *search) ranked(units []int) []int {
	scores := make([]float64, len(units))
	for i, unit := range units {
		scores[i] = s.score(unit)
	}
	var list []int
	for _, i := range byValue(scores) {
		list = append(list, units[i])
	}
	return list
}

// worse tells whether these examples say that a unit is worse than the best.
func (r *race) worse(unit, best int, examples []int) bool {
	if len(examples) < fewest {
		return false
	}
	var gaps []float64
	for _, i := range examples {
		gap, other := r.increase(unit, i), r.increase(best, i)
		if r.o.PerByte {
			gap, other = gap/r.units[unit].Depth, other/r.units[best].Depth
		}
		gaps = append(gaps, gap-other)
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
		for u := range r.deltas {
			for i := range r.deltas[u] {
				r.deltas[u][i] -= r.tried[unit][i]
			}
		}
	}
	r.here = r.tried[unit]
}

// swaps says how an exchange goes on: when the masks have seen this share of the
// examples, so many stay, of those that are better than the mask so far.
var swaps = []struct {
	seen float64
	stay int
}{{1. / 8, 2}, {2. / 8, 1}, {4. / 8, 1}, {1, 1}}

// exchange puts another unit in the place of one that was taken, where that
// lowers the loss for no less depth, the likeliest first. It tells whether it did,
// and may again: it evaluates no more than what is left of a third of the
// exhaustive search's evaluations.
func (s *search) exchange(ctx context.Context) (bool, error) {
	var out []int
	for i, u := range s.units {
		if !overlap(u.Mask, s.at.Mask) {
			out = append(out, i)
		}
	}
	order, sum := s.hardestFirst(), func(losses scored, examples []int) (sum float64) {
		for _, i := range examples {
			sum += losses[i]
		}
		return sum
	}
	for _, in := range s.ranked(out) {
		type swap struct {
			place  int // in taken
			mask   Mask
			losses scored
		}
		var list []*swap
		for place, unit := range s.taken[:len(s.taken)-1] { // the last one was raced against it
			u, v := s.units[unit], s.units[in]
			if u.Depth <= v.Depth && fits(v, s.at.Depth-u.Depth, s.o.Depth) {
				list = append(list, &swap{place: place, mask: s.at.Mask.Minus(u.Mask).Union(v.Mask)})
			}
		}
		before := 0.0
		for _, rung := range swaps {
			examples := first(order, rung.seen)
			for _, x := range list {
				if float64(s.done+len(examples)) > raced*float64(s.exhaustive*s.examples) {
					return false, nil
				}
				if err := s.see(ctx, x.mask, &x.losses, examples); err != nil {
					return false, err
				}
			}
			before = sum(s.here, examples)
			list = slices.DeleteFunc(list, func(x *swap) bool { return !(sum(x.losses, examples) < before) })
			slices.SortStableFunc(list, func(a, b *swap) int { return cmp.Compare(sum(a.losses, examples), sum(b.losses, examples)) })
			list = list[:min(len(list), rung.stay)]
		}
		if len(list) > 0 {
			x := list[0]
			s.at.Mask, s.at.Loss = x.mask, mean(x.losses)
			s.at.Depth += s.units[in].Depth - s.units[s.taken[x.place]].Depth
			s.taken[x.place], s.here = in, x.losses
			return true, nil
		}
	}
	return false, nil
}
