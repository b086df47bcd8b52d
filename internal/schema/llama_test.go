package schema

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/gbnftest"
)

// TestLlama has llama.cpp follow documents that are known to be valid, and refuse
// those that are not.
func TestLlama(t *testing.T) {
	r := gbnftest.NewRig(t)
	for _, c := range []struct {
		source  string
		yes, no string // documents, with " | " between
	}{
		{`{}`, "1 | \"a\" | {\"a\": [1, {\"b\": null}], \"c\": -1.5e+10} | [] | { } | true", "tru | {\"a\"} | 01 | [1,] | \"a"},
		{`{"type":"object","properties":{"name":{"type":"string"},"age":{"type":"integer","minimum":0,"maximum":150},"tags":{"type":"array","items":{"type":"string"}}},"required":["name","age"]}`,
			"{\"name\":\"Ann\",\"age\":31} | {\n  \"name\": \"日本 \\u00e9\\n\",\n  \"age\": 150,\n  \"tags\": [\"a\", \"b\"]\n}",
			"{} | {\"name\":\"Ann\"} | {\"name\":\"Ann\",\"age\":151} | {\"name\":\"Ann\",\"age\":-1} | {\"age\":3,\"name\":\"Ann\"} | {\"name\":\"Ann\",\"age\":3,\"more\":1} | {\"name\":\"Ann\",\"age\":3,}"},
		{`{"type":"integer","minimum":-17,"maximum":1203}`, "-17 | -9 | 0 | 7 | 99 | 1000 | 1203", "-18 | 1204 | 2000 | 1.0 | 00"},
		{`{"type":"number","exclusiveMinimum":0.5,"maximum":10}`, "0.51 | 0.6 | 9.999 | 10 | 10.0 | 1", "0.5 | 0.50 | 0.49 | 10.01 | 11 | -1"},
		{`{"type":"string","pattern":"^[a-z]+@[a-z]+\\.(com|org)$"}`, "\"a@b.com\" | \"abc@xyz.org\"", "\"a@b.net\" | \"@b.com\" | \"a@b.comm\""},
		{`{"type":"string","minLength":2,"maxLength":3}`, "\"ab\" | \"日本語\" | \"\\ud83d\\ude00\\\"\" | \"👩‍🚀\"", "\"a\" | \"abcd\" | \"\\ud83d\\ude00\" | \"\\ud83dab\""},
		{`{"type":"string","format":"date-time"}`, "\"2024-02-29T23:59:59.5Z\" | \"2000-02-29T00:00:00+02:00\"", "\"2023-02-29T00:00:00Z\" | \"1900-02-29T00:00:00Z\" | \"2024-04-31T00:00:00Z\" | \"2024-01-01T24:00:00Z\""},
		{`{"type":"string","format":"uri"}`, "\"https://example.com:8080/a/b%20c?q=1&r=2#frag\"", "\"example.com\" | \"https://exa mple.com\" | \"https://a/%zz\""},
		{`{"type":"string","format":"email"}`, "\"jane.doe+x@mail.example.org\"", "\"jane\" | \"jane@localhost\" | \".a@b.c\""},
		{`{"type":"string","format":"ipv6"}`, "\"2001:db8::1\" | \"::\" | \"1:2:3:4:5:6:7:8\" | \"::1\"", "\"1:2:3\" | \"1::2::3\" | \"1:2:3:4:5:6:7:8:9\""},
		{`{"enum":["red","rose","green",1,1.5,null]}`, "\"red\" | \"rose\" | \"green\" | 1 | 1.5 | null", "\"ro\" | \"re\" | 2 | 1. | "},
		{`{"type":"array","prefixItems":[{"type":"integer"},{"type":"boolean"}],"items":{"type":"null"},"minItems":1,"maxItems":4}`, "[1] | [1,true] | [1, false, null, null]", "[] | [true] | [1,true,null,null,null] | [1,true,1]"},
		{supported["expression"], `{"op":"add","l":{"op":"num","v":1},"r":{"op":"neg","e":{"op":"num","v":-2.5e3}}}`, `{"op":"add","l":{"op":"num","v":1}}` + " | " + `{"op":"num","e":{"op":"num","v":1}}`},
		{supported["pattern properties"], `{"n1":"x","n2":5,"a1":true,"b":null}`, `{"n1":5}` + " | " + `{"n2":true}` + " | " + `{"b":1}`},
		{supported["most properties"], `{"d":1}` + " | " + `{"b":1,"d":1}`, `{"b":1}` + " | " + `{"a":1,"b":1,"d":1}`},
		{supported["oneOf of kinds"], `{"kind":"a","x":1}` + " | " + `{"kind":"b","y":"1"}`, `{"kind":"a","y":"1"}` + " | " + `{"kind":"b"}`},
		{`{"type":"string","maxLength":1100}`, `"` + strings.Repeat("x", 1100) + `"`, `"` + strings.Repeat("x", 1101) + `"`},
	} {
		grammar, err := Grammar([]byte(c.source))
		require.NoError(t, err)
		schema, err := oracle(c.source)
		require.NoError(t, err)
		for text := range strings.SplitSeq(c.yes, " | ") {
			v, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
			require.NoError(t, err, text)
			require.NoError(t, schema.Validate(v), "%s: %s", c.source, text)
			require.True(t, r.Accepts(t, grammar, text), "%s: %s by\n%s", c.source, text, grammar)
		}
		for text := range strings.SplitSeq(c.no, " | ") {
			require.False(t, r.Accepts(t, grammar, text), "%s: %s by\n%s", c.source, text, grammar)
		}
	}
	// A hundred cases that hold each other.
	cases := numbered(`{"anyOf":[`, `{"type":"object","properties":{"kind":{"const":"k#"},"v":{"$ref":"ROOT"}},"required":["kind"]}`, `]}`, 100)
	grammar, err := Grammar([]byte(strings.ReplaceAll(cases, "ROOT", "#")))
	require.NoError(t, err)
	require.True(t, r.Accepts(t, grammar, `{"kind":"k7","v":{"kind":"k77","v":{"kind":"k0"}}}`))
	require.False(t, r.Accepts(t, grammar, `{"kind":"k7","v":{"kind":"k100"}}`))
	grammar, err = Grammar([]byte(`{"type":"object","properties":{"a":{"type":"array","items":{"type":"integer"}}}}`))
	require.NoError(t, err)
	require.True(t, r.Accepts(t, grammar, "{\n  \"a\": [\n    1,\n    2\n  ]\n}"), "the usual indentation")
}

// TestLlamaParses has llama.cpp take every grammar, and agree about what it writes.
func TestLlamaParses(t *testing.T) {
	r := gbnftest.NewRig(t)
	for name, source := range supported {
		grammar, err := Grammar([]byte(source))
		require.NoError(t, err)
		g, random := gbnftest.Read(t, grammar), rand.New(rand.NewPCG(3, 4))
		for range 2 {
			text := g.Document(random)
			require.True(t, r.Accepts(t, grammar, text), "%s: %q by\n%s", name, text, grammar)
		}
	}
}

// TestText has free text that goes on until one of its ends.
func TestText(t *testing.T) {
	r := gbnftest.NewRig(t)
	grammar := func(stop bool) string {
		b := NewBuilder(Notation{})
		name, err := b.Text(stop, End{"<tool>", "my-rule"}, End{"<<end", ""}, End{"aab", "my-rule"})
		require.NoError(t, err)
		b.Define("my-rule", `"!"`)
		b.Define("root", name)
		grammar, err := b.Grammar()
		require.NoError(t, err)
		return grammar
	}
	must, may := grammar(false), grammar(true)
	for _, text := range []string{"<tool>!", "some\ntext <to <tool>!", "<<<end", "<<tool>!", "aaab!", "日本 aa<aab!"} {
		require.True(t, r.Accepts(t, must, text), text)
		require.True(t, r.Accepts(t, may, text), text)
	}
	for _, text := range []string{"", "!", "text", "<tool"} {
		require.False(t, r.Accepts(t, must, text), text)
		require.True(t, r.Accepts(t, may, text), text)
	}
	for _, text := range []string{"<tool>", "<tool>x", "<tool><tool>!", "aab aab!", "<<end<tool>!", "<<end!"} {
		require.False(t, r.Accepts(t, must, text), text)
		require.False(t, r.Accepts(t, may, text), text)
	}
}

// TestNotation has values in the notation of Gemma's tool calls.
func TestNotation(t *testing.T) {
	r := gbnftest.NewRig(t)
	b := NewBuilder(Notation{Quote: `<|"|>`})
	name, err := b.Add([]byte(`{"type":"object","properties":{"city":{"type":"string"},"code":{"type":"string","pattern":"^[a-z<]+$","maxLength":4},"unit":{"enum":["C","F",1]},"at":{"type":"array","items":{"type":"number"}}},"required":["city"],"additionalProperties":{"type":"null"}}`))
	require.NoError(t, err)
	b.Define("root", name)
	grammar, err := b.Grammar()
	require.NoError(t, err)
	for _, text := range []string{`{city:<|"|>Oslo "x"<|"|>}`, `{city:<|"|><|x<|"|>,code:<|"|>a<<<|"|>,unit:<|"|>F<|"|>,at:[1,-2.5],more:null}`, `{city:<|"|><|"|>,unit:1}`} {
		require.True(t, r.Accepts(t, grammar, text), "%s by\n%s", text, grammar)
	}
	for _, text := range []string{`{city:"Oslo"}`, `{code:<|"|>a<|"|>}`, `{city:<|"|>a<|"|>,code:<|"|>abcde<|"|>}`, `{city:<|"|>a<|"|>,city:null}`, `{city:<|"|>a<|"|>b<|"|>}`} {
		require.False(t, r.Accepts(t, grammar, text), "%s by\n%s", text, grammar)
	}
}

// TestTagged has arguments with tags around them.
func TestTagged(t *testing.T) {
	r := gbnftest.NewRig(t)
	b := NewBuilder(Notation{})
	name, err := b.AddTagged([]byte(`{"properties":{"city":{"type":"string"},"code":{"type":"string","pattern":"^[a-z<]+$"},"days":{"type":"integer","minimum":1},"at":{"type":"array","items":{"type":"string"}},"unit":{"enum":["C","F",null]}},"required":["city","days"]}`),
		Tags{Open: "<p=", Named: ">\n", Close: "\n</p>\n"})
	require.NoError(t, err)
	b.Define("root", name)
	grammar, err := b.Grammar()
	require.NoError(t, err)
	for _, text := range []string{"<p=city>\nOslo \"x\" <b>\n\n</p>\n<p=days>\n12\n</p>\n", "<p=city>\n\n</p>\n<p=code>\na<b\n</p>\n<p=days>\n1\n</p>\n<p=at>\n[\"a\"]\n</p>\n<p=unit>\nnull\n</p>\n"} {
		require.True(t, r.Accepts(t, grammar, text), "%s by\n%s", text, grammar)
	}
	for _, text := range []string{"", "<p=days>\n1\n</p>\n", "<p=city>\nx\n</p>\n<p=days>\n0\n</p>\n", "<p=city>\nx\n</p>\n<p=code>\nA\n</p>\n<p=days>\n1\n</p>\n"} {
		require.False(t, r.Accepts(t, grammar, text), "%s by\n%s", text, grammar)
	}

	b = NewBuilder(Notation{Python: true})
	name, err = b.AddTagged([]byte(`{"properties":{"a":{"type":["boolean","null"]},"b":{"type":"array","items":{"enum":[true,"x"]}}},"required":["b"]}`), Tags{Named: "=", Between: ", "})
	require.NoError(t, err)
	b.Define("root", `"f\x28" `+name+` "\x29"`)
	grammar, err = b.Grammar()
	require.NoError(t, err)
	require.True(t, r.Accepts(t, grammar, `f(a=None, b=[True, "x"])`))
	require.True(t, r.Accepts(t, grammar, `f(b=[])`))
	require.False(t, r.Accepts(t, grammar, `f(a=null, b=[])`))
	require.False(t, r.Accepts(t, grammar, `f(a=True)`))
}
