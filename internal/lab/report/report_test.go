package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var nan = math.NaN()

// failing is a writer that takes nothing.
type failing struct{}

var errFull = errors.New("full")

func (failing) Write([]byte) (int, error) { return 0, errFull }

func TestWriteJSON(t *testing.T) {
	path := filepath.Join(t.TempDir(), "eval.json")
	rows := []Row{
		{Method: "full model", Depth: Figure(0), KL: Figure(0), Cost: Figure(1), Accuracy: Figure(0.991)},
		{Method: "routed", Unit: "sublayer", Prefill: "masked", Depth: Figure(3), Loss: &nan, Escalated: Figure(math.Inf(1))},
	}
	require.NoError(t, WriteJSON(path, rows))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, `[
{"method":"full model","depth":0,"cost":1,"accuracy":0.991,"kl":0},
{"method":"routed","unit":"sublayer","prefill":"masked","depth":3}
]
`, string(text))
	require.NotNil(t, rows[1].Loss, "the caller's rows stay as they are")

	var back []Row
	require.NoError(t, json.Unmarshal(text, &back))
	require.Equal(t, rows[0], back[0])

	require.NoError(t, WriteJSON(path, nil))
	text, err = os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &back))
	require.Empty(t, back)

	require.ErrorIs(t, WriteJSON(filepath.Join(t.TempDir(), "none", "x.json"), rows), os.ErrNotExist)
}

// results is a table as gallop eval writes it, in no order of depth.
func results() []Row {
	row := func(method, unit string, depth, accuracy, loss, cost float64) Row {
		return Row{Method: method, Unit: unit, Depth: Figure(depth), Loss: Figure(loss), Cost: Figure(cost),
			Accuracy: Figure(accuracy), AccuracyLow: Figure(accuracy - 0.02), AccuracyHigh: Figure(accuracy + 0.01)}
	}
	return []Row{
		row("best single set", "layer", 3, 0.76, 0.9, 0.75),
		row("routed", "layer", 3, 0.88, 0.4, 0.75),
		row("routed", "sublayer", 3, 0.98, 0.4001, 0.75),
		row("routed", "sublayer", 4, 0.86, 0.5, nan),
		{Method: "full model", Depth: Figure(0), Accuracy: Figure(1), Loss: Figure(0.101)},
	}
}

func TestResultsAsText(t *testing.T) {
	columns, cells := Results(results())
	var b strings.Builder
	require.NoError(t, Table(&b, columns, cells))
	require.Equal(t, `
depth  method           unit            accuracy %     loss    cost %
─────  ───────────────  ────────  ────────────────    ─────    ──────
    0  full model                            100.0    0.101         –

    3  best single set  layer     76.0 (74.0–77.0)    0.900      75.0
    3  routed           layer     88.0 (86.0–89.0)    0.400 *    75.0
    3  routed           sublayer  98.0 (96.0–99.0) *  0.400 *    75.0

    4  routed           sublayer  86.0 (84.0–87.0)    0.500         –
`, "\n"+b.String())
}

func TestResultsAsMarkdown(t *testing.T) {
	columns, cells := Results(results())
	var b strings.Builder
	require.NoError(t, Markdown(&b, columns, cells))
	require.Equal(t, `
| depth | method          | unit     |           accuracy % |      loss | cost % |
| ----: | --------------- | -------- | -------------------: | --------: | -----: |
|     0 | full model      |          |                100.0 |     0.101 |      – |
|     3 | best single set | layer    |     76.0 (74.0–77.0) |     0.900 |   75.0 |
|     3 | routed          | layer    |     88.0 (86.0–89.0) | **0.400** |   75.0 |
|     3 | routed          | sublayer | **98.0 (96.0–99.0)** | **0.400** |   75.0 |
|     4 | routed          | sublayer |     86.0 (84.0–87.0) |     0.500 |      – |
`, "\n"+b.String())
}

func TestResultsOfNothing(t *testing.T) {
	columns, cells := Results(nil)
	require.Empty(t, columns)
	require.Empty(t, cells)
	var b strings.Builder
	require.NoError(t, Table(&b, columns, cells))
	require.NoError(t, Markdown(&b, columns, cells))
	require.Empty(t, b.String())

	columns, cells = Results([]Row{{Method: "only a name"}, {Method: "and another", KL: &nan}})
	require.Equal(t, []Column{{Name: "method", Left: true}}, columns)
	require.Equal(t, [][]string{{"only a name"}, {"and another"}}, cells)
}

func TestTable(t *testing.T) {
	columns := []Column{{Name: "task", Left: true, Max: 10}, {Name: "n"}}
	var b strings.Builder
	require.NoError(t, Table(&b, columns, [][]string{
		{"a very long task name", "1"}, {"日本語日本語", "22"}, nil, {"esc\x1b[31m", "333"}, {"👩‍👩‍👧 é", ""},
	}))
	require.Equal(t, `
task          n
──────────  ───
a very lo…    1
日本語日…    22

esc�[31m    333
👩‍👩‍👧 é
`, "\n"+b.String())

	b.Reset()
	require.NoError(t, Markdown(&b, columns, [][]string{{"a|b *c* <d>\n\\", "1"}}))
	require.Equal(t, `
| task                 |   n |
| -------------------- | --: |
| a\|b \*c\* &lt;d> \\ |   1 |
`, "\n"+b.String())
}

func TestTableErrors(t *testing.T) {
	for name, write := range map[string]func([]Column, [][]string) error{
		"text":     func(c []Column, r [][]string) error { return Table(&bytes.Buffer{}, c, r) },
		"markdown": func(c []Column, r [][]string) error { return Markdown(&bytes.Buffer{}, c, r) },
	} {
		t.Run(name, func(t *testing.T) {
			err := write([]Column{{Name: "a"}}, [][]string{{"1"}, {"1", "2"}})
			require.ErrorIs(t, err, ErrShape)
			require.ErrorContains(t, err, "row 1")
		})
	}
	require.ErrorIs(t, Table(failing{}, []Column{{Name: "a"}}, nil), errFull)
	require.ErrorIs(t, Markdown(failing{}, []Column{{Name: "a"}}, nil), errFull)
}

func TestFigures(t *testing.T) {
	require.Equal(t, "93.1 (91.5–94.6)", Interval(0.931, 0.915, 0.946))
	require.Equal(t, "93.1", Interval(0.931, nan, 0.946))
	require.Equal(t, "–", Interval(nan, 0.915, 0.946))
	require.Equal(t, "0.0", Percent(-0.0001))
	require.Equal(t, "–", Percent(math.Inf(1)))
	for x, want := range map[float64]string{
		0: "0", -0.25: "-0.25", 1000: "1000", 0.30000000000000004: "0.3", 123456: "123000", 1e-7: "1e-07", 2.5e9: "2.5e+09", 12.345: "12.3",
	} {
		require.Equal(t, want, Short(x))
	}
	require.Equal(t, "0", Short(math.Copysign(0, -1)))
}

func TestBars(t *testing.T) {
	items := []Bar{
		{Label: "f3,f4", Value: 0.8, Note: "depth 1"},
		{Label: "4,6,9-11", Value: 0.3, Note: "depth 3", Chosen: true},
		{Label: "all of the layers there are", Value: 0.001},
		{Label: "none", Value: 0},
		{Label: "unknown", Value: nan, Note: "a note that is far too long for its place"},
	}
	require.Equal(t, `
  f3,f4             █████████    0.8  depth 1
→ 4,6,9-11          ███▍         0.3  depth 3
  all of the laye…  ▏          0.001
  none                             0
  unknown                          –  a note that…
`, "\n"+bars(items, 50, false))
}

func TestBarsBelowZero(t *testing.T) {
	require.Equal(t, `
  a        ██████████████████      3
  b  ██████                       -1
  c      ▐█                    -0.25
`, "\n"+bars([]Bar{{Label: "a", Value: 3}, {Label: "b", Value: -1}, {Label: "c", Value: -0.25}}, 36, false))
	require.Equal(t, `
  a         ▐███████  -1
  b  ███████████████  -2
`, "\n"+bars([]Bar{{Label: "a", Value: -1}, {Label: "b", Value: -2}}, leastWidth, false))
}

func TestBarsInColour(t *testing.T) {
	require.Equal(t, "  a  \x1b[36m████    \x1b[0m  1\n\x1b[32m→ \x1b[0mb  \x1b[32m████████\x1b[0m  2\n",
		bars([]Bar{{Label: "a", Value: 1}, {Label: "b", Value: 2, Chosen: true}}, 16, true))
	var b bytes.Buffer
	require.NoError(t, Bars(&b, []Bar{{Label: "a", Value: 1, Chosen: true}}, 0))
	require.NotContains(t, b.String(), "\x1b", "a buffer is no terminal")
	require.Equal(t, defaultWidth, textWidth(strings.TrimSuffix(b.String(), "\n")), "width 0")
}

func TestBarsOfNothing(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, Bars(&b, nil, 80))
	require.Empty(t, b.String())
	require.ErrorIs(t, Bars(failing{}, []Bar{{Label: "a"}}, 80), errFull)
}

// grid is two tasks over the halves of four layers, one value far above the others.
func grid() Grid {
	return Grid{
		Title: "What each task needs", Label: "nats per token", Across: "layer",
		Rows:    []string{"sums", "translation"},
		Columns: []string{"0", "", "1", "", "2", "", "3", ""},
		Values: [][]float64{
			{10, 0.01, 0.2, 0.02, 0.01, nan, -0.5, 3},
			{0.05, 0.05, 0.6, 0.04, 0.03, 0.02, 0.01, 0.3},
		},
	}
}

func TestHeat(t *testing.T) {
	require.Equal(t, `
What each task needs
layer        0       1       2       3
sums         ████░░░░▒▒▒▒░░░░░░░░····░░░░████
translation  ░░░░░░░░▓▓▓▓░░░░░░░░░░░░░░░░▒▒▒▒
nats per token:  ░ ≤ 0.0562  ▒ ≤ 0.316
▓ ≤ 1.78  █ ≤ 10  · not measured
`, "\n"+heat(grid(), 47, false))
}

func TestHeatInBlocks(t *testing.T) {
	g := Grid{Rows: []string{"a task"}, Values: [][]float64{nil}}
	for l := range 20 {
		g.Columns = append(g.Columns, fmt.Sprint(l), "")
		g.Values[0] = append(g.Values[0], float64(l), float64(l))
	}
	require.Equal(t, `
        0   2   4   6
a task  ░░░░░░░░░░▒▒▒▒▒▒

        8   10  12  14
a task  ▒▒▒▒▓▓▓▓▓▓▓▓▓▓██

        16  18
a task  ████████
░ ≤ 4.75  ▒ ≤ 9.5
▓ ≤ 14.2  █ ≤ 19
`, "\n"+heat(g, leastWidth, false))
}

func TestHeatInColour(t *testing.T) {
	g := Grid{Label: "nats", Rows: []string{"a"}, Columns: []string{"0", "1", "2"}, Values: [][]float64{{0, 1, nan}}}
	text := heat(g, leastWidth, true)
	require.Contains(t, text, "a  \x1b[48;2;255;255;217m    \x1b[0m\x1b[48;2;8;29;88m    \x1b[0m····\n")
	require.Contains(t, text, "nats:\n0 \x1b[48;2;255;255;217m \x1b[0m")
	require.Contains(t, text, "\x1b[48;2;8;29;88m \x1b[0m 1\n· not measured\n")
}

func TestHeatOfLittle(t *testing.T) {
	for _, c := range []struct {
		name string
		grid Grid
		want string
	}{
		{"empty", Grid{}, ""},
		{"no columns", Grid{Rows: []string{"a"}, Values: [][]float64{nil}}, ""},
		{"nothing measured", Grid{Rows: []string{"a"}, Columns: []string{"0"}, Values: [][]float64{{nan}}}, "   0\na  ····\n"},
		{"one value", Grid{Rows: []string{"a"}, Columns: []string{"0"}, Values: [][]float64{{2}}}, "   0\na  ░░░░\n░ 2\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b bytes.Buffer
			require.NoError(t, Heat(&b, c.grid, 40))
			require.Equal(t, c.want, b.String())
		})
	}
	require.ErrorIs(t, Heat(failing{}, grid(), 40), errFull)
}

func TestScale(t *testing.T) {
	s, ok := newScale([][]float64{{1, 2, 3}, {nan, math.Inf(1)}})
	require.True(t, ok)
	require.Equal(t, scale{low: 1, high: 3}, s, "values alike: linear")
	require.Equal(t, 0.5, s.share(2))
	require.True(t, math.IsNaN(s.share(nan)))

	s, _ = newScale([][]float64{{1e-9, -4, 0.01, 0.02, 5}})
	require.Equal(t, scale{low: 5.0 / scaleRange, high: 5, log: true}, s, "a heavy tail: logarithmic, from where it matters")
	require.Zero(t, s.share(-4))
	require.Equal(t, 1.0, s.share(5))
	for _, share := range []float64{0, 0.3, 1} {
		require.InDelta(t, share, s.share(s.value(share)), 1e-12) // rounding of log and pow
	}
	_, ok = newScale([][]float64{{nan}, nil})
	require.False(t, ok)
}

// What is drawn is never wider than asked for.
func TestWidths(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	name := func() string {
		return strings.Repeat([]string{"ab", "日", "é", "👩‍👩‍👧", " "}[r.IntN(5)], r.IntN(20))
	}
	for range 300 {
		width := leastWidth + r.IntN(100)
		var items []Bar
		for range r.IntN(6) {
			items = append(items, Bar{Label: name(), Value: r.NormFloat64(), Note: name(), Chosen: r.IntN(2) == 0})
		}
		g := Grid{Title: name(), Label: name(), Across: name()}
		for range r.IntN(200) {
			g.Columns = append(g.Columns, []string{"", "7", "120"}[r.IntN(3)])
		}
		for range 3 {
			g.Rows = append(g.Rows, name())
			row := make([]float64, len(g.Columns))
			for i := range row {
				row[i] = math.Exp(5 * r.NormFloat64())
			}
			g.Values = append(g.Values, row)
		}
		skipped := make([]bool, r.IntN(200))
		text := bars(items, width, false) + heat(g, width, false) + layerMap(skipped, skipped, width, false)
		for line := range strings.Lines(text) {
			line = strings.TrimSuffix(line, "\n")
			require.LessOrEqual(t, textWidth(line), width, "%q", line)
		}
	}
}

func TestMap(t *testing.T) {
	attention := []bool{false, true, false, true, false}
	feedForward := []bool{false, false, true, true, false}
	require.Equal(t, "█░ ·░ █· ·· █░\n", layerMap(attention, feedForward, 80, false))
	require.Equal(t, "█░·░█···█░\n", layerMap(attention, feedForward, 13, false))
	require.Equal(t, "█░·░█···\n█░\n", layerMap(attention, feedForward, 9, false))
	require.Equal(t, "\x1b[36m█\x1b[0m· ·\x1b[33m░\x1b[0m\n", layerMap([]bool{false, true}, []bool{true, false}, 80, true))

	var b bytes.Buffer
	require.NoError(t, Map(&b, nil, nil, 80))
	require.Empty(t, b.String())
	require.ErrorIs(t, Map(&b, attention, nil, 80), ErrShape)
	require.NoError(t, MapLegend(&b))
	require.Equal(t, "█ attention  ░ feed-forward  · skipped\n", b.String())
}

func TestWidth(t *testing.T) {
	require.Equal(t, defaultWidth, Width(&bytes.Buffer{}))
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	require.NoError(t, err)
	defer file.Close()
	require.Equal(t, defaultWidth, Width(file))
	require.False(t, colorful(file))
}

// decode reads a picture and counts its colours.
func decode(t *testing.T, path string) (picture image.Image, colors int) {
	t.Helper()
	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	picture, err = png.Decode(file)
	require.NoError(t, err)
	seen := map[color.Color]bool{}
	for y := range picture.Bounds().Dy() {
		for x := range picture.Bounds().Dx() {
			seen[picture.At(x, y)] = true
		}
	}
	return picture, len(seen)
}

// has tells whether a colour is in a picture.
func has(picture image.Image, want color.RGBA) bool {
	for y := range picture.Bounds().Dy() {
		for x := range picture.Bounds().Dx() {
			if color.RGBAModel.Convert(picture.At(x, y)) == want {
				return true
			}
		}
	}
	return false
}

func TestCurvePNG(t *testing.T) {
	path := filepath.Join(t.TempDir(), "curve.png")
	require.NoError(t, CurvePNG(path, "Accuracy", "mean depth (layers)", "accuracy (%)", []Series{
		{Name: "full", X: []float64{0}, Y: []float64{99}, Low: []float64{98}, High: []float64{99.5}},
		{Name: "routed", X: []float64{1, 2, 3, 4, 5}, Y: []float64{99, 97, nan, 90, 80}, Low: []float64{98, 95, nan, 85, nan}, High: []float64{100, 98, nan, 95, nan}},
		{Name: strings.Repeat("a name that is much too long ", 9), X: []float64{1, 2}, Y: []float64{99, 70}, Dashed: true},
		{Name: "no points"},
	}))
	picture, colors := decode(t, path)
	require.Equal(t, image.Rect(0, 0, 1632, 960), picture.Bounds())
	require.Greater(t, colors, 50, "lines, bands, text and what lies between them")
	for _, c := range palette[:3] {
		require.True(t, has(picture, c), "series in colour %v", c)
	}
	again := filepath.Join(t.TempDir(), "again.png")
	require.NoError(t, CurvePNG(again, "one point", "x", "y", []Series{{X: []float64{3}, Y: []float64{0}}}))
	_, colors = decode(t, again)
	require.Greater(t, colors, 10)
}

// TestCurveSVG draws more series than there are colours: all must differ.
func TestCurveSVG(t *testing.T) {
	var series []Series
	for i := range 15 {
		series = append(series, Series{Name: fmt.Sprint("method ", i), X: []float64{1, 2}, Y: []float64{3, 4 + float64(i)}})
	}
	data, err := CurveSVG("Accuracy", "speed", "accuracy (%)", series)
	require.NoError(t, err)
	require.NoError(t, xml.Unmarshal(data, &struct{}{}))
	for _, s := range series {
		require.Contains(t, string(data), s.Name)
	}
	again, err := CurveSVG("Accuracy", "speed", "accuracy (%)", series)
	require.NoError(t, err)
	require.Equal(t, string(data), string(again))
	_, err = CurveSVG("none", "x", "y", nil)
	require.ErrorIs(t, err, ErrEmpty)
}

func TestCurvePNGErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "curve.png")
	for name, c := range map[string]struct {
		series []Series
		want   error
	}{
		"no series":      {nil, ErrEmpty},
		"only NaN":       {[]Series{{X: []float64{1}, Y: []float64{nan}}}, ErrEmpty},
		"x without y":    {[]Series{{X: []float64{1}}}, ErrShape},
		"short interval": {[]Series{{X: []float64{1, 2}, Y: []float64{1, 2}, Low: []float64{1}, High: []float64{1}}}, ErrShape},
		"low alone":      {[]Series{{X: []float64{1}, Y: []float64{1}, Low: []float64{1}}}, ErrShape},
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorIs(t, CurvePNG(path, "t", "x", "y", c.series), c.want)
			require.NoFileExists(t, path)
		})
	}
	series := []Series{{X: []float64{1}, Y: []float64{1}}}
	require.ErrorIs(t, CurvePNG(filepath.Join(t.TempDir(), "none", "x.png"), "t", "x", "y", series), os.ErrNotExist)
}

func TestTicks(t *testing.T) {
	for _, c := range []struct {
		low, high float64
		want      string
	}{
		{-0.16, 4.16, "0 1 2 3 4"}, {42.6, 102.3, "50 60 70 80 90 100"}, {0.6, 1.02, "0.6 0.7 0.8 0.9 1"}, {-1, 1, "-1 -0.5 0 0.5 1"},
		{1e16, 1e16 + 4, "1e+16"}, // steps that numbers of this size hardly know
	} {
		var labels []string
		for _, tick := range Ticks(c.low, c.high) {
			if n := len(labels); n == 0 || labels[n-1] != tick.Label {
				labels = append(labels, tick.Label)
			}
		}
		require.Equal(t, c.want, strings.Join(labels, " "))
	}
}

func TestHeatPNG(t *testing.T) {
	path := filepath.Join(t.TempDir(), "heat.png")
	require.NoError(t, HeatPNG(path, grid()))
	small, colors := decode(t, path)
	require.Greater(t, colors, 50, "cells, the colour bar and text")
	require.True(t, has(small, heatColor(1)) && has(small, heatColor(0)) && has(small, noColor))

	g := grid()
	for range 5 {
		g.Rows = append(g.Rows, g.Rows...)
		g.Values = append(g.Values, g.Values...)
	}
	require.NoError(t, HeatPNG(path, g))
	large, _ := decode(t, path)
	require.Equal(t, small.Bounds().Dx(), large.Bounds().Dx())
	require.Greater(t, large.Bounds().Dy(), 3*small.Bounds().Dy(), "more rows make a higher picture")

	require.NoError(t, HeatPNG(path, Grid{Rows: []string{""}, Columns: []string{""}, Values: [][]float64{{7}}}))
	_, colors = decode(t, path)
	require.Greater(t, colors, 10)
}

func TestHeatErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "heat.png")
	for name, g := range map[string]Grid{
		"rows":    {Rows: []string{"a"}},
		"columns": {Rows: []string{"a"}, Columns: []string{"0"}, Values: [][]float64{{1, 2}}},
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorIs(t, HeatPNG(path, g), ErrShape)
			require.ErrorIs(t, Heat(&bytes.Buffer{}, g, 80), ErrShape)
		})
	}
	require.ErrorIs(t, HeatPNG(path, Grid{}), ErrEmpty)
	require.ErrorIs(t, HeatPNG(path, Grid{Rows: []string{"a"}, Columns: []string{"0"}, Values: [][]float64{{nan}}}), ErrEmpty)
	require.NoFileExists(t, path)
}
