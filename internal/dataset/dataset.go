package dataset

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/gallop-llm/gallop/llama"
)

// Example is a prompt with its answer, if that is known.
type Example struct {
	// Prompt is never blank. Of a conversation it is the last user message.
	Prompt string

	// Messages is the conversation, which ends with Prompt, if the example was
	// given in chat form; nil otherwise.
	Messages []llama.Message

	// Plain says that the model continues Prompt as raw text, as benchmarks
	// ask; otherwise the prompt goes through the chat template.
	Plain bool

	// Text says that Prompt is a plain text without an answer: all of it is
	// predicted, which is what perplexity is measured on.
	Text bool

	// Answer is the free answer, "" when there are choices or no answer is
	// known. After a plain prompt it begins with a space, as choices do.
	Answer string

	// Choices are at least two, or nil. Right is the index of the right one.
	Choices []string
	Right   int

	// Task is never empty.
	Task string

	// Where is "file:line".
	Where string
}

// Labelled tells whether the right answer is known, or is the text itself.
func (e Example) Labelled() bool { return e.Answer != "" || e.Choices != nil || e.Text }

// Options of [Read]. Nil is the zero value.
type Options struct {
	// SkipBad goes on after lines that cannot be used; Read lists them then.
	// Without it the first one ends the reading.
	SkipBad bool

	// Limit is how many examples are kept, of all files together: a uniform
	// sample, always the same for the same files, in their order; a large file
	// gives more of it than a small one. 0: all.
	// Memory follows it, not the files' size, and every line is checked still.
	Limit int
}

// sampleSeed draws the sample of Options.Limit. Any number would do.
const sampleSeed = 3

// Read reads the examples of all files in their order. The problems are those
// of Options.SkipBad. Errors are a [Problem], [ErrEmpty], or those of reading
// a file.
func Read(paths []string, o *Options) ([]Example, []Problem, error) {
	if o == nil {
		o = &Options{}
	}
	if len(paths) == 0 {
		return nil, nil, fmt.Errorf("%w: give at least one file", ErrEmpty)
	}
	r := newReader(o)
	for _, path := range paths {
		if err := r.readFile(path); err != nil {
			return nil, nil, err
		}
	}
	return r.result()
}

// ReadPrompts reads the examples of one file called name. Beside what [Read]
// takes it takes plain text, a prompt a line: whatever begins with neither { nor [.
// Errors are those of Read.
func ReadPrompts(name string, file io.Reader, o *Options) ([]Example, []Problem, error) {
	if o == nil {
		o = &Options{}
	}
	r := newReader(o)
	buffered := bufio.NewReader(file)
	head, _ := buffered.Peek(buffered.Size())
	head = bytes.TrimSpace(bytes.TrimPrefix(head, []byte(bom)))
	if len(head) > 0 && head[0] != '{' && head[0] != '[' {
		r.parse = parseLine
	}
	if err := r.read(name, buffered); err != nil {
		return nil, nil, err
	}
	return r.result()
}

// parseLine takes a line of plain text for a prompt.
func parseLine(data []byte, _ *labels) (Example, error) {
	if !utf8.Valid(data) {
		return Example{}, errUTF8
	}
	return Example{Prompt: strings.TrimSpace(string(data))}, nil
}

// reader gathers examples and problems over several files.
type reader struct {
	o        *Options
	parse    func(data []byte, l *labels) (Example, error) // of one record
	rng      *rand.Rand
	seen     int    // examples so far, kept or not
	kept     []kept // unordered once there were more than Options.Limit
	problems []Problem
}

// kept is an example with its number among all that were seen.
type kept struct {
	number  int
	example Example
}

func newReader(o *Options) *reader {
	return &reader{o: o, parse: parse, rng: rand.New(rand.NewPCG(sampleSeed, sampleSeed))}
}

func (r *reader) readFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("read examples: %w", err)
	}
	defer f.Close()
	return r.read(path, f)
}

// read takes the examples of one file.
func (r *reader) read(path string, file io.Reader) error {
	var (
		records = newRecords(file)
		labels  = &labels{path: strings.TrimSuffix(path, filepath.Ext(path)) + "-labels.lst"}
		task    = strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
		some    = false
	)
	for {
		data, line, err := records.next()
		if err == io.EOF {
			break
		}
		some = true
		var e Example
		if err == nil {
			e, err = r.parse(data, labels)
		}
		labels.record++
		if err != nil {
			if err := r.refuse(path, line, err); err != nil {
				return err
			}
			continue
		}
		e.Task = cmp.Or(e.Task, task, "data") // a file may be called ".jsonl"
		e.Where = fmt.Sprintf("%s:%d", path, line)
		r.keep(e)
	}
	if !some {
		return r.refuse(path, 1, fault("the file is empty: it has no examples"))
	}
	return nil
}

// refuse notes a fault as a problem, or ends the reading.
func (r *reader) refuse(path string, line int, err error) error {
	var reason fault
	if !errors.As(err, &reason) {
		return fmt.Errorf("read examples: %s: %w", path, err)
	}
	problem := Problem{File: path, Line: line, Reason: string(reason)}
	if !r.o.SkipBad {
		return problem
	}
	r.problems = append(r.problems, problem)
	return nil
}

// keep is reservoir sampling: after n examples each of them is kept with
// probability Limit/n (Vitter's algorithm R).
func (r *reader) keep(e Example) {
	k := kept{number: r.seen, example: e}
	r.seen++
	if r.o.Limit <= 0 || len(r.kept) < r.o.Limit {
		r.kept = append(r.kept, k)
	} else if i := r.rng.IntN(r.seen); i < r.o.Limit {
		r.kept[i] = k
	}
}

// result is what Read gives.
func (r *reader) result() ([]Example, []Problem, error) {
	examples := r.examples()
	if len(examples) == 0 {
		return nil, r.problems, fmt.Errorf("%w: nothing is left after skipping, the first for this: %w", ErrEmpty, r.problems[0])
	}
	return examples, r.problems, nil
}

// examples gives what is kept, in the order of the files.
func (r *reader) examples() []Example {
	slices.SortFunc(r.kept, func(a, b kept) int { return cmp.Compare(a.number, b.number) })
	examples := make([]Example, len(r.kept))
	for i, k := range r.kept {
		examples[i] = k.example
	}
	return examples
}

// Hash names the examples by content and order, wherever they were read from:
// SHA-256 in hexadecimal.
func Hash(examples []Example) string {
	var b []byte
	number := func(n int) { b = binary.AppendUvarint(b, uint64(n)) }
	text := func(s string) { // with its length, so that neighbours cannot merge
		number(len(s))
		b = append(b, s...)
	}
	sum := sha256.New()
	for _, e := range examples {
		b = b[:0]
		text(e.Prompt)
		number(len(e.Messages))
		for _, m := range e.Messages {
			text(m.Role)
			text(m.Content)
		}
		plain := 0
		switch {
		case e.Text:
			plain = 2
		case e.Plain:
			plain = 1
		}
		number(plain)
		text(e.Answer)
		number(len(e.Choices))
		for _, c := range e.Choices {
			text(c)
		}
		number(e.Right)
		text(e.Task)
		sum.Write(b)
	}
	return hex.EncodeToString(sum.Sum(nil))
}
