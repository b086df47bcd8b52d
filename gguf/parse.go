package gguf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
)

// Type numbers of metadata values.
const (
	kindUint8 uint32 = iota
	kindInt8
	kindUint16
	kindInt16
	kindUint32
	kindInt32
	kindFloat32
	kindBool
	kindString
	kindArray
	kindUint64
	kindInt64
	kindFloat64
)

// Smallest encodings, in bytes: n items cannot be in a file with less than n
// times as many bytes left.
const (
	minStringBytes = 8                               // length
	minArrayBytes  = 4 + 8                           // element kind, count
	minKVBytes     = minStringBytes + 4 + 1          // key, kind, one byte of value
	minTensorBytes = minStringBytes + 1 + 4 + 4 + 8  // name, dimensions, type, offset
	sniffBytes     = len("version https://git-lfs.") // enough for notGGUF
)

// parser reads the header front to back. The first error sticks: from then on
// every read gives zero, so callers check once per item.
type parser struct {
	r    *bufio.Reader
	buf  []byte // what bytes read last
	pos  uint64 // bytes read
	size uint64 // of the file
	err  error
}

// parse reads a header from the first bytes of a file of the given size.
func parse(data io.ReaderAt, size int64) (*File, error) {
	head := make([]byte, min(size, int64(sniffBytes)))
	if _, err := data.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("cannot read the file: %w", err)
	}
	if len(head) < len(magic) || string(head[:len(magic)]) != magic {
		return nil, notGGUF(string(head))
	}
	p := &parser{r: bufio.NewReaderSize(io.NewSectionReader(data, 0, size), 1<<16), size: uint64(size)}
	p.bytes(len(magic))
	f := &File{Size: size, data: data, Version: p.version()}
	nTensors, nKV := p.uint64(), p.uint64()
	p.metadata(f, nKV)
	p.alignment(f)
	p.tensors(f, nTensors)
	if p.err == nil {
		f.DataOffset = int64(padTo(p.pos, f.Alignment))
		p.checkData(f)
	}
	if p.err != nil {
		return nil, p.err
	}
	return f, nil
}

func (p *parser) fail(kind error, format string, args ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("%w: %s", kind, fmt.Sprintf(format, args...))
	}
}

// room reports whether n items of at least each bytes can follow, and fails
// the parse if not.
func (p *parser) room(n, each uint64, what string) bool {
	switch {
	case p.err != nil:
		return false
	case n > (p.size-p.pos)/each:
		p.fail(ErrTruncated, "it ends within its %s, at byte %d; fetch it again", what, p.size)
	case n > (maxHeaderBytes-min(p.pos, maxHeaderBytes))/each:
		p.fail(ErrCorrupt, "its %s make the header larger than %d MiB", what, maxHeaderBytes>>20)
	}
	return p.err == nil
}

// bytes reads n bytes, which the caller has bounded. They are valid until the
// next read: a vocabulary has hundreds of thousands of texts.
func (p *parser) bytes(n int) []byte {
	if !p.room(uint64(n), 1, "header") {
		return make([]byte, min(n, 8)) // zeros for the fixed-size readers
	}
	p.buf = slices.Grow(p.buf[:0], n)[:n]
	if _, err := io.ReadFull(p.r, p.buf); err != nil {
		p.err = fmt.Errorf("cannot read the file: %w", err)
	}
	p.pos += uint64(n)
	return p.buf
}

func (p *parser) uint32() uint32 { return binary.LittleEndian.Uint32(p.bytes(4)) }
func (p *parser) uint64() uint64 { return binary.LittleEndian.Uint64(p.bytes(8)) }

func (p *parser) string() string {
	n := p.uint64()
	if !p.room(n, 1, "texts") {
		return ""
	}
	return string(p.bytes(int(n)))
}

// name reads a text of 1 to limit bytes.
func (p *parser) name(limit int, what string) string {
	s := p.string()
	if p.err == nil && (s == "" || len(s) > limit) {
		p.fail(ErrCorrupt, "%s of %d bytes, possible are 1 to %d", what, len(s), limit)
	}
	return s
}

func (p *parser) version() uint32 {
	v := p.uint32()
	switch {
	case p.err != nil:
	case v&0xffff == 0 && v != 0:
		p.fail(ErrVersion, "the file is big-endian, convert it to little-endian")
	case v < oldestVersion:
		p.fail(ErrVersion, "%d is too old, fetch or convert a newer file of the model", v)
	case v > newestVersion:
		p.fail(ErrVersion, "%d, known are %d and %d; the file is damaged or newer than this program", v, oldestVersion, newestVersion)
	}
	return v
}

func (p *parser) metadata(f *File, n uint64) {
	if !p.room(n, minKVBytes, "metadata") {
		return
	}
	seen := make(map[string]bool)
	for range n {
		key := p.name(maxKeyBytes, "metadata key")
		value := p.value(key, p.uint32())
		if p.err == nil && seen[key] {
			p.fail(ErrCorrupt, "metadata key %.64q is there twice", key)
		}
		if p.err != nil {
			return
		}
		seen[key] = true
		f.Metadata = append(f.Metadata, KV{key, value})
	}
}

func (p *parser) value(key string, kind uint32) any {
	switch kind {
	case kindString:
		return p.string()
	case kindArray:
		return p.array(key, 1)
	}
	return p.scalar(key, kind)
}

func (p *parser) scalar(key string, kind uint32) any {
	switch kind {
	case kindUint8:
		return number[uint8](p)
	case kindInt8:
		return number[int8](p)
	case kindUint16:
		return number[uint16](p)
	case kindInt16:
		return number[int16](p)
	case kindUint32:
		return number[uint32](p)
	case kindInt32:
		return number[int32](p)
	case kindUint64:
		return number[uint64](p)
	case kindInt64:
		return number[int64](p)
	case kindFloat32:
		return number[float32](p)
	case kindFloat64:
		return number[float64](p)
	case kindBool:
		return p.bools(key, 1)[0]
	}
	p.fail(ErrCorrupt, "metadata key %.64q has the unknown value type %d", key, kind)
	return nil
}

// array reads element kind, count and elements; depth counts arrays in arrays.
func (p *parser) array(key string, depth int) any {
	kind, n := p.uint32(), p.uint64()
	switch kind {
	case kindUint8:
		return numbers[uint8](p, n)
	case kindInt8:
		return numbers[int8](p, n)
	case kindUint16:
		return numbers[uint16](p, n)
	case kindInt16:
		return numbers[int16](p, n)
	case kindUint32:
		return numbers[uint32](p, n)
	case kindInt32:
		return numbers[int32](p, n)
	case kindUint64:
		return numbers[uint64](p, n)
	case kindInt64:
		return numbers[int64](p, n)
	case kindFloat32:
		return numbers[float32](p, n)
	case kindFloat64:
		return numbers[float64](p, n)
	case kindBool:
		if !p.room(n, 1, "metadata") {
			return nil
		}
		return p.bools(key, int(n))
	case kindString:
		return p.strings(n)
	case kindArray:
		return p.arrays(key, n, depth)
	}
	p.fail(ErrCorrupt, "metadata key %.64q is an array of the unknown type %d", key, kind)
	return nil
}

func (p *parser) strings(n uint64) []string {
	if !p.room(n, minStringBytes, "metadata") {
		return nil
	}
	out := make([]string, n) // (n,)
	for i := range out {
		if out[i] = p.string(); p.err != nil {
			return nil
		}
	}
	return out
}

func (p *parser) arrays(key string, n uint64, depth int) []any {
	if depth == maxNesting {
		p.fail(ErrCorrupt, "metadata key %.64q nests more than %d arrays", key, maxNesting)
	}
	if !p.room(n, minArrayBytes, "metadata") {
		return nil
	}
	out := make([]any, n) // (n,)
	for i := range out {
		if out[i] = p.array(key, depth+1); p.err != nil {
			return nil
		}
	}
	return out
}

// bools reads n truth values. Other bytes than 0 and 1 could not be written
// back, so they are refused.
func (p *parser) bools(key string, n int) []bool {
	out := make([]bool, n) // (n,)
	for i, b := range p.bytes(n) {
		if b > 1 {
			p.fail(ErrCorrupt, "metadata key %.64q has a truth value of %d, possible are 0 and 1", key, b)
			return out
		}
		out[i] = b == 1
	}
	return out
}

// fixed are the metadata types of one size that every bit pattern fits.
type fixed interface {
	uint8 | int8 | uint16 | int16 | uint32 | int32 | uint64 | int64 | float32 | float64
}

func number[T fixed](p *parser) T {
	var v T
	if b := p.bytes(binary.Size(v)); p.err == nil {
		_, p.err = binary.Decode(b, binary.LittleEndian, &v)
	}
	return v
}

func numbers[T fixed](p *parser, n uint64) []T {
	var one T
	each := uint64(binary.Size(one))
	if !p.room(n, each, "metadata") {
		return nil
	}
	out := make([]T, n) // (n,)
	if b := p.bytes(int(n * each)); p.err == nil {
		_, p.err = binary.Decode(b, binary.LittleEndian, out)
	}
	return out
}

func (p *parser) alignment(f *File) {
	if p.err != nil {
		return
	}
	var err error
	if f.Alignment, err = f.Metadata.alignment(); err != nil {
		p.fail(ErrCorrupt, "%v", err)
	}
}

// alignment gives the alignment of tensor data in bytes. llama.cpp accepts it
// as a uint32 only.
func (m Metadata) alignment() (uint64, error) {
	value, ok := m.Lookup(KeyAlignment)
	if !ok {
		return defaultAlignment, nil
	}
	n, ok := value.(uint32)
	if !ok || n == 0 || n&(n-1) != 0 || n > maxAlignment {
		return 0, fmt.Errorf("%q is %s, it must be a uint32, a power of two and at most %d", KeyAlignment, describe(value), maxAlignment)
	}
	return uint64(n), nil
}

func (p *parser) tensors(f *File, n uint64) {
	if !p.room(n, minTensorBytes, "tensor list") {
		return
	}
	f.Tensors = make([]Tensor, 0, n)
	seen := make(map[string]bool)
	next := uint64(0) // where the next tensor must begin
	for range n {
		t := p.tensor()
		switch {
		case p.err != nil:
			return
		case seen[t.Name]:
			p.fail(ErrCorrupt, "tensor %.64q is there twice", t.Name)
			return
		case t.Offset != next:
			p.fail(ErrCorrupt, "tensor %.64q begins at byte %d of the data instead of %d", t.Name, t.Offset, next)
			return
		case t.Size > math.MaxInt64-f.Alignment-next:
			p.fail(ErrCorrupt, "tensor %.64q is too large: %d bytes", t.Name, t.Size)
			return
		}
		seen[t.Name] = true
		next = padTo(t.Offset+t.Size, f.Alignment)
		f.Tensors = append(f.Tensors, t)
	}
}

func (p *parser) tensor() Tensor {
	t := Tensor{Name: p.name(maxNameBytes, "tensor name")}
	dims := p.uint32()
	if p.err == nil && dims > maxDims {
		p.fail(ErrCorrupt, "tensor %.64q has %d dimensions, at most %d are possible", t.Name, dims, maxDims)
	}
	if p.err != nil {
		return t
	}
	t.Shape = make([]uint64, dims)
	for i := range t.Shape {
		t.Shape[i] = p.uint64()
	}
	t.Type = Type(p.uint32())
	t.Offset = p.uint64()
	if p.err == nil {
		var err error
		if t.Size, err = t.Type.Size(t.Shape); err != nil {
			p.fail(ErrCorrupt, "tensor %.64q: %v", t.Name, err)
		}
	}
	return t
}

// checkData makes sure that the file holds all tensor data. Tensors are in
// order, so the last one ends last.
func (p *parser) checkData(f *File) {
	if len(f.Tensors) == 0 {
		return
	}
	last := f.Tensors[len(f.Tensors)-1]
	if end := uint64(f.DataOffset) + last.Offset + last.Size; end > p.size {
		p.fail(ErrTruncated, "it has %d of %d bytes; the download is not complete, fetch it again", p.size, end)
	}
}

// padTo rounds n up to a multiple of align, a power of two.
func padTo(n, align uint64) uint64 {
	return (n + align - 1) &^ (align - 1)
}
