package main

import (
	"math"
	"slices"

	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/skip"
)

// knapsack is KnapSpec's choice (Cha et al., arXiv 2602.20217) as one static mask: of all
// masks that spare some time, the one that is expected to turn the residual stream least.
// Its weights are the times of the halves, attention 's and feed-forward 's in whole
// multiples of the smaller one, at most [mostWeight], as in the paper's code. The paper
// follows the hidden state through its dynamic programme, anew for each prompt; here the
// turns of single halves, 1 - cos(input, output), are added up. Of the masks for all
// times, those whose bytes come nearest to each depth are returned.
func knapsack(units []search.Unit, turns []float64, attention, feedForward float64, depths []float64) []skip.Mask {
	weight := func(ms float64) int {
		return int(min(max(math.Round(ms/min(attention, feedForward)), 1), mostWeight))
	}
	type choice struct {
		mask  skip.Mask
		depth float64
		turn  float64
	}
	best := map[int]choice{0: {}} // by the time that is spared
	for i, u := range units {
		w := weight(feedForward)
		if !u.Mask.KVComplete() {
			w = weight(attention)
		}
		if math.IsNaN(turns[i]) {
			continue
		}
		next := map[int]choice{}
		for t, c := range best {
			for _, n := range []struct {
				time int
				choice
			}{{t, c}, {t + w, choice{c.mask.Union(u.Mask), c.depth + u.Depth, c.turn + turns[i]}}} {
				if have, ok := next[n.time]; !ok || n.turn < have.turn {
					next[n.time] = n.choice
				}
			}
		}
		best = next
	}
	masks := make([]skip.Mask, len(depths))
	for i, depth := range depths {
		times := []int{}
		for t := range best {
			times = append(times, t)
		}
		slices.Sort(times)
		nearest := math.Inf(1)
		for _, t := range times {
			if off := math.Abs(best[t].depth - depth); off < nearest {
				nearest, masks[i] = off, best[t].mask
			}
		}
	}
	return masks
}

// mostWeight bounds the ratio of the halves' times.
const mostWeight = 5
