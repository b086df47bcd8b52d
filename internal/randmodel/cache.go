package randmodel

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/gallop-llm/gallop/internal/gguf"
)

// CacheFolder is where [Cached] keeps its files, below the user's cache folder.
func CacheFolder() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w", err)
	}
	return filepath.Join(cache, "gallop", "bench"), nil
}

// Cached gives the path of a model in the shape of a published one, as [Shape]
// names it, with weights of type typ; see [Spec.Type]. It is made, into
// [CacheFolder], unless it is there whole. ctx and progress are as in
// [WriteContext].
func Cached(ctx context.Context, shape string, typ gguf.Type, progress func(done, total int64)) (string, error) {
	spec, err := Shape(shape)
	if err != nil {
		return "", err
	}
	spec.Type = typ
	folder, err := CacheFolder()
	if err != nil {
		return "", err
	}
	path := filepath.Join(folder, shape+"-"+strings.ToLower(typ.String())+".gguf")
	if f, err := gguf.Open(path); err == nil { // a file that was cut short does not open
		return path, f.Close()
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", fmt.Errorf("make the cache folder: %w", err)
	}
	return path, WriteContext(ctx, path, spec, progress)
}
