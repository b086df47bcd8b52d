package npm

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// Bounds of what [Unpack] writes.
const (
	mostFiles = 10_000
	mostBytes = 8 << 30
)

// ErrArchive is returned for an archive that is damaged, or has what no package has.
var ErrArchive = errors.New("not an archive of a package")

// Unpack writes the files of a package's archive below dir, which is there and empty.
// Files keep their names without the folder that holds them all; links, and names that lead
// out of dir, are refused. Errors: [ErrArchive], or the system's.
func Unpack(archive io.Reader, dir string) error {
	root, err := os.OpenRoot(dir) // nothing leads out of it
	if err != nil {
		return err
	}
	defer root.Close()
	unzipped, err := gzip.NewReader(archive)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrArchive, err)
	}
	left := int64(mostBytes)
	files := tar.NewReader(unzipped)
	for range mostFiles {
		header, err := files.Next()
		switch {
		case errors.Is(err, io.EOF):
			_, err := io.Copy(io.Discard, unzipped) // reads the checksum at its end
			return asArchive(err)
		case err != nil:
			return asArchive(err)
		case header.Typeflag == tar.TypeDir, header.Typeflag == tar.TypeXGlobalHeader:
			continue
		case header.Typeflag != tar.TypeReg:
			return fmt.Errorf("%w: %q is no file", ErrArchive, header.Name)
		}
		_, name, _ := strings.Cut(path.Clean(header.Name), "/")
		if strings.Contains(header.Name, `\`) || strings.Contains("/"+header.Name+"/", "/../") || !filepath.IsLocal(name) {
			return fmt.Errorf("%w: it has the name %q", ErrArchive, header.Name)
		}
		if left -= header.Size; left < 0 {
			return fmt.Errorf("%w: it has more than %d bytes", ErrArchive, int64(mostBytes))
		}
		if err := write(root, name, header.FileInfo().Mode()&0o111 != 0, files); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: it has more than %d files", ErrArchive, mostFiles)
}

func asArchive(err error) error {
	if err != nil {
		return fmt.Errorf("%w: %w", ErrArchive, err)
	}
	return nil
}

// write makes one file of what r gives.
func write(root *os.Root, name string, program bool, r io.Reader) (err error) {
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	mode := os.FileMode(0o644)
	if program {
		mode = 0o755
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%w: it has %q twice", ErrArchive, name)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err = io.Copy(f, r); err != nil {
		if local := (*os.PathError)(nil); errors.As(err, &local) {
			return err
		}
		return asArchive(err)
	}
	return nil
}
