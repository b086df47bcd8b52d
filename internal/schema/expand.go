package schema

import (
	"encoding/binary"
	"encoding/json"
	"math/big"
	"slices"
	"unicode/utf8"
)

// flat is one way to satisfy a set of schemas: what their own keywords say, without
// $ref, allOf, anyOf and oneOf.
type flat struct {
	nodes  []*node
	scopes []scope
}

// scope is a schema with unevaluatedProperties or unevaluatedItems, and the
// schemas that evaluate for it.
type scope struct {
	host    *node
	members []*node
}

// key is a set of schemas as a map's key.
func key(conj []*node) string {
	ids := make([]int, len(conj))
	for i, n := range conj {
		ids[i] = n.id
	}
	slices.Sort(ids)
	var b []byte
	for _, id := range slices.Compact(ids) {
		b = binary.AppendUvarint(b, uint64(id))
	}
	return string(b)
}

// expand gives the ways to satisfy all of the schemas at once.
func (c *converter) expand(conj []*node) []*flat {
	k := key(conj)
	if list, ok := c.expanded[k]; ok {
		return list
	}
	list := []*flat{{}}
	for _, n := range conj {
		list = c.cross(list, c.ways(n), n.pointer)
	}
	c.expanded[k] = list
	return list
}

// ways is expand of one schema.
func (c *converter) ways(n *node) []*flat {
	if list, ok := c.waysOf[n]; ok {
		if list == nil {
			fail(n.pointer, "", "it refers to itself without end")
		}
		return list
	}
	c.waysOf[n] = nil
	list := []*flat{{nodes: []*node{n}}}
	if n.never {
		list = []*flat{}
	}
	for _, sub := range n.all {
		list = c.cross(list, c.ways(sub), n.pointer)
	}
	for _, branches := range [][]*node{n.anyOf, n.oneOf} {
		if branches == nil {
			continue
		}
		var union []*flat
		for _, sub := range branches {
			union = append(union, c.ways(sub)...)
		}
		list = c.cross(list, union, n.pointer)
	}
	if n.oneOf != nil {
		c.exclusive = append(c.exclusive, n)
	}
	if n.unevaluatedProps != nil || n.unevaluatedItems != nil {
		for i, f := range list {
			list[i] = &flat{f.nodes, append(slices.Clip(f.scopes), scope{n, f.nodes})}
		}
	}
	c.waysOf[n] = list
	return list
}

// cross joins every way of a with every way of b.
func (c *converter) cross(a, b []*flat, at string) []*flat {
	out := []*flat{}
	for _, x := range a {
		for _, y := range b {
			f := &flat{slices.Clone(x.nodes), append(slices.Clone(x.scopes), y.scopes...)}
			for _, n := range y.nodes {
				if !slices.Contains(f.nodes, n) {
					f.nodes = append(f.nodes, n)
				}
			}
			c.tick(1 + len(f.nodes)*len(f.nodes)/16)
			if f.kinds() == 0 {
				continue
			}
			if out = append(out, f); len(out) > maxAlternatives {
				fail(at, "anyOf", "it and what it is combined with have over %d cases", maxAlternatives)
			}
		}
	}
	return out
}

func (f *flat) kinds() kind {
	k := kind(allKinds)
	for _, n := range f.nodes {
		k &= n.kinds
	}
	return k
}

func (f *flat) integer() bool {
	return slices.ContainsFunc(f.nodes, func(n *node) bool { return n.integer })
}

// most is the least of the limits that the nodes give; -1 = none.
func (f *flat) most(limit func(n *node) int) int {
	m := -1
	for _, n := range f.nodes {
		if l := limit(n); l >= 0 && (m < 0 || l < m) {
			m = l
		}
	}
	return m
}

// least is the greatest of the limits that the nodes give, 0 if they give none.
func (f *flat) least(limit func(n *node) int) int {
	m := 0
	for _, n := range f.nodes {
		m = max(m, limit(n))
	}
	return m
}

func minLength(n *node) int { return n.minLength }
func maxLength(n *node) int { return n.maxLength }
func minProps(n *node) int  { return n.minProps }
func maxProps(n *node) int  { return n.maxProps }
func minItems(n *node) int  { return n.minItems }
func maxItems(n *node) int  { return n.maxItems }

// limits are a number's tightest bounds, nil for none.
func (f *flat) limits() (low, high *bound) {
	for _, n := range f.nodes {
		for _, b := range n.low {
			if low == nil || b.at.Cmp(low.at) > 0 || b.at.Cmp(low.at) == 0 && b.beside {
				low = &b
			}
		}
		for _, b := range n.high {
			if high == nil || b.at.Cmp(high.at) < 0 || b.at.Cmp(high.at) == 0 && b.beside {
				high = &b
			}
		}
	}
	return low, high
}

// within reports whether x keeps to the bounds.
func within(x *big.Rat, low, high *bound) bool {
	return (low == nil || x.Cmp(low.at) > 0 || !low.beside && x.Cmp(low.at) == 0) &&
		(high == nil || x.Cmp(high.at) < 0 || !high.beside && x.Cmp(high.at) == 0)
}

// property gives what the value of a property must satisfy. listed says which
// nodes list its name, matches which patterns its name has.
func (f *flat) property(listed func(p property) bool, matches func(d *dfa) bool) (conj []*node) {
	evaluates := func(n *node, take func(*node)) (found bool) {
		for _, p := range n.properties {
			if listed(p) {
				found = true
				take(p.is)
			}
		}
		for _, p := range n.patterns {
			if matches(p.names) {
				found = true
				take(p.is)
			}
		}
		return found
	}
	take := func(n *node) {
		if !slices.Contains(conj, n) {
			conj = append(conj, n)
		}
	}
	for _, n := range f.nodes {
		if !evaluates(n, take) && n.additional != nil {
			take(n.additional)
		}
	}
	for _, s := range f.scopes {
		if s.host.unevaluatedProps != nil && !slices.ContainsFunc(s.members, func(n *node) bool {
			return n.additional != nil || n != s.host && n.unevaluatedProps != nil || evaluates(n, func(*node) {})
		}) {
			take(s.host.unevaluatedProps)
		}
	}
	return conj
}

// named is property for a name.
func (f *flat) named(name string) []*node {
	return f.property(func(p property) bool { return p.name == name }, func(d *dfa) bool { return d.matches(name) })
}

// item gives what the item at a place of an array must satisfy.
func (f *flat) item(i int) (conj []*node) {
	take := func(n *node) {
		if !slices.Contains(conj, n) {
			conj = append(conj, n)
		}
	}
	for _, n := range f.nodes {
		switch {
		case i < len(n.prefix):
			take(n.prefix[i])
		case n.items != nil:
			take(n.items)
		}
	}
	for _, s := range f.scopes {
		if s.host.unevaluatedItems != nil && !slices.ContainsFunc(s.members, func(n *node) bool {
			return i < len(n.prefix) || n.items != nil || n != s.host && n.unevaluatedItems != nil
		}) {
			take(s.host.unevaluatedItems)
		}
	}
	return conj
}

// tuple is the number of items that have a schema of their own.
func (f *flat) tuple() int { return f.least(func(n *node) int { return len(n.prefix) }) }

// required are the names that an object must have.
func (f *flat) required() (names []string) {
	for _, n := range f.nodes {
		for _, name := range n.required {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// values are those of an enum or const that satisfy all of f; given is false where
// there is neither.
func (c *converter) values(f *flat) (list []any, given bool) {
	i := slices.IndexFunc(f.nodes, func(n *node) bool { return n.lists != nil })
	if i < 0 {
		return nil, false
	}
	seen := map[string]bool{}
	for _, v := range f.nodes[i].lists[0].list {
		if k := canonical(v); !seen[k] && c.satisfies(v, f) {
			seen[k] = true
			list = append(list, v)
		}
	}
	return list, true
}

// valid reports whether a value satisfies all of the schemas.
func (c *converter) valid(v any, conj []*node) bool {
	return slices.ContainsFunc(c.expand(conj), func(f *flat) bool { return c.satisfies(v, f) })
}

func (c *converter) satisfies(v any, f *flat) bool {
	c.tick(1 + len(f.nodes))
	k := kindOf(v)
	if f.kinds()&k == 0 {
		return false
	}
	key := ""
	for _, n := range f.nodes {
		for _, l := range n.lists {
			if key == "" {
				key = canonical(v)
				c.tick(1 + len(key)/8)
			}
			if !l.keys[key] {
				return false
			}
		}
	}
	switch v := v.(type) {
	case json.Number:
		x := rational(v, "", "")
		low, high := f.limits()
		return (!f.integer() || x.IsInt()) && within(x, low, high)
	case string:
		length, most := utf8.RuneCountInString(v), f.most(maxLength)
		c.tick(length)
		return length >= f.least(minLength) && (most < 0 || length <= most) &&
			!slices.ContainsFunc(f.nodes, func(n *node) bool {
				return slices.ContainsFunc(n.texts, func(d *dfa) bool { return !d.matches(v) })
			})
	case []any:
		most := f.most(maxItems)
		if len(v) < f.least(minItems) || most >= 0 && len(v) > most {
			return false
		}
		for i, x := range v {
			if !c.valid(x, f.item(i)) {
				return false
			}
		}
	case *object:
		most := f.most(maxProps)
		if len(v.keys) < f.least(minProps) || most >= 0 && len(v.keys) > most {
			return false
		}
		for _, name := range f.required() {
			if _, ok := v.values[name]; !ok {
				return false
			}
		}
		for _, name := range v.keys {
			if !c.nameable(name, f) || !c.valid(v.values[name], f.named(name)) {
				return false
			}
		}
	}
	return true
}

// nameable reports whether propertyNames allows a name.
func (c *converter) nameable(name string, f *flat) bool {
	return !slices.ContainsFunc(f.nodes, func(n *node) bool { return n.names != nil && !c.valid(name, []*node{n.names}) })
}

// checkExclusive fails where two cases of a oneOf may hold for one value.
func (c *converter) checkExclusive() {
	for len(c.exclusive) > 0 {
		n := c.exclusive[0]
		c.exclusive = c.exclusive[1:]
		rest := *n
		c.nodes++
		rest.id, rest.anyOf, rest.oneOf, rest.unevaluatedProps, rest.unevaluatedItems = c.nodes, nil, nil, nil, nil
		for i, a := range n.oneOf {
			for j, b := range n.oneOf[:i] {
				if !c.disjoint([]*node{&rest, a}, []*node{&rest, b}, 0) {
					fail(pointer(n.pointer, "oneOf"), "oneOf", "a value may satisfy both case %d and case %d; use anyOf, or tell them apart by a required property with a const", j+1, i+1)
				}
			}
		}
	}
}

// disjoint reports whether it is sure that no value satisfies both a and b.
func (c *converter) disjoint(a, b []*node, depth int) bool {
	const deepest = 6
	if depth > deepest {
		return false
	}
	for _, x := range c.expand(a) {
		for _, y := range c.expand(b) {
			if !c.disjointFlat(x, y, depth) {
				return false
			}
		}
	}
	return true
}

func (c *converter) disjointFlat(x, y *flat, depth int) bool {
	c.tick(1)
	for _, pair := range [][2]*flat{{x, y}, {y, x}} {
		if list, given := c.values(pair[0]); given {
			return !slices.ContainsFunc(list, func(v any) bool { return c.satisfies(v, pair[1]) })
		}
	}
	for k := null; k < allKinds; k <<= 1 {
		if x.kinds()&y.kinds()&k != 0 && !c.disjointAs(k, x, y, depth) {
			return false
		}
	}
	return true
}

// disjointAs is disjointFlat for the values of one type.
func (c *converter) disjointAs(k kind, x, y *flat, depth int) bool {
	apart := func(leastX, mostX, leastY, mostY int) bool {
		return mostX >= 0 && mostX < leastY || mostY >= 0 && mostY < leastX
	}
	switch k {
	case numbers:
		both := &flat{nodes: slices.Concat(x.nodes, y.nodes)}
		low, high := both.limits()
		if low == nil || high == nil {
			return false
		}
		if both.integer() {
			lo, hi := wholeLimits(low, high)
			return lo.Cmp(hi) > 0
		}
		order := low.at.Cmp(high.at)
		return order > 0 || order == 0 && (low.beside || high.beside)
	case texts:
		if apart(x.least(minLength), x.most(maxLength), y.least(minLength), y.most(maxLength)) {
			return true
		}
		return c.texts(&flat{nodes: slices.Concat(x.nodes, y.nodes)}, "", "oneOf").empty()
	case arrays:
		if apart(x.least(minItems), x.most(maxItems), y.least(minItems), y.most(maxItems)) {
			return true
		}
		for i := range min(max(x.least(minItems), y.least(minItems)), max(x.tuple(), y.tuple())+1) {
			if c.disjoint(x.item(i), y.item(i), depth+1) {
				return true
			}
		}
	case objects:
		for _, name := range append(x.required(), y.required()...) {
			if c.disjoint(x.named(name), y.named(name), depth+1) {
				return true
			}
		}
	}
	return false
}

// texts is what all patterns, formats and lengths of f allow.
func (c *converter) texts(f *flat, at, keyword string) *dfa {
	d := everything
	for _, n := range f.nodes {
		for _, t := range n.texts {
			d = c.intersect(d, t, n.pointer, "pattern")
		}
	}
	least, most := f.least(minLength), f.most(maxLength)
	if d == everything && least == 0 && most < 0 {
		return d
	}
	if least > 0 || most >= 0 {
		if most >= 0 && least > most {
			return &dfa{[][]edge{nil}, []bool{false}}
		}
		limit := "maxLength"
		if most < 0 {
			limit = "minLength"
		}
		d = c.intersect(d, c.lengths(least, most, at, limit), at, limit)
	}
	return d
}
