package template

import (
	"slices"
	"time"
)

// scope is the names that are known in a part of a template.
type scope struct {
	vars  map[string]any
	outer *scope
}

func (s *scope) inner() *scope { return &scope{map[string]any{}, s} }

func (s *scope) get(id string) any {
	for ; s != nil; s = s.outer {
		if v, ok := s.vars[id]; ok {
			return v
		}
	}
	return undefined{id}
}

// evaluator renders one conversation.
type evaluator struct {
	out   *textBuilder
	now   time.Time
	line  int // that is being evaluated
	steps int
	depth int
}

// control is how a statement ended.
type control int

const (
	goOn control = iota
	breakLoop
	continueLoop
)

// step counts a statement or expression; leave undoes its depth.
func (e *evaluator) step() {
	if e.steps++; e.steps > maxSteps {
		fail("the template has no end")
	}
	if e.depth++; e.depth > maxDepth {
		fail("calls nested too deeply")
	}
}

func (e *evaluator) leave() { e.depth-- }

// item counts an item of a loop, which costs more than an expression.
func (e *evaluator) item() {
	e.steps += 4
	e.step()
	e.leave()
}

// charged is v, whose items or bytes count as steps: something goes through them.
func (e *evaluator) charged(v any) any {
	switch v := v.(type) {
	case Text:
		e.steps += len(v.s) / textStep
	case *list:
		e.steps += len(v.items)
	case *Dict:
		e.steps += len(v.keys)
	}
	return v
}

func (e *evaluator) run(body []stmt, s *scope) control {
	for _, st := range body {
		if c := e.exec(st, s); c != goOn {
			return c
		}
	}
	return goOn
}

// capture runs a body and gives what it writes.
func (e *evaluator) capture(body []stmt, s *scope) Text {
	outer := e.out
	e.out = new(textBuilder)
	e.run(body, s)
	text := e.out.text()
	e.out = outer
	return text
}

func (e *evaluator) exec(st stmt, s *scope) control {
	e.step()
	defer e.leave()
	switch st := st.(type) {
	case output:
		e.line = st.line
		e.out.add(str(e.eval(st.x, s)))
	case ifStmt:
		e.line = st.line
		if truth(e.eval(st.cond, s)) {
			return e.run(st.then, s)
		}
		return e.run(st.orElse, s)
	case forStmt:
		e.line = st.line
		e.loop(st, s, e.eval(st.in, s), 0)
	case setStmt:
		e.line = st.line
		e.assign(st.target, e.eval(st.value, s), s)
	case setBlock:
		text := e.capture(st.body, s.inner())
		var v any = text
		if st.filter != nil {
			e.line = st.line
			v = e.filtered(st.filter, text, s)
		}
		e.assign(st.target, v, s)
	case macroStmt:
		s.vars[st.fn.name] = e.macro(st.fn, s)
	case callBlock:
		e.line = st.line
		args, kw := e.arguments(st.call.args, s)
		kw = append(kw, keyword{"caller", e.macro(st.fn, s)})
		e.out.add(str(e.callValue(e.eval(st.call.fn, s), args, kw)))
	case filterBlock:
		text := e.capture(st.body, s.inner())
		e.line = st.line
		e.out.add(str(e.filtered(st.filter, text, s)))
	case withStmt:
		e.line = st.line
		in := s.inner()
		for i, target := range st.targets {
			e.assign(target, e.eval(st.values[i], s), in)
		}
		return e.run(st.body, in)
	case scoped:
		return e.run(st.body, s.inner())
	case loopControl:
		if st.stop {
			return breakLoop
		}
		return continueLoop
	case refusedStmt:
		e.line = st.line
		fail("a chat template may not use %s", st.name)
	}
	return goOn
}

// filtered evaluates a chain of filters that begins with a placeholder.
func (e *evaluator) filtered(x expr, input any, s *scope) any {
	return e.eval(x, &scope{map[string]any{placeholderName: input}, s})
}

// placeholderName is no name that a template could use.
const placeholderName = "|"

func (e *evaluator) assign(target expr, v any, s *scope) {
	switch t := target.(type) {
	case name:
		s.vars[t.id] = v
	case attribute:
		ns, ok := e.eval(t.x, s).(*namespace)
		if !ok {
			fail("cannot assign attribute on non-namespace object")
		}
		checkAttribute(t.id)
		ns.set(Own(t.id), v)
	case sequence:
		items := iterate(define(v))
		if len(items) != len(t.items) {
			fail("%d values for %d names", len(items), len(t.items))
		}
		for i, one := range t.items {
			e.assign(one, items[i], s)
		}
	}
}

// checkAttribute refuses names that would reach into the interpreter in Python.
func checkAttribute(id string) {
	if id != "" && id[0] == '_' {
		fail("underscore-prefixed attributes cannot be stored on a namespace: %q", id)
	}
}

// loop is what a loop's body knows as loop.
type loop struct {
	items   []any
	index   int // from 0
	depth   int // from 0
	changed []any
	again   func(items any) Text // of a recursive loop
}

func (e *evaluator) loop(st forStmt, s *scope, in any, depth int) {
	l := &loop{items: iterate(in), depth: depth}
	if st.cond != nil {
		var kept []any
		for _, v := range l.items {
			e.item()
			inner := s.inner()
			e.assign(st.target, v, inner)
			if truth(e.eval(st.cond, inner)) {
				kept = append(kept, v)
			}
		}
		l.items = kept
	}
	if st.recursive {
		l.again = func(items any) Text {
			outer := e.out
			e.out = new(textBuilder)
			e.step()
			e.loop(st, s, items, depth+1)
			e.leave()
			text := e.out.text()
			e.out = outer
			return text
		}
	}
	for i, v := range l.items {
		e.item()
		l.index = i
		inner := s.inner()
		inner.vars["loop"] = l
		e.assign(st.target, v, inner)
		if e.run(st.body, inner) == breakLoop {
			return
		}
	}
	if len(l.items) == 0 {
		e.run(st.orElse, s.inner())
	}
}

func (l *loop) member(id string) (any, bool) {
	count := len(l.items)
	switch id {
	case "index":
		return int64(l.index + 1), true
	case "index0":
		return int64(l.index), true
	case "revindex":
		return int64(count - l.index), true
	case "revindex0":
		return int64(count - l.index - 1), true
	case "first":
		return l.index == 0, true
	case "last":
		return l.index == count-1, true
	case "length":
		return int64(count), true
	case "depth":
		return int64(l.depth + 1), true
	case "depth0":
		return int64(l.depth), true
	case "previtem":
		if l.index > 0 {
			return l.items[l.index-1], true
		}
		return undefined{"the item before the first"}, true
	case "nextitem":
		if l.index < count-1 {
			return l.items[l.index+1], true
		}
		return undefined{"the item behind the last"}, true
	case "cycle":
		return &function{id, func(_ *evaluator, args []any, _ []keyword) any {
			if len(args) == 0 {
				fail("no items for cycling given")
			}
			return args[l.index%len(args)]
		}}, true
	case "changed":
		return &function{id, func(_ *evaluator, args []any, _ []keyword) any {
			same := l.changed != nil && slices.EqualFunc(l.changed, args, equal)
			l.changed = append([]any{}, args...)
			return !same
		}}, true
	}
	return nil, false
}

// macro is a macro as a value.
func (e *evaluator) macro(def *macroDef, defined *scope) *function {
	return &function{def.name, func(e *evaluator, args []any, kw []keyword) any {
		s := defined.inner()
		given := args[:min(len(args), len(def.params))]
		rest := args[len(given):]
		if len(rest) > 0 && !def.varargs {
			fail("macro %q takes not more than %d arguments", def.name, len(def.params))
		}
		kw = slices.Clone(kw)
		take := func(id string) (any, bool) {
			for i, k := range kw {
				if k.name == id {
					kw = slices.Delete(kw, i, i+1)
					return k.value, true
				}
			}
			return nil, false
		}
		for i, id := range def.params {
			if i < len(given) {
				s.vars[id] = given[i]
				continue
			}
			v, ok := take(id)
			switch at := i - (len(def.params) - len(def.defaults)); {
			case ok:
				s.vars[id] = v
			case at >= 0:
				s.vars[id] = e.eval(def.defaults[at], s)
			default:
				s.vars[id] = undefined{"parameter " + id}
			}
		}
		if def.caller && !slices.Contains(def.params, "caller") {
			v, ok := take("caller")
			if !ok {
				v = undefined{"caller"}
			}
			s.vars["caller"] = v
		}
		if def.varargs {
			s.vars["varargs"] = &list{tuple, rest}
		}
		if def.kwargs {
			d := new(Dict)
			for _, k := range kw {
				d.set(Own(k.name), k.value)
			}
			s.vars["kwargs"] = d
		} else if len(kw) > 0 {
			fail("macro %q takes no keyword argument %q", def.name, kw[0].name)
		}
		return e.capture(def.body, s)
	}}
}

func (e *evaluator) arguments(a arguments, s *scope) (args []any, kw []keyword) {
	for _, x := range a.list {
		args = append(args, e.eval(x, s))
	}
	for i, id := range a.names {
		kw = append(kw, keyword{id, e.eval(a.values[i], s)})
	}
	if a.star != nil {
		args = append(args, iterate(define(e.eval(a.star, s)))...)
	}
	if a.starstar != nil {
		d, ok := e.eval(a.starstar, s).(*Dict)
		if !ok {
			fail("the argument behind ** must be a mapping")
		}
		for i, k := range d.keys {
			kw = append(kw, keyword{str(k).s, d.values[i]})
		}
	}
	return args, kw
}

func (e *evaluator) callValue(fn any, args []any, kw []keyword) any {
	e.step()
	defer e.leave()
	switch fn := define(fn).(type) {
	case *function:
		return fn.call(e, args, kw)
	case *loop:
		if fn.again == nil || len(args) != 1 {
			fail("the loop is not recursive")
		}
		return fn.again(args[0])
	default:
		fail("'%s' object is not callable", typeName(fn))
	}
	return nil
}

func (e *evaluator) eval(x expr, s *scope) any {
	e.step()
	defer e.leave()
	switch x := x.(type) {
	case constant:
		return x.v
	case placeholder:
		return s.get(placeholderName)
	case name:
		return s.get(x.id)
	case attribute:
		v := e.eval(x.x, s)
		e.line = x.line
		if _, ok := v.(Text); ok {
			e.charged(v) // for a method
		}
		return attr(v, x.id)
	case item:
		v := e.eval(x.x, s)
		if part, ok := x.index.(sliceOf); ok {
			bound := func(b expr) any {
				if b == nil {
					return nil
				}
				return e.eval(b, s)
			}
			start, stop, step := bound(part.start), bound(part.stop), bound(part.step)
			e.line = x.line
			return slice(e.charged(v), start, stop, step)
		}
		index := e.eval(x.index, s)
		e.line = x.line
		return at(v, index)
	case *call:
		fn := e.eval(x.fn, s)
		args, kw := e.arguments(x.args, s)
		e.line = x.line
		return e.charged(e.callValue(fn, args, kw))
	case filter:
		v := e.eval(x.x, s)
		args, kw := e.arguments(x.args, s)
		e.line = x.line
		return e.filter(x.id, e.charged(v), args, kw)
	case test:
		v := e.eval(x.x, s)
		args, kw := e.arguments(x.args, s)
		e.line = x.line
		return e.test(x.id, v, args, kw)
	case unary:
		return e.unary(x, s)
	case binary:
		return e.binary(x, s)
	case compare:
		return e.compare(x, s)
	case concat:
		var b textBuilder
		for _, part := range x.parts {
			b.add(str(e.eval(part, s)))
		}
		return e.charged(b.text())
	case conditional:
		switch {
		case truth(e.eval(x.cond, s)):
			return e.eval(x.then, s)
		case x.alt != nil:
			return e.eval(x.alt, s)
		}
		return undefined{"the value of an if without else"}
	case sequence:
		l := newList()
		if x.tuple {
			l.kind = tuple
		}
		for _, one := range x.items {
			l.items = append(l.items, e.eval(one, s))
		}
		return l
	case mapping:
		d := new(Dict)
		for i, k := range x.keys {
			d.set(e.eval(k, s), e.eval(x.values[i], s))
		}
		return d
	}
	fail("unexpected slice")
	return nil
}

func (e *evaluator) unary(x unary, s *scope) any {
	v := e.eval(x.x, s)
	e.line = x.line
	if x.op == "not" {
		return !truth(v)
	}
	define(v)
	if f, ok := v.(float64); ok {
		if x.op == "-" {
			return -f
		}
		return f
	}
	n, ok := whole(v)
	if !ok {
		fail("bad operand type for unary %s: '%s'", x.op, typeName(v))
	}
	if x.op == "-" {
		return integers("-", 0, n)
	}
	return n
}

func (e *evaluator) binary(x binary, s *scope) any {
	l := e.eval(x.l, s)
	switch x.op {
	case "and":
		if !truth(l) {
			return l
		}
		return e.eval(x.r, s)
	case "or":
		if truth(l) {
			return l
		}
		return e.eval(x.r, s)
	}
	r := e.eval(x.r, s)
	e.line = x.line
	return e.charged(arithmetic(x.op, l, r))
}

func (e *evaluator) compare(x compare, s *scope) any {
	l := e.eval(x.x, s)
	for i, op := range x.ops {
		r := e.eval(x.with[i], s)
		e.line = x.line
		var holds bool
		switch op {
		case "==":
			holds = equal(l, r)
		case "!=":
			holds = !equal(l, r)
		case "<":
			holds = order(l, r) < 0
		case "<=":
			holds = order(l, r) <= 0
		case ">":
			holds = order(l, r) > 0
		case ">=":
			holds = order(l, r) >= 0
		case "in":
			holds = contains(e.charged(r), l)
		case "not in":
			holds = !contains(e.charged(r), l)
		}
		if !holds {
			return false
		}
		l = r
	}
	return true
}
