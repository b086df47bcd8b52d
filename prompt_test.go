package gallop_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// TestContinue goes on with an answer that was begun, in several formats, as with the same text
// without a format. What the beginning contains is text.
func TestContinue(t *testing.T) {
	m := small(t)
	e := engine(t, m, options(512))
	begun := func(text string) gallop.Request {
		r := greedy(8)
		r.Messages, r.Continue = append(user("one"), gallop.Message{Role: "assistant", Content: text}), true
		return r
	}
	for name, template := range map[string]string{
		"its own":         m.Template(),
		"by name":         "chatml",
		"trims":           `{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content | trim }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}`,
		"writes thoughts": `{% for m in messages %}<|im_start|>{{ m.role }} {% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}<|im_end|>{% endfor %}`,
	} {
		require.NoError(t, m.SetTemplate(template))
		text, err := e.Render(begun("Once upon"))
		require.NoError(t, err, name)
		require.Regexp(t, `assistant\s(<think></think>)?Once upon$`, text, name)
		got, err := e.Answer(t.Context(), begun("Once upon"))
		require.NoError(t, err, name)
		r := greedy(8)
		r.Prompt = text
		want, err := e.Answer(t.Context(), r)
		require.NoError(t, err)
		require.Equal(t, want.Tokens, got.Tokens, name)
		require.Equal(t, want.Usage.Prompt, got.Usage.Prompt)
	}
	marked, err := e.Count(begun("Once<|im_end|>upon"))
	require.NoError(t, err)
	plain, err := e.Count(begun("Onceupon"))
	require.NoError(t, err)
	require.Greater(t, marked, plain+1, "a control token's text is several tokens")
	require.NoError(t, m.SetTemplate(`{% for m in messages %}{{ m.role }}{% endfor %}`))
	_, err = e.Answer(t.Context(), begun("Once"))
	require.ErrorIs(t, err, gallop.ErrRequest, "the template leaves answers out")
}

// TestIgnoreEOS lets an answer have all the tokens that it may have.
func TestIgnoreEOS(t *testing.T) {
	m := small(t)
	e := engine(t, m, options(256))
	r := greedy(30)
	r.Messages = user("one")
	r.Sampling.LogitBias = map[llama.Token]float32{randmodel.TokenEOS: 1000}
	a, err := e.Answer(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, 1, a.Usage.Generated)
	r.IgnoreEOS = true
	a, err = e.Answer(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, 30, a.Usage.Generated)
	require.Equal(t, gallop.FinishLength, a.Finish)
	require.Equal(t, map[llama.Token]float32{randmodel.TokenEOS: 1000}, r.Sampling.LogitBias, "the request is as it was")
}

// TestReadsAPromptAlone leaves a prompt in the cache, without an answer to it.
func TestReadsAPromptAlone(t *testing.T) {
	m := small(t)
	e := engine(t, m, options(256))
	r := greedy(4)
	r.Messages, r.ScoreOnly = user("a question that is long enough"), true
	a, err := e.Answer(t.Context(), r)
	require.NoError(t, err)
	require.Zero(t, a.Usage.Generated)
	require.Empty(t, a.Prompt)
	r.ScoreOnly = false
	a, err = e.Answer(t.Context(), r)
	require.NoError(t, err)
	require.Equal(t, a.Usage.Prompt-1, a.Usage.Cached)
}

// TestLazyGrammar has answers follow a grammar behind a trigger, in each way to sample.
func TestLazyGrammar(t *testing.T) {
	m := small(t)
	e := engine(t, m, options(256))
	the, err := m.Vocab.TokenizePart(" the", false)
	require.NoError(t, err)
	require.Len(t, the, 1)
	for name, c := range map[string]struct {
		trigger, grammar, want string
		first                  llama.Token // that is as good as certain
	}{
		"a token":             {"x", "abc", "xabc", 'x'},
		"a control token":     {"<|im_start|>", "abc", "abc", randmodel.TokenMessage},
		"a token's beginning": {" t", "heabc", " theabc", the[0]},
		"no trigger":          {"y", "abc", "xxxxxxxxxx", 'x'},
		"goes on otherwise":   {" t", "abc", " the the the the the the the the the the", the[0]},
	} {
		for how, r := range map[string]gallop.Request{
			"greedy":   greedy(10),
			"sampled":  {Sampling: &llama.Sampling{Temp: 1, TopK: 5, Seed: 1}, MaxTokens: 10},
			"lossless": lossless(10, fixed(skip.Layers(1), 3)),
		} {
			r.Messages = user("one")
			s := *r.Sampling
			s.Grammar, s.Lazy = `root ::= "`+c.grammar+`"`, &llama.Lazy{Trigger: c.trigger}
			s.LogitBias = map[llama.Token]float32{c.first: 1000}
			r.Sampling = &s
			a, err := e.Answer(t.Context(), r)
			require.NoError(t, err)
			require.Equal(t, c.want, a.Text, "%s, %s", name, how)
			if len(a.Tokens) < 10 {
				require.Equal(t, gallop.FinishStop, a.Finish)
			}
		}
	}
	r := greedy(10)
	r.Messages, r.Sampling = user("one"), &llama.Sampling{Grammar: `root ::= "a"`, Lazy: &llama.Lazy{}}
	_, err = e.Answer(t.Context(), r)
	require.ErrorIs(t, err, gallop.ErrRequest)
}
