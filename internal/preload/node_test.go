package preload_test

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/prune"
	"github.com/gallop-llm/gallop/llama"
)

// installNode puts node-llama-cpp into a folder beside test/preload's program
// and returns the folder. Its native part is the package of which llama.cpp was
// installed here: a copy, so that the other builds (700 MB) stay away.
func installNode(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"package.json", "package-lock.json", "gen.mjs"} {
		data, err := os.ReadFile(filepath.Join(root, "test", "preload", name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), data, 0o644))
	}
	// Not `npm ci`: the lock file cannot hold builds that were never published.
	cmd := exec.Command("npm", "install", "--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "NODE_LLAMA_CPP_SKIP_DOWNLOAD=true")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "npm: %s", out)
	lock, err := os.ReadFile(filepath.Join(dir, "package-lock.json"))
	require.NoError(t, err)
	want, err := os.ReadFile(filepath.Join(root, "test", "preload", "package-lock.json"))
	require.NoError(t, err)
	require.Equal(t, string(want), string(lock), "npm installed something else than the lock file says")

	native := filepath.Dir(filepath.Dir(filepath.Dir(libllama(t)))) // <package>/bins/<platform>/libllama
	copied := filepath.Join(dir, "node_modules", "@node-llama-cpp", filepath.Base(native))
	require.NoError(t, os.MkdirAll(filepath.Dir(copied), 0o755))
	require.NoError(t, os.CopyFS(copied, os.DirFS(native)))
	return dir
}

// buildGallop builds the program with the library beside it.
func buildGallop(t *testing.T) string {
	t.Helper()
	library := buildLibrary(t)
	path := filepath.Join(filepath.Dir(library), "gallop")
	out, err := exec.Command("go", "build", "-o", path, root+"/cmd/gallop").CombinedOutput()
	require.NoError(t, err, "go build: %s", out)
	return path
}

// prompts writes some questions in the demo model's chat format.
func prompts(t *testing.T, path string) []string {
	t.Helper()
	model, err := llama.LoadModel(context.Background(), path, &llama.ModelOptions{VocabOnly: true})
	require.NoError(t, err)
	defer model.Close()
	var all []string
	for _, question := range []string{
		"What is the capital of France?",
		"What is the opposite of hot?",
		"Sort these numbers: 7 3 9 1",
		"Tell me a short story about a dog.",
	} {
		text, err := model.ApplyTemplate([]llama.Message{{Role: "user", Content: question}}, true)
		require.NoError(t, err)
		all = append(all, text)
	}
	return all
}

// node-llama-cpp knows nothing of Gallop: its own process, its own copy of the
// libraries. Under the library it writes what it writes on the pruned file.
func TestNodeLlamaCpp(t *testing.T) {
	if os.Getenv("GALLOP_LONG") == "" {
		t.Skip("installs and runs node-llama-cpp: set GALLOP_LONG=1, as `make test-long` does")
	}
	if runtime.GOOS != "linux" {
		t.Skip("the preload library is for Linux")
	}
	llamatest.Library(t)
	gallop, dir := buildGallop(t), installNode(t)
	model, err := demo.Path()
	require.NoError(t, err)
	questions := prompts(t, model)
	program := func(path, prompt string) []string {
		return []string{"node", filepath.Join(dir, "gen.mjs"), path, prompt, "32"}
	}
	read := func(output string) string {
		var result struct{ Text string }
		require.NoError(t, json.Unmarshal([]byte(output), &result), output)
		return result.Text
	}
	plain := func(path, prompt string) string {
		args := program(path, prompt)
		out, err := exec.Command(args[0], args[1:]...).Output()
		require.NoError(t, err)
		return read(string(out))
	}

	differing := 0
	whole := map[string]string{}
	for _, prompt := range questions {
		whole[prompt] = plain(model, prompt)
		require.NotEmpty(t, whole[prompt])
		t.Logf("whole: %q", whole[prompt])
	}
	for _, mask := range []string{"4", "5,7", "0,11", "2-3,6,9"} {
		t.Run(mask, func(t *testing.T) {
			layers, _ := parse(t, mask).WholeLayers()
			pruned := filepath.Join(t.TempDir(), "pruned.gguf")
			require.NoError(t, prune.Layers(context.Background(), model, pruned, layers, nil))
			for _, prompt := range questions {
				cmd := exec.Command(gallop, append([]string{"exec", "--skip", mask, "--"}, program(model, prompt)...)...)
				var errOut bytes.Buffer
				cmd.Stderr = &errOut
				out, err := cmd.Output()
				require.NoError(t, err, errOut.String())
				require.Equal(t, plain(pruned, prompt), read(string(out)))
				t.Logf("without %s: %q", mask, read(string(out)))
				if read(string(out)) != whole[prompt] {
					differing++
				}
			}
		})
	}
	require.Positive(t, differing, "no answer changed, so this test shows nothing")
}
