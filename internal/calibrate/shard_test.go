package calibrate_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/calibrate"
	"github.com/gallop-llm/gallop/internal/files"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// sharded is a calibration that shards make, or one process with none.
func sharded(folder string, free bool) calibrate.Options {
	return calibrate.Options{
		Examples: examples(70, free), Unit: calibrate.FeedForwards, Prefill: skip.FullPrefill, Depths: []float64{1, 1.5},
		PerTask: 8, Answer: 6, Clusters: 2, Threads: 1, Seed: 3, Folder: folder,
	}
}

// calibrateShard runs one shard. done tells whether nothing is left for it.
func calibrateShard(t *testing.T, m *llama.Model, o calibrate.Options, s calibrate.Shard) (done bool) {
	t.Helper()
	o.Shard = &s
	p, err := calibrate.Run(t.Context(), m, o)
	require.Nil(t, p)
	var missing *calibrate.MissingError
	if errors.As(err, &missing) {
		require.NotContains(t, missing.Shards, s.Number)
		return false
	}
	require.NoError(t, err)
	return true
}

// TestShards shares calibrations among shards that take turns, and among some that run
// together. Each profile is the unshared one, and the process that merges computes nothing.
func TestShards(t *testing.T) {
	m := small(t)
	masked := sharded(t.TempDir(), false)
	masked.Prefill, masked.Unit = skip.MaskedPrefill, calibrate.Layers
	type division struct {
		shards   int
		together bool
	}
	for name, test := range map[string]struct {
		o         calibrate.Options
		divisions []division
	}{
		"free prompts":    {sharded(t.TempDir(), true), []division{{1, false}, {2, true}, {4, false}, {16, true}}}, // of 16, several divide a search
		"answers, masked": {masked, []division{{3, false}}},
	} {
		want, _, err := write(t, t.Context(), m, test.o)
		require.NoError(t, err)
		for _, d := range test.divisions {
			t.Run(fmt.Sprint(name, d), func(t *testing.T) {
				if os.Getenv("GALLOP_LONG") == "" && (d.shards == 1 || d.shards == 4) {
					t.Skip("takes long beside the others: GALLOP_LONG=1")
				}
				o := test.o
				o.Folder = t.TempDir()
				var running sync.WaitGroup
				for i := 0; d.together && i < d.shards; i++ {
					running.Go(func() { calibrateShard(t, m, o, calibrate.Shard{Number: i, Of: d.shards, Wait: true}) })
				}
				running.Wait()
				for rounds, left := 0, 1; left > 0; rounds++ {
					require.Less(t, rounds, 40)
					left = 0
					for i := range d.shards {
						if !calibrateShard(t, m, o, calibrate.Shard{Number: i, Of: d.shards}) {
							left++
						}
					}
					require.False(t, d.together && left > 0)
				}
				o.Shard = &calibrate.Shard{Number: calibrate.Merge}
				got, _, err := write(t, t.Context(), m, o)
				require.NoError(t, err)
				require.True(t, bytes.Equal(want, got), "the profiles differ")
				merged, err := os.ReadFile(filepath.Join(o.Folder, "merge.log"))
				require.NoError(t, err)
				require.Equal(t, 1, strings.Count(string(merged), "\n"), "nothing but its head: all was computed by the shards")
			})
		}
	}
}

// TestShardRefuses has logs that are another calibration's, or damaged, and no logs.
func TestShardRefuses(t *testing.T) {
	m := small(t)
	o := sharded(t.TempDir(), true)
	run := func(o calibrate.Options, s calibrate.Shard) error {
		o.Shard = &s
		_, err := calibrate.Run(t.Context(), m, o)
		return err
	}
	merge := calibrate.Shard{Number: calibrate.Merge}
	require.ErrorContains(t, run(o, merge), "has no shard's log; start the shards first")
	for _, s := range []calibrate.Shard{{Number: 2, Of: 2}, {Number: -2, Of: 2}} {
		require.ErrorIs(t, run(o, s), calibrate.ErrShard)
	}
	timed := o
	timed.Time = 1
	require.ErrorContains(t, run(timed, calibrate.Shard{Of: 2}), "with a limit of time")

	require.False(t, calibrateShard(t, m, o, calibrate.Shard{Number: 0, Of: 2}))
	var missing *calibrate.MissingError
	require.ErrorAs(t, run(o, merge), &missing)
	require.Equal(t, "1", missing.List())
	require.EqualError(t, missing, "losses are missing that shard 1 of 2 computes: start it, and then this again")

	require.ErrorContains(t, run(o, calibrate.Shard{Number: 0, Of: 3}), "has logs of 2 shards and not of 3")
	other := o
	other.Depths = []float64{1}
	require.ErrorIs(t, run(other, merge), search.ErrLogKey)
	other = o
	other.Threads = 2
	require.ErrorIs(t, run(other, calibrate.Shard{Number: 1, Of: 2}), search.ErrLogKey)
	require.NoFileExists(t, filepath.Join(o.Folder, "shard-1-of-2.log"))

	path := filepath.Join(o.Folder, "shard-0-of-2.log")
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	damaged := []byte(strings.Replace(string(whole), `"losses":"4`, `"losses":"5`, 1)) // one bit
	require.NotEqual(t, whole, damaged)
	require.NoError(t, os.WriteFile(path, damaged, 0o600))
	err = run(o, merge)
	require.ErrorIs(t, err, search.ErrLog)
	require.ErrorContains(t, err, "is damaged; start what wrote it again")
	require.False(t, calibrateShard(t, m, o, calibrate.Shard{Number: 0, Of: 2}), "which mends it")
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(whole), string(after))

	// What another shard is just writing is waited for, and not a fault.
	require.NoError(t, os.WriteFile(path, whole[:len(whole)-7], 0o600))
	require.ErrorAs(t, run(o, merge), &missing)
	require.Contains(t, missing.Shards, 0)

	old := []byte(strings.Replace(string(whole), `"gallop_search_log":3`, `"gallop_search_log":2`, 1))
	require.NoError(t, os.WriteFile(path, old, 0o600))
	require.ErrorContains(t, run(o, merge), "it is of format 2, want 3")
}

// TestShardLocked starts a shard twice.
func TestShardLocked(t *testing.T) {
	m := small(t)
	o := sharded(t.TempDir(), true)
	o.Shard = &calibrate.Shard{Number: 0, Of: 2, Wait: true}
	ctx, cancel := context.WithCancel(t.Context())
	waits := make(chan bool)
	o.Progress = func(stage string, _, _ int) {
		if strings.HasPrefix(stage, "waiting for shards 1") {
			select {
			case waits <- true:
			default:
			}
		}
	}
	ended := make(chan error)
	go func() { _, err := calibrate.Run(ctx, m, o); ended <- err }()
	<-waits
	second := o
	second.Progress = nil
	_, err := calibrate.Run(t.Context(), m, second)
	require.ErrorIs(t, err, files.ErrLocked)
	require.ErrorContains(t, err, "shard-0-of-2.log: another process has the lock")
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
}
