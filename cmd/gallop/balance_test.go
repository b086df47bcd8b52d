//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/server/load"
)

// balancers are the programs in front of replicas whose configurations deploy/ has.
var balancers = map[string]func(t *testing.T, port string, replicas []string) *exec.Cmd{
	"nginx": func(t *testing.T, port string, replicas []string) *exec.Cmd {
		dir := t.TempDir()
		require.NoError(t, os.Mkdir(filepath.Join(dir, "logs"), 0o755))
		site := filepath.Join(dir, "site")
		balancerConfig(t, "nginx.conf", site, "listen 8080;", "listen 127.0.0.1:"+port+";", replicas)
		whole := fmt.Sprintf("pid %[1]s/pid;\nerror_log %[1]s/errors;\ndaemon off;\nevents {}\nhttp { access_log off; client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; include %[2]s; }\n", dir, site)
		require.NoError(t, os.WriteFile(filepath.Join(dir, "conf"), []byte(whole), 0o600))
		return exec.Command("nginx", "-p", dir, "-c", filepath.Join(dir, "conf"))
	},
	"haproxy": func(t *testing.T, port string, replicas []string) *exec.Cmd {
		config := filepath.Join(t.TempDir(), "conf")
		balancerConfig(t, "haproxy.cfg", config, "bind :8080", "bind 127.0.0.1:"+port, replicas)
		return exec.Command("haproxy", "-db", "-f", config)
	},
}

// balancerConfig writes a configuration of deploy/ for these ports.
func balancerConfig(t *testing.T, name, path, listen, here string, replicas []string) {
	t.Helper()
	data, err := os.ReadFile("../../deploy/" + name)
	require.NoError(t, err)
	text := string(data)
	require.Equal(t, 1, strings.Count(text, listen))
	text = strings.Replace(text, listen, here, 1)
	for i, port := range replicas {
		from := fmt.Sprintf("127.0.0.1:%d", 8081+i)
		require.Equal(t, 1, strings.Count(text, from))
		text = strings.Replace(text, from, "127.0.0.1:"+port, 1)
	}
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

// session is the client of one conversation, which says so in a header.
type session struct {
	http.RoundTripper
	id string
}

func (s session) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("X-Session-Id", s.id)
	return s.RoundTripper.RoundTrip(r)
}

// talk is a conversation so far.
type talk struct {
	client   *http.Client
	messages []map[string]string
}

func newTalk(t *testing.T, id string) *talk {
	c := load.NewClient(1)
	t.Cleanup(c.CloseIdleConnections)
	return &talk{client: &http.Client{Transport: session{c.Transport, id}}}
}

// say sends the next message.
func (k *talk) say(t *testing.T, url, text string) (a *load.Answer, content load.Content, err error) {
	k.messages = append(k.messages, map[string]string{"role": "user", "content": text})
	data, err := json.Marshal(map[string]any{
		"messages": k.messages, "temperature": 0, "max_tokens": 24, "ignore_eos": true, "stream": true,
		"stream_options": map[string]bool{"include_usage": true}, "gallop": map[string]string{"route": "off"},
	})
	if err != nil {
		return nil, content, err
	}
	if a, err = load.Ask(t.Context(), k.client, url+chatPath, string(data)); err == nil && a.Status == http.StatusOK {
		content, err = a.Read()
	}
	k.messages = append(k.messages, map[string]string{"role": "assistant", "content": content.Text})
	return a, content, err
}

// statusOf is an answer's; 0 = there is none.
func statusOf(a *load.Answer) int {
	if a == nil {
		return 0
	}
	return a.Status
}

// TestBalancers puts nginx and HAProxy, as deploy/ configures them, before three replicas:
// conversations stay where their prefix is, a replica is killed under load, and another is told
// to end and replaced.
func TestBalancers(t *testing.T) {
	if os.Getenv("GALLOP_LONG") == "" {
		t.Skip("set GALLOP_LONG=1 to put nginx and HAProxy before replicas")
	}
	model := demoModel(t)
	alone(t)
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	for name, start := range balancers {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(name); err != nil {
				t.Skipf("%s is not installed: apt install %[1]s", name)
			}
			var ports []string
			for range 4 {
				ports = append(ports, unusedPort(t))
			}
			replica := func(i int) *served {
				p := newServe(t, "-m", model, "-c", "512", "-t", "1", "--parallel", "4", "--queue", "64", "--port", ports[i])
				t.Cleanup(func() {
					if p.Process != nil {
						_ = p.Process.Kill()
						_ = p.Wait()
					}
				})
				p.start(t)
				p.ready(t)
				return p
			}
			var replicas []*served
			for i := range 3 {
				replicas = append(replicas, replica(i))
			}
			balancer := start(t, ports[3], ports[:3])
			log, err := os.Create(filepath.Join(t.TempDir(), "log"))
			require.NoError(t, err)
			balancer.Stdout, balancer.Stderr = log, log
			require.NoError(t, balancer.Start())
			t.Cleanup(func() {
				_ = balancer.Process.Signal(syscall.SIGTERM)
				_ = balancer.Wait()
				log.Close()
			})
			url := "http://127.0.0.1:" + ports[3]
			require.Eventually(t, func() bool {
				res, err := http.Get(url + "/health")
				if err == nil {
					res.Body.Close()
				}
				return err == nil && res.StatusCode == http.StatusOK
			}, 10*time.Second, 50*time.Millisecond, "the balancer does not come up")

			// Each turn finds all that was decoded before in the cache: it came to the same replica.
			turns := func(count int, prefix string) {
				var talks sync.WaitGroup
				for i := range count {
					talks.Go(func() {
						k := newTalk(t, fmt.Sprint(prefix, i))
						for turn := range 4 {
							a, content, err := k.say(t, url, fmt.Sprintf("What is %d plus %d?", i, turn))
							if err != nil || a.Status != http.StatusOK || turn > 0 && content.Cached < 30*turn {
								t.Errorf("conversation %d, turn %d: %v, %v, %d tokens from the cache", i, turn, statusOf(a), err, content.Cached)
							}
						}
					})
				}
				talks.Wait()
			}
			turns(12, "sticky ")
			require.False(t, t.Failed())
			requests := func(i int) float64 { return replicas[i].metrics(t, "gallop_requests_total")["gallop_requests_total"] }
			for i := range replicas {
				require.Positive(t, requests(i), "replica %d got no conversation", i)
			}

			// Under load from here on. Streams that had begun may break off, and nothing else.
			var answered, broken, lost atomic.Int64
			var why atomic.Value
			over := make(chan struct{})
			var clients sync.WaitGroup
			for i := range 16 {
				clients.Go(func() {
					for n := 0; ; n++ {
						select {
						case <-over:
							return
						default:
						}
						a, content, err := newTalk(t, fmt.Sprint("load ", i, " ", n/4)).say(t, url, fmt.Sprintf("Say %d.", n))
						switch {
						case err == nil && a.Status == http.StatusOK && content.Tokens == 24:
							answered.Add(1)
						case err != nil && a != nil && a.Status == http.StatusOK:
							broken.Add(1)
							why.Store(err.Error())
						default:
							lost.Add(1)
							why.Store(fmt.Sprintf("lost: status %d, %v", statusOf(a), err))
						}
					}
				})
			}
			within := func(n int64) {
				t.Helper()
				from := answered.Load()
				require.Eventually(t, func() bool { return answered.Load() >= from+n }, time.Minute, 10*time.Millisecond, "%d answered, %d broken, %d lost: %v", &answered, &broken, &lost, &why)
			}
			within(30)
			require.NoError(t, replicas[0].Process.Kill())
			_ = replicas[0].Wait()
			within(60)
			killed, text := broken.Load(), why.Load()
			require.Zero(t, lost.Load(), "%v", text)
			require.LessOrEqual(t, killed, int64(4), "no more than ran on the killed replica")
			if killed > 0 {
				require.Contains(t, text, "the stream breaks off")
			}
			replicas[0] = replica(0)

			// One that is told to end answers what it has.
			require.NoError(t, replicas[1].Process.Signal(syscall.SIGTERM))
			require.NoError(t, replicas[1].Wait())
			within(30)
			replicas[1] = replica(1)
			require.Eventually(t, func() bool { return requests(0) > 0 && requests(1) > 0 }, time.Minute, 50*time.Millisecond, "the replaced replicas get no requests")
			close(over)
			clients.Wait()
			require.Zero(t, lost.Load(), "%v", why.Load())
			require.Equal(t, killed, broken.Load(), "draining breaks no stream: %v", why.Load())
			turns(12, "after ")
			t.Logf("%d answered, %d streams broke off with the killed replica, none was lost", answered.Load(), killed)
		})
	}
}
