package router

import (
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// texts are the prompts of two tasks; what suits one costs the other dearly.
func texts() (prompts []Prompt, losses [][]float64, task []int) {
	for _, noun := range []string{"fox", "dog", "cat", "hen", "owl", "bear", "wolf", "goat", "duck", "frog"} {
		for _, verb := range []string{"Tell me about", "Write about", "Say something about"} {
			prompts = append(prompts, Prompt{Text: verb + " a " + noun + ", as a story."}, Prompt{Text: "Translate the word " + noun + " to French."})
			losses = append(losses, []float64{0, 0.001, 0.9, 0.02}, []float64{0, 1.1, 0.002, 0.4})
			task = append(task, 0, 1)
		}
	}
	return prompts, losses, task
}

// made calibrates a small profile for the model of this path, "" = for none.
func made(t testing.TB, modelPath string) *Profile {
	t.Helper()
	prompts, losses, task := texts()
	f, err := NewFeatures(FeatureSpec{Kind: Ngrams, Buckets: 256}, nil)
	require.NoError(t, err)
	require.NoError(t, f.Fit(prompts))
	x, err := f.Vectors(prompts)
	require.NoError(t, err)
	candidates := []Candidate{
		{}, {skip.Layers(2), 1, "story"}, {skip.Layers(3), 1, "translate"}, {skip.Layers(2, 3), 2, "story"},
	}
	r, _, err := Train(x, losses, &TrainOptions{Hidden: 16, Nets: 1, Seed: 1, Rate: 0.01, Dropout: -1, Decay: -1})
	require.NoError(t, err)
	novelty, err := NewNovelty(x, task)
	require.NoError(t, err)
	p := &Profile{
		Model:      Fingerprint{"llama", 8, 1, 2, 3, 4},
		Candidates: candidates, Router: r, Spec: f.Spec(), Novelty: novelty, Features: f,
		Baselines:  []Candidate{{skip.Layers(2), 1, BaselineGreedy}},
		Defaults:   Defaults{Prefill: skip.FullPrefill, Quality: 0.95, Confidence: 0.5, Speed: 1.01, Off: true, Escalate: []Escalation{{0.9, 0.5, 4, 0.7}, {0.99, 0.9, 3, 0.8}}},
		Tasks:      []string{"story", "translate"},
		Units:      [][]float64{slices.Repeat([]float64{0.25}, 16), slices.Repeat([]float64{0.5}, 16)},
		Provenance: []Note{{"data", "abc"}, {"seed", "1"}},
	}
	p.Drafts = []Draft{{skip.Layers(2, 3, 4, 5), 4, 0.7}, {skip.Layers(3, 4), 2, 0.9}}
	wrong := make([][]float64, len(losses))
	for i, row := range losses {
		wrong[i] = []float64{0, min(row[1], 1), min(row[2], 1)}
	}
	p.Drafter, _, err = Train(x, wrong, &TrainOptions{Hidden: 8, Nets: 1, Seed: 1, Rate: 0.01, Dropout: -1, Decay: -1})
	require.NoError(t, err)
	if modelPath != "" {
		p.Model, err = FingerprintOf(modelPath)
		require.NoError(t, err)
	}
	return p
}

func TestProfileComesBackAsWritten(t *testing.T) {
	model := llamatest.Write(t, randmodel.Small("llama"))
	p := made(t, model)
	path := filepath.Join(t.TempDir(), "new", "m"+suffix)
	require.NoError(t, p.Write(path))
	got, err := Read(path)
	require.NoError(t, err)
	require.NoError(t, got.Open(model))
	defer got.Close()

	pol := Policy{Quality: 0.9}
	for _, text := range []string{"Tell me about a fox, as a story.", "Translate the word pig to French.", "zzz"} {
		want, err := p.Choose(Prompt{Text: text}, pol)
		require.NoError(t, err)
		d, err := got.Choose(Prompt{Text: text}, pol)
		require.NoError(t, err)
		require.Equal(t, want, d)
		drafts, err := p.PredictDrafts(Prompt{Text: text})
		require.NoError(t, err)
		same, err := got.PredictDrafts(Prompt{Text: text})
		require.NoError(t, err)
		require.Equal(t, drafts, same)
	}
	again := filepath.Join(t.TempDir(), "again"+suffix)
	require.NoError(t, got.Write(again))
	a, err := os.ReadFile(path)
	require.NoError(t, err)
	b, err := os.ReadFile(again)
	require.NoError(t, err)
	require.Equal(t, a, b)

	p.Features, got.Features = nil, nil
	require.Equal(t, p, got)
}

// TestManyGoroutinesChoose gives what one goroutine gets, also while the embedding table's
// rows are read.
func TestManyGoroutinesChoose(t *testing.T) {
	model := llamatest.Write(t, randmodel.Small("llama"))
	p := made(t, model)
	f, err := NewFeatures(FeatureSpec{Buckets: p.Router.In - nScalars - 64, Width: 64}, &Sources{Model: model})
	require.NoError(t, err)
	defer f.Close()
	require.Equal(t, p.Router.In, f.Dim())
	p.Features = f
	prompts := make([]Prompt, 64)
	want := make([]Decision, len(prompts))
	for i := range prompts {
		prompts[i] = Prompt{Text: strings.Repeat("a fox ", i), Tokens: []llama.Token{llama.Token(i), llama.Token(i / 2)}}
	}
	for i, x := range prompts {
		want[i], err = p.Choose(x, Policy{Quality: 0.9})
		require.NoError(t, err)
	}
	clear(f.table.slot) // so that rows are read again
	f.table.cached = nil
	var running sync.WaitGroup
	got := make([]Decision, len(prompts))
	for i, x := range prompts {
		running.Go(func() {
			got[i], _ = p.Choose(x, Policy{Quality: 0.9})
			_, _ = p.PredictDrafts(x)
		})
	}
	running.Wait()
	require.Equal(t, want, got)
}

func TestPresetProfileNeedsNoRouter(t *testing.T) {
	candidates, err := Preset(pudding)
	require.NoError(t, err)
	require.Len(t, candidates, 11)
	for i, c := range candidates[1:] {
		require.Equal(t, 2*7, c.Mask.Len(), i)
		require.Equal(t, 7.0, c.Depth)
	}
	require.Equal(t, "4,10,14,19,20,22,25", candidates[3].Mask.String())
	_, err = Preset("other")
	require.ErrorIs(t, err, ErrPreset)

	p := &Profile{Model: Fingerprint{Architecture: "llama", Layers: 32}, Candidates: candidates, Defaults: Defaults{Quality: 1}}
	path := filepath.Join(t.TempDir(), "m"+suffix)
	require.NoError(t, p.Write(path))
	p, err = Read(path)
	require.NoError(t, err)
	d, err := p.Choose(Prompt{Text: "hi"}, Policy{Depth: 7})
	require.NoError(t, err)
	require.Equal(t, candidates[1].Mask, d.Mask)
	d, err = p.Choose(Prompt{Text: "hi"}, Policy{})
	require.NoError(t, err)
	require.True(t, d.Mask.IsEmpty())
}

func TestForeignAndStaleProfilesAreRefused(t *testing.T) {
	spec := randmodel.Small("llama")
	model := llamatest.Write(t, spec)
	p := made(t, model)
	require.NoError(t, p.Check(p.Model))
	spec.Seed++
	err := p.Open(llamatest.Write(t, spec))
	require.ErrorIs(t, err, ErrForeign)
	require.ErrorContains(t, err, "other weights")
	for want, change := range map[string]func(f *Fingerprint){
		"architecture": func(f *Fingerprint) { f.Architecture = "qwen3" },
		"layers":       func(f *Fingerprint) { f.Layers++ },
		"parameters":   func(f *Fingerprint) { f.Params++ },
		"bytes":        func(f *Fingerprint) { f.Size++ },
	} {
		f := p.Model
		f.Norms = 0
		change(&f)
		err := p.Check(f)
		require.ErrorIs(t, err, ErrForeign)
		require.ErrorContains(t, err, want)
	}
	_, err = FingerprintOf(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, fs.ErrNotExist)
}

// TestProfileTravels takes a profile to another quantisation of its model, and only
// there.
func TestProfileTravels(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	spec := randmodel.Small("llama")
	spec.Type = gguf.Q8_0
	dir := t.TempDir()
	file := func(name string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, randmodel.Write(path, spec))
		return path
	}
	first := file("m-q8_0.gguf")
	p := made(t, first)
	require.False(t, p.Travelled(p.Model))
	require.NoError(t, p.Write(DefaultPath(first)))

	spec.Type = gguf.Q4_0
	second := file("m-q4_0.gguf")
	model, err := FingerprintOf(second)
	require.NoError(t, err)
	require.True(t, p.Travelled(model))
	found, ok := Find(second)
	require.True(t, ok)
	require.Equal(t, DefaultPath(first), found)
	p, err = Read(found)
	require.NoError(t, err)
	require.NoError(t, p.Open(second))
	_, err = p.Choose(Prompt{Text: "Tell me about a fox."}, Policy{Quality: 0.9})
	require.NoError(t, err)
	require.NoError(t, p.Close())

	// In the cache folder too.
	cached, err := CachePath(p.Model)
	require.NoError(t, err)
	require.NoError(t, p.Write(cached))
	require.NoError(t, os.Remove(DefaultPath(first)))
	found, ok = Find(second)
	require.True(t, ok)
	require.Equal(t, cached, found)

	spec.Seed++ // another training
	third := file("other.gguf")
	_, ok = Find(third)
	require.False(t, ok)
	require.ErrorIs(t, p.Open(third), ErrForeign)

	// A profile of an earlier version knows no norms, and serves its own model alone.
	old := filepath.Join(dir, "old"+suffix)
	require.NoError(t, p.Write(old))
	old = llamatest.Rewrite(t, old, func(meta *gguf.Metadata) { meta.Delete(keyModel + "norms") })
	p, err = Read(old)
	require.NoError(t, err)
	require.Zero(t, p.Model.Norms)
	require.NoError(t, p.Open(first))
	require.NoError(t, p.Close())
	require.ErrorIs(t, p.Open(second), ErrForeign)
}

func TestReadRefuses(t *testing.T) {
	_, err := Read(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = Read(llamatest.Write(t, randmodel.Small("llama")))
	require.ErrorIs(t, err, ErrProfile)
	require.ErrorContains(t, err, "no profile but a model")

	whole := filepath.Join(t.TempDir(), "p"+suffix)
	require.NoError(t, made(t, "").Write(whole))
	for want, change := range map[string]func(meta *gguf.Metadata){
		"version":       func(m *gguf.Metadata) { m.Set(keyVersion, uint32(9)) },
		"differ":        func(m *gguf.Metadata) { m.Set("gallop.candidates.depths", []float64{0}) },
		"empty mask":    func(m *gguf.Metadata) { m.Set("gallop.candidates.masks", []string{"2", "2", "3", "2,3"}) },
		"names layer":   func(m *gguf.Metadata) { m.Set("gallop.candidates.masks", []string{"", "2", "3", "99"}) },
		"not a mask":    func(m *gguf.Metadata) { m.Set("gallop.candidates.masks", []string{"", "2", "3", "?"}) },
		"gallop.tasks":  func(m *gguf.Metadata) { m.Delete("gallop.tasks") },
		"default":       func(m *gguf.Metadata) { m.Set(keyDefault+"quality", math.NaN()) },
		"heat map":      func(m *gguf.Metadata) { m.Set("gallop.tasks", []string{"story"}) },
		"task 7":        func(m *gguf.Metadata) { m.Set(keyNovelty+"task", []uint32{7}) },
		"distance test": func(m *gguf.Metadata) { m.Set(keyNovelty+"unit", float32(0)) },
		"kind":          func(m *gguf.Metadata) { m.Set(keyFeature+"kind", "bert") },
		"router":        func(m *gguf.Metadata) { m.Set("gallop.router.squeeze", 0.0) },
		"draft 1":       func(m *gguf.Metadata) { m.Set(keyDrafts+"masks", []string{"2-5", ""}) },
		"of drafts":     func(m *gguf.Metadata) { m.Set(keyDrafts+"depths", []float64{4}) },
		"acceptance":    func(m *gguf.Metadata) { m.Set("gallop.drafter.squeeze", 0.0) },
		"thresholds":    func(m *gguf.Metadata) { m.Set(keyDefault+"escalate", []float64{0.9, 2, 1, 1}) },
	} {
		_, err := Read(llamatest.Rewrite(t, whole, change))
		require.ErrorIs(t, err, ErrProfile, want)
		require.ErrorContains(t, err, want)
	}
	bad := made(t, "")
	bad.Candidates = bad.Candidates[1:]
	require.ErrorIs(t, bad.Write(filepath.Join(t.TempDir(), "x")), ErrProfile)
}

// FuzzRead damages a profile's bytes: reading must fail or give a profile that
// chooses without a panic.
func FuzzRead(f *testing.F) {
	path := filepath.Join(f.TempDir(), "p"+suffix)
	require.NoError(f, made(f, "").Write(path))
	whole, err := os.ReadFile(path)
	require.NoError(f, err)
	f.Add(uint32(100), []byte{1, 2, 3}, false)
	f.Add(uint32(4000), []byte("\xff\xff\xff\xff"), false)
	f.Add(uint32(len(whole)/2), []byte{}, true)
	f.Fuzz(func(t *testing.T, at uint32, patch []byte, cut bool) {
		data := slices.Clone(whole)
		i := int(at) % len(data)
		copy(data[i:], patch)
		if cut {
			data = data[:i]
		}
		path := filepath.Join(t.TempDir(), "p"+suffix)
		require.NoError(t, os.WriteFile(path, data, 0o644))
		p, err := Read(path)
		if err != nil {
			require.ErrorIs(t, err, ErrProfile)
			return
		}
		if features, err := NewFeatures(p.Spec, nil); err == nil && p.Router != nil && features.Dim() == p.Router.In {
			p.Features = features
			_, err := p.Choose(Prompt{Text: "Tell me about a fox"}, Policy{})
			require.NoError(t, err)
		}
	})
}

func TestFind(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	model := llamatest.Write(t, randmodel.Small("llama"))
	_, ok := Find(model)
	require.False(t, ok)
	p := made(t, model)
	cached, err := CachePath(p.Model)
	require.NoError(t, err)
	require.NoError(t, p.Write(cached))
	path, ok := Find(model)
	require.True(t, ok)
	require.Equal(t, cached, path)
	beside := DefaultPath(model)
	require.Equal(t, filepath.Join(filepath.Dir(model), "model"+suffix), beside)
	require.NoError(t, p.Write(beside))
	path, ok = Find(model)
	require.True(t, ok)
	require.Equal(t, beside, path)
	_, ok = Find(filepath.Join(t.TempDir(), "none.gguf"))
	require.False(t, ok)
}

func TestPredictDrafts(t *testing.T) {
	p := made(t, "")
	story, err := p.PredictDrafts(Prompt{Text: "Tell me about a hare, as a story."})
	require.NoError(t, err)
	translate, err := p.PredictDrafts(Prompt{Text: "Translate the word hare to French."})
	require.NoError(t, err)
	require.Greater(t, story[0].Acceptance, story[1].Acceptance+0.3)
	require.Greater(t, translate[1].Acceptance, translate[0].Acceptance+0.3)
	require.InDelta(t, 0.7, p.Drafts[0].Acceptance, 0, "the profile's own stay")

	p.Drafter = nil
	drafts, err := p.PredictDrafts(Prompt{Text: "Anything"})
	require.NoError(t, err)
	require.Equal(t, p.Drafts, drafts)
}
