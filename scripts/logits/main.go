// Command logits writes what a model, the demo model if none is named, computes on this system,
// whole and under masks, and compares that with what another system wrote:
//
//	go run ./scripts/logits -o here.json [MODEL]
//	go run ./scripts/logits -compare here.json there.json -tolerance 0.2
//
// The text is decoded greedily, one token at a time. Processors differ in the order in which
// they add, and in the kernels that llama.cpp has for them: so logits agree up to a tolerance.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"slices"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// prompt is one as the demo model was trained on.
const prompt = "<|user|>\nWhat is 3 plus 4?<|end|>\n<|assistant|>\n"

const tokens = 24 // of an answer

// masks are what is tried: the whole model, layers, halves of both kinds, many.
var masks = []string{"", "5", "2,7", "a4,f6", "f2,f5,f7", "a3,a6,f3,f7"}

// result is what one mask gave.
type result struct {
	Mask   string      `json:"mask"`
	Text   string      `json:"text"`
	Logits [][]float32 `json:"logits"` // of the prompt's last token, then of each token
}

func main() {
	out := flag.String("o", "", "file to write")
	plain := flag.Bool("plain", false, "without flash attention")
	compares := flag.Bool("compare", false, "compare two files")
	tolerance := flag.Float64("tolerance", 0, "largest difference of two logits, relative to the spread of a token's logits")
	flag.Parse()
	var err error
	if *compares {
		err = compare(flag.Arg(0), flag.Arg(1), *tolerance)
	} else {
		err = write(*out, flag.Arg(0), *plain)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "logits:", err)
		os.Exit(1)
	}
}

func write(path, file string, plain bool) (err error) {
	if _, err := libs.Load(); err != nil {
		return err
	}
	if file == "" {
		if file, err = demo.Path(); err != nil {
			return err
		}
	}
	model, err := llama.LoadModel(context.Background(), file, nil)
	if err != nil {
		return err
	}
	defer model.Close()
	opts := llama.ContextOptions{NCtx: 256, Threads: 1}
	if plain {
		opts.Flash = llama.FlashOff
	}
	var all []result
	for _, text := range masks {
		r, err := decode(model, opts, text)
		if err != nil {
			return fmt.Errorf("mask %q: %w", text, err)
		}
		all = append(all, r)
	}
	data, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

func decode(model *llama.Model, opts llama.ContextOptions, text string) (r result, err error) {
	r.Mask = text
	var mask skip.Mask
	if text != "" {
		if mask, err = skip.Parse(text); err != nil {
			return r, err
		}
	}
	c, err := model.NewContext(&opts)
	if err != nil {
		return r, err
	}
	defer c.Close()
	todo, err := model.Vocab.Tokenize(prompt, true)
	if err != nil {
		return r, err
	}
	batch, err := llama.NewBatch(len(todo), nil)
	if err != nil {
		return r, err
	}
	defer batch.Close()
	at := 0
	for range tokens {
		batch.Clear()
		for i, t := range todo {
			if err := batch.Add(t, at, i == len(todo)-1, 0); err != nil {
				return r, err
			}
			at++
		}
		if err := c.Decode(batch, mask); err != nil {
			return r, err
		}
		logits, err := c.Logits(-1)
		if err != nil {
			return r, err
		}
		r.Logits = append(r.Logits, slices.Clone(logits))
		todo = []llama.Token{llama.Token(best(logits))}
		r.Text += model.Vocab.Text(todo, true)
	}
	return r, nil
}

// compare tells how far two files' logits are apart. Texts have to be equal; a text that is
// not is shown, with how near the two tokens were where it parted.
func compare(one, other string, tolerance float64) error {
	var a, b []result
	for path, into := range map[string]*[]result{one: &a, other: &b} {
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(data, into); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	if len(a) != len(b) || len(a) == 0 {
		return fmt.Errorf("%s and %s have not the same masks", one, other)
	}
	worst, equal := 0.0, 0
	for i := range a {
		if a[i].Mask != b[i].Mask {
			return fmt.Errorf("%s and %s have not the same masks", one, other)
		}
		if a[i].Text == b[i].Text {
			equal++
		}
		far := 0.0
		for t := range a[i].Logits {
			far = max(far, distance(a[i].Logits[t], b[i].Logits[t]))
			if best(a[i].Logits[t]) != best(b[i].Logits[t]) {
				break // what follows follows another text
			}
		}
		fmt.Printf("mask %-12q largest difference of logits %.5f of their spread, texts equal: %v\n", a[i].Mask, far, a[i].Text == b[i].Text)
		worst = max(worst, far)
	}
	fmt.Printf("%d of %d texts equal, largest difference %.5f of the spread, tolerance %.5f\n", equal, len(a), worst, tolerance)
	if equal < len(a) || worst > tolerance {
		return fmt.Errorf("%s and %s differ by more than rounding", one, other)
	}
	return nil
}

// distance is the largest difference, relative to the distance of a's largest and smallest.
func distance(a, b []float32) float64 {
	far := 0.0
	for i := range a {
		far = max(far, math.Abs(float64(a[i]-b[i])))
	}
	return far / float64(slices.Max(a)-slices.Min(a))
}

func best(logits []float32) int { return slices.Index(logits, slices.Max(logits)) }
