package search_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math"
	"math/bits"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/skip"
)

// toyLosses are the losses of a model in which layer L alone costs L, and two
// neighbours cost 10 more.
func toyLosses(_ context.Context, mask skip.Mask, examples []int) ([]float64, error) {
	loss := 0.0
	for l := range 8 {
		if mask.Skipped(l) != 0 {
			loss += float64(l)
			if l > 0 && mask.Skipped(l-1) != 0 {
				loss += 10
			}
		}
	}
	return slices.Repeat([]float64{loss}, len(examples)), nil
}

func ExampleGreedy() {
	path, err := search.Greedy(context.Background(), search.LayerUnits(evenSizes(8)), 32, toyLosses, &search.Options{Depth: 3})
	if err != nil {
		log.Fatal(err)
	}
	for _, step := range path {
		fmt.Printf("%-6s depth %.0f, loss %g\n", step.Mask, step.Depth, step.Loss)
	}
	// Output:
	// 1      depth 1, loss 1
	// 1,3    depth 2, loss 4
	// 1,3,5  depth 3, loss 9
}

func ExampleContiguous() {
	units := search.LayerUnits(evenSizes(8))
	run, err := search.Contiguous(context.Background(), units, 32, toyLosses, 2)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(run.Mask, run.Loss)
	// Output: 1,2 13
}

// fakeModel makes up losses as they are seen in real models: units and examples
// differ by orders of magnitude, some pairs of neighbours cost more or less than
// each alone, and much skipped costs more than its parts.
type fakeModel struct {
	units []search.Unit
	base  []float64   // (examples,) of the whole model
	cost  [][]float64 // (units, examples) of each unit
	pair  [][]float64 // (units, examples) of each unit with the one in front
}

func newFakeModel(units []search.Unit, examples int, seed uint64) *fakeModel {
	r := rand.New(rand.NewPCG(seed, 1))
	spread := func(sigma float64) float64 { return math.Exp(sigma * r.NormFloat64()) }
	f := &fakeModel{units: units}
	hard := make([]float64, examples)
	for i := range hard {
		hard[i] = spread(1.2)
		f.base = append(f.base, 0.2*hard[i]*r.Float64())
	}
	for range units {
		const typical = 0.05 // nats
		cost, pair := typical*spread(1), typical*r.NormFloat64()
		var costs, pairs []float64
		for i := range hard {
			costs = append(costs, cost*hard[i]*spread(1))
			pairs = append(pairs, pair*hard[i]*spread(0.5))
		}
		f.cost, f.pair = append(f.cost, costs), append(f.pair, pairs)
	}
	return f
}

func (f *fakeModel) losses(_ context.Context, mask skip.Mask, examples []int) ([]float64, error) {
	out := make([]float64, 0, len(examples))
	for _, i := range examples {
		sum, before := 0.0, false
		for u := range f.units {
			skipped := f.units[u].Mask.Union(mask) == mask
			if skipped {
				sum += f.cost[u][i]
				if before {
					sum += f.pair[u][i]
				}
			}
			before = skipped
		}
		sum = max(sum, 0)
		out = append(out, f.base[i]+sum+0.2*sum*sum)
	}
	return out, nil
}

// TestGreedyPath checks on many models what every path must be like.
func TestGreedyPath(t *testing.T) {
	for seed := range uint64(100) {
		r := rand.New(rand.NewPCG(seed, 2))
		sizes := search.Sizes{}
		for range 5 + r.IntN(12) {
			sizes.Attention = append(sizes.Attention, 1+r.Uint64N(20))
			sizes.FeedForward = append(sizes.FeedForward, 1+r.Uint64N(60))
		}
		n := len(sizes.Attention)
		units := search.LayerUnits(sizes)
		o := search.Options{Exhaustive: r.IntN(2) == 0, PerByte: r.IntN(2) == 0}
		if r.IntN(2) == 0 {
			units = search.SublayerUnits(sizes)
		}
		if r.IntN(2) == 0 {
			for range units {
				o.Influence = append(o.Influence, r.Float64())
			}
		}
		if r.IntN(3) == 0 {
			o.Start = units[r.IntN(len(units))].Mask
		}
		all := 0.0
		for _, u := range units {
			all += u.Depth
		}
		o.Depth = all * (0.1 + 0.8*r.Float64())
		examples := 1 + r.IntN(70)
		done, total := 0, 0
		o.Progress = func(d, all int) {
			require.GreaterOrEqual(t, d, done)
			require.GreaterOrEqual(t, all, d)
			done, total = d, all
		}
		model := newFakeModel(units, examples, seed)
		path, err := search.Greedy(context.Background(), units, examples, model.losses, &o)
		require.NoError(t, err, "seed %d", seed)
		require.Equal(t, done, total)

		before := search.Step{Mask: o.Start, Depth: sizes.Depth(o.Start)}
		left := slices.Clone(units)
		for _, step := range path {
			i := slices.IndexFunc(left, func(u search.Unit) bool { return before.Mask.Union(u.Mask) == step.Mask && step.Mask != before.Mask })
			require.GreaterOrEqual(t, i, 0, "step %v after %v takes no unit", step, before)
			require.Less(t, step.Depth-left[i].Depth/2, o.Depth)
			left = slices.Delete(left, i, i+1)
			require.InDelta(t, sizes.Depth(step.Mask), step.Depth, 1e-9)
			require.Greater(t, step.Depth, before.Depth)
			require.Greater(t, step.Evaluations, before.Evaluations)
			losses, err := model.losses(context.Background(), step.Mask, search.All(examples))
			require.NoError(t, err)
			require.InEpsilon(t, meanOf(losses), step.Loss, 1e-9)
			require.Zero(t, step.Mask.Skipped(0)|step.Mask.Skipped(n-1))
			before = step
		}
		o.Progress = nil
		again, err := search.Greedy(context.Background(), units, examples, model.losses, &o)
		require.NoError(t, err)
		require.Equal(t, path, again)
	}
}

// TestGreedyTakesTheExhaustivePath compares the two on many models: nearly always
// the same path, for at most a third of the evaluations.
func TestGreedyTakesTheExhaustivePath(t *testing.T) {
	const models, examples = 60, 64
	for name, c := range map[string]struct {
		units   []search.Unit
		perByte bool
	}{
		"layers":    {search.LayerUnits(evenSizes(12)), false},
		"sublayers": {search.SublayerUnits(evenSizes(12)), true},
	} {
		same, few, all := 0, 0.0, 0.0
		for seed := range uint64(models) {
			f := newFakeModel(c.units, examples, seed)
			o := search.Options{Depth: 4, PerByte: c.perByte, Exhaustive: true}
			want, err := search.Greedy(context.Background(), c.units, examples, f.losses, &o)
			require.NoError(t, err)
			o.Exhaustive = false
			got, err := search.Greedy(context.Background(), c.units, examples, f.losses, &o)
			require.NoError(t, err)
			few, all = few+got[len(got)-1].Evaluations, all+want[len(want)-1].Evaluations
			if got[len(got)-1].Mask == want[len(want)-1].Mask {
				same++
			}
		}
		require.LessOrEqual(t, few, all/3, name)
		require.GreaterOrEqual(t, same, models*9/10, name)
	}
}

func meanOf(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}

// TestGreedyExhaustive compares with a greedy search in a few lines.
func TestGreedyExhaustive(t *testing.T) {
	ctx := context.Background()
	for seed := range uint64(30) {
		for _, perByte := range []bool{false, true} {
			units := search.SublayerUnits(evenSizes(5))
			f := newFakeModel(units, 16, seed)
			loss := func(m skip.Mask) float64 {
				losses, err := f.losses(ctx, m, search.All(16))
				require.NoError(t, err)
				return meanOf(losses)
			}
			path, err := search.Greedy(ctx, units, 16, f.losses, &search.Options{Depth: 3, Exhaustive: true, PerByte: perByte})
			require.NoError(t, err)
			require.Len(t, path, len(units)) // depth 3 is all of them
			var mask skip.Mask
			for _, step := range path {
				best, low := skip.Mask{}, math.Inf(1)
				for _, u := range units {
					score := loss(mask.Union(u.Mask))
					if perByte {
						score = (score - loss(mask)) / u.Depth
					}
					if mask.Union(u.Mask) != mask && score < low {
						best, low = mask.Union(u.Mask), score
					}
				}
				mask = best
				require.Equal(t, mask, step.Mask)
			}
		}
	}
}

// TestGreedyFindsTheBestMask: where units cost what they cost alone, greedy
// masks are the best of all masks.
func TestGreedyFindsTheBestMask(t *testing.T) {
	units := search.LayerUnits(evenSizes(10))
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 3))
		cost := make([]float64, 10)
		for l := range cost {
			cost[l] = r.Float64()
		}
		losses := func(_ context.Context, m skip.Mask, examples []int) ([]float64, error) {
			sum := 0.0
			for l := range cost {
				if m.Skipped(l) == skip.Whole {
					sum += cost[l]
				}
			}
			return slices.Repeat([]float64{sum}, len(examples)), nil
		}
		best, low := skip.Mask{}, math.Inf(1)
		for set := range 1 << 8 {
			var m skip.Mask
			for i, u := range units {
				if set>>i&1 == 1 {
					m = m.Union(u.Mask)
				}
			}
			loss, err := losses(context.Background(), m, []int{0})
			require.NoError(t, err)
			if bits.OnesCount(uint(set)) == 3 && loss[0] < low {
				best, low = m, loss[0]
			}
		}
		for _, exhaustive := range []bool{false, true} {
			path, err := search.Greedy(context.Background(), units, 24, losses, &search.Options{Depth: 3, Exhaustive: exhaustive})
			require.NoError(t, err)
			require.Equal(t, best, path[len(path)-1].Mask)
		}
	}
}

// TestGreedyEvaluatesFew holds the search to what it is for: a third of the
// evaluations, and the loss of the exhaustive search within 1 %. So few models
// measure the ratio of the losses to 0.7 % (standard error), of which two are
// granted; BenchmarkGreedy has more models.
func TestGreedyEvaluatesFew(t *testing.T) {
	const seeds, examples = 100, 64
	for _, halves := range []bool{false, true} {
		units, o := search.LayerUnits(evenSizes(12)), search.Options{Depth: 4}
		if halves {
			units, o.PerByte = search.SublayerUnits(evenSizes(12)), true
		}
		share, ratio := 0.0, 0.0
		for seed := range uint64(seeds) {
			p := greedyProblem{units, newFakeModel(units, examples, seed).losses, o}
			few := lastStep(t, p)
			p.options.Exhaustive = true
			all := lastStep(t, p)
			share += few.Evaluations / all.Evaluations / seeds
			ratio += math.Log(few.Loss/all.Loss) / seeds
		}
		t.Logf("halves %v: %.3f of the evaluations, %.4f of the loss", halves, share, math.Exp(ratio))
		require.LessOrEqual(t, share, 1.0/3)
		require.LessOrEqual(t, math.Exp(ratio), 1.01+2*0.007)
	}
}

// TestGreedyPool leaves out of later rounds what did worst in the first.
func TestGreedyPool(t *testing.T) {
	units := search.LayerUnits(evenSizes(8)) // layers 1 to 6
	all, err := search.Greedy(context.Background(), units, 8, toyLosses, &search.Options{Depth: 5})
	require.NoError(t, err)
	few, err := search.Greedy(context.Background(), units, 8, toyLosses, &search.Options{Depth: 5, Pool: 2})
	require.NoError(t, err)
	require.Len(t, few, len(all))
	require.Equal(t, all[0].Mask, few[0].Mask)
	require.Less(t, few[4].Evaluations, all[4].Evaluations)

	_, err = search.Greedy(context.Background(), units, 8, toyLosses, &search.Options{Depth: 5, Pool: -1})
	require.ErrorIs(t, err, search.ErrSearch)
}

func TestGreedyStart(t *testing.T) {
	units := search.SublayerUnits(evenSizes(6))
	start := skip.Layers(1)
	path, err := search.Greedy(context.Background(), units, 8, toyLosses, &search.Options{Depth: 2, Start: start})
	require.NoError(t, err)
	require.Equal(t, start, start.Union(path[0].Mask).Minus(skip.Layers(3)))
	require.InDelta(t, evenSizes(6).Depth(path[0].Mask), path[0].Depth, 1e-12)

	path, err = search.Greedy(context.Background(), units, 8, toyLosses, &search.Options{Depth: 1, Start: start})
	require.NoError(t, err)
	require.Empty(t, path)

	// Layers of which a half is skipped already are left alone.
	path, err = search.Greedy(context.Background(), search.LayerUnits(evenSizes(6)), 8, toyLosses,
		&search.Options{Depth: 3, Start: skip.Mask{}.With(1, skip.Attention)})
	require.NoError(t, err)
	for _, step := range path {
		require.Equal(t, skip.Attention, step.Mask.Skipped(1))
	}
}

func TestGreedyBudget(t *testing.T) {
	units := search.LayerUnits(evenSizes(8))
	calls := 0
	slow := func(ctx context.Context, m skip.Mask, examples []int) ([]float64, error) {
		if calls++; calls == 60 {
			time.Sleep(20 * time.Millisecond)
		}
		return toyLosses(ctx, m, examples)
	}
	path, err := search.Greedy(context.Background(), units, 64, slow, &search.Options{Depth: 5, Budget: 20 * time.Millisecond})
	require.ErrorIs(t, err, search.ErrBudget)
	require.Equal(t, 60, calls)
	require.Len(t, path, 5, "guesses make up the rest")
	searched := slices.IndexFunc(path, func(s search.Step) bool { return math.IsNaN(s.Loss) })
	require.Positive(t, searched)
	whole, err := search.Greedy(context.Background(), units, 64, toyLosses, &search.Options{Depth: 5})
	require.NoError(t, err)
	require.Equal(t, whole[:searched], path[:searched])
	for i, step := range path[1:] {
		require.Equal(t, step.Mask, step.Mask.Union(path[i].Mask))
		require.InDelta(t, path[i].Depth+1, step.Depth, 1e-9)
	}

	// Without time for anything, influence makes the path.
	path, err = search.Greedy(context.Background(), units, 64, toyLosses,
		&search.Options{Depth: 2, Budget: time.Nanosecond, Influence: []float64{math.NaN(), 2, 1, 0, 8, 3}})
	require.ErrorIs(t, err, search.ErrBudget)
	require.Equal(t, skip.Layers(3, 4), path[1].Mask)
}

// TestGreedyBudgetWithoutPauses has a search held up for longer than its budget.
func TestGreedyBudgetWithoutPauses(t *testing.T) {
	units := search.LayerUnits(evenSizes(8))
	const budget = time.Minute
	held := time.Duration(0)
	losses := func(ctx context.Context, m skip.Mask, examples []int) ([]float64, error) {
		held += budget // the clock would have gone on as much
		return toyLosses(ctx, m, examples)
	}
	o := search.Options{Depth: 5, Budget: budget, Held: func() time.Duration { return held }}
	_, err := search.Greedy(context.Background(), units, 64, losses, &o)
	require.NoError(t, err)
	o.Held = func() time.Duration { held -= budget; return held } // as if only the clock had gone on
	_, err = search.Greedy(context.Background(), units, 64, toyLosses, &o)
	require.ErrorIs(t, err, search.ErrBudget)
}

func TestGreedyUnusableLosses(t *testing.T) {
	units := search.LayerUnits(evenSizes(6)) // layers 1 to 4
	bad := func(values ...float64) search.Losses {
		return func(context.Context, skip.Mask, []int) ([]float64, error) { return values, nil }
	}
	own := errors.New("the model is gone")
	for name, c := range map[string]struct {
		losses search.Losses
		want   error
	}{
		"too few":  {bad(), search.ErrLosses},
		"too many": {bad(1, 2), search.ErrLosses},
		"nan":      {bad(math.NaN()), search.ErrLosses},
		"own":      {func(context.Context, skip.Mask, []int) ([]float64, error) { return nil, own }, own},
	} {
		for _, perByte := range []bool{false, true} {
			path, err := search.Greedy(context.Background(), units, 1, c.losses, &search.Options{PerByte: perByte})
			require.ErrorIs(t, err, c.want, name)
			require.Empty(t, path)
		}
		_, err := search.Contiguous(context.Background(), units, 1, c.losses, 2)
		if name != "nan" {
			require.ErrorIs(t, err, c.want, name)
			_, err = search.Singles(context.Background(), units, 1, c.losses)
			require.ErrorIs(t, err, c.want, name)
		}
	}

	// Layers that ruin the model are never taken, and end the path.
	for _, perByte := range []bool{false, true} {
		for _, ruin := range []float64{math.NaN(), math.Inf(1)} {
			path, err := search.Greedy(context.Background(), units, 40, func(ctx context.Context, m skip.Mask, examples []int) ([]float64, error) {
				losses, err := toyLosses(ctx, m, examples)
				if m.Skipped(1) != 0 || m.Skipped(4) != 0 {
					losses[0] = ruin
				}
				return losses, err
			}, &search.Options{Depth: 3, PerByte: perByte})
			require.ErrorIs(t, err, search.ErrLosses)
			require.Len(t, path, 2)
			require.Equal(t, skip.Layers(2, 3), path[1].Mask)
		}
	}
}

func TestGreedyRefuses(t *testing.T) {
	units := search.LayerUnits(evenSizes(6))
	for name, c := range map[string]struct {
		units    []search.Unit
		examples int
		options  *search.Options
		text     string
	}{
		"no units":     {nil, 1, nil, "no units"},
		"no examples":  {units, 0, nil, "no examples"},
		"empty unit":   {[]search.Unit{{Depth: 1}}, 1, nil, "unit 0"},
		"no depth":     {[]search.Unit{{Mask: skip.Layers(1)}}, 1, nil, "unit 0"},
		"too deep":     {units, 1, &search.Options{Depth: 5}, "depth 5"},
		"negative":     {units, 1, &search.Options{Depth: -1}, "depth -1"},
		"nan":          {units, 1, &search.Options{Depth: math.NaN()}, "depth NaN"},
		"influence":    {units, 1, &search.Options{Influence: []float64{1}}, "1 influences for 4 units"},
		"no influence": {units, 1, &search.Options{Influence: []float64{}}, "0 influences"},
	} {
		_, err := search.Greedy(context.Background(), c.units, c.examples, toyLosses, c.options)
		require.ErrorIs(t, err, search.ErrSearch, name)
		require.ErrorContains(t, err, c.text, name)
	}
}

func TestSingles(t *testing.T) {
	got, err := search.Singles(context.Background(), search.LayerUnits(evenSizes(6)), 5, toyLosses)
	require.NoError(t, err)
	require.Equal(t, []float64{1, 2, 3, 4}, got)

	// With a log, a search behind it evaluates nothing twice.
	log := openLog(t, filepath.Join(t.TempDir(), "log"), "key")
	seen := map[string]int{}
	losses := log.Wrap("task", func(ctx context.Context, m skip.Mask, examples []int) ([]float64, error) {
		for _, i := range examples {
			seen[fmt.Sprint(m, i)]++
		}
		return toyLosses(ctx, m, examples)
	})
	units := search.LayerUnits(evenSizes(8))
	_, err = search.Singles(context.Background(), units, 32, losses)
	require.NoError(t, err)
	path, err := search.Greedy(context.Background(), units, 32, losses, &search.Options{Depth: 1})
	require.NoError(t, err)
	require.Len(t, path, 1)
	require.Len(t, seen, (1+len(units))*32) // and the model that skips nothing
	for what, n := range seen {
		require.Equal(t, 1, n, what)
	}
}
