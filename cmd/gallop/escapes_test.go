package main

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestEscapes has what llama.cpp's programs make of the same texts.
func TestEscapes(t *testing.T) {
	for written, want := range map[string]string{
		"":                "",
		"plain":           "plain",
		`one\ntwo`:        "one\ntwo",
		`\r\t\'\"\\`:      "\r\t'\"\\",
		`\\n`:             `\n`,
		`C:\dir\q`:        `C:\dir\q`,
		`at the end\`:     `at the end\`,
		`\x41\x4a\xa.`:    "AJ\n.",
		`\x`:              `\x`,
		`\xg`:             `\xg`,
		`\xe6\x97\xa5\n日`: "日\n日",
	} {
		require.Equal(t, want, (&escapes{}).text(written), written)
		require.Equal(t, written, (&escapes{off: true}).text(written))
	}
}

// TestPromptWithEscapes looks at what comes to the model, through each way to say it.
func TestPromptWithEscapes(t *testing.T) {
	tokens := func(args ...string) int {
		code, out, notes := invoke(t, "", append([]string{"run", "-t", "1", "-n", "1", "--json", "--route", "off"}, args...)...)
		require.Equal(t, exitOK, code, notes)
		var r runResult
		require.NoError(t, json.Unmarshal([]byte(out), &r))
		return r.PromptTokens
	}
	broken := tokens("-p", "One\nTwo")
	require.Equal(t, broken, tokens("-p", `One\nTwo`))
	require.Equal(t, broken, tokens("-p", `One\nTwo`, "-e"))
	written := tokens(`One\nTwo`)
	require.NotEqual(t, broken, written, "words are as they are written")
	require.Equal(t, written, tokens("-p", `One\nTwo`, "--no-escape"))

	const list = "Write the numbers from one to five."
	code, out, notes := invoke(t, "", "run", "-t", "1", "--route", "off", "--temp", "0", "--reverse-prompt", `\x20`, "-p", list)
	require.Equal(t, exitOK, code, notes)
	require.NotContains(t, out, " ")
}
