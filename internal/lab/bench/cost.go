package bench

import (
	"strconv"
	"strings"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// cost is the least that a model under a mask has to do.
type cost struct {
	bytes float64 // of weights that are read for one decoded token
	flops float64 // of a prompt
}

// costOf adds up what mask keeps of a model, for a prompt of nPrompt tokens. list is the
// vocabulary shortlist that masks with one decode with; prompts have the whole matrix.
func costOf(m *llama.Model, mask skip.Mask, nPrompt int, list *llama.Shortlist) cost {
	used := 1.0 // share of the experts
	if all := number(m, "expert_count"); all > 0 {
		used = number(m, "expert_used_count") / all
	}
	output := gguf.EmbeddingName // unless there is a matrix of its own
	for _, t := range m.Tensors {
		if t.Name == gguf.OutputName {
			output = t.Name
		}
	}
	var c cost
	for _, t := range m.Tensors {
		layer, half, inLayer := search.HalfOf(t.Name)
		if inLayer && (layer >= m.NLayer || mask.Skipped(layer)&half != 0) {
			continue // not run by ordinary decodes, or skipped
		}
		share, rows := 1.0, float64(nPrompt) // of the tensor; that it is multiplied with
		bytes := float64(t.Size)
		switch {
		case strings.Contains(t.Name, "_exps."):
			share = used
		case t.Name == output:
			rows = 1
			if n := mask.Shortlist(); n > 0 {
				bytes = float64(list.Size) + bytes*float64(n)/float64(t.Shape[1])
			}
		case strings.HasSuffix(t.Name, gguf.EmbeddingName): // looked up
			share, rows = 1/float64(t.Shape[1]), 0
		}
		if inLayer && layer == m.NLayer-1 && half == skip.FeedForward {
			rows = 1
		}
		c.bytes += share * bytes
		if len(t.Shape) > 1 {
			c.flops += 2 * rows * share * elements(t)
		}
	}
	pairs := float64(nPrompt) * float64(nPrompt+1) / 2
	width := float64(m.NEmbd) / float64(max(m.NHead, 1)) // of a head
	keys, values := number(m, "attention.key_length"), number(m, "attention.value_length")
	if keys == 0 {
		keys = width
	}
	if values == 0 {
		values = width
	}
	for layer := range m.NLayer {
		if mask.Skipped(layer)&skip.Attention == 0 {
			c.flops += 2 * pairs * float64(m.NHead) * (keys + values)
		}
	}
	return c
}

// number reads a figure under the architecture's prefix, 0 where there is none.
func number(m *llama.Model, key string) float64 {
	x, err := strconv.ParseFloat(m.Metadata[m.Architecture+"."+key], 64)
	if err != nil {
		return 0
	}
	return x
}

func elements(t llama.Tensor) float64 {
	n := 1.0
	for _, d := range t.Shape {
		n *= float64(d)
	}
	return n
}
