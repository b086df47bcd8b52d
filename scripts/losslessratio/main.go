// Command losslessratio measures what lossless mode costs or brings beside plain
// decoding: the same questions by both, in turns, by engines that know nothing of
// the machine, in ones that read what earlier ones learnt, and in later answers.
// It prints JSON: a row for each source of drafts, kind of text and state of
// knowledge, the worst ratio, and whether all tokens were equal.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/draft"
	"github.com/gallop-llm/gallop/internal/engine"
	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// code is what the second kind of text repeats.
const code = `def load(path):
    rows = []
    with open(path) as f:
        for line in f:
            name, count, price = line.strip().split(",")
            rows.append((name, int(count), float(price)))
    return rows

def total(rows):
    result = 0
    for name, count, price in rows:
        result = result + count * price
    return result

def report(path):
    rows = load(path)
    for name, count, price in rows:
        print(name, count, price)
    print("total", total(rows))
`

// kinds are two questions of each kind of text.
var kinds = []struct {
	name      string
	questions [2]string
}{
	{"prose", [2]string{"Write a long paragraph about the history of bread.", "Why is the sky blue? Explain it in a few paragraphs."}},
	{"rewrite", [2]string{
		"Rename the variable rows to items in this program and write the whole program again:\n\n" + code,
		"Write this program again with the function total renamed to sum_of, and change nothing else:\n\n" + code,
	}},
	{"list", [2]string{
		`List the eight planets as a JSON array of objects with the keys "name", "order" and "moons".`,
		"Write a numbered list of 20 English words, each with its plural in brackets.",
	}},
}

// source is where drafts come from.
type source struct {
	name   string
	drafts gallop.DraftOptions
}

// row is what was measured of one source, kind of text and state of knowledge.
// Ratios are speeds over plain ones, medians of the pairs.
type row struct {
	Source   string  `json:"source"`
	Text     string  `json:"text"`
	When     string  `json:"when"` // first: nothing is known; second: a file of the first's; later: the engine's next answer
	Pairs    int     `json:"pairs"`
	Decode   float64 `json:"decode_ratio"` // of decoding
	Answer   float64 `json:"answer_ratio"` // of making the engine and the whole answer
	Tokens   int     `json:"tokens"`       // of one answer
	Drafted  float64 `json:"drafted"`      // tokens, on average
	Accepted float64 `json:"accepted"`
	Equal    bool    `json:"equal"`

	decode, answer []float64
}

type result struct {
	Name     string  `json:"name"`
	PlainTPS float64 `json:"plain_tps"`
	Ratio    float64 `json:"lossless_ratio"` // the least of all rows' ratios
	Equal    bool    `json:"lossless_equal"`
	Rounding float64 `json:"lossless_rounding"`
	Seconds  float64 `json:"seconds"`
	Rows     []*row  `json:"lossless"`
}

func main() {
	var o options
	flag.StringVar(&o.model, "m", "", "GGUF file")
	flag.IntVar(&o.threads, "t", 2, "threads")
	flag.IntVar(&o.tokens, "n", 100, "tokens of an answer at most")
	flag.DurationVar(&o.time, "for", 2*time.Minute, "start no round after this time")
	flag.StringVar(&o.only, "only", "", "only this kind of text: prose, rewrite or list")
	flag.StringVar(&o.skip, "skip", "", "mask to draft under (default: by block influence)")
	flag.BoolVar(&o.cpu, "cpu", false, "measure the process's CPU time: with -t 1 other programs hardly disturb that")
	flag.Parse()
	r, err := measure(&o)
	if err == nil {
		out := json.NewEncoder(os.Stdout)
		out.SetIndent("", "  ")
		err = out.Encode(r)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "losslessratio:", err)
		os.Exit(1)
	}
}

type options struct {
	model, only, skip string
	threads, tokens   int
	cpu               bool
	time              time.Duration
}

// now is the time that counts.
func (o *options) now() time.Duration {
	if !o.cpu {
		return time.Since(began)
	}
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t) != nil {
		return time.Since(began)
	}
	return time.Duration(t.Nano())
}

var began = time.Now()

func measure(o *options) (*result, error) {
	if o.model == "" {
		return nil, errors.New("name a model: -m model.gguf")
	}
	if _, err := libs.Load(); err != nil {
		return nil, err
	}
	m, err := llama.LoadModel(context.Background(), o.model, &llama.ModelOptions{GPULayers: llama.CPUOnly})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	var masks []skip.Mask
	if o.skip == "" {
		probed, err := draft.Probe(m, o.threads)
		if err != nil {
			return nil, err
		}
		for _, p := range probed {
			masks = append(masks, p.Mask)
		}
	} else {
		mask, err := skip.Parse(o.skip)
		if err != nil {
			return nil, err
		}
		masks = []skip.Mask{mask}
	}
	folder, err := os.MkdirTemp("", "gallop-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	sources := []source{
		{"both", gallop.DraftOptions{Masks: masks}},
		{"mask", gallop.DraftOptions{Masks: masks, NoLookup: true}},
		{"lookup", gallop.DraftOptions{NoMasks: true}},
	}
	r := &result{Name: strings.TrimSuffix(filepath.Base(o.model), ".gguf"), Ratio: 1e9, Equal: true}
	start := time.Now()
	var plainTPS []float64
	for round := 0; round == 0 || time.Since(start) < o.time; round++ {
		for _, kind := range kinds {
			if o.only != "" && o.only != kind.name {
				continue
			}
			for _, s := range sources {
				var plain, got [2]answer
				cache := filepath.Join(folder, s.name)
				when := "first"
				if round%2 == 1 {
					when = "second"
				} else {
					os.RemoveAll(cache)
				}
				plain, got, err = o.askBoth(m, &s.drafts, cache, kind.questions, round/2%2 == 1)
				if errors.Is(err, gallop.ErrTooLong) {
					if round == 0 {
						fmt.Fprintf(os.Stderr, "%s: %s with drafts by %s is left out: %v\n", r.Name, kind.name, s.name, err)
					}
					continue
				}
				if err != nil {
					return nil, err
				}
				for i := range got {
					if i == 1 {
						when = "later"
					}
					r.add(s.name, kind.name, when, plain[i], got[i])
					plainTPS = append(plainTPS, plain[i].Speed())
				}
			}
		}
		fmt.Fprintf(os.Stderr, "%s: round %d, %.0f s\n", r.Name, round+1, time.Since(start).Seconds())
	}
	if len(r.Rows) == 0 {
		return nil, errors.New("the model's context is too short for all texts")
	}
	for _, row := range r.Rows {
		row.Decode, row.Answer = stats.Median(row.decode), stats.Median(row.answer)
		row.Drafted /= float64(row.Pairs)
		row.Accepted /= float64(row.Pairs)
		r.Ratio = min(r.Ratio, row.Decode, row.Answer)
		r.Equal = r.Equal && row.Equal
	}
	r.PlainTPS, r.Seconds = stats.Median(plainTPS), time.Since(start).Seconds()
	return r, nil
}

// answer is one with the times that it took: plain and lossless answers advance in
// turns, a token or a draft each, so that a machine that slows down slows down both.
type answer struct {
	gallop.Answer
	decode time.Duration // from the first text on
	whole  time.Duration // with the prompt, and the engine's making
}

// askBoth asks two questions of a new engine, and of a new one that drafts, as
// conversations of their own; otherFirst says which takes its turns first.
func (o *options) askBoth(m *llama.Model, drafts *gallop.DraftOptions, cache string, questions [2]string, otherFirst bool) (plain, got [2]answer, err error) {
	var engines [2]*gallop.Engine
	var made [2]time.Duration
	for i := range engines {
		start := o.now()
		engines[i], err = gallop.New(m, &gallop.Options{
			Parallel: 1, Profile: gallop.NoProfile, Shortlist: -1, Cache: cache,
			// Both would choose a kernel of attention by measuring, and other kernels round otherwise.
			Context: llama.ContextOptions{NCtx: min(cmp.Or(m.NCtxTrain, 4096), 4096), Threads: o.threads, Flash: llama.FlashGrouped},
		})
		if err != nil {
			return plain, got, err
		}
		defer engines[i].Close()
		made[i] = o.now() - start
	}
	for q, question := range questions {
		var answers [2]answer
		var steps [2]func() (struct{}, bool)
		for i, e := range engines {
			request := gallop.Request{Messages: []gallop.Message{{Role: "user", Content: question}}, Sampling: &llama.Sampling{}, MaxTokens: o.tokens}
			if i == 1 {
				request.Lossless, request.Drafts = true, drafts
			}
			var stop func()
			steps[i], stop = iter.Pull(func(yield func(struct{}) bool) {
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				left := false
				ctx = engine.WithGate(ctx, func() {
					if !left && !yield(struct{}{}) {
						left = true
						cancel()
					}
				})
				a, askErr := e.Answer(ctx, request)
				answers[i].Answer, err = a, errors.Join(err, askErr)
			})
			defer stop()
			if q == 0 {
				answers[i].whole = made[i]
			}
		}
		first, more := [2]bool{true, true}, [2]bool{true, true}
		for turn := 0; more[0] || more[1]; turn++ {
			i := turn % 2
			if otherFirst {
				i = 1 - i
			}
			if !more[i] {
				continue
			}
			start := o.now()
			_, more[i] = steps[i]()
			took := o.now() - start
			answers[i].whole += took
			if !first[i] {
				answers[i].decode += took
			}
			first[i] = false
		}
		if err != nil {
			return plain, got, err
		}
		plain[q], got[q] = answers[0], answers[1]
	}
	return plain, got, nil
}

// add takes in a pair of answers.
func (r *result) add(source, text, when string, plain, got answer) {
	i := slices.IndexFunc(r.Rows, func(x *row) bool { return x.Source == source && x.Text == text && x.When == when })
	if i < 0 {
		r.Rows, i = append(r.Rows, &row{Source: source, Text: text, When: when, Tokens: plain.Usage.Generated, Equal: true}), len(r.Rows)
	}
	x := r.Rows[i]
	x.Pairs++
	x.decode = append(x.decode, plain.decode.Seconds()/got.decode.Seconds())
	x.answer = append(x.answer, plain.whole.Seconds()/got.whole.Seconds())
	x.Drafted += float64(got.Drafts.Drafted)
	x.Accepted += float64(got.Drafts.Accepted)
	x.Equal = x.Equal && slices.Equal(plain.Tokens, got.Tokens)
	r.Rounding = max(r.Rounding, got.Drafts.Rounding)
}
