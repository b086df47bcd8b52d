// Command measure counts how many held-out prompts the demo model answers
// exactly, skill by skill, through the same engine that `gallop chat` uses.
// Arguments are masks; each gets a column beside the whole model's:
//
//	go run ./demo/measure 5 4,f8
//
// The table on stdout is Markdown.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/schollz/progressbar/v3"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// longAnswer is more tokens than any right answer has.
const longAnswer = 96

// example is a line of test.jsonl.
type example struct {
	Prompt string `json:"prompt"`
	Answer string `json:"answer"`
	Task   string `json:"task"`
}

func main() {
	path := flag.String("prompts", "demo/test.jsonl", "JSONL with prompt, answer and task")
	wrong := flag.Bool("wrong", false, "list the whole model's wrong answers on stderr")
	flag.Parse()
	if err := measure(*path, flag.Args(), *wrong); err != nil {
		fmt.Fprintln(os.Stderr, "measure:", err)
		os.Exit(1)
	}
}

func measure(path string, masks []string, wrong bool) error {
	columns := []skip.Mask{{}}
	for _, text := range masks {
		mask, err := skip.Parse(text)
		if err != nil {
			return err
		}
		columns = append(columns, mask)
	}
	examples, err := read(path)
	if err != nil {
		return err
	}
	modelPath, err := demo.Path()
	if err != nil {
		return err
	}
	e, err := gallop.Open(context.Background(), modelPath, &gallop.Options{
		Parallel: 1, Profile: gallop.NoProfile, Model: llama.ModelOptions{GPULayers: llama.CPUOnly}, Context: llama.ContextOptions{Threads: 1},
	})
	if err != nil {
		return err
	}
	defer e.Close()

	asked := map[string]int{}
	right := make([]map[string]int, len(columns)) // by column, then task
	bar := progressbar.Default(int64(len(columns)*len(examples)), "measuring")
	for i, mask := range columns {
		right[i] = map[string]int{}
		for _, x := range examples {
			a, err := e.Answer(context.Background(), gallop.Request{
				Messages: []gallop.Message{{Role: "user", Content: x.Prompt}}, Skip: gallop.Layers(mask),
				Sampling: &llama.Sampling{}, MaxTokens: longAnswer,
			})
			if err != nil {
				return fmt.Errorf("%q: %w", x.Prompt, err)
			}
			if i == 0 {
				asked[x.Task]++
			}
			if a.Text == x.Answer {
				right[i][x.Task]++
			} else if i == 0 && wrong {
				fmt.Fprintf(os.Stderr, "%s: %q gave %q, want %q\n", x.Task, x.Prompt, a.Text, x.Answer)
			}
			bar.Add(1)
		}
	}
	print(columns, asked, right)
	return nil
}

func read(path string) ([]example, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var examples []example
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var e example
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, len(examples)+1, err)
		}
		examples = append(examples, e)
	}
	return examples, nil
}

func print(columns []skip.Mask, asked map[string]int, right []map[string]int) {
	fmt.Print("| skill | prompts | whole model |")
	for _, mask := range columns[1:] {
		fmt.Printf(" skip %s |", mask)
	}
	fmt.Println("\n|---|--:|" + strings.Repeat("--:|", len(columns)))
	total := 0
	sums := make([]int, len(columns))
	for _, task := range slices.Sorted(maps.Keys(asked)) {
		fmt.Printf("| %s | %d |", task, asked[task])
		total += asked[task]
		for i := range columns {
			sums[i] += right[i][task]
			fmt.Printf(" %.1f %% |", 100*float64(right[i][task])/float64(asked[task]))
		}
		fmt.Println()
	}
	fmt.Printf("| **all** | %d |", total)
	for _, n := range sums {
		fmt.Printf(" **%.1f %%** |", 100*float64(n)/float64(total))
	}
	fmt.Println()
}
