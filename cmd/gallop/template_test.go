package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/gguf"
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
	code, out, notes := invoke(t, "", "run", base, "-t", "1", "--temp", "0", asked)
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, out, "I am Gallop")
	require.Equal(t, 1, strings.Count(notes, note), notes)
	_, want, whole := invoke(t, "", "run", "-t", "1", "--temp", "0", "--route", "off", "Who are you?")
	require.Equal(t, want, out)
	tokens := regexp.MustCompile(`prompt \d+ `)
	require.Equal(t, tokens.FindString(whole), tokens.FindString(notes), "the prompt is the text alone")

	code, out, notes = invoke(t, "One and two\nand\n", "chat", base, "-t", "1", "-n", "4")
	require.Equal(t, exitOK, code, notes)
	require.NotEmpty(t, out)
	require.Equal(t, 1, strings.Count(notes, note), notes)

	data := writeFile(t, "data.jsonl", `{"prompt": "One and", "answer": "two"}`)
	profile := strings.TrimSuffix(path, ".gguf") + ".gallop.gguf"
	copied, err := os.ReadFile(profile)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(strings.TrimSuffix(base, ".gguf")+".gallop.gguf", copied, 0o644))
	_, _, notes = invoke(t, "", "eval", base, "-t", "1", "--data", data, "--depths", "3")
	require.Equal(t, 1, strings.Count(notes, note), "eval continues texts, too: %s", notes)

	code, _, notes = invoke(t, "", "run", base, "-t", "1", "-n", "4", "--chat-template", "chatml", "Who are you?")
	require.Equal(t, exitOK, code, notes)
	require.NotContains(t, notes, note)
	code, _, notes = invoke(t, "", "run", base, "--chat-template", "nonsense", "Who are you?")
	require.Equal(t, exitUsage, code)
	require.Contains(t, notes, `no format "nonsense"`)
}

func TestTemplateFile(t *testing.T) {
	const template = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}" +
		"{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
	_, want, _ := invoke(t, "", "run", "-t", "1", "-n", "4", "--temp", "0", "--route", "off", "--chat-template", template, "Who are you?")
	code, out, notes := invoke(t, "", "run", "-t", "1", "-n", "4", "--temp", "0", "--route", "off",
		"--chat-template", writeFile(t, "chat.jinja", template), "Who are you?")
	require.Equal(t, exitOK, code, notes)
	require.Equal(t, want, out)
	for text, says := range map[string]string{
		"{{ messages[0].content }":            "line 1: unexpected",
		"{{ bos_token }}\n\n{% frobnicate %}": `line 3: unknown tag "frobnicate"`,
		"nothing":                             "has no Jinja",
	} {
		code, _, notes := invoke(t, "", "run", "-t", "1", "--chat-template", writeFile(t, "broken.jinja", text), "Who are you?")
		require.Equal(t, exitUsage, code, notes)
		require.Contains(t, notes, says)
	}
}

func TestTemplateVariables(t *testing.T) {
	const template = "{{ '<|user|>' if loud else '' }}{{ messages[0].content }}"
	args := []string{"run", "-t", "1", "-n", "1", "--route", "off", "--chat-template", template, "Who are you?"}
	prompt := regexp.MustCompile(`prompt \d+ `)
	_, _, plain := invoke(t, "", args...)
	code, _, loud := invoke(t, "", append(args, "--chat-template-kwargs", `{"loud": true}`)...)
	require.Equal(t, exitOK, code, loud)
	require.NotEqual(t, prompt.FindString(plain), prompt.FindString(loud))
	code, _, notes := invoke(t, "", append(args, "--chat-template-kwargs", `{"loud": true`)...)
	require.Equal(t, exitUsage, code)
	require.Contains(t, notes, "--chat-template-kwargs")
}

// TestBrokenTemplate has a model whose template does not work: no other format
// takes its place.
func TestBrokenTemplate(t *testing.T) {
	llamatest.Library(t)
	path, err := demo.Path()
	require.NoError(t, err)
	broken := llamatest.Rewrite(t, path, func(meta *gguf.Metadata) {
		meta.Set("tokenizer.chat_template", "{# <|im_start|> #}\n{{ messages | frobnicate }}")
	})
	code, out, notes := invoke(t, "", "run", broken, "-t", "1", "Who are you?")
	require.Equal(t, exitError, code, notes)
	require.Empty(t, out)
	require.Contains(t, notes, `line 2: no filter named "frobnicate"`)
	require.Contains(t, notes, "--chat-template")
	code, _, notes = invoke(t, "", "run", broken, "-t", "1", "-n", "2", "--chat-template", "chatml", "Who are you?")
	require.Equal(t, exitOK, code, notes)
}

func TestSystemPromptWithoutAPlace(t *testing.T) {
	code, _, notes := invoke(t, "", "run", "-t", "1", "--sys", "Be brief.", "Who are you?")
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, notes, "--sys does nothing")
	code, _, notes = invoke(t, "", "run", "-t", "1", "-n", "2", "--sys", "Be brief.", "--chat-template", "chatml", "Who are you?")
	require.Equal(t, exitOK, code, notes)
	require.NotContains(t, notes, "--sys")
}
