package bench

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/draft"
	"github.com/gallop-llm/gallop/internal/lab/report"
	"github.com/gallop-llm/gallop/skip"
)

// LosslessOptions says what [RunLossless] measures.
type LosslessOptions struct {
	Engine  *gallop.Engine // RunLossless does not close it
	Threads int            // of the engine
	Request gallop.Request // lossless, with Drafts set: what is drafted under, and how much
	Decode  int            // tokens of an answer at most
	Rounds  int            // prompts that are asked; one more comes first and is not counted

	// Progress, when set, is told how many answers of how many are there.
	Progress func(done, total int)
}

// LosslessRow is what drafts brought on some prompts, against the same model
// that decodes one token at a time.
type LosslessRow struct {
	Model   string  `json:"model"`
	Shape   string  `json:"shape"`
	Faint   float64 `json:"faint"`      // what the output of inner layers was scaled by; 1 = not
	Ends    bool    `json:"faint_ends"` // that of the first and the last layer too
	Draft   string  `json:"draft"`      // where drafts came from: masks, or "looked up"
	Gamma   int     `json:"gamma"`      // tokens of a draft at most
	Rounds  int     `json:"rounds"`
	Threads int     `json:"threads"`
	Device  string  `json:"device"`

	Acceptance      float64 `json:"acceptance"` // share of drafted tokens
	TokensPerVerify float64 `json:"tokens_per_verify"`
	Lengths         []int   `json:"lengths"` // verifications by how many tokens were accepted, from 0 on

	PlainTPS   float64 `json:"plain_tps"`  // median
	DecodeTPS  float64 `json:"decode_tps"` // median
	Speedup    float64 `json:"speedup"`    // median of the prompts' ratios
	SpeedupMin float64 `json:"speedup_min"`
	SpeedupMax float64 `json:"speedup_max"`
	Possible   float64 `json:"possible"` // median speed-up that the cost model expects at the acceptance that was seen; at least 1

	EqualTokens    int     `json:"equal_tokens"` // of those compared, up to where answers part
	ComparedTokens int     `json:"compared_tokens"`
	Rounding       float64 `json:"rounding"` // of logits in a batch, at most, as seen so far; see [gallop.Drafts]
}

// RunLossless asks prompts with drafts and without, in turns, and compares speed and
// answers. Each prompt is a new conversation; what is learnt of the machine while drafting
// stays.
func RunLossless(ctx context.Context, o LosslessOptions) (row LosslessRow, err error) {
	m, most := o.Engine.Model(), o.Request.Drafts.MaxDraft
	drafting := o.Request
	drafting.MaxTokens, drafting.NoCache = o.Decode, true
	plain := drafting
	plain.Skip, plain.Shortlist, plain.Lossless, plain.Drafts = gallop.Nothing(), -1, false, nil
	row = LosslessRow{
		Model: strings.TrimSuffix(filepath.Base(m.Path), ".gguf"), Faint: 1, Gamma: most, Rounds: o.Rounds,
		Threads: o.Threads, Device: device(0), Lengths: make([]int, most+1),
	}
	prompts := dataset.Starter()
	var plainTPS, decodeTPS, speedup, possible []float64
	sum := draft.Stats{Masks: map[skip.Mask]int{}}
	for i := range o.Rounds + 1 {
		var answers [2]gallop.Answer
		for turn := range 2 {
			way := (turn + i) % 2 // another one first each time
			r := []gallop.Request{plain, drafting}[way]
			r.Messages = []gallop.Message{{Role: "user", Content: prompts[i*len(prompts)/(o.Rounds+1)].Prompt}}
			if answers[way], err = o.Engine.Answer(ctx, r); err != nil {
				return row, err
			}
			if o.Progress != nil {
				o.Progress(2*i+turn+1, 2*(o.Rounds+1))
			}
		}
		want, got := answers[0], answers[1]
		for k, token := range want.Tokens {
			row.ComparedTokens++
			if k >= len(got.Tokens) || got.Tokens[k] != token {
				break
			}
			row.EqualTokens++
		}
		if i == 0 || want.Usage.Generated < 2 { // a single token comes out of the prompt
			continue
		}
		plainTPS, decodeTPS = append(plainTPS, want.Speed()), append(decodeTPS, got.Speed())
		speedup = append(speedup, got.Speed()/want.Speed())
		possible = append(possible, max(got.Drafts.Possible, 1))
		counts := draft.Stats(*got.Drafts)
		sum.Add(&counts)
		row.Rounding = got.Drafts.Rounding
	}
	if len(speedup) == 0 {
		return row, fmt.Errorf("%s ends every answer at once: nothing can be measured", m.Path)
	}
	row.PlainTPS, row.DecodeTPS, row.Possible = summarise(plainTPS).median, summarise(decodeTPS).median, summarise(possible).median
	ratios := summarise(speedup)
	row.Speedup, row.SpeedupMin, row.SpeedupMax = ratios.median, ratios.low, ratios.high
	row.Acceptance, row.TokensPerVerify = sum.Acceptance(), sum.TokensPerRound()
	copy(row.Lengths, sum.Lengths[:])
	row.Draft = draftedBy(&sum)
	return row, nil
}

// draftedBy names where most drafted tokens came from.
func draftedBy(d *draft.Stats) string {
	from, most := "nothing", 0
	if d.LookedUp > 0 {
		from, most = "looked up", d.LookedUp
	}
	for mask, n := range d.Masks {
		if n > most || n == most && mask.String() < from {
			from, most = mask.String(), n
		}
	}
	return from
}

// losslessColumns are those of the table.
var losslessColumns = []struct {
	report.Column
	text func(LosslessRow) string
}{
	{report.Column{Name: "model", Left: true}, func(r LosslessRow) string {
		if r.Ends {
			return fmt.Sprintf("%s, all layers × %g", r.Shape, r.Faint)
		}
		if r.Faint != 1 {
			return fmt.Sprintf("%s, inner layers × %g", r.Shape, r.Faint)
		}
		return r.Model
	}},
	{report.Column{Name: "drafts", Left: true}, func(r LosslessRow) string { return r.Draft }},
	{report.Column{Name: "γ up to"}, func(r LosslessRow) string { return strconv.Itoa(r.Gamma) }},
	{report.Column{Name: "accepted"}, func(r LosslessRow) string { return report.Percent(r.Acceptance) + " %" }},
	{report.Column{Name: "tokens a verification"}, func(r LosslessRow) string { return decimals(r.TokensPerVerify, 2) }},
	{report.Column{Name: "accepted lengths, from 0", Left: true}, func(r LosslessRow) string {
		last := len(r.Lengths)
		for last > 1 && r.Lengths[last-1] == 0 {
			last--
		}
		return strings.Trim(fmt.Sprint(r.Lengths[:last]), "[]")
	}},
	{report.Column{Name: "plain, tokens/s"}, func(r LosslessRow) string { return decimals(r.PlainTPS, 1) }},
	{report.Column{Name: "lossless, tokens/s"}, func(r LosslessRow) string { return decimals(r.DecodeTPS, 1) }},
	{report.Column{Name: "speed-up"}, func(r LosslessRow) string {
		return fmt.Sprintf("%.2f (%.2f–%.2f)", r.Speedup, r.SpeedupMin, r.SpeedupMax)
	}},
	{report.Column{Name: "possible"}, func(r LosslessRow) string { return decimals(r.Possible, 2) }},
	{report.Column{Name: "equal tokens"}, func(r LosslessRow) string { return fmt.Sprintf("%d of %d", r.EqualTokens, r.ComparedTokens) }},
	{report.Column{Name: "rounding"}, func(r LosslessRow) string { return strconv.FormatFloat(r.Rounding, 'g', 2, 64) }},
}

// WriteLossless writes rows as a Markdown table ("md") or as JSON ("json", "jsonl").
func WriteLossless(w io.Writer, format string, rows []LosslessRow) error {
	switch format {
	case "json", "jsonl":
		return writeJSON(w, rows, format == "json")
	case "md":
	default:
		return fmt.Errorf("format %q, want md, json or jsonl with --lossless", format)
	}
	var heads []report.Column
	cells := make([][]string, len(rows))
	for _, c := range losslessColumns {
		heads = append(heads, c.Column)
		for i, row := range rows {
			cells[i] = append(cells[i], c.text(row))
		}
	}
	if err := report.Markdown(w, heads, cells); err != nil || len(rows) == 0 {
		return err
	}
	r := slices.MaxFunc(rows, func(a, b LosslessRow) int { return a.Rounds - b.Rounds })
	_, err := fmt.Fprintf(w, "\n%s, %d threads; medians (least to most) of %d prompts\n", r.Device, r.Threads, r.Rounds)
	return err
}
