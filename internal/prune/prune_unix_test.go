//go:build unix

package prune_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/prune"
)

// pruneArgs names the environment variable by which the test below runs itself
// again, as a process that may not write large files.
const pruneArgs = "GALLOP_TEST_PRUNE_IN"

// TestPruneWithoutSpace lets the disk "fill up" in the middle of the file: the
// system refuses what goes beyond the process's file size limit in the same
// place where a full disk would refuse it. It needs no rights, unlike a small
// disk of its own.
func TestPruneWithoutSpace(t *testing.T) {
	if dir := os.Getenv(pruneArgs); dir != "" {
		pruneWithLimit(dir)
		return
	}
	dir := filepath.Dir(model(t, "llama", nil))
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, "-test.run=^TestPruneWithoutSpace$")
	cmd.Env = append(os.Environ(), pruneArgs+"="+dir)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "cannot write "+filepath.Join(dir, "out.gguf"))
	require.Contains(t, string(out), "file too large")
	requireFiles(t, dir, "model.gguf")
}

// pruneWithLimit prunes dir/model.gguf (1.8 MB) into dir/out.gguf and prints the
// error.
func pruneWithLimit(dir string) {
	const limit = 1_100_000 // bytes: more than the writer's buffer, less than the result
	signal.Ignore(syscall.SIGXFSZ)
	rlimit := syscall.Rlimit{Cur: limit, Max: limit}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &rlimit); err != nil {
		panic(err)
	}
	fmt.Println(prune.Layers(context.Background(), filepath.Join(dir, "model.gguf"), filepath.Join(dir, "out.gguf"), []int{1}, nil))
}
