package template

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// missing stands for an argument that was not given.
type missing struct{}

// bind gives arguments their places: those of the names, in their order. Those
// from required on may be missing.
func bind(fn string, args []any, kw []keyword, required int, names ...string) []any {
	if len(args) > len(names) {
		fail("%s takes at most %d arguments, not %d", fn, len(names), len(args))
	}
	all := make([]any, len(names))
	for i := range all {
		if all[i] = any(missing{}); i < len(args) {
			all[i] = args[i]
		}
	}
	for _, k := range kw {
		i := slices.Index(names, k.name)
		if i < 0 || i < len(args) {
			fail("%s got an unexpected keyword argument %q", fn, k.name)
		}
		all[i] = k.value
	}
	for i := range required {
		if all[i] == any(missing{}) {
			fail("%s needs %s", fn, names[i])
		}
	}
	return all
}

// given is v, or otherwise if it is missing.
func given(v, otherwise any) any {
	if _, ok := v.(missing); ok {
		return otherwise
	}
	return v
}

func needText(fn string, v any) Text {
	t, ok := define(v).(Text)
	if !ok {
		fail("%s needs a string, not '%s'", fn, typeName(v))
	}
	return t
}

func needInt(fn string, v any) int {
	n, ok := whole(define(v))
	if !ok {
		fail("%s needs an integer, not '%s'", fn, typeName(v))
	}
	return int(max(min(n, maxOutput+1), -maxOutput-1))
}

// method makes a function of a value that takes these arguments.
func method(id string, required int, names []string, call func(a []any) any) (any, bool) {
	return &function{id, func(_ *evaluator, args []any, kw []keyword) any {
		return call(bind(id, args, kw, required, names...))
	}}, true
}

// member is an attribute that a value has by its type.
func member(x any, id string) (any, bool) {
	switch x := x.(type) {
	case Text:
		return textMember(x, id)
	case *Dict:
		return dictMember(x, id)
	case *list:
		return listMember(x, id)
	case *namespace:
		return x.get(Own(id))
	case *loop:
		return x.member(id)
	}
	return nil, false
}

// refused is a method that would change its object.
func refused(id string) (any, bool) {
	return &function{id, func(*evaluator, []any, []keyword) any {
		fail("%s is not allowed: a template changes no objects", id)
		return nil
	}}, true
}

func dictMember(d *Dict, id string) (any, bool) {
	switch id {
	case "items":
		return method(id, 0, nil, func([]any) any { return &list{itemsView, d.pairs()} })
	case "keys":
		return method(id, 0, nil, func([]any) any { return &list{keysView, slices.Clone(d.keys)} })
	case "values":
		return method(id, 0, nil, func([]any) any { return &list{valuesView, slices.Clone(d.values)} })
	case "get":
		return method(id, 1, []string{"key", "default"}, func(a []any) any {
			if v, ok := d.get(a[0]); ok {
				return v
			}
			return given(a[1], nil)
		})
	case "copy":
		return method(id, 0, nil, func([]any) any {
			c := new(Dict)
			for i, k := range d.keys {
				c.set(k, d.values[i])
			}
			return c
		})
	case "clear", "pop", "popitem", "setdefault", "update":
		return refused(id)
	}
	return nil, false
}

func listMember(l *list, id string) (any, bool) {
	if l.kind > tuple {
		return nil, false
	}
	switch id {
	case "index":
		return method(id, 1, []string{"value", "start", "end"}, func(a []any) any {
			start, end := 0, len(l.items)
			if a[1] != any(missing{}) {
				start = clampIndex(needInt(id, a[1]), len(l.items))
			}
			if a[2] != any(missing{}) {
				end = clampIndex(needInt(id, a[2]), len(l.items))
			}
			for i := start; i < end; i++ {
				if equal(l.items[i], a[0]) {
					return int64(i)
				}
			}
			fail("the list does not have it")
			return nil
		})
	case "count":
		return method(id, 1, []string{"value"}, func(a []any) any {
			n := int64(0)
			for _, v := range l.items {
				if equal(v, a[0]) {
					n++
				}
			}
			return n
		})
	}
	if l.kind == tuple {
		return nil, false
	}
	switch id {
	case "copy":
		return method(id, 0, nil, func([]any) any { return newList(slices.Clone(l.items)...) })
	case "append", "extend", "insert", "pop", "remove", "reverse", "sort", "clear":
		return refused(id)
	}
	return nil, false
}

func clampIndex(n, count int) int {
	if n < 0 {
		n += count
	}
	return min(max(n, 0), count)
}

// cutset is what strip takes away.
func cutset(v any) func(rune) bool {
	if given(v, nil) == nil {
		return isSpace
	}
	chars := needText("strip", v).s
	return func(r rune) bool { return strings.ContainsRune(chars, r) }
}

// allRunes tells whether a text has runes, and all are of a kind.
func allRunes(t Text, kind func(rune) bool) bool {
	return t.s != "" && strings.IndexFunc(t.s, func(r rune) bool { return !kind(r) }) < 0
}

// cased tells whether a text has letters of one case, and none of the other.
func cased(t Text, is, isNot func(rune) bool) bool {
	return strings.IndexFunc(t.s, is) >= 0 && strings.IndexFunc(t.s, isNot) < 0
}

// upperRune is a character's capital. Of those that have two, only the German sharp
// s is common.
func upperRune(r rune) string {
	if r == 'ß' {
		return "SS"
	}
	return strings.ToUpper(string(r))
}

func upper(t Text) Text { return t.each(upperRune) }
func lower(t Text) Text { return t.each(func(r rune) string { return strings.ToLower(string(r)) }) }

func capitalize(t Text) Text {
	_, n := utf8.DecodeRuneInString(t.s)
	return Join(t.Slice(0, n).each(func(r rune) string { return string(unicode.ToTitle(r)) }), lower(t.rest(n)))
}

// titled is Python's str.title: each letter behind none is a capital.
func titled(t Text) Text {
	inside := false
	return t.each(func(r rune) string {
		first := !inside
		if inside = unicode.IsLetter(r); inside && first {
			return string(unicode.ToTitle(r))
		}
		return strings.ToLower(string(r))
	})
}

func textMember(t Text, id string) (any, bool) {
	none := func(f func() any) (any, bool) { return method(id, 0, nil, func([]any) any { return f() }) }
	switch id {
	case "upper":
		return none(func() any { return upper(t) })
	case "lower", "casefold":
		return none(func() any { return lower(t) })
	case "capitalize":
		return none(func() any { return capitalize(t) })
	case "title":
		return none(func() any { return titled(t) })
	case "swapcase":
		return none(func() any {
			return t.each(func(r rune) string {
				if unicode.IsUpper(r) {
					return strings.ToLower(string(r))
				}
				return upperRune(r)
			})
		})
	case "isdigit", "isnumeric", "isdecimal":
		return none(func() any { return allRunes(t, unicode.IsDigit) })
	case "isalpha":
		return none(func() any { return allRunes(t, unicode.IsLetter) })
	case "isalnum":
		return none(func() any {
			return allRunes(t, func(r rune) bool { return unicode.IsLetter(r) || unicode.IsNumber(r) })
		})
	case "isspace":
		return none(func() any { return allRunes(t, isSpace) })
	case "isupper":
		return none(func() any { return cased(t, unicode.IsUpper, unicode.IsLower) })
	case "islower":
		return none(func() any { return cased(t, unicode.IsLower, unicode.IsUpper) })
	case "strip", "lstrip", "rstrip":
		return method(id, 0, []string{"chars"}, func(a []any) any {
			return t.trim(cutset(a[0]), id != "rstrip", id != "lstrip")
		})
	case "split", "rsplit":
		return method(id, 0, []string{"sep", "maxsplit"}, func(a []any) any { return splitText(id, t, a[0], a[1]) })
	case "splitlines":
		return method(id, 0, []string{"keepends"}, func(a []any) any {
			return texts(t.lines(truth(given(a[0], false))))
		})
	case "partition", "rpartition":
		return method(id, 1, []string{"sep"}, func(a []any) any {
			sep := needText(id, a[0])
			if sep.s == "" {
				fail("empty separator")
			}
			parts := t.split(sep.s, 1, id == "rpartition")
			switch {
			case len(parts) == 2:
				parts = []Text{parts[0], t.Slice(parts[0].Len(), parts[0].Len()+sep.Len()), parts[1]}
			case id == "partition":
				parts = []Text{t, {}, {}}
			default:
				parts = []Text{{}, {}, t}
			}
			l := texts(parts)
			l.kind = tuple
			return l
		})
	case "startswith", "endswith":
		return method(id, 1, []string{"prefix", "start", "end"}, func(a []any) any {
			part := textRange(id, t, a[1], a[2])
			options := []any{a[0]}
			if l, ok := a[0].(*list); ok && l.kind == tuple {
				options = l.items
			}
			for _, o := range options {
				s := needText(id, o).s
				if id == "startswith" && strings.HasPrefix(part.s, s) || id == "endswith" && strings.HasSuffix(part.s, s) {
					return true
				}
			}
			return false
		})
	case "removeprefix", "removesuffix":
		return method(id, 1, []string{"text"}, func(a []any) any {
			s := needText(id, a[0]).s
			switch {
			case id == "removeprefix" && strings.HasPrefix(t.s, s):
				return t.rest(len(s))
			case id == "removesuffix" && strings.HasSuffix(t.s, s):
				return t.Slice(0, len(t.s)-len(s))
			}
			return t
		})
	case "replace":
		return method(id, 2, []string{"old", "new", "count"}, func(a []any) any {
			return t.replace(needText(id, a[0]).s, needText(id, a[1]), needInt(id, given(a[2], int64(-1))))
		})
	case "find", "rfind", "index", "rindex":
		return method(id, 1, []string{"sub", "start", "end"}, func(a []any) any { return findText(id, t, a) })
	case "count":
		return method(id, 1, []string{"sub", "start", "end"}, func(a []any) any {
			return int64(strings.Count(textRange(id, t, a[1], a[2]).s, needText(id, a[0]).s))
		})
	case "join":
		return method(id, 1, []string{"items"}, func(a []any) any {
			var b textBuilder
			for i, v := range iterate(define(a[0])) {
				if i > 0 {
					b.add(t)
				}
				b.add(needText(id, v))
			}
			return b.text()
		})
	case "ljust", "rjust", "center", "zfill":
		return method(id, 1, []string{"width", "fill"}, func(a []any) any {
			return pad(id, t, needInt(id, a[0]), given(a[1], Own(" ")))
		})
	case "format":
		return &function{id, func(_ *evaluator, args []any, kw []keyword) any { return formatText(t, args, kw) }}, true
	}
	return nil, false
}

// textRange is the part of a text from one character to another.
func textRange(fn string, t Text, start, end any) Text {
	if given(start, nil) == nil && given(end, nil) == nil {
		return t
	}
	for _, v := range []any{given(start, nil), given(end, nil)} {
		if v != nil {
			needInt(fn, v)
		}
	}
	return slice(t, given(start, nil), given(end, nil), nil).(Text)
}

func splitText(id string, t Text, sep, most any) any {
	n := needInt(id, given(most, int64(-1)))
	if given(sep, nil) != nil {
		s := needText(id, sep).s
		if s == "" {
			fail("empty separator")
		}
		return texts(t.split(s, n, id == "rsplit"))
	}
	if id == "split" || n < 0 {
		return texts(t.fields(n))
	}
	// From the right: the first words stay together.
	words := t.fields(-1)
	if len(words) <= n {
		return texts(words)
	}
	rest := t.trim(isSpace, false, true)
	for range n {
		rest = rest.Slice(0, strings.LastIndexFunc(rest.s, isSpace)).trim(isSpace, false, true)
	}
	return texts(append([]Text{rest}, words[len(words)-n:]...))
}

func findText(id string, t Text, a []any) any {
	sub := needText(id, a[0]).s
	from := 0
	if v := given(a[1], nil); v != nil {
		from = clampIndex(needInt(id, v), utf8.RuneCountInString(t.s))
	}
	part := textRange(id, t, a[1], a[2])
	i := strings.Index(part.s, sub)
	if id[0] == 'r' {
		i = strings.LastIndex(part.s, sub)
	}
	if i < 0 {
		if strings.HasSuffix(id, "index") {
			fail("substring not found")
		}
		return int64(-1)
	}
	return int64(from + utf8.RuneCountInString(part.s[:i]))
}

func pad(id string, t Text, width int, fill any) Text {
	need := width - utf8.RuneCountInString(t.s)
	if need <= 0 {
		return t
	}
	if id == "zfill" {
		sign := ""
		if strings.HasPrefix(t.s, "-") || strings.HasPrefix(t.s, "+") {
			sign = t.s[:1]
		}
		return Join(t.Slice(0, len(sign)), repeat(Own("0"), int64(need)), t.rest(len(sign)))
	}
	with := needText(id, fill)
	if utf8.RuneCountInString(with.s) != 1 {
		fail("the fill character must be exactly one character long")
	}
	left, right := 0, need
	switch id {
	case "rjust":
		left, right = need, 0
	case "center": // the odd one goes where Python puts it
		left = need/2 + (need & width & 1)
		right = need - left
	}
	return Join(repeat(with, int64(left)), t, repeat(with, int64(right)))
}

// percent is Python's format % values.
func percent(format Text, values []any) Text {
	var b textBuilder
	next := 0
	s := format.s
	for i := 0; i < len(s); {
		at := strings.IndexByte(s[i:], '%')
		if at < 0 {
			b.add(format.rest(i))
			break
		}
		b.add(format.Slice(i, i+at))
		end := i + at + 1
		for end < len(s) && strings.IndexByte("0123456789.-+# ", s[end]) >= 0 {
			end++
		}
		if end == len(s) {
			fail("incomplete format")
		}
		spec, verb := s[i+at:end], s[end]
		i = end + 1
		if verb == '%' {
			b.own("%")
			continue
		}
		if next == len(values) {
			fail("not enough arguments for format string")
		}
		part := percentOne(spec, verb, values[next])
		if next++; format.escaped {
			part = escape(part)
		}
		b.add(part)
	}
	if next < len(values) && !slices.Contains([]string{"dict", "list", "range"}, typeName(values[0])) {
		fail("not all arguments converted during string formatting")
	}
	text := b.text()
	text.escaped = format.escaped
	return text
}

func percentOne(spec string, verb byte, v any) Text {
	switch verb {
	case 's', 'r':
		t := str(v)
		if verb == 'r' {
			t = repr(v)
		}
		if spec == "%" {
			return t
		}
		return t.like(fmt.Sprintf(spec+"s", t.s))
	case 'd', 'i', 'x', 'X', 'o':
		f, ok := number(define(v))
		if !ok {
			fail("%%%c needs a number, not '%s'", verb, typeName(v))
		}
		n, ok := whole(v)
		if !ok {
			n = int64(f)
		}
		if verb == 'i' {
			verb = 'd'
		}
		return Own(fmt.Sprintf(spec+string(verb), n))
	case 'f', 'F', 'e', 'E', 'g', 'G':
		f, ok := number(define(v))
		if !ok {
			fail("%%%c needs a number, not '%s'", verb, typeName(v))
		}
		if verb == 'g' || verb == 'G' {
			fail("%%%c is not supported", verb)
		}
		return Own(fmt.Sprintf(spec+string(verb), f))
	}
	fail("unsupported format character %q", verb)
	return Text{}
}

// formatText is Python's str.format, as far as fields without a format go.
func formatText(t Text, args []any, kw []keyword) Text {
	var b textBuilder
	next := 0
	for i := 0; i < len(t.s); {
		at := strings.IndexAny(t.s[i:], "{}")
		if at < 0 {
			b.add(t.rest(i))
			break
		}
		b.add(t.Slice(i, i+at))
		i += at
		if i+1 < len(t.s) && t.s[i+1] == t.s[i] {
			b.add(t.Slice(i, i+1))
			i += 2
			continue
		}
		end := strings.IndexByte(t.s[i:], '}')
		if t.s[i] == '}' || end < 0 {
			fail("single '%c' in format string", t.s[i])
		}
		field := t.s[i+1 : i+end]
		i += end + 1
		if strings.ContainsAny(field, ":!.[{") {
			fail("the format {%s} is not supported", field)
		}
		n, err := strconv.Atoi(field)
		if field == "" {
			n, err = next, nil
			next++
		}
		if err == nil {
			if n < 0 || n >= len(args) {
				fail("there is no argument %d for the format", n)
			}
			b.add(str(args[n]))
			continue
		}
		k := slices.IndexFunc(kw, func(k keyword) bool { return k.name == field })
		if k < 0 {
			fail("there is no argument %q for the format", field)
		}
		b.add(str(kw[k].value))
	}
	return b.text()
}
