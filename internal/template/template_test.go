package template

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// bracketed is a text with what was typed in brackets.
func bracketed(t Text) string {
	var b strings.Builder
	inside := false
	for i := range len(t.s) {
		if typed := t.Typed(i, i+1); typed != inside {
			b.WriteByte("]["[map[bool]int{true: 1}[typed]])
			inside = typed
		}
		b.WriteByte(t.s[i])
	}
	if inside {
		b.WriteByte(']')
	}
	return b.String()
}

// render fills a template in with a typed x, y and list.
func render(source string) (Text, error) {
	t, err := Parse(source)
	if err != nil {
		return Text{}, err
	}
	vars := new(Dict)
	vars.Set("x", Typed(" Ab c\n"))
	vars.Set("y", Typed("<|end|>"))
	vars.Set("list", []any{Typed("p"), "q", Typed("r")})
	call, err := FromJSON([]byte(`{"k": "v\"w", "n": 1}`), true)
	if err != nil {
		return Text{}, err
	}
	vars.Set("call", call)
	return renderAt(t, vars, time.Unix(0, 0).UTC())
}

// TestTypedThroughTheLanguage follows typed texts through what templates do.
func TestTypedThroughTheLanguage(t *testing.T) {
	for source, want := range map[string]string{
		"a{{ x }}b":                      "a[ Ab c\n]b",
		"{{ x | trim }}":                 "[Ab c]",
		"{{ x.strip() + '!' }}":          "[Ab c]!",
		"{{ '<' ~ x[1:3] ~ '>' }}":       "<[Ab]>",
		"{{ x[1] }}{{ 'z' }}":            "[A]z",
		"{{ x | upper | trim }}":         "[AB C]",
		"{{ x.split()[1] }}/":            "[c]/",
		"{{ x.replace('b', '-') }}.":     "[ A]-[ c\n].",
		"{{ x.replace(' ', y) | trim }}": "[<|end|>Ab<|end|>c]",
		"{{ '<|' + y[2:5] + '|>' }}":     "<|[end]|>",
		"{{ y | reverse }}o":             "[>|dne|<]o",
		"{{ list | join(', ') }}":        "[p], q, [r]",
		"{{ list }}":                     "['[p]', 'q', '[r]']",
		"{{ list | tojson }}":            `["[p]", "q", "[r]"]`,
		"{{ call | tojson }}":            `{"[k]": "[v\"w]", "[n]": 1}`,
		"{% for k, v in call.items() %}{{ k }}={{ v }};{% endfor %}":         `[k]=[v"w];[n]=1;`,
		"{% set z %}<{{ y }}>{% endset %}{{ z }}":                            "<[<|end|>]>",
		"{% macro f(a) %}({{ a }}){% endmacro %}{{ f(y) }}":                  "([<|end|>])",
		"{% filter lower %}A{{ x }}{% endfilter %}":                          "a[ ab c\n]",
		"{{ '%s-%s' % (y, 'o') }}{{ '{}'.format(y) }}":                       "[<|end|>]-o[<|end|>]",
		"{{ x | indent(2, true) }}":                                          "  [ Ab c]\n",
		"{{ y * 2 }}{{ y | e }}":                                             "[<|end|><|end|>&lt;|end|&gt;]",
		"{{ x.lines is defined }}{{ x.splitlines()[0] | title }}":            "False[ Ab C]",
		"{{ y.partition('|')[1] }}{{ y | truncate(5, true, '', 0) }}":        "[|<|end]",
		"{{ y | default('d') }}{{ none | default(y) }}{{ y if y else 'o' }}": "[<|end|>]None[<|end|>]",
	} {
		text, err := render(source)
		require.NoError(t, err, source)
		require.Equal(t, want, bracketed(text), source)
	}
}

func TestErrorsSayWhere(t *testing.T) {
	for source, want := range map[string]string{
		"\n\n{{ x | nope }}":            `line 3: no filter named "nope"`,
		"{{ x is nope }}":               `line 1: no test named "nope"`,
		"a\n{% if x %}\nb":              "line 3: no elif for the tag in line 2",
		"a\n{% for a in x %}\nb":        "line 3: no endfor for the tag in line 2",
		"{% else %}":                    `line 1: unknown tag "else"`,
		"{{ x":                          "line 1: a tag without end",
		"\n{# x":                        "line 2: a comment without end",
		"{% raw %}":                     "line 1: raw without endraw",
		"{{ (x] }}":                     `line 1: unexpected "]"`,
		"{{ 1 ? 2 }}":                   "line 1: unexpected '?'",
		"{{ x. }}":                      "line 1: unexpected }}, want a name",
		"{{ }}":                         "line 1: unexpected }}, want an expression",
		"\n{{ no.thing }}":              "line 2: no is undefined",
		"{{ x.no.thing }}":              `line 1: "no" of a str is undefined`,
		"{{ 1 + 'a' }}":                 "line 1: unsupported operands for +: 'int' and 'str'",
		"{{ 1 // 0 }}{{ 1 }}":           "line 1: integer division or modulo by zero",
		"{{ 9223372036854775807 + 1 }}": "line 1: a number of over 64 bits",
		"{{ list.append(1) }}":          "line 1: append is not allowed: a template changes no objects",
		"{{ call.update({}) }}":         "line 1: update is not allowed: a template changes no objects",
		"{% set x.y = 1 %}":             "line 1: cannot assign attribute on non-namespace object",
		"{% set ns = namespace() %}{% set ns.__a = 1 %}": `line 1: underscore-prefixed attributes cannot be stored on a namespace: "__a"`,
		"{% include 'x' %}":       "line 1: a chat template may not use include",
		"{{ range(100001) }}":     "line 1: a range of over 100000 numbers",
		"{{ 'a' * 99999999 }}":    "line 1: the text is longer than 16 MiB",
		"{{ [1] * 99999999 }}":    "line 1: a list of over 1048576 items",
		"{{ 2 ** 99 }}":           "line 1: a number of over 64 bits",
		"{{ x() }}":               "line 1: 'str' object is not callable",
		"{{ '{:>5}'.format(1) }}": "line 1: the format {:>5} is not supported",
		"{{ [].index(1) }}":       "line 1: the list does not have it",
		"{% for a in range(9999) %}{% for a in range(9999) %}{% endfor %}{% endfor %}":                                                                           "line 1: the template has no end",
		"{% for a in range(9999) if range(9999) | select('odd') | list %}{% endfor %}":                                                                           "line 1: the template has no end",
		"{% set ns = namespace(a=[1]) %}{% for a in range(99) %}{% set ns.a = ns.a + ns.a %}{% endfor %}":                                                        "line 1: a list of over 1048576 items",
		"{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}": "line 1: a comparison of over 1048576 items",
		"{% set ns = namespace(a=(1, 2)) %}{% for i in range(60) %}{% set ns.a = (ns.a, ns.a) %}{% endfor %}{{ {ns.a: 1} }}":                                     "line 1: unhashable type: tuple",
		"{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a | tojson }}":                                    "line 1: the text is longer than 16 MiB",
		"{% set ns = namespace(a=[1]) %}{% for i in range(300) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a }}":                                                  "line 1: a value nested deeper than 200 levels",
	} {
		_, err := render(source)
		wrong := new(Error)
		require.ErrorAs(t, err, &wrong, source)
		require.Equal(t, want, err.Error(), source)
	}
	_, err := render("{{ raise_exception('no ' ~ 1) }}")
	refused := new(Refusal)
	require.ErrorAs(t, err, &refused)
	require.Equal(t, "no 1", refused.Message)
}

func TestFromJSON(t *testing.T) {
	for _, broken := range []string{"", "{", "[1,]", `{"a"}`, "1 2", `"a`, "nul", strings.Repeat("[", 100000)} {
		_, err := FromJSON([]byte(broken), true)
		require.Error(t, err, broken)
	}
	v, err := FromJSON([]byte(`{"z": 12345678901234567890, "a": -1.50, "b": 1e3, "c": 7}`), false)
	require.NoError(t, err)
	require.Equal(t, "{'z': 12345678901234567890, 'a': -1.5, 'b': 1000.0, 'c': 7}", repr(v).s)
}

// FuzzRender has templates of any kind: they end in a text or in an error.
func FuzzRender(f *testing.F) {
	for _, source := range []string{"{{ x }}", "{% for a in list %}{{ loop.index }}{% endfor %}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
		"{{ call | tojson(indent=2) }}", "{%- set ns = namespace(a=1) -%}{{ ns.a }}", "{{ x[::-1] ~ y[1:] }}", "{{ list | map('upper') | join }}",
		"{{ '%5.1f' % 3 }}", "{% call(a) f() %}{% endcall %}", "{{ x.split(y, 2) }}{{ 1 if x else 2 }}", "{% raw %}{{{% endraw %}", "{{ '\xff\xfe'.replace('', '-')[::-1] | upper | tojson }}{{ '\xff' | title }}"} {
		f.Add(source)
	}
	f.Fuzz(func(t *testing.T, source string) {
		text, err := render(source)
		if err != nil {
			require.NotContains(t, err.Error(), internalError)
			wrong, refused := new(Error), new(Refusal)
			require.True(t, errors.As(err, &wrong) || errors.As(err, &refused))
			return
		}
		require.True(t, text.from == "" || len(text.from) == len(text.s))
	})
}

func BenchmarkRender(b *testing.B) {
	t, err := Parse(`{% for m in list %}{{ '<|im_start|>user\n' + m | trim + '<|im_end|>\n' }}{% endfor %}`)
	require.NoError(b, err)
	vars := new(Dict)
	vars.Set("list", []any{Typed(strings.Repeat("word ", 400)), Typed("x")})
	for b.Loop() {
		_, err := t.Render(vars)
		require.NoError(b, err)
	}
}
