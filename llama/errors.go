package llama

import "errors"

// Errors of loading the libraries and models.
var (
	// ErrRPC is returned for [ModelOptions].RPC where there is no module for it, and for an
	// address at which no server of its protocol answers.
	ErrRPC = errors.New("RPC servers cannot be used")

	// ErrNoLibrary is returned when no llama.cpp library is found.
	ErrNoLibrary = errors.New("llama.cpp's libraries are not installed")

	// ErrForeignLibrary is returned when a library is found that this version
	// cannot use: a function is missing or a struct has another layout.
	ErrForeignLibrary = errors.New("this is not the llama.cpp that gallop works with")

	// ErrNotLoaded is returned by everything that needs the library before
	// [Load] has succeeded.
	ErrNotLoaded = errors.New("llama.cpp is not loaded: call llama.Load first")

	// ErrModel is returned when llama.cpp refuses a model file.
	ErrModel = errors.New("llama.cpp cannot load the model")

	// ErrNoText is returned, where [ModelOptions].ForText asks for it, for a file that
	// no text comes from.
	ErrNoText = errors.New("the model writes no text")

	// ErrOption is returned for an option or argument outside its range.
	ErrOption = errors.New("invalid option")

	// ErrMemory is returned for a context that takes more memory than there is.
	ErrMemory = errors.New("not enough memory")

	// ErrClosed is returned when a closed model, context, batch or sampler is used.
	ErrClosed = errors.New("used after Close")
)

// Errors of [Context.Decode].
var (
	// ErrMask is returned when a mask cannot be applied exactly; nothing was computed.
	ErrMask = errors.New("this mask cannot be applied")

	// ErrFull is returned when the KV cache has no room for the batch; remove
	// or shift positions, or use a larger context.
	ErrFull = errors.New("the context is full")

	// ErrBatch is returned for a batch that is empty, larger than the
	// context's batch size, or has tokens or positions that do not fit.
	ErrBatch = errors.New("invalid batch")

	// ErrAborted is returned when the decode was stopped from outside. What
	// the batch had stored so far stays in the KV cache: remove it.
	ErrAborted = errors.New("the decode was aborted")

	// ErrDecode is returned when llama.cpp fails for a reason of its own.
	ErrDecode = errors.New("llama.cpp failed to decode")

	// ErrNoOutput is returned when logits or embeddings are asked of a token
	// that was not marked as output in the last batch.
	ErrNoOutput = errors.New("no output at this place of the last batch")
)

// Errors of text, samplers and state.
var (
	// ErrTokenize is returned for a text that the vocabulary cannot express.
	ErrTokenize = errors.New("cannot tokenize")

	// ErrGrammar is returned for a GBNF grammar that does not parse.
	ErrGrammar = errors.New("invalid grammar")

	// ErrNoToken is returned when a sampler chain leaves no token to choose,
	// as a grammar does that cannot go on.
	ErrNoToken = errors.New("the samplers leave no token to choose")

	// ErrNaN is returned when a model's logits are NaN (not a number).
	ErrNaN = errors.New("the model computes NaN in place of numbers: its file or an adapter is damaged")

	// ErrTemplate is returned when a chat template does not work, or cannot
	// express a conversation.
	ErrTemplate = errors.New("cannot apply the chat template")

	// ErrState is returned for what the KV cache cannot drop, save or take back.
	ErrState = errors.New("the cache cannot do that")
)
