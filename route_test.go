package gallop_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// routed makes sessions on the demo model that route by its profile, each in an engine of
// its own.
func routed(t *testing.T) (session func(gallop.Skip) *gallop.Session, e func() *gallop.Engine) {
	t.Helper()
	m := demoModel(t)
	o := options(1024)
	o.Profile = ""
	e = func() *gallop.Engine { return engine(t, m, o) }
	return func(s gallop.Skip) *gallop.Session {
		r := greedy(64)
		r.Skip = s
		return e().NewSession(r)
	}, e
}

// TestDefaultRouting: the budget that is in force decides whether there is escalation.
func TestDefaultRouting(t *testing.T) {
	m := small(t)
	half := func(layer int) skip.Mask { return skip.Mask{}.With(layer, skip.FeedForward) }
	p := &router.Profile{
		Candidates: []router.Candidate{{}, {Mask: half(1), Depth: 2}, {Mask: half(2), Depth: 3}, {Mask: half(3), Depth: 4}},
		Defaults: router.Defaults{
			Quality: 0.95, Prefill: skip.FullPrefill,
			Escalate: []router.Escalation{{Quality: 0.95, Threshold: 0.5, Depth: 3}, {Quality: 0.98, Threshold: 0.7, Depth: 2}},
		},
	}
	e := engine(t, m, options(256))
	e.UseProfile(p)
	for _, c := range []struct {
		skip     gallop.Skip
		mask     skip.Mask
		escalate float64
	}{
		{gallop.Skip{}, half(2), 0.5},
		{gallop.Routed(), half(2), 0.5},
		{gallop.Quality(0.97), half(1), 0.7},
		{gallop.Quality(0.99), skip.Mask{}, 0}, // no escalation keeps that
		{gallop.Depth(4), half(3), 0},
		{gallop.Routed().Prefill(skip.MaskedPrefill), skip.Mask{}, 0},
		{gallop.Routed().Escalate(0.1), skip.Mask{}, 0.1},
		{gallop.Nothing(), skip.Mask{}, 0},
	} {
		plan, err := e.Plan(t.Context(), gallop.Request{Prompt: "one", Skip: c.skip})
		require.NoError(t, err, c.skip)
		require.Equal(t, c.mask, plan.Mask, c.skip)
		require.InDelta(t, c.escalate, plan.Escalate, 0, c.skip)
		require.Equal(t, c.skip == gallop.Nothing(), plan.Choice == nil, c.skip)
	}
	plan, err := e.Plan(t.Context(), gallop.Request{Prompt: "one", Lossless: true})
	require.NoError(t, err)
	require.True(t, plan.Mask.IsEmpty())
	require.Zero(t, plan.Escalate)

	p.Defaults.Off = true
	plan, err = e.Plan(t.Context(), gallop.Request{Prompt: "one"})
	require.NoError(t, err)
	require.Nil(t, plan.Choice, "calibration found that this doesn't pay")
	plan, err = e.Plan(t.Context(), gallop.Request{Prompt: "one", Skip: gallop.Routed()})
	require.NoError(t, err)
	require.NotNil(t, plan.Choice, "asked for all the same")

	bare := engine(t, m, options(256))
	for _, s := range []gallop.Skip{gallop.Depth(1), gallop.Quality(0.9)} {
		_, err = bare.Plan(t.Context(), gallop.Request{Prompt: "one", Skip: s})
		require.ErrorIs(t, err, gallop.ErrNoProfile)
		require.ErrorContains(t, err, "gallop calibrate -m "+m.Path)
	}
}

const (
	sum   = "What is 12 + 7?"
	story = "Tell me a story about a fox."
)

func TestEachQuestionTakesItsLayers(t *testing.T) {
	session, _ := routed(t)
	s := session(gallop.Depth(4).Prefill(skip.FullPrefill))
	first := ask(t, s, sum)
	require.Equal(t, "19", first.Text)
	second := ask(t, s, story)
	require.NotEqual(t, first.Plan.Mask, second.Plan.Mask)
	for _, a := range []gallop.Answer{first, second} {
		require.InDelta(t, 4, a.Plan.Choice.Depth, 0.5)
		require.False(t, a.Plan.Choice.Kept)
		require.NotEmpty(t, a.Plan.Choice.Reason)
		require.Zero(t, a.Weighed, "what is asked for is not weighed")
	}
	require.Positive(t, second.Usage.Cached, "another mask keeps a prompt that the whole model decoded")

	s.Request().Skip = gallop.Layers(skip.Layers(5))
	byHand := ask(t, s, sum)
	require.Nil(t, byHand.Plan.Choice)
	require.Equal(t, skip.Layers(5), byHand.Plan.Mask)
	require.Zero(t, byHand.Weighed)
	s.Request().Skip = gallop.Depth(4).Prefill(skip.FullPrefill)
	require.NotNil(t, ask(t, s, sum).Plan.Choice)
}

func TestWhenToRoute(t *testing.T) {
	session, _ := routed(t)
	s := session(gallop.Depth(4).Prefill(skip.FullPrefill).PerChat())
	first := ask(t, s, sum)
	require.False(t, first.Plan.Choice.Kept)
	second := ask(t, s, story)
	require.Equal(t, first.Plan.Mask, second.Plan.Mask)
	require.True(t, second.Plan.Choice.Kept)
	s.Reset()
	require.NotEqual(t, first.Plan.Mask, ask(t, s, story).Plan.Mask)
	s.Reset(gallop.Message{Role: "user", Content: sum}, gallop.Message{Role: "assistant", Content: "19"})
	require.Equal(t, first.Plan.Mask, ask(t, s, story).Plan.Mask, "a conversation that is taken up began with the sum")

	// It stays with that when its first question is forgotten.
	o := options(256)
	o.Profile = ""
	r := greedy(20)
	r.Skip, r.Forget = gallop.Depth(4).Prefill(skip.FullPrefill).PerChat(), true
	s = engine(t, demoModel(t), o).NewSession(r)
	ask(t, s, sum)
	forgotten := 0
	for range 40 {
		a := ask(t, s, story)
		require.Equal(t, first.Plan.Mask, a.Plan.Mask)
		require.True(t, a.Plan.Choice.Kept)
		if forgotten += a.Forgotten; forgotten > 2 {
			break
		}
	}
	require.Positive(t, forgotten)

	off := ask(t, session(gallop.Nothing()), sum)
	require.Nil(t, off.Plan.Choice)
	require.True(t, off.Plan.Mask.IsEmpty())
}

// TestProfilesChange while answers choose by them: those that have begun go on with theirs.
func TestProfilesChange(t *testing.T) {
	m := demoModel(t)
	path, ok := router.Find(m.Path)
	require.True(t, ok)
	o := options(256)
	o.Parallel = 4
	e := engine(t, m, o)
	require.Empty(t, e.Info().Profile)
	r := greedy(8)
	r.Messages = user(story)
	a, err := e.Answer(t.Context(), r)
	require.NoError(t, err)
	require.Nil(t, a.Plan.Choice)
	require.NoError(t, e.SetProfile(path))
	require.Equal(t, path, e.Info().Profile)
	r.Skip = gallop.Depth(4)
	a, err = e.Answer(t.Context(), r)
	require.NoError(t, err)
	require.NotNil(t, a.Plan.Choice)
	require.False(t, a.Plan.Mask.IsEmpty())

	r.Skip = gallop.Routed()
	var running sync.WaitGroup
	for range 4 {
		running.Go(func() {
			for range 3 {
				if _, err := e.Answer(t.Context(), r); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 10 {
		require.NoError(t, e.SetProfile([]string{"", path}[i%2]))
	}
	running.Wait()
	require.ErrorIs(t, e.SetProfile(filepath.Join(t.TempDir(), "none")), os.ErrNotExist)
	require.Equal(t, path, e.Info().Profile, "the one of before stays")
	require.NoError(t, e.Close())
	require.ErrorIs(t, e.SetProfile(path), gallop.ErrClosed)
}

// TestMaskedTurnsWeighTheCost: after a masked prefill a deeper mask has to save
// more than decoding the conversation again costs.
func TestMaskedTurnsWeighTheCost(t *testing.T) {
	session, _ := routed(t)
	s := session(gallop.Depth(4).Prefill(skip.MaskedPrefill))
	first := ask(t, s, sum)
	second := ask(t, s, story)
	if second.Plan.Mask == first.Plan.Mask {
		require.True(t, second.Plan.Choice.Kept)
	} else {
		require.Zero(t, second.Usage.Cached, "nothing is mixed")
	}
	require.NotEmpty(t, second.Plan.Choice.Reason)

	s.Request().Skip = gallop.Layers(skip.Layers(5))
	ask(t, s, sum)
	s.Request().Skip = gallop.Depth(4).Prefill(skip.MaskedPrefill)
	again := ask(t, s, sum)
	require.False(t, again.Plan.Choice.Kept, "a mask set by hand leaves no trace")
}

func TestRoutedEscalation(t *testing.T) {
	session, _ := routed(t)
	whole := ask(t, session(gallop.Nothing()), story)
	s := session(gallop.Depth(4).Prefill(skip.FullPrefill).Escalate(1))
	a := ask(t, s, story)
	require.Equal(t, whole.Text, a.Text)
	require.Greater(t, a.Escalated, a.Usage.Generated/2, "all but those that are certain to the last bit")
	s.Request().Skip = gallop.Layers(skip.Layers(5))
	require.Zero(t, ask(t, s, story).Escalated, "escalation is for the masks that it was asked with")

	unlike := ask(t, session(gallop.Routed()), "Qwertz uiop asdfgh? Yxcvbnm!")
	require.Greater(t, unlike.Plan.Choice.Novelty, 1.0)
	require.True(t, unlike.Plan.Mask.IsEmpty(), unlike.Plan.Choice.Reason)
}

// TestRoutingBesideOrAfter gives the same answers whether the router has a core
// beside the prompt's pass or waits for the first token.
func TestRoutingBesideOrAfter(t *testing.T) {
	_, newEngine := routed(t)
	var answers [2][]gallop.Answer
	for i, beside := range []bool{false, true} {
		e := newEngine()
		e.SetIdleCore(beside)
		r := greedy(64)
		r.Skip = gallop.Depth(4).Prefill(skip.FullPrefill)
		s := e.NewSession(r)
		for _, question := range []string{sum, story, sum} {
			a := ask(t, s, question)
			require.Positive(t, a.Timing.Routing)
			require.NotEmpty(t, a.Plan.Choice.Reason)
			if !beside {
				require.GreaterOrEqual(t, a.Timing.Waited, a.Timing.Routing)
			}
			answers[i] = append(answers[i], a)
		}
	}
	for i, a := range answers[0] {
		require.Equal(t, a.Tokens, answers[1][i].Tokens)
		require.Equal(t, a.Plan, answers[1][i].Plan)
	}
}

// TestRoutingFails after the first token: the conversation is as it was before. A router
// that panics fails the same way, in a goroutine of its own too.
func TestRoutingFails(t *testing.T) {
	m := small(t)
	candidates := []router.Candidate{{}, {Mask: skip.Layers(1), Depth: 1}}
	closed := &router.Profile{Candidates: candidates, Router: &router.Predictor{In: 1, Out: 2}}
	panics := &router.Profile{Candidates: candidates, Router: &router.Predictor{In: 1, Out: 2}, Features: new(router.Features)}
	for _, prefill := range []skip.Prefill{skip.FullPrefill, skip.MaskedPrefill} {
		for _, beside := range []bool{false, true} {
			r := greedy(24)
			r.Skip = gallop.Quality(0.9).Prefill(prefill)
			e := engine(t, m, options(256))
			e.UseProfile(closed)
			e.SetIdleCore(beside)
			s := e.NewSession(r)
			a, err := tryAsk(t, s, "one")
			require.ErrorIs(t, err, router.ErrFeatures)
			require.Empty(t, a.Finish, "it failed")
			require.Empty(t, s.Messages())
			e.UseProfile(panics)
			_, err = tryAsk(t, s, "one")
			require.Error(t, err)
			require.Empty(t, s.Messages())
			s.Request().Skip = gallop.Layers(skip.Layers(1))
			require.Positive(t, ask(t, s, "one").Usage.Generated)
			require.EqualValues(t, 2, e.Stats().Failed)
		}
	}
}

// TestProfilesThatCannotBeUsed: one that is named is an error, one that was found is left out.
func TestProfilesThatCannotBeUsed(t *testing.T) {
	llamatest.Library(t)
	demo := demoModel(t)
	own, ok := router.Find(demo.Path)
	require.True(t, ok)
	damaged := filepath.Join(t.TempDir(), "damaged.gguf")
	data, err := os.ReadFile(own)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(damaged, data[:len(data)/2], 0o600))
	model := llamatest.Tiny(t, 4)
	foreign := router.DefaultPath(model)
	require.NoError(t, os.WriteFile(foreign, data, 0o600))
	for name, c := range map[string]struct {
		path string
		want error
	}{
		"damaged":    {damaged, gallop.ErrProfile},
		"foreign":    {foreign, gallop.ErrProfile},
		"no profile": {model, gallop.ErrProfile},
		"no file":    {filepath.Join(t.TempDir(), "none"), os.ErrNotExist},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := gallop.Open(t.Context(), model, &gallop.Options{Profile: c.path, NoCosts: true, Shortlist: -1})
			require.ErrorIs(t, err, c.want)
			require.ErrorContains(t, err, "profile")
		})
	}
	e, err := gallop.Open(t.Context(), model, &gallop.Options{NoCosts: true, Shortlist: -1, Context: llama.ContextOptions{NCtx: 256}})
	require.NoError(t, err, "the one beside the model is another model's")
	require.Empty(t, e.Info().Profile)
	require.NoError(t, e.Close())
}
