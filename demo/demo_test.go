package demo_test

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/router"
)

func TestDamagedFilesAreWrittenAnew(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("HOME", t.TempDir()) // where a Mac has its cache
	path, err := demo.Path()
	require.NoError(t, err)
	for _, p := range []string{path, strings.TrimSuffix(path, ".gguf") + ".gallop.gguf"} {
		whole, err := os.ReadFile(p)
		require.NoError(t, err)
		for name, damage := range map[string]func() error{
			"cut off":     func() error { return os.Truncate(p, 100) },
			"zeros":       func() error { return os.WriteFile(p, make([]byte, len(whole)), 0o644) },
			"one bit":     func() error { b := append([]byte(nil), whole...); b[len(b)/2] ^= 1; return os.WriteFile(p, b, 0o644) },
			"not there":   func() error { return os.Remove(p) },
			"not damaged": func() error { return nil },
		} {
			require.NoError(t, damage(), name)
			again, err := demo.Path()
			require.NoError(t, err, name)
			require.Equal(t, path, again, name)
			got, err := os.ReadFile(p)
			require.NoError(t, err, name)
			require.Equal(t, whole, got, name)
		}
	}
}

// TestProfileServesOtherQuantisations needs the hash of the norms in the profile.
func TestProfileServesOtherQuantisations(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("HOME", t.TempDir())
	path, err := demo.Path()
	require.NoError(t, err)
	model, err := router.FingerprintOf(path)
	require.NoError(t, err)
	p, err := router.Read(router.DefaultPath(path))
	require.NoError(t, err)
	require.Equal(t, model, p.Model)
	require.True(t, p.Model.SameModel(model))
}
