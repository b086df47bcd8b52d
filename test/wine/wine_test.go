// Package wine runs the Windows program on Linux, under wine. `make test-windows` builds what
// the tests need and names the folder in GALLOP_WINE.
package wine

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
)

// build is the folder with the programs and the wine prefix; "" = wine is not asked for.
var build = os.Getenv("GALLOP_WINE")

func TestMain(m *testing.M) {
	code := m.Run()
	if build != "" {
		cmd := exec.Command("wineserver", "-k") // ends what is left in the prefix
		cmd.Env = environment()
		_ = cmd.Run() // fails where nothing is
	}
	os.Exit(code)
}

func need(t *testing.T) {
	t.Helper()
	if build == "" {
		t.Skip("`make test-windows` runs the Windows program under wine")
	}
}

func environment(more ...string) []string {
	return append(append(os.Environ(), "WINEPREFIX="+filepath.Join(build, "prefix"), "WINEDEBUG=-all", "DISPLAY="), more...)
}

// windows is how Windows programs name a file of ours.
func windows(path string) string { return `Z:` + strings.ReplaceAll(path, "/", `\`) }

// wine makes a command of a Windows program. Its libraries are those that `gallop setup` fetched.
func wine(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "wine", append([]string{filepath.Join(build, program)}, args...)...)
	cmd.Env = environment()
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// says runs gallop to its end and gives what it wrote to stdout.
func says(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	cmd := wine(t.Context(), "gallop.exe", args...)
	var out, complaints bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &complaints
	require.NoError(t, cmd.Run(), "gallop %v: %s", args, &complaints)
	return strings.ReplaceAll(out.String(), "\r\n", "\n")
}

// linux is the same of the Linux program, with the same release's libraries and CPU module.
func linux(t *testing.T, program string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(build, program), args...)
	cmd.Env = append(os.Environ(), "GALLOP_LIB="+sameRelease(t))
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	require.NoError(t, err, "%s", &complaints)
	return string(out)
}

// sameRelease is a folder with Linux's libraries of the release that Windows has.
func sameRelease(t *testing.T) string {
	t.Helper()
	return llamatest.PublishedAs(t, filepath.Join(build, "packages"), "linux-x64", "3.21.1", linuxIntegrity)
}

// linuxIntegrity is of the package linux-x64 3.21.1, from the registry.
const linuxIntegrity = "sha512-Totj6RTDMGo3FoK2yNUaz/oGmZD0olAqTrRluFUWmu0kW2i9TOzHSW0OWCAiGkzRCVX0WsU2CyUQo/W2NYtdPA=="

func TestDoctor(t *testing.T) {
	need(t)
	var report struct {
		OK     bool
		Checks []struct{ Name, Status, Text string }
	}
	require.NoError(t, json.Unmarshal([]byte(says(t, "", "doctor", "--json")), &report))
	require.True(t, report.OK, "%+v", report.Checks)
	found := map[string]string{}
	for _, c := range report.Checks {
		found[c.Name] = c.Status + ": " + c.Text
	}
	require.Contains(t, found["masks"], "ok")
	require.Contains(t, found["lossless"], "rounding")
	require.Contains(t, found["Visual C++ runtime"], "ok")
	require.Contains(t, found["CPU module"], "ggml-cpu-")
	require.Contains(t, found["memory"], "free")
}

const question = "Write me a story about a hen."

// TestRun: an answer, whole and masked, is the one that Linux gives.
func TestRun(t *testing.T) {
	need(t)
	answers := map[string]bool{}
	for _, mask := range []string{"", "f5,f7", "1-3"} {
		args := []string{"run", "--temp", "0", "-n", "40", "-t", "1", "--skip", mask, question}
		if mask == "" {
			args = []string{"run", "--temp", "0", "-n", "40", "-t", "1", "--profile", "off", question}
		}
		got := says(t, "", args...)
		require.NotEmpty(t, strings.TrimSpace(got))
		require.Equal(t, linux(t, "gallop", args...), got, "mask %q", mask)
		answers[got] = true
	}
	require.Greater(t, len(answers), 1, "no mask changes the answer")
}

func TestLossless(t *testing.T) {
	need(t)
	args := []string{"run", "--temp", "0", "-n", "40", "-t", "1", "--profile", "off", question}
	drafted := []string{"run", "--lossless", "--skip", "f5,f7", "--temp", "0", "-n", "40", "-t", "1", question}
	require.Equal(t, says(t, "", args...), says(t, "", drafted...))
}

func TestChat(t *testing.T) {
	need(t)
	out := says(t, question+"\nAnd one about a cow.\n/stats\n", "chat", "--temp", "0", "-n", "30")
	require.Greater(t, len(strings.TrimSpace(out)), 60, out)
	require.Contains(t, out, "hen")
	require.Contains(t, out, "cow")
}

// TestPaths has spaces and letters in a model's path that no Windows code page has all of.
func TestPaths(t *testing.T) {
	need(t)
	folder := filepath.Join(t.TempDir(), "eine Mühle ж 馬")
	require.NoError(t, os.Mkdir(folder, 0o755))
	model := filepath.Join(folder, "größtes модель.gguf")
	demo, err := os.ReadFile("../../demo/gallop-demo.gguf")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(model, demo, 0o644))
	args := []string{"--temp", "0", "-n", "20", "-t", "1", "--skip", "f5", "Wörter über ein Huhn 馬"}
	require.Equal(t, linux(t, "gallop", append([]string{"run", model}, args...)...), says(t, "", append([]string{"run", windows(model)}, args...)...))

	pruned := filepath.Join(folder, "kürzer.gguf")
	says(t, "", "prune", windows(model), "--skip", "4", "-o", windows(pruned))
	require.FileExists(t, pruned)
	entries, err := os.ReadDir(folder)
	require.NoError(t, err)
	require.Len(t, entries, 2, "something half-written is left")
	require.NotEmpty(t, says(t, "", "run", windows(pruned), "-n", "5", question))
}

// TestGrammar: complaints about a grammar come from llama.cpp's own C library.
func TestGrammar(t *testing.T) {
	need(t)
	out := says(t, "", "run", "--temp", "0", "-n", "10", "--grammar", `root ::= "yes" | "no"`, question)
	require.Regexp(t, regexp.MustCompile(`^(yes|no)\s*$`), out)

	cmd := wine(t.Context(), "gallop.exe", "run", "--grammar", "root ::= nothing", question)
	complaint, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(complaint), "nothing")
	require.NotContains(t, string(complaint), "panic")
}

// tests are package llama's of what a mask does, and of what ends a process where llama.cpp is
// built with assertions, as it is for Windows.
const tests = "^(TestMask.*|TestEveryMask|TestSwitch.*|TestContextsInParallel|TestParallelSublayers|TestSequentialTwin|" +
	"TestRowMasks.*|TestHeaderAgrees|TestOutputs|TestSampling.*|TestGrammar|TestVocab.*|TestHostileModels|TestHostileLoRA|TestShortlistIsExactWhereItSays|TestShortlistOfManyRows|TestInfluence.*)$"

// TestLlama runs package llama's tests as Windows has them.
func TestLlama(t *testing.T) {
	need(t)
	cmd := wine(t.Context(), "llama.test.exe", "-test.run", tests, "-test.timeout", "3h", "-test.v")
	cmd.Dir = "../../llama"
	log, err := os.Create(filepath.Join(build, "llama.log")) // to be followed: this takes long
	require.NoError(t, err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	failed := cmd.Run()
	out, err := os.ReadFile(log.Name())
	require.NoError(t, err)
	require.NoError(t, failed, "%s", out)
	require.Regexp(t, `\nPASS\r?\n`, string(out), "it was ended")
	passed := regexp.MustCompile(`(?m)^--- (PASS|SKIP): .*$`).FindAllString(strings.ReplaceAll(string(out), "\r", ""), -1)
	t.Logf("%s", strings.Join(passed, "\n"))
	require.Greater(t, len(passed), 20)
}

// TestLogits compares logits, whole and under masks, with those of Linux for the same release
// and CPU module: they are equal to the last bit. Two operations would differ else, found by
// comparing the graphs node by node with equal inputs:
//   - ROPE asks the system's C library for sines and cosines. Wine's differ from glibc's in the
//     last bit of one value in a hundred, so both systems get those of testdata/angles.c.
//   - FLASH_ATTN_EXT differs in the modules for processors that have FMA, from haswell on: one
//     compiler makes a multiplication and an addition one operation, the other does not. So it
//     is off, but for a module without FMA.
//
// As they are, the demo model's logits agree up to a tolerance.
func TestLogits(t *testing.T) {
	need(t)
	module := func(doctor string) string {
		found := regexp.MustCompile(`ggml-cpu-(\w+)`).FindStringSubmatch(doctor)
		require.NotNil(t, found, doctor)
		return found[1]
	}
	own := module(linux(t, "gallop", "doctor", "--json"))
	require.Equal(t, own, module(says(t, "", "doctor", "--json")))
	installed, err := filepath.Glob(filepath.Join(build, "prefix/drive_c/users/*/AppData/Local/gallop/llama.cpp/cpu-*/node_modules/@node-llama-cpp/win-x64/bins/win-x64"))
	require.NoError(t, err)
	require.Len(t, installed, 1)
	dir := t.TempDir()

	// logits are those of both systems, in two files. A module gives both its angles.
	logits := func(t *testing.T, module, model string, flags ...string) (here, there string) {
		here, there = filepath.Join(t.TempDir(), "linux.json"), filepath.Join(t.TempDir(), "windows.json")
		cmd := exec.CommandContext(t.Context(), filepath.Join(build, "logits"), append(flags, "-o", here, model)...)
		cmd.Env = append(os.Environ(), "GALLOP_LIB="+sameRelease(t))
		if module != "" {
			cmd.Env = append(cmd.Env, "GALLOP_LIB="+oneModule(t, sameRelease(t), filepath.Join(dir, "linux-"+module), module), "LD_PRELOAD="+filepath.Join(build, "angles.so"))
		}
		complaints, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", complaints)
		cmd = wine(t.Context(), "logits.exe", append(flags, "-o", windows(there), windows(model))...)
		if module != "" {
			cmd.Env = append(cmd.Env, "GALLOP_LIB="+windows(oneModule(t, installed[0], filepath.Join(dir, "windows-"+module), module)))
		}
		complaints, err = cmd.CombinedOutput()
		require.NoError(t, err, "%s", complaints)
		return here, there
	}
	demo, err := filepath.Abs("../../demo/gallop-demo.gguf")
	require.NoError(t, err)
	models := map[string]string{"demo": demo}
	for _, name := range randmodel.SmallNames() {
		models[name] = llamatest.Write(t, randmodel.Small(name))
	}
	for _, kind := range randmodel.Types {
		spec := randmodel.Small("llama")
		spec.Embd, spec.HeadDim, spec.FF, spec.Type = 256, 64, 512, kind // rows that fill blocks of 256
		models[kind.String()] = llamatest.Write(t, spec)
	}
	for _, c := range []struct {
		module string
		flags  []string
	}{{own, []string{"-plain"}}, {"sandybridge", nil}} {
		for name, path := range models {
			t.Run(c.module+"/"+name, func(t *testing.T) {
				here, there := logits(t, c.module, path, c.flags...)
				want, err := os.ReadFile(here)
				require.NoError(t, err)
				got, err := os.ReadFile(there)
				require.NoError(t, err)
				require.True(t, bytes.Equal(want, got), "%s", linux(t, "logits", "-compare", here, there))
			})
		}
	}
	here, there := logits(t, "", demo)
	// The largest difference seen was 0.0004 of the logits' spread.
	t.Logf("%s", linux(t, "logits", "-tolerance", "0.002", "-compare", here, there))
}

// oneModule copies libraries from a folder into another, if it is not there, with one CPU module
// of theirs, which on Windows gets its mathematical functions from where the test has them.
func oneModule(t *testing.T, from, to, module string) string {
	t.Helper()
	if _, err := os.Stat(to); err == nil {
		return to
	}
	require.NoError(t, os.Mkdir(to, 0o755))
	entries, err := os.ReadDir(from)
	require.NoError(t, err)
	for _, e := range entries {
		other := strings.Contains(e.Name(), "ggml-cpu-") && !strings.Contains(e.Name(), "ggml-cpu-"+module+".")
		if other || !e.Type().IsRegular() {
			continue
		}
		data, err := os.ReadFile(filepath.Join(from, e.Name()))
		require.NoError(t, err)
		if filepath.Ext(e.Name()) == ".dll" && strings.Contains(e.Name(), "ggml-cpu-") {
			theirs, ours := []byte("api-ms-win-crt-math-l1-1-0.dll"), []byte("gallop-wine-math-functions.dll") // as long
			require.Equal(t, 1, bytes.Count(data, theirs))
			data = bytes.Replace(data, theirs, ours, 1)
		}
		require.NoError(t, os.WriteFile(filepath.Join(to, e.Name()), data, 0o755))
	}
	return to
}

func TestServe(t *testing.T) {
	need(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := listener.Addr().String()
	require.NoError(t, listener.Close())
	_, port, err := net.SplitHostPort(address)
	require.NoError(t, err)

	ctx, end := context.WithCancel(t.Context())
	server := wine(ctx, "gallop.exe", "serve", "--port", port)
	var log bytes.Buffer
	server.Stdout, server.Stderr = &log, &log
	require.NoError(t, server.Start())
	defer func() { end(); _ = server.Wait() }() // ended by a signal
	require.Eventually(t, func() bool {
		r, err := http.Get("http://" + address + "/health")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		return r.StatusCode == http.StatusOK
	}, 2*time.Minute, 100*time.Millisecond)

	for _, field := range []string{`"off"`, `"f5,f7"`} {
		body := fmt.Sprintf(`{"messages": [{"role": "user", "content": %q}], "temperature": 0, "max_tokens": 20, "gallop": {"skip": %s}}`, question, field)
		r, err := http.Post("http://"+address+"/v1/chat/completions", "application/json", strings.NewReader(body))
		require.NoError(t, err)
		text, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		require.NoError(t, r.Body.Close())
		require.Equal(t, http.StatusOK, r.StatusCode, "%s", text)
		require.Contains(t, string(text), "hen")
	}
}
