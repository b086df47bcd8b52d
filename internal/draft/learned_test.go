package draft

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// TestLearnedIsKept has one session learn and the next one start with that.
func TestLearnedIsKept(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 4))
	path := filepath.Join(t.TempDir(), "new folder", "learned.json")
	opts := Options{
		Context: llama.ContextOptions{NCtx: 256, Threads: 1}, MaxTokens: 60,
		Lossless: &Lossless{Masks: []DraftMask{{Mask: skip.Layers(1)}}}, Learned: path,
	}
	first, err := New(m, &opts)
	require.NoError(t, err)
	require.NoError(t, first.Close())
	require.NoFileExists(t, path, "nothing was learnt")

	first, err = New(m, &opts)
	require.NoError(t, err)
	d := first.drafter
	d.pace.saw(1, 10*time.Millisecond)
	d.pace.sawGraph(11 * time.Millisecond)
	for range trusted {
		d.saw(4, 30*time.Millisecond)
	}
	d.saw(8, 40*time.Millisecond) // once is not enough
	d.same.add(4, []float32{1, 2}, []float32{1, 2.5})
	require.NoError(t, first.Close())

	second, err := New(m, &opts)
	require.NoError(t, err)
	defer second.Close()
	d = second.drafter
	d.pace.saw(1, 20*time.Millisecond)
	const tolerance = 1e-9 // of decimals in the file
	require.InDelta(t, 3, d.pace.of(4), tolerance)
	require.InDelta(t, 3, d.pace.dear.of(4), tolerance)
	require.InDelta(t, 0.1, d.pace.graph, tolerance)
	require.Zero(t, d.pace.seen[8].n)
	require.True(t, d.same.known(4))
	require.False(t, d.same.known(8))
	require.InDelta(t, 0.5, d.same.most, tolerance)
}

// TestLearnedIsFoundOutAgain gives files that are damaged, or from another version.
func TestLearnedIsFoundOutAgain(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 4))
	for name, text := range map[string]string{
		"empty": "", "no JSON": "{", "another version": `{"version":99,"alone":1}`, "a cost of 0": `{"version":1,"alone":1,"costs":{"4":0}}`,
		"a size beyond all": `{"version":1,"alone":1,"costs":{"99":2}}`, "no way to compute": `{"version":1,"alone":7}`,
	} {
		path := filepath.Join(t.TempDir(), "learned.json")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		s, err := New(m, &Options{Context: llama.ContextOptions{NCtx: 256, Threads: 1}, MaxTokens: 30, Lossless: &Lossless{}, Learned: path})
		require.NoError(t, err, name)
		require.Zero(t, s.drafter.pace.seen[4].n, name)
		_, err = s.Ask(t.Context(), "say", func(string) {})
		require.NoError(t, err, name)
		require.NoError(t, s.Close())
	}
}

func TestLearnedPathTellsMachinesApart(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 4))
	paths := map[string]bool{}
	for _, o := range []llama.ContextOptions{{}, {Threads: 2}, {Threads: 3}, {Threads: 2, Flash: llama.FlashOff}} {
		path, err := LearnedPath(m, &o, 0, true)
		require.NoError(t, err)
		paths[path] = true
	}
	require.GreaterOrEqual(t, len(paths), 3) // without a number of threads it is one of them, perhaps
}

// TestNothingIsTriedBeyondItsShare looks at what may be drafted at the end of an
// answer of 100 tokens, when nothing is known of batches.
func TestNothingIsTriedBeyondItsShare(t *testing.T) {
	d := &drafter{most: MaxDraft, lookup: &source{lookup: true, prior: priorLookup}}
	d.pace.saw(1, 10*time.Millisecond)
	budget := min(100*lossShare+wonBefore, mostRisk)
	d.match = 20
	d.setChances(d.lookup, MaxDraft)
	cost := d.costOf(d.lookup)
	require.Zero(t, d.pace.dear.affordable(&cost, d.sure[:], budget, d.extra), "nothing is known of what is looked up")
	for range 40 {
		d.lookup.odds.count(matchClass(d.match), true)
	}
	d.setChances(d.lookup, MaxDraft)
	require.GreaterOrEqual(t, d.pace.dear.affordable(&cost, d.sure[:], budget, d.extra), 6, "looking up was right 40 times, without a draft")
	require.Zero(t, d.pace.dear.affordable(&cost, d.sure[:3], budget, d.extra), "a short draft can hardly win where batches are dear")
}
