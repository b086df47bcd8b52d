package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"

	"github.com/gallop-llm/gallop/internal/files"
	"github.com/gallop-llm/gallop/internal/lab/report"
	"github.com/gallop-llm/gallop/internal/realmodel"
	"github.com/gallop-llm/gallop/internal/stats"
)

// results is the file that is written: a model a run, each with a row for each method and
// depth.
type results struct {
	Command string  `json:"command"`
	CPU     string  `json:"cpu"`
	Models  []model `json:"models"`
}

// model is what one model came to.
type model struct {
	Name        string             `json:"name"`
	Layers      int                `json:"layers"`
	LayersShare float64            `json:"layers_share"` // of the bytes of a token, 0 to 1
	Bytes       float64            `json:"token_bytes"`  // weight bytes that the whole model reads for a token
	StockTPS    float64            `json:"stock_tps"`    // decode, tokens/s
	Examples    int                `json:"examples"`     // measured, of each benchmark
	Calibration int                `json:"calibration"`  // others of each that searches looked at
	Rounds      int                `json:"rounds"`       // of each speed
	Shortlist   *list              `json:"shortlist"`    // null: the model has none
	HalvesMS    [2]float64         `json:"halves_ms"`    // of a token, attention and feed-forward of all layers
	Seconds     map[string]float64 `json:"seconds"`      // that parts took, pauses counted
	Rows        []row              `json:"rows"`
}

// list is the model's vocabulary shortlist.
type list struct {
	Tokens int     `json:"tokens"`      // with exact logits
	Bytes  float64 `json:"token_bytes"` // that a token reads of preview and rows, in place of the matrix
	Matrix float64 `json:"matrix_bytes"`
}

// row is what a method came to. Figures that were not measured are null.
type row struct {
	Method  string   `json:"method"`
	Prefill string   `json:"prefill"` // how prompts were decoded: masked or full; "" for the whole model
	Depth   float64  `json:"depth"`   // layers' worth of weights that were asked for; 0 = the method decided
	Skipped float64  `json:"skipped"` // layers' worth that were skipped on average
	Masks   int      `json:"masks"`   // different ones, over all examples
	Cost    float64  `json:"cost"`    // weight bytes of a token over the whole model's, tokens decided twice counted twice
	Again   *float64 `json:"again"`   // share of the tokens that the whole model decided after all

	Accuracy   interval            `json:"accuracy"`   // share of right choices, mean of the benchmarks with choices
	Difference interval            `json:"difference"` // to the whole model's accuracy, on the same examples
	Benchmarks map[string]interval `json:"benchmarks"` // accuracy of each; of GSM8K the share of the worked answers' tokens that come out likeliest
	Perplexity interval            `json:"perplexity"` // of the worked answers' tokens
	Ratio      interval            `json:"ratio"`      // of the perplexity over the whole model's, on the same texts

	Speed         *float64 `json:"speed"`              // decode over stock
	ShortSpeed    *float64 `json:"shortlist_speed"`    // the same with the shortlist
	ShortCost     *float64 `json:"shortlist_cost"`     // as Cost, with the shortlist
	ShortSame     int      `json:"shortlist_same"`     // tokens that it chose as the whole matrix would
	ShortOf       int      `json:"shortlist_of"`       // of so many
	ShortExtended *float64 `json:"shortlist_extended"` // share of the matrix's rows that were read for tokens outside the list
}

// interval is a mean with its 95 % confidence interval, bootstrapped over examples.
type interval struct {
	Mean float64 `json:"mean"`
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// digits are kept of figures: more say nothing, and make the file long.
const digits = 1e4

func rounded(x float64) float64 { return math.Round(x*digits) / digits }

func newInterval(values []float64) interval {
	low, high := stats.Bootstrap(values, seed)
	return interval{rounded(stats.Mean(values)), rounded(low), rounded(high)}
}

func readResults(path string) (results, error) {
	var all results
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &all)
	}
	if err != nil {
		return all, fmt.Errorf("%s: %w", path, err)
	}
	return all, nil
}

// write puts the model's rows into the results' file, in place of earlier ones.
func (l *lab) write(entries []entry) error {
	m, err := l.results(entries)
	if err != nil {
		return err
	}
	all, err := readResults(l.out)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	all.Command, all.CPU = "make real-table", realmodel.Processor()
	if i := slices.IndexFunc(all.Models, func(have model) bool { return have.Name == m.Name }); i >= 0 {
		all.Models[i] = m
	} else {
		all.Models = append(all.Models, m)
	}
	data, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		return err
	}
	return files.Write(l.out, append(data, '\n'))
}

// results sums up what is known of the model. Entries that are not measured on all of
// their examples are left out.
func (l *lab) results(entries []entry) (model, error) {
	m := model{
		Name: l.name, Layers: l.model.NLayer, Examples: l.test, Calibration: l.calibration, Rounds: l.rounds,
		HalvesMS: [2]float64{rounded(l.Halves[0]), rounded(l.Halves[1])}, Seconds: map[string]float64{},
	}
	for part, s := range l.Took {
		m.Seconds[part] = math.Round(s)
	}
	m.Seconds["speed"] = math.Round(l.speeds.Took)
	for layer := range l.sizes.Attention {
		m.LayersShare += float64(l.sizes.Attention[layer] + l.sizes.FeedForward[layer])
	}
	m.Bytes = l.tokenBytes()
	m.LayersShare = rounded(m.LayersShare / m.Bytes)
	var stock []float64
	for _, s := range l.Speeds {
		stock = append(stock, s.Stock...)
	}
	if stock != nil {
		m.StockTPS = math.Round(stats.Median(stock)*10) / 10
	}
	var err error
	if m.Shortlist, err = l.list(); err != nil {
		return m, err
	}
	var first *outcome // the whole model's
	for _, e := range entries {
		records, ok := l.records(e)
		if !ok {
			continue
		}
		o := newOutcome(records)
		if first == nil {
			first = o
		}
		r := l.row(e, o, &m)
		mean, low, high := stats.BootstrapPaired(o.hits, first.hits, seed)
		r.Difference = interval{rounded(mean), rounded(low), rounded(high)}
		more := make([]float64, len(o.losses))
		for i := range more {
			more[i] = o.losses[i] - first.losses[i]
		}
		r.Ratio = perplexity(more, o.lengths)
		m.Rows = append(m.Rows, r)
	}
	if len(m.Rows) == 0 || m.Rows[0].Method != whole {
		return m, fmt.Errorf("nothing of %s is measured yet: run the part accuracy first", l.name)
	}
	return m, nil
}

// outcome is what an entry's examples came to.
type outcome struct {
	values         [][]float64 // by benchmark and example: 1 for a right choice, or the share of likeliest tokens
	hits           []float64   // of all benchmarks that have choices
	losses         []float64   // nats of each worked answer
	lengths        []float64   // its tokens
	decoded, again int         // tokens of right answers but the first; those that the whole model decided
}

func newOutcome(records [][]record) *outcome {
	o := &outcome{}
	for b, some := range records {
		var values []float64
		for _, x := range some {
			o.decoded, o.again = o.decoded+x.Tokens-1, o.again+x.Escalated
			value := 0.0
			switch {
			case benchmarks[b].name == worked:
				value = float64(x.Likeliest) / float64(x.Tokens)
				o.losses, o.lengths = append(o.losses, -x.LogP), append(o.lengths, float64(x.Tokens))
			case x.Right:
				value = 1
			}
			values = append(values, value)
		}
		o.values = append(o.values, values)
		if benchmarks[b].name != worked {
			o.hits = append(o.hits, values...)
		}
	}
	return o
}

// row sums up an entry.
func (l *lab) row(e entry, o *outcome, m *model) row {
	ways, share := e.weights()
	r := row{Method: e.method, Depth: e.depth, Masks: len(ways), Benchmarks: map[string]interval{}}
	skipped := 0.0
	for _, w := range ways {
		skipped += share[w] * l.sizes.Depth(w.mask)
		if !w.mask.IsEmpty() {
			r.Prefill = w.prefill.String()
		}
	}
	r.Skipped = rounded(skipped)
	for b, values := range o.values {
		r.Benchmarks[benchmarks[b].name] = newInterval(values)
	}
	r.Accuracy, r.Perplexity = newInterval(o.hits), perplexity(o.losses, o.lengths)
	cost := 1 - skipped/float64(l.model.NLayer)*m.LayersShare
	if e.method == cascade {
		twice := float64(o.again) / float64(max(o.decoded, 1))
		cost += twice
		r.Again = report.Figure(rounded(twice))
	}
	r.Cost = rounded(cost)
	ratio, short, same, of, wholeRows := l.speedOf(e)
	if !math.IsNaN(ratio) {
		r.Speed = report.Figure(rounded(ratio))
	}
	if m.Shortlist != nil && !math.IsNaN(short) {
		r.ShortSpeed, r.ShortExtended = report.Figure(rounded(short)), report.Figure(rounded(wholeRows))
		r.ShortSame, r.ShortOf = same, of
		spared := (m.Shortlist.Matrix*(1-wholeRows) - m.Shortlist.Bytes) / m.Bytes
		decodes := 1.0
		if r.Again != nil {
			decodes += *r.Again
		}
		r.ShortCost = report.Figure(rounded(cost - decodes*spared))
	}
	return r
}

// perplexity is e to the mean loss of all tokens, with an interval over texts: resampled
// texts weigh as much as they have tokens.
func perplexity(losses, lengths []float64) interval {
	sum, n := 0.0, 0.0
	for i := range losses {
		sum, n = sum+losses[i], n+lengths[i]
	}
	mean := sum / n
	// The ratio of sums, linear around its value: each text's share of the deviation.
	deviations := make([]float64, len(losses))
	for i := range losses {
		deviations[i] = mean + (losses[i]-mean*lengths[i])*float64(len(losses))/n
	}
	low, high := stats.Bootstrap(deviations, seed)
	return interval{rounded(math.Exp(mean)), rounded(math.Exp(low)), rounded(math.Exp(high))}
}

// tokenBytes are the weight bytes that the whole model reads for a token: all but the
// token embeddings, unless these are the output matrix too.
func (l *lab) tokenBytes() float64 {
	var all, embeddings uint64
	own := false
	for _, t := range l.model.Tensors {
		all += t.Size
		switch t.Name {
		case "token_embd.weight":
			embeddings = t.Size
		case "output.weight":
			own = true
		}
	}
	if own {
		all -= embeddings
	}
	return float64(all)
}
