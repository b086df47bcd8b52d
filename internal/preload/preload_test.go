package preload_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/preload"
	"github.com/gallop-llm/gallop/internal/prune"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// root is the repository's, seen from this folder.
const root = "../.."

// compile runs the C compiler and returns the path of what it made.
func compile(t *testing.T, name string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	args = append(args, "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror",
		"-I"+root+"/third_party/llama.cpp/include", "-I"+root+"/third_party/layerskip", "-ldl", "-o", path)
	out, err := exec.Command("cc", args...).CombinedOutput()
	require.NoError(t, err, "cc: %s", out)
	return path
}

// source writes a C program into a file.
func source(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "host.c")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	return path
}

// script writes an executable shell script.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "wrapper")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755))
	return path
}

// buildLibrary builds libgallop-skip.so as `make preload` does.
func buildLibrary(t *testing.T) string {
	t.Helper()
	return compile(t, "libgallop-skip.so", root+"/third_party/layerskip/layerskip.c",
		"-DLAYERSKIP_PRELOAD", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread")
}

// libllama is the path of the installed llama.cpp.
func libllama(t *testing.T) string {
	t.Helper()
	llamatest.Library(t)
	path, err := llama.FindLibrary([]string{llama.Dir()})
	require.NoError(t, err)
	return path
}

func parse(t *testing.T, text string) skip.Mask {
	t.Helper()
	mask, err := skip.Parse(text)
	require.NoError(t, err)
	return mask
}

// run runs a program with layers skipped and gives what it wrote.
func run(t *testing.T, library, mask string, args ...string) (out, errOut string, code int, err error) {
	t.Helper()
	var o, e bytes.Buffer
	code, err = preload.Run(preload.Program{Library: library, Mask: parse(t, mask), Args: args, Out: &o, Err: &e})
	return o.String(), e.String(), code, err
}

// tokens reads those of scripts/cloop.c's output.
func tokens(t *testing.T, output string) []int {
	t.Helper()
	var result struct{ Tokens []int }
	require.NoError(t, json.Unmarshal([]byte(output), &result), output)
	require.NotEmpty(t, result.Tokens)
	return result.Tokens
}

// A foreign program under the library computes what it computes without it on
// a file that lacks the layers.
func TestSameTokensAsPrunedFile(t *testing.T) {
	t.Parallel()
	library, lib := buildLibrary(t), libllama(t)
	opened := compile(t, "opened", root+"/scripts/cloop.c")
	linked := compile(t, "linked", root+"/scripts/cloop.c", // as llama-server is: the libraries are loaded with the program
		"-Wl,--no-as-needed", lib, filepath.Join(filepath.Dir(lib), "libggml-base.so"), "-Wl,-rpath,"+filepath.Dir(lib))
	wrapper := script(t, fmt.Sprintf("echo starting >&2\n%q \"$@\"", opened))
	model := llamatest.Write(t, randmodel.Small("llama"))
	loop := func(path, seed string) []string { return []string{lib, path, "20", "20", "1", seed} }

	whole, err := exec.Command(opened, loop(model, "0")...).Output()
	require.NoError(t, err)
	differing := 0
	for _, tt := range []struct {
		host string
		mask string
	}{
		{opened, "4"},
		{opened, "2-3,6"},
		{opened, "0,7"},
		{opened, "1-7"},
		{linked, "3,5"},
		{wrapper, "4,6"},
	} {
		t.Run(filepath.Base(tt.host)+" "+tt.mask, func(t *testing.T) {
			layers, _ := parse(t, tt.mask).WholeLayers()
			pruned := filepath.Join(t.TempDir(), "pruned.gguf")
			require.NoError(t, prune.Layers(context.Background(), model, pruned, layers, nil))
			want, err := exec.Command(opened, loop(pruned, "0")...).Output()
			require.NoError(t, err)

			got, errOut, code, err := run(t, library, tt.mask, append([]string{tt.host}, loop(model, "0")...)...)
			require.NoError(t, err, errOut)
			require.Zero(t, code)
			require.Equal(t, tokens(t, string(want)), tokens(t, got))
			require.Contains(t, errOut, fmt.Sprintf("gallop-skip: skips %d layers and 0 single sublayers of 8 layers", len(layers)))
			if !equal(tokens(t, string(whole)), tokens(t, got)) {
				differing++
			}
		})
	}
	require.Greater(t, differing, 3, "the masks change hardly anything, so this test shows nothing")
}

func equal(a, b []int) bool { return fmt.Sprint(a) == fmt.Sprint(b) }

// Sublayers have no pruned file: the reference are zeroed output projections.
func TestSameTokensAsZeroedSublayers(t *testing.T) {
	t.Parallel()
	library, lib := buildLibrary(t), libllama(t)
	host := compile(t, "cloop", root+"/scripts/cloop.c")
	spec := randmodel.Small("llama")
	model := llamatest.Write(t, spec)
	spec.Scale = randmodel.Times(0, func(tensor string) bool {
		return tensor == "blk.2.attn_output.weight" || tensor == "blk.5.ffn_down.weight"
	})
	want, err := exec.Command(host, lib, llamatest.Write(t, spec), "20", "20", "1", "0").Output()
	require.NoError(t, err)

	got, errOut, _, err := run(t, library, "a2,f5", host, lib, model, "20", "20", "1", "0")
	require.NoError(t, err, errOut)
	require.Equal(t, tokens(t, string(want)), tokens(t, got))
	require.Contains(t, errOut, "skips 0 layers and 2 single sublayers of 8 layers")
}

// A mask that does not fit stops the program's decode, and the reason is told.
func TestRefusedMask(t *testing.T) {
	t.Parallel()
	library, lib := buildLibrary(t), libllama(t)
	host := compile(t, "cloop", root+"/scripts/cloop.c")
	model := llamatest.Write(t, randmodel.Small("llama"))
	for mask, reason := range map[string]string{
		"4,99": "the mask names layer 99, but the model's layers end at 7",
		"0-7":  "the mask skips all 8 layers: keep at least one",
	} {
		out, errOut, code, err := run(t, library, mask, host, lib, model, "4", "2", "1", "0")
		require.ErrorIs(t, err, preload.ErrNothingSkipped)
		require.ErrorContains(t, err, reason)
		require.Equal(t, 1, code)
		require.Contains(t, errOut, "gallop-skip: refused: "+reason)
		require.Empty(t, out)
	}
}

// The library by itself, as anyone may preload it.
func TestLibraryAlone(t *testing.T) {
	t.Parallel()
	library, lib := buildLibrary(t), libllama(t)
	host := compile(t, "cloop", root+"/scripts/cloop.c")
	model := llamatest.Write(t, randmodel.Small("llama"))
	want, err := exec.Command(host, lib, model, "4", "2", "1", "0").Output()
	require.NoError(t, err)
	alone := func(mask string) (string, string, error) {
		cmd := exec.Command(host, lib, model, "4", "2", "1", "0")
		cmd.Env = append(os.Environ(), "LD_PRELOAD="+library, "GALLOP_SKIP="+mask)
		var errOut bytes.Buffer
		cmd.Stderr = &errOut
		out, err := cmd.Output()
		return string(out), errOut.String(), err
	}

	out, errOut, err := alone("")
	require.NoError(t, err, errOut)
	require.Equal(t, tokens(t, string(want)), tokens(t, out), "an empty mask changes nothing")

	for _, mask := range []string{"x", "4,", ",4", "a", "4-", "6-4", "512", "-1", "99999999999999999999", "4 6", "aa4"} {
		out, errOut, err := alone(mask)
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit, mask)
		require.Equal(t, 2, exit.ExitCode(), mask)
		require.Contains(t, errOut, "gallop-skip: refused: GALLOP_SKIP is no mask, write it as in 4,6,9-11,a5,f7: "+mask)
		require.Empty(t, out)
	}
}

// Two llama.cpp in one process: the functions are found for each.
func TestTwoLibraries(t *testing.T) {
	t.Parallel()
	library, lib := buildLibrary(t), libllama(t)
	const text = `
#define main loop
#include "%s"
#undef main
int main(int argc, char **argv) {
    char *second[7] = {argv[0], argv[argc - 1]};
    memcpy(second + 2, argv + 2, 5 * sizeof *second);
    return loop(7, argv) + loop(7, second);
}`
	cloop, err := filepath.Abs(root + "/scripts/cloop.c")
	require.NoError(t, err)
	host := compile(t, "host", source(t, fmt.Sprintf(text, cloop)))
	other := filepath.Join(t.TempDir(), filepath.Base(lib))
	data, err := os.ReadFile(lib)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(other, data, 0o755))
	model := llamatest.Write(t, randmodel.Small("llama"))

	out, errOut, code, err := run(t, library, "4", host, lib, model, "4", "8", "1", "0", other)
	require.NoError(t, err, errOut)
	require.Zero(t, code)
	first, second, _ := strings.Cut(strings.TrimSpace(out), "\n")
	require.Equal(t, tokens(t, first), tokens(t, second))
	require.Equal(t, 1, strings.Count(errOut, "gallop-skip:"), "told once")
}

// A program may hold the code that calls libggml-base itself.
func TestCallerIsTheProgram(t *testing.T) {
	t.Parallel()
	library, lib := buildLibrary(t), libllama(t)
	const text = `
#include "llama_api.h"
#include <stdio.h>
struct ggml_context *ggml_init(struct ggml_init_params p);
struct ggml_tensor *ggml_new_tensor_1d(struct ggml_context *c, int32_t type, int64_t n);
struct ggml_tensor *ggml_add(struct ggml_context *c, struct ggml_tensor *a, struct ggml_tensor *b);
struct ggml_tensor *ggml_set_name(struct ggml_tensor *t, const char *name);
struct ggml_cgraph *ggml_new_graph(struct ggml_context *c);
void ggml_build_forward_expand(struct ggml_cgraph *g, struct ggml_tensor *t);
bool ggml_backend_sched_alloc_graph(struct ggml_backend_sched *s, struct ggml_cgraph *g);
int main(void) {
    struct ggml_context *c = ggml_init((struct ggml_init_params){.mem_size = 1 << 20, .no_alloc = true});
    struct ggml_tensor *t = ggml_new_tensor_1d(c, GGML_TYPE_F32, 8);
    struct ggml_cgraph *g = ggml_new_graph(c);
    ggml_build_forward_expand(g, ggml_set_name(ggml_add(c, t, t), "result_output"));
    puts(ggml_backend_sched_alloc_graph(NULL, g) ? "allocated" : "stopped"); /* the real one would crash on NULL */
    return 0;
}`
	base := filepath.Join(filepath.Dir(lib), "libggml-base.so")
	host := compile(t, "host", source(t, text), base, "-Wl,-rpath,"+filepath.Dir(lib))
	out, _, code, err := run(t, library, "4", host)
	require.ErrorIs(t, err, preload.ErrNothingSkipped)
	require.ErrorContains(t, err, "do not add to one residual stream")
	require.Zero(t, code)
	require.Equal(t, "stopped\n", out)
}

// Another release of llama.cpp may have its tensors laid out in another way:
// here, a library that makes them of zeros.
func TestForeignLayout(t *testing.T) {
	t.Parallel()
	const text = `
static char zeros[4096];
#define FAKE(name) void *name(void); void *name(void) { return zeros; }
FAKE(ggml_graph_n_nodes) FAKE(ggml_graph_node) FAKE(ggml_graph_clear) FAKE(ggml_build_forward_expand)
FAKE(ggml_op_name) FAKE(ggml_init) FAKE(ggml_free) FAKE(ggml_add) FAKE(ggml_new_tensor_1d) FAKE(ggml_view_1d)
FAKE(ggml_set_name) FAKE(ggml_set_input) FAKE(ggml_backend_sched_alloc_graph)`
	fake := compile(t, "libfake.so", source(t, text), "-shared", "-fPIC")
	host := compile(t, "host", source(t, `
#include <stddef.h>
void *ggml_backend_sched_alloc_graph(void *s, void *g);
int main(void) { return ggml_backend_sched_alloc_graph(NULL, NULL) == NULL; }`), fake)
	_, errOut, code, err := run(t, buildLibrary(t), "4", host)
	require.ErrorIs(t, err, preload.ErrNothingSkipped)
	require.Equal(t, 2, code)
	require.Contains(t, errOut, "gallop-skip: refused: the program's llama.cpp lays out its graphs in another way than v0.5.0")
}

func TestNothingSkipped(t *testing.T) {
	t.Parallel()
	library, lib := buildLibrary(t), libllama(t)
	cloop := compile(t, "cloop", root+"/scripts/cloop.c")
	model := llamatest.Write(t, randmodel.Small("llama"))
	for _, tt := range []struct {
		name string
		args []string
		code int
	}{
		{"never calls llama.cpp", []string{"true"}, 0},
		{"fails", []string{"sh", "-c", "exit 7"}, 7},
		{"ended by a signal", []string{"sh", "-c", "kill -9 $$"}, 128 + 9},
		{"wrapper clears the variable", []string{script(t, "unset LD_PRELOAD\nexec \"$@\""), cloop, lib, model, "4", "2", "1", "0"}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, errOut, code, err := run(t, library, "4", tt.args...)
			require.Equal(t, tt.code, code)
			require.ErrorIs(t, err, preload.ErrNothingSkipped)
			require.ErrorContains(t, err, "ran no model, or llama.cpp is linked into it statically")
			require.NotContains(t, errOut, "gallop-skip: skips")
			require.NotContains(t, errOut, "is linked statically")
		})
	}
}

func TestStaticProgram(t *testing.T) {
	t.Parallel()
	library := buildLibrary(t)
	for _, flag := range []string{"-static", "-static-pie"} {
		host := compile(t, "host", source(t, "int main(void) { return 0; }"), flag)
		_, errOut, code, err := run(t, library, "4", host)
		require.Zero(t, code)
		require.Contains(t, errOut, host+" is linked statically")
		require.ErrorIs(t, err, preload.ErrNothingSkipped)
		require.ErrorContains(t, err, "host is linked statically and ignores LD_PRELOAD")
	}
}

// Standard streams, the environment and the program's own name reach it.
func TestPassesThrough(t *testing.T) {
	t.Setenv("LD_PRELOAD", "libm.so.6")
	library := buildLibrary(t)
	var out, errOut bytes.Buffer
	_, err := preload.Run(preload.Program{
		Library: library,
		Mask:    parse(t, "6, 4,a9"),
		Args:    []string{"sh", "-c", `cat; echo "$0|$1|$GALLOP_SKIP|$LD_PRELOAD"; echo oops >&2`, "zero", "one two"},
		In:      strings.NewReader("from stdin\n"),
		Out:     &out,
		Err:     &errOut,
	})
	require.ErrorIs(t, err, preload.ErrNothingSkipped)
	require.Equal(t, "from stdin\nzero|one two|4,6,a9|"+library+":libm.so.6\n", out.String())
	first, rest, _ := strings.Cut(errOut.String(), "\n")
	require.Regexp(t, `^gallop: runs /\S*sh without 4,6,a9, through `+library+`$`, first)
	require.Equal(t, "oops\n", rest)
}

func TestForwardsSignals(t *testing.T) {
	library := buildLibrary(t)
	read, write := io.Pipe()
	defer write.Close()
	go func() { // once the program's handler is in place
		line := make([]byte, len("ready\n"))
		if _, err := io.ReadFull(read, line); err == nil {
			_ = syscall.Kill(os.Getpid(), syscall.SIGTERM)
		}
		_, _ = io.Copy(io.Discard, read)
	}()
	code, err := preload.Run(preload.Program{
		Library: library,
		Mask:    parse(t, "4"),
		Args:    []string{"sh", "-c", `trap "exit 9" TERM; echo ready; while :; do sleep 0.05; done`},
		Out:     write,
	})
	require.ErrorIs(t, err, preload.ErrNothingSkipped)
	require.Equal(t, 9, code)
}

func TestRunNothing(t *testing.T) {
	t.Parallel()
	_, _, _, err := run(t, "/nowhere/libgallop-skip.so", "", "true")
	require.ErrorIs(t, err, preload.ErrNoMask)
	for program, cause := range map[string]string{
		"no-such-program":        "executable file not found in $PATH",
		t.TempDir():              "is a directory",
		script(t, "") + "/x":     "not a directory",
		source(t, "not for you"): "permission denied",
	} {
		_, _, _, err = run(t, "/nowhere/libgallop-skip.so", "4", program)
		require.ErrorIs(t, err, preload.ErrProgram)
		require.ErrorContains(t, err, cause)
	}
	broken := filepath.Join(t.TempDir(), "broken")
	require.NoError(t, os.WriteFile(broken, []byte("#!/no/such/interpreter\n"), 0o755))
	_, _, _, err = run(t, "/nowhere/libgallop-skip.so", "4", broken)
	require.ErrorIs(t, err, preload.ErrProgram)
}

func TestFindLibrary(t *testing.T) {
	write := func(dir string) string {
		require.NoError(t, os.MkdirAll(dir, 0o755))
		path := filepath.Join(dir, "libgallop-skip.so")
		require.NoError(t, os.WriteFile(path, nil, 0o644))
		return path
	}
	empty, first, second := t.TempDir(), t.TempDir(), t.TempDir()
	want := write(first)
	write(second)
	got, err := preload.FindLibrary([]string{empty, first, second})
	require.NoError(t, err)
	require.Equal(t, want, got)

	_, err = preload.FindLibrary([]string{empty})
	require.ErrorIs(t, err, preload.ErrNoLibrary)
	require.ErrorContains(t, err, "make preload")

	spaced := filepath.Join(t.TempDir(), "my models")
	write(spaced)
	_, err = preload.FindLibrary([]string{spaced})
	require.ErrorIs(t, err, preload.ErrNoLibrary)
	require.ErrorContains(t, err, "has a space or colon in it")

	t.Setenv(llama.EnvLibrary, first)
	require.Equal(t, first, preload.SearchPath()[0])
}
