package anthropic

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/server/wire"
)

// overloaded is Anthropic's status for a server that has too much to do.
const overloaded = 529

// Error is the body that tells of an error, and its status in this API.
func Error(e *wire.Error) (status int, body any) {
	status, message := e.Status, e.Message
	kind := "invalid_request_error"
	switch status {
	case http.StatusUnauthorized:
		kind = "authentication_error"
	case http.StatusForbidden:
		kind = "permission_error"
	case http.StatusNotFound:
		kind = "not_found_error"
	case http.StatusRequestEntityTooLarge:
		kind = "request_too_large"
	case http.StatusTooManyRequests:
		status, kind = overloaded, "overloaded_error"
	case http.StatusServiceUnavailable:
		kind = "overloaded_error"
	default:
		if status >= http.StatusInternalServerError {
			kind = "api_error"
		}
	}
	if e.Context > 0 { // the words by which clients of this API know to shorten it
		message = fmt.Sprintf("prompt is too long: %d tokens > %d maximum: %s", e.PromptTokens, e.Context, e.Message)
	}
	return status, map[string]any{"type": "error", "error": map[string]string{"type": kind, "message": message}}
}

type reply struct {
	meta wire.Meta
	call *wire.Call

	open  string // kind of the block that is open; "" = none
	index int    // of it
}

type message struct {
	ID           string    `json:"id"`
	Type         string    `json:"type"`
	Role         string    `json:"role"`
	Model        string    `json:"model"`
	Content      []content `json:"content"`
	StopReason   *string   `json:"stop_reason"`
	StopSequence *string   `json:"stop_sequence"`
	Usage        usage     `json:"usage"`
	Gallop       any       `json:"gallop,omitempty"`
}

// content is a block. Which fields there are depends on its type.
type content struct {
	Type      string          `json:"type"`
	Text      *string         `json:"text,omitempty"`
	Thinking  *string         `json:"thinking,omitempty"`
	Signature *string         `json:"signature,omitempty"`
	ID        string          `json:"id,omitempty"`
	Name      string          `json:"name,omitempty"`
	Input     json.RawMessage `json:"input,omitempty"`
}

type usage struct {
	Input         int `json:"input_tokens"` // not in the cache
	CacheCreation int `json:"cache_creation_input_tokens"`
	CacheRead     int `json:"cache_read_input_tokens"`
	Output        int `json:"output_tokens"`
}

func newUsage(a *gallop.Answer) usage {
	return usage{Input: a.Usage.Prompt - a.Usage.Cached, CacheRead: a.Usage.Cached, Output: a.Usage.Generated}
}

func (r *reply) message() message {
	return message{ID: "msg_" + r.meta.ID, Type: "message", Role: "assistant", Model: r.meta.Model, Content: []content{}}
}

// stop is why an answer ended, and at which text.
func stop(result *wire.Result) (reason, sequence *string) {
	word := "end_turn"
	switch {
	case result.Finish == gallop.FinishLength:
		word = "max_tokens"
	case result.Called():
		word = "tool_use"
	case result.Stopped != "":
		word, sequence = "stop_sequence", &result.Stopped
	}
	return &word, sequence
}

func (r *reply) Whole(results []wire.Result) any {
	result := &results[0]
	m := r.message()
	if result.Reasoning != "" {
		m.Content = append(m.Content, content{Type: "thinking", Thinking: &result.Reasoning, Signature: new(string)})
	}
	if result.Content != "" {
		m.Content = append(m.Content, content{Type: "text", Text: &result.Content})
	}
	for _, c := range result.Calls {
		input := json.RawMessage(c.Arguments)
		if !c.Whole() { // a client that does it all the same misses the arguments
			input = json.RawMessage("{}")
		}
		m.Content = append(m.Content, content{Type: "tool_use", ID: toolUse + c.ID, Name: c.Name, Input: input})
	}
	m.StopReason, m.StopSequence = stop(result)
	m.Usage = newUsage(&result.Answer)
	m.Gallop = wire.NewReport(result, &r.meta.Info, r.call.Settings.WantsDetail())
	return m
}

func (r *reply) Start() []wire.Event {
	m := r.message()
	m.Usage.Input = r.meta.PromptTokens()
	return []wire.Event{wire.JSON("message_start", map[string]any{"type": "message_start", "message": m})}
}

func (r *reply) Step(s wire.Step) (events []wire.Event) {
	for i, p := range s.Pieces {
		kind, begin := "text", content{Type: "text", Text: new(string)}
		delta := map[string]string{"type": "text_delta", "text": p.Text}
		switch {
		case p.Call != nil:
			kind = fmt.Sprint("tool_use ", p.Call.Index)
			begin = content{Type: "tool_use", ID: toolUse + p.Call.ID, Name: p.Call.Name, Input: json.RawMessage("{}")}
			delta = map[string]string{"type": "input_json_delta", "partial_json": p.Call.Arguments}
		case p.Reasoning != "":
			kind, begin = "thinking", content{Type: "thinking", Thinking: new(string), Signature: new(string)}
			delta = map[string]string{"type": "thinking_delta", "thinking": p.Reasoning}
		}
		if kind != r.open {
			events = append(events, r.closeBlock()...)
			r.open = kind
			events = append(events, wire.JSON("content_block_start", map[string]any{"type": "content_block_start", "index": r.index, "content_block": begin}))
		}
		event := map[string]any{"type": "content_block_delta", "index": r.index, "delta": delta}
		if i == 0 && r.call.Settings.WantsDetail() {
			event["gallop"] = wire.NewChunk(s)
		}
		events = append(events, wire.JSON("content_block_delta", event))
	}
	return events
}

func (r *reply) closeBlock() []wire.Event {
	if r.open == "" {
		return nil
	}
	index := r.index
	r.open = ""
	r.index++
	return []wire.Event{wire.JSON("content_block_stop", map[string]any{"type": "content_block_stop", "index": index})}
}

func (r *reply) End(results []wire.Result) []wire.Event {
	result := &results[0]
	reason, sequence := stop(result)
	return append(r.closeBlock(),
		wire.JSON("message_delta", map[string]any{
			"type": "message_delta", "delta": map[string]any{"stop_reason": reason, "stop_sequence": sequence},
			"usage": newUsage(&result.Answer), "gallop": wire.NewReport(result, &r.meta.Info, false),
		}),
		wire.JSON("message_stop", map[string]string{"type": "message_stop"}))
}

func (r *reply) Fail(e *wire.Error) []wire.Event {
	_, body := Error(e)
	return []wire.Event{wire.JSON("error", body)}
}
