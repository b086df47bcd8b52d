package calibrate_test

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/calibrate"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/score"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// designExamples is how many of each task's 120 calibration examples are "design".
const designExamples = 64

// BenchmarkSearch compares the search with the exhaustive one on the demo model,
// a search for each of its tasks, to a third of its layers: its share of the
// evaluations, and its final loss over the exhaustive search's at the same depth
// (between steps along a line), as geometric mean and the worst; also how many of
// the tasks are within 1 % or better. The answers are free, so there is no margin
// to search by. "design" and "report" are different examples; the search's constants
// were chosen on both. Losses are kept, so a benchmark's later rounds only search.
// It takes some ten minutes; -bench 'Search/report' leaves the design out.
func BenchmarkSearch(b *testing.B) {
	llamatest.Library(b)
	file, err := demo.Path()
	require.NoError(b, err)
	m := llamatest.Open(b, file)
	examples, _, err := dataset.Read([]string{filepath.Join("..", "..", "demo", "calibration.jsonl")}, nil)
	require.NoError(b, err)
	cases, err := score.Encode(m, examples)
	require.NoError(b, err)
	tasks, byTask := []string{}, map[string][]score.Case{}
	for _, c := range cases {
		if byTask[c.Task] == nil {
			tasks = append(tasks, c.Task)
		}
		byTask[c.Task] = append(byTask[c.Task], c)
	}
	for _, part := range []string{"report", "design"} {
		for _, unit := range []calibrate.Unit{calibrate.Layers, calibrate.Sublayers, calibrate.FeedForwards} {
			b.Run(fmt.Sprintf("%s/%s", part, unit), func(b *testing.B) {
				s, err := score.NewScorer(m, &score.Options{Threads: 1})
				require.NoError(b, err)
				defer s.Close()
				log, err := search.CreateLog(filepath.Join(b.TempDir(), "losses.log"), "demo")
				require.NoError(b, err)
				defer log.Close()
				for b.Loop() {
					benchSearch(b, m, s, log, unit, func(task string) []score.Case {
						if part == "design" {
							return byTask[task][:designExamples]
						}
						return byTask[task][designExamples:]
					}, tasks)
				}
			})
		}
	}
}

// benchSearch searches each task twice and reports how the two compare.
func benchSearch(b *testing.B, m *llama.Model, s *score.Scorer, log *search.Log, unit calibrate.Unit, of func(task string) []score.Case, tasks []string) {
	prefill := skip.FullPrefill
	if unit == calibrate.Layers {
		prefill = skip.MaskedPrefill // the paper's setting
	}
	units := calibrate.Units(unit, search.SizesOf(m.Tensors, m.NLayer))
	o := search.Options{Depth: float64(m.NLayer) / 3, PerByte: unit != calibrate.Layers}
	var shares, ratios []float64
	within := 0.0
	for _, task := range tasks {
		cases := of(task)
		losses := log.Wrap(task, func(ctx context.Context, mask skip.Mask, examples []int) ([]float64, error) {
			part := make([]score.Case, len(examples))
			for k, i := range examples {
				part[k] = cases[i]
			}
			scores, err := s.Score(ctx, part, mask, prefill)
			out := make([]float64, len(scores))
			for i, score := range scores {
				out[i] = score.Loss
			}
			return out, err
		})
		whole, err := losses(context.Background(), skip.Mask{}, search.All(len(cases)))
		require.NoError(b, err)
		// The exhaustive search knows all losses first: the other one's then cost nothing.
		o.Exhaustive = true
		all, err := search.Greedy(context.Background(), units, len(cases), losses, &o)
		require.NoError(b, err)
		o.Exhaustive = false
		few, err := search.Greedy(context.Background(), units, len(cases), losses, &o)
		require.NoError(b, err)
		end := few[len(few)-1]
		shares = append(shares, end.Evaluations/all[len(all)-1].Evaluations)
		ratio := end.Loss / lossAt(all, stats.Mean(whole), end.Depth)
		ratios = append(ratios, ratio)
		if ratio <= 1.01 {
			within++
		}
		b.Logf("%-10s %.3f of the evaluations, loss %.4f at depth %.2f, %.3f of the exhaustive search's", task, shares[len(shares)-1], end.Loss, end.Depth, ratio)
	}
	logs := 0.0
	for _, r := range ratios {
		logs += math.Log(r) / float64(len(ratios))
	}
	b.ReportMetric(stats.Mean(shares), "evaluations/exhaustive")
	b.ReportMetric(slices.Max(shares), "most-evaluations")
	b.ReportMetric(math.Exp(logs), "loss/exhaustive")
	b.ReportMetric(slices.Max(ratios), "worst-loss")
	b.ReportMetric(within/float64(len(tasks)), "within-1%")
}

// lossAt is the loss of a path at a depth, between and behind its steps along lines.
func lossAt(path []search.Step, whole, depth float64) float64 {
	from, to := search.Step{Loss: whole}, path[0]
	for _, next := range path[1:] {
		if to.Depth >= depth {
			break
		}
		from, to = to, next
	}
	return from.Loss + (to.Loss-from.Loss)*(depth-from.Depth)/(to.Depth-from.Depth)
}
