package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestUnits has systemd look at its units. It wants the program that a unit starts to be there.
func TestUnits(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("there is no systemd-analyze: apt install systemd")
	}
	dir := t.TempDir()
	for _, name := range []string{"gallop.service", "gallop.socket"} {
		text, err := os.ReadFile("../deploy/" + name)
		require.NoError(t, err)
		installed := strings.ReplaceAll(string(text), "/usr/local/bin/gallop", "/bin/true")
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(installed), 0o644))
	}
	out, err := exec.CommandContext(t.Context(), analyze, "verify", filepath.Join(dir, "gallop.service"), filepath.Join(dir, "gallop.socket")).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Empty(t, string(out))
}

// TestDeploy runs the checks of the other files of deploy, which are a module of their own.
func TestDeploy(t *testing.T) {
	if os.Getenv("GALLOP_LONG") == "" {
		t.Skip("set GALLOP_LONG=1 to build the parsers of BuildKit, Kubernetes, Prometheus and Grafana")
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "./...")
	cmd.Dir = "deploy"
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}
