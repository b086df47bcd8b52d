package gallop_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// listed opens a model whose vocabulary is large enough for a shortlist.
func listed(t *testing.T) (*llama.Model, randmodel.Spec, gallop.Options) {
	t.Helper()
	llamatest.Library(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	spec := randmodel.Small("llama")
	spec.Vocab = 1 << 14
	o := options(256)
	o.Shortlist = 0
	return llamatest.Open(t, llamatest.Write(t, spec)), spec, o
}

// decoded is how many of an answer's tokens were chosen after a token that was decoded alone:
// not the first one, unless all of the prompt but its last token was in the cache.
func decoded(a gallop.Answer) int {
	if a.Usage.Prompt-a.Usage.Cached > 1 {
		return a.Usage.Generated - 1
	}
	return a.Usage.Generated
}

func TestAnswersFromAShortlist(t *testing.T) {
	m, _, o := listed(t)
	e := engine(t, m, o)
	ask := func(change func(*gallop.Request)) gallop.Answer {
		t.Helper()
		r := greedy(24)
		r.Messages = user("hello there")
		change(&r)
		a, err := e.Answer(t.Context(), r)
		require.NoError(t, err)
		return a
	}
	const size = 2048
	forced := func(r *gallop.Request) { r.Shortlist = size } // whether it pays is not for a test to say
	early := ask(forced)
	require.Equal(t, gallop.Listed{Why: "it is not learnt yet"}, early.Shortlist)
	require.True(t, early.Plan.Mask.IsEmpty())
	require.NoError(t, e.Learner().Learn(t.Context()))

	whole := ask(func(r *gallop.Request) { r.Shortlist = -1 })
	require.Equal(t, "it is off", whole.Shortlist.Why)
	short := ask(forced)
	require.Equal(t, size, short.Shortlist.Size)
	require.Equal(t, decoded(short), short.Shortlist.Rows)
	require.Equal(t, skip.Mask{}.WithShortlist(size), short.Plan.Mask)
	require.Equal(t, whole.Tokens, short.Tokens)
	inMask := ask(func(r *gallop.Request) { r.Skip = gallop.Layers(skip.Mask{}.WithShortlist(size)) })
	require.Equal(t, size, inMask.Shortlist.Size, "a mask may name it too")

	// Detail leaves the shortlist on. Nearly all of the probability is in previewed tokens here,
	// each of which is little off.
	probabilities := func(set func(*gallop.Request)) (list []float64) {
		r := greedy(24)
		r.Messages, r.Detail = user("hello there"), true
		set(&r)
		for d, err := range e.Stream(t.Context(), r) {
			require.NoError(t, err)
			for _, token := range d.Tokens {
				list = append(list, token.LogProb)
			}
			if d.Answer != nil && r.Shortlist > 0 {
				require.Equal(t, decoded(*d.Answer), d.Answer.Shortlist.Rows)
			}
		}
		return list
	}
	waits := ask(func(r *gallop.Request) {
		forced(r)
		r.Sampling = &llama.Sampling{Grammar: `root ::= "a"`, Lazy: &llama.Lazy{Trigger: "never said"}}
	})
	require.Equal(t, short.Tokens, waits.Tokens)
	require.Equal(t, decoded(waits), waits.Shortlist.Rows, "a grammar that does not hold yet leaves it on")
	require.InDeltaSlice(t, probabilities(func(r *gallop.Request) { r.Logprobs = -1 }), probabilities(forced), 0.5)

	half := skip.Mask{}.With(2, skip.FeedForward)
	masked := ask(func(r *gallop.Request) { r.Shortlist, r.Skip = size, gallop.Layers(half) })
	require.Equal(t, half.WithShortlist(size), masked.Plan.Mask)
	require.Equal(t, ask(func(r *gallop.Request) { r.Shortlist, r.Skip = -1, gallop.Layers(half) }).Tokens, masked.Tokens)

	for name, change := range map[string]func(*gallop.Request){
		"a grammar":         func(r *gallop.Request) { r.Sampling = &llama.Sampling{Grammar: `root ::= [a-z ]+`} },
		"penalties":         func(r *gallop.Request) { r.Sampling = &llama.Sampling{RepeatPenalty: 1.1} },
		"a bias":            func(r *gallop.Request) { r.Sampling = &llama.Sampling{LogitBias: map[llama.Token]float32{5: 1}} },
		"log-probabilities": func(r *gallop.Request) { r.Logprobs = 1 },
	} {
		a := ask(func(r *gallop.Request) { forced(r); change(r) })
		require.Zero(t, a.Shortlist.Rows, name)
		require.NotEmpty(t, a.Shortlist.Why, name)
	}
	draft := func(size int) gallop.Answer {
		return ask(func(r *gallop.Request) {
			r.Shortlist, r.Lossless, r.Drafts = size, true, &gallop.DraftOptions{Fixed: true, MaxDraft: 3, Masks: []skip.Mask{skip.Layers(3)}}
		})
	}
	lossless := draft(size)
	require.Equal(t, draft(-1).Tokens, lossless.Tokens)
	require.Positive(t, lossless.Shortlist.Rows, "drafts come from the shortlist")
	require.True(t, lossless.Plan.Mask.IsEmpty(), "answers do not")
}

// TestAnswersLeaveAShortlist: where it doesn't pay, where a text leaves too many tokens in
// doubt, and with an adapter, the whole matrix gives the answer, with the reason.
func TestAnswersLeaveAShortlist(t *testing.T) {
	m, spec, o := listed(t)
	e := engine(t, m, o)
	require.NoError(t, e.Learner().Learn(t.Context()))
	made := e.Learner().Made()
	ask := func(e *gallop.Engine, size int) gallop.Answer {
		r := greedy(40)
		r.Messages, r.Shortlist = user("hello there"), size
		a, err := e.Answer(t.Context(), r)
		require.NoError(t, err)
		return a
	}
	whole := ask(e, -1)
	require.Greater(t, whole.Usage.Generated, 30)

	made.Gain, made.Most, made.List.Margin = 1, 1.5*float64(made.Size), -1e9
	slow := ask(e, 0)
	require.Equal(t, gallop.Listed{Why: "decoding is no faster with one on this machine"}, slow.Shortlist)
	require.Equal(t, whole.Tokens, slow.Tokens)

	made.Gain = 2
	fast := ask(e, 0)
	require.Empty(t, fast.Shortlist.Why)
	require.Equal(t, decoded(fast), fast.Shortlist.Rows)
	require.Zero(t, fast.Shortlist.Extended)

	made.List.Margin = 1e9 // all are in doubt
	left := ask(e, 0)
	require.Equal(t, "this text needs too many exact logits", left.Shortlist.Why)
	require.Equal(t, made.Size, left.Shortlist.Size, "it began with one")
	require.Less(t, left.Shortlist.Rows, left.Usage.Generated/2)
	require.Equal(t, whole.Tokens, left.Tokens)

	forced := ask(e, 1024)
	require.Empty(t, forced.Shortlist.Why, "what was asked for is kept to")
	require.Equal(t, decoded(forced), forced.Shortlist.Extended)
	require.Equal(t, whole.Tokens, forced.Tokens)

	made.List.Margin = -1e9
	o.LoRA = []gallop.Adapter{{Path: llamatest.OutputLoRA(t, spec)}}
	adapted := ask(engine(t, m, o), 0)
	require.Zero(t, adapted.Shortlist.Rows)
	require.Equal(t, "an adapter changes the hidden states that it was fitted to", adapted.Shortlist.Why)
	require.Equal(t, whole.Tokens, adapted.Tokens, "it adds nothing")
	o.LoRA[0].Path = m.Path
	_, err := gallop.New(m, &o)
	require.ErrorIs(t, err, gallop.ErrModel)
}
