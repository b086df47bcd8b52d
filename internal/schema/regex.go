package schema

import (
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// rxOp is what an expression does.
type rxOp int

const (
	rxSet rxOp = iota
	rxCat
	rxAlt
	rxRep
	rxBegin
	rxEnd
)

// rx is a parsed regular expression.
type rx struct {
	op       rxOp
	set      runes
	subs     []*rx
	min, max int // max -1 = no limit
}

// rxParser reads regular expressions of ECMA-262 with its u flag, and those that
// are legal only without.
type rxParser struct {
	c           *converter
	in          []rune
	at          int
	depth       int
	where, what string
}

func (p *rxParser) fail(format string, args ...any) { fail(p.where, p.what, format, args...) }

func (p *rxParser) peek() rune {
	if p.at < len(p.in) {
		return p.in[p.at]
	}
	return -1
}

func (p *rxParser) take(r rune) bool {
	if p.peek() == r {
		p.at++
		return true
	}
	return false
}

// has takes s if it comes next.
func (p *rxParser) has(s string) bool {
	if strings.HasPrefix(string(p.in[p.at:min(p.at+len(s), len(p.in))]), s) {
		p.at += utf8.RuneCountInString(s)
		return true
	}
	return false
}

func (p *rxParser) alternatives() *rx {
	if p.depth++; p.depth > maxNesting {
		p.fail("over %d groups in each other", maxNesting)
	}
	defer func() { p.depth-- }()
	alt := &rx{op: rxAlt}
	for {
		cat := &rx{op: rxCat}
		for p.at < len(p.in) && p.peek() != '|' && p.peek() != ')' {
			cat.subs = append(cat.subs, p.quantified())
		}
		alt.subs = append(alt.subs, cat)
		if !p.take('|') {
			return alt
		}
	}
}

func (p *rxParser) quantified() *rx {
	p.c.tick(1)
	x := p.atom()
	least, most, ok := p.quantifier()
	if !ok {
		return x
	}
	if x.op == rxBegin || x.op == rxEnd {
		p.fail("nothing to repeat")
	}
	p.take('?') // how a match is found has no say in whether there is one
	if _, _, again := p.quantifier(); again {
		p.fail("nothing to repeat")
	}
	return &rx{op: rxRep, subs: []*rx{x}, min: least, max: most}
}

func (p *rxParser) quantifier() (least, most int, ok bool) {
	switch {
	case p.take('*'):
		return 0, -1, true
	case p.take('+'):
		return 1, -1, true
	case p.take('?'):
		return 0, 1, true
	}
	start := p.at
	if p.take('{') {
		if least, ok = p.number(); ok {
			most = least
			if p.take(',') {
				if most, ok = p.number(); !ok {
					most = -1
				}
			}
			if p.take('}') {
				if most >= 0 && most < least {
					p.fail("the repetition {%d,%d} has no length", least, most)
				}
				return least, most, true
			}
		}
	}
	p.at = start
	return 0, 0, false
}

func (p *rxParser) number() (int, bool) {
	start := p.at
	for p.peek() >= '0' && p.peek() <= '9' {
		p.at++
	}
	if p.at == start {
		return 0, false
	}
	n, err := strconv.Atoi(string(p.in[start:p.at]))
	if err != nil || n > maxStates {
		p.fail("a repetition of more than %d", maxStates)
	}
	return n, true
}

// lineEnds are what a dot does not match.
var lineEnds = union(span{'\n', '\n'}, span{'\r', '\r'}, span{0x2028, 0x2029})

func (p *rxParser) atom() *rx {
	switch r := p.peek(); r {
	case '.':
		p.at++
		return &rx{op: rxSet, set: anyRune.minus(lineEnds)}
	case '^':
		p.at++
		return &rx{op: rxBegin}
	case '$':
		p.at++
		return &rx{op: rxEnd}
	case '(':
		p.at++
		return p.group()
	case '[':
		p.at++
		return &rx{op: rxSet, set: p.class()}
	case '\\':
		p.at++
		set, _ := p.escape(false)
		return &rx{op: rxSet, set: set}
	case '*', '+', '?':
		p.fail("nothing to repeat before %q", string(r))
	default:
		p.at++
		return &rx{op: rxSet, set: only(r)}
	}
	return nil
}

func (p *rxParser) group() *rx {
	switch {
	case p.has("?="), p.has("?!"), p.has("?<="), p.has("?<!"):
		p.fail("a grammar cannot look ahead or back; write what is to match")
	case p.has("?<"):
		for p.at < len(p.in) && !p.take('>') {
			p.at++
		}
	case p.has("?:"):
	case p.peek() == '?':
		p.fail("a group that begins with (? is not known here")
	}
	x := p.alternatives()
	if !p.take(')') {
		p.fail("a group is not closed")
	}
	return x
}

var (
	digits     = runes{{'0', '9'}}
	wordRunes  = union(span{'0', '9'}, span{'A', 'Z'}, span{'_', '_'}, span{'a', 'z'})
	spaceRunes = union(span{'\t', '\r'}, span{' ', ' '}, span{0xA0, 0xA0}, span{0x1680, 0x1680}, span{0x2000, 0x200A},
		span{0x2028, 0x2029}, span{0x202F, 0x202F}, span{0x205F, 0x205F}, span{0x3000, 0x3000}, span{0xFEFF, 0xFEFF})
)

// escape reads what follows a backslash. single is the code point, -1 for a class.
func (p *rxParser) escape(inClass bool) (set runes, single rune) {
	r := p.peek()
	p.at++
	class := func(set runes, negated bool) (runes, rune) {
		if negated {
			set = anyRune.minus(set)
		}
		return set, -1
	}
	one := func(r rune) (runes, rune) { return only(r), r }
	switch r {
	case 'd', 'D':
		return class(digits, r == 'D')
	case 'w', 'W':
		return class(wordRunes, r == 'W')
	case 's', 'S':
		return class(spaceRunes, r == 'S')
	case 'p', 'P':
		return class(p.category(), r == 'P')
	case 't', 'n', 'v', 'f', 'r':
		return one(rune("\t\n\v\f\r"[strings.IndexRune("tnvfr", r)]))
	case 'b':
		if inClass {
			return one('\b')
		}
		p.fail(`a grammar does not know word boundaries (\b)`)
	case 'B':
		p.fail(`a grammar does not know word boundaries (\B)`)
	case 'x':
		return one(p.hex(2))
	case 'u':
		if p.take('{') {
			start := p.at
			for p.at < len(p.in) && p.peek() != '}' {
				p.at++
			}
			n, err := strconv.ParseUint(string(p.in[start:p.at]), 16, 32)
			if err != nil || !p.take('}') || n > 0x10FFFF || n >= 0xD800 && n < 0xE000 {
				p.fail(`\u{…} wants the number of a character`)
			}
			return one(rune(n))
		}
		n := p.hex(4)
		if n >= 0xD800 && n < 0xDC00 && p.has(`\u`) {
			if low := p.hex(4); low >= 0xDC00 && low < 0xE000 {
				return one((n-0xD800)<<10 + low - 0xDC00 + 0x10000)
			}
		}
		if n >= 0xD800 && n < 0xE000 {
			p.fail("half of a surrogate pair is no character")
		}
		return one(n)
	case 'c':
		if l := p.peek(); l >= 'a' && l <= 'z' || l >= 'A' && l <= 'Z' {
			p.at++
			return one(l % 32)
		}
		p.fail(`\c wants a letter`)
	case '0':
		if next := p.peek(); next < '0' || next > '9' {
			return one(0)
		}
		p.fail("octal escapes are not known here")
	case -1:
		p.fail("it ends in a backslash")
	}
	switch {
	case r >= '1' && r <= '9' || r == 'k':
		p.fail("a grammar cannot refer back to a group")
	case r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r)):
		p.fail(`the escape \%c is not known here`, r)
	}
	return one(r)
}

func (p *rxParser) hex(n int) rune {
	if p.at+n > len(p.in) {
		p.fail("an escape wants %d hexadecimal digits", n)
	}
	v, err := strconv.ParseUint(string(p.in[p.at:p.at+n]), 16, 32)
	if err != nil {
		p.fail("an escape wants %d hexadecimal digits", n)
	}
	p.at += n
	return rune(v)
}

// category reads the name of a Unicode category or script in braces.
func (p *rxParser) category() runes {
	start := p.at + 1
	for p.at < len(p.in) && p.peek() != '}' {
		p.at++
	}
	if !p.take('}') || p.in[start-1] != '{' || start > p.at-1 {
		p.fail(`\p wants a category or script in braces`)
	}
	name := string(p.in[start : p.at-1])
	for _, prefix := range []string{"Script=", "sc=", "General_Category=", "gc=", "Script_Extensions=", "scx="} {
		name = strings.TrimPrefix(name, prefix)
	}
	table := unicode.Categories[name]
	if table == nil {
		table = unicode.Scripts[name]
	}
	if table == nil {
		p.fail(`\p{%s}: there is no such category or script; give its short name, as in \p{Lu}`, name)
	}
	var spans []span
	add := func(lo, hi, stride rune) {
		if stride == 1 {
			spans = append(spans, span{lo, hi})
			return
		}
		for r := lo; r <= hi; r += stride {
			spans = append(spans, span{r, r})
		}
	}
	for _, r := range table.R16 {
		add(rune(r.Lo), rune(r.Hi), rune(r.Stride))
	}
	for _, r := range table.R32 {
		add(rune(r.Lo), rune(r.Hi), rune(r.Stride))
	}
	p.c.tick(len(spans))
	return union(spans...).and(anyRune)
}

// class reads a bracket expression behind its opening.
func (p *rxParser) class() runes {
	negated := p.take('^')
	var spans []span
	for !p.take(']') {
		if p.at >= len(p.in) {
			p.fail("a class is not closed")
		}
		p.c.tick(1)
		set, lo := p.classAtom()
		if p.peek() == '-' && p.at+1 < len(p.in) && p.in[p.at+1] != ']' {
			p.at++
			_, hi := p.classAtom()
			if lo < 0 || hi < lo {
				p.fail("a range in a class runs backwards, or from or to a class")
			}
			set = runes{{lo, hi}}
		}
		spans = append(spans, set...)
	}
	set := union(spans...).and(anyRune)
	if negated {
		return anyRune.minus(set)
	}
	return set
}

func (p *rxParser) classAtom() (runes, rune) {
	if p.take('\\') {
		if p.take('-') {
			return only('-'), '-'
		}
		return p.escape(true)
	}
	r := p.peek()
	if r < 0 {
		p.fail("a class is not closed")
	}
	p.at++
	return only(r), r
}

// nfaState has free edges, those free at the text's begin or end only, and one
// that takes a code point.
type nfaState struct {
	free, begin, end []int
	set              runes
	to               int
}

// nfa is built backwards: each expression is given the state that follows it.
type nfa struct {
	p      *rxParser
	states []nfaState
}

const maxNFA = 20_000 // states

func (n *nfa) add(s nfaState) int {
	n.p.c.tick(1)
	if len(n.states) >= maxNFA {
		n.p.fail("too long; shorten its repetitions")
	}
	n.states = append(n.states, s)
	return len(n.states) - 1
}

// build gives the state at which x begins.
func (n *nfa) build(x *rx, next int) int {
	switch x.op {
	case rxSet:
		return n.add(nfaState{set: x.set, to: next})
	case rxBegin:
		return n.add(nfaState{begin: []int{next}})
	case rxEnd:
		return n.add(nfaState{end: []int{next}})
	case rxCat:
		for _, sub := range slices.Backward(x.subs) {
			next = n.build(sub, next)
		}
		return next
	case rxAlt:
		var free []int
		for _, sub := range x.subs {
			free = append(free, n.build(sub, next))
		}
		return n.add(nfaState{free: free})
	}
	body := x.subs[0]
	if x.max < 0 {
		loop := n.add(nfaState{free: []int{next}})
		start := n.build(body, loop)
		n.states[loop].free = append(n.states[loop].free, start)
		next = loop
	}
	after := next
	for range x.max - x.min {
		next = n.add(nfaState{free: []int{n.build(body, next), after}})
	}
	for range x.min {
		next = n.build(body, next)
	}
	return next
}

// pattern compiles a regular expression that may match anywhere in a text.
func (c *converter) pattern(source, at, keyword string) *dfa {
	if d := c.patterns[source]; d != nil {
		return d
	}
	p := &rxParser{c: c, in: []rune(source), where: at, what: keyword}
	x := p.alternatives()
	if p.at < len(p.in) {
		p.fail("a group is closed that was not opened")
	}
	n := &nfa{p: p}
	final := n.add(nfaState{set: anyRune})
	n.states[final].to = final
	start := n.add(nfaState{set: anyRune})
	n.states[start].to = start
	n.states[start].free = []int{n.build(x, final)}
	d := n.determine(start, final)
	c.patterns[source] = d
	return d
}

// closure is the set of states reached from those of a list without a code point.
func (n *nfa) closure(list []int, begin, end bool) []int {
	seen := make(map[int]bool, len(list))
	var out []int
	for len(list) > 0 {
		s := list[len(list)-1]
		list = list[:len(list)-1]
		if seen[s] {
			continue
		}
		n.p.c.tick(1)
		seen[s] = true
		out = append(out, s)
		list = append(list, n.states[s].free...)
		if begin {
			list = append(list, n.states[s].begin...)
		}
		if end {
			list = append(list, n.states[s].end...)
		}
	}
	slices.Sort(out)
	return out
}

// determine is the subset construction.
func (n *nfa) determine(start, final int) *dfa {
	d := &dfa{}
	ids := map[string]int{}
	var sets [][]int
	id := func(list []int, begin bool) int {
		set := n.closure(list, begin, false)
		key := []byte{0}
		if begin {
			key[0] = 1
		}
		for _, s := range set {
			key = binary.AppendUvarint(key, uint64(s))
		}
		i, ok := ids[string(key)]
		if !ok {
			if i = len(sets); i >= maxStates {
				n.p.fail("needs more than %d states; make it simpler, or tie it to the start with ^", maxStates)
			}
			ids[string(key)], sets = i, append(sets, set)
			d.accept = append(d.accept, slices.Contains(n.closure(slices.Clone(set), begin, true), final))
		}
		return i
	}
	id([]int{start}, true)
	for i := 0; i < len(sets); i++ {
		var cuts []rune
		for _, s := range sets[i] {
			for _, r := range n.states[s].set {
				cuts = append(cuts, r.lo, r.hi+1)
			}
		}
		slices.Sort(cuts)
		cuts = slices.Compact(cuts)
		var out []edge
		for k := 0; k+1 < len(cuts); k++ {
			lo := cuts[k]
			var list []int
			for _, s := range sets[i] {
				n.p.c.tick(1)
				set := n.states[s].set
				at, found := slices.BinarySearchFunc(set, lo, func(r span, lo rune) int { return int(r.lo) - int(lo) })
				if found || at > 0 && set[at-1].hi >= lo {
					list = append(list, n.states[s].to)
				}
			}
			if len(list) > 0 {
				out = append(out, edge{span{lo, cuts[k+1] - 1}, id(list, false)})
			}
		}
		d.edges = append(d.edges, out)
	}
	return n.p.c.trim(d)
}
