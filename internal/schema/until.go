package schema

import (
	"strings"
	"unicode/utf8"
)

// End is a text at which free text ends, and the rule that goes on from there; ""
// = nothing.
type End struct{ Text, Then string }

// Text adds a rule for free text up to the first of the ends, that end, and what
// follows it. Where it may stop, the text may also end with none of them. It gives
// the rule's name. The ends are not empty.
func (b *Builder) Text(stop bool, ends ...End) (name string, err error) {
	defer recoverFault(&err)
	r := b.c.until(stop, ends)
	b.roots = append(b.roots, r)
	return r.name, nil
}

// until is the rule of Text: the automaton of Aho and Corasick, which has a state
// for each beginning of an end.
func (c *converter) until(stop bool, ends []End) *rule {
	states := []string{""}
	ids := map[string]int{"": 0}
	for _, e := range ends {
		for i := range e.Text {
			if _, ok := ids[e.Text[:i]]; !ok {
				ids[e.Text[:i]] = len(states)
				states = append(states, e.Text[:i])
			}
		}
	}
	rules := make([]*rule, len(states))
	for i := range rules {
		rules[i] = c.rule(nil, true)
	}
	for i, state := range states {
		rest := anyRune.minus(only(0))
		var next []rune
		for _, e := range ends {
			for _, r := range e.Text {
				if rest.and(only(r)) != nil {
					next, rest = append(next, r), rest.minus(only(r))
				}
			}
		}
		if stop {
			rules[i].alts = append(rules[i].alts, seq{})
		}
		for _, r := range next {
			c.tick(1 + len(ends))
			then := after(state+string(r), ends, ids, rules)
			if len(then) > 0 && then[0].ref == rules[0] {
				rest = union(append(rest, span{r, r})...)
			} else {
				rules[i].alts = append(rules[i].alts, append(seq{text(string(r))}, then...))
			}
		}
		rules[i].alts = append(rules[i].alts, seq{class(rest), one(rules[0])})
	}
	return rules[0]
}

// after is what follows where the last text that was seen is known.
func after(seen string, ends []End, ids map[string]int, rules []*rule) seq {
	for _, e := range ends {
		if strings.HasSuffix(seen, e.Text) {
			if e.Then == "" {
				return nil
			}
			return seq{one(&rule{id: -1, name: e.Then, foreign: true, first: anyRune})}
		}
	}
	for {
		if id, ok := ids[seen]; ok {
			return seq{one(rules[id])}
		}
		_, n := utf8.DecodeRuneInString(seen)
		seen = seen[n:]
	}
}
