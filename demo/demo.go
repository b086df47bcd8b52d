// Package demo is the small model that gallop uses when no other is named.
// README.md beside this file tells what it can do and how it was trained.
package demo

import (
	"crypto/sha256"
	_ "embed" // for the model
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gallop-llm/gallop/internal/files"
)

//go:embed gallop-demo.gguf
var model []byte

// Path writes the embedded model into the user's cache folder, if it is not
// there yet, and returns where it is: llama.cpp maps models from files.
func Path() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder for the demo model: %w", err)
	}
	sum := sha256.Sum256(model)
	path := filepath.Join(cache, "gallop", "demo-"+hex.EncodeToString(sum[:4])+".gguf")
	if info, err := os.Stat(path); err == nil && info.Size() == int64(len(model)) {
		return path, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", fmt.Errorf("make the cache folder for the demo model: %w", err)
	}
	if err := files.Write(path, model); err != nil {
		return "", fmt.Errorf("write the demo model: %w", err)
	}
	return path, nil
}
