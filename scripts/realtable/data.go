package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"

	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
)

// benchmark is a published set of questions.
type benchmark struct {
	name, title string // of the file, without .jsonl; for people
	byByte      bool   // a choice counts by its log-likelihood per byte, as is usual for this one
}

// benchmarks are all, in the table's order. The last one has free answers.
var benchmarks = []benchmark{
	{name: "arc_easy", title: "ARC easy"},
	{name: "arc_challenge", title: "ARC challenge", byByte: true},
	{name: "openbookqa", title: "OpenBookQA", byByte: true},
	{name: "piqa", title: "PIQA", byByte: true},
	{name: "winogrande", title: "WinoGrande"},
	{name: "social_i_qa", title: "SIQA"},
	{name: "boolq", title: "BoolQ"},
	{name: "mathqa", title: "MathQA"},
	{name: worked, title: "GSM8K"},
}

// worked is the benchmark whose answers are worked out in words.
const worked = "gsm8k"

// longest is how many tokens an example that is taken has at most: long ones take
// the time of several others.
const longest = 224

// sampleSeed shuffles the examples of each file.
const sampleSeed = 1

// errData is returned when the folder of the published files is not there.
var errData = errors.New("the benchmarks' files are missing")

// example is one that can be asked.
type example struct {
	score.Case
	benchmark int // its place in benchmarks
	prompt    router.Prompt
}

// readData reads the published files in folder.
func readData(folder string) ([][]dataset.Example, error) {
	if folder == "" {
		return nil, fmt.Errorf("%w: name the folder that has them with DATA=", errData)
	}
	files := make([][]dataset.Example, len(benchmarks))
	for i, b := range benchmarks {
		path := filepath.Join(folder, b.name+".jsonl")
		examples, _, err := dataset.Read([]string{path}, nil)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: there is no %s; DATA= names the folder that has %s in the columns that it was published with", errData, path, b.title)
		}
		if err != nil {
			return nil, err
		}
		files[i] = examples
	}
	return files, nil
}

// sample draws, from each file, examples to measure on and others to calibrate on:
// (len(benchmarks), test) and (len(benchmarks), calibration), both task by task. More of
// either begin with the same ones, as long as the file has enough for both.
func sample(m *llama.Model, files [][]dataset.Example, test, calibration int) (tests, calibrations []example, err error) {
	for i, file := range files {
		order := rand.New(rand.NewPCG(sampleSeed, uint64(i))).Perm(len(file))
		take := func(n int, next func() int) ([]example, error) {
			var taken []example
			for len(taken) < n && len(order) > 0 {
				e := file[next()]
				cases, err := score.Encode(m, []dataset.Example{e})
				if err != nil {
					return nil, err
				}
				if tokens(cases[0]) > longest {
					continue
				}
				p, err := router.NewPrompt(m, e.Prompt)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", e.Where, err)
				}
				taken = append(taken, example{cases[0], i, p})
			}
			if len(taken) < n {
				return nil, fmt.Errorf("%s has too few examples of at most %d tokens: %d are wanted to measure and %d to calibrate", benchmarks[i].name, longest, test, calibration)
			}
			return taken, nil
		}
		first, err := take(test, func() int { n := order[0]; order = order[1:]; return n })
		if err != nil {
			return nil, nil, err
		}
		last, err := take(calibration, func() int { n := order[len(order)-1]; order = order[:len(order)-1]; return n })
		if err != nil {
			return nil, nil, err
		}
		tests, calibrations = append(tests, first...), append(calibrations, last...)
	}
	return tests, calibrations, nil
}

// tokens is how many tokens a case has, those of all its answers counted.
func tokens(c score.Case) int {
	n := len(c.Prompt)
	for _, a := range c.Answers {
		n += len(a)
	}
	return n
}

// casesOf are the cases of examples.
func casesOf(examples []example) []score.Case {
	cases := make([]score.Case, len(examples))
	for i, e := range examples {
		cases[i] = e.Case
		cases[i].Task = benchmarks[e.benchmark].name
	}
	return cases
}
