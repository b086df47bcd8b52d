package search

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Contiguous finds the best run of neighbouring units of about this depth: it
// evaluates every run on all examples. The units are in order, as [LayerUnits]
// gives them; a run does not leap over a gap between them.
//
// Errors: [ErrSearch] when no run is that deep, [ErrLosses], those of losses.
func Contiguous(ctx context.Context, units []Unit, examples int, losses Losses, depth float64) (Step, error) {
	if err := checkUnits(units, examples); err != nil {
		return Step{}, err
	}
	e := &evaluator{examples: examples, losses: losses}
	best := Step{Loss: math.Inf(1)}
	for first := range units {
		run, whole := Step{}, false
		for i := first; i < len(units) && !whole; i++ {
			if i > first && firstSublayer(units[i].Mask) != lastSublayer(units[i-1].Mask)+1 {
				break
			}
			if !fits(units[i], run.Depth, depth) {
				break
			}
			run.Mask = run.Mask.Union(units[i].Mask)
			run.Depth += units[i].Depth
			whole = i+1 == len(units) || !fits(units[i+1], run.Depth, depth)
		}
		if !whole || depth-run.Depth > units[first].Depth/2 {
			continue
		}
		var err error
		if run.Loss, err = e.mean(ctx, run.Mask); err != nil {
			return Step{}, err
		}
		if best.Mask.IsEmpty() || run.Loss < best.Loss {
			best = run
		}
	}
	if best.Mask.IsEmpty() {
		return Step{}, fmt.Errorf("%w: no run of the %d units skips %.2f layers' worth", ErrSearch, len(units), depth)
	}
	best.Evaluations = e.evaluations()
	return best, nil
}

// Random draws a mask of about this depth: units in an order that seed decides,
// each that still fits. The same seed gives the same mask.
//
// Errors: [ErrSearch] when all units together are not that deep.
func Random(units []Unit, depth float64, seed uint64) (skip.Mask, error) {
	shuffled := slices.Clone(units)
	r := rand.New(rand.NewPCG(seed, 0))
	r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	return inOrder(shuffled, depth)
}

// ByInfluence skips the units of the lowest influence (len(units),) until about
// this depth: ShortGPT (Men et al., arXiv 2403.03853), when the units are layers
// and the influence is llama's Context.Influence. NaN counts as the highest.
//
// Errors: [ErrSearch] when all units together are not that deep, or there is not
// one influence for each.
func ByInfluence(units []Unit, influence []float64, depth float64) (skip.Mask, error) {
	if len(influence) != len(units) {
		return skip.Mask{}, fmt.Errorf("%w: %d influences for %d units", ErrSearch, len(influence), len(units))
	}
	sorted := []Unit{}
	for _, i := range byValue(influence) {
		sorted = append(sorted, units[i])
	}
	return inOrder(sorted, depth)
}

// Influences gives what c measured of each unit (len(units),), NaN where it
// measured nothing.
func Influences(units []Unit, c *llama.Context) []float64 {
	attention, feedForward, layer := c.Influence()
	values := make([]float64, len(units))
	for i, u := range units {
		l := u.Mask.Highest()
		switch u.Mask.Skipped(l) {
		case skip.Attention:
			values[i] = attention[l]
		case skip.FeedForward:
			values[i] = feedForward[l]
		default:
			values[i] = layer[l]
		}
	}
	return values
}

// inOrder skips each unit that fits.
func inOrder(units []Unit, depth float64) (skip.Mask, error) {
	if err := checkDepth(units, depth); err != nil {
		return skip.Mask{}, err
	}
	var mask skip.Mask
	reached := 0.0
	for _, u := range units {
		if !overlap(u.Mask, mask) && fits(u, reached, depth) {
			mask = mask.Union(u.Mask)
			reached += u.Depth
		}
	}
	return mask, nil
}

// byValue gives the indices of values, lowest first, NaN last, ties in order.
func byValue(values []float64) []int {
	order := make([]int, len(values))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(orInf(values[a]), orInf(values[b])) })
	return order
}

// orInf is x, or +Inf for NaN.
func orInf(x float64) float64 {
	if math.IsNaN(x) {
		return math.Inf(1)
	}
	return x
}

// firstSublayer and lastSublayer are the lowest and the highest sublayer that a
// mask skips, counted in the order of computation: 2L and 2L+1 in layer L; -1 when
// it skips none.
func firstSublayer(m skip.Mask) int {
	l := m.Lowest()
	if l >= 0 && m.Skipped(l)&skip.Attention == 0 {
		return 2*l + 1
	}
	return max(2*l, -1)
}

func lastSublayer(m skip.Mask) int {
	l := m.Highest()
	if l >= 0 && m.Skipped(l)&skip.FeedForward != 0 {
		return 2*l + 1
	}
	return max(2*l, -1)
}
