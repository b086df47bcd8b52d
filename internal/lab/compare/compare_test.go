package compare

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

const layers = 5

func small(t *testing.T) *llama.Model {
	t.Helper()
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Layers = layers
	return llamatest.Open(t, llamatest.Write(t, spec))
}

func way(t *testing.T, m *llama.Model, name, mask string, prefill skip.Prefill, escalate float64) Way {
	t.Helper()
	parsed, err := skip.Parse(mask)
	require.NoError(t, err)
	e, err := gallop.New(m, &gallop.Options{Parallel: 1, Profile: gallop.NoProfile, NoCosts: true, Context: llama.ContextOptions{NCtx: 256, Threads: 1}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	s := gallop.Layers(parsed).Prefill(prefill).Escalate(escalate)
	return Way{Name: name, Engine: e, Request: gallop.Request{Skip: s, Sampling: &llama.Sampling{}, MaxTokens: 12, Forget: true}}
}

// examples are of every kind that there is.
func examples() []dataset.Example {
	return []dataset.Example{
		{Prompt: "one", Task: "bare", Where: "test:1"},
		{Prompt: "two", Answer: "2", Task: "labelled", Where: "test:2"},
		{Prompt: "Which?", Plain: true, Choices: []string{" this", " that"}, Right: 1, Task: "choice", Where: "test:3"},
		{Prompt: "and then?", Messages: []llama.Message{{Role: "user", Content: "first"}, {Role: "assistant", Content: "1"}, {Role: "user", Content: "and then?"}},
			Task: "chat", Where: "test:4"},
		{Prompt: "<script>alert(1)</script> & </p>", Task: "<b>task</b>", Where: "test:5"},
	}
}

func TestRun(t *testing.T) {
	m := small(t)
	ways := []Way{
		way(t, m, "nothing", "", skip.MaskedPrefill, 0),
		way(t, m, "masked", "1,3", skip.MaskedPrefill, 0),
		way(t, m, "always whole", "f1-3", skip.FullPrefill, 1), // no probability is that high
	}
	stages := map[string]int{}
	r, err := Run(t.Context(), m, ways, examples(), &Options{Rounds: 2, Progress: func(stage string, done, total int) {
		require.LessOrEqual(t, done, total)
		stages[stage] = total - done
	}})
	require.NoError(t, err)
	require.Equal(t, map[string]int{"answering": 0, "measuring agreement": 0}, stages, "both came to their end")

	require.Len(t, r.Ways, 4)
	require.Len(t, r.Prompts, 5)
	differ := 0
	for _, p := range r.Prompts {
		require.Len(t, p.Answers, 4)
		stock, nothing, masked, whole := p.Answers[0], p.Answers[1], p.Answers[2], p.Answers[3]
		require.True(t, stock.Skip.IsEmpty())
		require.Positive(t, stock.Tokens)
		require.InDelta(t, 1, stock.Cost, 1e-9)
		for _, a := range p.Answers {
			require.Equal(t, stock.PromptTokens, a.PromptTokens, "all are asked the same")
			require.Positive(t, a.FirstTokenMS)
			require.LessOrEqual(t, a.FirstTokenMS, a.TotalMS)
		}
		for _, same := range []Answer{nothing, whole} {
			require.Equal(t, stock.Text, same.Text)
			require.True(t, same.Same)
			require.InDelta(t, 1, *same.Agreement, 1e-9)
			require.InDelta(t, 0, *same.KL, 1e-9)
		}
		require.Equal(t, whole.Tokens-1, whole.Escalated, "stock's tokens each, but for the first, which comes from the prompt")
		require.Equal(t, float64(layers-2), masked.LayersUsed)
		require.InDelta(t, 1-2.0/layers, masked.Cost, 1e-9)
		require.Positive(t, *masked.KL)
		if !masked.Same {
			differ++
			require.Less(t, *masked.Agreement, 1.0, "answers part at a token that they do not agree on")
		}
	}
	require.Positive(t, differ)
	require.Nil(t, r.Prompts[0].Answers[0].Right)
	require.NotNil(t, r.Prompts[1].Answers[0].Right)
	require.Equal(t, "that", r.Prompts[2].Want)
	require.Len(t, r.Prompts[3].Earlier, 2)
	s := r.Ways[2].Summary
	require.InDelta(t, 1-float64(differ)/5, s.Same, 1e-9)
	require.NotNil(t, s.DecodeSpeedup.Median)
	require.Equal(t, "1,3", r.Ways[2].Skip)

	text, err := json.Marshal(r)
	require.NoError(t, err)
	var back Result
	require.NoError(t, json.Unmarshal(text, &back))
	require.Equal(t, *r, back)
}

// TestAgreementFollowsTheAnswers checks what is measured token by token against
// what is said: without escalation, an answer is stock's exactly if all its tokens agree.
func TestAgreementFollowsTheAnswers(t *testing.T) {
	llamatest.Library(t)
	path, err := demo.Path()
	require.NoError(t, err)
	m := llamatest.Open(t, path)
	var questions []dataset.Example
	for i := range 20 {
		questions = append(questions, dataset.Example{Prompt: fmt.Sprintf("What is %d + %d?", 3*i, 7+i)})
	}
	for _, prefill := range []skip.Prefill{skip.MaskedPrefill, skip.FullPrefill} {
		r, err := Run(t.Context(), m, []Way{way(t, m, "masked", "4,f6,f8", prefill, 0)}, questions, nil)
		require.NoError(t, err)
		same := 0
		for _, p := range r.Prompts {
			a := p.Answers[1]
			if a.Same {
				same++
			}
			require.Equal(t, a.Same, *a.Agreement > 1-1e-9, "%q against %q agree on %g", a.Text, p.Answers[0].Text, *a.Agreement)
		}
		require.NotZero(t, same, "the test sees both")
		require.NotEqual(t, len(questions), same, "the test sees both")
	}
}

// TestAgreementWithAShortlist: the list's logits and the preview's, at stock's answer.
func TestAgreementWithAShortlist(t *testing.T) {
	llamatest.Library(t)
	spec := randmodel.Small("llama")
	spec.Vocab = 1 << 14
	m := llamatest.Open(t, llamatest.Write(t, spec))
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	w := way(t, m, "v1024", "v1024", skip.MaskedPrefill, 0)
	require.NoError(t, w.Engine.LearnShortlist(t.Context()))
	for margin, inDoubt := range map[float32]bool{-1e9: false, 1e9: true} {
		w.Engine.Shortlist().List.Margin = margin
		r, err := Run(t.Context(), m, []Way{w}, examples(), nil)
		require.NoError(t, err)
		most := 0.0
		for _, p := range r.Prompts {
			a := p.Answers[1]
			require.Equal(t, "v1024", a.Skip.String())
			require.NotNil(t, a.KL)
			if inDoubt && a.Tokens > 1 {
				require.Greater(t, a.Cost, 1.0, "both are read")
			} else {
				require.Less(t, a.Cost, 1.0)
			}
			most = max(most, *a.KL)
			if inDoubt { // the whole matrix decides every token
				require.InDelta(t, 1, *a.Agreement, 1e-9)
			}
		}
		require.Equal(t, inDoubt, most < 1e-4)
	}
}

func TestShortAnswersHaveNoSpeed(t *testing.T) {
	m := small(t)
	w := way(t, m, "masked", "2", skip.MaskedPrefill, 0)
	w.Request.MaxTokens = 1
	r, err := Run(t.Context(), m, []Way{w}, examples()[:2], nil)
	require.NoError(t, err)
	for _, p := range r.Prompts {
		require.Nil(t, p.Answers[1].DecodeSpeedup)
		require.Nil(t, p.Answers[1].Agreement, "one token was chosen and none decoded")
	}
	_, err = json.Marshal(r)
	require.NoError(t, err)
	page, err := r.HTML()
	require.NoError(t, err)
	require.NotContains(t, string(page), "NaN")
	require.NotContains(t, string(page), "Inf")
}

func TestRunEnds(t *testing.T) {
	m := small(t)
	ways := []Way{way(t, m, "masked", "2", skip.MaskedPrefill, 0)}
	_, err := Run(t.Context(), m, nil, examples(), nil)
	require.ErrorIs(t, err, ErrNothing)
	_, err = Run(t.Context(), m, ways, nil, nil)
	require.ErrorIs(t, err, ErrNothing)

	_, err = Run(t.Context(), m, ways, []dataset.Example{{Prompt: "a", Where: "test:1"}, {Prompt: strings.Repeat("long ", 300), Where: "test:2"}}, nil)
	require.ErrorIs(t, err, gallop.ErrTooLong)
	require.ErrorContains(t, err, "test:2")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = Run(ctx, m, ways, examples(), nil)
	require.ErrorIs(t, err, context.Canceled)
	ctx, cancel = context.WithCancel(t.Context())
	_, err = Run(ctx, m, ways, examples(), &Options{Progress: func(string, int, int) { cancel() }})
	require.ErrorIs(t, err, context.Canceled)
}

func TestPagesEscapeWhatTheyShow(t *testing.T) {
	evil := `</style><script>alert(1)</script>"'><img src=x onerror=alert(1)>`
	answer := Answer{Text: evil, Finish: gallop.FinishStop, Tokens: 3, TotalMS: 1, FirstTokenMS: 1, LayersUsed: 2, Same: true, Route: &Choice{Task: evil, Reason: evil}}
	other := answer
	other.Text, other.Same = "an "+evil, false
	r := &Result{
		Settings: Settings{Model: evil, Description: evil, Layers: 2, Command: evil, Data: evil, Machine: evil, System: evil},
		Ways:     []Column{{Name: evil}, {Name: evil, Profile: evil}},
		Prompts: []Prompt{{Prompt: evil, Task: evil, Want: evil, Earlier: []llama.Message{{Role: evil, Content: evil}},
			Answers: []Answer{answer, other}}},
	}
	page, err := r.HTML()
	require.NoError(t, err)
	text := string(page)
	require.Contains(t, text, "&lt;script&gt;alert(1)&lt;/script&gt;")
	require.NotContains(t, text, "<script")
	require.NotContains(t, text, "<img")
	require.Equal(t, 1, strings.Count(text, "</style>"))
	require.NotContains(t, text, "http", "nothing from the network")
}

func TestDifferences(t *testing.T) {
	for name, c := range map[string]struct {
		texts []string // stock's first
		want  []string // what differs in brackets
	}{
		"the same":      {[]string{"one two", "one two"}, []string{"one two", "one two"}},
		"a word":        {[]string{"the red fox", "the blue fox"}, []string{"the [red] fox", "the [blue] fox"}},
		"two words":     {[]string{"a b c d", "a x y d"}, []string{"a [b c] d", "a [x y] d"}},
		"more":          {[]string{"2, 7", "2, 7, 9"}, []string{"2, 7", "2, 7[, 9]"}},
		"less":          {[]string{"2, 7, 9", ""}, []string{"[2, 7, 9]", ""}},
		"two others":    {[]string{"a b c", "x b c", "a b z"}, []string{"[a] b [c]", "[x] b c", "a b [z]"}},
		"nothing":       {[]string{"", ""}, []string{"", ""}},
		"other letters": {[]string{"größe 你好", "größer 你好"}, []string{"[größe] 你好", "[größer] 你好"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for i, parts := range differences(c.texts[0], c.texts[1:]) {
				var marked, plain strings.Builder
				for _, p := range parts {
					plain.WriteString(p.Text)
					if p.Differs {
						marked.WriteString("[" + p.Text + "]")
					} else {
						marked.WriteString(p.Text)
					}
				}
				require.Equal(t, c.texts[i], plain.String(), "nothing is lost")
				got = append(got, marked.String())
			}
			require.Equal(t, c.want, got)
		})
	}
}
