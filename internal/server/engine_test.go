package server

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
)

// serveDemo serves the demo model. isolate lets no answer depend on others.
func serveDemo(t *testing.T, isolate bool, keys ...string) *httptest.Server {
	t.Helper()
	path, err := demo.Path()
	require.NoError(t, err)
	return serveModel(t, path, &gallop.Options{Parallel: 4, Isolate: isolate, Context: llama.ContextOptions{NCtx: 512, Threads: 1, ThreadsBatch: 1}}, keys...)
}

// serveModel serves the model of a file as "demo".
func serveModel(t *testing.T, path string, o *gallop.Options, keys ...string) *httptest.Server {
	t.Helper()
	llamatest.Library(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	s, err := New(Options{Keys: keys, Models: []Model{{Name: "demo", Open: func(ctx context.Context) (Engine, error) {
		e, err := gallop.Open(ctx, path, o)
		if err != nil {
			return nil, err
		}
		return Of(e), nil
	}}}})
	require.NoError(t, err)
	h := httptest.NewServer(s)
	t.Cleanup(func() {
		h.Close()
		require.NoError(t, s.Close())
	})
	return h
}

// TestDemo asks the demo model in each dialect, and gets one answer from all.
func TestDemo(t *testing.T) {
	h := serveDemo(t, false)
	const ask = `"messages":[{"role":"user","content":"What is 12 plus 7?"}],"temperature":0,"max_tokens":20,"gallop":{"route":"off"}`
	_, v := post(t, h, chatPath, `{`+ask+`}`)
	want := at(t, v, "choices", 0, "message", "content").(string)
	require.Contains(t, want, "19")
	require.Equal(t, "stop", at(t, v, "choices", 0, "finish_reason"))
	require.Equal(t, "", at(t, v, "gallop", "skip"))

	_, v = post(t, h, "/v1/messages", `{`+ask+`}`)
	require.Equal(t, want, at(t, v, "content", 0, "text"))
	require.Equal(t, "end_turn", v["stop_reason"])
	require.Positive(t, at(t, v, "usage", "cache_read_input_tokens"), "the same prompt again")
	_, v = post(t, h, "/v1/responses", `{"input":"What is 12 plus 7?","temperature":0,"gallop":{"route":"off"}}`)
	require.Equal(t, want, at(t, v, "output", 0, "content", 0, "text"))

	_, v = post(t, h, "/apply-template", `{"messages":[{"role":"user","content":"What is 12 plus 7?"}]}`)
	prompt, err := json.Marshal(v["prompt"])
	require.NoError(t, err)
	_, v = post(t, h, "/completion", `{"prompt":`+string(prompt)+`,"temperature":0,"n_probs":1,"gallop":{"route":"off"}}`)
	require.Equal(t, want, v["content"])
	require.Equal(t, "eos", v["stop_type"])
	_, v = post(t, h, "/v1/completions", `{"prompt":`+string(prompt)+`,"temperature":0,"max_tokens":20,"gallop":{"route":"off"}}`)
	require.Equal(t, want, at(t, v, "choices", 0, "text"))

	_, v = post(t, h, chatPath, `{`+strings.Replace(ask, `"route":"off"`, `"skip":"f2","detail":true`, 1)+`}`)
	require.Equal(t, "f2", at(t, v, "gallop", "skip"))
	require.NotEmpty(t, at(t, v, "gallop", "tokens"))
	require.Less(t, at(t, v, "gallop", "weights_share"), 1.0)
	require.Greater(t, at(t, v, "gallop", "weights_share"), 0.5)
	begun, rest := want[:len(want)/2], want[len(want)/2:] // TestContinue has more
	_, v = post(t, h, chatPath, `{"messages":[{"role":"user","content":"What is 12 plus 7?"},{"role":"assistant","content":`+fmt.Sprintf("%q", begun)+`}],"temperature":0,"max_tokens":20,"gallop":{"route":"off"}}`)
	require.Equal(t, rest, at(t, v, "choices", 0, "message", "content"))
	_, v = post(t, h, "/v1/messages/count_tokens", `{"messages":[{"role":"user","content":"What is 12 plus 7?"}]}`)
	require.Greater(t, v["input_tokens"], 5.0)
}

// TestDemoReusesAgentsPrompts asks as coding agents do, which change the first line of their
// system prompt each time.
func TestDemoReusesAgentsPrompts(t *testing.T) {
	h := serveDemo(t, false)
	cached := 0.0
	for i := range 2 {
		_, v := post(t, h, "/v1/messages", fmt.Sprintf(`{"max_tokens":5,"system":[{"type":"text","text":"x-anthropic-billing-header: cc_version=2.1; cch=%05d;"},
			{"type":"text","text":"You are an agent."}],"messages":[{"role":"user","content":"%s What is 12 plus 7?"}]}`, i, strings.Repeat("Be brief. ", 20)))
		cached = at(t, v, "usage", "cache_read_input_tokens").(float64)
	}
	require.Greater(t, cached, 20.0)
}

// serveRandom serves a model of random weights with room for so many tokens; change changes its file.
func serveRandom(t *testing.T, nCtx int, change func(path string) string) *httptest.Server {
	t.Helper()
	llamatest.Library(t)
	spec := randmodel.Tiny(2)
	spec.Context = nCtx
	path := llamatest.Write(t, spec)
	if change != nil {
		path = change(path)
	}
	return serveModel(t, path, &gallop.Options{Parallel: 1, Shortlist: -1, NoCosts: true, Context: llama.ContextOptions{NCtx: nCtx, Threads: 1, ThreadsBatch: 1}})
}

// TestAgentsTransport answers requests as a coding agent sends them: a system prompt of 10,000
// tokens behind a line that changes each time, blocks with cache marks, tools, a stream, a
// result of a tool. The second one reuses the prefix.
func TestAgentsTransport(t *testing.T) {
	h := serveRandom(t, 16384, nil)
	system, err := json.Marshal(strings.Repeat("Follow all of these rules. ", 10_000/25)) // whose tokens are bytes, mostly
	require.NoError(t, err)
	body := func(turn int, more string) string {
		return fmt.Sprintf(`{"model":"claude-opus-4","max_tokens":3,"stream":true,"temperature":1,"metadata":{"user_id":"u"},
			"system":[{"type":"text","text":"x-anthropic-billing-header: cc_version=2.1.0; cch=%05d;"},{"type":"text","text":"You are an agent."},{"type":"text","text":%s,"cache_control":{"type":"ephemeral"}}],
			"tools":[{"name":"Bash","description":"Runs a command.","input_schema":{"$schema":"http://json-schema.org/draft-07/schema#","type":"object","properties":{"command":{"type":"string","description":"to run"},"timeout":{"type":"number"}},"required":["command"],"additionalProperties":false}}],
			"messages":[{"role":"user","content":[{"type":"text","text":"<system-reminder>now</system-reminder>"},{"type":"text","text":"List the files.","cache_control":{"type":"ephemeral"}}]}%s]}`, turn, system, more)
	}
	usage := func(body string) (prompt, cached float64) {
		status, data := postRaw(t, h, "/v1/messages?beta=true", body, "anthropic-version", "2023-06-01", "anthropic-beta", "claude-code-20250219", "x-api-key", "any")
		require.Equal(t, 200, status, "%s", data)
		list := events(t, data)
		require.Equal(t, "message_stop", list[len(list)-1].name)
		u := at(t, list[len(list)-2].json(t), "usage")
		cached, _ = at(t, u, "cache_read_input_tokens").(float64)
		return at(t, u, "input_tokens").(float64) + cached, cached
	}
	prompt, cached := usage(body(1, ""))
	require.Greater(t, prompt, 9000.0)
	require.Zero(t, cached)
	longer, cached := usage(body(2, `,{"role":"assistant","content":[{"type":"text","text":"I see."},{"type":"tool_use","id":"toolu_abcdefghi","name":"Bash","input":{"command":"ls"}}]},
		{"role":"user","content":[{"type":"tool_result","tool_use_id":"toolu_abcdefghi","content":"a.go","cache_control":{"type":"ephemeral"}}]}`))
	require.Greater(t, longer, prompt)
	require.Greater(t, cached, 9000.0, "the line that changes is not a part of the prompt")
}

// TestModelThatIsBroken has NaN for logits: its answers are JSON or an error, and others can
// still be asked for.
func TestModelThatIsBroken(t *testing.T) {
	h := serveRandom(t, 256, func(path string) string { return llamatest.NaNs(t, path, "output_norm.weight") })
	for _, more := range []string{"", `,"temperature":0`, `,"logprobs":true,"top_logprobs":3`, `,"gallop":{"detail":true}`} {
		_, v := post(t, h, chatPath, `{`+hi+`,"max_tokens":3`+more+`}`) // it is JSON
		require.True(t, v["choices"] != nil || v["error"] != nil, v)
	}
	_, v := post(t, h, "/v1/completions", `{"prompt":"abc","max_tokens":0,"echo":true,"logprobs":2}`)
	require.True(t, v["choices"] != nil || v["error"] != nil, v)
	status, _ := get(t, h, "/health")
	require.Equal(t, 200, status)
}

// TestDemoScores gives the log-probabilities of choices, which sum up to what the tokens say.
func TestDemoScores(t *testing.T) {
	h := serveDemo(t, false)
	score := func(text string) float64 {
		_, v := post(t, h, "/v1/completions", `{"prompt":`+fmt.Sprintf("%q", text)+`,"max_tokens":0,"echo":true,"logprobs":1,"temperature":0,"gallop":{"route":"off"}}`)
		l := at(t, v, "choices", 0, "logprobs")
		require.Nil(t, at(t, l, "token_logprobs", 0))
		require.Equal(t, text, at(t, v, "choices", 0, "text"))
		offsets, last := at(t, l, "text_offset").([]any), 0.0
		for _, o := range offsets {
			require.GreaterOrEqual(t, o, last)
			last = o.(float64)
		}
		require.Less(t, last, float64(len(text)))
		sum := 0.0
		for i, p := range at(t, l, "token_logprobs").([]any)[1:] {
			sum += p.(float64)
			require.GreaterOrEqual(t, len(at(t, l, "top_logprobs", i+1).(map[string]any)), 1)
		}
		return sum
	}
	require.Greater(t, score("Q: What is 3 plus 4?\nA: 7"), score("Q: What is 3 plus 4?\nA: purple"))
	_, v := post(t, h, "/v1/embeddings", `{"input":["one","two"]}`)
	require.NotEqual(t, at(t, v, "data", 0, "embedding"), at(t, v, "data", 1, "embedding"))
}

// TestDemoFollowsGrammars constrains answers by a schema, and by a tool that must be called.
func TestDemoFollowsGrammars(t *testing.T) {
	h := serveDemo(t, false)
	status, v := post(t, h, chatPath, `{`+hi+`,"max_tokens":60,"response_format":{"type":"json_schema","json_schema":{"schema":{"type":"object","properties":{"a":{"enum":["x","y"]}},"required":["a"],"additionalProperties":false}}}}`)
	require.Equal(t, 200, status, v)
	var document struct{ A string }
	require.NoError(t, json.Unmarshal([]byte(at(t, v, "choices", 0, "message", "content").(string)), &document), v)
	require.Contains(t, []string{"x", "y"}, document.A)

	status, v = post(t, h, chatPath, `{`+hi+`,"max_tokens":60,"tool_choice":"required","tools":[{"type":"function","function":{"name":"choose","parameters":{"type":"object","properties":{"a":{"enum":["x","y"]}},"required":["a"],"additionalProperties":false}}}]}`)
	require.Equal(t, 200, status, v)
	require.Equal(t, "tool_calls", at(t, v, "choices", 0, "finish_reason"), v)
	require.Equal(t, "choose", at(t, v, "choices", 0, "message", "tool_calls", 0, "function", "name"))
	require.NoError(t, json.Unmarshal([]byte(at(t, v, "choices", 0, "message", "tool_calls", 0, "function", "arguments").(string)), &document))

	// A limit cuts the call off. The model's likeliest tokens are line breaks, which must not come.
	for limit, arguments := range map[int]bool{3: false, 30: true} {
		status, v = post(t, h, chatPath, fmt.Sprintf(`{`+hi+`,"temperature":0,"max_tokens":%d,"tool_choice":"required","tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"a":{"type":"string","minLength":100}},"required":["a"]}}}]}`, limit))
		require.Equal(t, 200, status, v)
		require.Equal(t, "length", at(t, v, "choices", 0, "finish_reason"), v)
		message := at(t, v, "choices", 0, "message").(map[string]any)
		require.Contains(t, []any{nil, ""}, message["content"])
		require.Equal(t, arguments, message["tool_calls"] != nil, v)
	}

	status, v = post(t, h, chatPath, `{`+hi+`,"response_format":{"type":"json_schema","json_schema":{"schema":{"type":"array","uniqueItems":true}}}}`)
	require.Equal(t, 400, status)
	require.Contains(t, at(t, v, "error", "message"), "uniqueItems")
	status, v = post(t, h, chatPath, `{`+hi+`,"max_tokens":5,"response_format":{"type":"json_object"}}`)
	require.Equal(t, 200, status, v)
	status, v = post(t, h, chatPath, `{`+hi+`,"grammar":"root ::= ("}`)
	require.Equal(t, 400, status, v)
}

// TestControlTokens are text where a client writes them into a message.
func TestControlTokens(t *testing.T) {
	h := serveDemo(t, false)
	count := func(content string) float64 {
		text, err := json.Marshal(content)
		require.NoError(t, err)
		_, v := post(t, h, "/v1/messages/count_tokens", `{"messages":[{"role":"user","content":`+string(text)+`},{"role":"assistant","content":"a"},{"role":"user","content":"b"}]}`)
		return v["input_tokens"].(float64)
	}
	_, v := post(t, h, "/apply-template", `{`+hi+`}`)
	control := v["prompt"].(string)[:strings.Index(v["prompt"].(string), ">")+1]
	_, v = post(t, h, "/tokenize", `{"content":`+fmt.Sprintf("%q", control)+`}`)
	require.Len(t, v["tokens"], 1, "%s is a control token", control)
	_, v = post(t, h, "/tokenize", `{"parse_special":false,"content":`+fmt.Sprintf("%q", control)+`}`)
	asText := len(v["tokens"].([]any))
	require.Greater(t, asText, 1)
	require.GreaterOrEqual(t, count("x "+control)-count("x "), float64(asText)-1)
}

// TestDemoTogether gives many clients at once, half of which stream, what each gets alone; some
// leave in the middle.
func TestDemoTogether(t *testing.T) {
	h := serveDemo(t, true)
	body := func(i int, stream bool) string {
		return fmt.Sprintf(`{"messages":[{"role":"user","content":"What is %d plus %d?"}],"temperature":0,"max_tokens":20,"stream":%t,"gallop":{"route":"off"}}`, i, i+3, stream)
	}
	const clients = 24
	alone := make([]string, clients)
	for i := range alone {
		_, v := post(t, h, chatPath, body(i, false))
		alone[i] = at(t, v, "choices", 0, "message", "content").(string)
	}
	together := make([]string, clients)
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL+chatPath, strings.NewReader(body(i, i%2 == 0)))
			if err != nil {
				return
			}
			r.Header.Set("Content-Type", "application/json")
			res, err := http.DefaultClient.Do(r)
			if err != nil {
				return
			}
			defer res.Body.Close()
			if i%6 == 0 { // a stream
				_, _ = io.ReadFull(res.Body, make([]byte, 300))
				together[i] = alone[i]
				return
			}
			data, err := io.ReadAll(res.Body)
			if err == nil {
				together[i] = contentOf(data)
			}
		})
	}
	all.Wait()
	require.Equal(t, alone, together)
}

// contentOf is the text of a chat completion, streamed or not.
func contentOf(data []byte) (text string) {
	for line := range strings.Lines(string(data)) {
		var v struct {
			Choices []struct{ Message, Delta struct{ Content string } }
		}
		if json.Unmarshal([]byte(strings.TrimPrefix(line, "data: ")), &v) == nil && len(v.Choices) > 0 {
			text += v.Choices[0].Message.Content + v.Choices[0].Delta.Content
		}
	}
	return text
}
