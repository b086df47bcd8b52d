package costs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
)

// TestFilesThatCannotBeUsed are damaged, or from another version: nothing is known then.
func TestFilesThatCannotBeUsed(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "no JSON": "{", "another version": `{"version":99,"alone":1}`, "a cost of 0": `{"version":1,"alone":1,"costs":{"4":0}}`,
		"a size beyond all": `{"version":1,"alone":1,"costs":{"99":2}}`, "no way to compute": `{"version":1,"alone":7}`,
		"a speed of 0": `{"version":1,"alone":1,"masks":{"f1":{"speed":0}}}`, "doubt above 1": `{"version":1,"alone":1,"masks":{"f1":{"speed":1,"doubt":2}}}`,
	} {
		path := filepath.Join(t.TempDir(), "costs.json")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		require.Nil(t, Read(path), name)
	}
	require.Nil(t, Read(""))
	require.Nil(t, Read(filepath.Join(t.TempDir(), "none.json")))
}

func TestPathTellsMachinesApart(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 4))
	paths := map[string]bool{}
	for _, o := range []llama.ContextOptions{{}, {Threads: 2}, {Threads: 3}, {Threads: 2, Flash: llama.FlashOff}} {
		path, err := Path(m, &o, 0, true)
		require.NoError(t, err)
		paths[path] = true
	}
	require.GreaterOrEqual(t, len(paths), 3) // without a number of threads it is one of them, perhaps
	other, err := Path(m, &llama.ContextOptions{}, 3, true)
	require.NoError(t, err)
	require.NotContains(t, paths, other)
}

func TestTimes(t *testing.T) {
	var times Times
	require.Zero(t, times.At(Usual))
	for _, x := range []float64{9, 1, 8, 2, 7} {
		times.Add(x)
	}
	require.InDelta(t, 2, times.At(Usual), 0, "the lower quartile")
	require.InDelta(t, 7, times.At(0.5), 0)
	for range Recent {
		times.Add(3)
	}
	require.InDelta(t, 3, times.At(1), 0, "only the last ones count")
	require.Equal(t, 5+Recent, times.N())
}
