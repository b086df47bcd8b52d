package llama

/*
#include <stdlib.h>
#include "glue.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/nikolalohinski/gonja/v2"
	"github.com/nikolalohinski/gonja/v2/config"
	"github.com/nikolalohinski/gonja/v2/exec"
	"github.com/nikolalohinski/gonja/v2/loaders"
)

// Message is one turn of a conversation.
type Message struct {
	Role    string `json:"role"` // "system", "user", "assistant", …
	Content string `json:"content"`
}

// Template returns the Jinja source of the model's chat template, "" when the
// file has none, or what [Model.SetTemplate] put in its place.
func (m *Model) Template() string { return m.template }

// SetTemplate makes the model use another chat template than its file's: Jinja
// source, or the name of a format that llama.cpp has built in, such as "chatml".
// It must not run beside other calls. The error wraps [ErrTemplate].
func (m *Model) SetTemplate(template string) error {
	if !isJinja(template) {
		if _, err := m.builtinTemplate(template, []Message{{Role: "user", Content: "x"}}, true); err != nil {
			return fmt.Errorf("%w: llama.cpp knows no format %q; give its name, as in chatml, or a template's text", ErrTemplate, template)
		}
	}
	m.template, m.chat = template, chatTemplate{}
	return nil
}

// errFormat is returned for what llama.cpp recognises as none of its formats.
var errFormat = fmt.Errorf("%w: llama.cpp knows no such format", ErrTemplate)

// isJinja tells a template's text from a format's name.
func isJinja(template string) bool { return strings.Contains(template, "{") }

// ApplyTemplate writes a conversation in the model's own format, ready for
// [Vocab.Tokenize] with special markers. With answer, it ends where the
// assistant's next turn begins.
//
// A model without a template is a base model, which was not trained on any
// format: its conversation is one text that it continues. Each turn begins a
// paragraph, but for the assistant's, which go on where the text before ended.
//
// A template that our Jinja does not understand is left to llama.cpp, if that
// recognises it as one of its built-in formats. The error wraps [ErrTemplate].
func (m *Model) ApplyTemplate(messages []Message, answer bool) (string, error) {
	if err := m.retain(); err != nil {
		return "", err
	}
	defer m.release()
	if m.template == "" {
		return document(messages)
	}
	if !isJinja(m.template) {
		if text, err := m.builtinTemplate(m.template, messages, answer); !errors.Is(err, errFormat) {
			return text, err
		}
	}
	text, err := m.jinja(messages, answer)
	if err == nil {
		return text, nil
	}
	if refused := new(templateRefusal); errors.As(err, &refused) {
		return "", fmt.Errorf("%w: the model's template says: %s", ErrTemplate, refused.message)
	}
	text, builtinErr := m.builtinTemplate(m.template, messages, answer)
	if builtinErr != nil {
		return "", fmt.Errorf("%w: as Jinja: %s; built in: no such format", ErrTemplate, m.briefly(err))
	}
	return text, nil
}

// document is a conversation as a text that a base model continues.
func document(messages []Message) (string, error) {
	if len(messages) == 0 {
		return "", fmt.Errorf("%w: the conversation is empty", ErrTemplate)
	}
	var text strings.Builder
	for i, msg := range messages {
		if i > 0 && msg.Role != "assistant" {
			text.WriteString("\n\n")
		}
		text.WriteString(msg.Content)
	}
	return text.String(), nil
}

// templateRefusal is a template's own raise_exception: the conversation is at
// fault, so no other format may be tried.
type templateRefusal struct{ message string }

func (r *templateRefusal) Error() string { return r.message }

// briefly is an error of the Jinja library, which may quote the whole template,
// in one line.
func (m *Model) briefly(err error) string {
	text := strings.ReplaceAll(err.Error(), m.template, "…")
	text = strings.Join(strings.Fields(text), " ")
	if most := 200; len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// onceLoader gives the template a single time: it may include no file, nor
// itself, which would never end.
type onceLoader struct {
	loaders.Loader
	given *bool
}

func (l onceLoader) Inherit(string) (loaders.Loader, error) { return l, nil }

func (l onceLoader) Read(path string) (io.Reader, error) {
	if *l.given {
		return nil, errors.New("a chat template may not include others")
	}
	*l.given = true
	return l.Loader.Read(path)
}

// maxOutput bounds a conversation's text, in bytes, and maxRange the steps of a
// template's range(): far above any real template's, so that one without end
// stops.
const (
	maxOutput = 16 << 20
	maxRange  = 1 << 16
)

// limitedWriter refuses to grow beyond maxOutput.
type limitedWriter struct{ strings.Builder }

func (w *limitedWriter) Write(p []byte) (int, error) {
	if w.Len()+len(p) > maxOutput {
		return 0, errors.New("the text has no end")
	}
	return w.Builder.Write(p)
}

func (w *limitedWriter) WriteString(s string) (int, error) { return w.Write([]byte(s)) }

// numbers is Jinja's range(stop), range(start, stop) and range(start, stop, step).
func numbers(bounds ...int) ([]int, error) {
	start, stop, step := 0, 0, 1
	switch len(bounds) {
	case 1:
		stop = bounds[0]
	case 2:
		start, stop = bounds[0], bounds[1]
	case 3:
		start, stop, step = bounds[0], bounds[1], bounds[2]
	default:
		return nil, errors.New("range takes 1 to 3 numbers")
	}
	var list []int
	for i := start; step > 0 && i < stop || step < 0 && i > stop; i += step {
		if len(list) == maxRange {
			return nil, fmt.Errorf("a range of over %d numbers", maxRange)
		}
		list = append(list, i)
	}
	return list, nil
}

// chatTemplate is a model's template, parsed at its first use: that takes longer
// than writing a short conversation by it.
type chatTemplate struct {
	mu     sync.Mutex // also while it is at work
	tried  bool
	parsed *exec.Template
	err    error
}

// parse gives the parsed template. mu must be held.
func (t *chatTemplate) parse(source string) (*exec.Template, error) {
	if t.tried {
		return t.parsed, t.err
	}
	t.tried, t.err = true, errors.New("it cannot be parsed") // unless it can
	conf := config.New()
	conf.TrimBlocks, conf.LeftStripBlocks = true, true
	// Held in memory, and nothing beside it: a template must not include files.
	const name = "/chat"
	loader, err := loaders.NewMemoryLoader(map[string]string{name: source})
	if err == nil {
		t.parsed, err = exec.NewTemplate(name, conf, onceLoader{loader, new(bool)}, gonja.DefaultEnvironment)
	}
	t.err = err
	return t.parsed, t.err
}

// jinja renders the model's template with the names that Hugging Face's
// templates may use.
func (m *Model) jinja(messages []Message, answer bool) (text string, err error) {
	var refusal *templateRefusal
	defer func() {
		// Templates come from files that strangers made.
		if r := recover(); r != nil {
			text, err = "", fmt.Errorf("%v", r)
		}
		if refusal != nil {
			text, err = "", refusal
		}
	}()
	m.chat.mu.Lock()
	defer m.chat.mu.Unlock()
	template, err := m.chat.parse(m.template)
	if err != nil {
		return "", err
	}
	turns := make([]map[string]any, len(messages))
	for i, msg := range messages {
		turns[i] = map[string]any{"role": msg.Role, "content": msg.Content}
	}
	bos := m.special(m.Vocab.BOS)
	var out limitedWriter
	err = template.Execute(&out, exec.NewContext(map[string]any{
		"messages":              turns,
		"add_generation_prompt": answer,
		"bos_token":             bos,
		"eos_token":             m.special(m.Vocab.EOS),
		"tools":                 nil,
		"range":                 numbers,
		"raise_exception": func(message string) (string, error) {
			refusal = &templateRefusal{message}
			return "", refusal
		},
		"strftime_now": func(format string) string { return strftime(time.Now(), format) },
	}))
	if err != nil {
		return "", err
	}
	text = out.String()
	if m.Vocab.AddBOS && bos != "" {
		text = strings.TrimPrefix(text, bos) // Tokenize puts it there
	}
	return text, nil
}

// special is the text of a special token, "" for none.
func (m *Model) special(t Token) string {
	if t == NoToken || m.Vocab.bare {
		return ""
	}
	return C.GoString(C.llama_vocab_get_text(m.Vocab.ptr, C.llama_token(t)))
}

// strftime knows the directives that chat templates use for a date.
func strftime(t time.Time, format string) string {
	return strings.NewReplacer(
		"%Y", t.Format("2006"), "%m", t.Format("01"), "%d", t.Format("02"), "%b", t.Format("Jan"), "%B", t.Format("January"),
		"%A", t.Format("Monday"), "%H", t.Format("15"), "%M", t.Format("04"), "%S", t.Format("05"), "%%", "%",
	).Replace(format)
}

// builtinTemplate has llama.cpp write the conversation in a format that it
// knows by name, or recognises from a template's text.
func (m *Model) builtinTemplate(template string, messages []Message, answer bool) (string, error) {
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
		if strings.ContainsRune(msg.Role+msg.Content, 0) {
			return "", fmt.Errorf("%w: message %d has a zero byte", ErrTemplate, i+1)
		}
		chat[i] = C.struct_llama_chat_message{role: own(msg.Role), content: own(msg.Content)}
		size += 2 * (len(msg.Role) + len(msg.Content))
	}
	tmpl := own(template)
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
