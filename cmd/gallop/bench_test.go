package main

import (
	"encoding/csv"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/lab/bench"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
)

// quick are flags for the shortest measurement.
var quick = []string{"-p", "5", "-n", "2", "-r", "1", "-t", "1"}

func benchRows(t *testing.T, text string) (masks []string, rows []bench.Row) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(text), &rows))
	for _, row := range rows {
		masks = append(masks, row.Mask.String())
	}
	return masks, rows
}

func TestBenchMasks(t *testing.T) {
	model := llamatest.Write(t, randmodel.Small("llama"))
	code, out, notes := invoke(t, "", append([]string{"bench", "-m", model, "--skip", "2,a5", "--skip", "f3", "--depth", "2", "--percent", "25,13",
		"-ngl", "0", "-fa", "on", "-b", "4", "-ub", "4", "-ctk", "q8_0", "-ctv", "q8_0", "-o", "json", "-oe", "jsonl"}, quick...)...)
	require.Equal(t, exitOK, code, notes)
	masks, rows := benchRows(t, out)
	require.Equal(t, []string{"", "2,a5", "f3", "2,5", "4"}, masks, "each mask once, the whole model first")
	require.Contains(t, notes, "--depth 2: skips 2,5, whole layers, evenly spread\n--percent 25: skips 2,5, whole layers, evenly spread\n")
	require.Equal(t, len(rows), strings.Count(notes, `{"model":"model"`), "-oe prints on stderr as well")
	for _, row := range rows {
		require.Equal(t, 1, row.Threads)
		require.Nil(t, row.RouteMS, "there is no profile")
	}

	code, out, notes = invoke(t, "", append([]string{"bench", "-m", model, "--pruned"}, quick...)...)
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, notes, "--percent 25: skips 2,5")
	require.Regexp(t, `(?m)^\| model \| nothing +\|`, out)
	require.Regexp(t, `(?m)^\| model \| 2,5 +\|`, out)
	require.Contains(t, out, "of pruned")
}

// TestBenchProfile takes depths from the demo model's profile.
func TestBenchProfile(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", cacheWithLibrary(t))
	code, out, notes := invoke(t, "", append([]string{"bench", "--depth", "3,11", "--json"}, quick...)...)
	require.Equal(t, exitUsage, code, "the profile has no such depth, and first and last layer are kept")
	require.Contains(t, notes, "--depth 11: not a mask: 11 layers of 12")
	require.Empty(t, out)

	code, out, notes = invoke(t, "", append([]string{"bench", "--depth", "3", "--json"}, quick...)...)
	require.Equal(t, exitOK, code, notes)
	require.Regexp(t, `--depth 3: skips f\S+, the profile's set for \w+`, notes)
	_, rows := benchRows(t, out)
	require.Len(t, rows, 2)
	require.InDelta(t, 3, rows[1].Depth, 0.5)
	require.NotNil(t, rows[1].RouteMS)
}

// cacheWithLibrary is the user's cache folder: the libraries lie there.
func cacheWithLibrary(t *testing.T) string {
	t.Helper()
	dir, err := os.UserCacheDir()
	require.NoError(t, err)
	return dir
}

// TestBenchShape measures a file that is in the cache folder, and deletes it.
func TestBenchShape(t *testing.T) {
	llamatest.Library(t) // from the user's own cache folder
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	whole, err := os.ReadFile(llamatest.Write(t, randmodel.Small("qwen3")))
	require.NoError(t, err)
	path := filepath.Join(cache, "gallop", "bench", "qwen3-0.6b-q8_0.gguf")
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, whole, 0o644))
	code, out, notes := invoke(t, "", append([]string{"bench", "--shape", "qwen3-0.6b", "--type", "Q8_0", "--skip", "3", "--delete", "-o", "csv"}, quick...)...)
	require.Equal(t, exitOK, code, notes)
	rows, err := csv.NewReader(strings.NewReader(out)).ReadAll()
	require.NoError(t, err)
	require.Equal(t, []string{"qwen3-0.6b-q8_0", "qwen3-0.6b"}, rows[1][:2])
	require.NoFileExists(t, path)
}

func TestBenchMistakes(t *testing.T) {
	model := llamatest.Write(t, randmodel.Small("llama"))
	for name, test := range map[string]struct {
		args []string
		code int
		want string
	}{
		"shape":          {[]string{"--shape", "llama-9"}, exitUsage, `no shape "llama-9", there are gemma-3-1b, gemma-3-4b, llama-3.1-8b`},
		"type":           {[]string{"--shape", "qwen3-4b", "--type", "q9"}, exitUsage, `--type is "q9", want one of f32, f16, q4_0, q8_0, q4_k`},
		"no such weight": {[]string{"--shape", "qwen3-4b", "--type", "q2_k"}, exitUsage, `--type is "q2_k"`},
		"format":         {[]string{"-o", "xml"}, exitUsage, `-o is "xml", want one of md, csv, json, jsonl`},
		"second format":  {[]string{"-oe", "xml"}, exitUsage, `-oe is "xml"`},
		"two formats":    {[]string{"--json", "-o", "csv"}, exitUsage, "--json and -o csv exclude each other"},
		"no prompt":      {[]string{"-p", "0"}, exitUsage, "-p is 0, -n 128, -r 5"},
		"no rounds":      {[]string{"-r", "-1"}, exitUsage, "-r -1"},
		"mask":           {[]string{"--skip", "x"}, exitUsage, "--skip: not a mask"},
		"empty mask":     {[]string{"--skip", ""}, exitUsage, "it names no layers"},
		"beyond":         {[]string{"--skip", "8"}, exitUsage, "the layers are 0 to 7"},
		"every layer":    {[]string{"--skip", "0-7"}, exitUsage, "keep at least one"},
		"depth":          {[]string{"--depth", "7"}, exitUsage, "--depth 7: not a mask: 7 layers of 8, possible are 1 to 6"},
		"percent":        {[]string{"--percent", "100"}, exitUsage, "--percent 100: not a mask: 8 layers of 8"},
		"nothing":        {[]string{"--percent", "NaN"}, exitUsage, "--percent is NaN, want a number"},
		"halves":         {[]string{"--skip", "f3", "--pruned"}, exitUsage, "no file can leave out what f3 does"},
		"cache type":     {[]string{"-ctk", "q9"}, exitUsage, "want one of"},
		"profile":        {[]string{"--profile", "x", "--shape", "qwen3-4b"}, exitUsage, "--profile goes with -m"},
		"delete":         {[]string{"--delete"}, exitUsage, "no model of your own is deleted"},
		"no profile":     {[]string{"--profile", "/none.gguf"}, exitError, "/none.gguf"},
		"no model":       {[]string{"-m", "/none.gguf"}, exitError, "there is no file /none.gguf"},
		"argument":       {[]string{"model.gguf"}, exitError, "there is no file model.gguf"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, notes := invoke(t, "", append([]string{"bench", "-m", model}, test.args...)...)
			require.Equal(t, test.code, code, notes)
			require.Empty(t, out)
			require.Contains(t, notes, test.want)
			require.Equal(t, 1, strings.Count(notes, "\n"), "one sentence, but got: %s", notes)
		})
	}
}

// TestBenchShortlist: of this many tokens, of as many as were found best, and with layers.
func TestBenchShortlist(t *testing.T) {
	llamatest.Library(t) // from the user's own cache folder
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	spec := randmodel.Small("llama")
	spec.Vocab = 1 << 14
	model := llamatest.Write(t, spec)
	code, out, notes := invoke(t, "", append([]string{"bench", model, "--shortlist", "2048", "--json"}, quick...)...)
	require.Equal(t, exitOK, code, notes)
	masks, rows := benchRows(t, out)
	require.Equal(t, []string{"", "v2048"}, masks, "no layers but those that were named")
	require.NotNil(t, rows[1].Exact)
	require.Contains(t, notes, "learning the vocabulary shortlist")

	code, out, notes = invoke(t, "", append([]string{"bench", model, "--shortlist", "auto", "--skip", "f3,v1024", "-o", "json"}, quick...)...)
	require.Equal(t, exitOK, code, notes)
	masks, _ = benchRows(t, out)
	require.Len(t, masks, 3)
	require.Equal(t, "f3,v1024", masks[1])
	require.Regexp(t, `^v2048$`, masks[2])
	require.NotContains(t, notes, "learning", "once for a model")

	code, _, notes = invoke(t, "", append([]string{"bench", "--lossless", model, "--skip", "f3,v1024", "-n", "8"}, quick...)...)
	require.Equal(t, exitOK, code, notes)

	shape := filepath.Join(cache, "gallop", "bench", "qwen3-0.6b-q8_0.gguf")
	require.NoError(t, os.MkdirAll(filepath.Dir(shape), 0o755))
	require.NoError(t, os.Rename(model, shape))
	code, out, notes = invoke(t, "", append([]string{"bench", "--shape", "qwen3-0.6b", "--type", "Q8_0", "--shortlist", "1024", "--json"}, quick...)...)
	require.Equal(t, exitOK, code, notes)
	_, rows = benchRows(t, out)
	require.InDelta(t, 1024, *rows[1].Exact, 64, "random weights say nothing of further ones")
	left, err := os.ReadDir(filepath.Dir(shape))
	require.NoError(t, err)
	require.Len(t, left, 1, "the shortlist of random weights is not kept")
	model = shape

	for name, test := range map[string]struct {
		args []string
		code int
		want string
	}{
		"word":     {[]string{model, "--shortlist", "some"}, exitUsage, `--shortlist is "some", want auto, off or a number`},
		"too many": {[]string{model, "--shortlist", "5000"}, exitError, "saves nothing with a vocabulary of 16384: take up to 4096"},
		"pruned":   {[]string{model, "--shortlist", "1024", "--pruned"}, exitUsage, "no file can have a vocabulary shortlist"},
		"in masks": {[]string{model, "--skip", "v1024", "--pruned"}, exitUsage, "no file can leave out what v1024 does"},
		"lossless": {[]string{model, "--shortlist", "1024", "--lossless"}, exitUsage, "leave out --shortlist"},
		"no gain":  {[]string{llamatest.Write(t, randmodel.Small("llama")), "--shortlist", "64"}, exitError, "a vocabulary of 384 tokens is too small"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, notes := invoke(t, "", append([]string{"bench"}, append(test.args, quick...)...)...)
			require.Equal(t, test.code, code, notes)
			require.Empty(t, out)
			require.Contains(t, notes, test.want)
			require.Equal(t, 1, strings.Count(notes, "\n"), "one sentence, but got: %s", notes)
		})
	}
}

func TestWrapWords(t *testing.T) {
	require.Equal(t, "one, two,\nthree", wrapWords([]string{"one", "two", "three"}, 10))
	require.Equal(t, "", wrapWords(nil, 10))
}

func TestBenchLossless(t *testing.T) {
	model := llamatest.Write(t, randmodel.Small("llama"))
	lossless := append([]string{"bench", "--lossless", "-m", model, "--draft-max", "2,4"}, quick...)
	code, out, notes := invoke(t, "", append(lossless, "--skip", "3", "-o", "json", "-oe", "md", "-n", "8")...)
	require.Equal(t, exitOK, code, notes)
	var rows []bench.LosslessRow
	require.NoError(t, json.Unmarshal([]byte(out), &rows))
	require.Len(t, rows, 2)
	for i, row := range rows {
		require.Equal(t, []int{2, 4}[i], row.Gamma)
		require.Equal(t, row.ComparedTokens, row.EqualTokens)
		require.InDelta(t, 1, row.Faint, 0)
	}
	require.Contains(t, notes, "speed-up")

	for want, args := range map[string][]string{
		"leave out --pruned": {"--pruned"}, "--draft-max is 17": {"--draft-max", "17"}, "not csv": {"-o", "csv"},
		"one of": {"--draft-source", "dreams"}, "--faint is 0": {"--faint", "0"},
	} {
		code, out, notes := invoke(t, "", append(lossless, args...)...)
		require.Equal(t, exitUsage, code, want)
		require.Contains(t, notes, want)
		require.Empty(t, out)
	}
}
