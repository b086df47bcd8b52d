package llama_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// proxy counts the bytes between this process and a server.
type proxy struct {
	address        string
	sent, received atomic.Int64
}

func newProxy(t *testing.T, server string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	p := &proxy{address: l.Addr().String()}
	count := func(to, from net.Conn, n *atomic.Int64) {
		defer to.Close()
		buffer := make([]byte, 1<<16)
		for {
			k, err := from.Read(buffer)
			n.Add(int64(k))
			if _, failed := to.Write(buffer[:k]); err != nil || failed != nil {
				return
			}
		}
	}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			behind, err := net.Dial("tcp", server)
			if err != nil {
				client.Close()
				continue
			}
			go count(behind, client, &p.sent)
			go count(client, behind, &p.received)
		}
	}()
	return p
}

// total is what has gone through proxies.
func total(proxies []*proxy) (n int64) {
	for _, p := range proxies {
		n += p.sent.Load() + p.received.Load()
	}
	return n
}

// TestRPC lets two of llama.cpp's RPC servers compute a model's layers: under masks the logits are
// those of a model without what is skipped, to the bit, and fewer bytes go over the wires.
func TestRPC(t *testing.T) {
	folder := os.Getenv("GALLOP_TEST_RPC")
	if folder == "" {
		t.Skip("needs llama.cpp's RPC module and server: make test-rpc builds them")
	}
	llamatest.Library(t)
	var proxies []*proxy
	var o llama.ModelOptions
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		address := l.Addr().String()
		_, port, _ := net.SplitHostPort(address)
		require.NoError(t, l.Close())
		server := exec.Command(filepath.Join(folder, "rpc-server"), "-H", "127.0.0.1", "-p", port, "-t", "1")
		server.Dir = folder
		require.NoError(t, server.Start())
		t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })
		require.Eventually(t, func() bool {
			c, err := net.Dial("tcp", address)
			if err == nil {
				c.Close()
			}
			return err == nil
		}, 20*time.Second, 50*time.Millisecond, "the RPC server does not come up")
		p := newProxy(t, address)
		proxies, o.RPC = append(proxies, p), append(o.RPC, p.address)
	}
	open := func(path string) *llama.Model {
		m, err := llama.LoadModel(t.Context(), path, &o)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, m.Close()) })
		return m
	}
	v := variant{"one sequence", llama.ContextOptions{NCtx: 512, Threads: 1}, []int{0}}
	for _, name := range []string{"llama", "qwen3"} {
		path := llamatest.Write(t, randmodel.Small(name))
		m := open(path)
		some := masks(m.NLayer, 5)
		for _, mask := range append(slices.Clone(some[:8]), some[20:24]...) {
			got, _ := run(t, m, v, mask)
			want, _ := run(t, open(llamatest.Zeroed(t, path, identity(mask))), v, skip.Mask{})
			require.Equal(t, want, got, "%s under %s", name, mask)
		}
	}
	for _, p := range proxies {
		require.Positive(t, p.sent.Load(), "one server computes nothing")
	}
	_, err := llama.LoadModel(t.Context(), llamatest.Write(t, randmodel.Small("llama")), &llama.ModelOptions{RPC: []string{proxies[0].address, "127.0.0.1:1"}})
	require.ErrorIs(t, err, llama.ErrRPC)
	require.ErrorContains(t, err, "127.0.0.1:1: no server answers")

	path, err := demo.Path()
	require.NoError(t, err)
	m := open(path)
	perToken, firsts := map[string]int64{}, map[string]int64{}
	for _, text := range []string{"", "f2,f5,f7,f9", "3-6"} {
		mask, err := skip.Parse(text)
		require.NoError(t, err)
		c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 256, Threads: 1})
		decode := func(pos int) {
			require.NoError(t, c.Decode(llamatest.Batch(t, prompt(1), pos, 0), mask))
			_, err := c.Logits(0)
			require.NoError(t, err)
		}
		begun := total(proxies)
		decode(0)
		firsts[text] = total(proxies) - begun
		for pos := range 3 {
			decode(1 + pos)
		}
		const tokens = 32
		var before, after [4]int64
		count := func() (n [4]int64) {
			for i, p := range proxies {
				n[2*i], n[2*i+1] = p.sent.Load(), p.received.Load()
			}
			return n
		}
		before = count()
		for pos := range tokens {
			decode(4 + pos)
		}
		after = count()
		report := ""
		for i := range after {
			perToken[text] += (after[i] - before[i]) / tokens
			report += fmt.Sprintf(" %d", (after[i]-before[i])/tokens)
		}
		t.Logf("mask %q: %d bytes for a token whose graph is new, %d for one after it (to and from each server:%s)", text, firsts[text], perToken[text], report)
	}
	require.Positive(t, perToken[""])
	require.LessOrEqual(t, perToken["3-6"], perToken[""])
	require.Less(t, float64(firsts["3-6"]), 0.8*float64(firsts[""]), "what is skipped is not sent: the graph is edited before it is split")
}

// TestRPCRefuses has no module beside the libraries, and servers of other kinds.
func TestRPCRefuses(t *testing.T) {
	llamatest.Library(t)
	if os.Getenv("GALLOP_TEST_RPC") == "" {
		_, err := llama.LoadModel(t.Context(), llamatest.Write(t, randmodel.Small("llama")), &llama.ModelOptions{RPC: []string{"127.0.0.1:50052"}})
		require.ErrorIs(t, err, llama.ErrRPC)
		require.ErrorContains(t, err, "llama.cpp's RPC module (libggml-rpc.so) is not beside its libraries in "+llama.Dir())
	}
	serve := func(answer []byte) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = io.ReadFull(c, make([]byte, 33))
				_, _ = c.Write(answer)
				c.Close()
			}
		}()
		return l.Addr().String()
	}
	hello := func(major, minor byte) []byte {
		return append([]byte{28, 0, 0, 0, 0, 0, 0, 0, major, minor}, make([]byte, 26)...)
	}
	for address, want := range map[string]string{
		"127.0.0.1":                   "not an address: write host:port",
		":50052":                      "not an address: write host:port",
		"127.0.0.1:1":                 "no server answers: ",
		serve([]byte("HTTP/1.1 400")): "what answers is no RPC server of llama.cpp",
		serve(hello(6, 0)):            "its protocol is 6.0, want 7.0",
		serve(hello(7, 1)):            "its protocol is 7.1, want 7.0",
	} {
		require.ErrorContains(t, llama.Greet(t.Context(), address), want, address)
	}
	require.NoError(t, llama.Greet(t.Context(), serve(hello(7, 0))))
}
