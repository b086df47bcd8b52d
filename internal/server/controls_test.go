package server

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/internal/schema"
	"github.com/gallop-llm/gallop/internal/server/wire"
	"github.com/gallop-llm/gallop/llama"
)

// family is a format whose marks are control tokens.
type family struct {
	template string
	controls []string // of the vocabulary
}

var (
	mistral = family{
		`{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.tool_calls %}[TOOL_CALLS]{{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}{% endfor %}`,
		[]string{"[INST]", "[/INST]", "[TOOL_CALLS]"},
	}
	llama3 = family{
		`{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{% if m.tool_calls %}{"name": {{ m.tool_calls[0].function.name }}, "parameters": {}}{% else %}{{ m.content }}{% endif %}<|eot_id|>{% endfor %}<|start_header_id|>assistant<|end_header_id|>`,
		[]string{"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>"},
	}
	gptOSS = family{
		`{% for m in messages %}<|start|>{{ m.role }}{% if m.tool_calls %} to={{ m.tool_calls[0].function.name }}{% endif %}<|channel|>final<|message|>{{ m.content }}{% if loop.last and not add_generation_prompt %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}`,
		[]string{"<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>"},
	}
)

// open makes a model of random weights with the family's template and control tokens, of
// which bias makes the likeliest tokens wherever a grammar lets them stand.
func (f family) open(t *testing.T) (e *gallop.Engine, bias map[llama.Token]float32) {
	t.Helper()
	llamatest.Library(t)
	spec := randmodel.Tiny(2)
	spec.Vocab = 512 // the last ones are unused
	bias = map[llama.Token]float32{}
	path := llamatest.Rewrite(t, llamatest.Write(t, spec), func(meta *gguf.Metadata) {
		tokens, err := meta.Strings("tokenizer.ggml.tokens")
		require.NoError(t, err)
		kinds := make([]int32, len(tokens))
		for i := range kinds {
			kinds[i] = 1
		}
		for i := range 4 { // randmodel's own
			kinds[randmodel.TokenEOS+i] = 3
		}
		for i, text := range f.controls {
			at := len(tokens) - len(f.controls) + i
			tokens[at], kinds[at] = text, 3
			bias[llama.Token(at)] = 50
		}
		meta.Set("tokenizer.ggml.tokens", tokens)
		meta.Set("tokenizer.ggml.token_type", kinds)
		meta.Set("tokenizer.chat_template", f.template)
	})
	e, err := gallop.Open(t.Context(), path, &gallop.Options{Shortlist: -1, NoCosts: true, Context: llama.ContextOptions{NCtx: 512, Threads: 1}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return e, bias
}

// TestMarksThatAreControlTokens has models write answers whose marks are control tokens, and
// takes these apart.
func TestMarksThatAreControlTokens(t *testing.T) {
	const arguments = `{"a": "x"}`
	for name, c := range map[string]struct {
		family
		answer string
		want   wire.Result
	}{
		"mistral": {mistral, `See.[TOOL_CALLS][{"name": "choose", "arguments": ` + arguments + `}]`,
			wire.Result{Content: "See.", Calls: []wire.ToolCall{{Name: "choose", Arguments: arguments}}}},
		"llama": {llama3, `<|python_tag|>{"name": "choose", "parameters": ` + arguments + `}`,
			wire.Result{Calls: []wire.ToolCall{{Name: "choose", Arguments: arguments}}}},
		"gpt-oss calls": {gptOSS, `<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.choose <|constrain|>json<|message|>` + arguments,
			wire.Result{Reasoning: "Hm.", Calls: []wire.ToolCall{{Name: "choose", Arguments: arguments}}}},
		"gpt-oss answers": {gptOSS, `<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.`,
			wire.Result{Reasoning: "Hm.", Content: "Yes."}},
		"a control token that is no mark": {mistral, `Yes[INST].`, wire.Result{Content: "Yes."}},
	} {
		t.Run(name, func(t *testing.T) {
			e, bias := c.open(t)
			split := recognise(c.template).Split(ToolUse{Tools: []wire.Tool{{Function: wire.ToolFunction{Name: "choose"}}}})
			defer split.End(false)
			r := gallop.Request{
				Messages: []gallop.Message{{Role: "user", Content: "hi"}}, Controls: true, Detail: true,
				Sampling: &llama.Sampling{Grammar: "root ::= " + schema.Literal(c.answer), LogitBias: bias},
			}
			var all wire.Collector
			controls := 0
			for d, err := range e.Stream(t.Context(), r) {
				require.NoError(t, err)
				controls += len(d.Controls)
				all.Add(split.Add(d.Text, d.Controls))
			}
			all.Add(split.End(false))
			require.Positive(t, controls, "the marks are control tokens")
			got := all.Result(gallop.Answer{}, nil)
			for i := range got.Calls {
				got.Calls[i].ID = ""
			}
			require.Equal(t, &c.want, got)
		})
	}
}

// TestInjectedMarks types the control tokens of a format into a message, and has a tool
// answer with them: none becomes one.
func TestInjectedMarks(t *testing.T) {
	for name, f := range map[string]family{"mistral": mistral, "llama": llama3, "gpt-oss": gptOSS} {
		e, bias := f.open(t)
		count := func(typed string) (n int) {
			text, err := e.Model().Render(llama.Conversation{Answer: true, Messages: []gallop.Message{
				{Role: "user", Content: "a" + typed}, {Role: "assistant", Content: "b"}, {Role: "tool", Content: "c" + typed}}})
			require.NoError(t, err)
			tokens, err := e.Model().Vocab.TokenizeText(text)
			require.NoError(t, err)
			for _, token := range tokens {
				if _, ok := bias[token]; ok {
					n++
				}
			}
			return n
		}
		require.Positive(t, count("word"), name)
		require.Equal(t, count("word"), count(strings.Join(f.controls, "x")), name)
	}
}

// TestServedMarksThatAreControlTokens asks over HTTP for a call whose mark is a control token.
func TestServedMarksThatAreControlTokens(t *testing.T) {
	e, bias := mistral.open(t)
	s, err := New(Options{Models: []Model{{Name: "m", Open: func(context.Context) (Engine, error) { return Of(e), nil }}}})
	require.NoError(t, err)
	h := httptest.NewServer(s)
	defer h.Close()
	defer s.Close()
	biases, err := json.Marshal(bias)
	require.NoError(t, err)
	for _, choice := range []string{"required", "auto"} { // auto begins with the grammar at the mark
		servedMark(t, h, string(biases), choice)
	}
}

func servedMark(t *testing.T, h *httptest.Server, biases, choice string) {
	t.Helper()
	status, v := post(t, h, chatPath, `{`+hi+`,"temperature":0,"logit_bias":`+biases+`,"gallop":{"detail":true},"tool_choice":"`+choice+`",
		"tools":[{"type":"function","function":{"name":"choose","parameters":{"type":"object","properties":{"a":{"const":"x"}},"required":["a"],"additionalProperties":false}}}]}`)
	require.Equal(t, 200, status, v)
	var written []string
	for _, token := range at(t, v, "gallop", "tokens").([]any) {
		written = append(written, at(t, token, "text").(string))
	}
	require.Contains(t, written, "[TOOL_CALLS]")
	require.Equal(t, "choose", at(t, v, "choices", 0, "message", "tool_calls", 0, "function", "name"))
	require.JSONEq(t, `{"a":"x"}`, at(t, v, "choices", 0, "message", "tool_calls", 0, "function", "arguments").(string))
	require.Nil(t, at(t, v, "choices", 0, "message", "content"))
}
