package report

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/gallop-llm/gallop/internal/files"
)

// Row is what one way to run a model came to, over a set of examples. Figures
// that were not measured are nil, see [Figure].
type Row struct {
	Method  string `json:"method"`            // how the masks were chosen
	Unit    string `json:"unit,omitempty"`    // what they skip: "layer" or "sublayer"
	Prefill string `json:"prefill,omitempty"` // "masked" or "full"

	Depth        *float64 `json:"depth,omitempty"`         // layers' worth of weight bytes that may be skipped; rows of one depth compare
	Cost         *float64 `json:"cost,omitempty"`          // weight bytes read for each token, as a share of the whole model's
	Accuracy     *float64 `json:"accuracy,omitempty"`      // share of right answers, 0 to 1
	AccuracyLow  *float64 `json:"accuracy_low,omitempty"`  // lower end of its 95 % confidence interval
	AccuracyHigh *float64 `json:"accuracy_high,omitempty"` // upper end
	Acc          *float64 `json:"acc,omitempty"`           // share of the choices won by the sum of log-likelihoods
	AccNorm      *float64 `json:"acc_norm,omitempty"`      // the same by the log-likelihood per byte of the choice
	Perplexity   *float64 `json:"perplexity,omitempty"`    // of plain text, e to the loss per token
	Loss         *float64 `json:"loss,omitempty"`          // nats for each token of the right answer
	KL           *float64 `json:"kl,omitempty"`            // divergence from the whole model, nats for each token
	Agreement    *float64 `json:"agreement,omitempty"`     // share of tokens whose likeliest choice is the whole model's, 0 to 1
	MeanDepth    *float64 `json:"mean_depth,omitempty"`    // what was skipped in fact, over the examples
	Speedup      *float64 `json:"speedup,omitempty"`       // decode speed, as a multiple of the whole model's
	TTFT         *float64 `json:"ttft_ms,omitempty"`       // time to the first token of a prompt of median length in milliseconds: the prefill, and where that is masked, routing before it
	Escalated    *float64 `json:"escalated,omitempty"`     // share of tokens that the whole model decided, 0 to 1
}

// Figure is what a [Row] holds for x: nil when x is NaN or infinite.
func Figure(x float64) *float64 {
	if !finite(x) {
		return nil
	}
	return &x
}

// WriteJSON writes rows to path as a JSON array, a row a line. The file is there
// whole or not at all. Figures that are NaN or infinite are left out.
func WriteJSON(path string, rows []Row) error {
	text := []byte("[")
	for i, row := range rows {
		for _, f := range row.figures() {
			if *f != nil {
				*f = Figure(**f)
			}
		}
		line, err := json.Marshal(row)
		if err != nil {
			return fmt.Errorf("row %d: %w", i, err)
		}
		if i > 0 {
			text = append(text, ',')
		}
		text = append(append(text, '\n'), line...)
	}
	if err := files.Write(path, append(text, "\n]\n"...)); err != nil {
		return fmt.Errorf("cannot write the results: %w", err)
	}
	return nil
}

func (r *Row) figures() []**float64 {
	return []**float64{&r.Depth, &r.Cost, &r.Accuracy, &r.AccuracyLow, &r.AccuracyHigh, &r.Acc, &r.AccNorm, &r.Perplexity,
		&r.Loss, &r.KL, &r.Agreement, &r.MeanDepth, &r.Speedup, &r.TTFT, &r.Escalated}
}

// direction says which figures of a column are better.
type direction int

const (
	neither direction = iota // it is a setting, or goes with the depth
	higher
	lower
)

// measures are the columns of [Results].
var measures = []struct {
	column Column
	text   func(Row) string
	better direction
	figure func(Row) *float64 // that is better or worse
}{
	{column: Column{Name: "depth"}, text: func(r Row) string { return depth(r.Depth) }},
	{column: Column{Name: "method", Left: true}, text: func(r Row) string { return r.Method }},
	{column: Column{Name: "unit", Left: true}, text: func(r Row) string { return r.Unit }},
	{column: Column{Name: "prefill", Left: true}, text: func(r Row) string { return r.Prefill }},
	{column: Column{Name: "accuracy %"}, better: higher, figure: func(r Row) *float64 { return r.Accuracy },
		text: func(r Row) string { return Interval(number(r.Accuracy), number(r.AccuracyLow), number(r.AccuracyHigh)) }},
	{column: Column{Name: "acc %"}, better: higher, figure: func(r Row) *float64 { return r.Acc },
		text: func(r Row) string { return Percent(number(r.Acc)) }},
	{column: Column{Name: "acc_norm %"}, better: higher, figure: func(r Row) *float64 { return r.AccNorm },
		text: func(r Row) string { return Percent(number(r.AccNorm)) }},
	{column: Column{Name: "perplexity"}, better: lower, figure: func(r Row) *float64 { return r.Perplexity },
		text: func(r Row) string { return decimals(number(r.Perplexity), 2) }},
	{column: Column{Name: "loss"}, better: lower, figure: func(r Row) *float64 { return r.Loss },
		text: func(r Row) string { return decimals(number(r.Loss), 3) }},
	{column: Column{Name: "KL"}, better: lower, figure: func(r Row) *float64 { return r.KL },
		text: func(r Row) string { return decimals(number(r.KL), 4) }},
	{column: Column{Name: "agreement %"}, better: higher, figure: func(r Row) *float64 { return r.Agreement },
		text: func(r Row) string { return Percent(number(r.Agreement)) }},
	{column: Column{Name: "cost %"}, text: func(r Row) string { return Percent(number(r.Cost)) }},
	{column: Column{Name: "mean depth"}, text: func(r Row) string { return decimals(number(r.MeanDepth), 2) }},
	{column: Column{Name: "speed-up"}, text: func(r Row) string { return times(number(r.Speedup)) }},
	{column: Column{Name: "first token ms"}, text: func(r Row) string { return decimals(number(r.TTFT), 2) }},
	{column: Column{Name: "escalated %"}, text: func(r Row) string { return Percent(number(r.Escalated)) }},
}

// Results turns rows into a table for [Table] and [Markdown]: groups of one depth,
// the shallowest first, otherwise in the given order. The best accuracy, loss,
// KL divergence and agreement of each group end in [BestMark]; figures that
// read the same are equally good. Columns without any figure are left out.
func Results(rows []Row) (columns []Column, cells [][]string) {
	rows = slices.Clone(rows)
	slices.SortStableFunc(rows, func(x, y Row) int { return compare(x.Depth, y.Depth) })
	for i, row := range rows {
		if i > 0 && depth(row.Depth) != depth(rows[i-1].Depth) {
			cells = append(cells, nil)
		}
		cells = append(cells, make([]string, 0, len(measures)))
	}
	for _, m := range measures {
		texts := make([]string, len(rows))
		for i, row := range rows {
			texts[i] = m.text(row)
		}
		if !slices.ContainsFunc(texts, func(t string) bool { return t != "" && t != missing }) {
			continue
		}
		if m.better != neither {
			for from := 0; from < len(rows); {
				to := from + 1
				for to < len(rows) && depth(rows[to].Depth) == depth(rows[from].Depth) {
					to++
				}
				markBest(rows[from:to], texts[from:to], m.figure, m.better)
				from = to
			}
		}
		columns = append(columns, m.column)
		next := 0
		for i := range cells {
			if cells[i] == nil {
				continue // the line between two groups
			}
			cells[i] = append(cells[i], texts[next])
			next++
		}
	}
	return columns, cells
}

// markBest marks the best texts of a group, unless there is nothing to compare.
func markBest(rows []Row, texts []string, figure func(Row) *float64, better direction) {
	best, measured := -1, 0
	for i, row := range rows {
		x := number(figure(row))
		if !finite(x) {
			continue
		}
		measured++
		if best < 0 || better == higher && x > *figure(rows[best]) || better == lower && x < *figure(rows[best]) {
			best = i
		}
	}
	if measured < 2 {
		return
	}
	// Cells with intervals count as equal when their figures, the first words, are.
	first := func(text string) string { word, _, _ := strings.Cut(text, " "); return word }
	want := first(texts[best])
	for i, text := range texts {
		if first(text) == want {
			texts[i] = text + BestMark
		}
	}
}

// missing stands for what was not measured.
const missing = "–"

// Percent writes a share, 0 to 1, as percent with one decimal.
func Percent(share float64) string { return decimals(100*share, 1) }

// Interval writes a share and its confidence interval as percent,
// "93.1 (91.5–94.6)"; without the interval when either end is NaN.
func Interval(share, low, high float64) string {
	if !finite(share) || !finite(low) || !finite(high) {
		return Percent(share)
	}
	return fmt.Sprintf("%s (%s–%s)", Percent(share), Percent(low), Percent(high))
}

func times(x float64) string {
	if !finite(x) {
		return missing
	}
	return decimals(x, 2) + "×"
}

func decimals(x float64, n int) string {
	if !finite(x) {
		return missing
	}
	text := strconv.FormatFloat(x, 'f', n, 64)
	if zero := strconv.FormatFloat(0, 'f', n, 64); text == "-"+zero {
		return zero // a difference that rounds away has no sign
	}
	return text
}

// depth writes a depth with as many decimals as it needs, two at most.
func depth(x *float64) string {
	v := number(x)
	if !finite(v) {
		return missing
	}
	return strconv.FormatFloat(math.Round(100*v)/100, 'f', -1, 64)
}

// number is the figure at x, NaN when there is none.
func number(x *float64) float64 {
	if x == nil {
		return math.NaN()
	}
	return *x
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }
