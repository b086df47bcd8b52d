package bench

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gallop-llm/gallop/internal/lab/report"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Row is what a model came to under a mask. Speeds are in tokens per second;
// ratios are of speeds, above 1 is faster. Those without "prefill" in their
// names are of decoding. What was not measured is nil.
type Row struct {
	Model   string    `json:"model"` // the file's name
	Shape   string    `json:"shape"` // the model whose shape random weights have; "" = a model of its own
	Type    string    `json:"type"`  // of most weights
	Mask    skip.Mask `json:"mask"`  // empty = the whole model, "stock"
	Depth   float64   `json:"depth"` // that the mask skips, in layers' worth of weight bytes
	Layers  int       `json:"layers"`
	Prompt  int       `json:"prompt"` // tokens
	Decoded int       `json:"n"`      // tokens
	Rounds  int       `json:"rounds"` // that the medians are of
	Threads int       `json:"threads"`
	Device  string    `json:"device"`

	PrefillTPS    float64 `json:"prefill_tps"` // median
	PrefillTPSMin float64 `json:"prefill_tps_min"`
	PrefillTPSMax float64 `json:"prefill_tps_max"`
	DecodeTPS     float64 `json:"decode_tps"` // median
	DecodeTPSMin  float64 `json:"decode_tps_min"`
	DecodeTPSMax  float64 `json:"decode_tps_max"`

	RatioStock         float64  `json:"ratio_stock"` // to the whole model
	RatioStockPrefill  float64  `json:"ratio_stock_prefill"`
	RatioPruned        *float64 `json:"ratio_pruned"` // to the file without the layers
	RatioPrunedPrefill *float64 `json:"ratio_pruned_prefill"`
	RatioIdeal         float64  `json:"ratio_ideal"` // of RatioStock to IdealDecode
	RatioIdealPrefill  float64  `json:"ratio_ideal_prefill"`

	// The half width of the 95 % confidence interval of each.
	RatioPrunedCI        *float64 `json:"ratio_pruned_ci"`
	RatioPrunedPrefillCI *float64 `json:"ratio_pruned_prefill_ci"`
	RatioIdealCI         float64  `json:"ratio_ideal_ci"`
	RatioIdealPrefillCI  float64  `json:"ratio_ideal_prefill_ci"`

	IdealDecode  float64 `json:"ideal_decode"`  // RatioStock that the weights' bytes allow
	IdealPrefill float64 `json:"ideal_prefill"` // RatioStockPrefill that the operations allow
	TokenBytes   uint64  `json:"token_bytes"`   // of weights, read for a decoded token
	GBPerS       float64 `json:"gb_per_s"`      // at which they are read, 10^9 bytes

	TTFTMS   float64  `json:"ttft_ms"`   // from the prompt's tokens to the first logits
	RouteMS  *float64 `json:"route_ms"`  // that choosing layers adds to that
	SwitchMS *float64 `json:"switch_ms"` // that a change of masks adds to a decode

	SwitchMSCI *float64 `json:"switch_ms_ci"` // half width of its 95 % confidence interval

	Exact *float64 `json:"shortlist_exact"` // exact logits of a token with a shortlist, on average

	RSSMB  float64 `json:"rss_mb"`  // resident memory of the process after its first turn, 10^6 bytes
	PeakMB float64 `json:"peak_mb"` // the most so far, loading included
}

// rows sums up all that was measured.
func (r *runner) rows(all []measured, route float64) []Row {
	sizes := search.SizesOf(r.model.Tensors, r.model.NLayer)
	whole := costOf(r.model, skip.Mask{}, r.Prompt, nil)
	var rows []Row
	for _, x := range all {
		per := func(tokens int, turns []turn, time func(turn) time.Duration) summary {
			var speeds []float64
			for _, t := range turns {
				speeds = append(speeds, float64(tokens)/time(t).Seconds())
			}
			return summarise(speeds)
		}
		prefill, decode := per(r.Prompt, x.turns, prefillTime), per(r.Decode, x.turns, decodeTime)
		own := costOf(r.model, x.mask, r.Prompt, r.Shortlist)
		ofStock, ofStockPrefill := ratio(x.turns, x.stock, decodeTime), ratio(x.turns, x.stock, prefillTime)
		row := Row{
			Model: strings.TrimSuffix(filepath.Base(r.model.Path), ".gguf"), Type: mainType(r.model),
			Mask: x.mask, Depth: sizes.Depth(x.mask), Layers: r.model.NLayer,
			Prompt: r.Prompt, Decoded: r.Decode, Rounds: len(x.turns), Threads: r.Context.Threads, Device: device(r.GPULayers),
			PrefillTPS: prefill.median, PrefillTPSMin: prefill.low, PrefillTPSMax: prefill.high,
			DecodeTPS: decode.median, DecodeTPSMin: decode.low, DecodeTPSMax: decode.high,
			RatioStock: ofStock.median, RatioStockPrefill: ofStockPrefill.median,
			IdealDecode: whole.bytes / own.bytes, IdealPrefill: whole.flops / own.flops,
			TokenBytes: uint64(own.bytes), GBPerS: own.bytes * decode.median / 1e9,
			TTFTMS: 1000 * float64(r.Prompt) / prefill.median, RouteMS: report.Figure(1000 * route),
			SwitchMS: report.Figure(1000 * x.switching.median), SwitchMSCI: report.Figure(1000 * x.switching.ci),
			RSSMB: float64(x.rss) / 1e6, PeakMB: float64(x.peak) / 1e6,
		}
		row.RatioIdeal, row.RatioIdealPrefill = row.RatioStock/row.IdealDecode, row.RatioStockPrefill/row.IdealPrefill
		row.RatioIdealCI, row.RatioIdealPrefillCI = ofStock.ci/row.IdealDecode, ofStockPrefill.ci/row.IdealPrefill
		row.Exact = report.Figure(exactLogits(x.turns))
		if x.pruned != nil {
			decode, prefill := ratio(x.turns, x.pruned, decodeTime), ratio(x.turns, x.pruned, prefillTime)
			row.RatioPruned, row.RatioPrunedCI = &decode.median, &decode.ci
			row.RatioPrunedPrefill, row.RatioPrunedPrefillCI = &prefill.median, &prefill.ci
		}
		rows = append(rows, row)
	}
	return rows
}

func prefillTime(t turn) time.Duration { return t.prefill }
func decodeTime(t turn) time.Duration  { return t.decode }

// ratio gives the speed of own as a multiple of that of other, median over the
// rounds that they shared.
func ratio(own, other []turn, time func(turn) time.Duration) summary {
	var ratios []float64
	for i := range own {
		ratios = append(ratios, time(other[i]).Seconds()/time(own[i]).Seconds())
	}
	return summarise(ratios)
}

// exactLogits is how many a token with a shortlist has on average; NaN without any.
func exactLogits(turns []turn) float64 {
	var sum llama.ShortlistUse
	for _, t := range turns {
		sum.Rows += t.listed.Rows
		sum.Exact += t.listed.Exact
	}
	return float64(sum.Exact) / float64(sum.Rows)
}

// mainType is the type that most of the model's bytes have.
func mainType(m *llama.Model) (most string) {
	bytes := map[string]uint64{}
	for _, t := range m.Tensors {
		if bytes[t.Type] += t.Size; bytes[t.Type] > bytes[most] {
			most = t.Type
		}
	}
	return most
}

// device names what computes.
func device(gpuLayers int) string {
	var gpus []string
	cpu := "CPU"
	for _, d := range llama.Devices() {
		switch name := d.Name + ": " + d.Description; d.Kind {
		case llama.CPU:
			cpu = name
		case llama.GPU, llama.IGPU:
			gpus = append(gpus, name)
		}
	}
	if len(gpus) == 0 || gpuLayers == llama.CPUOnly {
		return cpu
	}
	return strings.Join(gpus, ", ")
}

// Formats are what [Write] can write: a Markdown table for people, and all
// fields of the rows for machines.
var Formats = []string{"md", "csv", "json", "jsonl"}

// Write writes rows in one of the [Formats].
func Write(w io.Writer, format string, rows []Row) error {
	switch format {
	case "md":
		return writeTable(w, rows)
	case "csv":
		return writeCSV(w, rows)
	case "json", "jsonl":
		return writeJSON(w, rows, format == "json")
	}
	return fmt.Errorf("format %q, want one of %s", format, strings.Join(Formats, ", "))
}

// writeJSON writes a row a line, with array as an array.
func writeJSON[R any](w io.Writer, rows []R, array bool) error {
	var lines []string
	for _, row := range rows {
		line, err := json.Marshal(row)
		if err != nil {
			return err
		}
		lines = append(lines, string(line))
	}
	text := strings.Join(lines, "\n")
	if array {
		text = "[\n" + strings.Join(lines, ",\n") + "\n]"
	}
	_, err := fmt.Fprintln(w, text)
	return err
}

// writeCSV writes a line of JSON's names, then a row a line; what was not
// measured is empty.
func writeCSV(w io.Writer, rows []Row) error {
	out := csv.NewWriter(w)
	var names []string
	for _, field := range reflect.VisibleFields(reflect.TypeFor[Row]()) {
		names = append(names, field.Tag.Get("json"))
	}
	lines := [][]string{names}
	for _, row := range rows {
		var line []string
		for _, value := range reflect.ValueOf(row).Fields() {
			if value.Kind() == reflect.Pointer && value.IsNil() {
				line = append(line, "")
				continue
			}
			line = append(line, fmt.Sprint(reflect.Indirect(value)))
		}
		lines = append(lines, line)
	}
	return out.WriteAll(lines)
}

// columns are those of the table. Pairs are prefill and decode.
var columns = []struct {
	report.Column
	text func(Row) string
}{
	{report.Column{Name: "model", Left: true}, func(r Row) string { return r.Model }},
	{report.Column{Name: "skips", Left: true}, func(r Row) string {
		if r.Mask.IsEmpty() {
			return "nothing"
		}
		return r.Mask.String()
	}},
	{report.Column{Name: "depth"}, func(r Row) string { return decimals(r.Depth, 1) }},
	{report.Column{Name: "prefill, tokens/s"}, func(r Row) string { return spread(r.PrefillTPS, r.PrefillTPSMin, r.PrefillTPSMax) }},
	{report.Column{Name: "decode, tokens/s"}, func(r Row) string { return spread(r.DecodeTPS, r.DecodeTPSMin, r.DecodeTPSMax) }},
	{report.Column{Name: "of stock"}, func(r Row) string {
		return decimals(r.RatioStockPrefill, 2) + " / " + decimals(r.RatioStock, 2)
	}},
	{report.Column{Name: "of pruned"}, func(r Row) string {
		return exactPair(r.RatioPrunedPrefill, r.RatioPrunedPrefillCI, r.RatioPruned, r.RatioPrunedCI)
	}},
	{report.Column{Name: "of ideal"}, func(r Row) string {
		return exactPair(&r.RatioIdealPrefill, &r.RatioIdealPrefillCI, &r.RatioIdeal, &r.RatioIdealCI)
	}},
	{report.Column{Name: "exact logits"}, func(r Row) string { return optional(r.Exact, 0) }},
	{report.Column{Name: "GB/s"}, func(r Row) string { return decimals(r.GBPerS, 1) }},
	{report.Column{Name: "first token, ms"}, func(r Row) string { return decimals(r.TTFTMS, 0) }},
	{report.Column{Name: "route, ms"}, func(r Row) string { return optional(r.RouteMS, 2) }},
	{report.Column{Name: "switch, ms"}, func(r Row) string {
		if r.SwitchMS == nil {
			return missing
		}
		return fmt.Sprintf("%.2f ± %.2f", *r.SwitchMS, *r.SwitchMSCI)
	}},
	{report.Column{Name: "memory, MB"}, func(r Row) string { return decimals(r.RSSMB, 0) }},
}

// writeTable writes what people look at, without the columns that are empty.
func writeTable(w io.Writer, rows []Row) error {
	var heads []report.Column
	cells := make([][]string, len(rows))
	for _, c := range columns {
		if !slices.ContainsFunc(rows, func(r Row) bool { return c.text(r) != missing }) {
			continue
		}
		heads = append(heads, c.Column)
		for i, row := range rows {
			cells[i] = append(cells[i], c.text(row))
		}
	}
	if err := report.Markdown(w, heads, cells); err != nil || len(rows) == 0 {
		return err
	}
	r := rows[0]
	_, err := fmt.Fprintf(w, "\n%s, %d threads; prompt of %d tokens, %d decoded; medians (least to most) of %d turns; pairs are prefill / decode; ± is a 95 %% confidence interval\n",
		r.Device, r.Threads, r.Prompt, r.Decoded, r.Rounds)
	return err
}

// missing stands for what was not measured.
const missing = "–"

func decimals(x float64, n int) string { return strconv.FormatFloat(x, 'f', n, 64) }

func optional(x *float64, n int) string {
	if x == nil {
		return missing
	}
	return decimals(*x, n)
}

// exactPair writes two ratios with the half widths of their confidence intervals.
func exactPair(prefill, prefillCI, decode, decodeCI *float64) string {
	if prefill == nil || decode == nil {
		return missing
	}
	return fmt.Sprintf("%.3f ± %.3f / %.3f ± %.3f", *prefill, *prefillCI, *decode, *decodeCI)
}

func spread(median, low, high float64) string {
	return fmt.Sprintf("%.1f (%.1f–%.1f)", median, low, high)
}
