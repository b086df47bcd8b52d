package llama

/*
#include "glue.h"
*/
import "C"

import "unsafe"

// TopProbability is the likeliest token of logits (nVocab,) and its softmax
// probability, 0 to 1, which is off by less than a millionth of it. It does not allocate.
// Without logits it is [NoToken] and 0.
func TopProbability(logits []float32) (token Token, p float64) {
	if len(logits) == 0 {
		return NoToken, 0
	}
	top := C.gallop_top_probability((*C.float)(unsafe.Pointer(&logits[0])), C.int32_t(len(logits)))
	return Token(top.token), float64(top.p)
}
