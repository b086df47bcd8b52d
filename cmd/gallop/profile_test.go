package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// TestProfileTravels calibrates one quantisation of a model and routes another by it.
// sums writes a file of questions, and returns its path.
func sums(t *testing.T) string {
	var lines strings.Builder
	for i := range 12 {
		line, err := json.Marshal(map[string]any{"prompt": "What is one and one " + strings.Repeat("x", i) + "?", "answer": strings.Repeat("yes ", 1+i%3), "task": "sums"})
		require.NoError(t, err)
		lines.Write(append(line, '\n'))
	}
	return writeFile(t, "data.jsonl", lines.String())
}

// TestProfileOfASplitModel calibrates a model in one file and in three: the profile is the
// same, stands beside the first part, and is found there.
func TestProfileOfASplitModel(t *testing.T) {
	llamatest.Library(t)
	t.Setenv("GALLOP_LIB", llama.Dir())
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	spec := randmodel.Small("llama")
	spec.Layers = 5
	whole := llamatest.Write(t, spec)
	split := llamatest.Split(t, whole, 3)
	data := sums(t)
	var profiles []*router.Profile
	for _, model := range []string{whole, split} {
		code, out, notes := invoke(t, "", "calibrate", "-t", "1", "-m", model, "--data", data, "--unit", "feed-forward", "--depths", "1")
		require.Equal(t, exitOK, code, notes)
		require.Equal(t, router.DefaultPath(model), strings.TrimSpace(out))
		p, err := router.Read(strings.TrimSpace(out))
		require.NoError(t, err)
		profiles = append(profiles, p)
	}
	require.Equal(t, filepath.Join(filepath.Dir(split), "model.gallop.gguf"), router.DefaultPath(split))
	require.Equal(t, profiles[0].Model, profiles[1].Model)
	require.Equal(t, profiles[0].Candidates, profiles[1].Candidates)
	require.Equal(t, profiles[0].Router.W1, profiles[1].Router.W1)
	var answers []string
	for _, model := range []string{whole, split} {
		code, out, notes := invoke(t, "", "run", "-t", "1", "-n", "4", "--temp", "0", "--json", "--depth", "1", "-m", model, "What is one and one?")
		require.Equal(t, exitOK, code, notes)
		var r runResult
		require.NoError(t, json.Unmarshal([]byte(out), &r))
		require.NotEmpty(t, r.Skip, "the profile was found and chose")
		answers = append(answers, r.Text+" without "+r.Skip)
	}
	require.Equal(t, answers[0], answers[1])
}

func TestProfileTravels(t *testing.T) {
	llamatest.Library(t)
	t.Setenv("GALLOP_LIB", llama.Dir())
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	dir := t.TempDir()
	spec := randmodel.Small("llama")
	spec.Layers = 5
	file := func(typ gguf.Type) string {
		spec.Type = typ
		path := filepath.Join(dir, "m-"+strings.ToLower(typ.String())+".gguf")
		require.NoError(t, randmodel.Write(path, spec))
		return path
	}
	first, second := file(gguf.Q8_0), file(gguf.Q4_0)
	data := sums(t)
	code, out, notes := invoke(t, "", "calibrate", "-t", "1", "-m", first, "--data", data, "--unit", "feed-forward", "--depths", "1")
	require.Equal(t, exitOK, code, notes)
	made := strings.TrimSpace(out)
	p, err := router.Read(made)
	require.NoError(t, err)
	p.Defaults.Off = false // however fast this machine was
	require.NoError(t, p.Write(made))

	code, out, notes = invoke(t, "", "profile", "show", "-m", first)
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, out, "this file")
	require.Contains(t, out, "nats per token")
	code, out, notes = invoke(t, "", "profile", "show", "-m", second)
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, out, "another quantisation, "+p.Model.String())

	// An answer by it checks it first, says so, and keeps what comes of it.
	code, _, notes = invoke(t, "", "run", "-t", "1", "-n", "4", "--temp", "0", "-m", second, "-p", "What is one and one?")
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, notes, "[checks the profile of another quantisation, "+made)
	require.Regexp(t, `\[checked with \d+ prompts in \d+ s: .*decoding is .* times as fast`, notes)
	own, err := router.Read(router.DefaultPath(second))
	require.NoError(t, err)
	model, err := router.FingerprintOf(second)
	require.NoError(t, err)
	require.Equal(t, model, own.Model)
	require.Equal(t, p.Candidates, own.Candidates)
	require.Equal(t, p.Router.W1, own.Router.W1)
	require.Contains(t, own.Provenance, router.Note{Key: "made on", Value: p.Model.String() + ", another quantisation"})
	code, _, notes = invoke(t, "", "run", "-t", "1", "-n", "4", "--temp", "0", "-m", second, "-p", "What is one and one?")
	require.Equal(t, exitOK, code, notes)
	require.NotContains(t, notes, "check")

	if os.Getenv("GALLOP_LONG") != "" { // a server does so too, before it answers
		require.NoError(t, os.Remove(router.DefaultPath(second)))
		var said bytes.Buffer
		serve := newServeCommand()
		serve.SetErr(&said)
		served, err := (&serving{parallel: 1}).model(serve, "m", second, &gallop.Options{NoCosts: true, Shortlist: -1, Context: llama.ContextOptions{NCtx: 64, Threads: 1}})
		require.NoError(t, err)
		e, err := served.Open(t.Context())
		require.NoError(t, err)
		profile := e.Info().Profile
		require.NoError(t, e.Close())
		require.Equal(t, router.DefaultPath(second), profile)
		require.Contains(t, said.String(), "[checks the profile of another quantisation, "+made)
	}

	elsewhere := filepath.Join(dir, "out.gguf")
	code, out, notes = invoke(t, "", "profile", "check", "-t", "1", "-m", first, "--data", data, "-o", elsewhere)
	require.Equal(t, exitOK, code, notes)
	require.Equal(t, elsewhere+"\n", out)
	require.Contains(t, notes, "checked with 12 prompts")

	// A profile of an earlier version, exported, travels.
	old := llamatest.Rewrite(t, made, func(meta *gguf.Metadata) { meta.Delete("gallop.model.norms") })
	code, _, notes = invoke(t, "", "profile", "show", "-m", second, "--profile", old)
	require.Equal(t, exitError, code)
	require.Contains(t, notes, "calibrate this model")
	published := t.TempDir()
	code, out, notes = invoke(t, "", "profile", "export", "-m", first, "--profile", old, "-o", published)
	require.Equal(t, exitOK, code, notes)
	require.Equal(t, filepath.Join(published, "m-q8_0.gallop.gguf")+"\n", out)
	code, _, notes = invoke(t, "", "profile", "show", "-m", second, "--profile", strings.TrimSpace(out))
	require.Equal(t, exitOK, code, notes)

	code, _, notes = invoke(t, "", "profile", "export", "-m", first)
	require.Equal(t, exitUsage, code)
	require.Contains(t, notes, "-o is missing")
	code, _, notes = invoke(t, "", "profile", "show", first, "again")
	require.Equal(t, exitUsage, code)
	require.Contains(t, notes, "takes one argument")
	require.NoError(t, os.Remove(made))
	require.NoError(t, os.Remove(router.DefaultPath(second)))
	code, _, notes = invoke(t, "", "profile", "check", "-m", first)
	require.Equal(t, exitError, code)
	require.Contains(t, notes, "has no profile")
	require.True(t, p.Candidates[1].Mask.KVComplete())
	require.Equal(t, skip.FullPrefill, p.Defaults.Prefill)
}
