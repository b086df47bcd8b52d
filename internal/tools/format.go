package tools

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/gallop-llm/gallop/internal/schema"
)

// ErrRequest is wrapped by errors about what a request asks for.
var ErrRequest = errors.New("invalid tools")

// Function is one that a model may call.
type Function struct {
	Name        string          // 1 to 64 letters, digits, dots, dashes and underscores
	Parameters  json.RawMessage // JSON schema of an object; nil = any object
	Description string          // for [Format.Instructions]
}

// Choice says whether a model calls a function.
type Choice int

// The choices of OpenAI's tool_choice. One function is Required with no other in
// the list.
const (
	Auto     Choice = iota // as it likes
	None                   // never
	Required               // always
)

// Request is what a grammar is for.
type Request struct {
	Functions []Function
	Choice    Choice
	Parallel  bool // several calls in one answer, where the format has them

	// Opened says that the prompt ends within reasoning; see [Format.Opens].
	Opened bool
}

// layout is how calls are parsed.
type layout int

const (
	jsonCalls    layout = iota // {"name": …, "arguments": …}, alone or in a list
	namedCalls                 // the name, a mark, and the arguments as JSON
	harmonyCalls               // gpt-oss's messages with a channel and a recipient
	gemmaCalls                 // call:name{key:value}
	taggedCalls                // a tag for each argument
	pythonCalls                // [name(key=value)]
)

// tag is a pair of marks around a text.
type tag struct{ open, close string }

// Format is how a family of models writes calls and reasoning. Values are made by
// [Recognise], and are not changed.
type Format struct {
	Name string // such as "hermes"

	layout layout
	has    []string // texts that a template of this format has, all of them
	hasNot []string // and has not

	// A call is begin NAME named ARGUMENTS end, between stands between calls, and open
	// and close around all of them. callNumber and callID in them stand for such.
	open, begin, named, end, between, close string

	ends string // another end: what some of the format's templates write

	// triggers are texts at which calls begin, wherever they stand. Without any, an
	// answer that begins as a call does may be one.
	triggers []string

	quote     string // of strings in gemmaCalls
	tags      schema.Tags
	single    bool // one call in an answer
	untaught  bool // the template does not tell the model about functions
	shortID   bool // the template wants ids of nine letters and digits
	reasoning []tag
}

// Marks of the formats, where they stand more than once.
const (
	deepseekCalls    = "<｜tool▁calls▁begin｜>"
	deepseekCall     = "<｜tool▁call▁begin｜>"
	deepseekSep      = "<｜tool▁sep｜>"
	deepseekEnd      = "<｜tool▁call▁end｜>"
	deepseekCallsEnd = "<｜tool▁calls▁end｜>"
	mistralCalls     = "[TOOL_CALLS]"
	mistralArgs      = "[ARGS]"
	mistralID        = "[CALL_ID]"
	kimiCalls        = "<|tool_calls_section_begin|>"
	kimiCall         = "<|tool_call_begin|>"
	kimiArgs         = "<|tool_call_argument_begin|>"
	pythonTag        = "<|python_tag|>"
	pythonStart      = "<|tool_call_start|>"
	pythonEnd        = "<|tool_call_end|>"
)

// Places in the parts of a call.
const (
	callNumber = "\x01" // its number in the answer
	callID     = "\x02" // an id of nine letters and digits
)

// gbnf writes a part of a call.
func gbnf(part string) string {
	var b strings.Builder
	for part != "" {
		i := strings.IndexAny(part, callNumber+callID)
		if i < 0 {
			i = len(part)
		}
		if i > 0 {
			b.WriteString(schema.Literal(part[:i]) + " ")
		}
		if part = part[i:]; part != "" {
			b.WriteString(map[string]string{callNumber: "[0-9]{1,2} ", callID: "[A-Za-z0-9]{9} "}[part[:1]])
			part = part[1:]
		}
	}
	return b.String()
}

// known are the formats, those first whose marks are the more telling.
var known = []Format{
	{Name: "harmony", layout: harmonyCalls, has: []string{"<|channel|>", "<|message|>", "to="}, single: true},
	{Name: "gemma", layout: gemmaCalls, has: []string{"<|tool_call>", "call:"}, begin: "<|tool_call>call:", end: "<tool_call|>",
		triggers: []string{"<|tool_call>"}, quote: `<|"|>`},
	{Name: "functiongemma", layout: gemmaCalls, has: []string{"<start_function_call>", "call:"}, begin: "<start_function_call>call:", end: "<end_function_call>",
		triggers: []string{"<start_function_call>"}, quote: "<escape>"},
	{Name: "deepseek-v3.1", layout: namedCalls, has: []string{deepseekCalls}, hasNot: []string{"```json"}, open: deepseekCalls, begin: deepseekCall,
		named: deepseekSep, end: deepseekEnd, close: deepseekCallsEnd, triggers: []string{deepseekCalls, deepseekCall}},
	{Name: "deepseek", layout: namedCalls, has: []string{deepseekCalls}, open: deepseekCalls, begin: deepseekCall + "function" + deepseekSep,
		named: "\n```json\n", end: "\n```" + deepseekEnd, between: "\n", close: deepseekCallsEnd, triggers: []string{deepseekCalls, deepseekCall}},
	{Name: "kimi", layout: namedCalls, has: []string{kimiCalls, kimiArgs}, open: kimiCalls, begin: kimiCall + "functions.", named: ":" + callNumber + kimiArgs,
		end: "<|tool_call_end|>", close: "<|tool_calls_section_end|>", triggers: []string{kimiCalls, kimiCall}},
	{Name: "mistral-named", layout: namedCalls, has: []string{mistralCalls, mistralArgs}, begin: mistralCalls, named: mistralArgs,
		triggers: []string{mistralCalls}, shortID: true},
	{Name: "mistral", layout: jsonCalls, has: []string{mistralCalls}, open: mistralCalls + "[", begin: `{"name": "`, named: `", "arguments": `,
		end: "}", ends: `, "id": "` + callID + `"}`, between: ", ", close: "]", triggers: []string{mistralCalls}, shortID: true},
	{Name: "command", layout: jsonCalls, has: []string{"<|START_ACTION|>"}, open: "<|START_ACTION|>[\n    ", begin: `{"tool_call_id": "` + callNumber + `", "tool_name": "`,
		named: `", "parameters": `, end: "}", between: ",\n    ", close: "\n]<|END_ACTION|>", triggers: []string{"<|START_ACTION|>"}},
	{Name: "granite", layout: jsonCalls, has: []string{"<|tool_call|>", "<|start_of_role|>"}, open: "<|tool_call|>[", begin: `{"name": "`,
		named: `", "arguments": `, end: "}", between: ", ", close: "]", triggers: []string{"<|tool_call|>"}},
	{Name: "apriel", layout: jsonCalls, has: []string{"<tool_calls>"}, open: "<tool_calls>[", begin: `{"name": "`, named: `", "arguments": `,
		end: "}", ends: `, "id": "` + callID + `"}`, between: ", ", close: "]</tool_calls>", triggers: []string{"<tool_calls>"}},
	{Name: "qwen-coder", layout: taggedCalls, has: []string{"<tool_call>", "<function=", "<parameter="}, begin: "<tool_call>\n<function=", named: ">\n",
		end: "</function>\n</tool_call>", between: "\n", triggers: []string{"<tool_call>", "<function="},
		tags: schema.Tags{Open: "<parameter=", Named: ">\n", Close: "\n</parameter>\n"}},
	{Name: "seed", layout: taggedCalls, has: []string{"<seed:tool_call>", "<function=", "<parameter="}, begin: "<seed:tool_call>\n<function=", named: ">\n",
		end: "</function>\n</seed:tool_call>", between: "\n", triggers: []string{"<seed:tool_call>", "<function="},
		tags: schema.Tags{Open: "<parameter=", Named: ">", Close: "</parameter>\n"}},
	{Name: "glm-4.7", layout: taggedCalls, has: []string{"<tool_call>", "</arg_key><arg_value>"}, begin: "<tool_call>", end: "</tool_call>",
		triggers: []string{"<tool_call>"}, tags: schema.Tags{Open: "<arg_key>", Named: "</arg_key><arg_value>", Close: "</arg_value>"}},
	{Name: "glm", layout: taggedCalls, has: []string{"<tool_call>", "<arg_key>"}, begin: "<tool_call>", named: "\n", end: "</tool_call>", between: "\n",
		triggers: []string{"<tool_call>"}, tags: schema.Tags{Open: "<arg_key>", Named: "</arg_key>\n<arg_value>", Close: "</arg_value>\n"}},
	{Name: "minicpm", layout: pythonCalls, has: []string{pythonStart, "```python"}, open: pythonStart + "\n```python\n", named: "(", end: ")", between: "\n",
		close: "\n```\n" + pythonEnd, triggers: []string{pythonStart}, tags: schema.Tags{Named: "=", Between: ", "}},
	{Name: "lfm2", layout: pythonCalls, has: []string{pythonStart}, open: pythonStart + "[", named: "(", end: ")", between: ", ", close: "]" + pythonEnd,
		triggers: []string{pythonStart}, tags: schema.Tags{Named: "=", Between: ", "}},
	{Name: "lfm2", layout: pythonCalls, has: []string{"<|tool_list_start|>"}, open: pythonStart + "[", named: "(", end: ")", between: ", ", close: "]" + pythonEnd,
		triggers: []string{pythonStart}, tags: schema.Tags{Named: "=", Between: ", "}},
	{Name: "functionary", layout: namedCalls, has: []string{"<function=", "</function>"}, begin: "<function=", named: ">", end: "</function>",
		triggers: []string{"<function="}},
	{Name: "hermes", layout: jsonCalls, has: []string{"<tool_call>"}, begin: "<tool_call>\n" + `{"name": "`, named: `", "arguments": `,
		end: "}\n</tool_call>", between: "\n", triggers: []string{"<tool_call>"}},
	{Name: "llama", layout: jsonCalls, has: []string{"<|start_header_id|>", `"parameters"`, "tool_calls"}, begin: `{"name": "`, named: `", "parameters": `,
		end: "}", between: "; ", triggers: []string{pythonTag}, single: true},
	generic,
}

// generic is for models that were not trained on calls.
var generic = Format{Name: "json", layout: jsonCalls, begin: `{"name": "`, named: `", "arguments": `, end: "}", between: "\n", untaught: true}

// reasonings are the marks of reasoning. Models whose template has none of them may
// still use the first.
var reasonings = []tag{
	{"<think>", "</think>"},
	{"<|START_THINKING|>", "<|END_THINKING|>"},
	{"[THINK]", "[/THINK]"},
	{"<seed:think>", "</seed:think>"},
	{"<|channel>thought\n", "<channel|>"},
	{"<reasoning>", "</reasoning>"},
	{"<|thought_start|>", "<|thought_end|>"},
}

// Recognise finds the format of a chat template's text. A template that no format
// is known by gets a plain one of JSON, which [Format.Instructions] has to explain to
// the model.
func Recognise(template string) *Format {
	f := generic
	for _, k := range known {
		if !slices.ContainsFunc(k.has, func(s string) bool { return !strings.Contains(template, s) }) &&
			!slices.ContainsFunc(k.hasNot, func(s string) bool { return strings.Contains(template, s) }) {
			f = k
			break
		}
	}
	if f.Name == "mistral-named" && strings.Contains(template, mistralID) {
		f.named = mistralID + callID + mistralArgs
	}
	for _, r := range reasonings {
		mark := strings.TrimSpace(r.open)
		if f.layout != harmonyCalls && (strings.Contains(template, mark) || strings.Contains(template, r.close)) {
			f.reasoning = append(f.reasoning, r)
		}
	}
	if len(f.reasoning) == 0 && f.layout != harmonyCalls {
		f.reasoning = reasonings[:1]
	}
	return &f
}

// Opens reports whether a rendered prompt ends within reasoning, so that the answer
// begins with it.
func (f *Format) Opens(prompt string) bool {
	prompt = strings.TrimSpace(prompt)
	return slices.ContainsFunc(f.reasoning, func(t tag) bool { return strings.HasSuffix(prompt, strings.TrimSpace(t.open)) })
}

// Parallel reports whether the format has several calls in one answer.
func (f *Format) Parallel() bool { return !f.single }

// Instructions tells a model about the functions in words, for the system message.
// They are "" where the template does so.
func (f *Format) Instructions(functions []Function) string {
	if !f.untaught || len(functions) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("You can call these functions:\n")
	for _, fn := range functions {
		parameters := fn.Parameters
		if len(parameters) == 0 {
			parameters = json.RawMessage(`{"type": "object"}`)
		}
		fmt.Fprintf(&b, `{"name": "%s", "description": %s, "parameters": %s}`+"\n", fn.Name, quoted(fn.Description), parameters)
	}
	b.WriteString("To call one, answer with nothing but a JSON object: " + `{"name": "the function", "arguments": {…}}` + "\n")
	return b.String()
}

var functionName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// maxCalls bounds the calls of one answer.
const maxCalls = 32

// builder makes the grammar of one request.
type builder struct {
	*schema.Builder
	f   *Format
	err error
}

func (b *builder) text(stop bool, ends ...schema.End) string {
	name, err := b.Text(stop, ends...)
	if err != nil && b.err == nil {
		b.err = err
	}
	return name
}

// Grammar is the GBNF that an answer follows: free text, reasoning and calls. With
// [Auto], the text is free until a call begins. The grammar is "" where nothing is to
// be forced: without functions, or where they must not be called. The error wraps
// [ErrRequest], and [schema.ErrSchema] where a function's parameters cannot be
// expressed.
func (f *Format) Grammar(r Request) (string, error) { return f.grammar(r, false) }

// Trigger is the text behind which an answer follows a grammar.
type Trigger struct {
	Text    string
	AtStart bool        // it counts at the beginning alone, behind white space and reasoning
	Quiet   [][2]string // marks of reasoning, within which it does not count
}

// Lazy is [Format.Grammar] with [Auto] for a caller that can begin with a grammar in
// the middle of an answer, and so spares the free text the grammar's cost. The grammar
// is "" where nothing is to be forced, and with [Required]. The errors are the same.
func (f *Format) Lazy(r Request) (t Trigger, grammar string, err error) {
	t.Text = f.trigger()
	if t.Text == "" {
		t.Text, t.AtStart = f.start(), true
	}
	for _, m := range f.reasoning {
		t.Quiet = append(t.Quiet, [2]string{m.open, m.close})
	}
	if r.Choice == Required {
		return t, "", nil
	}
	grammar, err = f.grammar(r, true)
	return t, grammar, err
}

// start is the character with which calls begin where these stand at the beginning or nowhere.
func (f *Format) start() string { return (f.open + f.begin)[:1] }

func (f *Format) grammar(r Request, lazy bool) (string, error) {
	if r.Choice == None || len(r.Functions) == 0 {
		if r.Choice == Required {
			return "", fmt.Errorf("%w: a call is required, and no function is given", ErrRequest)
		}
		return "", nil
	}
	notation := schema.Notation{}
	if f.layout == gemmaCalls {
		notation.Quote = f.quote
	}
	notation.Python = f.layout == pythonCalls
	b := &builder{Builder: schema.NewBuilder(notation), f: f}
	var calls []string
	seen := map[string]bool{}
	for _, fn := range r.Functions {
		if !functionName.MatchString(fn.Name) {
			return "", fmt.Errorf("%w: the function name %q is not 1 to 64 letters, digits, dots, dashes and underscores", ErrRequest, fn.Name)
		}
		if seen[fn.Name] {
			return "", fmt.Errorf("%w: two functions have the name %q", ErrRequest, fn.Name)
		}
		seen[fn.Name] = true
		var arguments string
		var err error
		if f.layout == taggedCalls || f.layout == pythonCalls {
			arguments, err = b.AddTagged(fn.Parameters, f.tags)
		} else {
			arguments, err = b.AddObject(fn.Parameters)
		}
		if err != nil {
			return "", fmt.Errorf("%w: function %s: %w", ErrRequest, fn.Name, err)
		}
		if f.layout == harmonyCalls {
			calls = append(calls, schema.Literal("functions."+fn.Name+" <|constrain|>json<|message|>")+" "+arguments)
			continue
		}
		calls = append(calls, gbnf(fn.Name+f.named)+arguments+" tool-end")
	}
	b.Define("tool-call", strings.Join(calls, " | "))
	switch {
	case f.layout == harmonyCalls && lazy:
		b.Define("root", "tool-call")
	case f.layout == harmonyCalls:
		b.harmony(r)
	default:
		b.answer(r, lazy)
	}
	if b.err != nil {
		return "", b.err
	}
	return b.Grammar()
}

// answer defines the rule root: reasoning if there is any, then calls, or free text
// up to a call.
func (b *builder) answer(r Request, lazy bool) {
	f := b.f
	lead := f.open + f.begin
	rest := "tool-call"
	if r.Parallel && !f.single {
		rest += fmt.Sprintf(" tool-more{0,%d}", maxCalls-1)
		between := schema.Literal(f.between)
		if f.between == "" || f.between == "\n" {
			between = `[\n]?` // some templates of a format have it, and others do not
		}
		b.Define("tool-more", between+" "+gbnf(f.begin)+"tool-call")
	}
	if f.close != "" {
		rest += " " + schema.Literal(f.close)
	}
	b.Define("tool-calls", rest)
	end := schema.Literal(f.end)
	if f.ends != "" {
		end += " | " + gbnf(f.ends)
	}
	b.Define("tool-end", end)
	mark := f.trigger()
	if lazy {
		if mark == "" {
			mark = f.start()
		}
		b.Define("root", gbnf(strings.TrimPrefix(lead, mark))+"tool-calls")
		return
	}
	if r.Choice == Required {
		b.Define("tool-required", gbnf(lead)+"tool-calls")
		b.begin("tool-required", r.Opened)
		return
	}
	free := ""
	if mark != "" {
		b.Define("tool-rest", gbnf(strings.TrimPrefix(lead, mark))+"tool-calls")
		free = b.text(true, schema.End{Text: mark, Then: "tool-rest"})
	} else {
		// Calls stand at the beginning or nowhere.
		b.Define("tool-rest", gbnf(lead)+"tool-calls | "+b.plain())
		free = space + " tool-rest"
	}
	b.Define("tool-auto", free)
	b.begin("tool-auto", r.Opened)
}

// trigger is the text at which free text goes over into calls, "" for none.
func (f *Format) trigger() string {
	if f.layout == harmonyCalls {
		return harmonyChannel + "commentary to="
	}
	for _, mark := range f.triggers {
		if strings.HasPrefix(f.open+f.begin, mark) {
			return mark
		}
	}
	return ""
}

// plain is any text that does not begin as JSON does.
func (b *builder) plain() string {
	b.Define("tool-text", `"" | [^{ \n\t\x00] `+b.text(true))
	return "tool-text"
}

// space is what may stand between reasoning and what follows.
const space = `[ \n\t]{0,8}`

// begin defines root: reasoning, if there is any, and then a rule. White space stands only
// behind reasoning, where templates have it: a model that may begin with it need not end it.
func (b *builder) begin(then string, opened bool) {
	alts := []string{then}
	if opened {
		alts = nil
	}
	b.Define("tool-behind", space+" "+then)
	for _, t := range b.f.reasoning {
		body := b.text(false, schema.End{Text: t.close, Then: "tool-behind"})
		if opened {
			alts = append(alts, body)
		} else {
			alts = append(alts, schema.Literal(t.open)+" "+body)
		}
	}
	if len(alts) == 0 {
		alts = []string{then}
	}
	b.Define("root", strings.Join(alts, " | "))
}

// Marks of harmony.
const (
	harmonyChannel = "<|channel|>"
	harmonyMessage = "<|message|>"
	harmonyEnd     = "<|end|>"
	harmonyStart   = "<|start|>"
	harmonyCall    = "<|call|>"
	harmonyReturn  = "<|return|>"
)

// harmony defines root for messages with channels.
func (b *builder) harmony(r Request) {
	call := schema.Literal(b.f.trigger()) + " tool-call"
	if r.Choice == Required {
		b.harmonyBegin(call, "analysis")
		return
	}
	final := b.text(true, schema.End{Text: harmonyEnd}, schema.End{Text: harmonyCall})
	b.harmonyBegin(call+" | "+schema.Literal(harmonyChannel+"final"+harmonyMessage)+" "+final, "analysis", "commentary")
}

// harmonyBegin defines root: any messages on channels, then the last one.
func (b *builder) harmonyBegin(last string, channels ...string) {
	b.Define("tool-last", last)
	b.Define("tool-next", schema.Literal(harmonyStart+"assistant")+" root")
	more := b.text(false, schema.End{Text: harmonyEnd, Then: "tool-next"})
	root := "tool-last"
	for _, name := range channels {
		root += " | " + schema.Literal(harmonyChannel+name+harmonyMessage) + " " + more
	}
	b.Define("root", root)
}

// Respond is the GBNF of an answer whose content satisfies a JSON schema, behind
// reasoning if there is any. opened says that the prompt ends within reasoning. The
// error wraps [schema.ErrSchema].
func (f *Format) Respond(source []byte, opened bool) (string, error) {
	b := &builder{Builder: schema.NewBuilder(schema.Notation{}), f: f}
	document, err := b.Add(source)
	if err != nil {
		return "", err
	}
	if f.layout == harmonyCalls {
		b.harmonyBegin(schema.Literal(harmonyChannel+"final"+harmonyMessage)+" "+document, "analysis")
	} else {
		b.begin(document, opened)
	}
	if b.err != nil {
		return "", b.err
	}
	return b.Grammar()
}
