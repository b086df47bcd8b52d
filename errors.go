package gallop

import (
	"errors"

	"github.com/gallop-llm/gallop/internal/draft"
	"github.com/gallop-llm/gallop/internal/engine"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// Errors of [Open].
var (
	// ErrNoLibrary is returned when llama.cpp's libraries are not installed.
	ErrNoLibrary = llama.ErrNoLibrary

	// ErrModel is returned for a file that llama.cpp cannot load.
	ErrModel = llama.ErrModel

	// ErrProfile is returned for a profile that cannot be read, is damaged, or is another
	// model's.
	ErrProfile = router.ErrProfile
)

// Errors of a request.
var (
	// ErrRequest is returned for a request that can never be answered: nothing to
	// answer, or an option out of range. It wraps the detail.
	ErrRequest = errors.New("invalid request")

	// ErrTooLong is returned when a prompt does not fit into the context.
	ErrTooLong = engine.ErrTooLong

	// ErrSkip is returned for a text that is no mask, and for a mask that names layers
	// which the model does not have.
	ErrSkip = skip.ErrMask

	// ErrUnskippable is returned for a mask that cannot be applied to this model exactly.
	ErrUnskippable = llama.ErrMask

	// ErrNoProfile is returned when layers are to be chosen by prompt and the model has no
	// profile to choose by.
	ErrNoProfile = errors.New("the model has no profile to choose layers by")

	// ErrEscalate is returned for escalation whose mask leaves keys and values out
	// that the whole model would miss.
	ErrEscalate = errors.New("cannot escalate to the whole model")

	// ErrLossless is returned where drafts cannot be made or verified.
	ErrLossless = draft.ErrLossless

	// ErrBusy is returned when as many requests wait as [Options].Queue allows.
	ErrBusy = engine.ErrBusy

	// ErrClosed is returned by an engine that was closed.
	ErrClosed = llama.ErrClosed
)
