//go:build unix

package llama_test

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// limitMemory ends this process where it wants more than any model of the tests needs.
func limitMemory(t *testing.T) {
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_AS, &syscall.Rlimit{Cur: 16 << 30, Max: 16 << 30}))
}
