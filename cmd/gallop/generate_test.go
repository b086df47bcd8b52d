package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
)

// invoke runs the program with a pipe as its input.
func invoke(t *testing.T, input string, args ...string) (code int, out, notes string) {
	t.Helper()
	llamatest.Library(t)
	alone(t)
	var o, n bytes.Buffer
	code = run(args, strings.NewReader(input), &o, &n)
	return code, o.String(), n.String()
}

func TestRunAnswersOnTheDemoModel(t *testing.T) {
	code, out, notes := invoke(t, "", "run", "-t", "1", "-p", "What is the capital of France?")
	require.Equal(t, exitOK, code, notes)
	require.Equal(t, "The capital of France is Paris.\n", out)
	require.Regexp(t, `^\[\d+ tokens at \d+/s · prompt \d+ at \d+/s · [\d.]+ of 12 layers.*\]\n$`, notes)

	code, _, notes = invoke(t, "", "run", "-t", "1", "--route", "off", "-p", "What is the capital of France?")
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, notes, "12 of 12 layers]")
}

func TestRunJSON(t *testing.T) {
	code, out, notes := invoke(t, "", "run", "-t", "1", "--json", "--skip", "5,a6", "-n", "6", "-p", "What is the capital of France?")
	require.Equal(t, exitOK, code, notes)
	var r runResult
	require.NoError(t, json.Unmarshal([]byte(out), &r))
	require.Equal(t, "5,a6", r.Skip)
	require.Equal(t, 12, r.Layers)
	require.Equal(t, 10.5, r.LayersUsed)
	require.LessOrEqual(t, r.Tokens, 6)
	require.Positive(t, r.PromptTokens)
	require.Positive(t, r.PrefillTPS)
	require.EqualValues(t, 5.3, math.Round(float64(r.Weights)/(1<<20)*10)/10, "MiB")
	require.Positive(t, r.Resident)
	require.NotContains(t, out, "null")
}

func TestRunTakesAPipeAndLlamaFlags(t *testing.T) {
	code, out, notes := invoke(t, "What is the capital of France?\n", "run", "-t", "1", "-ngl", "0", "-fa", "on",
		"-ctk", "q8_0", "-ctv=q8_0", "-ub", "32", "-b", "64", "-c", "256", "--temp", "0.5", "--seed", "7", "-n", "4")
	require.Equal(t, exitOK, code, notes)
	require.NotEmpty(t, out)

	_, alone, _ := invoke(t, "", "run", "-t", "1", "-p", "Sort these numbers:\n\n3 1 2")
	for _, args := range [][]string{{"-p", "Sort these numbers:", "-"}, {"Sort", "these", "numbers:", "-"}} {
		_, joined, _ := invoke(t, "\ufeff3 1 2\r\n", append([]string{"run", "-t", "1"}, args...)...)
		require.Equal(t, alone, joined, "what the pipe brings comes below the prompt, without a byte order mark")
	}
}

func TestRunFollowsAGrammar(t *testing.T) {
	grammar := filepath.Join(t.TempDir(), "answer.gbnf")
	require.NoError(t, os.WriteFile(grammar, []byte(`root ::= "yes" | "no"`), 0o644))
	for _, flag := range [][]string{{"--grammar", `root ::= "yes" | "no"`}, {"--grammar-file", grammar}} {
		code, out, notes := invoke(t, "", append([]string{"run", "-t", "1", "-p", "Are you well?"}, flag...)...)
		require.Equal(t, exitOK, code, notes)
		require.Contains(t, []string{"yes\n", "no\n"}, out)
	}
}

func TestGenerationMistakes(t *testing.T) {
	folder := t.TempDir()
	text := filepath.Join(folder, "text.gguf")
	require.NoError(t, os.WriteFile(text, []byte("this is no model at all, but a text"), 0o644))
	utf16 := writeFile(t, "utf16.gbnf", "\xff\xfer\x00")
	notes := writeFile(t, "notes.txt", "What is the capital of France?")
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"nothing to answer", []string{"run"}, exitUsage, "nothing to answer"},
		{"no such file", []string{"run", "-p", "x", "-m", filepath.Join(folder, "none.gguf")}, exitError, "none.gguf"},
		{"no model", []string{"run", "-p", "x", "-m", text}, exitError, "not a GGUF file"},
		{"a folder", []string{"run", "-p", "x", "-m", folder}, exitError, "folder"},
		{"no mask", []string{"run", "-p", "x", "--skip", "one"}, exitUsage, "not a mask"},
		{"a mask beyond the model", []string{"run", "-p", "x", "--skip", "40"}, exitError, "the layers are 0 to 11"},
		{"every layer", []string{"run", "-p", "x", "--skip", "0-11"}, exitError, "keep at least one"},
		{"a long prompt", []string{"run", "-c", "256", "-p", strings.Repeat("many words ", 500)}, exitError, "the context holds"},
		{"more memory than any machine has", []string{"run", "-c", "67108864", "-b", "67108864", "-ub", "67108864", "-p", "x"}, exitError, "not enough memory"},
		{"no grammar", []string{"run", "-p", "x", "--grammar", "root ="}, exitUsage, "invalid grammar"},
		{"a temperature", []string{"run", "-p", "x", "--temp", "-1"}, exitUsage, "temperature is -1"},
		{"an unknown flag", []string{"run", "--nonsense"}, exitUsage, "unknown flag"},
		{"a cache type", []string{"run", "-p", "x", "-ctk", "q9"}, exitUsage, "want one of"},
		{"no tokens", []string{"run", "-p", "x", "-n", "0"}, exitUsage, "-n is 0"},
		{"fewer threads than none", []string{"run", "-p", "x", "-t", "-2"}, exitUsage, "want -1 to 512"},
		{"threads beyond all bounds", []string{"calibrate", "--threads=513"}, exitUsage, "want -1 to 512"},
		{"nor for prompts", []string{"run", "-p", "x", "-tb", "-7"}, exitUsage, "want -1 to 512"},
		{"a context beyond all bounds", []string{"run", "-p", "x", "-c", "67108865"}, exitUsage, "want up to 67108864"},
		{"a bias", []string{"run", "-p", "x", "-l", "5"}, exitUsage, "TOKEN+BIAS"},
		{"no adapter", []string{"run", "-p", "x", "--lora", text}, exitError, "not a GGUF file"},
		{"a word for chat", []string{"chat", "hello"}, exitUsage, `; to say it first, write -p "hello"`},
		{"a text for chat", []string{"chat", notes}, exitUsage, "is no GGUF file"},
		{"two models for chat", []string{"chat", "a.gguf", "b.gguf"}, exitUsage, `takes one argument, the model, and not "b.gguf" too`},
		{"two models", []string{"run", "-m", text, text, "x"}, exitUsage, "the model is named twice"},
		{"no model for run", []string{"run", text, "x"}, exitError, "not a GGUF file"},
		{"no such file for run", []string{"run", filepath.Join(folder, "none.gguf"), "x"}, exitError, "there is no file"},
		{"two prompts", []string{"run", "-p", "a", "b", "c"}, exitUsage, `the prompt is given twice, -p "a" and "b c": leave one out`},
		{"no model's name", []string{"run", "-m", "", "x"}, exitUsage, "-m is empty"},
		{"no model's name behind the command", []string{"calibrate", ""}, exitUsage, "the model's name is empty"},
		{"nor here", []string{"chat", ""}, exitUsage, "the model's name is empty"},
		{"no profile's name", []string{"run", "--profile", "", "x"}, exitUsage, "--profile is empty"},
		{"no grammar's name", []string{"run", "--grammar-file", "", "x"}, exitUsage, "--grammar-file is empty"},
		{"no template's name", []string{"run", "--chat-template=", "x"}, exitUsage, "--chat-template is empty"},
		{"no adapter's name", []string{"run", "--lora", "", "x"}, exitUsage, "--lora is empty"},
		{"no data's name", []string{"eval", "--data", ""}, exitUsage, "--data is empty"},
		{"a threshold below none", []string{"run", "--escalate", "-0.5", "x"}, exitUsage, "--escalate -0.5, want"},
		{"a threshold that is no number", []string{"run", "--escalate", "nan", "x"}, exitUsage, "--escalate is NaN, want a number"},
		{"an endless depth", []string{"run", "--depth", "inf", "x"}, exitUsage, "--depth is +Inf, want a number"},
		{"a seed", []string{"run", "--seed", "4294967295", "x"}, exitUsage, "--seed is 4294967295, want 0 to 4294967294"},
		{"a negative seed", []string{"run", "--seed", "-5", "x"}, exitUsage, "--seed is -5"},
		{"a grammar of another encoding", []string{"run", "--grammar-file", utf16, "x"}, exitError, "is not UTF-8 text"},
		{"an empty -p", []string{"run", "-p", ""}, exitUsage, "nothing to answer"},
		{"blanks", []string{"run", " "}, exitUsage, "nothing to answer"},
		{"release without a mapping", []string{"run", "-p", "x", "--release-skipped", "--no-mmap"}, exitUsage, "leave out --no-mmap"},
		{"release and escalation", []string{"run", "-p", "x", "--release-skipped", "--escalate", "0.9"}, exitError, "leave out one of the two"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, out, notes := invoke(t, "", append(c.args, "-t", "1")...)
			require.Equal(t, c.code, code, notes)
			require.Empty(t, out)
			require.Contains(t, notes, c.want)
			require.Equal(t, 1, strings.Count(notes, "\n"), "one sentence, but got: %s", notes)
		})
	}
}

func TestChatFromAPipe(t *testing.T) {
	code, out, notes := invoke(t, "What is the capital of France?\n/stats\n", "chat", "-t", "1", "-p", "/skip 5,f7", "-p", "Hello")
	require.Equal(t, exitOK, code, notes)
	require.Equal(t, 2, strings.Count(out, "\n"), "two answers and nothing else: %q", out)
	require.Contains(t, notes, "> /skip 5,f7\nskips 5,f7: 10.5 of 12 layers")
	require.Contains(t, notes, "> What is the capital of France?\n")
	require.Contains(t, notes, "nodes removed")
	require.Regexp(t, `(?m)^weights   .* of 5.3 MiB in memory$`, notes)

	code, out, notes = invoke(t, "/etc/hosts?\n /skip 4\n", "chat", "-t", "1", "-n", "4")
	require.Equal(t, exitOK, code, notes)
	require.Equal(t, 2, strings.Count(notes, "tokens at"), "two texts that begin as commands do are asked: %s", notes)
	require.NotEmpty(t, out)

	code, _, notes = invoke(t, "/nonsense\nHello\n", "chat", "-t", "1")
	require.Equal(t, exitError, code, "a pipe's mistake ends the program")
	require.Contains(t, notes, "there is no command /nonsense")
}

func TestLossless(t *testing.T) {
	model := llamatest.Write(t, randmodel.Small("llama"))
	run := []string{"run", "-m", model, "-p", "hello", "-n", "20", "--temp", "0", "-t", "1", "--json"}
	type result struct {
		Text   string     `json:"text"`
		Skip   string     `json:"skip"`
		Drafts *runDrafts `json:"drafts"`
	}
	ask := func(args ...string) (r result) {
		code, out, notes := invoke(t, "", append(run, args...)...)
		require.Equal(t, exitOK, code, notes)
		require.NoError(t, json.Unmarshal([]byte(out), &r))
		return r
	}
	plain := ask()
	require.Nil(t, plain.Drafts)
	for _, args := range [][]string{{}, {"--skip", "2-5"}, {"--draft-source", "lookup"}, {"--draft-source", "mask", "--draft-max", "3"}} {
		lossless := ask(append(args, "--lossless")...)
		require.Equal(t, plain.Text, lossless.Text, args)
		require.Empty(t, lossless.Skip, "the answer is the whole model's")
		require.NotNil(t, lossless.Drafts)
	}
	code, _, notes := invoke(t, "", append(run, "--lossless", "--draft-source", "mask")...)
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, notes, "no mask to draft under is known")
	for want, args := range map[string][]string{
		"exclude each other": {"--escalate", "0.5"}, "--draft-max is 0": {"--draft-max", "0"}, "drafts of 99 tokens": {"--draft-max", "99"},
		"one of": {"--draft-source", "x"},
	} {
		code, out, notes := invoke(t, "", append(append(run, "--lossless"), args...)...)
		require.NotEqual(t, exitOK, code, want)
		require.Contains(t, notes, want)
		require.Empty(t, out)
	}
}

// TestRunLearnsWithoutATerminal as soon as the answers have given enough hidden states.
func TestRunLearnsWithoutATerminal(t *testing.T) {
	llamatest.Library(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("GALLOP_LIB", llama.Dir())
	spec := randmodel.Small("llama")
	spec.Layers, spec.Vocab = 2, 8<<13
	model := llamatest.Write(t, spec)
	const enough = 600
	states, learnt := 0, false
	for i := range 60 {
		code, out, notes := invoke(t, "", "run", "-t", "1", "-m", model, "--json", "-c", "1024", "-n", "200", fmt.Sprintf("say %d", i))
		require.Equal(t, exitOK, code, notes)
		var r runResult
		require.NoError(t, json.Unmarshal([]byte(out), &r))
		states += r.Tokens - 1 // the first comes from the prompt's pass
		if learnt = strings.Contains(notes, "[vocabulary shortlist: "); learnt {
			break
		}
		require.Less(t, states, enough, notes)
	}
	require.True(t, learnt)
	require.GreaterOrEqual(t, states, enough)
	_, out, notes := invoke(t, "", "run", "-t", "1", "-m", model, "--json", "-n", "8", "say")
	require.NotContains(t, notes, "learning")
	require.NotContains(t, out, "not learnt yet")
}
