// Package gguf reads and writes GGUF files, the model format of llama.cpp.
//
// # Basics
//
// [Open] checks a file's header and gives a [File]: its [Metadata] (key/value
// pairs in file order), its [Tensor] list and readers for the tensor data.
// [Write] streams metadata and tensors into a new file, which appears under
// its name only when it is complete.
//
// A metadata value is a plain Go value whose type is the type in the file:
// uint8, int8, uint16, int16, uint32, int32, uint64, int64, float32, float64,
// bool or string; an array is a slice of one of these, an array of arrays is a
// []any of slices. Nothing is widened, so what was read is written back
// unchanged. The getters of [Metadata] ([Metadata.Uint], [Metadata.Float], …)
// accept every width, because converters do not agree on them.
//
// # Caveats
//
// Versions 2 and 3, little-endian, are read; version 3 is written. Version 1
// and big-endian files are refused. A split model is opened by its first part, and
// is one [File].
//
// The header is held in memory, tensor data never is. Readers from
// [File.Reader] and [File.Copy] end with [File.Close]. A File may be used by
// several goroutines as long as none of them closes it or changes its fields.
//
// Open trusts no number in the file: a count, length or offset is checked
// against the file's size before it is used. Beyond the format it asks what
// llama.cpp asks of a file: tensor names under 64 bytes, at most four
// dimensions, tensors stored in order and without gaps. It does not look at
// the tensor data itself.
package gguf
