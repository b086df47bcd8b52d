// Package files writes files that are there whole or not at all, and reads text
// that other programs wrote.
package files

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// ErrEncoding is returned for bytes that are no UTF-8.
var ErrEncoding = errors.New("is not UTF-8 text: save it as UTF-8")

// Text is data as text, without the byte order mark that some programs put in
// front. The error is [ErrEncoding].
func Text(data []byte) (string, error) {
	if !utf8.Valid(data) || isUTF16(data) {
		return "", ErrEncoding
	}
	return strings.TrimPrefix(string(data), "\ufeff"), nil
}

// isUTF16 tells whether data is UTF-16 or UTF-32 of mostly ASCII, which is valid UTF-8: at
// least every second byte is zero.
func isUTF16(data []byte) bool {
	return len(data) >= 4 && bytes.Count(data, []byte{0}) >= len(data)/2
}

// Write puts data into a temporary file in path's folder, which then takes the
// name path. After an error path is as it was, and nothing is left behind; after a loss
// of power path has the old data or the new.
func Write(path string, data []byte) error { return write(path, data, 0o644) }

// WritePrivate is [Write] for what only the user may read.
func WritePrivate(path string, data []byte) error { return write(path, data, 0o600) }

func write(path string, data []byte, mode fs.FileMode) error {
	temp, err := os.CreateTemp(filepath.Dir(path), ".gallop-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	if _, err = temp.Write(data); err == nil {
		err = temp.Sync() // a name must not come to the disk before its data
	}
	if closeErr := temp.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Chmod(temp.Name(), mode) // temporary files are private
	}
	if err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}
