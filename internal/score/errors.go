package score

import "errors"

var (
	// ErrEmpty is returned for a prompt, an answer or a text without the tokens
	// that there is to measure.
	ErrEmpty = errors.New("nothing to measure")

	// ErrCase is returned for a case that contradicts itself.
	ErrCase = errors.New("invalid case")

	// ErrOption is returned for an option outside its range.
	ErrOption = errors.New("invalid option")

	// ErrTooLong is returned when a prompt and its answer do not fit into the
	// context: raise [Options].NCtx or shorten them.
	ErrTooLong = errors.New("longer than the context")
)
