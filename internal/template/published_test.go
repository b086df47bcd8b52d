package template

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sort"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// rendered is what the reference made of a template and a conversation.
type rendered struct {
	Text  *string `json:"text"`
	Error string  `json:"error"`
}

// counts is how our renders compare with the reference's.
type counts struct {
	Templates     int `json:"templates"`
	Renders       int `json:"renders"`
	Equal         int `json:"equal"`
	RefusedByBoth int `json:"refused_by_both"`
	Errors        int `json:"errors"`    // ours, where the reference renders
	Different     int `json:"different"` // the texts differ, or the reference refuses what we render
}

// conversations are the variables that templates are rendered with, by name.
func conversations(t testing.TB) *Dict {
	data, err := os.ReadFile("testdata/conversations.json")
	require.NoError(t, err)
	v, err := FromJSON(data, true)
	require.NoError(t, err)
	return v.(*Dict)
}

// compareAll renders every template of a folder and compares with expected.json.
func compareAll(t *testing.T, folder string) (c counts) {
	data, err := os.ReadFile(filepath.Join(folder, "expected.json"))
	require.NoError(t, err)
	var expected map[string]map[string]rendered
	require.NoError(t, json.Unmarshal(data, &expected))
	all := conversations(t)
	var files []string
	for file := range expected {
		files = append(files, file)
	}
	sort.Strings(files)
	for _, file := range files {
		source, err := os.ReadFile(filepath.Join(folder, file))
		require.NoError(t, err)
		c.Templates++
		tmpl, parseErr := Parse(string(source))
		for i, key := range all.keys {
			name := key.(Text).s
			want, ok := expected[file][name]
			require.True(t, ok, "%s: no %s", file, name)
			c.Renders++
			var text Text
			err := parseErr
			if err == nil {
				text, err = renderAt(tmpl, all.values[i].(*Dict), time.Date(2026, 3, 5, 7, 8, 9, 0, time.UTC))
			}
			switch {
			case err != nil && want.Text == nil:
				c.RefusedByBoth++
			case err != nil:
				c.Errors++
				t.Errorf("%s, %s: %v", file, name, err)
			case want.Text == nil:
				c.Different++
				t.Errorf("%s, %s: rendered, where the reference says %s", file, name, want.Error)
			case text.s != *want.Text:
				c.Different++
				t.Errorf("%s, %s: %s", file, name, difference(text.s, *want.Text))
			default:
				c.Equal++
			}
			require.True(t, text.from == "" || len(text.from) == len(text.s))
		}
	}
	return c
}

// difference shows where two texts part.
func difference(got, want string) string {
	at := 0
	for at < len(got) && at < len(want) && got[at] == want[at] {
		at++
	}
	part := func(s string) string { return s[max(at-30, 0):min(at+40, len(s))] }
	g, _ := json.Marshal(part(got))
	w, _ := json.Marshal(part(want))
	return "got " + string(g) + ", want " + string(w)
}

// TestOwnTemplates compares templates that use what published ones use. make
// templates wrote what is expected, with the reference.
func TestOwnTemplates(t *testing.T) { require.NotZero(t, compareAll(t, "testdata").Equal) }

// TestPublishedTemplates compares the published templates in the folder that
// GALLOP_TEMPLATES names, and writes the figures beside it. It is run by make
// templates.
func TestPublishedTemplates(t *testing.T) {
	folder := os.Getenv("GALLOP_TEMPLATES")
	if folder == "" {
		t.Skip("make templates fetches them")
	}
	c := compareAll(t, folder)
	data, err := json.MarshalIndent(c, "", "  ")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Clean(folder)+".json", append(data, '\n'), 0o644))
	t.Logf("%s", data)
}
