package test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"
)

var (
	link   = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	title  = regexp.MustCompile(`(?m)^#+ (.*)$`)
	fenced = regexp.MustCompile("(?ms)^```.*?^```$|`[^`\n]*`")
)

// anchor is the name that a title gets in the pages that are made of Markdown.
func anchor(title string) string {
	var name strings.Builder
	for _, r := range strings.ToLower(title) {
		switch {
		case r == ' ':
			name.WriteRune('-')
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			name.WriteRune(r)
		}
	}
	return name.String()
}

// broken lists the relative links of a Markdown text in dir that lead nowhere.
func broken(dir, text string) (links []string) {
	for _, m := range link.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
		target := m[1]
		if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
			continue
		}
		path, section, _ := strings.Cut(target, "#")
		linked := []byte(text)
		if path != "" {
			var err error
			if linked, err = os.ReadFile(filepath.Join(dir, path)); err != nil {
				info, err := os.Stat(filepath.Join(dir, path))
				if err != nil || !info.IsDir() {
					links = append(links, target)
					continue
				}
			}
		}
		found := section == ""
		for _, t := range title.FindAllStringSubmatch(string(linked), -1) {
			found = found || anchor(t[1]) == section
		}
		if !found {
			links = append(links, target)
		}
	}
	return links
}

// TestLinksResolve finds each file and each section that a document links to.
func TestLinksResolve(t *testing.T) {
	checked := 0
	require.NoError(t, filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if name := entry.Name(); err == nil && entry.IsDir() && (name == "build" || name == "node_modules" || len(name) > 2 && name[0] == '.') {
			return filepath.SkipDir
		}
		if err != nil || filepath.Ext(path) != ".md" {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		checked++
		if links := broken(filepath.Dir(path), string(text)); links != nil {
			t.Errorf("%s has links that lead nowhere: %s", path, strings.Join(links, ", "))
		}
		return nil
	}))
	require.Positive(t, checked)
	require.Equal(t, []string{"none.md", "#no-title", "links_test.go#no"}, broken(".",
		"# A title\n[a](none.md) [b](#no-title) [c](#a-title) [d](links_test.go) [e](links_test.go#no) `[f](g.md)`\n"))
}
