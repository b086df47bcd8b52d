package skip

import "fmt"

// Prefill says what a prompt is decoded under before an answer under a mask.
type Prefill int

// The ways to prefill.
const (
	// MaskedPrefill decodes prompt and answer under the mask, as PuDDing does: the
	// fastest first token, but another mask needs the prompt decoded again.
	MaskedPrefill Prefill = iota

	// FullPrefill decodes the prompt by the whole model. The answer's first token
	// comes from that pass, and the mask begins with the decode of that token:
	// better answers, a mask need not be chosen before the first token, and the
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

// Mask is what a prompt is decoded under when its answer is generated under mask.
func (p Prefill) Mask(mask Mask) Mask {
	if p == FullPrefill {
		return Mask{}
	}
	return mask
}
