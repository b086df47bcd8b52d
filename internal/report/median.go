package report

import (
	"math"
	"slices"
)

// Median is the middle one of values, or the mean of the two in the middle; NaN
// without values. They stay in their order.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}
