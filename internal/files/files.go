// Package files writes files that are there whole or not at all, and reads text
// that other programs wrote.
package files

import (
	"errors"
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
	if !utf8.Valid(data) {
		return "", ErrEncoding
	}
	return strings.TrimPrefix(string(data), "\ufeff"), nil
}

// Write puts data into a temporary file in path's folder, which then takes the
// name path. After an error path is as it was, and nothing is left behind.
func Write(path string, data []byte) error {
	temp, err := os.CreateTemp(filepath.Dir(path), ".gallop-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(data)
	if closeErr := temp.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = os.Chmod(temp.Name(), 0o644) // temporary files are private
	}
	if err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}
