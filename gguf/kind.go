package gguf

import (
	"fmt"
	"slices"
	"strings"
)

// embedders are the architectures that turn a text into numbers, or only read one.
var embedders = []string{
	"bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llama-embed", "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe", "t5encoder",
}

// diffusers are the architectures that write a whole text at once, in steps.
var diffusers = []string{"dream", "llada", "llada-moe", "rnd1"}

// NoText says why a file is no model that continues a text token by token, and what
// to do about it; "" for one that may be.
func (f *File) NoText() string {
	m := f.Metadata
	arch, _ := m.Architecture()
	kind, _ := m.String("general.type")
	pooling, _ := m.Uint(m.ArchKey("pooling_type"))
	causal, err := m.Bool(m.ArchKey("attention.causal"))
	switch {
	case arch == "clip" || kind == "mmproj":
		return "it is the projector of a model that sees or hears (mmproj), and writes nothing by itself; name the model"
	case kind == "adapter":
		return "it is a LoRA adapter; name its model, and the adapter with --lora"
	case kind == "imatrix" || arch == "imatrix":
		return "it is an importance matrix, which quantising needs; name a model"
	case strings.HasPrefix(arch, "gallop-"):
		return fmt.Sprintf("it is a file of Gallop's own (%s); name the model that it was made for", arch)
	case arch == "t5":
		return "it has an encoder beside its decoder, which gallop cannot run; name another model"
	case arch == "wavtokenizer-dec":
		return "it makes sound, not text; name a language model"
	case slices.Contains(diffusers, arch):
		return fmt.Sprintf("it writes by diffusion (%s), not token by token, which gallop cannot run; name another model", arch)
	case slices.Contains(embedders, arch), pooling != 0, err == nil && !causal:
		return fmt.Sprintf("it is an embedding model (%s), which turns texts into numbers; name a model that writes", arch)
	case len(f.Tensors) == 0:
		return "it holds a vocabulary and no weights; name a model that has both"
	}
	return ""
}
