// Command benchengine measures what Gallop adds to stock llama.cpp: it runs
// scripts/cloop.c and scripts/goloop, which scripts/bench-engine builds beside
// it, in turns and compares their speeds.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"text/tabwriter"

	"github.com/gallop-llm/gallop/internal/gguf"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/internal/setup"
	"github.com/gallop-llm/gallop/llama"
)

// shape is the model that is measured when no other is given.
const shape = "llama-3.2-1b"

// options are the command line.
type options struct {
	model   string
	prompt  int // tokens
	steps   int // decoded tokens
	threads int
	rounds  int
	json    bool
}

// round is what a loop prints for one run.
type round struct {
	PrefillSeconds float64 `json:"prefill_seconds"`
	DecodeSeconds  float64 `json:"decode_seconds"`
	Tokens         []int   `json:"tokens,omitempty"`
}

// speed is tokens per second over all rounds.
type speed struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// report is the whole measurement.
type report struct {
	Model   string `json:"model"`
	Threads int    `json:"threads"`
	Prompt  int    `json:"prompt_tokens"`
	Steps   int    `json:"decode_steps"`
	CPUs    int    `json:"cpus"`
	Llama   string `json:"llama"` // path of the library

	CPrefill     speed   `json:"c_prefill"` // tokens/s
	GoPrefill    speed   `json:"go_prefill"`
	CDecode      speed   `json:"c_decode"`
	GoDecode     speed   `json:"go_decode"`
	PrefillRatio speed   `json:"prefill_ratio"` // Go / C, of the two runs of a round
	DecodeRatio  speed   `json:"decode_ratio"`
	C            []round `json:"c_rounds"`
	Go           []round `json:"go_rounds"`
}

func main() {
	var o options
	flag.StringVar(&o.model, "m", "", "model `file` (default: random weights in the shape of "+shape+", Q4_0)")
	flag.IntVar(&o.prompt, "p", 512, "`tokens` of the prompt")
	flag.IntVar(&o.steps, "n", 64, "`tokens` to decode")
	flag.IntVar(&o.threads, "t", llama.DefaultThreads(), "threads")
	flag.IntVar(&o.rounds, "r", 10, "rounds; one more runs first and is not counted")
	flag.BoolVar(&o.json, "json", false, "print JSON with every run")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := bench(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench-engine:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, o options, out io.Writer) error {
	if flag.NArg() > 0 || o.prompt < 1 || o.steps < 1 || o.threads < 1 || o.rounds < 1 {
		return errors.New("-p, -n, -t and -r must be at least 1, and there are no other arguments")
	}
	dir, err := setup.Install(ctx, setup.DefaultDevice())
	if err != nil {
		return err
	}
	library, err := llama.FindLibrary([]string{dir})
	if err != nil {
		return err
	}
	if o.model == "" {
		if o.model, err = randmodel.Cached(ctx, shape, gguf.Q4_0, nil); err != nil {
			return err
		}
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	bin := filepath.Dir(exe)
	r := &report{Model: o.model, Threads: o.threads, Prompt: o.prompt, Steps: o.steps, CPUs: runtime.NumCPU(), Llama: library}
	for i := range o.rounds + 1 {
		c, g, err := turn(ctx, bin, library, o, i)
		if err != nil {
			return err
		}
		if i == 0 {
			continue // warm-up
		}
		r.C, r.Go = append(r.C, c), append(r.Go, g)
		fmt.Fprintf(os.Stderr, "round %d of %d: decode C %.2f Go %.2f tokens/s\n", i, o.rounds,
			float64(o.steps)/c.DecodeSeconds, float64(o.steps)/g.DecodeSeconds)
	}
	r.summarise()
	if o.json {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(r)
	}
	return r.print(out)
}

// turn runs both loops once, C first in every other round, and checks that
// they chose the same tokens.
func turn(ctx context.Context, bin, library string, o options, i int) (c, g round, err error) {
	runC := func() { c, err = run(ctx, filepath.Join(bin, "cloop"), library, o) }
	runGo := func() { g, err = run(ctx, filepath.Join(bin, "goloop"), library, o) }
	first, second := runC, runGo
	if i%2 == 1 {
		first, second = runGo, runC
	}
	if first(); err != nil {
		return c, g, err
	}
	if second(); err != nil {
		return c, g, err
	}
	if !slices.Equal(c.Tokens, g.Tokens) {
		return c, g, fmt.Errorf("the loops chose different tokens: C %v, Go %v", c.Tokens, g.Tokens)
	}
	c.Tokens, g.Tokens = nil, nil
	return c, g, nil
}

func run(ctx context.Context, loop, library string, o options) (round, error) {
	const seed = 1
	var args []string
	for _, n := range []int{o.prompt, o.steps, o.threads, seed} {
		args = append(args, strconv.Itoa(n))
	}
	cmd := exec.CommandContext(ctx, loop, append([]string{library, o.model}, args...)...)
	cmd.Stderr = os.Stderr
	var r round
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil {
		return r, fmt.Errorf("%s: %w", filepath.Base(loop), err)
	}
	return r, nil
}

// summarise fills the speeds and ratios from the rounds.
func (r *report) summarise() {
	per := func(rounds []round, value func(round) float64) speed {
		var all []float64
		for _, x := range rounds {
			all = append(all, value(x))
		}
		return summary(all)
	}
	prefill := func(x round) float64 { return float64(r.Prompt) / x.PrefillSeconds }
	decode := func(x round) float64 { return float64(r.Steps) / x.DecodeSeconds }
	r.CPrefill, r.GoPrefill = per(r.C, prefill), per(r.Go, prefill)
	r.CDecode, r.GoDecode = per(r.C, decode), per(r.Go, decode)
	var prefills, decodes []float64
	for i := range r.C {
		prefills = append(prefills, r.C[i].PrefillSeconds/r.Go[i].PrefillSeconds)
		decodes = append(decodes, r.C[i].DecodeSeconds/r.Go[i].DecodeSeconds)
	}
	r.PrefillRatio, r.DecodeRatio = summary(prefills), summary(decodes)
}

func summary(values []float64) speed {
	slices.Sort(values)
	n := len(values)
	return speed{Median: (values[(n-1)/2] + values[n/2]) / 2, Min: values[0], Max: values[n-1]}
}

func (r *report) print(out io.Writer) error {
	fmt.Fprintf(out, "%s, %d threads of %d CPUs, %d rounds: median (min to max)\n\n", r.Model, r.Threads, r.CPUs, len(r.C))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\tC, tokens/s\tGo, tokens/s\tGo / C")
	for _, row := range []struct {
		name         string
		c, g, ratios speed
	}{
		{fmt.Sprintf("prefill of %d", r.Prompt), r.CPrefill, r.GoPrefill, r.PrefillRatio},
		{fmt.Sprintf("decode of %d", r.Steps), r.CDecode, r.GoDecode, r.DecodeRatio},
	} {
		cell := func(s speed, digits int) string {
			return fmt.Sprintf("%.*f (%.*f to %.*f)", digits, s.Median, digits, s.Min, digits, s.Max)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", row.name, cell(row.c, 2), cell(row.g, 2), cell(row.ratios, 3))
	}
	return w.Flush()
}
