package shortlist

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/mat"
)

// previewBlock is how many numbers of a preview share a scale (Q4_0).
const previewBlock = 32

// Moments are the second moments of final hidden states: what a preview is fitted to.
// They say nothing of the texts that the states came from.
type Moments struct {
	N   int           // states
	Sum *mat.SymDense // (nEmbd, nEmbd) of the states' outer products
}

// NewMoments are those of no states.
func NewMoments(nEmbd int) *Moments {
	return &Moments{Sum: mat.NewSymDense(nEmbd, nil)}
}

// Add takes in states (n, nEmbd).
func (m *Moments) Add(states []float32) {
	d := m.Sum.SymmetricDim()
	n := len(states) / d
	x := mat.NewDense(n, d, nil)
	for i, v := range states[:n*d] {
		x.Set(i/d, i%d, float64(v))
	}
	m.Sum.SymRankK(m.Sum, 1, x.T())
	m.N += n
}

// ridge is added to the moments' diagonal, in shares of its mean, so that directions
// that were not seen yet are not thrown away: a tenth after 200 states, less with more.
func (m *Moments) ridge() float64 {
	d := m.Sum.SymmetricDim()
	return 20 / float64(m.N) * mat.Trace(m.Sum) / float64(d)
}

// powerIterations is how often the subspace is multiplied with the matrix whose leading
// eigenvectors it is to come to: its captured share of the variance is within a percent then.
const powerIterations = 4

// oversampling is how many directions more are carried along, so that the last wanted ones come out well.
const oversampling = 16

// fit finds the rank-dimensional preview with the least mean squared error over hidden
// states h of these moments and output rows w like those of sample (n, nEmbd): it
// replaces w·h by (w·columns)·(basis·h), both (rank, nEmbd) row by row.
//
// With C = LLᵀ the moments and h = Lu, the u are white, and the best approximation of
// WL of a rank is that of its leading right singular vectors V: WLVVᵀL⁻¹h. stop ends the
// work early.
func fit(m *Moments, sample []float32, rank int, stop func() bool) (basis, columns []float32, err error) {
	d := m.Sum.SymmetricDim()
	c := mat.NewSymDense(d, nil)
	c.ScaleSym(1/float64(m.N), m.Sum)
	for i := range d {
		c.SetSym(i, i, c.At(i, i)+m.ridge()/float64(m.N)+1e-12)
	}
	var cholesky mat.Cholesky
	if !cholesky.Factorize(c) {
		return nil, nil, fmt.Errorf("the hidden states' moments are no numbers")
	}
	var l mat.TriDense
	cholesky.LTo(&l)

	n := len(sample) / d
	w := mat.NewDense(n, d, nil)
	for i, v := range sample[:n*d] {
		w.Set(i/d, i%d, float64(v))
	}
	var wl, g mat.Dense
	wl.Mul(w, &l)
	if stop() {
		return nil, nil, errStopped
	}
	g.Mul(wl.T(), &wl)
	wide := min(rank+oversampling, d)
	random := rand.New(rand.NewPCG(1, 2))
	v := mat.NewDense(d, wide, nil)
	for i := range d {
		for j := range wide {
			v.Set(i, j, random.NormFloat64())
		}
	}
	for range powerIterations {
		if stop() {
			return nil, nil, errStopped
		}
		var y mat.Dense
		y.Mul(&g, v)
		if err := orthonormal(&y); err != nil {
			return nil, nil, err
		}
		v = &y
	}
	// The leading directions within the subspace, best first.
	var gv, small mat.Dense
	gv.Mul(&g, v)
	small.Mul(v.T(), &gv)
	sym := mat.NewSymDense(wide, nil)
	for i := range wide {
		for j := i; j < wide; j++ {
			sym.SetSym(i, j, (small.At(i, j)+small.At(j, i))/2)
		}
	}
	var eigen mat.EigenSym
	if !eigen.Factorize(sym, true) {
		return nil, nil, fmt.Errorf("the preview's directions cannot be found")
	}
	var vectors, turned mat.Dense
	eigen.VectorsTo(&vectors) // ascending
	turned.Mul(v, &vectors)
	best := turned.Slice(0, d, wide-rank, wide)

	var lv, li mat.Dense
	lv.Mul(&l, best)
	if err := li.Solve(l.T(), best); err != nil { // L⁻ᵀV
		return nil, nil, fmt.Errorf("the preview's basis cannot be found: %w", err)
	}
	columns, basis = make([]float32, rank*d), make([]float32, rank*d)
	for r := range rank {
		for i := range d {
			columns[r*d+i] = float32(lv.At(i, rank-1-r))
			basis[r*d+i] = float32(li.At(i, rank-1-r))
		}
	}
	spread(columns, d)
	spread(basis, d)
	return basis, columns, nil
}

// spread turns each block of the vectors x (rank, d) by a Hadamard matrix, which is its
// own inverse: products of two sets of vectors that are both turned stay the same. The leading direction
// has most of the energy, and numbers of a block share a scale: alone it would leave the
// others few of their four bits.
func spread(x []float32, d int) {
	for block := range slices.Chunk(x, previewBlock*d) {
		for step := 1; step < previewBlock; step *= 2 {
			for i := range previewBlock {
				if i&step != 0 {
					continue
				}
				a, b := block[i*d:(i+1)*d], block[(i+step)*d:(i+step+1)*d]
				for k := range d {
					a[k], b[k] = (a[k]+b[k])/math.Sqrt2, (a[k]-b[k])/math.Sqrt2
				}
			}
		}
	}
}

// orthonormal makes the columns of y orthonormal, by the Cholesky factor of their products.
func orthonormal(y *mat.Dense) error {
	_, k := y.Dims()
	var gram mat.Dense
	for range 2 { // once leaves rounding of the columns' condition number
		gram.Mul(y.T(), y)
		sym := mat.NewSymDense(k, nil)
		for i := range k {
			for j := i; j < k; j++ {
				sym.SetSym(i, j, gram.At(i, j))
			}
			sym.SetSym(i, i, sym.At(i, i)*(1+1e-12)+math.SmallestNonzeroFloat32)
		}
		var c mat.Cholesky
		if !c.Factorize(sym) {
			return fmt.Errorf("the preview's directions are not independent")
		}
		var u mat.TriDense
		c.UTo(&u)
		var inverse mat.TriDense
		if err := inverse.InverseTri(&u); err != nil {
			return fmt.Errorf("the preview's directions are not independent: %w", err)
		}
		var q mat.Dense
		q.Mul(y, &inverse)
		*y = q
		gram.Reset()
	}
	return nil
}
