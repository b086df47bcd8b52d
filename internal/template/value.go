package template

import (
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A value is one of nil, bool, int64, float64, [Text], *list, *[Dict], undefined,
// *namespace, *function, *loop, and *big.Int for a number of JSON that has over 64
// bits, which can be written and nothing else.

// undefined is what a name stands for that nothing was given to.
type undefined struct{ what string }

// list is one of Python's sequences and iterators.
type list struct {
	kind  listKind
	items []any
}

type listKind int

const (
	listKindList listKind = iota
	tuple
	iterator // can be gone through once, and has no length
	keysView
	valuesView
	itemsView
	rangeKind
)

var listNames = [...]string{"list", "tuple", "generator", "dict_keys", "dict_values", "dict_items", "range"}

func newList(items ...any) *list { return &list{listKindList, items} }

func texts(parts []Text) *list {
	l := &list{items: make([]any, len(parts))}
	for i, p := range parts {
		l.items[i] = p
	}
	return l
}

// take gives the items; an iterator has none afterwards.
func (l *list) take() []any {
	items := l.items
	if l.kind == iterator {
		l.items = nil
	}
	return items
}

// Dict is a mapping that keeps the order of its keys.
type Dict struct {
	keys   []any
	values []any
	index  map[any]int // by hash of the key
}

// Set gives a key its value: nil, bool, int, int64, float64, string, [Text], []any
// or *Dict. A string counts as the template's; what somebody typed is [Typed].
func (d *Dict) Set(key string, value any) { d.set(Own(key), fromGo(value)) }

// Update sets what other has.
func (d *Dict) Update(other *Dict) {
	for i, k := range other.keys {
		d.set(k, other.values[i])
	}
}

// Get is a key's value, nil if there is none.
func (d *Dict) Get(key string) any {
	v, _ := d.get(Own(key))
	return v
}

func (d *Dict) set(key, value any) {
	h := hash(key)
	if i, ok := d.index[h]; ok {
		d.values[i] = value
		return
	}
	if d.index == nil {
		d.index = map[any]int{}
	}
	d.index[h] = len(d.keys)
	d.keys, d.values = append(d.keys, key), append(d.values, value)
}

func (d *Dict) get(key any) (any, bool) {
	i, ok := d.index[hash(key)]
	if !ok {
		return nil, false
	}
	return d.values[i], true
}

func (d *Dict) pairs() []any {
	all := make([]any, len(d.keys))
	for i, k := range d.keys {
		all[i] = &list{tuple, []any{k, d.values[i]}}
	}
	return all
}

// hash makes equal keys one and the same.
func hash(key any) any {
	switch k := key.(type) {
	case Text:
		return k.s
	case bool:
		if k {
			return int64(1)
		}
		return int64(0)
	case float64:
		if k == math.Trunc(k) && math.Abs(k) < 1<<62 {
			return int64(k)
		}
		return k
	case *list:
		if hashable(k) {
			var b strings.Builder
			for _, v := range k.items {
				fmt.Fprintf(&b, "%T %v,", v, hash(v))
			}
			return [1]string{b.String()}
		}
		fail("unhashable type: %s", typeName(key))
	case *Dict:
		fail("unhashable type: dict")
	}
	return key
}

// hashable reports whether v may be a key.
func hashable(v any) bool {
	switch v := v.(type) {
	case *list:
		return v.kind == tuple && !slices.ContainsFunc(v.items, func(item any) bool {
			_, isList := item.(*list) // tuples in tuples are no keys here
			return isList || !hashable(item)
		})
	case *Dict:
		return false
	}
	return true
}

func fromGo(v any) any {
	switch v := v.(type) {
	case int:
		return int64(v)
	case string:
		return Own(v)
	case []any:
		l := newList()
		for _, item := range v {
			l.items = append(l.items, fromGo(item))
		}
		return l
	}
	return v
}

// namespace is an object whose attributes a template may set.
type namespace struct{ Dict }

// keyword is an argument with a name.
type keyword struct {
	name  string
	value any
}

// function is what can be called.
type function struct {
	name string
	call func(e *evaluator, args []any, kw []keyword) any
}

func typeName(v any) string {
	switch v := v.(type) {
	case nil:
		return "NoneType"
	case bool:
		return "bool"
	case int64, *big.Int:
		return "int"
	case float64:
		return "float"
	case Text:
		return "str"
	case *list:
		return listNames[v.kind]
	case *Dict:
		return "dict"
	case undefined:
		return "Undefined"
	case *namespace:
		return "Namespace"
	case *loop:
		return "LoopContext"
	}
	return "function"
}

// define refuses an undefined value where one is needed.
func define(v any) any {
	if u, ok := v.(undefined); ok {
		fail("%s is undefined", u.what)
	}
	return v
}

func truth(v any) bool {
	switch v := v.(type) {
	case nil, undefined:
		return false
	case bool:
		return v
	case int64:
		return v != 0
	case float64:
		return v != 0
	case Text:
		return v.s != ""
	case *list:
		return v.kind == iterator || len(v.items) > 0
	case *Dict:
		return len(v.keys) > 0
	}
	return true
}

// iterate gives what a loop over v goes through.
func iterate(v any) []any {
	switch v := v.(type) {
	case undefined:
		return nil
	case *list:
		return v.take()
	case *Dict:
		return slices.Clone(v.keys)
	case Text:
		var all []any
		for i := 0; i < len(v.s); {
			_, n := utf8.DecodeRuneInString(v.s[i:])
			all = append(all, v.Slice(i, i+n))
			i += n
		}
		return all
	}
	fail("'%s' object is not iterable", typeName(v))
	return nil
}

func length(v any) int64 {
	switch v := v.(type) {
	case undefined:
		return 0
	case Text:
		return int64(utf8.RuneCountInString(v.s))
	case *list:
		if v.kind != iterator {
			return int64(len(v.items))
		}
	case *Dict:
		return int64(len(v.keys))
	}
	fail("object of type '%s' has no len()", typeName(v))
	return 0
}

// number is v as a float; ok is false for what is no number.
func number(v any) (f float64, ok bool) {
	switch v := v.(type) {
	case bool:
		if v {
			return 1, true
		}
		return 0, true
	case int64:
		return float64(v), true
	case float64:
		return v, true
	}
	return 0, false
}

// whole is v as an integer; ok is false for what is none.
func whole(v any) (n int64, ok bool) {
	switch v := v.(type) {
	case bool:
		if v {
			return 1, true
		}
		return 0, true
	case int64:
		return v, true
	}
	return 0, false
}

func equal(a, b any) bool {
	left := maxItems
	return equalWithin(&left, a, b)
}

// equalWithin is equal, as long as it takes no more than left comparisons: lists
// can hold others many times over.
func equalWithin(left *int, a, b any) bool {
	if *left--; *left < 0 {
		fail("a comparison of over %d items", maxItems)
	}
	if x, ok := number(a); ok {
		if n, whole1 := whole(a); whole1 {
			if m, whole2 := whole(b); whole2 {
				return n == m
			}
		}
		y, ok := number(b)
		return ok && x == y
	}
	switch a := a.(type) {
	case nil:
		return b == nil
	case undefined:
		_, ok := b.(undefined)
		return ok
	case Text:
		t, ok := b.(Text)
		return ok && a.s == t.s
	case *list:
		l, ok := b.(*list)
		if !ok || a.kind != l.kind || len(a.items) != len(l.items) || a.kind == iterator {
			return ok && a == l
		}
		for i, v := range a.items {
			if !equalWithin(left, v, l.items[i]) {
				return false
			}
		}
		return true
	case *Dict:
		d, ok := b.(*Dict)
		if !ok || len(a.keys) != len(d.keys) {
			return false
		}
		for i, k := range a.keys {
			if v, ok := d.get(k); !ok || !equalWithin(left, a.values[i], v) {
				return false
			}
		}
		return true
	}
	return a == b
}

// order is below, at or above 0 as a is below, at or above b.
func order(a, b any) int {
	define(a)
	define(b)
	if x, ok := number(a); ok {
		if y, ok := number(b); ok {
			switch {
			case x < y:
				return -1
			case x > y:
				return 1
			}
			return 0
		}
	}
	switch a := a.(type) {
	case Text:
		if t, ok := b.(Text); ok {
			return strings.Compare(a.s, t.s)
		}
	case *list:
		if l, ok := b.(*list); ok && a.kind == l.kind && a.kind <= tuple {
			for i, v := range a.items {
				if i == len(l.items) {
					return 1
				}
				if !equal(v, l.items[i]) {
					return order(v, l.items[i])
				}
			}
			return len(a.items) - len(l.items)
		}
	}
	fail("'%s' and '%s' cannot be ordered", typeName(a), typeName(b))
	return 0
}

// contains is Python's in.
func contains(in, v any) bool {
	switch in := in.(type) {
	case Text:
		t, ok := v.(Text)
		if !ok {
			define(v)
			fail("'in <string>' requires a string, not %s", typeName(v))
		}
		return strings.Contains(in.s, t.s)
	case *Dict:
		_, ok := in.get(v)
		return ok
	}
	for _, item := range iterate(in) {
		if equal(item, v) {
			return true
		}
	}
	return false
}

// str is Python's str(v).
func str(v any) Text {
	switch v := v.(type) {
	case Text:
		return v
	case undefined:
		return Text{}
	}
	return repr(v)
}

func repr(v any) Text {
	var b textBuilder
	writeRepr(&b, v, 0)
	return b.text()
}

func writeRepr(b *textBuilder, v any, depth int) {
	if depth > maxNesting {
		fail("a value nested deeper than %d levels", maxNesting)
	}
	all := func(open string, items []any, end string) {
		b.own(open)
		for i, item := range items {
			if i > 0 {
				b.own(", ")
			}
			writeRepr(b, item, depth+1)
		}
		b.own(end)
	}
	switch v := v.(type) {
	case nil:
		b.own("None")
	case bool:
		b.own(map[bool]string{true: "True", false: "False"}[v])
	case int64:
		b.own(strconv.FormatInt(v, 10))
	case *big.Int:
		b.own(v.String())
	case float64:
		b.own(floatText(v))
	case undefined:
		b.own("Undefined")
	case Text:
		if v.escaped { // Python names the type
			b.own("Markup(")
			defer b.own(")")
		}
		quote(b, v)
	case *list:
		switch {
		case v.kind == tuple && len(v.items) == 1:
			all("(", v.items, ",)")
		case v.kind == tuple:
			all("(", v.items, ")")
		case v.kind == listKindList:
			all("[", v.items, "]")
		case v.kind == rangeKind:
			first, last := int64(0), int64(0)
			if len(v.items) > 1 && v.items[1].(int64)-v.items[0].(int64) != 1 {
				fail("the text of a range by other steps than 1 is not supported")
			}
			if len(v.items) > 0 {
				first, last = v.items[0].(int64), v.items[len(v.items)-1].(int64)+1
			}
			b.own(fmt.Sprintf("range(%d, %d)", first, last))
		case v.kind == iterator:
			fail("the text of an iterator is no fixed one") // an address, in Python
		default:
			all(listNames[v.kind]+"([", v.items, "])")
		}
	case *Dict:
		b.own("{")
		for i, k := range v.keys {
			if i > 0 {
				b.own(", ")
			}
			writeRepr(b, k, depth+1)
			b.own(": ")
			writeRepr(b, v.values[i], depth+1)
		}
		b.own("}")
	default:
		fail("the text of a %s is no fixed one", typeName(v))
	}
}

// quote writes a string as Python's repr does.
func quote(b *textBuilder, t Text) {
	mark := "'"
	if strings.Contains(t.s, "'") && !strings.Contains(t.s, `"`) {
		mark = `"`
	}
	b.own(mark)
	b.add(t.each(func(r rune) string {
		switch {
		case r == '\\' || string(r) == mark:
			return `\` + string(r)
		case r == '\n':
			return `\n`
		case r == '\r':
			return `\r`
		case r == '\t':
			return `\t`
		case r == ' ' || unicode.IsGraphic(r) && !unicode.IsSpace(r):
			return string(r)
		case r < 0x100:
			return fmt.Sprintf(`\x%02x`, r)
		case r < 0x10000:
			return fmt.Sprintf(`\u%04x`, r)
		}
		return fmt.Sprintf(`\U%08x`, r)
	}))
	b.own(mark)
}

// floatText is Python's repr of a float.
func floatText(f float64) string {
	switch {
	case math.IsNaN(f):
		return "nan"
	case math.IsInf(f, 0):
		return strings.TrimPrefix(fmt.Sprintf("%+v", f)[:1], "+") + "inf"
	}
	if abs := math.Abs(f); abs != 0 && (abs < 1e-4 || abs >= 1e16) {
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// ---- operators ----

func arithmetic(op string, a, b any) any {
	define(a)
	define(b)
	if op == "+" {
		switch x := a.(type) {
		case Text:
			if y, ok := b.(Text); ok {
				return add(x, y)
			}
		case *list:
			if y, ok := b.(*list); ok && x.kind == y.kind && x.kind <= tuple {
				return &list{x.kind, slices.Concat(limited(len(x.items)+len(y.items), x.items), y.items)}
			}
		}
	}
	if op == "*" {
		if _, ok := whole(a); ok {
			a, b = b, a
		}
		if n, ok := whole(b); ok {
			switch x := a.(type) {
			case Text:
				return repeat(x, n)
			case *list:
				if x.kind <= tuple {
					n = max(n, 0)
					limited(len(x.items)*int(min(n, maxItems+1)), nil)
					return &list{x.kind, slices.Repeat(x.items, int(n))}
				}
			}
		}
	}
	if format, ok := a.(Text); ok && op == "%" {
		if t, ok := b.(*list); ok && t.kind == tuple {
			return percent(format, t.items)
		}
		return percent(format, []any{b})
	}
	x, ok1 := number(a)
	y, ok2 := number(b)
	if !ok1 || !ok2 {
		fail("unsupported operands for %s: '%s' and '%s'", op, typeName(a), typeName(b))
	}
	n, ok1 := whole(a)
	m, ok2 := whole(b)
	if ok1 && ok2 && op != "/" {
		return integers(op, n, m)
	}
	if (op == "/" || op == "//" || op == "%") && y == 0 {
		fail("division by zero")
	}
	switch op {
	case "+":
		return x + y
	case "-":
		return x - y
	case "*":
		return x * y
	case "/":
		return x / y
	case "//":
		return math.Floor(x / y)
	case "%":
		r := math.Mod(x, y)
		if r != 0 && (r < 0) != (y < 0) {
			r += y
		}
		return r
	}
	return math.Pow(x, y)
}

// add is x + y.
func add(x, y Text) Text {
	if !x.escaped && !y.escaped {
		return Join(x, y)
	}
	sum := Join(escape(x), escape(y))
	sum.escaped = true
	return sum
}

// integers calculates without losing digits; what needs over 64 bits is refused.
func integers(op string, n, m int64) any {
	x, y := big.NewInt(n), big.NewInt(m)
	switch op {
	case "+":
		x.Add(x, y)
	case "-":
		x.Sub(x, y)
	case "*":
		x.Mul(x, y)
	case "//", "%":
		if m == 0 {
			fail("integer division or modulo by zero")
		}
		q, r := new(big.Int).QuoRem(x, y, new(big.Int))
		if r.Sign() != 0 && (r.Sign() < 0) != (m < 0) {
			q.Sub(q, big.NewInt(1))
			r.Add(r, y)
		}
		if x = q; op == "%" {
			x = r
		}
	case "**":
		if m < 0 {
			return math.Pow(float64(n), float64(m))
		}
		if m > 64 && n != 0 && n != 1 && n != -1 {
			fail("a number of over 64 bits")
		}
		x.Exp(x, y, nil)
	}
	if !x.IsInt64() {
		fail("a number of over 64 bits")
	}
	return x.Int64()
}

func repeat(t Text, n int64) Text {
	if n <= 0 || t.s == "" {
		return Text{}
	}
	if n > maxOutput || int64(len(t.s))*n > maxOutput {
		fail("the text is longer than %d MiB", maxOutput>>20)
	}
	return Text{strings.Repeat(t.s, int(n)), strings.Repeat(t.from, int(n)), t.escaped}
}

// limited is items, if a list may have n of them.
func limited(n int, items []any) []any {
	if n > maxItems {
		fail("a list of over %d items", maxItems)
	}
	return items
}

// at is x[index].
func at(x, index any) any {
	n, isWhole := whole(index)
	switch x := x.(type) {
	case Text:
		if isWhole {
			if all := iterate(x); n >= -int64(len(all)) && n < int64(len(all)) {
				return all[(n+int64(len(all)))%int64(len(all))]
			}
			return undefined{"a character of a text"}
		}
	case *list:
		if isWhole && (x.kind <= tuple || x.kind == rangeKind) {
			if count := int64(len(x.items)); n >= -count && n < count {
				return x.items[(n+count)%count]
			}
			return undefined{fmt.Sprintf("item %d of a list of %d", n, len(x.items))}
		}
	case *Dict:
		if u, ok := index.(undefined); ok {
			return undefined{u.what}
		}
		if !hashable(index) {
			return undefined{"an item of a dict"}
		}
		if v, ok := x.get(index); ok {
			return v
		}
	case undefined:
		define(x)
	}
	if t, ok := index.(Text); ok {
		if v, ok := member(x, t.s); ok {
			return v
		}
		return undefined{fmt.Sprintf("%q of a %s", t.s, typeName(x))}
	}
	return undefined{"an item of a " + typeName(x)}
}

// attr is x.id.
func attr(x any, id string) any {
	define(x)
	if v, ok := member(x, id); ok {
		return v
	}
	if d, ok := x.(*Dict); ok {
		if v, ok := d.get(Own(id)); ok {
			return v
		}
	}
	return undefined{fmt.Sprintf("%q of a %s", id, typeName(x))}
}

// slice is x[start:stop:step].
func slice(x any, start, stop, step any) any {
	define(x)
	var items []any
	switch x := x.(type) {
	case Text:
		items = iterate(x)
	case *list:
		if x.kind == iterator || x.kind >= keysView && x.kind <= itemsView {
			fail("'%s' object is not subscriptable", typeName(x))
		}
		items = x.items
	default:
		fail("'%s' object is not subscriptable", typeName(x))
	}
	bound := func(v any, otherwise int64) int64 {
		if v == nil {
			return otherwise
		}
		n, ok := whole(v)
		if !ok {
			fail("slice indices must be integers, not %s", typeName(define(v)))
		}
		return n
	}
	by := bound(step, 1)
	if by == 0 {
		fail("slice step cannot be zero")
	}
	count := int64(len(items))
	clamp := func(n, low, high int64) int64 {
		if n < 0 {
			n += count
		}
		return min(max(n, low), high)
	}
	var part []any
	if by > 0 {
		for i, end := clamp(bound(start, 0), 0, count), clamp(bound(stop, count), 0, count); i < end; i += by {
			part = append(part, items[i])
			if by > count {
				break
			}
		}
	} else {
		from, end := count-1, int64(-1)
		if start != nil {
			from = clamp(bound(start, 0), -1, count-1)
		}
		if stop != nil {
			end = clamp(bound(stop, 0), -1, count-1)
		}
		for i := from; i > end; i += by {
			part = append(part, items[i])
			if by < -count {
				break
			}
		}
	}
	if l, ok := x.(*list); ok {
		return &list{l.kind, part}
	}
	var b textBuilder
	for _, c := range part {
		b.add(c.(Text))
	}
	return b.text()
}
