package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/llama"
)

// fresh gives the program an empty cache folder, and a registry that answers as it is told.
func fresh(t *testing.T, answer http.HandlerFunc) {
	t.Helper()
	alone(t)
	registry := httptest.NewServer(answer)
	t.Cleanup(registry.Close)
	t.Setenv("npm_config_registry", registry.URL)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv(llama.EnvLibrary, "")
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// TestSetup meets libraries that are there. What fetching does is tested in package libs.
func TestSetup(t *testing.T) {
	alone(t)
	llamatest.Library(t)
	device := libs.DefaultDevice()
	code, out, errOut := runGallop("setup")
	require.Equal(t, exitOK, code, errOut)
	require.Empty(t, errOut)
	require.Equal(t, device+": already installed in "+libs.Installed(device)+"\n", out)
}

// TestSetupFetches needs the registry.
func TestSetupFetches(t *testing.T) {
	if os.Getenv("GALLOP_LONG") == "" {
		t.Skip("set GALLOP_LONG=1 to fetch llama.cpp's libraries")
	}
	alone(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	code, out, errOut := runGallop("setup")
	require.Equal(t, exitOK, code, errOut)
	require.Empty(t, errOut, "no bar away from a terminal")
	require.Equal(t, libs.DefaultDevice()+": installed in "+libs.Installed(libs.DefaultDevice())+"\n", out)
	code, out, errOut = runGallop("setup", "--device", "vulkan")
	if runtime.GOOS == "linux" && runtime.GOARCH == "amd64" {
		require.Equal(t, exitOK, code, errOut)
		require.Equal(t, "cpu: already installed in "+libs.Installed("cpu")+"\nvulkan: installed in "+libs.Installed("vulkan")+"\n", out)
	}
}

func TestSetupFailures(t *testing.T) {
	other := writeFile(t, "other.tgz", "something else")
	for name, test := range map[string]struct {
		answer http.HandlerFunc
		args   []string
		code   int
		want   string
	}{
		"unknown device": {status(200), []string{"--device", "abacus"}, exitUsage,
			"gallop: unknown device \"abacus\": choose one of cpu, vulkan, cuda, metal\n"},
		"not there":     {status(404), nil, exitError, "; check the registry in npm's configuration\n"},
		"something":     {status(200), nil, exitError, "; it was deleted: run the same command again"},
		"other archive": {status(200), []string{"--from", other}, exitError, "gallop: cannot take llama.cpp's libraries from there: " + other},
		"no archive":    {status(200), []string{"--from", "none"}, exitError, "gallop: cannot take llama.cpp's libraries from there: stat none:"},
	} {
		t.Run(name, func(t *testing.T) {
			fresh(t, test.answer)
			code, out, errOut := runGallop(append([]string{"setup"}, test.args...)...)
			require.Equal(t, test.code, code)
			require.Empty(t, out)
			require.Contains(t, errOut, test.want)
			require.Empty(t, libs.Installed(libs.DefaultDevice()))
		})
	}
}

// TestSetupWithoutRegistry has neither npm nor its configuration.
func TestSetupWithoutRegistry(t *testing.T) {
	alone(t)
	for _, name := range []string{"npm_config_registry", "NPM_CONFIG_REGISTRY"} {
		t.Setenv(name, "")
	}
	for _, name := range []string{"HOME", "XDG_CACHE_HOME", "PATH"} {
		t.Setenv(name, t.TempDir())
	}
	t.Setenv("npm_config_globalconfig", filepath.Join(t.TempDir(), "npmrc"))
	t.Setenv(llama.EnvLibrary, "")
	code, _, errOut := runGallop("setup")
	require.Equal(t, exitError, code)
	require.Contains(t, errOut, "gallop: no npm registry is known: set npm_config_registry to the address of one\n")
}

// TestSetupInterrupted presses Ctrl-C while the archive comes.
func TestSetupInterrupted(t *testing.T) {
	fresh(t, func(_ http.ResponseWriter, r *http.Request) {
		_ = syscall.Kill(os.Getpid(), syscall.SIGINT)
		<-r.Context().Done()
	})
	code, out, _ := runGallop("setup")
	require.Equal(t, exitInterrupted, code)
	require.Empty(t, out)
	require.Empty(t, libs.Installed(libs.DefaultDevice()))
}
