package models

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Path is the file that a user means: a path that exists, or the model of this name.
// What is written as a path but is not there comes back as it is, for its reader to
// complain about. Errors are those of [Find].
func Path(name string) (string, error) {
	if _, err := os.Lstat(name); err == nil || isPath(name) {
		return name, nil
	}
	m, err := Find(name)
	if errors.Is(err, ErrUnknown) && isModel(name) {
		return name, nil
	}
	return m.Path, err
}

// isPath tells what cannot be a model's name.
func isPath(name string) bool {
	first, _, _ := strings.Cut(filepath.ToSlash(name), "/")
	return filepath.IsAbs(name) || slices.Contains([]string{".", "..", "~"}, first)
}

// names lists by what a model can be called, the most exact first: whole name,
// repository, file, and name and repository without their owner.
func (m Model) names() []string {
	_, name, owned := strings.Cut(m.Name, "/")
	_, repo, _ := strings.Cut(m.Repo, "/")
	if !owned {
		name, repo = m.Name, m.Repo
	}
	bare := repo // published repositories are called after the model and the format
	if len(bare) > len("-gguf") && strings.EqualFold(bare[len(bare)-len("-gguf"):], "-gguf") {
		bare = bare[:len(bare)-len("-gguf")]
	}
	return []string{m.Name, m.Repo, stem(m.Path), filepath.Base(m.Path), name, repo, bare, bare + ":" + m.Tag}
}

// Find looks a model up by its name, in upper or lower case, in all stores. The whole
// name counts more than a part of it, and an earlier store more than a later one. A
// repository alone means its Q4_K_M, else its Q8_0, or what Ollama calls latest. The
// error wraps [ErrUnknown], with the nearest names, [ErrAmbiguous] or [ErrMissing].
func Find(name string) (Model, error) {
	all := List()
	most := 0
	for _, m := range all {
		most = max(most, len(m.names()))
	}
	for tier := range most {
		var found []Model
		for _, m := range all {
			if called := m.names()[tier]; called != "" && strings.EqualFold(called, name) && (len(found) == 0 || found[0].Store == m.Store) {
				found = append(found, m)
			}
		}
		if len(found) > 0 {
			return choose(name, found)
		}
	}
	near := nearest(name, all)
	if len(near) > 0 {
		return Model{}, fmt.Errorf("%w: neither a file nor a model is called %q; similar names: %s", ErrUnknown, name, list(near, "and"))
	}
	return Model{}, fmt.Errorf("%w: neither a file nor a model is called %q; `gallop models` lists those that are here", ErrUnknown, name)
}

// choose takes one of the models that have a name.
func choose(name string, found []Model) (Model, error) {
	m := found[0]
	if len(found) > 1 {
		at := -1
		for _, tag := range []string{"latest", "Q4_K_M", "Q8_0"} {
			if at < 0 {
				at = slices.IndexFunc(found, func(m Model) bool { return strings.EqualFold(m.Tag, tag) })
			}
		}
		other := slices.ContainsFunc(found, func(other Model) bool { return other.Repo != m.Repo })
		if at < 0 || other {
			var names []string
			for _, m := range found {
				if names = append(names, m.Name); m.Repo == "" {
					names[len(names)-1] = m.Path
				}
			}
			return Model{}, fmt.Errorf("%w %q: write %s", ErrAmbiguous, name, list(names, "or"))
		}
		m = found[at]
	}
	if _, err := os.Stat(m.Path); err != nil {
		return Model{}, fmt.Errorf("%w: %s of %s is at %s, which cannot be read; fetch it again", ErrMissing, m.Name, m.Store, m.Path)
	}
	return m, nil
}

// mostNear is how many names an error lists.
const mostNear = 5

// list writes names as a sentence has them.
func list(names []string, last string) string {
	more := ""
	if len(names) > mostNear {
		more = fmt.Sprintf(" (and %d more)", len(names)-mostNear)
		names = names[:mostNear]
	}
	if len(names) == 1 {
		return names[0] + more
	}
	end := len(names) - 1
	return strings.Join(names[:end], ", ") + " " + last + " " + names[end] + more
}

// nearest lists names of models that have name in them, or that a few typing
// mistakes lead to.
func nearest(name string, all []Model) (near []string) {
	name = strings.ToLower(name)
	type candidate struct {
		name string
		far  int
	}
	var candidates []candidate
	for _, m := range all {
		far := len(name)
		for _, called := range m.names() {
			called = strings.ToLower(called)
			if strings.Contains(called, name) {
				far = 0
			}
			far = min(far, edits(called, name))
		}
		if far <= len(name)/3 && !slices.ContainsFunc(candidates, func(c candidate) bool { return c.name == m.Name }) {
			candidates = append(candidates, candidate{m.Name, far})
		}
	}
	slices.SortStableFunc(candidates, func(a, b candidate) int { return a.far - b.far })
	for _, c := range candidates[:min(len(candidates), mostNear)] {
		near = append(near, c.name)
	}
	return near
}

// edits is how many bytes must be put in, taken out or changed to make a into b.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for i := range row {
		row[i] = i
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, diagonal+1, row[j]+1)
		}
	}
	return row[len(b)]
}
