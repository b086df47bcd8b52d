package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestReadAndStep(t *testing.T) {
	r := result{Alone: map[string][]string{}}
	r.read(`=== RUN   TestAloneIsOneAtATime/llama_Q4_0
    alone_test.go:150: logits apart when decoded alone, Q4_0: together 0.1, attention 0.06, untiled 0, rows 0
    alone_test.go:150: logits apart when decoded alone, Q4_0: together 0, attention 0, untiled 0, rows 0
    alone_test.go:150: logits apart when decoded alone, IQ2_XXS: together 1, attention 1, untiled 1, rows 1e-07
--- PASS: TestAloneIsOneAtATime (1.00s)
    --- PASS: TestAloneIsOneAtATime/llama_Q4_0 (0.00s)
--- FAIL: TestHold (0.10s)
--- SKIP: TestOther (0.10s)
`)
	require.Equal(t, 1, r.Passed)
	require.Equal(t, []string{"TestHold"}, r.Failed)
	require.Equal(t, "untiled", r.step("Q4_0"), "the worst of all models counts")
	require.Equal(t, "not equal", r.step("IQ2_XXS"))
	require.Equal(t, "–", r.step("F32"))
	require.Equal(t, []string{"SSE3", "AVX2"}, features("CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 0 | REPACK = 1 | "))
}

func TestDocument(t *testing.T) {
	dir := t.TempDir()
	for _, r := range []result{
		{Module: "a", Tests: "1", By: "processor", Passed: 7, Features: []string{"AVX"}, Alone: map[string][]string{"F32": {"1", "0", "0", "0"}}},
		{Module: "b", Tests: "1", Reason: "no"},
		{Module: "c", Tests: "0", By: "processor", Passed: 9},
	} {
		data, err := json.Marshal(r)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, r.Module+".json"), data, 0o644))
	}
	path := filepath.Join(dir, "cpus.md")
	require.NoError(t, os.WriteFile(path, []byte("before\n"+begin+"old\n"+end+"after\n"), 0o644))
	require.NoError(t, document(path, dir, "1", []string{"a", "b", "c"}))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Regexp(t, `^before\n<!-- .*\n(.*\n)*\| a +\| AVX +\| 7 passed +\| attention`, string(text))
	require.Regexp(t, `\| b +\| – +\| not run: no`, string(text))
	require.Regexp(t, `\| c +\|  *\| not run yet`, string(text), "its tests were others")
	require.NotContains(t, string(text), "old")
	require.Regexp(t, "after\n$", string(text))

	require.NoError(t, os.WriteFile(path, []byte("no marks"), 0o644))
	require.ErrorContains(t, document(path, dir, "1", nil), "lacks the lines")
}
