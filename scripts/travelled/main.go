// Command travelled measures how well a profile that was made on one quantisation of a
// model routes another, beside the profile that was made on that one.
//
//	go run ./scripts/travelled -model q4_0.gguf -own q4_0.profile -travelled q4_0.travelled -depths 1,2 -of 16 -o q4_0.json data.jsonl …
//	go run ./scripts/travelled -page docs/results.md -o docs/travel.json q4_0.json …
//
// Both profiles choose a mask for each question. The right answers are given token by
// token, so the whole model and both masks see the same text. scripts/travel calls it.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

type options struct {
	model, name, own, travelled, out string
	depths, qualities                []float64
	of, longest, threads             int
	data                             []string
}

func main() {
	var o options
	flag.StringVar(&o.model, "model", "", "model: the quantisation that is routed")
	flag.StringVar(&o.name, "name", "", "name of model and quantisation in the table, with / between (default: the file's)")
	flag.StringVar(&o.own, "own", "", "profile that was made on it")
	flag.StringVar(&o.travelled, "travelled", "", "profile that was made on another quantisation and checked on this one")
	flag.StringVar(&o.out, "o", "", "file to write; with -page, the file that rows are added to")
	depths := flag.String("depths", "", "depths to measure, in layers (default: none)")
	qualities := flag.String("qualities", "", "qualities to measure, with escalation as the profiles have it (default: their own)")
	flag.IntVar(&o.of, "of", 0, "questions of each file, spread over it; 0 = all")
	flag.IntVar(&o.longest, "longest", 224, "tokens that a question has at most, its answers among them; longer ones are left out")
	flag.IntVar(&o.threads, "t", 0, "threads; 0 = physical cores")
	page := flag.String("page", "", "write the table of these files into this document, and measure nothing")
	flag.Parse()
	o.data = flag.Args()
	var err error
	if *page != "" {
		err = writePage(*page, o.out, o.data)
	} else if o.depths, err = numbers(*depths); err == nil {
		if o.qualities, err = numbers(*qualities); err == nil {
			ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
			err = o.run(ctx)
			stop()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "travelled:", err)
		os.Exit(1)
	}
}

// numbers reads 1,2.5.
func numbers(text string) (list []float64, err error) {
	for part := range strings.SplitSeq(text, ",") {
		if part == "" {
			continue
		}
		x, err := strconv.ParseFloat(part, 64)
		if err != nil || !(x > 0) {
			return nil, fmt.Errorf("%q: want positive numbers with commas between", text)
		}
		list = append(list, x)
	}
	return list, nil
}

// measure is what a profile comes to in one way.
type measure struct {
	Skipped   float64 `json:"skipped"`   // layers' worth of weights, mean over the questions
	Again     float64 `json:"again"`     // share of the answers' tokens that the whole model decides again
	Right     float64 `json:"right"`     // share of the questions, those with choices alone where there are any
	Kept      float64 `json:"kept"`      // kept probability: exp(-divergence from the whole model, nats per token), mean over the questions
	Agreement float64 `json:"agreement"` // share of the answers' tokens with the whole model's likeliest token, mean over the questions
}

// difference is the travelled profile's less the own one's, with its 95 % interval.
type difference struct {
	Mean float64 `json:"mean"`
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// row compares two profiles in one way.
type row struct {
	Model        string     `json:"model"`
	Quantisation string     `json:"quantisation"`
	Questions    int        `json:"questions"`
	Tokens       int        `json:"tokens"` // of the right answers
	Way          string     `json:"way"`
	Same         float64    `json:"same"`        // share of the questions for which both chose one mask
	Whole        float64    `json:"whole_right"` // the same share of the whole model's answers
	Own          measure    `json:"own"`
	Travelled    measure    `json:"travelled"`
	Right        difference `json:"right_difference"`
	Kept         difference `json:"kept_difference"`
	Agreement    difference `json:"agreement_difference"`
}

// way is how a profile is asked.
type way struct {
	name   string
	policy func(p *router.Profile) (pol router.Policy, threshold float64)
}

func (o *options) ways() (ways []way) {
	for _, depth := range o.depths {
		ways = append(ways, way{fmt.Sprintf("depth %g", depth), func(*router.Profile) (router.Policy, float64) {
			return router.Policy{Depth: depth}, 0
		}})
	}
	for _, quality := range o.qualities {
		ways = append(ways, way{fmt.Sprintf("quality %g", quality), func(p *router.Profile) (router.Policy, float64) {
			if e, ok := p.Defaults.EscalationFor(quality); ok && p.Defaults.Prefill == skip.FullPrefill {
				return router.Policy{Depth: e.Depth, Guard: true}, e.Threshold
			}
			return router.Policy{Quality: quality}, 0
		}})
	}
	return ways
}

// found is what a question comes to under a mask.
type found struct {
	score score.Score
	diff  score.Difference
}

func (o *options) run(ctx context.Context) (err error) {
	if _, err := libs.Load(); err != nil {
		return err
	}
	m, err := llama.LoadModel(ctx, o.model, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	var profiles [2]*router.Profile // own, travelled
	for i, path := range []string{o.own, o.travelled} {
		if profiles[i], err = router.Read(path); err != nil {
			return err
		}
		if err := profiles[i].Open(o.model); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, profiles[i].Close()) }()
	}
	if len(o.qualities) == 0 {
		o.qualities = []float64{profiles[0].Defaults.Quality}
	}
	cases, prompts, err := o.questions(m)
	if err != nil {
		return err
	}
	ways := o.ways()
	masks := make([][2][]skip.Mask, len(ways)) // (len(ways), 2, len(cases))
	thresholds := make([][2]float64, len(ways))
	for w, way := range ways {
		for k, p := range profiles {
			pol, threshold := way.policy(p)
			thresholds[w][k] = threshold
			for _, x := range prompts {
				d, err := p.Choose(x, pol)
				if err != nil {
					return err
				}
				masks[w][k] = append(masks[w][k], d.Mask)
			}
		}
	}
	known, err := o.score(ctx, m, cases, masks, profiles[0].Defaults.Prefill)
	if err != nil {
		return err
	}
	choices := slices.ContainsFunc(cases, func(c score.Case) bool { return len(c.Answers) > 1 })
	sizes := search.SizesOf(m.Tensors, m.NLayer)
	name, quantisation, _ := strings.Cut(cmp.Or(o.name, strings.TrimSuffix(filepath.Base(o.model), ".gguf")), "/")
	var rows []row
	for w, way := range ways {
		r := row{Model: name, Quantisation: quantisation, Questions: len(cases), Way: way.name}
		var right, kl, agreement [2][]float64
		var wholeRight []float64
		for k, into := range []*measure{&r.Own, &r.Travelled} {
			tokens, again := 0, 0
			for i := range cases {
				whole := known[i][skip.Mask{}]
				at := escalated(&cases[i], known[i][masks[w][k][i]], whole, thresholds[w][k])
				tokens, again = tokens+len(at.diff.Tokens), again+at.again
				if len(cases[i].Answers) > 1 || !choices {
					right[k] = append(right[k], hit(&cases[i], &at.score))
					if k == 0 {
						wholeRight = append(wholeRight, hit(&cases[i], &whole.score))
					}
				}
				kl[k], agreement[k] = append(kl[k], at.diff.KL), append(agreement[k], at.diff.Agreement)
				into.Skipped += sizes.Depth(masks[w][k][i]) / float64(len(cases))
				if k == 0 && masks[w][0][i] == masks[w][1][i] {
					r.Same += 1 / float64(len(cases))
				}
			}
			r.Tokens = tokens
			into.Again = float64(again) / float64(tokens)
			into.Right, into.Kept, into.Agreement = stats.Mean(right[k]), math.Exp(-stats.Mean(kl[k])), stats.Mean(agreement[k])
		}
		r.Whole = stats.Mean(wholeRight)
		compare := func(of [2][]float64) (d difference) {
			d.Mean, d.Low, d.High = stats.BootstrapPaired(of[1], of[0], 1)
			return d
		}
		r.Right, r.Agreement = compare(right), compare(agreement)
		d := compare(kl) // the higher, the less is kept
		change := func(kl float64) float64 { return r.Own.Kept * math.Expm1(-kl) }
		r.Kept = difference{change(d.Mean), change(d.High), change(d.Low)}
		rows = append(rows, r)
	}
	return writeRows(o.out, rows)
}

// questions reads what is asked: of each file as many as are wanted.
func (o *options) questions(m *llama.Model) (cases []score.Case, prompts []router.Prompt, err error) {
	for _, path := range o.data {
		examples, _, err := dataset.Read([]string{path}, nil)
		if err != nil {
			return nil, nil, err
		}
		n := cmp.Or(min(o.of, len(examples)), len(examples))
		for k := range n {
			for _, e := range examples[k*len(examples)/n : (k+1)*len(examples)/n] { // the first of this part that is short enough
				if !e.Labelled() {
					continue
				}
				c, err := score.Encode(m, []dataset.Example{e})
				if err != nil {
					return nil, nil, err
				}
				tokens := len(c[0].Prompt)
				for _, a := range c[0].Answers {
					tokens += len(a)
				}
				if tokens > o.longest {
					continue
				}
				p, err := router.NewPrompt(m, e.Prompt)
				if err != nil {
					return nil, nil, err
				}
				cases, prompts = append(cases, c[0]), append(prompts, p)
				break
			}
		}
	}
	if len(cases) == 0 {
		return nil, nil, errors.New("no question: name files of questions with their answers")
	}
	return cases, prompts, nil
}

// score measures each question under the masks that were chosen for it and under none.
func (o *options) score(ctx context.Context, m *llama.Model, cases []score.Case, masks [][2][]skip.Mask, prefill skip.Prefill) ([]map[skip.Mask]found, error) {
	s, err := score.NewScorer(m, &score.Options{Threads: o.threads})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	wanted := map[string][]skip.Mask{}
	of := map[string][]int{}
	for i := range cases {
		list := []skip.Mask{{}}
		key := ""
		for _, w := range masks {
			for _, by := range w {
				if !slices.Contains(list, by[i]) {
					list, key = append(list, by[i]), key+" "+by[i].String()
				}
			}
		}
		wanted[key], of[key] = list, append(of[key], i)
	}
	known := make([]map[skip.Mask]found, len(cases))
	done := 0
	for key, some := range of {
		for part := range slices.Chunk(some, 16) {
			fmt.Fprintf(os.Stderr, "%d of %d questions\n", done, len(cases))
			done += len(part)
			var asked []score.Case
			for _, i := range part {
				asked = append(asked, cases[i])
				known[i] = map[skip.Mask]found{}
			}
			scores, differences, err := s.Compare(ctx, asked, wanted[key], prefill)
			if err != nil {
				return nil, err
			}
			for k, mask := range wanted[key] {
				for n, i := range part {
					known[i][mask] = found{scores[k][n], differences[k][n]}
				}
			}
		}
	}
	return known, nil
}

// cascaded is a question under a mask with escalation.
type cascaded struct {
	found
	again int // tokens of the right answer that the whole model decides
}

// escalated puts the whole model's tokens in place of those below the threshold. The
// first token of an answer is the whole model's anyway.
func escalated(c *score.Case, masked, whole found, threshold float64) (e cascaded) {
	e.score.LogLik, e.score.Exact = make([]float64, len(c.Answers)), true
	n := float64(len(masked.diff.Tokens))
	for a, tokens := range masked.score.All {
		for i, t := range tokens {
			again := i > 0 && t.Top < threshold
			if again {
				t = whole.score.All[a][i]
			}
			e.score.LogLik[a] += t.LogP
			if a != c.Right {
				continue
			}
			e.score.Exact = e.score.Exact && t.LogP >= math.Log(t.Top)-1e-9
			switch d := masked.diff.Tokens[i]; {
			case again:
				e.again++
				e.diff.Agreement += 1 / n
			default:
				e.diff.KL += d.KL / n
				if d.Agree {
					e.diff.Agreement += 1 / n
				}
			}
		}
	}
	e.diff.Tokens = masked.diff.Tokens
	return e
}

// hit is 1 for a right answer: the likeliest choice, or an exact free answer.
func hit(c *score.Case, s *score.Score) float64 {
	if len(c.Answers) > 1 && s.Choice() == c.Right || len(c.Answers) == 1 && s.Exact {
		return 1
	}
	return 0
}
