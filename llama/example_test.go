package llama_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Decode a prompt with two of eight layers left out.
func Example() {
	if _, err := libs.Install(context.Background(), nil); err != nil {
		log.Fatal(err)
	}
	if _, err := libs.Load(); err != nil {
		log.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "model.gguf")
	if err := randmodel.Write(path, randmodel.Small("llama")); err != nil {
		log.Fatal(err)
	}

	model, err := llama.LoadModel(context.Background(), path, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	c, err := model.NewContext(&llama.ContextOptions{NCtx: 256, Threads: 1})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	tokens, err := model.Vocab.Tokenize("the king", false)
	if err != nil {
		log.Fatal(err)
	}
	batch, err := llama.NewBatch(len(tokens), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer batch.Close()
	for i, t := range tokens {
		if err := batch.Add(t, i, i == len(tokens)-1, 0); err != nil {
			log.Fatal(err)
		}
	}
	if err := c.Decode(batch, skip.Layers(2, 5)); err != nil {
		log.Fatal(err)
	}
	logits, err := c.Logits(-1)
	if err != nil {
		log.Fatal(err)
	}
	stats := c.Stats()
	fmt.Println(len(logits), "logits;", stats.LayersRemoved, "of", stats.Layers, "layers left out")
	// Output: 384 logits; 2 of 8 layers left out
}
