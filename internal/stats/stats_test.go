package stats

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMedian(t *testing.T) {
	values := []float64{5, 1, 3}
	require.InDelta(t, 3, Median(values), 0)
	require.Equal(t, []float64{5, 1, 3}, values)
	require.InDelta(t, 2, Median([]float64{1, 3}), 0)
	require.True(t, math.IsNaN(Median(nil)))
}

func TestMean(t *testing.T) {
	require.Equal(t, 2.0, Mean([]float64{1, 2, 3}))
	require.True(t, math.IsNaN(Mean(nil)))
}

func TestBootstrap(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	values := make([]float64, 400)
	for i := range values {
		values[i] = 5 + 2*random.NormFloat64()
	}
	mean, sum := Mean(values), 0.0
	for _, v := range values {
		sum += (v - mean) * (v - mean)
	}
	half := 1.96 * math.Sqrt(sum/float64(len(values))/float64(len(values)))
	lo, hi := Bootstrap(values, 1)
	require.InDelta(t, mean-half, lo, 0.15*half)
	require.InDelta(t, mean+half, hi, 0.15*half)

	lo2, hi2 := Bootstrap(values, 1)
	require.Equal(t, []float64{lo, hi}, []float64{lo2, hi2})
	lo2, _ = Bootstrap(values, 2)
	require.NotEqual(t, lo, lo2)

	lo, hi = Bootstrap(slices.Repeat([]float64{3}, 9), 1)
	require.Equal(t, []float64{3, 3}, []float64{lo, hi})
	lo, hi = Bootstrap(nil, 1)
	require.True(t, math.IsNaN(lo))
	require.True(t, math.IsNaN(hi))
}

// TestBootstrapPaired has a small difference between values that spread widely:
// only pairs show it.
func TestBootstrapPaired(t *testing.T) {
	random := rand.New(rand.NewPCG(2, 2))
	a, b := make([]float64, 100), make([]float64, 100)
	for i := range a {
		b[i] = 10 * random.NormFloat64()
		a[i] = b[i] + 0.5 + 0.1*random.NormFloat64()
	}
	mean, lo, hi := BootstrapPaired(a, b, 1)
	require.InDelta(t, 0.5, mean, 0.05)
	require.Less(t, lo, mean)
	require.Greater(t, hi, mean)
	require.Positive(t, lo)
	require.Less(t, hi-lo, 0.1)
}
