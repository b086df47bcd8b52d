package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/draft"
	"github.com/gallop-llm/gallop/internal/files"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// generation holds the flags of the commands that generate: llama.cpp's names,
// and its defaults.
type generation struct {
	engineFlags
	model, system, template, mask, grammar, grammarFile string
	predict, topK, repeatLastN                          int
	seed                                                int64
	temp, topP, minP, repeat, presence, frequency       float32
	releaseSkipped                                      bool
	lora, logitBias                                     []string
	profile, route, prefill                             string
	depth, quality, escalate                            float64
	lossless                                            bool
	draftMax, neuronsMemory                             int
	draftSource, shortlist                              string
	stop                                                []string
	escapes

	chats bool // the flags are those of chat, which has time between questions
	learn bool // of chat: calibrate in the background
}

// add declares the flags on a command.
func (g *generation) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&g.profile, "profile", "", "profile to route by (default: the one beside the model or in the cache, if there is one)")
	g.addOthers(cmd)
}

// addOthers declares all flags but --profile.
func (g *generation) addOthers(cmd *cobra.Command) {
	f, d := cmd.Flags(), llama.DefaultSampling()
	f.StringVarP(&g.model, "model", "m", "", "model: a GGUF file, or a name as `gallop models` lists them (default: the demo model)")
	f.StringVar(&g.mask, "skip", "", "layers to skip, as in 4,6,9-11,a5,f7 (a: attention alone, f: feed-forward alone, k: attention alone with keys and values written); l0-3,w256+4: local attention there, to the last 256 tokens and the first 4; n20%: a fifth of the neurons of feed-forwards, chosen by prompt; v1024: a vocabulary shortlist, as --shortlist")
	f.StringVar(&g.route, "route", routeTurn, "when to choose layers: turn, chat (at the first question) or off")
	f.Float64Var(&g.depth, "depth", 0, "always skip this many layers' worth of weights; 0 = by --quality")
	f.Float64Var(&g.quality, "quality", 0, "skip as much as keeps this share of the whole model's probability per token, above 0 to 1; 0 = the profile's")
	f.StringVar(&g.prefill, "prefill", "", "how to decode prompts: masked (fastest) or full (best answers) (default: the profile's, or masked)")
	f.Float64Var(&g.escalate, "escalate", -1, "tokens less probable than this are decided by the whole model; 0 = none; -1 = as calibrated")
	f.BoolVar(&g.lossless, "lossless", false, "answer as the whole model would: layers are skipped for drafts only, which it verifies")
	f.IntVar(&g.draftMax, "draft-max", draft.MaxDraft, "tokens in a draft at most")
	f.StringVar(&g.draftSource, "draft-source", "both", "where drafts come from: mask (layers are skipped), lookup (what was said before) or both")
	f.StringVar(&g.shortlist, "shortlist", "auto", "tokens that get exact logits from the output matrix, the others from a preview of it: a number, off, or auto (where it was measured to pay)")
	addNeuronsMemory(f, &g.neuronsMemory)
	f.StringArrayVar(&g.stop, "reverse-prompt", nil, "end the answer in front of this text; repeatable")
	g.escapes.add(f)
	f.StringVar(&g.system, "sys", "", "system prompt")
	addTemplate(f, &g.template)
	f.IntVarP(&g.predict, "n-predict", "n", -1, "tokens in an answer at most; -1 = until the model ends it")
	g.engineFlags.add(f)
	f.BoolVar(&g.releaseSkipped, "release-skipped", false, "give the memory of skipped weights back to the system; turns the calibrated escalation off")
	f.StringArrayVar(&g.lora, "lora", nil, "LoRA adapter (GGUF), with its scale behind a colon if that is not 1; repeatable")
	f.Float32Var(&g.temp, "temp", d.Temp, "temperature; 0 = always the likeliest token (default: the model's own advice, else this)")
	f.IntVar(&g.topK, "top-k", d.TopK, "keep the k likeliest tokens; 0 or less = all")
	f.Float32Var(&g.topP, "top-p", d.TopP, "keep the likeliest tokens with this share together; 1 = all, 0 = the likeliest alone")
	f.Float32Var(&g.minP, "min-p", d.MinP, "keep tokens at least this likely against the likeliest; 0 = all")
	f.Float32Var(&g.repeat, "repeat-penalty", d.RepeatPenalty, "penalty on recent tokens; 1 = none")
	f.IntVar(&g.repeatLastN, "repeat-last-n", d.RepeatLastN, "how many tokens count as recent; 0 = none, -1 = the whole context")
	f.Float32Var(&g.presence, "presence-penalty", 0, "penalty on every token that occurred")
	f.Float32Var(&g.frequency, "frequency-penalty", 0, "penalty on a token for each time that it occurred")
	f.Int64VarP(&g.seed, "seed", "s", -1, "seed of the sampling; -1 = a new one each time")
	f.StringVar(&g.grammar, "grammar", "", "GBNF grammar that the answer must follow")
	f.StringVar(&g.grammarFile, "grammar-file", "", "file with such a grammar")
	f.StringArrayVarP(&g.logitBias, "logit-bias", "l", nil, "TOKEN+BIAS or TOKEN-BIAS, as in 15+1.5; repeatable")
}

// open loads the library and the model and starts an engine that answers one request at a
// time. request says how questions are answered. closeAll frees all of it.
func (g *generation) open(ctx context.Context, cmd *cobra.Command) (e *gallop.Engine, request gallop.Request, closeAll func(), err error) {
	m, err := g.load(ctx, cmd)
	if err != nil {
		return nil, request, nil, err
	}
	opts, err := g.options(cmd, m)
	if err == nil {
		request, err = g.request(cmd, m)
	}
	if err == nil && opts.Profile == "" {
		err = settleProfile(ctx, cmd, m, opts.Context.Threads)
	}
	if err == nil {
		e, err = gallop.New(m, opts)
	}
	if err != nil {
		return nil, request, nil, errors.Join(err, m.Close())
	}
	closeAll = func() {
		if err := errors.Join(e.Close(), m.Close()); err != nil {
			fmt.Fprintln(cmd.ErrOrStderr(), "gallop:", err)
		}
	}
	if err := cmp.Or(g.learnListed(ctx, cmd, e, &request), learnNeurons(ctx, cmd, e, request.Skip.Mask())); err != nil {
		closeAll()
		return nil, request, nil, err
	}
	if d := request.Drafts; d != nil && d.NoLookup && g.mask == "" && e.Info().Profile == "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "gallop: decodes one token at a time: no mask to draft under is known; name one with --skip, or make a profile with `gallop calibrate -m %s`\n", m.Path)
	}
	return e, request, closeAll, nil
}

// load loads the library and the model. Mistakes in the flags show before that.
func (g *generation) load(ctx context.Context, cmd *cobra.Command) (m *llama.Model, err error) {
	if _, err := g.skips(cmd, false); err != nil {
		return nil, err
	}
	if g.releaseSkipped && (g.noMmap || g.mlock) {
		return nil, usageError{errors.New("--release-skipped needs the model mapped and unlocked: leave out --no-mmap and --mlock")}
	}
	sampling := llama.DefaultSampling()
	if err := g.sampling(cmd, &sampling); err != nil {
		return nil, err
	}
	path, err := modelPath(cmd, g.model)
	if err != nil {
		return nil, err
	}
	m, err = openModel(ctx, cmd, path, g.loading())
	if err != nil {
		return nil, err
	}
	if err := useTemplate(cmd, m, g.template, g.system); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// When layers are chosen.
const (
	routeTurn = "turn" // at every question
	routeChat = "chat" // at a conversation's first
	routeOff  = "off"
)

// skips is what the flags say of layers to skip. chosen asks for the router where they leave
// that to the profile.
func (g *generation) skips(cmd *cobra.Command, chosen bool) (s gallop.Skip, err error) {
	switch {
	case g.route != routeTurn && g.route != routeChat && g.route != routeOff:
		return s, usageError{fmt.Errorf("--route: route is %q, want turn, chat or off", g.route)}
	case g.depth < 0 || g.quality < 0 || g.quality > 1 || g.escalate > 1 || g.escalate < 0 && g.escalate != -1:
		return s, usageError{fmt.Errorf("--depth is %g, --quality %g and --escalate %g, want at least 0, 0 to 1 and 0 to 1 or -1", g.depth, g.quality, g.escalate)}
	case g.depth > 0 && g.quality > 0:
		return s, usageError{errors.New("--depth and --quality exclude each other: one sets how much is skipped, the other how well it must go")}
	case g.mask != "" && (g.depth > 0 || g.quality > 0 || g.profile != ""):
		return s, usageError{errors.New("--skip sets the layers by hand: leave out --depth, --quality and --profile")}
	case g.mask != "":
		mask, err := skip.Parse(g.mask)
		if err != nil {
			return s, usageError{fmt.Errorf("--skip: %w", err)}
		}
		s = gallop.Layers(mask)
	case g.route == routeOff:
		s = gallop.Nothing()
	case g.depth > 0:
		s = gallop.Depth(g.depth)
	case g.quality > 0:
		s = gallop.Quality(g.quality)
	case chosen || g.profile != "" || cmd.Flags().Changed("route"):
		s = gallop.Routed()
	}
	if g.prefill != "" {
		prefill, err := skip.ParsePrefill(g.prefill)
		if err != nil {
			return s, usageError{fmt.Errorf("--prefill: %w", err)}
		}
		s = s.Prefill(prefill)
	}
	if g.route == routeChat {
		s = s.PerChat()
	}
	return g.escalating(s), nil
}

// escalating is s with --escalate.
func (g *generation) escalating(s gallop.Skip) gallop.Skip {
	if g.escalate < 0 {
		return s
	}
	return s.Escalate(g.escalate)
}

// options turns the flags into an engine's options.
func (g *generation) options(cmd *cobra.Command, m *llama.Model) (*gallop.Options, error) {
	context, err := g.context()
	if err != nil {
		return nil, err
	}
	o := &gallop.Options{
		Parallel: 1, Profile: g.profile, Context: context, Model: *g.loading(), LoRA: g.adapters(), ReleaseSkipped: g.releaseSkipped, Learn: g.chats,
		Logger: slog.New(notes{cmd.ErrOrStderr()}),
	}
	if g.mask != "" || g.route == routeOff && g.profile == "" {
		o.Profile = gallop.NoProfile
	}
	size, err := parseShortlist(g.shortlist)
	if err != nil {
		return nil, err
	}
	if size == 0 {
		o.Shortlist = -1
	}
	o.NeuronsMemory, err = neuronsMemory(g.neuronsMemory)
	return o, err
}

// request turns the flags into how questions are answered; sampling flags that were not
// given follow the model's own advice.
func (g *generation) request(cmd *cobra.Command, m *llama.Model) (r gallop.Request, err error) {
	if g.predict == 0 || g.predict < -1 {
		return r, usageError{fmt.Errorf("-n is %d, want -1 or at least 1", g.predict)}
	}
	if r.Skip, err = g.skips(cmd, false); err != nil {
		return r, err
	}
	if g.system != "" {
		r.Messages = []gallop.Message{{Role: "system", Content: g.system}}
	}
	size, err := parseShortlist(g.shortlist)
	if err != nil {
		return r, err
	}
	sampling := m.Sampling()
	r.MaxTokens, r.Stop, r.Shortlist, r.Sampling, r.Forget = max(g.predict, 0), g.escapes.texts(g.stop), max(size, 0), &sampling, true
	if g.lossless {
		r.Lossless = true
		if r.Drafts, err = g.drafts(); err != nil {
			return r, err
		}
	}
	return r, g.sampling(cmd, &sampling)
}

// drafts turns the flags into how drafts are made.
func (g *generation) drafts() (*gallop.DraftOptions, error) {
	if g.draftMax < 1 {
		return nil, usageError{fmt.Errorf("--draft-max is %d, want 1 to %d", g.draftMax, draft.MaxDraft)}
	}
	return draftsFrom(g.draftSource, g.draftMax)
}

// draftsFrom are drafts of up to most tokens from a source, as --draft-source names it.
func draftsFrom(source string, most int) (*gallop.DraftOptions, error) {
	o, err := choose("--draft-source", source, draftSources)
	o.MaxDraft = most
	return &o, err
}

// draftSources are the words of --draft-source.
var draftSources = map[string]gallop.DraftOptions{"both": {}, "mask": {NoLookup: true}, "lookup": {NoMasks: true}}

// learnListed learns the vocabulary shortlist, if a number of tokens was asked for and that
// is still to be done.
func (g *generation) learnListed(ctx context.Context, cmd *cobra.Command, e *gallop.Engine, r *gallop.Request) error {
	mask, _ := skip.Parse(g.mask)
	size := cmp.Or(r.Shortlist, mask.Shortlist())
	if size == 0 || strings.EqualFold(g.shortlist, "off") {
		return nil
	}
	known := e.Shortlist()
	return learnShortlist(ctx, cmd, e.Model(), size, known.List != nil, known.Why, e.LearnShortlist)
}

// adapters reads --lora; one that is scaled by 0 changes nothing and is left out.
func (g *generation) adapters() (adapters []gallop.Adapter) {
	for _, entry := range g.lora {
		a := gallop.Adapter{Path: entry, Scale: 1}
		if at := strings.LastIndexByte(entry, ':'); at > 0 {
			if v, err := strconv.ParseFloat(entry[at+1:], 32); err == nil && !math.IsNaN(v) && !math.IsInf(v, 0) {
				a = gallop.Adapter{Path: entry[:at], Scale: float32(v)}
			}
		}
		if a.Scale != 0 {
			adapters = append(adapters, a)
		}
	}
	return adapters
}

// openModel loads the library and a model, with a progress bar.
func openModel(ctx context.Context, cmd *cobra.Command, path string, o *llama.ModelOptions) (*llama.Model, error) {
	if err := loadLibrary(cmd); err != nil {
		return nil, err
	}
	report, done := loadProgress(cmd.ErrOrStderr())
	defer done()
	o.Progress, o.ForText = report, true
	return llama.LoadModel(ctx, path, o)
}

// gpuLayers turns -ngl, where -1 is all and 0 none, into a model's option.
func gpuLayers(ngl int) int {
	switch {
	case ngl < 0:
		return 0
	case ngl == 0:
		return llama.CPUOnly
	}
	return ngl
}

// threadsFlag is a number of threads; -1 leaves it open.
type threadsFlag int

func (t *threadsFlag) String() string { return strconv.Itoa(int(*t)) }
func (t *threadsFlag) Type() string   { return "int" }

func (t *threadsFlag) Set(text string) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < -1 || n > llama.MaxThreads {
		return fmt.Errorf("want -1 to %d", llama.MaxThreads)
	}
	*t = threadsFlag(n)
	return nil
}

// addThreads declares a number of threads.
func addThreads(f *pflag.FlagSet, n *int, name, short, usage string) {
	*n = -1
	f.VarP((*threadsFlag)(n), name, short, usage)
}

// engineFlags are those of a model's loading and of its engine's context.
type engineFlags struct {
	ctx, threads, threadsBatch, batch, ubatch, gpuLayers int
	rpc                                                  []string
	flash, cacheK, cacheV                                string
	noMmap, mlock, noRepack                              bool
}

// add declares them.
func (e *engineFlags) add(f *pflag.FlagSet) {
	f.IntVarP(&e.ctx, "ctx-size", "c", 0, "context in tokens, of a prompt and its answer; 0 = what the model was trained on, at most "+strconv.Itoa(gallop.DefaultContext))
	addThreads(f, &e.threads, "threads", "t", "threads for generation; -1 = as many as are fastest beside what else runs: up to the physical cores, fewer for a tiny model")
	addThreads(f, &e.threadsBatch, "tb", "", "threads for prompts; -1 = as -t, or the physical cores")
	f.IntVarP(&e.batch, "batch-size", "b", 2048, "tokens decoded in one call at most")
	f.IntVar(&e.ubatch, "ub", 512, "tokens computed at once")
	f.IntVar(&e.gpuLayers, "ngl", -1, "layers on the GPU; -1 = all, 0 = none")
	f.StringSliceVar(&e.rpc, "rpc", nil, "llama.cpp's RPC servers, host:port separated by commas, that get layers as a GPU does")
	f.StringVar(&e.flash, "fa", "auto", "attention: on or off (llama.cpp's flash attention), grouped (Gallop's kernel for CPUs), or auto, on a CPU whichever was measured to be fastest")
	f.StringVar(&e.cacheK, "ctk", "f16", "type of cached keys: f32, f16, bf16, q8_0, q4_0")
	f.StringVar(&e.cacheV, "ctv", "f16", "type of cached values, likewise")
	f.BoolVar(&e.noMmap, "no-mmap", false, "read the model into memory instead of mapping it")
	f.BoolVar(&e.mlock, "mlock", false, "keep the model from being swapped out")
	f.BoolVar(&e.noRepack, "no-repack", false, "leave the weights as they are in the file: slower, but released ones come back sooner")
}

// loading is how the model is loaded.
func (e *engineFlags) loading() *llama.ModelOptions {
	return &llama.ModelOptions{GPULayers: gpuLayers(e.gpuLayers), RPC: e.rpc, NoMmap: e.noMmap, Mlock: e.mlock, NoRepack: e.noRepack}
}

// context is how the engine's context is made.
func (e *engineFlags) context() (llama.ContextOptions, error) {
	if e.ctx < 0 || e.batch < 1 || e.ubatch < 1 {
		return llama.ContextOptions{}, usageError{fmt.Errorf("-c is %d, -b %d and -ub %d, want at least 0, 1 and 1", e.ctx, e.batch, e.ubatch)}
	}
	o := llama.ContextOptions{NCtx: e.ctx, NBatch: e.batch, NUBatch: e.ubatch, Threads: max(e.threads, 0), ThreadsBatch: max(e.threadsBatch, 0)}
	return o, setCache(&o, e.flash, e.cacheK, e.cacheV)
}

// The words of -fa, -ctk and -ctv.
var (
	flashWords = map[string]llama.FlashAttention{"auto": llama.FlashAuto, "on": llama.FlashOn, "off": llama.FlashOff, "grouped": llama.FlashGrouped}
	cacheTypes = map[string]llama.CacheType{
		"f32": llama.CacheF32, "f16": llama.CacheF16, "bf16": llama.CacheBF16, "q8_0": llama.CacheQ8_0, "q4_0": llama.CacheQ4_0,
	}
)

// setCache puts -fa, -ctk and -ctv into a context's options.
func setCache(o *llama.ContextOptions, flash, k, v string) (err error) {
	if o.Flash, err = choose("-fa", flash, flashWords); err != nil {
		return err
	}
	if o.KType, err = choose("-ctk", k, cacheTypes); err != nil {
		return err
	}
	o.VType, err = choose("-ctv", v, cacheTypes)
	return err
}

// choose finds a flag's word among those that it takes.
func choose[T any](flag, word string, words map[string]T) (T, error) {
	value, ok := words[strings.ToLower(word)]
	if !ok {
		return value, usageError{fmt.Errorf("%s is %q, want one of %s", flag, word, strings.Join(slices.Sorted(maps.Keys(words)), ", "))}
	}
	return value, nil
}

// sampling puts the flags that were given over the model's advice in s.
func (g *generation) sampling(cmd *cobra.Command, s *llama.Sampling) error {
	for flag, set := range map[string]func(){
		"temp":           func() { s.Temp = g.temp },
		"top-k":          func() { s.TopK = g.topK },
		"top-p":          func() { s.SetTopP(g.topP) },
		"min-p":          func() { s.MinP = g.minP },
		"repeat-penalty": func() { s.RepeatPenalty = g.repeat },
	} {
		if given(cmd, flag) {
			set()
		}
	}
	s.PresencePenalty, s.FrequencyPenalty, s.Grammar = g.presence, g.frequency, g.grammar
	if given(cmd, "repeat-last-n") {
		s.SetRepeatLastN(g.repeatLastN)
	}
	if g.seed < -1 || g.seed >= llama.RandomSeed {
		return usageError{fmt.Errorf("--seed is %d, want 0 to %d, or -1 for a new one each time", g.seed, llama.RandomSeed-1)}
	}
	if g.seed >= 0 {
		s.Seed = uint32(g.seed)
	}
	if g.grammarFile != "" {
		text, err := os.ReadFile(g.grammarFile)
		if err != nil {
			return fmt.Errorf("--grammar-file: %w", err)
		}
		if s.Grammar, err = files.Text(text); err != nil {
			return fmt.Errorf("--grammar-file: %s %w", g.grammarFile, err)
		}
	}
	for _, entry := range g.logitBias {
		at := strings.LastIndexAny(entry, "+-")
		if at < 1 {
			return usageError{fmt.Errorf("--logit-bias %q: write TOKEN+BIAS or TOKEN-BIAS, as in 15+1.5", entry)}
		}
		token, tokenErr := strconv.ParseInt(entry[:at], 10, 32)
		bias, biasErr := strconv.ParseFloat(entry[at:], 32)
		if err := errors.Join(tokenErr, biasErr); err != nil {
			return usageError{fmt.Errorf("--logit-bias %q: write TOKEN+BIAS or TOKEN-BIAS, as in 15+1.5", entry)}
		}
		if s.LogitBias == nil {
			s.LogitBias = map[llama.Token]float32{}
		}
		s.LogitBias[llama.Token(token)] = float32(bias)
	}
	return asUsageError(s.Check())
}

// barDelay is how long something may take before a progress bar shows up.
const barDelay = time.Second

// loadProgress shows a model's loading as a bar on a terminal, if it takes long.
func loadProgress(w io.Writer) (report func(share float32), done func()) {
	if !isTerminal(w) {
		return nil, func() {}
	}
	const full = 1000
	var bar *progressbar.ProgressBar
	start := time.Now()
	return func(share float32) {
			if bar == nil && time.Since(start) > barDelay {
				bar = progressbar.NewOptions(full, progressbar.OptionSetWriter(w), progressbar.OptionSetDescription("loading"),
					progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(true))
			}
			if bar != nil {
				bar.Set(int(share * full))
			}
		}, func() {
			if bar != nil {
				bar.Finish()
			}
		}
}

func isTerminal(stream any) bool {
	if o, ok := stream.(*output); ok {
		stream = o.Writer
	}
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
