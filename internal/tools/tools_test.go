package tools

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/gbnftest"
	"github.com/gallop-llm/gallop/internal/schema"
)

// dialect is what a format's models write.
type dialect struct {
	name     string
	template string // marks of a template
	begin    string // of an answer
	call     string // with $N for its name and $A for its arguments
	between  string
	end      string
	single   bool
	gemma    bool
}

// dialects are written by hand from what the published templates render.
var dialects = []dialect{
	{name: "hermes", template: `{{ "<tool_call>\n" }}`, call: "<tool_call>\n{\"name\": \"$N\", \"arguments\": $A}\n</tool_call>", between: "\n"},
	{name: "llama", template: `<|start_header_id|> '{"name": ' '"parameters": ' message.tool_calls`, call: `{"name": "$N", "parameters": $A}`, single: true},
	{name: "mistral", template: "[TOOL_CALLS] [", begin: "[TOOL_CALLS][", call: `{"name": "$N", "arguments": $A}`, between: ", ", end: "]"},
	{name: "mistral-named", template: "[TOOL_CALLS] [ARGS]", call: "[TOOL_CALLS]$N[ARGS]$A"},
	{name: "mistral-named", template: "[TOOL_CALLS] [CALL_ID] [ARGS]", call: "[TOOL_CALLS]$N[CALL_ID]000000000[ARGS]$A"},
	{name: "deepseek", template: "<｜tool▁calls▁begin｜> ```json", begin: "<｜tool▁calls▁begin｜>",
		call: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>$N\n```json\n$A\n```<｜tool▁call▁end｜>", between: "\n", end: "<｜tool▁calls▁end｜>"},
	{name: "deepseek-v3.1", template: "<｜tool▁calls▁begin｜>", begin: "<｜tool▁calls▁begin｜>", call: "<｜tool▁call▁begin｜>$N<｜tool▁sep｜>$A<｜tool▁call▁end｜>", end: "<｜tool▁calls▁end｜>"},
	{name: "harmony", template: "<|channel|> <|message|> to=", call: "<|channel|>commentary to=functions.$N <|constrain|>json<|message|>$A", single: true},
	{name: "gemma", template: `<|tool_call> call: <|channel>thought`, call: "<|tool_call>call:$N$A<tool_call|>", gemma: true},
	{name: "functiongemma", template: `<start_function_call> call:`, call: "<start_function_call>call:$N$A<end_function_call>", gemma: true},
	{name: "granite", template: "<|start_of_role|> <|tool_call|>", begin: "<|tool_call|>[", call: `{"name": "$N", "arguments": $A}`, between: ", ", end: "]"},
	{name: "kimi", template: "<|tool_calls_section_begin|> <|tool_call_argument_begin|>", begin: "<|tool_calls_section_begin|>",
		call: "<|tool_call_begin|>functions.$N:0<|tool_call_argument_begin|>$A<|tool_call_end|>", end: "<|tool_calls_section_end|>"},
	{name: "command", template: "<|START_ACTION|> <|START_THINKING|>", begin: "<|START_ACTION|>[\n    ", call: `{"tool_call_id": "0", "tool_name": "$N", "parameters": $A}`,
		between: ",\n    ", end: "\n]<|END_ACTION|>"},
	{name: "apriel", template: "<tool_calls>", begin: "<tool_calls>[", call: `{"name": "$N", "arguments": $A}`, between: ", ", end: "]</tool_calls>"},
	{name: "functionary", template: "<function= </function>", call: "<function=$N>$A</function>"},
	{name: "json", template: "{{ messages }}", call: `{"name": "$N", "arguments": $A}`, between: "\n"},
}

// answer has a dialect's model make calls.
func (d dialect) answer(calls []Call) string {
	var parts []string
	for _, c := range calls {
		arguments := c.Arguments
		if d.gemma {
			quote := Recognise(d.template).quote
			arguments = strings.NewReplacer(`\"`, `"`, `": "`, ":"+quote, `", "`, quote+",", `": `, ":", `, "`, ",", `{"`, "{", `"}`, quote+"}").Replace(arguments)
			arguments = strings.ReplaceAll(arguments, ", ", ",")
		}
		parts = append(parts, strings.NewReplacer("$N", c.Name, "$A", arguments).Replace(d.call))
	}
	return d.begin + strings.Join(parts, d.between) + d.end
}

// calls are those of the tests that a dialect can make at once.
func (d dialect) calls() []Call {
	if d.single {
		return made[:1]
	}
	return made
}

// TestAnswers takes answers apart: calls alone, and behind reasoning and a text.
func TestAnswers(t *testing.T) {
	for _, d := range dialects {
		t.Run(d.name, func(t *testing.T) {
			f := Recognise(d.template)
			require.Equal(t, d.name, f.Name)
			require.Equal(t, !d.single, f.Parallel())
			request := Request{Functions: offered}
			answer := d.answer(d.calls())
			m := f.Parse(request, answer)
			require.True(t, sameCalls(t, d.calls(), m.Calls, d.name), "%q gives %+v", answer, m)
			require.Empty(t, m.Content)
			require.Empty(t, m.Reasoning)
			for _, c := range m.Calls {
				require.NotEmpty(t, c.ID)
				if f.shortID {
					require.Len(t, c.ID, 9)
				}
			}
			if len(m.Calls) > 1 {
				require.NotEqual(t, m.Calls[0].ID, m.Calls[1].ID)
			}

			// Without functions the same text is content.
			m = f.Parse(Request{Functions: offered, Choice: None}, answer)
			require.Empty(t, m.Calls)
			require.NotEmpty(t, m.Content)

			if d.name == "harmony" {
				answer = "<|channel|>analysis<|message|>I wonder. <|end|><|start|>assistant<|channel|>commentary<|message|>Let me see.<|end|><|start|>assistant" + answer
			} else {
				tag := f.reasoning[0]
				answer = tag.open + "\nI wonder. \n" + tag.close + "\n\nLet me see.\n" + answer
			}
			m = f.Parse(request, answer)
			require.Equal(t, "I wonder.", m.Reasoning)
			switch d.name {
			case "llama", "json": // calls stand alone
				require.Contains(t, m.Content, "Let me see.\n{")
			default:
				require.Equal(t, "Let me see.", m.Content)
				require.True(t, sameCalls(t, d.calls(), m.Calls, d.name), "%q gives %+v", answer, m)
			}
		})
	}
}

// mark is what formats write as a control token.
var mark = regexp.MustCompile(`<[^<>\n]{2,}>|\[[A-Z_]+\]`)

// parseMarked takes an answer apart whose marks are control tokens.
func parseMarked(f *Format, r Request, answer string) (m Message) {
	p, from := f.Parser(r), 0
	for _, at := range mark.FindAllStringIndex(answer, -1) {
		m.Add(p.Write(answer[from:at[0]])...)
		m.Add(p.Control(answer[at[0]:at[1]])...)
		from = at[1]
	}
	m.Add(p.Write(answer[from:])...)
	m.Add(p.Close(false)...)
	return m
}

// TestControls reads marks that are control tokens as those that are text, and lets no other
// control token through.
func TestControls(t *testing.T) {
	const stray = "<|stray|>"
	for _, d := range dialects {
		f, request, answer := Recognise(d.template), Request{Functions: offered}, d.answer(d.calls())
		m := parseMarked(f, request, answer)
		require.True(t, sameCalls(t, d.calls(), m.Calls, d.name), "%s: %q gives %+v", d.name, answer, m)
		require.Empty(t, m.Content, d.name)
		answer = "I see." + stray + " " + stray + "So it is." + stray
		want := "I see. So it is."
		if d.name == "harmony" {
			answer = "<|channel|>analysis<|message|>" + stray + "Hm" + stray + "m.<|end|><|start|>assistant<|channel|>final<|message|>" + answer
		} else {
			open, end := f.reasoning[0].open, f.reasoning[0].close
			answer = open + stray + "Hm" + stray + "m." + end + answer
		}
		m = parseMarked(f, request, answer)
		require.Equal(t, Message{Content: want, Reasoning: "Hmm."}, m, d.name)
	}
	f, request := Recognise("<tool_call>"), Request{Functions: offered}
	m := parseMarked(f, request, `<tool_call>{"name": "noop", "arguments": {"a": "x<|stray|>y"}}</tool_call>`)
	require.Equal(t, `{"a": "xy"}`, m.Calls[0].Arguments)
	m = parseMarked(f, request, `See: <tool_call>{"name": "noop", "arguments": {"a": <|stray|>1}}</tool_call>`)
	require.Empty(t, m.Calls)
	require.NotContains(t, m.Content, "stray", "of a call that is none")
	m = parseMarked(f, request, strings.Repeat("abc<|stray|> ", 1000))
	require.Equal(t, strings.Repeat("abc ", 1000), m.Content)
	m = parseMarked(Recognise(""), request, `<|stray|>{"name": "noop", "arguments": {}}`)
	require.Len(t, m.Calls, 1, "it still stands at the beginning")
}

func TestRecognise(t *testing.T) {
	for template, want := range map[string]string{
		"": "json",
		"{%- for m in messages %}{{ m.content }}{% endfor %}":                      "json",
		`<tool_call>\n<function=x>\n<parameter=y>`:                                 "qwen-coder",
		`<seed:tool_call>\n<function=x>\n<parameter=y> <seed:think>`:               "seed",
		`<tool_call>{name}\n<arg_key>k</arg_key>`:                                  "glm",
		`<|start_of_role|> <tool_call>`:                                            "hermes",
		`<|start_header_id|> {"name": function name, "parameters": …} <tool_call>`: "hermes",
	} {
		require.Equal(t, want, Recognise(template).Name, template)
	}
	f := Recognise("<think>")
	require.True(t, f.Opens("<|im_start|>assistant\n<think>\n"))
	require.False(t, f.Opens("<|im_start|>assistant\n<think>\n\n</think>\n\n"))
	require.False(t, f.Opens("<|im_start|>assistant\n"))
	require.Contains(t, Recognise("").Instructions(offered), "get_weather")
	require.Empty(t, Recognise("<tool_call>").Instructions(offered))
}

// TestTags has formats with a tag for each argument.
func TestTags(t *testing.T) {
	want := []Call{
		{Name: "get_weather", Arguments: `{"city": "Oslo \"x\" <b>\n\n天気", "days": 2, "exact": true, "unit": "C", "where": {"x": [1, 2.5]}}`},
		{Name: "noop", Arguments: `{}`},
	}
	for template, answer := range map[string]string{
		`<tool_call>\n<function=x>\n<parameter=y>`: "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo \"x\" <b>\n\n天気\n</parameter>\n<parameter=days>\n2\n</parameter>\n<parameter=exact>\nTrue\n</parameter>\n" +
			"<parameter=unit>\nC\n</parameter>\n<parameter=where>\n{\"x\": [1, 2.5]}\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=noop>\n</function>\n</tool_call>",
		`<seed:tool_call>\n<function=x>\n<parameter=y>`: "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Oslo \"x\" <b>\n\n天気</parameter>\n<parameter=days>2</parameter>\n<parameter=exact>true</parameter>\n" +
			"<parameter=unit>C</parameter>\n<parameter=where>{\"x\": [1, 2.5]}</parameter>\n</function>\n</seed:tool_call>\n<seed:tool_call>\n<function=noop>\n</function>\n</seed:tool_call>",
		`<tool_call>{name}<arg_key>k</arg_key><arg_value>`: "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Oslo \"x\" <b>\n\n天気</arg_value><arg_key>days</arg_key><arg_value>2</arg_value><arg_key>exact</arg_key><arg_value>true</arg_value>" +
			"<arg_key>unit</arg_key><arg_value>C</arg_value><arg_key>where</arg_key><arg_value>{\"x\": [1, 2.5]}</arg_value></tool_call><tool_call>noop</tool_call>",
		`<tool_call>{name}\n<arg_key>k</arg_key>`: "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo \"x\" <b>\n\n天気</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n<arg_key>exact</arg_key>\n<arg_value>true</arg_value>\n" +
			"<arg_key>unit</arg_key>\n<arg_value>C</arg_value>\n<arg_key>where</arg_key>\n<arg_value>{\"x\": [1, 2.5]}</arg_value>\n</tool_call>\n<tool_call>noop\n</tool_call>",
		"<|tool_call_start|>": "<|tool_call_start|>[get_weather(city=\"Oslo \\\"x\\\" <b>\\n\\n天気\", days=2, exact=True, unit=\"C\", where={\"x\": [1, 2.5]}), noop()]<|tool_call_end|>",
	} {
		f := Recognise(template)
		m := f.Parse(Request{Functions: offered}, "Let me see.\n"+answer)
		require.True(t, sameCalls(t, want, m.Calls, f.Name), "%s: %+v", f.Name, m)
		require.Equal(t, "Let me see.", m.Content)
		everySplit(t, f, Request{Functions: offered}, answer)
		if f.layout == taggedCalls {
			answer = strings.Replace(answer, "True", "true", 1)
		}
		followed(t, f, answer)
	}
}

// odd answers that are no calls, or whose calls are written in an unusual way.
func TestOddAnswers(t *testing.T) {
	city := []Call{{Name: "get_weather", Arguments: `{"city":"Oslo"}`}}
	for _, c := range []struct {
		template, answer string
		content          string
		calls            []Call
	}{
		{"<tool_call>", "Use <tool_call> to call.", "Use <tool_call> to call.", nil},
		{"<tool_call>", "a <tool", "a <tool", nil},
		{"<tool_call>", "a \n<tool_call>{\"name\":\"noop\",\"arguments\":{", "a \n<tool_call>{\"name\":\"noop\",\"arguments\":{", nil},
		{"<tool_call>", "a \n", "a \n", nil},
		{"<tool_call>", "<tool_call>{\"name\": \"get_weather\"", "<tool_call>{\"name\": \"get_weather\"", nil},
		{"<tool_call>", "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Os", "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Os", nil},
		{"<tool_call>", "<tool_call>{\"name\": \"get_weather\", \"arguments\": {city}}</tool_call>x", "<tool_call>{\"name\": \"get_weather\", \"arguments\": {city}}</tool_call>x", nil},
		{"<tool_call>", "<tool_call>oops <tool_call>{\"name\":\"get_weather\",\"arguments\":{\"city\":\"Oslo\"}}</tool_call>", "<tool_call>oops", city},
		{"<tool_call>", "<tool_call>{\"name\":\"get_weather\",\"arguments\":{\"city\":\"Oslo\"}}", "", city},
		{"<tool_call>", "<tool_call>{\"name\":\"get_weather\",\"arguments\":{\"city\":\"Oslo\"}}}\n</tool_call>", "", city},
		{"<tool_call>", "<tool_call>{\"arguments\":{\"city\":\"Oslo\"},\"name\":\"get_weather\"}</tool_call>", "", city},
		{"<tool_call>", "<tool_call>{\"id\":\"call_1234567\",\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"arguments\":\"{\\\"city\\\":\\\"Oslo\\\"}\"}}</tool_call>", "", city},
		{"<tool_call>", "<tool_call>[{\"name\":\"get_weather\",\"arguments\":{\"city\":\"Oslo\"}},{\"name\":\"noop\"}]</tool_call>", "", append(city, Call{Name: "noop", Arguments: "{}"})},
		{"<tool_call>", "<tool_call>{\"name\":\"noop\",\"arguments\":null}</tool_call> Done.", "Done.", []Call{{Name: "noop", Arguments: "{}"}}},
		{"<tool_call>", "<tool_call>{\"name\":\"get_weather\",\"arguments\":{\"city\":\"Os\nlo\"}}</tool_call>", "", []Call{{Name: "get_weather", Arguments: `{"city":"Os\nlo"}`}}},
		{"<tool_call>", "<tool_call>\n{\"arguments\":{\"city\":\"Oslo\"},\"name\":\"get_weather\"}\n</tool_call> {\"name\":\"noop\",\"arguments\":{}}\n</tool_call> Done.", "Done.", append(city, Call{Name: "noop", Arguments: "{}"})},
		{"<tool_call>", "<tool_call>{\"name\":\"noop\"}</tool_call> {\"name\":\"Bob\",\"arguments\":{}}", "{\"name\":\"Bob\",\"arguments\":{}}", []Call{{Name: "noop", Arguments: "{}"}}},
		{"<tool_call>", "<tool_call>{\"name\":\"noop\"}</tool_call> So: {\"name\":\"noop\",\"arguments\":{}}", "So: {\"name\":\"noop\",\"arguments\":{}}", []Call{{Name: "noop", Arguments: "{}"}}},
		{"<tool_call>", "<tool_call>{\"name\":\"noop\"}</tool_call> {\"name\":\"noop\",\"arg", "{\"name\":\"noop\",\"arg", []Call{{Name: "noop", Arguments: "{}"}}},
		{"<|tool_call_start|> ```python <|thought_start|>", "<|thought_start|>\nhm\n<|thought_end|>\n<|tool_call_start|>\n```python\nget_weather(city=\"Oslo\")\nnoop()\n```\n<|tool_call_end|>\nDone.", "Done.", append(city, Call{Name: "noop", Arguments: "{}"})},
		{"<|tool_call_start|>", "<|tool_call_start|>get_weather(city='Oslo'), noop()<|tool_call_end|>", "", append(city, Call{Name: "noop", Arguments: "{}"})},
		{"<|tool_call_start|> ```python", "<|tool_call_start|>\n```\n[noop()]\n```<|tool_call_end|>", "", []Call{{Name: "noop", Arguments: "{}"}}},
		{"<tool_call>", "A <think> in the text.", "A <think> in the text.", nil},
		{"<tool_call> <function= <parameter=", "<tool_call>\n{\"name\":\"get_weather\",\"arguments\":{\"city\":\"Oslo\"}}\n</tool_call>", "", city},
		{"[TOOL_CALLS]", "[TOOL_CALLS] [{\"name\":\"get_weather\",\"arguments\":{\"city\":\"Oslo\"},\"id\":\"abcdefghi\"}]", "", city},
		{"[TOOL_CALLS] [ARGS]", "[TOOL_CALLS][{\"name\":\"get_weather\",\"arguments\":{\"city\":\"Oslo\"}}]", "", city},
		{"[TOOL_CALLS]", "[TOOL_CALLS] none", "[TOOL_CALLS] none", nil},
		{dialects[1].template, "<|python_tag|>get_weather.call(city=\"Oslo\")", "", []Call{{Name: "get_weather", Arguments: `{"city": "Oslo"}`}}},
		{dialects[1].template, "<|python_tag|>{\"name\":\"get_weather\",\"parameters\":{\"city\":\"Oslo\"}}", "", city},
		{dialects[1].template, "{\"name\":\"get_weather\",\"parameters\":{\"city\":\"Oslo\"}}; {\"name\":\"noop\",\"parameters\":{}}", "", append(city, Call{Name: "noop", Arguments: "{}"})},
		{dialects[1].template, "{\"name\": \"Bob\", \"parameters\": {}}", "{\"name\": \"Bob\", \"parameters\": {}}", nil},
		{dialects[1].template, "{\"city\": \"Oslo\"}", "{\"city\": \"Oslo\"}", nil},
		{"", "```json\n{\"name\":\"get_weather\",\"arguments\":{\"city\":\"Oslo\"}}\n```", "", city},
		{"", "[{\"name\":\"get_weather\",\"arguments\":{\"city\":\"Oslo\"}}]", "", city},
		{"", "[1, 2]", "[1, 2]", nil},
		{"<|channel|> <|message|> to=", " to=functions.get_weather<|channel|>commentary json<|message|>{\"city\":\"Oslo\"}<|call|>", "", city},
		{"<|channel|> <|message|> to=", "<|channel|>final<|message|>Hello <b>.<|return|>", "Hello <b>.", nil},
		{"<|channel|> <|message|> to=", "Just a text.", "Just a text.", nil},
		{"<|channel|> <|message|> to=", "<|channel|>commentary to=functions.get_weather<|message|>no JSON", "<|channel|>commentary to=functions.get_weather<|message|>no JSON", nil},
		{"<|tool_call> call:", "<|tool_call>call:get_weather{city:<|\"|>Os", "<|tool_call>call:get_weather{city:<|\"|>Os", nil},
		{"<|tool_call> call:", "<|tool_call>call:get_weather{a:None,b:[True,<|\"|>\"<|\"|>],<|\"|>c<|\"|>:-1.5}<tool_call|>", "", []Call{{Name: "get_weather", Arguments: `{"a":null,"b":[true,"\""],"c":-1.5}`}}},
	} {
		f := Recognise(c.template)
		m := f.Parse(Request{Functions: offered}, c.answer)
		require.Equal(t, c.content, m.Content, c.answer)
		require.True(t, sameCalls(t, c.calls, m.Calls, c.answer), "%q gives %+v", c.answer, m)
		everySplit(t, f, Request{Functions: offered}, c.answer)
	}
	for _, answer := range []string{"<|tool_call_start|>[noop()] x<|tool_call_end|>", "<|tool_call_start|>[]<|tool_call_end|>", "<|tool_call_start|>[noop(", "<|tool_call_start|>[noop(a)]<|tool_call_end|>", "<|tool_call_start|>```python\n```<|tool_call_end|>", "<|tool_call_start|>noop() noop<|tool_call_end|>", "<|tool_call_start|>[noop() noop()]<|tool_call_end|>"} {
		require.Equal(t, Message{Content: answer}, Recognise("<|tool_call_start|>").Parse(Request{Functions: offered}, answer))
	}
	// A Kimi model's id has the name, which its template writes nowhere else.
	var ids []string
	for _, c := range Recognise(dialects[11].template).Parse(Request{Functions: offered}, "<|tool_calls_section_begin|>"+
		"<|tool_call_begin|>functions.noop:0<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_call_begin|>functions.noop:0<|tool_call_argument_begin|>{}<|tool_call_end|>"+
		"<|tool_call_begin|>noop<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>").Calls {
		require.Equal(t, "noop", c.Name)
		ids = append(ids, c.ID)
	}
	require.Equal(t, []string{"functions.noop:0", "functions.noop:1", "functions.noop:2"}, ids)
	// Reasoning that never ends, and reasoning that the prompt began.
	f := Recognise("<think>")
	m := f.Parse(Request{Functions: offered}, "<think>\nhm <tool_call>")
	require.Equal(t, Message{Reasoning: "hm <tool_call>"}, m)
	m = f.Parse(Request{Opened: true}, "\nhm\n</think>\n\nYes.")
	require.Equal(t, Message{Reasoning: "hm", Content: "Yes."}, m)
}

// TestLiterals has what templates write of values that are no texts.
func TestLiterals(t *testing.T) {
	for word, want := range map[string]string{
		"1": "1", "-2.5e3": "-2.5e3", "true": "true", "True": "true", "None": "null", "x": `"x"`, "it's": `"it's"`, `{"a": 1}`: `{"a": 1}`,
		`{'a': [1, True, None, 'it\'s', "b\"\\\n"], 'é': {}}`: `{"a": [1, true, null, "it's", "b\"\\\n"], "é": {}}`,
		`'\x41\u00e9\ud83d\ude00\/'`:                          `"Aé😀/"`, `'\u12'`: `"'\\u12'"`,
		"{'a': b}": `"{'a': b}"`, "[1, 2": `"[1, 2"`, "'x' y": `"'x' y"`, "{'a'}": `"{'a'}"`,
	} {
		require.Equal(t, want, literal(word))
	}
}

// events are what a parser tells of a text in pieces, with texts joined and without
// ids, which are random.
func events(f *Format, r Request, pieces ...string) []Event {
	s := &scanner{}
	p := f.Parser(r)
	for _, piece := range append(pieces, "") {
		for _, e := range p.Write(piece) {
			e.ID = ""
			s.emit(e)
		}
	}
	for _, e := range p.Close(false) {
		e.ID = ""
		s.emit(e)
	}
	if p.Close(false) != nil || p.Write("x") != nil {
		panic("a closed parser goes on")
	}
	return s.take()
}

// everySplit cuts an answer in two at each place, and into its bytes.
func everySplit(t testing.TB, f *Format, r Request, answer string) {
	want := events(f, r, answer)
	for i := range len(answer) + 1 {
		require.Equal(t, want, events(f, r, answer[:i], answer[i:]), "%q %q", answer[:i], answer[i:])
	}
	require.Equal(t, want, events(f, r, strings.Split(answer, "")...))
	var bytes []string
	for i := range len(answer) {
		bytes = append(bytes, answer[i:i+1])
	}
	require.Equal(t, want, events(f, r, bytes...))
}

func TestSplits(t *testing.T) {
	for _, d := range dialects {
		f := Recognise(d.template)
		everySplit(t, f, Request{Functions: offered}, d.answer(d.calls()))
	}
}

// TestStream has the arguments come while they are written, each piece going on
// validly.
func TestStream(t *testing.T) {
	for _, d := range dialects {
		f := Recognise(d.template)
		p := f.Parser(Request{Functions: offered})
		var m Message
		pieces, answer := 0, d.answer(made[:1])
		for _, r := range answer {
			for _, e := range p.Write(string(r)) {
				m.Add(e)
				if e.Kind == Arguments {
					pieces++
					require.True(t, continuable(m.Calls[0].Arguments), m.Calls[0].Arguments)
				}
			}
		}
		m.Add(p.Close(false)...)
		require.True(t, sameCalls(t, made[:1], m.Calls, d.name))
		require.Greater(t, pieces, len(made[0].Arguments)/3, "%s: they come in one piece", d.name)
	}
}

// continuable reports whether more text can make JSON of a text.
func continuable(text string) bool {
	for _, more := range []string{"", "0"} { // a number may not end where it does
		var v any
		if err := json.Unmarshal([]byte(text+more), &v); err == nil || err.Error() == "unexpected end of JSON input" {
			return true
		}
	}
	return false
}

// TestCutOff cuts answers off at each place, as a limit of tokens does: nothing of a call or a
// mark gets into the content, and a call that began keeps the start of its arguments.
func TestCutOff(t *testing.T) {
	answers := map[string]string{
		"<|tool_call_start|>":                              `<|tool_call_start|>[get_weather(city="Oslo", days=2), noop()]<|tool_call_end|>`,
		`<tool_call>\n<function=x>\n<parameter=y>`:         "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
		`<tool_call>{name}<arg_key>k</arg_key><arg_value>`: "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Oslo</arg_value><arg_key>days</arg_key><arg_value>2</arg_value></tool_call>",
	}
	for _, d := range dialects {
		answers[d.template] = d.answer(d.calls())
	}
	for template, answer := range answers {
		f := Recognise(template)
		thought, content := "I wonder.", "Let me see."
		switch f.Name {
		case "harmony":
			answer = "<|channel|>analysis<|message|>" + thought + "<|end|><|start|>assistant<|channel|>commentary<|message|>" + content + "<|end|><|start|>assistant" + answer
		case "llama", "json": // calls stand alone
			content = ""
			answer = f.reasoning[0].open + "\n" + thought + "\n" + f.reasoning[0].close + "\n\n" + answer
		default:
			answer = f.reasoning[0].open + "\n" + thought + "\n" + f.reasoning[0].close + "\n\n" + content + "\n" + answer
		}
		begun := 0
		for end := range len(answer) + 1 {
			cut := strings.ToValidUTF8(answer[:end], "") // as the engine gives it
			p := f.Parser(Request{Functions: offered})
			var m, streamed Message
			m.Add(p.Write(cut)...)
			m.Add(p.Close(true)...)
			p = f.Parser(Request{Functions: offered})
			for i := range len(cut) {
				streamed.Add(p.Write(cut[i : i+1])...)
				require.NotContains(t, streamed.Content, "<", "%s: %q", f.Name, cut)
			}
			streamed.Add(p.Close(true)...)
			require.True(t, strings.HasPrefix(content+"\n", m.Content), "%s: %q gives the content %q", f.Name, cut, m.Content)
			require.True(t, strings.HasPrefix(thought, m.Reasoning), "%s: %q gives the thought %q", f.Name, cut, m.Reasoning)
			for i, c := range m.Calls {
				require.Contains(t, []string{"get_weather", "noop"}, c.Name, "%s: %q", f.Name, cut)
				require.True(t, json.Valid([]byte(c.Arguments)) || i == len(m.Calls)-1 && continuable(c.Arguments), "%s: %q gives %q", f.Name, cut, c.Arguments)
				if c.Arguments != "" && !json.Valid([]byte(c.Arguments)) {
					begun++
				}
				m.Calls[i].ID, streamed.Calls[i].ID = "", ""
			}
			require.Equal(t, m, streamed, "%s: %q", f.Name, cut)
		}
		if f.layout != pythonCalls { // whose calls come as a whole
			require.Greater(t, begun, 20, f.Name)
		}
	}
	// What is no call stays content, also where it begins as one might.
	for _, answer := range []string{"```json\n{\"title\": \"A long", "[1, 2", "Use [brackets", "x > 1", "{city}"} {
		p := Recognise("").Parser(Request{Functions: offered})
		var m Message
		m.Add(p.Write(answer)...)
		m.Add(p.Close(true)...)
		require.Equal(t, Message{Content: answer}, m)
	}
}

// TestBlankAnswers has no white space come before what is forced: a model that prefers it
// would write nothing else.
func TestBlankAnswers(t *testing.T) {
	r := gbnftest.NewRig(t)
	source := []byte(`{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}`)
	for _, d := range dialects {
		f := Recognise(d.template)
		grammar, err := f.Grammar(Request{Functions: offered, Choice: Required, Parallel: true})
		require.NoError(t, err)
		document, err := f.Respond(source, false)
		require.NoError(t, err)
		for _, blank := range []string{" ", "\n", "\n\n", "\t"} {
			require.False(t, r.Accepts(t, grammar, blank+d.answer(d.calls())), "%s by\n%s", d.name, grammar)
			require.False(t, r.Accepts(t, document, blank+`{"a": 1}`), "%s by\n%s", d.name, document)
		}
	}
}

// followed checks that the grammars let an answer be written.
func followed(t *testing.T, f *Format, answer string) {
	r := gbnftest.NewRig(t)
	for _, choice := range []Choice{Auto, Required} {
		grammar, err := f.Grammar(Request{Functions: offered, Choice: choice, Parallel: true})
		require.NoError(t, err)
		require.True(t, r.Accepts(t, grammar, answer), "%q by\n%s", answer, grammar)
		if choice == Auto {
			require.True(t, r.Accepts(t, grammar, "Just a text, in <b>brackets</b> [1]."))
			require.True(t, r.Accepts(t, grammar, ""))
		} else {
			require.False(t, r.Accepts(t, grammar, "Just a text."))
			require.False(t, r.Accepts(t, grammar, ""))
		}
	}
}

// TestGrammars has llama.cpp follow the grammars.
func TestGrammars(t *testing.T) {
	r := gbnftest.NewRig(t)
	for _, d := range dialects {
		f := Recognise(d.template)
		grammar := func(request Request) string {
			g, err := f.Grammar(request)
			require.NoError(t, err)
			return g
		}
		all := d.answer(d.calls())
		text := "Just a text, in <b>brackets</b> [1]."
		if d.name == "harmony" {
			text = "<|channel|>final<|message|>" + text
		}
		for request, accepts := range map[*Request]map[string]bool{
			{Functions: offered, Parallel: true}:                          {all: true, text: true},
			{Functions: offered, Choice: Required, Parallel: true}:        {all: true, text: false},
			{Functions: offered, Choice: Required}:                        {all: d.single, d.answer(made[:1]): true, text: false},
			{Functions: offered[1:], Choice: Required}:                    {d.answer(made[1:]): true, d.answer(made[:1]): false},
			{Functions: offered, Choice: Required, Opened: true}:          {"I wonder.\n</think>\n" + d.answer(made[1:]): f.reasoning != nil && f.reasoning[0].open == "<think>"},
			{Functions: offered, Opened: true}:                            {"I wonder.\n</think>\n\n" + strings.TrimPrefix(text, "<|channel|>final<|message|>"): f.reasoning != nil && f.reasoning[0].open == "<think>"},
			{Functions: offered, Choice: Required, Parallel: d.name > ""}: {strings.Replace(all, ":2", `:"2"`, 1) + " ": false},
		} {
			g := grammar(*request)
			for answer, want := range accepts {
				require.Equal(t, want, r.Accepts(t, g, answer), "%s, choice %v, parallel %v, opened %v: %q by\n%s", d.name, request.Choice, request.Parallel, request.Opened, answer, g)
			}
		}
	}
	for _, d := range dialects {
		f := Recognise(d.template)
		trigger, grammar, err := f.Lazy(Request{Functions: offered, Parallel: true})
		require.NoError(t, err)
		require.Equal(t, d.name == "llama" || d.name == "json", trigger.AtStart)
		rest, ok := strings.CutPrefix(d.answer(d.calls()), trigger.Text)
		require.True(t, ok)
		require.True(t, r.Accepts(t, grammar, rest), "%q by\n%s", rest, grammar)
		require.False(t, r.Accepts(t, grammar, "text"))
		_, grammar, err = f.Lazy(Request{Functions: offered, Choice: None})
		require.NoError(t, err)
		require.Empty(t, grammar)
	}
	_, err := Recognise("").Grammar(Request{Choice: Required})
	require.ErrorIs(t, err, ErrRequest)
	_, err = Recognise("").Grammar(Request{Functions: []Function{{Name: "a b"}}})
	require.ErrorIs(t, err, ErrRequest)
	_, err = Recognise("").Grammar(Request{Functions: []Function{{Name: "a"}, {Name: "a"}}})
	require.ErrorIs(t, err, ErrRequest)
	_, err = Recognise("").Grammar(Request{Functions: []Function{{Name: "a", Parameters: json.RawMessage(`{"properties":{"b":{"not":{}}}}`)}}})
	require.ErrorIs(t, err, schema.ErrSchema)
	require.ErrorContains(t, err, "function a")
	require.ErrorContains(t, err, "/properties/b/not")
	g, err := Recognise("").Grammar(Request{Functions: offered, Choice: None})
	require.NoError(t, err)
	require.Empty(t, g)
}

// TestForcedCalls writes random answers by the grammars: each has calls, whose
// arguments are valid by the functions' schemas.
func TestForcedCalls(t *testing.T) {
	functions := append(offered[:2:2], Function{Name: "book", Parameters: json.RawMessage(`{"type":"object","properties":{
		"when":{"type":"string","format":"date-time"},"code":{"type":"string","pattern":"^[A-Z<|\\]{1,4}[0-9]?$"},"note":{"type":["string","null"],"maxLength":6},
		"unit":{"enum":["a\"b","c\\d",1,null]},"guests":{"type":"array","minItems":1,"maxItems":3,"items":{"type":"object","properties":{"name":{"type":"string","minLength":1},"age":{"type":"integer","maximum":130}},"required":["name"]}},
		"price":{"type":"number","exclusiveMinimum":0},"deep":{"$ref":"#/$defs/deep"}},"required":["code","guests"],"$defs":{"deep":{"type":"object","properties":{"next":{"$ref":"#/$defs/deep"}}}}}`)})
	compiled := map[string]*jsonschema.Schema{}
	for _, fn := range functions {
		source := fn.Parameters
		if source == nil {
			source = json.RawMessage(`{"type":"object"}`)
		}
		doc, err := jsonschema.UnmarshalJSON(strings.NewReader(string(source)))
		require.NoError(t, err)
		c := jsonschema.NewCompiler()
		c.AssertFormat()
		require.NoError(t, c.AddResource("schema:"+fn.Name, doc))
		compiled[fn.Name], err = c.Compile("schema:" + fn.Name)
		require.NoError(t, err)
	}
	templates := []string{"<|tool_call_start|>", `<tool_call>\n<function=x>\n<parameter=y>`, `<seed:tool_call>\n<function=x>\n<parameter=y>`, `<tool_call>{name}\n<arg_key>k</arg_key>`}
	for _, d := range dialects {
		templates = append(templates, d.template)
	}
	for _, template := range templates {
		f := Recognise(template)
		for _, choice := range []Choice{Auto, Required} {
			request := Request{Functions: functions, Choice: choice, Parallel: true}
			grammar, err := f.Grammar(request)
			require.NoError(t, err)
			g, r := gbnftest.Read(t, grammar), rand.New(rand.NewPCG(1, 2))
			for range 20 {
				answer := g.Document(r)
				m := f.Parse(request, answer)
				require.True(t, choice == Auto || len(m.Calls) > 0, "%s: %q gives %+v", f.Name, answer, m)
				if choice == Required {
					require.Empty(t, m.Content, "%s: %q", f.Name, answer)
				}
				for _, c := range m.Calls {
					v, err := jsonschema.UnmarshalJSON(strings.NewReader(c.Arguments))
					require.NoError(t, err, "%s: %q gives %q", f.Name, answer, c.Arguments)
					require.NoError(t, compiled[c.Name].Validate(v), "%s: %q gives %q", f.Name, answer, c.Arguments)
				}
				for _, mark := range f.triggers {
					require.NotContains(t, m.Content, mark)
				}
			}
		}
	}
}

// TestRespond has answers by a schema, behind reasoning.
func TestRespond(t *testing.T) {
	r := gbnftest.NewRig(t)
	source := []byte(`{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"]}`)
	grammar, err := Recognise("<think>").Respond(source, false)
	require.NoError(t, err)
	require.True(t, r.Accepts(t, grammar, `{"a": 1}`))
	require.True(t, r.Accepts(t, grammar, "<think>\nhm\n</think>\n\n{\"a\": 1}"))
	require.False(t, r.Accepts(t, grammar, `Sure: {"a": 1}`))
	grammar, err = Recognise("<think>").Respond(source, true)
	require.NoError(t, err)
	require.True(t, r.Accepts(t, grammar, "hm\n</think>\n\n{\"a\": 1}"))
	require.False(t, r.Accepts(t, grammar, `{"a": 1}`))
	grammar, err = Recognise("<|channel|> <|message|> to=").Respond(source, false)
	require.NoError(t, err)
	require.True(t, r.Accepts(t, grammar, `<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>{"a": 1}`))
	_, err = Recognise("").Respond([]byte(`{"not":{}}`), false)
	require.ErrorIs(t, err, schema.ErrSchema)
}

// cutOff ends an answer as a limit does: its calls but the last have valid arguments.
func cutOff(t *testing.T, f *Format, r Request, answer string) {
	p := f.Parser(r)
	var m Message
	m.Add(p.Write(answer)...)
	m.Add(p.Close(true)...)
	for i, c := range m.Calls {
		require.True(t, json.Valid([]byte(c.Arguments)) || i == len(m.Calls)-1, "%q", m.Calls)
	}
}

// FuzzSplit cuts answers anywhere: what they are taken apart into stays the same,
// and arguments go on validly.
func FuzzSplit(f *testing.F) {
	for i, d := range dialects {
		for seed := range uint64(12) {
			f.Add(d.answer(d.calls()), seed, i+2, false)
		}
		f.Add("<think>x</think> y "+d.answer(d.calls())+" z", uint64(i), i+2, true)
	}
	f.Fuzz(func(t *testing.T, answer string, seed uint64, which int, opened bool) {
		if len(answer) > 1<<12 {
			return
		}
		templates := []string{"<|tool_call_start|>", `<tool_call>\n<function=x>\n<parameter=y>`, `<tool_call>{name}\n<arg_key>k</arg_key>`}
		for _, d := range dialects {
			templates = append(templates, d.template)
		}
		format := Recognise(templates[uint(which)%uint(len(templates))])
		request := Request{Functions: offered, Opened: opened}
		r := rand.New(rand.NewPCG(seed, 1))
		for range r.IntN(4) { // marks where none are wanted
			marks := append(format.triggers, "{", "}", "[", "]", `"`, `\`, ",", ":", " ", "\n", format.begin, format.end, format.close, "<think>", "</think>", "\xff", "é",
				"<function=", "<parameter=", "</parameter>", "<|start|>", "<|message|>", "<|end|>", "0", "-", "null", "name", "arguments")
			at := r.IntN(len(answer) + 1)
			answer = answer[:at] + marks[r.IntN(len(marks))] + answer[at+r.IntN(min(4, len(answer)-at+1)):]
		}
		want := events(format, request, answer)
		cutOff(t, format, request, answer)
		var pieces []string
		for rest := answer; rest != ""; {
			n := 1 + r.IntN(min(len(rest), 12))
			pieces, rest = append(pieces, rest[:n]), rest[n:]
		}
		require.Equal(t, want, events(format, request, pieces...))
		var m Message
		for _, e := range want {
			if m.Add(e); e.Kind == Arguments {
				require.True(t, continuable(m.Calls[e.Call].Arguments), "%q", m.Calls[e.Call].Arguments)
			}
		}
		for _, c := range m.Calls {
			require.True(t, json.Valid([]byte(c.Arguments)) && strings.HasPrefix(c.Arguments, "{"), fmt.Sprintf("%q", c.Arguments))
		}
	})
}
