package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/server/load"
)

type servers struct {
	urls      []string
	processes []*exec.Cmd
	questions []string
	client    *http.Client
}

// startServers starts replicas of the demo model on this machine.
func startServers(ctx context.Context, binary string, n int) (s *servers, err error) {
	s = &servers{client: load.NewClient(1000)}
	examples, _, err := dataset.Read([]string{"demo/test.jsonl"}, &dataset.Options{Limit: 96})
	if err != nil {
		return nil, err
	}
	for _, e := range examples {
		s.questions = append(s.questions, e.Prompt)
	}
	model, err := demo.Path()
	if err != nil {
		return nil, err
	}
	for range n {
		cmd := exec.CommandContext(ctx, binary, "serve", "-m", model, "--port", "0", "-c", strconv.Itoa(context1), "-t", "1", "--parallel", strconv.Itoa(seats),
			"--queue", "1000", "--profile", "off", "--learn=false")
		log, err := cmd.StderrPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			s.close()
			return nil, err
		}
		s.processes = append(s.processes, cmd)
		url := make(chan string, 1)
		go func() {
			lines := bufio.NewScanner(log)
			for lines.Scan() {
				if _, at, ok := strings.Cut(lines.Text(), "gallop serves on "); ok {
					url <- strings.TrimSpace(at)
				}
			}
			close(url)
		}()
		u, ok := <-url
		if !ok {
			s.close()
			return nil, errors.New("a replica does not come up: " + strings.Join(cmd.Args, " "))
		}
		s.urls = append(s.urls, u)
	}
	for _, u := range s.urls {
		for range 100 {
			if res, err := http.Get(u + "/health"); err == nil {
				res.Body.Close()
				if res.StatusCode == http.StatusOK {
					break
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	return s, nil
}

func (s *servers) close() {
	for _, p := range s.processes {
		_ = p.Process.Kill()
		_ = p.Wait()
	}
}

// run lets a load run, with each conversation at the replica that the ring gives it.
func (s *servers) run(ctx context.Context, l workload) (result, error) {
	hash := newRing(len(s.urls))
	begun := time.Now()
	var mu sync.Mutex
	var r result
	var failed error
	next := 0
	talk := func(t talk) {
		url := s.urls[hash.of(t.id)] + "/v1/chat/completions"
		var messages []map[string]string
		for turn := range l.turns {
			messages = append(messages, map[string]string{"role": "user", "content": s.questions[(7*t.id+turn)%len(s.questions)]})
			body, _ := json.Marshal(map[string]any{
				"messages": messages, "temperature": 0, "max_tokens": l.answer, "ignore_eos": true, "stream": true,
				"stream_options": map[string]bool{"include_usage": true}, "gallop": map[string]string{"route": "off"},
			})
			a, err := load.Ask(ctx, s.client, url, string(body))
			end := time.Now()
			var c load.Content
			if err == nil && a.Status == http.StatusOK {
				c, err = a.Read()
			}
			mu.Lock()
			switch {
			case err != nil:
				failed = err
			case a.Status != http.StatusOK || len(c.At) == 0:
				failed = fmt.Errorf("a replica answers with status %d", a.Status)
			default:
				at := func(t time.Time) float64 { return t.Sub(begun).Seconds() }
				r.seen(at(a.Asked), at(c.At[0]), at(end), float64(c.Prompt), float64(c.Cached), float64(c.Tokens))
			}
			over := failed != nil
			mu.Unlock()
			if over || l.closed > 0 && time.Since(begun).Seconds() > l.seconds {
				return
			}
			messages = append(messages, map[string]string{"role": "assistant", "content": c.Text})
			if l.closed == 0 && turn < l.turns-1 {
				time.Sleep(time.Duration(t.think[turn] * float64(time.Second)))
			}
		}
	}
	talks := l.talks()
	next = len(talks)
	var running sync.WaitGroup
	for _, t := range talks {
		running.Go(func() {
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Until(begun.Add(time.Duration(t.at * float64(time.Second))))):
			}
			for talk(t); l.closed > 0 && ctx.Err() == nil && time.Since(begun).Seconds() < l.seconds; talk(t) {
				mu.Lock()
				t.id = next
				next++
				over := failed != nil
				mu.Unlock()
				if over {
					return
				}
			}
		})
	}
	running.Wait()
	if failed == nil {
		failed = ctx.Err()
	}
	return r.finish(), failed
}
