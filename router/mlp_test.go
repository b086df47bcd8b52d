package router

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// synthetic makes prompts of several tasks whose loss increases look like
// measured ones: each mask suits one task, and elsewhere costs 0.001 to 10 nats,
// with noise. The empty mask is first.
func synthetic(n, tasks, features int, seed uint64) (x [][]float32, losses [][]float64, task []int) {
	random := rand.New(rand.NewPCG(seed, 1))
	means := make([][]float32, tasks)
	for t := range means {
		means[t] = make([]float32, features)
		for j := range means[t] {
			means[t][j] = float32(random.NormFloat64())
		}
	}
	cost := make([][]float64, tasks) // log of the typical increase
	for t := range cost {
		for range tasks {
			cost[t] = append(cost[t], math.Log(0.001)+random.Float64()*math.Log(2000))
		}
		cost[t][t] = math.Log(0.005)
	}
	for i := range n {
		t := i % tasks
		v, l := make([]float32, features), []float64{0}
		for j := range v {
			v[j] = means[t][j] + 2*float32(random.NormFloat64())
		}
		normalise(v)
		for c := range tasks {
			l = append(l, math.Exp(cost[t][c]+0.8*random.NormFloat64())-0.002)
		}
		x, losses, task = append(x, v), append(losses, l), append(task, t)
	}
	return x, losses, task
}

func TestTrainLearnsWhichMaskSuits(t *testing.T) {
	x, losses, _ := synthetic(600, 8, 64, 1)
	r, report, err := Train(x, losses, &TrainOptions{Seed: 3})
	require.NoError(t, err)
	require.Equal(t, 600, report.NTrain+report.NValid)
	require.Equal(t, 90, report.NValid)
	require.Less(t, report.Validation, 0.6, "of a variance of 1")
	require.Less(t, report.Regret, 0.5*report.Static, "routing recovers most of what one set for all loses")

	predicted := make([]float64, r.Out)
	r.Predict(predicted, x[0])
	require.Zero(t, predicted[0], "the empty mask raises nothing")
	require.Zero(t, report.Candidates[0].Error)
	t.Logf("%+v", report)
}

// The squeeze is there for the heavy tail: without it a few prompts that lose
// ten nats make up the whole squared error.
func TestSqueezeLowersRegret(t *testing.T) {
	regret := func(squeeze float64) (sum float64) {
		for seed := range uint64(4) {
			x, losses, _ := synthetic(400, 8, 64, seed)
			_, report, err := Train(x, losses, &TrainOptions{Seed: seed, Squeeze: squeeze, Nets: 1, Epochs: 60})
			require.NoError(t, err)
			sum += report.Regret / 4
		}
		return sum
	}
	const linear = 1e6 // nats: sinh⁻¹ is straight far below
	best, straight := regret(0.02), regret(linear)
	t.Logf("regret %.4f squeezed at 0.005, %.4f at 0.02, %.4f at 0.5, %.4f unsqueezed", regret(0.005), best, regret(0.5), straight)
	require.Less(t, best, straight)
}

func TestTrainIsDeterministic(t *testing.T) {
	x, losses, task := synthetic(150, 4, 300, 2)
	opts := &TrainOptions{Seed: 5, Epochs: 8, Hidden: 16}
	a, ra, err := Train(x, losses, opts)
	require.NoError(t, err)
	b, rb, err := Train(x, losses, opts)
	require.NoError(t, err)
	require.Equal(t, a, b)
	require.Equal(t, ra, rb)
	na, err := NewNovelty(x, task)
	require.NoError(t, err)
	nb, err := NewNovelty(x, task)
	require.NoError(t, err)
	require.Equal(t, na, nb)
	opts.Seed++
	c, _, err := Train(x, losses, opts)
	require.NoError(t, err)
	require.NotEqual(t, a.W1, c.W1)
}

// TestTrainStopsBetweenSteps with the error that it is given, and changes nothing before.
func TestTrainStopsBetweenSteps(t *testing.T) {
	x, losses, _ := synthetic(150, 4, 300, 2)
	steps := 0
	opts := &TrainOptions{Seed: 5, Epochs: 8, Hidden: 16, Between: func() error { steps++; return nil }}
	a, _, err := Train(x, losses, opts)
	require.NoError(t, err)
	require.Greater(t, steps, 8)
	opts.Between = nil
	b, _, err := Train(x, losses, opts)
	require.NoError(t, err)
	require.Equal(t, a, b)
	enough := errors.New("enough")
	opts.Between = func() error { return enough }
	_, _, err = Train(x, losses, opts)
	require.ErrorIs(t, err, enough)
}

// The nets side by side in one are the mean of the nets.
func TestEnsembleIsTheMeanOfItsNets(t *testing.T) {
	x, losses, _ := synthetic(60, 3, 10, 1)
	opts, err := (&TrainOptions{Nets: 2, Hidden: 5, Epochs: 3}).withDefaults(len(x), len(losses[0]))
	require.NoError(t, err)
	r := &Predictor{In: 10, Hidden: 10, Out: 4, W1: make([]float32, 100), B1: make([]float32, 10), W2: make([]float32, 40), B2: make([]float32, 4), Mean: make([]float32, 4), Std: []float32{1, 1, 1, 1}, Squeeze: 1}
	want := make([]float64, 4)
	for k := range 2 {
		n := newNet(10, 5, 4, x, rand.New(rand.NewPCG(9, uint64(k))))
		w1, b1, w2, b2 := n.split(n.params)
		hiddenLayer(n.h, w1, b1, x[0])
		outputLayer(n.y, w2, b2, n.h)
		for c := range want {
			want[c] += float64(n.y[c]) / 2
		}
		r.take(n, k, opts)
	}
	got := make([]float64, 4)
	r.squeezed(got, x[0])
	require.InDeltaSlice(t, want, got, 1e-5) // float32 sums in another order
}

func TestGradient(t *testing.T) {
	x, _, _ := synthetic(1, 1, 6, 4)
	n := newNet(6, 4, 3, x, rand.New(rand.NewPCG(1, 1)))
	y := []float32{0.3, -0.2, 0.9}
	grad := make([]float32, len(n.params))
	n.backward(grad, x[0], y, 1)
	const step = 1e-2 // float32 losses of order 1 have 7 digits: 1e-5 of the slope
	for i := range n.params {
		scratch := make([]float32, len(n.params))
		old := n.params[i]
		n.params[i] = old + step
		up := n.backward(scratch, x[0], y, 1)
		n.params[i] = old - step
		down := n.backward(scratch, x[0], y, 1)
		n.params[i] = old
		require.InDelta(t, (up-down)/(2*step), grad[i], 2e-3, "parameter %d", i)
	}
}

func TestBoundHoldsWithTheWantedConfidence(t *testing.T) {
	x, losses, _ := synthetic(1600, 4, 32, 6)
	r, _, err := Train(x[:1000], losses[:1000], &TrainOptions{Epochs: 40, Nets: 1, Validation: 0.3})
	require.NoError(t, err)
	bound := make([]float64, r.Out)
	for _, confidence := range []float64{0.5, 0.8, 0.95} {
		held, n := 0, 0
		for i := 1000; i < 1600; i++ {
			r.Bound(bound, x[i], confidence)
			for c := 1; c < r.Out; c++ {
				n++
				if losses[i][c] <= bound[c] {
					held++
				}
			}
		}
		// 300 residuals place a quantile to about ±3 points (√(¼/300)), 2400 checks to ±1.
		require.InDelta(t, confidence, float64(held)/float64(n), 0.06)
	}
	r.Bound(bound, x[0], 0.9999)
	require.True(t, math.IsInf(bound[1], 1), "300 prompts cannot vouch for one in 10,000")
	require.Zero(t, bound[0])
	predicted := make([]float64, r.Out)
	r.Predict(predicted, x[0])
	r.Bound(bound, x[0], 0)
	require.Equal(t, predicted, bound)
}

func TestTrainRefuses(t *testing.T) {
	x, losses, _ := synthetic(10, 2, 4, 1)
	for name, f := range map[string]func() error{
		"nothing": func() error { _, _, err := Train(nil, nil, nil); return err },
		"lengths": func() error { _, _, err := Train(x, losses[1:], nil); return err },
		"one":     func() error { _, _, err := Train(x[:1], losses[:1], nil); return err },
		"ragged": func() error {
			_, _, err := Train(append(x[:9:9], []float32{1}), losses, nil)
			return err
		},
		"NaN": func() error {
			_, _, err := Train(x[:2], [][]float64{{0, 1, 1}, {0, math.NaN(), 1}}, nil)
			return err
		},
		"infinite feature": func() error {
			_, _, err := Train([][]float32{{1}, {float32(math.Inf(1))}}, losses[:2], nil)
			return err
		},
		"rate":    func() error { _, _, err := Train(x, losses, &TrainOptions{Rate: -1}); return err },
		"dropout": func() error { _, _, err := Train(x, losses, &TrainOptions{Dropout: 1}); return err },
		"hidden":  func() error { _, _, err := Train(x, losses, &TrainOptions{Hidden: -1}); return err },
		"depths":  func() error { _, _, err := Train(x, losses, &TrainOptions{Depths: []float64{1}}); return err },
		"novelty": func() error { _, err := NewNovelty(x, nil); return err },
	} {
		t.Run(name, func(t *testing.T) { require.ErrorIs(t, f(), ErrTraining) })
	}
}

func TestKMeans(t *testing.T) {
	x, _, task := synthetic(200, 4, 64, 9)
	for i := range x { // well apart: the mean alone, a little shaken
		copy(x[i], x[task[i]])
		x[i][0] += float32(i) * 1e-4
	}
	assign, centroids := KMeans(x, 4, 1)
	require.Len(t, centroids, 4)
	for i := range x {
		require.Equal(t, assign[task[i]], assign[i])
	}
	again, _ := KMeans(x, 4, 1)
	require.Equal(t, assign, again)

	same := [][]float32{{1, 2}, {1, 2}, {1, 2}}
	assign, centroids = KMeans(same, 5, 1)
	require.Equal(t, []int{assign[0], assign[0], assign[0]}, assign)
	require.Len(t, centroids, 5)
	for _, c := range centroids {
		require.Equal(t, same[0], c)
	}
	assign, centroids = KMeans(nil, 3, 1)
	require.Nil(t, assign)
	require.Nil(t, centroids)
}

// BenchmarkPredict has the widths of one net on n-grams with 40 candidates, and
// of the default ensemble; every feature is set, as in a long prompt.
func BenchmarkPredict(b *testing.B) {
	for name, hidden := range map[string]int{"1net": 64, "3nets": 192} {
		b.Run(name, func(b *testing.B) {
			const in, out = 2048, 40
			r := &Predictor{In: in, Hidden: hidden, Out: out, W1: make([]float32, in*hidden), B1: make([]float32, hidden), W2: make([]float32, out*hidden), B2: make([]float32, out), Mean: make([]float32, out), Std: make([]float32, out), Squeeze: 1}
			x, dst := make([]float32, in), make([]float64, out)
			for i := range x {
				x[i] = 0.02
			}
			b.ReportAllocs()
			for b.Loop() {
				r.Predict(dst, x)
			}
		})
	}
}

func BenchmarkNovelty(b *testing.B) {
	x, _, task := synthetic(1440, 12, 2309, 1)
	d, err := NewNovelty(x, task)
	require.NoError(b, err)
	for b.Loop() {
		d.Distance(x[0])
	}
}
