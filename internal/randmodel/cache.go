package randmodel

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/gallop-llm/gallop/gguf"
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
// names it, with weights of type typ; see [Spec.Type]. What the inner layers add
// to the residual stream is scaled by faint, 1 for a usual model, little for one
// whose inner layers hardly matter; with ends, the first and the last layer too,
// so that each token depends on the one before and texts soon repeat. It is made,
// into [CacheFolder], unless it is there whole. ctx and progress are as in
// [WriteContext].
func Cached(ctx context.Context, shape string, typ gguf.Type, faint float64, ends bool, progress func(done, total int64)) (string, error) {
	spec, err := Shape(shape)
	if err != nil {
		return "", err
	}
	spec.Type = typ
	name := shape + "-" + strings.ToLower(typ.String())
	if faint != 1 {
		name += fmt.Sprintf("-faint-%g", faint)
		faints := func(layer int) bool { return ends || layer > 0 && layer < spec.Layers-1 }
		if ends {
			name += "-ends"
		}
		spec.Scale = Times(faint, func(tensor string) bool {
			layer, rest, ok := gguf.SplitLayer(tensor)
			return ok && faints(layer) && (strings.HasPrefix(rest, "attn_output.") || strings.HasPrefix(rest, "ffn_down"))
		})
	}
	folder, err := CacheFolder()
	if err != nil {
		return "", err
	}
	path := filepath.Join(folder, name+".gguf")
	if f, err := gguf.Open(path); err == nil { // a file that was cut short does not open
		return path, f.Close()
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", fmt.Errorf("make the cache folder: %w", err)
	}
	return path, WriteContext(ctx, path, spec, progress)
}
