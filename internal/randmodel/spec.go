package randmodel

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gallop-llm/gallop/gguf"
)

// Spec describes a model. All sizes are counts of elements, at least 1 unless
// they say otherwise.
type Spec struct {
	// Arch is the architecture as llama.cpp names it: llama, qwen2, qwen3,
	// qwen3moe, gemma3 or phi3.
	Arch string

	Layers  int
	Embd    int // width of the residual stream
	Heads   int // query heads in each layer, a multiple of KVHeads
	KVHeads int // key/value heads in each layer
	HeadDim int // width of one head, even; qwen2 and phi3 need Heads × HeadDim = Embd
	FF      int // hidden width of the feed-forward, of one expert if there are any
	Vocab   int // tokens, at least [MinVocab]
	Context int // tokens that the model claims to have been trained with

	Experts     int // experts in each layer; 0 = dense. llama and qwen3moe only
	ExpertsUsed int // experts for each token, at most Experts; 0 when dense

	// Window is the number of positions that sliding-window layers see. gemma3
	// only: five such layers, then a full one, by index.
	Window int

	// Untied gives the output a matrix of its own instead of the embedding's.
	// gemma3 has none.
	Untied bool

	RopeBase   float64 // base of the rotary frequencies
	RopeFactor float64 // llama only: Llama 3's context stretch, 8 or 32; 0 = none

	// Type is the type of the weight matrices, one of [Types].
	// As in llama-quantize, norms, biases and expert routers stay F32; the
	// output matrix (the embedding where they are one) is Q6_K for Q4_0 and
	// Q4_K, or Q8_0 where its rows do not fill blocks of 256; and Q4_K means the
	// mixture Q4_K_M, which has attn_v and ffn_down of about half of the layers
	// in Q6_K.
	Type gguf.Type

	Seed uint64

	// Scale, when set, gives a factor, by a tensor's name, for all of its
	// elements: 0 makes a part of a layer do nothing, a small one little.
	Scale func(tensor string) float64
}

// Times is a [Spec.Scale] that multiplies the tensors that pick takes by factor.
func Times(factor float64, pick func(tensor string) bool) func(tensor string) float64 {
	return func(tensor string) float64 {
		if pick(tensor) {
			return factor
		}
		return 1
	}
}

// Types are the types that [Spec.Type] may have.
var Types = []gguf.Type{gguf.F32, gguf.F16, gguf.Q4_0, gguf.Q8_0, gguf.Q4_K}

// small is what the small models of all architectures have in common. The heads
// are together wider than the stream, so that nobody takes one for the other.
func small(arch string) Spec {
	return Spec{
		Arch: arch, Layers: 8, Embd: 64, Heads: 4, KVHeads: 2, HeadDim: 32, FF: 128,
		Vocab: 384, Context: 4096, Untied: true, RopeBase: 10_000, Type: gguf.F32, Seed: 1,
	}
}

// smallModels are the small models by the names that [Small] takes.
func smallModels() map[string]Spec {
	models := map[string]Spec{}
	for _, arch := range []string{"llama", "qwen2", "qwen3", "gemma3", "phi3"} {
		models[arch] = small(arch)
	}
	for name, arch := range map[string]string{"llama-moe": "llama", "qwen3moe": "qwen3moe"} {
		s := small(arch)
		s.FF, s.Experts, s.ExpertsUsed = 64, 4, 2
		models[name] = s
	}
	gemma := models["gemma3"]
	gemma.Untied = false
	gemma.Window = 8 // short, so that short prompts in tests go beyond it
	models["gemma3"] = gemma
	for _, name := range []string{"qwen2", "phi3"} {
		s := models[name]
		s.Embd = s.Heads * s.HeadDim
		models[name] = s
	}
	return models
}

// SmallNames lists the names that [Small] takes, sorted.
func SmallNames() []string {
	return slices.Sorted(maps.Keys(smallModels()))
}

// Small gives a model of 8 layers and at most 4 MB: "llama", "llama-moe" (llama
// with experts), "qwen2", "qwen3", "qwen3moe", "gemma3" or "phi3". Other names
// give a Spec that [Write] refuses.
func Small(name string) Spec {
	if s, ok := smallModels()[name]; ok {
		return s
	}
	return small(name)
}

// Tiny gives a llama model with this many layers and as little else as goes.
func Tiny(layers int) Spec {
	s := Small("llama")
	s.Layers, s.Embd, s.Heads, s.KVHeads, s.HeadDim, s.FF = layers, 32, 2, 1, 16, 32
	s.Vocab = MinVocab
	return s
}

// shapes are published models, from their config.json files.
var shapes = map[string]Spec{
	"smollm2-135m":    dense("llama", 30, 576, 9, 3, 64, 1536, 49152, 8192, 100_000, tied),
	"llama-3.2-1b":    llama3(dense("llama", 16, 2048, 32, 8, 64, 8192, 128256, 131072, 500_000, tied), 32),
	"llama-3.2-3b":    llama3(dense("llama", 28, 3072, 24, 8, 128, 8192, 128256, 131072, 500_000, tied), 32),
	"llama-3.1-8b":    llama3(dense("llama", 32, 4096, 32, 8, 128, 14336, 128256, 131072, 500_000, untied), 8),
	"tinyllama-1.1b":  dense("llama", 22, 2048, 32, 4, 64, 5632, 32000, 2048, 10_000, untied),
	"qwen2.5-0.5b":    dense("qwen2", 24, 896, 14, 2, 64, 4864, 151936, 32768, 1e6, tied),
	"qwen2.5-1.5b":    dense("qwen2", 28, 1536, 12, 2, 128, 8960, 151936, 32768, 1e6, tied),
	"qwen2.5-7b":      dense("qwen2", 28, 3584, 28, 4, 128, 18944, 152064, 32768, 1e6, untied),
	"qwen3-0.6b":      dense("qwen3", 28, 1024, 16, 8, 128, 3072, 151936, 40960, 1e6, tied),
	"qwen3-1.7b":      dense("qwen3", 28, 2048, 16, 8, 128, 6144, 151936, 40960, 1e6, tied),
	"qwen3-4b":        dense("qwen3", 36, 2560, 32, 8, 128, 9728, 151936, 40960, 1e6, tied),
	"qwen3-8b":        dense("qwen3", 36, 4096, 32, 8, 128, 12288, 151936, 40960, 1e6, untied),
	"qwen3-30b-a3b":   experts(dense("qwen3moe", 48, 2048, 32, 4, 128, 768, 151936, 40960, 1e6, untied), 128, 8),
	"gemma-3-1b":      window(dense("gemma3", 26, 1152, 4, 1, 256, 6912, 262144, 32768, 1e6, tied), 512),
	"gemma-3-4b":      window(dense("gemma3", 34, 2560, 8, 4, 256, 10240, 262144, 131072, 1e6, tied), 1024),
	"phi-3-mini-4k":   dense("phi3", 32, 3072, 32, 32, 96, 8192, 32064, 4096, 10_000, untied),
	"phi-3-medium-4k": dense("phi3", 40, 5120, 40, 10, 128, 17920, 32064, 4096, 10_000, untied),
}

const (
	tied   = false
	untied = true
)

func dense(arch string, layers, embd, heads, kvHeads, headDim, ff, vocab, context int, ropeBase float64, ownOutput bool) Spec {
	return Spec{
		Arch: arch, Layers: layers, Embd: embd, Heads: heads, KVHeads: kvHeads, HeadDim: headDim, FF: ff,
		Vocab: vocab, Context: context, Untied: ownOutput, RopeBase: ropeBase, Type: gguf.Q4_0, Seed: 1,
	}
}

func llama3(s Spec, factor float64) Spec {
	s.RopeFactor = factor
	return s
}

func experts(s Spec, n, used int) Spec {
	s.Experts, s.ExpertsUsed = n, used
	return s
}

func window(s Spec, positions int) Spec {
	s.Window = positions
	return s
}

// ShapeNames lists the names that [Shape] takes, sorted.
func ShapeNames() []string {
	return slices.Sorted(maps.Keys(shapes))
}

// Shape gives the exact shape of a published model, such as "llama-3.2-1b", in
// Q4_0. It fails with [ErrUnknown].
func Shape(name string) (Spec, error) {
	s, ok := shapes[name]
	if !ok {
		return Spec{}, fmt.Errorf("%w: no shape %q, there are %s", ErrUnknown, name, strings.Join(ShapeNames(), ", "))
	}
	return s, nil
}

// check refuses what would give a file that llama.cpp does not load.
func (s Spec) check() error {
	if !slices.Contains([]string{"llama", "qwen2", "qwen3", "qwen3moe", "gemma3", "phi3"}, s.Arch) {
		return fmt.Errorf("%w: no architecture %q, there are %s", ErrUnknown, s.Arch, strings.Join(SmallNames(), ", "))
	}
	for name, n := range map[string]int{
		"Layers": s.Layers, "Embd": s.Embd, "Heads": s.Heads, "KVHeads": s.KVHeads,
		"HeadDim": s.HeadDim, "FF": s.FF, "Context": s.Context,
	} {
		if n < 1 {
			return fmt.Errorf("%w: %s is %d", ErrSpec, name, n)
		}
	}
	mayHaveExperts := s.Arch == "llama" || s.Arch == "qwen3moe"
	switch {
	case s.Layers > gguf.MaxLayers:
		return fmt.Errorf("%w: %d layers, llama.cpp loads %d", ErrSpec, s.Layers, gguf.MaxLayers)
	case s.Heads%s.KVHeads != 0:
		return fmt.Errorf("%w: %d heads on %d key/value heads", ErrSpec, s.Heads, s.KVHeads)
	case s.HeadDim%2 != 0:
		return fmt.Errorf("%w: HeadDim %d is odd", ErrSpec, s.HeadDim)
	case s.Vocab < MinVocab:
		return fmt.Errorf("%w: %d tokens, the byte vocabulary needs %d", ErrSpec, s.Vocab, MinVocab)
	case (s.Arch == "qwen2" || s.Arch == "phi3") && s.Heads*s.HeadDim != s.Embd:
		return fmt.Errorf("%w: %s needs Heads × HeadDim = Embd, not %d × %d = %d", ErrSpec, s.Arch, s.Heads, s.HeadDim, s.Embd)
	case s.Arch == "qwen3moe" && s.Experts == 0, !mayHaveExperts && s.Experts != 0:
		return fmt.Errorf("%w: %s with %d experts", ErrSpec, s.Arch, s.Experts)
	case s.ExpertsUsed > s.Experts, (s.ExpertsUsed < 1) != (s.Experts < 1):
		return fmt.Errorf("%w: %d of %d experts used", ErrSpec, s.ExpertsUsed, s.Experts)
	case s.Arch == "gemma3" && (s.Untied || s.Window < 1):
		return fmt.Errorf("%w: gemma3 needs tied embeddings and a window", ErrSpec)
	case !slices.Contains(Types, s.Type):
		return fmt.Errorf("%w: weights of type %s, possible are %v", ErrSpec, s.Type, Types)
	}
	return nil
}
