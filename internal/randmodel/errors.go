package randmodel

import "errors"

// ErrUnknown is returned for an architecture or model name that the package
// does not have; the error lists those that it has.
var ErrUnknown = errors.New("unknown name")

// ErrSpec is returned for a [Spec] that describes no model: a dimension under
// 1, query heads that are no multiple of the key/value heads, a vocabulary
// smaller than the byte tokens, a weight type that cannot be made.
var ErrSpec = errors.New("impossible model")
