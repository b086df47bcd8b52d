// Package preload runs a foreign program with libgallop-skip.so loaded into it,
// so that whatever llama.cpp it brings skips layers.
//
// # Basics
//
// FindLibrary finds the library, Run the program with it. The library takes its
// mask from the environment and adds a line to a report file when it edits a
// model's graph or refuses to; Run reads it after the program's end, so that a
// program in which nothing was skipped does not pass for one in which it was.
//
// # Caveats
//
// Linux only. The dynamic linker loads the library: it has no way into programs
// that are linked statically, or whose llama.cpp is.
package preload
