// Command benchlong measures local attention on a long document: for each model and length
// it ranks the layers by what the window costs each alone, makes as many local as a budget of
// divergence allows, and compares with the whole model behind the same text: quality on tokens that
// nothing was chosen by, and the speed of single tokens and of a prompt's pieces, in turns. Speeds want a
// quiet machine: -parts quality can run beside other work, and -parts speed adds them to its rows later.
//
//	go run ./scripts/benchlong -o build/long.json qwen2.5-coder-0.5b-instruct
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gallop-llm/gallop/internal/files"
	"github.com/gallop-llm/gallop/internal/lab/report"
	"github.com/gallop-llm/gallop/internal/realmodel"
	"github.com/gallop-llm/gallop/internal/shortlist"
	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

const (
	chosenBy  = 128 // tokens that layers are ranked and counted by
	comparing = 256 // tokens behind these that quality is measured on
	piece     = 128 // tokens of a prompt's piece whose speed is measured
	chunk     = 512 // tokens in a batch

	streamingName = "all layers local, as StreamingLLM has it"
	writtenName   = "the local layers without attention, keys and values written"
)

// row is a line of the result.
type row struct {
	Model   string `json:"model"`
	Context int    `json:"context"` // tokens in front of what is measured
	Mask    string `json:"mask"`
	Local   int    `json:"local"`  // layers whose attention is local
	Layers  int    `json:"layers"` // of the model
	// Single tokens as Gallop decodes them by default, from llama.cpp without flash attention; and llama.cpp's
	// flash attention, likewise.
	KL         float64 `json:"kl"`    // nats per token
	Agree      float64 `json:"agree"` // share of tokens with the same likeliest next one
	FlashKL    float64 `json:"flash_kl"`
	FlashAgree float64 `json:"flash_agree"`
	// The mask, from the whole model, with keys and values by the whole model.
	LocalKL    float64 `json:"local_kl"`
	LocalAgree float64 `json:"local_agree"`
	Others     []other `json:"others"` // likewise, other masks
	Whole      kernels `json:"whole"`
	Masked     kernels `json:"masked"`
	// What Gallop has by default over stock's better kernel, and what it has with the mask.
	DecodeRatio  float64 `json:"decode_ratio"`
	PrefillRatio float64 `json:"prefill_ratio"`
	DecodeLocal  float64 `json:"decode_ratio_local"`
	PrefillLocal float64 `json:"prefill_ratio_local"`
}

// other is a mask that is there to compare with.
type other struct {
	Name  string  `json:"name"`
	Mask  string  `json:"mask"`
	KL    float64 `json:"kl"`
	Agree float64 `json:"agree"`
}

// kernels are times with each kernel of attention: llama.cpp's with and without flash attention, and ours.
type kernels struct {
	On      cost `json:"on"`
	Off     cost `json:"off"`
	Grouped cost `json:"grouped"`
	Default cost `json:"default"` // ours with the shortlist, where the model has one
}

// cost is in milliseconds, the fastest of the turns.
type cost struct {
	Decode float64 `json:"decode"`
	Prompt float64 `json:"prompt"` // a token of a piece, at this length
}

func main() {
	out := flag.String("o", "build/long.json", "where the rows go")
	contexts := flag.String("contexts", "1000,4000", "lengths of the document, in tokens")
	window := flag.String("window", "w256+4", "what local attention sees")
	budget := flag.Float64("kl", 0.02, "nats per token that local attention may cost; 0 = no layer is made local")
	document := flag.String("text", "docs", "the document: a file, or a folder whose .md files are read")
	turns := flag.Int("turns", 7, "pieces of a prompt that are timed in each way, and four times as many runs of single tokens")
	pictures := flag.String("pictures", "", "folder that curves over the rows are drawn into")
	parts := flag.String("parts", "quality,speed,recall", "what is measured")
	flag.Parse()
	var err error
	if flag.NArg() == 0 && (strings.Contains(*parts, "quality") || strings.Contains(*parts, "recall")) {
		err = errors.New("name models: files, or names that `make models` fetches")
	}
	if err == nil && strings.Contains(*parts, "quality") {
		err = quality(*out, *contexts, *window, *budget, *document, flag.Args())
	}
	if err == nil && strings.Contains(*parts, "speed") {
		err = speed(*out, *document, *turns)
	}
	if err == nil && strings.Contains(*parts, "recall") {
		err = recall(*out, *document, flag.Args())
	}
	if err == nil && *pictures != "" {
		err = draw(*out, *pictures)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchlong:", err)
		os.Exit(1)
	}
}

// result is what the file has.
type result struct {
	Window string  `json:"window"`
	Budget float64 `json:"budget"`
	Rows   []row   `json:"rows"`

	Recalled []recalled `json:"recalled,omitempty"`
}

func (r *result) write(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return files.Write(path, append(data, '\n'))
}

func quality(out, contexts, window string, budget float64, document string, models []string) error {
	mask, err := skip.Parse("l0," + window)
	if err != nil {
		return err
	}
	all, text, err := begin(out, document)
	if err != nil {
		return err
	}
	all.Window, all.Budget = window, budget
	for _, name := range models {
		for field := range strings.SplitSeq(contexts, ",") {
			n, err := strconv.Atoi(field)
			if err != nil || n < 1 {
				return fmt.Errorf("a context of %q tokens: write numbers as in 1000,4000", field)
			}
			r, err := judge(name, text, n, mask.Window(), budget)
			if err != nil {
				return fmt.Errorf("%s at %d tokens: %w", name, n, err)
			}
			all.Rows = slices.DeleteFunc(all.Rows, func(old row) bool { return old.Model == r.Model && old.Context == r.Context })
			all.Rows = append(all.Rows, r)
			if err := all.write(out); err != nil { // after each row: a long run may be stopped
				return err
			}
		}
	}
	return nil
}

// results are those of the file, which other parts may have written, and loads llama.cpp.
func results(out string) (all result, err error) {
	data, err := os.ReadFile(out)
	if err == nil {
		err = json.Unmarshal(data, &all)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return all, fmt.Errorf("%s: %w", out, err)
	}
	_, err = libs.Load()
	return all, err
}

// begin is what the file has, and the document's text.
func begin(out, document string) (all result, text string, err error) {
	if text, err = read(document); err == nil {
		all, err = results(out)
	}
	return all, text, err
}

// speed adds how fast the masks in the file are.
func speed(out, document string, turns int) error {
	all, text, err := begin(out, document)
	if err != nil {
		return err
	}
	for i := range all.Rows {
		r := &all.Rows[i]
		if err := r.time(text, turns); err != nil {
			return fmt.Errorf("%s at %d tokens: %w", r.Model, r.Context, err)
		}
		if err := all.write(out); err != nil {
			return err
		}
	}
	return nil
}

// draw makes curves of speed and of quality over the length, for each model in the file.
func draw(out, pictures string) error {
	all, err := results(out)
	if err != nil {
		return err
	}
	byModel := map[string][]row{}
	for _, r := range all.Rows {
		byModel[r.Model] = append(byModel[r.Model], r)
	}
	perSecond := func(ms float64) float64 { return 1000 / ms }
	for model, rows := range byModel {
		slices.SortFunc(rows, func(a, b row) int { return cmp.Compare(a.Context, b.Context) })
		curve := func(name string, of func(row) float64) (s report.Series) {
			s.Name = name
			for _, r := range rows {
				s.X, s.Y = append(s.X, float64(r.Context)), append(s.Y, of(r))
			}
			return s
		}
		const label = "tokens before"
		err = errors.Join(err,
			report.CurvePNG(filepath.Join(pictures, "long-"+model+"-answer.png"), model+": tokens of an answer", label, "tokens/s", []report.Series{
				curve("llama.cpp, flash attention", func(r row) float64 { return perSecond(r.Whole.On.Decode) }),
				curve("llama.cpp without it", func(r row) float64 { return perSecond(r.Whole.Off.Decode) }),
				curve("grouped", func(r row) float64 { return perSecond(r.Whole.Grouped.Decode) }),
				curve("Gallop's default", func(r row) float64 { return perSecond(r.Whole.Default.Decode) }),
				curve("default, local layers", func(r row) float64 { return perSecond(r.Masked.Default.Decode) }),
			}),
			report.CurvePNG(filepath.Join(pictures, "long-"+model+"-prompt.png"), model+": tokens of a prompt, 128 at once", label, "tokens/s", []report.Series{
				curve("llama.cpp, flash attention", func(r row) float64 { return perSecond(r.Whole.On.Prompt) }),
				curve("llama.cpp without it", func(r row) float64 { return perSecond(r.Whole.Off.Prompt) }),
				curve("Gallop's default", func(r row) float64 { return perSecond(r.Whole.Default.Prompt) }),
				curve("default, local layers", func(r row) float64 { return perSecond(r.Masked.Default.Prompt) }),
			}),
			report.CurvePNG(filepath.Join(pictures, "long-"+model+"-quality.png"), model+": divergence from the whole model", label, "nats a token", []report.Series{
				curve("llama.cpp, flash attention", func(r row) float64 { return r.FlashKL }),
				curve("Gallop's default", func(r row) float64 { return r.KL }),
				curve("local layers", func(r row) float64 { return r.LocalKL }),
				curve("all layers local", func(r row) float64 { return r.kl(streamingName) }),
			}),
		)
	}
	return err
}

// kl is the divergence under one of the other masks.
func (r *row) kl(name string) float64 {
	for _, o := range r.Others {
		if o.Name == name {
			return o.KL
		}
	}
	return math.NaN()
}

// read gives a file's text, or that of all pages in a folder.
func read(path string) (string, error) {
	var text strings.Builder
	err := filepath.WalkDir(path, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || (file != path && filepath.Ext(file) != ".md") {
			return err
		}
		data, err := os.ReadFile(file)
		text.Write(data)
		return err
	})
	return text.String(), err
}

// place finds a model: a file, or one that `make models` fetched.
func place(name string) (string, error) {
	if _, err := os.Stat(name); err == nil {
		return name, nil
	}
	return realmodel.Path(name)
}

// document is a model behind a long text.
type document struct {
	ctx    *llama.Context
	batch  *llama.Batch
	tokens []llama.Token
	n      int // of them in the cache
}

func (d *document) decode(to int, mask skip.Mask, outputs bool) error {
	for d.n < to {
		d.batch.Clear()
		end := min(d.n+chunk, to)
		for i := d.n; i < end; i++ {
			if err := d.batch.Add(d.tokens[i], i, outputs || i == to-1, 0); err != nil {
				return err
			}
		}
		if err := d.ctx.Decode(d.batch, mask); err != nil {
			return err
		}
		d.n = end
	}
	return nil
}

// forget drops the tokens from n on.
func (d *document) forget(n int) error {
	d.n = n
	return d.ctx.Remove(0, n, -1)
}

// predict gives the distributions, as log-probabilities (nVocab,), behind each of the next tokens,
// which are decoded in one batch and dropped again.
func (d *document) predict(tokens int, mask skip.Mask) (all [][]float32, err error) {
	before := d.n
	if err := d.decode(before+tokens, mask, true); err != nil {
		return nil, err
	}
	for i := range tokens {
		logits, err := d.ctx.Logits(i)
		if err != nil {
			return nil, err
		}
		all = append(all, logProbabilities(logits))
	}
	return all, d.forget(before)
}

// singly does the same token by token, as an answer is written.
func (d *document) singly(tokens int, mask skip.Mask) (all [][]float32, err error) {
	before := d.n
	for range tokens {
		if err := d.decode(d.n+1, mask, true); err != nil {
			return nil, err
		}
		logits, err := d.ctx.Logits(-1)
		if err != nil {
			return nil, err
		}
		all = append(all, logProbabilities(logits))
	}
	return all, d.forget(before)
}

func logProbabilities(logits []float32) []float32 {
	top, sum := float64(slices.Max(logits)), 0.0
	for _, x := range logits {
		sum += math.Exp(float64(x) - top)
	}
	own := make([]float32, len(logits))
	for i, x := range logits {
		own[i] = float32(float64(x) - top - math.Log(sum))
	}
	return own
}

// compare gives the mean divergence of masked from whole, and the share whose likeliest token is the same.
func compare(whole, masked [][]float32) (kl, agree float64) {
	for i, p := range whole {
		q := masked[i]
		best, other := 0, 0
		for k := range p {
			kl += math.Exp(float64(p[k])) * float64(p[k]-q[k])
			if p[k] > p[best] {
				best = k
			}
			if q[k] > q[other] {
				other = k
			}
		}
		if best == other {
			agree++
		}
	}
	n := float64(len(whole))
	return kl / n, agree / n
}

// load opens a model on the CPU.
func load(name string) (*llama.Model, error) {
	path, err := place(name)
	if err != nil {
		return nil, err
	}
	return llama.LoadModel(context.Background(), path, &llama.ModelOptions{GPULayers: llama.CPUOnly})
}

// newDocument is an empty one, with room for n tokens and what is measured behind them.
func newDocument(m *llama.Model, tokens []llama.Token, n int, flash llama.FlashAttention) (*document, error) {
	b, err := llama.NewBatch(chunk, nil)
	if err != nil {
		return nil, err
	}
	c, err := m.NewContext(&llama.ContextOptions{NCtx: n + chunk, Flash: flash, NUBatch: chunk})
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return &document{ctx: c, batch: b, tokens: tokens}, nil
}

// list gives the context the model's shortlist, which is learnt if it is not in the cache folder, and gives
// the mask that uses it; nothing is masked where the model has none.
func (d *document) list(m *llama.Model) (mask skip.Mask, err error) {
	learner, err := shortlist.Learned(context.Background(), m, func(text string) { fmt.Fprintln(os.Stderr, text) })
	if err != nil || learner == nil {
		return mask, err
	}
	defer learner.Close()
	made, err := learner.Use(d.ctx)
	if err != nil {
		return mask, err
	}
	return mask.WithShortlist(made.Size), nil
}

func (d *document) close() error { return errors.Join(d.batch.Close(), d.ctx.Close()) }

// judge chooses a mask for a length and says how good it is.
func judge(name, text string, n int, window skip.Window, budget float64) (r row, err error) {
	m, err := load(name)
	if err != nil {
		return r, err
	}
	defer m.Close()
	tokens, err := m.Vocab.Tokenize(text, false)
	if err != nil {
		return r, err
	}
	if need := n + chosenBy + comparing; len(tokens) < need {
		return r, fmt.Errorf("the document has %d tokens, want %d: name a longer one with -text", len(tokens), need)
	}
	r = row{Model: name, Context: n, Layers: m.NLayer}
	fmt.Fprintf(os.Stderr, "%s: reads %d tokens\n", r.Model, n)
	on, err := newDocument(m, tokens, n, llama.FlashOn)
	if err != nil {
		return r, err
	}
	defer on.close()
	if err := on.decode(n, skip.Mask{}, false); err != nil {
		return r, err
	}
	mask := skip.Mask{}
	if budget > 0 {
		if mask, err = choose(on, m.NLayer, window, budget); err != nil {
			return r, err
		}
	}
	if err := on.decode(n+chosenBy, skip.Mask{}, false); err != nil {
		return r, err
	}
	whole, err := on.predict(comparing, skip.Mask{})
	if err != nil {
		return r, err
	}
	masked, err := on.predict(comparing, mask)
	if err != nil {
		return r, err
	}
	r.LocalKL, r.LocalAgree = compare(whole, masked)
	var streaming, written skip.Mask
	for l := range m.NLayer {
		streaming = streaming.WithLocal(l, window)
		if mask.Local(l) {
			written = written.WithWritten(l)
		}
	}
	for _, o := range []struct {
		name string
		mask skip.Mask
	}{{streamingName, streaming}, {writtenName, written}} {
		if masked, err = on.predict(comparing, o.mask); err != nil {
			return r, err
		}
		kl, agree := compare(whole, masked)
		r.Others = append(r.Others, other{o.name, o.mask.String(), kl, agree})
	}
	var by [3][][]float32
	for i, flash := range []llama.FlashAttention{llama.FlashOn, llama.FlashOff, llama.FlashGrouped} {
		d := on
		if flash != llama.FlashOn {
			if d, err = newDocument(m, tokens, n, flash); err != nil {
				return r, err
			}
			defer d.close()
			if err := d.decode(n+chosenBy, skip.Mask{}, false); err != nil {
				return r, err
			}
		}
		usual := skip.Mask{}
		if flash == llama.FlashGrouped {
			if usual, err = d.list(m); err != nil {
				return r, err
			}
		}
		if by[i], err = d.singly(comparing, usual); err != nil {
			return r, err
		}
	}
	r.FlashKL, r.FlashAgree = compare(by[1], by[0])
	r.KL, r.Agree = compare(by[1], by[2])
	r.Mask = mask.String()
	for l := range m.NLayer {
		if mask.Local(l) {
			r.Local++
		}
	}
	return r, nil
}

// fill writes keys and values of every layer and computes next to nothing else: for speed alone it does
// not matter what a cache holds.
func fill(layers int) (m skip.Mask) {
	for l := range layers {
		m = m.WithWritten(l)
		if l > 0 {
			m = m.With(l, skip.FeedForward)
		}
	}
	return m
}

// choose makes those layers local that cost least alone, as many as the budget allows together.
func choose(d *document, layers int, window skip.Window, budget float64) (mask skip.Mask, err error) {
	whole, err := d.predict(chosenBy, skip.Mask{})
	if err != nil {
		return mask, err
	}
	costs, order := make([]float64, layers), make([]int, layers)
	cost := func(m skip.Mask) (float64, error) {
		masked, err := d.predict(chosenBy, m)
		if err != nil {
			return 0, err
		}
		kl, _ := compare(whole, masked)
		return kl, nil
	}
	for l := range layers {
		order[l] = l
		if costs[l], err = cost(skip.Mask{}.WithLocal(l, window)); err != nil {
			return mask, err
		}
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(costs[a], costs[b]) })
	first := func(k int) (m skip.Mask) {
		for _, l := range order[:k] {
			m = m.WithLocal(l, window)
		}
		return m
	}
	least, most := 0, layers // of layers that the budget allows, and that were not refused
	for least < most {
		k := (least + most + 1) / 2
		kl, err := cost(first(k))
		if err != nil {
			return mask, err
		}
		if kl <= budget {
			least = k
		} else {
			most = k - 1
		}
	}
	return first(least), nil
}

// time measures single tokens and pieces of a prompt by all ways in turns.
func (r *row) time(text string, turns int) error {
	m, err := load(r.Model)
	if err != nil {
		return err
	}
	defer m.Close()
	mask := skip.Mask{} // of a row without quality
	if r.Mask != "" {
		if mask, err = skip.Parse(r.Mask); err != nil {
			return err
		}
	}
	fmt.Fprintf(os.Stderr, "%s: speed behind %d tokens\n", r.Model, r.Context)
	tokens, err := m.Vocab.Tokenize(text, false)
	if err != nil {
		return err
	}
	if need := r.Context + chunk; len(tokens) < need {
		return fmt.Errorf("the document has %d tokens, want %d: name a longer one with -text", len(tokens), need)
	}
	var documents []*document
	for _, flash := range []llama.FlashAttention{llama.FlashOn, llama.FlashOff, llama.FlashGrouped} {
		d, err := newDocument(m, tokens, r.Context, flash)
		if err != nil {
			return err
		}
		defer d.close()
		before := fill(m.NLayer)
		if flash == llama.FlashGrouped {
			before = skip.Mask{} // the more a shortlist costs, the less sure a token is
		}
		if err := d.decode(r.Context, before, false); err != nil {
			return err
		}
		documents = append(documents, d)
	}
	usual, err := documents[2].list(m)
	if err != nil {
		return err
	}
	r.Whole, r.Masked = kernels{}, kernels{}
	ways := []struct {
		*document
		mask skip.Mask
		*cost
	}{
		{documents[0], skip.Mask{}, &r.Whole.On}, {documents[1], skip.Mask{}, &r.Whole.Off}, {documents[2], skip.Mask{}, &r.Whole.Grouped},
		{documents[2], usual, &r.Whole.Default},
		{documents[0], mask, &r.Masked.On}, {documents[1], mask, &r.Masked.Off}, {documents[2], mask, &r.Masked.Grouped},
		{documents[2], mask.WithShortlist(usual.Shortlist()), &r.Masked.Default},
	}
	for turn := range 5 * turns {
		for _, w := range ways {
			count, times, best := 1, 3, &w.Decode
			if turn%5 == 4 {
				count, times, best = piece, 1, &w.Prompt
			}
			for range times { // only the first has its graph to build
				start := time.Now()
				if err := w.decode(r.Context+count, w.mask, false); err != nil {
					return err
				}
				took := time.Since(start).Seconds() * 1000 / float64(count)
				if err := w.forget(r.Context); err != nil {
					return err
				}
				if *best == 0 || took < *best {
					*best = took
				}
			}
		}
	}
	stock := cost{min(r.Whole.On.Decode, r.Whole.Off.Decode), min(r.Whole.On.Prompt, r.Whole.Off.Prompt)}
	r.DecodeRatio, r.PrefillRatio = stock.Decode/r.Whole.Default.Decode, stock.Prompt/r.Whole.Default.Prompt
	r.DecodeLocal, r.PrefillLocal = stock.Decode/r.Masked.Default.Decode, stock.Prompt/r.Masked.Default.Prompt
	return nil
}
