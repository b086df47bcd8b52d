// Package archmodel makes tiny models of random weights of every architecture that
// llama.cpp knows, and checks masks on them.
//
// A model comes from metadata alone: [Models] is a table of what the architectures
// want, and libllama tells which tensors a model of such metadata has. All models are
// F32 and take a few megabytes. The numbers of a tensor depend on its name alone.
//
// [Check] decodes a model under many masks and compares each, bit for bit, with the
// same file in which the output matrices of what is skipped are zero; each ordered
// pair of masks in one context with fresh contexts; and sequences under different
// masks in one decode with each alone.
package archmodel
