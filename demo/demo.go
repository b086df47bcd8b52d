// Package demo is the small model that gallop uses when no other is named.
// README.md beside this file tells what it can do and how it was trained.
package demo

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // for the model and its prompts
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gallop-llm/gallop/internal/files"
)

//go:embed gallop-demo.gguf
var model []byte

//go:embed gallop-demo.gallop.gguf
var profile []byte

// Test is test.jsonl: prompts of the model's skills that it was not trained on,
// 80 of each, with their answers.
//
//go:embed test.jsonl
var Test []byte

// Path writes the embedded model and its profile into the user's cache folder, if they
// are not there yet or have been damaged, and returns where the model is: llama.cpp maps
// models from files. The profile is beside it, where it is looked for.
func Path() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder for the demo model: %w", err)
	}
	sum := sha256.Sum256(append(model[:len(model):len(model)], profile...))
	base := filepath.Join(cache, "gallop", "demo-"+hex.EncodeToString(sum[:4]))
	if err := os.MkdirAll(filepath.Dir(base), 0o755); err != nil {
		return "", fmt.Errorf("make the cache folder for the demo model: %w", err)
	}
	for _, f := range []struct {
		path string
		data []byte
	}{{base + ".gguf", model}, {base + ".gallop.gguf", profile}} {
		if isThere(f.path, f.data) {
			continue
		}
		if err := files.Write(f.path, f.data); err != nil {
			return "", fmt.Errorf("write the demo model: %w", err)
		}
	}
	return base + ".gguf", nil
}

// isThere tells whether a file holds data, byte for byte: a loss of power can leave one of
// the right length full of zeros. Comparing takes a few milliseconds.
func isThere(path string, data []byte) bool {
	info, err := os.Stat(path)
	if err != nil || info.Size() != int64(len(data)) {
		return false
	}
	kept, err := os.ReadFile(path)
	return err == nil && bytes.Equal(kept, data)
}
