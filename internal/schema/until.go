package schema

import "strings"

// until is the rule for a text up to the first of the ends, and that end.
func (c *converter) until(ends []string) *rule {
	if len(ends) == 0 {
		return c.shared("anything", func(r *rule) { r.alts = []seq{{class(anyRune.minus(only(0))).times(0, -1)}} })
	}
	// The automaton of Aho and Corasick: a state for each beginning of an end.
	states := []string{""}
	ids := map[string]int{"": 0}
	for _, e := range ends {
		for i := range e {
			if _, ok := ids[e[:i]]; !ok {
				ids[e[:i]] = len(states)
				states = append(states, e[:i])
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
			for _, r := range e {
				if rest.and(only(r)) != nil {
					next, rest = append(next, r), rest.minus(only(r))
				}
			}
		}
		for _, r := range next {
			seen := state + string(r)
			c.tick(len(ends))
			to := seq{text(string(r))}
			done := false
			for _, e := range ends {
				done = done || strings.HasSuffix(seen, e)
			}
			if !done {
				for {
					if id, ok := ids[seen]; ok {
						to = append(to, one(rules[id]))
						break
					}
					seen = strings.TrimPrefix(seen, string([]rune(seen)[0]))
				}
			}
			rules[i].alts = append(rules[i].alts, to)
		}
		rules[i].alts = append(rules[i].alts, seq{class(rest), one(rules[0])})
	}
	return rules[0]
}
