package llama

import "github.com/gallop-llm/gallop/gguf"

// BuiltinTemplate has llama.cpp write a conversation in a format of its own.
var BuiltinTemplate = builtinTemplate

// Escapes is how often a call into llama.cpp was left in its middle.
var Escapes = escapes

// CheckGrammar is what finds in a grammar what llama.cpp would not get done with.
var CheckGrammar = checkGrammar

// Bounds of CheckGrammar.
const (
	MaxGrammarWays  = maxGrammarWays
	MaxGrammarSkips = maxGrammarSkips
	MaxGrammarBytes = maxGrammarBytes
)

// WithoutChecks lets llama.cpp see every file, until the function that it returns.
func WithoutChecks() (restore func()) {
	before, vocabulary := checkFile, checkBytes
	checkFile = func(*gguf.File, bool) error { return nil }
	checkBytes = func(gguf.Metadata) *byteless { return nil }
	return func() { checkFile, checkBytes = before, vocabulary }
}

// CheckMemory tells whether a context would be refused on a machine with so many bytes of memory.
func CheckMemory(m *Model, o ContextOptions, free, all uint64) error {
	return m.checkMemory(&o, room{free, all})
}

// Greet finds out whether an RPC server answers at an address.
var Greet = greet
