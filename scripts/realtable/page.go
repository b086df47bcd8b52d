package main

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gallop-llm/gallop/internal/files"
	"github.com/gallop-llm/gallop/internal/lab/report"
)

// writePage writes the document of a results' file, and a picture for each model.
func writePage(path, docs string) error {
	all, err := readResults(path)
	if err != nil {
		return err
	}
	if err := files.Write(filepath.Join(docs, "real.md"), []byte(all.page())); err != nil {
		return err
	}
	for _, m := range all.Models {
		picture, err := m.picture()
		if err != nil {
			return err
		}
		if err := files.Write(filepath.Join(docs, m.pictureName()), picture); err != nil {
			return err
		}
	}
	return nil
}

// page is docs/real.md.
func (all *results) page() string {
	var s strings.Builder
	s.WriteString("# Ways to choose what is skipped, on real models\n\n")
	s.WriteString("`" + all.Command + "` measured this on " + all.CPU + ". This page is made from [real-table.json](real-table.json).\n\n")
	for _, m := range all.Models {
		fmt.Fprintf(&s, "**%s**\n\n", m.Name)
		for _, claim := range m.claims() {
			s.WriteString("- " + claim + "\n")
		}
		s.WriteString("\n")
	}
	s.WriteString(all.defaults() + howMeasured)
	for _, m := range all.Models {
		fmt.Fprintf(&s, "\n## %s\n\n%s\n\n![Accuracy over measured decode speed, one curve for each method](%s)\n\n", m.Name, m.settings(), m.pictureName())
		m.table(&s)
		s.WriteString("\nAccuracy of each benchmark in %, with its 95 % interval; of GSM8K the share of the worked answers' tokens that come out likeliest:\n\n")
		m.benchmarkTable(&s)
	}
	return s.String()
}

// defaults says what Gallop does by default, and whether a budget spares anything here.
func (all *results) defaults() string {
	var spares, measured []string
	for _, m := range all.Models {
		if slices.ContainsFunc(m.Rows, func(r row) bool { return strings.HasPrefix(r.Method, budget) }) {
			measured = append(measured, m.Name)
		}
		if slices.ContainsFunc(m.Rows, func(r row) bool { return strings.HasPrefix(r.Method, budget) && r.Skipped > 0 }) {
			spares = append(spares, m.Name)
		}
	}
	if measured == nil {
		return ""
	}
	text := "Gallop's defaults follow: `chat` and `run` decode with the shortlist where it pays, and skip layers only where a profile's budget is kept. "
	if spares == nil {
		return text + "No budget spares a layer on " + strings.Join(measured, " or ") + ".\n\n"
	}
	return text + "A budget spares layers on " + joined(spares) + ".\n\n"
}

// howMeasured explains what the figures are.
const howMeasured = `## How it was measured

Questions come from halves of published benchmarks: ARC easy and challenge, OpenBookQA, PIQA, WinoGrande, SIQA, BoolQ and MathQA have choices, and the choice with the highest log-likelihood counts. In ARC challenge, OpenBookQA and PIQA that is divided by the choice's bytes, as is usual. SIQA and BoolQ are asked through the chat template, if the model has one; the others are continued as plain text. BoolQ is asked without its passage. Examples of more than 224 tokens are left out.
GSM8K's answers are not generated, which takes too long on this machine. Its worked answers are given token by token. The share of their tokens that the model finds likeliest stands in GSM8K's column, and their perplexity in a column of its own. "Accuracy" is the mean of the other eight.
All methods see the same examples. Intervals are 95 %, bootstrapped over examples; differences and ratios are to the whole model, example by example. Searches look at other examples of the same files.

"Skipped" counts layers' worth of weight bytes. "Bytes" are the weights that are read for a token, over those of the whole model; tokens that are decoded twice count twice. Speed is decoding alone, one token at a time, beside stock llama.cpp in the same process: the median of rounds in which both take turns. Where a method gives prompts masks of their own, some of these are measured. "With shortlist" adds the [vocabulary shortlist](shortlist.md) to the same mask. Log-likelihoods need exact logits, so the shortlist does not change accuracy; the share of tokens that it chooses as the whole matrix does is given beside the speed.

Two groups cannot be compared by their accuracy alone:

- With a **masked** prefill, prompt and answer are decoded under the mask, as a pruned file would.
- With a **full** prefill, the whole model decodes the prompt and gives the answer's first token. The mask begins with the second one, so answers of a single token (BoolQ) stay the whole model's. Perplexity shows more of what these masks do.

The methods, and where they differ from their papers:

- **random layers, random halves**: four draws, which the examples take in turn. Halves are feed-forward halves.
- **contiguous**: the run of layers that costs the least task loss.
- **ShortGPT** (arXiv 2403.03853): the layers that turn the residual stream least.
- **SLEB** (arXiv 2402.09025): layers are left out one after the other, each time the one whose loss is lowest. The loss is that of the calibration examples' right answers, not of plain text; after the first round the best eight layers race.
- **task sets**: the same search on each benchmark's own examples. The benchmark of a question is known.
- **routed layers**: PuDDing (arXiv 2502.04348). A router picks one of the task sets by the prompt. It learns from the few calibration examples.
- **FFN-SkipLLM** (arXiv 2404.03865): the paper decides token by token. A mask is chosen before a decode, so here the prompt's own tokens decide for the whole answer: the feed-forward halves whose input and output have the highest mean cosine are left out, up to the wanted bytes and not within an eighth of the layers at either end.
- **IG-Pruning** (arXiv 2511.02213): prompts form four clusters, each with a mask of attention and feed-forward halves. A greedy search stands in for the trained masks, the router's features for the sentence encoder.
- **KnapSpec** (arXiv 2602.20217): a knapsack of attention and feed-forward halves, with their measured times as weights. The turns of single halves are added up; the paper follows the hidden state, anew for each prompt, and drafts with the result.
- **routed halves**: feed-forward halves, chosen by the profile that ` + "`gallop calibrate --quick`" + ` makes from its built-in prompts.
- **cascade**: the same, and a token whose likeliest choice has less than 0.9 of the probability is decided by the whole model.
- **quality**: the profile's deepest set that keeps 0.90, 0.95 or 0.98 of the probability of each token, or the whole model.
`

// What is compared within a group; the groups' random choices come first.
var groups = map[string][]string{
	randomLayers: {contiguous, shortGPT, sleb, taskSets, routedLayers},
	randomHalves: {ffnSkip, igPruning, knapSpec, routedHalves},
}

// settings says what the model's figures rest on.
func (m *model) settings() string {
	text := fmt.Sprintf("%d layers, %s MB for a token, of these %.0f %% in the layers. %d examples of each benchmark, %d questions with choices. Searches looked at %d other examples of each.",
		m.Layers, report.Short(m.Bytes/1e6), 100*m.LayersShare, m.Examples, m.questions(), m.Calibration)
	if m.StockTPS > 0 {
		text += fmt.Sprintf(" Stock decodes %.0f tokens/s; %d rounds of each speed.", m.StockTPS, m.Rounds)
	} else {
		text += " Speeds were not measured."
	}
	if m.HalvesMS[0] > 0 {
		text += fmt.Sprintf(" KnapSpec reckons with %s ms a token for attention and %s ms for the feed-forward halves.", report.Short(m.HalvesMS[0]), report.Short(m.HalvesMS[1]))
	}
	seconds := 0.0
	for _, part := range m.Seconds {
		seconds += part
	}
	text += fmt.Sprintf(" All of it took %.0f minutes, pauses for other work counted.", seconds/60)
	var lacking []string
	for _, method := range []string{contiguous, shortGPT, sleb, taskSets, routedLayers, ffnSkip, igPruning, knapSpec, routedHalves, cascade} {
		if !slices.ContainsFunc(m.Rows, func(r row) bool { return r.Method == method }) {
			lacking = append(lacking, method)
		}
	}
	if lacking != nil {
		text += " For want of time these were not run: " + joined(lacking) + "."
	}
	if m.Shortlist != nil {
		text += fmt.Sprintf(" The shortlist has %d tokens; it reads %s MB for a token in place of the matrix's %s MB.", m.Shortlist.Tokens, report.Short(m.Shortlist.Bytes/1e6), report.Short(m.Shortlist.Matrix/1e6))
	}
	return text
}

// questions is how many questions with choices there were.
func (m *model) questions() int { return m.Examples * (len(benchmarks) - 1) }

// of is the row of a method at a depth; nil = there is none.
func (m *model) of(method string, depth float64) *row {
	i := slices.IndexFunc(m.Rows, func(r row) bool { return r.Method == method && r.Depth == depth })
	if i < 0 {
		return nil
	}
	return &m.Rows[i]
}

// depths lists the depths that methods were asked for.
func (m *model) depths() (depths []float64) {
	for _, r := range m.Rows {
		if r.Depth > 0 && !slices.Contains(depths, r.Depth) {
			depths = append(depths, r.Depth)
		}
	}
	slices.Sort(depths)
	return depths
}

// claims says in sentences what the model's rows show.
func (m *model) claims() (claims []string) {
	first := m.Rows[0]
	say := func(format string, args ...any) { claims = append(claims, fmt.Sprintf(format, args...)) }
	say("The whole model answers %s of %d questions right.", percent(first.Accuracy), m.questions())
	if first.ShortSpeed != nil {
		say("The shortlist alone decodes at %.2f times stock's speed, with %.0f %% of its bytes. It chose %d of %d tokens as the whole matrix does.",
			*first.ShortSpeed, 100**first.ShortCost, first.ShortSame, first.ShortOf)
	}
	var keeps []string
	for _, r := range m.Rows[1:] {
		if r.Difference.High >= 0 && r.Ratio.Low <= 1 && r.Cost < leastSpared {
			keeps = append(keeps, r.named())
		}
	}
	if keeps == nil {
		say("Every method that spares bytes has a lower accuracy or a higher perplexity than the whole model, outside the intervals.")
	} else {
		say("These spare bytes, and neither their accuracy nor their perplexity can be told from the whole model's on so few examples: %s.", joined(keeps))
	}
	for _, random := range []string{randomLayers, randomHalves} {
		for _, depth := range m.depths() {
			m.compareWithRandom(random, depth, say)
		}
	}
	for _, r := range m.Rows {
		if r.Again != nil {
			say("The %s lets the whole model decide %.0f %% of the tokens again, so a token takes %.0f %% of the whole model's bytes: accuracy %s, %s times its perplexity%s.",
				r.named(), 100**r.Again, 100*r.Cost, percent(r.Accuracy), report.Short(r.Ratio.Mean), r.at())
		}
		if strings.HasPrefix(r.Method, budget) {
			if r.Skipped == 0 {
				say("The budget of %s gives every question the whole model.", r.Method)
			} else {
				say("The budget of %s spares %.1f %% of a token's bytes on average: accuracy %s, %s times the whole model's perplexity%s.",
					r.Method, 100*(1-r.Cost), percent(r.Accuracy), report.Short(r.Ratio.Mean), r.at())
			}
		}
	}
	return claims
}

// leastSpared is the cost below which a row is said to spare bytes.
const leastSpared = 0.98

// compareWithRandom says which of a group's methods are best and which lose to random choice.
func (m *model) compareWithRandom(random string, depth float64, say func(string, ...any)) {
	base := m.of(random, depth)
	if base == nil {
		return
	}
	var rows []*row
	for _, method := range groups[random] {
		if r := m.of(method, depth); r != nil {
			rows = append(rows, r)
		}
	}
	if len(rows) == 0 {
		return
	}
	best := slices.MaxFunc(rows, func(a, b *row) int { return cmp.Compare(a.Accuracy.Mean, b.Accuracy.Mean) })
	clearest := slices.MinFunc(rows, func(a, b *row) int { return cmp.Compare(a.Perplexity.Mean, b.Perplexity.Mean) })
	var less, unclearer []string
	for _, r := range rows {
		if r.Accuracy.Mean < base.Accuracy.Mean {
			less = append(less, r.Method)
		}
		if r.Perplexity.Mean > base.Perplexity.Mean {
			unclearer = append(unclearer, r.Method)
		}
	}
	what, ours := "whole layers", m.of(routedLayers, depth)
	if random == randomHalves {
		what, ours = "halves", m.of(routedHalves, depth)
	}
	own := ""
	if ours != nil && ours.Method != clearest.Method {
		own = fmt.Sprintf(" %s%s come to %s times.", strings.ToUpper(ours.Method[:1]), ours.Method[1:], report.Short(ours.Ratio.Mean))
	}
	say("%s, %g layers' worth skipped. Best accuracy: %s, %s%s. Accuracy of %s: %s; below that: %s. Lowest perplexity: %s, %s times the whole model's%s. Perplexity of %s: %s times; above that: %s.%s",
		strings.ToUpper(what[:1])+what[1:], depth, best.Method, percent(best.Accuracy), best.at(), random, percent(base.Accuracy), orNone(less),
		clearest.Method, report.Short(clearest.Ratio.Mean), clearest.at(), random, report.Short(base.Ratio.Mean), orNone(unclearer), own)
}

// orNone joins names; without any it says so.
func orNone(names []string) string {
	if names == nil {
		return "none"
	}
	return joined(names)
}

// at says how fast a row decodes.
func (r *row) at() string {
	if r.Speed == nil {
		return ""
	}
	return fmt.Sprintf(", at %.2f times stock's speed", *r.Speed)
}

// named is a row's method with its depth.
func (r *row) named() string {
	if r.Depth == 0 {
		return r.Method
	}
	return fmt.Sprintf("%s at %g", r.Method, r.Depth)
}

// joined joins names with commas and an "and".
func joined(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}

func percent(i interval) string {
	return fmt.Sprintf("%.1f %% (%.1f–%.1f)", 100*i.Mean, 100*i.Low, 100*i.High)
}

// ordered gives the rows by depth: the whole model first, methods that decide for
// themselves last.
func (m *model) ordered() []row {
	rows := slices.Clone(m.Rows)
	place := func(r row) float64 {
		switch {
		case r.Method == whole:
			return -1
		case r.Depth == 0:
			return float64(m.Layers)
		}
		return r.Depth
	}
	slices.SortStableFunc(rows, func(a, b row) int { return cmp.Compare(place(a), place(b)) })
	return rows
}

// table writes a row for each method and depth.
func (m *model) table(s *strings.Builder) {
	s.WriteString("| method | prompt | skipped | bytes, % | speed | with shortlist: bytes, % | speed | same tokens | accuracy, % | difference | perplexity | over the whole model's |\n")
	s.WriteString("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for _, r := range m.ordered() {
		difference, ratio := "–", "–"
		if r.Method != whole {
			ratio = fmt.Sprintf("%s (%s–%s)", report.Short(r.Ratio.Mean), report.Short(r.Ratio.Low), report.Short(r.Ratio.High))
			difference = fmt.Sprintf("%+.1f (%+.1f to %+.1f)", 100*r.Difference.Mean, 100*r.Difference.Low, 100*r.Difference.High)
		}
		same := "–"
		if r.ShortOf > 0 {
			same = fmt.Sprintf("%d of %d", r.ShortSame, r.ShortOf)
		}
		fmt.Fprintf(s, "| %s | %s | %.1f | %.0f | %s | %s | %s | %s | %s | %s | %s (%s–%s) | %s |\n",
			r.Method, cmp.Or(r.Prefill, "–"), r.Skipped, 100*r.Cost, optional("%.2f", r.Speed, 1), optional("%.0f", r.ShortCost, 100), optional("%.2f", r.ShortSpeed, 1), same,
			strings.ReplaceAll(percent(r.Accuracy), " %", ""), difference, report.Short(r.Perplexity.Mean), report.Short(r.Perplexity.Low), report.Short(r.Perplexity.High), ratio)
	}
}

// optional writes a figure that may be missing.
func optional(format string, x *float64, times float64) string {
	if x == nil {
		return "–"
	}
	return fmt.Sprintf(format, times**x)
}

// benchmarkTable writes each benchmark's accuracy.
func (m *model) benchmarkTable(s *strings.Builder) {
	s.WriteString("| method | skipped |")
	for _, b := range benchmarks {
		s.WriteString(" " + b.title + " |")
	}
	s.WriteString("\n|---|--:|" + strings.Repeat("--:|", len(benchmarks)) + "\n")
	for _, r := range m.ordered() {
		fmt.Fprintf(s, "| %s | %.1f |", r.Method, r.Skipped)
		for _, b := range benchmarks {
			i := r.Benchmarks[b.name]
			fmt.Fprintf(s, " %.0f (%.0f–%.0f) |", 100*i.Mean, 100*i.Low, 100*i.High)
		}
		s.WriteString("\n")
	}
}

// pictureName is the model's picture, beside the page.
func (m *model) pictureName() string { return "real-" + m.Name + ".svg" }

// picture draws accuracy over measured speed: a curve for each method, from the whole model
// on. Methods whose speed was not measured are left out.
func (m *model) picture() ([]byte, error) {
	const hundred = 100
	var series []report.Series
	at := map[string]int{}
	for _, r := range m.ordered() {
		name, _, _ := strings.Cut(r.Method, " 0.") // the budgets are one curve
		if r.Method == whole || r.Speed == nil {
			continue
		}
		i, ok := at[name]
		if !ok {
			i = len(series)
			at[name] = i
			series = append(series, report.Series{Name: name, X: []float64{1}, Y: []float64{hundred * m.Rows[0].Accuracy.Mean}, Dashed: name == randomLayers || name == randomHalves})
		}
		series[i].X, series[i].Y = append(series[i].X, *r.Speed), append(series[i].Y, hundred*r.Accuracy.Mean)
	}
	if first := m.Rows[0]; first.ShortSpeed != nil {
		series = append(series, report.Series{Name: "shortlist alone", X: []float64{1, *first.ShortSpeed}, Y: []float64{hundred * first.Accuracy.Mean, hundred * first.Accuracy.Mean}})
	}
	if len(series) == 0 { // no speeds yet: the whole model alone
		series = append(series, report.Series{Name: whole, X: []float64{1}, Y: []float64{hundred * m.Rows[0].Accuracy.Mean}})
	}
	return report.CurveSVG(m.Name+": accuracy and speed", "decode speed over stock llama.cpp", "accuracy, %, mean of eight benchmarks", series)
}
