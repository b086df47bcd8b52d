package gguf

import (
	"fmt"
	"math/bits"
	"strings"
)

// Type is the element type of a tensor, numbered as in llama.cpp.
type Type uint32

// The tensor types of llama.cpp v0.5.0. The gaps are types that were removed.
const (
	F32    Type = 0
	F16    Type = 1
	Q4_0   Type = 2
	Q4_1   Type = 3
	Q5_0   Type = 6
	Q5_1   Type = 7
	Q8_0   Type = 8
	Q8_1   Type = 9
	Q2_K   Type = 10
	Q3_K   Type = 11
	Q4_K   Type = 12
	Q5_K   Type = 13
	Q6_K   Type = 14
	Q8_K   Type = 15
	IQ2XXS Type = 16
	IQ2XS  Type = 17
	IQ3XXS Type = 18
	IQ1S   Type = 19
	IQ4NL  Type = 20
	IQ3S   Type = 21
	IQ2S   Type = 22
	IQ4XS  Type = 23
	I8     Type = 24
	I16    Type = 25
	I32    Type = 26
	I64    Type = 27
	F64    Type = 28
	IQ1M   Type = 29
	BF16   Type = 30
	TQ1_0  Type = 34
	TQ2_0  Type = 35
	MXFP4  Type = 39
	NVFP4  Type = 40
	Q1_0   Type = 41
	Q2_0   Type = 42
)

// typeInfo says how a type is stored: rows are cut into blocks of elems
// elements, each bytes long.
type typeInfo struct {
	name         string
	elems, bytes uint64
}

// typeTable has every supported type; what is not in it is unknown.
var typeTable = map[Type]typeInfo{
	F32:    {"F32", 1, 4},
	F16:    {"F16", 1, 2},
	Q4_0:   {"Q4_0", 32, 18},
	Q4_1:   {"Q4_1", 32, 20},
	Q5_0:   {"Q5_0", 32, 22},
	Q5_1:   {"Q5_1", 32, 24},
	Q8_0:   {"Q8_0", 32, 34},
	Q8_1:   {"Q8_1", 32, 36},
	Q2_K:   {"Q2_K", 256, 84},
	Q3_K:   {"Q3_K", 256, 110},
	Q4_K:   {"Q4_K", 256, 144},
	Q5_K:   {"Q5_K", 256, 176},
	Q6_K:   {"Q6_K", 256, 210},
	Q8_K:   {"Q8_K", 256, 292},
	IQ2XXS: {"IQ2_XXS", 256, 66},
	IQ2XS:  {"IQ2_XS", 256, 74},
	IQ3XXS: {"IQ3_XXS", 256, 98},
	IQ1S:   {"IQ1_S", 256, 50},
	IQ4NL:  {"IQ4_NL", 32, 18},
	IQ3S:   {"IQ3_S", 256, 110},
	IQ2S:   {"IQ2_S", 256, 82},
	IQ4XS:  {"IQ4_XS", 256, 136},
	I8:     {"I8", 1, 1},
	I16:    {"I16", 1, 2},
	I32:    {"I32", 1, 4},
	I64:    {"I64", 1, 8},
	F64:    {"F64", 1, 8},
	IQ1M:   {"IQ1_M", 256, 56},
	BF16:   {"BF16", 1, 2},
	TQ1_0:  {"TQ1_0", 256, 54},
	TQ2_0:  {"TQ2_0", 256, 66},
	MXFP4:  {"MXFP4", 32, 17},
	NVFP4:  {"NVFP4", 64, 36},
	Q1_0:   {"Q1_0", 128, 18},
	Q2_0:   {"Q2_0", 64, 18},
}

// String gives llama.cpp's name in upper case ("Q4_K"), or "type 99" for a
// type that is not known.
func (t Type) String() string {
	if info, ok := typeTable[t]; ok {
		return info.name
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// ParseType finds a type by its name, in upper or lower case.
func ParseType(name string) (Type, bool) {
	for t, info := range typeTable {
		if strings.EqualFold(info.name, name) {
			return t, true
		}
	}
	return 0, false
}

// Block gives the number of elements in one block and its size in bytes; both
// are 0 for a type that is not known. Unquantised types have blocks of one
// element.
func (t Type) Block() (elems, bytes uint64) {
	info := typeTable[t]
	return info.elems, info.bytes
}

// Size gives the bytes that a tensor of this shape takes. It fails, with an
// error that wraps none of the package's, for an unknown type, more than
// four dimensions, an empty dimension, rows that do not fill whole blocks,
// and sizes over 2^63.
func (t Type) Size(shape []uint64) (uint64, error) {
	elems, bytes := t.Block()
	if elems == 0 {
		return 0, fmt.Errorf("unknown tensor %s", t)
	}
	if len(shape) > maxDims {
		return 0, fmt.Errorf("%d dimensions, at most %d are possible", len(shape), maxDims)
	}
	row := uint64(1)
	if len(shape) > 0 {
		row = shape[0]
	}
	if row%elems != 0 {
		return 0, fmt.Errorf("rows of %d elements, %s needs a multiple of %d", row, t, elems)
	}
	size := row / elems
	factors := append([]uint64{bytes}, shape[min(1, len(shape)):]...)
	for _, n := range factors {
		hi, lo := bits.Mul64(size, n)
		if hi != 0 || lo > maxTensorBytes {
			return 0, fmt.Errorf("shape %v is too large", shape)
		}
		size = lo
	}
	if size == 0 {
		return 0, fmt.Errorf("shape %v has an empty dimension", shape)
	}
	return size, nil
}
