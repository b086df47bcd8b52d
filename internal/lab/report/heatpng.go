package report

import (
	"fmt"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Sizes of heat maps, in points.
const (
	heatWidth = 480 // of all columns, as far as the next two allow
	leastSide = 4   // of a cell
	mostSide  = 26
	cellGap   = 0.75 // between cells, so that equal neighbours still count

	barWidthPNG = 12
	barNumbers  = 40  // room for the numbers beside the colour bar
	leastHeight = 110 // of the colour bar, so that its numbers stay apart
	barSteps    = 128 // of the colour bar
	tickLength  = 3
)

// HeatPNG writes g as a heat map with a colour bar to path. The picture grows with
// rows and columns. The scale is that of [Heat]. The error wraps [ErrShape] when
// values and names do not fit together, and [ErrEmpty] when no value is finite.
func HeatPNG(path string, g Grid) error {
	if err := g.check(); err != nil {
		return err
	}
	s, ok := newScale(g.Values)
	if !ok {
		return fmt.Errorf("%w: %q has no values", ErrEmpty, g.Title)
	}
	headline, label, tick := textStyle(titleSize), textStyle(labelSize), textStyle(tickSize)

	cellWidth := min(max(heatWidth/vg.Length(len(g.Columns)), leastSide), mostSide)
	cellsWidth := cellWidth * vg.Length(len(g.Columns))
	cellHeight := min(max(leastHeight/vg.Length(len(g.Rows)), tick.Height("0")+4), mostSide)
	cellsHeight := cellHeight * vg.Length(len(g.Rows))

	names := make([]string, len(g.Rows))
	var nameWidth vg.Length
	for i, name := range g.Rows {
		names[i] = fit(tick, name, mostName)
		nameWidth = max(nameWidth, tick.Width(names[i]))
	}
	labels := make([]string, len(g.Columns))
	sizes := make([]float64, len(g.Columns))
	for i, name := range g.Columns {
		labels[i] = fit(tick, name, mostName)
		sizes[i] = float64(tick.Width(labels[i]))
	}
	labels = thin(labels, everyNth(sizes, float64(cellWidth), float64(tick.Width("0"))))

	lineHeight := tick.Height("0")
	below := lineHeight + tickLength + space/2
	if g.Across != "" {
		below += label.Height(g.Across) + space/2
	}
	unmeasured := g.unmeasured()
	if unmeasured {
		below += lineHeight + space
	}
	var heads []string // title, then what the values are
	var above, headsWidth vg.Length
	styles := []text.Style{headline, label}
	for i, words := range []string{g.Title, g.Label} {
		heads = append(heads, fit(styles[i], words, heatWidth))
		if words != "" {
			above += styles[i].Height(heads[i]) + space/2
			headsWidth = max(headsWidth, styles[i].Width(heads[i]))
		}
	}
	barHeight := max(cellsHeight, leastHeight)
	width := 2*margin + max(nameWidth+space+cellsWidth+2*space+barWidthPNG+barNumbers, headsWidth)
	height := 2*margin + above + max(cellsHeight+below, barHeight+space)

	return writePNG(path, width, height, func(c draw.Canvas) {
		c = draw.Crop(c, margin, -margin, margin, -margin)
		y := c.Max.Y
		for i, words := range heads {
			if words != "" {
				y -= styles[i].Height(words)
				c.FillText(styles[i], vg.Point{X: c.Min.X, Y: y}, words)
				y -= space / 2
			}
		}
		top, left := c.Max.Y-above, c.Min.X+nameWidth+space

		right := tick
		right.XAlign, right.YAlign = draw.XRight, draw.YCenter
		for r, name := range names {
			y := top - vg.Length(r)*cellHeight
			c.FillText(right, vg.Point{X: left - space/2, Y: y - cellHeight/2 + tick.FontExtents().Descent/2}, name)
			for col, v := range g.Values[r] {
				x := left + vg.Length(col)*cellWidth
				color := noColor
				if finite(v) {
					color = heatColor(s.share(v))
				}
				c.FillPolygon(color, rectangle(x, y-cellHeight, x+cellWidth-cellGap, y-cellGap))
			}
		}

		middle := tick
		middle.XAlign, middle.YAlign = draw.XCenter, draw.YTop
		y = top - cellsHeight
		axis := draw.LineStyle{Color: inkColor, Width: 0.6}
		for col, name := range labels {
			if name == "" {
				continue
			}
			// A name stands for its column and those without one that go on from it.
			end := col + 1
			for end < len(g.Columns) && g.Columns[end] == "" {
				end++
			}
			x := left + (vg.Length(col)+vg.Length(end))/2*cellWidth
			c.StrokeLine2(axis, x, y-1, x, y-1-tickLength)
			c.FillText(middle, vg.Point{X: x, Y: y - tickLength - space/4}, name)
		}
		y -= tickLength + space/2 + lineHeight
		if g.Across != "" {
			middle.Font = label.Font
			c.FillText(middle, vg.Point{X: left + cellsWidth/2, Y: y - space/4}, clean(g.Across))
			y -= label.Height(g.Across) + space/2
		}
		if unmeasured {
			c.FillPolygon(noColor, rectangle(left, y-space/2-lineHeight, left+lineHeight, y-space/2))
			c.FillText(tick, vg.Point{X: left + lineHeight + space/2, Y: y - space/2 - lineHeight}, "not measured")
		}

		drawBar(c, s, left+cellsWidth+2*space, top, barHeight)
	})
}

// drawBar draws the colour bar, its upper left corner at x, top.
func drawBar(c draw.Canvas, s scale, x, top, height vg.Length) {
	bottom := top - height
	step := height / barSteps
	for i := range barSteps {
		y := bottom + vg.Length(i)*step
		// Each step reaches under the next, so that no seam shows.
		c.FillPolygon(heatColor(float64(i)/(barSteps-1)), rectangle(x, y, x+barWidthPNG, min(y+2*step, top)))
	}
	axis := draw.LineStyle{Color: inkColor, Width: 0.6}
	number := textStyle(tickSize)
	number.YAlign = draw.YCenter
	rise := number.FontExtents().Descent // figures do not reach below the line
	end := x + barWidthPNG
	for _, tick := range s.ticks() {
		if tick.Value < s.low || tick.Value > s.high {
			continue
		}
		y := bottom + vg.Length(s.share(tick.Value))*height
		c.StrokeLine2(axis, end, y, end+tickLength, y)
		c.FillText(number, vg.Point{X: end + tickLength + space/4, Y: y + rise}, tick.Label)
	}
}

// ticks are the marks of the colour bar.
func (s scale) ticks() []plot.Tick {
	switch {
	case s.low == s.high:
		return []plot.Tick{{Value: s.low, Label: Short(s.low)}}
	case !s.log:
		return Ticks(s.low, s.high)
	}
	// 1, 2 and 5 times the powers of ten: the powers alone would be two to four.
	var ticks []plot.Tick
	for power := math.Floor(math.Log10(s.low)); power <= math.Log10(s.high); power++ {
		for _, times := range []float64{1, 2, 5} {
			v := times * math.Pow(10, power)
			ticks = append(ticks, plot.Tick{Value: v, Label: Short(v)})
		}
	}
	return ticks
}

func rectangle(x0, y0, x1, y1 vg.Length) []vg.Point {
	return []vg.Point{{X: x0, Y: y0}, {X: x1, Y: y0}, {X: x1, Y: y1}, {X: x0, Y: y1}}
}
