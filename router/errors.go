package router

import "errors"

// Errors of features and training.
var (
	// ErrFeatures is returned when features cannot be made: an unknown kind, a
	// source that is missing, an embedding table in a type that is not read,
	// tokens outside the table.
	ErrFeatures = errors.New("cannot make features for routing")

	// ErrTraining is returned for training data that no router can learn from.
	ErrTraining = errors.New("cannot train the router")
)

// Errors of profiles and the choice.
var (
	// ErrProfile is returned when a file is no profile, is damaged, or comes
	// from a version that this program does not read.
	ErrProfile = errors.New("not a usable profile")

	// ErrForeign is returned when a profile was made for another model, or for
	// another version of this one.
	ErrForeign = errors.New("the profile belongs to another model")

	// ErrPolicy is returned for a depth, quality or confidence out of range.
	ErrPolicy = errors.New("invalid policy")

	// ErrPreset is returned for the name of a preset that does not exist.
	ErrPreset = errors.New("no such preset")
)
