package calibrate_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/calibrate"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

func small(t *testing.T) *llama.Model {
	t.Helper()
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Layers = 5
	return llamatest.Open(t, llamatest.Write(t, spec))
}

// examples are n prompts of two tasks, with answers unless free.
func examples(n int, free bool) (all []dataset.Example) {
	for i := range n {
		e := dataset.Example{Prompt: fmt.Sprintf("Count to %d please", i), Answer: "one two", Task: "count", Where: "test"}
		if i%2 == 1 {
			e = dataset.Example{Prompt: fmt.Sprintf("Is %d a colour?", i), Answer: "no", Task: "ask", Where: "test"}
		}
		if free {
			e.Answer = ""
		}
		all = append(all, e)
	}
	return all
}

// write calibrates and returns the profile's bytes.
func write(t *testing.T, ctx context.Context, m *llama.Model, o calibrate.Options) ([]byte, *router.Profile, error) {
	t.Helper()
	p, err := calibrate.Run(ctx, m, o)
	if err != nil {
		return nil, nil, err
	}
	written, path := *p, filepath.Join(t.TempDir(), "x.gallop.gguf")
	written.Defaults.Speed, written.Defaults.Off = 0, false // as measured, so never twice the same
	require.NoError(t, written.Write(path))
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return data, p, nil
}

// TestKilledRunsResume stops a calibration at ten random moments. What comes out
// in the end is what comes out in one go, to the last bit.
func TestKilledRunsResume(t *testing.T) {
	m := small(t)
	options := func(folder string) calibrate.Options {
		return calibrate.Options{
			Examples: examples(24, true), Unit: calibrate.FeedForwards, Prefill: skip.FullPrefill, Depths: []float64{1, 1.5},
			PerTask: 8, Answer: 6, Clusters: 2, Threads: 1, Seed: 3, Folder: folder,
		}
	}
	steps := 0
	o := options(t.TempDir())
	o.Progress = func(string, int, int) { steps++ }
	want, p, err := write(t, context.Background(), m, o)
	require.NoError(t, err)
	require.Greater(t, len(p.Candidates), 2)
	require.Equal(t, []string{"cluster 1", "cluster 2"}, p.Tasks)

	random := rand.New(rand.NewPCG(1, 2))
	folder := t.TempDir()
	for range 10 {
		o := options(folder)
		ctx, cancel := context.WithCancel(context.Background())
		left := random.IntN(steps)
		o.Progress = func(string, int, int) {
			if left--; left < 0 {
				cancel()
			}
		}
		if _, _, err := write(t, ctx, m, o); err != nil {
			require.ErrorIs(t, err, context.Canceled)
		}
		cancel()
	}
	got, _, err := write(t, context.Background(), m, options(folder))
	require.NoError(t, err)
	require.Equal(t, want, got)

	changed := options(folder)
	changed.Seed++
	other, _, err := write(t, context.Background(), m, changed)
	require.NoError(t, err)
	require.NotEqual(t, want, other, "another seed, another router")
}

// TestBudget has no time to search at all: block influence then chooses what is
// skipped, at every depth.
func TestBudget(t *testing.T) {
	m := small(t)
	o := calibrate.Options{
		Examples: examples(16, false), Unit: calibrate.FeedForwards, Prefill: skip.FullPrefill, Depths: []float64{1, 1.5},
		PerTask: 4, Threads: 1, Folder: t.TempDir(), Budget: time.Nanosecond,
	}
	var said []string
	o.Usable = func(_ *router.Profile, has string) error { said = append(said, has); return nil }
	_, p, err := write(t, context.Background(), m, o)
	require.NoError(t, err)
	require.Contains(t, said[0], "the time for the search was over at 0.00 of 1.5 layers, so deeper sets are guesses")
	require.Contains(t, p.Provenance, router.Note{Key: "searched to depth", Value: "0.00, then the time was over"})
	for _, depth := range o.Depths {
		require.True(t, slices.ContainsFunc(p.Candidates, func(c router.Candidate) bool { return c.At(depth) }), depth)
	}
}

// TestUsableEarly gets a profile before the tasks are searched, and a better one
// afterwards.
func TestUsableEarly(t *testing.T) {
	m := small(t)
	var profiles []*router.Profile
	o := calibrate.Options{
		Examples: examples(24, true), Unit: calibrate.FeedForwards, Prefill: skip.FullPrefill, Depths: []float64{1, 1.5},
		PerTask: 8, Answer: 6, Clusters: 2, Threads: 1, Folder: t.TempDir(),
		Usable: func(p *router.Profile, has string) error {
			require.Contains(t, has, "sets of layers")
			require.NotContains(t, has, "guesses")
			require.Equal(t, p.Defaults.Off, strings.Contains(has, "do not pay"))
			require.NoError(t, p.Write(filepath.Join(t.TempDir(), "x.gallop.gguf")))
			profiles = append(profiles, p)
			return nil
		},
	}
	last, err := calibrate.Run(context.Background(), m, o)
	require.NoError(t, err)
	require.Len(t, profiles, 2)
	require.Same(t, last, profiles[1])
	require.Len(t, profiles[0].Candidates, 3)
	for _, c := range profiles[0].Candidates[1:] {
		require.Equal(t, "general", c.Task)
	}
	require.Empty(t, profiles[0].Drafts)
	require.NotEmpty(t, last.Drafts)
	for _, task := range last.Tasks {
		require.True(t, slices.ContainsFunc(last.Candidates, func(c router.Candidate) bool { return c.For(task) }), task)
	}

	gone := errors.New("the disk is full")
	o.Usable = func(*router.Profile, string) error { return gone }
	_, err = calibrate.Run(context.Background(), m, o)
	require.ErrorIs(t, err, gone)
}

// TestTime has no time at all, and all the time that it wants.
func TestTime(t *testing.T) {
	m := small(t)
	for _, limit := range []time.Duration{time.Nanosecond, time.Hour} {
		told := 0
		o := calibrate.Options{
			Examples: examples(80, true), Unit: calibrate.FeedForwards, Prefill: skip.FullPrefill, Depths: []float64{1},
			PerTask: 8, Answer: 4, Clusters: 2, Threads: 1, Folder: t.TempDir(), Time: limit,
			Usable: func(*router.Profile, string) error { told++; return nil },
		}
		p, err := calibrate.Run(context.Background(), m, o)
		require.NoError(t, err)
		require.Empty(t, p.Drafts)
		require.NotEmpty(t, p.Candidates[1:])
		examples := p.Provenance[slices.IndexFunc(p.Provenance, func(f router.Note) bool { return f.Key == "examples" })].Value
		if limit == time.Hour {
			require.Equal(t, "80", examples)
			require.Equal(t, 2, told, "for the tasks too")
		} else {
			require.Equal(t, "32", examples, "the least")
			require.Equal(t, 1, told)
		}
	}
}

func TestUnits(t *testing.T) {
	m := small(t)
	for _, unit := range []calibrate.Unit{calibrate.Layers, calibrate.Sublayers, calibrate.FeedForwards} {
		_, p, err := write(t, context.Background(), m, calibrate.Options{
			Examples: examples(16, false), Unit: unit, Depths: []float64{1}, PerTask: 4, Threads: 1, Folder: t.TempDir(),
		})
		require.NoError(t, err, unit)
		require.Equal(t, []string{"ask", "count"}, p.Tasks)
		for _, c := range p.Candidates[1:] {
			_, whole := c.Mask.WholeLayers()
			require.InDelta(t, 1, c.Depth, 0.5, unit)
			require.True(t, whole || unit != calibrate.Layers)
			require.True(t, c.Mask.KVComplete() || unit != calibrate.FeedForwards)
			require.Zero(t, c.Mask.Skipped(0)|c.Mask.Skipped(m.NLayer-1), "first and last layer stay")
		}
		parsed, err := calibrate.ParseUnit(string(unit))
		require.NoError(t, err)
		require.Equal(t, unit, parsed)
	}
}

func TestCalibrateErrors(t *testing.T) {
	m := small(t)
	o := calibrate.Options{Examples: examples(4, false), Depths: []float64{4}, Folder: t.TempDir(), Threads: 1}
	_, err := calibrate.Run(context.Background(), m, o)
	require.ErrorContains(t, err, "the first and the last of 5 layers are kept")

	o.Depths = []float64{1}
	o.Examples[2].Answer = strings.Repeat("word ", 9000)
	_, err = calibrate.Run(context.Background(), m, o)
	require.ErrorContains(t, err, "longer than the context")
}

// TestSingleTokenAnswers tell a full prefill nothing, and a masked one something.
func TestSingleTokenAnswers(t *testing.T) {
	m := small(t)
	o := calibrate.Options{Examples: examples(8, false), Unit: calibrate.FeedForwards, Depths: []float64{1}, PerTask: 4, Folder: t.TempDir(), Threads: 1}
	for i := range 4 {
		o.Examples = append(o.Examples, dataset.Example{Prompt: fmt.Sprintf("Which of %d?", i), Plain: true, Choices: []string{"a", "b"}, Task: "letters", Where: "test"})
	}
	o.Prefill = skip.FullPrefill
	_, err := calibrate.Run(t.Context(), m, o)
	require.ErrorContains(t, err, `task "letters": all its answers are single tokens`)
	o.Prefill = skip.MaskedPrefill
	_, err = calibrate.Run(t.Context(), m, o)
	require.NoError(t, err)
}

// TestQuick has five minutes, or what it is given.
func TestQuick(t *testing.T) {
	for given, want := range map[time.Duration]time.Duration{0: 5 * time.Minute, 20 * time.Minute: 20 * time.Minute} {
		o := calibrate.Options{Time: given}
		require.Contains(t, o.Quick(), "if "+want.String()+" are not over")
		require.Equal(t, want, o.Time)
	}
}
