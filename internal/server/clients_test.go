package server

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestClients lets published clients, unchanged, ask a server with the demo model. They are
// fetched from their registries, and the Node.js that some of them need is too.
func TestClients(t *testing.T) {
	if os.Getenv("GALLOP_LONG") == "" {
		t.Skip("set GALLOP_LONG=1 to fetch the clients and run them")
	}
	env := os.Environ() // before the test has a cache of its own
	h := serveDemo(t, false, "key")
	build, err := filepath.Abs("../../build/clients")
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(build, 0o755))
	venv := filepath.Join(build, "python")
	for _, c := range []struct {
		name, dir string
		commands  [][]string
	}{
		{"go", "go", [][]string{{"go", "test", "-count=1", "."}}},
		{"python", "python", [][]string{
			{"python3", "-m", "venv", venv}, {venv + "/bin/pip", "install", "--quiet", "-r", "requirements.txt"}, {venv + "/bin/python3", "clients.py"},
		}},
		{"node", "node", [][]string{{"npm", "install", "--silent", "--no-audit", "--no-fund", "--no-package-lock"}, {"npm", "test", "--silent"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, args := range c.commands {
				cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
				cmd.Dir = filepath.Join("../../test/clients", c.dir)
				cmd.Env = append(env, "GALLOP_URL="+h.URL, "GALLOP_KEY=key")
				out, err := cmd.CombinedOutput()
				require.NoError(t, err, "%s", out)
			}
		})
	}
}
