package neurons

import (
	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/llama"
)

// Columns picks blocks of [llama.NeuronBlock] columns out of a matrix of width columns, whose bytes
// row by row are down, into out, which is returned with them in place of what it held.
func Columns(out, down []byte, t gguf.Type, width int, blocks []int32) []byte {
	elements, bytes := t.Block()
	size := int(llama.NeuronBlock / elements * bytes) // of a block of columns in a row
	row := width / llama.NeuronBlock * size
	out = out[:0]
	for ; len(down) >= row && row > 0; down = down[row:] {
		for _, b := range blocks {
			out = append(out, down[int(b)*size:][:size]...)
		}
	}
	return out
}

// IDs are the neurons of blocks in an order of all.
func IDs(order, blocks []int32) []int32 {
	ids := make([]int32, 0, len(blocks)*llama.NeuronBlock)
	for _, b := range blocks {
		ids = append(ids, order[int(b)*llama.NeuronBlock:][:llama.NeuronBlock]...)
	}
	return ids
}
