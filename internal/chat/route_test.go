package chat_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/chat"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// routed makes sessions on the demo model that route by its profile.
func routed(t *testing.T) (session func(chat.Routing, skip.Prefill) *chat.Session) {
	t.Helper()
	llamatest.Library(t)
	path, err := demo.Path()
	require.NoError(t, err)
	m := llamatest.Open(t, path)
	found, ok := router.Find(path)
	require.True(t, ok)
	p, err := router.Read(found)
	require.NoError(t, err)
	require.NoError(t, p.Open(path, nil))
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	return func(r chat.Routing, prefill skip.Prefill) *chat.Session {
		r.Profile = p
		s, err := chat.New(m, &chat.Options{
			Routing: &r, Prefill: prefill, MaxTokens: 64, Context: llama.ContextOptions{Threads: 1},
		})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, s.Close()) })
		return s
	}
}

// TestDefaultRouting: the budget that is in force decides whether there is a cascade.
func TestDefaultRouting(t *testing.T) {
	p := &router.Profile{Defaults: router.Defaults{
		Quality: 0.95, Prefill: skip.FullPrefill,
		Escalate: []router.Escalation{{Quality: 0.95, Threshold: 0.5, Depth: 3}, {Quality: 0.98, Threshold: 0.7, Depth: 2}},
	}}
	cascade := func(depth, threshold float64) *chat.Routing {
		return &chat.Routing{Profile: p, Policy: router.Policy{Depth: depth, Guard: true}, Escalate: threshold}
	}
	plain := func(policy router.Policy) *chat.Routing { return &chat.Routing{Profile: p, Policy: policy} }
	require.Equal(t, cascade(3, 0.5), chat.DefaultRouting(p))
	for _, c := range []struct {
		policy  router.Policy
		prefill skip.Prefill
		want    *chat.Routing
	}{
		{router.Policy{}, skip.FullPrefill, cascade(3, 0.5)},
		{router.Policy{Quality: 0.97}, skip.FullPrefill, cascade(2, 0.7)},
		{router.Policy{Quality: 0.99}, skip.FullPrefill, plain(router.Policy{Quality: 0.99})},
		{router.Policy{Depth: 4}, skip.FullPrefill, plain(router.Policy{Depth: 4})},
		{router.Policy{}, skip.MaskedPrefill, plain(router.Policy{})},
	} {
		require.Equal(t, c.want, chat.NewRouting(p, c.policy, c.prefill))
	}
	p.Defaults.Off = true
	require.Nil(t, chat.DefaultRouting(p))
	require.NotNil(t, chat.NewRouting(p, router.Policy{}, skip.FullPrefill), "asked for all the same")
}

const (
	sum   = "What is 12 + 7?"
	story = "Tell me a story about a fox."
)

func TestEachQuestionTakesItsLayers(t *testing.T) {
	session := routed(t)
	s := session(chat.Routing{Policy: router.Policy{Depth: 4}}, skip.FullPrefill)
	first := ask(t, s, sum)
	require.Equal(t, "19", first.Text)
	second := ask(t, s, story)
	require.NotEqual(t, first.Mask, second.Mask)
	for _, a := range []chat.Answer{first, second} {
		require.InDelta(t, 4, a.Routed.Depth, 0.5)
		require.Equal(t, a.Routed.Mask, a.Mask)
		require.False(t, a.Routed.Kept)
	}
	require.Positive(t, second.CachedTokens, "another mask keeps a prompt that the whole model decoded")

	require.NoError(t, s.SetMask(skip.Layers(5)))
	byHand := ask(t, s, sum)
	require.Nil(t, byHand.Routed)
	require.Equal(t, skip.Layers(5), byHand.Mask)
	require.True(t, s.Route())
	require.NotNil(t, ask(t, s, sum).Routed)
}

func TestWhenToRoute(t *testing.T) {
	session := routed(t)
	s := session(chat.Routing{Policy: router.Policy{Depth: 4}, When: chat.EachChat}, skip.FullPrefill)
	first := ask(t, s, sum)
	second := ask(t, s, story)
	require.Equal(t, first.Mask, second.Mask)
	require.True(t, second.Routed.Kept)
	s.Reset()
	require.NotEqual(t, first.Mask, ask(t, s, story).Mask)

	off := ask(t, session(chat.Routing{When: chat.Never}, skip.FullPrefill), sum)
	require.Nil(t, off.Routed)
	require.True(t, off.Mask.IsEmpty())
}

// TestRoutingBeginsInAConversation that had nothing to route by, and leaves a mask that
// was set by hand alone.
func TestRoutingBeginsInAConversation(t *testing.T) {
	session := routed(t)
	r := session(chat.Routing{Policy: router.Policy{Depth: 4}}, skip.FullPrefill).Routing()
	plain := func() *chat.Session {
		s := session(chat.Routing{When: chat.Never}, skip.MaskedPrefill)
		s.ForgetRouting()
		require.Nil(t, ask(t, s, sum).Routed)
		return s
	}
	s := plain()
	s.SetRouting(r, skip.FullPrefill)
	a := ask(t, s, story)
	require.NotNil(t, a.Routed)
	require.False(t, a.Mask.IsEmpty())
	require.Equal(t, skip.FullPrefill, s.Prefill())

	s = plain()
	require.NoError(t, s.SetMask(skip.Layers(5)))
	s.SetRouting(r, skip.FullPrefill)
	a = ask(t, s, story)
	require.Nil(t, a.Routed)
	require.Equal(t, skip.Layers(5), a.Mask)
	require.True(t, s.Route())
	require.NotNil(t, ask(t, s, story).Routed)
}

// TestMaskedTurnsWeighTheCost: after a masked prefill a deeper mask has to save
// more than decoding the conversation again costs.
func TestMaskedTurnsWeighTheCost(t *testing.T) {
	session := routed(t)
	s := session(chat.Routing{Policy: router.Policy{Depth: 4}}, skip.MaskedPrefill)
	first := ask(t, s, sum)
	second := ask(t, s, story)
	if second.Mask == first.Mask {
		require.True(t, second.Routed.Kept)
	} else {
		require.Zero(t, second.CachedTokens, "nothing is mixed")
	}
	require.NotEmpty(t, second.Routed.Reason)

	require.NoError(t, s.SetMask(skip.Layers(5)))
	require.True(t, s.Route())
	again := ask(t, s, sum)
	require.Equal(t, again.Routed.Mask, again.Mask, "a mask set by hand leaves no trace")
}

func TestRoutedCascade(t *testing.T) {
	session := routed(t)
	whole := ask(t, session(chat.Routing{When: chat.Never}, skip.FullPrefill), story)
	always := session(chat.Routing{Policy: router.Policy{Depth: 4}, Escalate: 1.01}, skip.FullPrefill)
	a := ask(t, always, story)
	require.Equal(t, whole.Text, a.Text)
	require.Equal(t, a.Tokens-1, a.Escalated, "the first comes from the prompt")
	require.NoError(t, always.SetMask(skip.Layers(5)), "the profile's cascade is for its own masks")
	require.Zero(t, ask(t, always, story).Escalated)

	unlike := ask(t, session(chat.Routing{Policy: router.Policy{Depth: 4, Guard: true}}, skip.FullPrefill), "Qwertz uiop asdfgh? Yxcvbnm!")
	require.True(t, unlike.Mask.IsEmpty(), unlike.Routed.Reason)
}

// TestRoutingBesideOrAfter gives the same answers whether the router has a core
// beside the prompt's pass or waits for the first token.
func TestRoutingBesideOrAfter(t *testing.T) {
	session := routed(t)
	var answers [2][]chat.Answer
	for i, beside := range []bool{false, true} {
		s := session(chat.Routing{Policy: router.Policy{Depth: 4}}, skip.FullPrefill)
		s.SetIdleCore(beside)
		for _, question := range []string{sum, story, sum} {
			a := ask(t, s, question)
			require.Positive(t, a.Routing)
			require.NotEmpty(t, a.Routed.Reason)
			if !beside {
				require.GreaterOrEqual(t, a.Timing.Waited, a.Routing)
			}
			answers[i] = append(answers[i], a)
		}
	}
	for i, a := range answers[0] {
		require.Equal(t, a.Generated, answers[1][i].Generated)
		require.Equal(t, a.Mask, answers[1][i].Mask)
		require.Equal(t, a.Routed, answers[1][i].Routed)
	}
}

// TestRoutingFails after the first token: the conversation is as it was before.
func TestRoutingFails(t *testing.T) {
	m := small(t)
	closed := &router.Profile{
		Candidates: []router.Candidate{{}, {Mask: skip.Layers(1), Depth: 1}}, Router: &router.Router{In: 1, Out: 2},
	}
	for _, prefill := range []skip.Prefill{skip.FullPrefill, skip.MaskedPrefill} {
		for _, beside := range []bool{false, true} {
			opts := options(256)
			opts.Prefill, opts.Routing = prefill, &chat.Routing{Profile: closed}
			s := session(t, m, opts)
			s.SetIdleCore(beside)
			_, err := s.Ask(t.Context(), "one", func(string) {})
			require.ErrorIs(t, err, router.ErrFeatures)
			require.Empty(t, s.Messages())
			require.NoError(t, s.SetMask(skip.Layers(1)))
			require.Positive(t, ask(t, s, "one").Tokens)
		}
	}
}
