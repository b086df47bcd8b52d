package gallop_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// maxDraft is the longest draft.
const maxDraft = 16

// fixed drafts n tokens each time under one mask.
func fixed(mask skip.Mask, n int) *gallop.DraftOptions {
	return &gallop.DraftOptions{Masks: []skip.Mask{mask}, MaxDraft: n, Fixed: true, NoLookup: true}
}

// lookedUp drafts n tokens each time from the text.
func lookedUp(n int) *gallop.DraftOptions {
	return &gallop.DraftOptions{NoMasks: true, Fixed: true, MaxDraft: n}
}

// lossless is a greedy request for so many tokens at most.
func lossless(tokens int, d *gallop.DraftOptions) gallop.Request {
	r := greedy(tokens)
	r.Lossless, r.Drafts, r.Skip = true, d, gallop.Nothing()
	return r
}

// comparison counts the tokens of lossless answers, which must be the plain ones.
type comparison struct{ tokens int }

func (c *comparison) add(t *testing.T, plain, lossless gallop.Answer, what string) {
	t.Helper()
	require.Equal(t, plain.Tokens, lossless.Tokens, what)
	require.Zero(t, lossless.Drafts.Rounding, "a batch gives the very logits of single tokens: "+what)
	c.tokens += len(plain.Tokens)
}

func (c *comparison) check(t *testing.T) {
	t.Helper()
	t.Logf("%d tokens compared", c.tokens)
	require.Positive(t, c.tokens)
}

// TestLosslessIsThePlainAnswer goes through architectures, lengths of drafts,
// masks and ways to split batches.
func TestLosslessIsThePlainAnswer(t *testing.T) {
	llamatest.Library(t)
	masks := []skip.Mask{
		skip.Layers(2), skip.Layers(1, 2, 3, 4, 5, 6), skip.Mask{}.With(3, skip.Attention).With(4, skip.FeedForward), skip.Layers(0, 7),
	}
	var all comparison
	for _, arch := range randmodel.SmallNames() {
		t.Run(arch, func(t *testing.T) {
			m := llamatest.Small(t, arch)
			o := options(512)
			want := ask(t, session(t, m, o, greedy(24)), "one")
			step := 3
			if long() {
				step = 1
			}
			for n := 1; n <= maxDraft; n += step {
				o.Context.NUBatch = []int{0, 1, 5}[n%3]
				mask := masks[n%len(masks)]
				got := ask(t, session(t, m, o, lossless(24, fixed(mask, n))), "one")
				if o.Context.NUBatch == 0 { // else there is no room for one
					require.Positive(t, got.Drafts.Rounds)
				}
				all.add(t, want, got, fmt.Sprintf("drafts of %d under %s", n, mask))
			}
			o.Context.NUBatch = 0
			e := engine(t, m, o)
			all.add(t, want, ask(t, e.NewSession(lossless(24, lookedUp(5))), "one"), "looked up")
			s := e.NewSession(lossless(24, &gallop.DraftOptions{Masks: masks[:2]}))
			all.add(t, want, ask(t, s, "one"), "as it pays")
			s.Reset()
			s.Request().Skip = gallop.Layers(masks[3])
			got := ask(t, s, "one")
			all.add(t, want, got, "under a mask of the request's own")
			require.True(t, got.Plan.Mask.IsEmpty(), "the whole model answers")
		})
	}
	all.check(t)
}

// demoPrompts opens the demo model and reads its held-out prompts.
func demoPrompts(t *testing.T) (*llama.Model, []dataset.Example) {
	t.Helper()
	examples, _, err := dataset.Read([]string{"demo/test.jsonl"}, nil)
	require.NoError(t, err)
	return demoModel(t), examples
}

// TestLosslessOnTheDemoModel asks held-out prompts in sessions of several turns.
func TestLosslessOnTheDemoModel(t *testing.T) {
	m, examples := demoPrompts(t)
	every := 40 // 24 of 960 prompts
	if long() {
		every = 4
	}
	o := options(256)
	forgetting := func(r gallop.Request) gallop.Request {
		r.Forget = true
		return r
	}
	plain := session(t, m, o, forgetting(greedy(24)))
	sessions := map[string]*gallop.Session{}
	for name, d := range map[string]*gallop.DraftOptions{
		"drafts of 4":  fixed(skip.Layers(5, 8), 4),
		"drafts of 16": fixed(skip.Mask{}.With(3, skip.FeedForward).With(7, skip.FeedForward), 16),
		"as it pays":   {Masks: []skip.Mask{skip.Layers(4, 5)}},
		"looked up":    lookedUp(0),
	} {
		sessions[name] = session(t, m, o, forgetting(lossless(24, d)))
	}
	o.Profile = ""
	r := forgetting(lossless(24, nil))
	r.Skip = gallop.Routed()
	sessions["the profile's drafts"] = session(t, m, o, r)
	var all comparison
	accepted, drafted := 0, 0
	for i := 0; i < len(examples); i += every {
		want := ask(t, plain, examples[i].Prompt)
		for name, s := range sessions {
			got := ask(t, s, examples[i].Prompt)
			all.add(t, want, got, name+": "+examples[i].Prompt)
			accepted, drafted = accepted+got.Drafts.Accepted, drafted+got.Drafts.Drafted
			if i/every%3 == 2 { // conversations of three turns
				s.Reset()
			}
		}
		if i/every%3 == 2 {
			plain.Reset()
		}
	}
	all.check(t)
	require.Greater(t, float64(accepted), 0.3*float64(drafted), "a draft of a few layers less is mostly right")
}

// TestWhatIsDraftedUnder follows the request: its own masks take the place of the profile's.
func TestWhatIsDraftedUnder(t *testing.T) {
	m := demoModel(t)
	o := options(512)
	o.Profile = ""
	e := engine(t, m, o)
	mask := skip.Layers(4, 5)
	for name, c := range map[string]struct {
		drafts *gallop.DraftOptions
		skip   gallop.Skip
		masks  []skip.Mask // nil = none; empty = some
		looked bool
	}{
		"its masks":           {fixed(mask, 4), gallop.Nothing(), []skip.Mask{mask}, false},
		"those beside routed": {&gallop.DraftOptions{Masks: []skip.Mask{mask}, NoLookup: true, MaxDraft: 4, Fixed: true}, gallop.Layers(skip.Layers(6)), []skip.Mask{skip.Layers(6)}, false},
		"the profile's":       {&gallop.DraftOptions{NoLookup: true, MaxDraft: 4, Fixed: true}, gallop.Routed(), []skip.Mask{}, false},
		"no masks":            {lookedUp(4), gallop.Layers(mask), nil, true},
		"no masks, routed":    {lookedUp(4), gallop.Routed(), nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := lossless(30, c.drafts)
			r.Skip, r.Messages = c.skip, []gallop.Message{ // asked twice, it says the same twice
				{Role: "user", Content: "Who are you?"}, {Role: "assistant", Content: "I am Gallop, a small language model that runs on your own computer."},
				{Role: "user", Content: "Who are you?"},
			}
			a, err := e.Answer(t.Context(), r)
			require.NoError(t, err)
			require.Positive(t, a.Drafts.Drafted, a.Text)
			require.Equal(t, c.looked, a.Drafts.LookedUp > 0)
			require.Equal(t, c.masks == nil, len(a.Drafts.Masks) == 0)
			for _, mask := range c.masks {
				require.Positive(t, a.Drafts.Masks[mask])
				require.Len(t, a.Drafts.Masks, 1)
			}
		})
	}
}

// A draft by the whole model is accepted to the last token, as it is drawn from
// the very distribution that it is judged by.
func TestDraftOfTheWholeModelIsAccepted(t *testing.T) {
	m := small(t)
	for _, sampling := range []llama.Sampling{{}, {Temp: 0.8, TopK: 20, Seed: 5}, {Temp: 1.5, RepeatPenalty: 1.3, Seed: 6}} {
		r := lossless(42, fixed(skip.Mask{}, 4))
		r.Sampling = &sampling
		d := ask(t, session(t, m, options(512), r), "one").Drafts
		// The first token comes from the prompt, and one is decoded alone, which batches
		// are compared with; eight rounds of 4 + 1 follow.
		require.Equal(t, 8, d.Rounds)
		require.Equal(t, 8, d.Lengths[4], "%v", d.Lengths)
		require.InDelta(t, 1, d.Acceptance(), 0)
		require.Zero(t, d.Rounding)
		require.InDelta(t, 5, d.TokensPerRound(), 0)
	}
}

func TestLosslessEndsWhereThePlainAnswerDoes(t *testing.T) {
	m := demoModel(t)
	e := engine(t, m, options(256))
	for _, stop := range [][]string{nil, {"own"}, {" small lang", "never said"}, {"I"}, {"computer.", "zzz"}} {
		r := greedy(24)
		r.Stop = stop
		plain := e.NewSession(r)
		want := ask(t, plain, "Who are you?")
		require.Equal(t, gallop.FinishStop, want.Finish)
		for _, s := range stop {
			require.NotContains(t, want.Text, s)
		}
		if stop == nil {
			require.Empty(t, want.Stopped)
		} else {
			require.Equal(t, stop[0], want.Stopped)
		}
		require.True(t, strings.HasPrefix("I am Gallop, a small language model that runs on your own computer.", want.Text))
		then := ask(t, plain, "What is 12 + 7?")
		for _, n := range []int{1, 3, 8, 16} {
			r := lossless(24, fixed(skip.Layers(5), n))
			r.Stop = stop
			s := e.NewSession(r)
			got := ask(t, s, "Who are you?")
			require.Equal(t, want.Text, got.Text)
			require.Equal(t, want.Tokens, got.Tokens)
			require.Equal(t, want.Finish, got.Finish)
			require.Equal(t, want.Stopped, got.Stopped)
			require.Equal(t, then.Text, ask(t, s, "What is 12 + 7?").Text, "the conversation goes on from there")
		}
	}
	for tokens := 1; tokens < 8; tokens++ { // a bound inside a draft
		want := ask(t, e.NewSession(greedy(tokens)), "Who are you?")
		got := ask(t, e.NewSession(lossless(tokens, fixed(skip.Layers(5), 5))), "Who are you?")
		require.Equal(t, gallop.FinishLength, got.Finish)
		require.Equal(t, want.Tokens, got.Tokens)
	}
}

// TestLosslessKeepsTheCacheRight drafts and verifies thousands of times; at the
// end of each answer what the KV cache holds is what decoding it anew gives.
func TestLosslessKeepsTheCacheRight(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 4))
	rounds := 600
	if long() {
		rounds = 10_000
	}
	o := options(512)
	// Keys and values rounded to 16 bits, as flash attention does too, would hide small faults.
	o.Context.KType, o.Context.VType, o.Context.Flash = llama.CacheF32, llama.CacheF32, llama.FlashOff
	e := engine(t, m, o)
	fresh := llamatest.Context(t, m, &o.Context)
	r := lossless(300, fixed(skip.Layers(2), 3))
	r.Sampling = &llama.Sampling{Temp: 1, Seed: 7}
	for done := 0; done < rounds; {
		r.Messages = user(fmt.Sprintf("tell me %d things", done))
		a, err := e.Answer(t.Context(), r)
		require.NoError(t, err)
		require.Positive(t, a.Drafts.Rounds)
		done += a.Drafts.Rounds
		all := append(promptOf(t, m, r.Messages...), a.Tokens...)
		var first, last int
		require.NoError(t, e.Do(func(c *llama.Context) { first, last = c.Positions(0) }))
		require.Zero(t, first)
		require.Contains(t, []int{len(all) - 2, len(all) - 1}, last, "the last token is decoded where it was drafted")
		cached := all[:last+1]
		next := llamatest.Batch(t, []llama.Token{5}, len(cached))
		var got []float32
		require.NoError(t, e.Do(func(c *llama.Context) {
			// One more token after what is cached: its logits tell of every position.
			if err = c.Decode(next, skip.Mask{}); err != nil {
				return
			}
			var logits []float32
			logits, err = c.Logits(0)
			got = slices.Clone(logits)
			err = errors.Join(err, c.Remove(0, len(cached), -1))
		}))
		require.NoError(t, err)
		fresh.Clear()
		for i, token := range cached {
			require.NoError(t, fresh.Decode(llamatest.Batch(t, []llama.Token{token}, i), skip.Mask{}))
		}
		require.NoError(t, fresh.Decode(next, skip.Mask{}))
		want, err := fresh.Logits(0)
		require.NoError(t, err)
		const rounding = 1e-4 // of 32-bit sums in another order; seen: 1e-6
		require.InDeltaSlice(t, want, got, rounding)
	}
}

func TestLosslessRefuses(t *testing.T) {
	m := small(t)
	e := engine(t, m, options(256))
	for name, c := range map[string]struct {
		drafts *gallop.DraftOptions
		skip   gallop.Skip
		want   error
	}{
		"17 tokens":          {&gallop.DraftOptions{MaxDraft: 17}, gallop.Skip{}, gallop.ErrLossless},
		"-1 tokens":          {&gallop.DraftOptions{MaxDraft: -1}, gallop.Skip{}, gallop.ErrLossless},
		"the whole model":    {&gallop.DraftOptions{Masks: []skip.Mask{{}}}, gallop.Skip{}, gallop.ErrLossless},
		"too many layers":    {&gallop.DraftOptions{Masks: []skip.Mask{skip.Layers(4)}}, gallop.Skip{}, gallop.ErrSkip},
		"with escalation":    {nil, gallop.Layers(skip.Mask{}.With(1, skip.FeedForward)).Escalate(0.5), gallop.ErrRequest},
		"no mask of its own": {nil, gallop.Layers(skip.Layers(9)), gallop.ErrSkip},
	} {
		r := lossless(4, c.drafts)
		r.Skip, r.Messages = c.skip, user("one")
		_, err := e.Answer(t.Context(), r)
		require.ErrorIs(t, err, c.want, name)
	}
}

// TestLosslessSequences compares answers of three tokens, drawn by drafts and
// directly: what a token is followed by must be right too.
func TestLosslessSequences(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 4))
	runs := 600
	if long() {
		runs = 10_000
	}
	counts := map[string][2]int{}
	for way := range 2 {
		e := engine(t, m, options(256))
		r := gallop.Request{Prompt: "say", MaxTokens: 3}
		if way == 1 {
			r.Lossless, r.Drafts = true, fixed(skip.Layers(1, 2), 2)
		}
		for i := range runs {
			r.Sampling = &llama.Sampling{Temp: 1, Grammar: `root ::= [abc] [abc] [abc] [abc]`, RepeatPenalty: 1.3, Seed: uint32(way*runs + i)}
			a, err := e.Answer(t.Context(), r)
			require.NoError(t, err)
			n := counts[fmt.Sprint(a.Tokens)]
			n[way]++
			counts[fmt.Sprint(a.Tokens)] = n
		}
	}
	// Two samples of the same size: Σ (a-b)²/(a+b) over classes that are not too rare.
	chi, classes := 0.0, 0
	for _, n := range counts {
		if sum := float64(n[0] + n[1]); sum >= 10 {
			chi += math.Pow(float64(n[0]-n[1]), 2) / sum
			classes++
		}
	}
	require.Greater(t, classes, 10)
	freedom := float64(classes - 1)
	require.Less(t, chi, freedom+5*math.Sqrt(2*freedom), "%d classes", classes)
}

// TestCostsAreKept from engine to engine, beside what was kept before; a damaged file is as
// good as none.
func TestCostsAreKept(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	m := small(t)
	o := options(512)
	o.NoCosts = false
	mask := skip.Mask{}.With(1, skip.FeedForward)
	first, err := gallop.New(m, &o)
	require.NoError(t, err)
	path := first.CostsPath()
	require.NotEmpty(t, path)
	r := lossless(200, fixed(skip.Layers(1), 3)) // batches of one size, often enough
	r.Messages = user("one")
	_, err = first.Answer(t.Context(), r)
	require.NoError(t, err)
	require.NoError(t, first.Close())
	require.NoError(t, first.Close(), "twice does nothing")
	batches, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(batches), `"compared":`)

	second, err := gallop.New(m, &o)
	require.NoError(t, err)
	measure(second.Weigher(), mask)
	require.NoError(t, second.Close())
	both, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(both), `"masks":{"f1":`)
	require.True(t, strings.HasPrefix(string(both), strings.TrimSuffix(strings.TrimSpace(string(batches)), "}")), "what was known of batches stays")

	third, err := gallop.New(m, &o)
	require.NoError(t, err)
	require.Contains(t, third.Weigher().Keep(), "f1")
	require.NoError(t, third.Close())
	unchanged, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(both), string(unchanged))

	require.NoError(t, os.WriteFile(path, both[:len(both)/2], 0o600))
	fourth, err := gallop.New(m, &o)
	require.NoError(t, err)
	require.Empty(t, fourth.Weigher().Keep())
	_, err = fourth.Answer(t.Context(), r)
	require.NoError(t, err)
	require.NoError(t, fourth.Close())

	require.NoError(t, os.RemoveAll(filepath.Dir(path)))
	o.NoCosts = true
	fifth, err := gallop.New(m, &o)
	require.NoError(t, err)
	_, err = fifth.Answer(t.Context(), r)
	require.NoError(t, err)
	require.NoError(t, fifth.Close())
	require.NoFileExists(t, path)
}
