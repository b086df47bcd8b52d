package llama_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
)

// envLoadOnly makes this test binary load the library in the folder that it
// names, print the error, and end: a process opens one library only.
const envLoadOnly = "GALLOP_TEST_LOAD_ONLY"

func TestMain(m *testing.M) {
	if dir := os.Getenv(envLoadOnly); dir != "" {
		fmt.Print(loadOnly(dir))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// loadOnly is what the child process says: the error, and that nothing works after it.
func loadOnly(dir string) string {
	first, second := llama.Load([]string{dir}), llama.Load([]string{dir})
	if first == nil || second == nil || first.Error() != second.Error() {
		return fmt.Sprintf("loaded: %v, %v", first, second)
	}
	_, err := llama.LoadModel(context.Background(), "x.gguf", nil)
	if err != llama.ErrNotLoaded || llama.MasksAvailable() != llama.ErrNotLoaded || llama.LoadBackend("x") != llama.ErrNotLoaded ||
		llama.Devices() != nil || llama.Dir()+llama.Version()+llama.SystemInfo() != "" {
		return "something works without a library"
	}
	return first.Error()
}

// loadError loads the library in dir in a process of its own.
func loadError(t *testing.T, dir string) string {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), envLoadOnly+"="+dir, llama.EnvLibrary+"=")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return string(out)
}

// compile makes dir's libllama.so out of C code.
func compile(t *testing.T, code string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	source := filepath.Join(dir, "fake.c")
	require.NoError(t, os.WriteFile(source, []byte(code), 0o644))
	out, err := exec.Command("cc", "-shared", "-fPIC", "-w", "-o", filepath.Join(dir, "libllama.so"), source).CombinedOutput()
	require.NoError(t, err, "%s", out)
	return dir
}

// functions lists all functions of the header.
func functions(t *testing.T) (names []string) {
	t.Helper()
	header, err := os.ReadFile("../third_party/llama.cpp/include/llama_api.h")
	require.NoError(t, err)
	for _, found := range regexp.MustCompile(`(?m)^ +R\([^,]+,\s*(\w+),`).FindAllSubmatch(header, -1) {
		names = append(names, string(found[1]))
	}
	require.Greater(t, len(names), 80)
	return names
}

func TestForeignLibrary(t *testing.T) {
	var everything strings.Builder
	for _, name := range functions(t) {
		if !strings.HasSuffix(name, "_default_params") {
			fmt.Fprintf(&everything, "void *%s() { return 0; }\n", name)
		}
	}
	zeros := "struct s { char b[400]; };\nstruct s %s() { struct s s = {0}; return s; }\n"
	chain := "char llama_sampler_chain_default_params() { return 0; }\n"
	text := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(text, "libllama.so"), []byte("this is no library, however long it may be\n"), 0o755))
	for name, c := range map[string]struct{ dir, says string }{
		"text file": {text, "libllama.so: "},
		"old": {compile(t, "const char *llama_version() { return \"v0.0.1\"; }\nvoid llama_backend_init() {}\n"),
			"it has no function llama_log_set"},
		"other layout": {compile(t, everything.String()+chain+fmt.Sprintf(zeros, "llama_model_default_params")+
			"struct s llama_context_default_params() { struct s s = {0}; return s; }\n"), "llama_model_params has another layout"},
	} {
		t.Run(name, func(t *testing.T) {
			says := loadError(t, c.dir)
			require.Contains(t, says, llama.ErrForeignLibrary.Error())
			require.Contains(t, says, llama.Release)
			require.Contains(t, says, c.says)
			require.Contains(t, says, "gallop setup")
			require.NotContains(t, says, "\n")
		})
	}
	t.Run("missing", func(t *testing.T) {
		says := loadError(t, t.TempDir())
		require.Contains(t, says, llama.ErrNoLibrary.Error())
		require.Contains(t, says, "run `gallop setup`")
	})
}

func TestFindLibrary(t *testing.T) {
	empty, full := t.TempDir(), t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(full, "libllama.v0.5.0.so"), nil, 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(empty, "libllama-common.so"), nil, 0o644))
	path, err := llama.FindLibrary([]string{empty, full})
	require.NoError(t, err)
	require.Equal(t, filepath.Join(full, "libllama.v0.5.0.so"), path)
	_, err = llama.FindLibrary([]string{empty, filepath.Join(empty, "no such folder")})
	require.ErrorIs(t, err, llama.ErrNoLibrary)
	require.ErrorContains(t, err, empty)

	t.Setenv(llama.EnvLibrary, empty)
	require.Equal(t, []string{empty}, llama.SearchPath(full))
	_, err = llama.FindLibrary(llama.SearchPath())
	require.ErrorIs(t, err, llama.ErrNoLibrary)
	require.ErrorContains(t, err, llama.EnvLibrary)
	t.Setenv(llama.EnvLibrary, "")
	require.Equal(t, full, llama.SearchPath(full)[2])
}

// records collects what is logged.
type records struct {
	sync.Mutex
	strings.Builder
}

func (r *records) Write(p []byte) (int, error) {
	r.Lock()
	defer r.Unlock()
	return r.Builder.Write(p)
}

func TestLogger(t *testing.T) {
	llamatest.Library(t)
	var log records
	llama.SetLogger(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	defer llama.SetLogger(nil)
	printed := llamatest.Printed(t, func() {
		m := llamatest.Open(t, llamatest.Tiny(t, 1))
		decode(t, small(t, m), prompt(2), 0, none)
	})
	require.Empty(t, printed)
	require.Contains(t, log.String(), "level=INFO")
	require.Contains(t, log.String(), "from=llama.cpp")
	for line := range strings.Lines(log.String()) {
		require.True(t, strings.HasPrefix(line, "time="), line)
	}
}
