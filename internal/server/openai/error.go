package openai

import (
	"net/http"

	"github.com/gallop-llm/gallop/internal/server/wire"
)

type errorBody struct {
	Error errorDetail `json:"error"`
}

type errorDetail struct {
	Message      string  `json:"message"`
	Type         string  `json:"type"`
	Param        *string `json:"param"`
	Code         *string `json:"code"`
	PromptTokens int     `json:"n_prompt_tokens,omitempty"`
	Context      int     `json:"n_ctx,omitempty"`
}

// Error is the body that tells of an error.
func Error(e *wire.Error) (status int, body any) {
	text := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	return e.Status, errorBody{errorDetail{e.Message, errorType(e.Status), text(e.Param), text(e.Code), e.PromptTokens, e.Context}}
}

func errorType(status int) string {
	switch status {
	case http.StatusUnauthorized:
		return "authentication_error"
	case http.StatusForbidden:
		return "permission_error"
	case http.StatusTooManyRequests:
		return "rate_limit_error"
	case http.StatusServiceUnavailable:
		return "unavailable_error"
	}
	if status >= http.StatusInternalServerError {
		return "server_error"
	}
	return "invalid_request_error"
}
