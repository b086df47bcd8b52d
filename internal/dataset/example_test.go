package dataset_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/gallop-llm/gallop/internal/dataset"
)

func Example() {
	dir, err := os.MkdirTemp("", "dataset")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "capitals.jsonl")
	lines := `{"prompt": "What is the capital of Peru?", "choices": ["Quito", "Lima"], "answer": 1}
{"prompt": "What is the capital of Chile?", "choices": ["La Paz", "Santiago"], "answer": 2}
{"prompt": "What is the capital of Cuba?", "answer": "Havana"}
`
	if err := os.WriteFile(path, []byte(lines), 0o600); err != nil {
		log.Fatal(err)
	}

	examples, problems, err := dataset.Read([]string{path}, &dataset.Options{SkipBad: true})
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range examples {
		fmt.Println(e.Task, e.Prompt, e.Answer, e.Choices, e.Right)
	}
	for _, p := range problems {
		fmt.Println("skipped line", p.Line, p.Reason)
	}
	// Output:
	// capitals What is the capital of Peru?  [Quito Lima] 1
	// capitals What is the capital of Cuba? Havana [] 0
	// skipped line 2 answer 2 is out of range: there are 2 choices (0 to 1)
}
