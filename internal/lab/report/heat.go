package report

import (
	"fmt"
	"image/color"
	"io"
	"math"
	"slices"
	"strings"
)

// Grid is a table of figures for a heat map.
type Grid struct {
	Title   string
	Label   string      // what the values are, with their unit
	Across  string      // what the columns are, such as "layer"; may be empty
	Rows    []string    // names
	Columns []string    // names, empty for columns that go on from the one before
	Values  [][]float64 // (len(Rows), len(Columns)) NaN = not measured
}

func (g Grid) check() error {
	if len(g.Values) != len(g.Rows) {
		return fmt.Errorf("%w: %d rows of values, %d names of rows", ErrShape, len(g.Values), len(g.Rows))
	}
	for i, row := range g.Values {
		if len(row) != len(g.Columns) {
			return fmt.Errorf("%w: row %d has %d values, there are %d names of columns", ErrShape, i, len(row), len(g.Columns))
		}
	}
	return nil
}

// unmeasured tells whether values are missing.
func (g Grid) unmeasured() bool {
	return slices.ContainsFunc(g.Values, func(row []float64) bool {
		return slices.ContainsFunc(row, func(v float64) bool { return !finite(v) })
	})
}

const (
	// heavyTail is how many times the median a largest value must be for a
	// logarithmic scale: a linear one would show the others as one colour.
	heavyTail = 10

	// scaleRange is the most that a logarithmic scale spans. Values below its
	// lower end, negative ones too, look like that end.
	scaleRange = 1000
)

// scale turns values into shares of a colour scale.
type scale struct {
	low, high float64
	log       bool
}

// newScale finds the scale for values. It is not ok when none of them is finite.
func newScale(values [][]float64) (s scale, ok bool) {
	var all, positive []float64
	for _, row := range values {
		for _, v := range row {
			if finite(v) {
				all = append(all, v)
				if v > 0 {
					positive = append(positive, v)
				}
			}
		}
	}
	if len(all) == 0 {
		return scale{}, false
	}
	slices.Sort(positive)
	s = scale{low: slices.Min(all), high: slices.Max(all)}
	if len(positive) > 0 && s.high > heavyTail*positive[len(positive)/2] {
		s = scale{low: max(positive[0], s.high/scaleRange), high: s.high, log: true}
	}
	return s, true
}

// share is where v lies on the scale, 0 to 1; NaN if v is.
func (s scale) share(v float64) float64 {
	if s.high == s.low {
		return v - v // 0, or NaN
	}
	share := (v - s.low) / (s.high - s.low)
	if s.log {
		share = math.Log(max(v, s.low)/s.low) / math.Log(s.high/s.low)
	}
	return min(max(share, 0), 1)
}

// value is what lies at a share of the scale.
func (s scale) value(share float64) float64 {
	if s.log {
		return s.low * math.Pow(s.high/s.low, share)
	}
	return s.low + share*(s.high-s.low)
}

// shades are the characters of a heat map from low to high.
var shades = []string{"░", "▒", "▓", "█"}

const (
	noShade      = "·" // not measured
	mostCell     = 4   // columns of the terminal that a value takes at most
	colorPatches = 12  // in the legend of a coloured heat map
)

// Heat draws g as a heat map of shades, or of colours on a terminal that has
// them, in lines of at most width columns (0: 80), with a legend below. Where
// the columns do not fit side by side, the map goes on in a further block. The
// scale is logarithmic when the largest value is far above the others. The error
// wraps [ErrShape] when values and names do not fit together.
func Heat(w io.Writer, g Grid, width int) error {
	if err := g.check(); err != nil {
		return err
	}
	_, err := io.WriteString(w, heat(g, drawingWidth(width), colorful(w) && trueColor()))
	return err
}

func heat(g Grid, width int, color bool) string {
	s, ok := newScale(g.Values)
	if len(g.Rows) == 0 || len(g.Columns) == 0 {
		return ""
	}
	across := clean(g.Across)
	nameWidth := textWidth(across)
	for _, name := range g.Rows {
		nameWidth = max(nameWidth, textWidth(clean(name)))
	}
	nameWidth = min(nameWidth, width/labelShare)
	room := width - nameWidth - len(columnGap)
	cell := min(max(room/len(g.Columns), 1), mostCell)
	perBlock := room / cell
	labels := columnLabels(g.Columns, cell)

	var b strings.Builder
	if g.Title != "" {
		b.WriteString(cut(clean(g.Title), width) + "\n")
	}
	for from, to := 0, 0; from < len(g.Columns); from = to {
		to = blockEnd(g.Columns, from, perBlock)
		if from > 0 {
			b.WriteString("\n")
		}
		head := pad(cut(across, nameWidth), nameWidth, true) + columnGap + labelLine(labels[from:to], cell, room)
		b.WriteString(strings.TrimRight(head, " ") + "\n")
		for r, name := range g.Rows {
			b.WriteString(pad(cut(clean(name), nameWidth), nameWidth, true) + columnGap)
			for _, v := range g.Values[r][from:to] {
				b.WriteString(shade(s, v, cell, color))
			}
			b.WriteString("\n")
		}
	}
	if ok {
		b.WriteString(legend(s, g, width, color))
	}
	return b.String()
}

// blockEnd is where the block of columns ends that begins at from: before the
// last name that starts a further block, if what it names would be cut.
func blockEnd(names []string, from, perBlock int) int {
	end := from + perBlock
	if end >= len(names) {
		return len(names)
	}
	for to := end; to > from; to-- {
		if names[to] != "" {
			return to
		}
	}
	return end
}

// columnLabels thins the names of columns so that they fit above their cells.
func columnLabels(names []string, cell int) []string {
	labels := make([]string, len(names))
	sizes := make([]float64, len(names))
	for i, name := range names {
		labels[i] = clean(name)
		sizes[i] = float64(textWidth(labels[i]))
	}
	return thin(labels, everyNth(sizes, float64(cell), 1))
}

// labelLine puts each label above the first column of its cell; the last is left
// out if it does not fit into room.
func labelLine(labels []string, cell, room int) string {
	var b strings.Builder
	used := 0
	for i, label := range labels {
		if label == "" || i*cell+textWidth(label) > room {
			continue
		}
		b.WriteString(strings.Repeat(" ", max(i*cell-used, 0)) + label)
		used = i*cell + textWidth(label)
	}
	return b.String()
}

// shade draws one value.
func shade(s scale, v float64, cell int, color bool) string {
	share := s.share(v)
	switch {
	case !finite(v):
		return strings.Repeat(noShade, cell)
	case color:
		return patch(share, cell)
	}
	return strings.Repeat(shades[shadeOf(share)], cell)
}

// shadeOf is the shade for a share; upper ends belong to the shade below.
func shadeOf(share float64) int {
	return max(int(math.Ceil(share*float64(len(shades))))-1, 0)
}

// patch is a space on the colour of a share.
func patch(share float64, cells int) string {
	c := heatColor(share)
	return fmt.Sprintf("\x1b[48;2;%d;%d;%dm%s%s", c.R, c.G, c.B, strings.Repeat(" ", cells), plain)
}

// legend says what the shades mean.
func legend(s scale, g Grid, width int, color bool) string {
	var parts []string
	if g.Label != "" {
		parts = append(parts, clean(g.Label)+":")
	}
	unmeasured := g.unmeasured()
	below := ""
	if s.log {
		below = "≤ "
	}
	switch {
	case s.low == s.high:
		parts = append(parts, shades[0]+" "+Short(s.low))
	case color:
		// Colours have no width, so this part is not cut; leastWidth has room for it.
		ramp := ""
		for i := range colorPatches {
			ramp += patch(float64(i)/(colorPatches-1), 1)
		}
		var b strings.Builder
		if len(parts) > 0 {
			b.WriteString(wrap(parts, width))
		}
		b.WriteString(below + Short(s.low) + " " + ramp + " " + Short(s.high) + "\n")
		if unmeasured {
			b.WriteString(noShade + " not measured\n")
		}
		return b.String()
	default:
		for i, shade := range shades {
			parts = append(parts, shade+" ≤ "+Short(s.value(float64(i+1)/float64(len(shades)))))
		}
	}
	if unmeasured {
		parts = append(parts, noShade+" not measured")
	}
	return wrap(parts, width)
}

// heatColors is the scale of heat maps, from harmless to hurtful: ColorBrewer's
// YlGnBu, whose lightness falls all the way, so that it also reads in grey and
// for colour-blind readers.
var heatColors = []color.RGBA{
	{0xff, 0xff, 0xd9, 0xff}, {0xed, 0xf8, 0xb1, 0xff}, {0xc7, 0xe9, 0xb4, 0xff}, {0x7f, 0xcd, 0xbb, 0xff}, {0x41, 0xb6, 0xc4, 0xff},
	{0x1d, 0x91, 0xc0, 0xff}, {0x22, 0x5e, 0xa8, 0xff}, {0x25, 0x34, 0x94, 0xff}, {0x08, 0x1d, 0x58, 0xff},
}

// heatColor is the colour at a share, 0 to 1, of the scale.
func heatColor(share float64) color.RGBA {
	at := share * float64(len(heatColors)-1)
	i := min(int(at), len(heatColors)-2)
	mix := func(x, y uint8) uint8 {
		return uint8(math.Round(float64(x) + (at-float64(i))*(float64(y)-float64(x))))
	}
	x, y := heatColors[i], heatColors[i+1]
	return color.RGBA{mix(x.R, y.R), mix(x.G, y.G), mix(x.B, y.B), 0xff}
}
