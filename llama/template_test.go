package llama_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
)

// withTemplate opens a model with this chat template, "" for none.
func withTemplate(t *testing.T, template string) *llama.Model {
	t.Helper()
	return llamatest.Open(t, llamatest.Rewrite(t, llamatest.Tiny(t, 1), func(meta *gguf.Metadata) {
		if meta.Delete("tokenizer.chat_template"); template != "" {
			meta.Set("tokenizer.chat_template", template)
		}
	}))
}

var (
	question     = []llama.Message{{Role: "user", Content: " Hi! "}}
	conversation = []llama.Message{
		{Role: "system", Content: "Be brief."}, {Role: "user", Content: "One?"},
		{Role: "assistant", Content: "Two."}, {Role: "user", Content: "Three?"},
	}
)

// Formats of well-known families, in words of our own.
const (
	chatML = `{%- for m in messages -%}
{{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}`

	headers = `{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set first = messages[0].content | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set first = '' %}
    {%- set rest = messages %}
{%- endif %}
{%- if first %}
{{- '<|start_header_id|>system<|end_header_id|>\n\n' ~ first ~ '<|eot_id|>' }}
{%- endif %}
{%- for m in rest %}
    {{- '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\n\n' ~ m.content.strip() ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}`

	turns = `{%- if messages[0]['role'] == 'system' -%}
{%- set lead = messages[0]['content'] + '\n\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set lead = '' -%}{%- set rest = messages -%}{%- endif -%}
{%- for m in rest -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('user and model must take turns') }}{%- endif -%}
{%- set who = 'model' if m.role == 'assistant' else m.role -%}
{{ '<start_of_turn>' + who + '\n' }}{%- if loop.first -%}{{ lead }}{%- endif -%}{{ m.content | trim }}{{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}`

	phi = `{% for m in messages %}{% if m.role in ['system', 'user', 'assistant'] %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endif %}{% endfor %}` +
		`{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}`

	inst = `{%- set ns = namespace(system='', user=false) -%}
{%- for m in messages -%}
{%- if m.role == 'system' -%}{%- set ns.system = m.content ~ '\n\n' -%}
{%- elif m.role == 'user' -%}{{ '[INST] ' ~ ns.system ~ m.content.strip() ~ ' [/INST]' }}{%- set ns.system = '' -%}
{%- elif m.role == 'assistant' -%}{{ ' ' ~ m.content ~ eos_token }}
{%- else -%}{{ raise_exception('no role ' + m.role) }}{%- endif -%}
{%- endfor -%}`
)

func TestTemplates(t *testing.T) {
	llamatest.Library(t)
	for name, c := range map[string]struct{ template, question, conversation string }{
		"chatml": {chatML, "<|im_start|>user\n Hi! <|im_end|>\n<|im_start|>assistant\n",
			"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n<|im_start|>user\nThree?<|im_end|>\n<|im_start|>assistant\n"},
		"headers": {headers, "<|begin|><|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
			"<|begin|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nOne?<|eot_id|>" +
				"<|start_header_id|>assistant<|end_header_id|>\n\nTwo.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nThree?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"},
		"turns": {turns, "<start_of_turn>user\nHi!<end_of_turn>\n<start_of_turn>model\n",
			"<start_of_turn>user\nBe brief.\n\nOne?<end_of_turn>\n<start_of_turn>model\nTwo.<end_of_turn>\n<start_of_turn>user\nThree?<end_of_turn>\n<start_of_turn>model\n"},
		"phi": {phi, "<|user|>\n Hi! <|end|>\n<|assistant|>\n",
			"<|system|>\nBe brief.<|end|>\n<|user|>\nOne?<|end|>\n<|assistant|>\nTwo.<|end|>\n<|user|>\nThree?<|end|>\n<|assistant|>\n"},
		"inst":                    {inst, "[INST] Hi! [/INST]", "[INST] Be brief.\n\nOne? [/INST] Two.<|endoftext|>[INST] Three? [/INST]"},
		"none continues the text": {"", " Hi! ", "Be brief.\n\nOne?Two.\n\nThree?"},
		"a format's name": {"chatml", "<|im_start|>user\n Hi! <|im_end|>\n<|im_start|>assistant\n",
			"<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n<|im_start|>user\nThree?<|im_end|>\n<|im_start|>assistant\n"},
	} {
		t.Run(name, func(t *testing.T) {
			m := withTemplate(t, c.template)
			require.Equal(t, c.template, m.Template())
			got, err := m.ApplyTemplate(question, true)
			require.NoError(t, err)
			require.Equal(t, c.question, got)
			got, err = m.ApplyTemplate(conversation, true)
			require.NoError(t, err)
			require.Equal(t, c.conversation, got)
		})
	}
}

func TestSetTemplate(t *testing.T) {
	llamatest.Library(t)
	for _, own := range []string{"", turns} {
		m := withTemplate(t, own)
		before, err := m.ApplyTemplate(question, true)
		require.NoError(t, err)
		err = m.SetTemplate("no-such-format")
		require.ErrorIs(t, err, llama.ErrTemplate)
		require.ErrorContains(t, err, `no format "no-such-format"`)
		got, err := m.ApplyTemplate(question, true)
		require.NoError(t, err)
		require.Equal(t, before, got, "a refusal changes nothing")
		for template, want := range map[string]string{
			"chatml": "<|im_start|>user\n Hi! <|im_end|>\n<|im_start|>assistant\n",
			phi:      "<|user|>\n Hi! <|end|>\n<|assistant|>\n",
		} {
			require.NoError(t, m.SetTemplate(template))
			got, err := m.ApplyTemplate(question, true)
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
	}
}

// TestTemplateLanguage has one construct of real templates a line.
func TestTemplateLanguage(t *testing.T) {
	llamatest.Library(t)
	for template, want := range map[string]string{
		"a\n":                                                                     "a",
		"{% if true %}\nx\n{% endif %}\ny":                                        "x\ny",
		"  {% if true %}x{% endif %}":                                             "x",
		"{{ messages | length }}":                                                 "4",
		"{{ messages[-1].content }}":                                              "Three?",
		"{{ messages[1:3][0]['content'] }}":                                       "One?",
		"{{ messages[0].content.upper() }}":                                       "BE BRIEF.",
		"{{ messages[0].content.split(' ')[1] }}":                                 "brief.",
		"{{ messages[0].content.startswith('Be') }}":                              "True",
		"{{ messages[0].content[:2] }}":                                           "Be",
		"{{ 'brief' in messages[0].content }}":                                    "True",
		"{{ messages[0].content is string }}":                                     "True",
		"{{ tools is none }}{{ tools is defined and tools }}":                     "TrueNone",
		"{{ messages[0].tool_calls is defined }}":                                 "False",
		"{{ nothing is not defined }}":                                            "True",
		"{% set a = 'x' %}{{ a ~ 1 }}":                                            "x1",
		"{{ 'y' if add_generation_prompt else 'n' }}":                             "n",
		"{% macro f(a) %}[{{ a }}]{% endmacro %}{{ f(2) }}":                       "[2]",
		"{% for m in messages if m.role == 'user' %}{{ loop.index }}{% endfor %}": "12",
		"{% for m in messages %}{{ '' if loop.last else m.role[0] }}{% endfor %}": "sua",
		"{% for i in range(3) %}{{ i }}{% endfor %}":                              "012",
		"{{ messages | selectattr('role', 'equalto', 'user') | list | length }}":  "2",
		"{{ messages | map(attribute='role') | join(',') }}":                      "system,user,assistant,user",
		"{{ messages[0].content | replace('brief', 'long') }}":                    "Be long.",
		"{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}": "4",
		"{{ strftime_now('%Y') }}": time.Now().Format("2006"),
		"{{ range(2, 9, 3) | list | join(',') }}{{ range(3, 1, -1) | list | length }}": "2,5,82",
		"{# a remark #}z":                "z",
		"{{ bos_token }}{{ eos_token }}": "<|begin|><|endoftext|>",
	} {
		m := withTemplate(t, template)
		for range 2 { // parsed at the first, and no trace of it in the second
			got, err := m.ApplyTemplate(conversation, false)
			if err != nil || got != want {
				t.Errorf("%s: %q, want %q (%v)", template, got, want, err)
			}
		}
	}
}

func TestTemplateRefuses(t *testing.T) {
	llamatest.Library(t)
	secret := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(secret, []byte("hunter2"), 0o600))
	for name, c := range map[string]struct {
		template string
		messages []llama.Message
		says     string
	}{
		"the template's own word": {turns, conversation[2:3], "the model's template says: user and model must take turns"},
		"no fallback then":        {chatML + "{{ raise_exception('no') }}", question, "the model's template says: no"},
		"syntax":                  {"\n{% if %}", question, "line 2: unexpected %}"},
		"a family that llama.cpp knows, but broken": {"{% if %} <|im_start|> {% nonsense", question, "line 1"},
		"a whole tag's end is missing":              {"{% for m in messages %}", question, "line 1: no endfor"},
		"unknown tag":                               {"{% frobnicate %}", question, `unknown tag "frobnicate"`},
		"unknown filter":                            {"\n\n{{ messages | frobnicate }}", question, `line 3: no filter named "frobnicate"`},
		"undefined":                                 {"{{ nothing.of }}", question, "nothing is undefined"},
		"itself, by macros":                         {"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", question, "too deeply"},
		"deep brackets":                             {"{{ " + strings.Repeat("(", 1000) + "1" + strings.Repeat(")", 1000) + " }}", question, "nested deeper"},
		"long sums":                                 {"{{ 1" + strings.Repeat("+1", 100000) + " }}", question, "too deeply"},
		"doubled text":                              {"{% set ns = namespace(a='xxxxxxxx') %}{% for a in range(99) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}", question, "longer than 16 MiB"},
		"include":                                   {"{% include '" + secret + "' %}", question, "may not use include"},
		"import":                                    {"{% import '" + secret + "' as x %}{{ x }}", question, ""},
		"extends":                                   {"{% extends '" + secret + "' %}", question, ""},
		"itself":                                    {"{% include '/chat' %}", question, ""},
		"without end":                               {"{% for i in range(1000000000) %}xxxxxxxxxxxxxxxx{% endfor %}", question, "range of over"},
		"endless output":                            {"{% for i in range(60000) %}" + strings.Repeat("x", 20000) + "{% endfor %}", question, "longer than 16 MiB"},
		"empty conversation":                        {"", nil, "empty"},
		"zero byte":                                 {"chatml", []llama.Message{{Role: "us\x00er", Content: "a"}}, "zero byte"},
	} {
		t.Run(name, func(t *testing.T) {
			m := withTemplate(t, c.template)
			for range 2 {
				text, err := m.ApplyTemplate(c.messages, true)
				require.NotContains(t, text, "hunter2")
				require.ErrorIs(t, err, llama.ErrTemplate, text)
				require.ErrorContains(t, err, c.says)
				require.NotContains(t, err.Error(), "\n")
				require.NotContains(t, err.Error(), "hunter2")
				require.Less(t, len(err.Error()), 350)
			}
		})
	}
}

// TestTemplateIsShared by goroutines that write different conversations.
func TestTemplateIsShared(t *testing.T) {
	llamatest.Library(t)
	m := withTemplate(t, headers)
	var want [2]string
	for i, messages := range [][]llama.Message{question, conversation} {
		var err error
		want[i], err = m.ApplyTemplate(messages, true)
		require.NoError(t, err)
	}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for range 20 {
				got, err := m.ApplyTemplate([][]llama.Message{question, conversation}[i%2], true)
				if err != nil || got != want[i%2] {
					t.Errorf("%q, want %q (%v)", got, want[i%2], err)
				}
			}
		})
	}
	all.Wait()
}

func BenchmarkTemplate(b *testing.B) {
	path, err := demo.Path()
	require.NoError(b, err)
	m := llamatest.Open(b, path)
	for b.Loop() {
		_, err := m.ApplyTemplate(question, true)
		require.NoError(b, err)
	}
}
