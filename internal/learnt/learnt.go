// Package learnt keeps in the user's cache folder what was learnt of a model: a GGUF file for each
// model and kind.
package learnt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/llama"
)

// Kind is what is learnt of a model.
type Kind struct {
	Name    string // of the folder, and in files
	What    string // the same in sentences
	Version uint32 // of the files' meaning: others are made anew
}

// Dir is the folder of the user's cache for files of this kind.
func (k Kind) Dir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder for %s: %w", k.What, err)
	}
	return filepath.Join(cache, "gallop", k.Name), nil
}

// Path is a model's file in dir.
func (k Kind) Path(dir string, m *llama.Model) string {
	return filepath.Join(dir, fmt.Sprintf("%s-%d-%016x.gguf", m.Architecture, m.NLayer, m.Fingerprint()))
}

func (k Kind) general() string { return "gallop-" + k.Name }

// Key is the metadata key of a figure.
func (k Kind) Key(name string) string { return "gallop." + k.Name + "." + name }

// Number is a whole number of the metadata; 0 = there is none.
func (k Kind) Number(meta gguf.Metadata, name string) uint64 {
	n, _ := meta.Uint(k.Key(name))
	return n
}

// Head is what every file of a model starts with.
func (k Kind) Head(m *llama.Model) (meta gguf.Metadata) {
	meta.Set("general.type", k.general())
	meta.Set(k.Key("version"), k.Version)
	meta.Set(k.Key("model"), m.Fingerprint())
	return meta
}

// Check says why a file with this metadata is not the model's.
func (k Kind) Check(meta gguf.Metadata, m *llama.Model) error {
	switch name, _ := meta.String("general.type"); {
	case name != k.general():
		return errors.New("it is of another kind")
	case k.Number(meta, "version") != uint64(k.Version):
		return errors.New("it is of another version")
	case k.Number(meta, "model") != m.Fingerprint():
		return errors.New("it was made for another model")
	}
	return nil
}

// Write makes the file at path, and its folder.
func (k Kind) Write(ctx context.Context, path string, meta gguf.Metadata, tensors []gguf.Source) error {
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = gguf.Write(ctx, path, meta, tensors, nil)
	}
	if err != nil {
		return fmt.Errorf("keep %s: %w", k.What, err)
	}
	return nil
}

// Tensor is one to write.
func Tensor(name string, kind gguf.Type, data []byte, shape ...uint64) gguf.Source {
	return gguf.Source{Tensor: gguf.Tensor{Name: name, Type: kind, Shape: shape}, Data: gguf.Bytes(data)}
}

// Bytes is how numbers lie in a file.
func Bytes[T int32 | float32](v []T) []byte {
	b, _ := binary.Append(nil, binary.LittleEndian, v) // numbers of a fixed size have bytes
	return b
}

// Numbers are those that lie in a file's bytes.
func Numbers[T int32 | float32](b []byte) []T {
	const size = 4
	v := make([]T, len(b)/size)
	_, _ = binary.Decode(b, binary.LittleEndian, v) // there are bytes for all
	return v
}
