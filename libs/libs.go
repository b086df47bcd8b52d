package libs

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/gallop-llm/gallop/llama"
	llamacpp "github.com/gallop-llm/gallop/third_party/llama.cpp"
)

// Errors of [Install].
var (
	// ErrDevice is returned for a device that is not in [Devices].
	ErrDevice = errors.New("unknown device")

	// ErrPlatform is returned when there is no build for this system.
	ErrPlatform = errors.New("no published llama.cpp build")

	// ErrFetch is returned when the registry cannot be reached, refuses, fails, or sends
	// something else, after some tries.
	ErrFetch = errors.New("cannot fetch llama.cpp's libraries")

	// ErrFrom is returned when [Options.From] lacks an archive that is needed.
	ErrFrom = errors.New("cannot take llama.cpp's libraries from there")
)

// locks are the lock files; tests have others.
var locks fs.ReadFileFS = llamacpp.Locks

// Devices lists what libraries can be installed for. "cpu" is needed always,
// except on a Mac with its own chip, where "metal" has everything.
var Devices = []string{"cpu", "vulkan", "cuda", "metal"}

// DefaultDevice is the package that this machine needs first.
func DefaultDevice() string {
	if runtime.GOOS == "darwin" && runtime.GOARCH == "arm64" {
		return "metal"
	}
	return "cpu"
}

// folder is where a device's package lies or will lie: its name changes with
// the lock file, so that a new release never meets an old one's files.
func folder(device string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w", err)
	}
	lock, err := locks.ReadFile("npm/" + device + "/package-lock.json")
	if err != nil {
		return "", fmt.Errorf("%w %q: choose one of %s", ErrDevice, device, strings.Join(Devices, ", "))
	}
	sum := sha256.Sum256(lock)
	return filepath.Join(cache, "gallop", "llama.cpp", device+"-"+hex.EncodeToString(sum[:4])), nil
}

// platform is how the packages' names call this system.
func platform() string {
	name := map[string]string{"linux": "linux", "darwin": "mac", "windows": "win"}[runtime.GOOS]
	if runtime.GOARCH == "amd64" {
		return name + "-x64"
	}
	return name + "-" + runtime.GOARCH
}

// named is how this system's files of a library are called.
func named(library string) string {
	if runtime.GOOS == "windows" {
		return library
	}
	return "lib" + library
}

// libraries finds the files of a device's package that match pattern.
func libraries(device, pattern string) []string {
	dir, err := folder(device)
	if err != nil {
		return nil
	}
	found, _ := filepath.Glob(filepath.Join(dir, "node_modules", "@node-llama-cpp", platform()+"*", "bins", "*", pattern))
	return found
}

// Installed returns the folder of a device's libraries, "" when they are not there, or not
// all of them, or not whole by their sizes.
func Installed(device string) string {
	dir, err := check(device, false)
	if err != nil {
		return ""
	}
	return dir
}

// Options say what [Install] fetches. nil and zero are the defaults.
type Options struct {
	// Device is one of [Devices]; "" = [DefaultDevice].
	Device string

	// From is an archive as the npm registry has it, or a folder of such archives: then
	// nothing is fetched. "" = the registry.
	From string

	// Progress, when set, is called while a device's libraries come, with the bytes that
	// are here and those that the archive has, -1 while that is not known.
	Progress func(device string, have, total int64)
}

// Install fetches the libraries for a device, and those that it needs beside them,
// and returns their folder. Nothing happens when they are there and whole: all of them
// are read for that, and damaged ones are fetched anew. A folder appears whole or not at all.
// After the end of ctx, or a fault of the network, the next call goes on from where it was. Two
// calls at once, of other processes too, do the work once.
//
// Errors: [ErrDevice], [ErrPlatform], [ErrFetch], [ErrFrom], ctx's own, or the
// system's.
func Install(ctx context.Context, o *Options) (dir string, err error) {
	if o == nil {
		o = &Options{}
	}
	device := cmp.Or(o.Device, DefaultDevice())
	if _, err := folder(device); err != nil {
		return "", err
	}
	if device != DefaultDevice() { // a GPU's module is loaded beside the CPU's
		if _, err := Install(ctx, &Options{From: o.From, Progress: o.Progress}); err != nil {
			return "", err
		}
	}
	if dir, err := Verify(device); dir != "" || err != nil && !errors.Is(err, ErrDamaged) {
		return dir, err
	}
	return fetch(ctx, device, o)
}

// SearchPath lists where the libraries are looked for, in order.
func SearchPath() []string {
	dirs := llama.SearchPath()
	if os.Getenv(llama.EnvLibrary) != "" {
		return dirs
	}
	for _, device := range Devices {
		if dir := Installed(device); dir != "" {
			if found, _ := filepath.Glob(filepath.Join(dir, named("llama.*"))); len(found) > 0 {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs
}

// Load opens the installed libraries, with every GPU module that was installed
// for them. A GPU module that does not load is reported in skipped, and the
// rest goes on without it.
func Load() (skipped []error, err error) {
	if err := llama.Load(SearchPath()); err != nil {
		return nil, err
	}
	if os.Getenv(llama.EnvLibrary) != "" {
		return nil, nil
	}
	for _, device := range []string{"vulkan", "cuda"} {
		if _, err := check(device, false); err != nil {
			skipped = append(skipped, fmt.Errorf("%w; `gallop setup --device %s` fetches them anew", err, device))
			continue
		}
		for _, path := range libraries(device, named("ggml-"+device+".*")) {
			if filepath.Dir(path) == llama.Dir() {
				continue // loaded with the library
			}
			if err := llama.LoadBackend(path); err != nil {
				skipped = append(skipped, err)
			}
		}
	}
	return skipped, nil
}
