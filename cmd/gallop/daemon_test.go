package main

import (
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
)

// newDaemon is a server that answers with five tokens at most, and not started yet.
func newDaemon(t *testing.T, args ...string) *served {
	t.Helper()
	llamatest.Library(t)
	alone(t)
	return newServe(t, append([]string{"-c", "64", "-t", "1", "-n", "5", "--api-key", "key"}, args...)...)
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
			s := newDaemon(t, "-m", path, "--port", port)
			s.Stderr = log
			require.NoError(t, s.Start())
			require.NoError(t, log.Close())
			s.url = "http://127.0.0.1:" + port
			s.ready(t)
			for range 3 {
				status, text := s.ask(t, http.MethodPost, "/v1/completions", askFive)
				require.Equal(t, http.StatusOK, status, text)
			}
			status, text := s.ask(t, http.MethodPost, "/v1/completions", `{"prompt":"a","grammar":"root ::= ("}`)
			require.Equal(t, http.StatusBadRequest, status, "llama.cpp complains on stderr: %s", text)
			require.NoError(t, s.Process.Signal(syscall.SIGTERM))
			require.NoError(t, s.Wait())
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
	s := newDaemon(t, "-m", path)
	pass(s.Cmd, f)
	s.start(t)
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
	s = newServe(t, "-m", path)
	pass(s.Cmd, f)
	s.Stdout = nil
	out, err := s.CombinedOutput()
	require.Error(t, err, address)
	require.Equal(t, exitUsage, s.ProcessState.ExitCode(), "%s", out)
	require.Contains(t, string(out), "can be reached from other machines: set a key with --api-key")
}
