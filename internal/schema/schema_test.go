package schema

import (
	"errors"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dlclark/regexp2"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/gbnftest"
)

// engine matches as ECMA-262 does.
type engine struct{ re *regexp2.Regexp }

func (e engine) MatchString(s string) bool {
	ok, err := e.re.MatchString(s)
	return ok && err == nil
}
func (e engine) String() string { return e.re.String() }

// oracle is the independent validator of a schema.
func oracle(source string) (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(source))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.DefaultDraft(jsonschema.Draft2020)
	c.AssertFormat()
	c.UseRegexpEngine(func(s string) (jsonschema.Regexp, error) {
		re, err := regexp2.Compile(s, regexp2.ECMAScript|regexp2.Unicode)
		if err != nil {
			return nil, err
		}
		re.MatchTimeout = time.Second
		return engine{re}, nil
	})
	if err := c.AddResource("schema:root", doc); err != nil {
		return nil, err
	}
	return c.Compile("schema:root")
}

// check writes documents by a schema's grammar and has the oracle validate them.
func check(t testing.TB, source string, documents int) {
	grammar, err := Grammar([]byte(source))
	require.NoError(t, err, source)
	schema, err := oracle(source)
	require.NoError(t, err, source)
	g := gbnftest.Read(t, grammar)
	r := rand.New(rand.NewPCG(1, 2))
	for range documents {
		text := g.Document(r)
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
		require.NoError(t, err, "%s\nwrites %q by\n%s", source, text, grammar)
		if err := schema.Validate(v); err != nil {
			require.NoError(t, err, "%s\nwrites %q by\n%s", source, text, grammar)
		}
	}
}

// supported are schemas of every keyword that a grammar can hold.
var supported = map[string]string{
	"true":                  `true`,
	"empty":                 `{}`,
	"types":                 `{"type":["string","null","integer","boolean"]}`,
	"object":                `{"type":"object"}`,
	"array":                 `{"type":"array"}`,
	"required and optional": `{"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"string"},"c":{"type":"boolean"},"d":{"type":"null"}},"required":["c"],"additionalProperties":false}`,
	"all optional":          `{"type":"object","properties":{"a":{"const":1},"b":{"const":2},"c":{"const":3}},"additionalProperties":false}`,
	"additional":            `{"type":"object","properties":{"a":{"type":"integer"},"ab":{"type":"integer"}},"additionalProperties":{"type":"string"}}`,
	"required unlisted":     `{"type":"object","required":["x","y\"z"],"additionalProperties":{"type":"integer"}}`,
	"pattern properties":    `{"type":"object","properties":{"n1":{"type":"string"}},"patternProperties":{"^n":{"type":["string","integer"]},"1$":{"type":["string","boolean"]}},"additionalProperties":{"type":"null"}}`,
	"closed patterns":       `{"patternProperties":{"^S_":{"type":"string"},"^I_":{"type":"integer"}},"additionalProperties":false,"type":"object"}`,
	"property names":        `{"type":"object","propertyNames":{"pattern":"^[a-c]{1,3}$"},"properties":{"a":{},"zz":{}},"additionalProperties":{"type":"integer"}}`,
	"names of an enum":      `{"type":"object","propertyNames":{"enum":["x","yy",3]},"additionalProperties":{"type":"integer"}}`,
	"least properties":      `{"type":"object","properties":{"a":{},"b":{},"c":{"type":"integer"},"d":{}},"required":["b"],"minProperties":3}`,
	"most properties":       `{"type":"object","properties":{"a":{"const":1},"b":{"const":1},"c":{"const":1},"d":{"const":1}},"required":["d"],"maxProperties":2}`,
	"one more property":     `{"type":"object","properties":{"a":{"const":1}},"additionalProperties":{"const":2},"minProperties":2,"maxProperties":4}`,
	"a map that is filled":  `{"type":"object","additionalProperties":{"type":"integer"},"minProperties":1}`,
	"open by need":          `{"type":"object","properties":{"a":false},"minProperties":1}`,
	"false property":        `{"type":"object","properties":{"a":false,"b":{"type":"integer"}},"additionalProperties":false}`,
	"items":                 `{"type":"array","items":{"type":"integer"},"minItems":2,"maxItems":4}`,
	"least items":           `{"type":"array","items":{"type":"boolean"},"minItems":3}`,
	"no items":              `{"type":"array","maxItems":0}`,
	"many items":            `{"type":"array","items":{"const":1},"minItems":3,"maxItems":1203}`,
	"tuple":                 `{"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],"items":{"type":"null"}}`,
	"closed tuple":          `{"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],"items":false,"minItems":1}`,
	"open tuple":            `{"type":"array","prefixItems":[{"type":"integer"}],"minItems":3}`,
	"one unique item":       `{"type":"array","items":{"type":"integer"},"uniqueItems":true,"maxItems":1}`,
	"enum":                  `{"enum":["a","ab","abc\n\"é",1,1.5,null,true,{"a":[1,{}]},[]]}`,
	"enum and type":         `{"enum":["a",1,2.0,2.5,null],"type":["integer","string"],"minLength":1}`,
	"const":                 `{"const":{"b":"\u0001\\"}}`,
	"enum and const":        `{"enum":[1,2,3],"allOf":[{"const":2.0}]}`,
	"enum of objects":       `{"enum":[{"a":1},{"a":"x"},{"b":1},{}],"properties":{"a":{"type":"integer"}},"required":["a"]}`,
	"pattern":               `{"type":"string","pattern":"^(\\d{3}-)?[A-Z]+$"}`,
	"pattern anywhere":      `{"type":"string","pattern":"ab|c$"}`,
	"pattern escapes":       `{"type":"string","pattern":"^[\\w.+\\-\\]]\\s\\S\\D\\W.\\x41\\u0042\\u{1F600}\\cJ\\/[^\\d\\s]\\p{Lu}\\P{L}$"}`,
	"pattern special":       `{"type":"string","pattern":"^[\"\\\\\\n\\t\\x01\\x1f]{1,4}$"}`,
	"pattern lazy":          `{"type":"string","pattern":"^a*?b+?(?:c|(?<x>d))??e{2}f{1,}{$"}`,
	"pattern and lengths":   `{"type":"string","pattern":"^[a-z]+(-[a-z]+)*$","minLength":4,"maxLength":9}`,
	"two patterns":          `{"type":"string","allOf":[{"pattern":"^a"},{"pattern":"b$"},{"pattern":"c"}],"maxLength":12}`,
	"empty alternative":     `{"type":"string","pattern":"^(|a|bc)$"}`,
	"anchors inside":        `{"type":"string","pattern":"(^a|b)(c|d$)"}`,
	"lengths":               `{"type":"string","minLength":2,"maxLength":5}`,
	"long":                  `{"type":"string","minLength":700,"maxLength":1700}`,
	"least length":          `{"type":"string","minLength":1}`,
	"date":                  `{"type":"string","format":"date"}`,
	"time":                  `{"type":"string","format":"time"}`,
	"date-time":             `{"type":"string","format":"date-time"}`,
	"duration":              `{"type":"string","format":"duration"}`,
	"uuid":                  `{"type":"string","format":"uuid"}`,
	"email":                 `{"type":"string","format":"email"}`,
	"hostname":              `{"type":"string","format":"hostname"}`,
	"ipv4":                  `{"type":"string","format":"ipv4"}`,
	"ipv6":                  `{"type":"string","format":"ipv6"}`,
	"uri":                   `{"type":"string","format":"uri"}`,
	"uri-reference":         `{"type":"string","format":"uri-reference"}`,
	"json-pointer":          `{"type":"string","format":"json-pointer"}`,
	"relative-json-pointer": `{"type":"string","format":"relative-json-pointer"}`,
	"format and length":     `{"type":"string","format":"ipv4","maxLength":9}`,
	"integer":               `{"type":"integer"}`,
	"number":                `{"type":"number"}`,
	"integer bounds":        `{"type":"integer","minimum":-17,"maximum":1203}`,
	"integer from":          `{"type":"integer","minimum":97}`,
	"integer to":            `{"type":"integer","exclusiveMaximum":-3}`,
	"integer beside":        `{"type":"integer","exclusiveMinimum":9.5,"exclusiveMaximum":100}`,
	"integer powers":        `{"type":"integer","minimum":1000,"maximum":99999}`,
	"one integer":           `{"type":"integer","minimum":-4,"maximum":-4}`,
	"huge integer":          `{"type":"integer","minimum":123456789012345678901234567890,"maximum":123456789012345678901234567999}`,
	"number bounds":         `{"type":"number","minimum":-1.25,"maximum":10.075}`,
	"number in a unit":      `{"type":"number","exclusiveMinimum":0,"exclusiveMaximum":1}`,
	"number between":        `{"type":"number","minimum":3.1415,"maximum":3.1416}`,
	"number from":           `{"type":"number","exclusiveMinimum":2.5}`,
	"number to":             `{"type":"number","maximum":-0.001}`,
	"tiny number":           `{"type":"number","minimum":1e-9,"maximum":2.5e-9}`,
	"positive":              `{"type":"number","minimum":0}`,
	"one number":            `{"type":"number","minimum":0.5,"maximum":0.5}`,
	"zero":                  `{"type":"number","minimum":0,"maximum":0}`,
	"anyOf":                 `{"anyOf":[{"type":"string","maxLength":3},{"type":"integer"},{"type":"array","items":{"type":"null"}}]}`,
	"anyOf and siblings":    `{"type":"object","properties":{"a":{"type":"string"},"b":{"type":"integer"}},"anyOf":[{"required":["a"]},{"required":["b"]}],"additionalProperties":false}`,
	"oneOf of types":        `{"oneOf":[{"type":"string"},{"type":"number"},{"type":"null"}]}`,
	"oneOf of kinds": `{"oneOf":[{"type":"object","properties":{"kind":{"const":"a"},"x":{"type":"integer"}},"required":["kind"]},
		{"type":"object","properties":{"kind":{"const":"b"},"y":{"type":"string"}},"required":["kind","y"]}]}`,
	"oneOf of ranges":  `{"oneOf":[{"type":"integer","maximum":3},{"type":"integer","exclusiveMinimum":3}]}`,
	"oneOf of closed":  `{"oneOf":[{"type":"object","properties":{"a":{}},"required":["a"],"additionalProperties":false},{"type":"object","properties":{"b":{}},"required":["b"],"additionalProperties":false}]}`,
	"oneOf of lengths": `{"oneOf":[{"type":"string","maxLength":2},{"type":"string","minLength":3,"maxLength":4},{"type":"string","pattern":"^a....$"}]}`,
	"allOf":            `{"allOf":[{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]},{"properties":{"a":{"minimum":3},"b":{"type":"string"}}}],"properties":{"a":{"maximum":5}}}`,
	"allOf of anyOf":   `{"allOf":[{"anyOf":[{"minimum":3},{"maximum":-3}]},{"anyOf":[{"minimum":10},{"maximum":5}]}],"type":"integer"}`,
	"allOf and closed": `{"allOf":[{"properties":{"a":{"type":"integer"},"b":{"type":"integer"}},"additionalProperties":false},{"properties":{"a":{},"c":{}}}],"type":"object"}`,
	"unevaluated": `{"type":"object","allOf":[{"properties":{"a":{"type":"integer"}}},{"anyOf":[{"properties":{"b":{"type":"string"}},"required":["b"]},{"properties":{"c":{"type":"null"}}}]}],
		"properties":{"d":{"type":"boolean"}},"unevaluatedProperties":false}`,
	"unevaluated schema": `{"type":"object","$ref":"#/$defs/x","unevaluatedProperties":{"type":"integer"},"$defs":{"x":{"properties":{"a":{"type":"string"}},"patternProperties":{"^p":{"type":"null"}}}}}`,
	"unevaluated items":  `{"type":"array","allOf":[{"prefixItems":[{"type":"integer"}]},{"prefixItems":[{},{"type":"string"}]}],"unevaluatedItems":{"type":"null"}}`,
	"recursion":          `{"type":"object","properties":{"left":{"$ref":"#"},"value":{"type":"integer"},"right":{"$ref":"#"}},"required":["value"],"additionalProperties":false}`,
	"list":               `{"$ref":"#/$defs/list","$defs":{"list":{"anyOf":[{"type":"null"},{"type":"object","properties":{"head":{"type":"integer"},"tail":{"$ref":"#/$defs/list"}},"required":["head","tail"],"additionalProperties":false}]}}}`,
	"expression": `{"$defs":{"e":{"oneOf":[
		{"type":"object","properties":{"op":{"const":"num"},"v":{"type":"number"}},"required":["op","v"],"additionalProperties":false},
		{"type":"object","properties":{"op":{"const":"neg"},"e":{"$ref":"#/$defs/e"}},"required":["op","e"],"additionalProperties":false},
		{"type":"object","properties":{"op":{"enum":["add","mul"]},"l":{"$ref":"#/$defs/e"},"r":{"$ref":"#/$defs/e"}},"required":["op","l","r"],"additionalProperties":false}]}},"$ref":"#/$defs/e"}`,
	"anchors":      `{"type":"array","items":{"$ref":"#it"},"$defs":{"a":{"$anchor":"it","type":"integer","minimum":5,"maximum":7}}}`,
	"resources":    `{"$id":"https://example.com/root.json","type":"array","items":{"$ref":"item.json#/$defs/v"},"$defs":{"x":{"$id":"item.json","$defs":{"v":{"$ref":"#/$defs/w"},"w":{"type":"boolean"}}}}}`,
	"odd pointers": `{"$defs":{"a/b~c d%":{"type":"boolean"}},"type":"array","items":{"$ref":"#/$defs/a~1b~0c%20d%25"}}`,
	"annotations":  `{"$schema":"https://json-schema.org/draft/2020-12/schema","title":"t","description":"d","default":1,"examples":[1],"deprecated":true,"readOnly":true,"writeOnly":false,"$comment":"c","contentMediaType":"text/plain","x-order":1,"type":"integer"}`,
	"odd names":    `{"type":"object","properties":{"":{"type":"null"},"é\"\\\n":{"type":"null"},"日本":{"type":"null"}},"required":["","é\"\\\n"],"additionalProperties":false}`,
}

func TestDocumentsAreValid(t *testing.T) {
	for name, source := range supported {
		t.Run(name, func(t *testing.T) { check(t, source, 60) })
	}
}

// numbered repeats a text, with numbers in the place of #.
func numbered(before, each, after string, n int) string {
	var parts []string
	for i := range n {
		parts = append(parts, strings.ReplaceAll(each, "#", strconv.Itoa(i)))
	}
	return before + strings.Join(parts, ",") + after
}

// TestWide has more of everything than usual.
func TestWide(t *testing.T) {
	check(t, numbered(`{"type":"object","properties":{`, `"p#":{"const":#}`, `},"required":["p150"],"additionalProperties":{"const":"x"}}`, 200), 20)
	check(t, numbered(`{"enum":[`, `"value #"`, `]}`, 3000), 50)
}

// TestOpenAPI has keywords that the validator does not know.
func TestOpenAPI(t *testing.T) {
	for source, want := range map[string]string{
		`{"type":"integer","nullable":true,"minimum":1,"maximum":2}`:        `{"enum":[1,2,null]}`,
		`{"type":"integer","format":"int32","minimum":2147483646}`:          `{"enum":[2147483646,2147483647]}`,
		`{"type":"integer","format":"uint64","maximum":0}`:                  `{"const":0}`,
		`{"type":"number","format":"double","minimum":2,"maximum":2}`:       `{"const":2}`,
		`{"type":"integer","format":"int64","minimum":9223372036854775807}`: `{"const":9223372036854775807}`,
	} {
		grammar, err := Grammar([]byte(source))
		require.NoError(t, err)
		schema, err := oracle(want)
		require.NoError(t, err)
		g, r := gbnftest.Read(t, grammar), rand.New(rand.NewPCG(1, 2))
		for range 50 {
			v, err := jsonschema.UnmarshalJSON(strings.NewReader(g.Document(r)))
			require.NoError(t, err)
			require.NoError(t, schema.Validate(v), source)
		}
	}
}

func TestRefuses(t *testing.T) {
	for _, c := range []struct{ source, pointer, keyword, problem string }{
		{`{"type":"number","multipleOf":5}`, "/multipleOf", "multipleOf", "steps"},
		{`{"properties":{"a":{"items":{"not":{}}}}}`, "/properties/a/items/not", "not", "exclude"},
		{`{"properties":{"a/b~":{"contains":{}}}}`, "/properties/a~1b~0/contains", "contains", "item"},
		{`{"if":{}}`, "/if", "if", "anyOf"},
		{`{"dependentRequired":{}}`, "/dependentRequired", "dependentRequired", "anyOf"},
		{`{"type":"array","uniqueItems":true}`, "/uniqueItems", "uniqueItems", "compare"},
		{`{"allOf":[{"foo":1}]}`, "/allOf/0/foo", "foo", "not a keyword"},
		{`{"items":[{}]}`, "/items", "items", "prefixItems"},
		{`{"type":"text"}`, "/type", "type", `"text" is no type`},
		{`{"type":"string","format":"regex"}`, "/format", "format", "date-time"},
		{`{"pattern":"a(?=b)"}`, "/pattern", "pattern", "look"},
		{`{"pattern":"(a)\\1"}`, "/pattern", "pattern", "refer back"},
		{`{"pattern":"\\ba"}`, "/pattern", "pattern", "boundaries"},
		{`{"pattern":"(a"}`, "/pattern", "pattern", "closed"},
		{`{"pattern":"a)"}`, "/pattern", "pattern", "opened"},
		{`{"pattern":"[b-a]"}`, "/pattern", "pattern", "backwards"},
		{`{"pattern":"*"}`, "/pattern", "pattern", "repeat"},
		{`{"patternProperties":{"[":{}}}`, "/patternProperties/[", "patternProperties", "closed"},
		{`{"minLength":-1}`, "/minLength", "minLength", "whole number"},
		{`{"minimum":"1"}`, "/minimum", "minimum", "number"},
		{`{"exclusiveMinimum":true}`, "/exclusiveMinimum", "exclusiveMinimum", "number"},
		{`{"type":"string","maxLength":300000}`, "", "maxLength", "250000"},
		{`{"type":"string","pattern":"a","maxLength":9000}`, "", "maxLength", "beside a pattern"},
		{`{"$ref":"#/$defs/x"}`, "/$ref", "$ref", "leads nowhere"},
		{`{"$ref":"https://example.com/x"}`, "/$ref", "$ref", "outside"},
		{`{"$ref":"#x"}`, "/$ref", "$ref", "anchor"},
		{`{"$ref":"#"}`, "", "", "without end"},
		{`{"anyOf":[{"type":"string"},{"$ref":"#"}]}`, "", "", "without end"},
		{`{"$dynamicRef":"#x"}`, "/$dynamicRef", "$dynamicRef", "$ref"},
		{`{"oneOf":[{"type":"integer"},{"type":"number"}]}`, "/oneOf", "oneOf", "case 1 and case 2"},
		{`{"oneOf":[{"required":["a"]},{"required":["b"]}]}`, "/oneOf", "oneOf", "use anyOf"},
		{`false`, "", "", "nothing satisfies"},
		{`{"type":"string","minLength":3,"maxLength":2}`, "", "", "nothing satisfies"},
		{`{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}`, "", "", "nothing satisfies"},
		{`{"type":"object","additionalProperties":{},"minProperties":2}`, "", "minProperties", "apart"},
		{`{"enum":[1],"type":"string"}`, "", "", "nothing satisfies"},
		{`{"minimum":1e999}`, "/minimum", "minimum", "digits"},
		{`{"type":"integer","type":"string"}`, "", "type", "twice"},
		{`{"a":1`, "", "", "not JSON"},
		{`{} {}`, "", "", "goes on"},
		{`3`, "", "", "not 3"},
		{`{"nullable":true}`, "/nullable", "nullable", "anyOf"},
	} {
		_, err := Grammar([]byte(c.source))
		var e *Error
		require.ErrorAs(t, err, &e, c.source)
		require.ErrorIs(t, err, ErrSchema)
		require.Equal(t, c.pointer, e.Pointer, c.source)
		require.Equal(t, c.keyword, e.Keyword, c.source)
		require.Contains(t, e.Problem, c.problem, c.source)
	}
}

// TestHostile has schemas that are small, and whose grammars or conversions would
// not be.
func TestHostile(t *testing.T) {
	chain := func(link string, n int) string {
		var b strings.Builder
		b.WriteString(`{"$ref":"#/$defs/d0","$defs":{`)
		for i := range n {
			at := func(s string) string {
				return strings.ReplaceAll(s, "NEXT", `{"$ref":"#/$defs/d`+strconv.Itoa(i+1)+`"}`)
			}
			b.WriteString(`"d` + strconv.Itoa(i) + `":` + at(link) + `,`)
		}
		return b.String() + `"d` + strconv.Itoa(n) + `":{"type":"string"}}}`
	}
	for name, source := range map[string]string{
		"doubling anyOf":      chain(`{"anyOf":[NEXT,NEXT]}`, 60),
		"doubling allOf":      chain(`{"allOf":[NEXT,NEXT]}`, 60),
		"doubling arrays":     chain(`{"anyOf":[{"type":"array","items":NEXT},{"type":"array","items":NEXT,"maxItems":3}]}`, 40),
		"tripling tuples":     chain(`{"type":"array","prefixItems":[NEXT,NEXT,NEXT]}`, 60),
		"product of choices":  numbered(`{"allOf":[`, `{"anyOf":[{"required":["a#"]},{"required":["b#"]}]}`, `]}`, 30),
		"endless twins":       `{"$defs":{"n":{"anyOf":[{"type":"array","items":{"$ref":"#/$defs/n"}},{"type":"array","items":{"$ref":"#/$defs/n"},"maxItems":2}]}},"$ref":"#/$defs/n"}`,
		"counting automaton":  `{"type":"string","pattern":"a.{30}$"}`,
		"repeated repetition": `{"type":"string","pattern":"^((a{100}){100}){100}$"}`,
		"nested stars":        `{"type":"string","pattern":"^(((((((a*)*)*)*)*)*)*)*b$"}`,
		"many patterns":       numbered(`{"type":"object","patternProperties":{`, `"#.*x":{"minimum":#}`, `}}`, 24),
		"many lengths":        numbered(`{"anyOf":[`, `{"type":"string","maxLength":24#}`, `]}`, 200),
		"nested items":        strings.Repeat(`{"items":`, 120) + `{}` + strings.Repeat(`}`, 120),
		"too deep":            strings.Repeat(`{"items":`, 5000) + `{}` + strings.Repeat(`}`, 5000),
		"wide object":         numbered(`{"type":"object","properties":{`, `"p#":{}`, `}}`, 3000),
		"counted object":      numbered(`{"type":"object","minProperties":300,"properties":{`, `"p#":{}`, `}}`, 600),
		"wide oneOf":          numbered(`{"oneOf":[`, `{"type":"object","properties":{"k":{"const":"#"}},"required":["k"]}`, `]}`, 250),
		"wide enum":           numbered(`{"enum":[`, `"value #"`, `]}`, 8000),
		"big items":           `{"type":"array","minItems":200000,"items":{"type":"array","minItems":200000,"items":{"type":"string","minLength":200000}}}`,
		"long number":         `{"type":"number","minimum":` + strings.Repeat("1", 390) + `e-390,"maximum":` + strings.Repeat("2", 390) + `e-380}`,
		"unicode":             `{"type":"string","pattern":"^(\\p{L}|\\p{N}|\\p{Lu}|\\p{Ll}|\\p{Lo})+(\\P{L}\\p{L}){20}$"}`,
		"ipv6 and more":       `{"type":"string","format":"ipv6","allOf":[{"format":"ipv6"},{"pattern":"(1.*2|3.*4).*5"},{"pattern":"6|7"}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			grammar, err := Grammar([]byte(source))
			t.Logf("%v, %d bytes, %.300v", time.Since(start), len(grammar), err)
			require.Less(t, time.Since(start), 30*time.Second, "a bound against hanging, not a measurement")
			require.Less(t, len(grammar), 4<<20)
			if err == nil {
				return
			}
			require.ErrorIs(t, err, ErrSchema)
			require.True(t, errors.As(err, new(*Error)))
		})
	}
}
