package server

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const chatPath = "/v1/chat/completions"

// TestHost refuses pages whose name was made to point at this machine.
func TestHost(t *testing.T) {
	h := serve(t, newFake(), func(o *Options) { o.Hosts = []string{"Gallop.example"} })
	for host, want := range map[string]int{
		"localhost": 200, "localhost:8080": 200, "127.0.0.1:8080": 200, "[::1]:8080": 200, "192.168.1.7": 200, "LOCALHOST.": 200,
		"gallop.example": 200, "gallop.example:80": 200, "app.localhost": 200,
		"evil.example": 403, "evil.example:8080": 403, "localhost.evil.example": 403, "127.0.0.1.evil.example": 403, "evil-localhost": 403,
	} {
		status, _ := postRaw(t, h, chatPath, `{`+hi+`}`, "Host", host)
		require.Equal(t, want, status, host)
		status, _ = get(t, h, "/health", "Host", host)
		require.Equal(t, want, status, host)
	}
}

// TestOrigin refuses posts of web pages of others, but for allowed ones.
func TestOrigin(t *testing.T) {
	f := newFake()
	h := serve(t, f, func(o *Options) { o.Origins = []string{"https://ours.example"} })
	own := h.URL
	for origin, want := range map[string]int{
		own: 200, "https://ours.example": 200, "": 200,
		"https://evil.example": 403, "null": 403, "http://localhost:1": 403, "http://ours.example": 403, "https://ours.example.evil": 403, "file://": 403,
	} {
		status, _ := postRaw(t, h, chatPath, `{`+hi+`}`, "Origin", origin)
		require.Equal(t, want, status, origin)
	}
	require.Len(t, f.asked(), 3, "what is refused is not answered either")

	ask := func(origin string) *http.Response {
		r, err := http.NewRequest(http.MethodOptions, h.URL+chatPath, nil)
		require.NoError(t, err)
		r.Header.Set("Origin", origin)
		r.Header.Set("Access-Control-Request-Method", "POST")
		res, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		res.Body.Close()
		return res
	}
	res := ask("https://ours.example")
	require.Equal(t, 204, res.StatusCode)
	require.Equal(t, "https://ours.example", res.Header.Get("Access-Control-Allow-Origin"))
	res = ask("https://evil.example")
	require.Equal(t, 403, res.StatusCode)
	require.Empty(t, res.Header.Get("Access-Control-Allow-Origin"))
}

// TestContentType refuses what forms of other pages can send.
func TestContentType(t *testing.T) {
	h := serve(t, newFake(), nil)
	for kind, want := range map[string]int{
		"application/json": 200, "application/json; charset=utf-8": 200, "Application/JSON; charset=UTF-8": 200,
		"text/plain": 415, "application/x-www-form-urlencoded": 415, "multipart/form-data; boundary=x": 415, "": 415,
		"application/json; charset=utf-16": 415, "application/jsonx": 415, "text/plain; application/json": 415,
	} {
		for _, path := range []string{chatPath, "/v1/completions", "/v1/responses", "/v1/messages", "/completion", "/v1/embeddings", "/tokenize", "/detokenize", "/apply-template", "/v1/messages/count_tokens"} {
			status, _ := postRaw(t, h, path, `{`+hi+`}`, "Content-Type", kind)
			require.Equal(t, want == 415, status == 415, "%s %s", path, kind)
		}
	}
	status, _ := postRaw(t, h, chatPath, `{`+hi+`}`, "Content-Encoding", "gzip")
	require.Equal(t, 415, status)
}

func TestKey(t *testing.T) {
	f := newFake()
	h := serve(t, f, func(o *Options) { o.Keys = []string{"one", "two"} })
	for header, want := range map[string]int{
		"Bearer one": 200, "bearer two": 200, "Bearer  two ": 200, "Bearer on": 401, "Bearer onee": 401, "Bearer ": 401, "Basic one": 401, "one": 401, "": 401,
	} {
		status, _ := postRaw(t, h, chatPath, `{`+hi+`}`, "Authorization", header)
		require.Equal(t, want, status, header)
	}
	require.Len(t, f.asked(), 3)
	status, _ := postRaw(t, h, "/v1/messages", `{"max_tokens":5,`+hi+`}`, "X-Api-Key", "two")
	require.Equal(t, 200, status)
	for _, path := range []string{"/metrics", "/props", "/slots", "/v1/models", "/v1/models/fake"} {
		status, _ = get(t, h, path)
		require.Equal(t, 401, status, path)
		status, _ = get(t, h, path, "Authorization", "Bearer one")
		require.Equal(t, 200, status, path)
	}
	status, _ = get(t, h, "/health")
	require.Equal(t, 200, status)
	status, v := post(t, h, "/v1/messages", `{}`)
	require.Equal(t, 401, status)
	require.Equal(t, "authentication_error", at(t, v, "error", "type"))
}

// TestKeysAreHashes compares what has the same length for each key, and is not the key: there is
// no early end whose time would tell how much of a key is right.
func TestKeysAreHashes(t *testing.T) {
	s, err := New(Options{Models: []Model{model("fake", newFake())}, Keys: []string{strings.Repeat("k", 1000), "k"}})
	require.NoError(t, err)
	defer s.Close()
	require.Equal(t, [][sha256.Size]byte{sha256.Sum256([]byte(strings.Repeat("k", 1000))), sha256.Sum256([]byte("k"))}, s.keys)
	require.Nil(t, s.opts.Keys, "the keys themselves are not kept")
	for key, right := range map[string]bool{strings.Repeat("k", 1000): true, "k": true, "kk": false, strings.Repeat("k", 999): false, strings.Repeat("k", 1001): false} {
		require.Equal(t, right, s.checkKey(http.Header{"X-Api-Key": {key}}) == nil)
	}
}

func TestAddress(t *testing.T) {
	for host, open := range map[string]bool{"127.0.0.1": true, "::1": true, "[::1]": true, "localhost": true, "127.9.9.9": true,
		"": false, "0.0.0.0": false, "::": false, "192.168.1.7": false, "example.org": false} {
		require.Equal(t, open, CheckAddress(host, nil) == nil, host)
		require.NoError(t, CheckAddress(host, []string{"key"}))
	}
	require.Error(t, CheckAddress("127.0.0.1", []string{""}))
}

func TestBodies(t *testing.T) {
	f := newFake()
	h := serve(t, f, func(o *Options) { o.MaxBody = 20_000 })
	deep := func(n int) string {
		return `{` + hi + `,"metadata":` + strings.Repeat(`{"a":`, n) + "1" + strings.Repeat("}", n) + `}`
	}
	for name, c := range map[string]struct {
		body    string
		status  int
		message string
	}{
		"fine":            {`{` + hi + `}`, 200, ""},
		"deep":            {deep(90), 200, ""},
		"too deep":        {deep(101), 400, "nested deeper than 100 levels"},
		"10000 deep":      {strings.Repeat("[", 10_000), 400, "nested deeper"},
		"too large":       {`{"user":"` + strings.Repeat("x", 20_000) + `",` + hi + `}`, 413, "larger than 20000 bytes"},
		"no JSON":         {`{"messages":`, 400, "not valid JSON"},
		"empty":           {``, 400, "not valid JSON"},
		"a list":          {`[]`, 400, "want a JSON object"},
		"null":            {`null`, 400, "want a JSON object"},
		"two values":      {`{}{}`, 400, "not valid JSON"},
		"invalid UTF-8":   {"{\"user\":\"\xff\"," + hi + `}`, 400, "not valid UTF-8"},
		"NaN":             {`{` + hi + `,"temperature":NaN}`, 400, "not valid JSON"},
		"infinite":        {`{` + hi + `,"temperature":1e999}`, 400, "temperature: want a number in range"},
		"beyond float32":  {`{` + hi + `,"temperature":1e300}`, 400, "temperature"},
		"negative":        {`{` + hi + `,"temperature":-1}`, 400, "temperature is -1"},
		"fraction":        {`{` + hi + `,"max_tokens":1.5}`, 400, "max_tokens: want a whole number"},
		"huge":            {`{` + hi + `,"max_tokens":99999999999999999999}`, 400, "max_tokens: want a whole number"},
		"beyond int32":    {`{` + hi + `,"max_tokens":9999999999}`, 400, "max_tokens is 9999999999, want 1 to 2147483647"},
		"n 0":             {`{` + hi + `,"n":0}`, 400, "n is 0"},
		"n 1e6":           {`{` + hi + `,"n":1000000}`, 400, "n is 1000000, want 1 to 2048"},
		"seed":            {`{` + hi + `,"seed":99999999999}`, 400, "seed is 99999999999"},
		"top_p":           {`{` + hi + `,"top_p":2}`, 400, "top-p is 2"},
		"top_logprobs":    {`{` + hi + `,"logprobs":true,"top_logprobs":21}`, 400, "want 0 to 20"},
		"a text as count": {`{` + hi + `,"max_tokens":"5"}`, 400, "max_tokens: want a whole number in range, not string"},
		"bias":            {`{` + hi + `,"logit_bias":{"-1":1}}`, 400, `"-1" is no token`},
		"penalty":         {`{` + hi + `,"frequency_penalty":1e9}`, 400, "frequency penalty"},
		"last n":          {`{` + hi + `,"repeat_last_n":99999999}`, 400, "repeat_last_n"},
		"empty stop":      {`{` + hi + `,"stop":["a",""]}`, 400, "an empty text ends every answer"},
	} {
		status, v := post(t, h, chatPath, c.body)
		require.Equal(t, c.status, status, "%s: %v", name, v)
		if c.message != "" {
			require.Contains(t, at(t, v, "error", "message"), c.message, name)
		}
	}
	for _, field := range []string{`"n_keep":-5`, `"n_discard":3`, `"n_predict":-3`, `"n_probs":-1`, `"n_probs":1000`, `"repeat_last_n":-2`, `"id_slot":3`} {
		status, v := post(t, h, "/completion", `{"prompt":"a",`+field+`}`)
		require.Equal(t, 400, status, field)
		name, _, _ := strings.Cut(field[1:], `"`)
		require.Equal(t, name, at(t, v, "error", "message").(string)[:len(name)], field)
	}
}

// TestRefusedByName finds no field that is passed over in silence.
func TestRefusedByName(t *testing.T) {
	h := serve(t, newFake(), nil)
	for body, param := range map[string]string{
		`{` + hi + `,"functions":[]}`:                                                                    "functions",
		`{` + hi + `,"audio":{}}`:                                                                        "audio",
		`{` + hi + `,"modalities":["text","audio"]}`:                                                     "modalities",
		`{` + hi + `,"store":true}`:                                                                      "store",
		`{` + hi + `,"web_search_options":{}}`:                                                           "web_search_options",
		`{` + hi + `,"Temperature":1}`:                                                                   "Temperature",
		`{` + hi + `,"stream":true,"stream_options":{"x":1}}`:                                            "stream_options.x",
		`{` + hi + `,"stream_options":{"include_usage":true}}`:                                           "stream_options",
		`{` + hi + `,"response_format":{"type":"grammar"}}`:                                              "response_format.type",
		`{` + hi + `,"tools":[{"type":"web_search"}]}`:                                                   "tools[0].type",
		`{` + hi + `,"tool_choice":"required"}`:                                                          "tool_choice",
		`{` + hi + `,"tools":[{"type":"function","function":{"name":"impossible"}}]}`:                    "tools",
		`{"messages":[{"role":"user","content":"a","images":[]}]}`:                                       "messages[0].images",
		`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://x"}}]}]}`: "messages[0].content[0]",
		`{"messages":[{"role":"user","content":[{"type":"input_audio"}]}]}`:                              "messages[0].content[0]",
		`{"messages":[{"role":"wizard","content":""}]}`:                                                  "messages[0].role",
		`{"messages":[{"role":"assistant","tool_calls":[{"function":{}}]}]}`:                             "messages[0].tool_calls",
		`{"messages":[]}`: "messages",
		`{}`:              "messages",
	} {
		status, v := post(t, h, chatPath, body)
		require.Equal(t, 400, status, "%s: %v", body, v)
		require.Equal(t, param, at(t, v, "error", "param"), body)
		require.Contains(t, at(t, v, "error", "message"), param, body)
	}
	for body, param := range map[string]string{
		`{"prompt":"a","suffix":"b"}`: "suffix", `{"prompt":"a","best_of":3}`: "best_of", `{}`: "prompt", `{"prompt":[]}`: "prompt", `{"prompt":[[1],-1]}`: "prompt",
		`{"prompt":[1,"a"]}`: "prompt", `{"prompt":"a","logprobs":1,"echo":true,"stream":true}`: "stream",
	} {
		status, v := post(t, h, "/v1/completions", body)
		require.Equal(t, 400, status, body)
		require.Equal(t, param, at(t, v, "error", "param"), body)
	}
}

// TestHeaders bounds their size and time.
func TestHeaders(t *testing.T) {
	url, end := listen(t, newFake(), nil)
	defer end()
	conn, err := net.Dial("tcp", url)
	require.NoError(t, err)
	defer conn.Close()
	fmt.Fprintf(conn, "GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: %s\r\n\r\n", strings.Repeat("x", 2*maxHeader))
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusRequestHeaderFieldsTooLarge, res.StatusCode)
}

// TestSlowHeaders ends a client that sends its headers byte by byte.
func TestSlowHeaders(t *testing.T) {
	url, end := listen(t, newFake(), func(o *Options) { o.BodyTimeout = 50 * time.Millisecond })
	defer end()
	conn, err := net.Dial("tcp", url)
	require.NoError(t, err)
	defer conn.Close()
	fmt.Fprintf(conn, "GET /health HTTP/1.1\r\nHost: local")
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
	_, err = io.Copy(io.Discard, conn)
	require.NoError(t, err, "the connection is closed")
}

// TestNothingIsFetched gives URLs wherever a request may have one: the server asks none of them.
func TestNothingIsFetched(t *testing.T) {
	asked := 0
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked++ }))
	defer elsewhere.Close()
	h := serve(t, newFake(), func(o *Options) { o.format, o.schema = nil, nil })
	url := `"` + elsewhere.URL + `/x"`
	message := func(part string) string { return `"messages":[{"role":"user","content":[` + part + `]}]` }
	for path, bodies := range map[string][]string{
		chatPath: {
			`{` + message(`{"type":"image_url","image_url":{"url":`+url+`}}`) + `}`,
			`{` + message(`{"type":"file","file":{"file_url":`+url+`}}`) + `}`,
			`{` + hi + `,"response_format":{"type":"json_schema","json_schema":{"schema":{"$ref":` + url + `}}}}`,
			`{` + hi + `,"response_format":{"type":"json_schema","json_schema":{"schema":{"$schema":` + url + `,"$id":` + url + `,"properties":{"a":{"$ref":"y"}}}}}}`,
			`{` + hi + `,"tools":[{"type":"function","function":{"name":"f","parameters":{"$ref":` + url + `}}}]}`,
		},
		"/v1/messages": {
			`{"max_tokens":5,` + message(`{"type":"image","source":{"type":"url","url":`+url+`}}`) + `}`,
			`{"max_tokens":5,` + message(`{"type":"document","source":{"type":"url","url":`+url+`}}`) + `}`,
			`{"max_tokens":5,` + hi + `,"mcp_servers":[{"type":"url","url":` + url + `,"name":"x"}]}`,
		},
		"/v1/responses":  {`{"input":[{"role":"user","content":[{"type":"input_image","image_url":` + url + `}]}]}`, `{"input":[{"role":"user","content":[{"type":"input_file","file_url":` + url + `}]}]}`},
		"/completion":    {`{"prompt":"a","json_schema":{"$ref":` + url + `}}`, `{"prompt":{"prompt_string":"a","multimodal_data":[` + url + `]}}`},
		"/v1/embeddings": {`{"input":[{"type":"image_url","image_url":` + url + `}]}`},
	} {
		for _, body := range bodies {
			status, data := postRaw(t, h, path, body)
			require.Equal(t, 400, status, "%s %s: %s", path, body, data)
		}
	}
	require.Zero(t, asked)
}

// TestModelsAreNoPaths opens no file that a client names, and takes none.
func TestModelsAreNoPaths(t *testing.T) {
	file := filepath.Join(t.TempDir(), "model.gguf")
	require.NoError(t, os.WriteFile(file, []byte("GGUF"), 0o600))
	// One model alone answers for any name.
	h := serve(t, newFake(), func(o *Options) { o.Models = append(o.Models, model("other", newFake())) })
	for _, name := range []string{file, "./fake", "../fake", "/models/fake.gguf", "file://" + file, "http://127.0.0.1/fake.gguf", "fake.gguf", "org/repo:Q4_K_M"} {
		for _, path := range []string{chatPath, "/v1/completions", "/v1/responses", "/v1/embeddings", "/completion", "/tokenize", "/apply-template"} {
			status, v := post(t, h, path, fmt.Sprintf(`{"model":%q,%s,"prompt":"a","input":"a","content":"a"}`, name, hi))
			require.Contains(t, []int{400, 404}, status, "%s %s: %v", path, name, v)
		}
		status, _ := post(t, h, chatPath, fmt.Sprintf(`{"model":%q,%s}`, name, hi))
		require.Equal(t, 404, status, name)
		status, _ = get(t, h, "/props?model="+url.QueryEscape(name))
		require.Equal(t, 404, status, name)
	}
	for _, path := range []string{"/models/load", "/models/unload", "/models", "/v1/models", "/v1/files", "/lora-adapters", "/slots/0?action=save", "/props", "/api/pull", "/api/create"} {
		status, _ := postRaw(t, h, path, `{"model":"`+file+`","filename":"`+file+`"}`)
		require.Contains(t, []int{404, 405}, status, path)
	}
}

// TestSlowBody ends a client that sends its body byte by byte.
func TestSlowBody(t *testing.T) {
	url, end := listen(t, newFake(), func(o *Options) { o.BodyTimeout = 50 * time.Millisecond })
	defer end()
	conn, err := net.Dial("tcp", url)
	require.NoError(t, err)
	defer conn.Close()
	fmt.Fprintf(conn, "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusRequestTimeout, res.StatusCode)
	_, err = io.Copy(io.Discard, conn)
	require.NoError(t, err, "the connection is closed")
}

// TestLongAnswer outlives the deadline of the body.
func TestLongAnswer(t *testing.T) {
	f := newFake()
	f.delay = 60 * time.Millisecond
	url, end := listen(t, f, func(o *Options) { o.BodyTimeout, o.WriteLimit = 50*time.Millisecond, 50*time.Millisecond })
	defer end()
	res, err := http.Post("http://"+url+chatPath, "application/json", strings.NewReader(`{`+hi+`}`))
	require.NoError(t, err)
	defer res.Body.Close()
	require.Equal(t, 200, res.StatusCode)
}

func TestPage(t *testing.T) {
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "page ", r.URL.Path) })
	h := serve(t, newFake(), func(o *Options) { o.Page, o.Keys = page, []string{"key"} })
	status, data := get(t, h, "/?q=hello")
	require.Equal(t, 200, status, "the page itself needs no key")
	require.Equal(t, "page /", string(data))
	_, data = get(t, h, "/page.js")
	require.Equal(t, "page /page.js", string(data))
	status, _ = get(t, h, "/", "Host", "evil.example")
	require.Equal(t, 403, status)
	status, _ = postRaw(t, h, "/", `{}`)
	require.Equal(t, 404, status)
	h = serve(t, newFake(), nil)
	status, data = get(t, h, "/nothing")
	require.Equal(t, 404, status)
	require.Contains(t, string(data), "there is no GET /nothing")
}

// listen serves on a port, as [Server.Serve] does.
func listen(t *testing.T, f *fake, set func(*Options)) (address string, end func() error) {
	t.Helper()
	o := Options{Models: []Model{model("fake", f)}, format: func(string) format { return fakeFormat{} }}
	if set != nil {
		set(&o)
	}
	s, err := New(o)
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	ended := false
	end = func() error {
		cancel()
		if ended {
			return nil
		}
		ended = true
		select {
		case err := <-served:
			return err
		case <-time.After(20 * time.Second):
			return fmt.Errorf("the server did not end")
		}
	}
	t.Cleanup(func() { require.NoError(t, end()) })
	return l.Addr().String(), end
}
