// Package template writes conversations in a model's own format, by the chat
// template that its file carries.
//
// # Basics
//
// [Parse] reads a template, [Template.Render] fills it in. The language is the
// part of Jinja that chat templates use, as Python's jinja2 3.1 understands it in
// the environment in which the models' own tokenizers render: trim_blocks,
// lstrip_blocks, an immutable sandbox, break and continue, {% generation %}, the
// functions raise_exception and strftime_now, and a tojson that escapes no HTML.
//
// A rendered conversation is a [Text]. It knows of each byte whether the template
// wrote it or whether it comes from a value that was marked with [Typed], through
// every slice, replacement and concatenation in between. So a control token that
// somebody typed can be told from one that the template wrote.
//
// # Caveats
//
// Templates come from files that strangers made: nesting, steps, and the size of
// the output are bounded, and no file is ever included. Integers have 64 bits.
package template
