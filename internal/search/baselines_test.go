package search_test

import (
	"context"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/skip"
)

func TestContiguous(t *testing.T) {
	ctx := context.Background()
	units := search.LayerUnits(evenSizes(8))
	for depth, want := range map[float64]skip.Mask{
		1: skip.Layers(1), 3: skip.Layers(1, 2, 3), 3.4: skip.Layers(1, 2, 3), 6: skip.Layers(1, 2, 3, 4, 5, 6),
	} {
		run, err := search.Contiguous(ctx, units, 4, toyLosses, depth)
		require.NoError(t, err)
		require.Equal(t, want, run.Mask, depth)
		require.InDelta(t, float64(want.Len())/2, run.Depth, 1e-9)
		require.InDelta(t, 6-run.Depth+1, run.Evaluations, 1e-9)
	}
	gap := append(append([]search.Unit{}, units[:1]...), units[2:]...) // no layer 2
	run, err := search.Contiguous(ctx, gap, 4, toyLosses, 2)
	require.NoError(t, err)
	require.Equal(t, skip.Layers(3, 4), run.Mask)
	for _, depth := range []float64{5, 0, -1, math.NaN()} {
		_, err = search.Contiguous(ctx, gap, 4, toyLosses, depth)
		require.ErrorIs(t, err, search.ErrSearch, depth)
	}

	run, err = search.Contiguous(ctx, search.SublayerUnits(evenSizes(8)), 4, toyLosses, 1)
	require.NoError(t, err)
	require.Equal(t, skip.Layers(1), run.Mask)
}

func TestRandom(t *testing.T) {
	units := search.SublayerUnits(evenSizes(12))
	sizes := evenSizes(12)
	found := map[skip.Mask]bool{}
	for seed := range uint64(50) {
		mask, err := search.Random(units, 4, seed)
		require.NoError(t, err)
		again, err := search.Random(units, 4, seed)
		require.NoError(t, err)
		require.Equal(t, mask, again)
		require.InDelta(t, 4, sizes.Depth(mask), 0.5)
		require.Zero(t, mask.Skipped(0)|mask.Skipped(11))
		found[mask] = true
	}
	require.Greater(t, len(found), 45) // of many thousands: hardly any twice
	_, err := search.Random(units, 11, 0)
	require.ErrorIs(t, err, search.ErrSearch)
}

func TestByInfluence(t *testing.T) {
	units := search.LayerUnits(evenSizes(6))
	mask, err := search.ByInfluence(units, []float64{0.3, math.NaN(), 0.1, 0.3}, 2)
	require.NoError(t, err)
	require.Equal(t, skip.Layers(1, 3), mask)
	mask, err = search.ByInfluence(units, []float64{0.3, math.NaN(), 0.1, 0.3}, 3)
	require.NoError(t, err)
	require.Equal(t, skip.Layers(1, 3, 4), mask)
	_, err = search.ByInfluence(units, []float64{1}, 2)
	require.ErrorIs(t, err, search.ErrSearch)
	_, err = search.ByInfluence(units, make([]float64, 4), 9)
	require.ErrorIs(t, err, search.ErrSearch)
}
