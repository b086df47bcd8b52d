// Command benchengine measures the engine: many requests in one decode beside stock
// llama.cpp's own batched decode, under one mask, under different masks and without any; one
// request alone beside an earlier Gallop; the gaps that a long prompt makes in running answers;
// and what many cancelled requests leave behind. `make bench-engine` runs it.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/internal/realmodel"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// What is measured.
const (
	requests  = 8
	prompt    = 64     // tokens
	steps     = 64     // tokens of an answer behind its first one
	share     = 0.25   // of the layers' weights that masks skip
	long      = 4000   // tokens of the prompt that comes while answers stream
	streaming = 4      // answers, meanwhile
	cancelled = 10_000 // requests
)

type options struct {
	model, bin, before, out string
	threads, rounds         int
}

// row is one case. Numbers are medians over the rounds.
type row struct {
	Case  string  `json:"case"`
	TPS   float64 `json:"tps"`         // aggregate, while all requests generate
	TTFT  float64 `json:"ttft_p50_ms"` // time to the first token
	TTFT9 float64 `json:"ttft_p95_ms"`
}

// result is what is written.
type result struct {
	Model       string  `json:"model"`
	Processor   string  `json:"processor"`
	CPUs        int     `json:"cpus"`
	Threads     int     `json:"threads"`
	Rounds      int     `json:"rounds"`
	Requests    int     `json:"requests"`
	Prompt      int     `json:"prompt_tokens"`
	Steps       int     `json:"decode_steps"`
	MaskSkips   string  `json:"mask"`
	IdealByByte float64 `json:"ideal"` // speed-up of the mask by the bytes of weights that it skips

	Rows []row `json:"rows"`

	UnmaskedStock     float64 `json:"unmasked_stock"`     // speed of 8 requests over that of llama.cpp's batched decode
	SameIdeal         float64 `json:"same_ideal"`         // of 8 under one mask over that of 8 without, over the ideal by bytes
	DifferentUnmasked float64 `json:"different_unmasked"` // of 8 under 8 masks over that of 8 without
	OneBefore         float64 `json:"one_before"`         // of one alone over that by an earlier Gallop; 0 = not measured
	GapOverUbatch     float64 `json:"gap_over_ubatch"`    // longest pause of a running answer while a long prompt is read, over a micro-batch's time
	Leaked            int     `json:"leaked"`             // sequences, goroutines and C objects that many cancelled requests left behind

	LeftOver leftOver `json:"left_over"`
}

// leftOver is what many cancelled requests have left behind.
type leftOver struct {
	Requests   int   `json:"requests"`
	Sequences  int   `json:"sequences"`
	Goroutines int   `json:"goroutines"`
	Objects    int   `json:"c_objects"`
	RSS        int64 `json:"rss_growth_bytes"` // from the first half of them to the second
}

func main() {
	var o options
	flag.StringVar(&o.model, "m", "", "model (default: random weights in the shape of LLaMA 3.2 1B, Q4_0)")
	flag.StringVar(&o.bin, "bin", "", "folder of cloop")
	flag.StringVar(&o.before, "before", "", "an earlier gallop to compare one request with; \"\" = none")
	flag.StringVar(&o.out, "o", "", "file that the result is written to")
	flag.IntVar(&o.threads, "t", 2, "threads")
	flag.IntVar(&o.rounds, "r", 5, "rounds")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, &o); err != nil {
		fmt.Fprintln(os.Stderr, "benchengine:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o *options) error {
	if _, err := libs.Load(); err != nil {
		return err
	}
	if o.model == "" {
		var err error
		if o.model, err = randmodel.Cached(ctx, "llama-3.2-1b", gguf.Q4_0, 1, false, nil); err != nil {
			return err
		}
	}
	r := result{Model: filepath.Base(o.model), Processor: realmodel.Processor(), CPUs: runtime.NumCPU(), Threads: o.threads, Rounds: o.rounds,
		Requests: requests, Prompt: prompt, Steps: steps}
	l := &lab{o: o, r: &r}
	for _, part := range []func(context.Context) error{l.throughput, l.gaps, l.one, l.leaks} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	l.print(os.Stderr)
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if o.out == "" {
		_, err = os.Stdout.Write(append(data, '\n'))
		return err
	}
	return os.WriteFile(o.out, append(data, '\n'), 0o644)
}

type lab struct {
	o *options
	r *result
}

// options are of engines that do what is asked and nothing else.
func (l *lab) options(parallel, nCtx int) *gallop.Options {
	return &gallop.Options{
		Parallel: parallel, Context: llama.ContextOptions{NCtx: nCtx, Threads: l.o.threads}, Shortlist: -1, NoCosts: true, Profile: gallop.NoProfile,
	}
}

// tokens are a made-up prompt, as cloop's.
func tokens(n, seed, vocab int) []llama.Token {
	t := make([]llama.Token, n)
	for i := range t {
		t[i] = llama.Token((37*i + seed + 1) % vocab)
	}
	return t
}

// masks gives masks that skip so much, each other sublayers, with a full prefill as chosen
// by prompt.
func masks(m *llama.Model, n int) (all []skip.Mask) {
	sizes := search.SizesOf(m.Tensors, m.NLayer)
	units := search.SublayerUnits(sizes)
	read, _ := m.TokenBytes()
	random := rand.New(rand.NewPCG(1, 2))
	for range n {
		var mask skip.Mask
		for _, i := range random.Perm(len(units)) {
			if next := mask.Union(units[i].Mask); float64(sizes.Bytes(next)) <= share*float64(read) {
				mask = next
			}
		}
		all = append(all, mask)
	}
	return all
}

// ideal is how many times as fast as the whole model a mask can be by the bytes that a token reads.
func ideal(m *llama.Model, mask skip.Mask) float64 {
	read, _ := m.TokenBytes()
	return 1 / (1 - float64(search.SizesOf(m.Tensors, m.NLayer).Bytes(mask))/float64(read))
}

// timed is when an answer's tokens came.
type timed struct {
	asked time.Time
	at    []time.Time
	err   error
}

// answer asks and notes the times.
func answer(ctx context.Context, e *gallop.Engine, prompt []llama.Token, s gallop.Skip, n int) (t timed) {
	t.asked = time.Now()
	for d, err := range e.Stream(ctx, gallop.Request{Tokens: prompt, Skip: s, Sampling: &llama.Sampling{}, MaxTokens: n, Detail: true}) {
		if err != nil {
			t.err = err
			return t
		}
		for range d.Tokens {
			t.at = append(t.at, time.Now())
		}
	}
	return t
}

// ratio is the median of the rounds' ratios.
func ratio(a, b []float64) float64 {
	var all []float64
	for i := range a {
		all = append(all, a[i]/b[i])
	}
	return stats.Median(all)
}

// gaps measures the pauses of running answers while a long prompt is read.
func (l *lab) gaps(ctx context.Context) error {
	const ubatch = 512
	e, err := gallop.Open(ctx, l.o.model, l.options(streaming+1, long+256))
	if err != nil {
		return err
	}
	defer e.Close()
	vocab := e.Info().Vocab
	start := time.Now()
	if t := answer(ctx, e, tokens(long, 5, vocab), gallop.Nothing(), 1); t.err != nil {
		return t.err
	}
	micro := time.Since(start).Seconds() * ubatch / long
	streams, stop := context.WithCancel(ctx)
	defer stop()
	all := make([]timed, streaming)
	var running sync.WaitGroup
	for i := range all {
		running.Go(func() { all[i] = answer(streams, e, tokens(16, 100*i, vocab), gallop.Nothing(), long) })
	}
	time.Sleep(2 * time.Second)
	begin := time.Now()
	t := answer(ctx, e, tokens(long, 77, vocab), gallop.Nothing(), 2)
	end := time.Now()
	stop()
	running.Wait()
	if t.err != nil {
		return t.err
	}
	worst := 0.0
	for _, s := range all {
		if len(s.at) == 0 {
			return fmt.Errorf("a stream gave nothing: %w", s.err)
		}
		before := begin
		for _, at := range s.at {
			if at.After(begin) && at.Before(end) {
				worst = max(worst, at.Sub(before).Seconds())
				before = at
			}
		}
		worst = max(worst, end.Sub(before).Seconds())
	}
	l.r.GapOverUbatch = worst / micro
	fmt.Fprintf(os.Stderr, "longest pause %.0f ms, a micro-batch %.0f ms\n", 1000*worst, 1000*micro)
	return nil
}

// one compares a request alone with an earlier Gallop, program beside program.
func (l *lab) one(ctx context.Context) error {
	if l.o.before == "" {
		return nil
	}
	var ratios []float64
	for range l.o.rounds + 1 {
		var tps [2]float64
		for i, program := range []string{l.o.before, filepath.Join(l.o.bin, "gallop")} {
			out, err := exec.CommandContext(ctx, program, "run", "-m", l.o.model, "-t", strconv.Itoa(l.o.threads), "-c", "512", "--temp", "0", "--route", "off",
				"--shortlist", "off", "-n", strconv.Itoa(steps), "--json", "a horse, a horse, my kingdom for a horse").Output()
			if err != nil {
				return fmt.Errorf("%s: %w", program, err)
			}
			var r struct {
				TPS float64 `json:"decode_tps"`
			}
			if err := json.Unmarshal(out, &r); err != nil {
				return err
			}
			tps[i] = r.TPS
		}
		ratios = append(ratios, tps[1]/tps[0])
	}
	l.r.OneBefore = stats.Median(ratios[1:])
	return nil
}

// leaks cancels many requests at random moments, on the demo model.
func (l *lab) leaks(ctx context.Context) error {
	path, err := demo.Path()
	if err != nil {
		return err
	}
	objects := llama.Live()
	e, err := gallop.Open(ctx, path, &gallop.Options{Parallel: requests, Queue: cancelled, Context: llama.ContextOptions{NCtx: 256, Threads: l.o.threads}, NoCosts: true, Shortlist: -1})
	if err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(3, 4))
	goroutines, half := runtime.NumGoroutine(), int64(0)
	var running sync.WaitGroup
	limit := make(chan struct{}, 64)
	for i := range cancelled {
		after := time.Duration(random.IntN(100_000)) * time.Microsecond
		limit <- struct{}{}
		running.Go(func() {
			defer func() { <-limit }()
			ctx, stop := context.WithTimeout(ctx, after)
			defer stop()
			e.Answer(ctx, gallop.Request{Prompt: fmt.Sprintf("What is %d plus %d?", i, i+1), MaxTokens: 50, Lossless: i%3 == 0})
		})
		if i == cancelled/2 {
			half = residentBytes()
		}
	}
	running.Wait()
	s := e.Stats()
	time.Sleep(100 * time.Millisecond)
	l.r.LeftOver = leftOver{Requests: cancelled, Sequences: s.Running + s.Waiting, Goroutines: max(runtime.NumGoroutine()-goroutines, 0), RSS: max(residentBytes()-half, 0)}
	if err := e.Close(); err != nil {
		return err
	}
	l.r.LeftOver.Objects = llama.Live() - objects
	l.r.Leaked = l.r.LeftOver.Sequences + l.r.LeftOver.Goroutines + l.r.LeftOver.Objects
	return nil
}

// residentBytes is the process's memory; 0 where the system does not tell.
func residentBytes() int64 {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(data), &size, &resident); err != nil {
		return 0
	}
	return resident * int64(os.Getpagesize())
}

func (l *lab) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "case\ttokens/s\tfirst token p50\tp95\t")
	for _, r := range l.r.Rows {
		fmt.Fprintf(t, "%s\t%.1f\t%.0f ms\t%.0f ms\t\n", r.Case, r.TPS, r.TTFT, r.TTFT9)
	}
	t.Flush()
	r := l.r
	fmt.Fprintf(w, "8 unmasked over llama.cpp's batched decode %.3f\n8 under one mask over the ideal by bytes (%.3f) %.3f\n8 under 8 masks over unmasked %.3f\none over before %.3f\npause over micro-batch %.2f\nleft over %+v\n",
		r.UnmaskedStock, r.IdealByByte, r.SameIdeal, r.DifferentUnmasked, r.OneBefore, r.GapOverUbatch, r.LeftOver)
}
