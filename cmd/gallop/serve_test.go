package main

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
)

// TestServe serves two models as a process of its own, until it is told to end.
func TestServe(t *testing.T) {
	llamatest.Library(t)
	alone(t)
	first, second := llamatest.Write(t, randmodel.Small("llama")), llamatest.Write(t, randmodel.Small("qwen3"))
	p := startServe(t, "-m", first, "-m", second, "--alias", "one", "--alias", "two", "-c", "64", "-t", "1", "-n", "5", "--api-key", "key",
		"-b", "64", "-ub", "32", "--temp", "0", "--seed", "1", "--parallel", "2", "--jinja") // as llama-server has them
	for _, name := range []string{"one", "two"} {
		status, text := p.ask(t, http.MethodPost, "/v1/completions", `{"model":"`+name+`","prompt":"a","max_tokens":-1}`)
		require.Equal(t, http.StatusOK, status, text)
		require.Contains(t, text, `"completion_tokens":5`, "by -n")
		require.Contains(t, text, `"model":"`+name+`"`)
	}
	status, text := p.ask(t, http.MethodGet, "/", "")
	require.Equal(t, http.StatusOK, status)
	require.Contains(t, text, "<!doctype html>")
	require.Contains(t, p.url, "http://127.0.0.1:", "no other machine, as long as no --host says so")
	log := p.end(t)
	require.Contains(t, log, "generated_tokens=5")
	require.Empty(t, p.stdout.String())
}

// served is `gallop serve` as a process of its own.
type served struct {
	*exec.Cmd
	url    string
	stdout bytes.Buffer
	log    chan string // what is written to stderr, at its end
}

// newServe is a server with more flags that is not started yet.
func newServe(t *testing.T, args ...string) *served {
	t.Helper()
	p := &served{Cmd: exec.CommandContext(t.Context(), os.Args[0], append([]string{"serve"}, args...)...), log: make(chan string, 1)}
	p.Env = append(os.Environ(), asProgram+"=1", "GALLOP_LIB="+llama.Dir(), "XDG_CACHE_HOME="+t.TempDir())
	p.Stdout = &p.stdout
	return p
}

// start starts it and reads from its log where it serves.
func (p *served) start(t *testing.T) {
	t.Helper()
	stderr, err := p.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, p.Start())
	lines := bufio.NewReader(stderr)
	for p.url == "" {
		line, err := lines.ReadString('\n')
		require.NoError(t, err, line)
		if _, at, ok := strings.Cut(line, "gallop serves on "); ok {
			p.url = strings.TrimSpace(at)
		}
	}
	go func() {
		text, _ := io.ReadAll(lines)
		p.log <- string(text)
	}()
}

// ready waits until its models are loaded.
func (p *served) ready(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		res, err := http.Get(p.url + "/health")
		if err != nil {
			return false // it does not listen yet
		}
		res.Body.Close()
		return res.StatusCode == http.StatusOK
	}, time.Minute, 10*time.Millisecond)
}

// startServe starts a server with more flags, and waits until its model is loaded.
func startServe(t *testing.T, args ...string) *served {
	t.Helper()
	p := newServe(t, append([]string{"--port", "0"}, args...)...)
	p.start(t)
	p.ready(t)
	return p
}

// ask sends a request with the key of tests.
func (p *served) ask(t *testing.T, method, path, body string) (status int, text string) {
	t.Helper()
	r, err := http.NewRequest(method, p.url+path, strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer key")
	res, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode, string(data)
}

// end tells the server to end, waits until it has, and gives its log.
func (p *served) end(t *testing.T) string {
	t.Helper()
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	log := <-p.log
	require.NoError(t, p.Wait(), log)
	return log
}

func TestServeRefuses(t *testing.T) {
	alone(t)
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--host", "0.0.0.0"}, "0.0.0.0 can be reached from other machines: set a key with --api-key, or listen on 127.0.0.1"},
		{[]string{"--alias", "a"}, "there are 1 --alias and 0 -m: each names a model of -m"},
		{[]string{"--skip", "nonsense"}, "--skip: "},
		{[]string{"--parallel", "0"}, "--parallel is 0 and --queue 64, want at least 1 and 0"},
		{[]string{"-c", "-1"}, "-c is -1"},
		{[]string{"-n", "0"}, "-n is 0, want -1 or at least 1"},
		{[]string{"--profile", "x"}, "--profile is for one model: name it with one -m"},
		{[]string{"--timeout", "0s"}, "--models-memory is 0, --timeout 0s"},
		{[]string{"--api-key", ""}, "--api-key is empty"},
	} {
		code, out, errOut := runGallop(append([]string{"serve"}, test.args...)...)
		require.Equal(t, exitUsage, code, errOut)
		require.Contains(t, errOut, "gallop: "+test.want)
		require.Empty(t, out)
	}
	code, _, errOut := runGallop("serve", "-m", "/nowhere.gguf")
	require.Equal(t, exitError, code)
	require.Contains(t, errOut, "/nowhere.gguf")
}
