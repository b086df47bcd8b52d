package npm

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// pack makes an archive of files; each holds its own name.
func pack(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var data bytes.Buffer
	zipped := gzip.NewWriter(&data)
	files := tar.NewWriter(zipped)
	for _, h := range headers {
		if h.Typeflag == 0 {
			h.Typeflag, h.Size = tar.TypeReg, int64(len(h.Name))
		}
		require.NoError(t, files.WriteHeader(&h))
		if h.Typeflag == tar.TypeReg {
			_, err := files.Write([]byte(h.Name))
			require.NoError(t, err)
		}
	}
	require.NoError(t, files.Close())
	require.NoError(t, zipped.Close())
	return data.Bytes()
}

func TestUnpack(t *testing.T) {
	dir := t.TempDir()
	data := pack(t, tar.Header{Name: "package/LICENSE", Mode: 0o600}, tar.Header{Name: "package/bins/any/run", Mode: 0o777},
		tar.Header{Name: "package/bins/empty/", Typeflag: tar.TypeDir})
	require.NoError(t, Unpack(bytes.NewReader(data), dir))
	text, err := os.ReadFile(filepath.Join(dir, "bins", "any", "run"))
	require.NoError(t, err)
	require.Equal(t, "package/bins/any/run", string(text))
	for name, mode := range map[string]fs.FileMode{"LICENSE": 0o644, "bins/any/run": 0o755} {
		info, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode())
	}
}

func TestUnpackRefuses(t *testing.T) {
	good := pack(t, tar.Header{Name: "package/a"}, tar.Header{Name: "package/b"})
	damaged := bytes.Clone(good)
	damaged[len(damaged)-6] ^= 1 // of the checksum
	for name, data := range map[string][]byte{
		"no gzip":       []byte("hello"),
		"nothing":       nil,
		"cut":           good[:len(good)-20],
		"damaged":       damaged,
		"up":            pack(t, tar.Header{Name: "package/../../evil"}),
		"up in the end": pack(t, tar.Header{Name: "package/a/.."}),
		"backslash":     pack(t, tar.Header{Name: `package/..\evil`}),
		"no folder":     pack(t, tar.Header{Name: "evil"}),
		"symbolic link": pack(t, tar.Header{Name: "package/a", Typeflag: tar.TypeSymlink, Linkname: "/etc"}),
		"hard link":     pack(t, tar.Header{Name: "package/a", Typeflag: tar.TypeLink, Linkname: "/etc/passwd"}),
		"device":        pack(t, tar.Header{Name: "package/a", Typeflag: tar.TypeChar}),
		"twice":         pack(t, tar.Header{Name: "package/a"}, tar.Header{Name: "package/a"}),
		"too large":     append(oversized(t), 0),
	} {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			dir := filepath.Join(parent, "deep", "dir")
			require.NoError(t, os.MkdirAll(dir, 0o755))
			require.ErrorIs(t, Unpack(bytes.NewReader(data), dir), ErrArchive)
			require.NoFileExists(t, filepath.Join(parent, "evil"))
			require.NoFileExists(t, filepath.Join(parent, "deep", "evil"))
		})
	}
}

// oversized announces a file that is larger than any package.
func oversized(t *testing.T) []byte {
	t.Helper()
	var data bytes.Buffer
	zipped := gzip.NewWriter(&data)
	require.NoError(t, tar.NewWriter(zipped).WriteHeader(&tar.Header{Name: "package/a", Typeflag: tar.TypeReg, Size: mostBytes + 1}))
	require.NoError(t, zipped.Close())
	return data.Bytes()
}

func FuzzUnpack(f *testing.F) {
	f.Add(pack(f, tar.Header{Name: "package/LICENSE", Mode: 0o600}, tar.Header{Name: "package/../b"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		parent := t.TempDir()
		dir := filepath.Join(parent, "dir")
		require.NoError(t, os.Mkdir(dir, 0o755))
		_ = Unpack(bytes.NewReader(data), dir)
		entries, err := os.ReadDir(parent)
		require.NoError(t, err)
		require.Len(t, entries, 1, "nothing leaves the folder")
	})
}
