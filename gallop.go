package gallop

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
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
	loras  []llama.ScaledLoRA
	owns   bool // the model is closed with the engine
	nCtx   int
	idle   idling
	totals totals
	slots  slots

	closing context.Context // ends when the engine is closed
	close   context.CancelFunc
	closed  sync.Once

	sparing   sparing            // of neurons
	learner   *shortlist.Learner // of the vocabulary shortlist; nil = off
	costsPath string             // "" = nothing is kept

	flash      *costs.Flash // nil = not measured
	flashFresh bool         // it was measured now

	mu       sync.Mutex     // guards what follows
	profile  *sharedProfile // nil = none
	embedder *embedder      // nil = nothing was embedded yet

	// What one answer uses at a time; the others go without. They are measured with, which
	// makes sense only for an answer that runs alone.
	weighing sync.Mutex
	weigher  costs.Weigher

	drafting sync.Mutex
	drafter  *draft.Drafter // nil = nothing was drafted yet

	idleCore bool // there is a core for the router beside a prompt's pass
}

// DefaultContext bounds the context, in tokens, where [Options] name none: many models claim
// 128k tokens, whose cache would not fit into a laptop.
const DefaultContext = 4096

// defaultParallel and defaultQueue are what [Options] stand for with 0.
const (
	defaultParallel = 4
	mostParallel    = 128
	defaultQueue    = 64
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
	e.closing, e.close = context.WithCancel(context.Background())
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
		o.Context.NCtx = min(cmp.Or(e.model.NCtxTrain, DefaultContext), DefaultContext) // a damaged file may not say
	}
	if e.log = o.Logger; e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if o.Parallel < 1 || o.Parallel > mostParallel || o.Queue < 0 {
		return fmt.Errorf("%w: %d requests at once and a queue of %d, want 1 to %d and -1 or more", ErrRequest, o.Parallel, o.Queue, mostParallel)
	}
	if o.ReleaseSkipped && !e.model.Releasable() {
		return fmt.Errorf("%w: skipped weights cannot be released: they are not in a mapping of the file, but were read, are locked or are on a GPU, or layers share them, or the system is not Linux", ErrRequest)
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
			e.flash = known.Flash
		}
	}
	e.chooseFlash()
	if o.Shortlist >= 0 {
		dir, err := o.cacheDir("shortlist", shortlist.Dir)
		if err != nil {
			return err
		}
		e.learner = shortlist.Open(e.model, dir, o.Context.Threads, func(err error) {
			e.log.Warn("the vocabulary shortlist in the cache cannot be used and is learnt anew", "error", err)
		})
	}
	if err := e.sparing.init(e); err != nil {
		return err
	}
	e.loop, err = engine.New(e.model, engine.Options{
		Context: o.Context, Parallel: o.Parallel, Queue: o.Queue, Isolate: o.Isolate, Cost: e.tokenCost,
	})
	if err != nil {
		return err
	}
	e.nCtx = e.loop.NCtx()
	if o.Pause != nil {
		if err := e.loop.Do(func(c *llama.Context) { c.PauseWith(o.Pause) }); err != nil {
			return err
		}
	}
	if err := e.useLoRA(); err != nil {
		return err
	}
	e.slots.init(o.Parallel)
	threads := cmp.Or(o.Context.ThreadsBatch, o.Context.Threads, e.model.DefaultThreads())
	e.idleCore = threads < runtime.GOMAXPROCS(0)
	e.idle.init(e)
	return nil
}

// chooseFlash takes the attention kernel that was measured to be fastest for a context that leaves
// it open, once for each model and machine. On a GPU llama.cpp's choice stays, and where
// nothing that is measured is to be kept or to decide over an answer's bits.
func (e *Engine) chooseFlash() {
	o := &e.opts
	onGPU := o.Model.GPULayers != llama.CPUOnly && slices.ContainsFunc(llama.Devices(), llama.Device.IsGPU)
	if e.costsPath == "" || o.Isolate || onGPU || llama.MasksAvailable() != nil {
		return
	}
	kernels := costs.FlashChoices(e.model, &o.Context, o.Context.NCtx*o.Parallel)
	if len(kernels) == 0 {
		return
	}
	if e.flash == nil {
		measured, err := costs.MeasureFlash(e.model, o.Context, kernels)
		if err != nil {
			e.log.Debug("which kernel of attention is fastest is not known", "error", err)
			return
		}
		e.flash, e.flashFresh = &measured, true
	}
	if choice := e.flash.Choice(); slices.Contains(kernels, choice) { // of a longer context fewer may be had
		o.Context.Flash = choice
	}
	e.log.Debug("attention was measured", "flash", e.flash.On, "without", e.flash.Off, "grouped", e.flash.Grouped, "choice", o.Context.Flash)
}

// useLoRA loads the adapters and puts them in use.
func (e *Engine) useLoRA() error {
	for _, a := range e.opts.LoRA {
		l, err := e.model.LoadLoRA(a.Path)
		if err != nil {
			return err
		}
		e.loras = append(e.loras, llama.ScaledLoRA{LoRA: l, Scale: cmp.Or(a.Scale, 1)})
	}
	if len(e.loras) == 0 {
		return nil
	}
	var err error
	closed := e.loop.Do(func(c *llama.Context) { err = c.SetLoRA(e.loras...) })
	return errors.Join(closed, err)
}

// Close ends running requests with [ErrClosed], waits until they have ended, and frees
// everything. Further calls do nothing but wait for that.
func (e *Engine) Close() (err error) {
	e.closed.Do(func() {
		e.close()
		e.idle.stop()
		err = e.closeParts()
		if e.owns {
			err = errors.Join(err, e.model.Close())
		}
	})
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
	err = errors.Join(err, e.drafter.Close(), e.sparing.close())
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.embedder != nil {
		err = errors.Join(err, e.embedder.close())
		e.embedder = nil
	}
	err = errors.Join(err, e.profile.drop())
	e.profile = nil
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
	if batches == nil && !e.weigher.Fresh() && !e.flashFresh {
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
	file.Flash = e.flash
	if err := file.Write(e.costsPath); err != nil {
		e.log.Warn("what decoding costs here is not kept", "error", err)
	}
}

// tokenCost is the share of the whole model's weights that a token reads under a mask, 0 to 1. A
// shortlist counts by the time that it was measured to save.
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
	return float64(e.sizes.Bytes(mask.WithShortlist(0))+e.sparing.spared(mask)) / float64(max(read, 1))
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
	p, err := e.readProfile(path)
	if err != nil && found {
		e.log.Warn("goes on with the whole model: its profile cannot be used", "profile", path, "error", err)
		return nil
	}
	e.profile = p
	return err
}

// sharedProfile is a profile that requests choose by. It is closed when the last of them
// is done with it and the engine has another one. Its users are counted under the
// engine's mutex.
type sharedProfile struct {
	*router.Profile
	path  string
	users int // requests, and the engine
}

func (e *Engine) readProfile(path string) (*sharedProfile, error) {
	p, err := router.Read(path)
	if err == nil {
		err = p.Open(e.model.Path)
	}
	switch {
	case errors.Is(err, ErrProfile):
		return nil, fmt.Errorf("profile: %w", err)
	case err != nil: // it is another model's, or there is none
		return nil, fmt.Errorf("%w: %w", ErrProfile, err)
	}
	return &sharedProfile{p, path, 1}, nil
}

// useProfile is what a request chooses by; nil = nothing. [Engine.doneWith] ends its use.
func (e *Engine) useProfile() *sharedProfile {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.profile != nil {
		e.profile.users++
	}
	return e.profile
}

func (e *Engine) doneWith(p *sharedProfile) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := p.drop(); err != nil {
		e.log.Warn("a profile was not closed", "error", err)
	}
}

// drop ends one use. The engine's mutex is held.
func (p *sharedProfile) drop() error {
	if p == nil {
		return nil
	}
	if p.users--; p.users > 0 {
		return nil
	}
	return p.Close()
}

// SetProfile makes the requests that come from now on choose layers by another profile; "" =
// by none. Errors: those that wrap [ErrProfile], and [ErrClosed].
func (e *Engine) SetProfile(path string) error {
	if err := e.slots.begin(); err != nil {
		return err
	}
	defer e.slots.end()
	var p *sharedProfile
	if path != "" {
		var err error
		if p, err = e.readProfile(path); err != nil {
			return err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	before := e.profile
	e.profile = p
	return before.drop()
}

// Model is the engine's, for what package llama can tell of it. It must not be closed.
func (e *Engine) Model() *llama.Model { return e.model }

// Info describes the model.
func (e *Engine) Info() Info {
	m := e.model
	profile := ""
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.profile != nil {
		profile = e.profile.path
	}
	return Info{
		Path: m.Path, Name: cmp.Or(m.Metadata["general.name"], filepath.Base(m.Path)), Architecture: m.Architecture, Description: m.Description,
		Layers: m.NLayer, Context: e.nCtx, TrainContext: m.NCtxTrain, Vocab: m.Vocab.Size, Embd: m.NEmbd, Size: m.Size, Params: m.NParams,
		Template: m.Template(), Profile: profile, Parallel: e.opts.Parallel, Queue: e.opts.Queue,
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
	return float64(e.model.NLayer) - float64(mask.WithShortlist(0).Len())/2
}
