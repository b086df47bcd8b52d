package gguf

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
)

// partName is how llama.cpp names the parts of a split model.
var partName = regexp.MustCompile(`^(.+)-(\d{5})-of-(\d{5})\.gguf$`)

// PartName takes the name or path of a split model's part apart: of
// "a-00002-of-00003.gguf" it is part 2 of the 3 of "a". ok is false for other names.
func PartName(name string) (stem string, part, parts int, ok bool) {
	found := partName.FindStringSubmatch(name)
	if found == nil {
		return "", 0, 0, false
	}
	for i, n := range map[int]*int{2: &part, 3: &parts} {
		for _, digit := range found[i] {
			*n = 10**n + int(digit-'0')
		}
	}
	return found[1], part, parts, true
}

// Stem is a model's path without ".gguf", and of a split model without the number
// of its part.
func Stem(path string) string {
	if stem, _, _, ok := PartName(path); ok {
		return stem
	}
	return strings.TrimSuffix(path, ".gguf")
}

// partPath is the path of a part, counted from 0.
func partPath(stem string, part, parts uint64) string {
	return fmt.Sprintf("%s-%05d-of-%05d.gguf", stem, part+1, parts)
}

// openParts opens the other parts of a split model and adds their tensors. It asks
// what llama.cpp asks: names that follow the pattern, parts in order, each tensor once.
func (f *File) openParts() error {
	parts, part := f.split()
	if parts < 2 {
		return nil
	}
	stem, number, of, named := PartName(f.Path)
	named = named && uint64(number) == part+1 && uint64(of) == parts
	switch {
	case part > 0 && named:
		return fmt.Errorf("%s: %w: name the model by its first part, %s", f.Path, ErrPart, partPath(filepath.Base(stem), 0, parts))
	case part > 0:
		return fmt.Errorf("%s: %w, number %d of %d: name the model by its first part", f.Path, ErrPart, part+1, parts)
	case !named:
		return fmt.Errorf("%s: %w, the first of %d: the others are looked for by name, so give this one its own back, as in %s",
			f.Path, ErrPart, parts, partPath("model", 0, parts))
	}
	seen := map[string]bool{}
	for _, t := range f.Tensors {
		seen[t.Name] = true
	}
	for i := uint64(1); i < parts; i++ {
		path := partPath(stem, i, parts)
		next, err := openOne(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%s: part %d of %d is missing, %s: fetch it into the same folder (%w)", f.Path, i+1, parts, filepath.Base(path), fs.ErrNotExist)
		case err != nil:
			return fmt.Errorf("part %d of %d: %w", i+1, parts, err)
		}
		f.parts = append(f.parts, next)
		if n, no := next.split(); n != parts || no != i {
			return fmt.Errorf("%s: %w: it says that it is part %d of %d, but its name says %d of %d; fetch it again", path, ErrCorrupt, no+1, n, i+1, parts)
		}
		for _, t := range next.Tensors {
			if seen[t.Name] {
				return fmt.Errorf("%s: %w: tensor %q is in another part too; fetch all parts of one version", path, ErrCorrupt, t.Name)
			}
			seen[t.Name] = true
			t.Part = int(i)
			f.Tensors = append(f.Tensors, t)
		}
		f.Size += next.Size
	}
	if want, err := f.Metadata.Uint(KeySplitTensors); err == nil && want != uint64(len(f.Tensors)) {
		return fmt.Errorf("%s: %w: its parts have %d tensors, not %d; fetch all parts of one version", f.Path, ErrCorrupt, len(f.Tensors), want)
	}
	return nil
}

// split gives the number of parts that the model has, 0 when it is whole, and which
// of them this one is, from 0.
func (f *File) split() (parts, part uint64) {
	parts, err := f.Metadata.Uint(KeySplitCount)
	if err != nil {
		return 0, 0
	}
	part, _ = f.Metadata.Uint(KeySplitNo)
	return parts, part
}
