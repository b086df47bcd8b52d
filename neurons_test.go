package gallop_test

import (
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// TestNeurons learns the order of a small model's neurons once for all that is tested with it.
func TestNeurons(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	o := options(1024)
	o.Cache = t.TempDir()
	e := engine(t, m, o)
	require.Equal(t, gallop.NeuronInfo{}, e.Neurons())
	shares := []float64{}
	require.NoError(t, e.LearnNeurons(t.Context(), func(share float64) { shares = append(shares, share) }))
	require.IsNonDecreasing(t, shares)
	require.Equal(t, gallop.NeuronInfo{Learnt: true}, e.Neurons())
	require.NoError(t, e.LearnNeurons(t.Context(), func(float64) { t.Error("it is learnt already") }))
	for name, test := range map[string]func(*testing.T, *llama.Model, gallop.Options){
		"answers": testAnswersWithoutNeurons, "conversation": testNeuronsOfAConversation,
		"many requests": testNeuronsOfManyRequests, "refused": testNeuronsRefused,
	} {
		t.Run(name, func(t *testing.T) { test(t, m, o) })
	}
}

func without(t *testing.T, mask string) gallop.Skip {
	t.Helper()
	m, err := skip.Parse(mask)
	require.NoError(t, err)
	return gallop.Layers(m)
}

func testAnswersWithoutNeurons(t *testing.T, m *llama.Model, o gallop.Options) {
	e := engine(t, m, o)
	ask := func(prompt, mask string) gallop.Answer {
		t.Helper()
		r := greedy(20)
		r.Messages, r.NoCache = user(prompt), true
		if mask != "" {
			r.Skip = without(t, mask)
		}
		a, err := e.Answer(t.Context(), r)
		require.NoError(t, err)
		return a
	}
	whole := ask("hello there", "")
	require.Zero(t, whole.Spared)
	a := ask("hello there", "n50%")
	require.Equal(t, "n50%", a.Plan.Mask.String())
	require.Equal(t, whole.Tokens[0], a.Tokens[0], "the first token is the prompt's own")
	require.NotEqual(t, whole.Tokens, a.Tokens)
	require.Equal(t, a.Usage.Prompt, a.Spared.Heard)
	require.Len(t, a.Spared.Kept, 8)
	for _, kept := range a.Spared.Kept {
		require.Len(t, kept, 64)
	}
	require.EqualValues(t, 8*64*3*64*4, a.Spared.Size)
	require.Equal(t, a.Spared.Size, a.Spared.Copied)
	require.InDelta(t, 0.5, a.Spared.Share, 0)
	require.Less(t, a.WeightsRead, whole.WeightsRead)

	again := ask("hello there", "n50%")
	require.Equal(t, a.Tokens, again.Tokens)
	require.Zero(t, again.Spared.Copied, "the same neurons are there already")
	other := ask("an entirely different text, with more in it", "n50%")
	require.Less(t, other.Spared.Copied, other.Spared.Size+1)
	back := ask("hello there", "n50%")
	require.Equal(t, a.Tokens, back.Tokens)
	require.Equal(t, a.Spared.Kept, back.Spared.Kept)
	require.Equal(t, whole.Tokens, ask("hello there", "").Tokens)

	// Beside halves and layers; the prompt under the halves' mask or whole.
	for _, mask := range []string{"f2,n50%", "3,a5,n25%"} {
		got := ask("hello there", mask)
		require.Equal(t, mask, got.Plan.Mask.String())
		require.Equal(t, got.Tokens, ask("hello there", mask).Tokens)
	}
	r := greedy(20)
	r.Messages, r.Skip = user("hello there"), without(t, "f2,n50%").Prefill(skip.FullPrefill).Escalate(1)
	escalated, err := e.Answer(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, whole.Tokens, escalated.Tokens, "every token was decided by the whole model")
	require.Positive(t, escalated.Escalated)
}

// testNeuronsOfAConversation: what earlier turns needed counts in later ones.
func testNeuronsOfAConversation(t *testing.T, m *llama.Model, o gallop.Options) {
	e := engine(t, m, o)
	r := greedy(8)
	r.Skip = without(t, "n40%")
	s := e.NewSession(r)
	first := ask(t, s, "hello there")
	require.Equal(t, first.Usage.Prompt, first.Spared.Heard)
	second := ask(t, s, "and then?")
	read := second.Usage.Prompt - second.Usage.Cached
	require.Positive(t, second.Usage.Cached)
	require.Equal(t, read+first.Usage.Prompt/2, second.Spared.Heard)
}

// testNeuronsOfManyRequests: each answer has neurons of its own, and waits where there is no memory for
// another choice.
func testNeuronsOfManyRequests(t *testing.T, m *llama.Model, o gallop.Options) {
	const size = 8 * 64 * 3 * 64 * 4 // bytes of a choice of half of the neurons
	for _, choices := range []uint64{0, 1, 2} {
		o.Parallel, o.Isolate, o.NeuronsMemory = 4, true, choices*size
		e := engine(t, m, o)
		prompts := []string{"hello there", "a list of fruit", "why is the sky blue, and grass green?", "count to ten", "x", "another one"}
		request := func(i int) gallop.Request {
			r := greedy(12)
			r.Messages, r.NoCache = user(prompts[i]), true
			if r.Skip = without(t, "n50%"); i%3 == 2 {
				r.Skip = gallop.Nothing()
			}
			return r
		}
		var alone []gallop.Answer
		for i := range prompts {
			a, err := e.Answer(t.Context(), request(i))
			require.NoError(t, err)
			alone = append(alone, a)
		}
		together := make([]gallop.Answer, len(prompts))
		errs := make([]error, len(prompts))
		var running sync.WaitGroup
		for i := range prompts {
			running.Go(func() { together[i], errs[i] = e.Answer(t.Context(), request(i)) })
		}
		running.Wait()
		for i := range prompts {
			require.NoError(t, errs[i])
			require.Equal(t, alone[i].Tokens, together[i].Tokens, prompts[i])
			require.Equal(t, alone[i].Spared.Kept, together[i].Spared.Kept)
		}
	}
}

func testNeuronsRefused(t *testing.T, m *llama.Model, o gallop.Options) {
	o.NeuronsMemory = 8 * 64 * 3 * 64 * 4
	e := engine(t, m, o)
	ask := func(e *gallop.Engine, mask string, change func(*gallop.Request)) error {
		r := greedy(4)
		r.Messages, r.Skip = user("hello"), without(t, mask)
		if change != nil {
			change(&r)
		}
		_, err := e.Answer(t.Context(), r)
		return err
	}
	require.NoError(t, ask(e, "n50%", nil))
	err := ask(e, "n25%", nil) // fewer are left out, so more are copied
	require.ErrorIs(t, err, gallop.ErrUnskippable)
	require.ErrorIs(t, err, gallop.ErrNeurons)
	require.ErrorContains(t, err, "--neurons-memory")
	require.ErrorIs(t, ask(e, "n50%", func(r *gallop.Request) { r.Lossless = true }), gallop.ErrLossless)
	require.NoError(t, ask(e, "n75%", nil), "the choice of another share makes room")
	require.NoError(t, ask(e, "n50%", nil))

	o.Cache = t.TempDir()
	fresh := engine(t, llamatest.Small(t, "llama"), o)
	require.ErrorContains(t, ask(fresh, "n50%", nil), "was not learnt yet")
	o.LoRA = []gallop.Adapter{{Path: llamatest.OutputLoRA(t, randmodel.Small("llama"))}}
	adapted := engine(t, llamatest.Small(t, "llama"), o)
	require.ErrorContains(t, ask(adapted, "n50%", nil), "an adapter changes the feed-forwards")
	o.LoRA = nil
	moe := engine(t, llamatest.Small(t, "llama-moe"), o)
	require.Contains(t, moe.Neurons().Why, "mixtures of experts")
	require.ErrorIs(t, moe.LearnNeurons(t.Context(), nil), llama.ErrNeurons)
	require.ErrorContains(t, ask(moe, "n50%", nil), "mixtures of experts")
	files, err := filepath.Glob(filepath.Join(o.Cache, "neurons", "*"))
	require.NoError(t, err)
	require.Empty(t, files)
}
