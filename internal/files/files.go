// Package files writes files that are there whole or not at all.
package files

import (
	"os"
	"path/filepath"
)

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
