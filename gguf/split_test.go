package gguf_test

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/randmodel"
)

// tiny writes a small model and returns its path.
func tiny(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "model.gguf")
	require.NoError(t, randmodel.Write(path, randmodel.Tiny(3)))
	return path
}

// split copies a model into several files and returns the first one's path.
func split(t *testing.T, src string, parts int) string {
	t.Helper()
	path, err := randmodel.Split(src, t.TempDir(), parts)
	require.NoError(t, err)
	return path
}

// TestSplitModelIsOne compares a split model with the whole one, tensor by tensor.
func TestSplitModelIsOne(t *testing.T) {
	src := tiny(t)
	whole, err := gguf.Open(src)
	require.NoError(t, err)
	defer whole.Close()
	for _, parts := range []int{1, 2, 3, 7} {
		path := split(t, src, parts)
		f, err := gguf.Open(path)
		require.NoError(t, err)
		require.Len(t, f.Paths(), parts)
		require.Len(t, f.Tensors, len(whole.Tensors))
		size := int64(0)
		for _, part := range f.Paths() {
			info, err := os.Stat(part)
			require.NoError(t, err)
			size += info.Size()
		}
		require.Equal(t, size, f.Size)
		for i, want := range whole.Tensors {
			got := f.Tensors[i]
			require.Equal(t, want.Name, got.Name)
			data, err := io.ReadAll(f.Reader(got))
			require.NoError(t, err)
			original, err := io.ReadAll(whole.Reader(want))
			require.NoError(t, err)
			require.Equal(t, original, data, got.Name)
			in, err := os.ReadFile(f.Paths()[got.Part])
			require.NoError(t, err)
			require.Equal(t, original, in[f.Place(got):][:got.Size], "the place is in that part's own file")
		}
		require.NoError(t, f.Close())
		require.NoError(t, f.Close())
	}
}

func TestSplitRefuses(t *testing.T) {
	src := tiny(t)
	for name, c := range map[string]struct {
		spoil func(part func(n int) string) (open string)
		kind  error
		want  string
	}{
		"second part": {func(part func(int) string) string { return part(2) }, gguf.ErrPart,
			"name the model by its first part, model-00001-of-00002.gguf"},
		"missing": {func(part func(int) string) string {
			require.NoError(t, os.Remove(part(2)))
			return part(1)
		}, fs.ErrNotExist, "part 2 of 2 is missing, model-00002-of-00002.gguf: fetch it into the same folder"},
		"cut short": {func(part func(int) string) string {
			require.NoError(t, os.Truncate(part(2), 300))
			return part(1)
		}, gguf.ErrTruncated, "part 2 of 2: "},
		"renamed": {func(part func(int) string) string {
			path := filepath.Join(filepath.Dir(part(1)), "mine.gguf")
			require.NoError(t, os.Rename(part(1), path))
			return path
		}, gguf.ErrPart, "give this one its own back, as in model-00001-of-00002.gguf"},
		"renamed second": {func(part func(int) string) string {
			path := filepath.Join(filepath.Dir(part(1)), "mine.gguf")
			require.NoError(t, os.Rename(part(2), path))
			return path
		}, gguf.ErrPart, "number 2 of 2: name the model by its first part"},
		"the first again": {func(part func(int) string) string {
			data, err := os.ReadFile(part(1))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(part(2), data, 0o644))
			return part(1)
		}, gguf.ErrCorrupt, "it says that it is part 1 of 2, but its name says 2 of 2"},
		"of another model": {func(part func(int) string) string {
			data, err := os.ReadFile(split(t, src, 3))
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(part(2), data, 0o644))
			return part(1)
		}, gguf.ErrCorrupt, "it says that it is part 1 of 3"},
		"another version": {func(part func(int) string) string {
			f, err := gguf.Open(src)
			require.NoError(t, err)
			defer f.Close()
			meta := gguf.Metadata{{Key: gguf.KeySplitNo, Value: uint16(1)}, {Key: gguf.KeySplitCount, Value: uint16(2)}}
			require.NoError(t, gguf.Write(t.Context(), part(2), meta, []gguf.Source{f.Copy(f.Tensors[0])}, nil))
			return part(1)
		}, gguf.ErrCorrupt, "is in another part too"},
		"too few tensors": {func(part func(int) string) string {
			meta := gguf.Metadata{{Key: gguf.KeySplitNo, Value: uint16(1)}, {Key: gguf.KeySplitCount, Value: uint16(2)}}
			require.NoError(t, gguf.Write(t.Context(), part(2), meta, nil, nil))
			return part(1)
		}, gguf.ErrCorrupt, "fetch all parts of one version"},
	} {
		t.Run(name, func(t *testing.T) {
			first := split(t, src, 2)
			path := c.spoil(func(n int) string { return strings.Replace(first, "00001-of", "0000"+string(rune('0'+n))+"-of", 1) })
			_, err := gguf.Open(path)
			require.ErrorIs(t, err, c.kind)
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestPartName(t *testing.T) {
	stem, part, parts, ok := gguf.PartName("/a/b-00002-of-00013.gguf")
	require.True(t, ok)
	require.Equal(t, "/a/b", stem)
	require.Equal(t, []int{2, 13}, []int{part, parts})
	for path, stem := range map[string]string{
		"a.gguf": "a", "/m/a-00001-of-00003.gguf": "/m/a", "a-1-of-3.gguf": "a-1-of-3", "sha256-12": "sha256-12", "-00001-of-00002.gguf": "-00001-of-00002",
	} {
		require.Equal(t, stem, gguf.Stem(path))
	}
}
