package models

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/download"
	"golang.org/x/sys/unix"
)

const (
	secret   = "hf_secret"
	revision = "0123456789abcdef0123456789abcdef01234567"
	repo     = "org/Model-GGUF"
)

// fakeHub is a hub that has one repository, and faults that a test switches on.
type fakeHub struct {
	*httptest.Server
	hub   *Hub
	files map[string]string // content by path
	plain map[string]bool   // that are no LFS objects

	fault func(w http.ResponseWriter, r *http.Request, path string) (handled bool) // of files; nil = none
	api   func(w http.ResponseWriter, r *http.Request) (handled bool)              // of the rest; nil = none

	mu     sync.Mutex // of fault, ranges and tokens
	ranges []string   // that files were asked for with
	tokens []string   // that came to the hub
}

func newFakeHub(t *testing.T) *fakeHub {
	t.Helper()
	alone(t)
	f := &fakeHub{files: map[string]string{}, plain: map[string]bool{}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	f.hub = &Hub{Endpoint: f.URL, Token: secret, Folder: filepath.Join(t.TempDir(), "hub"), Pause: time.Millisecond, Stall: 5 * time.Second}
	for i, name := range []string{"model-Q4_K_M.gguf", "model-Q8_0.gguf", "model-UD-Q2_K.gguf", "mmproj-F16.gguf"} {
		f.files[name] = strings.Repeat(fmt.Sprintf("%d weights ", i), 30_000)
	}
	f.files["model-Q8_0.gallop.gguf"] = "a profile"
	f.plain["model-Q8_0.gallop.gguf"] = true
	f.files["README.md"] = "read me"
	return f
}

func (f *fakeHub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	f.tokens = append(f.tokens, r.Header.Get("Authorization"))
	f.mu.Unlock()
	path, isFile := strings.CutPrefix(r.URL.Path, "/"+repo+"/resolve/"+revision+"/")
	if !isFile && f.api != nil && f.api(w, r) {
		return
	}
	switch {
	case r.URL.Path == "/api/models/"+repo+"/refs":
		fmt.Fprintf(w, `{"branches":[{"name":"other","targetCommit":"x"},{"name":"main","targetCommit":%q}]}`, revision)
	case r.URL.Path == "/api/models/"+repo+"/tree/"+revision:
		f.tree(w, r)
	case isFile:
		f.mu.Lock()
		f.ranges = append(f.ranges, r.Header.Get("Range"))
		fault := f.fault
		f.mu.Unlock()
		if fault == nil || !fault(w, r, path) {
			f.send(w, r, path)
		}
	default:
		http.NotFound(w, r)
	}
}

// tree lists the files in two pages.
func (f *fakeHub) tree(w http.ResponseWriter, r *http.Request) {
	page := []map[string]any{{"type": "directory", "path": "BF16", "size": 0, "oid": strings.Repeat("0", 40)}}
	second := r.URL.Query().Get("cursor") != ""
	for name, content := range f.files {
		if second != (name < "model-Q5") {
			continue
		}
		blob := sha1.Sum([]byte(fmt.Sprintf("blob %d\x00%s", len(content), content)))
		entry := map[string]any{"type": "file", "path": name, "size": len(content), "oid": hex.EncodeToString(blob[:])}
		if !f.plain[name] {
			sum := sha256.Sum256([]byte(content))
			entry["oid"] = strings.Repeat("0", 40)
			entry["lfs"] = map[string]any{"oid": hex.EncodeToString(sum[:]), "size": len(content)}
		}
		page = append(page, entry)
	}
	if !second {
		w.Header().Set("Link", fmt.Sprintf(`<%s%s?recursive=true&cursor=2>; rel="next"`, f.URL, r.URL.Path))
	}
	if err := json.NewEncoder(w).Encode(page); err != nil {
		panic(err)
	}
}

func (f *fakeHub) send(w http.ResponseWriter, r *http.Request, path string) {
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(f.files[path]))
}

// cut sends what was asked for, but only n bytes of it.
func (f *fakeHub) cut(w http.ResponseWriter, r *http.Request, path string, n int) bool {
	content := f.files[path]
	from := 0
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)))
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(content)-from))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	if from+n >= len(content) {
		_, _ = w.Write([]byte(content[from:]))
		return true
	}
	_, _ = w.Write([]byte(content[from:][:n]))
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// requireWhole checks the store: the file and nothing half-written under its name.
func (f *fakeHub) requireWhole(t *testing.T, path, name string) {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, f.files[name], string(data))
	require.Equal(t, filepath.Join(f.hub.Folder, "models--org--Model-GGUF", "snapshots", revision, name), path)
	main, err := os.ReadFile(filepath.Join(f.hub.Folder, "models--org--Model-GGUF", "refs", "main"))
	require.NoError(t, err)
	require.Equal(t, revision, string(main))
	target, err := os.Readlink(path)
	require.NoError(t, err)
	require.False(t, filepath.IsAbs(target), "the store can be moved")
	for _, blob := range f.blobs(t) {
		require.NotContains(t, blob, download.Unfinished)
	}
}

// requireNothing checks that no file has its final name, and no version is current.
func (f *fakeHub) requireNothing(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(f.hub.Folder, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			require.True(t, strings.HasSuffix(path, download.Unfinished), path)
		}
		return nil
	})
	require.NoError(t, err)
}

func (f *fakeHub) blobs(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(f.hub.Folder, "models--org--Model-GGUF", "blobs"))
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestFetch(t *testing.T) {
	f := newFakeHub(t)
	var have, total int64
	f.hub.Progress = func(h, of int64) {
		require.GreaterOrEqual(t, h, have, "it never goes back")
		have, total = h, of
	}
	path, err := f.hub.Fetch(t.Context(), repo)
	require.NoError(t, err)
	f.requireWhole(t, path, "model-Q4_K_M.gguf")
	require.Equal(t, int64(len(f.files["model-Q4_K_M.gguf"])), have)
	require.Equal(t, have, total)
	require.NoFileExists(t, filepath.Join(filepath.Dir(path), "model-Q8_0.gallop.gguf"), "another model's profile")

	have = 0
	path, err = f.hub.Fetch(t.Context(), repo+":q8_0")
	require.NoError(t, err)
	f.requireWhole(t, path, "model-Q8_0.gguf")
	f.requireWhole(t, filepath.Join(filepath.Dir(path), "model-Q8_0.gallop.gguf"), "model-Q8_0.gallop.gguf")

	asked := len(f.ranges)
	have = 0
	again, err := f.hub.Fetch(t.Context(), repo+":Q8_0")
	require.NoError(t, err)
	require.Equal(t, path, again)
	require.Len(t, f.ranges, asked, "what is there is not fetched again")

	for quant, want := range map[string]string{"Q2_K": "model-UD-Q2_K.gguf", "UD-Q2_K": "model-UD-Q2_K.gguf", "model-q8_0": "model-Q8_0.gguf"} {
		have = 0
		path, err := f.hub.Fetch(t.Context(), repo+":"+quant)
		require.NoError(t, err)
		require.Equal(t, want, filepath.Base(path))
	}
	t.Setenv("HF_HUB_CACHE", f.hub.Folder)
	m, err := Find("model")
	require.NoError(t, err)
	require.Equal(t, "org/Model-GGUF:Q4_K_M", m.Name, "it is found by its name from now on")
}

func TestFetchSplit(t *testing.T) {
	f := newFakeHub(t)
	parts := []string{"BF16/model-BF16-00001-of-00003.gguf", "BF16/model-BF16-00002-of-00003.gguf", "BF16/model-BF16-00003-of-00003.gguf"}
	for _, part := range parts {
		f.files[part] = "weights of " + part
	}
	f.files["BF16/model-BF16.gallop.gguf"] = "its profile"
	path, err := f.hub.Fetch(t.Context(), repo+":BF16")
	require.NoError(t, err)
	f.requireWhole(t, path, parts[0])
	for _, name := range append(parts, "BF16/model-BF16.gallop.gguf") {
		f.requireWhole(t, filepath.Join(filepath.Dir(filepath.Dir(path)), name), name)
	}
	delete(f.files, parts[1])
	_, err = f.hub.Fetch(t.Context(), repo+":BF16")
	require.ErrorIs(t, err, ErrName)
	require.ErrorContains(t, err, "lacks "+parts[1])
}

func TestFetchGoesOn(t *testing.T) {
	f := newFakeHub(t)
	size := len(f.files["model-Q4_K_M.gguf"])
	f.fault = func(w http.ResponseWriter, r *http.Request, path string) bool { return f.cut(w, r, path, size/6+1) }
	path, err := f.hub.Fetch(t.Context(), repo)
	require.NoError(t, err, "each try brings something: more tries than a hub that brings nothing gets")
	f.requireWhole(t, path, "model-Q4_K_M.gguf")
	require.Greater(t, len(f.ranges), download.MostTries)
	require.Empty(t, f.ranges[0])
	from := 0
	_, err = fmt.Sscanf(f.ranges[1], "bytes=%d-", &from)
	require.NoError(t, err)
	require.Positive(t, from)
}

func TestFetchGoesOnLater(t *testing.T) {
	f := newFakeHub(t)
	broken := true
	f.fault = func(w http.ResponseWriter, r *http.Request, path string) bool {
		switch {
		case !broken:
			return false
		case r.Header.Get("Range") == "":
			return f.cut(w, r, path, 1000)
		}
		w.WriteHeader(http.StatusBadGateway)
		return true
	}
	_, err := f.hub.Fetch(t.Context(), repo)
	require.ErrorIs(t, err, ErrHub)
	require.ErrorContains(t, err, "has a fault of its own (HTTP status 502, Bad Gateway); run the same command again later")
	f.requireNothing(t)
	broken, f.ranges = false, nil
	path, err := f.hub.Fetch(t.Context(), repo)
	require.NoError(t, err)
	f.requireWhole(t, path, "model-Q4_K_M.gguf")
	require.Equal(t, []string{"bytes=1000-"}, f.ranges)

	// A hub that cannot send from the middle, what was there is not its beginning,
	// or is longer than the whole.
	for name, left := range map[string]string{"no ranges": "0 weights", "longer": strings.Repeat("x", 1<<20)} {
		t.Run(name, func(t *testing.T) {
			f := newFakeHub(t)
			f.fault = func(w http.ResponseWriter, r *http.Request, path string) bool {
				r.Header.Del("Range")
				return false
			}
			sum := sha256.Sum256([]byte(f.files["model-Q4_K_M.gguf"]))
			put(t, filepath.Join(f.hub.Folder, "models--org--Model-GGUF", "blobs", hex.EncodeToString(sum[:])+download.Unfinished), left)
			path, err := f.hub.Fetch(t.Context(), repo)
			require.NoError(t, err)
			f.requireWhole(t, path, "model-Q4_K_M.gguf")
		})
	}
}

func TestFetchChecksum(t *testing.T) {
	for _, name := range []string{"model-Q4_K_M.gguf", "model-Q8_0.gallop.gguf"} {
		f := newFakeHub(t)
		f.fault = func(w http.ResponseWriter, r *http.Request, path string) bool {
			if path != name {
				return false
			}
			wrong := strings.Repeat("!", len(f.files[path]))
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(wrong))
			return true
		}
		_, err := f.hub.Fetch(t.Context(), repo+":"+map[bool]string{true: "Q8_0", false: "Q4_K_M"}[f.plain[name]])
		require.ErrorIs(t, err, ErrChecksum)
		require.ErrorContains(t, err, "it was deleted, run the same command again")
		require.NoFileExists(t, filepath.Join(f.hub.Folder, "models--org--Model-GGUF", "snapshots", revision, name))
		require.NoFileExists(t, filepath.Join(f.hub.Folder, "models--org--Model-GGUF", "refs", "main"))
		for _, blob := range f.blobs(t) {
			require.NotContains(t, blob, download.Unfinished)
		}
	}
}

// TestTokenStays sends files elsewhere, as the hub does, and looks for the token there.
func TestTokenStays(t *testing.T) {
	f := newFakeHub(t)
	var other []string
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		other = append(other, fmt.Sprint(r.Header, r.URL))
		f.send(w, r, strings.TrimPrefix(r.URL.Path, "/"))
	}))
	defer elsewhere.Close()
	f.fault = func(w http.ResponseWriter, r *http.Request, path string) bool {
		http.Redirect(w, r, elsewhere.URL+"/"+path, http.StatusFound) // the same host name, another port
		return true
	}
	path, err := f.hub.Fetch(t.Context(), repo)
	require.NoError(t, err)
	f.requireWhole(t, path, "model-Q4_K_M.gguf")
	require.NotEmpty(t, other)
	require.NotContains(t, strings.Join(other, ""), secret)
	require.NotEmpty(t, f.tokens)
	for _, token := range f.tokens {
		require.Equal(t, "Bearer "+secret, token)
	}

	// A list of files that goes on elsewhere.
	f.hub.Folder = t.TempDir()
	f.api = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/tree/") {
			return false
		}
		w.Header().Set("Link", fmt.Sprintf(`<%s/tree>; rel="next"`, elsewhere.URL))
		fmt.Fprint(w, "[]")
		return true
	}
	_, err = f.hub.Fetch(t.Context(), repo)
	require.Error(t, err)
	require.NotContains(t, strings.Join(other, "")+err.Error(), secret)

	u, err := url.Parse(f.URL)
	require.NoError(t, err)
	require.NotEmpty(t, u.Port(), "the test tells ports apart")
}

func TestFetchRefused(t *testing.T) {
	for name, c := range map[string]struct {
		token  string
		status int
		header string
		kind   error
		want   string
		asked  int
	}{
		"private":      {"", 401, "", ErrAccess, "org/Model-GGUF is private, or is not there; check the name, or set HF_TOKEN", 1},
		"bad token":    {secret, 401, "", ErrAccess, "it does not take the token for org/Model-GGUF", 1},
		"gated":        {secret, 403, "", ErrAccess, "is for those only whom its owner lets in; ask for it at http://127.0.0.1", 1},
		"not there":    {secret, 404, "", ErrName, "there is no org/Model-GGUF at 127.0.0.1", 1},
		"too many":     {secret, 429, "7200", ErrHub, "has had too many requests; run the same command again in 2h0m0s", 1},
		"too many yet": {secret, 429, "", ErrHub, "has had too many requests; run the same command again later", download.MostTries},
		"down":         {secret, 503, "", ErrHub, "has a fault of its own (HTTP status 503, Service Unavailable)", download.MostTries},
		"odd":          {secret, 418, "", ErrHub, "answers with HTTP status 418, I'm a teapot for org/Model-GGUF", 1},
	} {
		for _, where := range []string{"api", "file"} {
			t.Run(name+" "+where, func(t *testing.T) {
				f := newFakeHub(t)
				f.hub.Token = c.token
				asked := 0
				refuse := func(w http.ResponseWriter) bool {
					asked++
					if c.header != "" {
						w.Header().Set("Retry-After", c.header)
					}
					w.WriteHeader(c.status)
					return true
				}
				if where == "api" {
					f.api = func(w http.ResponseWriter, r *http.Request) bool { return refuse(w) }
				} else {
					f.fault = func(w http.ResponseWriter, r *http.Request, _ string) bool { return refuse(w) }
				}
				_, err := f.hub.Fetch(t.Context(), repo)
				require.ErrorIs(t, err, c.kind)
				require.ErrorContains(t, err, c.want)
				require.NotContains(t, err.Error(), "\n")
				require.NotContains(t, err.Error(), secret)
				require.Equal(t, c.asked, asked)
				f.requireNothing(t)
			})
		}
	}
}

func TestFetchAfterABusyHub(t *testing.T) {
	f := newFakeHub(t)
	asked := 0
	f.api = func(w http.ResponseWriter, r *http.Request) bool {
		if asked++; asked > 2 {
			return false
		}
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	}
	start := time.Now()
	path, err := f.hub.Fetch(t.Context(), repo)
	require.NoError(t, err)
	f.requireWhole(t, path, "model-Q4_K_M.gguf")
	require.GreaterOrEqual(t, time.Since(start), 2*time.Second, "it waits as long as the hub asks")
}

func TestFetchStalls(t *testing.T) {
	f := newFakeHub(t)
	f.hub.Stall = 50 * time.Millisecond
	f.fault = func(w http.ResponseWriter, r *http.Request, path string) bool {
		<-r.Context().Done()
		return true
	}
	_, err := f.hub.Fetch(t.Context(), repo)
	require.ErrorIs(t, err, ErrHub)
	require.ErrorContains(t, err, "no answer came")
	f.mu.Lock() // no answer tells that the hub is done with the requests
	require.Len(t, f.ranges, download.MostTries)
	f.requireNothing(t)

	f.fault = func(w http.ResponseWriter, r *http.Request, path string) bool { // slow, but it comes
		content := f.files[path]
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		for len(content) > 0 {
			n := min(len(content), 40_000)
			_, _ = w.Write([]byte(content[:n]))
			w.(http.Flusher).Flush()
			content = content[n:]
			time.Sleep(20 * time.Millisecond)
		}
		return true
	}
	f.mu.Unlock()
	path, err := f.hub.Fetch(t.Context(), repo)
	require.NoError(t, err)
	f.requireWhole(t, path, "model-Q4_K_M.gguf")
}

func TestFetchStops(t *testing.T) {
	f := newFakeHub(t)
	ctx, cancel := context.WithCancel(t.Context())
	f.fault = func(w http.ResponseWriter, r *http.Request, path string) bool {
		cancel()
		<-r.Context().Done()
		return true
	}
	_, err := f.hub.Fetch(ctx, repo)
	require.ErrorIs(t, err, context.Canceled)
	f.requireNothing(t)
}

func TestFetchWithoutAHub(t *testing.T) {
	f := newFakeHub(t)
	f.Close()
	_, err := f.hub.Fetch(t.Context(), repo)
	require.ErrorIs(t, err, ErrHub)
	require.ErrorContains(t, err, "fetching org/Model-GGUF from 127.0.0.1")
	require.NotContains(t, err.Error(), "/api/")
}

func TestFetchFullDisk(t *testing.T) {
	f := newFakeHub(t)
	huge := int64(1) << 60
	f.api = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/tree/") {
			return false
		}
		fmt.Fprintf(w, `[{"type":"file","path":"model-Q8_0.gguf","size":%d,"oid":"%040d","lfs":{"oid":"%064d","size":%d}}]`, huge, 0, 1, huge)
		return true
	}
	_, err := f.hub.Fetch(t.Context(), repo)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.ErrorContains(t, err, "bytes are free")
	require.Empty(t, f.ranges, "nothing is fetched that has no room")
	f.requireNothing(t)

	// It fills up meanwhile.
	f.api = nil
	sum := sha256.Sum256([]byte(f.files["model-Q4_K_M.gguf"]))
	blob := filepath.Join(f.hub.Folder, "models--org--Model-GGUF", "blobs", hex.EncodeToString(sum[:]))
	require.NoError(t, os.Symlink("/dev/full", blob+download.Unfinished))
	_, err = f.hub.Fetch(t.Context(), repo)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.Len(t, f.ranges, 1, "it is not tried again")
	require.NoFileExists(t, blob)
}

func TestFetchBusy(t *testing.T) {
	f := newFakeHub(t)
	var second error
	f.fault = func(w http.ResponseWriter, r *http.Request, path string) bool {
		_, second = f.hub.Fetch(t.Context(), repo)
		return false
	}
	path, err := f.hub.Fetch(t.Context(), repo)
	require.NoError(t, err)
	f.requireWhole(t, path, "model-Q4_K_M.gguf")
	require.ErrorIs(t, second, ErrBusy)
}

func TestFetchNames(t *testing.T) {
	f := newFakeHub(t)
	for name, want := range map[string]string{
		"model": "is not ORG/REPO", "": "is not ORG/REPO", "a/b/c": "is not ORG/REPO", "../..": "is not ORG/REPO", "a/..": "is not ORG/REPO", "org/x?y": "is not ORG/REPO",
		repo + ":Q3_K": "org/Model-GGUF has no Q3_K; there is Q4_K_M, Q8_0 and UD-Q2_K",
	} {
		_, err := f.hub.Fetch(t.Context(), name)
		require.ErrorIs(t, err, ErrName, name)
		require.ErrorContains(t, err, want)
	}
	for name, answer := range map[string]string{
		"leads out":     `[{"type":"file","path":"../../../evil.gguf","size":1,"oid":"%040d"}]`,
		"absolute":      `[{"type":"file","path":"/evil.gguf","size":1,"oid":"%040d"}]`,
		"bad checksum":  `[{"type":"file","path":"a.gguf","size":1,"oid":"../../%040d"}]`,
		"negative size": `[{"type":"file","path":"a.gguf","size":-1,"oid":"%040d"}]`,
		"no model":      `[{"type":"file","path":"a.safetensors","size":1,"oid":"%040d"}]`,
	} {
		f.api = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/tree/") {
				return false
			}
			fmt.Fprintf(w, answer, 0)
			return true
		}
		_, err := f.hub.Fetch(t.Context(), repo)
		require.ErrorIs(t, err, ErrName, name)
		require.ErrorContains(t, err, "org/Model-GGUF has no GGUF model")
	}
	f.api = func(w http.ResponseWriter, r *http.Request) bool {
		fmt.Fprint(w, "<html>")
		return true
	}
	_, err := f.hub.Fetch(t.Context(), repo)
	require.ErrorIs(t, err, ErrHub)
	require.ErrorContains(t, err, "is HF_ENDPOINT a model hub?")
	f.api = func(w http.ResponseWriter, r *http.Request) bool {
		fmt.Fprint(w, `{"branches":[{"name":"main","targetCommit":"../.."}]}`)
		return true
	}
	_, err = f.hub.Fetch(t.Context(), repo)
	require.ErrorContains(t, err, "has no branch main")
}

func TestNewHub(t *testing.T) {
	home := alone(t)
	h, err := NewHub()
	require.NoError(t, err)
	require.Equal(t, hubEndpoint, h.Endpoint)
	require.Empty(t, h.Token)
	put(t, filepath.Join(home, ".cache", "huggingface", "token"), secret+"\n")
	t.Setenv("HF_ENDPOINT", "http://127.0.0.1:1/")
	h, err = NewHub()
	require.NoError(t, err)
	require.Equal(t, "http://127.0.0.1:1", h.Endpoint)
	require.Equal(t, secret, h.Token)
	require.Equal(t, filepath.Join(home, ".cache", "huggingface", "hub"), h.Folder)
	t.Setenv("HF_TOKEN", "other")
	h, err = NewHub()
	require.NoError(t, err)
	require.Equal(t, "other", h.Token)
	t.Setenv("HF_TOKEN", "two\nlines")
	_, err = NewHub()
	require.ErrorContains(t, err, "put the token alone into HF_TOKEN")
	t.Setenv("HF_TOKEN", "other")
	t.Setenv("MODEL_ENDPOINT", "https://hub.example/")
	h, err = NewHub()
	require.NoError(t, err)
	require.Equal(t, "https://hub.example", h.Endpoint, "it goes before HF_ENDPOINT, as in llama.cpp")
	t.Setenv("MODEL_ENDPOINT", "")
	for _, bad := range []string{"huggingface", "ftp://x", "http://", "::"} {
		t.Setenv("HF_ENDPOINT", bad)
		_, err := NewHub()
		require.ErrorContains(t, err, "want a URL", bad)
	}
}
