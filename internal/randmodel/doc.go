// Package randmodel writes GGUF models with random weights: small ones of
// every supported architecture for tests, and the exact shapes of published
// models for speed measurements, for which the values do not matter.
//
// # Basics
//
// [Small] and [Shape] give a [Spec]; change its fields at will and pass it to
// [Write]. The same Spec always gives the same file. Each tensor's numbers hang
// on the seed and its own name alone, so two files whose specs differ only in
// [Spec.Scale] are equal in all other tensors.
//
// Matrices are drawn from N(0, 1/n_in), norms lie around 1, biases around 0:
// activations stay of order one through any number of layers, logits are finite
// and depend on every layer.
//
// # Caveats
//
// The vocabulary is a real byte-level one (it tokenises any text, one token a
// byte but for a few merged words) with the special tokens of a ChatML template;
// what remains up to [Spec.Vocab] is unused filler.
//
// Types follow llama-quantize without an importance matrix: see [Spec.Type].
// Weights are not drawn and then quantised: the blocks themselves are random,
// with scales that give the right spread.
package randmodel
