package llamatest

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// Printed runs f and returns what the process wrote to stdout and stderr
// meanwhile, C included.
func Printed(t testing.TB, f func()) string {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "printed"))
	require.NoError(t, err)
	defer file.Close()
	for _, fd := range []int{1, 2} {
		saved, err := syscall.Dup(fd)
		require.NoError(t, err)
		require.NoError(t, syscall.Dup3(int(file.Fd()), fd, 0))
		defer syscall.Close(saved)
		defer func() { require.NoError(t, syscall.Dup3(saved, fd, 0)) }()
	}
	f()
	text, err := os.ReadFile(file.Name())
	require.NoError(t, err)
	return string(text)
}
