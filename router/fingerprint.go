package router

import (
	"fmt"
	"hash/fnv"
	"io"

	"github.com/gallop-llm/gallop/gguf"
)

// Fingerprint tells models apart: by the facts that a person would compare,
// and by a hash of the tensor list and some of the weights.
type Fingerprint struct {
	Architecture string // "llama"
	Layers       int
	Params       uint64 // elements of all tensors
	Size         uint64 // bytes of all tensors
	Hash         uint64
}

// String is what profiles in the cache folder are named by.
func (f Fingerprint) String() string {
	return fmt.Sprintf("%s-%d-%016x", f.Architecture, f.Layers, f.Hash)
}

// What of the weights goes into the hash: a page of every tensor, from its
// middle. That tells apart two trainings of one shape, and fine-tunes that
// touch any layer; it reads 1 to 2 MB of any model.
const hashedBytes = 4096

// FingerprintOf reads a model file's fingerprint. Errors are those of package
// gguf, and [gguf.ErrNoKey] for a file that is no language model.
func FingerprintOf(modelPath string) (Fingerprint, error) {
	f, err := gguf.Open(modelPath)
	if err != nil {
		return Fingerprint{}, err
	}
	defer f.Close()
	return fingerprintOf(f)
}

func fingerprintOf(f *gguf.File) (p Fingerprint, err error) {
	if p.Architecture, err = f.Metadata.Architecture(); err == nil {
		p.Layers, err = f.Metadata.LayerCount()
	}
	if err != nil {
		return p, fmt.Errorf("%s is no language model: %w", f.Path, err)
	}
	sum := fnv.New64a()
	for _, t := range f.Tensors {
		p.Params += t.Elements()
		p.Size += t.Size
		fmt.Fprintln(sum, t.Name, t.Shape, t.Type)
		n := min(t.Size, hashedBytes)
		if _, err := io.Copy(sum, io.NewSectionReader(f.Reader(t), int64((t.Size-n)/2), int64(n))); err != nil {
			return p, fmt.Errorf("read %s: %w", f.Path, err)
		}
	}
	p.Hash = sum.Sum64()
	return p, nil
}
