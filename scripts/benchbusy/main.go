// Command benchbusy measures how fast gallop answers while other programs use the
// same cores: with the number of threads that it chooses itself against each
// number that -t could fix, in turns. Call it as
//
//	go run ./scripts/benchbusy -gallop build/gallop -m model.gguf
//
// It prints JSON. busy_ratio is the speed of gallop's own choice over that of the
// best fixed number, the worst over prompts and answers, alone, beside one busy
// core, beside as many as there are, and two answers at once.
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
	"strings"
	"time"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/stats"
)

// options are the command line.
type options struct {
	gallop string
	model  string
	tokens int
	rounds int
	limit  time.Duration
	ends   []string // that end an answer: it is to have all of its tokens
}

// own is the -t of gallop's own choice.
const own = -1

// speeds are those of one number of threads, one for each round, in tokens/s.
// Two answers at once count with their mean.
type speeds struct {
	Threads int       `json:"threads"` // -t; -1 = gallop's own choice
	Prefill []float64 `json:"prefill_tps"`
	Decode  []float64 `json:"decode_tps"`
}

// situation is what else runs, and what was measured beside it.
type situation struct {
	Name         string   `json:"name"`
	Busy         int      `json:"busy"`          // programs that do nothing but compute
	Answers      int      `json:"answers"`       // at once
	PrefillRatio float64  `json:"prefill_ratio"` // of gallop's own choice over the best fixed number: the median over rounds
	DecodeRatio  float64  `json:"decode_ratio"`
	PrefillBest  int      `json:"prefill_best"` // that number
	DecodeBest   int      `json:"decode_best"`
	Runs         []speeds `json:"runs"`
}

// result is what is printed.
type result struct {
	Model      string      `json:"model"`
	CPUs       int         `json:"cpus"`
	Tokens     int         `json:"tokens"`
	Rounds     int         `json:"rounds"`
	BusyRatio  float64     `json:"busy_ratio"`
	Situations []situation `json:"situations"`
}

// spinArgument makes this program a busy one, until its input ends.
const spinArgument = "spin-until-eof"

func main() {
	if len(os.Args) == 2 && os.Args[1] == spinArgument {
		spin()
		return
	}
	var o options
	flag.StringVar(&o.gallop, "gallop", "build/gallop", "the `program`")
	flag.StringVar(&o.model, "m", "", "model `file` (default: the demo model)")
	flag.IntVar(&o.tokens, "n", 120, "`tokens` in an answer")
	flag.IntVar(&o.rounds, "r", 3, "`rounds`, each with one run of every number of threads")
	flag.DurationVar(&o.limit, "limit", 6*time.Second, "`time` after which an answer is stopped, and counted as far as it came")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := bench(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "benchbusy:", err)
		os.Exit(1)
	}
}

// spin keeps one core busy.
func spin() {
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	runtime.LockOSThread()
	for time.Since(time.Time{}) > 0 { // always
	}
}

func bench(ctx context.Context, o options, out io.Writer) error {
	if flag.NArg() > 0 || o.tokens < 2 || o.rounds < 1 {
		return errors.New("-n must be at least 2, -r at least 1, and there are no other arguments")
	}
	if err := o.findEnds(); err != nil {
		return err
	}
	r := result{Model: filepath.Base(o.model), CPUs: runtime.GOMAXPROCS(0), Tokens: o.tokens, Rounds: o.rounds, BusyRatio: 1e9}
	for _, s := range []situation{
		{Name: "alone", Answers: 1},
		{Name: "one busy core", Busy: 1, Answers: 1},
		{Name: "all cores busy", Busy: r.CPUs, Answers: 1},
		{Name: "two answers", Answers: 2},
	} {
		if err := s.measure(ctx, &o, numbers(r.CPUs)); err != nil {
			return fmt.Errorf("%s: %w", s.Name, err)
		}
		fmt.Fprintf(os.Stderr, "%-15s prompt %.2f of -t %d's speed, answer %.2f of -t %d's\n", s.Name, s.PrefillRatio, s.PrefillBest, s.DecodeRatio, s.DecodeBest)
		r.BusyRatio = min(r.BusyRatio, s.PrefillRatio, s.DecodeRatio)
		r.Situations = append(r.Situations, s)
	}
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(r)
}

// findEnds finds the tokens that end an answer in the model's file.
func (o *options) findEnds() error {
	path := o.model
	if path == "" {
		var err error
		if path, err = demo.Path(); err != nil {
			return err
		}
	}
	f, err := gguf.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, key := range []string{"eos", "eot"} {
		if id, err := f.Metadata.Uint("tokenizer.ggml." + key + "_token_id"); err == nil {
			o.ends = append(o.ends, strconv.FormatUint(id, 10))
		}
	}
	return nil
}

// numbers are the fixed ones: all on a small machine, else those that are likely
// to be the best somewhere.
func numbers(cpus int) []int {
	if cpus <= 4 {
		all := make([]int, cpus)
		for i := range all {
			all[i] = i + 1
		}
		return all
	}
	return []int{1, cpus / 4, cpus / 2, cpus - 1, cpus}
}

// measure runs every number in turns, each round in another order.
func (s *situation) measure(ctx context.Context, o *options, fixed []int) error {
	stop, err := busy(ctx, s.Busy)
	if err != nil {
		return err
	}
	defer stop()
	for _, n := range append([]int{own}, fixed...) {
		s.Runs = append(s.Runs, speeds{Threads: n})
	}
	for round := range o.rounds {
		for i := range s.Runs {
			x := &s.Runs[(i+round)%len(s.Runs)]
			prefill, decode, err := answers(ctx, o, x.Threads, s.Answers)
			if err != nil {
				return err
			}
			x.Prefill, x.Decode = append(x.Prefill, prefill), append(x.Decode, decode)
		}
	}
	s.PrefillRatio, s.PrefillBest = s.ratio(func(x speeds) []float64 { return x.Prefill })
	s.DecodeRatio, s.DecodeBest = s.ratio(func(x speeds) []float64 { return x.Decode })
	return nil
}

// ratio compares gallop's own choice with the fixed number that is best by its median.
func (s *situation) ratio(of func(speeds) []float64) (ratio float64, best int) {
	top := slices.MaxFunc(s.Runs[1:], func(a, b speeds) int {
		if stats.Median(of(a)) < stats.Median(of(b)) {
			return -1
		}
		return 1
	})
	var ratios []float64
	for i, x := range of(s.Runs[0]) {
		ratios = append(ratios, x/of(top)[i])
	}
	return stats.Median(ratios), top.Threads
}

// busy starts n programs that do nothing but compute. They end with their input.
func busy(ctx context.Context, n int) (stop func(), err error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var stops []func()
	stop = func() {
		for _, f := range stops {
			f()
		}
	}
	for range n {
		cmd := exec.CommandContext(ctx, exe, spinArgument)
		input, err := cmd.StdinPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			stop()
			return nil, err
		}
		stops = append(stops, func() {
			input.Close()
			cmd.Wait()
		})
	}
	return stop, nil
}

// answers runs gallop n times at once and gives the mean speeds.
func answers(ctx context.Context, o *options, threads, n int) (prefill, decode float64, err error) {
	type answer struct {
		prefill, decode float64
		err             error
	}
	done := make(chan answer)
	for range n {
		go func() {
			var a answer
			a.prefill, a.decode, a.err = run(ctx, o, threads)
			done <- a
		}()
	}
	for range n {
		a := <-done
		prefill, decode, err = prefill+a.prefill/float64(n), decode+a.decode/float64(n), errors.Join(err, a.err)
	}
	return prefill, decode, err
}

// question is some 150 tokens long and calls for a long answer.
var question = "Here is the beginning of a story. " + strings.Repeat("A horse gallops over the green hills behind the old town, and the people at the river look up from their work. ", 5) +
	"Go on with it for as long as you can, and describe everything in detail."

// run answers once.
func run(ctx context.Context, o *options, threads int) (prefill, decode float64, err error) {
	args := []string{"run", "--json", "--temp", "0", "-n", strconv.Itoa(o.tokens), "-t", strconv.Itoa(threads), "-p", question}
	if o.model != "" {
		args = append(args, "-m", o.model)
	}
	for _, id := range o.ends {
		args = append(args, "--logit-bias", id+"-100")
	}
	cmd := exec.CommandContext(ctx, o.gallop, args...)
	var messages strings.Builder
	cmd.Stderr = &messages
	output, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return 0, 0, err
	}
	timer := time.AfterFunc(o.limit, func() { cmd.Process.Signal(os.Interrupt) })
	defer timer.Stop()
	var answer struct {
		PrefillTPS float64 `json:"prefill_tps"`
		DecodeTPS  float64 `json:"decode_tps"`
	}
	decodeErr := json.NewDecoder(output).Decode(&answer)
	if err := cmd.Wait(); err != nil || decodeErr != nil {
		return 0, 0, fmt.Errorf("%s %s: %w: %s", o.gallop, strings.Join(args, " "), errors.Join(err, decodeErr), messages.String())
	}
	return answer.PrefillTPS, answer.DecodeTPS, nil
}
