package compare

import (
	"cmp"
	"fmt"
	"math"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/lab/report"
	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Result is a comparison, as JSON shows it. Figures that could not be measured
// are nil, such as the decode speed of an answer of one token.
type Result struct {
	Settings Settings `json:"settings"`
	Ways     []Column `json:"ways"` // stock first
	Prompts  []Prompt `json:"prompts"`
}

// Settings is what it takes to make a comparison again.
type Settings struct {
	Model       string    `json:"model"` // file
	Description string    `json:"description"`
	Fingerprint string    `json:"fingerprint"` // of the model, as profiles have it
	Layers      int       `json:"layers"`
	Data        string    `json:"data"`      // where the prompts are from
	DataHash    string    `json:"data_hash"` // of the prompts, SHA-256
	System      string    `json:"system"`    // prompt
	Temperature float32   `json:"temperature"`
	MaxTokens   int       `json:"max_tokens"` // of an answer; 0 = what the context holds
	Context     int       `json:"context"`    // tokens
	Threads     int       `json:"threads"`
	Rounds      int       `json:"rounds"` // answers to each prompt; the medians of their times count
	Machine     string    `json:"machine"`
	Version     string    `json:"version"`   // of gallop
	Library     string    `json:"llama_cpp"` // its version
	Command     string    `json:"command"`
	Time        time.Time `json:"time"`
}

// Column is one way to run the model: how, and what it came to.
type Column struct {
	Name     string  `json:"name"`
	Profile  string  `json:"profile,omitempty"` // file
	Skip     string  `json:"skip,omitempty"`    // a mask set by hand
	Prefill  string  `json:"prefill"`
	Depth    float64 `json:"depth"`    // always skipped, in layers' worth; 0 = by quality
	Quality  float64 `json:"quality"`  // wanted; 0 = the profile's
	Escalate float64 `json:"escalate"` // tokens less probable are decided by the whole model; 0 = none

	Summary Summary `json:"summary"`
}

// Summary is what a way came to over all prompts. Ratios are to stock, above 1
// is faster.
type Summary struct {
	PrefillTPS   *float64 `json:"prefill_tps"`    // all tokens over all time
	DecodeTPS    *float64 `json:"decode_tps"`     // likewise
	FirstTokenMS *float64 `json:"first_token_ms"` // median
	TotalMS      *float64 `json:"total_ms"`       // median

	PrefillSpeedup    Speedup `json:"prefill_speedup"`
	DecodeSpeedup     Speedup `json:"decode_speedup"`
	FirstTokenSpeedup Speedup `json:"first_token_speedup"`

	LayersUsed float64  `json:"layers_used"` // mean
	Cost       *float64 `json:"cost"`        // weight bytes read for a token, second decodes included, as a share of stock's
	Escalated  float64  `json:"escalated"`   // share of tokens that the whole model decided; the first, which comes out of the prompt, not counted
	Agreement  *float64 `json:"agreement"`   // mean over the prompts
	KL         *float64 `json:"kl"`          // likewise
	Same       float64  `json:"same"`        // share of answers that are stock's to the letter
	Right      *float64 `json:"right"`       // share of answers that are the known ones to the letter, of prompts that have one
}

// Speedup sums up a ratio of speeds over the prompts.
type Speedup struct {
	Median *float64 `json:"median"`
	Mean   *float64 `json:"mean"` // geometric
}

// Prompt is a question with its answers.
type Prompt struct {
	Prompt  string          `json:"prompt"`
	Earlier []llama.Message `json:"earlier,omitempty"` // turns of the conversation before it
	Task    string          `json:"task"`
	Want    string          `json:"want,omitempty"` // the known answer
	Answers []Answer        `json:"answers"`        // one for each way
}

// Answer is an answer, its cost, and how far it is from stock's.
type Answer struct {
	Text         string        `json:"text"`
	Finish       gallop.Finish `json:"finish"`
	PromptTokens int           `json:"prompt_tokens"`
	Tokens       int           `json:"tokens"`
	PrefillTPS   *float64      `json:"prefill_tps"`
	DecodeTPS    *float64      `json:"decode_tps"`
	PrefillMS    float64       `json:"prefill_ms"`
	DecodeMS     float64       `json:"decode_ms"`
	FirstTokenMS float64       `json:"first_token_ms"` // from the question to the first piece of the answer, routing included
	TotalMS      float64       `json:"total_ms"`

	Skip       skip.Mask `json:"skip"`
	LayersUsed float64   `json:"layers_used"`
	Cost       float64   `json:"cost"`            // as in [Summary]
	Escalated  int       `json:"escalated"`       // tokens that the whole model decided
	Route      *Choice   `json:"route,omitempty"` // nil = nothing was chosen

	PrefillSpeedup    *float64 `json:"prefill_speedup,omitempty"`
	DecodeSpeedup     *float64 `json:"decode_speedup,omitempty"`
	FirstTokenSpeedup *float64 `json:"first_token_speedup,omitempty"`
	Agreement         *float64 `json:"agreement,omitempty"` // share of the tokens of stock's answer that are the likeliest here too, 0 to 1
	KL                *float64 `json:"kl,omitempty"`        // mean of KL(stock || this) at these tokens, nats
	Same              bool     `json:"same"`                // the text is stock's to the letter
	Right             *bool    `json:"right,omitempty"`     // it is the known answer to the letter; nil = none is known
}

// Choice is what a router chose, and why.
type Choice struct {
	Task    string  `json:"task"`    // whose omission set it is; "" = the whole model
	Reason  string  `json:"reason"`  // one sentence
	Quality float64 `json:"quality"` // predicted share of the whole model's probability for each token
	Novelty float64 `json:"novelty"` // above 1: unlike the calibration data
	MS      float64 `json:"ms"`      // that choosing took
}

// settings describes a run as far as it shows here; the caller adds where the
// prompts are from, the fingerprint, its version and its command.
func settings(m *llama.Model, w Way, examples []dataset.Example, o *Options) Settings {
	sampling := m.Sampling()
	if w.Request.Sampling != nil {
		sampling = *w.Request.Sampling
	}
	system := ""
	for _, message := range w.Request.Messages {
		system = message.Content
	}
	return Settings{
		Model: filepath.Base(m.Path), Description: m.Description, Layers: m.NLayer, DataHash: dataset.Hash(examples),
		System: system, Temperature: sampling.Temp, MaxTokens: w.Request.MaxTokens, Context: w.Engine.Info().Context, Threads: cmp.Or(o.Threads, m.DefaultThreads()), Rounds: o.Rounds,
		Machine: machine(), Library: llama.Version(), Time: time.Now().UTC().Truncate(time.Second),
	}
}

// machine names what the models run on, in one line.
func machine() string {
	var parts []string
	for _, d := range llama.Devices() {
		parts = append(parts, d.Description)
	}
	return strings.Join(append(parts, fmt.Sprintf("%d CPUs", runtime.NumCPU()), runtime.GOOS+"/"+runtime.GOARCH), ", ")
}

func column(w Way) Column {
	c := Column{Name: w.Name, Profile: w.Profile, Prefill: w.plan.Prefill.String(), Depth: w.plan.Depth, Quality: w.plan.Quality, Escalate: w.plan.Escalate}
	if w.Profile == "" {
		c.Skip = w.Request.Skip.Mask().WithShortlist(max(w.Request.Shortlist, w.Request.Skip.Mask().Shortlist(), 0)).String()
	}
	return c
}

// newAnswer takes over what an engine gave; depth is the mask's, list the shortlist of
// masks that have one.
func newAnswer(a timed, nLayer int, depth float64, list *llama.Shortlist) Answer {
	cost := 1 - depth/float64(nLayer)
	if a.Plan.Mask.Shortlist() > 0 && list != nil {
		cost = list.TokenShare(cost, float64(a.Shortlist.Exact)/float64(max(a.Shortlist.Rows, 1)))
	}
	out := Answer{
		Text: a.Text, Finish: a.Finish, PromptTokens: a.Usage.Prompt, Tokens: a.Usage.Generated,
		PrefillTPS: positive(a.PromptSpeed()), DecodeTPS: positive(a.Speed()),
		PrefillMS: ms(a.Timing.Prefill), DecodeMS: ms(a.Timing.Decode), FirstTokenMS: ms(a.first), TotalMS: ms(a.total),
		Skip: a.Plan.Mask, LayersUsed: a.Plan.LayersRun, Escalated: a.Escalated,
		Cost: cost + a.EscalatedShare(),
	}
	if r := a.Plan.Choice; r != nil {
		out.Route = &Choice{Task: r.Task, Reason: r.Reason, Quality: r.Quality, Novelty: r.Novelty, MS: ms(a.Timing.Routing)}
	}
	return out
}

func ms(d time.Duration) float64 { return d.Seconds() * 1000 }

// positive is nil for what could not be measured.
func positive(x float64) *float64 {
	if x <= 0 {
		return nil
	}
	return &x
}

// relate compares a prompt's answers with stock's and with the known one, and
// then replaces what is no text in them: models may say single bytes.
func (p *Prompt) relate() {
	stock := p.Answers[0]
	for w := range p.Answers {
		a := &p.Answers[w]
		a.Same = a.Text == stock.Text
		if p.Want != "" {
			right := strings.TrimSpace(a.Text) == p.Want
			a.Right = &right
		}
		if w > 0 {
			a.PrefillSpeedup = ratio(a.PrefillTPS, stock.PrefillTPS)
			a.DecodeSpeedup = ratio(a.DecodeTPS, stock.DecodeTPS)
			a.FirstTokenSpeedup = ratio(&stock.FirstTokenMS, &a.FirstTokenMS)
		}
		a.Text = strings.ToValidUTF8(a.Text, "\ufffd")
	}
}

func ratio(a, b *float64) *float64 {
	if a == nil || b == nil {
		return nil
	}
	return report.Figure(*a / *b)
}

// sum fills in the summaries.
func (r *Result) sum() {
	for w := range r.Ways {
		var layers, same, prefilled, prefill, decoded, decode, tokens, escalated, cost float64
		var first, total, prefillUp, decodeUp, firstUp, agreement, kl, right []float64
		for _, p := range r.Prompts {
			a := p.Answers[w]
			layers += a.LayersUsed
			if a.Same {
				same++
			}
			prefilled, prefill = prefilled+float64(a.PromptTokens), prefill+a.PrefillMS/1000
			if a.DecodeTPS != nil {
				decoded, decode = decoded+float64(a.Tokens-1), decode+a.DecodeMS/1000
			}
			tokens += float64(max(a.Tokens-1, 0)) // the first comes out of the prompt
			escalated += float64(a.Escalated)
			cost += a.Cost * float64(max(a.Tokens-1, 0))
			first, total = append(first, a.FirstTokenMS), append(total, a.TotalMS)
			prefillUp, decodeUp, firstUp = known(prefillUp, a.PrefillSpeedup), known(decodeUp, a.DecodeSpeedup), known(firstUp, a.FirstTokenSpeedup)
			agreement, kl = known(agreement, a.Agreement), known(kl, a.KL)
			if a.Right != nil {
				right = append(right, 0)
				if *a.Right {
					right[len(right)-1] = 1
				}
			}
		}
		n := float64(len(r.Prompts))
		r.Ways[w].Summary = Summary{
			PrefillTPS: report.Figure(prefilled / prefill), DecodeTPS: report.Figure(decoded / decode),
			FirstTokenMS: report.Figure(stats.Median(first)), TotalMS: report.Figure(stats.Median(total)),
			PrefillSpeedup: newSpeedup(prefillUp), DecodeSpeedup: newSpeedup(decodeUp), FirstTokenSpeedup: newSpeedup(firstUp),
			LayersUsed: layers / n, Cost: report.Figure(cost / tokens), Escalated: escalated / max(tokens, 1),
			Agreement: report.Figure(stats.Mean(agreement)), KL: report.Figure(stats.Mean(kl)), Same: same / n,
			Right: report.Figure(stats.Mean(right)),
		}
	}
}

func known(all []float64, x *float64) []float64 {
	if x == nil {
		return all
	}
	return append(all, *x)
}

func newSpeedup(ratios []float64) Speedup {
	logs := make([]float64, len(ratios))
	for i, x := range ratios {
		logs[i] = math.Log(x)
	}
	return Speedup{Median: report.Figure(stats.Median(ratios)), Mean: report.Figure(math.Exp(stats.Mean(logs)))}
}

// Table gives the summary for package report: a line for each figure, a column
// for each way.
func (r *Result) Table() (columns []report.Column, rows [][]string) {
	columns = []report.Column{{Left: true}}
	for _, w := range r.Ways {
		columns = append(columns, report.Column{Name: w.Name, Max: 24})
	}
	add := func(name string, cell func(s Summary) string) {
		row := []string{name}
		for _, w := range r.Ways {
			row = append(row, cell(w.Summary))
		}
		if slices.ContainsFunc(row[1:], func(c string) bool { return c != missing }) {
			rows = append(rows, row)
		}
	}
	add("decode, tokens/s", func(s Summary) string { return short(s.DecodeTPS) })
	add("  × stock, median (mean)", func(s Summary) string { return s.DecodeSpeedup.String() })
	add("prompt, tokens/s", func(s Summary) string { return short(s.PrefillTPS) })
	add("  × stock, median (mean)", func(s Summary) string { return s.PrefillSpeedup.String() })
	add("first token, median ms", func(s Summary) string { return short(s.FirstTokenMS) })
	add("  × stock, median (mean)", func(s Summary) string { return s.FirstTokenSpeedup.String() })
	add("whole answer, median ms", func(s Summary) string { return short(s.TotalMS) })
	add(fmt.Sprintf("layers used of %d, mean", r.Settings.Layers), func(s Summary) string { return report.Short(s.LayersUsed) })
	add("weights read per token, %", func(s Summary) string { return percent(s.Cost) })
	add("tokens by the whole model, %", func(s Summary) string { return report.Percent(s.Escalated) })
	rows[len(rows)-1][1] = missing // stock is the whole model
	add("agreement with stock, %", func(s Summary) string { return percent(s.Agreement) })
	add("KL from stock, nats/token", func(s Summary) string { return short(s.KL) })
	add("same answer as stock, %", func(s Summary) string { return report.Percent(s.Same) })
	rows[len(rows)-1][1] = missing
	add("right answer, %", func(s Summary) string { return percent(s.Right) })
	return columns, rows
}

// missing stands for what was not measured, as in package report.
const missing = "–"

// String is "1.24 (1.21)": the median and the mean.
func (s Speedup) String() string {
	if s.Median == nil {
		return missing
	}
	return fmt.Sprintf("%.2f (%.2f)", *s.Median, *s.Mean)
}

func short(x *float64) string {
	if x == nil {
		return missing
	}
	return report.Short(*x)
}

func percent(x *float64) string {
	if x == nil {
		return missing
	}
	return report.Percent(*x)
}
