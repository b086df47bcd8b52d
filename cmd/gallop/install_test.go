package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// runMake runs make in the repository with nothing in the environment but env.
func runMake(t *testing.T, env []string, args ...string) (out string, err error) {
	t.Helper()
	program, err := exec.LookPath("make")
	require.NoError(t, err)
	cmd := exec.Command(program, append([]string{"-C", filepath.Join("..", "..")}, args...)...)
	cmd.Env = env
	output, err := cmd.CombinedOutput()
	return string(output), err
}

// environment is this process's without what an outer make says to inner ones.
func environment() []string {
	var env []string
	for _, name := range []string{"PATH", "HOME", "GOFLAGS", "GOPROXY", "GOCACHE", "GOMODCACHE", "XDG_CACHE_HOME", "TMPDIR"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// TestInstall installs below a folder, moves that folder, and lets the program
// look for all it needs, without the libraries of the user's cache.
func TestInstall(t *testing.T) {
	root := t.TempDir()
	out, err := runMake(t, environment(), "install", "BUILD="+t.TempDir(), "DESTDIR="+root, "PREFIX=/opt/here")
	require.NoError(t, err, out)
	moved := filepath.Join(t.TempDir(), "there")
	require.NoError(t, os.Rename(filepath.Join(root, "opt", "here"), moved))

	cmd := exec.Command(filepath.Join(moved, "bin", "gallop"), "doctor")
	cmd.Env = []string{"HOME=" + t.TempDir()}
	report, err := cmd.CombinedOutput()
	require.NoError(t, err, string(report))
	require.Contains(t, string(report), "✓ libraries      "+filepath.Join(moved, "lib", "gallop")+" (beside the program)\n")
	require.Contains(t, string(report), "✓ preload        "+filepath.Join(moved, "lib", "gallop", "libgallop-skip.so")+"\n")
	require.FileExists(t, filepath.Join(moved, "lib", "gallop", "LICENSE.llama.cpp"))
}

func TestMakeNamesMissingTools(t *testing.T) {
	bin := t.TempDir()
	sh, err := exec.LookPath("sh")
	require.NoError(t, err)
	require.NoError(t, os.Symlink(sh, filepath.Join(bin, "sh")))
	for tool, want := range map[string]string{
		"go":  "go is missing: get it from https://go.dev/dl (1.26 or newer)\n",
		"cc":  "cc is missing: get it with `apt install build-essential`\n",
		"npm": "npm is missing: get it with `apt install npm` or from https://nodejs.org\n",
	} {
		out, err := runMake(t, []string{"PATH=" + bin}, "need-"+tool)
		require.Error(t, err)
		require.Contains(t, out, want)
	}
}

func TestMakeHelp(t *testing.T) {
	out, err := runMake(t, environment())
	require.NoError(t, err)
	for _, target := range []string{"demo", "test", "test-long", "lint", "build", "preload", "bench", "install", "clean", "fuzz", "help"} {
		require.Regexp(t, `(?m)^  make `+target+` +\w`, out)
	}
}
