package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/engine"
	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// turn is how many tokens the answers of a case go on by, before it is the next case's turn.
const turn = 8

// answers is a case: answers that are generated at once, in turns with other cases.
type answers interface {
	// begin reads the prompts and gives the times to the first tokens, in ms.
	begin(ctx context.Context, seed int) (ttft []float64, err error)
	// goOn lets each answer go on by n tokens and gives the seconds that it took.
	goOn(n int) (float64, error)
	// end ends what is left of the answers.
	end()
}

// throughput measures the cases, whose turns are so short that a machine that gets slower or
// faster does so for all of them. Where the weights lie in memory makes the same code some
// percent faster or slower, so each round loads the model anew, for llama.cpp's own decode too.
func (l *lab) throughput(ctx context.Context) error {
	names := []string{"stock8", "unmasked8", "same8", "different8", "one"}
	tps, ttft := map[string][]float64{}, map[string][]float64{}
	for n := range l.o.rounds {
		var round map[string]float64
		for try := range 10 { // random weights end an answer now and then
			var err error
			if round, err = l.round(ctx, names, 17*n+4001*try, ttft); err == nil {
				break
			} else if !errors.Is(err, errEnded) || try == 9 {
				return err
			}
		}
		slices.Reverse(names) // of a turn
		fmt.Fprintf(os.Stderr, "round %d of %d, tokens/s:", n+1, l.o.rounds)
		for name, v := range round {
			tps[name] = append(tps[name], v)
			fmt.Fprintf(os.Stderr, " %s %.1f", name, v)
		}
		fmt.Fprintln(os.Stderr)
	}
	for _, name := range names {
		slices.Sort(ttft[name])
		at := func(q float64) float64 { return ttft[name][int(q*float64(len(ttft[name])-1))] }
		l.r.Rows = append(l.r.Rows, row{name, stats.Median(tps[name]), at(0.5), at(0.95)})
	}
	l.r.UnmaskedStock = ratio(tps["unmasked8"], tps["stock8"])
	l.r.SameIdeal = ratio(tps["same8"], tps["unmasked8"]) / l.r.IdealByByte
	l.r.DifferentUnmasked = ratio(tps["different8"], tps["unmasked8"])
	return nil
}

// round gives each case's tokens/s.
func (l *lab) round(ctx context.Context, names []string, seed int, ttft map[string][]float64) (tps map[string]float64, err error) {
	m, err := llama.LoadModel(ctx, l.o.model, nil)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	different := masks(m, requests)
	l.r.MaskSkips, l.r.IdealByByte = different[0].String(), ideal(m, different[0])
	skips := map[string][]gallop.Skip{"one": {gallop.Nothing()}}
	for i := range requests {
		skips["unmasked8"] = append(skips["unmasked8"], gallop.Nothing())
		skips["same8"] = append(skips["same8"], gallop.Layers(different[0]).Prefill(skip.FullPrefill))
		skips["different8"] = append(skips["different8"], gallop.Layers(different[i]).Prefill(skip.FullPrefill))
	}
	cases := map[string]answers{}
	first := map[string][]float64{}
	for _, name := range names {
		var c answers
		if name == "stock8" {
			c, err = l.startC(ctx)
		} else {
			c, err = l.startEngine(m, skips[name])
		}
		if err != nil {
			return nil, err
		}
		defer c.end()
		cases[name] = c
		if first[name], err = c.begin(ctx, seed); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	seconds := map[string]float64{}
	for i := range steps / turn {
		for _, name := range names {
			s, err := cases[name].goOn(turn)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if i > 0 { // the first look at weights is slow
				seconds[name] += s
			}
		}
	}
	tps = map[string]float64{}
	for name, s := range seconds {
		n := requests
		if name == "one" {
			n = 1
		}
		tps[name] = float64(n*(steps-turn)) / s
		ttft[name] = append(ttft[name], first[name]...)
	}
	return tps, nil
}

// errEnded is returned where the model ends an answer too early to be measured.
var errEnded = errors.New("the model ends its answers early: choose another one")

// engineAnswers are answers of an engine, which is paused while it isn't their turn.
type engineAnswers struct {
	e       *gallop.Engine
	skips   []gallop.Skip
	cancel  context.CancelFunc
	running sync.WaitGroup
	pause   llama.Pause

	mu      sync.Mutex
	changed sync.Cond
	until   int   // tokens of the answer that has the fewest, when the turn ends
	have    []int // tokens of each
	ended   int   // answers
	err     error
}

func (l *lab) startEngine(m *llama.Model, skips []gallop.Skip) (*engineAnswers, error) {
	a := &engineAnswers{skips: skips, have: make([]int, len(skips)), cancel: func() {}}
	a.changed.L = &a.mu
	o := l.options(requests, 2*(prompt+2*steps))
	o.Pause = &a.pause
	var err error
	a.e, err = gallop.New(m, o)
	return a, err
}

func (a *engineAnswers) begin(ctx context.Context, seed int) (ttft []float64, err error) {
	ctx, a.cancel = context.WithCancel(ctx)
	ttft, a.until = make([]float64, len(a.skips)), 1
	start := time.Now()
	for i, s := range a.skips {
		gated := engine.WithGate(ctx, func() { // before the next decode, which waits for all answers
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.have[i] == 0 {
				ttft[i] = 1000 * time.Since(start).Seconds()
			}
			a.have[i]++
			if slices.Min(a.have) >= a.until {
				a.pause.Set(true)
				a.changed.Broadcast()
			}
		})
		a.running.Go(func() {
			_, err := a.e.Answer(gated, gallop.Request{Tokens: tokens(prompt, seed+1009*i, a.e.Info().Vocab), Skip: s, Sampling: &llama.Sampling{}, MaxTokens: 2 * steps})
			a.mu.Lock()
			defer a.mu.Unlock()
			a.ended++
			a.err = errors.Join(a.err, err)
			a.changed.Broadcast()
		})
	}
	_, err = a.wait(start)
	return ttft, err
}

func (a *engineAnswers) goOn(n int) (float64, error) {
	a.mu.Lock()
	a.until += n
	a.mu.Unlock()
	start := time.Now()
	a.pause.Set(false)
	return a.wait(start)
}

// wait waits for the end of a turn.
func (a *engineAnswers) wait(start time.Time) (float64, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for a.ended == 0 && slices.Min(a.have) < a.until {
		a.changed.Wait()
	}
	if a.ended > 0 {
		return 0, errors.Join(errEnded, a.err)
	}
	return time.Since(start).Seconds(), nil
}

func (a *engineAnswers) end() {
	a.cancel()
	a.running.Wait()
	a.e.Close()
}

// cAnswers are llama.cpp's own batched decode, in a process of its own.
type cAnswers struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func (l *lab) startC(ctx context.Context) (*cAnswers, error) {
	library := filepath.Join(llama.Dir(), "libllama.so")
	if matches, _ := filepath.Glob(filepath.Join(llama.Dir(), "libllama*.so*")); len(matches) > 0 {
		library = matches[0]
	}
	c := &cAnswers{cmd: exec.CommandContext(ctx, filepath.Join(l.o.bin, "cloop"), library, l.o.model,
		strconv.Itoa(prompt), strconv.Itoa(steps), strconv.Itoa(l.o.threads), "1", strconv.Itoa(requests))}
	in, err := c.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.in, c.out = in, bufio.NewScanner(out)
	return c, c.cmd.Start()
}

// begin reads one prompt after the other.
func (c *cAnswers) begin(context.Context, int) (ttft []float64, err error) {
	s, err := c.goOn(0)
	for i := range requests {
		ttft = append(ttft, 1000*s*float64(i+1)/requests)
	}
	return ttft, err
}

func (c *cAnswers) goOn(n int) (float64, error) {
	if _, err := fmt.Fprintln(c.in, n); err != nil {
		return 0, err
	}
	if !c.out.Scan() {
		return 0, errors.New("cloop ended")
	}
	return strconv.ParseFloat(c.out.Text(), 64)
}

func (c *cAnswers) end() {
	c.in.Close()
	c.cmd.Wait()
}
