package randmodel_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/randmodel"
)

// A model whose second layer does nothing: both of its sublayers add zero.
func ExampleWrite() {
	dir, err := os.MkdirTemp("", "randmodel")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "model.gguf")

	spec := randmodel.Small("llama")
	spec.Layers = 2
	spec.Scale = randmodel.Times(0, func(tensor string) bool {
		return tensor == "blk.1.attn_output.weight" || strings.HasPrefix(tensor, "blk.1.ffn_down")
	})
	if err := randmodel.Write(path, spec); err != nil {
		log.Fatal(err)
	}

	f, err := gguf.Open(path)
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	fmt.Println(len(f.Tensors), "tensors in", path[len(dir)+1:])
	// Output: 21 tensors in model.gguf
}
