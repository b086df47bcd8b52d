package calibrate

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

func TestSpeedup(t *testing.T) {
	a, b := skip.Mask{}.With(1, skip.FeedForward), skip.Mask{}.With(2, skip.FeedForward)
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	for name, c := range map[string]struct {
		masked map[skip.Mask]time.Duration
		shares map[skip.Mask]float64
		second time.Duration
		twice  float64
		want   float64
	}{
		"all routed":         {map[skip.Mask]time.Duration{a: ms(8)}, map[skip.Mask]float64{a: 1}, 0, 0, 10. / 8},
		"half routed":        {map[skip.Mask]time.Duration{a: ms(8)}, map[skip.Mask]float64{a: 0.5}, 0, 0, 10. / 9},
		"decided twice":      {map[skip.Mask]time.Duration{a: ms(8)}, map[skip.Mask]float64{a: 1}, ms(12), 0.25, 10. / 11},
		"two masks":          {map[skip.Mask]time.Duration{a: ms(8), b: ms(6)}, map[skip.Mask]float64{a: 0.5, b: 0.5}, 0, 0, 10. / 7},
		"one was not timed":  {map[skip.Mask]time.Duration{a: ms(8)}, map[skip.Mask]float64{a: 0.5, b: 0.5}, 0, 0, 10. / 8},
		"slower than plain ": {map[skip.Mask]time.Duration{a: ms(11)}, map[skip.Mask]float64{a: 1}, 0, 0, 10. / 11},
	} {
		require.InDelta(t, c.want, speedup(ms(10), c.masked, c.second, c.shares, c.twice), 1e-12, name)
	}
}

// TestSpeedOfMasks times masks for real, also past the end of the context, and stops
// when it is asked to.
func TestSpeedOfMasks(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 4))
	tokens := []llama.Token{1, 5, 9}
	stages := 0
	r := &run{model: m, cases: []score.Case{{Prompt: tokens}}, Options: Options{Threads: 1, Progress: func(string, int, int) { stages++ }}}
	shares := map[skip.Mask]float64{
		skip.Mask{}.With(1, skip.FeedForward): 0.5, skip.Mask{}.With(2, skip.FeedForward): 0.3,
	}
	speed, err := r.speedOf(context.Background(), shares, 0.1)
	require.NoError(t, err)
	require.Positive(t, speed)
	require.Greater(t, stages, timedContext/timedRun, "the context was filled more than once")

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = r.speedOf(ctx, shares, 0)
	require.ErrorIs(t, err, context.Canceled)
}
