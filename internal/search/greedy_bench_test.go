package search_test

import (
	"context"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/search"
)

// greedyProblem is a search whose result is compared with the exhaustive one's.
type greedyProblem struct {
	units   []search.Unit
	losses  search.Losses
	options search.Options
}

// benchExamples is how many examples each search has.
const benchExamples = 64

// BenchmarkGreedy compares the search with the exhaustive one: its share of the
// evaluations, the geometric mean of its final losses over those of the
// exhaustive search, and the share of searches within 1 % or better. The losses
// are made up; BenchmarkSearch in internal/calibrate has the demo model's.
func BenchmarkGreedy(b *testing.B) {
	const seeds = 400
	for _, c := range []struct {
		name   string
		layers int
		depth  float64
		halves bool
	}{{"layers-12", 12, 4, false}, {"sublayers-12", 12, 4, true}, {"layers-32", 32, 7, false}} {
		b.Run(c.name, func(b *testing.B) {
			units, o := search.LayerUnits(evenSizes(c.layers)), search.Options{Depth: c.depth}
			if c.halves {
				units, o.PerByte = search.SublayerUnits(evenSizes(c.layers)), true
			}
			var problems []greedyProblem
			for seed := range uint64(seeds) {
				problems = append(problems, greedyProblem{units, newFakeModel(units, benchExamples, seed).losses, o})
			}
			benchGreedy(b, problems)
		})
	}
}

func benchGreedy(b *testing.B, problems []greedyProblem) {
	var share, ratio, near float64
	n := float64(len(problems))
	for b.Loop() {
		share, ratio, near = 0, 0, 0
		for _, p := range problems {
			few := lastStep(b, p)
			p.options.Exhaustive = true
			all := lastStep(b, p)
			share += few.Evaluations / all.Evaluations / n
			ratio += math.Log(few.Loss/all.Loss) / n
			if few.Loss <= 1.01*all.Loss {
				near += 1 / n
			}
		}
	}
	b.ReportMetric(share, "evaluations/exhaustive")
	b.ReportMetric(math.Exp(ratio), "loss/exhaustive")
	b.ReportMetric(near, "within-1%")
}

// lastStep searches and gives the end of the path.
func lastStep(tb testing.TB, p greedyProblem) search.Step {
	tb.Helper()
	path, err := search.Greedy(context.Background(), p.units, benchExamples, p.losses, &p.options)
	require.NoError(tb, err)
	return path[len(path)-1]
}
