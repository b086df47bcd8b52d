// Command benchserve measures what HTTP costs: the same requests from 1, 8 and 64 clients at
// once, by the engine itself and by streams over sockets of this machine, in turns on one
// engine. The clients share the processor with the engine, so that their costs count too.
// `make bench-serve` runs it.
package main

import (
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
	"sync"
	"text/tabwriter"
	"time"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/internal/realmodel"
	"github.com/gallop-llm/gallop/internal/server"
	"github.com/gallop-llm/gallop/internal/server/load"
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
	gap     []float64 // ms
	seconds float64
	asked   int
	errors  int
	wrong   int
}

// row is one model and number of clients. Times are in milliseconds, speeds the median of the rounds.
type row struct {
	Model   string  `json:"model"`
	Clients int     `json:"clients"`
	RPS     float64 `json:"rps"`
	TPS     float64 `json:"tps"` // of all clients together
	TTFT50  float64 `json:"ttft_p50_ms"`
	TTFT95  float64 `json:"ttft_p95_ms"`
	TTFT99  float64 `json:"ttft_p99_ms"`
	Gap50   float64 `json:"gap_p50_ms"` // between pieces of one answer's text
	Gap95   float64 `json:"gap_p95_ms"`
	Gap99   float64 `json:"gap_p99_ms"`
	Errors  int     `json:"errors"`

	Cost   float64 `json:"http_cost"` // 1 - tps over that of the engine in the same round, the median of the rounds
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
	Rounds    int     `json:"rounds"`
	Parallel  int     `json:"parallel"`
	Isolate   bool    `json:"isolate"`
	Rows      []row   `json:"rows"`
	Cost      float64 `json:"http_cost"` // the worst of the rows
	Wrong     int     `json:"wrong"`     // served answers that differ from the same request alone
}

// ask is a request, as the engine and as the server take it, and its answer when it is alone.
type ask struct {
	request gallop.Request
	body    string
	alone   string
}

// subject is a model that is measured.
type subject struct {
	name, path, url string
	ctx, threads    int
	asks            []ask
	each            map[int]int // requests of each client, by the number of clients
}

func main() {
	out := flag.String("o", "", "file that the result is written to (default: stdout)")
	rounds := flag.Int("r", 2, "rounds")
	isolate := flag.Bool("isolate", false, "let no answer depend on others, as gallop serve --isolate")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *out, *rounds, *isolate); err != nil {
		fmt.Fprintln(os.Stderr, "benchserve:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out string, rounds int, isolate bool) error {
	if _, err := libs.Load(); err != nil {
		return err
	}
	r := result{Processor: realmodel.Processor(), CPUs: runtime.NumCPU(), Rounds: rounds, Parallel: parallel, Isolate: isolate}
	for _, make := range []func(context.Context) (*subject, error){demoSubject, largeSubject} {
		s, err := make(ctx)
		if err == nil {
			err = s.measure(ctx, &r)
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

// demoSubject asks the demo model what its test data ask, in chats.
func demoSubject(context.Context) (*subject, error) {
	path, err := demo.Path()
	if err != nil {
		return nil, err
	}
	examples, _, err := dataset.Read([]string{"demo/test.jsonl"}, &dataset.Options{Limit: 96})
	if err != nil {
		return nil, err
	}
	s := &subject{name: "gallop-demo", path: path, url: "/v1/chat/completions", ctx: 256, threads: 1, each: map[int]int{1: 32, 8: 12, most: 2}}
	for _, e := range examples {
		prompt, err := json.Marshal(e.Prompt)
		if err != nil {
			return nil, err
		}
		s.asks = append(s.asks, ask{
			request: gallop.Request{Messages: []gallop.Message{{Role: "user", Content: e.Prompt}}, MaxTokens: 64},
			body:    fmt.Sprintf(`{"messages":[{"role":"user","content":%s}],"max_tokens":64,%s`, prompt, common),
		})
	}
	return s, nil
}

// largeSubject asks random weights in the shape of LLaMA 3.2 1B to go on with random tokens.
func largeSubject(ctx context.Context) (*subject, error) {
	path, err := randmodel.Cached(ctx, "llama-3.2-1b", gguf.Q4_0, 1, false, nil)
	if err != nil {
		return nil, err
	}
	s := &subject{name: "llama-3.2-1b-shape", path: path, url: "/v1/completions", ctx: 64, threads: runtime.NumCPU(), each: map[int]int{1: 4, 8: 2, most: 1}}
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
			request: gallop.Request{Tokens: tokens, MaxTokens: 12},
			body:    fmt.Sprintf(`{"prompt":%s,"max_tokens":12,%s`, prompt, common),
		})
	}
	return s, nil
}

// common ends the bodies of all requests: greedy, by the whole model.
const common = `"temperature":0,"stream":true,"stream_options":{"include_usage":true},"gallop":{"route":"off"}}`

func (s *subject) measure(ctx context.Context, r *result) error {
	e, err := gallop.Open(ctx, s.path, &gallop.Options{
		Parallel: parallel, Queue: most, Isolate: r.Isolate, Context: llama.ContextOptions{NCtx: s.ctx, Threads: s.threads}, NoCosts: true, Shortlist: -1, Profile: gallop.NoProfile,
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
	url := "http://" + l.Addr().String() + s.url
	err = s.rows(ctx, e, url, r)
	end()
	return errors.Join(err, <-ended, e.Close())
}

func (s *subject) rows(ctx context.Context, e *gallop.Engine, url string, r *result) error {
	for i := range s.asks {
		a := &s.asks[i]
		a.request.Sampling, a.request.Skip = &llama.Sampling{}, gallop.Nothing()
		alone := direct(ctx, e, a)
		if alone.err != nil {
			return alone.err
		}
		a.alone = alone.text
	}
	client := load.NewClient(most)
	ways := []func(context.Context, *ask) answered{
		func(ctx context.Context, a *ask) answered { return direct(ctx, e, a) },
		func(ctx context.Context, a *ask) answered { return served(ctx, client, url, a) },
	}
	for _, clients := range []int{1, 8, most} {
		var both [2][]figures
		var cost []float64
		for round := range r.Rounds + 1 { // the first warms up
			var f [2]figures
			for i := range ways {
				way := (i + round) % 2
				f[way] = s.together(ctx, clients, round, ways[way])
			}
			fmt.Fprintf(os.Stderr, "%s, %d clients, round %d of %d: engine %.1f tokens/s, served %.1f\n", s.name, clients, round, r.Rounds, f[0].TPS, f[1].TPS)
			if err := ctx.Err(); err != nil {
				return err
			}
			if round > 0 {
				both[0], both[1] = append(both[0], f[0]), append(both[1], f[1])
				cost = append(cost, 1-f[1].TPS/f[0].TPS)
				r.Wrong += f[1].wrong
			}
		}
		row := row{Model: s.name, Clients: clients, Cost: stats.Median(cost)}
		row.RPS, row.TPS, row.Errors, row.TTFT50, row.TTFT95, row.TTFT99, row.Gap50, row.Gap95, row.Gap99 = sum(both[1])
		g := &row.Engine
		g.RPS, g.TPS, g.Errors, g.TTFT50, g.TTFT95, g.TTFT99, g.Gap50, g.Gap95, g.Gap99 = sum(both[0])
		if len(r.Rows) == 0 {
			r.Cost = row.Cost
		}
		r.Rows, r.Cost = append(r.Rows, row), max(r.Cost, row.Cost)
	}
	return nil
}

// answered is one answer and when its pieces came.
type answered struct {
	asked  time.Time
	at     []time.Time
	tokens int
	err    error

	text string
}

func direct(ctx context.Context, e *gallop.Engine, a *ask) (x answered) {
	x.asked = time.Now()
	for d, err := range e.Stream(ctx, a.request) {
		if err != nil {
			x.err = err
			return x
		}
		if d.Text != "" {
			x.at = append(x.at, time.Now())
		}
		if d.Answer != nil {
			x.tokens, x.text = d.Answer.Usage.Generated, d.Answer.Text
		}
	}
	return x
}

func served(ctx context.Context, c *http.Client, url string, a *ask) (x answered) {
	answer, err := load.Ask(ctx, c, url, a.body)
	if err == nil && answer.Status != http.StatusOK {
		err = fmt.Errorf("status %d", answer.Status)
	}
	if err != nil {
		x.err = err
		return x
	}
	content, err := answer.Read()
	return answered{asked: answer.Asked, at: content.At, tokens: content.Tokens, err: err, text: content.Text}
}

// together lets so many clients ask one request after the other.
func (s *subject) together(ctx context.Context, clients, round int, way func(context.Context, *ask) answered) (f figures) {
	each := s.each[clients]
	all := make([]answered, clients*each)
	of := func(i int) *ask { return &s.asks[(i+7*round)%len(s.asks)] }
	begin := time.Now()
	var running sync.WaitGroup
	for c := range clients {
		running.Go(func() {
			for k := range each {
				i := k*clients + c
				all[i] = way(ctx, of(i))
			}
		})
	}
	running.Wait()
	f.seconds, f.asked = time.Since(begin).Seconds(), len(all)
	tokens := 0
	for i, a := range all {
		if a.err != nil {
			f.errors++
			continue
		}
		tokens += a.tokens
		if a.text != of(i).alone {
			f.wrong++
		}
		for k, at := range a.at {
			if k == 0 {
				f.ttft = append(f.ttft, 1000*at.Sub(a.asked).Seconds())
			} else {
				f.gap = append(f.gap, 1000*at.Sub(a.at[k-1]).Seconds())
			}
		}
	}
	f.TPS = float64(tokens) / f.seconds
	return f
}

// sum puts the rounds' figures together.
func sum(rounds []figures) (rps, tps float64, failed int, ttft50, ttft95, ttft99, gap50, gap95, gap99 float64) {
	var speeds, asked, ttft, gap []float64
	for _, f := range rounds {
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
