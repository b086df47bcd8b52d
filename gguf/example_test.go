package gguf_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/gallop-llm/gallop/gguf"
)

func Example() {
	dir, err := os.MkdirTemp("", "gguf")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "tiny.gguf")

	meta := gguf.Metadata{{Key: "general.architecture", Value: "llama"}}
	meta.Set("llama.block_count", uint32(1))
	norm := gguf.Source{
		Tensor: gguf.Tensor{Name: "blk.0.attn_norm.weight", Type: gguf.F32, Shape: []uint64{2}},
		Data:   gguf.Bytes([]byte{0, 0, 0x80, 0x3f, 0, 0, 0, 0x40}), // 1 and 2
	}
	if err := gguf.Write(context.Background(), path, meta, []gguf.Source{norm}, nil); err != nil {
		log.Fatal(err)
	}

	f, err := gguf.Open(path)
	if err != nil {
		log.Fatal(err)
	}
	defer f.Close()
	layers, err := f.Metadata.LayerCount()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("layers:", layers)
	for _, t := range f.Tensors {
		fmt.Println(t.Name, t.Type, t.Shape, t.Size, "bytes")
	}
	// Output:
	// layers: 1
	// blk.0.attn_norm.weight F32 [2] 8 bytes
}
