package report

import (
	"io"
	"os"
	"strings"
	"unicode"

	"github.com/rivo/uniseg"
	"golang.org/x/term"
)

const (
	// defaultWidth is how many columns a line has where nobody says.
	defaultWidth = 80

	// leastWidth is the narrowest picture: below it nothing can be told apart.
	leastWidth = 24
)

// Width is how many columns to draw in on w: those of its terminal, or 80.
func Width(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if columns, _, err := term.GetSize(int(f.Fd())); err == nil && columns > 0 {
			return columns
		}
	}
	return defaultWidth
}

// drawingWidth is the width to draw in when width was asked for.
func drawingWidth(width int) int {
	if width <= 0 {
		return defaultWidth
	}
	return max(width, leastWidth)
}

// The colours of a terminal.
const (
	attentionColor   = "\x1b[36m" // cyan
	feedForwardColor = "\x1b[33m" // yellow
	chosenColor      = "\x1b[32m" // green
	plain            = "\x1b[0m"
)

// paint colours text if color is on.
func paint(text, code string, color bool) string {
	if !color || text == "" {
		return text
	}
	return code + text + plain
}

// colorful tells whether to use colours on w: a terminal, NO_COLOR unset
// (no-color.org).
func colorful(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && term.IsTerminal(int(f.Fd()))
}

// trueColor tells whether the terminal says that it knows 24-bit colours. Others
// would show something else.
func trueColor() bool {
	kind := os.Getenv("COLORTERM")
	return kind == "truecolor" || kind == "24bit"
}

// clean replaces what would move the cursor or colour the screen.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case unicode.IsPrint(r) || r == '\u200d': // the joiner inside of emoji
			return r
		}
		return unicode.ReplacementChar
	}, text)
}

// textWidth is how many columns text takes in a terminal.
func textWidth(text string) int { return uniseg.StringWidth(text) }

// pad fills text up to width columns.
func pad(text string, width int, left bool) string {
	space := strings.Repeat(" ", max(width-textWidth(text), 0))
	if left {
		return text + space
	}
	return space + text
}

// cut shortens text to width columns, an ellipsis at its end if something is gone.
func cut(text string, width int) string {
	if textWidth(text) <= width {
		return text
	}
	const ellipsis = "…"
	kept, used, state := 0, 0, -1
	for rest := text; rest != ""; {
		var cluster string
		var columns int
		cluster, rest, columns, state = uniseg.FirstGraphemeClusterInString(rest, state)
		if used+columns > width-textWidth(ellipsis) {
			break
		}
		kept, used = kept+len(cluster), used+columns
	}
	return text[:kept] + ellipsis
}

// wrap joins parts by two spaces, on as many lines as width columns ask for.
func wrap(parts []string, width int) string {
	var b strings.Builder
	used := 0
	for _, part := range parts {
		part = cut(part, width)
		columns := textWidth(part)
		switch {
		case used == 0:
		case used+len(columnGap)+columns <= width:
			b.WriteString(columnGap)
			used += len(columnGap)
		default:
			b.WriteString("\n")
			used = 0
		}
		b.WriteString(part)
		used += columns
	}
	b.WriteString("\n")
	return b.String()
}

// everyNth is how many columns to go on from one label to the next so that none
// touch: sizes are those of the labels, 0 for columns without one, and step is
// the distance of two columns, gap the least room between labels, all in one
// unit. Only columns with labels count.
func everyNth(sizes []float64, step, gap float64) int {
	var labelled []int
	for i, size := range sizes {
		if size > 0 {
			labelled = append(labelled, i)
		}
	}
	for _, n := range []int{1, 2, 5, 10, 20, 50, 100} { // steps that people count in
		fits := true
		for i := 0; i+n < len(labelled) && fits; i += n {
			from, to := labelled[i], labelled[i+n]
			fits = sizes[from]+gap <= float64(to-from)*step
		}
		if fits {
			return n
		}
	}
	return max(len(labelled), 1)
}

// thin keeps every nth of the labels, from the first, and empties the others.
func thin(labels []string, n int) []string {
	kept := make([]string, len(labels))
	seen := 0
	for i, label := range labels {
		if label == "" {
			continue
		}
		if seen%n == 0 {
			kept[i] = label
		}
		seen++
	}
	return kept
}
