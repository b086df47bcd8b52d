package inspect

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode"

	"github.com/dustin/go-humanize"
)

// TextOptions says how [Model.WriteText] writes; nil means the defaults.
type TextOptions struct {
	// Color marks the bars of the picture in colours. The two halves of a layer
	// also differ in their characters, so that nothing is lost without.
	Color bool

	// Columns is how wide the terminal is, in characters; 0 = not known. Bars become
	// shorter on a narrow one.
	Columns int
}

// The length of the longest bar, in characters, where there is room for it, and at least,
// and what stands around it.
const (
	barWidth, leastBar = 36, 4
	aroundBar          = 31
)

// templateLines is how much of the chat template the report shows.
const templateLines = 5

// The two kinds of bar: their character and the colour that a terminal gives it.
const (
	attentionBar, attentionColor     = "█", "\x1b[36m" // cyan
	feedForwardBar, feedForwardColor = "░", "\x1b[33m" // yellow
	plain                            = "\x1b[0m"
)

// WriteText writes the model as a table, with a picture of its layers.
func (m *Model) WriteText(w io.Writer, opts *TextOptions) error {
	if opts == nil {
		opts = &TextOptions{}
	}
	var b strings.Builder
	for _, row := range m.rows() {
		fmt.Fprintf(&b, "%-15s %s\n", row[0], row[1])
	}
	m.writeTemplate(&b)
	m.writeLayers(&b, opts)
	_, err := io.WriteString(w, b.String())
	return err
}

// rows are the lines of the table that have something to say.
func (m *Model) rows() [][2]string {
	all := [][2]string{
		{"file", Printable(m.Path)},
		{"name", Printable(m.Name)},
		{"architecture", Printable(m.Architecture)},
		{"parameters", short(m.Parameters)},
		{"size", humanize.IBytes(uint64(m.FileBytes))},
		{"quantisation", m.quantisation()},
		{"layers", m.layerSummary()},
		{"context", tokens(m.ContextLength)},
		{"embedding", count(m.EmbeddingWidth, "wide")},
		{"heads", m.heads()},
		{"feed-forward", unlessEmpty(span(m.FeedForward), " wide")},
		{"experts", m.experts()},
		{"tokenizer", Printable(m.Tokenizer)},
		{"vocabulary", tokens(uint64(m.Vocabulary))},
		{"output matrix", m.output()},
		{"pruned", m.pruned()},
		{"split", count(m.SplitFiles, "files make up the model")},
	}
	return slices.DeleteFunc(all, func(row [2]string) bool { return row[1] == "" })
}

// output says what the output matrix weighs, most of which a vocabulary shortlist spares.
func (m *Model) output() string {
	if m.OutputBytes == 0 {
		return ""
	}
	return fmt.Sprintf("%s, %.0f %% of a token's bytes", humanize.IBytes(m.OutputBytes), 100*m.OutputShare)
}

// writeTemplate shows the beginning of the chat template.
func (m *Model) writeTemplate(b *strings.Builder) {
	if m.ChatTemplate == "" {
		fmt.Fprintf(b, "%-15s none\n", "chat template")
		return
	}
	lines := strings.Split(strings.TrimRight(m.ChatTemplate, "\n"), "\n")
	for i, line := range lines[:min(len(lines), templateLines)] {
		label := ""
		if i == 0 {
			label = "chat template"
		}
		fmt.Fprintln(b, strings.TrimRight(fmt.Sprintf("%-15s %s", label, shorten(Printable(line))), " "))
	}
	if rest := len(lines) - templateLines; rest > 0 {
		fmt.Fprintf(b, "%-15s … %d more lines: --template\n", "", rest)
	}
}

// shorten cuts a line that would not fit beside its label.
func shorten(line string) string {
	const width = 62 // characters
	if runes := []rune(line); len(runes) > width {
		return string(runes[:width-1]) + "…"
	}
	return line
}

// writeLayers draws a row for each layer: a bar of attention, then feed-forward.
func (m *Model) writeLayers(b *strings.Builder, opts *TextOptions) {
	if len(m.Layers) == 0 {
		return
	}
	paint := func(bar, code string) string {
		if !opts.Color || bar == "" {
			return bar
		}
		return code + bar + plain
	}
	fmt.Fprintf(b, "\nlayer  %s attention  %s feed-forward\n", paint(attentionBar, attentionColor), paint(feedForwardBar, feedForwardColor))
	largest := slices.MaxFunc(m.Layers, func(x, y Layer) int { return cmp.Compare(x.Bytes(), y.Bytes()) }).Bytes()
	longest := barWidth
	if opts.Columns > 0 {
		longest = min(max(opts.Columns-aroundBar, leastBar), barWidth)
	}
	cells := func(bytes uint64) int {
		return int(math.Round(float64(longest) * float64(bytes) / float64(max(largest, 1))))
	}
	for i, l := range m.Layers {
		nAttention := cells(l.Attention)
		nFeedForward := max(cells(l.Bytes())-nAttention, 0)
		fmt.Fprintf(b, "%5d  %s%s%s  %9s + %9s\n", i,
			paint(strings.Repeat(attentionBar, nAttention), attentionColor),
			paint(strings.Repeat(feedForwardBar, nFeedForward), feedForwardColor),
			strings.Repeat(" ", max(longest-nAttention-nFeedForward, 0)),
			humanize.IBytes(l.Attention), humanize.IBytes(l.FeedForward))
	}
}

// quantisation lists the types, "Q4_0 82.1 %, F32 17.9 %".
func (m *Model) quantisation() string {
	var parts []string
	for _, t := range m.Types {
		parts = append(parts, fmt.Sprintf("%s %.1f %%", t.Type, 100*t.Share))
	}
	if len(parts) == 0 {
		return ""
	}
	return strings.Join(parts, ", ") + " of the bytes"
}

func (m *Model) layerSummary() string {
	if len(m.Layers) == 0 {
		return "none: this is no language model"
	}
	share := 100 * float64(m.LayerBytes()) / float64(max(m.TensorBytes, 1))
	return fmt.Sprintf("%d, with %s, %.1f %% of the weights", len(m.Layers), humanize.IBytes(m.LayerBytes()), share)
}

func (m *Model) heads() string {
	heads, kv := span(m.Heads), span(m.KVHeads)
	if heads == "" || heads == kv {
		return heads
	}
	return fmt.Sprintf("%s, %s for keys and values", heads, kv)
}

func (m *Model) experts() string {
	if m.Experts == 0 {
		return ""
	}
	return fmt.Sprintf("%d, %d for each token", m.Experts, m.ExpertsUsed)
}

func (m *Model) pruned() string {
	if len(m.PrunedLayers) == 0 {
		return ""
	}
	return "layers " + strings.Trim(strings.ReplaceAll(fmt.Sprint(m.PrunedLayers), " ", ","), "[]") + " of the original are gone"
}

// span writes values that are mostly the same: "8", or "4 to 8".
func span(values []uint64) string {
	if len(values) == 0 {
		return ""
	}
	low, high := slices.Min(values), slices.Max(values)
	if low == high {
		return fmt.Sprint(low)
	}
	return fmt.Sprintf("%d to %d", low, high)
}

func unlessEmpty(s, unit string) string {
	if s == "" {
		return ""
	}
	return s + unit
}

func count(n uint64, unit string) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d %s", n, unit)
}

func tokens(n uint64) string { return count(n, "tokens") }

// short writes a large number as people say it, "7.2 B".
func short(n uint64) string {
	for _, unit := range []struct {
		size uint64
		name string
	}{{1e9, "B"}, {1e6, "M"}, {1e3, "k"}} {
		if n >= unit.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(unit.size), unit.name)
		}
	}
	return fmt.Sprint(n)
}

// Printable replaces what would move the cursor or colour the screen: text from
// a file must not.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}
