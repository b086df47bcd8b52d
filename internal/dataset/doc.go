// Package dataset reads the examples that calibration and evaluation work on.
//
// # Basics
//
// [Read] reads files, as JSONL (one object a line) or as one JSON array of
// objects, and gives an [Example] for each; [ReadPrompts] takes plain text too.
// [Starter] gives the prompts that are built in, and [Hash] names a set of
// examples by its content.
//
// Examples of our own form are meant for the model's chat template:
//
//	{"prompt": "…", "answer": "…", "task": "…"}
//	{"prompt": "…", "choices": ["…", "…"], "answer": 1}   the index, from 0
//	{"prompt": "…"}                                       without an answer
//	{"messages": [{"role": "user", "content": "…"}, …]}   an assistant's last message is the answer
//	{"text": "…"}                                         plain text, for its perplexity; no chat template
//
// A task may be given with any of them, published ones included; without it
// the task is the file's name, less folder and extension. Other columns are
// ignored.
//
// The published files of these benchmarks are read as they are. Each object's
// columns tell which it is. Prompts and choices get the texts of
// lm-evaluation-harness without few-shot examples, and are continued as raw
// text ([Example.Plain]):
//
//	ARC         question.stem, question.choices, answerKey; or question, choices, answerKey
//	OpenBookQA  as ARC; or question_stem, choices, answerKey
//	BoolQ       passage, question, answer; or label
//	HellaSwag   activity_label, ctx_a, ctx_b (or ctx), endings, label
//	PIQA        goal, sol1, sol2, label; or the labels in NAME-labels.lst beside NAME.jsonl
//	WinoGrande  sentence, option1, option2, answer
//	SciQ        question, correct_answer, distractor1 to distractor3, support
//	MathQA      Problem, options, correct
//	GSM8K       question, answer
//
// # Caveats
//
// WinoGrande differs from the harness. There each option is put into the
// sentence up to the blank, and only the rest of the sentence is scored: two
// prompts with one continuation. An Example has one prompt, so here the prompt
// ends before the blank, and a choice is the option with the rest of the
// sentence. The options' own likelihoods are thus part of the scores, and
// accuracies are not the harness's, though comparable with each other. A
// sentence that begins with its blank leaves no prompt and is refused.
//
// ARC and OpenBookQA are both published with question.stem, but the harness
// asks them in different ways. They are told apart by their ids, which begin
// with a letter in ARC and with a digit in OpenBookQA.
//
// GSM8K's answer is the whole worked solution up to "#### 42", as the harness
// has it.
//
// Splits that are published without answers are refused, line by line.
//
// One line is held in memory at a time, and nothing of it beyond its example.
package dataset
