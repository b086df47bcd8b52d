package skip

import "fmt"

// Prefill says what a prompt is decoded under before an answer under a mask.
type Prefill int

// The ways to prefill.
const (
	// MaskedPrefill decodes prompt and answer under the mask, as PuDDing does: the
	// fastest first token, but another mask needs the prompt decoded again.
	MaskedPrefill Prefill = iota

	// FullPrefill decodes the prompt by the whole model and only its last token,
	// from which the answer's first comes, under the mask: better answers, and the
	// prompt's keys and values serve every later mask.
	FullPrefill
)

var prefillNames = [...]string{"masked", "full"}

// ParsePrefill reads "masked" or "full".
func ParsePrefill(text string) (Prefill, error) {
	for p, name := range prefillNames {
		if text == name {
			return Prefill(p), nil
		}
	}
	return 0, fmt.Errorf("prefill is %q, want masked or full", text)
}

// String is "masked" or "full".
func (p Prefill) String() string { return prefillNames[p] }

// Mask is what position pos of a prompt of n tokens is decoded under when its
// answer is generated under mask.
func (p Prefill) Mask(mask Mask, pos, n int) Mask {
	if p == FullPrefill && pos < n-1 {
		return Mask{}
	}
	return mask
}
