package preload

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/gallop-llm/gallop/llama"
)

// libraryName is the file that `make preload` builds.
const libraryName = "libgallop-skip.so"

// SearchPath lists the folders where the library may be: $GALLOP_LIB, beside
// the executable, where `make install` puts it, and where `make preload` does.
func SearchPath() []string {
	var dirs []string
	if dir := os.Getenv(llama.EnvLibrary); dir != "" {
		dirs = append(dirs, dir)
	}
	exe, err := os.Executable()
	if err != nil {
		return dirs
	}
	if real, err := filepath.EvalSymlinks(exe); err == nil {
		exe = real
	}
	bin := filepath.Dir(exe)
	return append(dirs, bin, filepath.Join(bin, "..", "lib", "gallop"), filepath.Join(bin, "build"), filepath.Join(bin, "..", "build"))
}

// FindLibrary returns the absolute path of libgallop-skip.so in the first of
// dirs that holds it. The error wraps [ErrNoLibrary].
func FindLibrary(dirs []string) (string, error) {
	for _, dir := range dirs {
		path, err := filepath.Abs(filepath.Join(dir, libraryName))
		if err != nil {
			continue
		}
		if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
			continue
		}
		if strings.ContainsAny(path, " :") {
			return "", fmt.Errorf("%w that can be preloaded: %q has a space or colon in it; copy it elsewhere and set %s to that folder",
				ErrNoLibrary, path, llama.EnvLibrary)
		}
		return path, nil
	}
	return "", fmt.Errorf("%w (looked in %s): build it with `make preload`, or set %s to its folder",
		ErrNoLibrary, strings.Join(dirs, ", "), llama.EnvLibrary)
}
