// Command benchserve measures what HTTP costs: the same requests from 1, 8 and 64 clients at
// once, by the engine itself and by streams over sockets of this machine, in turns on one
// engine. The clients share the processor with the engine, so that their costs count too.
// `make bench-serve` runs it.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
	"gonum.org/v1/gonum/stat"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/internal/realmodel"
	"github.com/gallop-llm/gallop/internal/server"
	loading "github.com/gallop-llm/gallop/internal/server/load"
	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/llama"
)

const (
	parallel = 8 // requests that are answered at once; others wait
	most     = 64
)

// figures are those of the requests of one way.
type figures struct {
	TPS     float64
	ttft    []float64 // ms
	unread  []float64 // tokens of the same answers' prompts that were not in the KV cache
	gap     []float64 // ms
	before  []float64 // tokens before an answer's middle one
	pace    []float64 // ms of a token, of the same answers
	seconds float64
	asked   int
	errors  int
	wrong   int
	cpu     float64 // seconds of all cores
	prompt  int     // tokens of prompts
	cached  int     // of these, from the KV cache
	tokens  int     // of answers
}

// row is one model and number of clients. Times are in milliseconds, speeds the median of the turns.
type row struct {
	Model   string  `json:"model"`
	Clients int     `json:"clients"`
	Turns   int     `json:"turns"` // of the engine and of the server
	RPS     float64 `json:"rps"`
	TPS     float64 `json:"tps"` // of all clients together
	TTFT50  float64 `json:"ttft_p50_ms"`
	TTFT95  float64 `json:"ttft_p95_ms"`
	TTFT99  float64 `json:"ttft_p99_ms"`
	Gap50   float64 `json:"gap_p50_ms"` // between pieces of one answer's text
	Gap95   float64 `json:"gap_p95_ms"`
	Gap99   float64 `json:"gap_p99_ms"`
	Errors  int     `json:"errors"`

	// What scripts/simulate-fleet goes by.
	Skip   string    `json:"skip,omitempty"`             // mask of all requests
	Prompt float64   `json:"prompt_tokens"`              // of a request, mean
	Answer float64   `json:"answer_tokens"`              // likewise
	CPU    float64   `json:"cpu_ms_per_token"`           // of engine, server and clients, on all cores
	Read   float64   `json:"prompt_ms_per_token"`        // one more token of a prompt that is read alone, with nothing before it
	Behind float64   `json:"behind_us_per_token"`        // what a token takes longer for each token before it, in one client's answers
	Firsts []float64 `json:"first_token_ms,omitempty"`   // of each answer, with one client
	Unread []float64 `json:"first_token_read,omitempty"` // tokens of their prompts that were read, the others were in the KV cache
	Cached float64   `json:"cached_tokens"`              // of Prompt, from the KV cache

	Cost   float64 `json:"http_cost"` // 1 - tps over that of the engine in the turn beside, the median of the turns
	Engine struct {
		RPS    float64 `json:"rps"`
		TPS    float64 `json:"tps"`
		TTFT50 float64 `json:"ttft_p50_ms"`
		TTFT95 float64 `json:"ttft_p95_ms"`
		TTFT99 float64 `json:"ttft_p99_ms"`
		Gap50  float64 `json:"gap_p50_ms"`
		Gap95  float64 `json:"gap_p95_ms"`
		Gap99  float64 `json:"gap_p99_ms"`
		Errors int     `json:"errors"`
	} `json:"engine"` // the same requests without HTTP
}

type result struct {
	Processor string  `json:"processor"`
	CPUs      int     `json:"cpus"`
	Parallel  int     `json:"parallel"`
	Isolate   bool    `json:"isolate"`
	Rows      []row   `json:"rows"`
	Cost      float64 `json:"http_cost"` // the worst of the rows
	Wrong     int     `json:"wrong"`     // served answers that differ from the same request alone
}

// ask is a request, as the engine and as the server take it, and its answer when it is alone.
type ask struct {
	request gallop.Request
	body    string // made of the messages, if it is ""
	ends    string // how it ends then
	alone   string
}

// subject is a model that is measured.
type subject struct {
	name, path, url string
	ctx, threads    int
	asks            []ask
	loads           []load
	skip            string  // mask of all requests
	read, readAt    float64 // ms that a token of a prompt takes behind readAt others
	behind          float64 // µs that a token takes longer for each token before it
	chat            int     // turns of a conversation that asks are, one after the other; 0 = each is for itself
}

// load is how a model is asked. The engine and the server take short turns, since a machine's
// speed changes within seconds.
type load struct {
	clients int
	each    int // requests of each client in a turn
	turns   int // of either way
}

func main() {
	out := flag.String("o", "", "file that the result is written to (default: stdout)")
	turns := flag.Float64("turns", 1, "times as many turns of the engine and the server")
	only := flag.String("only", "", "measure only subjects whose names begin so")
	isolate := flag.Bool("isolate", false, "let no answer depend on others, as gallop serve --isolate")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *out, *only, *turns, *isolate); err != nil {
		fmt.Fprintln(os.Stderr, "benchserve:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out, only string, turns float64, isolate bool) error {
	if _, err := libs.Load(); err != nil {
		return err
	}
	r := result{Processor: realmodel.Processor(), CPUs: runtime.NumCPU(), Parallel: parallel, Isolate: isolate}
	for _, make := range []func(context.Context) (*subject, error){demoSubject, chatSubject, maskedSubject, largeSubject} {
		s, err := make(ctx)
		if err == nil && strings.HasPrefix(s.name, only) {
			err = s.measure(ctx, &r, turns)
		}
		if err != nil {
			return err
		}
	}
	print(os.Stderr, &r)
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if out == "" {
		_, err = os.Stdout.Write(data)
		return err
	}
	return os.WriteFile(out, data, 0o644)
}

// demoSubject asks the demo model what its test data ask, in chats, for answers of 64 tokens.
func demoSubject(context.Context) (*subject, error) {
	return demoUnder("gallop-demo", "", 0, load{1, 4, 60}, load{8, 2, 24}, load{most, 1, 12})
}

const (
	chatTurns = 3 // of a conversation
	talks     = 2 // that a client has, in turn: with many clients, others come in between as well
)

// pause is how long a single client of conversations waits before each request: the first token of a server that
// was idle takes longer.
const pause = 15 * time.Millisecond

// chatSubject has conversations of such questions.
func chatSubject(context.Context) (*subject, error) {
	return demoUnder("conversations", "", chatTurns, load{1, talks * chatTurns, 20}, load{4, talks * chatTurns, 4}, load{8, talks * chatTurns, 4})
}

// maskedSubject does the same with a third of the feed-forward halves left out.
func maskedSubject(context.Context) (*subject, error) {
	return demoUnder("conversations, masked", "f2,f5,f7,f9", chatTurns, load{1, talks * chatTurns, 20}, load{4, talks * chatTurns, 4}, load{8, talks * chatTurns, 4})
}

func demoUnder(name, mask string, turns int, loads ...load) (*subject, error) {
	skipped, err := gallop.ParseSkip(cmp.Or(mask, "off"))
	if err != nil {
		return nil, err
	}
	path, err := demo.Path()
	if err != nil {
		return nil, err
	}
	limit := 96
	if turns > 0 {
		limit *= talks
	}
	examples, _, err := dataset.Read([]string{"demo/test.jsonl"}, &dataset.Options{Limit: limit})
	if err != nil {
		return nil, err
	}
	s := &subject{name: name, path: path, url: "/v1/chat/completions", ctx: 256 * max(1, turns-1), threads: 1, loads: loads, skip: mask, chat: turns}
	ends := common
	if mask != "" {
		ends = strings.Replace(common, `"route":"off"`, fmt.Sprintf(`"skip":%q`, mask), 1)
	}
	for _, e := range examples {
		s.asks = append(s.asks, ask{
			request: gallop.Request{Messages: []gallop.Message{{Role: "user", Content: e.Prompt}}, MaxTokens: 64, IgnoreEOS: true, Skip: skipped}, ends: ends,
		})
	}
	return s, nil
}

// largeSubject asks random weights in the shape of LLaMA 3.2 1B to go on with random tokens. Most of
// its tokens have no text, so it is asked to tell of each.
func largeSubject(ctx context.Context) (*subject, error) {
	path, err := randmodel.Cached(ctx, "llama-3.2-1b", gguf.Q4_0, 1, false, nil)
	if err != nil {
		return nil, err
	}
	s := &subject{name: "llama-3.2-1b-shape", path: path, url: "/v1/completions", ctx: 64, threads: runtime.NumCPU(), loads: []load{{1, 1, 12}, {8, 1, 4}, {most, 1, 2}}}
	for i := range 20 { // more than stay in the cache until they come again
		var tokens []llama.Token
		for k := range 16 {
			tokens = append(tokens, llama.Token(1000+(37*k+1009*i)%30_000))
		}
		prompt, err := json.Marshal(tokens)
		if err != nil {
			return nil, err
		}
		s.asks = append(s.asks, ask{
			request: gallop.Request{Tokens: tokens, MaxTokens: 12, Detail: true, Skip: gallop.Nothing()},
			body:    fmt.Sprintf(`{"prompt":%s,"max_tokens":12,%s`, prompt, strings.Replace(common, `"route"`, `"detail":true,"route"`, 1)),
		})
	}
	return s, nil
}

// common ends the bodies of all requests: greedy, by the whole model.
const common = `"temperature":0,"stream":true,"stream_options":{"include_usage":true},"gallop":{"route":"off"}}`

func (s *subject) measure(ctx context.Context, r *result, turns float64) error {
	o := llama.ContextOptions{NCtx: s.ctx, Threads: s.threads, Flash: llama.FlashGrouped} // as would be chosen without NoCosts
	e, err := gallop.Open(ctx, s.path, &gallop.Options{
		Parallel: parallel, Queue: most, Isolate: r.Isolate, Context: o, NoCosts: true, Shortlist: -1, Profile: gallop.NoProfile,
	})
	if err != nil {
		return err
	}
	h, err := server.New(server.Options{
		Models: []server.Model{{Name: s.name, Info: e.Info(), Open: func(context.Context) (server.Engine, error) { return server.Of(e), nil }}},
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), // what is logged costs, too
	})
	if err != nil {
		return errors.Join(err, e.Close())
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return errors.Join(err, h.Close(), e.Close())
	}
	serving, end := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- h.Serve(serving, l) }()
	err = s.rows(ctx, e, l.Addr().String(), r, turns)
	end()
	return errors.Join(err, <-ended, e.Close())
}

func (s *subject) rows(ctx context.Context, e *gallop.Engine, address string, r *result, turns float64) error {
	for i := range s.asks {
		a := &s.asks[i]
		a.request.Sampling = &llama.Sampling{}
		if s.chat > 0 && i%s.chat > 0 {
			before := &s.asks[i-1]
			a.request.Messages = slices.Concat(before.request.Messages, []gallop.Message{{Role: "assistant", Content: before.alone}}, a.request.Messages)
		}
		if a.body == "" {
			var messages []map[string]string
			for _, m := range a.request.Messages {
				messages = append(messages, map[string]string{"role": m.Role, "content": m.Content})
			}
			text, err := json.Marshal(messages)
			if err != nil {
				return err
			}
			a.body = fmt.Sprintf(`{"messages":%s,"max_tokens":64,"ignore_eos":true,%s`, text, a.ends)
		}
		alone := direct(ctx, e, a)
		if alone.err != nil {
			return alone.err
		}
		a.alone = alone.text
	}
	clients := make([]client, most)
	for i := range clients {
		clients[i] = client{address: address, url: s.url}
	}
	defer func() {
		for i := range clients {
			if c := clients[i].conn; c != nil {
				c.Close()
			}
		}
	}()
	ways := []func(context.Context, int, *ask) answered{
		func(ctx context.Context, _ int, a *ask) answered { return direct(ctx, e, a) },
		func(ctx context.Context, i int, a *ask) answered { return clients[i].ask(ctx, a) },
	}
	if s.chat > 0 {
		var err error
		if s.read, s.readAt, err = s.readTime(ctx, func(a *ask) answered { return clients[0].ask(ctx, a) }); err != nil {
			return err
		}
	}
	for _, l := range s.loads {
		var both [2][]figures
		var cost []float64
		begun, n := time.Now(), max(1, int(turns*float64(l.turns)+0.5))
		for turn := range n {
			var f [2]figures
			for i := range ways {
				way := (i + turn) % 2
				at := turn
				if s.chat > 0 { // other conversations, which the other way has not left in the cache
					at = len(ways)*turn + way
				}
				f[way] = s.together(ctx, l, at, ways[way])
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			both[0], both[1] = append(both[0], f[0]), append(both[1], f[1])
			cost = append(cost, 1-f[1].TPS/f[0].TPS)
			r.Wrong += f[1].wrong
			left := time.Since(begun) / time.Duration(turn+1) * time.Duration(n-turn-1)
			fmt.Fprintf(os.Stderr, "%s, %d clients, turn %d of %d: engine %.1f tokens/s, served %.1f; %v left\n", s.name, l.clients, turn+1, n, f[0].TPS, f[1].TPS, left.Round(time.Second))
		}
		row := row{Model: s.name, Clients: l.clients, Turns: n, Cost: stats.Median(cost)}
		row.RPS, row.TPS, row.Errors, row.TTFT50, row.TTFT95, row.TTFT99, row.Gap50, row.Gap95, row.Gap99 = sum(both[1])
		if l.clients == 1 {
			s.behind = 1000 * slope(both[1])
			for _, f := range both[1] {
				row.Firsts, row.Unread = append(row.Firsts, f.ttft...), append(row.Unread, f.unread...)
			}
		}
		row.Skip, row.Read, row.Behind = s.skip, max(s.read-s.readAt*s.behind/1000, 0), s.behind
		row.Prompt, row.Cached, row.Answer, row.CPU = perRequest(both[1])
		g := &row.Engine
		g.RPS, g.TPS, g.Errors, g.TTFT50, g.TTFT95, g.TTFT99, g.Gap50, g.Gap95, g.Gap99 = sum(both[0])
		if len(r.Rows) == 0 {
			r.Cost = row.Cost
		}
		r.Rows, r.Cost = append(r.Rows, row), max(r.Cost, row.Cost)
	}
	return nil
}

// readTime is how many ms a token of a prompt takes, and how many tokens are before it on average: from first
// and last turns of conversations, each another one that is not in the cache.
func (s *subject) readTime(ctx context.Context, ask func(a *ask) answered) (ms, behind float64, err error) {
	var took, tokens [2][]float64
	for i := range len(s.asks) / s.chat {
		which := i % 2
		time.Sleep(pause)
		x := ask(&s.asks[i*s.chat+which*(s.chat-1)])
		if x.read(); x.err != nil || ctx.Err() != nil {
			return 0, 0, cmp.Or(x.err, ctx.Err())
		}
		took[which] = append(took[which], 1000*x.at[0].Sub(x.asked).Seconds())
		tokens[which] = append(tokens[which], float64(x.prompt-x.cached))
	}
	few, many := stats.Mean(tokens[0]), stats.Mean(tokens[1])
	return max(stats.Mean(took[1])-stats.Mean(took[0]), 0) / (many - few), (few + many) / 2, nil
}

// slope is the ms that a token takes longer for each token before it, by the least squares over
// answers; 0 where they have all as many before them.
func slope(turns []figures) float64 {
	var before, pace []float64
	for _, f := range turns {
		before, pace = append(before, f.before...), append(pace, f.pace...)
	}
	if len(before) == 0 || slices.Min(before) == slices.Max(before) {
		return 0
	}
	_, b := stat.LinearRegression(before, pace, nil, false)
	return max(b, 0)
}

// perRequest gives the mean tokens of prompts and answers, and the ms of processor time per
// token of an answer.
func perRequest(turns []figures) (prompt, cached, answer, cpu float64) {
	asked, tokens := 0.0, 0.0
	for _, f := range turns {
		asked += float64(f.asked)
		prompt, cached = prompt+float64(f.prompt), cached+float64(f.cached)
		tokens += float64(f.tokens)
		cpu += 1000 * f.cpu
	}
	return prompt / asked, cached / asked, tokens / asked, cpu / tokens
}

// answered is one answer and when its pieces came.
type answered struct {
	asked  time.Time
	at     []time.Time
	tokens int
	prompt int
	cached int
	err    error

	text string
	raw  []byte // the whole response, which is not read yet
}

func direct(ctx context.Context, e *gallop.Engine, a *ask) (x answered) {
	x.asked = time.Now()
	for d, err := range e.Stream(ctx, a.request) {
		if err != nil {
			x.err = err
			return x
		}
		if d.Text != "" || len(d.Tokens) > 0 {
			x.at = append(x.at, time.Now())
		}
		if d.Answer != nil {
			x.tokens, x.text = d.Answer.Usage.Generated, d.Answer.Text
			x.prompt, x.cached = d.Answer.Usage.Prompt, d.Answer.Usage.Cached
		}
	}
	return x
}

// client asks over a connection of its own. It only reads what comes, so that a client's own
// work is not taken for what HTTP costs.
type client struct {
	address, url string
	conn         net.Conn
	buf          []byte
}

// end is how a streamed answer ends: its last event, and the last chunk of the body.
const end = "data: [DONE]\n\n\r\n0\r\n\r\n"

func (c *client) ask(ctx context.Context, a *ask) (x answered) {
	x.asked = time.Now()
	if c.conn == nil {
		if c.conn, x.err = (&net.Dialer{}).DialContext(ctx, "tcp", c.address); x.err != nil {
			return x
		}
	}
	defer context.AfterFunc(ctx, func() { c.conn.SetDeadline(time.Now()) })()
	if _, x.err = fmt.Fprintf(c.conn, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", c.url, c.address, len(a.body), a.body); x.err != nil {
		return x
	}
	c.buf = slices.Grow(c.buf[:0], 64<<10)
	for !bytes.HasSuffix(c.buf, []byte(end)) {
		if !bytes.HasPrefix(c.buf, []byte("HTTP/1.1 200")[:min(12, len(c.buf))]) {
			x.err = fmt.Errorf("the server answers %.200q", c.buf)
			return x
		}
		from := len(c.buf)
		c.buf = slices.Grow(c.buf, 4<<10)
		n, err := c.conn.Read(c.buf[from:cap(c.buf)])
		if c.buf = c.buf[:from+n]; err != nil {
			x.err = fmt.Errorf("the stream breaks off: %w", err)
			return x
		}
		if come := c.buf[from:]; bytes.Contains(come, []byte(`"content":"`)) || bytes.Contains(come, []byte(`"gallop":{"tokens":[{`)) {
			x.at = append(x.at, time.Now())
		}
	}
	x.raw = slices.Clone(c.buf)
	return x
}

// read finds what an answer says.
func (x *answered) read() {
	if x.raw == nil {
		return
	}
	res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(x.raw)), nil)
	if err != nil {
		x.err = err
		return
	}
	content, err := loading.Read(res.Body)
	x.tokens, x.prompt, x.cached, x.text, x.err = content.Tokens, content.Prompt, content.Cached, content.Text, err
}

// together lets so many clients ask one request after the other.
func (s *subject) together(ctx context.Context, l load, turn int, way func(ctx context.Context, client int, a *ask) answered) (f figures) {
	all, asks := make([]answered, l.clients*l.each), make([]*ask, l.clients*l.each)
	// nth is the k-th request of a client, and its index.
	nth := func(client, k int) (i int, a *ask) {
		if s.chat == 0 {
			i = k*l.clients + client
			return i, &s.asks[(i+7*turn)%len(s.asks)]
		}
		talk := client*talks + k%talks
		conversation := (turn*l.clients*talks + talk) % (len(s.asks) / s.chat) // another one each time
		return talk*s.chat + k/talks, &s.asks[conversation*s.chat+k/talks]
	}
	var idle time.Duration
	begin, used := time.Now(), processorTime()
	var running sync.WaitGroup
	for c := range l.clients {
		running.Go(func() {
			for k := range l.each {
				if s.chat > 0 && l.clients == 1 {
					slept := time.Now()
					time.Sleep(pause)
					idle += time.Since(slept)
				}
				i, a := nth(c, k)
				all[i], asks[i] = way(ctx, c, a), a
			}
		})
	}
	running.Wait()
	f.seconds, f.asked, f.cpu = (time.Since(begin) - idle).Seconds(), len(all), processorTime()-used
	for i := range all {
		a := &all[i]
		if a.read(); a.err != nil {
			f.errors++
			continue
		}
		f.tokens += a.tokens
		f.prompt += a.prompt
		f.cached += a.cached
		if a.text != asks[i].alone {
			f.wrong++
		}
		f.unread = append(f.unread, float64(a.prompt-a.cached))
		if n := len(a.at); n > 1 && a.tokens > 1 {
			f.before = append(f.before, float64(a.prompt)+float64(a.tokens)/2)
			f.pace = append(f.pace, 1000*a.at[n-1].Sub(a.at[0]).Seconds()/float64(a.tokens-1))
		}
		for k, at := range a.at {
			if k == 0 {
				f.ttft = append(f.ttft, 1000*at.Sub(a.asked).Seconds())
			} else {
				f.gap = append(f.gap, 1000*at.Sub(a.at[k-1]).Seconds())
			}
		}
	}
	f.TPS = float64(f.tokens) / f.seconds
	return f
}

// processorTime is what this process has used so far, in seconds of all cores.
func processorTime() float64 {
	var r unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &r) != nil {
		return 0
	}
	return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9
}

// sum puts the turns' figures together.
func sum(turns []figures) (rps, tps float64, failed int, ttft50, ttft95, ttft99, gap50, gap95, gap99 float64) {
	var speeds, asked, ttft, gap []float64
	for _, f := range turns {
		speeds, asked = append(speeds, f.TPS), append(asked, float64(f.asked)/f.seconds)
		ttft, gap = append(ttft, f.ttft...), append(gap, f.gap...)
		failed += f.errors
	}
	slices.Sort(ttft)
	slices.Sort(gap)
	at := func(x []float64, q float64) float64 {
		if len(x) == 0 {
			return 0
		}
		return x[int(q*float64(len(x)-1)+0.5)]
	}
	return stats.Median(asked), stats.Median(speeds), failed, at(ttft, 0.5), at(ttft, 0.95), at(ttft, 0.99), at(gap, 0.5), at(gap, 0.95), at(gap, 0.99)
}

func print(w io.Writer, r *result) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "model\tclients\trequests/s\ttokens/s\tengine's\tcost %\tfirst token p50\tp95\tp99\tgap p50\tp95\tp99\terrors\t")
	for _, x := range r.Rows {
		fmt.Fprintf(t, "%s\t%d\t%.1f\t%.1f\t%.1f\t%.1f\t%.0f ms\t%.0f\t%.0f\t%.1f ms\t%.1f\t%.1f\t%d\t\n",
			x.Model, x.Clients, x.RPS, x.TPS, x.Engine.TPS, 100*x.Cost, x.TTFT50, x.TTFT95, x.TTFT99, x.Gap50, x.Gap95, x.Gap99, x.Errors)
	}
	t.Flush()
	fmt.Fprintf(w, "HTTP costs %.1f %% at worst; %d served answers differ from the same request alone\n", 100*r.Cost, r.Wrong)
}
