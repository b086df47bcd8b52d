package schema

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/dlclark/regexp2"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/gbnftest"
)

// foreign finds what the validator does not know, or takes for another draft's.
var foreign = regexp.MustCompile(`nullable|u?int(32|64)|"float"|"double"|\$schema|\$id|\$vocabulary|idn-|content|\\|discriminator`)

// FuzzGrammar converts any text: no panic, no long time, and nothing but valid
// documents.
func FuzzGrammar(f *testing.F) {
	for _, source := range supported {
		f.Add(source)
	}
	f.Fuzz(func(t *testing.T, source string) {
		start := time.Now()
		grammar, err := Grammar([]byte(source))
		require.Less(t, time.Since(start), 30*time.Second, "a bound against hanging, not a measurement")
		if err != nil {
			require.True(t, errors.As(err, new(*Error)), "%v", err)
			return
		}
		g := gbnftest.Read(t, grammar)
		schema, err := oracle(source)
		known := err == nil && !foreign.MatchString(source)
		r := rand.New(rand.NewPCG(5, 6))
		for range 5 {
			text := g.Document(r)
			v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
			require.NoError(t, err, text)
			if known {
				require.NoError(t, schema.Validate(v), "%s\nwrites %q by\n%s", source, text, grammar)
			}
		}
	})
}

// FuzzSchema converts schemas made of random keywords.
func FuzzSchema(f *testing.F) {
	for seed := range uint64(40) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 7))
		root := randomSchema(r, 4)
		if o, ok := root.(map[string]any); ok {
			o["$defs"] = map[string]any{"a": randomSchema(r, 2), "b": randomSchema(r, 2)}
		}
		source, err := json.Marshal(root)
		require.NoError(t, err)
		if _, err := Grammar(source); err != nil {
			require.True(t, errors.As(err, new(*Error)), "%v", err)
			return
		}
		check(t, string(source), 10)
	})
}

// randomSchema makes a schema of keywords that can be expressed, alone at least.
func randomSchema(r *rand.Rand, depth int) any {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	value := func() any {
		return []any{1, 2.5, -3, "a", "b", "ab", "", true, nil, map[string]any{"a": 1}, []any{1, "a"}, 0}[r.IntN(12)]
	}
	name := func() string { return pick("a", "b", "ab", "c", "x1") }
	sub := func() any { return randomSchema(r, depth-1) }
	list := func() (l []any) {
		for range 1 + r.IntN(3) {
			l = append(l, sub())
		}
		return l
	}
	mapping := func(key func() string) map[string]any {
		m := map[string]any{}
		for range 1 + r.IntN(3) {
			m[key()] = sub()
		}
		return m
	}
	patternOf := func() string {
		return pick("^a", "b$", "[0-9]+", "^[a-c]{1,3}$", "a|b", "^(ab)*$", ".b", "^[^a]", `\\d`, `^\w\s?$`, "^$", "a.c")
	}
	if depth <= 0 || r.IntN(12) == 0 {
		return []any{true, map[string]any{"type": "integer"}, map[string]any{"type": "string"}, map[string]any{"const": value()}, map[string]any{"$ref": "#/$defs/" + pick("a", "b")}, false}[r.IntN(6)]
	}
	s := map[string]any{}
	if r.IntN(3) > 0 {
		s["type"] = pick("object", "array", "string", "number", "integer", "object", "array")
	} else if r.IntN(2) == 0 {
		s["type"] = []string{pick("object", "array"), pick("string", "integer", "null", "boolean")}
	}
	for range 1 + r.IntN(5) {
		switch r.IntN(25) {
		case 0, 1, 2:
			s["properties"] = mapping(name)
		case 3:
			s["required"] = []string{pick("a", "b"), pick("c", "x1")}
		case 4:
			s["additionalProperties"] = sub()
		case 5:
			s["patternProperties"] = mapping(patternOf)
		case 6:
			s["propertyNames"] = map[string]any{"pattern": patternOf()}
		case 7:
			s["minProperties"] = r.IntN(3)
		case 8:
			s["maxProperties"] = r.IntN(4)
		case 9:
			s["prefixItems"] = list()
		case 10, 11:
			s["items"] = sub()
		case 12:
			s["minItems"] = r.IntN(4)
		case 13:
			s["maxItems"] = r.IntN(5)
		case 14:
			s["pattern"] = patternOf()
		case 15:
			s["minLength"] = r.IntN(4)
		case 16:
			s["maxLength"] = r.IntN(8)
		case 17:
			s["format"] = pick("date", "time", "ipv4", "ipv6", "uuid", "hostname", "email", "uri", "duration", "json-pointer")
		case 18:
			s[pick("minimum", "exclusiveMinimum")] = json.Number(fmt.Sprintf("%.*f", r.IntN(4), r.NormFloat64()*100))
		case 19:
			s[pick("maximum", "exclusiveMaximum")] = json.Number(fmt.Sprintf("%.*f", r.IntN(4), r.NormFloat64()*100))
		case 20:
			s["enum"] = []any{value(), value(), value()}
		case 21:
			s["allOf"] = list()
		case 22:
			s["anyOf"] = list()
		case 23:
			s["oneOf"] = list()
		case 24:
			s[pick("unevaluatedProperties", "unevaluatedItems")] = sub()
		}
	}
	return s
}

// FuzzPattern matches texts by a pattern's automaton and by an independent engine.
func FuzzPattern(f *testing.F) {
	for _, source := range []string{"^(a|b)*c$", "a{2,3}", "[^a-c]", `\w\s`, "(^|a)b($|c)", "a*?b+?", "(a|(b|)){2}", "^$", ".", `[\d\s]`, "^^a$$", "(a*)*b", `\u0061|\x62`, "a$|^b", "[]", "[^]", "a{0}b", "(?:)", "x{1"} {
		f.Add(source, "abcab 1")
	}
	f.Fuzz(func(t *testing.T, source, letters string) {
		if len(source) > 60 || !utf8.ValidString(source) || strings.Contains(source, `\p`) || strings.Contains(source, `\P`) {
			return
		}
		re, err := regexp2.Compile(source, regexp2.ECMAScript|regexp2.Unicode)
		if err != nil {
			return
		}
		re.MatchTimeout = time.Second
		d := func() (d *dfa) {
			defer func() {
				if r := recover(); r != nil {
					_ = r.(fault)
				}
			}()
			return NewBuilder(Notation{}).c.pattern(source, "", "pattern")
		}()
		if d == nil {
			return // refused
		}
		r := rand.New(rand.NewPCG(8, uint64(len(source))))
		alphabet := []rune(strings.ToValidUTF8(letters, "") + source + "ab1 \n")
		for range 60 {
			var text []rune
			for range r.IntN(6) {
				text = append(text, alphabet[r.IntN(len(alphabet))])
			}
			want, err := re.MatchString(string(text))
			if err != nil {
				return // too slow for it
			}
			require.Equal(t, want, d.matches(string(text)), "%q on %q", source, string(text))
		}
	})
}
