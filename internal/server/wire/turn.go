package wire

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/gallop-llm/gallop"
)

// Turn is a message of a conversation, in no dialect.
type Turn struct {
	Role      string
	Content   string
	Name      string // who speaks, or which tool answers; "" = not said
	Reasoning string
	Calls     []ToolCall
	CallID    string // of a tool's answer; "" = the first call that has none yet
}

// Messages turns turns into what chat templates know. Histories come from other servers
// too, so what is missing is filled in: ids of calls, and names of tools in their answers.
func Messages(turns []Turn) []gallop.Message {
	type open struct{ id, name string }
	var unanswered []open
	calls := 0
	messages := make([]gallop.Message, len(turns))
	for i, t := range turns {
		fields := map[string]any{}
		var list []any
		for _, c := range t.Calls {
			calls++
			if c.ID == "" {
				c.ID = fmt.Sprintf("call%05d", calls)
			}
			unanswered = append(unanswered, open{c.ID, c.Name})
			list = append(list, map[string]any{"id": c.ID, "type": "function",
				"function": map[string]any{"name": c.Name, "arguments": arguments(c.Arguments)}})
		}
		if t.Role == "tool" {
			for j, o := range unanswered {
				if t.CallID == "" || t.CallID == o.id {
					t.CallID = o.id
					if t.Name == "" {
						t.Name = o.name
					}
					unanswered = append(unanswered[:j:j], unanswered[j+1:]...)
					break
				}
			}
		}
		for name, text := range map[string]string{"name": t.Name, "reasoning_content": t.Reasoning, "tool_call_id": t.CallID} {
			if text != "" {
				fields[name] = text
			}
		}
		if list != nil {
			fields["tool_calls"] = list
		}
		messages[i] = gallop.Message{Role: t.Role, Content: t.Content}
		if len(fields) > 0 {
			messages[i].Fields, _ = json.Marshal(fields) // texts and checked JSON only
		}
	}
	return messages
}

// arguments are a call's, as an object where they are one: that is what templates
// expect. Models make mistakes, which are part of the history.
func arguments(text string) any {
	data := bytes.TrimSpace([]byte(text))
	switch {
	case len(data) == 0:
		return json.RawMessage("{}")
	case data[0] == '{' && json.Valid(data):
		return json.RawMessage(data)
	}
	return text
}

// Arguments reads a call's arguments: a text with JSON in it, or the object itself.
func Arguments(raw json.RawMessage) string {
	var text string
	if IsText(raw) && json.Unmarshal(raw, &text) == nil {
		return text
	}
	if string(raw) == "null" {
		return ""
	}
	return string(raw)
}

// Tool is a function that a model may call, in OpenAI's form.
type Tool struct {
	Type     string       `json:"type"`
	Function ToolFunction `json:"function"`
}

// ToolFunction describes a tool.
type ToolFunction struct {
	Name        string          `json:"name"`
	Description string          `json:"description,omitempty"`
	Parameters  json.RawMessage `json:"parameters,omitempty"` // a JSON schema
}

// NewTool is a tool from its parts.
func NewTool(path, name, description string, parameters json.RawMessage) (Tool, error) {
	if name == "" {
		return Tool{}, BadRequest(Path(path, "name"), "%s: a tool has no name", path)
	}
	return Tool{"function", ToolFunction{name, description, parameters}}, nil
}

// SetTools puts tools and their choice into a call. Tools that must not be called are not
// shown to the model.
func (c *Call) SetTools(tools []Tool, choice Choice) error {
	c.Choice = choice
	switch {
	case len(tools) == 0 && choice.Mode >= CallAny:
		return BadRequest("tool_choice", "tool_choice asks for a call, but there are no tools")
	case len(tools) == 0 || choice.Mode == CallNone:
		return nil
	}
	known := map[string]bool{}
	for _, t := range tools {
		if known[t.Function.Name] {
			return BadRequest("tools", "tools: two of them are called %q", t.Function.Name)
		}
		known[t.Function.Name] = true
	}
	if choice.Mode == CallOne && !known[choice.Name] {
		return BadRequest("tool_choice", "tool_choice: there is no tool %q", choice.Name)
	}
	var err error
	if c.Request.Tools, err = json.Marshal(tools); err != nil {
		return BadRequest("tools", "tools: %v", err)
	}
	return nil
}

// SetVariable gives the chat template a variable.
func (c *Call) SetVariable(name string, value any) {
	variables := map[string]any{}
	if c.Request.Variables != nil {
		_ = json.Unmarshal(c.Request.Variables, &variables) // an object, as this function wrote it
	}
	variables[name] = value
	c.Request.Variables, _ = json.Marshal(variables) // values that came from JSON
}
