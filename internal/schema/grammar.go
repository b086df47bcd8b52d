package schema

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// sym is one part of a sequence: a text, a class of characters, or a rule, the
// latter two min to max times; max -1 = without limit.
type sym struct {
	lit      string
	set      runes
	ref      *rule
	min, max int
}

// seq is what follows each other; without parts it is the empty text.
type seq []sym

// rule is a choice. One without alternatives can never be satisfied.
type rule struct {
	id   int
	name string
	alts []seq

	// exclusive says that only one alternative is left behind a few characters, such
	// as the name of a property.
	exclusive bool
	foreign   bool // one of the caller's own, whose name alone is known

	dead     bool  // nothing finite satisfies it
	nullable bool  // the empty text does
	first    runes // what it may begin with
	known    bool  // … all of which is known
	width    int   // places that llama.cpp is at when the rule begins
	stacks   int   // … at most within it
	paths    int   // steps of llama.cpp's search for left recursion
	depth    int   // of the same search
}

func text(s string) sym              { return sym{lit: s, min: 1, max: 1} }
func class(r runes) sym              { return sym{set: r, min: 1, max: 1} }
func one(r *rule) sym                { return sym{ref: r, min: 1, max: 1} }
func (s sym) times(min, max int) sym { s.min, s.max = min, max; return s }

func (s sym) optional() bool { return s.min == 0 }

// id tells syms apart.
func (s sym) id() string {
	switch {
	case s.ref != nil:
		return fmt.Sprint("r", s.ref.id, " ", s.min, " ", s.max)
	case s.set != nil:
		return fmt.Sprint("c", s.set, s.min, " ", s.max)
	}
	return strconv.Quote(s.lit)
}

func (q seq) id() string {
	var b strings.Builder
	for _, s := range q {
		b.WriteString(s.id())
		b.WriteByte(' ')
	}
	return b.String()
}

// rule makes a rule.
func (c *converter) rule(alts []seq, exclusive bool) *rule {
	c.tick(1)
	if len(c.rules) >= maxRules {
		fail(c.at, "", "a grammar of over %d rules; make it smaller", maxRules)
	}
	r := &rule{id: len(c.rules), alts: alts, exclusive: exclusive}
	r.name = "r" + strconv.Itoa(r.id)
	c.rules = append(c.rules, r)
	return r
}

// shared gives the rule of a name, built at the first call.
func (c *converter) shared(name string, build func(r *rule)) *rule {
	r := c.named[name]
	if r == nil {
		r = c.rule(nil, true)
		r.name = name
		c.named[name] = r
		build(r)
	}
	return r
}

// repeat is a part min to max times, in pieces that llama.cpp takes.
func (c *converter) repeat(s sym, min, max int, at, keyword string) (q seq) {
	if min > maxRepeat || max > maxRepeat {
		fail(at, keyword, "more than %d", maxRepeat)
	}
	if max <= repeatBlock && min <= repeatBlock {
		return seq{s.times(min, max)}
	}
	block := one(c.rule([]seq{{s.times(repeatBlock, repeatBlock)}}, true))
	if n := min / repeatBlock; n > 0 {
		q = append(q, block.times(n, n))
		min -= n * repeatBlock
		if max >= 0 {
			max -= n * repeatBlock
		}
	}
	if max <= repeatBlock {
		return append(q, s.times(min, max))
	}
	if min > 0 {
		q, max = append(q, s.times(min, min)), max-min
	}
	// Blocks, then less than a block; or as many blocks as there may be, then the rest.
	n := max / repeatBlock
	return append(q, one(c.rule([]seq{
		{block.times(0, n-1), s.times(0, repeatBlock-1)},
		{block.times(n, n), s.times(0, max%repeatBlock)},
	}, false)))
}

// prune finds the rules that nothing finite satisfies, and takes the alternatives
// with them out.
func (c *converter) prune() {
	for _, r := range c.rules {
		r.dead = true
	}
	users := map[*rule][]*rule{}
	for _, r := range c.rules {
		for _, q := range r.alts {
			for _, s := range q {
				if s.ref != nil && !s.optional() {
					users[s.ref] = append(users[s.ref], r)
				}
			}
		}
	}
	alive := func(q seq) bool {
		return !slices.ContainsFunc(q, func(s sym) bool {
			return s.ref != nil && !s.optional() && s.ref.dead
		})
	}
	todo := slices.Clone(c.rules)
	for len(todo) > 0 {
		r := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		c.tick(1 + len(r.alts))
		if r.dead && slices.ContainsFunc(r.alts, alive) {
			r.dead = false
			todo = append(todo, users[r]...)
		}
	}
	for _, r := range c.rules {
		r.alts = slices.DeleteFunc(slices.Clone(r.alts), func(q seq) bool { return !alive(q) })
		for i, q := range r.alts {
			r.alts[i] = slices.DeleteFunc(slices.Clone(q), func(s sym) bool { return s.max == 0 || s.ref != nil && s.ref.dead })
		}
	}
}

// reachable lists a rule and those that it needs, the needed ones first.
func (c *converter) reachable(root *rule) (list []*rule) {
	seen := map[*rule]bool{}
	type frame struct {
		r   *rule
		alt int
		sym int
	}
	stack := []frame{{r: root}}
	seen[root] = true
	for len(stack) > 0 {
		f := &stack[len(stack)-1]
		c.tick(1)
		if f.alt >= len(f.r.alts) {
			list = append(list, f.r)
			stack = stack[:len(stack)-1]
			continue
		}
		if f.sym >= len(f.r.alts[f.alt]) {
			f.alt, f.sym = f.alt+1, 0
			continue
		}
		s := f.r.alts[f.alt][f.sym]
		f.sym++
		if s.ref != nil && !seen[s.ref] {
			seen[s.ref] = true
			stack = append(stack, frame{r: s.ref})
		}
	}
	return list
}

// starts finds out about the beginnings of rules. The search for those that a rule
// begins with ends, since what a value holds lies behind a character.
func (c *converter) starts(list []*rule) {
	for _, r := range list {
		r.nullable, r.first, r.known = false, nil, false
	}
	for changed := true; changed; {
		changed = false
		for _, r := range list {
			c.tick(1 + len(r.alts))
			if !r.nullable && slices.ContainsFunc(r.alts, func(q seq) bool {
				return !slices.ContainsFunc(q, func(s sym) bool { return !s.optional() && (s.ref == nil || !s.ref.nullable) })
			}) {
				r.nullable, changed = true, true
			}
		}
	}
	for _, r := range list {
		c.start(r)
	}
}

// start is starts of one rule.
func (c *converter) start(r *rule) {
	if r.known {
		return
	}
	r.known = true
	r.width, r.paths, r.depth = 0, 1, 1
	var spans []span
	for _, q := range r.alts {
		// llama.cpp takes a rule for one that may be empty if an alternative is.
		left, width := true, 0
		for _, s := range q {
			c.tick(1)
			if s.ref != nil {
				c.start(s.ref)
			}
			if left {
				width++
				if s.ref != nil {
					width += s.ref.width - 1
					r.paths += s.ref.paths
					r.depth = max(r.depth, s.ref.depth+1)
				}
			}
			left = left && (s.optional() || s.ref != nil && slices.ContainsFunc(s.ref.alts, func(q seq) bool { return len(q) == 0 }))
			if !s.optional() && (s.ref == nil || !s.ref.nullable) {
				break
			}
		}
		set, _ := firsts(q)
		c.tick(1 + len(set))
		spans = append(spans, set...)
		r.width += max(width, 1)
	}
	r.first = union(spans...)
	r.width, r.paths = min(r.width, maxStacks+1), min(r.paths, maxLeftPaths+1)
}

// firsts is what a sequence may begin with, and whether it may be empty.
func firsts(q seq) (runes, bool) {
	var spans []span
	for _, s := range q {
		empty := s.optional()
		switch {
		case s.ref != nil:
			spans = append(spans, s.ref.first...)
			empty = empty || s.ref.nullable
		case s.set != nil:
			spans = append(spans, s.set...)
		default:
			for _, r := range s.lit {
				spans = append(spans, span{r, r})
				break
			}
		}
		if !empty {
			return union(spans...), false
		}
	}
	return union(spans...), true
}

// factor makes alternatives that begin alike share their beginning, so that
// llama.cpp follows them together.
func (c *converter) factor(root *rule) {
	for done := map[*rule]bool{}; ; {
		list := c.reachable(root)
		c.starts(list)
		work := false
		for _, r := range list {
			if !done[r] {
				done[r], work = true, true
				if !r.exclusive && len(r.alts) > 1 {
					inlined := 0
					r.alts = c.factored(r.alts, &inlined)
				}
			}
		}
		if !work {
			return
		}
	}
}

// maxInlined bounds how often a rule is replaced by its definition in one choice.
const maxInlined = 1000

func (c *converter) factored(alts []seq, inlined *int) []seq {
	for {
		changed := false
		groups := c.overlapping(alts)
		for _, group := range groups {
			if len(group) < 2 {
				continue
			}
			head := ""
			same := true
			for i, a := range group {
				id := ""
				if len(alts[a]) > 0 {
					id = alts[a][0].id()
				}
				same = same && (i == 0 || id == head)
				head = id
			}
			if same {
				continue
			}
			for _, a := range group {
				q := alts[a]
				if len(q) == 0 || q[0].ref == nil || q[0].min != 1 || q[0].max != 1 || len(q[0].ref.alts) != 1 || *inlined >= maxInlined {
					continue
				}
				*inlined++
				c.tick(1 + len(q))
				alts[a] = slices.Concat(q[0].ref.alts[0], q[1:])
				changed = true
			}
		}
		if !changed {
			break
		}
	}
	return c.shareHeads(alts, func(rest []seq) *rule {
		r := c.rule(c.factored(rest, inlined), false)
		c.start(r)
		return r
	})
}

// trie is alternatives of which a few characters leave one, with the beginnings that
// they share in common.
func (c *converter) trie(alts []seq) []seq {
	return c.shareHeads(alts, func(rest []seq) *rule { return c.rule(c.trie(rest), true) })
}

// shareHeads joins the alternatives that begin with the same part, or the same
// character. after makes the rule for what may follow.
func (c *converter) shareHeads(alts []seq, after func(rest []seq) *rule) (out []seq) {
	var order []string
	groups := map[string][]seq{}
	for _, q := range alts {
		id := ""
		if len(q) > 0 {
			if id = q[0].id(); q[0].ref == nil && q[0].set == nil {
				for _, r := range q[0].lit {
					id = "t" + string(r)
					break
				}
			}
		}
		c.tick(1 + len(id)/8)
		if groups[id] == nil {
			order = append(order, id)
		}
		groups[id] = append(groups[id], q)
	}
	for _, id := range order {
		group := groups[id]
		if id == "" {
			out = append(out, seq{})
			continue
		}
		if len(group) == 1 {
			out = append(out, group[0])
			continue
		}
		head := group[0][0]
		if head.lit != "" {
			for _, q := range group[1:] {
				head.lit = commonPrefix(head.lit, q[0].lit)
			}
		}
		var rest []seq
		seen := map[string]bool{}
		for _, q := range group {
			tail := slices.Clone(q[1:])
			if cut := q[0].lit[len(head.lit):]; cut != "" {
				tail = slices.Insert(tail, 0, text(cut))
			}
			if k := tail.id(); !seen[k] {
				c.tick(len(k) / 8)
				seen[k] = true
				rest = append(rest, tail)
			}
		}
		if len(rest) == 1 {
			out = append(out, append(seq{head}, rest[0]...))
			continue
		}
		out = append(out, seq{head, one(after(rest))})
	}
	return out
}

// commonPrefix is a prefix of whole runes.
func commonPrefix(a, b string) string {
	for i, r := range a {
		if !strings.HasPrefix(b[min(i, len(b)):], string(r)) {
			return a[:i]
		}
	}
	return a
}

// overlapping groups the alternatives, by number, that may begin with the same
// character. Empty ones are in no group: what follows a choice never begins as one
// of its alternatives does.
func (c *converter) overlapping(alts []seq) (groups [][]int) {
	type begin struct {
		span
		alt int
	}
	var all []begin
	parent := make([]int, len(alts))
	for i, q := range alts {
		parent[i] = i
		set, _ := firsts(q)
		for _, s := range set {
			all = append(all, begin{s, i})
		}
	}
	c.tick(1 + len(all))
	find := func(i int) int {
		for parent[i] != i {
			parent[i] = parent[parent[i]]
			i = parent[i]
		}
		return i
	}
	slices.SortFunc(all, func(a, b begin) int { return int(a.lo) - int(b.lo) })
	for i, reach := 0, rune(-1); i < len(all); i++ {
		if all[i].lo <= reach {
			parent[find(all[i].alt)] = find(all[i-1].alt)
		}
		reach = max(reach, all[i].hi)
	}
	members := map[int][]int{}
	for i := range alts {
		members[find(i)] = append(members[find(i)], i)
	}
	for i := range alts {
		if find(i) == i {
			groups = append(groups, members[i])
		}
	}
	return groups
}

// compact puts rules that are one short sequence in the place of their name, and
// joins texts.
func (c *converter) compact(root *rule) {
	list := c.reachable(root)
	uses := map[*rule]int{}
	for _, r := range list {
		for _, q := range r.alts {
			for _, s := range q {
				if s.ref != nil {
					uses[s.ref]++
				}
			}
		}
	}
	const short = 2 // parts that may be written several times
	for _, r := range list {
		for i, q := range r.alts {
			var out seq
			for _, s := range q {
				part := seq{s}
				if s.ref != nil && s.min == 1 && s.max == 1 && s.ref != root && len(s.ref.alts) == 1 && (uses[s.ref] == 1 || len(s.ref.alts[0]) <= short) {
					part = s.ref.alts[0]
				}
				for _, s := range part {
					c.tick(1)
					if len(s.set) == 1 && s.set[0].lo == s.set[0].hi && s.min == 1 && s.max == 1 {
						s = text(string(s.set[0].lo))
					}
					if n := len(out); s.lit != "" && n > 0 && out[n-1].lit != "" {
						out[n-1].lit += s.lit
					} else {
						out = append(out, s)
					}
				}
			}
			r.alts[i] = out
		}
	}
}

// measure finds out what a grammar costs llama.cpp.
func (c *converter) measure(root *rule) {
	list := c.reachable(root)
	c.starts(list)
	elements, paths := 0, 0
	for _, r := range list {
		r.stacks = 0
		for _, q := range r.alts {
			c.tick(1 + len(q))
			elements += 2
			for _, s := range q {
				n := 1
				if s.ref == nil {
					n = 2*len(s.set) + len(s.lit)
				}
				elements += n * (1 + max(s.min, 1) + 2*max(s.max-s.min, 0))
			}
		}
		paths += r.paths
		const deepest = 3000 // llama.cpp looks for left recursion by recursion
		switch {
		case r.paths > maxLeftPaths, paths > maxLeftPaths, r.depth > deepest:
			fail(c.at, "", "its cases are nested so that llama.cpp would not get through; make it flatter")
		case r.width > maxStacks:
			fail(c.at, "", "over %d cases that may begin at one place; make it smaller", maxStacks)
		case elements > maxElements:
			fail(c.at, "", "a grammar of over %d characters and rules; shorten its lengths and lists", maxElements)
		}
	}
	for changed := true; changed; {
		changed = false
		for _, r := range list {
			stacks := r.width
			most := func(q seq) int {
				m := 1
				for _, s := range q {
					if s.ref != nil {
						m = max(m, s.ref.stacks)
					}
				}
				return m
			}
			if r.exclusive || len(r.alts) == 1 {
				for _, q := range r.alts {
					stacks = max(stacks, most(q))
				}
			} else {
				for _, group := range c.overlapping(r.alts) {
					sum := 0
					for _, a := range group {
						sum += most(r.alts[a])
					}
					stacks = max(stacks, sum)
				}
			}
			c.tick(1 + len(r.alts))
			if stacks > r.stacks {
				r.stacks, changed = stacks, true
			}
			if stacks > maxStacks {
				fail("", "anyOf", "its cases look alike for so long, one in another, that llama.cpp could not follow all of them; begin each with a required property that has a const of its own")
			}
		}
	}
}

// escapeRune writes a character for a class or a text of GBNF. Parentheses are
// escaped: a grammar has none but those that group.
func escapeRune(b *strings.Builder, r rune) {
	switch {
	case r >= '0' && r <= '9', r >= 'A' && r <= 'Z', r >= 'a' && r <= 'z', strings.ContainsRune(" !#$%&'*+,./:;<=>?@_`{|}~", r):
		b.WriteRune(r)
	case r <= 0xFF:
		fmt.Fprintf(b, `\x%02X`, r)
	case r <= 0xFFFF:
		fmt.Fprintf(b, `\u%04X`, r)
	default:
		fmt.Fprintf(b, `\U%08X`, r)
	}
}

// Literal writes a text as GBNF does.
func Literal(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch r {
		case '"', '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case '-', '[', ']':
			b.WriteRune(r)
		default:
			escapeRune(&b, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func (s sym) write(b *strings.Builder) {
	switch {
	case s.ref != nil:
		b.WriteString(s.ref.name)
	case s.set != nil:
		b.WriteByte('[')
		for _, r := range s.set {
			escapeRune(b, r.lo)
			if r.hi > r.lo {
				b.WriteByte('-')
				escapeRune(b, r.hi)
			}
		}
		b.WriteByte(']')
	default:
		b.WriteString(Literal(s.lit))
		return
	}
	switch {
	case s.min == 1 && s.max == 1:
	case s.min == 0 && s.max < 0:
		b.WriteByte('*')
	case s.min == 1 && s.max < 0:
		b.WriteByte('+')
	case s.min == 0 && s.max == 1:
		b.WriteByte('?')
	case s.max < 0:
		fmt.Fprintf(b, "{%d,}", s.min)
	case s.min == s.max:
		fmt.Fprintf(b, "{%d}", s.min)
	default:
		fmt.Fprintf(b, "{%d,%d}", s.min, s.max)
	}
}

func (r *rule) write(b *strings.Builder) {
	b.WriteString(r.name)
	b.WriteString(" ::= ")
	for i, q := range r.alts {
		if i > 0 {
			b.WriteString(" | ")
		}
		if len(q) == 0 {
			b.WriteString(`""`)
		}
		for k, s := range q {
			if k > 0 {
				b.WriteByte(' ')
			}
			s.write(b)
		}
	}
	b.WriteByte('\n')
}
