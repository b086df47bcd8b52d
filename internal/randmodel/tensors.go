package randmodel

import (
	"fmt"
	"math"
	"strings"

	"github.com/gallop-llm/gallop/gguf"
)

// tensors lists the model's tensors in the order of converted files.
func (s Spec) tensors() []gguf.Tensor {
	list := []gguf.Tensor{}
	add := func(typ gguf.Type, name string, shape ...int) {
		t := gguf.Tensor{Name: name, Type: typ}
		for _, n := range shape {
			t.Shape = append(t.Shape, uint64(n))
		}
		list = append(list, t)
	}
	embedding := s.Type
	if !s.Untied {
		embedding = s.outputType()
	}
	add(embedding, "token_embd.weight", s.Embd, s.Vocab)
	if s.RopeFactor != 0 {
		add(gguf.F32, "rope_freqs.weight", s.HeadDim/2)
	}
	for layer := range s.Layers {
		s.layer(layer, func(typ gguf.Type, name string, shape ...int) {
			add(typ, fmt.Sprintf("blk.%d.%s", layer, name), shape...)
		})
	}
	add(gguf.F32, "output_norm.weight", s.Embd)
	if s.Untied {
		add(s.outputType(), "output.weight", s.Embd, s.Vocab)
	}
	return list
}

// layer adds the tensors of one layer.
func (s Spec) layer(layer int, add func(typ gguf.Type, name string, shape ...int)) {
	q, kv := s.Heads*s.HeadDim, s.KVHeads*s.HeadDim
	more := s.moreBits(layer)

	add(gguf.F32, "attn_norm.weight", s.Embd)
	if s.Arch == "phi3" {
		add(s.Type, "attn_qkv.weight", s.Embd, q+2*kv)
	} else {
		add(s.Type, "attn_q.weight", s.Embd, q)
		add(s.Type, "attn_k.weight", s.Embd, kv)
		add(more, "attn_v.weight", s.Embd, kv)
	}
	switch s.Arch {
	case "qwen2":
		add(gguf.F32, "attn_q.bias", q)
		add(gguf.F32, "attn_k.bias", kv)
		add(gguf.F32, "attn_v.bias", kv)
	case "qwen3", "qwen3moe", "gemma3":
		add(gguf.F32, "attn_q_norm.weight", s.HeadDim)
		add(gguf.F32, "attn_k_norm.weight", s.HeadDim)
	}
	add(s.Type, "attn_output.weight", q, s.Embd)
	if s.Arch == "gemma3" {
		add(gguf.F32, "post_attention_norm.weight", s.Embd)
		add(gguf.F32, "post_ffw_norm.weight", s.Embd)
	}

	add(gguf.F32, "ffn_norm.weight", s.Embd)
	switch {
	case s.Experts > 0:
		add(gguf.F32, "ffn_gate_inp.weight", s.Embd, s.Experts)
		add(s.Type, "ffn_gate_exps.weight", s.Embd, s.FF, s.Experts)
		add(s.Type, "ffn_up_exps.weight", s.Embd, s.FF, s.Experts)
		add(more, "ffn_down_exps.weight", s.FF, s.Embd, s.Experts)
	case s.Arch == "phi3": // gate and up in one
		add(s.Type, "ffn_up.weight", s.Embd, 2*s.FF)
		add(more, "ffn_down.weight", s.FF, s.Embd)
	default:
		add(s.Type, "ffn_gate.weight", s.Embd, s.FF)
		add(s.Type, "ffn_up.weight", s.Embd, s.FF)
		add(more, "ffn_down.weight", s.FF, s.Embd)
	}
}

// outputType is the type of the output matrix.
func (s Spec) outputType() gguf.Type {
	const superBlock = 256 // elements in a block of Q6_K
	switch {
	case s.Type != gguf.Q4_0 && s.Type != gguf.Q4_K:
		return s.Type
	case s.Embd%superBlock != 0:
		return gguf.Q8_0
	}
	return gguf.Q6_K
}

// moreBits is the type of attn_v and ffn_down in a layer. Q4_K_M spends more on
// the first and last eighth of the layers and on every third one between.
func (s Spec) moreBits(layer int) gguf.Type {
	eighth := s.Layers / 8
	if s.Type == gguf.Q4_K && (layer < eighth || layer >= 7*s.Layers/8 || (layer-eighth)%3 == 2) {
		return gguf.Q6_K
	}
	return s.Type
}

// Spreads of what is no matrix: enough to make a difference, little enough to
// keep activations of order one.
const (
	normSpread = 0.1
	biasSpread = 0.5
)

// distribution gives mean and standard deviation of a tensor's elements.
func distribution(t gguf.Tensor) (mean, sigma float64) {
	switch {
	case strings.HasSuffix(t.Name, "norm.weight"):
		return 1, normSpread
	case strings.HasSuffix(t.Name, ".bias"):
		return 0, biasSpread
	}
	return 0, 1 / math.Sqrt(float64(t.Shape[0]))
}

// ropeFactors gives Llama 3's divisors of the rotary frequencies, (HeadDim/2,):
// 1 for wavelengths that fit the original context four times, RopeFactor for
// those that do not fit once, a blend between.
func (s Spec) ropeFactors() []float32 {
	const original, lowFit, highFit = 8192, 1, 4
	factors := make([]float32, s.HeadDim/2)
	for i := range factors {
		wavelength := 2 * math.Pi * math.Pow(s.RopeBase, float64(2*i)/float64(s.HeadDim))
		blend := (original/wavelength - lowFit) / (highFit - lowFit)
		blend = max(0, min(1, blend))
		factors[i] = float32(1 / ((1-blend)/s.RopeFactor + blend))
	}
	return factors
}
