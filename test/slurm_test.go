//go:build linux

package test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/routertest"
	"github.com/gallop-llm/gallop/llama"
)

// need skips a test of a recipe whose programs are not installed.
func need(t *testing.T, packages string, programs ...string) {
	t.Helper()
	if os.Getenv("GALLOP_LONG") == "" {
		t.Skip("takes a minute: GALLOP_LONG=1")
	}
	t.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin")
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed: apt install %s", name, packages)
		}
	}
}

// recipe is what a test of a recipe calibrates, and how.
type recipe struct {
	work, profile string
	want          []byte   // the profile of one process, but for its speed
	flags         []string // of gallop calibrate
	env           []string
}

func newRecipe(t *testing.T) *recipe {
	t.Helper()
	llamatest.Library(t)
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	require.NoError(t, os.Mkdir(bin, 0o755))
	build := exec.Command("go", "build", "-o", filepath.Join(bin, "gallop"), "../cmd/gallop")
	out, err := build.CombinedOutput()
	require.NoError(t, err, string(out))
	data, err := os.ReadFile("../demo/calibration.jsonl")
	require.NoError(t, err)
	few := filepath.Join(dir, "data.jsonl")
	require.NoError(t, os.WriteFile(few, bytes.Join(bytes.SplitAfter(data, []byte("\n"))[:24], nil), 0o600))
	r := &recipe{
		work: filepath.Join(dir, "work"), profile: filepath.Join(dir, "p.gguf"),
		env: append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "GALLOP_LIB="+llama.Dir(), "XDG_CACHE_HOME="+dir),
	}
	common := []string{"-t", "1", "--data", few, "--per-task", "4", "--depths", "2,3"}
	alone := filepath.Join(dir, "alone.gguf")
	r.run(t, "gallop", append([]string{"calibrate", "-o", alone}, common...)...)
	r.want = routertest.WithoutSpeed(t, alone)
	r.flags = append(common, "-o", r.profile)
	return r
}

// run runs a program and returns what it prints.
func (r *recipe) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := r.command(name, args...)
	var notes bytes.Buffer
	cmd.Stderr = &notes
	out, err := cmd.Output()
	require.NoError(t, err, "%s %v: %s%s", name, args, out, &notes)
	return string(out)
}

func (r *recipe) command(name string, args ...string) *exec.Cmd {
	for _, v := range r.env { // the last PATH
		if path, ok := strings.CutPrefix(v, "PATH="); ok {
			first, _, _ := strings.Cut(path, ":")
			if _, err := os.Stat(filepath.Join(first, name)); err == nil {
				name = filepath.Join(first, name)
			}
		}
	}
	cmd := exec.Command(name, args...)
	cmd.Env = r.env
	return cmd
}

// same compares the profile that the recipe made with that of one process.
func (r *recipe) same(t *testing.T) {
	t.Helper()
	require.True(t, bytes.Equal(r.want, routertest.WithoutSpeed(t, r.profile)), "the profiles differ")
}

// freePorts are n ports of this machine that nobody listens on.
func freePorts(t *testing.T, n int) (ports []int) {
	t.Helper()
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// daemon starts a program that stays in the foreground until the test ends.
func daemon(t *testing.T, env []string, name string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = env
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	require.NoError(t, err)
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
		if text, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
			t.Logf("%s: %s", name, text)
		}
	})
	return cmd
}

// TestSlurm runs the recipe for Slurm on a cluster of this machine: an array of jobs, the job that
// depends on it, and what they submit, with one job killed at its beginning.
func TestSlurm(t *testing.T) {
	need(t, "slurm-wlm munge", "slurmctld", "slurmd", "sbatch", "munged")
	if os.Getuid() != 0 {
		t.Skip("slurmd starts jobs as root: run the test as root")
	}
	r := newRecipe(t)
	dir := t.TempDir()
	ports := freePorts(t, 2)
	host, err := os.Hostname()
	require.NoError(t, err)
	host, _, _ = strings.Cut(host, ".")
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"state", "spool"} {
		require.NoError(t, os.Mkdir(at(name), 0o755))
	}
	require.NoError(t, os.WriteFile(at("munge.key"), bytes.Repeat([]byte("not a secret: this test's "), 40), 0o400))
	conf := fmt.Sprintf(`ClusterName=gallop
SlurmctldHost=%[2]s(127.0.0.1)
SlurmctldPort=%[3]d
SlurmdPort=%[4]d
AuthType=auth/munge
AuthInfo=socket=%[1]s/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation=%[1]s/state
SlurmdSpoolDir=%[1]s/spool
SlurmctldPidFile=%[1]s/slurmctld.pid
SlurmdPidFile=%[1]s/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_interval=1
NodeName=%[2]s NodeAddr=127.0.0.1 CPUs=%[5]d State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
`, dir, host, ports[0], ports[1], max(runtime.NumCPU(), 4))
	require.NoError(t, os.WriteFile(at("slurm.conf"), []byte(conf), 0o644))
	require.NoError(t, os.WriteFile(at("cgroup.conf"), []byte("CgroupPlugin=cgroup/v1\n"), 0o644))
	r.env = append(r.env, "SLURM_CONF="+at("slurm.conf"))
	daemon(t, r.env, "munged", "--foreground", "--force", "--socket="+at("munge.socket"), "--key-file="+at("munge.key"),
		"--pid-file="+at("munge.pid"), "--seed-file="+at("munge.seed"), "--log-file="+at("munge.log"))
	require.Eventually(t, func() bool { _, err := os.Stat(at("munge.socket")); return err == nil }, 10*time.Second, 50*time.Millisecond)
	daemon(t, r.env, "slurmctld", "-D", "-c")
	daemon(t, r.env, "slurmd", "-D", "-N", host)
	require.Eventually(t, func() bool {
		out, err := r.command("sinfo", "-h", "-o", "%T").Output()
		return err == nil && strings.TrimSpace(string(out)) == "idle"
	}, time.Minute, 200*time.Millisecond, "the node does not come up")

	recipe, err := filepath.Abs("../deploy/calibrate/slurm")
	require.NoError(t, err)
	job := strings.TrimSpace(r.run(t, recipe, append([]string{"4", r.work}, r.flags...)...))
	require.Regexp(t, `^\d+$`, job)
	var begun []string
	require.Eventually(t, func() bool {
		begun = strings.Fields(r.run(t, "squeue", "-h", "-r", "-t", "R", "-o", "%i"))
		return len(begun) > 0
	}, time.Minute, 50*time.Millisecond, "no job starts")
	r.run(t, "scancel", "--signal=KILL", "--full", begun[0]) // as when a node dies
	require.Eventually(t, func() bool {
		out, err := r.command("squeue", "-h").Output()
		return err == nil && len(bytes.TrimSpace(out)) == 0
	}, 5*time.Minute, time.Second, "the jobs do not end")
	require.FileExists(t, r.profile, "%s", outputs(t, r.work))
	r.same(t)
	require.Greater(t, strings.Count(outputs(t, r.work), "losses are missing"), 1, "several arrays, one after the other")

	// Shards that can compute nothing end with a sentence, and are not started for ever.
	bad := filepath.Join(t.TempDir(), "work")
	r.run(t, recipe, append([]string{"2", bad}, append(r.flags, "--data", "/none")...)...)
	require.Eventually(t, func() bool {
		out, err := r.command("squeue", "-h").Output()
		return err == nil && len(bytes.TrimSpace(out)) == 0
	}, time.Minute, time.Second, "the jobs do not end")
	require.Contains(t, outputs(t, bad), "/none")
}

// outputs is what the jobs printed.
func outputs(t *testing.T, work string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(work, "slurm-*.out"))
	require.NoError(t, err)
	var all strings.Builder
	for _, name := range names {
		data, err := os.ReadFile(name)
		require.NoError(t, err)
		fmt.Fprintf(&all, "%s:\n%s\n", filepath.Base(name), data)
	}
	return all.String()
}

// TestParallel runs the recipe for GNU parallel on this machine, by its own "ssh" to ":".
func TestParallel(t *testing.T) {
	need(t, "parallel", "parallel")
	r := newRecipe(t)
	hosts := filepath.Join(t.TempDir(), "hosts")
	require.NoError(t, os.WriteFile(hosts, []byte("2/:\n"), 0o600))
	recipe, err := filepath.Abs("../deploy/calibrate/parallel")
	require.NoError(t, err)
	out := r.run(t, recipe, append([]string{hosts, "3", r.work}, r.flags...)...)
	require.Equal(t, r.profile+"\n", out)
	r.same(t)
}
