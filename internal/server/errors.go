package server

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/server/wire"
	"github.com/gallop-llm/gallop/llama"
)

// retryAfter is how long clients are told to wait for a server that has too much to do.
const retryAfter = time.Second

// explain turns an error into what the client is told. engine and r are what gave it; nil
// where that was something else.
func explain(err error, engine Engine, r *gallop.Request) *wire.Error {
	var own *wire.Error
	is := func(targets ...error) bool {
		for _, t := range targets {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}
	switch {
	case errors.As(err, &own):
		return own
	case is(gallop.ErrTooLong):
		if engine != nil && r != nil {
			if n, counted := engine.Count(*r); counted == nil {
				return wire.TooLong(n, engine.Info().Context)
			}
		}
		return &wire.Error{Status: http.StatusBadRequest, Code: "context_length_exceeded", Message: err.Error()}
	case is(gallop.ErrUnskippable):
		return &wire.Error{Status: http.StatusUnprocessableEntity, Code: "unskippable", Param: "gallop", Message: err.Error()}
	case is(gallop.ErrSkip, gallop.ErrNoProfile, gallop.ErrEscalate, gallop.ErrLossless):
		return wire.BadRequest("gallop", "%v", err)
	case is(gallop.ErrRequest, llama.ErrOption, llama.ErrGrammar, llama.ErrTemplate):
		return wire.BadRequest("", "%v", err)
	case is(gallop.ErrBusy):
		return &wire.Error{Status: http.StatusTooManyRequests, Code: "rate_limit_exceeded", RetryAfter: retryAfter, Message: err.Error()}
	case is(gallop.ErrClosed):
		return closing()
	case is(context.DeadlineExceeded):
		return &wire.Error{Status: http.StatusGatewayTimeout, Code: "timeout", Message: "the answer took longer than this server allows"}
	}
	return &wire.Error{Status: http.StatusInternalServerError, Code: "server_error",
		Message: "the request failed inside of the server; its log says why, under this answer's X-Request-Id"}
}
