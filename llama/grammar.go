package llama

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Bounds of grammars. llama.cpp parses and runs a grammar in calls that nothing can
// interrupt, by recursion, and in the cube of what a rule may leave out in a row.
const (
	maxGrammarBytes    = 4 << 20
	maxGrammarDepth    = 1000    // of parentheses
	maxRepetition      = 2000    // llama.cpp's own
	maxGrammarRules    = 30_000  // parts of rules that repeat or are in parentheses count as rules
	maxGrammarElements = 500_000 // characters, ranges and references of all rules, repeated ones as often
	maxGrammarWays     = 4096    // to go on from one place
	maxGrammarSkips    = 128     // what may be left out from one place on
)

// checkGrammar parses a grammar in llama.cpp's GBNF and finds what llama.cpp would
// take for ever, or more memory than there is, to do: repetitions out of order or
// range, left recursion, too many rules, too many ways on. It also finds what
// llama.cpp refuses. The error wraps [ErrGrammar] and names line and rule.
func checkGrammar(text string) error {
	g := grammar{text: text, line: 1, ids: map[string]int{}}
	if err := g.check(); err != nil {
		return fmt.Errorf("%w: %w", ErrGrammar, err)
	}
	return nil
}

// grammar is a grammar while it is read.
type grammar struct {
	text     string
	at, line int

	ids      map[string]int
	rules    []gbnfRule // by their ids
	elements int
	depth    int
}

// gbnfRule is one rule, named or made for a group or a repetition.
type gbnfRule struct {
	name    string
	line    int
	defined bool
	made    bool    // for a group or a repetition
	alts    [][]int // each a sequence of elements: a rule's id, or terminal

	empty bool // it can be nothing
	ways  int  // to begin it
	skips int  // elements that can be left out on these ways
	state int  // of measuring; 0 = not begun
}

// terminal stands for a character, a range of them or a token.
const terminal = -1

func (g *grammar) fail(format string, args ...any) error {
	return fmt.Errorf("line %d: "+format, append([]any{g.line}, args...)...)
}

func (g *grammar) check() error {
	switch {
	case len(g.text) > maxGrammarBytes:
		return fmt.Errorf("it has %d bytes, the most is %d", len(g.text), maxGrammarBytes)
	case strings.ContainsRune(g.text, 0):
		return errors.New("it has a zero byte")
	case !utf8.ValidString(g.text):
		return errors.New("it is not UTF-8 text")
	}
	g.space(true)
	for g.at < len(g.text) {
		if err := g.rule(); err != nil {
			return err
		}
	}
	if id, ok := g.ids["root"]; !ok || !g.rules[id].defined {
		return errors.New("it has no rule 'root', where answers begin")
	}
	for _, r := range g.rules {
		if !r.defined {
			return fmt.Errorf("line %d: rule %q is used and nowhere defined", r.line, r.name)
		}
	}
	return g.measure()
}

// peek is the next byte, 0 at the end.
func (g *grammar) peek() byte {
	if g.at < len(g.text) {
		return g.text[g.at]
	}
	return 0
}

// space skips spaces and comments, with lines the ends of lines as well.
func (g *grammar) space(lines bool) {
	for g.at < len(g.text) {
		switch c := g.text[g.at]; {
		case c == '#':
			for g.at < len(g.text) && g.text[g.at] != '\n' && g.text[g.at] != '\r' {
				g.at++
			}
		case c == ' ' || c == '\t' || lines && c == '\r':
			g.at++
		case lines && c == '\n':
			g.at++
			g.line++
		default:
			return
		}
	}
}

func isWord(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-'
}

// name reads a rule's name.
func (g *grammar) name() (string, error) {
	start := g.at
	for isWord(g.peek()) {
		g.at++
	}
	if g.at == start {
		return "", g.fail("want the name of a rule at %.20q", g.text[start:])
	}
	return g.text[start:g.at], nil
}

// id is a rule's number; a name that is new gets one.
func (g *grammar) id(name string) int {
	id, ok := g.ids[name]
	if !ok {
		id = len(g.rules)
		g.ids[name] = id
		g.rules = append(g.rules, gbnfRule{name: name, line: g.line})
	}
	return id
}

// made adds a rule of its own for a part of another.
func (g *grammar) made(name string, alts ...[]int) (int, error) {
	if len(g.rules) == maxGrammarRules {
		return 0, g.fail("it has over %d rules, with groups and repetitions counted as such", maxGrammarRules)
	}
	g.rules = append(g.rules, gbnfRule{name: name, line: g.line, defined: true, made: true, alts: alts})
	return len(g.rules) - 1, nil
}

// rule reads a named rule and what is behind it, up to the next.
func (g *grammar) rule() error {
	name, err := g.name()
	if err != nil {
		return err
	}
	g.space(false)
	if !strings.HasPrefix(g.text[g.at:], "::=") {
		return g.fail("want ::= behind %q", name)
	}
	g.at += len("::=")
	g.space(true)
	id := g.id(name)
	if len(g.rules) > maxGrammarRules {
		return g.fail("it has over %d rules", maxGrammarRules)
	}
	alts, err := g.alternatives(name, false)
	if err != nil {
		return err
	}
	g.rules[id].alts, g.rules[id].defined = alts, true
	if c := g.peek(); g.at < len(g.text) && c != '\n' && c != '\r' {
		return g.fail("rule %q: want an element or the end of the line at %.20q", name, g.text[g.at:])
	}
	g.space(true)
	return nil
}

func (g *grammar) alternatives(name string, nested bool) (alts [][]int, err error) {
	for {
		sequence, err := g.sequence(name, nested)
		if err != nil {
			return nil, err
		}
		alts = append(alts, sequence)
		if g.peek() != '|' {
			return alts, nil
		}
		g.at++
		g.space(true)
	}
}

// sequence reads elements one behind the other. Their repetitions become rules, as
// they do in llama.cpp: S{2,4} is S S and a rule that is S and another, or nothing,
// where that other is S or nothing; S* is a rule that is S and itself, or nothing.
func (g *grammar) sequence(name string, nested bool) (out []int, err error) {
	last := 0 // where the element that could be repeated begins
	for g.at < len(g.text) {
		least, most := -1, 0
		switch c := g.peek(); {
		case c == '"':
			last = len(out)
			if out, err = g.literal(out); err != nil {
				return nil, err
			}
		case c == '[':
			last = len(out)
			if err := g.set(); err != nil {
				return nil, err
			}
			out = append(out, terminal)
		case c == '<' || c == '!':
			last = len(out)
			if err := g.token(); err != nil {
				return nil, err
			}
			out = append(out, terminal)
		case c == '.':
			g.at++
			last = len(out)
			out = append(out, terminal)
		case isWord(c):
			ref, err := g.name()
			if err != nil {
				return nil, err
			}
			last = len(out)
			out = append(out, g.id(ref))
		case c == '(':
			last = len(out)
			group, err := g.group(name)
			if err != nil {
				return nil, err
			}
			out = append(out, group)
		case c == '*' || c == '+' || c == '?':
			g.at++
			least, most = map[byte]int{'+': 1}[c], map[byte]int{'?': 1}[c]
			if c != '?' {
				most = -1
			}
		case c == '{':
			if least, most, err = g.times(); err != nil {
				return nil, err
			}
		default:
			return out, nil
		}
		g.space(nested)
		if least >= 0 {
			if last == len(out) {
				return nil, g.fail("rule %q: there is nothing to repeat", name)
			}
			if out, err = g.repeat(name, out, last, least, most); err != nil {
				return nil, err
			}
		}
		if g.elements += len(out) - min(last, len(out)); g.elements > maxGrammarElements {
			return nil, g.fail("it has over %d elements, with repeated ones counted as often", maxGrammarElements)
		}
	}
	return out, nil
}

// repeat repeats out's elements from last on; most -1 is without end.
func (g *grammar) repeat(name string, out []int, last, least, most int) ([]int, error) {
	one := append([]int(nil), out[last:]...)
	if times := max(least, most, 1); len(one)*times > maxGrammarElements {
		return nil, g.fail("it has over %d elements, with repeated ones counted as often", maxGrammarElements)
	}
	out = out[:last]
	for range least {
		out = append(out, one...)
	}
	if most < 0 {
		id, err := g.made(name)
		if err != nil {
			return nil, err
		}
		g.rules[id].alts = [][]int{append(append([]int(nil), one...), id), {}}
		return append(out, id), nil
	}
	next := -1
	for range most - least {
		sequence := append([]int(nil), one...)
		if next >= 0 {
			sequence = append(sequence, next)
		}
		var err error
		if next, err = g.made(name, sequence, nil); err != nil {
			return nil, err
		}
		g.elements += len(sequence)
	}
	if next >= 0 {
		out = append(out, next)
	}
	return out, nil
}

// group reads what is in parentheses, which becomes a rule.
func (g *grammar) group(name string) (int, error) {
	if g.depth++; g.depth > maxGrammarDepth {
		return 0, g.fail("it has over %d parentheses within each other", maxGrammarDepth)
	}
	g.at++
	g.space(true)
	alts, err := g.alternatives(name, true)
	if err != nil {
		return 0, err
	}
	if g.peek() != ')' {
		return 0, g.fail("rule %q: want ')'", name)
	}
	g.at++
	g.depth--
	return g.made(name, alts...)
}

// times reads {n}, {n,} or {n,m}; most -1 is without end.
func (g *grammar) times() (least, most int, err error) {
	g.at++
	number := func() (int, error) {
		g.space(true)
		start := g.at
		for c := g.peek(); '0' <= c && c <= '9'; c = g.peek() {
			g.at++
		}
		n, err := strconv.Atoi(g.text[start:g.at])
		switch {
		case start == g.at:
			return 0, g.fail("want a number of repetitions at %.20q", g.text[start:])
		case err != nil || n > maxRepetition:
			return 0, g.fail("%.20s repetitions are too many, the most is %d; * and + are without end", g.text[start:g.at], maxRepetition)
		}
		g.space(true)
		return n, nil
	}
	if least, err = number(); err != nil {
		return 0, 0, err
	}
	most = least
	if g.peek() == ',' {
		g.at++
		g.space(true)
		if most = -1; g.peek() != '}' {
			if most, err = number(); err != nil {
				return 0, 0, err
			}
		}
	}
	switch {
	case g.peek() != '}':
		return 0, 0, g.fail("want '}' behind the number of repetitions")
	case most >= 0 && most < least:
		return 0, 0, g.fail("{%d,%d} is from more to fewer repetitions", least, most)
	}
	g.at++
	return least, most, nil
}

// literal reads "text", a terminal for each of its characters.
func (g *grammar) literal(out []int) ([]int, error) {
	g.at++
	for g.peek() != '"' {
		if _, err := g.char(); err != nil {
			return nil, err
		}
		out = append(out, terminal)
	}
	g.at++
	return out, nil
}

// set reads [a-z] or [^a-z].
func (g *grammar) set() error {
	g.at++
	if g.peek() == '^' {
		g.at++
	}
	for g.peek() != ']' {
		low, err := g.char()
		if err != nil {
			return err
		}
		if g.peek() != '-' || strings.HasPrefix(g.text[g.at:], "-]") {
			continue
		}
		g.at++
		high, err := g.char()
		if err != nil {
			return err
		}
		if high < low {
			return g.fail("the range from %q to %q is empty", low, high)
		}
	}
	g.at++
	return nil
}

// hexDigits are the digits of each escape for a character by its number.
var hexDigits = map[byte]int{'x': 2, 'u': 4, 'U': 8}

// char reads a character, or its escape.
func (g *grammar) char() (rune, error) {
	if g.at >= len(g.text) {
		return 0, g.fail("unexpected end of input: a text or a set of characters is not closed")
	}
	r, size := utf8.DecodeRuneInString(g.text[g.at:])
	if g.at += size; r == '\n' {
		g.line++
	}
	if r != '\\' {
		return r, nil
	}
	c := g.peek()
	if g.at < len(g.text) {
		g.at++
	}
	switch c {
	case 't', 'r', 'n':
		return map[byte]rune{'t': '\t', 'r': '\r', 'n': '\n'}[c], nil
	case '\\', '"', '[', ']', '-':
		return rune(c), nil
	case 'x', 'u', 'U':
		digits := g.text[g.at:min(g.at+hexDigits[c], len(g.text))]
		n, err := strconv.ParseUint(digits, 16, 32)
		if err != nil || len(digits) < hexDigits[c] || n > utf8.MaxRune {
			return 0, g.fail("\\%c wants %d hexadecimal digits of a character", c, hexDigits[c])
		}
		g.at += len(digits)
		return rune(n), nil
	}
	return 0, g.fail("unknown escape \\%c", c)
}

// token reads <text> or <[number]>, with or without ! in front.
func (g *grammar) token() error {
	if g.peek() == '!' {
		g.at++
	}
	end := strings.IndexByte(g.text[g.at:], '>')
	if g.peek() != '<' || end < 0 {
		return g.fail("want a token as <text> or <[number]> at %.20q", g.text[g.at:])
	}
	inside := g.text[g.at+1 : g.at+end]
	g.line += strings.Count(inside, "\n")
	g.at += end + 1
	if number, ok := strings.CutPrefix(inside, "["); ok {
		if _, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 31); err != nil || !strings.HasSuffix(number, "]") {
			return g.fail("<%.20s> is no token's number", inside)
		}
	}
	return nil
}

// measure finds for every rule whether it can be empty, how many ways begin it, and
// whether it begins with itself.
func (g *grammar) measure() error {
	g.findEmpty()
	for i := range g.rules {
		if err := g.begin(i); err != nil {
			return err
		}
	}
	for _, r := range g.rules {
		for _, alt := range r.alts {
			if err := g.bound(r, alt); err != nil {
				return err
			}
		}
	}
	return nil
}

// bound checks the ways on from each place of a rule's sequence.
func (g *grammar) bound(r gbnfRule, sequence []int) error {
	ways, skips := max(r.ways, 1), r.skips
	check := func() error {
		switch {
		case ways > maxGrammarWays:
			return fmt.Errorf("line %d: rule %q has over %d ways on from one place", r.line, r.name, maxGrammarWays)
		case skips > maxGrammarSkips:
			return fmt.Errorf("line %d: rule %q can leave out over %d elements in a row", r.line, r.name, maxGrammarSkips)
		}
		return nil
	}
	err := check()
	ways, skips = 1, 0 // behind the end
	for i := len(sequence) - 1; i >= 0 && err == nil; i-- {
		e := sequence[i]
		if e == terminal {
			ways, skips = 1, 0
			continue
		}
		if !g.rules[e].empty {
			ways, skips = 0, -1
		}
		ways, skips = ways+g.rules[e].ways, skips+g.rules[e].skips+1
		err = check()
	}
	return err
}

// findEmpty marks the rules that can be empty: those of which an alternative is all
// of such rules.
func (g *grammar) findEmpty() {
	type place struct {
		rule int
		left *int // of an alternative: elements that are not known to be empty
	}
	uses := make([][]place, len(g.rules))
	var found []int
	for i, r := range g.rules {
		for _, alt := range r.alts {
			left := len(alt)
			for _, e := range alt {
				if e != terminal {
					uses[e] = append(uses[e], place{i, &left})
				}
			}
			if left == 0 {
				found = append(found, i)
			}
		}
	}
	for len(found) > 0 {
		id := found[len(found)-1]
		found = found[:len(found)-1]
		if g.rules[id].empty {
			continue
		}
		g.rules[id].empty = true
		for _, p := range uses[id] {
			if *p.left--; *p.left == 0 {
				found = append(found, p.rule)
			}
		}
	}
}

// begin counts the ways to begin a rule, those of the rules that it can begin with
// first.
func (g *grammar) begin(id int) error {
	if g.rules[id].state == done {
		return nil
	}
	g.rules[id].state = begun
	ways, skips := 0, 0
	for _, alt := range g.rules[id].alts {
		for _, e := range alt {
			if e == terminal {
				break
			}
			// A repetition of what can be empty begins with itself, which llama.cpp bears.
			itself := e == id && g.rules[id].made
			if g.rules[e].state == begun && !itself {
				return fmt.Errorf("line %d: left recursion: rule %q can begin with itself", g.rules[e].line, g.rules[e].name)
			}
			if !itself {
				if err := g.begin(e); err != nil {
					return err
				}
			}
			if !g.rules[e].empty {
				break
			}
		}
		w, s := g.on(alt, id)
		ways, skips = min(ways+w, maxGrammarElements), min(skips+s, maxGrammarElements)
	}
	r := &g.rules[id]
	r.ways, r.skips, r.state = ways, skips, done
	return nil
}

// on counts the ways to begin a sequence of the rule id, and what is left out on them.
func (g *grammar) on(sequence []int, id int) (ways, skips int) {
	for _, e := range sequence {
		if e == terminal {
			return ways + 1, skips
		}
		if e != id {
			ways, skips = ways+g.rules[e].ways, skips+g.rules[e].skips
		}
		if !g.rules[e].empty {
			return ways, skips
		}
		skips++
	}
	return ways + 1, skips
}

// States of measuring a rule.
const (
	begun = 1
	done  = 2
)
