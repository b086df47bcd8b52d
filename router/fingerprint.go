package router

import (
	"fmt"
	"hash/fnv"
	"io"
	"strings"

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

	// Norms is a hash of the norms' weights, which quantising leaves as they are: all
	// quantisations of a model have the same. 0 = not known, as in profiles of earlier
	// versions.
	Norms uint64
}

// SameModel tells whether both are quantisations of one model.
func (f Fingerprint) SameModel(other Fingerprint) bool {
	return f.Norms != 0 && f.Norms == other.Norms && f.Architecture == other.Architecture &&
		f.Layers == other.Layers && f.Params == other.Params
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
	sum, norms := fnv.New64a(), fnv.New64a()
	known := false // a norm
	for _, t := range f.Tensors {
		p.Params += t.Elements()
		p.Size += t.Size
		fmt.Fprintln(sum, t.Name, t.Shape, t.Type)
		n := min(t.Size, hashedBytes)
		if _, err := io.Copy(sum, io.NewSectionReader(f.Reader(t), int64((t.Size-n)/2), int64(n))); err != nil {
			return p, fmt.Errorf("read %s: %w", f.Path, err)
		}
		if !strings.Contains(t.Name, "norm") || t.Type != gguf.F32 {
			continue
		}
		known = true
		fmt.Fprintln(norms, t.Name, t.Shape)
		if _, err := io.Copy(norms, f.Reader(t)); err != nil {
			return p, fmt.Errorf("read %s: %w", f.Path, err)
		}
	}
	if p.Hash = sum.Sum64(); known {
		p.Norms = norms.Sum64()
	}
	return p, nil
}
