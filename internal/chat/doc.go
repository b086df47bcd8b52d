// Package chat holds a conversation with a model: a prompt's way from text to
// text.
//
// # Basics
//
// A [Session] is one conversation on one context. [Session.Ask] takes the
// user's words through the model's template, decodes what the KV cache does not
// hold yet, and generates the answer piece by piece.
//
// # Caveats
//
// A session owns its context and belongs to one goroutine. What the KV cache
// holds is valid for the mask that it was decoded under: a new mask decodes the
// conversation again.
package chat
