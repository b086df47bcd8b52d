package template

import (
	"fmt"
	"strconv"
)

// maxNesting bounds how deep tags, brackets and operators stand in each other.
const maxNesting = 200

type parser struct {
	tokens []token
	at     int
	depth  int
	// What the macro that is being parsed uses; nil outside of macros.
	macro *macroDef
}

func (p *parser) peek() token { return p.tokens[p.at] }

func (p *parser) next() token {
	t := p.tokens[p.at]
	if p.at < len(p.tokens)-1 {
		p.at++
	}
	return t
}

func (p *parser) fail(format string, args ...any) {
	panic(&Error{Line: p.peek().line, Message: fmt.Sprintf(format, args...)})
}

// enter counts a level of nesting; the result leaves it.
func (p *parser) enter() func() {
	if p.depth++; p.depth > maxNesting {
		p.fail("nested deeper than %d levels", maxNesting)
	}
	return func() { p.depth-- }
}

func (p *parser) is(op string) bool {
	t := p.peek()
	return t.kind == operatorToken && t.text == op
}

func (p *parser) skip(op string) bool {
	if p.is(op) {
		p.next()
		return true
	}
	return false
}

func (p *parser) expect(op string) {
	if !p.skip(op) {
		p.fail("unexpected %s, want %q", p.peek(), op)
	}
}

func (p *parser) isName(words ...string) bool {
	t := p.peek()
	if t.kind != nameToken {
		return false
	}
	for _, w := range words {
		if t.text == w {
			return true
		}
	}
	return false
}

func (p *parser) skipName(word string) bool {
	if p.isName(word) {
		p.next()
		return true
	}
	return false
}

func (p *parser) name() string {
	if p.peek().kind != nameToken {
		p.fail("unexpected %s, want a name", p.peek())
	}
	return p.next().text
}

func (p *parser) endTag() {
	if p.peek().kind != blockEnd {
		p.fail("unexpected %s, want the tag's end", p.peek())
	}
	p.next()
}

// statements reads up to one of these tags, whose name it leaves to be read; at
// the template's end if there are none.
func (p *parser) statements(ends ...string) []stmt {
	defer p.enter()()
	begin := p.tokens[max(p.at-1, 0)].line
	var list []stmt
	for {
		switch t := p.next(); t.kind {
		case dataToken:
			list = append(list, output{t.line, constant{Own(t.text)}})
		case variableBegin:
			list = append(list, output{t.line, p.tuple(true)})
			if p.peek().kind != variableEnd {
				p.fail("unexpected %s, want }}", p.peek())
			}
			p.next()
		case blockBegin:
			if p.isName(ends...) {
				return list
			}
			list = append(list, p.statement())
		default:
			if len(ends) > 0 {
				p.fail("no %s for the tag in line %d", ends[0], begin)
			}
			return list
		}
	}
}

// body reads up to the end tag, and that.
func (p *parser) body(end string) []stmt {
	p.endTag()
	list := p.statements(end)
	p.next()
	p.endTag()
	return list
}

func (p *parser) statement() stmt {
	t := p.peek()
	switch tag := p.name(); tag {
	case "if":
		return p.ifRest(t.line)
	case "for":
		return p.forRest(t.line)
	case "set":
		target := p.target(true)
		if p.skip("=") {
			value := p.tuple(true)
			p.endTag()
			return setStmt{t.line, target, value}
		}
		var f expr
		if p.is("|") {
			f = p.filters(placeholder{})
		}
		return setBlock{t.line, target, f, p.body("endset")}
	case "macro":
		fn := &macroDef{name: p.name()}
		p.signature(fn)
		p.macroBody(fn, "endmacro")
		return macroStmt{t.line, fn}
	case "call":
		fn := &macroDef{name: "caller"}
		if p.is("(") {
			p.signature(fn)
		}
		c, ok := p.expression().(*call)
		if !ok {
			p.fail("call needs a call")
		}
		p.macroBody(fn, "endcall")
		return callBlock{t.line, c, fn}
	case "filter":
		f := p.filterChain(placeholder{}, true)
		return filterBlock{t.line, f, p.body("endfilter")}
	case "with":
		w := withStmt{line: t.line}
		for p.peek().kind != blockEnd {
			if len(w.targets) > 0 {
				p.expect(",")
			}
			w.targets = append(w.targets, p.target(false))
			p.expect("=")
			w.values = append(w.values, p.expression())
		}
		w.body = p.body("endwith")
		return w
	case "generation":
		return scoped{t.line, p.body("endgeneration")}
	case "autoescape":
		p.expression()
		return scoped{t.line, p.body("endautoescape")}
	case "block":
		p.name()
		for p.isName("scoped", "required") {
			p.next()
		}
		p.endTag()
		list := p.statements("endblock")
		p.next()
		if p.peek().kind == nameToken {
			p.next()
		}
		p.endTag()
		return scoped{t.line, list}
	case "break", "continue":
		p.endTag()
		return loopControl{t.line, tag == "break"}
	case "include", "import", "from", "extends":
		for p.peek().kind != blockEnd && p.peek().kind != endToken {
			p.next()
		}
		p.endTag()
		return refusedStmt{t.line, tag}
	default:
		panic(&Error{Line: t.line, Message: fmt.Sprintf("unknown tag %q", tag)})
	}
}

func (p *parser) ifRest(line int) stmt {
	defer p.enter()()
	s := ifStmt{line: line, cond: p.tuple(false)}
	p.endTag()
	s.then = p.statements("elif", "else", "endif")
	switch p.next().text {
	case "elif":
		s.orElse = []stmt{p.ifRest(p.peek().line)}
		return s
	case "else":
		s.orElse = p.body("endif")
		return s
	}
	p.endTag()
	return s
}

func (p *parser) forRest(line int) stmt {
	s := forStmt{line: line, target: p.target(false)}
	if !p.skipName("in") {
		p.fail("unexpected %s, want in", p.peek())
	}
	s.in = p.tuple(false)
	if p.skipName("if") {
		s.cond = p.expression()
	}
	s.recursive = p.skipName("recursive")
	p.endTag()
	s.body = p.statements("endfor", "else")
	if p.next().text == "else" {
		s.orElse = p.body("endfor")
		return s
	}
	p.endTag()
	return s
}

// target is what is assigned to: names, and attributes of a namespace.
func (p *parser) target(namespace bool) expr {
	one := func() expr {
		t := p.peek()
		if p.skip("(") {
			inner := p.target(namespace)
			p.expect(")")
			return inner
		}
		id := p.name()
		switch id {
		case "true", "false", "none", "True", "False", "None":
			p.fail("cannot assign to %s", id)
		}
		if namespace && p.skip(".") {
			return attribute{t.line, name{t.line, id}, p.name()}
		}
		return name{t.line, id}
	}
	first := one()
	if !p.is(",") {
		return first
	}
	list := []expr{first}
	for p.skip(",") {
		if p.peek().kind != nameToken && !p.is("(") || p.isName("in") {
			break
		}
		list = append(list, one())
	}
	return sequence{list, true}
}

func (p *parser) signature(fn *macroDef) {
	p.expect("(")
	for !p.is(")") {
		if len(fn.params) > 0 {
			p.expect(",")
		}
		fn.params = append(fn.params, p.name())
		if p.skip("=") {
			fn.defaults = append(fn.defaults, p.expression())
		} else if len(fn.defaults) > 0 {
			p.fail("a parameter without default behind one that has one")
		}
	}
	p.expect(")")
}

func (p *parser) macroBody(fn *macroDef, end string) {
	outer := p.macro
	p.macro = fn
	fn.body = p.body(end)
	if p.macro = outer; outer != nil {
		outer.varargs = outer.varargs || fn.varargs
		outer.kwargs = outer.kwargs || fn.kwargs
		outer.caller = outer.caller || fn.caller
	}
}

// ---- expressions, from the loosest to the tightest ----

// tuple is an expression, or several with commas between.
func (p *parser) tuple(conditions bool) expr {
	one := func() expr {
		if conditions {
			return p.expression()
		}
		return p.or()
	}
	ended := func() bool {
		switch t := p.peek(); t.kind {
		case variableEnd, blockEnd:
			return true
		case operatorToken:
			return t.text == ")"
		}
		return p.isName("recursive") && !conditions
	}
	if ended() {
		p.fail("unexpected %s, want an expression", p.peek())
	}
	first := one()
	if !p.is(",") {
		return first
	}
	list := []expr{first}
	for p.skip(",") && !ended() {
		list = append(list, one())
	}
	return sequence{list, true}
}

func (p *parser) expression() expr {
	defer p.enter()()
	x := p.or()
	for p.isName("if") {
		c := conditional{line: p.next().line, then: x}
		c.cond = p.or()
		if p.skipName("else") {
			c.alt = p.expression()
		}
		x = c
	}
	return x
}

// operators reads operands of one level with these operators between.
func (p *parser) operators(operand func() expr, ops ...string) expr {
	x := operand()
	for {
		t := p.peek()
		found := false
		for _, op := range ops {
			found = found || t.text == op && (t.kind == operatorToken || t.kind == nameToken)
		}
		if !found {
			return x
		}
		p.next()
		x = binary{t.line, t.text, x, operand()}
	}
}

func (p *parser) or() expr  { return p.operators(p.and, "or") }
func (p *parser) and() expr { return p.operators(p.not, "and") }

func (p *parser) not() expr {
	if t := p.peek(); p.skipName("not") {
		defer p.enter()()
		return unary{t.line, "not", p.not()}
	}
	return p.comparison()
}

func (p *parser) comparison() expr {
	c := compare{line: p.peek().line, x: p.sum()}
	for {
		t := p.peek()
		op := t.text
		switch {
		case t.kind == operatorToken && (op == "==" || op == "!=" || op == "<" || op == "<=" || op == ">" || op == ">="):
			p.next()
		case t.kind == nameToken && op == "in":
			p.next()
		case t.kind == nameToken && op == "not" && p.tokens[p.at+1].kind == nameToken && p.tokens[p.at+1].text == "in":
			p.next()
			p.next()
			op = "not in"
		default:
			if len(c.ops) == 0 {
				return c.x
			}
			return c
		}
		c.ops, c.with = append(c.ops, op), append(c.with, p.sum())
	}
}

func (p *parser) sum() expr { return p.operators(p.concatenation, "+", "-") }

func (p *parser) concatenation() expr {
	x := p.product()
	if !p.is("~") {
		return x
	}
	parts := []expr{x}
	for p.skip("~") {
		parts = append(parts, p.product())
	}
	return concat{parts}
}

func (p *parser) product() expr { return p.operators(p.power, "*", "/", "//", "%") }
func (p *parser) power() expr {
	return p.operators(func() expr { return p.unary(true) }, "**")
}

func (p *parser) unary(filters bool) expr {
	defer p.enter()()
	var x expr
	switch t := p.peek(); {
	case p.skip("-"):
		x = unary{t.line, "-", p.unary(false)}
	case p.skip("+"):
		x = unary{t.line, "+", p.unary(false)}
	default:
		x = p.primary()
	}
	x = p.postfix(x)
	if filters {
		x = p.filters(x)
	}
	return x
}

func (p *parser) primary() expr {
	t := p.next()
	switch t.kind {
	case nameToken:
		switch t.text {
		case "true", "True":
			return constant{true}
		case "false", "False":
			return constant{false}
		case "none", "None":
			return constant{nil}
		case "varargs", "kwargs", "caller":
			if p.macro != nil {
				p.macro.varargs = p.macro.varargs || t.text == "varargs"
				p.macro.kwargs = p.macro.kwargs || t.text == "kwargs"
				p.macro.caller = p.macro.caller || t.text == "caller"
			}
		}
		return name{t.line, t.text}
	case stringToken:
		s := t.text
		for p.peek().kind == stringToken {
			s += p.next().text
		}
		return constant{Own(s)}
	case integerToken:
		n, err := strconv.ParseInt(t.text, 0, 64)
		if err != nil {
			p.fail("the number %s is too large", t.text)
		}
		return constant{n}
	case floatToken:
		f, _ := strconv.ParseFloat(t.text, 64)
		return constant{f}
	case operatorToken:
		switch t.text {
		case "(":
			if p.skip(")") {
				return sequence{nil, true}
			}
			x := p.tuple(true)
			p.expect(")")
			return x
		case "[":
			var list []expr
			for !p.skip("]") {
				if len(list) > 0 {
					if p.expect(","); p.skip("]") {
						break
					}
				}
				list = append(list, p.expression())
			}
			return sequence{list, false}
		case "{":
			var m mapping
			for !p.skip("}") {
				if len(m.keys) > 0 {
					if p.expect(","); p.skip("}") {
						break
					}
				}
				m.keys = append(m.keys, p.expression())
				p.expect(":")
				m.values = append(m.values, p.expression())
			}
			return m
		}
	}
	p.at--
	p.fail("unexpected %s", t)
	return nil
}

func (p *parser) postfix(x expr) expr {
	for {
		t := p.peek()
		switch {
		case p.skip("."):
			switch a := p.next(); a.kind {
			case nameToken:
				x = attribute{t.line, x, a.text}
			case integerToken:
				n, _ := strconv.ParseInt(a.text, 0, 64)
				x = item{t.line, x, constant{n}}
			default:
				p.at--
				p.fail("unexpected %s, want a name", a)
			}
		case p.skip("["):
			var list []expr
			for !p.is("]") {
				if len(list) > 0 {
					p.expect(",")
				}
				list = append(list, p.subscript())
			}
			p.expect("]")
			if len(list) == 1 {
				x = item{t.line, x, list[0]}
			} else {
				x = item{t.line, x, sequence{list, true}}
			}
		case p.is("("):
			x = &call{t.line, x, p.arguments()}
		default:
			return x
		}
	}
}

func (p *parser) subscript() expr {
	var s sliceOf
	if !p.is(":") {
		if s.start = p.expression(); !p.is(":") {
			return s.start
		}
	}
	p.expect(":")
	if !p.is(":") && !p.is("]") && !p.is(",") {
		s.stop = p.expression()
	}
	if p.skip(":") && !p.is("]") && !p.is(",") {
		s.step = p.expression()
	}
	return s
}

func (p *parser) arguments() (a arguments) {
	p.expect("(")
	for first := true; !p.is(")"); first = false {
		if !first {
			if p.expect(","); p.is(")") {
				break
			}
		}
		switch {
		case p.skip("**"):
			a.starstar = p.expression()
		case p.skip("*"):
			a.star = p.expression()
		case p.peek().kind == nameToken && p.tokens[p.at+1].kind == operatorToken && p.tokens[p.at+1].text == "=":
			a.names = append(a.names, p.name())
			p.expect("=")
			a.values = append(a.values, p.expression())
		default:
			if len(a.names) > 0 || a.star != nil || a.starstar != nil {
				p.fail("an argument without a name behind one that has one")
			}
			a.list = append(a.list, p.expression())
		}
	}
	p.expect(")")
	return a
}

// filters reads the filters, tests and calls behind an expression.
func (p *parser) filters(x expr) expr {
	for {
		switch {
		case p.is("|"):
			x = p.filterChain(x, false)
		case p.isName("is"):
			x = p.test(x)
		case p.is("("):
			x = &call{p.peek().line, x, p.arguments()}
		default:
			return x
		}
	}
}

// filterChain reads filters; named tells that the first has no bar in front.
func (p *parser) filterChain(x expr, named bool) expr {
	for named || p.is("|") {
		if !named {
			p.next()
		}
		named = false
		f := filter{line: p.peek().line, x: x, id: p.dottedName()}
		if p.is("(") {
			f.args = p.arguments()
		}
		x = f
	}
	return x
}

func (p *parser) dottedName() string {
	id := p.name()
	for p.skip(".") {
		id += "." + p.name()
	}
	return id
}

func (p *parser) test(x expr) expr {
	line := p.next().line
	negated := p.skipName("not")
	t := test{line: line, x: x, id: p.dottedName()}
	switch next := p.peek(); {
	case p.is("("):
		t.args = p.arguments()
	case next.kind == nameToken && !p.isName("else", "or", "and"), next.kind == stringToken, next.kind == integerToken,
		next.kind == floatToken, p.is("["), p.is("{"):
		if p.isName("is") {
			p.fail("tests cannot be chained with is")
		}
		t.args.list = []expr{p.postfix(p.primary())}
	}
	if negated {
		return unary{line, "not", t}
	}
	return t
}
