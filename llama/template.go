package llama

/*
#include <stdlib.h>
#include "glue.h"
*/
import "C"

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"github.com/gallop-llm/gallop/internal/template"
)

// Message is one turn of a conversation.
type Message struct {
	Role    string `json:"role"` // "system", "user", "assistant", "tool", …
	Content string `json:"content"`

	// Fields are further ones that chat templates know, as a JSON object:
	// tool_calls, tool_call_id, name, reasoning_content, … nil = none. One called
	// content takes Content's place.
	Fields json.RawMessage `json:"fields,omitempty"`
}

// Conversation is what a chat template is filled in with.
type Conversation struct {
	Messages []Message
	Answer   bool // end where the assistant's next turn begins

	// Tools are the functions that the model may call, a JSON array as in OpenAI's
	// API; nil = none.
	Tools json.RawMessage

	// Variables are further ones of the template, as a JSON object, such as
	// {"enable_thinking": false}; nil = those of [Model.SetTemplateVariables].
	Variables json.RawMessage
}

// Template returns the Jinja source of the model's chat template, "" when the
// file has none, or what [Model.SetTemplate] put in its place.
func (m *Model) Template() string { return m.template }

// SetTemplate makes the model use another chat template than its file's: Jinja
// source, or the name of a format that llama.cpp has built in, such as "chatml".
// It must not run beside other calls. The error wraps [ErrTemplate].
func (m *Model) SetTemplate(source string) error {
	if err := m.retain(); err != nil {
		return err
	}
	defer m.release()
	if isJinja(source) {
		if _, err := template.Parse(source); err != nil {
			return fmt.Errorf("%w: %w", ErrTemplate, err)
		}
	} else if _, err := builtinTemplate(source, []Message{{Role: "user", Content: "x"}}, true); err != nil {
		return fmt.Errorf("%w: llama.cpp knows no format %q; give its name, as in chatml, or a template's text", ErrTemplate, source)
	}
	m.template, m.chat = source, chatTemplate{variables: m.chat.variables}
	m.findEnd()
	return nil
}

// SetTemplateVariables gives the chat template further variables, a JSON object
// such as {"enable_thinking": false}. It must not run beside other calls. The error
// wraps [ErrTemplate].
func (m *Model) SetTemplateVariables(variables json.RawMessage) error {
	if _, err := object(variables, false); err != nil {
		return fmt.Errorf("%w: variables: %w", ErrTemplate, err)
	}
	m.chat.variables = variables
	return nil
}

// isJinja tells a template's text from a format's name.
func isJinja(source string) bool { return strings.Contains(source, "{") }

// ApplyTemplate is [Model.Render] of messages, as a text. It does not tell what was
// typed from what the template wrote: for tokens, use Render and
// [Vocab.TokenizeText].
func (m *Model) ApplyTemplate(messages []Message, answer bool) (string, error) {
	text, err := m.Render(Conversation{Messages: messages, Answer: answer})
	return text.String(), err
}

// Render writes a conversation in the model's own format, ready for
// [Vocab.TokenizeText], which puts BOS in front where the model wants it.
//
// A model without a template is a base model, which was not trained on any
// format: its conversation is one text that it continues. Each turn begins a
// paragraph, but for the assistant's, which go on where the text before ended.
//
// The error wraps [ErrTemplate].
func (m *Model) Render(c Conversation) (Rendered, error) {
	if err := m.retain(); err != nil {
		return Rendered{}, err
	}
	defer m.release()
	switch {
	case m.template == "":
		return document(c.Messages)
	case !isJinja(m.template):
		if text, err := builtinRender(m.template, c); !errors.Is(err, errFormat) {
			return text, err
		}
	}
	text, err := m.jinja(c)
	refused, wrong := new(template.Refusal), new(template.Error)
	switch {
	case errors.As(err, &refused):
		return Rendered{}, fmt.Errorf("%w: the model's template says: %s", ErrTemplate, briefly(refused.Message))
	case errors.As(err, &wrong):
		return Rendered{}, fmt.Errorf("%w: its line %d: %s; another can be given with --chat-template NAME or FILE, as in chatml",
			ErrTemplate, wrong.Line, briefly(wrong.Message))
	}
	return text, err
}

// document is a conversation as a text that a base model continues.
func document(messages []Message) (Rendered, error) {
	if len(messages) == 0 {
		return Rendered{}, fmt.Errorf("%w: the conversation is empty", ErrTemplate)
	}
	var text strings.Builder
	for i, msg := range messages {
		if i > 0 && msg.Role != "assistant" {
			text.WriteString("\n\n")
		}
		text.WriteString(msg.Content)
	}
	return template.Own(text.String()), nil
}

// briefly is what a template says, in one line.
func briefly(message string) string {
	text := strings.Join(strings.Fields(message), " ")
	if most := 200; len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// chatTemplate is a model's template, parsed at its first use.
type chatTemplate struct {
	once      sync.Once
	parsed    *template.Template
	err       error
	variables json.RawMessage
}

// roles are the names that templates know. Other roles count as typed, so that no
// control token can be made of one.
var roles = []string{"system", "developer", "user", "assistant", "tool", "function", "ipython", "observation", "documents"}

// object is a JSON object as a template's value; nil is one without keys.
func object(data json.RawMessage, typed bool) (*template.Dict, error) {
	if len(data) == 0 {
		return new(template.Dict), nil
	}
	v, err := template.FromJSON(data, typed)
	if err != nil {
		return nil, err
	}
	d, ok := v.(*template.Dict)
	if !ok {
		return nil, errors.New("not a JSON object")
	}
	return d, nil
}

// jinja renders the model's template with the names that Hugging Face's
// templates may use.
func (m *Model) jinja(c Conversation) (Rendered, error) {
	m.chat.once.Do(func() { m.chat.parsed, m.chat.err = template.Parse(m.template) })
	if m.chat.err != nil {
		return Rendered{}, m.chat.err
	}
	if c.Variables == nil {
		c.Variables = m.chat.variables
	}
	vars, err := object(c.Variables, false)
	if err != nil {
		return Rendered{}, fmt.Errorf("%w: variables: %w", ErrTemplate, err)
	}
	turns := make([]any, len(c.Messages))
	for i, msg := range c.Messages {
		turn := new(template.Dict)
		turn.Set("role", template.Typed(msg.Role))
		if slices.Contains(roles, msg.Role) {
			turn.Set("role", msg.Role)
		}
		turn.Set("content", template.Typed(msg.Content))
		fields, err := object(msg.Fields, true)
		if err != nil {
			return Rendered{}, fmt.Errorf("%w: message %d: %w", ErrTemplate, i+1, err)
		}
		turn.Update(fields)
		turns[i] = turn
	}
	vars.Set("tools", nil)
	if c.Tools != nil {
		tools, err := template.FromJSON(c.Tools, true)
		if err != nil {
			return Rendered{}, fmt.Errorf("%w: tools: %w", ErrTemplate, err)
		}
		vars.Set("tools", tools)
	}
	bos := m.special(m.Vocab.BOS)
	vars.Set("messages", turns)
	vars.Set("add_generation_prompt", c.Answer)
	vars.Set("bos_token", bos)
	vars.Set("eos_token", m.special(m.Vocab.EOS))
	text, err := m.chat.parsed.Render(vars)
	if err != nil {
		return Rendered{}, err
	}
	return oneBOS(text, bos, m.Vocab.AddBOS), nil
}

// oneBOS takes the template's BOS away where the tokenizer puts it there, and all
// but one of several in a row where it does not.
func oneBOS(text Rendered, bos string, added bool) Rendered {
	if bos == "" {
		return text
	}
	begins := func(text Rendered) bool {
		return strings.HasPrefix(text.String(), bos) && !text.Typed(0, len(bos))
	}
	for begins(text) {
		rest := text.Slice(len(bos), text.Len())
		if !added && !begins(rest) {
			break
		}
		text = rest
	}
	return text
}

// findEnd makes the token that the template writes behind an answer end a
// generation, beside those that llama.cpp knows.
func (m *Model) findEnd() {
	v := m.Vocab
	v.end = v.ends
	if v.bare || m.template == "" {
		return
	}
	text, err := m.Render(Conversation{Messages: []Message{{Role: "user", Content: "x"}, {Role: "assistant", Content: "x"}}})
	if err != nil {
		return // a conversation that is told of when one is asked for
	}
	at := text.Len()
	for at > 0 && !text.Typed(at-1, at) {
		at--
	}
	tokens, err := v.tokenize(strings.TrimSpace(text.Slice(at, text.Len()).String()), true, false)
	if err != nil || len(tokens) == 0 || !v.isControl(tokens[0]) || v.ends[tokens[0]] {
		return
	}
	v.end = slices.Clone(v.ends)
	v.end[tokens[0]] = true
}

// special is the text of a special token, "" for none.
func (m *Model) special(t Token) string {
	if t == NoToken || m.Vocab.bare {
		return ""
	}
	return C.GoString(C.llama_vocab_get_text(m.Vocab.ptr, C.llama_token(t)))
}

// builtinRender has llama.cpp write the conversation in a format that it knows by
// name. It does so with a stand-in for each content, so that what was typed can be
// told from the format.
func builtinRender(format string, c Conversation) (Rendered, error) {
	standIns := slices.Clone(c.Messages)
	for i := range standIns {
		standIns[i].Content = "\t" + standIn(i) + "\t" // no format writes tabs
	}
	text, err := builtinTemplate(format, standIns, c.Answer)
	if err != nil {
		return Rendered{}, err
	}
	var parts []Rendered
	for i, msg := range c.Messages {
		before, after, found := strings.Cut(text, standIn(i))
		if !found {
			continue // the format leaves it out
		}
		content := msg.Content
		var left, right bool // what the format left of the tabs around
		if before, left = strings.CutSuffix(before, "\t"); !left {
			content = strings.TrimLeft(content, whiteSpace)
		}
		if after, right = strings.CutPrefix(after, "\t"); !right {
			content = strings.TrimRight(content, whiteSpace)
		}
		parts = append(parts, template.Own(before), template.Typed(content))
		text = after
	}
	return template.Join(append(parts, template.Own(text))...), nil
}

// standIn is a text that nobody types, of characters that Unicode gives no meaning.
func standIn(i int) string { return fmt.Sprintf("\ufdd0%d\ufdd1", i) }

// errFormat is returned for what llama.cpp recognises as none of its formats.
var errFormat = fmt.Errorf("%w: llama.cpp knows no such format", ErrTemplate)

// builtinTemplate has llama.cpp write the conversation in a format that it
// knows by name.
func builtinTemplate(format string, messages []Message, answer bool) (string, error) {
	if len(messages) == 0 {
		return "", fmt.Errorf("%w: the conversation is empty", ErrTemplate)
	}
	var texts []unsafe.Pointer
	defer func() {
		for _, p := range texts {
			C.free(p)
		}
	}()
	own := func(s string) *C.char {
		p := C.CString(s)
		texts = append(texts, unsafe.Pointer(p))
		return p
	}
	size := 1024
	chat := make([]C.struct_llama_chat_message, len(messages))
	for i, msg := range messages {
		if strings.ContainsRune(msg.Role, 0) {
			return "", fmt.Errorf("%w: the role of message %d has a zero byte", ErrTemplate, i+1)
		}
		chat[i] = C.struct_llama_chat_message{role: own(msg.Role), content: own(msg.Content)}
		size += 2 * (len(msg.Role) + len(msg.Content))
	}
	tmpl := own(format)
	for {
		buf := (*C.char)(C.malloc(C.size_t(size)))
		texts = append(texts, unsafe.Pointer(buf))
		n := int(C.llama_chat_apply_template(tmpl, &chat[0], C.size_t(len(chat)), C.bool(answer), buf, C.int32_t(size)))
		if n < 0 {
			return "", errFormat
		}
		if n <= size {
			return C.GoStringN(buf, C.int(n)), nil
		}
		size = n
	}
}
