package report

import "errors"

// Of tables and pictures.
var (
	// ErrShape is returned when the parts of a table or picture differ in length.
	ErrShape = errors.New("parts do not fit together")

	// ErrEmpty is returned for a picture file with nothing in it.
	ErrEmpty = errors.New("nothing to draw")
)
