package openai

import (
	"encoding/json"
	"fmt"
	"math"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/server/wire"
)

type responsesRequest struct {
	Model             string            `json:"model"`
	Input             json.RawMessage   `json:"input"`
	Instructions      string            `json:"instructions"`
	MaxOutputTokens   *int              `json:"max_output_tokens"`
	Temperature       *float64          `json:"temperature"`
	TopP              *float64          `json:"top_p"`
	Stream            bool              `json:"stream"`
	Tools             []json.RawMessage `json:"tools"`
	ToolChoice        json.RawMessage   `json:"tool_choice"`
	ParallelToolCalls *bool             `json:"parallel_tool_calls"`
	Text              json.RawMessage   `json:"text"`
	Reasoning         json.RawMessage   `json:"reasoning"`
	Truncation        string            `json:"truncation"`
	Include           []string          `json:"include"`
	Metadata          json.RawMessage   `json:"metadata"`
	Gallop            json.RawMessage   `json:"gallop"`
}

// ParseResponse reads a request for a response. Nothing is kept: what earlier responses said
// stands in the input.
func ParseResponse(body []byte) (*wire.Parsed, error) {
	var r responsesRequest
	err := wire.Decode(body, "", &r, labels(wire.Fields{
		"store": wire.Only("false"), "background": wire.Only("false"), "prompt": wire.Only(),
		"stream_options": wire.Only("{}", `{"include_obfuscation":false}`), "client_metadata": wire.Label(),
	}))
	if err != nil {
		return nil, err
	}
	p := &wire.Parsed{Call: wire.Call{Model: r.Model, Stream: r.Stream, Sampling: wire.Sampling{Temperature: r.Temperature, TopP: r.TopP}}}
	if _, err := (&common{gallop: r.Gallop}).into(&p.Call); err != nil {
		return nil, err
	}
	turns, err := parseInput(r.Input)
	if err != nil {
		return nil, err
	}
	if r.Instructions != "" {
		turns = append([]wire.Turn{{Role: "system", Content: r.Instructions}}, turns...)
	}
	p.Request.Messages = wire.Messages(turns)
	if r.MaxOutputTokens != nil {
		p.Request.MaxTokens = *r.MaxOutputTokens
		if err := wire.InRange("max_output_tokens", *r.MaxOutputTokens, 1, math.MaxInt32); err != nil {
			return nil, err
		}
	}
	switch r.Truncation {
	case "", "disabled":
	case "auto":
		p.Request.Forget = true
	default:
		return nil, wire.BadRequest("truncation", "truncation is %q, want auto or disabled", r.Truncation)
	}
	for _, what := range r.Include {
		if what != "reasoning.encrypted_content" { // reasoning is there anyway, in the open
			return nil, wire.Unsupported("include", "%q", what)
		}
	}
	if err := parseText(&p.Call, r.Text); err != nil {
		return nil, err
	}
	if err := parseReasoning(&p.Call, r.Reasoning); err != nil {
		return nil, err
	}
	if err := setTools(&p.Call, r.Tools, parseResponseTool, r.ToolChoice, r.ParallelToolCalls); err != nil {
		return nil, err
	}
	p.Reply = func(m wire.Meta) wire.Reply { return &responseReply{meta: m, request: &r, call: &p.Call} }
	return p, nil
}

func parseText(p *wire.Call, raw json.RawMessage) (err error) {
	if len(raw) == 0 {
		return nil
	}
	var text struct {
		Format json.RawMessage `json:"format"`
	}
	if err := wire.Decode(raw, "text", &text, wire.Fields{"verbosity": wire.Only(`"medium"`)}); err != nil {
		return err
	}
	p.Schema, err = parseFormat(text.Format, "text.format")
	return err
}

func parseReasoning(p *wire.Call, raw json.RawMessage) error {
	if len(raw) == 0 {
		return nil
	}
	var reasoning struct {
		Effort *string `json:"effort"`
	}
	if err := wire.Decode(raw, "reasoning", &reasoning, wire.Fields{"summary": wire.Only(`"auto"`)}); err != nil {
		return err
	}
	if reasoning.Effort != nil {
		setEffort(p, *reasoning.Effort)
	}
	return nil
}

func parseResponseTool(raw json.RawMessage, path string) (wire.Tool, error) {
	var t struct {
		Type string `json:"type"`
	}
	if err := wire.Decode(raw, path, &t, wire.Fields{wire.Others: wire.Label()}); err != nil {
		return wire.Tool{}, err
	}
	if t.Type != "function" {
		return wire.Tool{}, wire.Unsupported(wire.Path(path, "type"), "tools of type %q, only function", t.Type)
	}
	return parseFunction(raw, path, wire.Fields{"type": wire.Label()})
}

type inputItem struct {
	Type      string          `json:"type"`
	Role      string          `json:"role"`
	Content   json.RawMessage `json:"content"`
	CallID    string          `json:"call_id"`
	Name      string          `json:"name"`
	Arguments json.RawMessage `json:"arguments"`
	Output    json.RawMessage `json:"output"`
}

// parseInput reads a text, or items of a conversation. What the assistant thought, said
// and called in one turn are several items.
func parseInput(raw json.RawMessage) (turns []wire.Turn, err error) {
	if wire.IsText(raw) {
		content, err := parseContent(raw, "input")
		return []wire.Turn{{Role: "user", Content: content}}, err
	}
	var list []json.RawMessage
	if !wire.IsList(raw) || json.Unmarshal(raw, &list) != nil || len(list) == 0 || len(list) > maxMessages {
		return nil, wire.BadRequest("input", "input: want a text or a list of 1 to %d items", maxMessages)
	}
	assistant := func(fits func(*wire.Turn) bool) *wire.Turn {
		if n := len(turns); n > 0 && turns[n-1].Role == "assistant" && fits(&turns[n-1]) {
			return &turns[n-1]
		}
		turns = append(turns, wire.Turn{Role: "assistant"})
		return &turns[len(turns)-1]
	}
	for i, raw := range list {
		path := fmt.Sprintf("input[%d]", i)
		var item inputItem
		also := wire.Fields{"id": wire.Label(), "status": wire.Label(), "phase": wire.Label(), "summary": wire.Label(), "encrypted_content": wire.Label()}
		if err := wire.Decode(raw, path, &item, also); err != nil {
			return nil, err
		}
		switch item.Type {
		case "", "message":
			content, err := parseContent(item.Content, wire.Path(path, "content"))
			switch {
			case err != nil:
				return nil, err
			case item.Role == "assistant":
				assistant(func(t *wire.Turn) bool { return t.Content == "" && t.Calls == nil }).Content = content
			case item.Role == "user":
				turns = append(turns, wire.Turn{Role: "user", Content: content})
			case item.Role == "system" || item.Role == "developer":
				turns = append(turns, wire.Turn{Role: "system", Content: content})
			default:
				return nil, wire.BadRequest(wire.Path(path, "role"), "%s.role is %q, want system, developer, user or assistant", path, item.Role)
			}
		case "function_call":
			if item.Name == "" {
				return nil, wire.BadRequest(wire.Path(path, "name"), "%s: the call has no name", path)
			}
			t := assistant(func(*wire.Turn) bool { return true })
			t.Calls = append(t.Calls, wire.ToolCall{ID: item.CallID, Name: item.Name, Arguments: wire.Arguments(item.Arguments)})
		case "function_call_output":
			output, err := parseContent(item.Output, wire.Path(path, "output"))
			if err != nil {
				return nil, err
			}
			turns = append(turns, wire.Turn{Role: "tool", Content: output, CallID: item.CallID})
		case "reasoning":
			var parts []struct {
				Text string `json:"text"`
			}
			if len(item.Content) > 0 && json.Unmarshal(item.Content, &parts) != nil {
				return nil, wire.BadRequest(wire.Path(path, "content"), "%s.content: want a list of parts", path)
			}
			t := assistant(func(t *wire.Turn) bool { return t.Content == "" && t.Calls == nil })
			for _, part := range parts {
				t.Reasoning += part.Text
			}
		default:
			return nil, wire.Unsupported(wire.Path(path, "type"), "an item of type %q", item.Type)
		}
	}
	return turns, nil
}

// responseReply writes responses.
type responseReply struct {
	meta    wire.Meta
	request *responsesRequest
	call    *wire.Call

	sequence int
	output   []*outputItem // the last one is open
}

type response struct {
	ID          string            `json:"id"`
	Object      string            `json:"object"`
	CreatedAt   int64             `json:"created_at"`
	Status      string            `json:"status"`
	Error       any               `json:"error"`
	Incomplete  any               `json:"incomplete_details"`
	Model       string            `json:"model"`
	Output      []*outputItem     `json:"output"`
	Usage       any               `json:"usage"`
	Instruction *string           `json:"instructions"`
	MaxTokens   *int              `json:"max_output_tokens"`
	Metadata    json.RawMessage   `json:"metadata"`
	Parallel    bool              `json:"parallel_tool_calls"`
	Previous    *string           `json:"previous_response_id"`
	Store       bool              `json:"store"`
	Temperature *float64          `json:"temperature"`
	TopP        *float64          `json:"top_p"`
	ToolChoice  json.RawMessage   `json:"tool_choice"`
	Tools       []json.RawMessage `json:"tools"`
	Text        json.RawMessage   `json:"text"`
	Truncation  string            `json:"truncation"`
	Gallop      any               `json:"gallop,omitempty"`
}

// outputItem is a part of a response. Which fields there are depends on its type.
type outputItem struct {
	Type      string       `json:"type"` // "message", "reasoning" or "function_call"
	ID        string       `json:"id"`
	Status    string       `json:"status,omitempty"`
	Role      string       `json:"role,omitempty"`
	Content   []outputPart `json:"content,omitzero"`
	Summary   []string     `json:"summary,omitzero"`
	CallID    string       `json:"call_id,omitempty"`
	Name      string       `json:"name,omitempty"`
	Arguments *string      `json:"arguments,omitempty"`
}

type outputPart struct {
	Type        string `json:"type"` // "output_text" or "reasoning_text"
	Text        string `json:"text"`
	Annotations []any  `json:"annotations,omitzero"`
}

func or(raw json.RawMessage, otherwise string) json.RawMessage {
	if len(raw) == 0 {
		return json.RawMessage(otherwise)
	}
	return raw
}

func (r *responseReply) object(status string, results []wire.Result) *response {
	o := &response{
		ID: "resp_" + r.meta.ID, Object: "response", CreatedAt: r.meta.Created.Unix(), Status: status, Model: r.meta.Model,
		Output: r.output, MaxTokens: r.request.MaxOutputTokens, Metadata: or(r.request.Metadata, "{}"), Parallel: !r.call.OneCall,
		Temperature: r.request.Temperature, TopP: r.request.TopP, ToolChoice: or(r.request.ToolChoice, `"auto"`),
		Tools: r.request.Tools, Text: or(r.request.Text, `{"format":{"type":"text"}}`), Truncation: "disabled",
	}
	if o.Output == nil {
		o.Output = []*outputItem{}
	}
	if o.Tools == nil {
		o.Tools = []json.RawMessage{}
	}
	if r.request.Instructions != "" {
		o.Instruction = &r.request.Instructions
	}
	if r.request.Truncation != "" {
		o.Truncation = r.request.Truncation
	}
	if len(results) > 0 {
		result := &results[0]
		if result.Finish == gallop.FinishLength {
			o.Status, o.Incomplete = "incomplete", map[string]string{"reason": "max_output_tokens"}
		}
		u := wire.Usage(results, 1)
		o.Usage = map[string]any{
			"input_tokens": u.Prompt, "input_tokens_details": map[string]int{"cached_tokens": u.Cached},
			"output_tokens": u.Generated, "total_tokens": u.Prompt + u.Generated,
		}
		o.Gallop = wire.NewReport(result, &r.meta.Info, r.call.Settings.WantsDetail() && !r.call.Stream)
	}
	return o
}

// event is one of a stream. kind is its name.
func (r *responseReply) event(kind string, fields map[string]any) wire.Event {
	fields["type"], fields["sequence_number"] = kind, r.sequence
	r.sequence++
	return wire.JSON(kind, fields)
}

func (r *responseReply) Start() []wire.Event {
	return []wire.Event{
		r.event("response.created", map[string]any{"response": r.object("in_progress", nil)}),
		r.event("response.in_progress", map[string]any{"response": r.object("in_progress", nil)}),
	}
}

func (r *responseReply) Step(s wire.Step) (events []wire.Event) {
	for i, p := range s.Pieces {
		var kind, delta string
		switch {
		case p.Call != nil:
			kind, delta = "function_call", p.Call.Arguments
		case p.Reasoning != "":
			kind, delta = "reasoning", p.Reasoning
		default:
			kind, delta = "message", p.Text
		}
		if n := len(r.output); n == 0 || r.output[n-1].Type != kind || p.Call != nil && p.Call.ID != "" {
			events = append(append(events, r.closeItem(false)...), r.openItem(kind, p.Call)...)
		}
		item := r.output[len(r.output)-1]
		if delta == "" {
			continue
		}
		at := r.at(item)
		at["delta"] = delta
		switch kind {
		case "function_call":
			*item.Arguments += delta
			events = append(events, r.event("response.function_call_arguments.delta", at))
			continue
		case "message":
			at["logprobs"] = []any{}
		}
		if i == 0 && r.call.Settings.WantsDetail() {
			at["gallop"] = wire.NewChunk(s)
		}
		item.Content[0].Text += delta
		events = append(events, r.event("response."+item.Content[0].Type+".delta", at))
	}
	return events
}

// at is where an item is.
func (r *responseReply) at(item *outputItem) map[string]any {
	at := map[string]any{"item_id": item.ID, "output_index": len(r.output) - 1}
	if item.Content != nil {
		at["content_index"] = 0
	}
	return at
}

func (r *responseReply) newItem(kind string, call *wire.CallPiece) *outputItem {
	item := &outputItem{Type: kind, Status: "in_progress"}
	id := fmt.Sprintf("%s_%d", r.meta.ID, len(r.output))
	switch kind {
	case "message":
		item.ID, item.Role, item.Content = "msg_"+id, "assistant", []outputPart{{Type: "output_text", Annotations: []any{}}}
	case "reasoning":
		item.ID, item.Summary, item.Content = "rs_"+id, []string{}, []outputPart{{Type: "reasoning_text"}}
	default:
		item.ID, item.CallID, item.Name, item.Arguments = "fc_"+id, call.ID, call.Name, new(string)
	}
	r.output = append(r.output, item)
	return item
}

func (r *responseReply) openItem(kind string, call *wire.CallPiece) []wire.Event {
	item := r.newItem(kind, call)
	shown := *item
	if shown.Content != nil {
		shown.Content = []outputPart{}
	}
	events := []wire.Event{r.event("response.output_item.added", map[string]any{"output_index": len(r.output) - 1, "item": shown})}
	if item.Content != nil {
		at := r.at(item)
		at["part"] = item.Content[0]
		events = append(events, r.event("response.content_part.added", at))
	}
	return events
}

// end sets the status of an item to which nothing comes any more. cut says that the answer
// was to go on.
func (i *outputItem) end(cut bool) {
	if i.Arguments != nil {
		cut = !json.Valid([]byte(*i.Arguments))
	}
	if i.Status = "completed"; cut {
		i.Status = "incomplete"
	}
}

// closeItem ends the item that is open, if there is one.
func (r *responseReply) closeItem(cut bool) (events []wire.Event) {
	if len(r.output) == 0 {
		return nil
	}
	item := r.output[len(r.output)-1]
	item.end(cut)
	switch {
	case item.Content == nil && item.Status == "incomplete": // the arguments are not done
	case item.Content == nil:
		at := r.at(item)
		at["arguments"], at["name"] = *item.Arguments, item.Name
		events = append(events, r.event("response.function_call_arguments.done", at))
	default:
		part := item.Content[0]
		at := r.at(item)
		if at["text"] = part.Text; item.Type == "message" {
			at["logprobs"] = []any{}
		}
		done := r.at(item)
		done["part"] = part
		events = append(events, r.event("response."+part.Type+".done", at), r.event("response.content_part.done", done))
	}
	return append(events, r.event("response.output_item.done", map[string]any{"output_index": len(r.output) - 1, "item": item}))
}

func (r *responseReply) End(results []wire.Result) []wire.Event {
	events := r.closeItem(results[0].Finish == gallop.FinishLength)
	o := r.object("completed", results)
	return append(events, r.event("response."+o.Status, map[string]any{"response": o}))
}

func (r *responseReply) Fail(e *wire.Error) []wire.Event {
	o := r.object("failed", nil)
	o.Error = map[string]string{"code": "server_error", "message": e.Message}
	return []wire.Event{r.event("response.failed", map[string]any{"response": o})}
}

func (r *responseReply) Whole(results []wire.Result) any {
	result := &results[0]
	if result.Reasoning != "" {
		r.newItem("reasoning", nil).Content[0].Text = result.Reasoning
	}
	if result.Content != "" || len(result.Calls) == 0 {
		r.newItem("message", nil).Content[0].Text = result.Content
	}
	for _, c := range result.Calls {
		*r.newItem("function_call", &wire.CallPiece{ID: c.ID, Name: c.Name}).Arguments = c.Arguments
	}
	for i, item := range r.output {
		item.end(i == len(r.output)-1 && result.Finish == gallop.FinishLength)
	}
	return r.object("completed", results)
}
