// Package routertest helps tests compare profiles.
package routertest

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/router"
)

// WithoutSpeed is a profile's bytes without the speed that its calibration measured.
func WithoutSpeed(t testing.TB, path string) []byte {
	t.Helper()
	p, err := router.Read(path)
	require.NoError(t, err)
	p.Defaults.Speed, p.Defaults.Off = 0, false
	path = filepath.Join(t.TempDir(), "profile")
	require.NoError(t, p.Write(path))
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return data
}
