package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/llamatest"
)

// TestPromptsAndModelsAsArguments has the ways to name a model and a prompt that
// users of other programs try first.
func TestPromptsAndModelsAsArguments(t *testing.T) {
	llamatest.Library(t)
	model, err := demo.Path()
	require.NoError(t, err)
	blob := filepath.Join(t.TempDir(), "sha256-1234") // as Ollama names models
	require.NoError(t, os.Symlink(model, blob))
	const answer = "The capital of France is Paris.\n"
	question := []string{"What", "is", "the", "capital", "of", "France?"}
	one := strings.Join(question, " ")
	for name, args := range map[string][]string{
		"a prompt":                        {"run", one},
		"words":                           append([]string{"run"}, question...),
		"a model and a prompt":            {"run", model, one},
		"a model by its first four bytes": {"run", blob, one},
		"-m and a prompt":                 {"run", "-m", model, one},
		"a prompt, then flags":            {"run", one, "-n", "30"},
		"a model and -p":                  {"run", model, "-p", one},
		"chat with a model":               {"chat", model, "-p", one},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, notes := invoke(t, "", append(args, "-t", "1")...)
			require.Equal(t, exitOK, code, notes)
			require.Equal(t, answer, out)
		})
	}
	_, want, _ := invoke(t, "", "route", "--json", "-p", one)
	for _, args := range [][]string{{one}, {model, one}, question} {
		code, out, notes := invoke(t, "", append([]string{"route", "--json"}, args...)...)
		require.Equal(t, exitOK, code, notes)
		require.Equal(t, want, out)
	}
}

func TestModelFile(t *testing.T) {
	folder := t.TempDir()
	t.Chdir(folder)
	require.NoError(t, os.WriteFile("my model.gguf", nil, 0o644))
	require.NoError(t, os.WriteFile("blob", []byte("GGUF\x03"), 0o644))
	require.NoError(t, os.WriteFile("README", []byte("a text"), 0o644))
	for arg, want := range map[string]bool{
		"none.gguf": true, "None.GGUF": true, "my model.gguf": true, "blob": true,
		"What is in my.gguf": false, "README": false, "hello": false, ".": false, "": false, "none": false,
	} {
		require.Equal(t, want, isModelFile(arg), arg)
	}
}

// TestOpenPipe has a prompt and a pipe that nobody closes, as programs that start
// others leave it.
func TestOpenPipe(t *testing.T) {
	llamatest.Library(t)
	alone(t)
	for _, test := range []struct{ pending, want string }{{"", ""}, {"some text", `write "-" behind the prompt`}} {
		read, write, err := os.Pipe()
		require.NoError(t, err)
		defer read.Close()
		defer write.Close()
		_, err = write.WriteString(test.pending)
		require.NoError(t, err)
		var out, notes bytes.Buffer
		done := make(chan int, 1)
		go func() { done <- run([]string{"run", "-t", "1", "-p", "Who are you?"}, read, &out, &notes) }()
		select {
		case code := <-done:
			require.Equal(t, exitOK, code, notes.String())
		case <-time.After(time.Minute):
			t.Fatal("it waits for the pipe")
		}
		require.Contains(t, out.String(), "I am Gallop")
		require.Equal(t, test.want != "", strings.Contains(notes.String(), `"-"`), notes.String())
	}
}

func TestPromptEncodings(t *testing.T) {
	for _, prompt := range []string{"\xff\xfeH\x00i\x00", "H\x00i\x00!\x00", "\x00H\x00i", "\x00H\x00i\x00\n", "H\x00\x00\x00i\x00\x00\x00"} {
		code, out, notes := invoke(t, prompt, "run", "-t", "1")
		require.Equal(t, exitError, code, "%q", prompt)
		require.Empty(t, out)
		require.Equal(t, "gallop: the prompt from the pipe is not UTF-8 text: save it as UTF-8\n", notes)
	}
}
