package models

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// alone gives the test a home folder of its own, and hides the user's stores.
func alone(t *testing.T) (home string) {
	t.Helper()
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

func put(t *testing.T, path, content string) string {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	return path
}

// hub puts a repository of these files into a Hugging Face store.
func hub(t *testing.T, folder, repo string, names ...string) (snapshot string) {
	t.Helper()
	base := filepath.Join(folder, "models--"+strings.ReplaceAll(repo, "/", "--"))
	sha := strings.Repeat("ab", 20)
	put(t, filepath.Join(base, "refs", "main"), sha+"\n")
	snapshot = filepath.Join(base, "snapshots", sha)
	for i, name := range names {
		blob := put(t, filepath.Join(base, "blobs", fmt.Sprintf("%064d", i)), "GGUF")
		path := filepath.Join(snapshot, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.Symlink(blob, path))
	}
	return snapshot
}

// ollama puts a model into an Ollama store, or only says that it is there.
func ollama(t *testing.T, folder, name, sha string, there bool) {
	t.Helper()
	put(t, filepath.Join(folder, "manifests", name), fmt.Sprintf(`{"schemaVersion":2,"layers":[
		{"mediaType":"application/vnd.ollama.image.template","digest":"sha256:%064d","size":3},
		{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:%s","size":4}]}`, 9, sha))
	if there {
		put(t, filepath.Join(folder, "blobs", "sha256-"+sha), "GGUF")
	}
}

func names(all []Model) (names []string) {
	for _, m := range all {
		names = append(names, m.Store+" "+m.Name)
	}
	return names
}

// full makes stores of all kinds with the layouts that their programs write, and
// what is broken or no model in them.
func full(t *testing.T) (home string) {
	home = alone(t)
	cache := filepath.Join(home, ".cache")
	put(t, filepath.Join(cache, "gallop", "models", "smollm2.gguf"), "GGUF")
	put(t, filepath.Join(cache, "gallop", "models", "smollm2.gallop.gguf"), "GGUF")

	hf := filepath.Join(cache, "huggingface", "hub")
	hub(t, hf, "Qwen/Qwen3-GGUF", "Qwen3-Q4_K_M.gguf", "Qwen3-Q8_0.gguf", "mmproj-F16.gguf", "README.md",
		"BF16/Qwen3-BF16-00001-of-00002.gguf", "BF16/Qwen3-BF16-00002-of-00002.gguf")
	hub(t, hf, "a/one", "strange name.gguf")
	hub(t, hf, "b/Mix-GGUF", "mix-Q5_0.gguf", "mix-Q6_K.gguf")
	put(t, filepath.Join(hf, "models--evil--ref", "refs", "main"), "../../../..") // leads out
	put(t, filepath.Join(hf, "models--no--ref", "snapshots", "x", "m.gguf"), "GGUF")
	put(t, filepath.Join(hf, "models--b--cut", "refs", "main"), strings.Repeat("cd", 20)) // fetching was stopped
	lost := hub(t, hf, "b/lost", "lost-Q8_0.gguf")
	blob, err := filepath.EvalSymlinks(filepath.Join(lost, "lost-Q8_0.gguf"))
	require.NoError(t, err)
	require.NoError(t, os.Remove(blob))

	own := os.Getenv("OLLAMA_MODELS")
	one, two := strings.Repeat("1", 64), strings.Repeat("2", 64)
	ollama(t, own, "registry.example/library/llama3.2/1b", one, true)
	ollama(t, own, "registry.example/library/llama3.2/latest", two, true)
	ollama(t, own, "hub.example/bart/Llama-GGUF/Q4_K_M", one, true)
	ollama(t, own, "registry.example/library/gone/latest", strings.Repeat("3", 64), false)
	ollama(t, own, "registry.example/library/evil/latest", "../../../../etc/passwd", false)
	put(t, filepath.Join(own, "manifests", "r", "library", "torn", "latest"), `{"layers":[`)
	put(t, filepath.Join(own, "manifests", "r", "library", "cloud", "latest"), `{"layers":[]}`)

	put(t, filepath.Join(home, ".lmstudio", "models", "pub", "Phi-GGUF", "phi-Q4_0.gguf"), "GGUF")
	put(t, filepath.Join(home, ".cache", "lm-studio", "models", "pub", "Old", "old.Q2_K.gguf"), "GGUF")
	put(t, filepath.Join(home, ".kronk", "models", "kr", "Ministral", "ministral-Q8_0.gguf"), "GGUF")
	require.NoError(t, os.Symlink(filepath.Join(home, ".kronk"), filepath.Join(home, ".kronk", "models", "loop")))
	return home
}

func TestList(t *testing.T) {
	full(t)
	found := List()
	require.Equal(t, []string{
		"gallop smollm2",
		"huggingface a/one:strange name", "huggingface b/lost:Q8_0", "huggingface b/Mix-GGUF:Q5_0", "huggingface b/Mix-GGUF:Q6_K",
		"huggingface Qwen/Qwen3-GGUF:BF16", "huggingface Qwen/Qwen3-GGUF:Q4_K_M", "huggingface Qwen/Qwen3-GGUF:Q8_0",
		"ollama bart/Llama-GGUF:Q4_K_M", "ollama evil:latest", "ollama gone:latest", "ollama llama3.2:1b", "ollama llama3.2:latest", "ollama torn:latest",
		"lmstudio pub/Old:Q2_K", "lmstudio pub/Phi-GGUF:Q4_0",
		"kronk kr/Ministral:Q8_0",
	}, withoutLoops(names(found)))
	home := os.Getenv("HOME")
	for _, m := range found {
		require.True(t, strings.HasPrefix(m.Path, home), m.Path)
		require.NotContains(t, m.Path, "..")
	}
	require.True(t, strings.HasSuffix(found[5].Path, "BF16/Qwen3-BF16-00001-of-00002.gguf"), found[5].Path)

	t.Setenv("HOME", t.TempDir())
	t.Setenv("OLLAMA_MODELS", filepath.Join(t.TempDir(), "none"))
	require.Empty(t, List(), "no store at all")
}

// withoutLoops drops what a folder that links to one above it shows again.
func withoutLoops(names []string) (kept []string) {
	for _, n := range names {
		if !strings.Contains(n, " loop/") {
			kept = append(kept, n)
		}
	}
	return kept
}

func TestHubFolders(t *testing.T) {
	home := alone(t)
	usual := filepath.Join(home, ".cache", "huggingface", "hub")
	require.Equal(t, []string{usual}, hubFolders())
	for _, c := range []struct{ name, value, want string }{
		{"XDG_CACHE_HOME", "/x", "/x/huggingface/hub"}, {"HF_HOME", "/h", "/h/hub"}, {"HUGGINGFACE_HUB_CACHE", "/g", "/g"},
		{"HF_HUB_CACHE", "/c", "/c"}, {"LLAMA_CACHE", "/l", "/l"},
	} {
		t.Setenv(c.name, c.value)
		require.Equal(t, c.want, hubFolders()[0], c.name)
		require.Contains(t, hubFolders(), usual, "what was fetched before is still found")
	}
	flat := t.TempDir() // as llama.cpp had it before it used Hugging Face's layout
	put(t, filepath.Join(flat, "org_repo_model-Q8_0.gguf"), "GGUF")
	t.Setenv("LLAMA_CACHE", flat)
	require.Equal(t, []string{"huggingface org_repo_model-Q8_0"}, names(List()))
}

func TestFind(t *testing.T) {
	full(t)
	for name, want := range map[string]string{
		"smollm2": "smollm2", "SmolLM2.gguf": "smollm2",
		"Qwen/Qwen3-GGUF:Q8_0": "Qwen/Qwen3-GGUF:Q8_0", "qwen/qwen3-gguf:q8_0": "Qwen/Qwen3-GGUF:Q8_0",
		"Qwen/Qwen3-GGUF": "Qwen/Qwen3-GGUF:Q4_K_M", "qwen3": "Qwen/Qwen3-GGUF:Q4_K_M", "qwen3:bf16": "Qwen/Qwen3-GGUF:BF16",
		"Qwen3-Q8_0": "Qwen/Qwen3-GGUF:Q8_0", "Qwen3-BF16": "Qwen/Qwen3-GGUF:BF16",
		"llama3.2": "llama3.2:latest", "llama3.2:1b": "llama3.2:1b", "bart/llama-gguf": "bart/Llama-GGUF:Q4_K_M", "llama": "bart/Llama-GGUF:Q4_K_M",
		"phi": "pub/Phi-GGUF:Q4_0", "ministral": "kr/Ministral:Q8_0", "old.Q2_K": "pub/Old:Q2_K", "mix:q6_k": "b/Mix-GGUF:Q6_K",
	} {
		m, err := Find(name)
		require.NoError(t, err, name)
		require.Equal(t, want, m.Name, name)
		path, err := Path(name)
		require.NoError(t, err)
		require.Equal(t, m.Path, path)
	}
	for name, c := range map[string]struct {
		kind error
		want string
	}{
		"b/Mix-GGUF":       {ErrAmbiguous, `several models have the name "b/Mix-GGUF": write b/Mix-GGUF:Q5_0 or b/Mix-GGUF:Q6_K`},
		"qwen33":           {ErrUnknown, `called "qwen33"; similar names: Qwen/Qwen3-GGUF:BF16, Qwen/Qwen3-GGUF:Q4_K_M and Qwen/Qwen3-GGUF:Q8_0`},
		"llama3.2:3b":      {ErrUnknown, "similar names: llama3.2:1b"},
		"nothing like it":  {ErrUnknown, "`gallop models` lists those that are here"},
		"gone":             {ErrMissing, "gone:latest of ollama is at "},
		"evil":             {ErrMissing, "fetch it again"},
		"torn":             {ErrMissing, "the manifest cannot be read"},
		"b/lost":           {ErrMissing, "b/lost:Q8_0 of huggingface is at "},
		"../../etc/passwd": {ErrUnknown, "neither a file nor a model"},
	} {
		_, err := Find(name)
		require.ErrorIs(t, err, c.kind, name)
		require.ErrorContains(t, err, c.want)
	}

	// An earlier store goes before a later one, and a file before all.
	put(t, filepath.Join(os.Getenv("HOME"), ".cache", "gallop", "models", "phi.gguf"), "GGUF")
	m, err := Find("phi")
	require.NoError(t, err)
	require.Equal(t, Gallop, m.Store)
	t.Chdir(t.TempDir())
	put(t, "phi", "GGUF")
	path, err := Path("phi")
	require.NoError(t, err)
	require.Equal(t, "phi", path)
	for _, path := range []string{"./phi2", "/nowhere/phi", "../phi", "~/phi", "nowhere.gguf", "a/b.gguf"} {
		got, err := Path(path)
		require.NoError(t, err)
		require.Equal(t, path, got, "its reader says that it is not there")
	}
}

func TestTags(t *testing.T) {
	for name, want := range map[string]string{
		"Qwen3-8B-Q4_K_M.gguf": "Q4_K_M", "a.q8_0.gguf": "Q8_0", "b-UD-IQ2_XXS.gguf": "UD-IQ2_XXS", "c-bf16.gguf": "BF16", "d-TQ1_0.gguf": "TQ1_0",
		"e-MXFP4_MOE-00001-of-00003.gguf": "MXFP4_MOE", "smollm2.gguf": "smollm2", "Q8_0.gguf": "Q8_0", "f-iq4_nl.GGUF": "IQ4_NL",
	} {
		require.Equal(t, want, tagOf("/x/"+name), name)
	}
	require.Equal(t, 0, edits("abc", "abc"))
	require.Equal(t, 3, edits("", "abc"))
	require.Equal(t, 2, edits("kitten", "sittin"))
}
