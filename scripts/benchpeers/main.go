// Command benchpeers measures Gallop beside its peers on the same llama.cpp: it
// runs scripts/goloop, scripts/cloop.c and scripts/yzmaloop, which
// scripts/bench-peers builds beside it, in turns and compares their speeds.
package main

import (
	"context"
	"debug/buildinfo"
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
	"strings"
	"text/tabwriter"
	"time"

	"github.com/schollz/progressbar/v3"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/libs"
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

// peer is one loop and what it measured.
type peer struct {
	name    string // "gallop", "c", "yzma"
	label   string // of the table
	program string // path of its loop

	// One number for each round.
	prefill, decode []float64 // tokens/s
	firstToken      []float64 // ms from the process's start to its first token
}

// row is what --json prints for each peer. Numbers are medians over the rounds;
// ratios are those of the runs of one round.
type row struct {
	Peer             string    `json:"peer"`
	PrefillTPS       float64   `json:"prefill_tps"`
	DecodeTPS        float64   `json:"decode_tps"`
	FirstTokenMS     float64   `json:"first_token_ms"`
	RatioCPrefill    float64   `json:"ratio_c_prefill"` // of speeds: above 1 is faster than C
	RatioCDecode     float64   `json:"ratio_c_decode"`
	RatioCFirst      float64   `json:"ratio_c_first_token"` // of times: below 1 is sooner than C
	RatioYzmaPrefill float64   `json:"ratio_yzma_prefill"`
	RatioYzmaDecode  float64   `json:"ratio_yzma_decode"`
	RatioYzmaFirst   float64   `json:"ratio_yzma_first_token"`
	PrefillTPSRuns   []float64 `json:"prefill_tps_runs"` // (rounds,)
	DecodeTPSRuns    []float64 `json:"decode_tps_runs"`
	FirstTokenMSRuns []float64 `json:"first_token_ms_runs"`
	Model            string    `json:"model"`
	PromptTokens     int       `json:"prompt_tokens"`
	DecodeSteps      int       `json:"decode_steps"`
	Threads          int       `json:"threads"`
	CPUs             int       `json:"cpus"`
	Llama            string    `json:"llama"`
	Yzma             string    `json:"yzma"`
}

func main() {
	var o options
	flag.StringVar(&o.model, "m", "", "model `file` (default: random weights in the shape of "+shape+", Q4_0)")
	flag.IntVar(&o.prompt, "p", 512, "`tokens` of the prompt")
	flag.IntVar(&o.steps, "n", 128, "`tokens` to decode one by one")
	flag.IntVar(&o.threads, "t", runtime.NumCPU(), "threads")
	flag.IntVar(&o.rounds, "r", 5, "`rounds`, each with one run of every loop; one more warms up")
	flag.BoolVar(&o.json, "json", false, "print JSON, and the table on stderr")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := bench(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench-peers:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, o options, out io.Writer) error {
	if flag.NArg() > 0 || o.prompt < 1 || o.steps < 1 || o.threads < 1 || o.rounds < 1 {
		return errors.New("-p, -n, -t and -r must be at least 1, and there are no other arguments")
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	bin := filepath.Dir(exe)
	library, err := linkLibraries(ctx, filepath.Join(bin, "lib"))
	if err != nil {
		return err
	}
	yzma, err := moduleVersion(filepath.Join(bin, "yzmaloop"), "github.com/hybridgroup/yzma")
	if err != nil {
		return err
	}
	if o.model == "" {
		if o.model, err = randmodel.Cached(ctx, shape, gguf.Q4_0, 1, false, nil); err != nil {
			return err
		}
	}
	peers := []*peer{
		{name: "gallop", label: "gallop, empty mask", program: filepath.Join(bin, "goloop")},
		{name: "c", label: "C, without the patch", program: filepath.Join(bin, "cloop")},
		{name: "yzma", label: "yzma " + yzma, program: filepath.Join(bin, "yzmaloop")},
	}
	if err := measure(ctx, peers, library, o); err != nil {
		return err
	}

	rows := make([]row, len(peers))
	for i, p := range peers {
		rows[i] = row{
			Peer: p.name, PrefillTPS: stats.Median(p.prefill), DecodeTPS: stats.Median(p.decode), FirstTokenMS: stats.Median(p.firstToken),
			RatioCPrefill: stats.Median(ratios(p.prefill, peers[1].prefill)), RatioYzmaPrefill: stats.Median(ratios(p.prefill, peers[2].prefill)),
			RatioCDecode: stats.Median(ratios(p.decode, peers[1].decode)), RatioYzmaDecode: stats.Median(ratios(p.decode, peers[2].decode)),
			RatioCFirst: stats.Median(ratios(p.firstToken, peers[1].firstToken)), RatioYzmaFirst: stats.Median(ratios(p.firstToken, peers[2].firstToken)),
			PrefillTPSRuns: p.prefill, DecodeTPSRuns: p.decode, FirstTokenMSRuns: p.firstToken,
			Model: filepath.Base(o.model), PromptTokens: o.prompt, DecodeSteps: o.steps, Threads: o.threads, CPUs: runtime.NumCPU(),
			Llama: llama.Release, Yzma: yzma,
		}
	}
	if !o.json {
		return printTable(out, peers, o)
	}
	if err := printTable(os.Stderr, peers, o); err != nil {
		return err
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(rows)
}

// linkLibraries makes dir a folder of links to llama.cpp's libraries and returns
// the path of libllama there. yzma wants names without a release in them.
func linkLibraries(ctx context.Context, dir string) (string, error) {
	installed, err := libs.Install(ctx, nil)
	if err != nil {
		return "", err
	}
	files, err := filepath.Glob(filepath.Join(installed, "lib*.so"))
	if err != nil {
		return "", err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	for _, file := range files {
		name := filepath.Base(file)
		if err := os.Symlink(file, filepath.Join(dir, name)); err != nil {
			return "", err
		}
		if short := strings.Replace(name, "."+llama.Release, "", 1); short != name {
			if err := os.Symlink(file, filepath.Join(dir, short)); err != nil {
				return "", err
			}
		}
	}
	return llama.FindLibrary([]string{dir})
}

// moduleVersion reads from a Go program which version of a module is in it.
func moduleVersion(program, module string) (string, error) {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return "", err
	}
	for _, dep := range info.Deps {
		if dep.Path == module {
			return dep.Version, nil
		}
	}
	return "", fmt.Errorf("%s is not in %s", module, program)
}

// measure runs every loop once in each round, another one first each time, and
// checks that all choose the same tokens. The first round warms up and does not count.
func measure(ctx context.Context, peers []*peer, library string, o options) error {
	bar := progressbar.NewOptions((o.rounds+1)*len(peers), progressbar.OptionSetWriter(os.Stderr),
		progressbar.OptionSetDescription("measuring"), progressbar.OptionSetPredictTime(true), progressbar.OptionClearOnFinish())
	defer bar.Finish()
	var tokens []int
	for i := range o.rounds + 1 {
		for j := range peers {
			p := peers[(i+j)%len(peers)]
			r, err := run(ctx, p.program, library, o)
			if err != nil {
				return err
			}
			if tokens == nil {
				tokens = r.Tokens
			}
			if !slices.Equal(r.Tokens, tokens) {
				return fmt.Errorf("%s chose other tokens than the loop before it: %v, not %v", p.name, r.Tokens, tokens)
			}
			if i > 0 {
				p.prefill = append(p.prefill, float64(o.prompt)/r.PrefillSeconds)
				p.decode = append(p.decode, float64(o.steps)/r.DecodeSeconds)
				p.firstToken = append(p.firstToken, r.firstToken.Seconds()*1000)
			}
			if err := bar.Add(1); err != nil {
				return err
			}
		}
	}
	return nil
}

// result is what a loop prints for one run.
type result struct {
	FirstTokenAt   int64   `json:"first_token_at"` // µs since 1970
	PrefillSeconds float64 `json:"prefill_seconds"`
	DecodeSeconds  float64 `json:"decode_seconds"`
	Tokens         []int   `json:"tokens"`

	firstToken time.Duration // from the process's start
}

func run(ctx context.Context, loop, library string, o options) (result, error) {
	const seed = 1
	var args []string
	for _, n := range []int{o.prompt, o.steps, o.threads, seed} {
		args = append(args, strconv.Itoa(n))
	}
	cmd := exec.CommandContext(ctx, loop, append([]string{library, o.model}, args...)...)
	cmd.Stderr = os.Stderr
	var r result
	start := time.Now()
	out, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(out, &r)
	}
	if err != nil {
		return r, fmt.Errorf("%s: %w", filepath.Base(loop), err)
	}
	r.firstToken = time.UnixMicro(r.FirstTokenAt).Sub(start)
	return r, nil
}

// ratios divides run by run.
func ratios(a, b []float64) []float64 {
	var all []float64
	for i := range a {
		all = append(all, a[i]/b[i])
	}
	return all
}

func printTable(out io.Writer, peers []*peer, o options) error {
	fmt.Fprintf(out, "%s, prefill of %d, decode of %d, %d threads of %d CPUs, %d rounds: median (min to max)\n\n",
		filepath.Base(o.model), o.prompt, o.steps, o.threads, runtime.NumCPU(), o.rounds)
	cell := func(values []float64, digits int) string {
		return fmt.Sprintf("%.*f (%.*f to %.*f)", digits, stats.Median(values), digits, slices.Min(values), digits, slices.Max(values))
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\tprefill, tokens/s\tdecode, tokens/s\tfirst token after start, ms")
	for _, p := range peers {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", p.label, cell(p.prefill, 1), cell(p.decode, 2), cell(p.firstToken, 0))
	}
	g := peers[0]
	for _, p := range peers[1:] {
		fmt.Fprintf(w, "%s / %s\t%s\t%s\t%s\n", g.name, p.name, cell(ratios(g.prefill, p.prefill), 3),
			cell(ratios(g.decode, p.decode), 3), cell(ratios(g.firstToken, p.firstToken), 3))
	}
	return w.Flush()
}
