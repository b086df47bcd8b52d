package draft

import (
	"math"
	"slices"
	"time"

	"github.com/gallop-llm/gallop/internal/costs"
)

// costModel is what decodes cost on this machine: the whole model's time for n tokens
// in one batch, verification of drafts included. On a GPU it hardly grows with n;
// on a CPU it does, in steps, because matrices are multiplied by several columns
// at a time. Costs are in the time of a token decoded alone, which they grow and
// shrink with: the longer the context, the longer both take, and a machine that
// has just begun to read a model, or is busy, is slow at both.
type costModel struct {
	curve            // measured costs; sizes without a measurement are interpolated, or extrapolated beyond the largest
	optimistic curve // for sizes with fewer than trusted measurements the usual cost, if that is lower
	cautious   curve // for sizes with few measurements nearly the cost of the tokens decoded alone

	one   float64     // seconds of a token decoded alone; 0 = not measured
	alone costs.Times // what one follows from

	graph float64     // cost of a token decoded alone, beyond one, that follows a batch of another kind; batches have it in them
	after costs.Times // what graph follows from

	prompt float64 // seconds of each token of the last prompt; 0 = not measured
	apart  float64 // how much more a token takes that has logits than one of a prompt, as a factor; 0 = products are not computed together

	cost [mostRows + 1]float64     // (n,) of a batch of n tokens; 0 = not measured
	seen [mostRows + 1]costs.Times // what they follow from
}

// mostRows is the longest batch, in tokens: the longest draft, the last token
// taken, and one before it that is decoded again to compare with.
const mostRows = costs.MostRows

// curve is the cost of a batch of n tokens, (n,): worked out once for each
// measurement, as it is asked for many times for each token.
type curve [mostRows + 1]float64

// of is the cost of a batch of n tokens, filled up to the next size.
func (c *curve) of(n int) float64 { return c[batchSize(n)] }

// batchSize is how many tokens a batch of n is filled up to: CPUs multiply by four
// or eight columns at a time, and some take as long for five as for eight.
func batchSize(n int) int {
	if n <= 2 {
		return n
	}
	return min((n+columns-1)/columns*columns, mostRows)
}

// columns is what sizes of batches are multiples of, beyond two.
const columns = 4

// addBatch takes in the time of a batch of n tokens; before that of a single one is
// known, nothing.
func (p *costModel) addBatch(n int, took time.Duration) {
	if n == 1 {
		p.one = p.alone.Add(took.Seconds())
		if p.alone.N() <= costs.Recent {
			p.recompute()
		}
		return
	}
	if p.one > 0 {
		p.cost[n] = p.seen[n].Add(p.tokens(took))
		p.recompute()
	}
}

// addGraph takes in the time of a single token that followed another kind of batch.
func (p *costModel) addGraph(took time.Duration) {
	p.graph = max(p.after.Add(p.tokens(took))-1, 0)
	p.recompute()
}

// addPrompt takes in the time of a prompt of n tokens.
func (p *costModel) addPrompt(n int, took time.Duration) {
	if n >= leastPrompt {
		p.prompt = took.Seconds() / float64(n)
		p.recompute()
	}
}

// leastPrompt is how many tokens of a prompt tell what one in a batch costs.
const leastPrompt = 8

// together is what a batch of n tokens costs by what a prompt's tokens did: the
// weights are read once, and each token is multiplied with them. Logits for all are
// more work than for the last one.
func (p *costModel) together(n int) float64 {
	if p.prompt == 0 || p.one == 0 || p.apart == 0 {
		return math.Inf(1)
	}
	return 1 + p.graph + float64(n)*p.apart*p.prompt/p.one
}

// forgetBatches forgets what batches cost: they are computed in another way now.
func (p *costModel) forgetBatches() {
	p.cost, p.seen = [mostRows + 1]float64{}, [mostRows + 1]costs.Times{}
	p.recompute()
}

// recall takes in costs that were measured earlier, as often as it takes to trust
// them; new measurements take their place.
func (p *costModel) recall(graph float64, costs map[int]float64) {
	p.graph = graph
	for range trusted {
		p.after.Add(1 + graph)
		for n, cost := range costs {
			p.cost[n] = p.seen[n].Add(cost)
		}
	}
	p.recompute()
}

// recompute works out the curves.
func (p *costModel) recompute() {
	for n := range p.curve {
		p.curve[n] = p.estimate(n)
		p.optimistic[n] = p.curve[n]
		if n > 1 && p.seen[n].N() < trusted { // one time may be twice too long
			p.optimistic[n] = min(p.curve[n], max(1+p.graph+unknownSlope*float64(n-1), p.cost[n]/2))
		}
	}
	p.cautious[0], p.cautious[1] = 1, 1
	for n := 2; n < len(p.cautious); n++ {
		p.cautious[n] = dearOnce + p.graph + dearSlope*float64(n)
		if n == 2 {
			p.cautious[n] = dearPair + p.graph
		}
		p.cautious[n] = min(p.cautious[n], p.together(n))
		if below := p.cautious[n-1]; n > 2 && p.seen[n-1].N() > 0 {
			p.cautious[n] = min(p.cautious[n], below+dearSlope)
		}
		if p.seen[n].N() >= trusted {
			p.cautious[n] = p.cost[n]
		} else if p.seen[n].N() > 0 {
			p.cautious[n] = min(p.cautious[n], p.cost[n])
		}
	}
	for n := len(p.cautious) - 2; n > 1; n-- { // a shorter batch costs no more
		if p.seen[n].N() < trusted {
			p.cautious[n] = min(p.cautious[n], p.cautious[n+1])
		}
	}
}

// tokens is how many tokens could have been decoded alone in a time; 0 while
// that of one is not known.
func (p *costModel) tokens(took time.Duration) float64 {
	if p.one == 0 {
		return 0
	}
	return took.Seconds() / p.one
}

// unknownSlope is what one more token is taken to add to a batch while nothing
// was measured: about a CPU's.
const unknownSlope = 0.3

// A batch of n tokens that was not measured is expected to cost dearOnce and n
// times dearSlope where it is dear, and one of two dearPair. Some processors have fast code for one token
// and none for a few: two cost as much as 2.7 to 3.7 there, eight 6 to 7.5 and
// sixteen 8 to 13 (three models in 4 and 5 bits on an AMD EPYC with AVX-512).
const (
	dearPair  = 3.7
	dearOnce  = 1.6
	dearSlope = 0.8
)

// trusted is how many measurements it takes to give up what was believed before:
// one may have been interrupted, and what is taken for dear is not tried again.
const trusted = 3

// estimate is what measurements say of a batch of n tokens.
func (p *costModel) estimate(n int) float64 {
	switch {
	case n <= 1:
		return 1
	case p.seen[n].N() == 0:
		return p.interpolate(n)
	case p.seen[n].N() < trusted:
		return min(p.cost[n], p.interpolate(n))
	}
	return p.cost[n]
}

// interpolate is what the neighbours of n say of it.
func (p *costModel) interpolate(n int) float64 {
	below, above := n-1, n+1
	for below > 1 && p.cost[below] == 0 {
		below--
	}
	for above < len(p.cost) && p.cost[above] == 0 {
		above++
	}
	cost := max(p.cost[below], 1)
	slope := unknownSlope
	switch {
	case above < len(p.cost):
		slope = (p.cost[above] - cost) / float64(above-below)
	case below > 1:
		slope = max(cost-1, 0) / float64(below-1)
	}
	return cost + slope*float64(n-below)
}

// acceptance is the chances that a drafted token is accepted, by how sure the draft
// was of it. Counts fade, so that they follow the text.
type acceptance struct {
	tried, kept [sureness]float64
}

// sureness is the number of classes of how sure a draft is; class 0 is the least.
const sureness = 8

// priorTries is how many tries a belief of before counts as.
const priorTries = 4

// fade is how much of a count remains when another is added: some fifty tries
// are remembered.
const fade = 0.98

// count takes in what became of a token.
func (o *acceptance) count(class int, kept bool) {
	o.tried[class] = fade*o.tried[class] + 1
	o.kept[class] *= fade
	if kept {
		o.kept[class]++
	}
}

// mean is the chance over all classes; prior is what was believed before.
func (o *acceptance) mean(prior float64) float64 {
	tried, kept := o.sums()
	return (kept + priorTries*prior) / (tried + priorTries)
}

// upper is the chance that the tries so far do not rule out: one standard
// deviation above the mean.
func (o *acceptance) upper(prior float64) float64 {
	tried, _ := o.sums()
	p := o.mean(prior)
	return min(p+math.Sqrt(p*(1-p)/(tried+1)), mostAcceptance)
}

// mostAcceptance bounds it: certain acceptance would make drafts without end look free.
const mostAcceptance = 0.99

func (o *acceptance) sums() (tried, kept float64) {
	for c := range o.tried {
		tried += o.tried[c]
		kept += o.kept[c]
	}
	return tried, kept
}

// of is the chance of a class.
func (o *acceptance) of(class int, prior float64) float64 {
	mean := o.mean(prior)
	return (o.kept[class] + priorTries*mean) / (o.tried[class] + priorTries)
}

// lower is the chance of a class that tries show, whatever was believed: as if one
// more had failed. Classes below it count where that makes it surer.
func (o *acceptance) lower(class int) (chance float64) {
	tried, kept := 1.0, 0.0
	for c := class; c >= 0; c-- {
		tried, kept = tried+o.tried[c], kept+o.kept[c]
		chance = max(chance, kept/tried)
	}
	return chance
}

// probabilityClass is the class of a token that the draft gave probability p:
// each class halves what is missing to 1.
func probabilityClass(p float64) int {
	return min(int(-math.Log2(max(1-p, 1e-9))), sureness-1)
}

// draftCost is what drafting takes, in the time of a token decoded alone: once
// for each draft, and for each token.
type draftCost struct {
	once, each float64

	first, later costs.Times // that were measured
}

// learn takes in what the tokens of a draft cost, and sorts them. The first one
// has the change to another graph in it. Of the others the median counts, as an
// interruption slows down all that come together.
func (c *draftCost) learn(tokens []float64) {
	if len(tokens) > 1 {
		later := tokens[1:]
		slices.Sort(later)
		if usual := c.later.Add(later[len(later)/2]); c.later.N() >= trusted {
			c.each = usual
		}
	}
	if len(tokens) > 0 {
		if usual := c.first.Add(tokens[0]); c.first.N() >= trusted {
			c.once = max(usual-c.each, 0)
		}
	}
}

// affordable is the longest draft of at most len(chances) tokens that is expected
// to lose no more than budget, in the time of tokens decoded alone; 0 = none. Each
// token is accepted with its chance, (γ,), where those before it are. extra is how
// many tokens the batch of a draft of n has beside it and the one before it.
func (c *curve) affordable(cost *draftCost, chances []float64, budget float64, extra func(n int) int) int {
	n := len(chances)
	for n > 0 && c.risk(cost, chances[:n], extra(n)) > budget {
		n--
	}
	return n
}

// risk is the expected loss of a draft: what it costs beyond the tokens that it
// gives, wherever it does.
func (c *curve) risk(cost *draftCost, chances []float64, extra int) (loss float64) {
	n := len(chances)
	price := cost.once + float64(n)*cost.each + c.of(n+1+extra)
	reach := 1.0
	for accepted, chance := range chances {
		loss += reach * (1 - chance) * max(price-float64(accepted+1), 0)
		reach *= chance
	}
	return loss + reach*max(price-float64(n+1), 0)
}

// best finds the length of drafts that brings most when each token is accepted
// with its chance, (γ,), where those before it are: a draft of γ tokens gives
// 1 + a₁ + a₁a₂ + … + a₁a₂…a_γ (the whole model's own next token is the first
// term), for once + γ each + the cost of a batch of γ+1. rate is tokens by cost:
// the speed-up over one token at a time.
func (c *curve) best(cost *draftCost, chances []float64) (length int, rate float64) {
	tokens, reach := 1.0, 1.0
	for i, chance := range chances {
		n := i + 1
		reach *= chance
		tokens += reach
		if r := tokens / (cost.once + float64(n)*cost.each + c.of(n+1)); r > rate {
			length, rate = n, r
		}
	}
	return length, rate
}

// fill sets all of dst to x.
func fill(dst []float64, x float64) []float64 {
	for i := range dst {
		dst[i] = x
	}
	return dst
}

// goOn decides whether a draft of n tokens, all of which are accepted with the
// chance reach, should get longer: whether some longer draft brings more tokens
// than the time that it takes would bring at rate.
func (c *curve) goOn(n int, reach float64, cost *draftCost, chance, rate float64, most int) bool {
	tokens := 0.0
	for m := n + 1; m <= most; m++ {
		reach *= chance
		tokens += reach
		if tokens > rate*(float64(m-n)*cost.each+c.of(m+1)-c.of(n+1)) {
			return true
		}
	}
	return false
}
