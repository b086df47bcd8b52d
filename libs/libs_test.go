package libs

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/download"
	"github.com/gallop-llm/gallop/internal/npm"
	"github.com/gallop-llm/gallop/llama"
)

func TestInstall(t *testing.T) {
	r := newRegistry(t)
	require.Empty(t, Installed(DefaultDevice()))
	require.Equal(t, llama.SearchPath(), SearchPath())
	var have, total int64
	o := &Options{Progress: func(device string, h, of int64) {
		require.Equal(t, DefaultDevice(), device)
		have, total = h, of
	}}
	dir, err := Install(context.Background(), o)
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(dir, "libllama.so"))
	require.Positive(t, have)
	require.Equal(t, total, have)
	require.Equal(t, dir, Installed(DefaultDevice()))
	require.Equal(t, append(llama.SearchPath(), dir), SearchPath())
	require.Len(t, leftovers(t), 1)

	again, err := Install(context.Background(), nil)
	require.NoError(t, err)
	require.Equal(t, dir, again)
	require.Equal(t, 1, r.requests(), "what is there is not fetched again")
}

// TestInstallRepairs damages what was fetched: neither is it used, nor does installing take
// it for installed.
func TestInstallRepairs(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(t *testing.T, dir string)
		shows  bool // before all is read
	}{
		"an empty file":  {func(t *testing.T, dir string) { require.NoError(t, os.Truncate(filepath.Join(dir, "libggml.so"), 0)) }, true},
		"a missing file": {func(t *testing.T, dir string) { require.NoError(t, os.Remove(filepath.Join(dir, "libllama.so"))) }, true},
		"no files":       {func(t *testing.T, dir string) { require.NoError(t, os.RemoveAll(dir)) }, true},
		"a damaged list": {func(t *testing.T, _ string) { require.NoError(t, os.WriteFile(list(t), []byte("{"), 0o644)) }, true},
		"zeros": {func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, "libllama.so"), make([]byte, 5), 0o644))
		}, false},
		"an earlier version": {func(t *testing.T, dir string) {
			require.NoError(t, os.Remove(list(t)))
			require.NoError(t, os.Truncate(filepath.Join(dir, "libllama.so"), 0))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t)
			dir, err := Install(context.Background(), nil)
			require.NoError(t, err)
			c.damage(t, dir)
			if c.shows {
				require.Empty(t, Installed(DefaultDevice()))
				require.Equal(t, llama.SearchPath(), SearchPath())
			}
			_, err = Verify(DefaultDevice())
			require.ErrorIs(t, err, ErrDamaged)
			again, err := Install(context.Background(), nil)
			require.NoError(t, err)
			require.Equal(t, dir, again)
			require.Equal(t, 2, r.requests())
			_, err = Verify(DefaultDevice())
			require.NoError(t, err)
			require.Len(t, leftovers(t), 1)
		})
	}
}

// list is the path of the list of what was fetched.
func list(t *testing.T) string {
	t.Helper()
	root, err := folder(DefaultDevice())
	require.NoError(t, err)
	return filepath.Join(root, listName)
}

func TestInstallGPU(t *testing.T) {
	r := newRegistry(t)
	dir, err := Install(context.Background(), &Options{Device: "vulkan"})
	require.NoError(t, err)
	require.Equal(t, Installed("vulkan"), dir)
	require.NotEmpty(t, Installed(DefaultDevice()), "a GPU's module is loaded beside the CPU's libraries")
	require.Equal(t, []string{Installed(DefaultDevice()), dir}, SearchPath()[len(llama.SearchPath()):])
	require.Equal(t, 2, r.requests())
}

func TestSearchPathOfTheEnvironment(t *testing.T) {
	newRegistry(t)
	_, err := Install(context.Background(), nil)
	require.NoError(t, err)
	own := t.TempDir()
	t.Setenv(llama.EnvLibrary, own)
	require.Equal(t, llama.SearchPath(), SearchPath(), "no other folder is looked at")
}

func TestInstallGoesOn(t *testing.T) {
	r := newRegistry(t)
	r.fault = func(w http.ResponseWriter, q *http.Request) { r.cut(w, q, 40) }
	_, err := Install(t.Context(), nil)
	require.NoError(t, err, "each try brings something: more tries than a registry that brings nothing gets")
	require.Greater(t, len(r.asked), download.MostTries)
	require.Equal(t, []string{"", "bytes=40-", "bytes=80-"}, r.asked[:3])
	require.Len(t, leftovers(t), 1)
}

func TestInstallGoesOnLater(t *testing.T) {
	r := newRegistry(t)
	r.fault = func(w http.ResponseWriter, q *http.Request) {
		if q.Header.Get("Range") == "" {
			r.cut(w, q, 50)
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_, err := Install(t.Context(), nil)
	require.ErrorIs(t, err, ErrFetch)
	require.Empty(t, Installed(DefaultDevice()))
	r.fault, r.asked = nil, nil
	_, err = Install(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, []string{"bytes=50-"}, r.asked)
	require.Len(t, leftovers(t), 1)
}

// TestInstallAtOnce starts as many as a machine's users may.
func TestInstallAtOnce(t *testing.T) {
	r := newRegistry(t)
	r.fault = func(w http.ResponseWriter, q *http.Request) {
		time.Sleep(20 * time.Millisecond)
		r.send(w, q)
	}
	var all sync.WaitGroup
	var errs [8]error
	for i := range errs {
		all.Go(func() { _, errs[i] = Install(t.Context(), nil) })
	}
	all.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	require.Equal(t, 1, r.requests(), "the others wait for the first")
	require.Len(t, leftovers(t), 1)
}

func TestInstallFailures(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	name := scope + "/" + platform()
	for title, c := range map[string]struct {
		fault http.HandlerFunc
		want  error // nil = the system's
		text  string
		asked int // 0 = any
	}{
		"not there":  {status(404), ErrFetch, "has no " + name, 1},
		"private":    {status(401), ErrFetch, "gives no access to " + name, 1},
		"forbidden":  {status(403), ErrFetch, "check the token for it in npm's configuration", 1},
		"down":       {status(502), ErrFetch, "has a fault of its own (HTTP status 502, Bad Gateway)", download.MostTries},
		"odd":        {status(418), ErrFetch, "answers with HTTP status 418", 1},
		"hangs up":   {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, ErrFetch, "`gallop setup --from` takes an archive", download.MostTries},
		"other file": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) }, ErrFetch, "it was deleted", 1},
		"endless":    {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "1000000000000000000") }, nil, "bytes are free", 1},
		"in circles": {func(w http.ResponseWriter, q *http.Request) { http.Redirect(w, q, q.URL.Path, http.StatusFound) }, ErrFetch, "stopped after 10 redirects", 0},
	} {
		t.Run(title, func(t *testing.T) {
			r := newRegistry(t)
			r.fault = c.fault
			dir, err := Install(t.Context(), nil)
			require.ErrorContains(t, err, c.text)
			if c.want != nil {
				require.ErrorIs(t, err, c.want)
			}
			require.NotContains(t, err.Error(), "\n")
			if c.asked > 0 {
				require.Equal(t, c.asked, r.requests())
			}
			require.Empty(t, dir)
			require.Empty(t, Installed(DefaultDevice()))
			for _, left := range leftovers(t) {
				require.Contains(t, left, download.Unfinished)
			}
		})
	}
	newRegistry(t)
	_, err := Install(t.Context(), &Options{Device: "abacus"})
	require.ErrorIs(t, err, ErrDevice)
	if _, err = Install(t.Context(), &Options{Device: "metal"}); DefaultDevice() != "metal" {
		require.NoError(t, err)
	}
	locks = pinned(t, "vax-780")
	_, err = Install(t.Context(), nil)
	require.ErrorIs(t, err, ErrPlatform)
	require.ErrorContains(t, err, llama.EnvLibrary)
}

func TestInstallStalls(t *testing.T) {
	r := newRegistry(t)
	stall = 30 * time.Millisecond
	r.fault = func(_ http.ResponseWriter, q *http.Request) { <-q.Context().Done() }
	_, err := Install(t.Context(), nil)
	require.ErrorIs(t, err, ErrFetch)
	require.ErrorContains(t, err, "no answer came")
}

// TestInstallCancelled ends the context in the middle: nothing has its final name, and the
// next call goes on.
func TestInstallCancelled(t *testing.T) {
	r := newRegistry(t)
	ctx, cancel := context.WithCancel(t.Context())
	r.fault = func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Length", "1000")
		_, _ = w.Write(r.archives[q.URL.Path][:50])
		w.(http.Flusher).Flush()
		time.Sleep(20 * time.Millisecond) // until the bytes are written down
		cancel()
		<-q.Context().Done()
	}
	_, err := Install(ctx, nil)
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, Installed(DefaultDevice()))
	r.fault, r.asked = nil, nil
	_, err = Install(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, []string{"bytes=50-"}, r.asked)
}

// TestInstallFrom takes archives from the disk.
func TestInstallFrom(t *testing.T) {
	r := newRegistry(t)
	r.fault = func(http.ResponseWriter, *http.Request) { panic("nothing is fetched") }
	dir := t.TempDir()
	for path, data := range r.archives {
		require.NoError(t, os.WriteFile(filepath.Join(dir, filepath.Base(path)), data, 0o644))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "other.tgz"), []byte("other"), 0o644))
	one := filepath.Join(dir, platform()+"-1.2.3.tgz")
	if DefaultDevice() == "metal" {
		one = filepath.Join(dir, platform()+"-metal-1.2.3.tgz")
	}
	_, err := Install(t.Context(), &Options{From: one})
	require.NoError(t, err)
	require.FileExists(t, one)
	require.NotEmpty(t, Installed(DefaultDevice()))
	_, err = Install(t.Context(), &Options{Device: "vulkan", From: dir})
	require.NoError(t, err)
	require.NotEmpty(t, Installed("vulkan"))

	newRegistry(t)
	for _, from := range []string{filepath.Join(dir, "other.tgz"), t.TempDir(), filepath.Join(dir, "none")} {
		_, err = Install(t.Context(), &Options{From: from})
		require.ErrorIs(t, err, ErrFrom)
		require.Empty(t, leftovers(t))
	}
	require.Zero(t, r.requests())
}

// TestInstallRefusesArchives has archives that the lock file pins and that no package has.
func TestInstallRefusesArchives(t *testing.T) {
	for title, data := range map[string][]byte{
		"no gzip":     []byte("not zipped"),
		"leads out":   pack(t, "package/../../../../evil"),
		"is cut":      pack(t, "package/bins/any/libggml.so")[:60],
		"comes twice": pack(t, "package/a", "package/a"),
	} {
		t.Run(title, func(t *testing.T) {
			r := newRegistry(t)
			name := platform()
			locks = pinned(t, name, data...)
			for path := range r.archives {
				r.archives[path] = data
			}
			_, err := Install(t.Context(), nil)
			require.ErrorIs(t, err, npm.ErrArchive)
			require.Empty(t, leftovers(t))
		})
	}
}

// TestRedirectsGetNoToken sends the archive elsewhere, as some registries do.
func TestRedirectsGetNoToken(t *testing.T) {
	r := newRegistry(t)
	var elsewhere []http.Header
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		elsewhere = append(elsewhere, q.Header)
		r.send(w, q)
	}))
	defer other.Close()
	r.fault = func(w http.ResponseWriter, q *http.Request) {
		http.Redirect(w, q, other.URL+q.URL.Path, http.StatusFound)
	}
	host := strings.TrimPrefix(r.URL, "http:")
	require.NoError(t, os.WriteFile(filepath.Join(os.Getenv("HOME"), ".npmrc"), []byte(host+"/:_authToken=secret\n"), 0o600))
	_, err := Install(t.Context(), nil)
	require.NoError(t, err)
	require.Equal(t, []string{"Bearer secret"}, r.auth)
	require.Len(t, elsewhere, 1)
	require.Empty(t, elsewhere[0].Get("Authorization"))
}
