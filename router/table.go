package router

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"sync"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/llama"
)

// tableName is the tensor with the token embeddings, (n_embd, n_vocab).
const tableName = "token_embd.weight"

// cachedRows is how many tokens' rows are kept: more distinct tokens than most
// chats have, in 8 MiB at a width of 256.
const cachedRows = 8192

// table reads rows of a model's token embeddings at need, projects them to
// width and keeps what it has read.
type table struct {
	file   *gguf.File
	rows   io.ReaderAt
	typ    gguf.Type
	nEmbd  int
	nVocab int
	width  int // of a projected row

	// The projection is a count sketch: each of the nEmbd values is added to or
	// taken from one of width sums. Like a dense random matrix it keeps inner
	// products on average, at one addition a value. nil = no projection.
	target []uint32  // (nEmbd,)
	sign   []float32 // (nEmbd,)

	mu    sync.Mutex // of what follows
	bytes []byte     // one row as stored
	row   []float32  // (nEmbd,) one row unpacked

	slot   map[llama.Token]int32 // where in cached a token's row is
	cached []float32             // (rows so far, width)
}

// openTable opens the embeddings of a model file.
func openTable(from *Sources, width int, seed uint64) (*table, error) {
	t := &table{file: from.file}
	if t.file == nil {
		var err error
		if t.file, err = gguf.Open(from.Model); err != nil {
			return nil, err
		}
	}
	if err := t.init(width, seed); err != nil {
		t.close()
		return nil, fmt.Errorf("%s: %w", from.Model, err)
	}
	return t, nil
}

func (t *table) init(width int, seed uint64) error {
	tensor, ok := t.file.Tensor(tableName)
	if !ok {
		return fmt.Errorf("%w: the model has no tensor %s; use the kind %q", ErrFeatures, tableName, Ngrams)
	}
	if len(tensor.Shape) != 2 || tensor.Shape[0] > 1<<24 || tensor.Shape[1] > math.MaxInt32 {
		return fmt.Errorf("%w: %s has the shape %v, want n_embd by n_vocab", ErrFeatures, tableName, tensor.Shape)
	}
	if _, ok := unpackers[tensor.Type]; !ok {
		return fmt.Errorf("%w: %s is in %s, read are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K; use the kind %q", ErrFeatures, tableName, tensor.Type, Ngrams)
	}
	t.typ, t.nEmbd, t.nVocab = tensor.Type, int(tensor.Shape[0]), int(tensor.Shape[1])
	t.rows = t.file.Reader(tensor)
	t.bytes = make([]byte, tensor.Size/tensor.Shape[1])
	t.row = make([]float32, t.nEmbd)
	t.slot = make(map[llama.Token]int32)
	t.width = min(width, t.nEmbd)
	if t.width < t.nEmbd {
		random := rand.New(rand.NewPCG(seed, uint64(t.nEmbd)))
		t.target, t.sign = make([]uint32, t.nEmbd), make([]float32, t.nEmbd)
		for i := range t.target {
			t.target[i] = random.Uint32N(uint32(t.width))
			t.sign[i] = float32(1 - 2*random.IntN(2))
		}
	}
	return nil
}

func (t *table) close() error { return t.file.Close() }

// project writes the projection of x, (nEmbd,), to dst, (width,).
func (t *table) project(dst, x []float32) {
	if t.target == nil {
		copy(dst, x)
		return
	}
	clear(dst)
	for i, v := range x {
		dst[t.target[i]] += t.sign[i] * v
	}
}

// lookup gives a token's projected row, (width,), valid until the next call.
func (t *table) lookup(token llama.Token) ([]float32, error) {
	if at, ok := t.slot[token]; ok {
		return t.cached[int(at)*t.width:][:t.width], nil
	}
	if token < 0 || int(token) >= t.nVocab {
		return nil, fmt.Errorf("%w: token %d, the embedding table has 0 to %d", ErrFeatures, token, t.nVocab-1)
	}
	if _, err := t.rows.ReadAt(t.bytes, int64(token)*int64(len(t.bytes))); err != nil {
		return nil, fmt.Errorf("read the token embeddings of %s: %w", t.file.Path, err)
	}
	unpackers[t.typ](t.row, t.bytes)
	if len(t.slot) == cachedRows { // start over: simpler than ageing, and rare
		clear(t.slot)
		t.cached = t.cached[:0]
	}
	at := len(t.slot)
	t.slot[token] = int32(at)
	t.cached = append(t.cached, t.row[:t.width]...)
	row := t.cached[at*t.width:]
	t.project(row, t.row)
	return row, nil
}

// pool writes the mean of the tokens' rows, (width,), to dst.
func (t *table) pool(dst []float32, tokens []llama.Token) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, token := range tokens {
		row, err := t.lookup(token)
		if err != nil {
			return err
		}
		axpy(1/float32(len(tokens)), row, dst)
	}
	return nil
}

// unpackers turn a stored row into numbers, by type. The layouts are ggml's.
var unpackers = map[gguf.Type]func(dst []float32, b []byte){
	gguf.F32:  unpackF32,
	gguf.F16:  unpackF16,
	gguf.BF16: unpackBF16,
	gguf.Q4_0: unpackQ4_0,
	gguf.Q4_1: unpackQ4_1,
	gguf.Q5_0: unpackQ5_0,
	gguf.Q5_1: unpackQ5_1,
	gguf.Q8_0: unpackQ8_0,
	gguf.Q4_K: unpackQ4_K,
	gguf.Q5_K: unpackQ5_K,
	gguf.Q6_K: unpackQ6_K,
}

func unpackF32(dst []float32, b []byte) {
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
}

func unpackF16(dst []float32, b []byte) {
	for i := range dst {
		dst[i] = half(b[2*i:])
	}
}

func unpackBF16(dst []float32, b []byte) {
	for i := range dst {
		dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(b[2*i:])) << 16)
	}
}

// Block sizes: elements, and bytes where they are not obvious.
const (
	smallBlock = 32  // Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
	superBlock = 256 // Q4_K, Q5_K, Q6_K
	q4Bytes    = 2 + smallBlock/2
	q41Bytes   = 2 + q4Bytes
	q5Bytes    = q4Bytes + smallBlock/8
	q51Bytes   = 2 + q5Bytes
	q8Bytes    = 2 + smallBlock
	q4KBytes   = 2 + 2 + 12 + superBlock/2
	q5KBytes   = q4KBytes + superBlock/8
	q6KBytes   = superBlock/2 + superBlock/4 + superBlock/16 + 2
)

// unpackQ4_0: scale, 32 × 4 bits less 8; the low halves come first.
func unpackQ4_0(dst []float32, b []byte) {
	for ; len(dst) > 0; dst, b = dst[smallBlock:], b[q4Bytes:] {
		scale, q, y := half(b), b[2:q4Bytes], dst[:smallBlock]
		for i, v := range q {
			y[i] = scale * float32(int(v&15)-8)
			y[i+smallBlock/2] = scale * float32(int(v>>4)-8)
		}
	}
}

// unpackQ4_1: scale, minimum, 32 × 4 bits; the low halves come first.
func unpackQ4_1(dst []float32, b []byte) {
	for ; len(dst) > 0; dst, b = dst[smallBlock:], b[q41Bytes:] {
		unpackFive(dst[:smallBlock], half(b), half(b[2:]), 0, b[4:q41Bytes])
	}
}

// unpackQ5_0: scale, 32 × 1 high bit, 32 × 4 low bits as in Q4_0; less 16.
func unpackQ5_0(dst []float32, b []byte) {
	for ; len(dst) > 0; dst, b = dst[smallBlock:], b[q5Bytes:] {
		scale := half(b)
		unpackFive(dst[:smallBlock], scale, -16*scale, binary.LittleEndian.Uint32(b[2:]), b[6:q5Bytes])
	}
}

// unpackQ5_1: scale, minimum, 32 × 1 high bit, 32 × 4 low bits as in Q4_0.
func unpackQ5_1(dst []float32, b []byte) {
	for ; len(dst) > 0; dst, b = dst[smallBlock:], b[q51Bytes:] {
		unpackFive(dst[:smallBlock], half(b), half(b[2:]), binary.LittleEndian.Uint32(b[4:]), b[8:q51Bytes])
	}
}

// unpackFive: 32 elements of 4 low bits in 16 bytes, with one high bit each.
func unpackFive(y []float32, scale, least float32, high uint32, low []byte) {
	for i, v := range low {
		y[i] = scale*float32(uint32(v&15)|high>>i&1<<4) + least
		y[i+smallBlock/2] = scale*float32(uint32(v>>4)|high>>(i+smallBlock/2)&1<<4) + least
	}
}

// unpackQ8_0: scale, 32 × 8 bits.
func unpackQ8_0(dst []float32, b []byte) {
	for ; len(dst) > 0; dst, b = dst[smallBlock:], b[q8Bytes:] {
		scale := half(b)
		for i, v := range b[2:q8Bytes] {
			dst[i] = scale * float32(int8(v))
		}
	}
}

// unpackQ4_K: scale, minimum, 8 sub-blocks' scales and minima in 6 bits each,
// 256 × 4 bits; 64 elements share 32 bytes, the low halves come first.
func unpackQ4_K(dst []float32, b []byte) {
	var none [superBlock / 8]byte
	for ; len(dst) > 0; dst, b = dst[superBlock:], b[q4KBytes:] {
		unpackSub(dst[:superBlock], b[:16], none[:], b[16:q4KBytes])
	}
}

// unpackQ5_K: as Q4_K, with 256 × 1 high bit in front of the low ones: byte i has
// those of the elements i, 32 + i, and so on, the lowest bit first.
func unpackQ5_K(dst []float32, b []byte) {
	for ; len(dst) > 0; dst, b = dst[superBlock:], b[q5KBytes:] {
		unpackSub(dst[:superBlock], b[:16], b[16:48], b[48:q5KBytes])
	}
}

func unpackSub(dst []float32, head, high, q []byte) {
	scale, least, packed := half(head), half(head[2:]), head[4:16]
	for sub := range 8 {
		var s, m byte
		if sub < 4 {
			s, m = packed[sub]&63, packed[sub+4]&63
		} else {
			s = packed[sub+4]&15 | packed[sub-4]>>6<<4
			m = packed[sub+4]>>4 | packed[sub]>>6<<4
		}
		d, low := scale*float32(s), least*float32(m)
		shift := 4 * (sub % 2)
		y := dst[32*sub:][:32]
		for i, v := range q[sub/2*32:][:32] {
			y[i] = d*float32(v>>shift&15|high[i]>>sub&1<<4) - low
		}
	}
}

// unpackQ6_K: 256 × 4 low bits, 256 × 2 high bits, 16 scales, scale. Each half
// of the block has four runs of 32 elements that share 32 bytes of high bits.
func unpackQ6_K(dst []float32, b []byte) {
	for ; len(dst) > 0; dst, b = dst[superBlock:], b[q6KBytes:] {
		scale := half(b[q6KBytes-2:])
		for h := range 2 {
			low, high := b[64*h:][:64], b[128+32*h:][:32]
			subs, y := b[192+8*h:][:8], dst[128*h:][:128]
			for run := range 4 {
				for i := range 32 {
					q := low[run%2*32+i]>>(run/2*4)&15 | high[i]>>(2*run)&3<<4
					y[32*run+i] = scale * float32(int8(subs[2*run+i/16])) * float32(int(q)-32)
				}
			}
		}
	}
}

// half reads a float16: sign, 5 bits of exponent, 10 of fraction.
func half(b []byte) float32 {
	h := uint32(binary.LittleEndian.Uint16(b))
	sign, exponent, fraction := h>>15<<31, h>>10&31, h&1023
	switch exponent {
	case 0: // zero and subnormal: fraction × 2^-24
		v := float32(fraction) * (1.0 / (1 << 24))
		return math.Float32frombits(math.Float32bits(v) | sign)
	case 31: // infinite or no number
		return math.Float32frombits(sign | 0xff<<23 | fraction<<13)
	}
	const rebias = 127 - 15
	return math.Float32frombits(sign | (exponent+rebias)<<23 | fraction<<13)
}
