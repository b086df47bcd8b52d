package tools

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/gbnftest"
	"github.com/gallop-llm/gallop/internal/template"
)

// offered are the functions of the tests.
var offered = []Function{
	{Name: "get_weather", Parameters: json.RawMessage(`{"type":"object","properties":{"city":{"type":"string"},"days":{"type":"integer","minimum":1},"exact":{"type":"boolean"},"unit":{"enum":["C","F"]},"where":{"type":"object","properties":{"x":{"type":"array","items":{"type":"number"}}}}},"required":["city"]}`)},
	{Name: "noop"},
}

// made are the calls of the tests.
var made = []Call{
	{ID: "call00001", Name: "get_weather", Arguments: `{"city": "Oslo \"x\" <b> 天気", "days": 2, "exact": true, "unit": "C", "where": {"x": [1, 2.5]}}`},
	{ID: "call00002", Name: "noop", Arguments: `{}`},
}

// called are the calls of the tests with the ids that a format's models give them.
func (f *Format) called() []Call {
	calls := slices.Clone(made)
	if f.single {
		calls = calls[:1]
	}
	for i := range calls {
		if f.Name == "kimi" { // whose templates write the id in the name's place
			calls[i].ID = fmt.Sprintf("functions.%s:%d", calls[i].Name, i)
		}
	}
	return calls
}

// ambiguous are published templates, by the end of the file's name, that put texts between
// quotes without escaping the quotes within: nobody can tell where such a text ends, so
// that what they write of one is no call. Calls without quotes in texts are read back.
var ambiguous = map[string]string{
	"-309e.jinja": `format_arg_value of LFM2 writes '"' + arg_value + '"'`,
}

// answerOf renders an assistant's message with calls and gives what the model would
// have written, and the prompt in front of it.
func answerOf(t *testing.T, source string, message map[string]any) (prompt, answer string, err error) {
	tmpl, err := template.Parse(source)
	if err != nil {
		return "", "", err
	}
	var functions []any
	for _, fn := range offered {
		parameters := fn.Parameters
		if parameters == nil {
			parameters = json.RawMessage(`{"type":"object","properties":{}}`)
		}
		functions = append(functions, map[string]any{"type": "function", "function": map[string]any{"name": fn.Name, "description": "Does it", "parameters": parameters}})
	}
	render := func(messages []any, answer bool) (string, error) {
		vars, err := json.Marshal(map[string]any{"messages": messages, "tools": functions, "add_generation_prompt": answer, "bos_token": "<s>", "eos_token": "</s>"})
		require.NoError(t, err)
		v, err := template.FromJSON(vars, true)
		require.NoError(t, err)
		text, err := tmpl.Render(v.(*template.Dict))
		return text.String(), err
	}
	const result = "RESULT-OF-THE-CALL"
	user := map[string]any{"role": "user", "content": "Weather?"}
	if prompt, err = render([]any{user}, true); err != nil {
		return "", "", err
	}
	text, err := render([]any{user, message, map[string]any{"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": result}}, false)
	if err != nil {
		return "", "", err
	}
	text, _, _ = strings.Cut(text, result)
	at := 0
	for at < len(prompt) && at < len(text) && prompt[at] == text[at] {
		at++
	}
	for at > 0 && at < len(text) && text[at]&0xC0 == 0x80 {
		at--
	}
	// What both share may be the beginning of a mark.
	if i := strings.LastIndexAny(text[:at], "<["); i >= 0 && !strings.ContainsAny(text[i:at], ">]\n") {
		at = i
	}
	// Nor does the answer begin within reasoning that the prompt would have opened.
	for _, r := range Recognise(source).reasoning {
		if i := strings.LastIndex(text[:at], strings.TrimSpace(r.open)); i >= 0 && !strings.Contains(text[i:at], r.close) {
			at = i
		}
	}
	return prompt, text[at:], nil
}

// withCalls is an assistant's message.
func withCalls(calls []Call, content string, asText bool) map[string]any {
	var list []any
	for _, c := range calls {
		var arguments any = json.RawMessage(c.Arguments)
		if asText {
			arguments = c.Arguments
		}
		list = append(list, map[string]any{"id": c.ID, "type": "function", "function": struct {
			Name      string `json:"name"`
			Arguments any    `json:"arguments"`
		}{c.Name, arguments}})
	}
	return map[string]any{"role": "assistant", "content": content, "tool_calls": list}
}

// sameCalls compares names and arguments.
func sameCalls(t *testing.T, want, got []Call, about string) bool {
	if len(want) != len(got) {
		return false
	}
	for i := range want {
		if want[i].Name != got[i].Name {
			return false
		}
		var a, b any
		if json.Unmarshal([]byte(want[i].Arguments), &a) != nil || json.Unmarshal([]byte(got[i].Arguments), &b) != nil {
			return false
		}
		x, err := json.Marshal(a)
		require.NoError(t, err, about)
		y, err := json.Marshal(b)
		require.NoError(t, err, about)
		if string(x) != string(y) {
			return false
		}
	}
	return true
}

// TestPublishedTemplates recognises the templates in the folder that
// GALLOP_TEMPLATES names, has each write calls, and reads them back. It is run by
// make templates.
func TestPublishedTemplates(t *testing.T) {
	folder := os.Getenv("GALLOP_TEMPLATES")
	if folder == "" {
		t.Skip("make templates fetches them")
	}
	files, err := filepath.Glob(filepath.Join(folder, "*.jinja"))
	require.NoError(t, err)
	rig := gbnftest.NewRig(t)
	back, both, apart, kinds := 0, 0, 0, map[string]int{}
	for _, file := range files {
		source, err := os.ReadFile(file)
		require.NoError(t, err)
		f := Recognise(string(source))
		kinds[f.Name]++
		if f.Name == "json" {
			continue
		}
		calls := f.called()
		for end, why := range ambiguous {
			if strings.HasSuffix(file, end) {
				t.Logf("%s, %s: without quotes in texts: %s", filepath.Base(file), f.Name, why)
				_, answer, err := answerOf(t, string(source), withCalls(calls, "", false))
				require.NoError(t, err)
				require.Empty(t, f.Parse(Request{Functions: offered}, answer).Calls, answer)
				calls[0].Arguments = strings.Replace(calls[0].Arguments, `\"x\"`, "x", 1)
			}
		}
		var answer string
		for _, asText := range []bool{false, true} {
			_, answer, err = answerOf(t, string(source), withCalls(calls, "", asText))
			if err == nil && strings.Contains(answer, "get_weather") {
				break
			}
		}
		if err != nil || !strings.Contains(answer, "get_weather") {
			t.Logf("%s, %s: writes no calls: %v %q", filepath.Base(file), f.Name, err, answer)
			continue
		}
		m := f.Parse(Request{Functions: offered}, answer)
		if !sameCalls(t, calls, m.Calls, file) {
			t.Errorf("%s, %s: %q gives %+v", filepath.Base(file), f.Name, answer, m)
			continue
		}
		back++
		// The grammar that forces calls lets them be written as the template does.
		mark := f.close
		if mark == "" {
			mark = f.end
		}
		if mark != "" {
			last := mark[strings.LastIndexByte(mark, '\n')+1:]
			for _, eos := range []string{"</s>", "<|im_end|>"} {
				answer, _, _ = strings.Cut(answer, eos)
			}
			written := strings.TrimLeft(answer[:strings.LastIndex(answer, last)+len(last)], " \n")
			if f.layout == taggedCalls {
				written = strings.ReplaceAll(written, "True", "true")
			}
			grammar, err := f.Grammar(Request{Functions: offered, Choice: Required, Parallel: true})
			require.NoError(t, err)
			if !rig.Accepts(t, grammar, written) {
				t.Logf("%s, %s: the grammar does not let %q be written", filepath.Base(file), f.Name, written)
				apart++
			}
		}
		// With a text and reasoning around, none of them turns up in another's place.
		const content, thought = "Let me see.", "I wonder."
		said := withCalls(calls, content, false)
		said["reasoning_content"], said["thinking"] = thought, thought
		if _, answer, err = answerOf(t, string(source), said); err != nil || !strings.Contains(answer, "get_weather") {
			continue
		}
		m = f.Parse(Request{Functions: offered}, answer)
		if !sameCalls(t, calls, m.Calls, file) ||
			strings.Contains(answer, content) && (!strings.Contains(m.Content, content) || strings.Contains(m.Content, thought)) ||
			strings.Contains(answer, thought) && m.Reasoning != thought {
			t.Errorf("%s, %s: %q gives %+v", filepath.Base(file), f.Name, answer, m)
			continue
		}
		both++
	}
	t.Logf("%d of %d templates, %d read back, %d with a text, %d not as the grammar writes: %v", len(files)-kinds["json"], len(files), back, both, apart, kinds)
}
