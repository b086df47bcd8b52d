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
// A session owns its context and belongs to one goroutine. A position of the KV
// cache serves again only where it was decoded under the mask that is wanted for
// it now. So with a masked prefill a new mask decodes the conversation again;
// with a full prefill the prompt stays and earlier answers are decoded once more,
// by the whole model.
package chat
