// Package tools speaks the languages in which chat models call functions.
//
// # Basics
//
// [Recognise] finds out from a model's chat template which [Format] it was trained
// on: how a call is wrapped, and where its reasoning stands. [Format.Grammar] gives
// the grammar that makes it call one of the functions that a request offers, by
// their JSON schemas, or lets it choose. A [Parser] takes the answer apart while it
// is written, into content, reasoning and calls; a [Message] collects the parts.
//
// # Caveats
//
// A parser must be given the text of control tokens too: many formats are made of
// them. The token that ended the answer is not part of the text.
//
// In a stream a call is told of when its name is known, and its arguments as they
// come. Arguments that turn out to be no JSON end in an event that takes the call back:
// the text belongs to the content. A call that a limit of tokens cuts off stays a call,
// whose arguments are the start of an object: see [Parser.Close].
package tools
