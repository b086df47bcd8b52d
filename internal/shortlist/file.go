package shortlist

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"

	"gonum.org/v1/gonum/mat"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/llama"
)

// Dir is the folder of the user's cache where shortlists are kept.
func Dir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the cache folder for the vocabulary shortlist: %w", err)
	}
	return filepath.Join(cache, "gallop", "shortlist"), nil
}

// filePath is where a model's shortlist is kept.
func filePath(dir string, m *llama.Model) string {
	return filepath.Join(dir, fmt.Sprintf("%s-%d-%016x.gguf", m.Architecture, m.NLayer, m.Fingerprint()))
}

const (
	// kind is what these files say in general.type.
	kind = "gallop-shortlist"
	// version is that of the files' meaning: others are made anew.
	version = 7
)

var (
	errNoFile  = errors.New("there is no file")
	errForeign = errors.New("the file is not this model's shortlist")
)

// floats is how a slice's bytes lie in a file.
func floats(v []float32) []byte {
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, v) // a buffer takes all
	return b.Bytes()
}

func tensorOf(name string, kind gguf.Type, data []byte, shape ...uint64) gguf.Source {
	return gguf.Source{Tensor: gguf.Tensor{Name: name, Type: kind, Shape: shape}, Data: gguf.Bytes(data)}
}

// head is what every file starts with.
func head(m *llama.Model, moments *Moments) (gguf.Metadata, []gguf.Source) {
	var meta gguf.Metadata
	meta.Set("general.type", kind)
	meta.Set("gallop.shortlist.version", uint32(version))
	meta.Set("gallop.shortlist.model", m.Fingerprint())
	meta.Set("gallop.shortlist.states", uint32(moments.N))
	d := moments.Sum.SymmetricDim()
	sum := make([]float32, d*d)
	for i := range d {
		for j := range d {
			sum[i*d+j] = float32(moments.Sum.At(i, j))
		}
	}
	return meta, []gguf.Source{tensorOf("moments", gguf.F32, floats(sum), uint64(d), uint64(d))}
}

// writeMoments keeps what was learnt where no shortlist is made yet.
func writeMoments(path string, m *llama.Model, moments *Moments) error {
	meta, tensors := head(m, moments)
	return save(path, meta, tensors)
}

// write keeps a shortlist.
func write(path string, m *llama.Model, made *Made, moments *Moments, p parts) error {
	meta, tensors := head(m, moments)
	meta.Set("gallop.shortlist.fitted", uint32(made.States))
	meta.Set("gallop.shortlist.size", uint32(made.Size))
	meta.Set("gallop.shortlist.margin", p.margin)
	meta.Set("gallop.shortlist.gain", made.Gain)
	meta.Set("gallop.shortlist.exact", made.Exact)
	rank, nEmbd, nVocab := uint64(made.List.Rank), uint64(moments.Sum.SymmetricDim()), uint64(matrixOf(m).Shape[1])
	return save(path, meta, append(tensors,
		tensorOf("basis", gguf.F32, floats(p.basis), nEmbd, rank),
		tensorOf("preview", gguf.Q4_0, p.preview, rank, nVocab),
		tensorOf("spread", gguf.F32, floats(p.spread), nVocab)))
}

func save(path string, meta gguf.Metadata, tensors []gguf.Source) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("keep the vocabulary shortlist: %w", err)
	}
	if err := gguf.Write(context.Background(), path, meta, tensors, nil); err != nil {
		return fmt.Errorf("keep the vocabulary shortlist: %w", err)
	}
	return nil
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
	number := func(key string) uint64 {
		n, _ := f.Metadata.Uint("gallop.shortlist." + key)
		return n
	}
	switch name, _ := f.Metadata.String("general.type"); {
	case name != kind:
		return nil, foreign("it is of another kind")
	case number("version") != version:
		return nil, foreign("it is of another version")
	case number("model") != m.Fingerprint():
		return nil, foreign("it was made for another model")
	}
	data := func(name string, kind gguf.Type, shape ...uint64) ([]byte, error) {
		t, ok := f.Tensor(name)
		if !ok || t.Type != kind || !slices.Equal(t.Shape, shape) {
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
	sums := decode(sum)
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
	k.basis = decode(basis)
	if k.preview, err = data("preview", gguf.Q4_0, r, nVocab); err != nil {
		return nil, err
	}
	spread, err := data("spread", gguf.F32, nVocab)
	if err != nil {
		return nil, err
	}
	k.spread = decode(spread)
	if least, most := slices.Min(k.spread), slices.Max(k.spread); !(least > 0 && most < math.MaxFloat32) {
		return nil, foreign("its spreads are out of range")
	}
	margin, _ := f.Metadata.Float("gallop.shortlist.margin")
	gain, _ := f.Metadata.Float("gallop.shortlist.gain")
	exact, _ := f.Metadata.Float("gallop.shortlist.exact")
	k.made, k.margin = &Made{Size: int(number("size")), States: int(number("fitted")), Gain: gain, Exact: exact}, float32(margin)
	if k.made.Size < 1 || k.made.Size > int(nVocab)/4 || !(margin > -math.MaxFloat32 && margin < math.MaxFloat32) || !(gain > 0 && exact >= 0) {
		return nil, foreign("its size, margin or figures are out of range")
	}
	k.made.account(share(m), int(nVocab))
	return k, nil
}

// decode turns a file's bytes into numbers.
func decode(b []byte) []float32 {
	v := make([]float32, len(b)/4)
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return v
}

func finite(m *mat.SymDense) bool {
	t := mat.Sum(m)
	return !math.IsNaN(t) && !math.IsInf(t, 0)
}
