package template

import (
	"fmt"
	"time"
)

// Bounds on what a template may do: far above any real one's needs, so that one
// without end stops.
const (
	maxSource = 4 << 20  // bytes of a template
	maxOutput = 16 << 20 // bytes of a text
	maxItems  = 1 << 20  // of a list
	maxRange  = 100_000  // of range(), as in jinja2's sandbox
	maxSteps  = 20e6     // expressions and statements evaluated, items and bytes gone through
	textStep  = 32       // bytes of a text that count as a step
	maxDepth  = 4000     // of them in each other; a macro's call takes several
)

// Error is what is wrong with a template, or what it could not do.
type Error struct {
	Line    int // of the template, from 1
	Message string
}

func (e *Error) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Message) }

// Refusal is a template's own raise_exception: the conversation is at fault.
type Refusal struct{ Message string }

func (r *Refusal) Error() string { return r.Message }

// internalError begins the message of what should not have happened.
const internalError = "internal error:"

// fault is a failed evaluation on its way up to Render, which knows the line.
type fault struct{ message string }

func fail(format string, args ...any) { panic(fault{fmt.Sprintf(format, args...)}) }

// Template is a parsed chat template. Several goroutines may use it.
type Template struct{ body []stmt }

// Parse reads a template. The error is an [*Error].
func Parse(source string) (t *Template, err error) {
	if len(source) > maxSource {
		return nil, &Error{1, fmt.Sprintf("a template of %d bytes, more than %d", len(source), maxSource)}
	}
	defer recoverError(&err, nil)
	tokens, err := lex(source)
	if err != nil {
		return nil, err
	}
	p := &parser{tokens: tokens}
	return &Template{p.statements()}, nil
}

// Render fills the template in with vars. The error is an [*Error] or a [*Refusal].
func (t *Template) Render(vars *Dict) (Text, error) { return renderAt(t, vars, time.Now()) }

// renderAt renders as if it were that time.
func renderAt(t *Template, vars *Dict, now time.Time) (text Text, err error) {
	e := &evaluator{out: new(textBuilder), now: now}
	defer recoverError(&err, e)
	root := &scope{vars: map[string]any{}}
	for id, v := range globals() {
		root.vars[id] = v
	}
	for i, k := range vars.keys {
		root.vars[k.(Text).s] = vars.values[i]
	}
	e.run(t.body, &scope{vars: map[string]any{}, outer: root})
	return e.out.text(), nil
}

func recoverError(err *error, e *evaluator) {
	switch r := recover().(type) {
	case nil:
	case *Error:
		*err = r
	case *Refusal:
		*err = r
	case fault:
		*err = &Error{Line: e.line, Message: r.message}
	default: // a mistake of ours must not end the program
		line := 0
		if e != nil {
			line = e.line
		}
		*err = &Error{line, fmt.Sprintf("%s %v", internalError, r)}
	}
}
