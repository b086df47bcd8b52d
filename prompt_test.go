package gallop_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
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
