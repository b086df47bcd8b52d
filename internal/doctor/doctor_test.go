package doctor

import (
	"bytes"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
)

func TestExamine(t *testing.T) {
	llamatest.Library(t)
	r := Examine("/nowhere/config.toml", "")
	require.True(t, r.OK)
	require.Equal(t, llama.Dir(), r.Library)
	require.Equal(t, llama.Version(), r.Version)
	require.Regexp(t, `^libggml-cpu-\w+\.so$`, r.CPUModule)
	require.NotEmpty(t, r.CPUFeatures)
	require.NotEmpty(t, r.Devices)
	require.Positive(t, r.MemoryFree)
	require.Greater(t, r.MemoryTotal, r.MemoryFree)
	require.Contains(t, r.Checks, Check{Name: "configuration", Status: Note, Text: "none; it would be /nowhere/config.toml"})
	require.Contains(t, r.Checks, Check{Name: "masks", Status: OK, Text: "layers can be skipped"})
	require.Contains(t, r.Checks, Check{Name: "shortlist", Status: Note,
		Text: "none: a vocabulary of 2048 tokens is too small to gain from one (demo model)"})
}

func TestExamineModel(t *testing.T) {
	llamatest.Library(t)
	path, err := demo.Path()
	require.NoError(t, err)
	r := Examine("", path)
	require.True(t, r.OK)
	require.Equal(t, path, r.Model.Path)
	require.Positive(t, r.Model.Released)
	require.Greater(t, r.Model.Bytes, 2*r.Model.Released, "its deepest sets skip about a third")
	require.Contains(t, r.Checks, Check{Name: "model", Status: OK,
		Text: "5.3 MiB of weights; with --release-skipped the deepest set of its profile needs 3.8 MiB of them"})

	r = Examine("", llamatest.Tiny(t, 2))
	require.True(t, r.OK)
	require.Positive(t, r.Model.Bytes)
	require.Zero(t, r.Model.Released, "it has no profile")

	spec := randmodel.Small("llama")
	spec.Vocab = 1 << 14
	r = Examine("", llamatest.Write(t, spec))
	at := slices.IndexFunc(r.Checks, func(c Check) bool { return c.Name == "shortlist" })
	require.GreaterOrEqual(t, at, 0)
	require.Contains(t, r.Checks[at].Text, "will be learnt")

	r = Examine("", filepath.Join(t.TempDir(), "none.gguf"))
	require.False(t, r.OK)
	require.Nil(t, r.Model)
}

func TestExamineWithoutHome(t *testing.T) {
	t.Setenv("HOME", "")
	t.Setenv("XDG_CACHE_HOME", "")
	dir := t.TempDir()
	t.Setenv(llama.EnvLibrary, dir)
	r := Examine("", "")
	require.False(t, r.OK)
	require.Equal(t, Check{Name: "libraries", Status: Missing, Fix: "unset GALLOP_LIB",
		Text: "GALLOP_LIB names " + dir + ", which has no llama.cpp libraries"}, r.Checks[0])
	require.Contains(t, r.Checks, Check{Name: "cache", Status: Note, Text: "there is no place for it", Fix: "set HOME or XDG_CACHE_HOME"})
}

func TestCPUModule(t *testing.T) {
	require.Equal(t, "libggml-cpu-zen4.so", cpuModule(`7f00-7f01 r-xp 00000000 08:01 42   /lib/libggml-base.so
7f02-7f03 r-xp 00000000 08:01 43   /lib/x y/libggml-cpu-zen4.so
7f04-7f05 rw-p 00000000 00:00 0    [heap]
`))
	require.Empty(t, cpuModule(""))
}

func TestFeatures(t *testing.T) {
	require.Equal(t, []string{"SSE3", "AVX2"}, features("CPU : SSE3 = 1 | AVX512 = 0 | AVX2 = 1 | "))
	require.Empty(t, features(""))
}

func TestWriteText(t *testing.T) {
	r := &Report{OK: true}
	r.add("libraries", OK, "", "%s", "/lib")
	require.True(t, r.OK)
	r.add("GPU", Note, "gallop setup --device vulkan", "none in use")
	require.True(t, r.OK)
	r.add("masks", Missing, "gallop setup", "none")
	require.False(t, r.OK)
	var b bytes.Buffer
	require.NoError(t, r.WriteText(&b))
	require.Equal(t, `✓ libraries      /lib
· GPU            none in use
                 → gallop setup --device vulkan
✗ masks          none
                 → gallop setup
`, b.String())
}
