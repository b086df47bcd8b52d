package preload

import "errors"

// Errors of this package. Each is wrapped in a sentence with the values at fault.
var (
	// ErrPlatform is returned on systems without LD_PRELOAD as Linux has it.
	ErrPlatform = errors.New("layers of other programs can be skipped on Linux only")

	// ErrNoLibrary is returned when libgallop-skip.so is nowhere, or where
	// LD_PRELOAD cannot name it.
	ErrNoLibrary = errors.New("no libgallop-skip.so")

	// ErrNoMask is returned for an empty mask.
	ErrNoMask = errors.New("the mask is empty: name the layers to skip, as in 4,6,a9")

	// ErrProgram is returned when the program cannot be found or started.
	ErrProgram = errors.New("cannot run the program")

	// ErrNothingSkipped is returned when the program has ended and no graph of
	// a model was edited in it.
	ErrNothingSkipped = errors.New("nothing was skipped")
)
