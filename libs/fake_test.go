package libs

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/llama"
)

// fakeRegistry is an npm registry that has small packages for this system, pinned by lock
// files of its own, and faults that a test switches on.
type fakeRegistry struct {
	*httptest.Server
	archives map[string][]byte // by the path of their address

	mu    sync.Mutex
	fault http.HandlerFunc // nil = none
	asked []string         // ranges, of each request for an archive
	auth  []string         // header of each request
}

// newRegistry starts one, and takes an empty folder for the cache.
func newRegistry(t *testing.T) *fakeRegistry {
	t.Helper()
	r := &fakeRegistry{archives: map[string][]byte{}}
	packages := fstest.MapFS{}
	for device, suffix := range map[string]string{"cpu": "", "metal": "-metal", "vulkan": "-vulkan"} {
		name := platform() + suffix
		module := "libggml-" + device + ".so"
		data := pack(t, "package/bins/any/libllama.so", "package/bins/any/libggml.so", "package/bins/any/"+module, "package/LICENSE")
		r.archives["/"+scope+"/"+name+"/-/"+name+"-1.2.3.tgz"] = data
		packages["npm/"+device+"/package-lock.json"] = &fstest.MapFile{Data: lockOf(name, data)}
	}
	before := locks
	locks, pause, stall = packages, time.Millisecond, 5*time.Second
	r.Server = httptest.NewServer(r)
	registry = r.URL + "/"
	t.Cleanup(func() {
		r.Close()
		locks, pause, stall, registry = before, time.Second, 30*time.Second, ""
	})
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(strings.ToLower(name), "npm_config_") {
			t.Setenv(name, "")
		}
	}
	cache := t.TempDir()
	t.Setenv("HOME", cache) // where a Mac has the cache, and npm its configuration
	t.Setenv("XDG_CACHE_HOME", cache)
	t.Setenv("LocalAppData", cache)
	t.Setenv("npm_config_globalconfig", filepath.Join(cache, "npmrc"))
	t.Setenv(llama.EnvLibrary, "")
	t.Chdir(t.TempDir())
	return r
}

func (r *fakeRegistry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	r.asked = append(r.asked, q.Header.Get("Range"))
	r.auth = append(r.auth, q.Header.Get("Authorization"))
	fault := r.fault
	r.mu.Unlock()
	if fault != nil {
		fault(w, q)
		return
	}
	r.send(w, q)
}

func (r *fakeRegistry) send(w http.ResponseWriter, q *http.Request) {
	data, ok := r.archives[q.URL.Path]
	if !ok {
		http.NotFound(w, q)
		return
	}
	http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(data))
}

// requests is how many there were.
func (r *fakeRegistry) requests() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.asked)
}

// cut sends n bytes of what is asked for and breaks off.
func (r *fakeRegistry) cut(w http.ResponseWriter, q *http.Request, n int) {
	data := r.archives[q.URL.Path]
	from := 0
	if _, err := fmt.Sscanf(q.Header.Get("Range"), "bytes=%d-", &from); err == nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(data)-1, len(data)))
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(data)-from))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	if from+n >= len(data) {
		_, _ = w.Write(data[from:])
		return
	}
	_, _ = w.Write(data[from:][:n])
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

// pack makes a package's archive.
func pack(t *testing.T, names ...string) []byte {
	t.Helper()
	var data bytes.Buffer
	zipped := gzip.NewWriter(&data)
	files := tar.NewWriter(zipped)
	for _, name := range names {
		require.NoError(t, files.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: 5}))
		_, err := files.Write([]byte("12345"))
		require.NoError(t, err)
	}
	require.NoError(t, files.Close())
	require.NoError(t, zipped.Close())
	return data.Bytes()
}

func lockOf(name string, data []byte) []byte {
	sum := sha512.Sum512(data)
	return fmt.Appendf(nil, `{"packages": {"": {}, "node_modules/%s/other-system": {"version": "9"}, "node_modules/%s/%s": {"version": "1.2.3", "integrity": "sha512-%s"}}}`,
		scope, scope, name, base64.StdEncoding.EncodeToString(sum[:]))
}

// leftovers lists what lies where libraries are put, hidden files included, without locks.
func leftovers(t *testing.T) (names []string) {
	t.Helper()
	final, err := folder(DefaultDevice())
	require.NoError(t, err)
	entries, err := os.ReadDir(filepath.Dir(final))
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".lock") {
			names = append(names, entry.Name())
		}
	}
	return names
}

// pinned has a lock file of one package for the default device.
func pinned(t *testing.T, name string, data ...byte) fstest.MapFS {
	t.Helper()
	return fstest.MapFS{"npm/" + DefaultDevice() + "/package-lock.json": &fstest.MapFile{Data: lockOf(name, data)}}
}
