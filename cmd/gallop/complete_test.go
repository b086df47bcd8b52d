package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/lab/bench"
	"github.com/gallop-llm/gallop/libs"
)

// complete is what the shell is offered in the place of the last argument, and what
// else it may complete.
func complete(t *testing.T, args ...string) (words []string, directive string) {
	t.Helper()
	code, out, _ := runGallop(append([]string{cobra.ShellCompNoDescRequestCmd}, args...)...)
	require.Equal(t, exitOK, code)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return lines[:len(lines)-1], lines[len(lines)-1]
}

// TestCompletion completes what flags take, and models by name.
func TestCompletion(t *testing.T) {
	alone(t)
	const files, none = ":0", ":4"
	for _, c := range []struct {
		args, words string // separated by blanks
		directive   string
	}{
		{"chat --route ", "turn chat off", none},
		{"run -fa ", "auto grouped off on", none},
		{"run -ctk ", "bf16 f16 f32 q4_0 q8_0", none},
		{"serve -ctv ", "bf16 f16 f32 q4_0 q8_0", none},
		{"chat --prefill ", "masked full", none},
		{"run --shortlist ", "auto off", none},
		{"calibrate --features ", "ngram embedding ngram+embedding", none},
		{"chat --draft-source ", "both lookup mask", none},
		{"calibrate --unit ", "feed-forward layer sublayer", none},
		{"calibrate --preset ", "pudding-llama-3.1-8b", none},
		{"setup --device ", strings.Join(libs.Devices, " "), none},
		{"bench -o ", strings.Join(bench.Formats, " "), none},
		{"bench --type ", strings.Join(typeNames(), " "), none},
		{"chat --temp ", "", none},
		{"chat -s ", "", none},
		{"run --grammar-file ", "", files},
		{"calibrate -o ", "", files},
	} {
		words, directive := complete(t, strings.Split(c.args, " ")...)
		require.ElementsMatch(t, strings.Fields(c.words), words, c.args)
		require.Equal(t, c.directive, directive, c.args)
	}

	// Models by name, beside files.
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	folder := filepath.Join(cache, "gallop", "models")
	require.NoError(t, os.MkdirAll(folder, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(folder, "some-model.gguf"), []byte("GGUF"), 0o644))
	for _, args := range [][]string{{"chat", "-m", "some"}, {"chat", "some"}, {"profile", "show", "some"}, {"inspect", "-m", "some"}} {
		words, directive := complete(t, args...)
		require.Contains(t, words, "some-model", args)
		require.Equal(t, files, directive)
	}
}
