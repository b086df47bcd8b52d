package gallop

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/gallop-llm/gallop/internal/costs"
	"github.com/gallop-llm/gallop/internal/draft"
	"github.com/gallop-llm/gallop/internal/engine"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/internal/shortlist"
	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// Engine is a loaded model that answers many requests at once. Its methods may be called
// from any goroutine. Close it after use.
type Engine struct {
	model  *llama.Model
	loop   *engine.Loop
	opts   Options
	log    *slog.Logger
	sizes  search.Sizes
	loras  []*llama.LoRA
	owns   bool // the model is closed with the engine
	nCtx   int
	idle   idling
	totals totals
	slots  slots

	learner   *shortlist.Learner // of the vocabulary shortlist; nil = off
	costsPath string             // "" = nothing is kept

	mu          sync.Mutex // guards what follows
	profile     *router.Profile
	profilePath string
	embedder    *embedder // nil = nothing was embedded yet

	// What one answer uses at a time; the others go without. They are measured with, which
	// makes sense only for an answer that runs alone.
	weighing sync.Mutex
	weigher  costs.Weigher
	drafting sync.Mutex
	drafter  *draft.Drafter // nil = nothing was drafted yet

	idleCore bool // there is a core for the router beside a prompt's pass
}

// defaultParallel and defaultQueue are what [Options] stand for with 0, and defaultContext
// bounds the context where none is named: many models claim 128k tokens, whose cache would
// not fit into a laptop.
const (
	defaultParallel = 4
	mostParallel    = 128
	defaultQueue    = 64
	defaultContext  = 4096
)

// Open loads llama.cpp's libraries, if that was not done before, and the model in a GGUF
// file, with its profile if it has one, and starts an engine. Nothing is fetched from the
// network: libs.Install does that. ctx ends the loading only. Errors: [ErrNoLibrary],
// [ErrModel], [ErrProfile], [ErrRequest] for an option out of range, and llama's.
func Open(ctx context.Context, path string, o *Options) (*Engine, error) {
	opts := Options{}
	if o != nil {
		opts = *o
	}
	problems, err := libs.Load()
	if err != nil {
		return nil, err
	}
	if opts.Logger != nil {
		for _, p := range problems {
			opts.Logger.Warn("goes on without a GPU", "error", p)
		}
	}
	mo := opts.Model
	mo.ForText = true
	m, err := llama.LoadModel(ctx, path, &mo)
	if err != nil {
		return nil, err
	}
	e, err := New(m, &opts)
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	e.owns = true
	return e, nil
}

// New starts an engine on a model that is loaded already. The caller closes the model after
// the engine. Errors are as of [Open].
func New(m *llama.Model, o *Options) (*Engine, error) {
	e := &Engine{model: m, sizes: search.SizesOf(m.Tensors, m.NLayer)}
	if o != nil {
		e.opts = *o
	}
	if err := e.setDefaults(); err != nil {
		return nil, err
	}
	if err := e.openProfile(); err != nil {
		return nil, err
	}
	if err := e.start(); err != nil {
		return nil, errors.Join(err, e.closeParts())
	}
	return e, nil
}

// setDefaults fills in the options and refuses what is out of range.
func (e *Engine) setDefaults() error {
	o := &e.opts
	o.Parallel = cmp.Or(o.Parallel, defaultParallel)
	switch o.Queue {
	case 0:
		o.Queue = defaultQueue
	case -1:
		o.Queue = 0
	}
	if o.Context.NCtx == 0 {
		o.Context.NCtx = min(e.model.NCtxTrain, defaultContext)
	}
	if e.log = o.Logger; e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if o.Parallel < 1 || o.Parallel > mostParallel || o.Queue < 0 {
		return fmt.Errorf("%w: %d requests at once and a queue of %d, want 1 to %d and -1 or more", ErrRequest, o.Parallel, o.Queue, mostParallel)
	}
	return o.Skip.check()
}

// start makes what answers need.
func (e *Engine) start() (err error) {
	o := &e.opts
	if !o.NoCosts {
		// Without a folder for the cache costs are found out each time.
		e.costsPath, _ = costs.Path(e.model, &o.Context, o.Model.GPULayers, !o.Model.NoRepack)
		if o.Cache != "" && e.costsPath != "" {
			e.costsPath = filepath.Join(o.Cache, "costs", filepath.Base(e.costsPath))
		}
		if known := costs.Read(e.costsPath); known != nil {
			e.weigher.Recall(known.Masks, known.Ahead)
		}
	}
	if o.Shortlist >= 0 {
		dir := filepath.Join(o.Cache, "shortlist")
		if o.Cache == "" {
			if dir, err = shortlist.Dir(); err != nil {
				return err
			}
		}
		e.learner = shortlist.Open(e.model, dir, o.Context.Threads, func(err error) {
			e.log.Warn("the vocabulary shortlist in the cache cannot be used and is learnt anew", "error", err)
		})
	}
	e.loop, err = engine.New(e.model, engine.Options{
		Context: o.Context, Parallel: o.Parallel, Queue: o.Queue, Isolate: o.Isolate, Cost: e.tokenCost,
	})
	if err != nil {
		return err
	}
	e.nCtx = e.loop.NCtx()
	if err := e.useLoRA(); err != nil {
		return err
	}
	e.slots.init(o.Parallel)
	threads := cmp.Or(o.Context.ThreadsBatch, o.Context.Threads, e.model.DefaultThreads())
	e.idleCore = threads < runtime.GOMAXPROCS(0)
	e.idle.init(e)
	return nil
}

// useLoRA loads the adapters and puts them in use.
func (e *Engine) useLoRA() error {
	var scaled []llama.ScaledLoRA
	for _, a := range e.opts.LoRA {
		l, err := e.model.LoadLoRA(a.Path)
		if err != nil {
			return err
		}
		e.loras = append(e.loras, l)
		scale := a.Scale
		if scale == 0 {
			scale = 1
		}
		scaled = append(scaled, llama.ScaledLoRA{LoRA: l, Scale: scale})
	}
	if len(scaled) == 0 {
		return nil
	}
	var err error
	return errors.Join(e.loop.Do(func(c *llama.Context) { err = c.SetLoRA(scaled...) }), err)
}

// Close ends running requests with [ErrClosed], waits until they have ended, and frees
// everything. Further calls do nothing.
func (e *Engine) Close() error {
	e.idle.stop()
	err := e.closeParts()
	if e.owns {
		err = errors.Join(err, e.model.Close())
	}
	return err
}

func (e *Engine) closeParts() (err error) {
	if e.loop != nil {
		err = e.loop.Close()
		e.slots.wait()
		e.keepCosts()
	}
	if e.learner != nil {
		err = errors.Join(err, e.learner.Close())
	}
	err = errors.Join(err, e.drafter.Close())
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.embedder != nil {
		err = errors.Join(err, e.embedder.close())
		e.embedder = nil
	}
	if e.profile != nil {
		err = errors.Join(err, e.profile.Close())
		e.profile = nil
	}
	for _, l := range e.loras {
		err = errors.Join(err, l.Close())
	}
	e.loras = nil
	return err
}

// keepCosts writes what was learnt of this machine, if something was.
func (e *Engine) keepCosts() {
	if e.costsPath == "" {
		return
	}
	var batches *costs.Batches
	if e.drafter != nil {
		batches = e.drafter.Learned()
	}
	if batches == nil && !e.weigher.Fresh() {
		return
	}
	file := costs.Read(e.costsPath)
	if file == nil {
		file = costs.New()
	}
	if batches != nil {
		file.Batches = *batches
	}
	if e.weigher.Fresh() {
		file.Masks, file.Ahead = e.weigher.Keep(), e.weigher.Ahead()
	}
	if err := file.Write(e.costsPath); err != nil {
		e.log.Warn("what decoding costs here is not kept", "error", err)
	}
}

// tokenCost is the share of the whole model's weights that a token reads under a mask, 0 to 1.
func (e *Engine) tokenCost(mask skip.Mask) float64 {
	layers := 1 - e.skippedShare(mask)
	if e.learner == nil || e.learner.Made() == nil || mask.Shortlist() == 0 {
		return layers
	}
	return max(layers-1+1/e.learner.Made().Gain, 0)
}

// skippedShare is the share of a token's weights that a mask leaves out.
func (e *Engine) skippedShare(mask skip.Mask) float64 {
	read, _ := e.model.TokenBytes()
	return float64(e.sizes.Bytes(mask.WithShortlist(0))) / float64(max(read, 1))
}

// openProfile opens the profile that the options name, or the model's own. A found one that
// cannot be used is reported and left out.
func (e *Engine) openProfile() error {
	path := e.opts.Profile
	if path == NoProfile {
		return nil
	}
	found := false
	if path == "" {
		if path, found = router.Find(e.model.Path); !found {
			return nil
		}
	}
	p, err := router.Read(path)
	if err == nil {
		err = p.Open(e.model.Path, nil)
	}
	switch {
	case err != nil && found:
		e.log.Warn("goes on with the whole model: its profile cannot be used", "profile", path, "error", err)
		return nil
	case err != nil:
		return fmt.Errorf("profile: %w", err)
	}
	e.profile, e.profilePath = p, path
	return nil
}

// SetProfile makes the requests that come from now on choose layers by another profile; "" =
// by none. Errors wrap [ErrProfile].
func (e *Engine) SetProfile(path string) error {
	var p *router.Profile
	if path != "" {
		var err error
		if p, err = router.Read(path); err == nil {
			err = p.Open(e.model.Path, nil)
		}
		if err != nil {
			return fmt.Errorf("profile: %w", err)
		}
	}
	e.mu.Lock()
	before := e.profile
	e.profile, e.profilePath = p, path
	e.mu.Unlock()
	if before != nil {
		return before.Close()
	}
	return nil
}

// Model is the engine's, for what package llama can tell of it. It must not be closed.
func (e *Engine) Model() *llama.Model { return e.model }

// Info describes the model.
func (e *Engine) Info() Info {
	m := e.model
	e.mu.Lock()
	defer e.mu.Unlock()
	return Info{
		Path: m.Path, Name: cmp.Or(m.Metadata["general.name"], filepath.Base(m.Path)), Architecture: m.Architecture, Description: m.Description,
		Layers: m.NLayer, Context: e.nCtx, TrainContext: m.NCtxTrain, Vocab: m.Vocab.Size, Embd: m.NEmbd, Size: m.Size, Params: m.NParams,
		Template: m.Template(), Profile: e.profilePath, Parallel: e.opts.Parallel,
	}
}

// Tokenize turns text into tokens, with BOS in front where the model wants it and bos is set.
// With special, control tokens that are written in the text count as such.
func (e *Engine) Tokenize(text string, bos, special bool) ([]llama.Token, error) {
	if bos {
		return e.model.Vocab.Tokenize(text, special)
	}
	return e.model.Vocab.TokenizePart(text, special)
}

// Detokenize is the text of tokens, control tokens included.
func (e *Engine) Detokenize(tokens []llama.Token) string { return e.model.Vocab.Text(tokens, true) }

// LayersRun counts the layers that run under a mask; each half counts ½.
func (e *Engine) LayersRun(mask skip.Mask) float64 {
	return float64(e.model.NLayer) - float64(mask.WithShortlist(0).Sublayers())/2
}

func finite(x float64) bool { return !math.IsNaN(x) && !math.IsInf(x, 0) }
