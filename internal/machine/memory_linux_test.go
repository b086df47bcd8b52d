package machine

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMemory(t *testing.T) {
	free, total := memory("MemTotal:       24684096 kB\nMemFree:        1 kB\nMemAvailable:   20860984 kB\nodd\nMemTotal: lots kB\n")
	require.EqualValues(t, 20860984*1024, free)
	require.EqualValues(t, 24684096*1024, total)
	free, total = memory("")
	require.Zero(t, free)
	require.Zero(t, total)
}
