package search

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/gallop-llm/gallop/skip"
)

// Errors of the searches.
var (
	// ErrSearch is returned when units and options allow no search: no units, a
	// depth that they do not reach, options that do not fit them.
	ErrSearch = errors.New("cannot search")

	// ErrLosses is returned when losses come back in another number than asked
	// for, or when no mask has a finite loss.
	ErrLosses = errors.New("unusable losses")

	// ErrBudget is returned, beside a path whose last steps are guesses, when a
	// search's time is used up before its depth is reached.
	ErrBudget = errors.New("the time for the search is used up")
)

// Losses gives the task loss of examples, each by its number from 0, when a model
// runs under mask: (len(examples),), any unit, lower is better. NaN counts as
// +Inf. It must give the same for the same example whichever others it is asked
// for with.
type Losses func(ctx context.Context, mask skip.Mask, examples []int) ([]float64, error)

// Step is a mask on the path of a search.
type Step struct {
	Mask        skip.Mask
	Depth       float64 // layers' worth of weight bytes
	Loss        float64 // mean over all examples; NaN = the time was up before, the unit is a guess
	Evaluations float64 // masks evaluated so far, in whole passes over the examples; part of a pass counts its share
}

// Options are the options of [Greedy]; nil means the defaults.
type Options struct {
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

	// Pool is how many units are in the race of each round after the first: those
	// that did best so far. Fewer take less time, and may miss one that becomes the
	// best only beside others. Default: all.
	Pool int

	// Budget is how long the search may take. Losses that are being evaluated are
	// not cut short. The units that did best so far then make up the rest of the
	// path. Default: no limit.
	Budget time.Duration

	// Held is for how long the search has been held up so far, which does not count
	// for Budget. Default: never.
	Held func() time.Duration

	// Influence (len(units)) is a first guess of what each unit is worth, such as
	// block influence: where the time is up before all units were tried, those of
	// the lowest make up the path (per byte, with PerByte). NaN is the highest.
	// Default: the order of the units.
	Influence []float64

	// Start is a mask that the path starts from, with the depth of the units that
	// it covers. Units that it covers in part are never taken. Default: skip nothing.
	Start skip.Mask

	// Round, when set, is called before each round with the masks that the round chooses
	// among, for a caller that wants to have their losses computed elsewhere, all at once. An
	// error ends the search. Default: nothing.
	Round func(ctx context.Context, masks []skip.Mask) error

	// Progress, when set, is called after every call of losses with the examples
	// evaluated so far and an estimate of how many it will be in all; the last
	// call has both the same.
	Progress func(done, total int)
}

// evaluator asks for losses and counts.
type evaluator struct {
	examples int
	losses   Losses
	late     func() bool // nil = no deadline
	done     int         // examples evaluated
	progress func()
}

// scored are the losses of a mask, as far as they are known.
type scored []float64 // (examples,) NaN = not known; nil = none is

// see evaluates mask on those of the examples that are not known.
func (e *evaluator) see(ctx context.Context, mask skip.Mask, s *scored, examples []int) error {
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
	if e.late != nil && e.late() {
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
func (e *evaluator) mean(ctx context.Context, mask skip.Mask) (float64, error) {
	var s scored
	err := e.see(ctx, mask, &s, All(e.examples))
	return mean(s), err
}

// evaluations is how many whole passes over the examples were made.
func (e *evaluator) evaluations() float64 { return float64(e.done) / float64(e.examples) }

// call asks for losses and checks what comes back.
func call(ctx context.Context, losses Losses, mask skip.Mask, examples []int) ([]float64, error) {
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
func overlap(a, b skip.Mask) bool {
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

// Singles gives the mean loss of each unit skipped alone: (len(units),). What a
// [Greedy] search has evaluated of them costs nothing with its [Log].
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

// Greedy finds what to skip: from nothing, or [Options].Start, it takes
// again and again the unit without which the loss is lowest, until the depth is
// reached. Step i of the path skips one unit more than step i-1.
//
// This is the search of SLEB (Song et al., arXiv 2402.09025) with the task
// losses of PuDDing (Wee et al., arXiv 2502.04348, section 5), over layers or,
// past the papers, over sublayers by loss increase per byte. Where the papers
// evaluate every unit on all examples in each round, here the units race. Losses
// lie on few examples, so all units see them in one order, the hardest first, and
// the next to go on is always the one that can still come to the least: to what
// it has lost so far, and on what others have seen and it has not, to what the
// front-runner lost on that, less some slack. Whichever has seen all examples and
// is still the one is taken. Hard are examples with high losses under the mask so
// far, and under the units tried in the last round.
//
// It nearly always takes the exhaustive search's path, at a third of the
// evaluations or fewer. Examples should be at least some dozens.
//
// On any error the path so far comes back with it, after [ErrBudget] to its end. Errors: [ErrSearch],
// [ErrBudget], [ErrLosses], those of ctx, losses and [Options].Round.
func Greedy(ctx context.Context, units []Unit, examples int, losses Losses, o *Options) ([]Step, error) {
	s, err := newSearch(units, examples, losses, cmp.Or(o, &Options{}))
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
		if err := s.round(ctx, candidates); err != nil {
			if errors.Is(err, ErrBudget) {
				err = fmt.Errorf("%w: %s have passed, it is at depth %.2f of %.2f", err, s.o.Budget, s.at.Depth, s.o.Depth)
				path = append(path, s.guess()...)
			}
			return path, err
		}
		path = append(path, s.at)
	}
	if s.o.Progress != nil {
		s.o.Progress(s.done, s.done)
	}
	return path, nil
}

// These were chosen on the demo model's losses.
const (
	// glance is how many examples every unit sees.
	glance = 2

	// growth is how many examples a unit sees at once then, at least one, as a share
	// of those that it has seen: more at once take less time each, but may be more
	// than it takes.
	growth = 0.25

	// slack is how much less a unit may lose on what it has not seen than the
	// front-runner did: that many times the root of the sum of the squared losses.
	slack = 2.1

	// raced is about the share of the exhaustive search's evaluations that a search
	// makes, for its progress.
	raced = 1.0 / 3
)

// search is a greedy search under way.
type search struct {
	evaluator
	units []Unit
	o     Options
	at    Step
	here  scored  // losses under at.Mask; nil = not known
	last  []racer // of the last round; nil = this is the first
	order []int   // all units, those that did best so far first
	total int     // examples to evaluate, estimated
}

// racer is a unit that may be taken.
type racer struct {
	unit   int
	losses scored  // beside the mask so far
	seen   int     // how many of the examples, the hardest first
	cost   float64 // loss increase on them; per layer's worth with PerByte
}

func newSearch(units []Unit, examples int, losses Losses, o *Options) (*search, error) {
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
	if o.Pool < 0 {
		return nil, fmt.Errorf("%w: a pool of %d units", ErrSearch, o.Pool)
	}
	s.units = units
	// Per byte or not is the same for units of one size, but needs a loss to count from.
	s.o.PerByte = o.PerByte && slices.ContainsFunc(s.units, func(u Unit) bool { return u.Depth != s.units[0].Depth })
	s.order = s.firstOrder()
	if o.Budget > 0 {
		held := o.Held
		if held == nil {
			held = func() time.Duration { return 0 }
		}
		deadline := time.Now().Add(o.Budget - held())
		s.late = func() bool { return time.Now().After(deadline.Add(held())) }
	}
	if o.Progress != nil {
		s.progress = func() { o.Progress(s.done, max(s.total, s.done)) }
	}
	return s, nil
}

// firstOrder is the units by influence.
func (s *search) firstOrder() []int {
	if s.o.Influence == nil {
		return All(len(s.units))
	}
	influence := slices.Clone(s.o.Influence)
	for i := range influence {
		influence[i] /= s.size(i)
	}
	return byValue(influence)
}

// candidates are the units that may be taken next, in order.
func (s *search) candidates() []int {
	var list []int
	for _, i := range s.order {
		if !overlap(s.units[i].Mask, s.at.Mask) && fits(s.units[i], s.at.Depth, s.o.Depth) {
			list = append(list, i)
		}
		if s.o.Pool > 0 && s.last != nil && len(list) == s.o.Pool {
			break
		}
	}
	slices.Sort(list)
	return list
}

// guess is the rest of the path, of the units that did best so far.
func (s *search) guess() (path []Step) {
	at := s.at
	for _, i := range s.order {
		if u := s.units[i]; !overlap(u.Mask, at.Mask) && fits(u, at.Depth, s.o.Depth) {
			at = Step{Mask: at.Mask.Union(u.Mask), Depth: at.Depth + u.Depth, Loss: math.NaN(), Evaluations: s.evaluations()}
			path = append(path, at)
		}
	}
	return path
}

// rank puts racers, as far as they have come, in front of the other units.
func (s *search) rank(racers []racer, order []int) {
	front := s.front(racers)
	if front == nil {
		return
	}
	costs := make([]float64, len(racers))
	for i := range racers {
		costs[i], _ = s.expected(&racers[i], front, order)
	}
	ranked := make([]int, 0, len(s.order))
	for _, i := range byValue(costs) {
		ranked = append(ranked, racers[i].unit)
	}
	for _, unit := range s.order {
		if !slices.Contains(ranked, unit) {
			ranked = append(ranked, unit)
		}
	}
	s.order = ranked
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
		if candidates--; s.o.Pool > 0 {
			candidates = min(candidates, s.o.Pool)
		}
	}
	if passes = max(passes, 1); s.o.Exhaustive {
		return passes * s.examples
	}
	return int(raced * float64(passes*s.examples))
}

// round takes the best of the candidates.
func (s *search) round(ctx context.Context, candidates []int) error {
	if s.o.Round != nil {
		masks := make([]skip.Mask, len(candidates))
		for i, unit := range candidates {
			masks[i] = s.at.Mask.Union(s.units[unit].Mask)
		}
		if err := s.o.Round(ctx, masks); err != nil {
			return err
		}
	}
	if s.here == nil && (s.o.PerByte || !s.o.Exhaustive) {
		if err := s.see(ctx, s.at.Mask, &s.here, All(s.examples)); err != nil {
			s.here = nil
			return err
		}
		if math.IsInf(mean(s.here), 1) {
			return fmt.Errorf("%w: mask %q, where the search starts, has no finite loss", ErrLosses, s.at.Mask)
		}
	}
	best, err := s.race(ctx, candidates)
	if err != nil {
		return err
	}
	u := s.units[best.unit]
	s.at = Step{
		Mask:        s.at.Mask.Union(u.Mask),
		Depth:       s.at.Depth + u.Depth,
		Loss:        mean(best.losses),
		Evaluations: s.evaluations(),
	}
	s.here = best.losses
	return nil
}

// race finds the best of the candidates, which has then seen all examples.
func (s *search) race(ctx context.Context, candidates []int) (*racer, error) {
	order, first := s.hardestFirst(), min(glance, s.examples)
	if s.o.Exhaustive {
		first = s.examples
	}
	racers := make([]racer, len(candidates))
	for i, unit := range candidates {
		racers[i].unit = unit
		if err := s.advance(ctx, &racers[i], order[:first]); err != nil {
			return nil, err
		}
	}
	defer s.rank(racers, order)
	for {
		best := s.best(racers, order)
		if best == nil {
			return nil, fmt.Errorf("%w: beside mask %q no unit can be skipped with a finite loss", ErrLosses, s.at.Mask)
		}
		if best.seen == s.examples {
			s.last = racers
			return best, nil
		}
		next := min(best.seen+max(1, int(growth*float64(best.seen))), s.examples)
		if err := s.advance(ctx, best, order[:next]); err != nil {
			return nil, err
		}
	}
}

// hardestFirst orders the examples.
func (s *search) hardestFirst() []int {
	hard := make([]float64, s.examples)
	for i := range hard {
		hard[i] = s.before(i)
		sum, n := 0.0, 0.0
		for _, r := range s.last {
			if loss := r.losses[i]; !math.IsNaN(loss) {
				sum += loss
				n++
			}
		}
		if n > 0 {
			hard[i] += sum / n
		}
	}
	order := byValue(hard)
	slices.Reverse(order)
	return order
}

// advance lets a racer see the examples up to the end of order.
func (s *search) advance(ctx context.Context, r *racer, order []int) error {
	if err := s.see(ctx, s.at.Mask.Union(s.units[r.unit].Mask), &r.losses, order); err != nil {
		return err
	}
	for _, i := range order[r.seen:] {
		r.cost += (r.losses[i] - s.before(i)) / s.size(r.unit)
	}
	r.seen = len(order)
	return nil
}

// front is the racer that has seen most; nil = all costs are infinite.
func (s *search) front(racers []racer) (front *racer) {
	for i := range racers {
		r := &racers[i]
		if !math.IsInf(r.cost, 1) && (front == nil || r.seen > front.seen || r.seen == front.seen && r.cost < front.cost) {
			front = r
		}
	}
	return front
}

// best is the racer that can still come to the lowest cost; nil = all costs are
// infinite.
func (s *search) best(racers []racer, order []int) *racer {
	front := s.front(racers)
	if front == nil {
		return nil
	}
	best, lowest := front, front.cost
	for i := range racers {
		r := &racers[i]
		if r.cost < math.Inf(1) {
			if cost, spare := s.expected(r, front, order); cost-spare < lowest {
				best, lowest = r, cost-spare
			}
		}
	}
	return best
}

// expected is what a racer comes to on what the front one has seen, if it loses on
// what it has not seen as much as that one, and how much less it may come to.
func (s *search) expected(r, front *racer, order []int) (cost, spare float64) {
	times := s.size(r.unit) / s.size(front.unit)
	squares := 0.0 // of what it has not seen, as the front-runner has it
	for _, i := range order[r.seen:max(r.seen, front.seen)] {
		increase := times * (front.losses[i] - s.before(i))
		cost += increase
		squares += math.Pow(s.before(i)+increase, 2)
	}
	// How far losses foretell those of a unit of another size is less sure.
	spare = slack * max(times, 1/times) * math.Sqrt(squares)
	return r.cost + cost/s.size(r.unit), spare / s.size(r.unit)
}

// before is an example's loss under the mask so far. Where it is not known all
// units count as of one size, and it makes no difference.
func (s *search) before(example int) float64 {
	if s.here == nil {
		return 0
	}
	return s.here[example]
}

// size is what a unit's loss is shared out over.
func (s *search) size(unit int) float64 {
	if s.o.PerByte {
		return s.units[unit].Depth
	}
	return 1
}
