package randmodel

import (
	"context"
	"fmt"

	"github.com/gallop-llm/gallop/gguf"
)

// rmsEpsilon is the usual constant under the root of RMS norms.
const rmsEpsilon = float32(1e-5)

// quantVersion is the version of the block formats, written for every type.
const quantVersion = uint32(2)

// Write makes the model as a GGUF file at path, in place of an older one. It
// fails with [ErrUnknown] or [ErrSpec] for an impossible Spec, before anything
// is written; memory stays small for any size of model.
func Write(path string, s Spec) error {
	return WriteContext(context.Background(), path, s, nil)
}

// WriteContext is [Write] for models that take their time: the end of ctx stops
// it, and progress, if it is not nil, is told now and then how many bytes of how
// many are written.
func WriteContext(ctx context.Context, path string, s Spec, progress func(done, total int64)) error {
	if err := s.check(); err != nil {
		return err
	}
	var sources []gguf.Source
	for _, t := range s.tensors() {
		if _, err := t.Type.Size(t.Shape); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrSpec, t.Name, err)
		}
		sources = append(sources, gguf.Source{Tensor: t, Data: s.data(t)})
	}
	return gguf.Write(ctx, path, s.metadata(), sources, &gguf.WriteOptions{Progress: progress})
}

func (s Spec) metadata() gguf.Metadata {
	meta := gguf.Metadata{{Key: gguf.KeyArchitecture, Value: s.Arch}}
	// No architecture in the name: llama.cpp takes "phi3" in it as a promise of
	// that family's special tokens.
	meta.Set("general.name", fmt.Sprintf("random weights, %d layers", s.Layers))
	meta.Set("general.quantization_version", quantVersion)
	own := func(key string, value any) { meta.Set(meta.ArchKey(key), value) }
	own(gguf.KeyBlockCount, uint32(s.Layers))
	own("context_length", uint32(s.Context))
	own("embedding_length", uint32(s.Embd))
	own("feed_forward_length", uint32(s.FF))
	own("attention.head_count", uint32(s.Heads))
	own("attention.head_count_kv", uint32(s.KVHeads))
	own("attention.key_length", uint32(s.HeadDim))
	own("attention.value_length", uint32(s.HeadDim))
	own("attention.layer_norm_rms_epsilon", rmsEpsilon)
	own("rope.dimension_count", uint32(s.HeadDim))
	own("rope.freq_base", float32(s.RopeBase))
	own("vocab_size", uint32(s.Vocab))
	if s.Window != 0 {
		own("attention.sliding_window", uint32(s.Window))
	}
	if s.Experts != 0 {
		own("expert_count", uint32(s.Experts))
		own("expert_used_count", uint32(s.ExpertsUsed))
	}
	if s.Arch == "qwen3moe" {
		own("expert_feed_forward_length", uint32(s.FF))
	}
	addVocabulary(&meta, s.Vocab)
	return meta
}
