package gguf

import "errors"

// Errors of [Open]. Each is wrapped in a sentence with the path, the values at
// fault and what to do about them.
var (
	// ErrNotGGUF is returned when the file is something else: a directory, an
	// empty file, a text, a model in another format.
	ErrNotGGUF = errors.New("not a GGUF file")

	// ErrVersion is returned for a GGUF file of version 1, of a version newer
	// than 3, or in big-endian byte order.
	ErrVersion = errors.New("unsupported GGUF version")

	// ErrTruncated is returned when the file ends before the data that its own
	// header announces: the usual sign of an unfinished download.
	ErrTruncated = errors.New("the file is cut short")

	// ErrCorrupt is returned when the header contradicts itself or the format.
	ErrCorrupt = errors.New("the file is damaged")

	// ErrPart is returned for a part of a split model that is not the first, or
	// whose name does not lead to the others.
	ErrPart = errors.New("the file is a part of a split model")
)

// Errors of the getters of [Metadata].
var (
	// ErrNoKey is returned when the metadata has no such key.
	ErrNoKey = errors.New("no such metadata key")

	// ErrKeyType is returned when the key is there but its value has another
	// type, or does not fit into the type asked for.
	ErrKeyType = errors.New("metadata value of another type")
)

// Errors of [Write].
var (
	// ErrInvalid is returned when the metadata or a tensor's name, shape or
	// type cannot be written as GGUF. No file has been touched.
	ErrInvalid = errors.New("not writable as GGUF")

	// ErrTensorSize is returned when a tensor's data function wrote more or
	// fewer bytes than its shape and type need.
	ErrTensorSize = errors.New("wrong number of tensor bytes")
)
