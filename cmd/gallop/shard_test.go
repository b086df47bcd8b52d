//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/routertest"
	"github.com/gallop-llm/gallop/llama"
)

// shardData writes a few of the demo model's calibration prompts; half of them bare.
func shardData(t testing.TB) string {
	t.Helper()
	examples, _, err := dataset.Read([]string{"../../demo/calibration.jsonl"}, nil)
	require.NoError(t, err)
	var lines bytes.Buffer
	kept := map[string]int{}
	for _, e := range examples {
		if kept[e.Task]++; kept[e.Task] > 10 || e.Task != "facts" && e.Task != "recall" && e.Task != "words" {
			continue
		}
		line := map[string]string{"prompt": e.Prompt}
		if e.Task != "words" {
			line["answer"], line["task"] = e.Answer, e.Task
		}
		require.NoError(t, json.NewEncoder(&lines).Encode(line))
	}
	path := filepath.Join(t.TempDir(), "data.jsonl")
	require.NoError(t, os.WriteFile(path, lines.Bytes(), 0o600))
	return path
}

// TestCalibrateShards shares a calibration of the demo model among processes that are killed at
// random moments, and compares the profile with that of one process.
func TestCalibrateShards(t *testing.T) {
	llamatest.Library(t)
	alone(t)
	folder := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", folder)
	t.Setenv("GALLOP_LIB", llama.Dir())
	common := []string{"calibrate", "-t", "1", "--data", shardData(t), "--per-task", "4", "--depths", "2,3"}
	gallop := func(args ...string) *exec.Cmd {
		self, err := os.Executable()
		require.NoError(t, err)
		cmd := exec.Command(self, append(common, args...)...)
		cmd.Env = append(os.Environ(), asProgram+"=1")
		return cmd
	}
	unshared := filepath.Join(folder, "unshared.gguf")
	out, err := gallop("-o", unshared).CombinedOutput()
	require.NoError(t, err, string(out))
	want := routertest.WithoutSpeed(t, unshared)

	shards := []int{4}
	if os.Getenv("GALLOP_LONG") != "" {
		shards = []int{1, 2, 4, 11}
	}
	for _, n := range shards {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			work, profile := t.TempDir(), filepath.Join(t.TempDir(), "p.gguf")
			merge := func() (out string, code int) {
				cmd := gallop("--merge", "--work", work, "-o", profile)
				data, _ := cmd.Output()
				return string(data), cmd.ProcessState.ExitCode()
			}
			running := make([]*exec.Cmd, n)
			ended := make(chan int)
			start := func(i int) {
				running[i] = gallop("--shard", fmt.Sprintf("%d/%d", i, n), "--work", work, "--wait")
				var notes bytes.Buffer
				running[i].Stderr = &notes
				require.NoError(t, running[i].Start())
				go func(cmd *exec.Cmd) {
					if err := cmd.Wait(); err != nil && cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
						t.Error(err, notes.String())
					}
					ended <- i
				}(running[i])
			}
			for i := range n {
				start(i)
			}
			random, kills := rand.New(rand.NewPCG(uint64(n), 1)), 0
			for left := n; left > 0; {
				select {
				case i := <-ended:
					if running[i].ProcessState.Success() {
						left--
					} else if !t.Failed() {
						start(i)
					} else {
						left--
					}
				case <-time.After(time.Duration(100+random.IntN(400)) * time.Millisecond):
					if kills < 5*n {
						kills++
						_ = running[random.IntN(n)].Process.Kill() // which may have ended
					}
				}
			}
			require.Positive(t, kills)
			require.False(t, t.Failed())
			out, code := merge()
			require.Equal(t, exitOK, code)
			require.Equal(t, profile+"\n", out)
			require.True(t, bytes.Equal(want, routertest.WithoutSpeed(t, profile)), "the profiles differ")
		})
	}

	// Without --wait, merging says what is missing, in words and for scripts.
	work := t.TempDir()
	out, err = gallop("--shard", "0/3", "--work", work).CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "shard 0/3 has done its share so far: losses are missing that shard")
	cmd := gallop("--merge", "--work", work, "-o", filepath.Join(work, "p.gguf"))
	var notes bytes.Buffer
	cmd.Stderr = &notes
	out, err = cmd.Output()
	require.Error(t, err)
	require.Equal(t, exitAgain, cmd.ProcessState.ExitCode())
	require.Regexp(t, `^\d(,\d)*\n$`, string(out))
	require.Contains(t, notes.String(), "gallop: losses are missing that shard")
	require.NoFileExists(t, filepath.Join(work, "p.gguf"))
}

func TestCalibrateShardFlags(t *testing.T) {
	for _, args := range [][]string{
		{"--shard", "0/4"}, {"--merge"}, {"--work", "x"}, {"--wait"}, {"--shard", "0/2", "--merge", "--work", "x"},
		{"--shard", "2/2", "--work", "x"}, {"--shard", "-1/2", "--work", "x"}, {"--shard", "1", "--work", "x"}, {"--shard", "a/b", "--work", "x"},
		{"--shard", "0/2", "--work", "x", "--quick"}, {"--merge", "--work", "x", "--budget", "1h"},
	} {
		code, out, notes := invoke(t, "", append([]string{"calibrate"}, args...)...)
		require.Equal(t, exitUsage, code, args)
		require.Empty(t, out)
		require.Contains(t, notes, "gallop: ", args)
	}
}
