package randmodel

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"sync"

	"github.com/gallop-llm/gallop/gguf"
)

// chunkBlocks is how many blocks are made at a time: 256 elements × 4 bytes ×
// 256 = 256 KiB at most, which stays in the processor's cache.
const chunkBlocks = 256

// floatElems is the number of floats that are treated as one block.
const floatElems = 64

// stream gives the random numbers of one tensor.
func (s Spec) stream(name string) *rand.ChaCha8 {
	return rand.NewChaCha8(sha256.Sum256(fmt.Appendf(nil, "%d %s", s.Seed, name)))
}

// data gives the function that writes a tensor's bytes.
func (s Spec) data(t gguf.Tensor) func(io.Writer) error {
	return func(w io.Writer) error {
		size, err := t.Type.Size(t.Shape)
		if err != nil {
			return err
		}
		scale := 1.0
		if s.Scale != nil {
			scale = s.Scale(t.Name)
		}
		switch {
		case scale == 0:
			_, err = io.CopyN(w, zeros{}, int64(size))
		case t.Name == "rope_freqs.weight":
			err = binary.Write(w, binary.LittleEndian, s.ropeFactors())
		default:
			err = s.random(w, t, size, scale)
		}
		return err
	}
}

// random writes size random bytes that are valid blocks of the tensor's type,
// their elements times scale.
func (s Spec) random(w io.Writer, t gguf.Tensor, size uint64, scale float64) error {
	mean, sigma := distribution(t)
	source := s.stream(t.Name)
	fill, blockBytes, err := filler(t.Type, scale*mean, scale*sigma)
	if err != nil {
		return err
	}
	chunk := make([]byte, chunkBlocks*blockBytes)
	for size > 0 {
		// Whole blocks are made even where fewer floats remain: the rest is cut.
		_, _ = source.Read(chunk) // never fails
		for at := 0; at < len(chunk); at += blockBytes {
			fill(chunk[at : at+blockBytes])
		}
		n := min(size, uint64(len(chunk)))
		if _, err := w.Write(chunk[:n]); err != nil {
			return err
		}
		size -= n
	}
	return nil
}

// Spread of evenly distributed whole numbers 0 … n-1: √((n²-1)/12).
const (
	spread4 = 4.6098    // of 4 bits
	spread6 = 18.4730   // of 6 bits
	spread8 = 73.9003   // of 8 bits
	center4 = 7.5       // their middle, for 4 bits
	subQ4K  = 16        // the scale of every sub-block of Q4_K
	subQ6K  = int8(8)   // the scale of every sub-block of Q6_K, up to its sign
	packQ4K = 16 | 1<<6 // subQ4K in Q4_K's packing: its low 6 bits, and the high 2 of a later one
)

// filler gives a function that turns one block of random bytes into a valid
// block of the type with elements of the given spread, and the block's length.
// Only floats have a mean other than 0.
func filler(typ gguf.Type, mean, sigma float64) (fill func(block []byte), blockBytes int, err error) {
	_, bytes := typ.Block()
	blockBytes = int(bytes)
	switch typ {
	case gguf.F32:
		return func(b []byte) { floats32(b, mean, sigma) }, floatElems * 4, nil
	case gguf.F16:
		return func(b []byte) { floats16(b, mean, sigma) }, floatElems * 2, nil
	case gguf.Q4_0: // scale, 32 × 4 bits; element = scale × (bits - 8)
		scale := half(sigma / spread4)
		return func(b []byte) {
			// A random sign takes away the mean of -½ × scale.
			binary.LittleEndian.PutUint16(b, scale|uint16(b[1]&0x80)<<8)
		}, blockBytes, nil
	case gguf.Q8_0: // scale, 32 × 8 bits; element = scale × bits
		scale := half(sigma / spread8)
		return func(b []byte) { binary.LittleEndian.PutUint16(b, scale) }, blockBytes, nil
	case gguf.Q4_K: // scale, minimum, 8 × (6 + 6 bits), 256 × 4 bits
		// element = scale × sub × bits - minimum × sub
		scale := half(sigma / spread4 / subQ4K)
		minimum := half(sigma / spread4 / subQ4K * center4)
		return func(b []byte) {
			binary.LittleEndian.PutUint16(b[0:], scale)
			binary.LittleEndian.PutUint16(b[2:], minimum)
			for i := range b[4:16] {
				b[4+i] = 0 // the low 4 bits of the later sub-blocks
				if i < 8 {
					b[4+i] = packQ4K
				}
			}
		}, blockBytes, nil
	case gguf.Q6_K: // 256 × 4 bits, 256 × 2 bits, 16 × 8 bits, scale
		// element = scale × sub × (bits - 32)
		const subs, end = 128 + 64, 128 + 64 + 16
		scale := half(sigma / spread6 / float64(subQ6K))
		return func(b []byte) {
			for i := subs; i < end; i++ {
				sub := subQ6K
				if b[i]&1 != 0 { // as in Q4_0
					sub = -sub
				}
				b[i] = byte(sub)
			}
			binary.LittleEndian.PutUint16(b[end:], scale)
		}, blockBytes, nil
	}
	return nil, 0, fmt.Errorf("%w: cannot make weights of type %s", ErrSpec, typ)
}

// floats32 replaces each 4 random bytes by a float32.
func floats32(b []byte, mean, sigma float64) {
	normal := normalTable()
	for ; len(b) > 0; b = b[4:] {
		x := mean + sigma*normal[binary.LittleEndian.Uint16(b)]
		binary.LittleEndian.PutUint32(b, math.Float32bits(float32(x)))
	}
}

// floats16 replaces each 2 random bytes by a float16.
func floats16(b []byte, mean, sigma float64) {
	normal := normalTable()
	for ; len(b) > 0; b = b[2:] {
		x := mean + sigma*normal[binary.LittleEndian.Uint16(b)]
		binary.LittleEndian.PutUint16(b, half(x))
	}
}

// normalTable gives the 65,536 quantiles of the normal distribution, so that 16
// random bits are one draw: ten times as fast as drawing, and the same anywhere.
var normalTable = sync.OnceValue(func() []float64 {
	table := make([]float64, 1<<16)
	for i := range table {
		table[i] = math.Sqrt2 * math.Erfinv(2*(float64(i)+0.5)/float64(len(table))-1)
	}
	return table
})

// half rounds to float16 (sign, 5 bits of exponent, 10 of fraction), as bits.
// Too large values become the largest finite one.
func half(x float64) uint16 {
	const largest, fractionBits, lowestExponent = 65504, 10, -14
	sign := uint16(0)
	if math.Signbit(x) {
		sign, x = 1<<15, -x
	}
	if x == 0 {
		return sign
	}
	x = min(x, largest)
	_, exponent := math.Frexp(x)                                    // x = f × 2^exponent with ½ ≤ f < 1
	exponent = max(exponent-1, lowestExponent)                      // below it: subnormal
	steps := math.RoundToEven(math.Ldexp(x, fractionBits-exponent)) // in units of the last bit
	// A step count from 1024 up carries into the exponent field by itself.
	return sign | uint16(steps) + uint16(exponent-lowestExponent)<<fractionBits
}

// zeros reads zero bytes without end.
type zeros struct{}

// Read implements [io.Reader].
func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
