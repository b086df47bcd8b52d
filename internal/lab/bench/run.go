package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/gallop-llm/gallop/internal/prune"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Options says what [Run] measures, and how.
type Options struct {
	Prompt int // tokens of the prompt, at least 1
	Decode int // tokens that are decoded after it, at least 1
	Rounds int // at least 1; one more runs first and is not counted

	Context   llama.ContextOptions // Run sets the size
	GPULayers int                  // as in [llama.ModelOptions], for the pruned files

	// Pruned measures each mask beside a file without its layers too. Such masks
	// skip whole layers only.
	Pruned bool

	// Route chooses layers for a prompt, to see what that costs; nil = nobody does.
	Route func(prompt string) error

	// Shortlist is what masks with a vocabulary shortlist decode with; nil = no mask has
	// one. How many exact logits a token needs depends on the text, so with it the tokens
	// are built-in prompts and what the model goes on with, in place of random ones.
	Shortlist *llama.Shortlist

	// Progress, when set, is told how many steps of how many are done.
	Progress func(done, total int)
}

// switchesPerRound is how often the mask changes to and fro for each round: one
// decode is short and its time uneven.
const switchesPerRound = 4

// roundsPerLoad is how many rounds a model beside a pruned file is loaded for: where
// its weights lie in memory counts for less than how evenly a machine runs, and
// loading takes longer than a round.
const roundsPerLoad = 5

// Run measures the whole model and each of the masks, none of them empty, and
// gives a row for each, the whole model's first. With [Options].Pruned it closes
// m, and each mask has rounds of its own with the whole model and its pruned file,
// no more than these two in memory at once. ctx's end stops it.
func Run(ctx context.Context, m *llama.Model, masks []skip.Mask, o Options) ([]Row, error) {
	r := &runner{Options: o, ctx: ctx, model: m}
	// What a small model gets must not differ for its pruned, smaller file.
	r.Context.Threads = cmp.Or(o.Context.Threads, m.DefaultThreads())
	r.Context.NCtx = o.Prompt + o.Decode + 1
	random := rand.New(rand.NewPCG(1, 1))
	for range o.Prompt + o.Decode {
		r.tokens = append(r.tokens, llama.Token(random.IntN(m.Vocab.Size)))
	}
	rows, err := r.run(masks)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err() // which a decode calls an abort
	}
	return rows, err
}

// runner is one run.
type runner struct {
	Options
	ctx    context.Context
	model  *llama.Model
	tokens []llama.Token // (Prompt + Decode,)

	done, total int // steps
}

// measured is all that was measured of a mask.
type measured struct {
	mask          skip.Mask
	turns         []turn  // (nRounds,) under the mask
	stock, pruned []turn  // (nRounds,) of the same rounds; pruned may be nil
	switching     summary // seconds that a change of masks adds; NaN = not measured
	rss, peak     uint64  // bytes
}

func (r *runner) run(masks []skip.Mask) ([]Row, error) {
	r.total = r.steps(len(masks))
	whole, err := r.newEngine(r.model)
	if err != nil {
		return nil, err
	}
	defer whole.Close()
	if r.Shortlist != nil {
		if err := whole.context.SetShortlist(r.Shortlist); err != nil {
			return nil, err
		}
		if r.tokens, err = whole.text(r.Prompt, r.Decode); err != nil {
			return nil, err
		}
	}
	all := []measured{{switching: summary{median: math.NaN(), ci: math.NaN()}}}
	variants := []variant{{whole, skip.Mask{}}}
	for _, mask := range masks {
		all = append(all, measured{mask: mask})
		variants = append(variants, variant{whole, mask})
	}
	for i, v := range variants {
		if _, err := r.turn(v); err != nil {
			return nil, err
		}
		all[i].rss, all[i].peak = resident()
	}
	for i := range all[1:] {
		x := &all[i+1]
		if x.switching, err = whole.switching(x.mask, r.Prompt, switchesPerRound*r.Rounds); err != nil {
			return nil, err
		}
		r.step()
	}
	route, err := r.route()
	if err != nil {
		return nil, err
	}
	if !r.Pruned || len(masks) == 0 {
		turns, err := r.rounds(r.Rounds, variants...)
		if err != nil {
			return nil, err
		}
		for i := range all {
			all[i].turns, all[i].stock = turns[i], turns[0]
		}
		return r.rows(all, route), nil
	}
	if err := errors.Join(whole.Close(), r.model.Close()); err != nil { // its memory is needed
		return nil, err
	}
	for i := range all[1:] {
		x := &all[i+1]
		if err := r.besidePruned(x); err != nil {
			return nil, err
		}
		all[0].turns = append(all[0].turns, x.stock...)
	}
	all[0].stock = all[0].turns
	return r.rows(all, route), nil
}

// steps counts the turns, and what takes about as long.
func (r *runner) steps(nMask int) int {
	warmUp, switching := 1+nMask, nMask
	if r.Pruned && nMask > 0 {
		const making, warming = 1, 2 // the pruned file; and both models, each time
		loads := (r.Rounds + roundsPerLoad - 1) / roundsPerLoad
		return warmUp + nMask*(making+warming*loads+3*r.Rounds) + switching
	}
	return warmUp + (1+nMask)*r.Rounds + switching
}

func (r *runner) step() {
	r.done++
	if r.Progress != nil {
		r.Progress(r.done, r.total)
	}
}

// variant is one way to run the model.
type variant struct {
	on   *engine
	mask skip.Mask
}

// turn is what a variant needed for a prompt and the tokens after it.
type turn struct {
	prefill, decode time.Duration
	listed          llama.ShortlistUse
}

func (r *runner) turn(v variant) (turn, error) {
	defer r.step()
	if err := r.ctx.Err(); err != nil {
		return turn{}, err
	}
	return v.on.turn(v.mask, r.tokens, r.Prompt)
}

// rounds lets the variants take turns n times, every other time from the last to
// the first. It gives their times, (nVariants, n).
func (r *runner) rounds(n int, variants ...variant) ([][]turn, error) {
	turns := make([][]turn, len(variants))
	for round := range n {
		for i := range variants {
			if round%2 == 1 {
				i = len(variants) - 1 - i
			}
			t, err := r.turn(variants[i])
			if err != nil {
				return nil, err
			}
			turns[i] = append(turns[i], t)
		}
	}
	return turns, nil
}

// besidePruned measures the whole model, a mask and the file without the mask's
// layers. The file is made for it and removed afterwards. Both models are loaded
// anew for every roundsPerLoad rounds, in the other order each time, into memory of
// their own: where in a machine's memory weights come to lie makes the same code up
// to a third faster or slower for as long as they are there.
func (r *runner) besidePruned(x *measured) error {
	cache, err := randmodel.CacheFolder()
	if err == nil {
		err = os.MkdirAll(cache, 0o755)
	}
	if err != nil {
		return err
	}
	folder, err := os.MkdirTemp(cache, "pruned-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, filepath.Base(r.model.Path))
	layers, only := x.mask.WholeLayers()
	if !only {
		return fmt.Errorf("no file can leave out what the mask %s does: compare whole layers with a pruned file", x.mask)
	}
	if err := prune.Layers(r.ctx, r.model.Path, path, layers, nil); err != nil {
		return err
	}
	r.step()
	for loads := 0; len(x.turns) < r.Rounds; loads++ {
		n := min(roundsPerLoad, r.Rounds-len(x.turns))
		turns, err := r.pairOfModels(path, x.mask, n, loads%2 == 1)
		if err != nil {
			return err
		}
		x.stock, x.turns, x.pruned = append(x.stock, turns[0]...), append(x.turns, turns[1]...), append(x.pruned, turns[2]...)
	}
	return nil
}

// pairOfModels loads the whole model and a pruned file, or the other way round, and
// gives n turns of the whole model, of the mask and of the file, (3, n).
func (r *runner) pairOfModels(pruned string, mask skip.Mask, n int, prunedFirst bool) ([][]turn, error) {
	paths := []string{r.model.Path, pruned}
	if prunedFirst {
		slices.Reverse(paths)
	}
	engines := map[string]*engine{}
	for _, path := range paths {
		m, err := r.load(path)
		if err != nil {
			return nil, err
		}
		defer m.Close()
		if engines[path], err = r.newEngine(m); err != nil {
			return nil, err
		}
		defer engines[path].Close()
		if _, err := r.turn(variant{on: engines[path]}); err != nil { // not counted
			return nil, err
		}
	}
	whole := engines[r.model.Path]
	return r.rounds(n, variant{on: whole}, variant{whole, mask}, variant{on: engines[pruned]})
}

// load reads a model into memory, beside another one, if there is room.
func (r *runner) load(path string) (*llama.Model, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if free := kilobytes("/proc/meminfo", "MemAvailable:"); free != 0 && free < uint64(info.Size()) {
		return nil, fmt.Errorf("no memory for the whole and the pruned model side by side: the second needs %s and %s are free; measure without it or a smaller model",
			humanize.IBytes(uint64(info.Size())), humanize.IBytes(free))
	}
	return llama.LoadModel(r.ctx, path, &llama.ModelOptions{GPULayers: r.GPULayers, NoMmap: true, ForText: true})
}

// route gives the seconds that choosing layers for a prompt of the measured
// length takes, NaN when nobody chooses.
func (r *runner) route() (float64, error) {
	if r.Route == nil {
		return math.NaN(), nil
	}
	const sentence = "The old clock on the wall shows a quarter past seven. "
	tokens, err := r.model.Vocab.Tokenize(strings.Repeat(sentence, r.Prompt), false)
	if err != nil {
		return 0, err
	}
	prompt := r.model.Vocab.Text(tokens[:min(r.Prompt, len(tokens))], false)
	var seconds []float64
	for range 1 + r.Rounds {
		start := time.Now()
		if err := r.Route(prompt); err != nil {
			return 0, err
		}
		seconds = append(seconds, time.Since(start).Seconds())
	}
	return summarise(seconds[1:]).median, nil
}

// engine decodes with one model.
type engine struct {
	context *llama.Context
	batch   *llama.Batch
}

func (r *runner) newEngine(m *llama.Model) (*engine, error) {
	c, err := m.NewContext(&r.Context)
	if err != nil {
		return nil, err
	}
	c.AbortOn(r.ctx)
	b, err := llama.NewBatch(c.NBatch(), nil)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &engine{c, b}, nil
}

// Close frees what newEngine made, and not the model.
func (e *engine) Close() error { return errors.Join(e.batch.Close(), e.context.Close()) }

// turn decodes nPrompt tokens as a prompt and the rest one at a time. Another
// token is decoded before, untimed, with the shortlist and with the whole output matrix,
// which the prompt has: after another model's turn the first look at each weight is
// slow, most of all in a virtual machine.
func (e *engine) turn(mask skip.Mask, tokens []llama.Token, nPrompt int) (turn, error) {
	prompt := mask.WithShortlist(0)
	err := e.context.Remove(0, 0, -1)
	if err == nil && mask != prompt {
		if err = e.step(mask, tokens[0], 0); err == nil {
			err = e.context.Remove(0, 0, -1)
		}
	}
	if err == nil {
		err = e.step(prompt, tokens[0], 0)
	}
	if err == nil {
		err = e.context.Remove(0, 0, -1)
	}
	if err != nil {
		return turn{}, err
	}
	start := time.Now()
	if err := e.prefill(prompt, tokens[:nPrompt]); err != nil {
		return turn{}, err
	}
	prefill, before := time.Since(start), e.context.ShortlistUse()
	start = time.Now()
	for i, token := range tokens[nPrompt:] {
		if err := e.step(mask, token, nPrompt+i); err != nil {
			return turn{}, err
		}
	}
	took, use := time.Since(start), e.context.ShortlistUse()
	return turn{prefill, took, use.Since(before)}, nil
}

// prefill decodes a prompt, with the logits of its last token.
func (e *engine) prefill(mask skip.Mask, prompt []llama.Token) error {
	e.batch.Clear()
	for i, token := range prompt {
		last := i == len(prompt)-1
		if err := e.batch.Add(token, i, last, 0); err != nil {
			return err
		}
		if e.batch.Len() == e.batch.Cap() || last {
			if err := e.decode(mask); err != nil {
				return err
			}
		}
	}
	return nil
}

// step decodes one token.
func (e *engine) step(mask skip.Mask, token llama.Token, pos int) error {
	if err := e.batch.Add(token, pos, true, 0); err != nil {
		return err
	}
	return e.decode(mask)
}

// decode decodes the batch, waits for the results and empties the batch.
func (e *engine) decode(mask skip.Mask) error {
	if err := e.context.Decode(e.batch, mask); err != nil {
		return err
	}
	if _, err := e.context.Logits(-1); err != nil && !errors.Is(err, llama.ErrNoOutput) { // the first parts of a prompt have none
		return err
	}
	e.batch.Clear()
	return nil
}

// switching gives the seconds by which a token's decode takes longer when the
// token before it was decoded under another mask: the median over n changes, from
// the whole model to mask and back. The cache holds pos positions at least.
func (e *engine) switching(mask skip.Mask, pos, n int) (summary, error) {
	var last time.Duration
	once := func(mask skip.Mask) error {
		if err := e.context.Remove(0, pos, -1); err != nil {
			return err
		}
		start := time.Now()
		err := e.step(mask, 0, pos)
		last = time.Since(start)
		return err
	}
	if err := once(skip.Mask{}); err != nil { // whatever was before
		return summary{}, err
	}
	var longer []float64
	for i := range n {
		to := mask
		if i%2 == 1 {
			to = skip.Mask{}
		}
		if err := once(to); err != nil {
			return summary{}, err
		}
		first := last
		if err := once(to); err != nil {
			return summary{}, err
		}
		longer = append(longer, (first - last).Seconds())
	}
	return summarise(longer), nil
}

// summary is the median of some figures, half the width of its 95 % confidence
// interval (between order statistics, of figures that do not depend on each other;
// of fewer than six, of the range) and the figures' range.
type summary struct{ median, ci, low, high float64 }

func summarise(values []float64) summary {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	first := max(0, int((float64(n)-1.96*math.Sqrt(float64(n)))/2))
	return summary{stats.Median(values), (sorted[n-1-first] - sorted[first]) / 2, sorted[0], sorted[n-1]}
}
