// Command simulate-fleet simulates replicas of `gallop serve` under load, from what `make bench-serve`
// has measured of one. `make simulate-fleet` draws its curves; with -measure it compares itself with
// real replicas on this machine, which has to be quiet meanwhile.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"

	"github.com/gallop-llm/gallop/internal/files"
	"github.com/gallop-llm/gallop/internal/lab/report"
)

const (
	whole, masked = "conversations", "conversations, masked" // in build/serve.json
	chatTurns     = 3                                        // of the conversations there
	seats         = 8                                        // as bench-serve has them
	context1      = 512                                      // tokens of a request
	rounds        = 5                                        // of the real loads: the slowest twentieth of one is a matter of luck
)

// output is what is written: the curves' points, or the comparison.
type output struct {
	Processor string     `json:"processor"`
	Curves    []point    `json:"curves,omitempty"`
	Compared  []compared `json:"compared,omitempty"`
	Slowdown  float64    `json:"slowdown,omitempty"` // with which the first of Compared has the real tokens/s
	Worst     float64    `json:"worst,omitempty"`    // of Compared's deviations of throughput and of the answers' p95
}

// point is a simulated fleet.
type point struct {
	Replicas int      `json:"replicas"`
	Rate     float64  `json:"rate"` // requests a second and replica
	Affinity affinity `json:"affinity"`
	Masked   bool     `json:"masked"`
	result
}

func main() {
	serve := flag.String("serve", "build/serve.json", "what make bench-serve has measured")
	out := flag.String("o", "build/fleet.json", "file that the figures are written to")
	pictures := flag.String("pictures", "", "folder that the curves are drawn into")
	measure := flag.Bool("measure", false, "compare with real replicas on this machine, for some minutes")
	binary := flag.String("gallop", "build/gallop", "the program that serves, with -measure")
	replicas := flag.Int("replicas", 3, "real replicas, with -measure")
	seconds := flag.Float64("seconds", 20, "length of each load, with -measure")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *serve, *out, *pictures, *binary, *measure, *replicas, *seconds); err != nil {
		fmt.Fprintln(os.Stderr, "simulate-fleet:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, serve, out, pictures, binary string, measure bool, replicas int, seconds float64) error {
	data, err := os.ReadFile(serve)
	if err != nil {
		return fmt.Errorf("%w; make bench-serve measures it", err)
	}
	var measured struct {
		Processor string `json:"processor"`
		Rows      []row  `json:"rows"`
	}
	if err := json.Unmarshal(data, &measured); err != nil {
		return fmt.Errorf("%s: %w", serve, err)
	}
	plain, err := costsOf(measured.Rows, whole, seats)
	if err != nil {
		return fmt.Errorf("%s: %w", serve, err)
	}
	question, most := 0.0, 0.0
	for _, r := range measured.Rows {
		if r.Model == whole && r.Clients <= seats {
			most = max(most, r.TPS/r.Answer)
			question = (r.Prompt - r.Answer*float64(chatTurns-1)/2) / (float64(chatTurns+1) / 2) // turn t has t questions and t-1 answers
		}
	}
	o := output{Processor: measured.Processor}
	if measure {
		err = compare(ctx, &o, binary, plain, question, replicas, seconds)
	} else {
		var skipped costs
		if skipped, err = costsOf(measured.Rows, masked, seats); err == nil {
			o.Curves, err = curves(plain, skipped, question, most, pictures)
		}
	}
	if err != nil {
		return err
	}
	data, err = json.MarshalIndent(o, "", "  ")
	if err != nil {
		return err
	}
	return files.Write(out, append(data, '\n'))
}

// standard is a replica of the curves: a machine of its own for each.
func standard(c costs, replicas int, a affinity) fleet {
	return fleet{costs: c, replicas: replicas, perHost: 1, hostCPU: math.Inf(1), seats: seats, cache: seats * context1, affinity: a}
}

// chat is the load of the curves, in requests a second: conversations of three turns with 3 s between
// them. The first 10 s, in which conversations gather, do not count.
func chat(question, rate float64, requests float64) workload {
	const turns, warm = chatTurns, 10
	return workload{rate: rate / turns, warm: warm, seconds: warm + requests/rate, turns: turns, question: question, answer: 64, think: 3, seed: 1}
}

// unbounded is the time to the first token, in ms, past which a queue grows as long as it is fed.
const unbounded = 5000

// curves simulates and draws: load on 16 replicas, and up to 1,000 replicas at the same load of each. most is what
// a replica of the whole model can answer, in requests a second.
func curves(plain, skipped costs, question, most float64, pictures string) (points []point, err error) {
	const byLoad, requests, leastRequests = 16, 150, 5000 // requests of each replica, and of all at least
	sizeRate := math.Round(0.6 * most)                    // of each replica, where their number grows
	simulated := func(c costs, hidden bool, a affinity, replicas int, rate float64) result {
		r := simulate(standard(c, replicas, a), chat(question, rate*float64(replicas), max(leastRequests, float64(replicas)*requests)))
		points = append(points, point{replicas, rate, a, hidden, r})
		fmt.Fprintf(os.Stderr, "%d replicas, %g requests/s each, %s, masked %t: %s\n", replicas, rate, a, hidden, r)
		return r
	}
	type line struct {
		name     string
		costs    costs
		affinity affinity
		masked   bool
	}
	lines := []line{
		{"whole, hash", plain, hashed, false},
		{"whole, least busy", plain, least, false},
		{"whole, random", plain, drawn, false},
		{"masked, hash", skipped, hashed, true},
	}
	var tail, speed, size []report.Series
	for _, l := range lines {
		t, v := report.Series{Name: l.name}, report.Series{Name: l.name}
		n := report.Series{Name: l.name}
		for _, share := range []float64{0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1} {
			rate := math.Round(share * most)
			r := simulated(l.costs, l.masked, l.affinity, byLoad, rate)
			if r.First95 > unbounded {
				break
			}
			t.X, t.Y = append(t.X, rate), append(t.Y, r.First95)
			v.X, v.Y = append(v.X, rate), append(v.Y, 64/(r.Whole50/1000))
		}
		for _, replicas := range []int{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000} {
			r := simulated(l.costs, l.masked, l.affinity, replicas, sizeRate)
			n.X, n.Y = append(n.X, math.Log2(float64(replicas))), append(n.Y, r.First95)
		}
		tail, speed, size = append(tail, t), append(speed, v), append(size, n)
	}
	if pictures == "" {
		return points, nil
	}
	const rateLabel = "requests a second and replica"
	return points, errors.Join(
		report.CurvePNG(filepath.Join(pictures, "fleet-load.png"), "16 replicas: 95 % of first tokens come within", rateLabel, "ms", tail),
		report.CurvePNG(filepath.Join(pictures, "fleet-speed.png"), "16 replicas: the median answer, of 64 tokens", rateLabel, "tokens/s", speed),
		report.CurvePNG(filepath.Join(pictures, "fleet-size.png"), fmt.Sprintf("%.0f requests a second and replica: 95 %% of first tokens come within", sizeRate), "replicas, as a power of two", "ms", size),
	)
}

// compared is a load, as real replicas and as simulated ones took it.
type compared struct {
	Load      string `json:"load"`
	Real      result `json:"real"`
	Simulated result `json:"simulated"`
}

// compare runs loads on real and on simulated replicas that share this machine.
func compare(ctx context.Context, o *output, binary string, c costs, question float64, replicas int, seconds float64) error {
	f := fleet{costs: c, replicas: replicas, perHost: replicas, hostCPU: float64(runtime.NumCPU()), seats: seats, cache: seats * context1, affinity: hashed}
	s, err := startServers(ctx, binary, replicas)
	if err != nil {
		return err
	}
	defer s.close()
	busy := workload{closed: replicas * seats, seconds: seconds, turns: chatTurns, question: question, answer: 64}
	loads := []struct {
		name  string
		share float64
	}{
		{fmt.Sprintf("%d clients without a pause", busy.closed), 0}, // tells the most
		{"conversations at random, 30 % of the most", 0.3},
		{"conversations at random, 60 % of the most", 0.6},
	}
	o.Compared = make([]compared, len(loads))
	for seed := range uint64(rounds) { // a machine's speed changes within minutes: each round has its own most
		most := 0.0
		for i, load := range loads {
			l := busy
			if load.share > 0 {
				l = workload{rate: load.share * most / float64(chatTurns*64), seconds: seconds, turns: chatTurns, question: question, answer: 64, think: 1}
			}
			l.seed = seed
			r, err := s.run(ctx, l)
			if err != nil {
				return err
			}
			if load.share == 0 {
				most = r.TPS
				f.slowdown = slowdownOf(f, l, most)
				o.Slowdown += f.slowdown / rounds
			}
			x, v := &o.Compared[i], simulate(f, l)
			x.Load = load.name
			x.Real.add(r)
			x.Simulated.add(v)
			fmt.Fprintf(os.Stderr, "%s, round %d of %d:\n  real      %s\n  simulated %s\n", x.Load, seed+1, rounds, r, v)
		}
	}
	fmt.Fprintf(os.Stderr, "work takes %.2f times as long with %d processes on %d cores as alone\n", o.Slowdown, replicas, runtime.NumCPU())
	for _, x := range o.Compared {
		for _, pair := range [][2]float64{{x.Real.TPS, x.Simulated.TPS}, {x.Real.Whole95, x.Simulated.Whole95}} {
			o.Worst = max(o.Worst, math.Abs(pair[1]/pair[0]-1))
		}
		fmt.Fprintf(os.Stderr, "%s, all rounds:\n  real      %s\n  simulated %s\n", x.Load, x.Real, x.Simulated)
	}
	fmt.Fprintf(os.Stderr, "worst deviation of tokens/s and of the answers' p95: %.1f %%\n", 100*o.Worst)
	return nil
}

// slowdownOf is how many times as long as alone everything takes in a fleet that has the tokens a second that real
// replicas had under a load that keeps them busy. Processes on one machine share its caches and memory, and a machine's
// speed changes from one minute to the next: nothing in serve.json tells of either.
func slowdownOf(f fleet, busy workload, tps float64) float64 {
	low, high := 0.25, 4.0
	for range 20 {
		f.slowdown = (low + high) / 2
		if simulate(f, busy).TPS > tps {
			low = f.slowdown
		} else {
			high = f.slowdown
		}
	}
	return high
}

func (r result) String() string {
	return fmt.Sprintf("%d requests, %.0f tokens/s; first token p50 %.1f ms, p95 %.1f; answer p50 %.0f ms, p95 %.0f; %.0f %% of prompts cached",
		r.Requests, r.TPS, r.First50, r.First95, r.Whole50, r.Whole95, 100*r.Cached)
}
