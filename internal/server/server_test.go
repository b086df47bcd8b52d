package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"math"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var nan = math.NaN()

// model is one that opens f.
func model(name string, f *fake) Model {
	return Model{Name: name, Info: f.info, Open: func(context.Context) (Engine, error) { return f, nil }}
}

// serve serves engines by name, "fake" where there is one.
func serve(t *testing.T, f *fake, set func(*Options)) *httptest.Server {
	t.Helper()
	o := Options{Models: []Model{model("fake", f)}, Version: "1.2.3", Timeout: time.Minute,
		format: func(string) format { return fakeFormat{} }, schema: fakeSchema}
	if set != nil {
		set(&o)
	}
	s, err := New(o)
	require.NoError(t, err)
	h := httptest.NewServer(s)
	t.Cleanup(func() {
		h.Close()
		require.NoError(t, s.Close())
	})
	return h
}

// post posts JSON and gives the status and the body.
func post(t *testing.T, h *httptest.Server, path, body string, headers ...string) (int, map[string]any) {
	t.Helper()
	status, data := postRaw(t, h, path, body, headers...)
	var v map[string]any
	require.NoError(t, json.Unmarshal(data, &v), "%s", data)
	return status, v
}

func postRaw(t *testing.T, h *httptest.Server, path, body string, headers ...string) (int, []byte) {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, h.URL+path, strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/json")
	return do(t, r, headers...)
}

func get(t *testing.T, h *httptest.Server, path string, headers ...string) (int, []byte) {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, h.URL+path, nil)
	require.NoError(t, err)
	return do(t, r, headers...)
}

func do(t *testing.T, r *http.Request, headers ...string) (int, []byte) {
	t.Helper()
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
			continue
		}
		r.Header.Set(headers[i], headers[i+1])
	}
	res, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode, data
}

// at is a value in nested JSON: at(v, "choices", 0, "text").
func at(t *testing.T, v any, path ...any) any {
	t.Helper()
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, ok := v.(map[string]any)
			require.True(t, ok, "%v has no %q", v, p)
			v = m[p]
		case int:
			l, ok := v.([]any)
			require.True(t, ok && p < len(l), "%v has no item %d", v, p)
			v = l[p]
		}
	}
	return v
}

// event is one of a stream.
type event struct {
	name string
	data string
}

func (e event) json(t *testing.T) map[string]any {
	t.Helper()
	var v map[string]any
	require.NoError(t, json.Unmarshal([]byte(e.data), &v), "%s", e.data)
	return v
}

// events reads a stream to its end, without the comments.
func events(t *testing.T, data []byte) (list []event) {
	t.Helper()
	var e event
	for scan := bufio.NewScanner(bytes.NewReader(data)); scan.Scan(); {
		line := scan.Text()
		switch {
		case line == "":
			if e != (event{}) {
				list = append(list, e)
			}
			e = event{}
		case strings.HasPrefix(line, "event: "):
			e.name = line[len("event: "):]
		case strings.HasPrefix(line, "data: "):
			e.data = line[len("data: "):]
		default:
			require.True(t, strings.HasPrefix(line, ":"), "%q", line)
		}
	}
	return list
}

const hi = `"messages":[{"role":"user","content":"hi"}]`

func TestChat(t *testing.T) {
	f := newFake()
	h := serve(t, f, nil)
	status, v := post(t, h, "/v1/chat/completions", `{"model":"fake",`+hi+`,"temperature":0.5,"seed":7,"stop":"x","max_tokens":9}`)
	require.Equal(t, 200, status)
	require.Equal(t, "chat.completion", v["object"])
	require.Equal(t, "fake", v["model"])
	require.Equal(t, "gallop-1.2.3", v["system_fingerprint"])
	require.Equal(t, "assistant", at(t, v, "choices", 0, "message", "role"))
	require.Equal(t, "Hello, world", at(t, v, "choices", 0, "message", "content"))
	require.Equal(t, "stop", at(t, v, "choices", 0, "finish_reason"))
	require.Equal(t, 2.0, at(t, v, "usage", "prompt_tokens"))
	require.Equal(t, 12.0, at(t, v, "usage", "completion_tokens"))
	require.Equal(t, 14.0, at(t, v, "usage", "total_tokens"))
	require.Equal(t, 3.0, at(t, v, "usage", "prompt_tokens_details", "cached_tokens"))
	require.Equal(t, map[string]any{"skip": "4,6", "prefill": "full", "layers_run": 10.0, "layers": 12.0, "reason": "because", "task": "math", "escalated": 1.0},
		pick(v["gallop"], "skip", "prefill", "layers_run", "layers", "reason", "task", "escalated"))

	r := f.asked()[0]
	require.Equal(t, []string{"x"}, r.Stop)
	require.Equal(t, 9, r.MaxTokens)
	require.Equal(t, float32(0.5), r.Sampling.Temp)
	require.Equal(t, uint32(7), r.Sampling.Seed)
	require.Equal(t, 33, r.Sampling.TopK, "what the client leaves out is the model's own advice")

	_, _ = post(t, h, "/v1/chat/completions", `{`+hi+`,"max_completion_tokens":8}`)
	require.Equal(t, 8, f.asked()[1].MaxTokens, "the newer name")
}

func pick(v any, names ...string) map[string]any {
	m, picked := v.(map[string]any), map[string]any{}
	for _, n := range names {
		picked[n] = m[n]
	}
	return picked
}

func TestChatStream(t *testing.T) {
	h := serve(t, newFake(), nil)
	status, data := postRaw(t, h, "/v1/chat/completions", `{`+hi+`,"stream":true,"stream_options":{"include_usage":true}}`)
	require.Equal(t, 200, status)
	list := events(t, data)
	require.Equal(t, "[DONE]", list[len(list)-1].data)
	first := list[0].json(t)
	require.Equal(t, "chat.completion.chunk", first["object"])
	require.Equal(t, "assistant", at(t, first, "choices", 0, "delta", "role"))
	text := ""
	for _, e := range list[1 : len(list)-3] {
		v := e.json(t)
		require.Equal(t, first["id"], v["id"])
		text += at(t, v, "choices", 0, "delta", "content").(string)
		require.Nil(t, at(t, v, "choices", 0, "finish_reason"))
	}
	require.Equal(t, "Hello, world", text)
	last := list[len(list)-3].json(t)
	require.Equal(t, "stop", at(t, last, "choices", 0, "finish_reason"))
	require.Equal(t, "4,6", at(t, last, "gallop", "skip"))
	require.Equal(t, 1000.0, at(t, last, "timings", "prompt_ms"))
	usage := list[len(list)-2].json(t)
	require.Empty(t, usage["choices"])
	require.Equal(t, 12.0, at(t, usage, "usage", "completion_tokens"))
}

func TestSeveralAnswers(t *testing.T) {
	f := newFake()
	f.says = func(r gallopRequest) []string { return []string{string(rune('a' + r.Sampling.Seed))} }
	h := serve(t, f, nil)
	_, v := post(t, h, "/v1/chat/completions", `{`+hi+`,"n":3,"seed":1}`)
	for i, want := range []string{"b", "c", "d"} {
		require.Equal(t, want, at(t, v, "choices", i, "message", "content"))
		require.Equal(t, float64(i), at(t, v, "choices", i, "index"))
	}
	require.Equal(t, 2.0, at(t, v, "usage", "prompt_tokens"), "one prompt counts once")
	require.Equal(t, 3.0, at(t, v, "usage", "completion_tokens"))

	_, data := postRaw(t, h, "/v1/chat/completions", `{`+hi+`,"n":2,"seed":1,"stream":true}`)
	texts := map[float64]string{}
	for _, e := range events(t, data) {
		if e.data == "[DONE]" {
			continue
		}
		v := e.json(t)
		if c, ok := at(t, v, "choices", 0, "delta").(map[string]any)["content"].(string); ok {
			texts[at(t, v, "choices", 0, "index").(float64)] += c
		}
	}
	require.Equal(t, map[float64]string{0: "b", 1: "c"}, texts)
}

func TestOneRequestDoesNotFillTheQueue(t *testing.T) {
	f := newFake()
	f.hold = make(chan struct{})
	h := serve(t, f, nil)
	go func() {
		time.Sleep(100 * time.Millisecond)
		close(f.hold)
	}()
	most := int64(0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 90 {
			most = max(most, f.begun.Load()-f.ended.Load())
			time.Sleep(time.Millisecond)
		}
	}()
	status, _ := post(t, h, "/v1/chat/completions", `{`+hi+`,"n":20}`)
	<-done
	require.Equal(t, 200, status)
	require.Equal(t, int64(20), f.ended.Load())
	require.LessOrEqual(t, most, int64(f.info.Parallel))
}

func TestLogprobs(t *testing.T) {
	f := newFake()
	f.says = func(gallopRequest) []string { return []string{"a\xc3", "\xa9"} }
	h := serve(t, f, nil)
	_, v := post(t, h, "/v1/chat/completions", `{`+hi+`,"logprobs":true,"top_logprobs":2}`)
	list := at(t, v, "choices", 0, "logprobs", "content").([]any)
	require.Len(t, list, 3)
	require.Equal(t, "a", at(t, list, 0, "token"))
	require.Equal(t, -0.97, at(t, list, 0, "logprob"))
	require.Equal(t, []any{195.0}, at(t, list, 1, "bytes"), "half a rune")
	require.Len(t, at(t, list, 0, "top_logprobs"), 2)
	require.Equal(t, 2, f.asked()[0].Logprobs)

	_, v = post(t, h, "/v1/chat/completions", `{`+hi+`,"logprobs":true}`)
	require.Empty(t, at(t, v, "choices", 0, "logprobs", "content", 0, "top_logprobs"))
	require.Equal(t, -1, f.asked()[1].Logprobs)
}

func TestCompletions(t *testing.T) {
	f := newFake()
	h := serve(t, f, nil)
	_, v := post(t, h, "/v1/completions", `{"prompt":["one",[116,119]],"n":2,"echo":true}`)
	for i, want := range []string{"oneHello, world", "oneHello, world", "twHello, world", "twHello, world"} {
		require.Equal(t, want, at(t, v, "choices", i, "text"))
	}
	require.Equal(t, 5.0, at(t, v, "usage", "prompt_tokens"))
	require.Equal(t, 16, f.asked()[0].MaxTokens, "OpenAI's default")

	_, data := postRaw(t, h, "/v1/completions", `{"prompt":"one","stream":true,"echo":true}`)
	text := ""
	for _, e := range events(t, data) {
		if e.data != "[DONE]" {
			text += at(t, e.json(t), "choices", 0, "text").(string)
		}
	}
	require.Equal(t, "oneHello, world", text)
}

// TestScoring asks as lm-evaluation-harness does for multiple choice.
func TestScoring(t *testing.T) {
	f := newFake()
	h := serve(t, f, nil)
	_, v := post(t, h, "/v1/completions", `{"model":"fake","prompt":[[99,97,116]],"max_tokens":0,"logprobs":1,"seed":1234,"echo":true,"temperature":0}`)
	r := f.asked()[0]
	require.True(t, r.ScoreOnly && r.PromptLogprobs)
	require.Equal(t, "cat", at(t, v, "choices", 0, "text"))
	l := at(t, v, "choices", 0, "logprobs")
	require.Equal(t, []any{"c", "a", "t"}, at(t, l, "tokens"))
	require.Equal(t, []any{nil, -0.97, -1.16}, at(t, l, "token_logprobs"))
	require.Equal(t, []any{0.0, 1.0, 2.0}, at(t, l, "text_offset"))
	require.Nil(t, at(t, l, "top_logprobs", 0))
	require.Equal(t, map[string]any{"a": 0.0, "t": -1.16}, at(t, l, "top_logprobs", 2), "the token itself is among the top ones")

	_, v = post(t, h, "/v1/completions", `{"prompt":"cat","max_tokens":1,"logprobs":1,"echo":true}`)
	l = at(t, v, "choices", 0, "logprobs")
	require.Len(t, at(t, l, "tokens"), 3+len("Hello, world"), "the answer's tokens follow the prompt's")
	require.Len(t, at(t, l, "top_logprobs"), 15)
}

func TestEmbeddings(t *testing.T) {
	h := serve(t, newFake(), nil)
	_, v := post(t, h, "/v1/embeddings", `{"model":"fake","input":["ab",[1,2,3]]}`)
	require.Equal(t, []any{3.0, 0.0, 0.0, 1.0}, at(t, v, "data", 0, "embedding"), "with BOS")
	require.Equal(t, []any{3.0, 0.0, 0.0, 1.0}, at(t, v, "data", 1, "embedding"))
	require.Equal(t, 6.0, at(t, v, "usage", "total_tokens"))
	_, v = post(t, h, "/v1/embeddings", `{"input":"ab","encoding_format":"base64"}`)
	require.Equal(t, "AABAQAAAAAAAAAAAAACAPw==", at(t, v, "data", 0, "embedding"))
	status, v := post(t, h, "/v1/embeddings", `{"input":"`+strings.Repeat("a", 64)+`"}`)
	require.Equal(t, 400, status)
	require.Contains(t, at(t, v, "error", "message"), "(65 tokens) exceeds the available context size (64 tokens)")
	status, v = post(t, h, "/v1/embeddings", `{"input":"a","dimensions":3}`)
	require.Equal(t, 400, status)
	require.Equal(t, "dimensions", at(t, v, "error", "param"))
}

func TestModels(t *testing.T) {
	f, g := newFake(), newFake()
	h := serve(t, f, func(o *Options) { o.Models = []Model{model("first", f), model("org/second", g)} })
	_, data := get(t, h, "/v1/models")
	var v any
	require.NoError(t, json.Unmarshal(data, &v))
	require.Equal(t, "first", at(t, v, "data", 0, "id"))
	require.Equal(t, "org/second", at(t, v, "last_id"))
	require.Equal(t, 64.0, at(t, v, "data", 0, "meta", "n_ctx"))
	status, data := get(t, h, "/v1/models/org/second")
	require.Equal(t, 200, status)
	require.Contains(t, string(data), `"id":"org/second"`)
	status, _ = get(t, h, "/v1/models/third")
	require.Equal(t, 404, status)

	_, w := post(t, h, "/v1/chat/completions", `{"model":"org/second",`+hi+`}`)
	require.Equal(t, "org/second", w["model"])
	_, w = post(t, h, "/v1/chat/completions", `{`+hi+`}`)
	require.Equal(t, "first", w["model"])
	status, w = post(t, h, "/v1/chat/completions", `{"model":"third",`+hi+`}`)
	require.Equal(t, 404, status)
	require.Equal(t, "model_not_found", at(t, w, "error", "code"))
	require.Equal(t, `there is no model "third"; there are first, org/second`, at(t, w, "error", "message"))
}

// TestSkip says in each way what to leave out.
func TestSkip(t *testing.T) {
	for name, c := range map[string]struct{ body, header, value, want string }{
		"field":              {body: `{"gallop":{"skip":"4,f7"},`, want: "4,f7"},
		"depth":              {body: `{"gallop":{"depth":3},`, want: "depth=3"},
		"quality":            {body: `{"gallop":{"quality":0.98},`, want: "quality=0.98"},
		"route off":          {body: `{"gallop":{"route":"off"},`, want: "off"},
		"route auto":         {body: `{"gallop":{"route":"auto"},`, want: "routed"},
		"nothing":            {body: `{`, want: ""},
		"alias":              {body: `{"model":"fake@skip=4,6",`, want: "4,6"},
		"whole":              {body: `{"model":"fake@whole",`, want: "off"},
		"header":             {body: `{`, header: "X-Gallop-Quality", value: "0.9", want: "quality=0.9"},
		"field over header":  {body: `{"gallop":{"skip":"4"},`, header: "X-Gallop-Depth", value: "2", want: "4"},
		"header over alias":  {body: `{"model":"fake@whole",`, header: "X-Gallop-Depth", value: "2", want: "depth=2"},
		"all of the grammar": {body: `{"gallop":{"skip":"4 prefill=full escalate=0.5"},`, want: "4 prefill=full escalate=0.5"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			h := serve(t, f, nil)
			var headers []string
			if c.header != "" {
				headers = []string{c.header, c.value}
			}
			status, v := post(t, h, "/v1/chat/completions", c.body+hi+`}`, headers...)
			require.Equal(t, 200, status, v)
			require.Equal(t, c.want, f.asked()[0].Skip.String())
			require.Equal(t, "fake", v["model"])
		})
	}
	f := newFake()
	h := serve(t, f, nil)
	_, _ = post(t, h, "/v1/messages", `{"model":"x@lossless@depth=2","max_tokens":5,`+hi+`}`)
	require.True(t, f.asked()[0].Lossless)
	require.Equal(t, "depth=2", f.asked()[0].Skip.String())
	for body, message := range map[string]string{
		`{"gallop":{"depth":3,"quality":0.9},`: "exclude each other",
		`{"gallop":{"skip":"x"},`:              "gallop: ",
		`{"gallop":{"depht":3},`:               "gallop.depht",
		`{"gallop":{"route":"maybe"},`:         "want auto or off",
		`{"gallop":{"quality":2},`:             "want above 0 to 1",
		`{"model":"fake@wohle",`:               "not @wohle",
		`{"model":"fake@depth=x",`:             "want a number",
	} {
		status, v := post(t, h, "/v1/chat/completions", body+hi+`}`)
		require.Equal(t, 400, status, body)
		require.Contains(t, at(t, v, "error", "message"), message)
	}
}

func TestDetail(t *testing.T) {
	f := newFake()
	h := serve(t, f, nil)
	_, data := postRaw(t, h, "/v1/chat/completions", `{`+hi+`,"stream":true,"gallop":{"detail":true}}`)
	list := events(t, data)
	text := ""
	for _, e := range list[1 : len(list)-2] {
		for _, token := range at(t, e.json(t), "gallop", "tokens").([]any) {
			require.Equal(t, "mask", at(t, token, "source"))
			require.Less(t, at(t, token, "logprob"), 0.0)
			text += at(t, token, "text").(string)
		}
	}
	require.Equal(t, "Hello, world", text)
	_, v := post(t, h, "/v1/chat/completions", `{`+hi+`,"gallop":{"detail":true}}`)
	require.Len(t, at(t, v, "gallop", "tokens"), len("Hello, world"))
	require.Nil(t, at(t, v, "choices", 0, "logprobs"), "that was not asked for")
	require.Zero(t, f.asked()[0].Logprobs, "which would turn the shortlist off")
}

func TestNative(t *testing.T) {
	f := newFake()
	h := serve(t, f, nil)
	status, data := get(t, h, "/health")
	require.Equal(t, 200, status)
	require.JSONEq(t, `{"status":"ok"}`, string(data))

	_, v := post(t, h, "/tokenize", `{"content":"hé","add_special":true}`)
	require.Equal(t, []any{1.0, 104.0, 195.0, 169.0}, v["tokens"])
	_, v = post(t, h, "/tokenize", `{"content":"hé","with_pieces":true}`)
	require.Equal(t, "h", at(t, v, "tokens", 0, "piece"))
	require.Equal(t, []any{195.0}, at(t, v, "tokens", 1, "piece"))
	_, v = post(t, h, "/detokenize", `{"tokens":[104,105]}`)
	require.Equal(t, "hi", v["content"])
	status, v = post(t, h, "/detokenize", `{"tokens":[104,256]}`)
	require.Equal(t, 400, status)
	require.Equal(t, "256 is no token of the model, want 0 to 255", at(t, v, "error", "message"))
	_, v = post(t, h, "/apply-template", `{`+hi+`}`)
	require.Equal(t, "hi", v["prompt"])

	_, data = get(t, h, "/props?model=fake")
	var props any
	require.NoError(t, json.Unmarshal(data, &props))
	require.Equal(t, 2.0, at(t, props, "total_slots"))
	require.Equal(t, 64.0, at(t, props, "n_ctx"))
	require.Equal(t, 64.0, at(t, props, "default_generation_settings", "n_ctx"))
	require.Equal(t, "{{ messages }}", at(t, props, "chat_template"))
	require.Equal(t, 12.0, at(t, props, "layers"))
	require.Equal(t, 33.0, at(t, props, "default_generation_settings", "params", "top_k"))
	require.Equal(t, map[string]any{"name": "fake", "loaded": true, "layers": 12.0, "n_ctx": 64.0, "profile": true}, at(t, props, "models", 0))

	_, data = get(t, h, "/slots")
	var slots any
	require.NoError(t, json.Unmarshal(data, &slots))
	require.Len(t, slots, 2)
	require.Equal(t, false, at(t, slots, 0, "is_processing"))
	require.Equal(t, 64.0, at(t, slots, 0, "n_ctx"))
}

func TestNativeCompletion(t *testing.T) {
	f := newFake()
	h := serve(t, f, nil)
	_, v := post(t, h, "/completion", `{"prompt":"abc","n_predict":-1,"n_probs":2,"return_tokens":true,"top_p":0,"logit_bias":[[5,false],["hi",1.5]],"typical_p":1.0,"cache_prompt":true}`)
	require.Equal(t, "Hello, world", v["content"])
	require.Equal(t, true, v["stop"])
	require.Equal(t, "eos", v["stop_type"])
	require.Equal(t, false, v["truncated"])
	require.Equal(t, 3.0, v["tokens_evaluated"])
	require.Equal(t, 3.0, v["tokens_cached"])
	require.Equal(t, 12.0, v["tokens_predicted"])
	require.Len(t, v["tokens"], 12)
	require.Len(t, v["completion_probabilities"], 12)
	require.Len(t, at(t, v, "completion_probabilities", 0, "top_logprobs"), 2)
	require.Equal(t, 64.0, at(t, v, "generation_settings", "n_ctx"))
	require.Equal(t, 0.0, at(t, v, "generation_settings", "top_p"))
	for _, name := range []string{"cache_n", "prompt_n", "prompt_ms", "prompt_per_token_ms", "prompt_per_second", "predicted_n", "predicted_ms", "predicted_per_token_ms", "predicted_per_second"} {
		require.Contains(t, v["timings"], name)
	}
	r := f.asked()[0]
	require.Zero(t, r.MaxTokens)
	require.True(t, math.IsInf(float64(r.Sampling.LogitBias[5]), -1))
	require.Equal(t, float32(1.5), r.Sampling.LogitBias['h'])

	_, data := postRaw(t, h, "/completion", `{"prompt":[1,2],"stream":true}`)
	list := events(t, data)
	require.Len(t, list, 4)
	require.Equal(t, "Hello", list[0].json(t)["content"])
	require.Equal(t, false, list[0].json(t)["stop"])
	require.Equal(t, true, list[3].json(t)["stop"])
	require.Contains(t, list[3].json(t), "timings")

	_, data = postRaw(t, h, "/completion", `{"prompt":["a","b"]}`)
	var two []any
	require.NoError(t, json.Unmarshal(data, &two))
	require.Equal(t, 1.0, at(t, two, 1, "index"))
}

// TestQuickWhileBusy asks what must not wait for a decode.
func TestQuickWhileBusy(t *testing.T) {
	f := newFake()
	f.hold = make(chan struct{})
	h := serve(t, f, nil)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = post(t, h, "/v1/chat/completions", `{`+hi+`,"n":2}`)
	}()
	require.Eventually(t, func() bool { return f.begun.Load() == 2 }, 10*time.Second, time.Millisecond)
	for _, path := range []string{"/health", "/metrics", "/props", "/slots", "/v1/models"} {
		status, _ := get(t, h, path)
		require.Equal(t, 200, status, path)
	}
	_, data := get(t, h, "/slots")
	require.Contains(t, string(data), `"is_processing":true`)
	close(f.hold)
	<-ended
}

// TestReady follows the queue: at three quarters of its room new requests should go elsewhere.
func TestReady(t *testing.T) {
	f := newFake()
	f.info.Queue = 8
	h := serve(t, f, nil)
	_, _ = post(t, h, chatPath, `{`+hi+`}`) // loads the model
	for waiting, want := range map[int64]int{0: 200, 5: 200, 6: 503, 8: 503} {
		f.waiting.Store(waiting)
		status, data := get(t, h, "/ready")
		require.Equal(t, want, status, waiting)
		if want == 503 {
			require.Contains(t, string(data), strconv.Itoa(int(waiting))+" requests wait for model fake, which has room for 8")
		}
		status, _ = get(t, h, "/health")
		require.Equal(t, 200, status)
	}
	f.info.Queue = 0 // no queue: requests beyond those that run are refused anyway
	status, _ := get(t, h, "/ready")
	require.Equal(t, 200, status)
}

// TestLogsLeaveProbesOut: what is asked for every few seconds would hide the rest.
func TestLogsLeaveProbesOut(t *testing.T) {
	var log bytes.Buffer
	h := serve(t, newFake(), func(o *Options) { o.Logger = slog.New(slog.NewJSONHandler(&log, nil)) })
	for _, path := range []string{"/health", "/v1/health", "/ready", "/metrics"} {
		status, _ := get(t, h, path)
		require.Equal(t, 200, status)
	}
	require.Empty(t, log.String())
	_, _ = get(t, h, "/v1/models")
	require.Equal(t, 1, strings.Count(log.String(), "\n"))
}

// TestLogsSayWhyTheCacheWasMissed where an answer's usage has no cached tokens.
func TestLogsSayWhyTheCacheWasMissed(t *testing.T) {
	var log bytes.Buffer
	f := newFake()
	h := serve(t, f, func(o *Options) { o.Logger = slog.New(slog.NewJSONHandler(&log, nil)) })
	_, _ = post(t, h, chatPath, `{`+hi+`}`)
	require.Contains(t, log.String(), `"cached_tokens":3`)
	require.NotContains(t, log.String(), "cache_missed")
	f.missed = "the first token is another one"
	_, v := post(t, h, chatPath, `{`+hi+`}`)
	require.Equal(t, 0.0, at(t, v, "usage", "prompt_tokens_details", "cached_tokens"))
	require.Contains(t, log.String(), `"cache_missed":"the first token is another one"`)
}

func TestLogsTellNothingOfPrompts(t *testing.T) {
	var log bytes.Buffer
	f := newFake()
	f.says = func(gallopRequest) []string { return []string{"secretanswer"} }
	h := serve(t, f, func(o *Options) {
		o.Logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		o.Keys = []string{"secretkey"}
	})
	_, _ = post(t, h, "/v1/chat/completions?q=secretquery", `{"messages":[{"role":"user","content":"secretprompt"}]}`, "Authorization", "Bearer secretkey")
	_, _ = post(t, h, "/v1/chat/completions", `{"messages":[{"role":"secretrole","content":"secretprompt"}]}`, "Authorization", "Bearer secretkey")
	_, _ = post(t, h, "/v1/chat/completions", `{}`, "Authorization", "Bearer secretwrong")
	require.Contains(t, log.String(), `"generated_tokens":12`)
	require.Contains(t, log.String(), `"status":401`)
	require.NotContains(t, log.String(), "secret")
}
