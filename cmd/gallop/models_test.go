package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/router"
)

// noStores gives the test a home folder without any models. The libraries come from
// the user's own.
func noStores(t *testing.T) (home string) {
	t.Helper()
	llamatest.Library(t)
	home = t.TempDir()
	t.Setenv("HOME", home)
	for _, name := range []string{
		"XDG_CACHE_HOME", "LLAMA_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "HF_ENDPOINT", "MODEL_ENDPOINT",
		"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH",
	} {
		t.Setenv(name, "")
	}
	t.Setenv("OLLAMA_MODELS", filepath.Join(home, ".ollama", "models"))
	return home
}

func copyTo(t *testing.T, src, dst string) {
	t.Helper()
	data, err := os.ReadFile(src)
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Dir(dst), 0o755))
	require.NoError(t, os.WriteFile(dst, data, 0o644))
}

// stores makes a store of each kind with the model in it, and gives the names.
func stores(t *testing.T, home, model string) []string {
	t.Helper()
	sha := strings.Repeat("ab", 32)
	copyTo(t, model, filepath.Join(home, ".cache", "gallop", "models", "mine.gguf"))
	repo := filepath.Join(home, ".cache", "huggingface", "hub", "models--org--Tiny-GGUF")
	copyTo(t, model, filepath.Join(repo, "snapshots", sha[:40], "tiny-F32.gguf"))
	require.NoError(t, os.MkdirAll(filepath.Join(repo, "refs"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(repo, "refs", "main"), []byte(sha[:40]), 0o644))
	ollama := os.Getenv("OLLAMA_MODELS")
	copyTo(t, model, filepath.Join(ollama, "blobs", "sha256-"+sha))
	manifest := filepath.Join(ollama, "manifests", "registry.example", "library", "small", "1m")
	require.NoError(t, os.MkdirAll(filepath.Dir(manifest), 0o755))
	require.NoError(t, os.WriteFile(manifest, fmt.Appendf(nil, `{"layers":[{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:%s"}]}`, sha), 0o644))
	copyTo(t, model, filepath.Join(home, ".lmstudio", "models", "pub", "Studio", "studio-F32.gguf"))
	copyTo(t, model, filepath.Join(home, ".kronk", "models", "kr", "Kr", "kr-F32.gguf"))
	return []string{"mine", "org/Tiny-GGUF:F32", "small:1m", "pub/Studio:F32", "kr/Kr:F32"}
}

func TestModels(t *testing.T) {
	home := noStores(t)
	code, out, _ := invoke(t, "", "models")
	require.Equal(t, exitOK, code)
	require.Equal(t, "no model is here; `-hf ORG/REPO` fetches one, and without a model the commands use the demo model\n", out)
	code, out, _ = invoke(t, "", "models", "--json")
	require.Equal(t, exitOK, code)
	require.Equal(t, "[]\n", out)

	model := llamatest.Tiny(t, 3)
	names := stores(t, home, model)
	own := filepath.Join(home, ".cache", "gallop", "models")
	require.NoError(t, os.WriteFile(filepath.Join(own, "torn.gguf"), []byte("GGUF\x03"), 0o644))
	embedder := llamatest.Rewrite(t, model, func(meta *gguf.Metadata) { meta.Set("llama.attention.causal", false) })
	require.NoError(t, os.Rename(embedder, filepath.Join(own, "vectors.gguf")))
	split := llamatest.Split(t, model, 3)
	for part := 1; part <= 3; part++ {
		name := fmt.Sprintf("model-0000%d-of-00003.gguf", part)
		copyTo(t, filepath.Join(filepath.Dir(split), name), filepath.Join(own, "parts-"+name))
	}
	require.NoError(t, os.WriteFile(filepath.Join(own, "mine.gallop.gguf"), nil, 0o644))

	code, out, notes := invoke(t, "", "models", "--json")
	require.Equal(t, exitOK, code, notes)
	var rows []listed
	require.NoError(t, json.Unmarshal([]byte(out), &rows))
	byName := map[string]listed{}
	for _, row := range rows {
		byName[row.Name] = row
	}
	info, err := os.Stat(model)
	require.NoError(t, err)
	for _, name := range append(names, "parts-model") {
		row := byName[name]
		require.Equal(t, "llama", row.Architecture, name)
		require.Equal(t, 3, row.Layers, name)
		require.GreaterOrEqual(t, row.Bytes, info.Size(), name)
		require.NotEmpty(t, row.Type)
		require.Empty(t, row.Problem)
		require.FileExists(t, row.Path)
		require.Equal(t, name == "mine", row.Profile != "", name)
	}
	require.Len(t, rows, len(names)+3)
	require.Contains(t, byName["torn"].Problem, "the file is cut short")
	require.Contains(t, byName["vectors"].Problem, "it is an embedding model (llama)")

	code, out, _ = invoke(t, "", "models")
	require.Equal(t, exitOK, code)
	require.Regexp(t, `(?m)^small:1m +\S+ \S+ +F32 +llama +3 +– +ollama$`, out)
	require.Regexp(t, `(?m)^torn: .*the file is cut short`, out)

	// By their names in the commands that take a model.
	for _, name := range append(names, "parts-model", "tiny-gguf", "SMALL:1M", "studio") {
		code, out, notes = invoke(t, "", "inspect", "--json", name)
		require.Equal(t, exitOK, code, notes)
		require.Contains(t, out, `"architecture": "llama"`)
	}
	for _, args := range [][]string{
		{"run", "-m", "small:1m", "-t", "1", "-n", "2", "hello"}, {"run", "small:1m", "-t", "1", "-n", "2", "hello"},
		{"prune", "pub/Studio:F32", "--skip", "1", "-o", filepath.Join(t.TempDir(), "out.gguf")},
		{"bench", "-m", "small:1m", "-m", "kr", "-p", "4", "-n", "2", "-r", "1", "-t", "1"},
	} {
		code, _, notes = invoke(t, "", args...)
		require.Equal(t, exitOK, code, notes)
	}
	code, _, notes = invoke(t, "hello\n", "chat", "small:1m", "-t", "1", "-n", "2")
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, notes, "3 layers, context of ")
	code, _, notes = invoke(t, "", "chat", "smal:1m")
	require.Equal(t, exitUsage, code)
	require.Contains(t, notes, `similar names: small:1m; to say it first, write -p "smal:1m"`)
	for name, want := range map[string]string{
		"smal:1m":   `gallop: no such model: neither a file nor a model is called "smal:1m"; similar names: small:1m`,
		"xyz":       `gallop: no such model: neither a file nor a model is called "xyz"; ` + "`gallop models` lists those that are here",
		"none.gguf": "gallop: there is no file none.gguf: check the path",
		"vectors":   "vectors.gguf: the model writes no text: it is an embedding model (llama), which turns texts into numbers; name a model that writes",
	} {
		code, out, notes = invoke(t, "", "run", "-m", name, "hello")
		require.Equal(t, exitError, code, notes)
		require.Contains(t, notes, want)
		require.Empty(t, out)
	}
	code, _, notes = invoke(t, "", "doctor", "-m", "xyz")
	require.Equal(t, exitError, code)
	require.Contains(t, notes, "no such model")
	code, out, notes = invoke(t, "", "run", "-t", "1", "-n", "2", "--json", "mine", "is", "here")
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, out, `"prompt_tokens"`, "a word of letters alone is the prompt's")
	require.NoFileExists(t, filepath.Join(os.Getenv("OLLAMA_MODELS"), "blobs", "sha256-"+strings.Repeat("ab", 32)+".gallop.gguf"))
}

func TestProfilePath(t *testing.T) {
	llamatest.Library(t)
	dir := t.TempDir()
	path, err := profilePath(filepath.Join(dir, "a.gguf"), router.Fingerprint{Architecture: "llama", Layers: 3, Hash: 5})
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "a.gallop.gguf"), path)
	path, err = profilePath(filepath.Join(dir, "sha256-12"), router.Fingerprint{Architecture: "llama", Layers: 3, Hash: 5})
	require.NoError(t, err)
	require.Contains(t, path, filepath.Join("gallop", "profiles"), "Ollama deletes what it does not know")
}

// TestHub fetches a model from a local hub by -hf.
func TestHub(t *testing.T) {
	home := noStores(t)
	model, err := os.ReadFile(llamatest.Tiny(t, 2))
	require.NoError(t, err)
	sum := sha256.Sum256(model)
	const commit = "0123456789abcdef0123456789abcdef01234567"
	fetched, down := 0, false
	hub := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case down:
			w.WriteHeader(http.StatusForbidden)
		case r.URL.Path == "/api/models/org/Tiny-GGUF/refs":
			fmt.Fprintf(w, `{"branches":[{"name":"main","targetCommit":%q}]}`, commit)
		case r.URL.Path == "/api/models/org/Tiny-GGUF/tree/"+commit:
			fmt.Fprintf(w, `[{"type":"file","path":"tiny-F32.gguf","size":%d,"oid":"%040d","lfs":{"oid":%q,"size":%d}}]`, len(model), 0, hex.EncodeToString(sum[:]), len(model))
		case r.URL.Path == "/org/Tiny-GGUF/resolve/"+commit+"/tiny-F32.gguf":
			fetched++
			_, _ = w.Write(model)
		default:
			http.NotFound(w, r)
		}
	}))
	defer hub.Close()
	t.Setenv("HF_ENDPOINT", hub.URL)
	run := []string{"run", "-t", "1", "-n", "2", "hello"}

	code, _, notes := invoke(t, "", append(run, "-hf", "org/Tiny-GGUF")...)
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, notes, "fetching org/Tiny-GGUF, 0 B of ")
	for _, args := range [][]string{{"-hf=org/Tiny-GGUF:F32"}, {"-m", "hf://org/Tiny-GGUF"}, {"-m", "org/Tiny-GGUF"}} {
		code, _, notes = invoke(t, "", append(run, args...)...)
		require.Equal(t, exitOK, code, notes)
		require.NotContains(t, notes, "fetching")
	}
	require.Equal(t, 1, fetched)
	require.FileExists(t, filepath.Join(home, ".cache", "huggingface", "hub", "models--org--Tiny-GGUF", "snapshots", commit, "tiny-F32.gguf"))

	t.Setenv("GALLOP_HF", "org/Nothing-GGUF")
	code, _, notes = invoke(t, "", append(run, "-m", "tiny")...)
	require.Equal(t, exitOK, code, notes)
	code, _, notes = invoke(t, "", run...)
	require.Equal(t, exitError, code)
	require.Contains(t, notes, "no such model on the hub: there is no org/Nothing-GGUF at 127.0.0.1")
	t.Setenv("GALLOP_HF", "")
	for want, args := range map[string][]string{
		"-m and -hf exclude each other": {"-m", "tiny", "-hf", "org/Tiny-GGUF"}, "-hf is empty": {"-hf", ""},
	} {
		code, _, notes = invoke(t, "", append(run, args...)...)
		require.Equal(t, exitUsage, code, notes)
		require.Contains(t, notes, want)
	}
	down = true
	code, _, notes = invoke(t, "", append(run, "-hf", "org/Tiny-GGUF")...)
	require.Equal(t, exitError, code, "a hub that refuses is not out of reach")
	require.Contains(t, notes, "the hub gives no access")
	hub.Close()
	code, _, notes = invoke(t, "", append(run, "-hf", "org/Tiny-GGUF")...)
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, notes, "gallop: goes on with the org/Tiny-GGUF:F32 that is here: the hub does not deliver")
}

// TestSplitModel runs commands on the demo model in three files, with its profile.
func TestSplitModel(t *testing.T) {
	llamatest.Library(t)
	whole, err := demo.Path()
	require.NoError(t, err)
	split := llamatest.Split(t, whole, 3)
	ask := []string{"-t", "1", "--json", "What is the capital of France?"}
	for _, args := range [][]string{{"run", "--route", "off"}, {"run", "--skip", "f3,5"}} {
		var answers []string
		for _, model := range []string{whole, split} {
			code, out, notes := invoke(t, "", append(append(args, "-m", model), ask...)...)
			require.Equal(t, exitOK, code, notes)
			var r runResult
			require.NoError(t, json.Unmarshal([]byte(out), &r))
			answers = append(answers, r.Text)
		}
		require.Equal(t, answers[0], answers[1])
	}
	copyTo(t, strings.TrimSuffix(whole, ".gguf")+".gallop.gguf", filepath.Join(filepath.Dir(split), "model.gallop.gguf"))
	code, out, notes := invoke(t, "", "route", "-m", split, "What is the capital of France?")
	require.Equal(t, exitOK, code, notes)
	require.NotEmpty(t, out)
	code, out, notes = invoke(t, "", "inspect", split)
	require.Equal(t, exitOK, code, notes)
	require.Contains(t, out, "3 files make up the model")
	code, _, notes = invoke(t, "", "bench", "-m", split, "--skip", "3,5", "--pruned", "-p", "8", "-n", "4", "-r", "1", "-t", "1")
	require.Equal(t, exitOK, code, notes)
	code, _, notes = invoke(t, "", "run", "-m", strings.Replace(split, "00001-of", "00002-of", 1), "hello")
	require.Equal(t, exitError, code)
	require.Contains(t, notes, "name the model by its first part, model-00001-of-00003.gguf")
}

// TestSamplingOutOfRange wants a usage error before a model is looked for.
func TestSamplingOutOfRange(t *testing.T) {
	for want, args := range map[string][]string{
		"top-p is 1.5, want 0 to 1":         {"--top-p", "1.5"},
		"top-p is -0.1":                     {"--top-p", "-0.1"},
		"min-p is 2":                        {"--min-p", "2"},
		"temperature is -1":                 {"--temp", "-1"},
		"repeat penalty is -1":              {"--repeat-penalty", "-1"},
		"repeat-last-n is -2, want -1 to":   {"--repeat-last-n", "-2"},
		"presence penalty is 1000":          {"--presence-penalty", "1000"},
		"frequency penalty is -1000":        {"--frequency-penalty", "-1000"},
		"--temp is NaN, want a number":      {"--temp", "nan"},
		"--seed is -2":                      {"--seed", "-2"},
		`--logit-bias "x+1": write TOKEN+B`: {"-l", "x+1"},
	} {
		for _, command := range [][]string{{"run", "hello"}, {"chat"}, {"compare"}} {
			code, out, notes := invoke(t, "", slices.Concat(command, []string{"-m", "/nowhere.gguf"}, args)...)
			require.Equal(t, exitUsage, code, "%v %v: %s", command, args, notes)
			require.Contains(t, notes, want)
			require.Empty(t, out)
		}
	}
	t.Setenv("GALLOP_TOP_P", "3")
	code, _, notes := invoke(t, "", "run", "-m", "/nowhere.gguf", "hello")
	require.Equal(t, exitUsage, code)
	require.Contains(t, notes, "top-p is 3")
}
