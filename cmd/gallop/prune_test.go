package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/inspect"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
)

// requireNoFiles checks that nothing was left in a folder, hidden files included.
func requireNoFiles(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestPrune(t *testing.T) {
	alone(t)
	path := llamatest.Write(t, randmodel.Small("llama"))
	out := filepath.Join(t.TempDir(), "out.gguf")
	code, stdout, errOut := runGallop("prune", "-m", path, "--skip", "1,3-4", "-o", out)
	require.Equal(t, exitOK, code, errOut)
	require.Empty(t, errOut)
	require.Regexp(t, `^`+out+`: 5 of 8 layers kept, 1\.\d MiB instead of 1\.\d MiB\n$`, stdout)
	m, err := inspect.Read(out)
	require.NoError(t, err)
	require.Len(t, m.Layers, 5)
	require.Equal(t, []uint64{1, 3, 4}, m.PrunedLayers)
}

func TestPruneDemo(t *testing.T) {
	alone(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	out := filepath.Join(t.TempDir(), "out.gguf")
	code, stdout, errOut := runGallop("prune", "--skip", "4,6", "-o", out)
	require.Equal(t, exitOK, code, errOut)
	require.Contains(t, stdout, " layers kept, ")
}

func TestPruneNeurons(t *testing.T) {
	alone(t)
	llamatest.Library(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	s := randmodel.Tiny(2)
	s.FF = 128
	path := llamatest.Write(t, s)
	out := filepath.Join(t.TempDir(), "out.gguf")
	code, stdout, errOut := runGallop("prune", "-m", path, "--skip", "n50%", "-o", out)
	require.Equal(t, exitOK, code, errOut)
	require.Regexp(t, `^`+out+`: without 50 % of the neurons of feed-forwards, \d+ KiB instead of \d+ KiB\n$`, stdout)
	require.Contains(t, errOut, "once for a model")
	m := llamatest.Open(t, out)
	ff, err := m.FeedForwards()
	require.NoError(t, err)
	require.Equal(t, 64, ff[1].Width)
}

func TestPruneRefusals(t *testing.T) {
	alone(t)
	path := llamatest.Write(t, randmodel.Small("llama")) // layers 0 to 7
	gemma := llamatest.Write(t, randmodel.Small("gemma3"))
	for name, test := range map[string]struct {
		path, mask string
		code       int
		want       string
	}{
		"out of range":  {path, "3,8", exitError, "the model has 0 to 7"},
		"all layers":    {path, "0-7", exitError, "all 8 are given, at least one must stay"},
		"absurd number": {path, "999999999999", exitUsage, `"999999999999"`},
		"not a number":  {path, "a", exitUsage, `not a mask: "a"`},
		"backwards":     {path, "4-2", exitUsage, "it runs backwards"},
		"negative":      {path, "-1", exitUsage, "not a mask"},
		"empty":         {path, "", exitUsage, "name the layers to leave out: --skip 4,6"},
		"attention":     {path, "4,a5", exitUsage, "no file can leave out attention or feed-forward alone"},
		"neurons too":   {path, "4,n20%", exitUsage, "neurons are pruned apart from layers"},
		"shortlist":     {path, "4,v1024", exitUsage, "no file can have a vocabulary shortlist; leave out v1024"},
		"feed-forward":  {path, "f0-7", exitUsage, "no file can leave out attention or feed-forward alone"},
		"kind goes by number": {gemma, "1", exitError,
			"architecture gemma3: which of its layers see a sliding window goes by their number; skip layers at run time instead"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			code, out, errOut := runGallop("prune", "-m", test.path, "--skip="+test.mask, "-o", filepath.Join(dir, "out.gguf"))
			require.Equal(t, test.code, code)
			require.Empty(t, out)
			require.Regexp(t, `^gallop: [^\n]+\n$`, errOut, "one sentence")
			require.Contains(t, errOut, test.want)
			requireNoFiles(t, dir)
		})
	}
}

func TestPruneBadModels(t *testing.T) {
	alone(t)
	for name, bad := range badModels(t) {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			code, out, errOut := runGallop("prune", "-m", bad.path, "--skip", "1", "-o", filepath.Join(dir, "out.gguf"))
			require.Equal(t, exitError, code)
			require.Empty(t, out)
			require.Regexp(t, `^gallop: [^\n]+\n$`, errOut, "one sentence")
			require.Contains(t, errOut, bad.want)
			requireNoFiles(t, dir)
		})
	}
}

func TestPruneTargets(t *testing.T) {
	alone(t)
	path := llamatest.Write(t, randmodel.Small("llama"))
	there := writeFile(t, "there.gguf", "precious")
	for name, test := range map[string]struct {
		out, want string
		code      int
	}{
		"none":         {"", "--output is empty", exitUsage},
		"the model":    {path, "is the model to be pruned, give another name", exitError},
		"there":        {there, "is there already, remove it or give another name", exitError},
		"folder":       {t.TempDir(), "is there already, remove it or give another name", exitError},
		"no folder":    {filepath.Join(t.TempDir(), "none", "out.gguf"), "no such file or directory", exitError},
		"below a file": {filepath.Join(there, "out.gguf"), "not a directory", exitError},
	} {
		t.Run(name, func(t *testing.T) {
			before, err := os.ReadFile(path)
			require.NoError(t, err)
			code, _, errOut := runGallop("prune", "-m", path, "--skip", "1", "-o", test.out)
			require.Equal(t, test.code, code)
			require.Contains(t, errOut, test.want)
			after, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, before, after)
		})
	}
	content, err := os.ReadFile(there)
	require.NoError(t, err)
	require.Equal(t, "precious", string(content))
}
