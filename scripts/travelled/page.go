package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/gallop-llm/gallop/internal/files"
)

// Where the table stands in the document.
const begin, end = "<!-- travelled: make travel -->\n", "<!-- end -->"

// readRows reads rows of a file.
func readRows(path string) (rows []row, err error) {
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &rows)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return rows, nil
}

// writePage adds the rows of files to those in kept, in place of earlier ones of the same
// model and quantisation, and puts the table of all into a document.
func writePage(document, kept string, paths []string) error {
	rows, err := readRows(kept)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, path := range paths {
		some, err := readRows(path)
		if err != nil {
			return err
		}
		rows = slices.DeleteFunc(rows, func(r row) bool {
			return slices.ContainsFunc(some, func(s row) bool { return s.Model == r.Model && s.Quantisation == r.Quantisation })
		})
		rows = append(rows, some...)
	}
	if err := writeRows(kept, rows); err != nil {
		return err
	}
	text, err := os.ReadFile(document)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no place for the table: %q and %q", document, begin, end)
	}
	return files.Write(document, []byte(before+begin+table(rows)+end+after))
}

// writeRows writes rows to a file.
func writeRows(path string, rows []row) error {
	data, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	return files.Write(path, append(data, '\n'))
}

// table shows rows in Markdown, probabilities and shares in %.
func table(rows []row) string {
	var b strings.Builder
	b.WriteString("| model | quantisation | questions | way | layers skipped | kept probability, %: own | Q8_0's | difference | right, %: whole model | own | Q8_0's |\n")
	b.WriteString("|---|---|--:|---|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %s | %d | %s | %.2f | %.1f | %.1f | %+.1f (%+.1f to %+.1f) | %.1f | %.1f | %.1f |\n",
			r.Model, r.Quantisation, r.Questions, r.Way, r.Travelled.Skipped, 100*r.Own.Kept, 100*r.Travelled.Kept,
			100*r.Kept.Mean+0, 100*r.Kept.Low+0, 100*r.Kept.High+0, // no -0
			100*r.Whole, 100*r.Own.Right, 100*r.Travelled.Right)
	}
	return b.String()
}
