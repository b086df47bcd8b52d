package llama

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
