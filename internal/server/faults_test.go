package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/llama"
)

// TestErrors tells each dialect of each error of an engine.
func TestErrors(t *testing.T) {
	for _, c := range []struct {
		err               error
		status, anthropic int
		openaiType        string
		code              any
		anthropicType     string
	}{
		{gallop.ErrRequest, 400, 400, "invalid_request_error", "invalid_value", "invalid_request_error"},
		{gallop.ErrSkip, 400, 400, "invalid_request_error", "invalid_value", "invalid_request_error"},
		{gallop.ErrNoProfile, 400, 400, "invalid_request_error", "invalid_value", "invalid_request_error"},
		{gallop.ErrEscalate, 400, 400, "invalid_request_error", "invalid_value", "invalid_request_error"},
		{gallop.ErrLossless, 400, 400, "invalid_request_error", "invalid_value", "invalid_request_error"},
		{llama.ErrGrammar, 400, 400, "invalid_request_error", "invalid_value", "invalid_request_error"},
		{llama.ErrTemplate, 400, 400, "invalid_request_error", "invalid_value", "invalid_request_error"},
		{gallop.ErrTooLong, 400, 400, "invalid_request_error", "context_length_exceeded", "invalid_request_error"},
		{gallop.ErrUnskippable, 422, 422, "invalid_request_error", "unskippable", "invalid_request_error"},
		{gallop.ErrBusy, 429, 529, "rate_limit_error", "rate_limit_exceeded", "overloaded_error"},
		{gallop.ErrClosed, 503, 503, "unavailable_error", nil, "overloaded_error"},
		{errors.New("a secret of this machine"), 500, 500, "server_error", "server_error", "api_error"},
	} {
		f := newFake()
		f.err = fmt.Errorf("%w: the detail", c.err)
		h := serve(t, f, nil)
		for _, stream := range []string{"false", "true"} {
			r, err := http.NewRequest(http.MethodPost, h.URL+chatPath, strings.NewReader(`{`+hi+`,"stream":`+stream+`}`))
			require.NoError(t, err)
			r.Header.Set("Content-Type", "application/json")
			res, err := http.DefaultClient.Do(r)
			require.NoError(t, err)
			data, err := io.ReadAll(res.Body)
			require.NoError(t, err)
			res.Body.Close()
			require.Equal(t, c.status, res.StatusCode, "a stream's status too, where nothing was written yet: %v", c.err)
			require.Equal(t, c.status == 429 || c.status == 503, res.Header.Get("Retry-After") != "", c.err)
			require.NotContains(t, string(data), "secret")
		}
		_, v := post(t, h, chatPath, `{`+hi+`}`)
		require.Equal(t, c.openaiType, at(t, v, "error", "type"), c.err)
		require.Equal(t, c.code, at(t, v, "error", "code"), c.err)
		status, v := post(t, h, "/v1/messages", `{"max_tokens":5,`+hi+`}`)
		require.Equal(t, c.anthropic, status, c.err)
		require.Equal(t, "error", v["type"])
		require.Equal(t, c.anthropicType, at(t, v, "error", "type"), c.err)
		status, v = post(t, h, "/completion", `{"prompt":"a"}`)
		require.Equal(t, c.status, status, c.err)
		require.Equal(t, float64(c.status), at(t, v, "error", "code"))
	}
}

func TestTooLong(t *testing.T) {
	h := serve(t, newFake(), nil)
	long := `"messages":[{"role":"user","content":"` + strings.Repeat("a", 100) + `"}]`
	const want = "the request (100 tokens) exceeds the available context size (64 tokens)"
	_, v := post(t, h, chatPath, `{`+long+`}`)
	require.Contains(t, at(t, v, "error", "message"), want)
	require.Equal(t, 100.0, at(t, v, "error", "n_prompt_tokens"))
	require.Equal(t, 64.0, at(t, v, "error", "n_ctx"))
	_, v = post(t, h, "/v1/messages", `{"max_tokens":5,`+long+`}`)
	require.Contains(t, at(t, v, "error", "message"), "prompt is too long: 100 tokens > 64 maximum")
	_, v = post(t, h, "/completion", `{"prompt":"`+strings.Repeat("a", 100)+`"}`)
	require.Equal(t, "exceed_context_size_error", at(t, v, "error", "type"))
	require.Contains(t, at(t, v, "error", "message"), want)
	_, v = post(t, h, "/v1/completions", `{"prompt":["a","`+strings.Repeat("a", 70)+`"]}`)
	require.Contains(t, at(t, v, "error", "message"), "(70 tokens)", "of the prompt that is too long")
}

// TestErrorInAStream comes after the status was sent.
func TestErrorInAStream(t *testing.T) {
	f := newFake()
	f.err, f.errAt = gallop.ErrClosed, 2
	h := serve(t, f, nil)
	status, data := postRaw(t, h, chatPath, `{`+hi+`,"stream":true}`)
	require.Equal(t, 200, status)
	list := events(t, data)
	require.Equal(t, "unavailable_error", at(t, list[len(list)-2].json(t), "error", "type"))
	require.Equal(t, "[DONE]", list[len(list)-1].data)
	_, data = postRaw(t, h, "/v1/messages", `{"max_tokens":5,`+hi+`,"stream":true}`)
	list = events(t, data)
	require.Equal(t, "error", list[len(list)-1].name)
	require.Equal(t, "overloaded_error", at(t, list[len(list)-1].json(t), "error", "type"))
	_, data = postRaw(t, h, "/v1/responses", `{"input":"hi","stream":true}`)
	list = events(t, data)
	require.Equal(t, "response.failed", list[len(list)-1].name)
}

// TestGoneClients ends the requests of clients that have left, in each phase, and no others.
func TestGoneClients(t *testing.T) {
	before := runtime.NumGoroutine()
	for name, c := range map[string]struct {
		hold  bool
		delay time.Duration
		body  string
		read  bool // some of the answer comes first
	}{
		"before the first token":           {hold: true, body: `{` + hi + `}`},
		"before a stream's first token":    {hold: true, body: `{` + hi + `,"stream":true}`},
		"while it streams":                 {delay: 20 * time.Millisecond, body: `{` + hi + `,"stream":true}`, read: true},
		"while several answers are made":   {delay: 20 * time.Millisecond, body: `{` + hi + `,"n":6,"stream":true}`, read: true},
		"while it waits for the whole one": {delay: 50 * time.Millisecond, body: `{` + hi + `}`},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			f.delay = c.delay
			f.says = func(gallopRequest) []string { return strings.Split(strings.Repeat("x", 1000), "") }
			if c.hold {
				f.hold = make(chan struct{})
			}
			h := serve(t, f, nil)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL+chatPath, strings.NewReader(c.body))
			require.NoError(t, err)
			r.Header.Set("Content-Type", "application/json")
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				res, err := http.DefaultClient.Do(r)
				if err != nil {
					return
				}
				defer res.Body.Close()
				_, _ = io.ReadFull(res.Body, make([]byte, 10))
				cancel()
				_, _ = io.Copy(io.Discard, res.Body)
			}()
			require.Eventually(t, func() bool { return f.begun.Load() > 0 }, 10*time.Second, time.Millisecond)
			if !c.read {
				cancel()
			}
			<-ended
			require.Eventually(t, func() bool { return f.begun.Load() == f.ended.Load() }, 10*time.Second, time.Millisecond, "the engine goes on for nobody")
			require.Positive(t, f.cancelled.Load())
		})
	}
	http.DefaultClient.CloseIdleConnections()
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+2 }, 10*time.Second, 10*time.Millisecond, "goroutines are left")
}

// TestClientThatDoesNotRead loses its place after a while.
func TestClientThatDoesNotRead(t *testing.T) {
	f := newFake()
	f.says = func(gallopRequest) []string {
		return strings.Split(strings.Repeat(strings.Repeat("x", 10_000)+",", 5000), ",")
	}
	address, _ := listen(t, f, func(o *Options) { o.WriteLimit = 100 * time.Millisecond })
	conn, err := net.Dial("tcp", address)
	require.NoError(t, err)
	defer conn.Close()
	body := `{` + hi + `,"stream":true}`
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", chatPath, len(body), body)
	require.Eventually(t, func() bool { return f.cancelled.Load() == 1 && f.ended.Load() == 1 }, 20*time.Second, 10*time.Millisecond)
	status, _ := postRawTo(t, "http://"+address+"/tokenize", `{"content":"a"}`)
	require.Equal(t, 200, status, "others are answered")
}

func postRawTo(t *testing.T, url, body string) (int, []byte) {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, url, strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/json")
	return do(t, r)
}

func TestKeepAlive(t *testing.T) {
	f := newFake()
	f.hold = make(chan struct{})
	h := serve(t, f, func(o *Options) { o.KeepAlive = 5 * time.Millisecond })
	go func() {
		time.Sleep(100 * time.Millisecond)
		close(f.hold)
	}()
	for _, c := range []struct{ path, body string }{
		{chatPath, `{` + hi + `,"stream":true}`}, {"/v1/messages", `{"max_tokens":5,` + hi + `,"stream":true}`}, {"/v1/responses", `{"input":"a","stream":true}`},
		{"/v1/completions", `{"prompt":"a","stream":true}`}, {"/completion", `{"prompt":"a","stream":true}`},
	} {
		_, data := postRaw(t, h, c.path, c.body)
		if c.path == chatPath {
			require.Contains(t, string(data), ": keep-alive\n\n")
		}
		require.NotEmpty(t, events(t, data))
	}
}

func TestTimeout(t *testing.T) {
	f := newFake()
	f.hold = make(chan struct{})
	h := serve(t, f, func(o *Options) { o.Timeout = 20 * time.Millisecond })
	status, v := post(t, h, chatPath, `{`+hi+`}`)
	require.Equal(t, 504, status)
	require.Equal(t, "timeout", at(t, v, "error", "code"))
	require.Equal(t, int64(1), f.cancelled.Load())
}

// TestPanic ends the request alone.
func TestPanic(t *testing.T) {
	h := serve(t, newFake(), func(o *Options) {
		o.Page = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("a secret") })
	})
	status, data := get(t, h, "/")
	require.Equal(t, 500, status)
	require.NotContains(t, string(data), "secret")
	status, _ = get(t, h, "/health")
	require.Equal(t, 200, status)
}

// TestEnd lets running requests end, refuses new ones, and then ends what still runs.
func TestEnd(t *testing.T) {
	t.Run("in time", func(t *testing.T) {
		f := newFake()
		f.hold = make(chan struct{})
		address, end := listen(t, f, nil)
		got := make(chan int, 1)
		go func() {
			status, _ := postRawTo(t, "http://"+address+chatPath, `{`+hi+`}`)
			got <- status
		}()
		require.Eventually(t, func() bool { return f.begun.Load() == 1 }, 10*time.Second, time.Millisecond)
		ended := make(chan error, 1)
		go func() { ended <- end() }()
		time.Sleep(20 * time.Millisecond)
		require.False(t, f.closed.Load())
		close(f.hold)
		require.Equal(t, 200, <-got)
		require.NoError(t, <-ended)
		require.True(t, f.closed.Load())
		_, err := net.Dial("tcp", address)
		require.Error(t, err)
	})
	t.Run("too late", func(t *testing.T) {
		f := newFake()
		f.hold = make(chan struct{})
		address, end := listen(t, f, func(o *Options) { o.Grace = 50 * time.Millisecond })
		got := make(chan []byte, 1)
		go func() {
			_, data := postRawTo(t, "http://"+address+chatPath, `{`+hi+`}`)
			got <- data
		}()
		require.Eventually(t, func() bool { return f.begun.Load() == 1 }, 10*time.Second, time.Millisecond)
		require.NoError(t, end())
		require.Contains(t, string(<-got), "the server is closing")
		require.True(t, f.closed.Load())
	})
}

func TestClosed(t *testing.T) {
	s, err := New(Options{Models: []Model{model("fake", newFake())}})
	require.NoError(t, err)
	h := httptest.NewServer(s)
	defer h.Close()
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	for _, path := range []string{"/health", "/v1/chat/completions"} {
		var status int
		var data []byte
		if path == "/health" {
			status, data = get(t, h, path)
		} else {
			status, data = postRaw(t, h, path, `{`+hi+`}`)
		}
		require.Equal(t, 503, status)
		require.Contains(t, string(data), "the server is closing")
	}
}

func TestLoading(t *testing.T) {
	f := newFake()
	loaded := make(chan struct{})
	address, _ := listen(t, f, func(o *Options) {
		o.Preload = true
		o.Models[0].Open = func(context.Context) (Engine, error) {
			<-loaded
			return f, nil
		}
	})
	url := "http://" + address
	res, err := http.Get(url + "/health")
	require.NoError(t, err)
	data, _ := io.ReadAll(res.Body)
	res.Body.Close()
	require.Equal(t, 503, res.StatusCode)
	require.JSONEq(t, `{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}`, string(data))
	status, _ := postRawTo(t, url+chatPath, `{`+hi+`}`)
	require.Equal(t, 503, status)
	close(loaded)
	require.Eventually(t, func() bool {
		res, err := http.Get(url + "/health")
		require.NoError(t, err)
		res.Body.Close()
		return res.StatusCode == 200
	}, 10*time.Second, time.Millisecond)
	status, _ = postRawTo(t, url+chatPath, `{`+hi+`}`)
	require.Equal(t, 200, status)
}

func TestFirstModelThatCannotBeLoaded(t *testing.T) {
	s, err := New(Options{Preload: true, Models: []Model{{Name: "a", Open: func(context.Context) (Engine, error) { return nil, llama.ErrModel }}}})
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.ErrorIs(t, s.Serve(t.Context(), l), llama.ErrModel)
}

func TestNewRefuses(t *testing.T) {
	for _, o := range []Options{
		{}, {Models: []Model{{Name: "a@b"}}}, {Models: []Model{{}}}, {Models: []Model{{Name: "a"}, {Name: "a"}}},
		{Models: []Model{{Name: "a"}}, Keys: []string{""}},
	} {
		_, err := New(o)
		require.Error(t, err)
	}
}

// fullDisk is where nothing can be written.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// TestFullDiskForLogs answers all the same.
func TestFullDiskForLogs(t *testing.T) {
	f := newFake()
	h := serve(t, f, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(fullDisk{}, nil)) })
	for range 3 {
		status, v := post(t, h, chatPath, `{`+hi+`}`)
		require.Equal(t, 200, status)
		require.Equal(t, "Hello, world", at(t, v, "choices", 0, "message", "content"))
	}
	f.err = errors.New("a fault, which is logged")
	status, _ := post(t, h, chatPath, `{`+hi+`}`)
	require.Equal(t, 500, status)
}
