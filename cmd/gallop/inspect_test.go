package main

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/inspect"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
)

// badModels are files that are no models, each with a part of the sentence that
// any command has to say about it.
func badModels(t *testing.T) map[string]struct{ path, want string } {
	t.Helper()
	dir := t.TempDir()
	whole, err := os.ReadFile(llamatest.Write(t, randmodel.Small("llama")))
	require.NoError(t, err)
	put := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, content, 0o644))
		return path
	}
	corrupt := append([]byte{}, whole...)
	firstKey := binary.LittleEndian.Uint64(corrupt[24:])
	corrupt[32+firstKey] = 99 // the type of the first metadata entry
	return map[string]struct{ path, want string }{
		"missing":       {filepath.Join(dir, "none.gguf"), "there is no file "},
		"folder":        {dir, "it is a folder, name a .gguf file in it"},
		"empty":         {put("empty.gguf", nil), "not a GGUF file"},
		"text":          {put("text.gguf", []byte("once upon a time there was a model, but not here")), "not a GGUF file"},
		"half":          {put("half.gguf", whole[:len(whole)/2]), "the file is cut short"},
		"half a header": {put("header.gguf", whole[:100]), "the file is cut short"},
		"corrupt":       {put("corrupt.gguf", corrupt), "the file is damaged"},
	}
}

func TestInspect(t *testing.T) {
	alone(t)
	path := llamatest.Write(t, randmodel.Small("llama"))
	for name, args := range map[string][]string{"flag": {"inspect", "-m", path}, "argument": {"inspect", path}} {
		t.Run(name, func(t *testing.T) {
			code, out, errOut := runGallop(args...)
			require.Equal(t, exitOK, code, errOut)
			require.Empty(t, errOut)
			require.Contains(t, out, "architecture    llama\n")
			require.Contains(t, out, "    7  █")
			require.NotContains(t, out, "\x1b", "no colours away from a terminal")
		})
	}
	t.Run("environment", func(t *testing.T) {
		t.Setenv("GALLOP_MODEL", path)
		code, out, _ := runGallop("inspect")
		require.Equal(t, exitOK, code)
		require.Contains(t, out, path)
		code, _, errOut := runGallop("inspect", "/none.gguf")
		require.Equal(t, exitError, code)
		require.Contains(t, errOut, "there is no file /none.gguf")
	})
}

func TestInspectDemo(t *testing.T) {
	alone(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	code, out, errOut := runGallop("inspect", "--json")
	require.Equal(t, exitOK, code, errOut)
	var m inspect.Model
	require.NoError(t, json.Unmarshal([]byte(out), &m))
	require.Equal(t, "llama", m.Architecture)
	require.Contains(t, m.Name, "Gallop")
	require.Len(t, m.Heads, len(m.Layers))

	code, out, errOut = runGallop("inspect", "--template")
	require.Equal(t, exitOK, code, errOut)
	require.Equal(t, m.ChatTemplate+"\n", out)
}

func TestInspectBadModels(t *testing.T) {
	alone(t)
	for name, bad := range badModels(t) {
		t.Run(name, func(t *testing.T) {
			code, out, errOut := runGallop("inspect", "-m", bad.path)
			require.Equal(t, exitError, code)
			require.Empty(t, out)
			require.Regexp(t, `^gallop: [^\n]+\n$`, errOut, "one sentence")
			require.Contains(t, errOut, bad.want)
		})
	}
}

func TestInspectUsage(t *testing.T) {
	alone(t)
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"two models":        {[]string{"inspect", "-m", "a", "b"}, "gallop: the model is named twice, a and b: leave one out\n"},
		"two arguments":     {[]string{"inspect", "a", "b"}, "gallop: `gallop inspect` takes one argument, the model, and not \"b\" too\n"},
		"json and template": {[]string{"inspect", "--json", "--template"}, "gallop: --json and --template exclude each other: the JSON has the template\n"},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, errOut := runGallop(test.args...)
			require.Equal(t, exitUsage, code)
			require.Equal(t, test.want, errOut)
		})
	}
}
