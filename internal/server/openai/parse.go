package openai

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/gallop-llm/gallop/internal/server/wire"
	"github.com/gallop-llm/gallop/llama"
)

// labels are fields that say nothing about an answer.
func labels(more wire.Fields) wire.Fields {
	all := wire.Fields{
		"user": wire.Label(), "metadata": wire.Label(), "safety_identifier": wire.Label(),
		"prompt_cache_key": wire.Label(), "prompt_cache_retention": wire.Label(),
		"service_tier": wire.Only(`"auto"`, `"default"`),
		"cache_prompt": wire.Only("true"),
	}
	for name, field := range more {
		all[name] = field
	}
	return all
}

type chatRequest struct {
	wire.Sampling
	Model               string             `json:"model"`
	Messages            json.RawMessage    `json:"messages"`
	MaxTokens           *int               `json:"max_tokens"`
	MaxCompletionTokens *int               `json:"max_completion_tokens"`
	N                   *int               `json:"n"`
	Stop                json.RawMessage    `json:"stop"`
	Stream              bool               `json:"stream"`
	StreamOptions       json.RawMessage    `json:"stream_options"`
	Logprobs            bool               `json:"logprobs"`
	TopLogprobs         *int               `json:"top_logprobs"`
	LogitBias           map[string]float64 `json:"logit_bias"`
	ResponseFormat      json.RawMessage    `json:"response_format"`
	Tools               []json.RawMessage  `json:"tools"`
	ToolChoice          json.RawMessage    `json:"tool_choice"`
	ParallelToolCalls   *bool              `json:"parallel_tool_calls"`
	ReasoningEffort     *string            `json:"reasoning_effort"`
	TemplateVariables   map[string]any     `json:"chat_template_kwargs"`
	Continue            *bool              `json:"continue_final_message"`
	NewTurn             *bool              `json:"add_generation_prompt"`
	Gallop              json.RawMessage    `json:"gallop"`
}

// maxTop bounds the alternatives of a token that a client may ask for.
const maxTop = 20

// ParseChat reads a request for chat completions.
func ParseChat(body []byte) (*wire.Parsed, error) {
	var r chatRequest
	err := wire.Decode(body, "", &r, labels(wire.Fields{
		"store": wire.Only("false"), "modalities": wire.Only(`["text"]`), "verbosity": wire.Only(`"medium"`),
		"reasoning_format": wire.Only(`"auto"`, `"deepseek"`),
	}))
	if err != nil {
		return nil, err
	}
	p := &wire.Parsed{Call: wire.Call{Model: r.Model, Sampling: r.Sampling, Stream: r.Stream}}
	usage, err := (&common{r.N, r.Stop, r.StreamOptions, r.LogitBias, r.Gallop}).into(&p.Call)
	if err != nil {
		return nil, err
	}
	turns, err := parseMessages(r.Messages)
	if err != nil {
		return nil, err
	}
	p.Request.Messages = wire.Messages(turns)
	if r.MaxTokens != nil && r.MaxCompletionTokens != nil && *r.MaxTokens != *r.MaxCompletionTokens {
		return nil, wire.BadRequest("max_tokens", "max_tokens is %d and max_completion_tokens %d: leave one of them out", *r.MaxTokens, *r.MaxCompletionTokens)
	}
	for name, n := range map[string]*int{"max_tokens": r.MaxTokens, "max_completion_tokens": r.MaxCompletionTokens} {
		if n == nil {
			continue
		}
		if *n != -1 { // llama-server's word for no bound
			if err := wire.InRange(name, *n, 1, math.MaxInt32); err != nil {
				return nil, err
			}
			p.Request.MaxTokens = *n
		}
	}
	if p.Request.Logprobs, err = topLogprobs(r.Logprobs, r.TopLogprobs); err != nil {
		return nil, err
	}
	if p.Schema, err = parseFormat(r.ResponseFormat, "response_format"); err != nil {
		return nil, err
	}
	if err := setTools(&p.Call, r.Tools, parseTool, r.ToolChoice, r.ParallelToolCalls); err != nil {
		return nil, err
	}
	if err := setContinue(&p.Call, turns, r.Continue, r.NewTurn); err != nil {
		return nil, err
	}
	for name, value := range r.TemplateVariables {
		p.SetVariable(name, value)
	}
	if r.ReasoningEffort != nil {
		setEffort(&p.Call, *r.ReasoningEffort)
	}
	p.Reply = func(m wire.Meta) wire.Reply {
		return &chatReply{head: newHead("chatcmpl-", m), usage: usage, call: &p.Call}
	}
	return p, nil
}

// setContinue settles whether the answer goes on with the last message, as llama-server does
// with one of the assistant, or begins a turn. asked and newTurn are other servers' fields
// for either; nil = not said.
func setContinue(c *wire.Call, turns []wire.Turn, asked, newTurn *bool) error {
	last := &turns[len(turns)-1]
	begun := last.Role == "assistant" && len(last.Calls) == 0 && strings.TrimSpace(last.Content) != ""
	free := c.Request.Tools == nil && c.Schema == nil
	switch on := asked != nil && *asked; {
	case on && !begun:
		return wire.BadRequest("continue_final_message", "continue_final_message: the last message is no text of the assistant")
	case on && newTurn != nil && *newTurn:
		return wire.BadRequest("add_generation_prompt", "add_generation_prompt and continue_final_message exclude each other")
	case asked != nil:
		c.Request.Continue = on
	default:
		c.Request.Continue = begun && free && (newTurn == nil || !*newTurn)
	}
	if newTurn != nil && !*newTurn && !c.Request.Continue {
		return wire.Unsupported("add_generation_prompt", "false, but to continue a last message of the assistant")
	}
	return nil
}

// setEffort turns OpenAI's effort into what chat templates know.
func setEffort(c *wire.Call, effort string) {
	think := effort != "none"
	c.SetVariable("enable_thinking", think)
	if think {
		c.SetVariable("reasoning_effort", effort)
	}
}

func topLogprobs(asked bool, top *int) (int, error) {
	switch {
	case top != nil && !asked:
		return 0, wire.BadRequest("top_logprobs", "top_logprobs needs logprobs: true")
	case !asked:
		return 0, nil
	case top == nil || *top == 0:
		return -1, nil
	}
	return *top, wire.InRange("top_logprobs", *top, 0, maxTop)
}

// common are the fields that several requests share.
type common struct {
	n             *int
	stop          json.RawMessage
	streamOptions json.RawMessage
	bias          map[string]float64
	gallop        json.RawMessage
}

// maxStops bounds the texts that end an answer.
const maxStops = 64

// into puts the shared fields into the call. usage tells whether a stream ends with it.
func (c *common) into(p *wire.Call) (usage bool, err error) {
	p.N = 1
	if c.n != nil {
		if p.N = *c.n; p.N < 1 || p.N > wire.MaxAnswers {
			return false, wire.InRange("n", p.N, 1, wire.MaxAnswers)
		}
	}
	if p.Request.Stop, err = ParseStop(c.stop, "stop"); err != nil {
		return false, err
	}
	if len(c.streamOptions) > 0 {
		var o struct {
			IncludeUsage bool `json:"include_usage"`
		}
		if err := wire.Decode(c.streamOptions, "stream_options", &o, wire.Fields{"include_obfuscation": wire.Only("false")}); err != nil {
			return false, err
		}
		if !p.Stream {
			return false, wire.BadRequest("stream_options", "stream_options needs stream: true")
		}
		usage = o.IncludeUsage
	}
	for text, value := range c.bias {
		token, err := strconv.ParseInt(text, 10, 32)
		if err != nil || token < 0 {
			return false, wire.BadRequest("logit_bias", "logit_bias: %q is no token", text)
		}
		if err := wire.InRange("logit_bias", value, -100, 100); err != nil {
			return false, err
		}
		p.Sampling.Bias = append(p.Sampling.Bias, wire.Bias{Token: llama.Token(token), Value: float32(value)})
	}
	if p.Settings, err = wire.ParseSettings(c.gallop); err != nil {
		return false, err
	}
	return usage, p.Sampling.Check()
}

// ParseStop reads one or several texts that end an answer.
func ParseStop(raw json.RawMessage, path string) ([]string, error) {
	stop, err := wire.Texts(raw, path)
	switch {
	case err != nil:
		return nil, err
	case len(stop) > maxStops:
		return nil, wire.BadRequest(path, "%s has %d texts, want at most %d", path, len(stop), maxStops)
	case slices.Contains(stop, ""):
		return nil, wire.BadRequest(path, "%s: an empty text ends every answer", path)
	}
	return stop, nil
}

type message struct {
	Role       string          `json:"role"`
	Content    json.RawMessage `json:"content"`
	Name       string          `json:"name"`
	Reasoning  string          `json:"reasoning_content"`
	Reasoning2 string          `json:"reasoning"` // other servers' name for the same
	ToolCalls  []toolCall      `json:"tool_calls"`
	ToolCallID string          `json:"tool_call_id"`
}

type toolCall struct {
	Index    int             `json:"index"`
	ID       string          `json:"id"`
	Type     string          `json:"type"`
	Function toolFunction    `json:"function"`
	Name     string          `json:"name"` // some servers leave "function" out
	Args     json.RawMessage `json:"arguments"`
}

type toolFunction struct {
	Name      string          `json:"name"`
	Arguments json.RawMessage `json:"arguments"`
}

// maxMessages bounds the turns of a conversation.
const maxMessages = 10_000

func parseMessages(raw json.RawMessage) ([]wire.Turn, error) {
	var list []json.RawMessage
	if !wire.IsList(raw) || json.Unmarshal(raw, &list) != nil {
		return nil, wire.BadRequest("messages", "messages: want a list of messages")
	}
	if len(list) == 0 || len(list) > maxMessages {
		return nil, wire.BadRequest("messages", "messages has %d of them, want 1 to %d", len(list), maxMessages)
	}
	turns := make([]wire.Turn, len(list))
	for i, raw := range list {
		var err error
		if turns[i], err = parseMessage(raw, fmt.Sprintf("messages[%d]", i)); err != nil {
			return nil, err
		}
	}
	return turns, nil
}

func parseMessage(raw json.RawMessage, path string) (wire.Turn, error) {
	var m message
	var who struct {
		Role string `json:"role"`
	}
	// What other servers put into their answers comes back in the history and is no request.
	if err := wire.Decode(raw, path, &who, wire.Fields{wire.Others: wire.Label()}); err != nil {
		return wire.Turn{}, err
	}
	also := wire.Fields{"cache_control": wire.Label()}
	if who.Role == "assistant" || who.Role == "tool" {
		also = wire.Fields{wire.Others: wire.Label(), "audio": wire.Only(), "function_call": wire.Only()}
	}
	if err := wire.Decode(raw, path, &m, also); err != nil {
		return wire.Turn{}, err
	}
	t := wire.Turn{Role: m.Role, Name: m.Name, Reasoning: m.Reasoning, CallID: m.ToolCallID}
	if t.Reasoning == "" {
		t.Reasoning = m.Reasoning2
	}
	switch m.Role {
	case "developer":
		t.Role = "system" // templates know no other name for it
	case "system", "user", "assistant", "tool":
	default:
		return t, wire.BadRequest(wire.Path(path, "role"), "%s.role is %q, want system, developer, user, assistant or tool", path, m.Role)
	}
	var err error
	if t.Content, err = parseContent(m.Content, wire.Path(path, "content")); err != nil {
		return t, err
	}
	if len(m.ToolCalls) > 0 && m.Role != "assistant" {
		return t, wire.BadRequest(wire.Path(path, "tool_calls"), "%s.tool_calls: only the assistant calls tools", path)
	}
	for i, c := range m.ToolCalls {
		name, args := c.Function.Name, c.Function.Arguments
		if name == "" {
			name, args = c.Name, c.Args
		}
		if name == "" {
			return t, wire.BadRequest(wire.Path(path, "tool_calls"), "%s.tool_calls[%d] has no name", path, i)
		}
		t.Calls = append(t.Calls, wire.ToolCall{ID: c.ID, Name: name, Arguments: wire.Arguments(args)})
	}
	return t, nil
}

// parseContent reads a text, or a list of parts that are texts.
func parseContent(raw json.RawMessage, path string) (string, error) {
	if len(raw) == 0 {
		return "", nil
	}
	var text string
	if wire.IsText(raw) && json.Unmarshal(raw, &text) == nil {
		return text, nil
	}
	var parts []struct {
		Type    string `json:"type"`
		Text    string `json:"text"`
		Refusal string `json:"refusal"`
	}
	if !wire.IsList(raw) || json.Unmarshal(raw, &parts) != nil {
		return "", wire.BadRequest(path, "%s: want a text or a list of parts", path)
	}
	texts := make([]string, len(parts))
	for i, p := range parts {
		switch p.Type {
		case "text", "input_text", "output_text":
			texts[i] = p.Text
		case "refusal":
			texts[i] = p.Refusal
		default:
			return "", wire.Unsupported(fmt.Sprintf("%s[%d]", path, i), "a part of type %q, only text is read", p.Type)
		}
	}
	return strings.Join(texts, "\n"), nil
}

// setTools reads the functions that the model may call, each by parse, and which it is to.
func setTools(p *wire.Call, raws []json.RawMessage, parse func(raw json.RawMessage, path string) (wire.Tool, error), asked json.RawMessage, parallel *bool) (err error) {
	tools := make([]wire.Tool, len(raws))
	for i, raw := range raws {
		if tools[i], err = parse(raw, fmt.Sprintf("tools[%d]", i)); err != nil {
			return err
		}
	}
	choice, err := parseChoice(asked)
	if err != nil {
		return err
	}
	if err := p.SetTools(tools, choice); err != nil {
		return err
	}
	p.OneCall = parallel != nil && !*parallel
	return nil
}

func parseTool(raw json.RawMessage, path string) (wire.Tool, error) {
	var t struct {
		Type     string          `json:"type"`
		Function json.RawMessage `json:"function"`
	}
	var who struct {
		Type string `json:"type"`
	}
	if err := wire.Decode(raw, path, &who, wire.Fields{wire.Others: wire.Label()}); err != nil {
		return wire.Tool{}, err
	}
	if who.Type != "function" {
		return wire.Tool{}, wire.Unsupported(wire.Path(path, "type"), "tools of type %q, only function", who.Type)
	}
	if err := wire.Decode(raw, path, &t, wire.Fields{"cache_control": wire.Label()}); err != nil {
		return wire.Tool{}, err
	}
	return parseFunction(t.Function, wire.Path(path, "function"), nil)
}

// parseFunction reads a function's description. strict changes nothing: arguments follow
// their schema anyway.
func parseFunction(raw json.RawMessage, path string, also wire.Fields) (wire.Tool, error) {
	var f struct {
		Name        string          `json:"name"`
		Description string          `json:"description"`
		Parameters  json.RawMessage `json:"parameters"`
	}
	fields := wire.Fields{"strict": wire.Only("true", "false")}
	for name, field := range also {
		fields[name] = field
	}
	if err := wire.Decode(raw, path, &f, fields); err != nil {
		return wire.Tool{}, err
	}
	return wire.NewTool(path, f.Name, f.Description, f.Parameters)
}

// parseChoice reads tool_choice, of chat completions or of responses.
func parseChoice(raw json.RawMessage) (wire.Choice, error) {
	var word string
	var c struct {
		Type     string `json:"type"`
		Name     string `json:"name"`
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	}
	modes := map[string]wire.Mode{"auto": wire.CallAuto, "none": wire.CallNone, "required": wire.CallAny}
	switch {
	case len(raw) == 0:
		return wire.Choice{}, nil
	case wire.IsText(raw) && json.Unmarshal(raw, &word) == nil:
		mode, ok := modes[word]
		if !ok {
			return wire.Choice{}, wire.BadRequest("tool_choice", "tool_choice is %q, want none, auto, required or a function", word)
		}
		return wire.Choice{Mode: mode}, nil
	}
	if err := wire.Decode(raw, "tool_choice", &c, nil); err != nil {
		return wire.Choice{}, err
	}
	if c.Type != "function" {
		return wire.Choice{}, wire.Unsupported("tool_choice.type", "%q, only function", c.Type)
	}
	return wire.Choice{Mode: wire.CallOne, Name: c.Name + c.Function.Name}, nil
}

// anyObject is the schema of a JSON object.
var anyObject = json.RawMessage(`{"type":"object"}`)

// parseFormat reads response_format, or the text.format of a response, which has the
// schema's fields beside its type.
func parseFormat(raw json.RawMessage, path string) (schema json.RawMessage, err error) {
	if len(raw) == 0 {
		return nil, nil
	}
	type named struct {
		Schema json.RawMessage `json:"schema"`
	}
	also := wire.Fields{"name": wire.Label(), "description": wire.Label(), "strict": wire.Only("true", "false")}
	var f struct {
		named
		Type       string          `json:"type"`
		JSONSchema json.RawMessage `json:"json_schema"`
	}
	if err := wire.Decode(raw, path, &f, also); err != nil {
		return nil, err
	}
	switch f.Type {
	case "text":
		return nil, nil
	case "json_object":
		if f.Schema != nil { // llama-server's way to give one
			return f.Schema, nil
		}
		return anyObject, nil
	case "json_schema":
		inner := f.named
		if f.JSONSchema != nil {
			if err := wire.Decode(f.JSONSchema, wire.Path(path, "json_schema"), &inner, also); err != nil {
				return nil, err
			}
		}
		if inner.Schema == nil {
			return nil, wire.BadRequest(wire.Path(path, "json_schema.schema"), "%s: the schema is missing", path)
		}
		return inner.Schema, nil
	}
	return nil, wire.Unsupported(wire.Path(path, "type"), "%q, only text, json_object and json_schema", f.Type)
}
