package schema

import (
	"encoding/binary"
	"slices"
)

// span is a range of code points, both ends in it.
type span struct{ lo, hi rune }

// runes is a set of code points: spans in order that neither overlap nor touch.
type runes []span

// anyRune is every code point that a text can have: no surrogates.
var anyRune = runes{{0, 0xD7FF}, {0xE000, 0x10FFFF}}

// union is the set of all code points of the spans.
func union(spans ...span) runes {
	slices.SortFunc(spans, func(a, b span) int { return int(a.lo) - int(b.lo) })
	var set runes
	for _, s := range spans {
		if n := len(set); n > 0 && s.lo <= set[n-1].hi+1 {
			set[n-1].hi = max(set[n-1].hi, s.hi)
		} else {
			set = append(set, s)
		}
	}
	return set
}

// minus is a without b.
func (a runes) minus(b runes) (set runes) {
	for _, s := range a {
		for _, t := range b {
			if t.hi < s.lo {
				continue
			}
			if t.lo > s.hi {
				break
			}
			if t.lo > s.lo {
				set = append(set, span{s.lo, t.lo - 1})
			}
			s.lo = t.hi + 1
		}
		if s.lo <= s.hi {
			set = append(set, s)
		}
	}
	return set
}

func (a runes) and(b runes) runes { return a.minus(anyRune.minus(b)) }

func only(r rune) runes { return runes{{r, r}} }

// edge leads from a state of a dfa to another.
type edge struct {
	span
	to int
}

// dfa is a finite automaton over code points. State 0 is the start; a code point
// without an edge ends in a refusal.
type dfa struct {
	edges  [][]edge // of each state, in order
	accept []bool
}

// everything accepts every text.
var everything = &dfa{[][]edge{{{anyRune[0], 0}, {anyRune[1], 0}}}, []bool{true}}

// step is the state behind s and r, -1 for a refusal.
func (d *dfa) step(s int, r rune) int {
	for _, e := range d.edges[s] {
		if e.lo <= r && r <= e.hi {
			return e.to
		}
	}
	return -1
}

// matches reports whether d accepts a text.
func (d *dfa) matches(text string) bool {
	s := 0
	for _, r := range text {
		if s = d.step(s, r); s < 0 {
			return false
		}
	}
	return d.accept[s]
}

// empty reports whether d, which is trimmed, accepts nothing.
func (d *dfa) empty() bool { return len(d.edges[0]) == 0 && !d.accept[0] }

// complement accepts what d does not.
func (c *converter) complement(d *dfa) *dfa {
	sink := len(d.edges)
	not := &dfa{}
	for s, edges := range d.edges {
		var covered []span
		for _, e := range edges {
			covered = append(covered, e.span)
		}
		out := slices.Clone(edges)
		for _, gap := range anyRune.minus(union(covered...)) {
			out = append(out, edge{gap, sink})
		}
		slices.SortFunc(out, func(a, b edge) int { return int(a.lo) - int(b.lo) })
		not.edges, not.accept = append(not.edges, out), append(not.accept, !d.accept[s])
		c.tick(len(out))
	}
	not.edges, not.accept = append(not.edges, everything.edges[0]), append(not.accept, true)
	last := slices.Clone(everything.edges[0])
	for i := range last {
		last[i].to = sink
	}
	not.edges[sink] = last
	return c.trim(not)
}

// product builds the automaton of pairs of states. With either, it goes on where
// one of the two refuses.
func (c *converter) product(a, b *dfa, either bool, at, keyword string) *dfa {
	type pair struct{ a, b int }
	ids := map[pair]int{{0, 0}: 0}
	pairs := []pair{{0, 0}}
	d := &dfa{}
	target := func(p pair) int {
		id, ok := ids[p]
		if !ok {
			id = len(pairs)
			ids[p], pairs = id, append(pairs, p)
			if len(pairs) > maxStates {
				fail(at, keyword, "the texts it asks for need more than %d states; make it simpler or shorter", maxStates)
			}
		}
		return id
	}
	edgesOf := func(d *dfa, s int) []edge {
		if s < 0 {
			return nil
		}
		return d.edges[s]
	}
	for i := 0; i < len(pairs); i++ {
		p := pairs[i]
		ea, eb := edgesOf(a, p.a), edgesOf(b, p.b)
		var out []edge
		for lo, x, y := rune(0), 0, 0; x < len(ea) || y < len(eb); {
			c.tick(1)
			// The next stretch on which neither side changes.
			ta, tb, hi := -1, -1, rune(0x10FFFF)
			side := func(e []edge, k int, to *int) {
				if k < len(e) {
					if e[k].lo > lo {
						hi = min(hi, e[k].lo-1)
					} else {
						*to, hi = e[k].to, min(hi, e[k].hi)
					}
				}
			}
			side(ea, x, &ta)
			side(eb, y, &tb)
			if ta >= 0 && tb >= 0 || either && (ta >= 0 || tb >= 0) {
				out = append(out, edge{span{lo, hi}, target(pair{ta, tb})})
			}
			lo = hi + 1
			for x < len(ea) && ea[x].hi < lo {
				x++
			}
			for y < len(eb) && eb[y].hi < lo {
				y++
			}
		}
		accA, accB := p.a >= 0 && a.accept[p.a], p.b >= 0 && b.accept[p.b]
		d.edges = append(d.edges, out)
		d.accept = append(d.accept, accA && accB || either && (accA || accB))
	}
	return c.trim(d)
}

func (c *converter) intersect(a, b *dfa, at, keyword string) *dfa {
	switch {
	case a == everything:
		return b
	case b == everything:
		return a
	}
	return c.product(a, b, false, at, keyword)
}

// trim leaves out the states that lead to no acceptance, joins edges, and merges
// states that have the same edges.
func (c *converter) trim(d *dfa) *dfa {
	n := len(d.edges)
	back := make([][]int, n)
	for s, edges := range d.edges {
		c.tick(1 + len(edges))
		for _, e := range edges {
			if k := len(back[e.to]); k == 0 || back[e.to][k-1] != s {
				back[e.to] = append(back[e.to], s)
			}
		}
	}
	alive := make([]bool, n)
	var todo []int
	for s := range n {
		if d.accept[s] {
			alive[s], todo = true, append(todo, s)
		}
	}
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, p := range back[s] {
			if !alive[p] {
				alive[p], todo = true, append(todo, p)
			}
		}
	}
	// same[s] is a state with the same behaviour as s, as far as a few rounds find.
	same := make([]int, n)
	for s := range same {
		same[s] = s
	}
	join := func(s int) (out []edge) {
		for _, e := range d.edges[s] {
			if !alive[e.to] {
				continue
			}
			e.to = same[e.to]
			if k := len(out); k > 0 && out[k-1].to == e.to && out[k-1].hi+1 == e.lo {
				out[k-1].hi = e.hi
			} else {
				out = append(out, e)
			}
		}
		return out
	}
	const rounds = 8
	for range rounds {
		seen := map[string]int{}
		changed := false
		var key []byte
		for s := n - 1; s >= 0; s-- {
			if !alive[s] || same[s] != s {
				continue
			}
			key = key[:0]
			if d.accept[s] {
				key = append(key, 1)
			}
			for _, e := range join(s) {
				to := e.to
				if to == s {
					to = -1 // itself
				}
				key = binary.AppendVarint(binary.AppendVarint(binary.AppendVarint(key, int64(e.lo)), int64(e.hi)), int64(to))
			}
			c.tick(1 + len(key)/8)
			if t, ok := seen[string(key)]; ok {
				same[s], changed = t, true
			} else {
				seen[string(key)] = s
			}
		}
		for s := range same {
			for same[s] != same[same[s]] {
				same[s] = same[same[s]]
			}
		}
		if !changed {
			break
		}
	}
	ids := map[int]int{same[0]: 0}
	order := []int{same[0]}
	small := &dfa{}
	for i := 0; i < len(order); i++ {
		s := order[i]
		out := join(s)
		if !alive[s] {
			out = nil
		}
		for k, e := range out {
			id, ok := ids[e.to]
			if !ok {
				id = len(order)
				ids[e.to], order = id, append(order, e.to)
			}
			out[k].to = id
		}
		small.edges, small.accept = append(small.edges, out), append(small.accept, d.accept[s])
	}
	return small
}

// lengths accepts texts of least to most code points; most -1 = any number.
func (c *converter) lengths(least, most int, at, keyword string) *dfa {
	n := most
	if most < 0 {
		n = least
	}
	if n >= maxStates {
		fail(at, keyword, "%d beside a pattern or format, more than %d", n, maxStates-1)
	}
	c.tick(n)
	d := &dfa{}
	for i := range n + 1 {
		to := i + 1
		if i == n {
			to = n
		}
		edges := []edge{{anyRune[0], to}, {anyRune[1], to}}
		if i == n && most >= 0 {
			edges = nil
		}
		d.edges, d.accept = append(d.edges, edges), append(d.accept, i >= least)
	}
	return d
}

// oneOfTexts accepts each of the texts.
func oneOfTexts(list []string) *dfa {
	d := &dfa{[][]edge{nil}, []bool{false}}
	for _, text := range list {
		s := 0
		for _, r := range text {
			to := d.step(s, r)
			if to < 0 {
				to = len(d.edges)
				d.edges, d.accept = append(d.edges, nil), append(d.accept, false)
				at, _ := slices.BinarySearchFunc(d.edges[s], r, func(e edge, r rune) int { return int(e.lo) - int(r) })
				d.edges[s] = slices.Insert(d.edges[s], at, edge{span{r, r}, to})
			}
			s = to
		}
		d.accept[s] = true
	}
	return d
}
