package router

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/blas/blas32"
)

// Predictor predicts, from a prompt's features, how much each candidate mask
// raises the task loss over the empty mask.
//
// It follows PuDDing (Wee, Park, Lee: Prompt-based Depth Pruning of Large
// Language Models, ICML 2025, arXiv 2502.04348), where BERT-base regresses the
// loss under each omission set with mean squared error. Here it is a network
// with one hidden layer on features that need no second model, a thousandth of
// BERT's size; it learns the increase over the whole model instead of the loss,
// because a prompt's own difficulty says nothing about which mask to take; and
// the loss increases, spread over four powers of ten, are squeezed by an
// inverse hyperbolic sine before they are standardised.
type Predictor struct {
	In, Hidden, Out int // features, hidden units of all nets together, candidates

	// An ensemble of nets with one hidden layer is one wider net: their hidden
	// layers side by side, their outputs averaged.
	W1 []float32 // (In, Hidden)
	B1 []float32 // (Hidden,)
	W2 []float32 // (Out, Hidden)
	B2 []float32 // (Out,)

	// Squeezed increases are sinh⁻¹(nats / Squeeze); the net gives them less
	// Mean, in units of Std.
	Squeeze   float64
	Mean, Std []float32 // (Out,)

	// Residuals of the validation prompts, squeezed, truth less prediction, of
	// each candidate in ascending order: (Out, nValidation). What
	// [Predictor.Bound] adds comes from them.
	Residuals [][]float32
}

// TrainOptions says how a router is trained. nil and zero fields are the defaults.
type TrainOptions struct {
	Hidden int     // hidden units of a net; 0 = 64
	Nets   int     // nets that are averaged; 0 = 3
	Epochs int     // at most; 0 = 150
	Wait   int     // epochs without a better validation loss before a net stops; 0 = 15
	Batch  int     // prompts of a step; 0 = 32
	Rate   float64 // Adam's step size; 0 = 0.003

	// Decay is the decoupled weight decay (AdamW); 0 = 0.01, negative = none.
	Decay float64

	// Dropout is the share of the features that are left out of a step; 0 = 0.1,
	// negative = none, below 1.
	Dropout float64

	// Squeeze is the loss increase in nats where the scale of the targets turns
	// from linear to logarithmic; 0 = 0.02.
	Squeeze float64

	// Validation is the share of the prompts that only measure; 0 = 0.15, below 1.
	Validation float64

	// Depths of the candidates, (nCandidates,): regret is counted among those of
	// one depth. nil = all but the empty mask together.
	Depths []float64

	Seed uint64

	// Between is called before each step; its error ends the training. It may wait.
	// nil = nothing is.
	Between func() error
}

// Report tells how training went.
type Report struct {
	Epochs     []int   // of each net until its best
	Train      float64 // mean squared error of the standardised targets, mean over nets, at their best
	Validation float64 // the same on the validation prompts, of the ensemble
	NTrain     int     // prompts learned from
	NValid     int     // prompts only measured on
	Valid      []int   // (NValid,) which these are, ascending

	// Regret is the mean over validation prompts and depths of the loss of the
	// candidate with the lowest prediction less that of the best one, in nats;
	// Static is the same for the candidate that is best on average in training.
	Regret, Static float64

	// Candidates has what was seen of each candidate on the validation prompts.
	Candidates []Calibration // (nCandidates,)
}

// Calibration compares a candidate's predicted and true loss increases, in nats.
type Calibration struct {
	Mean, Predicted float64 // means of truth and prediction
	Error           float64 // mean absolute error
	R2              float64 // share of the variance explained, squeezed; can be negative
}

// Adam's constants, as its authors propose them.
const (
	beta1, beta2 = 0.9, 0.999
	adamFloor    = 1e-8
)

// leastTargetSpread makes a candidate whose increases do not vary, as the empty
// mask's, a constant: in squeezed units.
const leastTargetSpread = 1e-6

func (o *TrainOptions) withDefaults(n, candidates int) (TrainOptions, error) {
	var p TrainOptions
	if o != nil {
		p = *o
	}
	p.Hidden = cmp.Or(p.Hidden, 64)
	p.Nets = cmp.Or(p.Nets, 3)
	p.Epochs = cmp.Or(p.Epochs, 150)
	p.Wait = cmp.Or(p.Wait, 15)
	p.Batch = cmp.Or(p.Batch, 32)
	p.Decay = max(cmp.Or(p.Decay, 0.01), 0)
	p.Dropout = max(cmp.Or(p.Dropout, 0.1), 0)
	p.Rate = cmp.Or(p.Rate, 0.003)
	p.Squeeze = cmp.Or(p.Squeeze, 0.02)
	p.Validation = cmp.Or(p.Validation, 0.15)
	switch {
	case p.Hidden < 1 || p.Nets < 1 || p.Epochs < 1 || p.Wait < 1 || p.Batch < 1:
		return p, fmt.Errorf("%w: hidden, nets, epochs, wait and batch are %d, %d, %d, %d, %d, want at least 1 of each", ErrTraining, p.Hidden, p.Nets, p.Epochs, p.Wait, p.Batch)
	case !(p.Rate > 0) || !(p.Squeeze > 0) || !(p.Validation > 0 && p.Validation < 1) || !(p.Dropout < 1) || !(p.Decay >= 0):
		return p, fmt.Errorf("%w: rate %g, squeeze %g, validation %g, dropout %g or decay %g is out of range", ErrTraining, p.Rate, p.Squeeze, p.Validation, p.Dropout, p.Decay)
	case p.Depths != nil && len(p.Depths) != candidates:
		return p, fmt.Errorf("%w: %d depths for %d candidates", ErrTraining, len(p.Depths), candidates)
	case n < 2:
		return p, fmt.Errorf("%w: %d prompts, want at least 2: one to learn from, one to measure on", ErrTraining, n)
	}
	return p, nil
}

// Train fits a router to losses, (len(x), nCandidates): each candidate's loss
// increase over the empty mask in nats, candidate 0 being the empty mask. x is
// (len(x), nFeatures). The same data, options and machine give the same bits.
// The error wraps [ErrTraining].
func Train(x [][]float32, losses [][]float64, o *TrainOptions) (*Predictor, Report, error) {
	if err := checkData(x, losses); err != nil {
		return nil, Report{}, err
	}
	opts, err := o.withDefaults(len(x), len(losses[0]))
	if err != nil {
		return nil, Report{}, err
	}
	in, out := len(x[0]), len(losses[0])
	r := &Predictor{
		In: in, Hidden: opts.Hidden * opts.Nets, Out: out,
		W1: make([]float32, in*opts.Hidden*opts.Nets), B1: make([]float32, opts.Hidden*opts.Nets),
		W2: make([]float32, out*opts.Hidden*opts.Nets), B2: make([]float32, out),
		Squeeze: opts.Squeeze, Mean: make([]float32, out), Std: make([]float32, out),
	}

	// The split is the same for all nets, so that the validation prompts are
	// new to the ensemble.
	order := rand.New(rand.NewPCG(opts.Seed, 0)).Perm(len(x))
	nValid := min(max(int(math.Round(opts.Validation*float64(len(x)))), 1), len(x)-1)
	valid, train := order[:nValid], order[nValid:]
	slices.Sort(valid)
	slices.Sort(train)
	y := r.targets(losses, train)

	report := Report{NTrain: len(train), NValid: nValid, Valid: valid}
	for k := range opts.Nets {
		n := newNet(in, opts.Hidden, out, x, rand.New(rand.NewPCG(opts.Seed, uint64(k+1))))
		epochs, loss, err := n.train(x, y, train, valid, opts)
		if err != nil {
			return nil, Report{}, fmt.Errorf("train the router: %w", err)
		}
		report.Epochs = append(report.Epochs, epochs)
		report.Train += loss / float64(opts.Nets)
		r.take(n, k, opts)
	}
	r.measure(&report, x, y, losses, train, valid, opts)
	return r, report, nil
}

func checkData(x [][]float32, losses [][]float64) error {
	if len(x) == 0 || len(x) != len(losses) {
		return fmt.Errorf("%w: %d feature vectors and %d rows of losses", ErrTraining, len(x), len(losses))
	}
	if len(x[0]) == 0 || len(losses[0]) == 0 {
		return fmt.Errorf("%w: %d features, %d candidates", ErrTraining, len(x[0]), len(losses[0]))
	}
	for i := range x {
		if len(x[i]) != len(x[0]) || len(losses[i]) != len(losses[0]) {
			return fmt.Errorf("%w: prompt %d has %d features and %d losses, the first has %d and %d", ErrTraining, i, len(x[i]), len(losses[i]), len(x[0]), len(losses[0]))
		}
		for _, v := range x[i] {
			if !finite(float64(v)) {
				return fmt.Errorf("%w: prompt %d has the feature %g", ErrTraining, i, v)
			}
		}
		for c, v := range losses[i] {
			if !finite(v) {
				return fmt.Errorf("%w: prompt %d has the loss increase %g under candidate %d", ErrTraining, i, v, c)
			}
		}
	}
	return nil
}

func finite(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }

// targets squeezes and standardises the losses: (n, Out), by mean and spread of
// the training prompts.
func (r *Predictor) targets(losses [][]float64, train []int) [][]float32 {
	y := make([][]float32, len(losses))
	for i := range y {
		y[i] = make([]float32, r.Out)
	}
	for c := range r.Out {
		var sum, square float64
		for _, i := range train {
			sum += math.Asinh(losses[i][c] / r.Squeeze)
		}
		mean := sum / float64(len(train))
		for _, i := range train {
			d := math.Asinh(losses[i][c]/r.Squeeze) - mean
			square += d * d
		}
		std := math.Sqrt(square / float64(len(train)))
		if std < leastTargetSpread {
			std = 0
		}
		r.Mean[c], r.Std[c] = float32(mean), float32(std)
		for i := range y {
			if std > 0 {
				y[i][c] = float32((math.Asinh(losses[i][c]/r.Squeeze) - mean) / std)
			}
		}
	}
	return y
}

// net is one of the ensemble while it is trained.
type net struct {
	in, hidden, out int
	params          []float32 // W1 (in, hidden), B1, W2 (out, hidden), B2
	random          *rand.Rand

	h, dh, y, dy []float32 // room for one prompt
}

func newNet(in, hidden, out int, x [][]float32, random *rand.Rand) *net {
	n := &net{
		in: in, hidden: hidden, out: out, random: random,
		params: make([]float32, in*hidden+hidden+out*hidden+out),
		h:      make([]float32, hidden), dh: make([]float32, hidden),
		y: make([]float32, out), dy: make([]float32, out),
	}
	// He's initialisation, by the inputs' true length: they are no unit normals.
	var square float64
	for _, v := range x {
		for _, f := range v {
			square += float64(f) * float64(f)
		}
	}
	w1, _, w2, _ := n.split(n.params)
	spread := math.Sqrt(2 / max(square/float64(len(x)), adamFloor))
	for i := range w1 {
		w1[i] = float32(spread * random.NormFloat64())
	}
	for i := range w2 {
		w2[i] = float32(random.NormFloat64() / math.Sqrt(float64(hidden)))
	}
	return n
}

func (n *net) split(p []float32) (w1, b1, w2, b2 []float32) {
	a, b, c := n.in*n.hidden, n.in*n.hidden+n.hidden, n.in*n.hidden+n.hidden+n.out*n.hidden
	return p[:a], p[a:b], p[b:c], p[c:]
}

// axpy adds a × x to y. The vectors are as long as each other.
func axpy(a float32, x, y []float32) {
	blas32.Axpy(a, blas32.Vector{N: len(x), Data: x, Inc: 1}, blas32.Vector{N: len(y), Data: y, Inc: 1})
}

func dot32(x, y []float32) float32 {
	return blas32.Dot(blas32.Vector{N: len(x), Data: x, Inc: 1}, blas32.Vector{N: len(y), Data: y, Inc: 1})
}

// hiddenLayer writes the activations: most features are 0, so it adds the rows
// of W1 of those that are not.
func hiddenLayer(h, w1, b1, x []float32) {
	copy(h, b1)
	for i, v := range x {
		if v != 0 {
			axpy(v, w1[i*len(h):][:len(h)], h)
		}
	}
	for i, v := range h {
		h[i] = max(v, 0)
	}
}

func outputLayer(y, w2, b2, h []float32) {
	for c := range y {
		y[c] = b2[c] + dot32(w2[c*len(h):][:len(h)], h)
	}
}

// train runs Adam until the validation loss stops falling and leaves the best
// parameters. loss is that epoch's mean training loss.
func (n *net) train(x, y [][]float32, train, valid []int, o TrainOptions) (epochs int, loss float64, err error) {
	grad := make([]float32, len(n.params))
	m, v := make([]float32, len(n.params)), make([]float32, len(n.params))
	best, bestParams := math.Inf(1), slices.Clone(n.params)
	order := slices.Clone(train)
	dropped := make([]float32, n.in)
	step := 0
	for epoch := 1; epoch <= o.Epochs && epoch-epochs <= o.Wait; epoch++ {
		n.random.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		var sum float64
		for batch := range slices.Chunk(order, o.Batch) {
			if o.Between != nil {
				if err := o.Between(); err != nil {
					return 0, 0, err
				}
			}
			clear(grad)
			for _, i := range batch {
				n.dropout(dropped, x[i], o.Dropout)
				sum += n.backward(grad, dropped, y[i], len(batch))
			}
			step++
			n.adam(grad, m, v, step, o)
		}
		if l := n.loss(x, y, valid); l < best {
			best, epochs, loss = l, epoch, sum/float64(len(train))
			copy(bestParams, n.params)
		}
	}
	n.params = bestParams
	return epochs, loss, nil
}

// dropout copies x without a random share of its features, the rest scaled up.
func (n *net) dropout(dst, x []float32, share float64) {
	copy(dst, x)
	if share == 0 {
		return
	}
	keep := float32(1 / (1 - share))
	for i, v := range dst {
		if v == 0 {
			continue
		}
		if n.random.Float64() < share {
			dst[i] = 0
		} else {
			dst[i] = v * keep
		}
	}
}

// backward adds the gradient of one prompt's mean squared error, divided by the
// batch size, to grad, and returns the error.
func (n *net) backward(grad, x, y []float32, batch int) float64 {
	w1, b1, w2, b2 := n.split(n.params)
	g1, gb1, g2, gb2 := n.split(grad)
	hiddenLayer(n.h, w1, b1, x)
	outputLayer(n.y, w2, b2, n.h)
	loss := squaredError(n.y, y)
	clear(n.dh)
	for c := range n.y {
		d := 2 * (n.y[c] - y[c]) / float32(n.out*batch)
		gb2[c] += d
		axpy(d, n.h, g2[c*n.hidden:][:n.hidden])
		axpy(d, w2[c*n.hidden:][:n.hidden], n.dh)
	}
	for i, h := range n.h {
		if h == 0 {
			n.dh[i] = 0
		}
	}
	axpy(1, n.dh, gb1)
	for i, v := range x {
		if v != 0 {
			axpy(v, n.dh, g1[i*n.hidden:][:n.hidden])
		}
	}
	return loss
}

func (n *net) adam(grad, m, v []float32, step int, o TrainOptions) {
	correct1, correct2 := 1-math.Pow(beta1, float64(step)), 1-math.Pow(beta2, float64(step))
	rate := float32(o.Rate * math.Sqrt(correct2) / correct1)
	decay := float32(1 - o.Rate*o.Decay)
	params := n.params
	m, v, grad = m[:len(params)], v[:len(params)], grad[:len(params)]
	for i, g := range grad {
		m[i] = beta1*m[i] + (1-beta1)*g
		v[i] = beta2*v[i] + (1-beta2)*g*g
		params[i] = params[i]*decay - rate*m[i]/(float32(math.Sqrt(float64(v[i])))+adamFloor)
	}
}

func (n *net) loss(x, y [][]float32, of []int) float64 {
	w1, b1, w2, b2 := n.split(n.params)
	var sum float64
	for _, i := range of {
		hiddenLayer(n.h, w1, b1, x[i])
		outputLayer(n.y, w2, b2, n.h)
		sum += squaredError(n.y, y[i])
	}
	return sum / float64(len(of))
}

func squaredError(a, b []float32) float64 {
	var sum float64
	for i := range a {
		d := float64(a[i] - b[i])
		sum += d * d
	}
	return sum / float64(len(a))
}

// take puts net k's hidden units beside those of the others.
func (r *Predictor) take(n *net, k int, o TrainOptions) {
	w1, b1, w2, b2 := n.split(n.params)
	at, share := k*n.hidden, 1/float32(o.Nets)
	for i := range n.in {
		copy(r.W1[i*r.Hidden+at:], w1[i*n.hidden:][:n.hidden])
	}
	copy(r.B1[at:], b1)
	for c := range n.out {
		axpy(share, w2[c*n.hidden:][:n.hidden], r.W2[c*r.Hidden+at:][:n.hidden])
		r.B2[c] += share * b2[c]
	}
}

// squeezed writes the predictions before they are stretched back to nats.
func (r *Predictor) squeezed(dst []float64, x []float32) {
	hidden := borrow(r.Hidden)
	defer scratch.Put(hidden)
	hiddenLayer(*hidden, r.W1, r.B1, x)
	for c := range dst {
		y := r.B2[c] + dot32(r.W2[c*r.Hidden:][:r.Hidden], *hidden)
		dst[c] = float64(y)*float64(r.Std[c]) + float64(r.Mean[c])
	}
}

// Predict writes each candidate's predicted loss increase in nats to dst,
// (Out,), for the features x, (In,).
func (r *Predictor) Predict(dst []float64, x []float32) {
	r.squeezed(dst, x)
	for c, v := range dst {
		dst[c] = math.Sinh(v) * r.Squeeze
	}
}

// Bound writes to dst, (Out,), what each candidate's loss increase stays under
// with the given confidence, 0 to 1, in nats: split conformal prediction, the
// prediction plus that quantile of the validation residuals. It holds for
// prompts like the calibration's, a little optimistically, since the same
// prompts decided when training stopped. With too few of them for the
// confidence asked for it is +Inf. A confidence of 0 gives the prediction itself.
func (r *Predictor) Bound(dst []float64, x []float32, confidence float64) {
	r.squeezed(dst, x)
	for c, v := range dst {
		if confidence > 0 && r.Std[c] > 0 {
			residuals := r.Residuals[c]
			rank := int(math.Ceil(confidence * float64(len(residuals)+1)))
			if rank > len(residuals) {
				dst[c] = math.Inf(1)
				continue
			}
			v += float64(residuals[rank-1])
		}
		dst[c] = math.Sinh(v) * r.Squeeze
	}
}

// measure fills in the residuals and the report's figures.
func (r *Predictor) measure(report *Report, x, y [][]float32, losses [][]float64, train, valid []int, o TrainOptions) {
	predicted := make([][]float64, len(valid)) // squeezed
	r.Residuals = make([][]float32, r.Out)
	report.Candidates = make([]Calibration, r.Out)
	standard := make([]float32, r.Out)
	for k, i := range valid {
		predicted[k] = make([]float64, r.Out)
		r.squeezed(predicted[k], x[i])
		for c, v := range predicted[k] {
			standard[c] = 0
			if r.Std[c] > 0 {
				standard[c] = (float32(v) - r.Mean[c]) / r.Std[c]
			}
		}
		report.Validation += squaredError(standard, y[i]) / float64(len(valid))
	}
	for c := range r.Out {
		cal := &report.Candidates[c]
		r.Residuals[c] = make([]float32, len(valid))
		var mean, unexplained, variance float64
		for _, i := range valid {
			mean += math.Asinh(losses[i][c]/r.Squeeze) / float64(len(valid))
		}
		for k, i := range valid {
			truth := math.Asinh(losses[i][c] / r.Squeeze)
			residual := truth - predicted[k][c]
			r.Residuals[c][k] = float32(residual)
			unexplained += residual * residual
			variance += (truth - mean) * (truth - mean)
			nats := math.Sinh(predicted[k][c]) * r.Squeeze
			cal.Mean += losses[i][c] / float64(len(valid))
			cal.Predicted += nats / float64(len(valid))
			cal.Error += math.Abs(losses[i][c]-nats) / float64(len(valid))
		}
		if variance > 0 {
			cal.R2 = 1 - unexplained/variance
		}
		slices.Sort(r.Residuals[c])
	}
	report.Regret, report.Static = regrets(predicted, losses, train, valid, o.Depths)
}

// regrets compares, within each depth, the routed and the best static choice
// with the best choice for each prompt.
func regrets(predicted [][]float64, losses [][]float64, train, valid []int, depths []float64) (routed, static float64) {
	var groups [][]int // candidates of one depth, without the empty mask
	if depths == nil {
		depths = make([]float64, len(losses[0]))
	}
	var seen []float64
	for c := 1; c < len(depths); c++ {
		at := slices.Index(seen, depths[c])
		if at < 0 {
			at = len(seen)
			seen, groups = append(seen, depths[c]), append(groups, nil)
		}
		groups[at] = append(groups[at], c)
	}
	lowest := func(group []int, loss func(c int) float64) int {
		return slices.MinFunc(group, func(a, b int) int {
			switch la, lb := loss(a), loss(b); {
			case la < lb:
				return -1
			case la > lb:
				return 1
			}
			return 0
		})
	}
	for _, group := range groups {
		always := lowest(group, func(c int) (sum float64) {
			for _, i := range train {
				sum += losses[i][c]
			}
			return sum
		})
		for k, i := range valid {
			truth := func(c int) float64 { return losses[i][c] }
			best := losses[i][lowest(group, truth)]
			choice := lowest(group, func(c int) float64 { return predicted[k][c] })
			routed += losses[i][choice] - best
			static += losses[i][always] - best
		}
	}
	n := float64(max(len(groups)*len(valid), 1))
	return routed / n, static / n
}
