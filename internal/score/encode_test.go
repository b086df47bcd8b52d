package score_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/llama"
)

func TestEncode(t *testing.T) {
	llamatest.Library(t)
	path, err := demo.Path()
	require.NoError(t, err)
	m := llamatest.Open(t, path)
	cases, err := score.Encode(m, []dataset.Example{
		{Prompt: "Who are you?", Answer: "Gallop.", Task: "about", Where: "a:1"},
		{Messages: []llama.Message{{Role: "user", Content: "Hi"}, {Role: "assistant", Content: "Hello"}, {Role: "user", Content: "Who are you?"}}, Prompt: "Who are you?", Where: "a:2"},
		{Prompt: "Water is", Choices: []string{" wet", " dry"}, Right: 1, Plain: true, Where: "a:3"},
		{Prompt: "Gallop skips layers.", Text: true, Where: "a:4"},
	})
	require.NoError(t, err)
	require.Equal(t, "<|user|>\nWho are you?<|end|>\n<|assistant|>\n", m.Vocab.Text(cases[0].Prompt, true))
	require.Equal(t, "Gallop.<|end|>", m.Vocab.Text(cases[0].Answers[0], true), "the end is part of a free answer")
	require.Contains(t, m.Vocab.Text(cases[1].Prompt, true), "Hello<|end|>")
	require.Empty(t, cases[1].Answers)
	require.Equal(t, "Water is", m.Vocab.Text(cases[2].Prompt, true))
	require.Equal(t, " dry", m.Vocab.Text(cases[2].Answers[1], true), "choices have no end")
	require.Equal(t, []int{3, 3}, cases[2].AnswerBytes, "without the space in front")
	require.Equal(t, 1, cases[2].Right)
	require.True(t, cases[3].Text)
	require.Len(t, cases[3].Prompt, 1)
	require.Equal(t, "Gallop skips layers.", m.Vocab.Text(append(cases[3].Prompt, cases[3].Answers[0]...), false), "no template, no end")

	_, err = score.Encode(m, []dataset.Example{{Prompt: "x", Answer: strings.Repeat("word ", 400), Where: "long.jsonl:7"}})
	require.ErrorIs(t, err, score.ErrTooLong)
	require.ErrorContains(t, err, "long.jsonl:7")
	_, err = score.Encode(m, []dataset.Example{{Prompt: strings.Repeat("word ", 400), Text: true, Where: "long.jsonl:8"}})
	require.ErrorIs(t, err, score.ErrTooLong)
	require.ErrorContains(t, err, "long.jsonl:8")
}

// TestEncodeForABaseModel has what is asked of a model without a template: all of
// it is text that goes on.
func TestEncodeForABaseModel(t *testing.T) {
	llamatest.Library(t)
	path, err := demo.Path()
	require.NoError(t, err)
	m := llamatest.Open(t, llamatest.Rewrite(t, path, func(meta *gguf.Metadata) { meta.Delete("tokenizer.chat_template") }))
	cases, err := score.Encode(m, []dataset.Example{
		{Prompt: "Water is", Answer: "wet", Where: "a:1"},
		{Prompt: "Water is", Choices: []string{"wet", "dry"}, Where: "a:2"},
		{Prompt: "Water is", Answer: " wet", Plain: true, Where: "a:3"},
	})
	require.NoError(t, err)
	for _, c := range cases {
		require.Equal(t, "Water is", m.Vocab.Text(c.Prompt, true))
		require.Equal(t, " wet", m.Vocab.Text(c.Answers[0], true), "no end of a turn, and a space in front")
		require.Equal(t, cases[2].Prompt, c.Prompt)
		require.Equal(t, cases[2].Answers[0], c.Answers[0])
		require.Equal(t, 3, c.AnswerBytes[0])
	}

	require.NoError(t, m.SetTemplate("chatml"))
	cases, err = score.Encode(m, []dataset.Example{{Prompt: "Water is", Answer: "wet", Where: "a:1"}})
	require.NoError(t, err)
	require.Contains(t, m.Vocab.Text(cases[0].Prompt, true), "im_start")
}
