package main

import (
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/libs"
)

// fakeNPM puts a script in npm's place, and a new, empty folder in the cache's.
// It returns the cache folder.
func fakeNPM(t *testing.T, script string) string {
	t.Helper()
	alone(t)
	bin, cache := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(bin, "npm"), []byte("#!/bin/sh\n"+script), 0o755))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("XDG_CACHE_HOME", cache)
	t.Setenv("GALLOP_TEST_CACHE", cache)
	return cache
}

// fetch is an npm that brings the files of any package, which is named in the
// lock file beside it.
const fetch = `set -e
[ "$1" = ci ]
names=$(sed -n 's,.*node_modules/\(@node-llama-cpp/[a-z0-9-]*\)".*,\1,p' package-lock.json)
for name in $names; do
	mkdir -p "node_modules/$name/bins/any"
	touch "node_modules/$name/bins/any/libggml.so" "node_modules/$name/bins/any/libllama.v0.5.0.so"
done
`

// leftovers lists what lies in the folder of the libraries, hidden files included.
func leftovers(t *testing.T, cache string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(cache, "gallop", "llama.cpp"))
	require.NoError(t, err)
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

func TestSetup(t *testing.T) {
	cache := fakeNPM(t, fetch)
	device := libs.DefaultDevice()
	code, out, errOut := runGallop("setup")
	require.Equal(t, exitOK, code, errOut)
	require.Empty(t, errOut, "no bar away from a terminal")
	require.NotEmpty(t, libs.Installed(device))
	require.Equal(t, device+": installed in "+libs.Installed(device)+"\n", out)
	require.Len(t, leftovers(t, cache), 1)

	code, out, _ = runGallop("setup")
	require.Equal(t, exitOK, code)
	require.Equal(t, device+": already installed in "+libs.Installed(device)+"\n", out)
}

func TestSetupGPU(t *testing.T) {
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		t.Skip("there are no GPU packages for every system")
	}
	fakeNPM(t, fetch)
	code, out, errOut := runGallop("setup", "--device", "vulkan")
	require.Equal(t, exitOK, code, errOut)
	require.Equal(t, "cpu: installed in "+libs.Installed("cpu")+"\nvulkan: installed in "+libs.Installed("vulkan")+"\n", out)
	code, out, _ = runGallop("setup", "--device", "cuda")
	require.Equal(t, exitOK, code)
	require.Equal(t, "cpu: already installed in "+libs.Installed("cpu")+"\ncuda: installed in "+libs.Installed("cuda")+"\n", out)
}

func TestSetupFailures(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		args   []string
		code   int
		want   string
	}{
		"unknown device": {fetch, []string{"--device", "abacus"}, exitUsage,
			"gallop: unknown device \"abacus\": choose one of cpu, vulkan, cuda, metal\n"},
		"npm fails": {"echo 'npm error network is down' >&2\nexit 1\n", nil, exitError,
			"gallop: npm could not fetch the libraries (exit status 1): network is down\n"},
		"npm brings nothing": {"exit 0\n", nil, exitError, "gallop: no published llama.cpp build for "},
	} {
		t.Run(name, func(t *testing.T) {
			cache := fakeNPM(t, test.script)
			code, out, errOut := runGallop(append([]string{"setup"}, test.args...)...)
			require.Equal(t, test.code, code)
			require.Empty(t, out)
			require.Contains(t, errOut, test.want)
			require.Empty(t, libs.Installed(libs.DefaultDevice()))
			if test.code == exitError {
				require.Empty(t, leftovers(t, cache))
			}
		})
	}
}

func TestSetupWithoutNPM(t *testing.T) {
	fakeNPM(t, fetch)
	t.Setenv("PATH", t.TempDir())
	code, _, errOut := runGallop("setup")
	require.Equal(t, exitError, code)
	require.Contains(t, errOut, "gallop: npm is not installed: get it with `apt install npm`")
}

// TestSetupInterrupted presses Ctrl-C while npm, and a program that it runs, are
// at work: neither is waited for.
func TestSetupInterrupted(t *testing.T) {
	cache := fakeNPM(t, `cd "$GALLOP_TEST_CACHE"
(sleep 20; touch finished) &
touch started
wait
`)
	go func() {
		for {
			if _, err := os.Stat(filepath.Join(cache, "started")); err == nil {
				_ = syscall.Kill(os.Getpid(), syscall.SIGINT)
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	code, out, _ := runGallop("setup")
	require.Equal(t, exitInterrupted, code)
	require.Empty(t, out)
	require.Empty(t, leftovers(t, cache))
	require.NoFileExists(t, filepath.Join(cache, "finished"))
}
