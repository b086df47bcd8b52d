package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/lab/compare"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
)

func TestCompareTheDemoModel(t *testing.T) {
	page := filepath.Join(t.TempDir(), "report.html")
	code, out, notes := invoke(t, "", "compare", "-t", "1", "-o", page, "--json")
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, notes, "report: "+page)

	var r compare.Result
	require.NoError(t, json.Unmarshal([]byte(out), &r))
	require.Len(t, r.Prompts, 24)
	tasks := map[string]int{}
	for _, p := range r.Prompts {
		tasks[p.Task]++
		require.NotEmpty(t, p.Answers[0].Text)
		require.NotNil(t, p.Answers[1].Route)
	}
	require.Len(t, tasks, 12)
	for task, n := range tasks {
		require.Equal(t, 2, n, task)
	}
	s := r.Ways[1].Summary
	require.Less(t, s.LayersUsed, 12.0)
	require.Less(t, *s.Cost, 1.0)
	require.GreaterOrEqual(t, *s.Agreement, 0.95) // docs/method.md: escalation costs 0.2 points of right answers
	require.NotEmpty(t, r.Settings.Fingerprint)
	require.Contains(t, r.Settings.Command, "gallop compare --json=true --output="+page+" --threads=1")

	html, err := os.ReadFile(page)
	require.NoError(t, err)
	require.Contains(t, string(html), r.Settings.Fingerprint)
}

func TestCompareWhatIsAsked(t *testing.T) {
	folder := t.TempDir()
	t.Chdir(folder)
	prompts := filepath.Join(folder, "my questions.txt")
	require.NoError(t, os.WriteFile(prompts, []byte("What is 12 + 7?\nWho are you?\nTell me a story about a fox.\n"), 0o644))
	compared := func(args ...string) compare.Result {
		t.Helper()
		code, out, notes := invoke(t, "", append([]string{"compare", "-t", "1", "--json"}, args...)...)
		require.Equal(t, exitOK, code, notes)
		var r compare.Result
		require.NoError(t, json.Unmarshal([]byte(out), &r))
		return r
	}
	r := compared("--data", prompts, "--skip", "5,f7", "-n", "6", "-r", "2")
	require.Len(t, r.Prompts, 3)
	require.Equal(t, "skip 5,f7", r.Ways[1].Name)
	for _, p := range r.Prompts {
		require.Nil(t, p.Answers[1].Route)
		require.Equal(t, "5,f7", p.Answers[1].Skip.String())
		require.LessOrEqual(t, p.Answers[1].Tokens, 6)
	}
	require.Nil(t, r.Ways[0].Summary.Right)
	require.Contains(t, r.Settings.Command, "--data='"+prompts+"'")
	require.FileExists(t, filepath.Join(folder, "compare.html"))

	model, err := demo.Path()
	require.NoError(t, err)
	profile := strings.TrimSuffix(model, ".gguf") + ".gallop.gguf"
	r = compared("--data", prompts, "--limit", "2", "--profile", profile, "--profile", "again="+profile, "--depth", "3", "--escalate", "0")
	require.Len(t, r.Prompts, 2)
	require.Equal(t, []string{compare.Stock, strings.TrimSuffix(filepath.Base(model), ".gguf"), "again"},
		[]string{r.Ways[0].Name, r.Ways[1].Name, r.Ways[2].Name})
	for _, p := range r.Prompts {
		require.Equal(t, p.Answers[1].Skip, p.Answers[2].Skip)
		require.Equal(t, p.Answers[1].Text, p.Answers[2].Text)
	}
}

func TestCompareMistakes(t *testing.T) {
	folder := t.TempDir()
	t.Chdir(folder)
	bad := filepath.Join(folder, "bad.jsonl")
	require.NoError(t, os.WriteFile(bad, []byte("{\"prompt\": \"a\"}\n{\"prompt\": \"\"}\n"), 0o644))
	unrouted := llamatest.Write(t, randmodel.Small("llama"))
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no such file", []string{"--data", filepath.Join(folder, "none")}, exitError, "none"},
		{"a bad line", []string{"--data", bad}, exitError, "bad.jsonl:2: prompt is empty"},
		{"no folder", []string{"-o", filepath.Join(folder, "none", "x.html")}, exitError, "there is no folder"},
		{"a folder", []string{"-o", folder}, exitError, "it is a folder"},
		{"no profile", []string{"-m", unrouted}, exitError, "gallop calibrate"},
		{"another model's profile", []string{"-m", unrouted, "--profile", unrouted}, exitError, "no profile but a model"},
		{"three profiles", []string{"--profile", "a", "--profile", "b", "--profile", "c"}, exitUsage, "one or two"},
		{"skip and a profile", []string{"--profile", "a", "--skip", "2"}, exitUsage, "by hand"},
		{"nothing to compare", []string{"--route", "off"}, exitUsage, "nothing to compare"},
		{"no rounds", []string{"-r", "0"}, exitUsage, "-r 0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, out, notes := invoke(t, "", append([]string{"compare", "-t", "1"}, c.args...)...)
			require.Equal(t, c.code, code, notes)
			require.Empty(t, out)
			require.Contains(t, notes, c.want)
			require.NoFileExists(t, filepath.Join(folder, "compare.html"))
		})
	}
	code, _, notes := invoke(t, "", "compare", "-t", "1", "--data", bad, "--skip-bad", "-n", "2")
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, notes, "left out "+bad+":2")
}
