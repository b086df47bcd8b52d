package models

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/gallop-llm/gallop/gguf"
)

// Stores, in the order in which a name is looked up.
const (
	Gallop      = "gallop"
	HuggingFace = "huggingface"
	Ollama      = "ollama"
	LMStudio    = "lmstudio"
	Kronk       = "kronk"
)

// Model is a model in a store.
type Model struct {
	Name  string // what -m takes: "org/repo:Q4_K_M", "llama3.2:1b", "smollm2"
	Repo  string // Name without the tag; "" = the store has no repositories
	Tag   string // "Q4_K_M", "1b"; "" without a repository
	Store string
	Path  string // the file, of a split model the first
}

// maxDepth is how deep folders in a store are looked through, PUBLISHER/REPO and one
// more: it ends loops of links, and a link to the whole disk is not followed far.
const maxDepth = 3

// List gives all models, store by store, sorted by name. Files are not opened: those
// that cannot be read are listed too.
func List() []Model {
	var all []Model
	for _, store := range []func() []Model{gallopModels, hubModels, ollamaModels, lmStudioModels, kronkModels} {
		found := store()
		byName := map[string]int{}
		for _, m := range found {
			byName[m.Name]++
		}
		for i, m := range found {
			if byName[m.Name] > 1 && m.Repo != "" && m.Store != Ollama { // two files of one quantisation
				found[i].Tag = stem(m.Path)
				found[i].Name = m.Repo + ":" + found[i].Tag
			}
		}
		slices.SortStableFunc(found, func(a, b Model) int {
			return cmp.Or(cmp.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)), cmp.Compare(a.Path, b.Path))
		})
		all = append(all, slices.CompactFunc(found, func(a, b Model) bool { return a == b })...)
	}
	return all
}

// stem is a file's name without its ending and the number of a part.
func stem(path string) string {
	name := filepath.Base(gguf.Stem(path))
	if ext := filepath.Ext(name); strings.EqualFold(ext, ".gguf") {
		name = strings.TrimSuffix(name, ext)
	}
	return name
}

// quantisation is what ends the names of quantised files: "Q4_K_M", "UD-IQ2_XXS", "BF16".
var quantisation = regexp.MustCompile(`(?i)[-._]((?:UD-)?(?:[IT]?Q\d\w*|BF16|F16|F32|FP16|MXFP4\w*|NVFP4\w*))$`)

// tagOf is the quantisation in a file's name, or the name.
func tagOf(path string) string {
	name := stem(path)
	if found := quantisation.FindStringSubmatch(name); found != nil {
		return strings.ToUpper(found[1])
	}
	return name
}

// isModel tells a model's file by its name from profiles, projectors, importance
// matrices and the further parts of a split model.
func isModel(name string) bool {
	name = strings.ToLower(filepath.Base(name))
	_, part, _, split := gguf.PartName(name)
	return strings.HasSuffix(name, ".gguf") && !strings.HasSuffix(name, profileSuffix) &&
		!strings.Contains(name, "mmproj") && !strings.Contains(name, "imatrix") && (!split || part == 1)
}

// profileSuffix ends the names of Gallop's profiles.
const profileSuffix = ".gallop.gguf"

// ggufs lists the paths of models below a folder. Links are followed; hidden folders
// are left out.
func ggufs(folder string, depth int) (paths []string) {
	entries, _ := os.ReadDir(folder)
	for _, e := range entries {
		path := filepath.Join(folder, e.Name())
		info, err := os.Stat(path)
		switch {
		case strings.HasPrefix(e.Name(), "."):
		case err == nil && info.IsDir():
			if depth > 0 {
				paths = append(paths, ggufs(path, depth-1)...)
			}
		case isModel(e.Name()):
			paths = append(paths, path)
		}
	}
	return paths
}

// published lists the models of a folder that has PUBLISHER/REPO/FILE in it. Files
// that are not as deep have no repository.
func published(store, folder string) (found []Model) {
	for _, path := range ggufs(folder, maxDepth) {
		m := Model{Name: stem(path), Store: store, Path: path}
		inside, err := filepath.Rel(folder, path)
		if parts := strings.Split(filepath.ToSlash(inside), "/"); err == nil && len(parts) > 2 {
			m.Repo, m.Tag = parts[0]+"/"+parts[1], tagOf(path)
			m.Name = m.Repo + ":" + m.Tag
		}
		found = append(found, m)
	}
	return found
}

// home is a path below the user's home folder, "" when there is none.
func home(parts ...string) string {
	dir, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(append([]string{dir}, parts...)...)
}

func gallopModels() []Model {
	cache, err := os.UserCacheDir()
	if err != nil {
		return nil
	}
	return published(Gallop, filepath.Join(cache, "gallop", "models"))
}

func lmStudioModels() []Model {
	return append(published(LMStudio, home(".lmstudio", "models")), published(LMStudio, home(".cache", "lm-studio", "models"))...)
}

func kronkModels() []Model { return published(Kronk, home(".kronk", "models")) }

// hubFolders lists where Hugging Face's programs and llama.cpp keep models, the one
// that they would use now first.
func hubFolders() (folders []string) {
	for _, place := range []struct{ base, below string }{
		{os.Getenv("LLAMA_CACHE"), ""}, {os.Getenv("HF_HUB_CACHE"), ""}, {os.Getenv("HUGGINGFACE_HUB_CACHE"), ""},
		{os.Getenv("HF_HOME"), "hub"}, {os.Getenv("XDG_CACHE_HOME"), "huggingface/hub"}, {home(".cache"), "huggingface/hub"},
	} {
		if folder := filepath.Join(place.base, place.below); place.base != "" && !slices.Contains(folders, folder) {
			folders = append(folders, folder)
		}
	}
	return folders
}

// commit is the name of a snapshot's folder.
var commit = regexp.MustCompile(`^[0-9a-f]{40}$`)

func hubModels() (found []Model) {
	for _, folder := range hubFolders() {
		entries, _ := os.ReadDir(folder)
		for _, e := range entries {
			repo, isRepo := strings.CutPrefix(e.Name(), "models--")
			if path := filepath.Join(folder, e.Name()); !isRepo && isModel(path) { // as older llama.cpp has it
				found = append(found, Model{Name: stem(path), Store: HuggingFace, Path: path})
			}
			if !isRepo {
				continue
			}
			repo = strings.ReplaceAll(repo, "--", "/")
			for _, path := range ggufs(snapshot(filepath.Join(folder, e.Name())), maxDepth) {
				tag := tagOf(path)
				found = append(found, Model{Name: repo + ":" + tag, Repo: repo, Tag: tag, Store: HuggingFace, Path: path})
			}
		}
	}
	return found
}

// snapshot is the folder of a repository's newest files.
func snapshot(repo string) string {
	ref, _ := readSmall(filepath.Join(repo, "refs", "main"))
	if name := strings.TrimSpace(string(ref)); commit.MatchString(name) {
		return filepath.Join(repo, "snapshots", name)
	}
	return filepath.Join(repo, "snapshots", "none")
}

// ollamaFolders lists where Ollama keeps models: as the user's own program, and as
// the service that its installer sets up.
func ollamaFolders() []string {
	if folder := os.Getenv("OLLAMA_MODELS"); folder != "" {
		return []string{folder}
	}
	return []string{home(".ollama", "models"), "/usr/share/ollama/.ollama/models"}
}

// manifest is what of Ollama's description of a model counts here.
type manifest struct {
	Layers []struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
	} `json:"layers"`
}

// digest names a blob.
var digest = regexp.MustCompile(`^sha256[:-]([0-9a-f]{64})$`)

func ollamaModels() (found []Model) {
	for _, folder := range ollamaFolders() {
		paths, _ := filepath.Glob(filepath.Join(folder, "manifests", "*", "*", "*", "*"))
		for _, path := range paths {
			names := strings.Split(filepath.ToSlash(path), "/")
			names = names[len(names)-3:] // NAMESPACE, NAME, TAG
			m := Model{Repo: names[0] + "/" + names[1], Tag: names[2], Store: Ollama}
			if names[0] == "library" { // Ollama's own
				m.Repo = names[1]
			}
			m.Name = m.Repo + ":" + m.Tag
			if blob, ok := modelBlob(path); ok {
				m.Path = filepath.Join(folder, "blobs", blob)
				found = append(found, m)
			}
		}
	}
	return found
}

// modelBlob is the file of the model that a manifest is about. Of a manifest that
// cannot be read it is one that is not there. ok is false where there is no model in
// it, as in one of a model elsewhere.
func modelBlob(path string) (name string, ok bool) {
	const broken = "the manifest cannot be read"
	var m manifest
	data, err := readSmall(path)
	if err != nil || json.Unmarshal(data, &m) != nil {
		return broken, true
	}
	for _, layer := range m.Layers {
		if layer.MediaType != "application/vnd.ollama.image.model" {
			continue
		}
		sum := digest.FindStringSubmatch(layer.Digest)
		if sum == nil {
			return broken, true
		}
		return "sha256-" + sum[1], true
	}
	return "", false
}

// readSmall reads a file that should have a few kilobytes.
func readSmall(path string) ([]byte, error) {
	const most = 1 << 20
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}
