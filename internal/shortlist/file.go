package shortlist

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"slices"

	"gonum.org/v1/gonum/mat"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/learnt"
	"github.com/gallop-llm/gallop/llama"
)

// kind is what the files hold.
var kind = learnt.Kind{Name: "shortlist", What: "the vocabulary shortlist", Version: 7}

// Dir is the folder of the user's cache where shortlists are kept.
func Dir() (string, error) { return kind.Dir() }

var (
	errNoFile  = errors.New("there is no file")
	errForeign = errors.New("the file is not this model's shortlist")
)

// head is what every file starts with.
func head(m *llama.Model, moments *Moments) (gguf.Metadata, []gguf.Source) {
	meta := kind.Head(m)
	meta.Set(kind.Key("states"), uint32(moments.N))
	d := moments.Sum.SymmetricDim()
	sum := make([]float32, d*d)
	for i := range d {
		for j := range d {
			sum[i*d+j] = float32(moments.Sum.At(i, j))
		}
	}
	return meta, []gguf.Source{learnt.Tensor("moments", gguf.F32, learnt.Bytes(sum), uint64(d), uint64(d))}
}

// writeMoments keeps what was learnt where no shortlist is made yet.
func writeMoments(path string, m *llama.Model, moments *Moments) error {
	meta, tensors := head(m, moments)
	return kind.Write(context.Background(), path, meta, tensors)
}

// write keeps a shortlist.
func write(path string, m *llama.Model, made *Made, moments *Moments, p parts) error {
	meta, tensors := head(m, moments)
	meta.Set(kind.Key("fitted"), uint32(made.States))
	meta.Set(kind.Key("size"), uint32(made.Size))
	meta.Set(kind.Key("margin"), p.margin)
	meta.Set(kind.Key("gain"), made.Gain)
	meta.Set(kind.Key("exact"), made.Exact)
	rank, nEmbd, nVocab := uint64(made.List.Rank), uint64(moments.Sum.SymmetricDim()), uint64(matrixOf(m).Shape[1])
	return kind.Write(context.Background(), path, meta, append(tensors,
		learnt.Tensor("basis", gguf.F32, learnt.Bytes(p.basis), nEmbd, rank),
		learnt.Tensor("preview", gguf.Q4_0, p.preview, rank, nVocab),
		learnt.Tensor("spread", gguf.F32, learnt.Bytes(p.spread), nVocab)))
}

// kept is what a file holds.
type kept struct {
	moments *Moments
	made    *Made // without its list; nil = no shortlist was made yet
	parts         // of its list
}

// read takes what a file holds. The error is errNoFile where there is no file.
func read(path string, m *llama.Model) (*kept, error) {
	f, err := gguf.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoFile
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	foreign := func(why string) error { return fmt.Errorf("%s: %w: %s", path, errForeign, why) }
	number := func(key string) uint64 { return kind.Number(f.Metadata, key) }
	if err := kind.Check(f.Metadata, m); err != nil {
		return nil, foreign(err.Error())
	}
	data := func(name string, of gguf.Type, shape ...uint64) ([]byte, error) {
		t, ok := f.Tensor(name)
		if !ok || t.Type != of || !slices.Equal(t.Shape, shape) {
			return nil, foreign("its " + name + " is missing or has another shape")
		}
		return io.ReadAll(f.Reader(t))
	}
	nEmbd, nVocab := matrixOf(m).Shape[0], matrixOf(m).Shape[1]
	sum, err := data("moments", gguf.F32, nEmbd, nEmbd)
	if err != nil {
		return nil, err
	}
	k := &kept{moments: NewMoments(int(nEmbd))}
	k.moments.N = int(number("states"))
	sums := learnt.Numbers[float32](sum)
	for i := range int(nEmbd) {
		for j := i; j < int(nEmbd); j++ {
			k.moments.Sum.SetSym(i, j, float64(sums[i*int(nEmbd)+j]))
		}
	}
	if !finite(k.moments.Sum) || k.moments.N < 1 {
		return nil, foreign("its moments are no numbers")
	}
	if number("fitted") == 0 {
		return k, nil
	}
	r := uint64(rank(int(nEmbd)))
	basis, err := data("basis", gguf.F32, nEmbd, r)
	if err != nil {
		return nil, err
	}
	k.basis = learnt.Numbers[float32](basis)
	if k.preview, err = data("preview", gguf.Q4_0, r, nVocab); err != nil {
		return nil, err
	}
	spread, err := data("spread", gguf.F32, nVocab)
	if err != nil {
		return nil, err
	}
	k.spread = learnt.Numbers[float32](spread)
	if least, most := slices.Min(k.spread), slices.Max(k.spread); !(least > 0 && most < math.MaxFloat32) {
		return nil, foreign("its spreads are out of range")
	}
	margin, _ := f.Metadata.Float(kind.Key("margin"))
	gain, _ := f.Metadata.Float(kind.Key("gain"))
	exact, _ := f.Metadata.Float(kind.Key("exact"))
	k.made, k.margin = &Made{Size: int(number("size")), States: int(number("fitted")), Gain: gain, Exact: exact}, float32(margin)
	if k.made.Size < 1 || k.made.Size > int(nVocab)/4 || !(margin > -math.MaxFloat32 && margin < math.MaxFloat32) || !(gain > 0 && exact >= 0) {
		return nil, foreign("its size, margin or figures are out of range")
	}
	k.made.account(share(m), int(nVocab))
	return k, nil
}

func finite(m *mat.SymDense) bool {
	t := mat.Sum(m)
	return !math.IsNaN(t) && !math.IsInf(t, 0)
}
