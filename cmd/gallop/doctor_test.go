package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/doctor"
	"github.com/gallop-llm/gallop/internal/llamatest"
)

// runProgram runs a command line in a process of its own, which loads its own
// libraries, with env beside the test's environment.
func runProgram(t *testing.T, env []string, args ...string) (code int, out, errOut string) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(self, args...)
	cmd.Env = append(append(os.Environ(), asProgram+"=1"), env...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		require.True(t, errors.As(err, &exit), "%v", err)
	}
	return cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()
}

func TestDoctor(t *testing.T) {
	alone(t)
	llamatest.Library(t)
	code, out, errOut := runGallop("doctor")
	require.Equal(t, exitOK, code, errOut)
	require.Empty(t, errOut)
	require.Contains(t, out, "✓ layout ")
	require.Contains(t, out, "✓ masks ")
	require.Contains(t, out, "✓ CPU module     libggml-cpu-")
	require.NotContains(t, out, "✗")
}

func TestDoctorJSON(t *testing.T) {
	alone(t)
	llamatest.Library(t)
	code, out, errOut := runGallop("doctor", "--json")
	require.Equal(t, exitOK, code, errOut)
	var r doctor.Report
	require.NoError(t, json.Unmarshal([]byte(out), &r))
	require.True(t, r.OK)
	require.NotEmpty(t, r.Library)
}

const somethingMissing = "gallop: something needed is missing: see the lines with ✗, \"missing\" in JSON\n"

func TestDoctorWithoutLibraries(t *testing.T) {
	alone(t)
	code, out, errOut := runProgram(t, []string{"XDG_CACHE_HOME=" + t.TempDir(), "GALLOP_LIB=", "PATH="}, "doctor")
	require.Equal(t, exitError, code)
	require.Equal(t, somethingMissing, errOut)
	require.Contains(t, out, "✗ libraries      llama.cpp's libraries are not installed\n                 → gallop setup\n")
}

// TestDoctorForeignLibrary lets GALLOP_LIB name libraries that are not ours.
func TestDoctorForeignLibrary(t *testing.T) {
	alone(t)
	const name = "libllama.v9.9.9.so"
	noLibrary := writeFile(t, name, "not even a library")
	old := filepath.Join(t.TempDir(), name)
	source := writeFile(t, "old.c", "int llama_model_default_params(void) { return 0; }\n")
	compiler, err := exec.Command("cc", "-shared", "-fPIC", "-o", old, source).CombinedOutput()
	require.NoError(t, err, string(compiler))
	for name, test := range map[string]struct{ path, want string }{
		"other file":     {noLibrary, "file too short"},
		"other versions": {old, "it has no function "},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errOut := runProgram(t, []string{"GALLOP_LIB=" + filepath.Dir(test.path)}, "doctor")
			require.Equal(t, exitError, code)
			require.Equal(t, somethingMissing, errOut)
			require.Contains(t, out, "✓ libraries      "+filepath.Dir(test.path)+" (named by GALLOP_LIB)\n")
			require.Regexp(t, `(?m)^✗ layout +this is not the llama.cpp that gallop works with \(v[0-9.]+( or v[0-9.]+)*\): .*`+test.want+
				".*; run `gallop setup` and unset GALLOP_LIB to use the right one$", out)
		})
	}
	t.Run("none", func(t *testing.T) {
		dir := t.TempDir()
		code, out, _ := runProgram(t, []string{"GALLOP_LIB=" + dir}, "doctor")
		require.Equal(t, exitError, code)
		require.Contains(t, out, "✗ libraries      GALLOP_LIB names "+dir+", which has no llama.cpp libraries\n")
	})
}
