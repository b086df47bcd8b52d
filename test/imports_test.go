// Package test checks what holds for the project as a whole.
package test

import (
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// module is the project's import path.
const module = "github.com/gallop-llm/gallop"

// floors are the project's packages, the lowest first; "." is the root package. A
// package stands for those below its folder too. Imports go down: a package knows
// only packages of lower floors, and those that the same name here stands for.
var floors = [][]string{
	{"internal/files", "internal/machine", "internal/schema", "internal/stats", "internal/threads", "internal/template", "internal/realmodel", "third_party"},
	{"skip", "gguf", "demo", "internal/tools", "internal/download"},
	{"llama", "internal/npm", "internal/prune", "internal/models", "internal/randmodel"},
	{"libs", "router", "internal/kv", "internal/dataset", "internal/search", "internal/preload", "internal/archmodel", "internal/learnt"},
	{"internal/costs", "internal/practice", "internal/routertest"},
	{"internal/draft", "internal/score", "internal/shortlist", "internal/neurons", "internal/train", "internal/inspect", "internal/llamatest"},
	{"internal/engine", "internal/gbnftest"},
	{"."},
	{"internal/batch"},
	{"server", "internal/server", "calibrate", "internal/calibrate", "internal/lab", "internal/doctor"},
	{"cmd", "scripts", "demo/measure"},
}

// place finds the name in [floors] that stands for a package, the longest that fits;
// "" = none does.
func place(pkg string) (floor int, name string) {
	for f, names := range floors {
		for _, n := range names {
			if (pkg == n || strings.HasPrefix(pkg, n+"/")) && len(n) > len(name) {
				floor, name = f, n
			}
		}
	}
	return floor, name
}

// check tells what is wrong with a package's imports. Both are paths inside the
// project, "." for the root; imports of other modules are left out.
func check(pkg string, imports []string) error {
	from, name := place(pkg)
	if name == "" {
		return fmt.Errorf("%s has no floor: put it into the list in test/imports_test.go", pkg)
	}
	var wrong []error
	for _, other := range imports {
		to, otherName := place(other)
		switch {
		case pkg == "skip":
			wrong = append(wrong, fmt.Errorf("skip imports %s: it must import nothing of the project", other))
		case to >= from && otherName != name:
			wrong = append(wrong, fmt.Errorf("%s (floor %d) imports %s (floor %d): imports go down", pkg, from, other, to))
		}
	}
	return errors.Join(wrong...)
}

// inside turns an import path into one inside the project; ok is false for others.
func inside(path string) (pkg string, ok bool) {
	if path == module {
		return ".", true
	}
	return strings.CutPrefix(path, module+"/")
}

// sources gives the imports of every package of the project, those of files for other
// systems too, without those of its tests. They are read here, not by `go list`, so that
// go's test cache knows what this test depends on.
func sources(t *testing.T) map[string][]string {
	t.Helper()
	packages := map[string][]string{}
	root := ".."
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir():
			name := entry.Name()
			if path != root && (name == "build" || name == "testdata" || name == "node_modules" || name[0] == '.' || name[0] == '_') {
				return fs.SkipDir
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && path != root {
				return fs.SkipDir // a module of its own
			}
			return nil
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		pkg := filepath.ToSlash(dir)
		imports := packages[pkg]
		for _, spec := range file.Imports {
			imported, _ := strconv.Unquote(spec.Path.Value) // the parser has seen it
			imports = append(imports, imported)
		}
		packages[pkg] = imports // none is known too
		return err
	})
	require.NoError(t, err)
	return packages
}

// TestImports looks at every package's imports. Tests may import what they like.
func TestImports(t *testing.T) {
	packages := sources(t)
	require.Contains(t, packages, "cmd/gallop")
	for pkg, all := range packages {
		var imports []string
		for _, path := range all {
			if other, ok := inside(path); ok {
				imports = append(imports, other)
			}
		}
		if err := check(pkg, imports); err != nil {
			t.Error(err)
		}
		if slices.Contains(all, "C") && pkg != "llama" {
			t.Errorf("%s uses cgo: only llama may", pkg)
		}
	}
}

func TestUpwardImportsAreFound(t *testing.T) {
	for _, down := range [][2]string{
		{"llama", "skip"}, {"libs", "llama"}, {"internal/engine", "internal/kv"}, {".", "internal/engine"},
		{"internal/server", "."}, {"internal/server/openai", "internal/server"}, {"internal/lab/bench", "internal/lab/report"},
		{"cmd/gallop", "internal/lab/bench"}, {"demo/measure", "demo"},
	} {
		require.NoError(t, check(down[0], down[1:]))
	}
	for _, up := range [][2]string{
		{"skip", "llama"}, {"skip", "internal/files"}, {"gguf", "skip"}, {"llama", "router"}, {"router", "libs"},
		{"internal/engine", "."}, {"internal/draft", "internal/lab/report"}, {".", "internal/server"},
		{"internal/server", "cmd/gallop"}, {"internal/calibrate", "internal/lab/bench"}, {"demo", "demo/measure"},
		{"internal/unheard", "skip"},
	} {
		require.Error(t, check(up[0], up[1:]), "%s imports %s", up[0], up[1])
	}
}
