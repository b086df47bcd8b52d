package llama

import "math"

// TopProbability is the likeliest token of logits (nVocab,) and its softmax
// probability, 0 to 1. It does not allocate. Without logits it is [NoToken] and 0.
func TopProbability(logits []float32) (token Token, p float64) {
	if len(logits) == 0 {
		return NoToken, 0
	}
	best := 0
	for i, v := range logits {
		if v > logits[best] {
			best = i
		}
	}
	top, sum := float64(logits[best]), 0.0
	for _, v := range logits {
		sum += math.Exp(float64(v) - top)
	}
	return Token(best), 1 / sum
}
