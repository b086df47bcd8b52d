package libs

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrDamaged is returned for libraries that were changed, cut off or removed after they
// were fetched. [Install] fetches them anew.
var ErrDamaged = errors.New("llama.cpp's libraries are damaged")

// listName is the file, beside the lock file, that tells what was fetched.
const listName = "gallop-files.json"

// entry is a file as it was fetched.
type entry struct {
	Size   int64  `json:"size"`   // in bytes
	SHA256 string `json:"sha256"` // in hexadecimal
}

// writeList notes what lies in the folder of a package that was just fetched.
func writeList(dir string) error {
	list := map[string]entry{}
	err := filepath.WalkDir(filepath.Join(dir, "node_modules"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		sum, size, err := hash(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		list[filepath.ToSlash(name)] = entry{size, sum}
		return err
	})
	if err != nil {
		return err
	}
	text, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, listName), text, 0o644)
}

func hash(path string) (sum string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	size, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), size, err
}

// Verify returns the folder of a device's libraries after it has read all of them, "" when
// none were fetched. The error is [ErrDamaged], with the file.
func Verify(device string) (dir string, err error) { return check(device, true) }

// check is [Verify]; without reading it looks at names and sizes alone.
func check(device string, reads bool) (dir string, err error) {
	root, err := folder(device)
	if err != nil {
		return "", nil
	}
	if _, err := os.Stat(root); err != nil {
		return "", nil
	}
	text, err := os.ReadFile(filepath.Join(root, listName))
	var list map[string]entry
	if err == nil {
		err = json.Unmarshal(text, &list)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist): // earlier versions made none
		err = checkUnlisted(device)
	case err != nil:
		err = fmt.Errorf("%w: %s: %w", ErrDamaged, listName, err)
	default:
		err = checkListed(root, list, reads)
	}
	if err != nil {
		return "", err
	}
	found := libraries(device, named("ggml*"))
	if len(found) == 0 {
		return "", fmt.Errorf("%w: there are none in %s", ErrDamaged, root)
	}
	return filepath.Dir(found[0]), nil
}

func checkListed(root string, list map[string]entry, reads bool) error {
	for name, want := range list {
		path := filepath.Join(root, filepath.FromSlash(name))
		info, err := os.Stat(path)
		switch {
		case err != nil:
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		case info.Size() != want.Size:
			return fmt.Errorf("%w: %s has %d bytes, not %d", ErrDamaged, path, info.Size(), want.Size)
		case !reads:
			continue
		}
		if sum, _, err := hash(path); err != nil || sum != want.SHA256 {
			return errors.Join(fmt.Errorf("%w: %s has another content than was fetched", ErrDamaged, path), err)
		}
	}
	return nil
}

// checkUnlisted looks for the libraries that loading needs.
func checkUnlisted(device string) error {
	patterns := []string{named("ggml*")}
	if device == DefaultDevice() {
		patterns = append(patterns, named("llama.*"), named("ggml.*"), named("ggml-base.*"))
	}
	for _, pattern := range patterns {
		found := libraries(device, pattern)
		if len(found) == 0 {
			return fmt.Errorf("%w: %s is missing", ErrDamaged, pattern)
		}
		for _, path := range found {
			if info, err := os.Stat(path); err != nil || info.Size() == 0 {
				return errors.Join(fmt.Errorf("%w: %s is empty", ErrDamaged, path), err)
			}
		}
	}
	return nil
}
