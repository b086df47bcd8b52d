package router

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/gallop-llm/gallop/skip"
)

// Candidate is a mask that a router may choose.
type Candidate struct {
	Mask  skip.Mask
	Depth float64 // layers' worth of weight bytes that Mask skips
	Task  string  // whose omission set it is, several joined by " + "; "" for the empty mask
}

// taskSeparator stands between the tasks of a candidate.
const taskSeparator = " + "

// At tells whether the candidate counts as one of this depth.
func (c Candidate) At(depth float64) bool { return math.Abs(c.Depth-depth) <= DepthTolerance }

// For tells whether the candidate is a task's omission set.
func (c Candidate) For(task string) bool {
	return slices.Contains(strings.Split(c.Task, taskSeparator), task)
}

// AddTask makes the candidate another task's omission set too.
func (c *Candidate) AddTask(task string) {
	switch {
	case c.Task == "":
		c.Task = task
	case !c.For(task):
		c.Task += taskSeparator + task
	}
}

// DropTask ends that the candidate is a task's omission set.
func (c *Candidate) DropTask(task string) {
	tasks := strings.Split(c.Task, taskSeparator)
	c.Task = strings.Join(slices.DeleteFunc(tasks, func(t string) bool { return t == task }), taskSeparator)
}

// Policy says how deep to skip. The zero value is the profile's own policy.
type Policy struct {
	// Depth always skips as much, in layers' worth of weights, whatever the
	// prompt: PuDDing's way. 0 = adaptive, by Quality.
	Depth float64

	// Quality is the share of the whole model's probability for each token of
	// the answer that must be expected to remain, above 0 to 1; 0 = the profile's.
	Quality float64

	// Guard gives the whole model to prompts unlike the calibration data at a
	// fixed depth too.
	Guard bool

	// Confidence, 0 to below 1, that the loss increase is no more than Quality
	// allows; 0 = the profile's.
	Confidence float64
}

// Decision is what was chosen for a prompt, and why.
type Decision struct {
	Candidate int // its place in [Profile].Candidates; 0 = the empty mask
	Mask      skip.Mask
	Task      string    // whose set it is
	Depth     float64   // that the mask skips
	Predicted []float64 // (nCandidates,) predicted loss increases in nats per token
	Quality   float64   // exp(-predicted increase of the chosen one), at most 1
	Novelty   float64   // above 1: unlike the calibration prompts
	Reason    string    // one sentence for people
}

// DepthTolerance is how far apart, in layers' worth, the depths of candidates
// may be that count as one depth. Sets found for one wanted depth differ by
// what the last sublayer overshot: half a layer at most.
const DepthTolerance = 0.5

// check fills in the profile's defaults and refuses what is out of range.
func (pol Policy) check(p *Profile) (Policy, error) {
	switch {
	case !(pol.Depth >= 0) || math.IsInf(pol.Depth, 0):
		return pol, fmt.Errorf("%w: depth is %g, want 0 (adaptive) or more layers", ErrPolicy, pol.Depth)
	case !(pol.Quality >= 0 && pol.Quality <= 1):
		return pol, fmt.Errorf("%w: quality is %g, want above 0 to 1", ErrPolicy, pol.Quality)
	case !(pol.Confidence >= 0 && pol.Confidence < 1):
		return pol, fmt.Errorf("%w: confidence is %g, want 0 to below 1", ErrPolicy, pol.Confidence)
	}
	if pol == (Policy{}) {
		pol.Depth = p.Defaults.Depth
	}
	if pol.Quality == 0 {
		pol.Quality = p.Defaults.Quality
	}
	if pol.Confidence == 0 {
		pol.Confidence = p.Defaults.Confidence
	}
	return pol, nil
}

// Choose routes a prompt. A fixed depth takes, among the candidates of that
// depth, or of the next smaller one that there is, the one with the lowest
// predicted loss; it never looks at novelty, as in the paper. Adaptively it is
// the deepest candidate whose loss increase stays within -ln(quality) at the
// wanted confidence; a prompt unlike the calibration's gets the whole model.
//
// A profile without a router, as one made from a preset, has only fixed depths
// and takes the first candidate. Features must be set where there is a router.
func (p *Profile) Choose(x Prompt, pol Policy) (Decision, error) {
	if len(p.Candidates) == 0 || p.Router == nil {
		return p.ChooseBy(nil, pol)
	}
	if p.Features == nil {
		return Decision{}, fmt.Errorf("%w: the profile's features are not open; call Open first", ErrFeatures)
	}
	if _, err := pol.check(p); err != nil {
		return Decision{}, err
	}
	if n := len(p.Candidates); p.Features.Dim() != p.Router.In || p.Router.Out != n {
		return Decision{}, fmt.Errorf("%w: its router takes %d features and knows %d candidates, there are %d and %d", ErrProfile, p.Router.In, p.Router.Out, p.Features.Dim(), n)
	}
	features := borrow(p.Features.Dim())
	defer scratch.Put(features)
	if err := p.Features.Vector(*features, x); err != nil {
		return Decision{}, err
	}
	return p.ChooseBy(*features, pol)
}

// ChooseBy is [Profile.Choose] for a prompt's features (Router.In,), which a
// profile without a router does not look at.
func (p *Profile) ChooseBy(features []float32, pol Policy) (Decision, error) {
	pol, err := pol.check(p)
	if err != nil {
		return Decision{}, err
	}
	n := len(p.Candidates)
	if n == 0 {
		return Decision{}, fmt.Errorf("%w: it has no candidates", ErrProfile)
	}
	d := Decision{Predicted: make([]float64, n)}
	if p.Router == nil {
		if pol.Depth == 0 {
			return d.take(p, 0, "whole model: this profile has no router; a fixed depth takes its first set"), nil
		}
		return d.take(p, p.atDepth(pol.Depth)[0], "the profile has no router: the first set of this depth"), nil
	}
	p.Router.Predict(d.Predicted, features)
	if p.Novelty != nil {
		d.Novelty = p.Novelty.Distance(features)
	}
	if !(d.Novelty <= 1) && (pol.Depth == 0 || pol.Guard) {
		return d.take(p, 0, fmt.Sprintf("whole model: the prompt is unlike the calibration data (novelty %.2f, above 1)", d.Novelty)), nil
	}
	if pol.Depth > 0 {
		best := lowestOf(d.Predicted, p.atDepth(pol.Depth))
		return d.take(p, best, fmt.Sprintf("lowest predicted loss at depth %.3g", p.Candidates[best].Depth)), nil
	}
	budget := -math.Log(pol.Quality)
	bound := make([]float64, n)
	p.Router.Bound(bound, features, pol.Confidence)
	best := 0
	for c := 1; c < n; c++ {
		deeper := p.Candidates[c].Depth - p.Candidates[best].Depth
		if bound[c] <= budget && (deeper > 0 || deeper == 0 && d.Predicted[c] < d.Predicted[best]) {
			best = c
		}
	}
	if best == 0 {
		return d.take(p, 0, fmt.Sprintf("whole model: no set is sure to keep a quality of %.3g", pol.Quality)), nil
	}
	return d.take(p, best, fmt.Sprintf("deepest set that keeps a quality of %.3g", pol.Quality)), nil
}

func (d Decision) take(p *Profile, c int, reason string) Decision {
	d.Candidate, d.Mask, d.Depth, d.Task, d.Reason = c, p.Candidates[c].Mask, p.Candidates[c].Depth, p.Candidates[c].Task, reason
	d.Quality = min(math.Exp(-d.Predicted[c]), 1)
	return d
}

// Depths lists the depths of the candidates, ascending; those that count as one
// depth are one, rounded to half a layer.
func (p *Profile) Depths() (depths []float64) {
	for _, c := range p.Candidates[1:] {
		depths = append(depths, math.Round(c.Depth/DepthTolerance)*DepthTolerance)
	}
	slices.Sort(depths)
	return slices.Compact(depths)
}

// KVComplete tells whether all candidates do, as [skip.Mask.KVComplete] says.
func (p *Profile) KVComplete() bool {
	return !slices.ContainsFunc(p.Candidates, func(c Candidate) bool { return !c.Mask.KVComplete() })
}

// NeverKept is what every mask skips that a policy can choose: nothing when the
// whole model is one of them.
func (p *Profile) NeverKept(pol Policy) (skip.Mask, error) {
	pol, err := pol.check(p)
	if err != nil || pol.Depth == 0 || pol.Guard {
		return skip.Mask{}, err
	}
	choices := p.atDepth(pol.Depth)
	mask := p.Candidates[choices[0]].Mask
	for _, c := range choices {
		mask = mask.Intersection(p.Candidates[c].Mask)
	}
	return mask, nil
}

// atDepth lists the candidates whose depth is nearest to depth and not above
// it, give or take the tolerance. The empty mask is alone where all are deeper.
func (p *Profile) atDepth(depth float64) []int {
	deepest := 0.0
	for _, c := range p.Candidates {
		if c.Depth <= depth+DepthTolerance {
			deepest = max(deepest, c.Depth)
		}
	}
	if deepest == 0 {
		return []int{0}
	}
	// A shallower set has the lower loss: sets of the next smaller depth must
	// not slip in, so the tolerance shrinks where depths lie close together.
	group := []int{}
	for c, candidate := range p.Candidates {
		if c > 0 && candidate.Depth <= depth+DepthTolerance && candidate.Depth > deepest-DepthTolerance {
			group = append(group, c)
		}
	}
	return group
}

func lowestOf(predicted []float64, group []int) int {
	best := group[0]
	for _, c := range group {
		if predicted[c] < predicted[best] {
			best = c
		}
	}
	return best
}

// CostModel weighs decoding a prompt's tokens, many at a time, against
// generating an answer's, one at a time.
type CostModel struct {
	// Layers of the model.
	Layers int

	// Prefill is the time of a token decoded in a batch divided by that of a
	// generated one; 0 = 0.1, which is cautious for CPUs and more so for GPUs.
	Prefill float64
}

// defaultPrefill: processors decode a prompt 5 to 50 times faster, by the
// token, than they generate.
const defaultPrefill = 0.1

// Switch decides whether a chat's next turn moves from the mask of now to that
// of next, when that means decoding cachedTokens again. Times are in generated
// tokens of the whole model:
//
//	gain = expectedTokens × (next.Depth - now.Depth) / Layers
//	cost = cachedTokens × Prefill × (1 - next.Depth / Layers)
//
// It moves to a deeper mask when gain exceeds cost. A mask that keeps more is a
// matter of quality, not of time: where the old mask's predicted loss for the
// new turn is higher than that of next, a shallower or equally deep next is
// taken whatever it costs. reason says in one sentence what was weighed.
func Switch(now, next Decision, cachedTokens, expectedTokens int, cost CostModel) (move bool, reason string) {
	if now.Mask == next.Mask {
		return false, "the mask stays"
	}
	if cachedTokens <= 0 {
		return true, "nothing is cached"
	}
	if next.Depth <= now.Depth {
		if next.Candidate == 0 || now.Candidate >= len(next.Predicted) || next.Predicted[now.Candidate] > next.Predicted[next.Candidate] {
			return true, fmt.Sprintf("the new turn needs another mask: %d tokens are decoded again", cachedTokens)
		}
		return false, "the old mask serves the new turn as well"
	}
	prefill := cost.Prefill
	if prefill == 0 {
		prefill = defaultPrefill
	}
	layers := float64(max(cost.Layers, 1))
	gain := float64(max(expectedTokens, 0)) * (next.Depth - now.Depth) / layers
	price := float64(cachedTokens) * prefill * (1 - next.Depth/layers)
	if gain > price {
		return true, fmt.Sprintf("a deeper mask saves the time of %.1f tokens, decoding %d again costs that of %.1f", gain, cachedTokens, price)
	}
	return false, fmt.Sprintf("a deeper mask would save the time of %.1f tokens, decoding %d again costs that of %.1f", gain, cachedTokens, price)
}
