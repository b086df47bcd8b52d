package dataset

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/gallop-llm/gallop/llama"
)

// formats are told apart by columns that others lack: the first whose columns
// are all there reads the object.
var formats = []struct {
	columns []string
	read    func(c columns, l *labels) (Example, error)
}{
	{[]string{"prompt"}, ownPrompt},
	{[]string{"messages"}, ownMessages},
	{[]string{"text"}, ownText},
	{[]string{"goal", "sol1"}, piqa},
	{[]string{"sentence", "option1"}, winoGrande},
	{[]string{"endings"}, hellaSwag},
	{[]string{"Problem", "options"}, mathQA},
	{[]string{"question_stem"}, openBookQA},
	{[]string{"question", "distractor1"}, sciQ},
	{[]string{"question", "passage"}, boolQ},
	{[]string{"question", "answerKey"}, arc},
	{[]string{"question", "answer"}, gsm8k},
}

// parse reads one object. Its task may be "", its place is not known yet.
func parse(data []byte, l *labels) (Example, error) {
	if !utf8.Valid(data) {
		return Example{}, errUTF8
	}
	if data = bytes.TrimSpace(data); len(data) > 0 && data[0] != '{' {
		return Example{}, fault("not a JSON object: an example begins with {")
	}
	var c columns
	if err := json.Unmarshal(data, &c); err != nil {
		return Example{}, faultf("broken JSON: %v", err)
	}
	for _, f := range formats {
		if !c.has(f.columns...) {
			continue
		}
		e, err := f.read(c, l)
		if err != nil {
			return Example{}, err
		}
		if c.has("task") {
			if err := c.read("task", &e.Task, "a text"); err != nil {
				return Example{}, err
			}
			e.Task = strings.TrimSpace(e.Task)
		}
		return e, check(e)
	}
	return Example{}, faultf("unknown columns %s: prompt, messages or text is needed, or those of a known benchmark", c.names())
}

const errUTF8 = fault("invalid UTF-8: save the file as UTF-8 text")

// check refuses what no format may give.
func check(e Example) error {
	if blank(e.Prompt) {
		return fault("prompt is empty")
	}
	if e.Choices != nil && len(e.Choices) < 2 {
		return faultf("at least 2 choices are needed, not %d", len(e.Choices))
	}
	for i, c := range e.Choices {
		if blank(c) {
			return faultf("choice %d is empty", i)
		}
	}
	return nil
}

func blank(s string) bool { return strings.TrimSpace(s) == "" }

// columns are an object's values by name. A null is as good as none.
type columns map[string]json.RawMessage

func (c columns) has(names ...string) bool {
	for _, name := range names {
		if v, ok := c[name]; !ok || string(v) == "null" {
			return false
		}
	}
	return true
}

// names lists the columns for an error, which a strange file must not blow up.
func (c columns) names() string {
	const most, longest = 8, 24 // columns, bytes: a line of text in all
	var list []string
	for _, name := range slices.Sorted(maps.Keys(c)) {
		if len(list) == most {
			list = append(list, "…")
			break
		}
		if len(name) > longest {
			name = strings.ToValidUTF8(name[:longest], "") + "…"
		}
		list = append(list, strconv.Quote(name))
	}
	return "(" + strings.Join(list, ", ") + ")"
}

// read puts the value of a column into v; what says what it has to be.
func (c columns) read(name string, v any, what string) error {
	if !c.has(name) {
		return faultf("%s is missing", name)
	}
	if err := json.Unmarshal(c[name], v); err != nil {
		return faultf("%s must be %s", name, what)
	}
	return nil
}

// text reads a text that may not be blank.
func (c columns) text(name string) (string, error) {
	var s string
	err := c.read(name, &s, "a text")
	if err == nil && blank(s) {
		err = faultf("%s is empty", name)
	}
	return s, err
}

// texts reads several columns of text.
func (c columns) texts(names ...string) ([]string, error) {
	list := make([]string, len(names))
	for i, name := range names {
		var err error
		if list[i], err = c.text(name); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// index reads the index of one of n choices, as a number or, as some
// publishers have it, as a number in a text.
func (c columns) index(name string, n int) (int, error) {
	if !c.has(name) {
		return 0, faultf("%s is missing", name)
	}
	return index(name, strings.Trim(string(c[name]), `"`), n)
}

// index reads the index of one of n choices.
func index(name, value string, n int) (int, error) {
	if value == "" {
		return 0, faultf("%s is empty: this split is published without answers", name)
	}
	i, err := strconv.Atoi(value)
	if err != nil {
		return 0, faultf("%s must be a whole number", name)
	}
	if n < 2 {
		return 0, faultf("at least 2 choices are needed, not %d", n)
	}
	if i < 0 || i >= n {
		return 0, faultf("%s %d is out of range: there are %d choices (0 to %d)", name, i, n, n-1)
	}
	return i, nil
}

// ownPrompt reads {"prompt"} with an answer, with choices, or alone.
func ownPrompt(c columns, _ *labels) (e Example, err error) {
	if c.has("messages") {
		return e, fault("prompt and messages are both there: give one of them")
	}
	if e.Prompt, err = c.text("prompt"); err != nil {
		return e, err
	}
	if c.has("choices") {
		if err := c.read("choices", &e.Choices, "a list of texts"); err != nil {
			return e, err
		}
		if c.has("answer") && c["answer"][0] == '"' {
			return e, fault("answer must be a number: the right choice's index, from 0")
		}
		e.Right, err = c.index("answer", len(e.Choices))
		return e, err
	}
	if c.has("answer") {
		if err := c.read("answer", &e.Answer, "a text where there are no choices"); err != nil {
			return e, err
		}
		if blank(e.Answer) {
			return e, fault("answer is empty: leave it out if it is not known")
		}
	}
	return e, nil
}

// ownMessages reads {"messages"}.
func ownMessages(c columns, _ *labels) (e Example, err error) {
	var list []struct{ Role, Content *string }
	if err := c.read("messages", &list, `a list of {"role": "…", "content": "…"}, both texts`); err != nil {
		return e, err
	}
	for i, m := range list {
		switch {
		case m.Role == nil || m.Content == nil:
			return e, faultf("message %d needs a role and a content", i)
		case *m.Role != "system" && *m.Role != "user" && *m.Role != "assistant":
			return e, faultf("message %d has another role than system, user and assistant", i)
		case blank(*m.Content):
			return e, faultf("message %d is empty", i)
		}
		e.Messages = append(e.Messages, llama.Message{Role: *m.Role, Content: *m.Content})
	}
	if n := len(e.Messages); n > 0 && e.Messages[n-1].Role == "assistant" {
		e.Answer = e.Messages[n-1].Content
		e.Messages = e.Messages[:n-1]
	}
	n := len(e.Messages)
	if n == 0 || e.Messages[n-1].Role != "user" {
		return e, fault("the last message, or the last before the assistant's answer, must be the user's")
	}
	e.Prompt = e.Messages[n-1].Content
	return e, nil
}

// ownText reads {"text"}.
func ownText(c columns, _ *labels) (e Example, err error) {
	e.Text = true
	e.Prompt, err = c.text("text")
	return e, err
}

// ask is the prompt of most benchmarks.
func ask(question string) string { return "Question: " + question + "\nAnswer:" }

// continued puts a space before each text, as texts stand behind a prompt.
func continued(texts []string) []string {
	list := make([]string, len(texts))
	for i, s := range texts {
		list[i] = " " + s
	}
	return list
}

func piqa(c columns, l *labels) (e Example, err error) {
	e.Plain = true
	goal, err := c.text("goal")
	if err != nil {
		return e, err
	}
	solutions, err := c.texts("sol1", "sol2")
	if err != nil {
		return e, err
	}
	e.Prompt, e.Choices = ask(goal), continued(solutions)
	if c.has("label") {
		e.Right, err = c.index("label", len(e.Choices))
	} else {
		e.Right, err = l.index(len(e.Choices))
	}
	return e, err
}

// labels is the file beside PIQA's questions: a label a line.
type labels struct {
	path   string
	record int      // number of the current question, from 0
	lines  []string // nil: not read yet
}

// index gives the label of the current question, one of n.
func (l *labels) index(n int) (int, error) {
	if l.lines == nil {
		text, err := os.ReadFile(l.path)
		if errors.Is(err, fs.ErrNotExist) {
			return 0, faultf("label is missing, and so is the file %s", l.path)
		}
		if err != nil {
			return 0, err
		}
		l.lines = strings.Split(strings.TrimSpace(string(text)), "\n")
	}
	if l.record >= len(l.lines) {
		return 0, faultf("label is missing: %s has only %d lines", l.path, len(l.lines))
	}
	return index(fmt.Sprintf("%s:%d: label", l.path, l.record+1), strings.TrimSpace(l.lines[l.record]), n)
}

// winoGrande departs from the harness: see the package's caveats.
func winoGrande(c columns, _ *labels) (e Example, err error) {
	e.Plain = true
	sentence, err := c.text("sentence")
	if err != nil {
		return e, err
	}
	options, err := c.texts("option1", "option2")
	if err != nil {
		return e, err
	}
	before, after, found := strings.Cut(sentence, "_")
	if !found {
		return e, fault("the sentence has no blank (_)")
	}
	if blank(before) {
		return e, fault("the sentence begins with its blank: nothing is left as the prompt")
	}
	e.Prompt = strings.TrimRight(before, " ")
	for _, o := range options {
		e.Choices = append(e.Choices, before[len(e.Prompt):]+o+after)
	}
	var answer string
	if err := c.read("answer", &answer, "1 or 2, as a text"); err != nil {
		return e, err
	}
	switch answer {
	case "1", "2":
		e.Right = int(answer[0] - '1')
	case "":
		return e, fault("answer is empty: this split is published without answers")
	default:
		return e, fault("answer must be 1 or 2, as a text")
	}
	return e, nil
}

// wikiHow are marks left over in HellaSwag's texts.
var wikiHow = regexp.MustCompile(`\[.*?\]`)

// tidy cleans a text of HellaSwag as the harness does.
func tidy(s string) string {
	s = strings.ReplaceAll(strings.TrimSpace(s), " [title]", ". ")
	return strings.ReplaceAll(wikiHow.ReplaceAllString(s, ""), "  ", " ")
}

// capitalize is Python's: upper case first, all others lower.
func capitalize(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	if n == 0 {
		return ""
	}
	return string(unicode.ToTitle(r)) + strings.ToLower(s[n:])
}

func hellaSwag(c columns, _ *labels) (e Example, err error) {
	e.Plain = true
	var situation string
	if c.has("ctx_a", "ctx_b") {
		var next string // may be empty
		if situation, err = c.text("ctx_a"); err != nil {
			return e, err
		}
		if err := c.read("ctx_b", &next, "a text"); err != nil {
			return e, err
		}
		situation += " " + capitalize(next)
	} else if situation, err = c.text("ctx"); err != nil {
		return e, err
	}
	if c.has("activity_label") {
		activity, err := c.text("activity_label")
		if err != nil {
			return e, err
		}
		situation = activity + ": " + situation
	}
	e.Prompt = tidy(situation)
	var endings []string
	if err := c.read("endings", &endings, "a list of texts"); err != nil {
		return e, err
	}
	for i := range endings {
		endings[i] = tidy(endings[i])
	}
	e.Choices = continued(endings)
	e.Right, err = c.index("label", len(e.Choices))
	return e, err
}

// mathMark begins a choice of MathQA.
var mathMark = regexp.MustCompile(`(?:^|,)[ '"\[]*([a-e]) ?\) ?`)

// mathQA finds the choices in a text such as "a ) 38 , b ) 27.675 , c ) 30".
// Some lines have it as a Python list: "['a ) 38', 'b ) 27.675', 'c ) 30']".
func mathQA(c columns, _ *labels) (e Example, err error) {
	e.Plain = true
	t, err := c.texts("Problem", "options", "correct")
	if err != nil {
		return e, err
	}
	problem, options, correct := t[0], t[1], t[2]
	noise := " ,"
	if strings.HasPrefix(options, "[") {
		noise += `'"[]`
	}
	var choices []string
	begin := 0 // of the last choice's text
	for _, m := range mathMark.FindAllStringSubmatchIndex(options, -1) {
		if int(options[m[2]]-'a') != len(choices) {
			continue // the same letters within a choice
		}
		if len(choices) > 0 {
			choices[len(choices)-1] = strings.Trim(options[begin:m[0]], noise)
		}
		choices = append(choices, strings.Trim(options[m[1]:], noise))
		begin = m[1]
	}
	if len(choices) < 2 {
		return e, fault(`options must read "a ) … , b ) … , c ) …"`)
	}
	if len(correct) != 1 || correct[0] < 'a' || int(correct[0]-'a') >= len(choices) {
		return e, faultf("correct must be a letter from a to %c", 'a'+len(choices)-1)
	}
	e.Prompt, e.Choices, e.Right = ask(problem), continued(choices), int(correct[0]-'a')
	return e, nil
}

func sciQ(c columns, _ *labels) (e Example, err error) {
	e.Plain = true
	question, err := c.text("question")
	if err != nil {
		return e, err
	}
	choices, err := c.texts("distractor1", "distractor2", "distractor3", "correct_answer")
	if err != nil {
		return e, err
	}
	support := ""
	if c.has("support") { // may be empty
		if err := c.read("support", &support, "a text"); err != nil {
			return e, err
		}
	}
	e.Prompt = strings.TrimLeft(support, " \t\r\n") + "\n" + ask(question)
	e.Choices, e.Right = continued(choices), len(choices)-1
	return e, nil
}

func boolQ(c columns, _ *labels) (e Example, err error) {
	e.Plain = true
	t, err := c.texts("passage", "question")
	if err != nil {
		return e, err
	}
	e.Prompt = t[0] + "\n" + ask(t[1]+"?")
	e.Choices = continued([]string{"no", "yes"})
	if !c.has("answer") {
		e.Right, err = c.index("label", len(e.Choices))
		return e, err
	}
	var yes bool
	if err := c.read("answer", &yes, "true or false"); err != nil {
		return e, err
	}
	if yes {
		e.Right = 1
	}
	return e, nil
}

// lettered are choices with labels, "A" to "E" or "1" to "5" as a rule.
type lettered struct{ text, label []string }

// UnmarshalJSON reads both published forms: [{"text", "label"}, …] and
// {"text": […], "label": […]}.
func (l *lettered) UnmarshalJSON(data []byte) error {
	type choice struct{ Text, Label string }
	if data[0] == '[' {
		var list []choice
		err := json.Unmarshal(data, &list)
		for _, c := range list {
			l.text = append(l.text, c.Text)
			l.label = append(l.label, c.Label)
		}
		return err
	}
	var lists struct{ Text, Label []string }
	err := json.Unmarshal(data, &lists)
	l.text, l.label = lists.Text, lists.Label
	return err
}

// lettered takes the choices and the right one of an ARC or OpenBookQA object;
// the choices may be in another object, inside of c.
func (c columns) lettered(e *Example, from columns) error {
	var l lettered
	if err := from.read("choices", &l, "a list of text and label"); err != nil {
		return err
	}
	if len(l.text) != len(l.label) {
		return faultf("choices has %d texts but %d labels", len(l.text), len(l.label))
	}
	if len(l.text) == 0 {
		return fault("choices is empty")
	}
	key, err := c.text("answerKey")
	if err != nil {
		return err
	}
	e.Choices = continued(l.text)
	e.Right = slices.Index(l.label, strings.TrimSpace(key))
	if e.Right < 0 {
		return faultf("answerKey %.20q is none of the labels %.60q", key, l.label)
	}
	return nil
}

func openBookQA(c columns, _ *labels) (e Example, err error) {
	e.Plain = true
	if e.Prompt, err = c.text("question_stem"); err != nil {
		return e, err
	}
	err = c.lettered(&e, c)
	return e, err
}

// arc also reads OpenBookQA's first publication, of the same columns.
func arc(c columns, _ *labels) (e Example, err error) {
	e.Plain = true
	from, stem := c, "question"
	if c["question"][0] == '{' {
		from, stem = columns{}, "stem"
		if err := c.read("question", &from, "an object"); err != nil {
			return e, err
		}
	}
	text, err := from.text(stem)
	if err != nil {
		return e, err
	}
	e.Prompt = ask(text)
	if id, _ := c.text("id"); stem == "stem" && id != "" && unicode.IsDigit(rune(id[0])) {
		e.Prompt = text // OpenBookQA
	}
	err = c.lettered(&e, from)
	return e, err
}

func gsm8k(c columns, _ *labels) (e Example, err error) {
	e.Plain = true
	t, err := c.texts("question", "answer")
	if err != nil {
		return e, err
	}
	if !strings.Contains(t[1], "#### ") {
		return e, fault(`question and answer are GSM8K's columns, but the answer has no "#### ": name your own columns prompt and answer`)
	}
	e.Prompt, e.Answer = ask(t[0]), " "+t[1]
	return e, nil
}
