package router

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/skip"
)

// Defaults are the policy that a profile proposes.
type Defaults struct {
	Prefill    skip.Prefill
	Depth      float64 // 0 = adaptive
	Quality    float64 // above 0 to 1
	Confidence float64 // 0 to below 1

	// Speed is how many times as fast as by the whole model calibration's held-out
	// prompts decoded by these defaults on the machine that calibrated, second decodes
	// included; 1 = none of them was routed, 0 = not measured.
	Speed float64

	// Off: that was not worth its while. chat and run then use the whole model unless
	// asked to route.
	Off bool

	// Escalate lists, for qualities in ascending order, the confidence under
	// which a token is decoded again by the whole model. It may be empty.
	Escalate []Escalation
}

// Escalation is how escalation keeps a quality at the lowest cost.
type Escalation struct {
	Quality   float64 // 0 to 1
	Threshold float64 // probability of the likeliest token, 0 to 1
	Depth     float64 // of the masks that it was calibrated with, in layers' worth of weights
	Cost      float64 // weight bytes read for a token, second decodes included, as a share of the whole model's
}

// What the [Profile].Baselines are called.
const (
	BaselineInfluence  = "ShortGPT"         // lowest block influence (arXiv 2403.03853)
	BaselineContiguous = "contiguous"       // best run of neighbours
	BaselineGreedy     = "task-free greedy" // greedy on all tasks together, as SLEB does (arXiv 2402.09025)
	BaselineRandom     = "random"           // drawn once
	BaselineStatic     = "best candidate"   // the candidate of the lowest mean loss on all calibration data
)

// Note is one line of a profile's provenance.
type Note struct{ Key, Value string }

// Profile is what calibration found out about a model: its candidate masks, the
// router that chooses among them, and where all that comes from. [Profile.Write]
// and [Read] keep it in a GGUF file beside the model. Once open, any number of
// goroutines may choose by it.
type Profile struct {
	Model      Fingerprint
	Candidates []Candidate // the empty mask first
	Baselines  []Candidate // sets that serve every prompt, for comparison; Task is the method
	Router     *Predictor  // nil = fixed depths only
	Spec       FeatureSpec // of the features that Router was trained on
	Novelty    *Novelty    // nil = no prompt counts as unlike
	Drafts     []Draft     // masks to draft under for lossless answers; may be empty
	Drafter    *Predictor  // predicts, for a prompt, the share of tokens that each of Drafts gets wrong; nil without Drafts; output 0 is none of them
	Defaults   Defaults
	Tasks      []string
	Units      [][]float64 // (nTasks, 2 Model.Layers) loss increase in nats of each sublayer skipped alone, attention and feed-forward of a layer side by side; nil = not measured
	Provenance []Note      // in order; keys unique

	// Features turn prompts into what Router takes; set by [Profile.Open].
	Features *Features
}

// Open makes the profile ready to choose for the model file at modelPath: it
// checks that the profile belongs to it ([Profile.Check]) and opens the
// features' sources.
func (p *Profile) Open(modelPath string) error {
	file, err := gguf.Open(modelPath)
	if err != nil {
		return err
	}
	var f *Features
	defer func() {
		if f == nil || f.table == nil { // else the table has it
			file.Close()
		}
	}()
	model, err := fingerprintOf(file)
	if err != nil {
		return err
	}
	if err := p.Check(model); err != nil {
		return err
	}
	if p.Router == nil {
		return nil
	}
	if f, err = NewFeatures(p.Spec, &Sources{Model: modelPath, file: file}); err != nil {
		return err
	}
	if f.Dim() != p.Router.In {
		f.Close()
		return fmt.Errorf("%w: the router takes %d features, this model gives %d", ErrProfile, p.Router.In, f.Dim())
	}
	p.Features = f
	return nil
}

// Close releases what Open opened. Further calls do nothing.
func (p *Profile) Close() error {
	if p.Features == nil {
		return nil
	}
	return p.Features.Close()
}

// Check finds out whether the profile belongs to a model, in this quantisation or
// another ([Profile.Travelled]). The error wraps [ErrForeign] and says what differs.
func (p *Profile) Check(model Fingerprint) error {
	differs := func(what string, profile, model any) error {
		return fmt.Errorf("%w: it was made for %v %s, the model has %v; calibrate this model", ErrForeign, profile, what, model)
	}
	switch {
	case p.Model.SameModel(model):
		return nil
	case p.Model.Architecture != model.Architecture:
		return fmt.Errorf("%w: it was made for the architecture %q, the model is %q; calibrate this model", ErrForeign, p.Model.Architecture, model.Architecture)
	case p.Model.Layers != model.Layers:
		return differs("layers", p.Model.Layers, model.Layers)
	case p.Model.Params != model.Params:
		return differs("parameters", p.Model.Params, model.Params)
	case p.Model.Size != model.Size:
		return differs("bytes of weights", p.Model.Size, model.Size)
	case p.Model.Hash != model.Hash:
		return fmt.Errorf("%w: same shape, other weights (%016x, the profile was made for %016x); calibrate this model", ErrForeign, model.Hash, p.Model.Hash)
	}
	return nil
}

// Travelled tells whether the profile was made on another quantisation of the model
// than this: its masks serve, but thresholds and speed were measured there.
func (p *Profile) Travelled(model Fingerprint) bool {
	return p.Model.SameModel(model) && (p.Model.Hash != model.Hash || p.Model.Size != model.Size)
}

// EscalationFor gives what escalation does for a quality: the entry of the lowest
// quality listed that is no lower. ok is false where there is none.
func (d Defaults) EscalationFor(quality float64) (e Escalation, ok bool) {
	for _, e := range d.Escalate {
		if e.Quality >= quality {
			return e, true
		}
	}
	return Escalation{}, false
}

// suffix is what a profile's name ends with.
const suffix = ".gallop.gguf"

// DefaultPath is where a model's profile is written: model.gallop.gguf beside
// model.gguf.
func DefaultPath(modelPath string) string {
	return gguf.Stem(modelPath) + suffix
}

// CachePath is where a model's profile is kept when the model's folder takes
// none: in the user's cache folder, named by the fingerprint.
func CachePath(model Fingerprint) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder for profiles: %w", err)
	}
	return filepath.Join(cache, "gallop", "profiles", filepath.Base(model.String())+suffix), nil
}

// Find gives the path of a model's profile: beside the model, else in the user's
// cache folder, else that of another quantisation of the model, in these places. It
// does not look into a file that has the model's own name.
func Find(modelPath string) (path string, ok bool) {
	if path := DefaultPath(modelPath); isFile(path) {
		return path, true
	}
	model, err := FingerprintOf(modelPath)
	if err != nil {
		return "", false
	}
	cached, err := CachePath(model)
	if err == nil && isFile(cached) {
		return cached, true
	}
	beside, _ := filepath.Glob(filepath.Join(escapeGlob(filepath.Dir(modelPath)), "*"+suffix))
	others, _ := filepath.Glob(filepath.Join(escapeGlob(filepath.Dir(cached)), fmt.Sprintf("%s-%d-*%s", escapeGlob(model.Architecture), model.Layers, suffix)))
	for _, path := range slices.Concat(beside, others) {
		if of, err := modelOf(path); err == nil && of.SameModel(model) {
			return path, true
		}
	}
	return "", false
}

// escapeGlob is a path that a pattern takes as it is.
func escapeGlob(path string) string {
	return strings.NewReplacer("[", "[[]", "*", "[*]", "?", "[?]", `\`, `[\\]`).Replace(path)
}

// modelOf reads which model a profile was made for.
func modelOf(path string) (Fingerprint, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return Fingerprint{}, err
	}
	defer f.Close()
	r := reader{file: f}
	return r.model(), r.err
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// Names in a profile's file.
const (
	architecture = "gallop-profile"
	version      = uint32(1)

	keyVersion = "gallop.version"
	keyModel   = "gallop.model."
	keyDefault = "gallop.default."
	keyFeature = "gallop.features."
	keyNovelty = "gallop.novelty."
)

// Write puts the profile into a GGUF file, which appears under path when it is
// complete; the folder is made if need be. The same profile gives the same bytes.
func (p *Profile) Write(path string) error {
	if err := p.validate(); err != nil {
		return err
	}
	meta := gguf.Metadata{
		{Key: gguf.KeyArchitecture, Value: architecture},
		{Key: keyVersion, Value: version},
		{Key: keyModel + "architecture", Value: p.Model.Architecture},
		{Key: keyModel + "layers", Value: uint32(p.Model.Layers)},
		{Key: keyModel + "parameters", Value: p.Model.Params},
		{Key: keyModel + "bytes", Value: p.Model.Size},
		{Key: keyModel + "hash", Value: p.Model.Hash},
		{Key: keyModel + "norms", Value: p.Model.Norms},
		{Key: keyDefault + "prefill", Value: p.Defaults.Prefill.String()},
		{Key: keyDefault + "depth", Value: p.Defaults.Depth},
		{Key: keyDefault + "quality", Value: p.Defaults.Quality},
		{Key: keyDefault + "confidence", Value: p.Defaults.Confidence},
		{Key: keyDefault + "off", Value: p.Defaults.Off},
		{Key: keyDefault + "speed", Value: p.Defaults.Speed},
	}
	var escalate []float64
	for _, e := range p.Defaults.Escalate {
		escalate = append(escalate, e.Quality, e.Threshold, e.Depth, e.Cost)
	}
	var facts []string
	for _, f := range p.Provenance {
		facts = append(facts, f.Key, f.Value)
	}
	lists := []gguf.KV{
		{Key: keyDefault + "escalate", Value: escalate}, // quality, threshold, depth and cost in turn
		{Key: "gallop.tasks", Value: p.Tasks},
		{Key: "gallop.provenance", Value: facts}, // keys and values in turn
	}
	meta = append(meta, lists...)
	meta = append(meta, candidateLists("gallop.candidates.", p.Candidates)...)
	meta = append(meta, candidateLists("gallop.baselines.", p.Baselines)...)
	var tensors tensorList
	if p.Units != nil {
		tensors.add("gallop.units", flat(p.Units), 2*p.Model.Layers, len(p.Units))
	}
	if p.Drafts != nil {
		meta = append(meta, draftLists(p.Drafts)...)
	}
	if r := p.Router; r != nil {
		meta = append(meta,
			gguf.KV{Key: keyFeature + "kind", Value: p.Spec.Kind},
			gguf.KV{Key: keyFeature + "buckets", Value: uint32(p.Spec.Buckets)},
			gguf.KV{Key: keyFeature + "width", Value: uint32(p.Spec.Width)},
			gguf.KV{Key: keyFeature + "seed", Value: p.Spec.Seed},
		)
		if p.Spec.Scale != nil {
			tensors.add("features.shift", p.Spec.Shift, r.In)
			tensors.add("features.scale", p.Spec.Scale, r.In)
		}
		meta = append(meta, tensors.addRouter("router", r))
		if p.Drafter != nil {
			meta = append(meta, tensors.addRouter("drafter", p.Drafter))
		}
		if n := p.Novelty; n != nil {
			task := make([]uint32, len(n.Task))
			for i, t := range n.Task {
				task[i] = uint32(t)
			}
			meta = append(meta,
				gguf.KV{Key: keyNovelty + "task", Value: task},
				gguf.KV{Key: keyNovelty + "unit", Value: n.Unit},
			)
			tensors.add("novelty.whiten", n.Whiten, len(n.Whiten))
			tensors.add("novelty.step", n.Step, len(n.Step))
			tensors.add("novelty.radius", n.Radius, len(n.Radius))
			tensors.addType("novelty.vectors", gguf.I8, n.Vectors, n.Dim, len(n.Step))
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the folder of the profile: %w", err)
	}
	return gguf.Write(context.Background(), path, meta, tensors, nil)
}

// candidateLists writes candidates as three lists of one length.
func candidateLists(prefix string, candidates []Candidate) []gguf.KV {
	var masks, tasks []string
	var depths []float64
	for _, c := range candidates {
		masks, tasks, depths = append(masks, c.Mask.String()), append(tasks, c.Task), append(depths, c.Depth)
	}
	return []gguf.KV{{Key: prefix + "masks", Value: masks}, {Key: prefix + "depths", Value: depths}, {Key: prefix + "tasks", Value: tasks}}
}

// candidates reads what candidateLists wrote.
func (r *reader) candidates(prefix string) (candidates []Candidate) {
	masks, depths, tasks := r.strings(prefix+"masks"), r.floats(prefix+"depths"), r.strings(prefix+"tasks")
	if len(masks) != len(depths) || len(masks) != len(tasks) {
		r.fail("its lists of %s differ in length", prefix)
		return nil
	}
	for i, text := range masks {
		candidates = append(candidates, Candidate{keep[skip.Mask](r)(skip.Parse(text)), depths[i], tasks[i]})
	}
	return candidates
}

type tensorList []gguf.Source

func (l *tensorList) add(name string, data []float32, shape ...int) {
	l.addType(name, gguf.F32, data, shape...)
}

// addRouter adds a router's tensors under a name, and gives what stands beside them.
func (l *tensorList) addRouter(name string, r *Predictor) gguf.KV {
	l.add(name+".w1", r.W1, r.Hidden, r.In)
	l.add(name+".b1", r.B1, r.Hidden)
	l.add(name+".w2", r.W2, r.Hidden, r.Out)
	l.add(name+".b2", r.B2, r.Out)
	l.add(name+".mean", r.Mean, r.Out)
	l.add(name+".std", r.Std, r.Out)
	l.add(name+".residuals", slices.Concat(r.Residuals...), len(r.Residuals[0]), r.Out)
	return gguf.KV{Key: "gallop." + name + ".squeeze", Value: r.Squeeze}
}

func (l *tensorList) addType(name string, typ gguf.Type, data any, shape ...int) {
	t := gguf.Tensor{Name: name, Type: typ}
	for _, n := range shape {
		t.Shape = append(t.Shape, uint64(n))
	}
	*l = append(*l, gguf.Source{Tensor: t, Data: func(w io.Writer) error {
		return binary.Write(w, binary.LittleEndian, data)
	}})
}

func flat(rows [][]float64) []float32 {
	var out []float32
	for _, row := range rows {
		for _, v := range row {
			out = append(out, float32(v))
		}
	}
	return out
}

// Read opens a profile's file. A missing file gives an error that wraps
// [fs.ErrNotExist], anything that is no whole profile one that wraps [ErrProfile].
func Read(path string) (*Profile, error) {
	f, err := gguf.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProfile, err)
	}
	defer f.Close()
	r := reader{file: f}
	p := r.profile()
	if r.err == nil {
		r.err = p.validate()
	}
	if r.err != nil {
		if !errors.Is(r.err, ErrProfile) {
			r.err = fmt.Errorf("%w: %w", ErrProfile, r.err)
		}
		return nil, fmt.Errorf("%s: %w", path, r.err)
	}
	return p, nil
}

// reader takes a profile out of a GGUF file; the first error stays.
type reader struct {
	file *gguf.File
	err  error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", ErrProfile, fmt.Sprintf(format, args...))
	}
}

func keep[T any](r *reader) func(value T, err error) T {
	return func(value T, err error) T {
		if err != nil && r.err == nil {
			r.err = err
		}
		return value
	}
}

func (r *reader) string(key string) string    { return keep[string](r)(r.file.Metadata.String(key)) }
func (r *reader) strings(key string) []string { return keep[[]string](r)(r.file.Metadata.Strings(key)) }
func (r *reader) uint(key string) uint64      { return keep[uint64](r)(r.file.Metadata.Uint(key)) }
func (r *reader) float(key string) float64    { return keep[float64](r)(r.file.Metadata.Float(key)) }
func (r *reader) uints(key string) []uint64   { return keep[[]uint64](r)(r.file.Metadata.Uints(key)) }
func (r *reader) floats(key string) []float64 { return keep[[]float64](r)(r.file.Metadata.Floats(key)) }

// small reads a whole number that counts things in memory.
func (r *reader) small(key string) int {
	n := r.uint(key)
	if n > math.MaxInt32 {
		r.fail("%s is %d", key, n)
		return 0
	}
	return int(n)
}

// tensor reads a tensor of a type and a number of dimensions into data, which
// make gives room for. The file was checked to hold all tensors whole.
func tensor[T float32 | int8](r *reader, name string, typ gguf.Type, dims int) (data []T, shape []int) {
	shape = make([]int, dims)
	t, ok := r.file.Tensor(name)
	if r.err != nil {
		return nil, shape
	}
	if !ok || t.Type != typ || len(t.Shape) != dims {
		r.fail("tensor %s is missing or is no %s of %d dimensions", name, typ, dims)
		return nil, shape
	}
	for i, n := range t.Shape {
		shape[i] = int(n)
	}
	raw, err := io.ReadAll(r.file.Reader(t))
	if err != nil {
		r.fail("tensor %s: %v", name, err)
		return nil, shape
	}
	data = make([]T, t.Elements())
	if err := binary.Read(bytes.NewReader(raw), binary.LittleEndian, data); err != nil {
		r.fail("tensor %s: %v", name, err)
	}
	return data, shape
}

func (r *reader) has(name string) bool {
	_, ok := r.file.Tensor(name)
	return ok
}

func (r *reader) profile() *Profile {
	if r.string(gguf.KeyArchitecture) != architecture {
		r.fail("it is no profile but a model; profiles end in %s", suffix)
	}
	if v := r.uint(keyVersion); r.err == nil && v != uint64(version) {
		r.fail("its version is %d, read is %d; calibrate again", v, version)
	}
	p := &Profile{
		Model: r.model(),
		Defaults: Defaults{
			Depth: r.float(keyDefault + "depth"), Quality: r.float(keyDefault + "quality"), Confidence: r.float(keyDefault + "confidence"),
		},
		Tasks: r.strings("gallop.tasks"),
	}
	if _, ok := r.file.Metadata.Lookup(keyDefault + "off"); ok { // older profiles lack it
		p.Defaults.Off = keep[bool](r)(r.file.Metadata.Bool(keyDefault + "off"))
	}
	if _, ok := r.file.Metadata.Lookup(keyDefault + "speed"); ok { // older profiles lack it too
		p.Defaults.Speed = r.float(keyDefault + "speed")
	}
	p.Defaults.Prefill = keep[skip.Prefill](r)(skip.ParsePrefill(r.string(keyDefault + "prefill")))
	p.Candidates, p.Baselines = r.candidates("gallop.candidates."), r.candidates("gallop.baselines.")
	escalate, facts := r.floats(keyDefault+"escalate"), r.strings("gallop.provenance")
	const escalation = 4 // numbers
	if len(escalate)%escalation != 0 || len(facts)%2 != 0 {
		r.fail("its lists are cut short")
	}
	if r.err != nil {
		return p
	}
	for e := range slices.Chunk(escalate, escalation) {
		p.Defaults.Escalate = append(p.Defaults.Escalate, Escalation{Quality: e[0], Threshold: e[1], Depth: e[2], Cost: e[3]})
	}
	for i := 0; i < len(facts); i += 2 {
		p.Provenance = append(p.Provenance, Note{facts[i], facts[i+1]})
	}
	if r.has("gallop.units") {
		units, shape := tensor[float32](r, "gallop.units", gguf.F32, 2)
		for row := range slices.Chunk(units, max(shape[0], 1)) {
			values := make([]float64, len(row))
			for i, v := range row {
				values[i] = float64(v)
			}
			p.Units = append(p.Units, values)
		}
	}
	if r.has("router.w1") {
		r.features(p)
		p.Router = r.router("router")
	}
	p.Drafts = r.drafts()
	if r.has("drafter.w1") {
		p.Drafter = r.router("drafter")
	}
	if r.has("novelty.vectors") {
		r.novelty(p)
	}
	return p
}

// model reads which model the profile was made for.
func (r *reader) model() Fingerprint {
	f := Fingerprint{
		Architecture: r.string(keyModel + "architecture"), Layers: r.small(keyModel + "layers"),
		Params: r.uint(keyModel + "parameters"), Size: r.uint(keyModel + "bytes"), Hash: r.uint(keyModel + "hash"),
	}
	if _, ok := r.file.Metadata.Lookup(keyModel + "norms"); ok { // older profiles lack it
		f.Norms = r.uint(keyModel + "norms")
	}
	return f
}

func (r *reader) features(p *Profile) {
	p.Spec = FeatureSpec{
		Kind: r.string(keyFeature + "kind"), Buckets: r.small(keyFeature + "buckets"),
		Width: r.small(keyFeature + "width"), Seed: r.uint(keyFeature + "seed"),
	}
	if r.has("features.scale") {
		p.Spec.Shift, _ = tensor[float32](r, "features.shift", gguf.F32, 1)
		p.Spec.Scale, _ = tensor[float32](r, "features.scale", gguf.F32, 1)
	}
}

// router reads what addRouter wrote; nil after an error.
func (r *reader) router(name string) *Predictor {
	m := &Predictor{Squeeze: r.float("gallop." + name + ".squeeze")}
	var w1, w2, residuals []int
	var values []float32
	m.W1, w1 = tensor[float32](r, name+".w1", gguf.F32, 2)
	m.B1, _ = tensor[float32](r, name+".b1", gguf.F32, 1)
	m.W2, w2 = tensor[float32](r, name+".w2", gguf.F32, 2)
	m.B2, _ = tensor[float32](r, name+".b2", gguf.F32, 1)
	m.Mean, _ = tensor[float32](r, name+".mean", gguf.F32, 1)
	m.Std, _ = tensor[float32](r, name+".std", gguf.F32, 1)
	values, residuals = tensor[float32](r, name+".residuals", gguf.F32, 2)
	if r.err != nil {
		return nil
	}
	m.Hidden, m.In, m.Out = w1[0], w1[1], w2[1]
	for row := range slices.Chunk(values, residuals[0]) {
		m.Residuals = append(m.Residuals, row)
	}
	if w2[0] != m.Hidden {
		r.fail("the router's layers do not fit: %v and %v", w1, w2)
		return nil
	}
	return m
}

func (r *reader) novelty(p *Profile) {
	n := &Novelty{Unit: float32(r.float(keyNovelty + "unit"))}
	var shape []int
	n.Whiten, _ = tensor[float32](r, "novelty.whiten", gguf.F32, 1)
	n.Step, _ = tensor[float32](r, "novelty.step", gguf.F32, 1)
	n.Radius, _ = tensor[float32](r, "novelty.radius", gguf.F32, 1)
	n.Vectors, shape = tensor[int8](r, "novelty.vectors", gguf.I8, 2)
	n.Dim = shape[0]
	for _, t := range r.uints(keyNovelty + "task") {
		if t >= uint64(len(n.Radius)) {
			r.fail("a calibration prompt is of task %d, there are %d", t, len(n.Radius))
			return
		}
		n.Task = append(n.Task, int(t))
	}
	if r.err != nil {
		return
	}
	if n.Dim > noveltyDim || len(n.Whiten) != n.Dim*(n.Dim+1)/2 || len(n.Step) != shape[1] || len(n.Task) != shape[1] {
		r.fail("the parts of the distance test do not fit")
		return
	}
	n.unpack()
	p.Novelty = n
}

// validate finds out whether the profile's parts fit each other. What it passes
// can be used without a panic.
func (p *Profile) validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrProfile, fmt.Sprintf(format, args...))
	}
	d := p.Defaults
	switch {
	case p.Model.Layers < 1 || p.Model.Layers > skip.MaxLayers:
		return bad("the model has %d layers, possible are 1 to %d", p.Model.Layers, skip.MaxLayers)
	case len(p.Candidates) == 0 || !p.Candidates[0].Mask.IsEmpty() || p.Candidates[0].Depth != 0:
		return bad("its first candidate is not the empty mask")
	case !(d.Quality > 0 && d.Quality <= 1) || !(d.Confidence >= 0 && d.Confidence < 1) || !(d.Depth >= 0) || !finite(d.Depth):
		return bad("its default quality, confidence or depth is out of range: %g, %g, %g", d.Quality, d.Confidence, d.Depth)
	case !(d.Speed >= 0) || !finite(d.Speed):
		return bad("its measured speed is %g", d.Speed)
	case p.Units != nil && len(p.Units) != len(p.Tasks):
		return bad("its heat map has %d rows for %d tasks", len(p.Units), len(p.Tasks))
	}
	for i, c := range slices.Concat(p.Candidates, p.Baselines) {
		if err := c.Mask.Check(p.Model.Layers); err != nil {
			return fmt.Errorf("%w: candidate %d: %w", ErrProfile, i, err)
		}
		if !(c.Depth >= 0) || !finite(c.Depth) {
			return bad("candidate %d has the depth %g", i, c.Depth)
		}
	}
	for i, row := range p.Units {
		if len(row) != 2*p.Model.Layers {
			return bad("row %d of its heat map has %d values for %d sublayers", i, len(row), 2*p.Model.Layers)
		}
	}
	for i, e := range d.Escalate {
		if !(e.Quality >= 0 && e.Quality <= 1) || !(e.Threshold >= 0 && e.Threshold <= 1) || !(e.Depth >= 0) || !finite(e.Depth) || i > 0 && e.Quality <= d.Escalate[i-1].Quality {
			return bad("its escalation thresholds are out of range or order")
		}
	}
	if err := p.validateRouter(); err != nil {
		return err
	}
	if err := p.validateDrafts(); err != nil {
		return err
	}
	if n := p.Novelty; n != nil {
		if p.Router == nil || n.Dim > p.Router.In || !(n.Unit > 0) || slices.ContainsFunc(n.Radius, func(r float32) bool { return !(r > 0) }) {
			return bad("its distance test does not fit its features")
		}
	}
	return nil
}

func (p *Profile) validateRouter() error {
	r := p.Router
	if r == nil {
		return nil
	}
	if _, err := p.Spec.withDefaults(); err != nil {
		return fmt.Errorf("%w: %w", ErrProfile, err)
	}
	if !r.fits(len(p.Candidates)) || p.Spec.Scale != nil && (len(p.Spec.Scale) != r.In || len(p.Spec.Shift) != r.In) {
		return fmt.Errorf("%w: its router does not fit its %d candidates or its features", ErrProfile, len(p.Candidates))
	}
	return nil
}

// fits tells whether the router's parts fit each other and give so many values.
func (r *Predictor) fits(out int) bool {
	fits := r.In > 0 && r.Hidden > 0 && r.Out == out && r.Squeeze > 0 && finite(r.Squeeze) &&
		len(r.W1) == r.In*r.Hidden && len(r.B1) == r.Hidden && len(r.W2) == r.Out*r.Hidden && len(r.B2) == r.Out &&
		len(r.Mean) == r.Out && len(r.Std) == r.Out && len(r.Residuals) == r.Out
	for _, row := range r.Residuals {
		fits = fits && len(row) == len(r.Residuals[0]) && len(row) > 0
	}
	return fits
}
