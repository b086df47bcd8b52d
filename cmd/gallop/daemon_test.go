package main

import (
	"bufio"
	"io"
	"net"
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

// daemon is a `gallop serve` that runs as a process of its own.
type daemon struct {
	url string
	cmd *exec.Cmd
}

// startDaemon starts one with a small random model, to answer with five tokens at most. prepare may
// change the command; where its Stderr is not set, the test reads its lines.
func startDaemon(t *testing.T, args []string, prepare func(*exec.Cmd)) (s *daemon, log <-chan string) {
	t.Helper()
	llamatest.Library(t)
	alone(t)
	args = append([]string{"serve", "-c", "64", "-t", "1", "-n", "5", "--api-key", "key"}, args...)
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), asProgram+"=1", "GALLOP_LIB="+llama.Dir(), "XDG_CACHE_HOME="+t.TempDir())
	if prepare != nil {
		prepare(cmd)
	}
	s = &daemon{cmd: cmd}
	if cmd.Stderr != nil {
		require.NoError(t, cmd.Start())
		return s, nil
	}
	stderr, err := cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewReader(stderr)
	for s.url == "" {
		line, err := lines.ReadString('\n')
		require.NoError(t, err, line)
		if _, at, ok := strings.Cut(line, "gallop serves on "); ok {
			s.url = strings.TrimSpace(at)
		}
	}
	rest := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(lines)
		rest <- string(text)
	}()
	return s, rest
}

// ask sends a request; status 0 = nobody listens.
func (s *daemon) ask(t *testing.T, method, path, body string) (status int, text string) {
	t.Helper()
	r, err := http.NewRequest(method, s.url+path, strings.NewReader(body))
	require.NoError(t, err)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer key")
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, ""
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode, string(data)
}

func (s *daemon) ready(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		status, _ := s.ask(t, http.MethodGet, "/health", "")
		return status == http.StatusOK
	}, time.Minute, 10*time.Millisecond)
}

// end ends it as systemd and Kubernetes do.
func (s *daemon) end(t *testing.T) {
	t.Helper()
	require.NoError(t, s.cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, s.cmd.Wait())
}

const askFive = `{"prompt":"a","max_tokens":-1}`

// unusedPort is one that nobody listens on.
func unusedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	return port
}

// TestServeWithoutALog answers where its log cannot be written, and ends when it is told to.
func TestServeWithoutALog(t *testing.T) {
	path := llamatest.Write(t, randmodel.Small("llama"))
	for name, open := range map[string]func(t *testing.T) *os.File{
		"full disk": func(t *testing.T) *os.File {
			f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
			require.NoError(t, err)
			return f
		},
		"reader that is gone": func(t *testing.T) *os.File {
			r, w, err := os.Pipe()
			require.NoError(t, err)
			require.NoError(t, r.Close())
			return w
		},
		"reader that stands still": func(t *testing.T) *os.File {
			r, w, err := os.Pipe()
			require.NoError(t, err)
			t.Cleanup(func() { r.Close() })
			// The pipe is full before the first line.
			raw, err := w.SyscallConn()
			require.NoError(t, err)
			require.NoError(t, raw.Write(func(fd uintptr) bool {
				for err == nil {
					_, err = syscall.Write(int(fd), make([]byte, 4096))
				}
				return true
			}))
			require.ErrorIs(t, err, syscall.EAGAIN)
			return w
		},
	} {
		t.Run(name, func(t *testing.T) {
			log := open(t)
			port := unusedPort(t)
			s, _ := startDaemon(t, []string{"-m", path, "--port", port}, func(cmd *exec.Cmd) { cmd.Stderr = log })
			require.NoError(t, log.Close())
			s.url = "http://127.0.0.1:" + port
			s.ready(t)
			for range 3 {
				status, text := s.ask(t, http.MethodPost, "/v1/completions", askFive)
				require.Equal(t, http.StatusOK, status, text)
			}
			status, text := s.ask(t, http.MethodPost, "/v1/completions", `{"prompt":"a","grammar":"root ::= ("}`)
			require.Equal(t, http.StatusBadRequest, status, "llama.cpp complains on stderr: %s", text)
			s.end(t)
		})
	}
}

// TestServeOnAGivenSocket takes a socket by LISTEN_FDS, as systemd passes it.
func TestServeOnAGivenSocket(t *testing.T) {
	path := llamatest.Write(t, randmodel.Small("llama"))
	socket := func(address string) (*os.File, string) {
		l, err := net.Listen("tcp", address)
		require.NoError(t, err)
		defer l.Close()
		f, err := l.(*net.TCPListener).File()
		require.NoError(t, err)
		return f, l.Addr().String()
	}
	// A shell knows the number of the process that it becomes.
	pass := func(cmd *exec.Cmd, f *os.File) {
		cmd.ExtraFiles = []*os.File{f}
		cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
		cmd.Path = "/bin/sh"
	}
	f, address := socket("127.0.0.1:0")
	early, err := net.Dial("tcp", address) // nobody serves yet
	require.NoError(t, err)
	defer early.Close()
	s, _ := startDaemon(t, []string{"-m", path}, func(cmd *exec.Cmd) { pass(cmd, f) })
	require.NoError(t, f.Close())
	require.Equal(t, "http://"+address, s.url)
	s.ready(t)
	status, text := s.ask(t, http.MethodPost, "/v1/completions", askFive)
	require.Equal(t, http.StatusOK, status, text)
	_, err = io.WriteString(early, "GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
	require.NoError(t, err)
	answer, err := io.ReadAll(early)
	require.NoError(t, err)
	require.Contains(t, string(answer), "200 OK", "who came early is served")
	s.end(t)

	f, address = socket("0.0.0.0:0")
	defer f.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "serve", "-m", path)
	cmd.Env = append(os.Environ(), asProgram+"=1", "GALLOP_LIB="+llama.Dir(), "XDG_CACHE_HOME="+t.TempDir())
	pass(cmd, f)
	out, err := cmd.CombinedOutput()
	require.Error(t, err, address)
	require.Equal(t, exitUsage, cmd.ProcessState.ExitCode(), "%s", out)
	require.Contains(t, string(out), "can be reached from other machines: set a key with --api-key")
}
