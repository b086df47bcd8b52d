package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
)

// TestBaseModel has a model without a template: it continues the text, which is
// said once.
func TestBaseModel(t *testing.T) {
	llamatest.Library(t)
	path, err := demo.Path()
	require.NoError(t, err)
	base := llamatest.Rewrite(t, path, func(meta *gguf.Metadata) { meta.Delete("tokenizer.chat_template") })
	const note = "has no chat template"

	// With the demo model's own format as the text, its answer goes on.
	const asked = "<|user|>\nWho are you?<|end|>\n<|assistant|>\n"
	code, out, notes := gallop(t, "", "run", base, "-t", "1", "--temp", "0", asked)
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, out, "I am Gallop")
	require.Equal(t, 1, strings.Count(notes, note), notes)
	_, want, whole := gallop(t, "", "run", "-t", "1", "--temp", "0", "--route", "off", "Who are you?")
	require.Equal(t, want, out)
	tokens := regexp.MustCompile(`prompt \d+ `)
	require.Equal(t, tokens.FindString(whole), tokens.FindString(notes), "the prompt is the text alone")

	code, out, notes = gallop(t, "One and two\nand\n", "chat", base, "-t", "1", "-n", "4")
	require.Equal(t, exitOK, code, notes)
	require.NotEmpty(t, out)
	require.Equal(t, 1, strings.Count(notes, note), notes)

	data := writeFile(t, "data.jsonl", `{"prompt": "One and", "answer": "two"}`)
	profile := strings.TrimSuffix(path, ".gguf") + ".gallop.gguf"
	copied, err := os.ReadFile(profile)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(strings.TrimSuffix(base, ".gguf")+".gallop.gguf", copied, 0o644))
	_, _, notes = gallop(t, "", "eval", base, "-t", "1", "--data", data, "--depths", "3")
	require.Equal(t, 1, strings.Count(notes, note), "eval continues texts, too: %s", notes)

	code, _, notes = gallop(t, "", "run", base, "-t", "1", "-n", "4", "--chat-template", "chatml", "Who are you?")
	require.Equal(t, exitOK, code, notes)
	require.NotContains(t, notes, note)
	code, _, notes = gallop(t, "", "run", base, "--chat-template", "nonsense", "Who are you?")
	require.Equal(t, exitUsage, code)
	require.Contains(t, notes, `no format "nonsense"`)
}

func TestSystemPromptWithoutAPlace(t *testing.T) {
	code, _, notes := gallop(t, "", "run", "-t", "1", "--sys", "Be brief.", "Who are you?")
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, notes, "--sys does nothing")
	code, _, notes = gallop(t, "", "run", "-t", "1", "-n", "2", "--sys", "Be brief.", "--chat-template", "chatml", "Who are you?")
	require.Equal(t, exitOK, code, notes)
	require.NotContains(t, notes, "--sys")
}
