package report

import (
	"io"
	"math"
	"strconv"
	"strings"
)

// Bar is a line of [Bars].
type Bar struct {
	Label  string
	Value  float64 // any unit; NaN and infinite values get no bar
	Note   string  // written behind the value
	Chosen bool    // marked
}

const (
	chosenMark = "→ "
	valueFigs  = 3 // significant figures of a value

	// labelShare and noteShare are the most that labels and notes take of the
	// width, as 1/n, so that the bars get about half.
	labelShare = 3
	noteShare  = 4

	// leastBar is the room for a bar below which the notes are left out for it.
	leastBar = 8
)

// eighths are the blocks that fill 0 to 7 eighths of a column from the left.
var eighths = []string{"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"}

// Bars draws items as horizontal bars on one scale, in lines of at most width
// columns (0: 80). Bars begin at zero; negative values go to the left of it.
// The chosen ones are marked with an arrow.
func Bars(w io.Writer, items []Bar, width int) error {
	_, err := io.WriteString(w, bars(items, drawingWidth(width), colorful(w)))
	return err
}

func bars(items []Bar, width int, color bool) string {
	var labelWidth, valueWidth, noteWidth int
	var low, high float64 // the scale, with zero in it
	for _, item := range items {
		labelWidth = max(labelWidth, textWidth(clean(item.Label)))
		valueWidth = max(valueWidth, textWidth(Short(item.Value)))
		noteWidth = max(noteWidth, textWidth(clean(item.Note)))
		if finite(item.Value) {
			low, high = min(low, item.Value), max(high, item.Value)
		}
	}
	labelWidth = min(labelWidth, width/labelShare)
	noteWidth = min(noteWidth, width/noteShare)
	room := func() int {
		n := width - textWidth(chosenMark) - labelWidth - len(columnGap) - len(columnGap) - valueWidth
		if noteWidth > 0 {
			n -= len(columnGap) + noteWidth
		}
		return n
	}
	if room() < leastBar {
		noteWidth = 0
	}
	cells := max(room(), 1)
	left := 0 // columns to the left of zero
	if low < 0 {
		left = int(math.Round(float64(cells) * -low / (high - low)))
		if left = max(left, 1); high > 0 {
			left = min(left, max(cells-1, 1)) // both sides have a column at least
		}
	}
	var b strings.Builder
	for _, item := range items {
		mark := strings.Repeat(" ", textWidth(chosenMark))
		if item.Chosen {
			mark = chosenMark
		}
		bar := strings.Repeat(" ", left)
		if finite(item.Value) {
			if item.Value < 0 {
				bar = leftBar(item.Value/low, left)
			} else if item.Value > 0 {
				bar += rightBar(item.Value/high, cells-left)
			}
		}
		bar = pad(bar, cells, true)
		code := attentionColor
		if item.Chosen {
			code = chosenColor
		}
		line := paint(mark, chosenColor, color && item.Chosen) + pad(cut(clean(item.Label), labelWidth), labelWidth, true) + columnGap +
			paint(bar, code, color) + columnGap + pad(Short(item.Value), valueWidth, false)
		if noteWidth > 0 {
			line += columnGap + cut(clean(item.Note), noteWidth)
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}

// rightBar fills share, 0 to 1, of cells from the left, to an eighth of a cell.
// What is more than nothing shows.
func rightBar(share float64, cells int) string {
	n := max(int(math.Round(share*float64(cells*len(eighths)))), 1)
	return strings.Repeat("█", n/len(eighths)) + eighths[n%len(eighths)]
}

// leftBar fills share of cells from the right, to half a cell: there are no finer
// blocks on that side.
func leftBar(share float64, cells int) string {
	n := max(int(math.Round(share*float64(2*cells))), 1)
	return pad(strings.Repeat("▐", n%2)+strings.Repeat("█", n/2), cells, false)
}

// Short writes a value with three significant figures, without an exponent
// as long as that is short.
func Short(x float64) string {
	const least, most = 1e-4, 1e6
	if !finite(x) {
		return missing
	}
	text := strconv.FormatFloat(x, 'g', valueFigs, 64)
	rounded, err := strconv.ParseFloat(text, 64)
	if size := math.Abs(rounded); err != nil || size != 0 && (size < least || size >= most) {
		return text
	}
	if rounded == 0 {
		return "0" // without a sign
	}
	return strconv.FormatFloat(rounded, 'f', -1, 64)
}
