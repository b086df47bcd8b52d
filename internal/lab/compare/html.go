package compare

import (
	"bytes"
	_ "embed" // for the page
	"fmt"
	"html/template"
	"math"
	"strings"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/lab/report"
	"github.com/gallop-llm/gallop/skip"
)

//go:embed report.html
var pageText string

var page = template.Must(template.New("report.html").Funcs(template.FuncMap{
	"short":    report.Short,
	"shortOf":  short,
	"percent":  percent,
	"share":    report.Percent,
	"times":    times,
	"strip":    newStrip,
	"finished": func(a Answer) bool { return a.Finish == gallop.FinishStop },
}).Parse(pageText))

// HTML is the comparison as a page of its own: style and pictures are in it, and
// it needs no script.
func (r *Result) HTML() ([]byte, error) {
	v := view{Result: r, Scatter: r.scatter(), Latency: r.latency()}
	v.Columns, v.Rows = r.Table()
	for w := 1; w < len(r.Ways); w++ {
		v.Layers = append(v.Layers, r.layers(w))
	}
	for i, p := range r.Prompts {
		var others []string
		for _, a := range p.Answers[1:] {
			others = append(others, a.Text)
		}
		c := card{Number: i + 1, Prompt: p, Parts: differences(p.Answers[0].Text, others), Same: true}
		for _, a := range p.Answers {
			c.Same = c.Same && a.Same
		}
		if !c.Same {
			v.Differ++
		}
		v.Cards = append(v.Cards, c)
	}
	var out bytes.Buffer
	if err := page.Execute(&out, v); err != nil {
		return nil, fmt.Errorf("make the report: %w", err)
	}
	return out.Bytes(), nil
}

// view is what the page shows.
type view struct {
	*Result
	Columns []report.Column // of the summary
	Rows    [][]string
	Scatter plot
	Latency plot
	Layers  []layerMap
	Cards   []card
	Differ  int // cards whose answers are not all the same
}

// card is a prompt with its answers.
type card struct {
	Prompt
	Number int
	Parts  [][]Part // of each answer
	Same   bool     // all answers are
}

// times writes a ratio, "1.24×".
func times(x *float64) string {
	if x == nil {
		return missing
	}
	return fmt.Sprintf("%.2f×", *x)
}

// Sizes in units of the pictures' own, which are about a phone's width across:
// their words keep a readable size there.
const (
	plotWidth, plotHeight        = 360, 270
	plotLeft, plotRight          = 44, 10
	plotTop, plotBottom          = 12, 40
	mapWidth, mapLeft, mapBottom = 360, 30, 18
	mapHeight                    = 216 // of all rows, as far as the next two allow
	leastRow, mostRow            = 1, 12
	stripWidth, stripHeight      = 240, 14 // of the strips of halves
	numberRoom                   = 14      // between the numbers along a map's sides
)

// plot is a picture of points, ready to be drawn: places are in its own units.
type plot struct {
	Title, X, Y          string
	XTicks, YTicks       []mark
	Points               []point
	Line                 [4]float64 // x, y, x, y: of what is as fast as stock
	Width, Height        float64
	Left, Right, Top, At float64 // of the axes; At is the lower one
}

type mark struct {
	At    float64
	Label string
}

type point struct {
	X, Y   float64
	Way    int // from 1
	Prompt int // from 1
	Title  string
}

// newPlot makes the axes. place gives the places of values on them.
func newPlot(title, xName, yName string, x, y [2]float64) (p plot, place func(x, y float64) (float64, float64)) {
	p = plot{
		Title: title, X: xName, Y: yName, Width: plotWidth, Height: plotHeight,
		Left: plotLeft, Right: plotWidth - plotRight, Top: plotTop, At: plotHeight - plotBottom,
	}
	place = func(vx, vy float64) (float64, float64) {
		return tenth(p.Left + (vx-x[0])/(x[1]-x[0])*(p.Right-p.Left)), tenth(p.At - (vy-y[0])/(y[1]-y[0])*(p.At-p.Top))
	}
	for _, t := range report.Ticks(x[0], x[1]) {
		at, _ := place(t.Value, 0)
		p.XTicks = append(p.XTicks, mark{at, t.Label})
	}
	for _, t := range report.Ticks(y[0], y[1]) {
		_, at := place(0, t.Value)
		p.YTicks = append(p.YTicks, mark{at, t.Label})
	}
	return p, place
}

// tenth rounds a place: finer ones only make the page longer.
func tenth(x float64) float64 { return math.Round(10*x) / 10 }

// room is how much of an axis stays free beyond the outermost points.
const room = 0.06

// scatter draws what skipping brings against what it costs.
func (r *Result) scatter() plot {
	x, y := [2]float64{1, 1}, [2]float64{1, 1}
	for _, p := range r.Prompts {
		for _, a := range p.Answers[1:] {
			if a.DecodeSpeedup != nil && a.Agreement != nil {
				x = [2]float64{min(x[0], *a.DecodeSpeedup), max(x[1], *a.DecodeSpeedup)}
				y[0] = min(y[0], *a.Agreement)
			}
		}
	}
	const least = 0.05 // of an axis, so that equal points lie in the middle of something
	wide, high := max(x[1]-x[0], least), max(y[1]-y[0], least)
	plot, place := newPlot("Speed against agreement", "decode speed, × stock", "agreement with stock, %",
		[2]float64{x[0] - room*wide, x[1] + room*wide}, [2]float64{100 * (1 - (1+room)*high), 100 * (1 + room*high)})
	// There is no more than 100 %.
	for n := len(plot.YTicks); n > 0 && plot.YTicks[n-1].At < plot.Top; n-- {
		plot.YTicks = plot.YTicks[:n-1]
	}
	plot.Line[0], _ = place(1, 0)
	plot.Line = [4]float64{plot.Line[0], plot.Top, plot.Line[0], plot.At}
	for i, p := range r.Prompts {
		for w, a := range p.Answers[1:] {
			if a.DecodeSpeedup == nil || a.Agreement == nil {
				continue
			}
			dot := point{Way: w + 1, Prompt: i + 1}
			dot.X, dot.Y = place(*a.DecodeSpeedup, 100**a.Agreement)
			dot.Title = fmt.Sprintf("%d: %s, %s %% agreement", i+1, times(a.DecodeSpeedup), percent(a.Agreement))
			plot.Points = append(plot.Points, dot)
		}
	}
	return plot
}

// latency draws how long whole answers took.
func (r *Result) latency() plot {
	most := 0.0
	for _, p := range r.Prompts {
		for _, a := range p.Answers {
			most = max(most, a.TotalMS)
		}
	}
	axis := [2]float64{0, max(most, 1) * (1 + room)}
	plot, place := newPlot("Time for the whole answer", "stock, ms", "the same prompt here, ms", axis, axis)
	plot.Line[0], plot.Line[1] = place(0, 0)
	plot.Line[2], plot.Line[3] = place(axis[1], axis[1])
	for i, p := range r.Prompts {
		for w, a := range p.Answers[1:] {
			dot := point{Way: w + 1, Prompt: i + 1}
			dot.X, dot.Y = place(p.Answers[0].TotalMS, a.TotalMS)
			dot.Title = fmt.Sprintf("%d: %s ms, stock %s ms", i+1, report.Short(a.TotalMS), report.Short(p.Answers[0].TotalMS))
			plot.Points = append(plot.Points, dot)
		}
	}
	return plot
}

// cells are outlines of boxes, as an SVG path has them.
type cells struct{ strings.Builder }

func (c *cells) box(x, y, width, height float64) {
	fmt.Fprintf(c, "M%g %gh%gv%gh%gz", tenth(x), tenth(y), tenth(width), tenth(height), -tenth(width))
}

// halves are the outlines of a drawing of halves of layers.
type halves struct{ attention, feedForward, skipped cells }

// half finds the outline for a layer's half under a mask.
func (h *halves) half(mask skip.Mask, layer int, half skip.Half) *cells {
	switch {
	case mask.Skipped(layer)&half != 0:
		return &h.skipped
	case half == skip.Attention:
		return &h.attention
	}
	return &h.feedForward
}

// layerMap shows which halves of layers ran: a line for each prompt.
type layerMap struct {
	Name                            string
	Way                             int
	Width, Height, Left, At         float64
	Attention, FeedForward, Skipped string // outlines
	Prompts, Layers                 []mark // numbers along the sides
}

func (r *Result) layers(way int) layerMap {
	n, rows := r.Settings.Layers, len(r.Prompts)
	row := min(max(mapHeight/float64(rows), leastRow), mostRow)
	layer := float64(mapWidth-mapLeft-1) / float64(n)
	gap := layer / 8 // between layers
	m := layerMap{
		Name: r.Ways[way].Name, Way: way, Width: mapWidth, Height: tenth(row*float64(rows)) + mapBottom, Left: mapLeft, At: tenth(row * float64(rows)),
	}
	var h halves
	for i, p := range r.Prompts {
		for l := range n {
			for k, half := range []skip.Half{skip.Attention, skip.FeedForward} {
				width := (layer - gap) / 2
				h.half(p.Answers[way].Skip, l, half).box(mapLeft+float64(l)*layer+float64(k)*width, float64(i)*row, width, row*0.9)
			}
		}
	}
	m.Attention, m.FeedForward, m.Skipped = h.attention.String(), h.feedForward.String(), h.skipped.String()
	every := int(math.Ceil(numberRoom / row))
	for i := every - 1; i < rows; i += every {
		m.Prompts = append(m.Prompts, mark{tenth((float64(i) + 0.5) * row), fmt.Sprint(i + 1)})
	}
	every = int(math.Ceil(numberRoom / layer))
	for l := 0; l < n; l += every {
		m.Layers = append(m.Layers, mark{tenth(mapLeft + float64(l)*layer + (layer-gap)/2), fmt.Sprint(l)})
	}
	return m
}

// strip shows which halves of layers ran for one answer: attention above,
// feed-forward below.
type strip struct {
	Width, Height                   float64
	Attention, FeedForward, Skipped string // outlines
	Title                           string
}

func newStrip(a Answer, nLayer int) strip {
	layer := stripWidth / float64(nLayer)
	gap := layer / 8
	var h halves
	for l := range nLayer {
		for k, half := range []skip.Half{skip.Attention, skip.FeedForward} {
			h.half(a.Skip, l, half).box(float64(l)*layer, float64(k)*stripHeight/2, layer-gap, stripHeight/2-1)
		}
	}
	s := strip{Width: stripWidth, Height: stripHeight, Title: fmt.Sprintf("%s of %d layers ran", report.Short(a.LayersUsed), nLayer)}
	s.Attention, s.FeedForward, s.Skipped = h.attention.String(), h.feedForward.String(), h.skipped.String()
	if !a.Skip.IsEmpty() {
		s.Title += ", without " + a.Skip.String()
	}
	return s
}
