package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/server/load"
)

// demoModel is the demo model's file.
func demoModel(t *testing.T) string {
	t.Helper()
	llamatest.Library(t)
	path, err := demo.Path()
	require.NoError(t, err)
	return path
}

// questions are so many prompts of the demo model's test data, of all its tasks.
func questions(t *testing.T, n int) []string {
	t.Helper()
	examples, _, err := dataset.Read([]string{"../../demo/test.jsonl"}, &dataset.Options{Limit: n})
	require.NoError(t, err)
	var list []string
	for _, e := range examples {
		list = append(list, e.Prompt)
	}
	return list
}

// chatBody asks for a greedy stream.
func chatBody(t *testing.T, prompt, gallop string) string {
	t.Helper()
	data, err := json.Marshal(prompt)
	require.NoError(t, err)
	return fmt.Sprintf(`{"messages":[{"role":"user","content":%s}],"temperature":0,"max_tokens":64,"stream":true,"stream_options":{"include_usage":true},"gallop":%s}`, data, gallop)
}

const chatPath = "/v1/chat/completions"

// text is the answer that a request gets.
func (p *served) text(t *testing.T, c *http.Client, body string) string {
	t.Helper()
	a, err := load.Ask(t.Context(), c, p.url+chatPath, body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, a.Status)
	content, err := a.Read()
	require.NoError(t, err)
	require.NotEmpty(t, content.Text)
	return content.Text
}

// metrics are some of the server's, by name, summed over their labels.
func (p *served) metrics(t *testing.T, names ...string) map[string]float64 {
	t.Helper()
	res, err := http.Get(p.url + "/metrics")
	require.NoError(t, err)
	defer res.Body.Close()
	all := map[string]float64{}
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		name, _, _ = strings.Cut(name, "{")
		n, err := strconv.ParseFloat(value, 64)
		if err == nil {
			all[name] += n
		}
	}
	for _, name := range names {
		require.Contains(t, all, name)
	}
	return all
}

const (
	goroutines = "go_goroutines"
	openFiles  = "process_open_fds"
	memory     = "process_resident_memory_bytes"
	running    = "gallop_requests_running"
	waiting    = "gallop_requests_waiting"
)

// TestServeUnderLoad lets 64 clients stream for five minutes: each answer is the one that the
// request gets alone, none fails but for those past the bound, and memory, goroutines and file
// handles stay what they are. -short makes the minutes seconds.
func TestServeUnderLoad(t *testing.T) {
	if os.Getenv("GALLOP_LONG") == "" {
		t.Skip("set GALLOP_LONG=1 to load a server for five minutes")
	}
	model := demoModel(t)
	alone(t)
	unit := time.Minute
	if testing.Short() {
		unit = 4 * time.Second
	}
	for _, c := range []struct {
		name string
		flag []string
		last time.Duration
	}{
		{"isolated", []string{"--isolate"}, 5 * unit},
		{"shared", nil, unit / 2}, // how many answers another rounding makes differ
	} {
		t.Run(c.name, func(t *testing.T) {
			const clients = 64
			p := startServe(t, append(c.flag, "-m", model, "-c", "256", "-t", "1", "--parallel", "8", "--queue", "48")...)
			client := load.NewClient(clients)
			var bodies, want []string
			for i, q := range questions(t, 96) {
				bodies = append(bodies, chatBody(t, q, []string{`{"route":"off"}`, `{"skip":"f2,f6"}`, `{"depth":3}`}[i%3]))
				want = append(want, p.text(t, client, bodies[i]))
			}
			var answered, refused, differ, failed atomic.Int64
			var firstError atomic.Value
			begun, end := time.Now(), time.Now().Add(c.last)
			var all sync.WaitGroup
			for k := range clients {
				all.Go(func() {
					random := rand.New(rand.NewPCG(1, uint64(k)))
					for time.Now().Before(end) {
						i := random.IntN(len(bodies))
						a, err := load.Ask(t.Context(), client, p.url+chatPath, bodies[i])
						var content load.Content
						if err == nil && a.Status == http.StatusOK {
							content, err = a.Read()
						}
						switch {
						case err != nil || a.Status != http.StatusOK && a.Status != http.StatusTooManyRequests:
							failed.Add(1)
							firstError.CompareAndSwap(nil, fmt.Sprintf("%v, %v", a, err))
						case a.Status == http.StatusTooManyRequests:
							refused.Add(1)
							time.Sleep(50 * time.Millisecond)
						case content.Text != want[i]:
							differ.Add(1)
							fallthrough
						default:
							answered.Add(1)
						}
					}
				})
			}
			names := []string{goroutines, openFiles, memory}
			time.Sleep(time.Until(begun.Add(c.last / 5)))
			early := p.metrics(t, names...)
			time.Sleep(time.Until(end.Add(-c.last / 20)))
			late := p.metrics(t, names...)
			all.Wait()
			t.Logf("%d answers, %d refused, %d differ from the same request alone; goroutines %.0f and %.0f, file handles %.0f and %.0f, memory %.1f and %.1f MiB",
				answered.Load(), refused.Load(), differ.Load(), early[goroutines], late[goroutines], early[openFiles], late[openFiles], early[memory]/(1<<20), late[memory]/(1<<20))
			require.Zero(t, failed.Load(), firstError.Load())
			require.Positive(t, answered.Load())
			if c.flag != nil {
				require.Zero(t, differ.Load())
			}
			// Two goroutines a connection, one or two a request, and as many connections as clients.
			require.InDelta(t, early[goroutines], late[goroutines], clients)
			require.LessOrEqual(t, late[openFiles], early[openFiles]+4)
			require.LessOrEqual(t, late[memory], early[memory]*1.1+8<<20)
			client.CloseIdleConnections()
			p.requireIdle(t, early[goroutines]-clients)
			p.end(t)
		})
	}
}

// requireIdle waits until no request and no connection is left, and no more goroutines than so many.
func (p *served) requireIdle(t *testing.T, most float64) {
	t.Helper()
	http.DefaultClient.CloseIdleConnections()
	var m map[string]float64
	for range 600 {
		if m = p.metrics(t); m[running]+m[waiting] == 0 && m[goroutines] <= most {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	require.Fail(t, "something is left", "running %v, waiting %v, goroutines %v, want %v", m[running], m[waiting], m[goroutines], most)
}

// TestServeKilledClients kills clients by a reset of their connections, in the middle of the
// headers, of the body, in the queue, in the prompt and in the answer. Others, slow readers among
// them, get their answers, and nothing is left of the killed.
func TestServeKilledClients(t *testing.T) {
	model := demoModel(t)
	alone(t)
	p := startServe(t, "-m", model, "-c", "256", "-t", "1", "--parallel", "2", "--isolate")
	client := load.NewClient(4)
	asked := questions(t, 12)
	want := make([]string, len(asked))
	for i, q := range asked {
		want[i] = p.text(t, client, chatBody(t, q, `{"route":"off"}`))
	}
	client.CloseIdleConnections()
	http.DefaultClient.CloseIdleConnections()
	before := p.metrics(t, goroutines)[goroutines]

	address := strings.TrimPrefix(p.url, "http://")
	send := func(body string, share float64) (*net.TCPConn, error) {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return nil, err
		}
		request := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", chatPath, len(body), body)
		_, err = io.WriteString(conn, request[:int(share*float64(len(request)))])
		return conn.(*net.TCPConn), err
	}
	errs := make(chan error, 200)
	got := make([]string, len(asked))
	var all sync.WaitGroup
	for k := range 60 {
		all.Go(func() { // killed
			random := rand.New(rand.NewPCG(2, uint64(k)))
			share := 1.0
			if k%3 == 0 {
				share = random.Float64()
			}
			conn, err := send(chatBody(t, asked[k%len(asked)], `{"route":"off"}`), share)
			if err == nil {
				if k%3 == 1 { // in the answer
					_, err = io.ReadFull(conn, make([]byte, 1+random.IntN(600)))
				} else {
					time.Sleep(time.Duration(random.IntN(100)) * time.Millisecond)
				}
				err = cmp.Or(err, conn.SetLinger(0), conn.Close())
			}
			errs <- err
		})
	}
	for i, q := range asked {
		all.Go(func() { // reads slowly
			conn, err := send(chatBody(t, q, `{"route":"off"}`), 1)
			if err != nil {
				errs <- err
				return
			}
			defer conn.Close()
			err = conn.SetReadBuffer(1 << 10)
			var data []byte
			for piece := make([]byte, 64); err == nil; {
				var n int
				n, err = conn.Read(piece)
				data = append(data, piece[:n]...)
				time.Sleep(time.Millisecond)
			}
			if err != io.EOF {
				errs <- err
			}
			for line := range strings.Lines(string(data)) {
				var v struct {
					Choices []struct{ Delta struct{ Content string } }
				}
				if event, ok := strings.CutPrefix(line, "data: "); ok && json.Unmarshal([]byte(event), &v) == nil && len(v.Choices) > 0 {
					got[i] += v.Choices[0].Delta.Content
				}
			}
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	require.Equal(t, want, got)
	p.requireIdle(t, before)
	require.Positive(t, p.metrics(t)["gallop_requests_cancelled_total"])
	p.end(t)
}

// TestServeEndsUnderLoad lets running and waiting requests end when it is told to, and takes no
// new ones.
func TestServeEndsUnderLoad(t *testing.T) {
	model := demoModel(t)
	alone(t)
	const clients = 12
	p := startServe(t, "-m", model, "-c", "512", "-t", "1", "--parallel", "2")
	client := load.NewClient(clients)
	// Answers of many tokens, so that hardly one is over before all have come.
	const body = `{"messages":[{"role":"user","content":"Hello"}],"temperature":0,"max_tokens":300,"stream":true,"gallop":{"route":"off"},
		"response_format":{"type":"json_schema","json_schema":{"schema":{"type":"array","items":{"enum":["x","y"]},"minItems":16,"maxItems":16}}}}`
	texts, errs := make([]string, clients), make([]error, clients)
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			var a *load.Answer
			if a, errs[i] = load.Ask(t.Context(), client, p.url+chatPath, body); errs[i] == nil {
				var c load.Content
				c, errs[i] = a.Read()
				texts[i] = c.Text
			}
		})
	}
	require.Eventually(t, func() bool {
		m := p.metrics(t)
		return m[running]+m[waiting] > 2 && m[running]+m[waiting]+m["gallop_requests_total"] >= clients
	}, time.Minute, time.Millisecond)
	log := p.end(t)
	all.Wait()
	for i := range clients {
		require.NoError(t, errs[i], log)
		require.Len(t, strings.Split(texts[i], ","), 16, "it is whole")
	}
	_, err := load.Ask(t.Context(), client, p.url+chatPath, body)
	require.Error(t, err)
}
