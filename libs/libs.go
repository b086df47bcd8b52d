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
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gallop-llm/gallop/llama"
	llamacpp "github.com/gallop-llm/gallop/third_party/llama.cpp"
)

// Errors of [Install].
var (
	// ErrDevice is returned for a device that is not in [Devices].
	ErrDevice = errors.New("unknown device")

	// ErrNoNPM is returned when npm, which fetches the libraries, is missing.
	ErrNoNPM = errors.New("npm is not installed: get it with `apt install npm` or from nodejs.org, " +
		"or put llama.cpp's libraries into a folder and set GALLOP_LIB to it")

	// ErrPlatform is returned when there is no build for this system.
	ErrPlatform = errors.New("no published llama.cpp build")

	// ErrFetch is returned when npm fails.
	ErrFetch = errors.New("npm could not fetch the libraries")
)

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
	lock, err := llamacpp.Locks.ReadFile("npm/" + device + "/package-lock.json")
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

	// Progress, when set, is called several times a second while a device's
	// libraries are fetched, with the bytes that have come to the disk so far. How
	// many it will be is not known before. Calls come one at a time, from another
	// goroutine, and none comes after Install has returned.
	Progress func(device string, bytes int64)
}

// Install fetches the libraries for a device, and those that it needs beside them,
// and returns their folder. Nothing happens when they are there and whole: all of them
// are read for that, and damaged ones are fetched anew. A folder appears whole or not at all; the end of ctx stops the fetching and leaves nothing.
//
// Errors: [ErrDevice], [ErrNoNPM], [ErrPlatform], [ErrFetch], ctx's own, or the
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
		if _, err := Install(ctx, &Options{Progress: o.Progress}); err != nil {
			return "", err
		}
	}
	if dir, err := Verify(device); dir != "" || err != nil && !errors.Is(err, ErrDamaged) {
		return dir, err
	}
	return fetch(ctx, device, o.Progress)
}

// stopTime is what npm gets to end after an interrupt.
const stopTime = 2 * time.Second

// fetch brings a device's package with `npm ci`, which checks it against the hashes
// of the lock file, and returns the folder of its libraries.
func fetch(ctx context.Context, device string, progress func(string, int64)) (string, error) {
	final, err := folder(device)
	if err != nil {
		return "", err
	}
	npm, err := exec.LookPath("npm")
	if err != nil {
		return "", ErrNoNPM
	}
	if err := os.MkdirAll(filepath.Dir(final), 0o755); err != nil {
		return "", fmt.Errorf("make the cache folder: %w", err)
	}
	temp, err := os.MkdirTemp(filepath.Dir(final), "."+device+"-*")
	if err != nil {
		return "", fmt.Errorf("make the cache folder: %w", err)
	}
	defer os.RemoveAll(temp)
	for _, name := range []string{"package.json", "package-lock.json"} {
		data, err := fs.ReadFile(llamacpp.Locks, "npm/"+device+"/"+name)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(temp, name), data, 0o644); err != nil {
			return "", fmt.Errorf("write the lock file: %w", err)
		}
	}
	if progress != nil {
		defer watch(temp, func(bytes int64) { progress(device, bytes) })()
	}
	cmd := exec.CommandContext(ctx, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
	cmd.Dir = temp
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // lets npm end what it runs
	cmd.WaitDelay = stopTime
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", fmt.Errorf("%w (%w): %s", ErrFetch, err, lastLine(string(out)))
	}
	if found, _ := filepath.Glob(filepath.Join(temp, "node_modules", "@node-llama-cpp", platform()+"*")); len(found) == 0 {
		return "", fmt.Errorf("%w for %s on %s/%s; build llama.cpp's shared libraries and set %s to their folder",
			ErrPlatform, device, runtime.GOOS, runtime.GOARCH, llama.EnvLibrary)
	}
	if err := writeList(temp); err != nil {
		return "", fmt.Errorf("note what was fetched: %w", err)
	}
	if _, err := Verify(device); errors.Is(err, ErrDamaged) {
		old := temp + ".old" // programs that use them keep them
		if err := os.Rename(final, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("take the damaged libraries away: %w", err)
		}
		defer os.RemoveAll(old)
	}
	err = os.Rename(temp, final)
	dir, damaged := Verify(device)
	if dir == "" { // else another process may have been first
		return "", fmt.Errorf("put the libraries in place: %w", errors.Join(err, damaged))
	}
	return dir, nil
}

// watchTime is how often a fetch is looked at.
const watchTime = 200 * time.Millisecond

// watch tells progress how many bytes lie in dir, until stop is called, and waits
// for the last call then.
func watch(dir string, progress func(bytes int64)) (stop func()) {
	stopped := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(watchTime)
		defer tick.Stop()
		for {
			progress(sizeOf(dir))
			select {
			case <-stopped:
				return
			case <-tick.C:
			}
		}
	})
	return func() { close(stopped); running.Wait() }
}

// sizeOf adds up the files in a folder. Those that go away meanwhile do not count.
func sizeOf(dir string) (bytes int64) {
	_ = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := entry.Info(); err == nil && info.Mode().IsRegular() {
			bytes += info.Size()
		}
		return nil
	})
	return bytes
}

// lastLine is the last line of npm's output that says something.
func lastLine(out string) string {
	lines := strings.FieldsFunc(out, func(r rune) bool { return r == '\n' })
	for _, line := range slices.Backward(lines) {
		if text, ok := strings.CutPrefix(line, "npm error "); ok && !strings.Contains(text, "complete log") {
			return text
		}
	}
	return "no reason given"
}

// SearchPath lists where the libraries are looked for, in order.
func SearchPath() []string {
	dirs := llama.SearchPath()
	if os.Getenv(llama.EnvLibrary) != "" {
		return dirs
	}
	for _, device := range Devices {
		if dir := Installed(device); dir != "" {
			if found, _ := filepath.Glob(filepath.Join(dir, "libllama.*")); len(found) > 0 {
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
		for _, path := range libraries(device, "libggml-"+device+".*") {
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
