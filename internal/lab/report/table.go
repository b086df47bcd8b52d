package report

import (
	"cmp"
	"fmt"
	"io"
	"strings"
)

// Column describes a column of a table.
type Column struct {
	Name string
	Left bool // flush left, as words are; figures are flush right
	Max  int  // columns of the terminal that a cell may take before it is cut; 0 = any
}

// BestMark ends a cell that is the best of its group. [Markdown] sets such cells
// in bold; [Table] keeps the mark, and lines the cells up as if it were not there.
const BestMark = " *"

// columnGap is between the columns of a table.
const columnGap = "  "

// Table writes rows below the names of their columns, lined up. A nil row leaves
// a line free between groups. The error wraps [ErrShape] for a row that has not
// one cell for each column.
func Table(w io.Writer, columns []Column, rows [][]string) error {
	if err := checkCells(columns, rows); err != nil {
		return err
	}
	widths := make([]int, len(columns)) // of the cells without marks
	marks := make([]int, len(columns))  // room for the mark, in columns that have one
	names := make([]string, len(columns))
	rules := make([]string, len(columns))
	texts := make([][]string, len(rows))
	for c, column := range columns {
		names[c] = limit(column.Name, column.Max)
		widths[c] = textWidth(names[c])
		for r, row := range rows {
			if row == nil {
				continue
			}
			text, best := strings.CutSuffix(row[c], BestMark)
			text = limit(text, column.Max)
			widths[c] = max(widths[c], textWidth(text))
			if best {
				marks[c] = len(BestMark)
				text += BestMark
			}
			texts[r] = append(texts[r], text)
		}
		rules[c] = strings.Repeat("─", widths[c])
	}
	var b strings.Builder
	line := func(cells []string) {
		var parts strings.Builder
		for c, text := range cells {
			if c > 0 {
				parts.WriteString(columnGap)
			}
			text, best := strings.CutSuffix(text, BestMark)
			parts.WriteString(pad(text, widths[c], columns[c].Left))
			if best {
				parts.WriteString(BestMark)
			} else {
				parts.WriteString(strings.Repeat(" ", marks[c]))
			}
		}
		b.WriteString(strings.TrimRight(parts.String(), " ") + "\n")
	}
	if len(columns) > 0 {
		line(names)
		line(rules)
	}
	for _, cells := range texts {
		line(cells)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// escapeMarkdown keeps the characters of a cell from meaning something.
var escapeMarkdown = strings.NewReplacer(`\`, `\\`, "|", `\|`, "*", `\*`, "<", "&lt;", "`", "\\`")

// Markdown writes the table in the form of GitHub, its source lined up too.
// Groups are not kept apart, and nothing is cut. The errors are those of [Table].
func Markdown(w io.Writer, columns []Column, rows [][]string) error {
	if err := checkCells(columns, rows); err != nil {
		return err
	}
	if len(columns) == 0 {
		return nil
	}
	const leastWidth = 3 // a rule needs a colon and dashes
	escape := func(text string) string { return escapeMarkdown.Replace(clean(text)) }
	var lines [][]string
	var names []string
	for _, column := range columns {
		names = append(names, escape(column.Name))
	}
	lines = append(lines, names)
	for _, row := range rows {
		if row == nil {
			continue
		}
		var cells []string
		for _, cell := range row {
			text, best := strings.CutSuffix(cell, BestMark)
			if text = escape(text); best {
				text = "**" + text + "**"
			}
			cells = append(cells, text)
		}
		lines = append(lines, cells)
	}
	widths := make([]int, len(columns))
	rules := make([]string, len(columns))
	for c, column := range columns {
		widths[c] = leastWidth
		for _, cells := range lines {
			widths[c] = max(widths[c], textWidth(cells[c]))
		}
		rules[c] = strings.Repeat("-", widths[c])
		if !column.Left {
			rules[c] = rules[c][1:] + ":"
		}
	}
	var b strings.Builder
	line := func(cells []string) {
		for c, cell := range cells {
			b.WriteString("| " + pad(cell, widths[c], columns[c].Left) + " ")
		}
		b.WriteString("|\n")
	}
	line(lines[0])
	line(rules)
	for _, cells := range lines[1:] {
		line(cells)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func checkCells(columns []Column, rows [][]string) error {
	for i, row := range rows {
		if row != nil && len(row) != len(columns) {
			return fmt.Errorf("%w: row %d of the table has %d cells, there are %d columns", ErrShape, i, len(row), len(columns))
		}
	}
	return nil
}

// limit makes text safe to print, and cuts it to most columns unless most is 0.
func limit(text string, most int) string {
	if text = clean(text); most > 0 {
		text = cut(text, most)
	}
	return text
}

// compare orders what may be missing: first what is.
func compare(x, y *float64) int { return cmp.Compare(number(x), number(y)) } // NaN is least
