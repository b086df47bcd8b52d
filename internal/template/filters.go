package template

import (
	"math"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

type filterFunc func(e *evaluator, v any, args []any, kw []keyword) any

var filters map[string]filterFunc

func init() { // filters call others by name
	filters = map[string]filterFunc{
		"abs": absFilter, "attr": attrFilter, "batch": batchFilter, "capitalize": onText(capitalize), "center": centerFilter,
		"count": lengthFilter, "d": defaultFilter, "default": defaultFilter, "dictsort": dictsortFilter,
		"e": onText(escape), "escape": onText(escape), "forceescape": onText(func(t Text) Text { return escape(Text{s: t.s, from: t.from}) }), "first": firstFilter,
		"float": floatFilter, "format": formatFilter, "indent": indentFilter, "int": intFilter, "items": itemsFilter,
		"join": joinFilter, "last": lastFilter, "length": lengthFilter, "list": listFilter, "lower": onText(lower),
		"map": mapFilter, "max": extremeFilter(1), "min": extremeFilter(-1), "reject": selectFilter(false, false),
		"rejectattr": selectFilter(false, true), "replace": replaceFilter, "reverse": reverseFilter, "round": roundFilter,
		"safe": onText(func(t Text) Text { return Text{t.s, t.from, true} }), "select": selectFilter(true, false),
		"selectattr": selectFilter(true, true), "slice": sliceFilter, "sort": sortFilter,
		"string": onText(func(t Text) Text { return t }), "sum": sumFilter, "title": onText(titleFilter), "tojson": tojsonFilter,
		"trim": trimFilter, "truncate": truncateFilter, "unique": uniqueFilter, "upper": onText(upper),
		"urlencode": urlencodeFilter, "wordcount": wordcountFilter,
	}
}

func (e *evaluator) filter(id string, v any, args []any, kw []keyword) any {
	f, ok := filters[id]
	if !ok {
		fail("no filter named %q", id)
	}
	return f(e, v, args, kw)
}

// onText is a filter of a value's text that takes no arguments.
func onText(f func(Text) Text) filterFunc {
	return func(_ *evaluator, v any, args []any, kw []keyword) any {
		bind("the filter", args, kw, 0)
		return f(str(v))
	}
}

func absFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	bind("abs", args, kw, 0)
	if n, ok := whole(define(v)); ok {
		if n < 0 {
			return integers("-", 0, n)
		}
		return n
	}
	f, ok := v.(float64)
	if !ok {
		fail("bad operand type for abs(): '%s'", typeName(v))
	}
	return math.Abs(f)
}

func attrFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	id := str(bind("attr", args, kw, 1, "name")[0]).s
	if m, ok := member(define(v), id); ok {
		return m
	}
	return undefined{strconv.Quote(id)}
}

func batchFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	a := bind("batch", args, kw, 1, "linecount", "fill_with")
	n := needInt("batch", a[0])
	if n < 1 {
		fail("batch needs a positive number")
	}
	out := &list{kind: iterator}
	for part := range slices.Chunk(iterate(v), n) {
		row := newList(slices.Clone(part)...)
		if fill := given(a[1], nil); fill != nil {
			for len(row.items) < min(n, maxItems) {
				row.items = append(row.items, fill)
			}
		}
		out.items = append(out.items, row)
	}
	return out
}

func sliceFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	a := bind("slice", args, kw, 1, "slices", "fill_with")
	n := needInt("slice", a[0])
	if n < 1 || n > maxItems {
		fail("slice needs a positive number")
	}
	items := iterate(v)
	each, more := len(items)/n, len(items)%n
	out := &list{kind: iterator}
	at := 0
	for i := range n {
		count := each
		if i < more {
			count++
		}
		row := newList(slices.Clone(items[at : at+count])...)
		at += count
		if fill := given(a[1], nil); fill != nil && i >= more {
			row.items = append(row.items, fill)
		}
		out.items = append(out.items, row)
	}
	return out
}

func centerFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	a := bind("center", args, kw, 0, "width")
	return pad("center", str(v), needInt("center", given(a[0], int64(80))), Own(" "))
}

func lengthFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	bind("length", args, kw, 0)
	return length(v)
}

func defaultFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	a := bind("default", args, kw, 0, "default_value", "boolean")
	if _, ok := v.(undefined); ok || truth(given(a[1], false)) && !truth(v) {
		return given(a[0], Text{})
	}
	return v
}

// folded is a key to sort by, without case unless that counts.
func folded(v any, caseSensitive bool) any {
	if t, ok := v.(Text); ok && !caseSensitive {
		return lower(t)
	}
	return v
}

func dictsortFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	a := bind("dictsort", args, kw, 0, "case_sensitive", "by", "reverse")
	d, ok := define(v).(*Dict)
	if !ok {
		fail("dictsort needs a mapping, not '%s'", typeName(v))
	}
	at := 0
	switch by := str(given(a[1], Own("key"))).s; by {
	case "key":
	case "value":
		at = 1
	default:
		fail("dictsort can sort by key or value, not by %q", by)
	}
	pairs := d.pairs()
	sortBy(pairs, truth(given(a[2], false)), func(p any) any {
		return folded(p.(*list).items[at], truth(given(a[0], false)))
	})
	return newList(pairs...)
}

func sortBy(items []any, reverse bool, key func(any) any) {
	slices.SortStableFunc(items, func(x, y any) int {
		if reverse {
			return order(key(y), key(x))
		}
		return order(key(x), key(y))
	})
}

// escape makes HTML of a text that is none yet.
func escape(t Text) Text {
	if t.escaped {
		return t
	}
	t = t.each(func(r rune) string {
		switch r {
		case '&':
			return "&amp;"
		case '<':
			return "&lt;"
		case '>':
			return "&gt;"
		case '\'':
			return "&#39;"
		case '"':
			return "&#34;"
		}
		return string(r)
	})
	t.escaped = true
	return t
}

func firstFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	bind("first", args, kw, 0)
	if l, ok := v.(*list); ok && l.kind == iterator && len(l.items) > 0 {
		first := l.items[0]
		l.items = l.items[1:]
		return first
	}
	for _, item := range iterate(v) {
		return item
	}
	return undefined{"the first of no items"}
}

func lastFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	bind("last", args, kw, 0)
	if l, ok := v.(*list); ok && l.kind == iterator {
		fail("'generator' object is not reversible")
	}
	items := iterate(define(v))
	if len(items) == 0 {
		return undefined{"the last of no items"}
	}
	return items[len(items)-1]
}

func floatFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	a := bind("float", args, kw, 0, "default")
	if f, ok := parseFloat(v); ok {
		return f
	}
	return given(a[0], 0.0)
}

func parseFloat(v any) (float64, bool) {
	if f, ok := number(define(v)); ok {
		return f, true
	}
	if t, ok := v.(Text); ok {
		s := strings.ReplaceAll(strings.TrimFunc(t.s, isSpace), "_", "")
		if strings.ContainsAny(s, "xXpP") {
			return 0, false
		}
		f, err := strconv.ParseFloat(s, 64)
		return f, err == nil
	}
	return 0, false
}

func intFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	a := bind("int", args, kw, 0, "default", "base")
	if n, ok := whole(define(v)); ok {
		return n
	}
	if t, ok := v.(Text); ok {
		base := needInt("int", given(a[1], int64(10)))
		s := strings.TrimFunc(t.s, isSpace)
		if base == 16 {
			s = strings.TrimPrefix(strings.TrimPrefix(s, "0x"), "0X")
		}
		if base >= 2 && base <= 36 {
			if n, err := strconv.ParseInt(strings.ReplaceAll(s, "_", ""), base, 64); err == nil {
				return n
			}
		}
	}
	if f, ok := parseFloat(v); ok && math.Abs(f) < 1<<63 {
		return int64(f)
	}
	return given(a[0], int64(0))
}

func formatFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	if len(kw) > 0 {
		fail("format with names is not supported")
	}
	return percent(str(v), args)
}

func indentFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	a := bind("indent", args, kw, 0, "width", "first", "blank")
	t := needText("indent", v)
	var by Text
	if width, ok := given(a[0], int64(4)).(Text); ok {
		by = width
	} else {
		by = repeat(Own(" "), int64(needInt("indent", given(a[0], int64(4)))))
	}
	blank := truth(given(a[2], false))
	var b textBuilder
	if truth(given(a[1], false)) {
		b.add(by)
	}
	for i, line := range Join(t, Own("\n")).lines(false) {
		if i > 0 {
			b.own("\n")
			if blank || line.s != "" {
				b.add(by)
			}
		}
		b.add(line)
	}
	return b.text()
}

func itemsFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	bind("items", args, kw, 0)
	switch v := v.(type) {
	case undefined:
		return &list{kind: iterator}
	case *Dict:
		return &list{iterator, v.pairs()}
	}
	fail("items needs a mapping, not '%s'", typeName(v))
	return nil
}

// attributeOf reads "a.b.0" of a value.
func attributeOf(path any, otherwise any) func(any) any {
	if given(path, nil) == nil {
		return func(v any) any { return v }
	}
	var parts []any
	if n, ok := whole(path); ok {
		parts = append(parts, n)
	} else {
		for part := range strings.SplitSeq(needText("the attribute", path).s, ".") {
			if n, err := strconv.ParseInt(part, 10, 64); err == nil && n >= 0 {
				parts = append(parts, n)
			} else {
				parts = append(parts, Own(part))
			}
		}
	}
	return func(v any) any {
		for _, part := range parts {
			v = at(v, part)
			if _, ok := v.(undefined); ok && otherwise != nil {
				v = otherwise
			}
		}
		return v
	}
}

func joinFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	a := bind("join", args, kw, 0, "d", "attribute")
	get := attributeOf(a[1], nil)
	sep := str(given(a[0], Text{}))
	var b textBuilder
	for i, item := range iterate(v) {
		if i > 0 {
			b.add(sep)
		}
		b.add(str(get(item)))
	}
	return b.text()
}

func listFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	bind("list", args, kw, 0)
	return newList(slices.Clone(iterate(v))...)
}

func mapFilter(e *evaluator, v any, args []any, kw []keyword) any {
	var one func(item any) any
	switch {
	case len(args) == 0 && len(kw) > 0:
		a := bind("map", nil, kw, 1, "attribute", "default")
		one = attributeOf(a[0], given(a[1], nil))
	case len(args) > 0:
		id := needText("map", args[0]).s
		one = func(item any) any { return e.filter(id, item, args[1:], kw) }
	default:
		fail("map requires a filter argument")
	}
	out := &list{kind: iterator}
	if !truth(v) { // none counts as empty
		return out
	}
	for _, item := range iterate(v) {
		out.items = append(out.items, one(item))
	}
	return out
}

func selectFilter(keep, byAttribute bool) filterFunc {
	return func(e *evaluator, v any, args []any, kw []keyword) any {
		get := func(item any) any { return item }
		if byAttribute {
			if len(args) == 0 {
				fail("missing parameter for attribute name")
			}
			get = attributeOf(args[0], nil)
			args = args[1:]
		}
		out := &list{kind: iterator}
		if !truth(v) { // none counts as empty
			return out
		}
		for _, item := range iterate(v) {
			holds := false
			if len(args) == 0 {
				holds = truth(get(item))
			} else {
				holds = e.test(needText("select", args[0]).s, get(item), args[1:], kw)
			}
			if holds == keep {
				out.items = append(out.items, item)
			}
		}
		return out
	}
}

func extremeFilter(sign int) filterFunc {
	return func(_ *evaluator, v any, args []any, kw []keyword) any {
		a := bind("max", args, kw, 0, "case_sensitive", "attribute")
		get := attributeOf(a[1], nil)
		key := func(v any) any { return folded(get(v), truth(given(a[0], false))) }
		items := iterate(v)
		if len(items) == 0 {
			return undefined{"an item of no items"}
		}
		best := items[0]
		for _, item := range items[1:] {
			if order(key(item), key(best))*sign > 0 {
				best = item
			}
		}
		return best
	}
}

func replaceFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	a := bind("replace", args, kw, 2, "old", "new", "count")
	count := -1
	if n := given(a[2], nil); n != nil {
		count = needInt("replace", n)
	}
	return str(v).replace(str(a[0]).s, str(a[1]), count)
}

func reverseFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	bind("reverse", args, kw, 0)
	if l, ok := v.(*list); ok && l.kind == iterator {
		l = &list{listKindList, l.take()}
		v = l
	}
	items := slices.Clone(iterate(define(v)))
	slices.Reverse(items)
	if _, ok := v.(Text); ok {
		var b textBuilder
		for _, c := range items {
			b.add(c.(Text))
		}
		return b.text()
	}
	return &list{iterator, items}
}

func roundFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	a := bind("round", args, kw, 0, "precision", "method")
	places := needInt("round", given(a[0], int64(0)))
	f, ok := number(define(v))
	if !ok {
		fail("round needs a number, not '%s'", typeName(v))
	}
	scale := math.Pow(10, float64(places))
	switch by := str(given(a[1], Own("common"))).s; by {
	case "ceil":
		return math.Ceil(f*scale) / scale
	case "floor":
		return math.Floor(f*scale) / scale
	case "common":
	default:
		fail("round cannot round by %q", by)
	}
	if n, ok := whole(v); ok {
		if places < 0 {
			fail("rounding whole numbers is not supported")
		}
		return n
	}
	if places < 0 {
		return math.RoundToEven(f*scale) / scale
	}
	r, _ := strconv.ParseFloat(strconv.FormatFloat(f, 'f', min(places, 1000), 64), 64)
	return r
}

func sortFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	a := bind("sort", args, kw, 0, "reverse", "case_sensitive", "attribute")
	items := slices.Clone(iterate(v))
	var paths []func(any) any
	if t, ok := given(a[2], nil).(Text); ok {
		for _, path := range t.split(",", -1, false) {
			paths = append(paths, attributeOf(path, nil))
		}
	} else {
		paths = append(paths, attributeOf(a[2], nil))
	}
	sortBy(items, truth(given(a[0], false)), func(v any) any {
		keys := newList()
		for _, get := range paths {
			keys.items = append(keys.items, folded(get(v), truth(given(a[1], false))))
		}
		if len(keys.items) == 1 {
			return keys.items[0]
		}
		return keys
	})
	return newList(items...)
}

func sumFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	a := bind("sum", args, kw, 0, "attribute", "start")
	get := attributeOf(a[0], nil)
	sum := given(a[1], int64(0))
	for _, item := range iterate(v) {
		if sum = arithmetic("+", sum, get(item)); typeName(sum) == "str" {
			fail("sum() can't sum strings")
		}
	}
	return sum
}

// titleFilter makes the first letter of each word a capital; words end at spaces,
// hyphens and opening brackets.
func titleFilter(t Text) Text {
	first := true
	return t.each(func(r rune) string {
		begins := first
		first = isSpace(r) || strings.ContainsRune("-({[<", r)
		if begins {
			return upperRune(r)
		}
		return strings.ToLower(string(r))
	})
}

func tojsonFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	a := bind("tojson", args, kw, 0, "ensure_ascii", "indent", "separators", "sort_keys")
	style := jsonStyle{ascii: truth(given(a[0], false)), sortKeys: truth(given(a[3], false)), item: ", ", key: ": "}
	switch by := given(a[1], nil).(type) {
	case nil:
	case Text:
		style.indent, style.item = &by.s, ","
	default:
		spaces := strings.Repeat(" ", max(min(needInt("tojson", by), maxNesting), 0))
		style.indent, style.item = &spaces, ","
	}
	if sep := given(a[2], nil); sep != nil {
		pair := iterate(define(sep))
		if len(pair) != 2 {
			fail("separators need two texts")
		}
		style.item, style.key = needText("separators", pair[0]).s, needText("separators", pair[1]).s
	}
	var b textBuilder
	style.write(&b, v, 0)
	return b.text()
}

func trimFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	return str(v).trim(cutset(bind("trim", args, kw, 0, "chars")[0]), true, true)
}

func truncateFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	a := bind("truncate", args, kw, 0, "length", "killwords", "end", "leeway")
	t, end := needText("truncate", v), str(given(a[2], Own("...")))
	most, leeway := int64(needInt("truncate", given(a[0], int64(255)))), int64(needInt("truncate", given(a[3], int64(5))))
	if most < length(end) || leeway < 0 {
		fail("truncate to %d characters", most)
	}
	if length(t) <= most+leeway {
		return t
	}
	cut := slice(t, nil, most-length(end), nil).(Text)
	if !truth(given(a[1], false)) {
		cut = cut.split(" ", 1, true)[0]
	}
	return Join(cut, end)
}

func uniqueFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	a := bind("unique", args, kw, 0, "case_sensitive", "attribute")
	get := attributeOf(a[1], nil)
	seen := new(Dict)
	out := &list{kind: iterator}
	for _, item := range iterate(v) {
		key := folded(get(item), truth(given(a[0], false)))
		if _, ok := seen.get(key); !ok {
			seen.set(key, true)
			out.items = append(out.items, item)
		}
	}
	return out
}

func urlencodeFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	bind("urlencode", args, kw, 0)
	switch v.(type) {
	case *list, *Dict:
		fail("urlencode of a %s is not supported", typeName(v))
	}
	return str(v).each(func(r rune) string {
		if r == '/' || r == '~' {
			return string(r)
		}
		return strings.ReplaceAll(url.QueryEscape(string(r)), "+", "%20")
	})
}

var words = regexp.MustCompile(`[\p{L}\p{N}_]+`)

func wordcountFilter(_ *evaluator, v any, args []any, kw []keyword) any {
	bind("wordcount", args, kw, 0)
	return int64(len(words.FindAllString(str(v).s, -1)))
}

// ---- tests ----

func (e *evaluator) test(id string, v any, args []any, kw []keyword) bool {
	one := func() any { return bind("the test "+id, args, kw, 1, "value")[0] }
	switch id {
	case "==", "eq", "equalto":
		return equal(v, one())
	case "!=", "ne":
		return !equal(v, one())
	case "<", "lt", "lessthan":
		return order(v, one()) < 0
	case "<=", "le":
		return order(v, one()) <= 0
	case ">", "gt", "greaterthan":
		return order(v, one()) > 0
	case ">=", "ge":
		return order(v, one()) >= 0
	case "in":
		return contains(one(), v)
	case "sameas":
		w := one()
		switch v.(type) {
		case *list, *Dict, *namespace:
			return v == w
		}
		return typeName(v) == typeName(w) && equal(v, w)
	case "divisibleby":
		return equal(arithmetic("%", v, one()), int64(0))
	}
	bind("the test "+id, args, kw, 0)
	switch id {
	case "defined":
		return typeName(v) != "Undefined"
	case "undefined":
		return typeName(v) == "Undefined"
	case "none":
		return v == nil
	case "boolean":
		return typeName(v) == "bool"
	case "true":
		return v == true
	case "false":
		return v == false
	case "integer":
		return typeName(v) == "int"
	case "float":
		return typeName(v) == "float"
	case "number":
		_, ok := number(v)
		return ok
	case "string":
		return typeName(v) == "str"
	case "mapping":
		return typeName(v) == "dict"
	case "sequence":
		switch x := v.(type) {
		case Text, *Dict, undefined:
			return true
		case *list:
			return x.kind <= tuple || x.kind == rangeKind
		}
		return false
	case "iterable":
		switch v.(type) {
		case Text, *Dict, undefined, *list:
			return true
		}
		return false
	case "callable":
		switch x := v.(type) {
		case *function, undefined:
			return true
		case *loop:
			return x.again != nil
		}
		return false
	case "odd":
		return equal(arithmetic("%", v, int64(2)), int64(1))
	case "even":
		return equal(arithmetic("%", v, int64(2)), int64(0))
	case "lower":
		return cased(str(v), unicode.IsLower, unicode.IsUpper)
	case "upper":
		return cased(str(v), unicode.IsUpper, unicode.IsLower)
	case "escaped":
		t, ok := v.(Text)
		return ok && t.escaped
	case "filter":
		_, ok := filters[str(v).s]
		return ok
	}
	fail("no test named %q", id)
	return false
}
