package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/lab/report"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
)

func TestPromptsTakeTheirOwnLayers(t *testing.T) {
	skips := map[string]bool{}
	for _, prompt := range []string{"What is 12 + 7?", "Tell me a story about a fox.", "Translate 'dog' to French."} {
		code, out, notes := invoke(t, "", "run", "-t", "1", "--json", "--depth", "3", "--escalate", "0", "-p", prompt)
		require.Equal(t, exitOK, code, notes)
		var r runResult
		require.NoError(t, json.Unmarshal([]byte(out), &r))
		require.NotNil(t, r.Route)
		require.NotEmpty(t, r.Skip)
		require.NotEmpty(t, r.Route.Task)
		require.Positive(t, r.Route.MS)
		require.Greater(t, r.FirstTokenMS, r.TemplateMS+r.TokenizeMS+r.SamplerMS+r.PrefillMS)
		skips[r.Skip] = true

		code, out, notes = invoke(t, "", "route", "--json", "--depth", "3", "-p", prompt)
		require.Equal(t, exitOK, code, notes)
		var route routeResult
		require.NoError(t, json.Unmarshal([]byte(out), &route))
		require.Equal(t, r.Skip, route.Skip, "route shows what run does")
		require.NotEmpty(t, route.Candidates)
	}
	require.Greater(t, len(skips), 1)

	code, out, notes := invoke(t, "", "route", "-p", "Qwertz uiop asdfgh? Yxcvbnm!")
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, out, "skips nothing: whole model")
	require.Contains(t, out, "whole model")
}

func TestInspectProfile(t *testing.T) {
	code, out, notes := invoke(t, "", "inspect", "--profile")
	require.Equal(t, exitOK, code, notes)
	for _, want := range []string{"sets of layers", "arithmetic", "story", "nats per token"} {
		require.Contains(t, out, want)
	}
	code, out, notes = invoke(t, "", "inspect", "--profile", "--json")
	require.Equal(t, exitOK, code, notes)
	require.True(t, json.Valid([]byte(out)))
}

// TestEvalWithAShortlist needs no profile, nor do masks that are given.
func TestEvalWithAShortlist(t *testing.T) {
	llamatest.Library(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	spec := randmodel.Small("llama")
	spec.Vocab = 1 << 14
	model := llamatest.Write(t, spec)
	data := writeFile(t, "data.jsonl", `{"prompt": "What is one and one?", "answer": "Two, and no more."}
{"prompt": "Which?", "choices": ["no", "yes yes"], "answer": 1}
`)
	eval := func(args ...string) (code int, out, notes string) {
		return invoke(t, "", append([]string{"eval", "-t", "1", "-m", model, "--data", data}, args...)...)
	}
	for size, want := range map[string]string{"1024": "^shortlist v1024 alone$", "auto": `^shortlist v(1024|2048|4096) alone$`} {
		code, out, notes := eval("--shortlist", size, "--json")
		require.Equal(t, exitOK, code, notes)
		var rows []report.Row
		require.NoError(t, json.Unmarshal([]byte(out), &rows))
		require.Len(t, rows, 2)
		require.Equal(t, "whole model", rows[0].Method)
		require.Regexp(t, want, rows[1].Method)
		require.Less(t, *rows[1].Cost, *rows[0].Cost)
		require.Positive(t, *rows[1].Speedup)
	}
	code, out, notes := eval("--skip", "3", "--skip", "f2,f4", "--json")
	require.Equal(t, exitOK, code, notes)
	var rows []report.Row
	require.NoError(t, json.Unmarshal([]byte(out), &rows))
	require.Len(t, rows, 3, "masks need no profile")
	require.Equal(t, []string{"skip 3", "skip f2,f4"}, []string{rows[1].Method, rows[2].Method})
	require.Less(t, *rows[1].Cost, 1.0)
	for name, test := range map[string]struct {
		args []string
		code int
		want string
	}{
		"no mask":    {[]string{"--skip", "x"}, exitUsage, "--skip: not a mask"},
		"word":       {[]string{"--shortlist", "some"}, exitUsage, `--shortlist is "some"`},
		"too many":   {[]string{"--shortlist", "5000"}, exitError, "take up to 4096"},
		"no profile": {nil, exitError, "has no profile"},
		"depths":     {[]string{"--shortlist", "1024", "--depths", "3"}, exitError, "has no profile"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, notes := eval(test.args...)
			require.Equal(t, test.code, code, notes)
			require.Empty(t, out)
			require.Contains(t, notes, test.want)
			require.Equal(t, 1, strings.Count(notes, "\n"), "one sentence, but got: %s", notes)
		})
	}
}

// TestCalibrateRouteEval is a user's way on a model of his own.
func TestCalibrateRouteEval(t *testing.T) {
	llamatest.Library(t)
	t.Setenv("GALLOP_LIB", llama.Dir())
	cache := t.TempDir() // calibration keeps what it measured there
	t.Setenv("XDG_CACHE_HOME", cache)
	forgotten := filepath.Join(cache, "gallop", "calibrate", "long-ago")
	require.NoError(t, os.MkdirAll(forgotten, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(forgotten, "losses.log"), nil, 0o644))
	require.NoError(t, os.Chtimes(filepath.Join(forgotten, "losses.log"), time.Time{}, time.Now().Add(-31*24*time.Hour)))
	spec := randmodel.Small("llama")
	spec.Layers = 5
	model := llamatest.Write(t, spec)
	data := filepath.Join(t.TempDir(), "data.jsonl")
	var lines strings.Builder
	for i := range 20 {
		task, question := "sums", "What is one and one "
		if i%2 == 1 {
			task, question = "colours", "Which colour has a "
		}
		line, err := json.Marshal(map[string]any{"prompt": question + strings.Repeat("x", i) + "?", "answer": strings.Repeat("yes ", 1+i%3), "task": task})
		require.NoError(t, err)
		lines.Write(append(line, '\n'))
	}
	require.NoError(t, os.WriteFile(data, []byte(lines.String()), 0o644))

	code, out, notes := invoke(t, "", "calibrate", "-t", "1", "-m", model, "--data", data, "--unit", "sublayer", "--depths", "1,2")
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, notes, "usable after")
	profile := strings.TrimSpace(out)
	require.Equal(t, strings.TrimSuffix(model, ".gguf")+".gallop.gguf", profile)

	kept, err := os.ReadDir(filepath.Dir(forgotten))
	require.NoError(t, err)
	require.Len(t, kept, 1, "this run's, to go on from; no old ones")
	require.NotEqual(t, "long-ago", kept[0].Name())

	code, out, notes = invoke(t, "", "run", "-t", "1", "--json", "-m", model, "-n", "4", "--depth", "2", "-p", "What is one and one?")
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, out, `"route":`)

	// What its calibration found not to pay is used only when asked for.
	p, err := router.Read(profile)
	require.NoError(t, err)
	for _, off := range []bool{true, false} {
		p.Defaults.Off = off
		require.NoError(t, p.Write(profile))
		for _, asked := range [][]string{nil, {"--quality", "0.5"}, {"--profile", profile}, {"--route", "turn"}} {
			code, out, notes = invoke(t, "", append([]string{"run", "-t", "1", "--json", "-m", model, "-n", "2", "-p", "What is one and one?"}, asked...)...)
			require.Equal(t, exitOK, code, notes)
			require.Equal(t, !off || asked != nil, strings.Contains(out, `"route":`), "%v %v", off, asked)
		}
		_, out, _ = invoke(t, "", "inspect", "-m", model, "--profile")
		require.Equal(t, off, strings.Contains(out, "it saves too little"))
		_, out, _ = invoke(t, "", "doctor", "-m", model)
		require.Equal(t, off, strings.Contains(out, "saves too little"))
	}

	folder := filepath.Join(t.TempDir(), "build")
	code, out, notes = invoke(t, "", "eval", "-t", "1", "-m", model, "--data", data, "--quality", "0.5,0.9", "--escalate", "0", "-o", folder)
	require.Equal(t, exitOK, code, notes)
	for _, want := range []string{"whole model", "ShortGPT", "task-free greedy", "each task's own set", "routed", "oracle for each prompt", "adaptive, quality 0.9"} {
		require.Contains(t, out, want)
	}
	written, err := os.ReadFile(filepath.Join(folder, "eval.json"))
	require.NoError(t, err)
	var rows []report.Row
	require.NoError(t, json.Unmarshal(written, &rows))
	require.Equal(t, "whole model", rows[0].Method)
	require.InDelta(t, 1, *rows[0].Agreement, 1e-9)
	require.FileExists(t, filepath.Join(folder, "accuracy-depth.png"))

	// Choices and plain text have columns of their own; text has no accuracy.
	require.Nil(t, rows[0].Acc)
	require.Nil(t, rows[0].Perplexity)
	require.Positive(t, *rows[0].TTFT)
	require.NoError(t, os.WriteFile(data, []byte(`{"prompt": "Which?", "choices": ["no", "yes yes"], "answer": 1}
{"text": "One and one and one and one."}
`), 0o644))
	code, out, notes = invoke(t, "", "eval", "-t", "1", "-m", model, "--data", data, "--depths", "2,9", "--prefill", "full,masked", "--json")
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, notes, "no sets of layers at depth 9: there are sets at 1 and 2")
	require.NoError(t, json.Unmarshal([]byte(out), &rows))
	for _, r := range rows {
		require.NotNil(t, r.AccNorm, r.Method)
		require.Equal(t, *r.Acc, *r.Accuracy, r.Method)
		require.Greater(t, *r.Perplexity, 1.0, r.Method)
		require.Positive(t, *r.TTFT, r.Method)
	}

	require.NoError(t, os.WriteFile(data, []byte(`{"text": "One and one and one and one."}`), 0o644))
	code, out, notes = invoke(t, "", "eval", "-t", "1", "-m", model, "--data", data, "-o", folder)
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, out, "perplexity")
	require.NotContains(t, out, "accuracy")
	code, _, notes = invoke(t, "", "eval", "-t", "1", "-m", model, "--data", data, "--escalate", "0")
	require.Equal(t, exitError, code)
	require.Contains(t, notes, "plain text asks for no answers")

	// Another model of the same shape has nothing from this profile.
	spec.Seed++
	other := llamatest.Write(t, spec)
	code, _, notes = invoke(t, "", "run", "-t", "1", "-m", other, "-n", "2", "-p", "x", "--profile", profile)
	require.Equal(t, exitError, code)
	require.Contains(t, notes, "calibrate this model")
	copied, err := os.ReadFile(profile)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(strings.TrimSuffix(other, ".gguf")+".gallop.gguf", copied, 0o644))
	code, _, notes = invoke(t, "", "run", "-t", "1", "-m", other, "-n", "2", "-p", "x")
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, notes, "goes on with the whole model")
	require.Contains(t, notes, "5 of 5 layers")
}

func TestRoutingMistakes(t *testing.T) {
	folder := t.TempDir()
	bad := filepath.Join(folder, "bad.jsonl")
	require.NoError(t, os.WriteFile(bad, []byte("{\"prompt\": \"a\", \"answer\": \"b\"}\n{\"prompt\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 7}\n"), 0o644))
	good := filepath.Join(folder, "good.jsonl")
	require.NoError(t, os.WriteFile(good, []byte(`{"prompt": "What is 1 + 1?", "answer": "2"}`), 0o644))
	empty := filepath.Join(folder, "empty.jsonl")
	require.NoError(t, os.WriteFile(empty, nil, 0o644))
	unrouted := llamatest.Write(t, randmodel.Small("llama"))
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"a choice out of range", []string{"calibrate", "--data", bad}, exitError, "bad.jsonl:2: answer 7 is out of range"},
		{"an empty file", []string{"eval", "--data", empty}, exitError, "empty.jsonl"},
		{"depths that the profile lacks", []string{"eval", "--data", good, "--depths", "9,0.1"}, exitError, "no sets of layers at depth 9 or 0.1: there are sets at 2.5, 3 and 4"},
		{"a depth that is no number", []string{"eval", "--data", good, "--depths", "nan"}, exitUsage, "--depths"},
		{"no data", []string{"eval"}, exitUsage, "--data"},
		{"no such unit", []string{"calibrate", "--unit", "word"}, exitUsage, "layer, sublayer or feed-forward"},
		{"no such preset", []string{"calibrate", "--preset", "x"}, exitUsage, "pudding-llama-3.1-8b"},
		{"a preset of another model", []string{"calibrate", "--preset", "pudding-llama-3.1-8b"}, exitError, "32 layers"},
		{"too deep", []string{"calibrate", "--data", bad, "--skip-bad", "--depths", "11"}, exitError, "the first and the last"},
		{"no profile", []string{"route", "-m", unrouted, "-p", "x"}, exitError, "gallop calibrate"},
		{"no model for route", []string{"route", filepath.Join(folder, "none.gguf"), "x"}, exitError, "none.gguf"},
		{"a depth without a profile", []string{"run", "-m", unrouted, "--depth", "2", "-p", "x"}, exitError, "gallop calibrate"},
		{"depth and quality", []string{"run", "--depth", "2", "--quality", "0.9", "-p", "x"}, exitUsage, "exclude each other"},
		{"skip and depth", []string{"run", "--skip", "2", "--depth", "2", "-p", "x"}, exitUsage, "by hand"},
		{"a quality", []string{"run", "--quality", "2", "-p", "x"}, exitUsage, "--quality 2"},
		{"escalation over attention", []string{"run", "--skip", "2", "--prefill", "full", "--escalate", "0.5", "-p", "x"}, exitError, "skips attention"},
		{"escalation after a masked prompt", []string{"run", "--skip", "f2", "--prefill", "masked", "--escalate", "0.5", "-p", "x"}, exitError, "--prefill full"},
		{"a model as profile", []string{"run", "--profile", unrouted, "-p", "x"}, exitError, "no profile but a model"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, out, notes := invoke(t, "", c.args...)
			require.Equal(t, c.code, code, notes)
			require.Empty(t, out)
			require.Contains(t, notes, c.want)
			last := strings.Split(strings.TrimRight(notes, "\n"), "\n")
			require.True(t, strings.HasPrefix(last[len(last)-1], "gallop: "), "one sentence at the end, but got: %s", notes)
		})
	}
}

// TestSkipBadLeavesOutWhatDoesNotFit has a prompt that is longer than any context.
func TestSkipBadLeavesOutWhatDoesNotFit(t *testing.T) {
	llamatest.Library(t)
	t.Setenv("GALLOP_LIB", llama.Dir())
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Chdir(t.TempDir())
	model := llamatest.Write(t, randmodel.Small("llama"))
	long, err := json.Marshal(map[string]string{"prompt": strings.Repeat("hello ", 2000), "answer": "2", "task": "a"})
	require.NoError(t, err)
	data := writeFile(t, "data.jsonl", string(long)+`
{"prompt": "What is 1 + 1?", "answer": "2", "task": "a"}
{"prompt": "What is 1 + 2?", "answer": "3", "task": "b"}
`)
	eval := []string{"eval", "--data", data, "--depths", "3"}
	calibrate := []string{"calibrate", "-t", "1", "-m", model, "--data", data, "--depths", "1", "--per-task", "1", "-o", "x.gallop.gguf"}
	compare := []string{"compare", "-t", "1", "--data", data, "-n", "2"}
	for _, args := range [][]string{eval, calibrate, compare} {
		code, out, notes := invoke(t, "", args...)
		require.Equal(t, exitError, code, args)
		require.Empty(t, out)
		require.Contains(t, notes, data+":1: ")
		code, out, notes = invoke(t, "", append(args, "--skip-bad")...)
		require.Equal(t, exitOK, code, notes)
		require.NotEmpty(t, out)
		require.Contains(t, notes, "left out "+data+":1: ")
	}
}
