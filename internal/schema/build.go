package schema

import (
	"fmt"
	"slices"
	"strings"
)

// Notation is how values are written. The zero value is JSON.
type Notation struct {
	// Quote stands before and behind a string, whose characters are written as they
	// are, and names of properties have nothing around them; "" = as in JSON.
	Quote string

	// Python writes True, False and None.
	Python bool
}

// words are true, false and null in the notation.
func (n Notation) words() (yes, no, none string) {
	if n.Python {
		return "True", "False", "None"
	}
	return "true", "false", "null"
}

// converter turns the schemas of one builder into rules.
type converter struct {
	notation  Notation
	work      int
	nodes     int
	patterns  map[string]*dfa
	waysOf    map[*node][]*flat
	expanded  map[string][]*flat
	exclusive []*node // with a oneOf that is not checked yet
	rules     []*rule
	named     map[string]*rule
	ruleOf    map[string]*rule // of sets of schemas
	at        string           // pointer of the schema that is being built
}

// tick counts steps, so that no schema takes long.
func (c *converter) tick(n int) {
	if c.work += n; c.work > maxWork {
		fail("", "", "too complex; make it smaller")
	}
}

// value is the rule for a value that satisfies all of the schemas.
func (c *converter) value(conj []*node) *rule {
	conj = slices.DeleteFunc(slices.Clone(conj), func(n *node) bool { return n.free })
	k := key(conj)
	if r := c.ruleOf[k]; r != nil {
		return r
	}
	r := c.rule(nil, false)
	c.ruleOf[k] = r
	for _, f := range c.expand(conj) {
		at := c.at
		if len(f.nodes) > 0 {
			c.at = f.nodes[0].pointer
		}
		r.alts = append(r.alts, c.flat(f)...)
		c.at = at
	}
	return r
}

// flat is the choice between the types of one case.
func (c *converter) flat(f *flat) (alts []seq) {
	if list, given := c.values(f); given {
		for _, v := range list {
			c.writable(v, c.notation.Quote)
			alts = append(alts, seq{text(c.notation.encode(v))})
		}
		return alts
	}
	k := f.kinds()
	yes, no, none := c.notation.words()
	if k&objects != 0 {
		alts = append(alts, seq{one(c.object(f, nil))})
	}
	if k&arrays != 0 {
		alts = append(alts, seq{one(c.array(f))})
	}
	if k&texts != 0 {
		alts = append(alts, c.text(f))
	}
	if k&numbers != 0 {
		alts = append(alts, c.number(f)...)
	}
	if k&boolean != 0 {
		alts = append(alts, seq{text(yes)}, seq{text(no)})
	}
	if k&null != 0 {
		alts = append(alts, seq{text(none)})
	}
	return alts
}

// writable fails where a value holds the mark that ends strings.
func (c *converter) writable(v any, mark string) {
	if mark == "" {
		return
	}
	switch v := v.(type) {
	case string:
		if strings.Contains(v, mark) {
			fail(c.at, "enum", "the model's notation cannot write %s", quote(v))
		}
	case []any:
		for _, x := range v {
			c.writable(x, mark)
		}
	case *object:
		for _, k := range v.keys {
			c.nameWritable(k, nil)
			c.writable(v.values[k], mark)
		}
	}
}

// nameWritable fails where a property's name would end too early.
func (c *converter) nameWritable(name string, tags *Tags) {
	if tags != nil && strings.ContainsAny(name, "<>=\n") || c.notation.Quote != "" && (name == "" || strings.ContainsAny(name, ":,{}[]<> \n")) {
		fail(c.at, "properties", "the model's notation cannot write the name %s", quote(name))
	}
}

// space is what may stand between the parts of JSON.
func (c *converter) space() sym {
	return one(c.shared("space", func(r *rule) {
		if c.notation.Quote != "" {
			r.alts = []seq{{}}
			return
		}
		const indent = 32
		r.alts = []seq{{}, {text(" ")}, {text("\n"), class(union(span{' ', ' '}, span{'\t', '\t'})).times(0, indent)}}
	}))
}

// plain are the characters of a JSON string that stand for themselves.
var plain = anyRune.minus(union(span{0, 0x1F}, span{'"', '"'}, span{'\\', '\\'}))

// char is a character of a string, in each of its spellings.
func (c *converter) char() sym {
	return one(c.shared("char", func(r *rule) {
		hex := class(union(span{'0', '9'}, span{'A', 'F'}, span{'a', 'f'}))
		either := func(s string) sym {
			var spans []span
			for _, r := range s {
				spans = append(spans, span{r, r})
			}
			return class(union(spans...))
		}
		// Halves of a surrogate pair count together, and never stand alone.
		code := c.shared("code", func(r *rule) {
			d := c.shared("surrogate", func(r *rule) {
				r.alts = []seq{
					{class(union(span{'0', '7'})), hex.times(2, 2)},
					{either("89ABab"), hex.times(2, 2), text(`\u`), either("Dd"), either("CDEFcdef"), hex.times(2, 2)},
				}
			})
			r.alts = []seq{{class(union(span{'0', '9'}, span{'A', 'C'}, span{'E', 'F'}, span{'a', 'c'}, span{'e', 'f'})), hex.times(3, 3)}, {either("Dd"), one(d)}}
		})
		escaped := c.shared("escaped", func(r *rule) {
			r.alts = []seq{{either(`"\/bfnrt`)}, {text("u"), one(code)}}
		})
		r.alts = []seq{{class(plain)}, {text(`\`), one(escaped)}}
	}))
}

// text is a string's way to be written.
func (c *converter) text(f *flat) seq {
	if c.notation.Quote != "" {
		return seq{text(c.notation.Quote), one(c.plainText(f, c.notation.Quote))}
	}
	if slices.ContainsFunc(f.nodes, func(n *node) bool { return n.texts != nil }) {
		return seq{text(`"`), one(c.automaton(c.texts(f, c.at, "pattern"), seq{text(`"`)}, false))}
	}
	least, most := f.least(minLength), f.most(maxLength)
	if most >= 0 && least > most {
		return seq{one(c.rule(nil, true))}
	}
	keyword := "maxLength"
	if least > maxRepeat {
		keyword = "minLength"
	}
	q := append(seq{text(`"`)}, c.repeat(c.char(), least, most, c.at, keyword)...)
	return append(q, text(`"`))
}

// automaton gives the rule of an automaton's start, with what follows the texts
// that it accepts. Plainly, characters are written as they are, and not as in JSON.
func (c *converter) automaton(d *dfa, after seq, plainly bool) *rule {
	rules := make([]*rule, len(d.edges))
	for s := range d.edges {
		rules[s] = c.rule(nil, true)
	}
	for s, edges := range d.edges {
		var targets []int
		sets := map[int][]span{}
		for _, e := range edges {
			if sets[e.to] == nil {
				targets = append(targets, e.to)
			}
			sets[e.to] = append(sets[e.to], e.span)
		}
		c.tick(1 + len(edges))
		for _, to := range targets {
			ways := []seq{{class(union(sets[to]...))}}
			if !plainly {
				ways = spellings(union(sets[to]...))
			}
			for _, q := range ways {
				rules[s].alts = append(rules[s].alts, append(q, one(rules[to])))
			}
		}
		if d.accept[s] {
			rules[s].alts = append(rules[s].alts, after)
		}
	}
	return rules[0]
}

// spellings are the ways to write one character of a set in a JSON string.
func spellings(set runes) (alts []seq) {
	if free := set.and(plain); free != nil {
		alts = append(alts, seq{class(free)})
	}
	special := set.minus(plain)
	var letters []span
	for i, r := range shortEscapes {
		if set.and(only(r)) != nil {
			letters = append(letters, span{rune(shortLetters[i]), rune(shortLetters[i])})
			special = special.minus(only(r))
		}
	}
	if letters != nil {
		alts = append(alts, seq{text(`\`), class(union(letters...))})
	}
	for high := range rune(2) {
		var low []span
		for r := range rune(16) {
			if special.and(only(high<<4|r)) != nil {
				digit := rune("0123456789abcdef"[r])
				low = append(low, span{digit, digit})
			}
		}
		if low != nil {
			alts = append(alts, seq{text(`\u00` + string('0'+high)), class(union(low...))})
		}
	}
	return alts
}

// plainText is the rule for a string whose characters are written as they are, and
// for the text that ends it, which the string must not hold.
func (c *converter) plainText(f *flat, end string) *rule {
	d := c.texts(f, c.at, "pattern")
	if d == everything {
		return c.until(false, []End{{Text: end}})
	}
	var escaped strings.Builder
	for _, r := range end {
		fmt.Fprintf(&escaped, `\u{%x}`, r)
	}
	d = c.intersect(d, c.complement(c.pattern(escaped.String(), c.at, "pattern")), c.at, "pattern")
	return c.automaton(d, seq{text(end)}, true)
}

// array is the rule for a case's arrays.
func (c *converter) array(f *flat) *rule {
	least, most, tuple := f.least(minItems), f.most(maxItems), f.tuple()
	if most < 0 && tuple > 0 && !slices.ContainsFunc(f.nodes, func(n *node) bool { return n.items != nil || n.unevaluatedItems != nil }) {
		most = max(tuple, least) // items that no schema mentions are left out
	}
	space := c.space()
	end := seq{space, text("]")}
	item := func(i int) sym { return one(c.value(f.item(i))) }
	if most >= 0 && least > most {
		return c.rule(nil, true)
	}
	// behind is what may follow i items.
	var behind func(i int) *rule
	behind = func(i int) *rule {
		r := c.rule(nil, true)
		switch {
		case i < tuple:
			if i >= least {
				r.alts = append(r.alts, end)
			}
			if most < 0 || i < most {
				r.alts = append(r.alts, seq{text(","), space, item(i), one(behind(i + 1))})
			}
		case most == i:
			r.alts = []seq{end}
		default:
			more := one(c.rule([]seq{{text(","), space, item(i)}}, true))
			high, keyword := -1, "minItems"
			if most >= 0 {
				high, keyword = most-i, "maxItems"
			}
			r.alts = []seq{append(c.repeat(more, max(least-i, 0), high, c.at, keyword), end...)}
		}
		return r
	}
	open := c.rule(nil, true)
	if least == 0 {
		open.alts = append(open.alts, seq{text("]")})
	}
	if most != 0 {
		open.alts = append(open.alts, seq{item(0), one(behind(1))})
	}
	return c.rule([]seq{{text("["), space, one(open)}}, true)
}

// nameClass is a kind of additional properties.
type nameClass struct {
	name sym // the name in quotes
	is   sym
}

// never reports whether it is plain that nothing satisfies the schemas.
func never(conj []*node) bool {
	return slices.ContainsFunc(conj, func(n *node) bool { return n.never })
}

// Tags are how an object is written whose properties have tags around them, without
// braces: Open NAME Named VALUE Close, and Between between two of them. A string
// stands before Close as it is, other values as ever; where there is no Close, so do
// strings.
type Tags struct{ Open, Named, Close, Between string }

// tagged is the rule for a value behind which a tag closes.
func (c *converter) tagged(conj []*node, end string) *rule {
	r := c.rule(nil, false)
	notTexts := c.newNode("", "")
	notTexts.kinds = allKinds &^ texts
	for _, f := range c.expand(conj) {
		if list, given := c.values(f); given {
			for _, v := range list {
				c.writable(v, end)
				plain, ok := v.(string)
				if !ok {
					plain = encode(v)
				}
				r.alts = append(r.alts, seq{text(plain + end)})
			}
			continue
		}
		if f.kinds()&texts != 0 {
			r.alts = append(r.alts, seq{one(c.plainText(f, end))})
		}
		for _, q := range c.flat(&flat{append(slices.Clone(f.nodes), notTexts), f.scopes}) {
			r.alts = append(r.alts, append(slices.Clone(q), text(end)))
		}
	}
	return r
}

// object is the rule for a case's objects, with tags if there are any.
func (c *converter) object(f *flat, tags *Tags) *rule {
	required := f.required()
	var names []string
	seen := map[string]bool{}
	for _, n := range f.nodes {
		for _, p := range n.properties {
			if !seen[p.name] {
				seen[p.name], names = true, append(names, p.name)
			}
		}
	}
	listed := len(names)
	for _, name := range required {
		if !seen[name] {
			seen[name], names = true, append(names, name)
		}
	}
	must := make([]bool, len(names))
	for i, name := range names {
		c.tick(1 + len(required)/8)
		c.nameWritable(name, tags)
		must[i] = slices.Contains(required, name)
	}
	values := make([]*rule, len(names))
	usable := 0
	for i, name := range names {
		if conj := f.named(name); never(conj) || !c.nameable(name, f) {
			values[i] = c.rule(nil, true)
		} else {
			if usable++; tags != nil && tags.Close != "" {
				values[i] = c.tagged(conj, tags.Close)
			} else {
				values[i] = c.value(conj)
			}
		}
	}
	least, most := f.least(minProps), f.most(maxProps)
	open := listed == 0 || least > usable || slices.ContainsFunc(f.nodes, func(n *node) bool {
		return n.additional != nil || n.patterns != nil || n.unevaluatedProps != nil
	})
	var classes []nameClass
	if open && tags == nil && (most < 0 || most > len(required)) {
		classes = c.additional(f, names)
	}
	if least > usable+1 && len(classes) > 0 {
		fail(c.at, "minProperties", "a grammar cannot tell additional properties apart; list those that are wanted under properties, or ask for %d", usable+1)
	}
	if least <= len(required) {
		least = 0
	}
	if most >= len(names) && len(classes) == 0 {
		most = -1
	}
	space := c.space()
	begin, comma, end := seq{text("{"), space}, seq{text(","), space}, seq{space, text("}")}
	title := func(name string) seq { return seq{text(c.notation.name(name) + ":"), space} }
	if tags != nil {
		begin, comma, end = nil, nil, nil
		if tags.Between != "" {
			comma = seq{text(tags.Between)}
		}
		title = func(name string) seq { return seq{text(tags.Open + name + tags.Named)} }
	}
	lastMust := -1
	for i, m := range must {
		if m {
			lastMust = i
		}
	}
	// place is where an object is: at which property, how many of least and most it
	// has, and whether one of them is an additional one.
	type place struct {
		i, least, most int
		extra          bool
	}
	// step is the place behind a property.
	step := func(p place, i int, extra bool) place {
		q := place{i, p.least, p.most, p.extra || extra && least > 0}
		if least > 0 && p.least < least && !(extra && p.extra) {
			q.least++
		}
		if most >= 0 {
			q.most++
		}
		return q
	}
	// Up to block names are told apart together, so that llama.cpp is at fewer places
	// at once; each place in an object has its own.
	const longest, together = 32, 2000
	block := min(longest, together/max(len(names), 1)+1)
	full := func(p place) bool { return most >= 0 && p.most >= most }
	ends := func(p place) bool { return p.i > lastMust && p.least >= least }
	behinds, members := map[place]*rule{}, map[place]*rule{}
	var member, behind func(p place) *rule
	behind = func(p place) *rule {
		if r := behinds[p]; r != nil {
			return r
		}
		r := c.rule(nil, true)
		behinds[p] = r
		if ends(p) {
			r.alts = append(r.alts, end)
		}
		if !full(p) && (p.i < len(names) || len(classes) > 0) {
			r.alts = append(r.alts, append(slices.Clone(comma), one(member(p))))
		}
		return r
	}
	member = func(p place) *rule {
		if r := members[p]; r != nil {
			return r
		}
		r := c.rule(nil, true)
		members[p] = r
		for last := min(p.i+block, len(names)); p.i < last; p.i++ {
			r.alts = append(r.alts, append(title(names[p.i]), one(values[p.i]), one(behind(step(p, p.i+1, false)))))
			if must[p.i] {
				r.alts = c.trie(r.alts)
				return r
			}
		}
		if r.alts = c.trie(r.alts); p.i < len(names) {
			r.alts = append(r.alts, seq{one(member(p))})
			return r
		}
		for _, class := range classes {
			r.alts = append(r.alts, seq{class.name, text(":"), space, class.is, one(behind(step(p, p.i, true)))})
		}
		return r
	}
	first := c.rule(nil, true)
	start := place{}
	if ends(start) {
		first.alts = append(first.alts, end[min(1, len(end)):])
	}
	if !full(start) && (len(names) > 0 || len(classes) > 0) {
		first.alts = append(first.alts, seq{one(member(start))})
	}
	return c.rule([]seq{append(begin, one(first))}, true)
}

// additional finds the kinds of names that are not listed.
func (c *converter) additional(f *flat, names []string) (classes []nameClass) {
	var patterns []*dfa
	limited := false
	for _, n := range f.nodes {
		limited = limited || n.names != nil
		for _, p := range n.patterns {
			if !slices.Contains(patterns, p.names) {
				patterns = append(patterns, p.names)
			}
		}
	}
	conj := func(matching []*dfa) []*node {
		return f.property(func(property) bool { return false }, func(d *dfa) bool { return slices.Contains(matching, d) })
	}
	if len(patterns) == 0 && never(conj(nil)) {
		return nil
	}
	free := everything
	if len(names) > 0 {
		free = c.complement(oneOfTexts(names))
	}
	if limited {
		for _, n := range f.nodes {
			if n.names != nil {
				free = c.intersect(free, c.language([]*node{n.names}), n.pointer, "propertyNames")
			}
		}
	}
	var add func(free *dfa, i int, matching []*dfa)
	add = func(free *dfa, i int, matching []*dfa) {
		if free.empty() {
			return
		}
		if i < len(patterns) {
			add(c.intersect(free, patterns[i], c.at, "patternProperties"), i+1, append(slices.Clip(matching), patterns[i]))
			add(c.intersect(free, c.complement(patterns[i]), c.at, "patternProperties"), i+1, matching)
			return
		}
		if conj := conj(matching); !never(conj) {
			name := seq{text(`"`), c.char().times(0, -1), text(`"`)}
			if c.notation.Quote != "" {
				word := c.pattern("^[A-Za-z_][A-Za-z0-9_-]*$", c.at, "additionalProperties")
				name = seq{one(c.automaton(c.intersect(free, word, c.at, "additionalProperties"), seq{}, true))}
			} else if free != everything {
				name = seq{text(`"`), one(c.automaton(free, seq{text(`"`)}, false))}
			}
			classes = append(classes, nameClass{one(c.rule([]seq{name}, true)), one(c.value(conj))})
		}
	}
	add(free, 0, nil)
	return classes
}

// language is the texts that satisfy schemas.
func (c *converter) language(conj []*node) *dfa {
	d := &dfa{[][]edge{nil}, []bool{false}}
	for _, f := range c.expand(conj) {
		if f.kinds()&texts == 0 {
			continue
		}
		part := c.texts(f, c.at, "propertyNames")
		if list, given := c.values(f); given {
			var names []string
			for _, v := range list {
				if s, ok := v.(string); ok {
					names = append(names, s)
				}
			}
			part = oneOfTexts(names)
		}
		if d.empty() {
			d = part
		} else {
			d = c.product(d, part, true, c.at, "propertyNames")
		}
	}
	return d
}

// Builder puts a grammar together from schemas and the caller's own rules. After an
// error it is of no more use.
type Builder struct {
	c     *converter
	roots []*rule
	own   []string
}

// NewBuilder makes an empty builder for values in a notation.
func NewBuilder(n Notation) *Builder {
	return &Builder{c: &converter{
		notation: n,
		patterns: map[string]*dfa{}, waysOf: map[*node][]*flat{}, expanded: map[string][]*flat{},
		named: map[string]*rule{}, ruleOf: map[string]*rule{},
	}}
}

// Add converts a schema and gives the name of the rule for its documents. The error
// is an [*Error].
func (b *Builder) Add(source []byte) (name string, err error) {
	return b.add(source, func(n *node) *rule { return b.c.value([]*node{n}) })
}

// AddObject is [Builder.Add] for documents that must be objects, as the arguments
// of a function are, whether the schema says so or not. Without a source, any object
// does.
func (b *Builder) AddObject(source []byte) (name string, err error) {
	return b.add(source, func(n *node) *rule { return b.c.value([]*node{n, b.c.objectsOnly()}) })
}

// AddTagged is [Builder.AddObject] for an object that is written with tags. It has
// the properties that the schema lists, and no others.
func (b *Builder) AddTagged(source []byte, tags Tags) (name string, err error) {
	return b.add(source, func(n *node) *rule {
		r := b.c.rule(nil, false)
		for _, f := range b.c.expand([]*node{n, b.c.objectsOnly()}) {
			if _, given := b.c.values(f); given {
				fail(n.pointer, "enum", "a whole object with tags cannot be given; list its properties")
			}
			r.alts = append(r.alts, seq{one(b.c.object(f, &tags))})
		}
		return r
	})
}

// objectsOnly is {"type": "object"}.
func (c *converter) objectsOnly() *node {
	n := c.newNode("", "")
	n.kinds = objects
	return n
}

func (b *Builder) add(source []byte, build func(n *node) *rule) (name string, err error) {
	defer recoverFault(&err)
	c := b.c
	if len(source) == 0 {
		source = []byte("true")
	}
	root := build(c.parse(source))
	c.checkExclusive()
	c.prune()
	if root.dead {
		fail("", "", "nothing satisfies it")
	}
	c.factor(root)
	c.compact(root)
	c.measure(root)
	b.roots = append(b.roots, root)
	return root.name, nil
}

// Define adds a rule of the caller's own, whose body is GBNF. A name with a dash, such
// as "tool-call", does not meet those of the builder's own rules.
func (b *Builder) Define(name, body string) {
	b.own = append(b.own, name+" ::= "+body+"\n")
}

// Grammar writes the rules. One of those defined must be "root".
func (b *Builder) Grammar() (text string, err error) {
	defer recoverFault(&err)
	var out strings.Builder
	for _, line := range b.own {
		out.WriteString(line)
	}
	written := map[*rule]bool{}
	for _, root := range b.roots {
		list := b.c.reachable(root)
		for _, r := range slices.Backward(list) {
			if !written[r] && !r.foreign {
				written[r] = true
				r.write(&out)
			}
		}
	}
	if len(written) > maxRules {
		return "", &Error{"", "", fmt.Sprintf("a grammar of over %d rules; make it smaller", maxRules)}
	}
	return out.String(), nil
}
