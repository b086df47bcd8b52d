package models

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/download"
	"github.com/gallop-llm/gallop/internal/files"
)

// hubEndpoint is the hub where HF_ENDPOINT names no other.
const hubEndpoint = "https://huggingface.co"

// Hub is a model hub, and where its models go.
type Hub struct {
	Endpoint string // URL without a slash at its end
	Token    string // sent to Endpoint and nowhere else; "" = none
	Folder   string // of the Hugging Face store

	Progress func(done, total int64) // bytes of all files of a model; nil = none
	Pause    time.Duration           // before the first further try; doubled for each
	Stall    time.Duration           // without any byte, after which a request has failed
}

// NewHub is the hub that the environment names, with the token that it or Hugging
// Face's own programs have.
func NewHub() (*Hub, error) {
	folders := hubFolders()
	if len(folders) == 0 {
		return nil, errors.New("there is no folder for models: set HOME or HF_HOME")
	}
	endpoint := cmp.Or(os.Getenv("MODEL_ENDPOINT"), os.Getenv("HF_ENDPOINT"), hubEndpoint)
	u, err := url.Parse(endpoint)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("HF_ENDPOINT is %q, want a URL as %s", endpoint, hubEndpoint)
	}
	secret := token()
	if strings.ContainsFunc(secret, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("the token for the hub has blanks, line breaks or the like in it: put the token alone into HF_TOKEN")
	}
	return &Hub{
		Endpoint: strings.TrimRight(endpoint, "/"), Token: secret, Folder: folders[0],
		Pause: time.Second, Stall: 30 * time.Second,
	}, nil
}

// token is the user's own, from where Hugging Face's programs have it.
func token() string {
	for _, name := range []string{"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"} {
		if value := strings.TrimSpace(os.Getenv(name)); value != "" {
			return value
		}
	}
	places := []string{os.Getenv("HF_TOKEN_PATH")}
	for _, folder := range []string{os.Getenv("HF_HOME"), home(".cache", "huggingface")} {
		if folder != "" {
			places = append(places, filepath.Join(folder, "token"))
		}
	}
	for _, place := range places {
		if data, err := readSmall(place); err == nil && len(data) > 0 {
			return strings.TrimSpace(string(data))
		}
	}
	return ""
}

// remote is a file of a repository.
type remote struct {
	Type string `json:"type"` // "file" or "directory"
	Path string `json:"path"`
	Size int64  `json:"size"`
	Oid  string `json:"oid"` // git's SHA-1 of the file, or of the pointer to it
	LFS  *struct {
		Oid  string `json:"oid"` // SHA-256 of the file
		Size int64  `json:"size"`
	} `json:"lfs"`
}

// sum is the checksum of the file, which names its blob too.
func (r remote) sum() string {
	if r.LFS != nil {
		return r.LFS.Oid
	}
	return r.Oid
}

func (r remote) size() int64 {
	if r.LFS != nil {
		return r.LFS.Size
	}
	return r.Size
}

var (
	repoName = regexp.MustCompile(`^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$`)
	checksum = regexp.MustCompile(`^([0-9a-f]{40}|[0-9a-f]{64})$`)
)

// Fetch brings a model into the store and returns the path of its file, of a split
// model the first. name is ORG/REPO or ORG/REPO:QUANT; without a quantisation it is
// Q4_K_M, else Q8_0, else the first. The profile beside the model, if there is one,
// comes too. What is there already is not fetched again, and what an earlier call left
// goes on from where it was.
func (h *Hub) Fetch(ctx context.Context, name string) (string, error) {
	repo, quant, _ := strings.Cut(name, ":")
	if !repoName.MatchString(repo) || strings.Contains(repo, "--") || strings.Contains(repo, "..") {
		return "", fmt.Errorf("%w: %q is not ORG/REPO or ORG/REPO:QUANT, as in Qwen/Qwen2.5-0.5B-Instruct-GGUF:Q8_0", ErrName, name)
	}
	revision, err := h.revision(ctx, repo)
	if err != nil {
		return "", err
	}
	all, err := h.tree(ctx, repo, revision)
	if err != nil {
		return "", err
	}
	wanted, err := pick(repo, quant, all)
	if err != nil {
		return "", err
	}
	return h.fetch(ctx, repo, revision, wanted)
}

// revision is the commit that main stands for.
func (h *Hub) revision(ctx context.Context, repo string) (string, error) {
	var refs struct {
		Branches []struct {
			Name         string `json:"name"`
			TargetCommit string `json:"targetCommit"`
		} `json:"branches"`
	}
	if _, err := h.get(ctx, repo, h.Endpoint+"/api/models/"+repo+"/refs", &refs); err != nil {
		return "", err
	}
	for _, b := range refs.Branches {
		if b.Name == "main" && commit.MatchString(b.TargetCommit) {
			return b.TargetCommit, nil
		}
	}
	return "", fmt.Errorf("%w: %s has no branch main", ErrName, repo)
}

// mostPages bounds how many pages a list of files may have.
const mostPages = 100

// nextPage finds the next one in a Link header.
var nextPage = regexp.MustCompile(`<([^>]+)>;\s*rel="next"`)

// tree lists the files of a commit. What has a name, a size or a checksum that cannot
// be is left out.
func (h *Hub) tree(ctx context.Context, repo, revision string) (all []remote, err error) {
	next := h.Endpoint + "/api/models/" + repo + "/tree/" + revision + "?recursive=true"
	for range mostPages {
		var page []remote
		header, err := h.get(ctx, repo, next, &page)
		if err != nil {
			return nil, err
		}
		for _, f := range page {
			if f.Type == "file" && filepath.IsLocal(f.Path) && f.size() >= 0 && checksum.MatchString(f.sum()) {
				all = append(all, f)
			}
		}
		link := nextPage.FindStringSubmatch(header.Get("Link"))
		if link == nil {
			break
		}
		next = link[1]
	}
	slices.SortFunc(all, func(a, b remote) int { return cmp.Compare(a.Path, b.Path) })
	return all, nil
}

// mostAnswer bounds what the hub's own answers may have, in bytes.
const mostAnswer = 32 << 20

// get asks for JSON, some times if need be.
func (h *Hub) get(ctx context.Context, repo, address string, into any) (header http.Header, err error) {
	client := h.client()
	err = client.Retry(ctx, func() (bool, error) {
		return false, client.Get(ctx, address, 0, func(r *http.Response, body io.Reader) error {
			header = r.Header
			data, err := io.ReadAll(io.LimitReader(body, mostAnswer))
			if err != nil {
				return err
			}
			if json.Unmarshal(data, into) != nil {
				return download.Permanent{Err: fmt.Errorf("%w: %s answers no JSON; is HF_ENDPOINT a model hub?", ErrHub, h.host())}
			}
			return nil
		})
	})
	return header, h.explain(repo, err)
}

// pick takes a model's files out of a repository: all parts, the first part first,
// then the profile.
func pick(repo, quant string, all []remote) ([]remote, error) {
	var candidates []remote
	var tags []string
	for _, f := range all {
		if isModel(f.Path) {
			candidates = append(candidates, f)
			tags = append(tags, tagOf(f.Path))
		}
	}
	if len(candidates) == 0 {
		return nil, fmt.Errorf("%w: %s has no GGUF model; look for a repository whose name ends in -GGUF", ErrName, repo)
	}
	first := -1
	search := func(match func(tag, name string) bool) {
		if first < 0 {
			first = slices.IndexFunc(candidates, func(f remote) bool { return match(tagOf(f.Path), stem(f.Path)) })
		}
	}
	for _, want := range []string{quant, "Q4_K_M", "Q8_0"} {
		search(func(tag, name string) bool { return strings.EqualFold(tag, want) || strings.EqualFold(name, want) })
		search(func(tag, _ string) bool { return want != "" && strings.HasSuffix(tag, "-"+strings.ToUpper(want)) }) // UD-Q4_K_M
		if quant != "" {
			break
		}
	}
	switch {
	case first < 0 && quant != "":
		return nil, fmt.Errorf("%w: %s has no %s; there is %s", ErrName, repo, quant, list(tags, "and"))
	case first < 0:
		first = 0
	}
	wanted := []remote{candidates[first]}
	name := candidates[first].Path
	find := func(path string) (remote, bool) {
		i := slices.IndexFunc(all, func(f remote) bool { return f.Path == path })
		if i < 0 {
			return remote{}, false
		}
		return all[i], true
	}
	if name, _, parts, split := gguf.PartName(name); split {
		for part := 2; part <= parts; part++ {
			path := fmt.Sprintf("%s-%05d-of-%05d.gguf", name, part, parts)
			f, ok := find(path)
			if !ok {
				return nil, fmt.Errorf("%w: %s lacks %s, a part of the model", ErrName, repo, path)
			}
			wanted = append(wanted, f)
		}
	}
	if profile, ok := find(gguf.Stem(name) + profileSuffix); ok {
		wanted = append(wanted, profile)
	}
	return wanted, nil
}

// fetch brings files of one commit into the store, and then makes it the newest.
func (h *Hub) fetch(ctx context.Context, repo, revision string, wanted []remote) (string, error) {
	base := filepath.Join(h.Folder, "models--"+strings.ReplaceAll(repo, "/", "--"))
	blobs, shot := filepath.Join(base, "blobs"), filepath.Join(base, "snapshots", revision)
	for _, folder := range []string{blobs, filepath.Join(base, "refs"), shot} {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return "", fmt.Errorf("make the folder for %s: %w", repo, err)
		}
	}
	var done, total, left int64
	for _, f := range wanted {
		total += f.size()
		if size := sizeOf(filepath.Join(blobs, f.sum())); size != f.size() {
			left += max(f.size()-max(sizeOf(filepath.Join(blobs, f.sum()+download.Unfinished)), 0), 0)
		}
	}
	if err := files.CheckRoom(blobs, uint64(left)); err != nil {
		return "", fmt.Errorf("cannot fetch %s into %s, %d bytes: %w", repo, h.Folder, left, err)
	}
	for _, f := range wanted {
		progress := func(of int64) {
			if h.Progress != nil {
				h.Progress(done+of, total)
			}
		}
		blob := filepath.Join(blobs, f.sum())
		if err := h.client().File(ctx, h.file(repo, revision, f, progress), blob); err != nil {
			return "", h.explain(repo, fmt.Errorf("%s: %w", f.Path, err))
		}
		done += f.size()
		progress(0)
		if err := link(blob, filepath.Join(shot, filepath.FromSlash(f.Path))); err != nil {
			return "", fmt.Errorf("put %s of %s in place: %w", f.Path, repo, err)
		}
	}
	if err := files.Write(filepath.Join(base, "refs", "main"), []byte(revision)); err != nil {
		return "", fmt.Errorf("put %s in place: %w", repo, err)
	}
	return filepath.Join(shot, filepath.FromSlash(wanted[0].Path)), nil
}

// sizeOf is a file's size, -1 when it is not there.
func sizeOf(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return -1
	}
	return info.Size()
}

func escape(name string) string {
	parts := strings.Split(name, "/")
	for i, part := range parts {
		parts[i] = url.PathEscape(part)
	}
	return path.Join(parts...)
}

// link makes name stand for the blob, whatever it stood for before.
func link(blob, name string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	target, err := filepath.Rel(filepath.Dir(name), blob)
	if err != nil {
		return err
	}
	if now, err := os.Readlink(name); err == nil && now == target {
		return nil
	}
	temp := fmt.Sprintf("%s.%d.tmp", name, os.Getpid())
	if err := os.Symlink(target, temp); err != nil { // Windows lets few users make symbolic links
		if hard := os.Link(blob, temp); hard != nil {
			return errors.Join(err, hard)
		}
	}
	if err := os.Rename(temp, name); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return nil
}
