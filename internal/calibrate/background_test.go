package calibrate_test

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/calibrate"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

func background(folder string) calibrate.Options {
	return calibrate.Options{
		Examples: examples(24, true), Unit: calibrate.FeedForwards, Prefill: skip.FullPrefill, Depths: []float64{1, 1.5},
		PerTask: 8, Answer: 6, Clusters: 2, Threads: 1, Seed: 3, Folder: folder,
	}
}

// TestBackground is idle for moments only, and ends with a profile like that of a run in
// the foreground.
func TestBackground(t *testing.T) {
	m := small(t)
	_, want, err := write(t, t.Context(), m, background(t.TempDir()))
	require.NoError(t, err)
	asked := 0
	begin := func() bool { asked++; return asked > 1 }
	nowhere, path := filepath.Join("/dev/null", "x.gallop.gguf"), filepath.Join(t.TempDir(), "x.gallop.gguf")
	b := calibrate.NewBackground(m, background(t.TempDir()), begin, nowhere, path)
	defer b.Close()
	found, err := b.Take()
	require.NoError(t, err)
	require.Nil(t, found)
	early, done, moments := false, false, 0
	for ; !done; moments++ {
		b.Idle()
		time.Sleep(20 * time.Millisecond)
		b.Busy()
		found, err := b.Take()
		require.NoError(t, err)
		if found != nil {
			require.Equal(t, path, found.Path, "the first that can be written")
			require.Contains(t, found.Has, "sets of layers")
			p, err := router.Read(path)
			require.NoError(t, err)
			early = early || !found.Done
			if !found.Done && !calibrate.Unfinished(p) { // the last one was written meanwhile
				require.Eventually(t, func() bool {
					found, err = b.Take()
					return err == nil && found != nil && found.Done
				}, time.Minute, time.Millisecond)
			}
			require.Equal(t, !found.Done, calibrate.Unfinished(p))
			done = found.Done
		}
	}
	require.True(t, early, "a first profile before the last")
	require.Greater(t, moments, 3)
	got, err := router.Read(path)
	require.NoError(t, err)
	require.Equal(t, want.Tasks, got.Tasks)
	require.Len(t, got.Candidates, len(want.Candidates))
	require.NoError(t, b.Close())
	require.NoError(t, b.Close())
	b.Idle() // does nothing any more
	require.Positive(t, calibrate.Memory(m))
}

// TestBackgroundGoesOn where one that was closed in the middle, busy or idle, has stopped.
func TestBackgroundGoesOn(t *testing.T) {
	m := small(t)
	folder, path := t.TempDir(), filepath.Join(t.TempDir(), "x.gallop.gguf")
	always := func() bool { return true }
	done := false
	for round := 0; !done; round++ {
		require.Less(t, round, 100, "each gets further")
		b := calibrate.NewBackground(m, background(folder), always, path)
		b.Idle()
		time.Sleep(time.Duration(20+150*round) * time.Millisecond)
		if round%2 == 0 {
			b.Busy()
		}
		found, err := b.Take()
		require.NoError(t, err)
		done = found != nil && found.Done
		closed := time.Now()
		require.NoError(t, b.Close())
		require.Less(t, time.Since(closed), 20*time.Second, "it does not wait for the pause's end")
	}
	_, err := router.Read(path)
	require.NoError(t, err)
}

// TestBackgroundFails once, and says so.
func TestBackgroundFails(t *testing.T) {
	m := small(t)
	o := background(t.TempDir())
	o.Depths = []float64{9}
	b := calibrate.NewBackground(m, o, func() bool { return true }, filepath.Join(t.TempDir(), "x.gallop.gguf"))
	defer b.Close()
	b.Idle()
	var err error
	require.Eventually(t, func() bool { _, err = b.Take(); return err != nil }, time.Minute, time.Millisecond)
	require.ErrorContains(t, err, "in the background: depths are [9]")
	found, err := b.Take()
	require.NoError(t, err)
	require.Nil(t, found)
}
