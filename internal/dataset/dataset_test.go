package dataset

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/llama"
)

// write makes a file in a fresh folder and gives its path.
func write(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// TestFormats has one line of each form, in the columns it is published with.
func TestFormats(t *testing.T) {
	tests := []struct {
		name, line string
		want       Example
	}{
		{
			"free answer",
			`{"prompt": "What is 2 + 2?", "answer": "Four.", "task": "sums"}`,
			Example{Prompt: "What is 2 + 2?", Answer: "Four.", Task: "sums"},
		}, {
			"choices",
			`{"prompt": "Which is a fruit?", "choices": ["stone", "pear", "shoe"], "answer": 1}`,
			Example{Prompt: "Which is a fruit?", Choices: []string{"stone", "pear", "shoe"}, Right: 1},
		}, {
			"prompt alone, with columns to ignore",
			`{"prompt": " Grüße\n", "lang": "de", "n": [1, {"a": null}], "answer": null, "task": ""}`,
			Example{Prompt: " Grüße\n"},
		}, {
			"messages with an answer",
			`{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi."}]}`,
			Example{
				Prompt:   "Hello!",
				Messages: []llama.Message{{Role: "system", Content: "Be brief."}, {Role: "user", Content: "Hello!"}},
				Answer:   "Hi.",
			},
		}, {
			"messages without an answer",
			`{"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}, {"role": "user", "content": "Three?"}]}`,
			Example{
				Prompt:   "Three?",
				Messages: []llama.Message{{Role: "user", Content: "One?"}, {Role: "assistant", Content: "Two."}, {Role: "user", Content: "Three?"}},
			},
		}, {
			"plain text",
			`{"text": "Once upon\na time.", "source": "a book"}`,
			Example{Prompt: "Once upon\na time.", Text: true},
		}, {
			"ARC",
			`{"id": "Mercury_1", "question": {"stem": "What melts ice?", "choices": [{"text": "heat", "label": "A"}, {"text": "frost", "label": "B"}]}, "answerKey": "A"}`,
			Example{Plain: true, Prompt: "Question: What melts ice?\nAnswer:", Choices: []string{" heat", " frost"}},
		}, {
			"ARC as lists, labels as figures",
			`{"id": "NYSEDREGENTS_1", "question": "What melts ice?", "choices": {"text": ["frost", "heat"], "label": ["1", "2"]}, "answerKey": "2"}`,
			Example{Plain: true, Prompt: "Question: What melts ice?\nAnswer:", Choices: []string{" frost", " heat"}, Right: 1},
		}, {
			"OpenBookQA as ARC",
			`{"id": "7-980", "question": {"stem": "A magnet attracts", "choices": [{"text": "wood", "label": "A"}, {"text": "a nail", "label": "B"}]}, "answerKey": "B"}`,
			Example{Plain: true, Prompt: "A magnet attracts", Choices: []string{" wood", " a nail"}, Right: 1},
		}, {
			"OpenBookQA as lists",
			`{"id": "7-980", "question_stem": "A magnet attracts", "choices": {"text": ["wood", "a nail"], "label": ["A", "B"]}, "answerKey": "B "}`,
			Example{Plain: true, Prompt: "A magnet attracts", Choices: []string{" wood", " a nail"}, Right: 1},
		}, {
			"BoolQ",
			`{"question": "is the moon round", "title": "Moon", "answer": true, "passage": "The moon is a ball."}`,
			Example{Plain: true, Prompt: "The moon is a ball.\nQuestion: is the moon round?\nAnswer:", Choices: []string{" no", " yes"}, Right: 1},
		}, {
			"BoolQ with a label",
			`{"question": "is the moon a cube", "passage": "The moon is a ball.", "idx": 4, "label": 0}`,
			Example{Plain: true, Prompt: "The moon is a ball.\nQuestion: is the moon a cube?\nAnswer:", Choices: []string{" no", " yes"}},
		}, {
			"HellaSwag",
			`{"ind": 3, "activity_label": "Baking bread", "ctx_a": "A man kneads dough.", "ctx_b": "then he", "ctx": "A man kneads dough. then he", "split": "val",
			 "label": 2, "endings": ["sings.", "swims.", "[header] bakes it  well [title] Done", "sleeps."]}`,
			Example{
				Plain: true, Prompt: "Baking bread: A man kneads dough. Then he",
				Choices: []string{" sings.", " swims.", "  bakes it well. Done", " sleeps."}, Right: 2,
			},
		}, {
			"HellaSwag with the label as a text and no second part",
			`{"activity_label": "Baking", "ctx_a": "A man kneads dough.", "ctx_b": "", "endings": ["He rests.", "He flies."], "label": "0"}`,
			Example{Plain: true, Prompt: "Baking: A man kneads dough.", Choices: []string{" He rests.", " He flies."}},
		}, {
			"HellaSwag, least columns",
			`{"ctx": "A man kneads dough. He", "endings": ["rests.", "flies."], "label": 0}`,
			Example{Plain: true, Prompt: "A man kneads dough. He", Choices: []string{" rests.", " flies."}},
		}, {
			"PIQA",
			`{"goal": "dry a shoe", "sol1": "Put it in water.", "sol2": "Put paper into it.", "label": 1}`,
			Example{Plain: true, Prompt: "Question: dry a shoe\nAnswer:", Choices: []string{" Put it in water.", " Put paper into it."}, Right: 1},
		}, {
			"WinoGrande",
			`{"qID": "x-1", "sentence": "The cup fell off the shelf because the _ was slippery.", "option1": "cup", "option2": "shelf", "answer": "2"}`,
			Example{
				Plain: true, Prompt: "The cup fell off the shelf because the",
				Choices: []string{" cup was slippery.", " shelf was slippery."}, Right: 1,
			},
		}, {
			"SciQ",
			`{"question": "What do plants breathe in?", "distractor3": "gold", "distractor1": "sand", "distractor2": "salt", "correct_answer": "air", "support": " Plants need air."}`,
			Example{
				Plain: true, Prompt: "Plants need air.\nQuestion: What do plants breathe in?\nAnswer:",
				Choices: []string{" sand", " salt", " gold", " air"}, Right: 3,
			},
		}, {
			"MathQA",
			`{"Problem": "what is 1 , 000 + 1 ?", "Rationale": "add", "options": "a ) 999 , b ) 1 , 001 , c ) ( a ) or b ) , d ) rs . 5 , e ) none of these", "correct": "b", "category": "general"}`,
			Example{
				Plain: true, Prompt: "Question: what is 1 , 000 + 1 ?\nAnswer:",
				Choices: []string{" 999", " 1 , 001", " ( a ) or b )", " rs . 5", " none of these"}, Right: 1,
			},
		}, {
			"MathQA with a Python list",
			`{"Problem": "what is half of 6 ?", "options": "['a ) 2', 'b ) 3', 'c ) 4']", "correct": "b"}`,
			Example{Plain: true, Prompt: "Question: what is half of 6 ?\nAnswer:", Choices: []string{" 2", " 3", " 4"}, Right: 1},
		}, {
			"GSM8K",
			`{"question": "Mo has 3 pens and buys 2. How many now?", "answer": "Mo has 3+2=<<3+2=5>>5 pens.\n#### 5"}`,
			Example{Plain: true, Prompt: "Question: Mo has 3 pens and buys 2. How many now?\nAnswer:", Answer: " Mo has 3+2=<<3+2=5>>5 pens.\n#### 5"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			line := strings.ReplaceAll(test.line, "\n", " ")
			for form, text := range map[string]string{
				"line":  line,
				"array": "[" + test.line + "]",
			} {
				path := write(t, "a.b.jsonl", text)
				examples, problems, err := Read([]string{path}, nil)
				require.NoError(t, err, form)
				require.Empty(t, problems, form)
				want := test.want
				if want.Task == "" {
					want.Task = "a.b"
				}
				want.Where = path + ":1"
				require.Equal(t, []Example{want}, examples, form)
				require.Equal(t, want.Answer != "" || want.Text || len(want.Choices) > 0, examples[0].Labelled(), form)
			}
		})
	}
}

// TestFaults has lines that cannot be used, with the reason for each.
func TestFaults(t *testing.T) {
	tests := []struct{ line, reason string }{
		{`{"prompt": "x"`, "broken JSON: unexpected end of JSON input"},
		{`{"prompt": "x"} {"prompt": "y"}`, "broken JSON: invalid character '{' after top-level value"},
		{`prompt,answer`, "not a JSON object: an example begins with {"},
		{`"x"`, "not a JSON object: an example begins with {"},
		{"{\"prompt\": \"\xff\"}", "invalid UTF-8: save the file as UTF-8 text"},
		{`{}`, "unknown columns (): prompt, messages or text is needed, or those of a known benchmark"},
		{`{"body": "x", "id": 3, "prompt": null}`, `unknown columns ("body", "id", "prompt"): prompt, messages or text is needed, or those of a known benchmark`},
		{
			`{"a":0,"b":0,"c":0,"d":0,"e":0,"f":0,"g":0,"h":0,"i":0}`,
			`unknown columns ("a", "b", "c", "d", "e", "f", "g", "h", …): prompt, messages or text is needed, or those of a known benchmark`,
		},

		{`{"prompt": " \n"}`, "prompt is empty"},
		{`{"prompt": 3}`, "prompt must be a text"},
		{`{"prompt": "x", "task": 3}`, "task must be a text"},
		{`{"prompt": "x", "answer": ""}`, "answer is empty: leave it out if it is not known"},
		{`{"prompt": "x", "answer": 4}`, "answer must be a text where there are no choices"},
		{`{"prompt": "x", "choices": ["a", "b", "c", "d"], "answer": 7}`, "answer 7 is out of range: there are 4 choices (0 to 3)"},
		{`{"prompt": "x", "choices": ["a", "b"], "answer": -1}`, "answer -1 is out of range: there are 2 choices (0 to 1)"},
		{`{"prompt": "x", "choices": ["a", "b"], "answer": 0.5}`, "answer must be a whole number"},
		{`{"prompt": "x", "choices": ["a", "b"], "answer": "a"}`, "answer must be a number: the right choice's index, from 0"},
		{`{"prompt": "x", "choices": ["a", "b"]}`, "answer is missing"},
		{`{"prompt": "x", "choices": ["a"], "answer": 0}`, "at least 2 choices are needed, not 1"},
		{`{"prompt": "x", "choices": [], "answer": 0}`, "at least 2 choices are needed, not 0"},
		{`{"prompt": "x", "choices": ["a", null], "answer": 0}`, "choice 1 is empty"},
		{`{"prompt": "x", "choices": [1, 2], "answer": 0}`, "choices must be a list of texts"},

		{`{"prompt": "x", "messages": []}`, "prompt and messages are both there: give one of them"},
		{`{"messages": "x"}`, `messages must be a list of {"role": "…", "content": "…"}, both texts`},
		{`{"messages": []}`, "the last message, or the last before the assistant's answer, must be the user's"},
		{`{"messages": [{"role": "assistant", "content": "x"}]}`, "the last message, or the last before the assistant's answer, must be the user's"},
		{`{"messages": [{"role": "user"}]}`, "message 0 needs a role and a content"},
		{`{"messages": [{"role": "tool", "content": "x"}]}`, "message 0 has another role than system, user and assistant"},
		{`{"messages": [{"role": "user", "content": " "}]}`, "message 0 is empty"},

		{`{"question": {"stem": "x"}, "answerKey": "A"}`, "choices is missing"},
		{`{"question": {"choices": []}, "answerKey": "A"}`, "stem is missing"},
		{`{"question": {"stem": "x", "choices": []}, "answerKey": "A"}`, "choices is empty"},
		{`{"question": "x", "choices": {"text": ["a"], "label": []}, "answerKey": "A"}`, "choices has 1 texts but 0 labels"},
		{`{"question": "x", "choices": "a", "answerKey": "A"}`, "choices must be a list of text and label"},
		{`{"question": "x", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"}`, `answerKey "C" is none of the labels ["A" "B"]`},
		{`{"question": "x", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": ""}`, "answerKey is empty"},
		{`{"question": "x", "passage": "y"}`, "label is missing"},
		{`{"question": "x", "passage": "y", "answer": "yes"}`, "answer must be true or false"},
		{`{"question": "x", "passage": "y", "label": -1}`, "label -1 is out of range: there are 2 choices (0 to 1)"},
		{`{"ctx": "x", "endings": ["a", "b"], "label": ""}`, "label is empty: this split is published without answers"},
		{`{"endings": ["a", "b"], "label": 0}`, "ctx is missing"},
		{`{"ctx": "x", "endings": 1, "label": 0}`, "endings must be a list of texts"},
		{`{"goal": "x", "sol1": "a"}`, "sol2 is missing"},
		{`{"sentence": "x", "option1": "a", "option2": "b", "answer": "1"}`, "the sentence has no blank (_)"},
		{`{"sentence": "_ is here", "option1": "a", "option2": "b", "answer": "1"}`, "the sentence begins with its blank: nothing is left as the prompt"},
		{`{"sentence": "x _", "option1": "a", "option2": "b", "answer": ""}`, "answer is empty: this split is published without answers"},
		{`{"sentence": "x _", "option1": "a", "option2": "b", "answer": "3"}`, "answer must be 1 or 2, as a text"},
		{`{"question": "x", "distractor1": "a"}`, "distractor2 is missing"},
		{`{"Problem": "x", "options": "1, 2", "correct": "a"}`, `options must read "a ) … , b ) … , c ) …"`},
		{`{"Problem": "x", "options": "a ) 1 , b ) 2", "correct": "c"}`, "correct must be a letter from a to b"},
		{`{"Problem": "x", "options": "a ) 1 , b ) , c ) 2", "correct": "c"}`, "choice 1 is empty"},
		{`{"question": "x", "answer": "y"}`, `question and answer are GSM8K's columns, but the answer has no "#### ": name your own columns prompt and answer`},
	}
	for _, test := range tests {
		t.Run(test.line, func(t *testing.T) {
			path := write(t, "calibration.jsonl", "{\"prompt\": \"good\"}\n\n"+test.line+"\n{\"prompt\": \"good too\"}")
			want := Problem{File: path, Line: 3, Reason: test.reason}

			_, _, err := Read([]string{path}, nil)
			require.EqualError(t, err, path+":3: "+test.reason)
			require.ErrorIs(t, err, ErrData)
			var problem Problem
			require.ErrorAs(t, err, &problem)
			require.Equal(t, want, problem)

			examples, problems, err := Read([]string{path}, &Options{SkipBad: true})
			require.NoError(t, err)
			require.Equal(t, []Problem{want}, problems)
			require.Equal(t, []string{"good", "good too"}, prompts(examples))
		})
	}
}

func prompts(examples []Example) []string {
	list := []string{}
	for _, e := range examples {
		list = append(list, e.Prompt)
	}
	return list
}

// TestFiles has whole files, good and bad.
func TestFiles(t *testing.T) {
	const a, b = `{"prompt": "a"}`, `{"prompt": "b"}`
	padding := strings.Repeat("x", maxRecord)
	tests := []struct {
		name, text string
		want       []string // "line: prompt" of each example
		problems   []string // "line: reason"
	}{
		{"last line without an end", a + "\n" + b, []string{"1: a", "2: b"}, nil},
		{"lines of Windows, with a mark before", bom + a + "\r\n\r\n" + b + "\r\n", []string{"1: a", "3: b"}, nil},
		{"array", "\n[\n" + a + ",\n\n{\"prompt\":\n\"b\"}\n]\n", []string{"3: a", "5: b"}, nil},
		{"array with brackets in texts", `[{"prompt": "],\"[{"}, {"prompt": "\\"}]`, []string{`1: ],"[{`, `1: \`}, nil},
		{"array with faults", "[" + a + ",\n3,\n" + b + "]", []string{"1: a", "3: b"}, []string{"2: not a JSON object: an example begins with {"}},
		{"array with nothing between commas", "[" + a + ",\n,\n" + b + "]", []string{"1: a", "3: b"}, []string{"2: broken JSON: nothing before the comma"}},
		{"array cut short", "[" + a + ",\n" + `{"prompt": "b"`, []string{"1: a"}, []string{"2: broken JSON: the array is cut short"}},
		{"array cut short after a comma", "[" + a + ",\n", []string{"1: a"}, []string{"2: broken JSON: the array is cut short"}},
		{"text after an array", "[" + a + "]\n" + b, []string{"1: a"}, []string{"2: broken JSON: text after the end of the array"}},
		{"long line", a + "\n" + padding + "y\n" + b, []string{"1: a", "3: b"}, []string{"2: " + string(tooLong)}},
		{"longest line", a + "\n" + `{"prompt": "b", "x": "` + padding[:maxRecord-25] + "\"}\n", []string{"1: a", "2: b"}, nil},
		{"long element", "[" + a + ",\n" + `{"prompt": "` + padding + "\"}\n," + b + "]", []string{"1: a", "3: b"}, []string{"2: " + string(tooLong)}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := write(t, "file.json", test.text)
			examples, problems, err := Read([]string{path}, &Options{SkipBad: true})
			require.NoError(t, err)
			var got, bad []string
			for _, e := range examples {
				require.Equal(t, "file", e.Task)
				got = append(got, strings.TrimPrefix(e.Where, path+":")+": "+e.Prompt)
			}
			for _, p := range problems {
				require.Equal(t, path, p.File)
				bad = append(bad, fmt.Sprintf("%d: %s", p.Line, p.Reason))
			}
			require.Equal(t, test.want, got)
			require.Equal(t, test.problems, bad)
		})
	}
}

func TestPrompts(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []Example
	}{
		"a prompt a line": {"\ufeffWhat is 2 + 2?\r\n\n  Who are {you}? \n", []Example{
			{Prompt: "What is 2 + 2?", Task: "ask", Where: "ask.txt:1"}, {Prompt: "Who are {you}?", Task: "ask", Where: "ask.txt:3"}}},
		"JSON lines": {`{"prompt": "a"}`, []Example{{Prompt: "a", Task: "ask", Where: "ask.txt:1"}}},
		"an array":   {"\n [{\"prompt\": \"a\"}]", []Example{{Prompt: "a", Task: "ask", Where: "ask.txt:2"}}},
	} {
		t.Run(name, func(t *testing.T) {
			examples, problems, err := ReadPrompts("ask.txt", strings.NewReader(c.text), nil)
			require.NoError(t, err)
			require.Empty(t, problems)
			require.Equal(t, c.want, examples)
		})
	}
	_, _, err := ReadPrompts("ask.txt", strings.NewReader("a\n\xff\n"), nil)
	require.ErrorIs(t, err, ErrData)
	require.ErrorContains(t, err, "ask.txt:2: invalid UTF-8")
	examples, problems, err := ReadPrompts("ask.txt", strings.NewReader("a\n\xff\nb"), &Options{SkipBad: true})
	require.NoError(t, err)
	require.Len(t, problems, 1)
	require.Len(t, examples, 2)
	_, _, err = ReadPrompts("ask.txt", strings.NewReader(" \n"), nil)
	require.ErrorContains(t, err, "the file is empty")
}

func TestNothingLeft(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "blank": "\n \n", "array": "[]", "bad": "{}\n{}"} {
		path := write(t, name+".jsonl", text)
		_, _, err := Read([]string{path}, nil)
		require.ErrorIs(t, err, ErrData, name)
		require.ErrorContains(t, err, path+":1: ", name)

		_, problems, err := Read([]string{path}, &Options{SkipBad: true})
		require.ErrorIs(t, err, ErrEmpty, name)
		require.ErrorIs(t, err, ErrData, name)
		require.ErrorContains(t, err, path+":1: ", name)
		require.NotEmpty(t, problems, name)
	}
	_, _, err := Read(nil, nil)
	require.ErrorIs(t, err, ErrEmpty)

	// One empty file among others is a problem like any other.
	examples, problems, err := Read([]string{write(t, "empty.jsonl", ""), write(t, "full.jsonl", `{"prompt": "a"}`)}, &Options{SkipBad: true})
	require.NoError(t, err)
	require.Len(t, problems, 1)
	require.Equal(t, "full", examples[0].Task)
}

// TestUnreadable makes sure that files that cannot be read end the reading,
// whatever is to be skipped.
func TestUnreadable(t *testing.T) {
	skip := &Options{SkipBad: true}
	_, _, err := Read([]string{filepath.Join(t.TempDir(), "missing.jsonl")}, skip)
	require.ErrorIs(t, err, fs.ErrNotExist)
	dir := t.TempDir()
	_, _, err = Read([]string{dir}, skip)
	require.ErrorContains(t, err, dir)
	require.False(t, errors.Is(err, ErrData))
}

func TestLabelsFile(t *testing.T) {
	const lines = `{"goal": "g1", "sol1": "a", "sol2": "b"}

{"goal": "g2", "sol1": "a"}
{"goal": "g3", "sol1": "a", "sol2": "b"}
{"goal": "g4", "sol1": "a", "sol2": "b"}
{"goal": "g5", "sol1": "a", "sol2": "b"}
`
	path := write(t, "valid.jsonl", lines)
	beside := filepath.Join(filepath.Dir(path), "valid-labels.lst")
	_, _, err := Read([]string{path}, nil)
	require.EqualError(t, err, path+":1: label is missing, and so is the file "+beside)

	require.NoError(t, os.WriteFile(beside, []byte("1\n0\n1\r\n2\n"), 0o600))
	examples, problems, err := Read([]string{path}, &Options{SkipBad: true})
	require.NoError(t, err)
	require.Len(t, examples, 2)
	require.Equal(t, 1, examples[0].Right)
	require.Equal(t, 1, examples[1].Right, "the bad question's label must be passed over")
	require.Equal(t, []Problem{
		{path, 3, "sol2 is missing"},
		{path, 5, beside + ":4: label 2 is out of range: there are 2 choices (0 to 1)"},
		{path, 6, "label is missing: " + beside + " has only 4 lines"},
	}, problems)
}

// many writes n examples, numbered by their prompts.
func many(t testing.TB, n int) string {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, "{\"prompt\": \"Say the number %d in a friendly way.\", \"answer\": \"Gladly: %d\"}\n", i, i)
	}
	return write(t, "many.jsonl", b.String())
}

func TestLimit(t *testing.T) {
	const n, limit = 20000, 2000
	path := many(t, n)
	all, _, err := Read([]string{path}, nil)
	require.NoError(t, err)
	require.Len(t, all, n)

	sample, _, err := Read([]string{path}, &Options{Limit: limit})
	require.NoError(t, err)
	require.Len(t, sample, limit)
	again, _, err := Read([]string{path}, &Options{Limit: limit})
	require.NoError(t, err)
	require.Equal(t, sample, again)

	// In order, without repetition, and from all of the file: each tenth of it
	// gives 200 of the 2000 on average, with a standard deviation of 13. Six of
	// these would be a broken sample, not bad luck.
	numbers := make([]int, limit)
	tenths := make([]int, 10)
	for i, e := range sample {
		numbers[i] = slices.IndexFunc(all, func(a Example) bool { return a.Where == e.Where })
		require.Equal(t, all[numbers[i]], e)
		tenths[numbers[i]*10/n]++
		if i > 0 {
			require.Less(t, numbers[i-1], numbers[i])
		}
	}
	for _, count := range tenths {
		require.InDelta(t, limit/10, count, 6*13)
	}

	few, _, err := Read([]string{path}, &Options{Limit: n + 1})
	require.NoError(t, err)
	require.Equal(t, all, few)

	// What the sample leaves out is checked all the same.
	bad := write(t, "bad.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n{\"prompt\": \"\"}\n")
	_, _, err = Read([]string{bad}, &Options{Limit: 1})
	require.EqualError(t, err, bad+":3: prompt is empty")
}

func TestHash(t *testing.T) {
	base := func() []Example {
		return []Example{
			{Prompt: "a", Choices: []string{"b", "c"}, Right: 1, Task: "t", Where: "here:1"},
			{Prompt: "d", Answer: "e", Messages: []llama.Message{{Role: "user", Content: "d"}}, Task: "t"},
		}
	}
	// Computed once: profiles on disk hold such hashes.
	require.Equal(t, "6c9311cc957289b2798d5b1e1df28026b689ed7f513dd0b88a892505f488bafa", Hash(base()))

	moved := base()
	moved[0].Where = "there:7"
	require.Equal(t, Hash(base()), Hash(moved))

	seen := map[string]bool{Hash(base()): true}
	for i, change := range []func(e []Example){
		func(e []Example) { e[0].Prompt = "aa" },
		func(e []Example) { e[0].Plain = true },
		func(e []Example) { e[0].Choices = []string{"bc", ""} },
		func(e []Example) { e[0].Right = 0 },
		func(e []Example) { e[0].Task = "u" },
		func(e []Example) { e[1].Answer = "f" },
		func(e []Example) { e[1].Messages[0].Role = "system" },
		func(e []Example) { e[1].Messages[0].Content = "x" },
		func(e []Example) { e[1].Messages = nil },
		func(e []Example) { e[0], e[1] = e[1], e[0] },
	} {
		changed := base()
		change(changed)
		hash := Hash(changed)
		require.False(t, seen[hash], "change %d", i)
		seen[hash] = true
	}
}

func TestStarter(t *testing.T) {
	const (
		least          = 252 // prompts in all
		leastPerTask   = 21
		shortest, most = 5, 120 // words
	)
	examples := Starter()
	require.GreaterOrEqual(t, len(examples), least)

	tasks := map[string][]Example{}
	seen := map[string]string{}
	for _, e := range examples {
		tasks[e.Task] = append(tasks[e.Task], e)
		require.False(t, e.Labelled(), e.Where)
		require.False(t, e.Plain, e.Where)
		require.Equal(t, strings.TrimSpace(e.Prompt), e.Prompt, e.Where)
		words := strings.Fields(e.Prompt)
		require.GreaterOrEqual(t, len(words), shortest, e.Where)
		require.LessOrEqual(t, len(words), most, e.Where)

		// Two prompts differ by more than case and spaces.
		key := strings.ToLower(strings.Join(words, " "))
		require.Empty(t, seen[key], "%s repeats it", e.Where)
		seen[key] = e.Where
	}

	// The language is no business of Example's.
	german := map[string]int{}
	for line := range bytes.Lines(starter) {
		var l struct{ Task, Lang string }
		require.NoError(t, json.Unmarshal(line, &l))
		require.Contains(t, []string{"en", "de"}, l.Lang)
		if l.Lang == "de" {
			german[l.Task]++
		}
	}
	want := []string{
		"chat", "code", "maths", "summarising", "translation", "extraction",
		"reasoning", "facts", "rewriting", "stories", "planning", "classification",
	}
	require.Len(t, tasks, len(want))
	for _, task := range want {
		require.GreaterOrEqual(t, len(tasks[task]), leastPerTask, task)
		share := float64(german[task]) / float64(len(tasks[task]))
		require.InDelta(t, 0.25, share, 0.06, "German share of %s", task)
	}
}

// FuzzRead makes sure that no bytes break the reader, that every refusal names
// file and line, and that skipping finds what reading refuses first.
func FuzzRead(f *testing.F) {
	for _, seed := range []string{
		"", "\n", "[", "[]", "[{}]", "[{\"prompt\":\"a\"},]", "{\"prompt\":\"a\"}\n{\"prompt\":\"\xff\"}", bom + "[\"\\\"",
		`{"prompt":"x","choices":["a","b"],"answer":1}`,
		`{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}]}`,
		`{"id":"7","question":{"stem":"x","choices":[{"text":"a","label":"A"},{"text":"b","label":"B"}]},"answerKey":"A"}`,
		`{"question":"x","choices":{"text":["a","b"],"label":["A","B"]},"answerKey":"A"}`,
		`{"question_stem":"x","choices":{"text":["a","b"],"label":["A","B"]},"answerKey":"A"}`,
		`{"question":"x","passage":"y","answer":true}`,
		`{"activity_label":"x","ctx_a":"a","ctx_b":"b","endings":["a","b"],"label":"1"}`,
		`{"goal":"x","sol1":"a","sol2":"b"}`,
		`{"sentence":"x _ y","option1":"a","option2":"b","answer":"1"}`,
		`{"question":"x","distractor1":"a","distractor2":"b","distractor3":"c","correct_answer":"d"}`,
		`{"Problem":"x","options":"a ) 1 , b ) 2","correct":"a"}`,
		`{"question":"x","answer":"y #### 2"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		const name = "no-such-folder/fuzz.jsonl"
		lines := bytes.Count(data, []byte("\n")) + 1
		strict, lax := newReader(&Options{}), newReader(&Options{SkipBad: true})
		err := strict.read(name, bytes.NewReader(data))
		require.NoError(t, lax.read(name, bytes.NewReader(data)))
		if err == nil {
			require.Empty(t, lax.problems)
			require.NotEmpty(t, lax.examples())
			require.Equal(t, strict.examples(), lax.examples())
		} else {
			require.Equal(t, lax.problems[0], err)
		}
		for _, p := range lax.problems {
			require.Equal(t, name, p.File)
			require.True(t, p.Line >= 1 && p.Line <= lines, "line %d of %d", p.Line, lines)
			require.NotEmpty(t, p.Reason)
		}
		for _, e := range lax.examples() {
			require.False(t, blank(e.Prompt))
			require.NotEmpty(t, e.Task)
			require.True(t, strings.HasPrefix(e.Where, name+":"))
			if e.Choices != nil {
				require.GreaterOrEqual(t, len(e.Choices), 2)
				require.True(t, e.Right >= 0 && e.Right < len(e.Choices))
				require.Empty(t, e.Answer)
			}
			if e.Messages != nil {
				require.Equal(t, llama.Message{Role: "user", Content: e.Prompt}, e.Messages[len(e.Messages)-1])
			}
		}
	})
}

// BenchmarkRead reads a million lines, of which a sample is kept.
func BenchmarkRead(b *testing.B) {
	path := many(b, 1_000_000)
	info, err := os.Stat(path)
	require.NoError(b, err)
	b.SetBytes(info.Size())
	b.ReportAllocs()
	for b.Loop() {
		examples, _, err := Read([]string{path}, &Options{Limit: 1000})
		require.NoError(b, err)
		require.Len(b, examples, 1000)
	}
}
