package chat

import "errors"

var (
	// ErrEmpty is returned when there is nothing to answer.
	ErrEmpty = errors.New("the prompt is empty: write something to answer")

	// ErrTooLong is returned when a prompt alone does not fit into the context.
	ErrTooLong = errors.New("the prompt is longer than the context")

	// ErrEscalate is returned for a confidence cascade that would mix what masks
	// left out of the KV cache.
	ErrEscalate = errors.New("cannot escalate to the whole model")

	// ErrLossless is returned where drafts cannot be made or verified.
	ErrLossless = errors.New("cannot answer losslessly")

	// ErrRelease is returned when the weights of skipped layers are to be given
	// back and cannot be, or would be needed again at once.
	ErrRelease = errors.New("cannot release skipped weights")
)
