package server

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/server/wire"
	"github.com/gallop-llm/gallop/llama"
)

// fakeFormat writes thoughts in round brackets and calls in square ones: (Hm) [name {arguments}].
// Its grammars tell what they were made for.
type fakeFormat struct{}

func (fakeFormat) Opens(prompt string) bool { return strings.HasSuffix(prompt, "(") }

func (fakeFormat) Instructions(tools []wire.Tool) string {
	if len(tools) > 0 && tools[0].Function.Name == "untaught" {
		return "Write [untaught {}]."
	}
	return ""
}

func (fakeFormat) Calls(u ToolUse) (string, *llama.Lazy, error) {
	var names []string
	for _, t := range u.Tools {
		if t.Function.Name == "impossible" {
			return "", nil, fmt.Errorf("parameters of impossible: keyword not is not supported")
		}
		names = append(names, t.Function.Name)
	}
	return fmt.Sprintf("%s required %t parallel %t opened %t", names, u.Required, u.Parallel, u.Opened), nil, nil
}

func (fakeFormat) Document(schema json.RawMessage, opened bool) (string, error) {
	grammar, err := fakeSchema(schema)
	return fmt.Sprintf("%s opened %t", grammar, opened), err
}

func fakeSchema(schema []byte) (string, error) {
	if strings.Contains(string(schema), "not") {
		return "", fmt.Errorf("keyword %q cannot be expressed", "not")
	}
	return "schema " + string(schema), nil
}

func (fakeFormat) Split(u ToolUse) Splitter {
	return &fakeSplitter{calls: len(u.Tools) > 0, inThought: u.Opened}
}

type fakeSplitter struct {
	calls, inThought, inCall, inArguments bool
	call                                  int
	name                                  string
}

func (s *fakeSplitter) Add(text string, _ []gallop.Control) (pieces []wire.Piece) {
	if !s.inThought && !s.inCall && text != "" && !strings.ContainsAny(text, "([") {
		return []wire.Piece{{Text: text}}
	}
	for _, r := range text {
		c := string(r)
		switch {
		case s.inThought:
			if s.inThought = c != ")"; s.inThought {
				pieces = append(pieces, wire.Piece{Reasoning: c})
			}
		case c == "(":
			s.inThought = true
		case s.calls && !s.inCall && c == "[":
			s.inCall, s.name, s.inArguments = true, "", false
		case !s.inCall:
			pieces = append(pieces, wire.Piece{Text: c})
		case c == "]":
			s.inCall = false
			s.call++
		case c == "!":
			s.inCall = false
			pieces = append(pieces, wire.Piece{Text: "[" + s.name, Broken: true})
		case !s.inArguments && c == " ":
			s.inArguments = true
			pieces = append(pieces, wire.Piece{Call: &wire.CallPiece{Index: s.call, ID: fmt.Sprintf("id%07d", s.call), Name: s.name}})
		case !s.inArguments:
			s.name += c
		default:
			pieces = append(pieces, wire.Piece{Call: &wire.CallPiece{Index: s.call, Arguments: c}})
		}
	}
	return pieces
}

func (s *fakeSplitter) End(bool) []wire.Piece { return nil }

const weather = `"tools":[{"type":"function","function":{"name":"weather","description":"d","parameters":{"type":"object"},"strict":true}}]`

func TestTools(t *testing.T) {
	f := newFake()
	f.says = func(gallopRequest) []string { return []string{"Let me ", "see[wea", `ther {"a":1}][time {}]`} }
	h := serve(t, f, nil)
	_, v := post(t, h, chatPath, `{`+hi+`,`+weather+`}`)
	require.Equal(t, "Let me see", at(t, v, "choices", 0, "message", "content"))
	require.Equal(t, "tool_calls", at(t, v, "choices", 0, "finish_reason"))
	require.Equal(t, map[string]any{"id": "id0000000", "type": "function", "function": map[string]any{"name": "weather", "arguments": `{"a":1}`}},
		at(t, v, "choices", 0, "message", "tool_calls", 0))
	require.Equal(t, "time", at(t, v, "choices", 0, "message", "tool_calls", 1, "function", "name"))
	r := f.asked()[0]
	require.JSONEq(t, `[{"type":"function","function":{"name":"weather","description":"d","parameters":{"type":"object"}}}]`, string(r.Tools))
	require.Equal(t, "[weather] required false parallel true opened false", r.Sampling.Grammar)

	for choice, grammar := range map[string]string{`"required"`: "[weather time] required true", `{"type":"function","function":{"name":"time"}}`: "[time] required true"} {
		_, _ = post(t, h, chatPath, `{`+hi+`,"tools":[{"type":"function","function":{"name":"weather"}},{"type":"function","function":{"name":"time"}}],"tool_choice":`+choice+`}`)
		asked := f.asked()
		require.Contains(t, asked[len(asked)-1].Sampling.Grammar, grammar)
	}
	_, _ = post(t, h, chatPath, `{`+hi+`,`+weather+`,"parallel_tool_calls":false}`)
	asked := f.asked()
	require.Contains(t, asked[len(asked)-1].Sampling.Grammar, "parallel false")
	_, v = post(t, h, chatPath, `{`+hi+`,`+weather+`,"tool_choice":"none"}`)
	asked = f.asked()
	require.Nil(t, asked[len(asked)-1].Tools, "the model is not tempted")
	require.Contains(t, at(t, v, "choices", 0, "message", "content"), "[wea", "it is text")

	_, _ = post(t, h, chatPath, `{"messages":[{"role":"system","content":"Be kind."},{"role":"user","content":"q"}],"tools":[{"type":"function","function":{"name":"untaught"}}]}`)
	asked = f.asked()
	require.Equal(t, "Be kind.\n\nWrite [untaught {}].", asked[len(asked)-1].Messages[0].Content)

	f.says = func(gallopRequest) []string { return []string{"[weather {", "!"} }
	_, v = post(t, h, chatPath, `{`+hi+`,`+weather+`}`)
	require.Equal(t, "[weather", at(t, v, "choices", 0, "message", "content"), "a call without an end")
	require.NotContains(t, at(t, v, "choices", 0, "message"), "tool_calls")

	status, v := post(t, h, chatPath, `{`+hi+`,"tools":[{"type":"function","function":{"name":"impossible"}}]}`)
	require.Equal(t, 400, status)
	require.Contains(t, at(t, v, "error", "message"), "keyword not")
	for _, wrong := range []string{`{` + hi + `,` + weather + `,"tool_choice":{"type":"function","function":{"name":"x"}}}`, `{` + hi + `,` + weather + `,"response_format":{"type":"json_object"}}`,
		`{` + hi + `,"tools":[{"type":"function","function":{"name":"a"}},{"type":"function","function":{"name":"a"}}]}`} {
		status, _ = post(t, h, chatPath, wrong)
		require.Equal(t, 400, status, wrong)
	}
}

func TestToolsStream(t *testing.T) {
	f := newFake()
	f.says = func(gallopRequest) []string { return []string{"See[weather {", `"a"`, `:1}][time {}]`} }
	h := serve(t, f, nil)
	_, data := postRaw(t, h, chatPath, `{`+hi+`,`+weather+`,"stream":true}`)
	args, names := map[float64]string{}, map[float64]string{}
	for _, e := range events(t, data) {
		if e.data == "[DONE]" {
			continue
		}
		calls, _ := at(t, e.json(t), "choices", 0, "delta").(map[string]any)["tool_calls"].([]any)
		for _, c := range calls {
			i := at(t, c, "index").(float64)
			args[i] += at(t, c, "function", "arguments").(string)
			if name, ok := at(t, c, "function").(map[string]any)["name"]; ok {
				names[i] += name.(string)
				require.NotEmpty(t, at(t, c, "id"))
			}
		}
	}
	require.Equal(t, map[float64]string{0: `{"a":1}`, 1: `{}`}, args)
	require.Equal(t, map[float64]string{0: "weather", 1: "time"}, names)
}

// TestToolHistories are those of several servers.
func TestToolHistories(t *testing.T) {
	for name, calls := range map[string]string{
		"OpenAI's":           `[{"id":"x","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]`,
		"an object":          `[{"id":"x","type":"function","function":{"name":"f","arguments":{"a":1}}}]`,
		"no type":            `[{"id":"x","function":{"name":"f","arguments":"{\"a\":1}"}}]`,
		"no id":              `[{"function":{"name":"f","arguments":"{\"a\":1}"}}]`,
		"no function":        `[{"id":"x","name":"f","arguments":{"a":1}}]`,
		"with another index": `[{"index":0,"id":"x","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}]`,
	} {
		f := newFake()
		h := serve(t, f, nil)
		answer := `{"role":"tool","content":"42","tool_call_id":"x"}`
		if name == "no id" {
			answer = `{"role":"tool","content":"42"}`
		}
		status, v := post(t, h, chatPath, `{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":null,"refusal":null,"annotations":[],"tool_calls":`+calls+`},`+answer+`]}`)
		require.Equal(t, 200, status, "%s: %v", name, v)
		m := f.asked()[0].Messages
		id := "x"
		if name == "no id" {
			id = "call00001"
		}
		require.JSONEq(t, `{"tool_calls":[{"id":"`+id+`","type":"function","function":{"name":"f","arguments":{"a":1}}}]}`, string(m[1].Fields), name)
		require.JSONEq(t, `{"name":"f","tool_call_id":"`+id+`"}`, string(m[2].Fields), name)
		require.Empty(t, m[1].Content)
		require.Equal(t, "42", m[2].Content)
	}
}

func TestSchema(t *testing.T) {
	f := newFake()
	h := serve(t, f, nil)
	for body, grammar := range map[string]string{
		`"response_format":{"type":"json_schema","json_schema":{"name":"x","strict":true,"schema":{"type":"string"}}}`: `schema {"type":"string"} opened false`,
		`"response_format":{"type":"json_object"}`:                           `schema {"type":"object"} opened false`,
		`"response_format":{"type":"json_object","schema":{"type":"array"}}`: `schema {"type":"array"} opened false`,
		`"response_format":{"type":"text"}`:                                  "",
		`"grammar":"root ::= \"a\""`:                                         `root ::= "a"`,
	} {
		status, v := post(t, h, chatPath, `{`+hi+`,`+body+`}`)
		require.Equal(t, 200, status, v)
		asked := f.asked()
		require.Equal(t, grammar, asked[len(asked)-1].Sampling.Grammar, body)
	}
	status, v := post(t, h, chatPath, `{`+hi+`,"response_format":{"type":"json_schema","json_schema":{"schema":{"not":{}}}}}`)
	require.Equal(t, 400, status)
	require.Contains(t, at(t, v, "error", "message"), `keyword "not" cannot be expressed`)
	_, _ = post(t, h, "/completion", `{"prompt":"a","json_schema":{"type":"null"}}`)
	asked := f.asked()
	require.Equal(t, `schema {"type":"null"}`, asked[len(asked)-1].Sampling.Grammar)
	status, _ = post(t, h, "/v1/responses", `{"input":"a","text":{"format":{"type":"json_schema","name":"x","schema":{"type":"null"}}}}`)
	require.Equal(t, 200, status)
	asked = f.asked()
	require.Equal(t, `schema {"type":"null"} opened false`, asked[len(asked)-1].Sampling.Grammar)
	status, _ = post(t, h, "/v1/messages", `{"max_tokens":5,`+hi+`,"output_config":{"format":{"type":"json_schema","schema":{"type":"null"}}}}`)
	require.Equal(t, 200, status)
	asked = f.asked()
	require.Equal(t, `schema {"type":"null"} opened false`, asked[len(asked)-1].Sampling.Grammar)
}

func thinker(says ...string) *fake {
	f := newFake()
	f.says = func(gallopRequest) []string { return says }
	return f
}

func TestThinking(t *testing.T) {
	h := serve(t, thinker("(", "Hm", "m.", ")", "Yes", "."), nil)
	_, v := post(t, h, chatPath, `{`+hi+`}`)
	require.Equal(t, "Hmm.", at(t, v, "choices", 0, "message", "reasoning_content"))
	require.Equal(t, "Yes.", at(t, v, "choices", 0, "message", "content"))
	_, data := postRaw(t, h, chatPath, `{`+hi+`,"stream":true}`)
	thought, said := "", ""
	for _, e := range events(t, data) {
		if e.data != "[DONE]" {
			d := at(t, e.json(t), "choices", 0, "delta").(map[string]any)
			c, _ := d["content"].(string)
			r, _ := d["reasoning_content"].(string)
			said += c
			thought += r
		}
	}
	require.Equal(t, "Hmm.", thought)
	require.Equal(t, "Yes.", said)

	_, v = post(t, h, "/v1/messages", `{"max_tokens":50,`+hi+`}`)
	require.Equal(t, map[string]any{"type": "thinking", "thinking": "Hmm.", "signature": ""}, at(t, v, "content", 0))
	require.Equal(t, map[string]any{"type": "text", "text": "Yes."}, at(t, v, "content", 1))
	_, v = post(t, h, "/v1/responses", `{"input":"hi"}`)
	require.Equal(t, "reasoning", at(t, v, "output", 0, "type"))
	require.Equal(t, "Hmm.", at(t, v, "output", 0, "content", 0, "text"))
	require.Equal(t, "Yes.", at(t, v, "output", 1, "content", 0, "text"))

	// The prompt opens the thought where the chat template says so.
	h = serve(t, thinker("Hmm.)", "Yes."), nil)
	_, v = post(t, h, chatPath, `{"messages":[{"role":"user","content":"hi("}]}`)
	require.Equal(t, "Hmm.", at(t, v, "choices", 0, "message", "reasoning_content"))
	require.Equal(t, "Yes.", at(t, v, "choices", 0, "message", "content"))

	// A text that is continued has no format, and neither has what a client's own grammar says.
	f := thinker("(a)b")
	h = serve(t, f, nil)
	_, v = post(t, h, "/v1/completions", `{"prompt":"a"}`)
	require.Equal(t, "(a)b", at(t, v, "choices", 0, "text"))
	_, v = post(t, h, chatPath, `{`+hi+`,"grammar":"root ::= \"(a)b\""}`)
	require.Equal(t, "(a)b", at(t, v, "choices", 0, "message", "content"))

	for body, variables := range map[string]string{
		`"reasoning_effort":"none"`: `{"enable_thinking":false}`, `"reasoning_effort":"high"`: `{"enable_thinking":true,"reasoning_effort":"high"}`,
		`"chat_template_kwargs":{"a":[1]}`: `{"a":[1]}`,
	} {
		_, _ = post(t, h, chatPath, `{`+hi+`,`+body+`}`)
		asked := f.asked()
		require.JSONEq(t, variables, string(asked[len(asked)-1].Variables))
	}
}

func TestAnthropic(t *testing.T) {
	f := newFake()
	f.says = func(gallopRequest) []string { return []string{"See", `[weather {"a":1}]`} }
	h := serve(t, f, nil)
	const tools = `"tools":[{"name":"weather","description":"d","input_schema":{"type":"object"},"cache_control":{"type":"ephemeral"}}]`
	status, v := post(t, h, "/v1/messages?beta=true", `{"model":"claude","max_tokens":50,"system":[{"type":"text","text":"x-anthropic-billing-header: cc_version=1; cch=abc;"},{"type":"text","text":"Be kind.","cache_control":{"type":"ephemeral"}}],
		"messages":[{"role":"user","content":"q"},{"role":"assistant","content":[{"type":"thinking","thinking":"t","signature":"s"},{"type":"text","text":"a"},{"type":"tool_use","id":"toolu_abcdefghi","name":"weather","input":{"x":1}}]},
		{"role":"user","content":[{"type":"tool_result","tool_use_id":"toolu_abcdefghi","content":[{"type":"text","text":"cold"}],"is_error":true},{"type":"text","text":"so?"}]}],
		`+tools+`,"tool_choice":{"type":"auto","disable_parallel_tool_use":true},"metadata":{"user_id":"u"},"thinking":{"type":"disabled"},"stop_sequences":["END"],"top_k":5,"context_management":{"edits":[{"type":"clear_thinking_20251015","keep":"all"}]}}`)
	require.Equal(t, 200, status, v)
	require.Equal(t, "fake", v["model"])
	require.Equal(t, "tool_use", v["stop_reason"])
	require.Equal(t, map[string]any{"type": "text", "text": "See"}, at(t, v, "content", 0))
	require.Equal(t, map[string]any{"type": "tool_use", "id": "toolu_id0000000", "name": "weather", "input": map[string]any{"a": 1.0}}, at(t, v, "content", 1))
	require.Equal(t, 3.0, at(t, v, "usage", "cache_read_input_tokens"))
	require.Equal(t, "4,6", at(t, v, "gallop", "skip"))
	r := f.asked()[0]
	require.Equal(t, []string{"END"}, r.Stop)
	require.Equal(t, 5, r.Sampling.TopK)
	require.Contains(t, r.Sampling.Grammar, "parallel false")
	require.JSONEq(t, `{"enable_thinking":false}`, string(r.Variables))
	m := r.Messages
	require.Len(t, m, 5)
	require.Equal(t, "Be kind.", m[0].Content, "the line that changes is left out")
	require.JSONEq(t, `{"reasoning_content":"t","tool_calls":[{"id":"abcdefghi","type":"function","function":{"name":"weather","arguments":{"x":1}}}]}`, string(m[2].Fields))
	require.Equal(t, "tool", m[3].Role)
	require.Equal(t, "Error: cold", m[3].Content)
	require.JSONEq(t, `{"name":"weather","tool_call_id":"abcdefghi"}`, string(m[3].Fields))
	require.Equal(t, "so?", m[4].Content)

	_, v = post(t, h, "/v1/messages/count_tokens", `{"model":"claude",`+hi+`,`+tools+`}`)
	require.Equal(t, 2.0, v["input_tokens"])

	for body, message := range map[string]string{
		`{` + hi + `}`: "max_tokens is missing",
		`{"max_tokens":5,` + hi + `,"tools":[{"type":"web_search_20250305","name":"x"}]}`:                                     "tools[0].type",
		`{"max_tokens":5,"messages":[{"role":"user","content":[{"type":"image","source":{"type":"url","url":"http://x"}}]}]}`: "messages[0].content[0]",
		`{"max_tokens":5,` + hi + `,"mcp_servers":[{}]}`:                                                                      "mcp_servers",
		`{"max_tokens":5,` + hi + `,"container":"x"}`:                                                                         "container",
		`{"max_tokens":0,` + hi + `}`:                                                                                         "max_tokens is 0",
		`{"max_tokens":5,` + hi + `,"context_management":{"edits":[{"type":"clear_tool_uses_20250919"}]}}`:                    "context_management.edits[0]",
	} {
		status, v := post(t, h, "/v1/messages", body)
		require.Equal(t, 400, status, body)
		require.Contains(t, at(t, v, "error", "message"), message)
	}
}

func TestAnthropicStream(t *testing.T) {
	f := thinker("(Hm)", "See", `[weather {"a"`, `:1}][time {}]`)
	h := serve(t, f, nil)
	_, data := postRaw(t, h, "/v1/messages", `{"max_tokens":50,`+hi+`,"stream":true,"tools":[{"name":"weather","input_schema":{}}]}`)
	var names []string
	blocks, deltas := map[float64]any{}, map[float64]string{}
	for _, e := range events(t, data) {
		v := e.json(t)
		require.Equal(t, e.name, v["type"])
		if e.name != "content_block_delta" {
			names = append(names, e.name)
		}
		switch e.name {
		case "message_start":
			require.Equal(t, 2.0, at(t, v, "message", "usage", "input_tokens"))
			require.Nil(t, at(t, v, "message", "stop_reason"))
		case "content_block_start":
			blocks[v["index"].(float64)] = at(t, v, "content_block", "type")
		case "content_block_delta":
			for _, field := range []string{"text", "thinking", "partial_json"} {
				if s, ok := v["delta"].(map[string]any)[field].(string); ok {
					deltas[v["index"].(float64)] += s
				}
			}
		case "message_delta":
			require.Equal(t, "tool_use", at(t, v, "delta", "stop_reason"))
			require.Equal(t, 3.0, at(t, v, "usage", "cache_read_input_tokens"))
		}
	}
	require.Equal(t, map[float64]any{0: "thinking", 1: "text", 2: "tool_use", 3: "tool_use"}, blocks)
	require.Equal(t, map[float64]string{0: "Hm", 1: "See", 2: `{"a":1}`, 3: `{}`}, deltas)
	require.Equal(t, []string{"message_start", "content_block_start", "content_block_stop", "content_block_start", "content_block_stop",
		"content_block_start", "content_block_stop", "content_block_start", "content_block_stop", "message_delta", "message_stop"}, names)
}

func TestStopReasons(t *testing.T) {
	f := newFake()
	f.finish = gallop.FinishLength
	h := serve(t, f, nil)
	_, v := post(t, h, chatPath, `{`+hi+`}`)
	require.Equal(t, "length", at(t, v, "choices", 0, "finish_reason"))
	_, v = post(t, h, "/v1/messages", `{"max_tokens":5,`+hi+`}`)
	require.Equal(t, "max_tokens", v["stop_reason"])
	_, v = post(t, h, "/completion", `{"prompt":"a"}`)
	require.Equal(t, "limit", v["stop_type"])
	_, v = post(t, h, "/v1/responses", `{"input":"a"}`)
	require.Equal(t, "incomplete", v["status"])
	require.Equal(t, "max_output_tokens", at(t, v, "incomplete_details", "reason"))

	f.finish, f.stopped = gallop.FinishStop, "END"
	_, v = post(t, h, chatPath, `{`+hi+`,"stop":"END"}`)
	require.Equal(t, "stop", at(t, v, "choices", 0, "finish_reason"))
	_, v = post(t, h, "/v1/messages", `{"max_tokens":5,`+hi+`,"stop_sequences":["END"]}`)
	require.Equal(t, "stop_sequence", v["stop_reason"])
	require.Equal(t, "END", v["stop_sequence"])
	_, v = post(t, h, "/completion", `{"prompt":"a","stop":["END"]}`)
	require.Equal(t, "word", v["stop_type"])
	require.Equal(t, "END", v["stopping_word"])
}

// TestCallsThatAreCutOff has a limit of tokens, or a stop text, end an answer within a call:
// nothing of the call is content, and no dialect says that it can be done.
func TestCallsThatAreCutOff(t *testing.T) {
	const all = `See.<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>`
	const named, argued = len(`See.<tool_call>{"name": "weath`), len(`See.<tool_call>{"name": "weather", "arguments": {"city": "Os`)
	f := newFake()
	f.info.Template = "<tool_call>"
	h := serve(t, f, func(o *Options) { o.format = recognise })
	says := func(finish gallop.Finish, stopped string, pieces ...string) {
		f.finish, f.stopped = finish, stopped
		f.says = func(gallopRequest) []string { return pieces }
	}
	const anthropicTools = `"tools":[{"name":"weather","input_schema":{"type":"object"}}]`
	const responseTools = `"tools":[{"type":"function","name":"weather","parameters":{"type":"object"}}]`
	for _, c := range []struct {
		end             int
		stopped         string
		chat, anthropic string
		response, item  string
		arguments       any // nil = there is no call
	}{
		{end: named, chat: "length", anthropic: "max_tokens", response: "incomplete", item: "incomplete"},
		{end: len("See.<tool_"), chat: "length", anthropic: "max_tokens", response: "incomplete", item: "incomplete"},
		{end: argued, chat: "length", anthropic: "max_tokens", response: "incomplete", item: "incomplete", arguments: `{"city": "Os`},
		{end: argued, stopped: "lo", chat: "stop", anthropic: "stop_sequence", response: "completed", item: "incomplete", arguments: `{"city": "Os`},
		{end: len(all) - 1, chat: "length", anthropic: "max_tokens", response: "incomplete", item: "completed", arguments: `{"city": "Oslo"}`},
	} {
		finish := gallop.FinishLength
		if c.stopped != "" {
			finish = gallop.FinishStop
		}
		says(finish, c.stopped, all[:c.end-5], all[c.end-5:c.end])

		_, v := post(t, h, chatPath, `{`+hi+`,`+weather+`}`)
		require.Equal(t, "See.", at(t, v, "choices", 0, "message", "content"))
		require.Equal(t, c.chat, at(t, v, "choices", 0, "finish_reason"))
		if c.arguments == nil {
			require.NotContains(t, at(t, v, "choices", 0, "message"), "tool_calls")
		} else {
			require.Equal(t, c.arguments, at(t, v, "choices", 0, "message", "tool_calls", 0, "function", "arguments"))
		}
		_, data := postRaw(t, h, chatPath, `{`+hi+`,`+weather+`,"stream":true}`)
		content, arguments, reason := "", "", any(nil)
		for _, e := range events(t, data) {
			if e.data == "[DONE]" {
				continue
			}
			choice := at(t, e.json(t), "choices", 0)
			delta := at(t, choice, "delta").(map[string]any)
			text, _ := delta["content"].(string)
			content += text
			calls, _ := delta["tool_calls"].([]any)
			for _, call := range calls {
				arguments += at(t, call, "function", "arguments").(string)
			}
			reason = at(t, choice, "finish_reason")
		}
		require.Equal(t, "See.", content)
		require.Equal(t, c.chat, reason)
		require.Equal(t, fmt.Sprint(cmp.Or(c.arguments, any(""))), arguments)

		_, v = post(t, h, "/v1/messages", `{"max_tokens":50,`+hi+`,`+anthropicTools+`}`)
		require.Equal(t, c.anthropic, v["stop_reason"])
		require.Equal(t, "See.", at(t, v, "content", 0, "text"))
		if c.arguments == nil {
			require.Len(t, v["content"], 1)
		} else {
			require.Equal(t, "weather", at(t, v, "content", 1, "name"))
			want := map[string]any{}
			if c.end > argued {
				want["city"] = "Oslo"
			}
			require.Equal(t, want, at(t, v, "content", 1, "input"), "no part of the arguments that might be done")
		}
		_, data = postRaw(t, h, "/v1/messages", `{"max_tokens":50,`+hi+`,`+anthropicTools+`,"stream":true}`)
		require.Contains(t, string(data), `"stop_reason":"`+c.anthropic+`"`)
		require.NotContains(t, string(data), "tool_call>")

		_, v = post(t, h, "/v1/responses", `{"input":"hi",`+responseTools+`}`)
		require.Equal(t, c.response, v["status"])
		output := v["output"].([]any)
		last := output[len(output)-1]
		require.Equal(t, c.item, at(t, last, "status"))
		if c.arguments == nil {
			require.Len(t, output, 1)
		} else {
			require.Equal(t, c.arguments, at(t, last, "arguments"))
		}
		require.Equal(t, "See.", at(t, output[0], "content", 0, "text"))
		_, data = postRaw(t, h, "/v1/responses", `{"input":"hi",`+responseTools+`,"stream":true}`)
		list := events(t, data)
		require.Equal(t, "response."+c.response, list[len(list)-1].name)
		require.Equal(t, "response.output_item.done", list[len(list)-2].name)
		require.Equal(t, c.item, at(t, list[len(list)-2].json(t), "item", "status"))
		require.Equal(t, c.end == len(all)-1, strings.Contains(string(data), "event: response.function_call_arguments.done"))
		require.NotContains(t, string(data), "tool_call>")
	}

	// What the model itself ends is as it was: a call that can be done, or a text.
	says(gallop.FinishStop, "", all)
	_, v := post(t, h, chatPath, `{`+hi+`,`+weather+`}`)
	require.Equal(t, "tool_calls", at(t, v, "choices", 0, "finish_reason"))
	says(gallop.FinishStop, "", "Use <tool_call> to call.")
	_, v = post(t, h, chatPath, `{`+hi+`,`+weather+`}`)
	require.Equal(t, "Use <tool_call> to call.", at(t, v, "choices", 0, "message", "content"))
}

func TestResponses(t *testing.T) {
	f := newFake()
	f.says = func(gallopRequest) []string { return []string{"See", `[weather {"a":1}]`} }
	h := serve(t, f, nil)
	const tools = `"tools":[{"type":"function","name":"weather","description":"d","parameters":{"type":"object"},"strict":true}]`
	status, v := post(t, h, "/v1/responses", `{"model":"fake","instructions":"Be kind.","input":[{"role":"user","content":[{"type":"input_text","text":"q"}]},
		{"type":"reasoning","id":"rs_1","summary":[],"content":[{"type":"reasoning_text","text":"t"}]},{"type":"message","role":"assistant","id":"msg_1","status":"completed","content":[{"type":"output_text","text":"a","annotations":[]}]},
		{"type":"function_call","call_id":"c1","name":"weather","arguments":"{\"x\":1}"},{"type":"function_call","call_id":"c2","name":"weather","arguments":"{}"},
		{"type":"function_call_output","call_id":"c1","output":"cold"},{"type":"function_call_output","call_id":"c2","output":[{"type":"input_text","text":"warm"}]}],
		`+tools+`,"store":false,"max_output_tokens":30,"truncation":"auto","include":["reasoning.encrypted_content"],"metadata":{"k":"v"},"parallel_tool_calls":false}`)
	require.Equal(t, 200, status, v)
	require.Equal(t, "completed", v["status"])
	require.Equal(t, "See", at(t, v, "output", 0, "content", 0, "text"))
	require.Equal(t, map[string]any{"type": "function_call", "call_id": "id0000000", "name": "weather", "arguments": `{"a":1}`, "status": "completed"},
		pick(at(t, v, "output", 1), "type", "call_id", "name", "arguments", "status"))
	require.Equal(t, 3.0, at(t, v, "usage", "input_tokens_details", "cached_tokens"))
	require.Equal(t, "v", at(t, v, "metadata", "k"))
	require.Equal(t, false, v["parallel_tool_calls"])
	r := f.asked()[0]
	require.True(t, r.Forget)
	require.Equal(t, 30, r.MaxTokens)
	m := r.Messages
	require.Len(t, m, 5)
	require.Equal(t, "system", m[0].Role)
	require.Equal(t, "a", m[2].Content)
	require.JSONEq(t, `{"reasoning_content":"t","tool_calls":[{"id":"c1","type":"function","function":{"name":"weather","arguments":{"x":1}}},{"id":"c2","type":"function","function":{"name":"weather","arguments":{}}}]}`, string(m[2].Fields))
	require.Equal(t, "warm", m[4].Content)

	for body, param := range map[string]string{
		`{"input":"a","previous_response_id":"r"}`: "previous_response_id", `{"input":"a","store":true}`: "store", `{"input":"a","background":true}`: "background",
		`{"input":"a","include":["file_search_call.results"]}`: "include", `{"input":[{"type":"item_reference","id":"x"}]}`: "input[0].type", `{}`: "input",
		`{"input":"a","tools":[{"type":"web_search"}]}`: "tools[0].type", `{"input":[{"role":"user","content":[{"type":"input_image"}]}]}`: "input[0].content[0]",
	} {
		status, v := post(t, h, "/v1/responses", body)
		require.Equal(t, 400, status, body)
		require.Equal(t, param, at(t, v, "error", "param"), body)
	}
}

func TestResponsesStream(t *testing.T) {
	f := thinker("(Hm)", "Se", "e", `[weather {"a"`, `:1}]`)
	h := serve(t, f, nil)
	_, data := postRaw(t, h, "/v1/responses", `{"input":"hi","stream":true,"tools":[{"type":"function","name":"weather"}]}`)
	var names []string
	for i, e := range events(t, data) {
		v := e.json(t)
		require.Equal(t, e.name, v["type"])
		require.Equal(t, float64(i), v["sequence_number"])
		names = append(names, strings.TrimPrefix(e.name, "response."))
		switch e.name {
		case "response.output_text.done":
			require.Equal(t, "See", v["text"])
			require.Equal(t, 1.0, v["output_index"])
		case "response.function_call_arguments.done":
			require.Equal(t, `{"a":1}`, v["arguments"])
		case "response.completed":
			require.Len(t, at(t, v, "response", "output"), 3)
			require.Equal(t, "Hm", at(t, v, "response", "output", 0, "content", 0, "text"))
			require.Equal(t, "id0000000", at(t, v, "response", "output", 2, "call_id"))
			require.Equal(t, "4,6", at(t, v, "response", "gallop", "skip"))
		}
	}
	var short []string // deltas that follow each other count once
	for i, n := range names {
		if i == 0 || n != names[i-1] || !strings.HasSuffix(n, ".delta") {
			short = append(short, n)
		}
	}
	require.Equal(t, []string{"created", "in_progress",
		"output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done", "content_part.done", "output_item.done",
		"output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done", "output_item.done",
		"output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done", "completed"}, short)
}

// TestPrefilledAnswers are gone on with, in each dialect that has them.
func TestPrefilledAnswers(t *testing.T) {
	const begun = `"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"Once"}]`
	for body, want := range map[string]bool{
		`{` + begun + `}`: true,
		`{` + begun + `,"continue_final_message":true}`:                               true,
		`{` + begun + `,"continue_final_message":true,"add_generation_prompt":false}`: true,
		`{` + begun + `,"continue_final_message":false}`:                              false,
		`{` + begun + `,"add_generation_prompt":true}`:                                false,
		`{` + begun + `,` + weather + `}`:                                             false,
		`{` + hi + `}`:                                                                false,
	} {
		f := newFake()
		status, v := post(t, serve(t, f, nil), chatPath, body)
		require.Equal(t, 200, status, "%s: %v", body, v)
		require.Equal(t, want, f.asked()[0].Continue, body)
		require.Equal(t, "Hello, world", at(t, v, "choices", 0, "message", "content"), "what follows")
	}
	h := serve(t, newFake(), nil)
	for body, param := range map[string]string{
		`{` + hi + `,"continue_final_message":true}`:                                 "continue_final_message",
		`{` + hi + `,"add_generation_prompt":false}`:                                 "add_generation_prompt",
		`{` + begun + `,"continue_final_message":true,"add_generation_prompt":true}`: "add_generation_prompt",
		`{` + begun + `,"continue_final_message":true,` + weather + `}`:              "messages",
	} {
		status, v := post(t, h, chatPath, body)
		require.Equal(t, 400, status, body)
		require.Equal(t, param, at(t, v, "error", "param"), body)
	}
	f := newFake()
	h = serve(t, f, nil)
	status, v := post(t, h, "/v1/messages", `{"max_tokens":5,`+begun+`}`)
	require.Equal(t, 200, status, v)
	require.True(t, f.asked()[0].Continue)
	for _, last := range []string{`""`, `[{"type":"tool_use","id":"a","name":"f","input":{}}]`} {
		status, _ = post(t, h, "/v1/messages", `{"max_tokens":5,"messages":[{"role":"user","content":"q"},{"role":"assistant","content":`+last+`}]}`)
		require.Equal(t, 400, status, last)
	}
}

// TestIgnoreEOS is a field of three endpoints.
func TestIgnoreEOS(t *testing.T) {
	for path, body := range map[string]string{chatPath: hi, "/v1/completions": `"prompt":"a"`, "/completion": `"prompt":"a"`} {
		f := newFake()
		status, v := post(t, serve(t, f, nil), path, `{`+body+`,"ignore_eos":true}`)
		require.Equal(t, 200, status, v)
		require.True(t, f.asked()[0].IgnoreEOS, path)
	}
}

// TestPromptsAreOnlyScoredWhereThatIsAskedFor keeps no log-probabilities that nobody sees.
func TestPromptsAreOnlyScoredWhereThatIsAskedFor(t *testing.T) {
	for body, want := range map[string]bool{
		`"max_tokens":0`: false, `"max_tokens":0,"echo":true`: false, `"max_tokens":0,"logprobs":1`: false,
		`"max_tokens":0,"echo":true,"logprobs":1`: true, `"echo":true,"logprobs":0`: true,
	} {
		f := newFake()
		status, v := post(t, serve(t, f, nil), "/v1/completions", `{"prompt":"a",`+body+`}`)
		require.Equal(t, 200, status, v)
		require.Equal(t, want, f.asked()[0].PromptLogprobs, body)
	}
	f := newFake()
	_, _ = post(t, serve(t, f, nil), "/completion", `{"prompt":"a","n_predict":0}`)
	require.True(t, f.asked()[0].ScoreOnly)
	require.False(t, f.asked()[0].PromptLogprobs)
}
