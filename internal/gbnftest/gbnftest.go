// Package gbnftest reads grammars in tests, writes random texts by them, and has
// llama.cpp follow texts.
package gbnftest

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Grammar is a grammar read back from its text.
type Grammar struct {
	rules map[string][][]part
	cost  map[string]int // of the shortest way through a rule, in rules
}

// part is a rule, a text, or a class of characters, and how often it comes.
type part struct {
	rule     string
	lit      string
	set      []span
	min, max int
}

type span struct{ lo, hi rune }

const dear = 1 << 20

// Read reads a grammar that has no parentheses and a rule a line.
func Read(t testing.TB, source string) *Grammar {
	g := &Grammar{map[string][][]part{}, map[string]int{}}
	for line := range strings.Lines(source) {
		name, body, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ::= ")
		require.True(t, ok, line)
		require.NotContains(t, g.rules, name)
		alts := [][]part{{}}
		for body != "" {
			switch {
			case body[0] == ' ':
				body = body[1:]
				continue
			case body[0] == '|':
				alts = append(alts, []part{})
				body = body[1:]
				continue
			}
			p := part{min: 1, max: 1}
			char := func() (r rune) {
				r, n := utf8.DecodeRuneInString(body)
				if r == '\\' {
					digits := map[byte]int{'x': 2, 'u': 4, 'U': 8}[body[1]]
					if digits == 0 {
						const letters, means = "\"\\nt", "\"\\\n\t"
						i := strings.IndexByte(letters, body[1])
						require.GreaterOrEqual(t, i, 0, body)
						r, n = rune(means[i]), 2
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
				negated := strings.HasPrefix(body, "[^")
				for body = strings.TrimPrefix(body[1:], "^"); body[0] != ']'; {
					s := span{lo: char()}
					if s.hi = s.lo; body[0] == '-' {
						body = body[1:]
						s.hi = char()
					}
					require.LessOrEqual(t, s.lo, s.hi)
					p.set = append(p.set, s)
				}
				if body = body[1:]; negated {
					p.set = others(p.set)
				}
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

func (g *Grammar) price(q []part) int {
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
func (g *Grammar) write(b *strings.Builder, r *rand.Rand, name string, budget *int) {
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

// others are the characters that are not in a set.
func others(set []span) (out []span) {
	slices.SortFunc(set, func(a, b span) int { return int(a.lo - b.lo) })
	at := rune(0)
	for _, s := range append(set, span{0xD800, utf8.MaxRune}) { // enough without the rare ones
		if s.lo > at {
			out = append(out, span{at, s.lo - 1})
		}
		at = max(at, s.hi+1)
	}
	return out
}

// Document is a random text of the grammar.
func (g *Grammar) Document(r *rand.Rand) string {
	var b strings.Builder
	budget := 40 + r.IntN(400)
	g.write(&b, r, "root", &budget)
	return b.String()
}

// Rig has llama.cpp follow texts by its own grammar sampler, on a vocabulary whose
// tokens are bytes and a few words.
type Rig struct {
	m *llama.Model
	c *llama.Context
}

// NewRig makes one; the end of the test closes it.
func NewRig(t testing.TB) Rig {
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 32, Threads: 1})
	require.NoError(t, c.Decode(llamatest.Batch(t, []llama.Token{1}, 0), skip.Mask{}))
	return Rig{m, c}
}

// Accepts reports whether a grammar lets the whole text be written, and end there.
func (r Rig) Accepts(t testing.TB, grammar, text string) bool {
	p, err := r.m.NewSampler(llama.Sampling{Grammar: grammar, Temp: 1})
	require.NoError(t, err, grammar)
	defer p.Close()
	tokens, err := r.m.Vocab.Tokenize(text, false)
	require.NoError(t, err)
	require.Equal(t, text, r.m.Vocab.Text(tokens, false))
	var d llama.Distribution
	for _, token := range tokens {
		if p.Distribution(r.c, -1, &d) != nil || d.Of(token) == 0 {
			return false
		}
		p.Take(token)
	}
	return p.Distribution(r.c, -1, &d) == nil && d.Of(r.m.Vocab.EOS) > 0
}
