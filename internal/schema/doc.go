// Package schema turns a JSON schema into a grammar that lets a model write
// nothing but documents that satisfy the schema.
//
// # Basics
//
// [Grammar] converts one schema of draft 2020-12 to GBNF, the grammar language of
// llama.cpp. A [Builder] puts the grammars of several schemas together with rules
// of the caller's own, as tool calls need. What a grammar cannot express, such as
// multipleOf or uniqueItems, is an [*Error] that names the keyword and its place;
// no keyword is ever left out in silence. Annotations, such as description, and
// keywords that begin with "x-" have no effect.
//
// The grammar is exact in one direction: every finished document satisfies the
// schema. In the other it leaves out spellings, not values that matter: properties
// come in the order in which the schema lists them, before additional ones; an
// object whose properties are listed has others only where additionalProperties,
// patternProperties or unevaluatedProperties speaks of them, and a tuple likewise;
// white space is short; numbers that have bounds have no exponent; the formats leave
// out what is legal and never seen, such as an email address with a quoted local part.
//
// # Caveats
//
// A grammar cannot tell that a name of an additional property comes twice. JSON's
// readers take the last one; minProperties counts one additional property at most.
//
// Schemas come from strangers: their size and depth, the time and memory of the
// conversion, and what llama.cpp needs to parse and follow the grammar are bounded.
package schema

import (
	"errors"
	"fmt"
)

// ErrSchema is wrapped by every error of this package.
var ErrSchema = errors.New("unsupported JSON schema")

// Error says what cannot be expressed.
type Error struct {
	Pointer string // to the keyword or the schema, a JSON pointer; "" = the whole schema
	Keyword string // such as "multipleOf"; "" = the schema as such
	Problem string // what is wrong, and what would do
}

func (e *Error) Error() string {
	at := e.Pointer
	if at == "" {
		at = "the root"
	}
	if e.Keyword == "" {
		return fmt.Sprintf("%v: %s: %s", ErrSchema, at, e.Problem)
	}
	return fmt.Sprintf("%v: %s at %s: %s", ErrSchema, e.Keyword, at, e.Problem)
}

// Unwrap makes errors.Is find [ErrSchema].
func (e *Error) Unwrap() error { return ErrSchema }

// Bounds of what a schema may ask for.
const (
	maxSource       = 1 << 20   // bytes of a schema
	maxNesting      = 128       // of JSON values in it
	maxWork         = 5_000_000 // steps of a conversion, under a second
	maxAlternatives = 256       // of anyOf, oneOf and their products, for one value
	maxStates       = 4000      // of an automaton
	maxRules        = 30_000    // of a grammar
	maxElements     = 300_000   // of a grammar, repetitions written out, as llama.cpp does
	maxLeftPaths    = 2_000_000 // steps of llama.cpp's search for left recursion
	maxStacks       = 256       // places in the grammar where llama.cpp may be at once
	repeatBlock     = 500       // longest repetition in one piece; llama.cpp takes under 2000
	maxRepeat       = 250_000   // longest repetition: repeatBlock * repeatBlock
	maxDigits       = 400       // of a number in a schema, exponent written out
)

// Grammar converts a schema to GBNF, whose rule "root" is a document. The error is
// an [*Error].
func Grammar(source []byte) (string, error) {
	b := NewBuilder(Notation{})
	rule, err := b.Add(source)
	if err != nil {
		return "", err
	}
	b.Define("root", rule)
	return b.Grammar()
}

// fault is an error on its way up to the exported function.
type fault struct{ err *Error }

func fail(pointer, keyword, format string, args ...any) {
	panic(fault{&Error{pointer, keyword, fmt.Sprintf(format, args...)}})
}

func recoverFault(err *error) {
	switch r := recover().(type) {
	case nil:
	case fault:
		*err = r.err
	default:
		panic(r)
	}
}
