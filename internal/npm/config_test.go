package npm

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const scope = "@scope"

// files are those of npm's configuration.
type files struct{ project, user, global string }

// configure has no other configuration than f and env.
func configure(t *testing.T, f files, env ...string) {
	t.Helper()
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(strings.ToLower(name), "npm_config_") {
			t.Setenv(name, "")
		}
	}
	home, project := t.TempDir(), t.TempDir()
	t.Chdir(project)
	t.Setenv("PATH", home)
	t.Setenv("npm_config_userconfig", filepath.Join(home, "user"))
	t.Setenv("npm_config_globalconfig", filepath.Join(home, "global"))
	for path, text := range map[string]string{filepath.Join(project, ".npmrc"): f.project, filepath.Join(home, "user"): f.user, filepath.Join(home, "global"): f.global} {
		if text != "" {
			require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		}
	}
	for _, entry := range env {
		name, value, _ := strings.Cut(entry, "=")
		t.Setenv(name, value)
	}
}

func TestRegistry(t *testing.T) {
	for name, c := range map[string]struct {
		files
		env  []string
		want string
	}{
		"standard":         {files{}, nil, "https://standard.example/"},
		"environment":      {files{"registry=https://p.example", "registry=https://u.example", ""}, []string{"NPM_CONFIG_REGISTRY=https://env.example/npm"}, "https://env.example/npm/"},
		"project":          {files{"registry = https://p.example", "registry=https://u.example", ""}, nil, "https://p.example/"},
		"user":             {files{"", "; a comment\nregistry=https://u.example\n", "registry=https://g.example"}, nil, "https://u.example/"},
		"global":           {files{"", "", `registry="https://g.example/"`}, nil, "https://g.example/"},
		"scope":            {files{"registry=https://p.example", "@scope:registry=https://s.example", ""}, []string{"npm_config_registry=https://env.example"}, "https://s.example/"},
		"other scope":      {files{"", "@other:registry=https://s.example", ""}, nil, "https://standard.example/"},
		"variable":         {files{"", "registry=https://${MIRROR}/", ""}, []string{"MIRROR=m.example"}, "https://m.example/"},
		"user's file else": {files{"", "", ""}, []string{"NPM_CONFIG_USERCONFIG=/dev/null"}, "https://standard.example/"},
	} {
		t.Run(name, func(t *testing.T) {
			configure(t, c.files, c.env...)
			r, err := Configure(t.Context(), scope, "https://standard.example")
			require.NoError(t, err)
			require.Equal(t, c.want, r.Address.String())
			require.Equal(t, c.want+"@scope/name/-/name-1.2.3.tgz", r.Archive("@scope/name", "1.2.3"))
		})
	}
}

func TestBadConfiguration(t *testing.T) {
	for text, want := range map[string]string{
		"registry=hello":                  "want one as https://host/",
		"registry=ftp://x.example":        "want one as https://host/",
		"https-proxy=:":                   "want https-proxy=http://host:port",
		"cafile=none":                     "read the certificates",
		"ca=none":                         "that are none in PEM form",
		"registry=https://${SECRET}\x00/": "want one as https://host/",
	} {
		configure(t, files{user: text}, "SECRET=abc")
		_, err := Configure(t.Context(), scope, "https://standard.example")
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "abc")
	}
	configure(t, files{})
	_, err := Configure(t.Context(), scope, "")
	require.ErrorIs(t, err, ErrRegistry, "no npm is there to be asked")
}

// TestProjectIsForeign has a folder's .npmrc that wants more than to name a registry.
func TestProjectIsForeign(t *testing.T) {
	asked := 0
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked++
		require.Empty(t, r.Header.Get("Authorization"))
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http:")
	configure(t, files{project: "registry=" + server.URL + "/${SECRET}\nhttps-proxy=http://evil.example\n" + host + "/:_authToken=${SECRET}\n"}, "SECRET=abc")
	r, err := Configure(t.Context(), scope, "")
	require.NoError(t, err)
	require.NotContains(t, r.Address.String(), "abc")
	_, err = (&http.Client{Transport: r.Transport}).Get(server.URL)
	require.NoError(t, err)
	require.Equal(t, 1, asked)
}

func TestAuthorization(t *testing.T) {
	password := base64.StdEncoding.EncodeToString([]byte("word"))
	for name, c := range map[string]struct{ user, path, want string }{
		"token":          {"//HOST/:_authToken=secret", "/a", "Bearer secret"},
		"variable":       {"//HOST/:_authToken=${TOKEN}", "/a", "Bearer of the environment"},
		"without slash":  {"//HOST:_authToken=secret", "/a", "Bearer secret"},
		"basic":          {"//HOST/:_auth=abc", "/a", "Basic abc"},
		"password":       {"//HOST/:username=me\n//HOST/:_password=" + password, "/a", "Basic " + base64.StdEncoding.EncodeToString([]byte("me:word"))},
		"path":           {"//HOST/npm/:_authToken=secret", "/npm/a", "Bearer secret"},
		"outside path":   {"//HOST/npm/:_authToken=secret", "/a", ""},
		"deeper first":   {"//HOST/npm/:_authToken=secret\n//HOST/:_authToken=other", "/npm/a", "Bearer secret"},
		"other host":     {"//x.example/:_authToken=secret", "/npm/a", ""},
		"of no registry": {"_authToken=secret", "/npm/a", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := "not asked"
			server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header.Get("Authorization") }))
			defer server.Close()
			user := strings.ReplaceAll(c.user, "//HOST", strings.TrimPrefix(server.URL, "http:"))
			configure(t, files{user: user + "\nregistry=" + server.URL + "/npm"}, "TOKEN=of the environment")
			r, err := Configure(t.Context(), scope, "")
			require.NoError(t, err)
			_, err = (&http.Client{Transport: r.Transport}).Get(server.URL + c.path)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

func TestProxy(t *testing.T) {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "proxy of ", r.URL.Host) }))
	defer proxy.Close()
	direct := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "direct") }))
	defer direct.Close()
	at, err := url.Parse(proxy.URL)
	require.NoError(t, err)
	for text, want := range map[string]string{
		"https-proxy=" + proxy.URL: "proxy of far.example",
		"proxy=" + at.Host:         "proxy of far.example",
	} {
		configure(t, files{user: text + "\nnoproxy=near.example, 127.0.0.1"})
		r, err := Configure(t.Context(), scope, "https://standard.example")
		require.NoError(t, err)
		client := &http.Client{Transport: r.Transport}
		require.Equal(t, want, body(t, client, "http://far.example"))
		require.Equal(t, "direct", body(t, client, direct.URL))
	}
}

func TestCertificates(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }))
	defer server.Close()
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // it tells of those that do not trust it
	own := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	file := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(file, own, 0o600))
	for text, works := range map[string]bool{
		"": false, "strict-ssl=false": true, "strict-ssl=true": false, "cafile=" + file: true,
		fmt.Sprintf("ca=%q", own): true, fmt.Sprintf("ca[]=%q", own): true,
	} {
		configure(t, files{user: text})
		r, err := Configure(t.Context(), scope, "https://standard.example")
		require.NoError(t, err)
		answer, err := (&http.Client{Transport: r.Transport}).Get(server.URL)
		require.Equal(t, works, err == nil, "%s: %v", text, err)
		if err == nil {
			answer.Body.Close()
		}
	}
}

func body(t *testing.T, client *http.Client, address string) string {
	t.Helper()
	r, err := client.Get(address)
	require.NoError(t, err)
	defer r.Body.Close()
	text := make([]byte, 100)
	n, _ := r.Body.Read(text)
	return string(text[:n])
}
