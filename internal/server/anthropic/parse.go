// Package anthropic reads and writes Anthropic's messages API. It is pure conversion,
// without HTTP.
package anthropic

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"

	"github.com/gallop-llm/gallop/internal/server/openai"
	"github.com/gallop-llm/gallop/internal/server/wire"
)

type request struct {
	Model             string            `json:"model"`
	Messages          []json.RawMessage `json:"messages"`
	System            json.RawMessage   `json:"system"`
	MaxTokens         *int              `json:"max_tokens"`
	StopSequences     json.RawMessage   `json:"stop_sequences"`
	Stream            bool              `json:"stream"`
	Temperature       *float64          `json:"temperature"`
	TopP              *float64          `json:"top_p"`
	TopK              *int              `json:"top_k"`
	Tools             []json.RawMessage `json:"tools"`
	ToolChoice        json.RawMessage   `json:"tool_choice"`
	Thinking          json.RawMessage   `json:"thinking"`
	OutputConfig      json.RawMessage   `json:"output_config"`
	ContextManagement json.RawMessage   `json:"context_management"`
	Gallop            json.RawMessage   `json:"gallop"`
}

// ParseMessage reads a request for a message.
func ParseMessage(body []byte) (*wire.Parsed, error) {
	p, err := parse(body)
	if err != nil {
		return nil, err
	}
	if p.Request.MaxTokens == 0 {
		return nil, wire.BadRequest("max_tokens", "max_tokens is missing")
	}
	return p, nil
}

// ParseCount reads a request for the number of a message's prompt tokens.
func ParseCount(body []byte) (*wire.Parsed, error) { return parse(body) }

// WriteCount writes that number.
func WriteCount(tokens int) any {
	return map[string]int{"input_tokens": tokens}
}

func parse(body []byte) (*wire.Parsed, error) {
	var r request
	err := wire.Decode(body, "", &r, wire.Fields{
		"metadata": wire.Label(), "cache_control": wire.Label(), "inference_geo": wire.Label(),
		"service_tier": wire.Only(`"auto"`, `"standard_only"`), "mcp_servers": wire.Only("[]"), "speed": wire.Only(`"standard"`),
	})
	if err != nil {
		return nil, err
	}
	p := &wire.Parsed{Call: wire.Call{Model: r.Model, N: 1, Stream: r.Stream,
		Sampling: wire.Sampling{Temperature: r.Temperature, TopP: r.TopP, TopK: r.TopK}}}
	if err := p.Sampling.Check(); err != nil {
		return nil, err
	}
	if r.MaxTokens != nil {
		p.Request.MaxTokens = *r.MaxTokens
		if err := wire.InRange("max_tokens", *r.MaxTokens, 1, math.MaxInt32); err != nil {
			return nil, err
		}
	}
	if p.Settings, err = wire.ParseSettings(r.Gallop); err != nil {
		return nil, err
	}
	if p.Request.Stop, err = openai.ParseStop(r.StopSequences, "stop_sequences"); err != nil {
		return nil, err
	}
	turns, err := parseTurns(&r)
	if err != nil {
		return nil, err
	}
	p.Request.Messages = wire.Messages(turns)
	if last := &turns[len(turns)-1]; last.Role == "assistant" { // which is how the answer begins
		if p.Request.Continue = len(last.Calls) == 0 && strings.TrimSpace(last.Content) != ""; !p.Request.Continue {
			return nil, wire.BadRequest("messages", "messages: the last one, of the assistant, is no text that can be continued")
		}
	}
	if err := parseTools(&p.Call, &r); err != nil {
		return nil, err
	}
	if err := parseThinking(&p.Call, r.Thinking); err != nil {
		return nil, err
	}
	if err := parseOutput(&p.Call, r.OutputConfig); err != nil {
		return nil, err
	}
	if err := parseManagement(r.ContextManagement); err != nil {
		return nil, err
	}
	p.Reply = func(m wire.Meta) wire.Reply { return &reply{meta: m, call: &p.Call} }
	return p, nil
}

// billing begins a line that coding agents put in front of their system prompt. It says
// nothing to the model and is another one in each request, so that no prompt would ever be
// found in the cache.
const billing = "x-anthropic-billing-header:"

// dropBilling leaves such lines out of the beginning of a system prompt.
func dropBilling(text string) string {
	for strings.HasPrefix(text, billing) {
		_, text, _ = strings.Cut(text, "\n")
	}
	return text
}

// block is a part of a message. Which fields there are depends on its type.
type block struct {
	Type      string          `json:"type"`
	Text      string          `json:"text"`
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Input     json.RawMessage `json:"input"`
	ToolUseID string          `json:"tool_use_id"`
	Content   json.RawMessage `json:"content"`
	IsError   bool            `json:"is_error"`
	Thinking  string          `json:"thinking"`
	Source    json.RawMessage `json:"source"`
}

// blocks reads a text, or a list of blocks.
func blocks(raw json.RawMessage, path string) ([]block, error) {
	var text string
	if wire.IsText(raw) && json.Unmarshal(raw, &text) == nil {
		return []block{{Type: "text", Text: text}}, nil
	}
	var list []json.RawMessage
	if !wire.IsList(raw) || json.Unmarshal(raw, &list) != nil {
		return nil, wire.BadRequest(path, "%s: want a text or a list of blocks", path)
	}
	all := make([]block, len(list))
	for i, item := range list {
		also := wire.Fields{"cache_control": wire.Label(), "citations": wire.Label(), "signature": wire.Label(), "data": wire.Label(), "caller": wire.Label()}
		if err := wire.Decode(item, fmt.Sprintf("%s[%d]", path, i), &all[i], also); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// texts joins blocks that must be texts.
func texts(list []block, path string, keep func(string) string) (string, error) {
	var all []string
	for i, b := range list {
		if b.Type != "text" {
			return "", wire.Unsupported(fmt.Sprintf("%s[%d]", path, i), "a block of type %q", b.Type)
		}
		if text := keep(b.Text); text != "" {
			all = append(all, text)
		}
	}
	return strings.Join(all, "\n"), nil
}

func asIs(text string) string { return text }

// maxMessages bounds the turns of a conversation.
const maxMessages = 10_000

func parseTurns(r *request) (turns []wire.Turn, err error) {
	if len(r.Messages) == 0 || len(r.Messages) > maxMessages {
		return nil, wire.BadRequest("messages", "messages has %d of them, want 1 to %d", len(r.Messages), maxMessages)
	}
	if len(r.System) > 0 {
		list, err := blocks(r.System, "system")
		if err != nil {
			return nil, err
		}
		system, err := texts(list, "system", dropBilling)
		if err != nil {
			return nil, err
		}
		if system != "" {
			turns = append(turns, wire.Turn{Role: "system", Content: system})
		}
	}
	for i, raw := range r.Messages {
		path := fmt.Sprintf("messages[%d]", i)
		var m struct {
			Role    string          `json:"role"`
			Content json.RawMessage `json:"content"`
		}
		if err := wire.Decode(raw, path, &m, nil); err != nil {
			return nil, err
		}
		list, err := blocks(m.Content, wire.Path(path, "content"))
		if err != nil {
			return nil, err
		}
		var more []wire.Turn
		switch m.Role {
		case "user":
			more, err = userTurns(list, wire.Path(path, "content"))
		case "assistant":
			more, err = assistantTurn(list, wire.Path(path, "content"))
		case "system":
			var content string
			content, err = texts(list, wire.Path(path, "content"), asIs)
			more = []wire.Turn{{Role: "system", Content: content}}
		default:
			err = wire.BadRequest(wire.Path(path, "role"), "%s.role is %q, want user or assistant", path, m.Role)
		}
		if err != nil {
			return nil, err
		}
		turns = append(turns, more...)
	}
	return turns, nil
}

// userTurns are the results of tools, each a turn, and what the user says then.
func userTurns(list []block, path string) (turns []wire.Turn, err error) {
	var said []block
	for i, b := range list {
		if b.Type != "tool_result" {
			said = append(said, b)
			continue
		}
		t := wire.Turn{Role: "tool", CallID: innerID(b.ToolUseID)}
		if len(b.Content) > 0 {
			at := fmt.Sprintf("%s[%d].content", path, i)
			inner, err := blocks(b.Content, at)
			if err != nil {
				return nil, err
			}
			if t.Content, err = texts(inner, at, asIs); err != nil {
				return nil, err
			}
		}
		if b.IsError {
			t.Content = "Error: " + t.Content
		}
		turns = append(turns, t)
	}
	if said == nil && turns != nil {
		return turns, nil
	}
	content, err := texts(said, path, asIs)
	return append(turns, wire.Turn{Role: "user", Content: content}), err
}

func assistantTurn(list []block, path string) ([]wire.Turn, error) {
	t := wire.Turn{Role: "assistant"}
	var said []block
	for i, b := range list {
		switch b.Type {
		case "tool_use":
			if b.Name == "" {
				return nil, wire.BadRequest(path, "%s[%d]: the call has no name", path, i)
			}
			t.Calls = append(t.Calls, wire.ToolCall{ID: innerID(b.ID), Name: b.Name, Arguments: wire.Arguments(b.Input)})
		case "thinking":
			t.Reasoning += b.Thinking
		case "redacted_thinking": // nobody but its author can read it
		default:
			said = append(said, b)
		}
	}
	var err error
	t.Content, err = texts(said, path, asIs)
	return []wire.Turn{t}, err
}

// toolUse is in front of the ids of calls in this API.
const toolUse = "toolu_"

// innerID is the id that the model's template is given: some want the 9 letters and
// digits that the server chose.
func innerID(id string) string {
	if inner := strings.TrimPrefix(id, toolUse); len(inner) == 9 {
		return inner
	}
	return id
}

func parseTools(p *wire.Call, r *request) error {
	tools := make([]wire.Tool, len(r.Tools))
	for i, raw := range r.Tools {
		path := fmt.Sprintf("tools[%d]", i)
		var who struct {
			Type string `json:"type"`
		}
		if err := wire.Decode(raw, path, &who, wire.Fields{wire.Others: wire.Label()}); err != nil {
			return err
		}
		if who.Type != "" && who.Type != "custom" {
			return wire.Unsupported(wire.Path(path, "type"), "tools of type %q, only custom", who.Type)
		}
		var t struct {
			Name        string          `json:"name"`
			Description string          `json:"description"`
			InputSchema json.RawMessage `json:"input_schema"`
		}
		err := wire.Decode(raw, path, &t, wire.Fields{"type": wire.Label(), "cache_control": wire.Label(),
			"strict": wire.Only("true", "false"), "input_examples": wire.Label(), "eager_input_streaming": wire.Only("true", "false"), "defer_loading": wire.Only("false")})
		if err != nil {
			return err
		}
		if tools[i], err = wire.NewTool(path, t.Name, t.Description, t.InputSchema); err != nil {
			return err
		}
	}
	var c struct {
		Type    string `json:"type"`
		Name    string `json:"name"`
		OneCall bool   `json:"disable_parallel_tool_use"`
	}
	if len(r.ToolChoice) > 0 {
		if err := wire.Decode(r.ToolChoice, "tool_choice", &c, nil); err != nil {
			return err
		}
	}
	modes := map[string]wire.Mode{"": wire.CallAuto, "auto": wire.CallAuto, "none": wire.CallNone, "any": wire.CallAny, "tool": wire.CallOne}
	mode, ok := modes[c.Type]
	if !ok {
		return wire.BadRequest("tool_choice.type", "tool_choice.type is %q, want auto, any, tool or none", c.Type)
	}
	p.OneCall = c.OneCall
	return p.SetTools(tools, wire.Choice{Mode: mode, Name: c.Name})
}

// parseThinking reads whether the model thinks first. The budget is a target in
// Anthropic's API too: max_tokens is what bounds an answer.
func parseThinking(p *wire.Call, raw json.RawMessage) error {
	if len(raw) == 0 {
		return nil
	}
	var t struct {
		Type   string `json:"type"`
		Budget *int   `json:"budget_tokens"`
	}
	if err := wire.Decode(raw, "thinking", &t, wire.Fields{"display": wire.Only(`"summarized"`, `"omitted"`)}); err != nil {
		return err
	}
	if t.Budget != nil {
		if err := wire.InRange("thinking.budget_tokens", *t.Budget, 1, math.MaxInt32); err != nil {
			return err
		}
	}
	switch t.Type {
	case "adaptive":
		return nil
	case "enabled", "disabled":
		p.SetVariable("enable_thinking", t.Type == "enabled")
		return nil
	}
	return wire.BadRequest("thinking.type", "thinking.type is %q, want enabled, disabled or adaptive", t.Type)
}

func parseOutput(p *wire.Call, raw json.RawMessage) error {
	if len(raw) == 0 {
		return nil
	}
	var o struct {
		Effort *string         `json:"effort"`
		Format json.RawMessage `json:"format"`
	}
	if err := wire.Decode(raw, "output_config", &o, nil); err != nil {
		return err
	}
	if o.Effort != nil {
		p.SetVariable("reasoning_effort", *o.Effort)
	}
	if o.Format == nil {
		return nil
	}
	var f struct {
		Type   string          `json:"type"`
		Schema json.RawMessage `json:"schema"`
	}
	if err := wire.Decode(o.Format, "output_config.format", &f, nil); err != nil {
		return err
	}
	if f.Type != "json_schema" || f.Schema == nil {
		return wire.Unsupported("output_config.format", "%q, only json_schema with a schema", f.Type)
	}
	p.Schema = f.Schema
	return nil
}

// parseManagement takes the one edit that changes nothing.
func parseManagement(raw json.RawMessage) error {
	if len(raw) == 0 {
		return nil
	}
	var m struct {
		Edits []struct {
			Type string `json:"type"`
			Keep any    `json:"keep"`
		} `json:"edits"`
	}
	if err := wire.Decode(raw, "context_management", &m, nil); err != nil {
		return err
	}
	for i, e := range m.Edits {
		if !strings.HasPrefix(e.Type, "clear_thinking") || e.Keep != "all" {
			return wire.Unsupported(fmt.Sprintf("context_management.edits[%d]", i), "%q", e.Type)
		}
	}
	return nil
}
