package report

import (
	"bytes"
	"fmt"
	"image/color"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Series is a line of [CurvePNG] and [CurveSVG].
type Series struct {
	Name string
	X, Y []float64 // (n,) a point that is NaN breaks the line

	// Low and High are the ends of confidence intervals, (n,) or empty. A line gets
	// a band between them, a single point an error bar.
	Low, High []float64

	Dashed bool // for what others are measured against
}

// Sizes of curves, in points.
const (
	curveWidth  = 612 // 1632 pixels
	curveHeight = 360 // 960 pixels
	mostName    = 150 // of a name in a legend or at a row
	lineWidth   = 1.8
	pointRadius = 3.2
	bandAlpha   = 0x26 // of 0xff: where several bands overlap, each still shows

	// axisRoom is kept free on both ends of an axis, as a share of the range.
	axisRoom = 0.04
)

// glyphs are the points of the series, in turn: with as many as colours every
// series also has its own, without colours.
var glyphs = []draw.GlyphDrawer{
	draw.CircleGlyph{}, draw.BoxGlyph{}, draw.PyramidGlyph{}, draw.RingGlyph{}, draw.SquareGlyph{}, draw.TriangleGlyph{}, draw.CrossGlyph{},
}

// CurvePNG writes a picture of lines with points to path, 1632 by 960 pixels: such
// as accuracy against mean depth. Labels should name the unit. The error wraps
// [ErrShape] when the slices of a series differ in length, and [ErrEmpty] when no
// series has a point.
func CurvePNG(path, title, xLabel, yLabel string, series []Series) error {
	paint, err := curve(title, xLabel, yLabel, series)
	if err != nil {
		return err
	}
	return writePNG(path, curveWidth, curveHeight, paint)
}

// CurveSVG is the picture of [CurvePNG] as SVG, which stays text: the same series
// give the same bytes.
func CurveSVG(title, xLabel, yLabel string, series []Series) ([]byte, error) {
	paint, err := curve(title, xLabel, yLabel, series)
	if err != nil {
		return nil, err
	}
	canvas := vgsvg.New(curveWidth, curveHeight)
	c := draw.New(canvas)
	c.FillPolygon(color.White, []vg.Point{{}, {X: curveWidth}, {X: curveWidth, Y: curveHeight}, {Y: curveHeight}}) // dark pages show through otherwise
	paint(c)
	var data bytes.Buffer
	_, err = canvas.WriteTo(&data)
	return bytes.ReplaceAll(data.Bytes(), []byte("Liberation Sans"), []byte("Liberation Sans,Arial,sans-serif")), err
}

// curve draws lines with points.
func curve(title, xLabel, yLabel string, series []Series) (paint func(draw.Canvas), err error) {
	p := plot.New()
	stylePlot(p, xLabel, yLabel)
	legend := plot.NewLegend()
	legend.TextStyle = textStyle(tickSize)
	legend.Top, legend.Left = true, true
	legend.Padding = space / 2
	legend.ThumbnailWidth = 26

	var bands, lines []plot.Plotter
	for i, s := range series {
		if err := s.check(); err != nil {
			return nil, err
		}
		c := palette[i%len(palette)]
		line := draw.LineStyle{Color: c, Width: lineWidth}
		if s.Dashed {
			line.Dashes = []vg.Length{6, 3}
		}
		point := draw.GlyphStyle{Color: c, Radius: pointRadius, Shape: glyphs[(i+i/len(palette))%len(glyphs)]} // no two alike
		for _, run := range s.runs() {
			lines = append(lines, &plotter.Line{XYs: run, LineStyle: line}, &plotter.Scatter{XYs: run, GlyphStyle: point})
		}
		for _, run := range s.bands() {
			bands = append(bands, band(run, c))
		}
		legend.Add(fit(legend.TextStyle, s.Name, mostName), &plotter.Line{LineStyle: line}, &plotter.Scatter{GlyphStyle: point})
	}
	if len(lines) == 0 {
		return nil, fmt.Errorf("%w: %q has no points", ErrEmpty, title)
	}
	p.Add(append(bands, lines...)...)
	widen(&p.X)
	widen(&p.Y)

	return func(c draw.Canvas) {
		c = draw.Crop(c, margin, -margin, margin, -margin)
		headline := textStyle(titleSize)
		title := fit(headline, title, c.Size().X)
		if title != "" {
			c.FillText(headline, vg.Point{X: c.Min.X, Y: c.Max.Y - headline.Height(title)}, title)
			c.Max.Y -= headline.Height(title) + space
		}
		box := legend.Rectangle(c)
		legend.Draw(draw.Crop(c, c.Size().X-box.Size().X, 0, 0, 0))
		p.Draw(draw.Crop(c, 0, -box.Size().X-2*space, 0, 0))
	}, nil
}

// stylePlot sets fonts and axes, and adds a grid.
func stylePlot(p *plot.Plot, xLabel, yLabel string) {
	grid := plotter.NewGrid()
	grid.Vertical = draw.LineStyle{Color: gridColor, Width: 0.6}
	grid.Horizontal = grid.Vertical
	p.Add(grid)
	for _, a := range []struct {
		axis *plot.Axis
		text string
	}{{&p.X, xLabel}, {&p.Y, yLabel}} {
		a.axis.Label.Text = clean(a.text)
		a.axis.Label.TextStyle.Font = textStyle(labelSize).Font
		a.axis.Label.TextStyle.Color = inkColor
		a.axis.Label.Padding = space / 2
		a.axis.Tick.Label.Font = textStyle(tickSize).Font
		a.axis.Tick.Label.Color = inkColor
		a.axis.Tick.LineStyle.Color = inkColor
		a.axis.Tick.Length = space / 2
		a.axis.Tick.Marker = plot.TickerFunc(Ticks)
		a.axis.LineStyle.Color = inkColor
		a.axis.Padding = 0
	}
}

// widen leaves room at both ends of an axis, so that no point lies on the other.
func widen(a *plot.Axis) {
	room := axisRoom * (a.Max - a.Min)
	if room == 0 {
		room = 0.5 // one value alone: put it in the middle
	}
	a.Min, a.Max = a.Min-room, a.Max+room
}

// Ticks are about six numbers between low and high, on steps that people count in.
func Ticks(low, high float64) []plot.Tick {
	const intervals = 6
	rough := (high - low) / intervals
	power := math.Pow(10, math.Floor(math.Log10(rough)))
	step := 10 * power
	for _, times := range []float64{1, 2, 5} {
		if times*power >= rough {
			step = times * power
			break
		}
	}
	var marks []plot.Tick
	first := math.Ceil(low / step)
	for n := range intervals + 1 { // steps are rounded up, so there are no more
		if v := (first + float64(n)) * step; v <= high {
			marks = append(marks, plot.Tick{Value: v, Label: Short(v)})
		}
	}
	return marks
}

func (s Series) check() error {
	if len(s.X) != len(s.Y) {
		return fmt.Errorf("%w: series %q has %d x and %d y", ErrShape, s.Name, len(s.X), len(s.Y))
	}
	if len(s.Low) != len(s.High) || len(s.Low) != 0 && len(s.Low) != len(s.X) {
		return fmt.Errorf("%w: series %q has %d points, %d lower and %d upper ends of intervals", ErrShape, s.Name, len(s.X), len(s.Low), len(s.High))
	}
	return nil
}

// runs are the stretches of points without a gap.
func (s Series) runs() []plotter.XYs {
	var runs []plotter.XYs
	open := false
	for i := range s.X {
		if !finite(s.X[i]) || !finite(s.Y[i]) {
			open = false
			continue
		}
		if !open {
			runs = append(runs, nil)
			open = true
		}
		last := &runs[len(runs)-1]
		*last = append(*last, plotter.XY{X: s.X[i], Y: s.Y[i]})
	}
	return runs
}

// bands are the outlines of the stretches that have intervals: along the lower
// ends, then back along the upper ones.
func (s Series) bands() []plotter.XYs {
	var bands []plotter.XYs
	var lower, upper plotter.XYs
	end := func() {
		for i := len(upper) - 1; i >= 0; i-- {
			lower = append(lower, upper[i])
		}
		if len(lower) > 0 {
			bands = append(bands, lower)
		}
		lower, upper = nil, nil
	}
	for i := range s.Low {
		if !finite(s.X[i]) || !finite(s.Y[i]) || !finite(s.Low[i]) || !finite(s.High[i]) {
			end()
			continue
		}
		lower = append(lower, plotter.XY{X: s.X[i], Y: s.Low[i]})
		upper = append(upper, plotter.XY{X: s.X[i], Y: s.High[i]})
	}
	end()
	return bands
}

// band draws an outline of bands: filled, or as an error bar if it is one point's.
func band(outline plotter.XYs, c color.RGBA) plot.Plotter {
	if len(outline) == 2 {
		return &errorBar{Line: plotter.Line{XYs: outline, LineStyle: draw.LineStyle{Color: c, Width: lineWidth / 2}}}
	}
	return &plotter.Polygon{XYs: []plotter.XYs{outline}, Color: color.NRGBA{c.R, c.G, c.B, bandAlpha}}
}

// errorBar is an upright line between two points, with a cap on both.
type errorBar struct{ plotter.Line }

func (e *errorBar) Plot(c draw.Canvas, p *plot.Plot) {
	e.Line.Plot(c, p)
	transX, transY := p.Transforms(&c)
	for _, end := range e.XYs {
		x, y := transX(end.X), transY(end.Y)
		c.StrokeLine2(e.LineStyle, x-pointRadius, y, x+pointRadius, y)
	}
}
