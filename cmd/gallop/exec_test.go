package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
)

// compileC runs the C compiler on a file of the repository.
func compileC(t *testing.T, output, file string, flags ...string) {
	t.Helper()
	args := append([]string{"../../" + file, "-I../../third_party/llama.cpp/include", "-ldl", "-o", output}, flags...)
	out, err := exec.Command("cc", args...).CombinedOutput()
	require.NoError(t, err, "cc: %s", out)
}

func TestExec(t *testing.T) {
	alone(t)
	llamatest.Library(t)
	libllama, err := llama.FindLibrary([]string{llama.Dir()})
	require.NoError(t, err)
	model := llamatest.Write(t, randmodel.Small("llama"))
	dir := t.TempDir()
	host := filepath.Join(dir, "cloop")
	compileC(t, host, "scripts/cloop.c")
	compileC(t, filepath.Join(dir, "libgallop-skip.so"), "third_party/layerskip/layerskip.c",
		"-DLAYERSKIP_PRELOAD", "-shared", "-fPIC", "-fvisibility=hidden")
	t.Setenv("GALLOP_LIB", dir)

	const nothing = "nothing was skipped: "
	for _, tt := range []struct {
		args string
		code int
		says string // on stderr
	}{
		{"--skip 4,a6 -- HOST LIB MODEL 4 2 1 0", exitOK, "gallop-skip: skips 1 layers and 1 single sublayers of 8 layers"},
		{"--skip 4,99 -- HOST LIB MODEL 4 2 1 0", 1, nothing + "the mask names layer 99, but the model's layers end at 7"},
		{"--skip 4 -- true", exitError, nothing + "true ran no model"},
		{"--skip 4 -- HOST", 1, "usage: cloop"},
		{"--skip 4 -- ls --no-such-flag", 2, "gallop: ls: exit status 2; " + nothing},
		{"--skip 4 -- no-such-program", exitError, `cannot run the program "no-such-program"`},
		{"--skip 4x -- true", exitUsage, "--skip: not a mask"},
		{"--skip 4,v1024 -- true", exitUsage, "a vocabulary shortlist works in gallop's own commands only; leave out v1024"},
		{"-- true", exitUsage, "the mask is empty"},
		{"--skip 4 true", exitUsage, "put the program behind --"},
		{"--skip 4", exitUsage, "put the program behind --"},
		{"--skip 4 --", exitUsage, "put the program behind --"},
		{"true --skip 4 -- x", exitUsage, "put the program behind --"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			args := strings.Fields(strings.NewReplacer("HOST", host, "LIB", libllama, "MODEL", model).Replace(tt.args))
			code, out, errOut := runGallop(append([]string{"exec"}, args...)...)
			require.Equal(t, tt.code, code, errOut)
			require.Contains(t, errOut, tt.says)
			if tt.code == exitOK {
				require.Contains(t, out, `"tokens": [`)
				require.Contains(t, errOut, fmt.Sprintf("gallop: runs %s without 4,a6, through %s", host, dir))
			}
		})
	}
}

func TestExecWithoutLibrary(t *testing.T) {
	alone(t)
	t.Setenv("GALLOP_LIB", t.TempDir())
	code, out, errOut := runGallop("exec", "--skip", "4", "--", "true")
	require.Equal(t, exitError, code)
	require.Empty(t, out)
	require.Contains(t, errOut, "no libgallop-skip.so")
	require.Contains(t, errOut, "`make preload`")
}
