package tools

import (
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"
	"unicode/utf8"
)

// Parser takes an answer apart while it is written. What it finds does not depend on
// how the text is cut into pieces. It belongs to one goroutine, and must be closed.
type Parser struct {
	s    *scanner
	next func() (struct{}, bool)
	stop func()
	rest []byte // start of a rune whose end has not come yet
	done bool
}

// Parser makes a parser for one answer to a request.
func (f *Format) Parser(r Request) *Parser {
	s := &scanner{f: f, functions: r.Functions, calls: r.Choice != None && len(r.Functions) > 0, opened: r.Opened}
	p := &Parser{s: s}
	p.next, p.stop = iter.Pull(func(yield func(struct{}) bool) {
		s.wait = func() bool { return yield(struct{}{}) }
		s.answer()
	})
	return p
}

// Write takes the next piece and gives what is known by now. Texts of the same kind
// come together.
func (p *Parser) Write(piece string) []Event {
	if p.done {
		return nil
	}
	p.rest = append(p.rest, piece...)
	n := len(p.rest)
	for back := 1; back < utf8.UTFMax && back <= n; back++ {
		if utf8.RuneStart(p.rest[n-back]) {
			if !utf8.FullRune(p.rest[n-back:]) {
				n -= back
			}
			break
		}
	}
	p.s.in = append(p.s.in, p.rest[:n]...)
	p.rest = append(p.rest[:0], p.rest[n:]...)
	p.next()
	return p.s.take()
}

// Control is [Parser.Write] of a control token's text. It may be a mark; where it is none,
// it becomes part of nothing.
func (p *Parser) Control(text string) []Event {
	if p.done || text == "" {
		return nil
	}
	p.s.in = append(p.s.in, p.rest...)
	p.rest = p.rest[:0]
	p.s.controls = append(p.s.controls, span{len(p.s.in), len(p.s.in) + len(text)})
	p.s.in = append(p.s.in, text...)
	p.next()
	return p.s.take()
}

// Close ends the answer and gives what is left. Further calls do nothing. cut says that
// the model did not end the answer itself: then the call that it was writing stays one, with
// the part of its arguments that came, and what was to become a call or a mark is dropped.
func (p *Parser) Close(cut bool) []Event {
	if p.done {
		return nil
	}
	p.done, p.s.cut = true, cut
	p.s.in = append(p.s.in, p.rest...)
	p.s.ended = true
	p.next()
	p.stop()
	return p.s.take()
}

// Parse takes a whole answer apart, which the model ended.
func (f *Format) Parse(r Request, answer string) (m Message) {
	p := f.Parser(r)
	m.Add(p.Write(answer)...)
	m.Add(p.Close(false)...)
	return m
}

// scanner reads an answer from its start to its end, and waits in between for more
// of it. It goes back to where a call began that turned out to be none.
type scanner struct {
	f         *Format
	functions []Function
	calls     bool // there may be any
	opened    bool // the answer begins within reasoning

	in       []byte
	controls []span // of in: control tokens, in their order

	pos   int  // in it
	mark  int  // where the scanner goes back to if what it reads is no call
	ended bool // no more will come
	cut   bool // and the model had more to say
	wait  func() bool

	events []Event
	tail   []byte // text of the last event
	held   string // white space of the content that may turn out to stand before a call
	lead   string // the same before the call that began
	said   bool   // there was content
	begun  int    // number of calls that began
	ids    []string
}

// span is a part of the text that was read.
type span struct{ from, to int }

// take gives the events since the last time.
func (s *scanner) take() []Event {
	s.close()
	events := s.events
	s.events = nil
	return events
}

// close gives the last event its text.
func (s *scanner) close() {
	if n := len(s.events); n > 0 {
		s.events[n-1].Text += string(s.tail)
	}
	s.tail = s.tail[:0]
}

// emit adds an event. Texts of a kind that follow each other become one.
func (s *scanner) emit(e Event) {
	if n := len(s.events); n == 0 || s.events[n-1].Kind != e.Kind || e.Kind >= Begin && e.Kind != Arguments {
		s.close()
		s.events = append(s.events, Event{Kind: e.Kind, Call: e.Call, ID: e.ID, Name: e.Name})
	}
	s.tail = append(s.tail, e.Text...)
}

// more waits until there is a byte to read; false at the end.
func (s *scanner) more() bool {
	for s.pos >= len(s.in) {
		if s.ended || !s.wait() {
			return false
		}
	}
	return true
}

// brokeOff reports whether the scanner stands where the answer was cut off.
func (s *scanner) brokeOff() bool { return s.cut && !s.more() }

// peek is the next byte, 0 at the end.
func (s *scanner) peek() byte {
	if s.more() {
		return s.in[s.pos]
	}
	return 0
}

// has reports whether a text comes next. The start of one that was cut off is dropped,
// after which nothing comes.
func (s *scanner) has(text string) bool {
	start := s.pos
	defer func() { s.pos = start }()
	for i := range len(text) {
		if !s.more() {
			if s.cut {
				s.in = s.in[:start]
			}
			return false
		}
		if s.in[s.pos] != text[i] {
			return false
		}
		s.pos++
	}
	return true
}

// skip reads a text if it comes next.
func (s *scanner) skip(text string) bool {
	if !s.has(text) {
		return false
	}
	s.pos += len(text)
	return true
}

func isSpace(b byte) bool { return b == ' ' || b == '\n' || b == '\t' || b == '\r' }

func (s *scanner) skipSpace() {
	for s.more() && isSpace(s.in[s.pos]) {
		s.pos++
	}
}

// rune reads the next rune, U+FFFD for what is none, "" for a control token.
func (s *scanner) rune() string {
	if c, ok := s.control(); ok {
		s.pos = c.to
		return ""
	}
	r, n := utf8.DecodeRune(s.in[s.pos:])
	s.pos += n
	return string(r)
}

// control is the control token that comes next.
func (s *scanner) control() (c span, ok bool) {
	i, ok := slices.BinarySearchFunc(s.controls, s.pos, func(c span, at int) int { return cmp.Compare(c.from, at) })
	if ok {
		c = s.controls[i]
	}
	return c, ok
}

// since is the text from a place on, without control tokens.
func (s *scanner) since(from int) string {
	var text []byte
	for _, c := range s.controls {
		if c.from >= from && c.to <= s.pos {
			text = append(text, s.in[from:c.from]...)
			from = c.to
		}
	}
	return strings.ToValidUTF8(string(append(text, s.in[from:s.pos]...)), string(utf8.RuneError))
}

// advance lets go of what was read.
func (s *scanner) advance() {
	const enough = 1 << 12 // bytes, so that few are moved
	if s.pos > enough && s.pos > len(s.in)/2 {
		s.in = append(s.in[:0], s.in[s.pos:]...)
		s.controls = slices.DeleteFunc(s.controls, func(c span) bool { return c.to <= s.pos })
		for i := range s.controls {
			s.controls[i].from -= s.pos
			s.controls[i].to -= s.pos
		}
		s.pos = 0
	}
	s.mark = s.pos
}

// until reads up to one of the ends, and that end; false if none comes within most
// bytes, 0 = any number.
func (s *scanner) until(most int, ends ...string) (text, end string, ok bool) {
	start := s.pos
	for s.more() {
		for _, e := range ends {
			if s.has(e) {
				text = string(s.in[start:s.pos])
				s.pos += len(e)
				return text, e, true
			}
		}
		if s.brokeOff() {
			break
		}
		if s.pos++; most > 0 && s.pos-start > most {
			break
		}
	}
	return string(s.in[start:s.pos]), "", false
}

// answer reads all of it.
func (s *scanner) answer() {
	if s.f.layout == harmonyCalls {
		s.messages()
		return
	}
	s.thoughts()
	first, behind := true, false // nothing but white space came yet, or came since a call
	for s.more() {
		s.advance()
		if s.calls {
			if s.envelope(first) || behind && !s.brokeOff() && s.unmarked() {
				first, behind, s.held = false, true, ""
				continue
			}
			if s.brokeOff() {
				return // the start of a call
			}
			s.pos = s.mark
		}
		if _, ok := s.control(); !ok {
			first, behind = first && isSpace(s.peek()), behind && isSpace(s.peek())
		}
		s.content(s.rune())
	}
	if s.held != "" && s.begun == 0 {
		s.emit(Event{Kind: Content, Text: s.held})
	}
}

// content is text of the answer, whose white space waits for what follows.
func (s *scanner) content(text string) {
	if strings.Trim(text, " \n\t\r") == "" {
		s.held += text
		return
	}
	if s.begun > 0 && !s.said {
		s.held = "" // between calls and text
	}
	s.said = true
	s.emit(Event{Kind: Content, Text: s.held + text})
	s.held = ""
}

// thoughts reads reasoning at the start of the answer.
func (s *scanner) thoughts() {
	tags := s.f.reasoning
	s.skipSpace()
	i := slices.IndexFunc(tags, func(t tag) bool { return s.skip(t.open) })
	switch {
	case i >= 0:
		tags = tags[i : i+1]
	case !s.opened:
		s.pos = s.mark
		return
	}
	s.skipSpace()
	s.text(Reasoning, func() bool {
		return slices.ContainsFunc(tags, func(t tag) bool { return s.skip(t.close) })
	})
	s.skipSpace()
}

// text reads text of a kind up to an end, without the white space in front of it.
func (s *scanner) text(kind Kind, end func() bool) {
	space := ""
	for s.more() {
		if s.advance(); end() || s.brokeOff() {
			return
		}
		switch text := s.rune(); {
		case text == "": // a control token that is no mark
		case isSpace(text[0]):
			space += text
		case kind == Content:
			s.content(space + text)
			space = ""
		default:
			s.emit(Event{Kind: kind, Text: space + text})
			space = ""
		}
	}
}

// envelope reads calls if they come next. first says that nothing but white space
// came before.
func (s *scanner) envelope(first bool) bool {
	for _, mark := range s.f.triggers {
		if s.skip(mark) {
			return s.called(mark)
		}
	}
	bare := len(s.f.triggers) == 0 || s.f.Name == "llama"
	if bare && first && (s.peek() == '{' || s.peek() == '[' || s.peek() == '`') {
		text := s.peek() != '{' // may begin so, too
		fenced := s.skip("```json") || s.skip("```")
		s.skipSpace()
		if !s.list(true) {
			if text {
				s.pos = s.mark
			}
			return false
		}
		if s.skipSpace(); fenced {
			s.skip("```")
		}
		return true
	}
	return false
}

// unmarked reads a call behind another that lacks its opening mark: some templates write
// the mark once for all calls, and the closing one behind each.
func (s *scanner) unmarked() bool {
	s.pos = s.mark
	if s.f.layout != jsonCalls || len(s.f.triggers) == 0 || s.peek() != '{' || !s.list(true) {
		return false
	}
	s.closing()
	return true
}

// called reads what follows a mark of calls.
func (s *scanner) called(mark string) bool {
	switch s.f.layout {
	case namedCalls:
		return s.namedCall(mark)
	case gemmaCalls:
		return s.gemmaCall()
	case taggedCalls:
		return s.taggedCall(mark)
	case pythonCalls:
		return s.pythonList()
	}
	s.skipSpace()
	if mark == pythonTag && s.peek() != '{' && s.peek() != '[' {
		return s.pythonCall()
	}
	if !s.list(false) {
		return false
	}
	s.closing()
	return true
}

// closing reads what may stand behind calls: their closing marks, and brackets too
// many.
func (s *scanner) closing() {
	marks := []string{s.f.end, s.f.close, strings.TrimLeft(s.f.end, "} \n`"), strings.TrimLeft(s.f.close, "] \n"),
		s.f.end[strings.LastIndexByte(s.f.end, '\n')+1:]}
	for {
		start := s.pos
		for s.more() && (isSpace(s.in[s.pos]) || s.in[s.pos] == '}' || s.in[s.pos] == ']' || s.in[s.pos] == '`') {
			s.pos++
		}
		i := slices.IndexFunc(marks, func(m string) bool { return m != "" && s.skip(m) })
		if i < 0 {
			s.pos = start
			return
		}
	}
}

// offered gives a function by its name, nil if there is none of it.
func (s *scanner) offered(name string) *Function {
	for i := range s.functions {
		if s.functions[i].Name == name {
			return &s.functions[i]
		}
	}
	return nil
}

// start begins a call.
func (s *scanner) start(name, id string) {
	if id == "" || slices.Contains(s.ids, id) {
		id = newID(s.f.shortID)
		for n := s.begun; s.f.Name == "kimi" && (n == s.begun || slices.Contains(s.ids, id)); n++ {
			id = fmt.Sprintf("functions.%s:%d", name, n) // the template has no other place for the name
		}
	}
	s.ids = append(s.ids, id)
	s.lead, s.held = s.held, ""
	s.emit(Event{Kind: Begin, Call: s.begun, ID: id, Name: name})
	s.begun++
}

func (s *scanner) argument(text string) {
	if text == "" {
		return
	}
	s.emit(Event{Kind: Arguments, Call: s.begun - 1, Text: text})
}

// finish ends the call that began, or takes it back. One that was cut off stays as it is.
func (s *scanner) finish(ok bool) {
	switch {
	case ok:
		s.emit(Event{Kind: End, Call: s.begun - 1})
		return
	case s.brokeOff():
		return
	}
	s.begun--
	s.emit(Event{Kind: Broken, Call: s.begun, Text: s.lead + s.since(s.mark)})
	s.said = true
}

// list reads one object of a call, or several in a list or one behind another. When
// it fails before the first call began, it gives false.
func (s *scanner) list(bare bool) bool {
	many := s.skip("[")
	for n := 0; ; n++ {
		s.skipSpace()
		start := s.pos
		if n > 0 {
			s.mark = start
		}
		if !s.object(bare) {
			if n == 0 {
				return false
			}
			if !s.brokeOff() {
				s.pos = start
			}
			return true
		}
		start = s.pos
		s.skipSpace()
		switch {
		case many && s.skip(","):
		case many:
			s.skip("]")
			return true
		case bare && (s.skip(";") || s.skip(",") || s.peek() == '{'):
		default:
			s.pos = start
			return true
		}
	}
}

// Names of the parts of a call's object.
var (
	nameKeys      = []string{"name", "tool_name", "function"}
	argumentsKeys = []string{"arguments", "parameters", "args"}
	idKeys        = []string{"id", "tool_call_id"}
)

// object reads one call's object. Once the call has begun it gives true, even if the
// rest is no JSON.
func (s *scanner) object(bare bool) bool {
	if !s.skip("{") {
		return false
	}
	var name, id, arguments string
	done := false
	for {
		s.skipSpace()
		if s.skip("}") {
			break
		}
		key, ok := s.string()
		s.skipSpace()
		if !ok || !s.skip(":") {
			return done
		}
		s.skipSpace()
		switch isName := slices.Contains(nameKeys, key); {
		case isName && s.peek() == '"':
			if name, ok = s.string(); !ok || name == "" || len(name) > maxName || bare && s.offered(name) == nil {
				return done
			}
		case slices.Contains(idKeys, key) && s.peek() == '"':
			if id, ok = s.string(); !ok {
				return done
			}
			if len(id) < 6 {
				id = "" // a number in the answer, which tells no calls apart
			}
		case key == "function" && s.peek() == '{':
			if !s.object(bare) {
				return false
			}
			if s.skipSpace(); s.peek() == '}' {
				s.pos++
			}
			return true
		case slices.Contains(argumentsKeys, key) && !done:
			if name != "" {
				ok, began := s.arguments(name, id)
				if !ok {
					return began
				}
				done = true
			} else if arguments, ok = s.raw(); !ok {
				return false
			}
		default:
			if _, ok = s.raw(); !ok {
				return done
			}
		}
		s.skipSpace()
		if !s.skip(",") && s.peek() != '}' {
			return done
		}
	}
	if done {
		return true
	}
	if name == "" || bare && arguments == "" {
		return false
	}
	arguments, ok := objectOf(arguments)
	if !ok {
		return false
	}
	s.start(name, id)
	s.argument(arguments)
	s.finish(true)
	return true
}

const maxName = 128 // bytes

// objectOf makes a JSON object of arguments that were written as one, as a text that
// holds one, as null, or not at all.
func objectOf(arguments string) (string, bool) {
	if strings.HasPrefix(arguments, `"`) {
		var text string
		if json.Unmarshal([]byte(arguments), &text) != nil {
			return "", false
		}
		arguments = strings.TrimSpace(text)
	}
	if arguments == "" || arguments == "null" {
		return "{}", true
	}
	return arguments, strings.HasPrefix(arguments, "{") && json.Valid([]byte(arguments))
}

// arguments reads the arguments of a call and tells of them as they come. began says
// that the call was told of, also when they turned out to be wrong.
func (s *scanner) arguments(name, id string) (ok, began bool) {
	if s.peek() != '{' {
		text, ok := s.raw()
		if ok {
			text, ok = objectOf(text)
		}
		if !ok {
			return false, false
		}
		s.start(name, id)
		s.argument(text)
		s.finish(true)
		return true, true
	}
	s.start(name, id)
	ok = s.value(s.argument, 0)
	s.finish(ok)
	return ok, true
}

// raw reads a JSON value as it stands.
func (s *scanner) raw() (string, bool) {
	var b strings.Builder
	ok := s.value(func(text string) { b.WriteString(text) }, 0)
	return b.String(), ok
}

// string reads a JSON string.
func (s *scanner) string() (text string, ok bool) {
	if s.peek() != '"' {
		return "", false
	}
	raw, ok := s.raw()
	return text, ok && json.Unmarshal([]byte(raw), &text) == nil
}

const maxDepth = 200 // of JSON

// value reads a JSON value and hands it on, byte by byte or rune by rune, each of
// which goes on validly. Control characters within strings are escaped.
func (s *scanner) value(out func(string), depth int) bool {
	if depth > maxDepth {
		return false
	}
	take := func() {
		out(string(s.in[s.pos]))
		s.pos++
	}
	space := func() {
		for s.more() && isSpace(s.in[s.pos]) {
			take()
		}
	}
	switch b := s.peek(); {
	case b == '{' || b == '[':
		take()
		closing := b + 2 // in ASCII, of both
		space()
		if s.peek() == closing {
			take()
			return true
		}
		for {
			if b == '{' {
				if s.peek() != '"' || !s.value(out, depth+1) {
					return false
				}
				if space(); s.peek() != ':' {
					return false
				}
				take()
				space()
			}
			if !s.value(out, depth+1) {
				return false
			}
			space()
			switch s.peek() {
			case closing:
				take()
				return true
			case ',':
				take()
				space()
			default:
				return false
			}
		}
	case b == '"':
		take()
		return s.stringRest(out)
	case b == '-' || b >= '0' && b <= '9':
		return s.number(take)
	}
	for _, word := range []string{"true", "false", "null"} {
		if s.skip(word) {
			out(word)
			return true
		}
	}
	return false
}

func (s *scanner) stringRest(out func(string)) bool {
	for s.more() {
		if _, ok := s.control(); ok {
			s.rune()
			continue
		}
		switch b := s.in[s.pos]; {
		case b == '"':
			out(`"`)
			s.pos++
			return true
		case b == '\\':
			escaped := s.pos
			s.pos++
			switch e := s.peek(); {
			case e == 'u':
				for range 4 {
					s.pos++
					if h := s.peek(); !(h >= '0' && h <= '9' || h >= 'a' && h <= 'f' || h >= 'A' && h <= 'F') {
						return false
					}
				}
			case e == 0 || !strings.ContainsRune(`"\/bfnrt`, rune(e)):
				return false
			}
			s.pos++
			out(string(s.in[escaped:s.pos]))
		case b < ' ':
			text := quoted(string(rune(b)))
			out(text[1 : len(text)-1])
			s.pos++
		default:
			out(s.rune())
		}
	}
	return false
}

// number reads a number; the end of the answer ends it too.
func (s *scanner) number(take func()) bool {
	digits := func() bool {
		n := 0
		for ; s.peek() >= '0' && s.peek() <= '9'; n++ {
			take()
		}
		return n > 0
	}
	if s.peek() == '-' {
		take()
	}
	if s.peek() == '0' {
		take()
	} else if !digits() {
		return false
	}
	if s.peek() == '.' {
		take()
		if !digits() {
			return false
		}
	}
	if s.peek() == 'e' || s.peek() == 'E' {
		take()
		if s.peek() == '+' || s.peek() == '-' {
			take()
		}
		return digits()
	}
	return true
}

// namedCall reads a name and its arguments.
func (s *scanner) namedCall(mark string) bool {
	f := s.f
	s.skipSpace()
	if mark == f.open && f.begin != f.open { // the mark of all calls; those of each follow
		s.skip(f.triggers[len(f.triggers)-1])
	}
	ends := []string{mistralArgs, mistralID, kimiArgs, deepseekSep}
	if strings.HasPrefix(f.begin, "<function=") {
		ends = []string{">"}
	}
	if s.peek() == '[' || s.peek() == '{' { // Mistral's older models
		if !strings.HasPrefix(f.Name, "mistral") || !s.list(false) {
			return false
		}
		s.closing()
		return true
	}
	name, end, ok := s.until(maxName, ends...)
	id := ""
	switch {
	case !ok:
		return false
	case end == mistralID:
		if id, _, ok = s.until(maxName, mistralArgs); !ok {
			return false
		}
	case end == kimiArgs:
		id = strings.TrimSpace(name)
		name, _, ok = strings.Cut(strings.TrimPrefix(id, "functions."), ":")
		if !ok || !strings.HasPrefix(id, "functions.") {
			id = ""
		}
	case end == deepseekSep && strings.TrimSpace(name) == "function":
		if name, _, ok = s.until(maxName, "\n"); !ok {
			return false
		}
	}
	s.skipSpace()
	fenced := s.skip("```json")
	s.skipSpace()
	if name = strings.TrimSpace(name); !functionName.MatchString(name) {
		return false
	}
	if ok, began := s.arguments(name, id); !ok {
		return began
	}
	if start := s.pos; fenced {
		if s.skipSpace(); !s.skip("```") {
			s.pos = start
		}
	}
	s.closing()
	return true
}

// pythonCall reads name.call(key="value", …), as Llama 3 calls its own functions.
func (s *scanner) pythonCall() bool {
	name, end, ok := s.until(maxName, ".call(", "(")
	if !ok || !functionName.MatchString(name) || end == "" {
		return false
	}
	var b strings.Builder
	for n := 0; ; n++ {
		if s.skipSpace(); s.skip(")") {
			break
		}
		if n > 0 && !s.skip(",") {
			return false
		}
		s.skipSpace()
		key, _, ok := s.until(maxName, "=")
		if !ok {
			return false
		}
		s.skipSpace()
		value, ok := s.raw()
		if !ok {
			return false
		}
		b.WriteString(separator(n) + quoted(strings.TrimSpace(key)) + ": " + value)
	}
	s.whole(name, "{"+b.String()+"}")
	return true
}

// pythonList reads [name(key=value, …), …] up to its end, or a line for each call, which
// may be a block of code in Markdown.
func (s *scanner) pythonList() bool {
	text, _, ok := s.until(0, pythonEnd)
	if !ok {
		return false
	}
	text = strings.TrimSpace(text)
	if code, fenced := strings.CutPrefix(text, "```"); fenced {
		text = strings.TrimPrefix(strings.TrimSuffix(code, "```"), "python")
	}
	p := &python{in: text}
	p.space()
	var calls []Call
	listed := p.skip("[")
	for p.space(); !(listed && p.skip("]") || !listed && p.in == ""); p.space() {
		if len(calls) > 0 && !p.skip(",") && listed {
			return false
		}
		p.space()
		c, ok := p.call()
		if !ok {
			return false
		}
		calls = append(calls, c)
	}
	if p.space(); p.in != "" {
		return false
	}
	for _, c := range calls {
		s.whole(c.Name, c.Arguments)
	}
	return len(calls) > 0
}

func separator(n int) string {
	if n > 0 {
		return ", "
	}
	return ""
}

// whole tells of a call all of whose arguments are there.
func (s *scanner) whole(name, arguments string) {
	s.start(name, "")
	s.argument(arguments)
	s.finish(true)
}

// quoted is a text as a JSON string.
func quoted(text string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(text) // a string always can be
	return strings.TrimSuffix(b.String(), "\n")
}
