package server

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzHTTP sends any body to any path: each gets an answer or a refusal, in JSON or as events,
// and what the engine is asked is within its bounds.
func FuzzHTTP(f *testing.F) {
	paths := []string{chatPath, "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages", "/v1/messages/count_tokens",
		"/completion", "/tokenize", "/detokenize", "/apply-template"}
	for i, body := range []string{
		`{` + hi + `,"stream":true,"n":2,"logprobs":true,"top_logprobs":2,"stop":["a"],"logit_bias":{"5":1.5},"seed":3}`,
		`{"prompt":["a",[1,2]],"echo":true,"logprobs":1,"max_tokens":0}`,
		`{"input":["a",[1]],"encoding_format":"base64"}`,
		`{"input":[{"role":"user","content":"a"},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},{"type":"function_call_output","call_id":"c","output":"o"}],"stream":true}`,
		`{"max_tokens":5,"system":"x-anthropic-billing-header: a\nb","messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":"c"}]}]}`,
		`{"messages":[{"role":"assistant","content":[{"type":"tool_use","id":"a","name":"b","input":{}}]},{"role":"user","content":"x"}],"tools":[{"name":"b","input_schema":{}}]}`,
		`{"prompt":"a","n_predict":3,"n_probs":2,"logit_bias":[[5,false],["a",1]],"stream":true,"json_schema":{}}`,
		`{"content":"a","with_pieces":true}`, `{"tokens":[97,300,-1]}`, `{` + hi + `,` + weather + `}`,
	} {
		f.Add(i, body, "fake@quality=0.5", "4,f7")
	}
	f.Add(0, `{"messages":[{"role":"tool","content":null,"tool_call_id":null}]}`, "@", "depth=1 prefill=full")
	f.Add(4, strings.Repeat(`[`, 200), "@@=", "")
	engine := newFake()
	engine.says = func(gallopRequest) []string { return []string{"(a)b", "[c {}"} }
	s, err := New(Options{Models: []Model{model("fake", engine)}, format: func(string) format { return fakeFormat{} }, schema: fakeSchema})
	if err != nil {
		f.Fatal(err)
	}
	defer s.Close()
	f.Fuzz(func(t *testing.T, path int, body, name, skip string) {
		var o map[string]any
		if name != "" && json.Unmarshal([]byte(body), &o) == nil && o != nil && o["model"] == nil {
			o["model"] = name
			data, _ := json.Marshal(o)
			body = string(data)
		}
		at := paths[uint(path)%uint(len(paths))]
		r := httptest.NewRequest(http.MethodPost, "http://localhost"+at, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		if !strings.ContainsAny(skip, "\r\n") {
			r.Header["X-Gallop-Skip"] = []string{skip}
		}
		engine.mu.Lock()
		engine.requests = nil
		engine.mu.Unlock()
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		out := w.Body.Bytes()
		switch {
		case w.Code >= 500:
			t.Fatalf("%s %q: %d %s", at, body, w.Code, out)
		case !utf8.Valid(out):
			t.Fatalf("%s %q: no UTF-8 in %q", at, body, out)
		case w.Header().Get("Content-Type") == "application/json":
			if !json.Valid(out) {
				t.Fatalf("%s %q: no JSON in %s", at, body, out)
			}
		default:
			for _, e := range events(t, out) {
				if e.data != "[DONE]" && !json.Valid([]byte(e.data)) {
					t.Fatalf("%s %q: no JSON in %s", at, body, e.data)
				}
			}
		}
		for _, r := range engine.asked() {
			sampling := *r.Sampling
			sampling.Grammar = "" // the fake's are none
			if err := sampling.Check(); err != nil {
				t.Fatalf("%s %q: %v", at, body, err)
			}
			if r.MaxTokens < 0 || r.Logprobs < -1 || r.Logprobs > 100 || len(r.Messages) == 0 && r.Prompt == "" && len(r.Tokens) == 0 {
				t.Fatalf("%s %q: asks %+v", at, body, r)
			}
			for _, m := range r.Messages {
				if m.Fields != nil && !json.Valid(m.Fields) {
					t.Fatalf("%s %q: fields %s", at, body, m.Fields)
				}
			}
		}
	})
}
