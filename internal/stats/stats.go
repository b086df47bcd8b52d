// Package stats has the few statistics that measurements here are summed up with.
//
// # Basics
//
// [Mean] and [Median] sum up; [Bootstrap] and [BootstrapPaired] say how far a mean,
// or the mean of differences, can be trusted.
//
// # Caveats
//
// All of them are NaN without values. No argument is changed.
package stats

import (
	"math"
	"math/rand/v2"
	"slices"
)

// resamples is how many means a bootstrap interval is read from: enough that its
// ends, the 50th from either side, move little.
const resamples = 2000

// confidence is the share of the means that a bootstrap interval holds.
const confidence = 0.95

// Median is the middle one of values, or the mean of the two in the middle; NaN
// without values. They stay in their order.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// Mean is the mean of values, NaN without any.
func Mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}

// Bootstrap is the 95 % confidence interval of the mean of values by the
// percentile bootstrap (Efron 1979) of 2000 resamples. The same values and seed
// give the same interval; without values it is NaN.
func Bootstrap(values []float64, seed uint64) (lo, hi float64) {
	if len(values) == 0 {
		return math.NaN(), math.NaN()
	}
	random := rand.New(rand.NewPCG(seed, 0))
	means := make([]float64, resamples)
	for i := range means {
		sum := 0.0
		for range values {
			sum += values[random.IntN(len(values))]
		}
		means[i] = sum / float64(len(values))
	}
	slices.Sort(means)
	outside := int(math.Round((1 - confidence) / 2 * resamples)) // on either side
	return means[outside], means[resamples-1-outside]
}

// BootstrapPaired is the mean of a-b, measured on the same cases, and its 95 %
// confidence interval as by [Bootstrap]. a and b must be of one length.
func BootstrapPaired(a, b []float64, seed uint64) (mean, lo, hi float64) {
	differences := make([]float64, len(a))
	for i := range a {
		differences[i] = a[i] - b[i]
	}
	lo, hi = Bootstrap(differences, seed)
	return Mean(differences), lo, hi
}
