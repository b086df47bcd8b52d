package router

import (
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/mat"
)

// Sizes of the distance test. They bound a profile's size (1.2 MB for the
// metric, 1.2 MB for the vectors) and the test's time.
const (
	noveltyDim  = 768  // features are folded to this many
	noveltyMost = 1536 // calibration prompts that are kept, taken evenly
)

// Constants of the metric, chosen on the demo model's prompts with each skill
// left out in turn; see TestUnknownSkillsAreFlagged for what they reach.
const (
	shrinkage       = 0.15  // of the within-task covariance, in units of its mean variance
	radiusQuantile  = 0.90  // of a task's own nearest-neighbour distances
	leastRadius     = 0.05  // for tasks of near-equal prompts
	noveltyQuantile = 0.975 // of the calibration prompts' novelty that counts as 1
)

// Novelty tells how unlike the calibration prompts a prompt is.
//
// It is the cosine distance to the nearest calibration prompt, in a space where
// the variation within tasks is made equal in all directions: names and numbers,
// which change from prompt to prompt, count little, and the words that make a
// task count much (linear discriminant analysis without the last step). Each
// distance is divided by the square root of what is usual within the neighbour's
// task: half-way between one radius for all, which lets unknown prompts hide in
// loose tasks, and each task's own, which flags every new wording of a tight one.
type Novelty struct {
	Dim     int       // of folded features
	Whiten  []float32 // lower triangle by rows, (Dim (Dim+1) / 2,)
	Vectors []int8    // (n, Dim) whitened calibration prompts of length 1, in steps of Step
	Step    []float32 // (n,)
	Task    []int     // (n,) each one's task
	Radius  []float32 // (nTasks,)
	Unit    float32   // the distance that counts as 1

	vectors []float32 // (n, Dim) unpacked
}

// NewNovelty learns the metric from the calibration prompts' features,
// (n, nFeatures), and their tasks, (n,), values from 0 up. The error wraps
// [ErrTraining].
func NewNovelty(x [][]float32, task []int) (*Novelty, error) {
	if len(x) < 2 || len(x) != len(task) || slices.Min(task) < 0 {
		return nil, fmt.Errorf("%w: a distance test needs at least 2 prompts with a task each, not %d with %d", ErrTraining, len(x), len(task))
	}
	if n := len(x); n > noveltyMost {
		some, tasks := make([][]float32, noveltyMost), make([]int, noveltyMost)
		for i := range some {
			some[i], tasks[i] = x[i*n/noveltyMost], task[i*n/noveltyMost]
		}
		x, task = some, tasks
	}
	d := &Novelty{Dim: min(noveltyDim, len(x[0])), Task: slices.Clone(task)}
	room := make([]float32, d.Dim)
	folded := mat.NewDense(len(x), d.Dim, nil)
	for i, v := range x {
		d.fold(room, v)
		for j, f := range room {
			folded.Set(i, j, float64(f))
		}
	}
	if err := d.learnMetric(folded); err != nil {
		return nil, err
	}
	for _, v := range x {
		d.whiten(room, v)
		d.append(room)
	}
	d.unpack()
	d.learnRadii()
	return d, nil
}

// fold adds neighbouring features up to the sums of dst, (Dim,). Hash buckets may be joined
// like that; the others lose what a random projection would lose too.
func (d *Novelty) fold(dst, x []float32) {
	clear(dst)
	for i, v := range x {
		dst[i*d.Dim/len(x)] += v
	}
}

// learnMetric finds the matrix that whitens the within-task covariance, shrunk
// towards a multiple of the identity because there are fewer prompts than
// directions.
func (d *Novelty) learnMetric(folded *mat.Dense) error {
	n, dim := folded.Dims()
	tasks := slices.Max(d.Task) + 1
	means, count := mat.NewDense(tasks, dim, nil), make([]float64, tasks)
	for i, t := range d.Task {
		count[t]++
		mean := means.RawRowView(t)
		for j, v := range folded.RawRowView(i) {
			mean[j] += v
		}
	}
	for t := range count {
		for j := range means.RawRowView(t) {
			means.RawRowView(t)[j] /= max(count[t], 1)
		}
	}
	centred := mat.NewDense(n, dim, nil)
	for i, t := range d.Task {
		mean := means.RawRowView(t)
		for j, v := range folded.RawRowView(i) {
			centred.Set(i, j, v-mean[j])
		}
	}
	within := mat.NewSymDense(dim, nil)
	within.SymOuterK(1/float64(n), centred.T())
	ridge := shrinkage * mat.Trace(within) / float64(dim)
	if ridge == 0 {
		ridge = 1 // no variation within tasks: the plain cosine
	}
	for j := range dim {
		within.SetSym(j, j, within.At(j, j)+ridge)
	}
	var factor mat.Cholesky
	var lower, inverse mat.TriDense
	if !factor.Factorize(within) {
		return fmt.Errorf("%w: the features' covariance cannot be inverted", ErrTraining)
	}
	factor.LTo(&lower)
	if err := inverse.InverseTri(&lower); err != nil {
		return fmt.Errorf("%w: the features' covariance cannot be inverted: %w", ErrTraining, err)
	}
	scale := math.Sqrt(ridge) // directions without variation keep their length
	for i := range dim {
		for j := range i + 1 {
			d.Whiten = append(d.Whiten, float32(scale*inverse.At(i, j)))
		}
	}
	return nil
}

// whiten writes the whitened features of x, of length 1, to dst, (Dim,).
func (d *Novelty) whiten(dst, x []float32) {
	folded := borrow(d.Dim)
	defer scratch.Put(folded)
	d.fold(*folded, x)
	row := d.Whiten
	for i := range dst {
		dst[i] = dot32(row[:i+1], (*folded)[:i+1])
		row = row[i+1:]
	}
	normalise(dst)
}

// append packs a vector.
func (d *Novelty) append(v []float32) {
	var most float32
	for _, f := range v {
		most = max(most, max(f, -f))
	}
	step := most / math.MaxInt8
	d.Step = append(d.Step, step)
	for _, f := range v {
		if step > 0 {
			f /= step
		}
		d.Vectors = append(d.Vectors, int8(math.RoundToEven(float64(f))))
	}
}

func (d *Novelty) unpack() {
	d.vectors = make([]float32, len(d.Vectors))
	for i, step := range d.Step {
		for j, q := range d.Vectors[i*d.Dim:][:d.Dim] {
			d.vectors[i*d.Dim+j] = step * float32(q)
		}
	}
}

func (d *Novelty) vector(i int) []float32 { return d.vectors[i*d.Dim:][:d.Dim] }

// learnRadii measures each task's nearest-neighbour distances, then the unit.
func (d *Novelty) learnRadii() {
	n := len(d.Task)
	const alone = 2 // the largest cosine distance
	within := make([][]float64, slices.Max(d.Task)+1)
	distance := make([]float64, n*n) // (n, n)
	for i := range n {
		for j := range i {
			c := max(0, 1-float64(dot32(d.vector(i), d.vector(j))))
			distance[i*n+j], distance[j*n+i] = c, c
		}
	}
	for i, t := range d.Task {
		nearest := math.Inf(1)
		for j, u := range d.Task {
			if u == t && j != i {
				nearest = min(nearest, distance[i*n+j])
			}
		}
		within[t] = append(within[t], min(nearest, alone))
	}
	for _, distances := range within {
		d.Radius = append(d.Radius, float32(math.Sqrt(max(leastRadius, quantile(distances, radiusQuantile)))))
	}
	novelty := make([]float64, n)
	for i := range novelty {
		novelty[i] = math.Inf(1)
		for j, u := range d.Task {
			if j != i {
				novelty[i] = min(novelty[i], distance[i*n+j]/float64(d.Radius[u]))
			}
		}
	}
	d.Unit = max(float32(quantile(novelty, noveltyQuantile)), math.SmallestNonzeroFloat32)
}

// quantile sorts x and gives the value that a share q of it does not exceed; 0
// of nothing.
func quantile(x []float64, q float64) float64 {
	if len(x) == 0 {
		return 0
	}
	slices.Sort(x)
	return x[min(int(q*float64(len(x))), len(x)-1)]
}

// Distance is how unlike the calibration prompts the features x are: 0 = equal
// to one, 1 = as unlike its neighbours as 97 % of the calibration prompts are at
// most, above 1 = unlike.
func (d *Novelty) Distance(x []float32) float64 {
	white := borrow(d.Dim)
	defer scratch.Put(white)
	d.whiten(*white, x)
	nearest := float32(math.Inf(1))
	for i, t := range d.Task {
		c := max(0, 1-dot32(d.vector(i), *white))
		nearest = min(nearest, c/d.Radius[t])
	}
	return float64(nearest / d.Unit)
}
