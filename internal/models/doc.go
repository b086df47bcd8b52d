// Package models finds the models that are on this machine, by name, and fetches
// others from a hub.
//
// # Basics
//
// [List] looks through the stores of Gallop, Hugging Face (llama.cpp's too), Ollama,
// LM Studio and Kronk. [Path] turns what a user wrote into a file: a path, or the name
// of a model in one of them. [Hub.Fetch] brings a model from the hub into the Hugging
// Face store, where other programs find it too, with the profile that is beside it.
//
// # Caveats
//
// Nothing of a store is trusted: a name in it never leads out of it. A file has its
// final name only when all of it is there and its checksum was right.
package models
