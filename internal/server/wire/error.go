package wire

import (
	"fmt"
	"net/http"
	"time"
)

// Error is what a client is told about a request that failed.
type Error struct {
	Status  int    // of HTTP
	Code    string // OpenAI's word for it: "context_length_exceeded"; "" = none
	Param   string // the field at fault; "" = none
	Message string

	PromptTokens, Context int // with "context_length_exceeded"

	RetryAfter time.Duration // when to try again; 0 = not said
}

// Error is the message.
func (e *Error) Error() string { return e.Message }

// BadRequest is a status of 400. param is the field at fault, "" = none.
func BadRequest(param, format string, args ...any) *Error {
	return &Error{Status: http.StatusBadRequest, Code: "invalid_value", Param: param, Message: fmt.Sprintf(format, args...)}
}

// Unsupported is a status of 400 for what the server cannot do, by name.
func Unsupported(param, format string, args ...any) *Error {
	return &Error{Status: http.StatusBadRequest, Code: "unsupported_value", Param: param,
		Message: param + ": not supported: " + fmt.Sprintf(format, args...)}
}

// TooLong is the error of a prompt that does not fit into the context, in the words by which
// clients know it.
func TooLong(promptTokens, context int) *Error {
	return &Error{Status: http.StatusBadRequest, Code: "context_length_exceeded", PromptTokens: promptTokens, Context: context,
		Message: fmt.Sprintf("the request (%d tokens) exceeds the available context size (%d tokens): shorten it, or start the server with a larger -c", promptTokens, context)}
}
