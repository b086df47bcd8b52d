package main

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
)

// TestPruneOnFullDisk prunes onto a disk that is too small for the result.
func TestPruneOnFullDisk(t *testing.T) {
	alone(t)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("a disk of 64 kB cannot be mounted without root's rights: ", err)
	}
	defer func() { require.NoError(t, syscall.Unmount(dir, 0)) }()
	out := filepath.Join(dir, "out.gguf")
	code, stdout, errOut := runGallop("prune", "-m", llamatest.Write(t, randmodel.Small("llama")), "--skip", "1", "-o", out)
	require.Equal(t, exitError, code)
	require.Empty(t, stdout)
	require.Regexp(t, `^gallop: cannot write `+out+`, \d+ bytes: no space left on device, 65536 bytes are free\n$`, errOut)
	requireNoFiles(t, dir)
}

// TestPruneWithoutSpace runs into the limit that the shell sets for the size of
// files, for which no rights are needed.
func TestPruneWithoutSpace(t *testing.T) {
	alone(t)
	dir := t.TempDir()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command("sh", "-c", `trap "" XFSZ; ulimit -f 64; exec "$0" "$@"`, // blocks of 512 or 1024 bytes
		self, "prune", "-m", llamatest.Write(t, randmodel.Small("llama")), "--skip", "1", "-o", filepath.Join(dir, "out.gguf"))
	cmd.Env = append(os.Environ(), asProgram+"=1")
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Equal(t, exitError, cmd.ProcessState.ExitCode())
	require.Regexp(t, `^gallop: cannot write \S+/out.gguf, \d+ bytes: file too large\n$`, string(out))
	requireNoFiles(t, dir)
}

// TestPruneInterrupted presses Ctrl-C, or ends the program as `timeout` does, while a
// large model is being written.
func TestPruneInterrupted(t *testing.T) {
	alone(t)
	model := writeHuge(t)
	for end, want := range map[syscall.Signal]int{syscall.SIGINT: exitInterrupted, syscall.SIGTERM: exitTerminated} {
		t.Run(end.String(), func(t *testing.T) {
			dir := t.TempDir()
			go func() {
				for {
					if entries, _ := os.ReadDir(dir); len(entries) > 0 {
						_ = syscall.Kill(os.Getpid(), end)
						return
					}
					time.Sleep(time.Millisecond)
				}
			}()
			code, out, errOut := runGallop("prune", "-m", model, "--skip", "1", "-o", filepath.Join(dir, "out.gguf"))
			require.Equal(t, want, code, errOut)
			require.Empty(t, out)
			require.Empty(t, errOut)
			requireNoFiles(t, dir)
		})
	}
}

// writeHuge makes a llama model of two layers of 1 GiB each, which take no room:
// its weights are a hole in the file.
func writeHuge(t *testing.T) string {
	t.Helper()
	const rows, width, layerBytes = 1 << 14, 1 << 14, 1 << 30
	var b []byte
	text := func(s string) {
		b = binary.LittleEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
	}
	u32 := func(n uint32) { b = binary.LittleEndian.AppendUint32(b, n) }
	u64 := func(n uint64) { b = binary.LittleEndian.AppendUint64(b, n) }
	b = append(b, "GGUF"...)
	u32(3) // version
	u64(2) // tensors
	u64(2) // metadata entries
	text("general.architecture")
	u32(8) // a text
	text("llama")
	text("llama.block_count")
	u32(4) // a uint32
	u32(2)
	for layer, name := range []string{"blk.0.ffn_up.weight", "blk.1.ffn_up.weight"} {
		text(name)
		u32(2) // dimensions
		u64(width)
		u64(rows)
		u32(0) // F32
		u64(uint64(layer) * layerBytes)
	}
	const alignment = 32
	dataOffset := (int64(len(b)) + alignment - 1) / alignment * alignment
	path := writeFile(t, "huge.gguf", string(b))
	require.NoError(t, os.Truncate(path, dataOffset+2*layerBytes))
	return path
}
