package randmodel

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/gallop-llm/gallop/gguf"
)

// Split copies a GGUF file into dir as a split model of this many parts, and returns
// the first part's path. As llama.cpp can, it puts no tensor into the first part where
// there are more than two.
func Split(src, dir string, parts int) (first string, err error) {
	f, err := gguf.Open(src)
	if err != nil {
		return "", err
	}
	defer f.Close()
	path := func(part int) string {
		return filepath.Join(dir, fmt.Sprintf("model-%05d-of-%05d.gguf", part+1, parts))
	}
	filled := parts // that have tensors
	if parts > 2 {
		filled--
	}
	for part := range parts {
		var meta gguf.Metadata
		if part == 0 {
			meta = f.Metadata
		}
		meta.Set(gguf.KeySplitNo, uint16(part))
		meta.Set(gguf.KeySplitCount, uint16(parts))
		meta.Set(gguf.KeySplitTensors, int32(len(f.Tensors)))
		var tensors []gguf.Source
		if of := part - (parts - filled); of >= 0 {
			for _, tensor := range f.Tensors[len(f.Tensors)*of/filled : len(f.Tensors)*(of+1)/filled] {
				tensors = append(tensors, f.Copy(tensor))
			}
		}
		if err := gguf.Write(context.Background(), path(part), meta, tensors, nil); err != nil {
			return "", err
		}
	}
	return path(0), nil
}
