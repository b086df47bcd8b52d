package schema

import (
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// gbnf is a grammar read back from its text, to write random documents by.
type gbnf struct {
	rules map[string][][]gbnfPart
	cost  map[string]int // of the shortest way through a rule, in rules
}

type gbnfPart struct {
	rule     string
	lit      string
	set      []span
	min, max int
}

const dear = 1 << 20

// readGBNF reads what this package writes: no parentheses, a rule a line.
func readGBNF(t testing.TB, source string) *gbnf {
	g := &gbnf{map[string][][]gbnfPart{}, map[string]int{}}
	for line := range strings.Lines(source) {
		name, body, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ::= ")
		require.True(t, ok, line)
		require.NotContains(t, g.rules, name)
		alts := [][]gbnfPart{{}}
		for body != "" {
			switch {
			case body[0] == ' ':
				body = body[1:]
				continue
			case body[0] == '|':
				alts = append(alts, []gbnfPart{})
				body = body[1:]
				continue
			}
			p := gbnfPart{min: 1, max: 1}
			char := func() (r rune) {
				r, n := utf8.DecodeRuneInString(body)
				if r == '\\' {
					digits := map[byte]int{'x': 2, 'u': 4, 'U': 8}[body[1]]
					if digits == 0 {
						require.Contains(t, `"\`, body[1:2])
						r, n = rune(body[1]), 2
					} else {
						v, err := strconv.ParseUint(body[2:2+digits], 16, 32)
						require.NoError(t, err)
						r, n = rune(v), 2+digits
					}
				}
				body = body[n:]
				return r
			}
			switch body[0] {
			case '"':
				for body = body[1:]; body[0] != '"'; {
					p.lit += string(char())
				}
				body = body[1:]
			case '[':
				for body = body[1:]; body[0] != ']'; {
					s := span{lo: char()}
					if s.hi = s.lo; body[0] == '-' {
						body = body[1:]
						s.hi = char()
					}
					require.LessOrEqual(t, s.lo, s.hi)
					p.set = append(p.set, s)
				}
				body = body[1:]
			default:
				n := strings.IndexAny(body+" ", " *+?{")
				p.rule, body = body[:n], body[n:]
			}
			if body != "" {
				switch body[0] {
				case '*':
					p.min, p.max, body = 0, -1, body[1:]
				case '+':
					p.max, body = -1, body[1:]
				case '?':
					p.min, body = 0, body[1:]
				case '{':
					end := strings.IndexByte(body, '}')
					low, high, two := strings.Cut(body[1:end], ",")
					var err error
					p.min, err = strconv.Atoi(low)
					require.NoError(t, err)
					if p.max = p.min; two {
						if p.max = -1; high != "" {
							p.max, err = strconv.Atoi(high)
							require.NoError(t, err)
						}
					}
					require.Less(t, max(p.min, p.max), 2000, "llama.cpp takes no more")
					body = body[end+1:]
				}
			}
			alts[len(alts)-1] = append(alts[len(alts)-1], p)
		}
		g.rules[name] = alts
	}
	for name := range g.rules {
		g.cost[name] = dear
	}
	for changed := true; changed; {
		changed = false
		for name, alts := range g.rules {
			for _, q := range alts {
				if n := g.price(q); n < g.cost[name] {
					g.cost[name], changed = n, true
				}
			}
		}
	}
	for name, alts := range g.rules {
		require.Less(t, g.cost[name], dear, "%s has no end", name)
		for _, q := range alts {
			for _, p := range q {
				require.True(t, p.rule == "" || g.rules[p.rule] != nil, "no rule %q", p.rule)
			}
		}
	}
	return g
}

func (g *gbnf) price(q []gbnfPart) int {
	n := 1
	for _, p := range q {
		if p.rule != "" {
			n = min(n+p.min*g.cost[p.rule], dear)
		}
	}
	return n
}

// write appends a random text of a rule; budget bounds how much of it is not as
// short as can be.
func (g *gbnf) write(b *strings.Builder, r *rand.Rand, name string, budget *int) {
	alts := g.rules[name]
	if *budget -= 1; *budget <= 0 {
		best := 0
		for i := range alts {
			if g.price(alts[i]) < g.price(alts[best]) {
				best = i
			}
		}
		alts = alts[best : best+1]
	}
	for _, p := range alts[r.IntN(len(alts))] {
		n := p.min
		if most := p.max; *budget > 0 && most != p.min {
			if most < 0 {
				most = p.min + 6
			}
			switch n = p.min + r.IntN(min(most-p.min, 12)+1); r.IntN(12) {
			case 0:
				n = most
			case 1:
				n = p.min
			}
		}
		for range n {
			switch {
			case p.rule != "":
				g.write(b, r, p.rule, budget)
			case p.set != nil:
				s := p.set[r.IntN(len(p.set))]
				at := s.lo + rune(r.Int32N(s.hi-s.lo+1))
				if r.IntN(3) > 0 {
					at = s.lo + (at-s.lo)%64 // seldom a rare script
				}
				b.WriteRune(at)
			default:
				b.WriteString(p.lit)
			}
		}
	}
}

// document is a random text of the grammar.
func (g *gbnf) document(r *rand.Rand) string {
	var b strings.Builder
	budget := 40 + r.IntN(400)
	g.write(&b, r, "root", &budget)
	return b.String()
}
