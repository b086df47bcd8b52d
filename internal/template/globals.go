package template

import (
	"fmt"
	"strings"
	"time"
)

// globals are the functions that a template knows besides its variables.
func globals() map[string]any {
	all := map[string]any{}
	for id, f := range map[string]func(e *evaluator, args []any, kw []keyword) any{
		"range":     rangeFunc,
		"dict":      func(_ *evaluator, args []any, kw []keyword) any { return newDict(args, kw) },
		"namespace": namespaceFunc,
		"joiner":    joinerFunc,
		"raise_exception": func(_ *evaluator, args []any, kw []keyword) any {
			panic(&Refusal{str(bind("raise_exception", args, kw, 1, "message")[0]).s})
		},
		"strftime_now": func(e *evaluator, args []any, kw []keyword) any {
			return Own(strftime(e.now, needText("strftime_now", bind("strftime_now", args, kw, 1, "format")[0]).s))
		},
	} {
		all[id] = &function{id, f}
	}
	return all
}

func rangeFunc(_ *evaluator, args []any, kw []keyword) any {
	if len(kw) > 0 || len(args) < 1 || len(args) > 3 {
		fail("range takes 1 to 3 numbers")
	}
	var bounds [3]int64
	for i, v := range args {
		n, ok := whole(define(v))
		if !ok {
			fail("range needs integers, not '%s'", typeName(v))
		}
		bounds[i] = n
	}
	start, stop, step := bounds[0], bounds[1], bounds[2]
	switch len(args) {
	case 1:
		start, stop, step = 0, bounds[0], 1
	case 2:
		step = 1
	}
	if step == 0 {
		fail("range by steps of 0")
	}
	l := &list{kind: rangeKind}
	for i := start; step > 0 && i < stop || step < 0 && i > stop; i += step {
		if len(l.items) == maxRange {
			fail("a range of over %d numbers", maxRange)
		}
		l.items = append(l.items, i)
		if next := i + step; (next > i) != (step > 0) {
			break // beyond 64 bits
		}
	}
	return l
}

func newDict(args []any, kw []keyword) *Dict {
	d := new(Dict)
	if len(args) > 1 {
		fail("dict takes at most one argument")
	}
	for _, from := range args {
		if other, ok := from.(*Dict); ok {
			d.Update(other)
			continue
		}
		for _, pair := range iterate(define(from)) {
			two := iterate(define(pair))
			if len(two) != 2 {
				fail("dict needs pairs")
			}
			d.set(two[0], two[1])
		}
	}
	for _, k := range kw {
		d.set(Own(k.name), k.value)
	}
	return d
}

func namespaceFunc(_ *evaluator, args []any, kw []keyword) any {
	ns := &namespace{*newDict(args, kw)}
	for _, k := range ns.keys {
		checkAttribute(str(k).s)
	}
	return ns
}

// joinerFunc gives a function that gives nothing the first time, and the
// separator from then on.
func joinerFunc(_ *evaluator, args []any, kw []keyword) any {
	sep := given(bind("joiner", args, kw, 0, "sep")[0], Own(", "))
	used := false
	return &function{"joiner", func(*evaluator, []any, []keyword) any {
		if used {
			return sep
		}
		used = true
		return Text{}
	}}
}

// strftime writes a time as C's function of that name does in the C locale; what
// it does not know stays as it is.
func strftime(t time.Time, format string) string {
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		plain := format[i] == '-' && i+1 < len(format) // without leading zeros
		if plain {
			i++
		}
		part := strftimeOne(t, format[i])
		switch {
		case part == "":
			part = format[i-1 : i+1]
		case plain:
			if part = strings.TrimLeft(part, "0 "); part == "" {
				part = "0"
			}
		}
		b.WriteString(part)
	}
	return b.String()
}

func strftimeOne(t time.Time, directive byte) string {
	if layout, ok := map[byte]string{
		'a': "Mon", 'A': "Monday", 'b': "Jan", 'h': "Jan", 'B': "January", 'd': "02", 'H': "15", 'I': "03", 'm': "01", 'M': "04",
		'p': "PM", 'S': "05", 'y': "06", 'Y': "2006", 'Z': "MST", 'z': "-0700", 'e': "_2", 'F': "2006-01-02", 'T': "15:04:05",
		'D': "01/02/06", 'R': "15:04", 'c': "Mon Jan _2 15:04:05 2006", 'x': "01/02/06", 'X': "15:04:05", 'j': "002",
	}[directive]; ok {
		return t.Format(layout)
	}
	switch directive {
	case 'f':
		return fmt.Sprintf("%06d", t.Nanosecond()/1000)
	case 'u':
		return fmt.Sprint((int(t.Weekday())+6)%7 + 1)
	case 'w':
		return fmt.Sprint(int(t.Weekday()))
	case 's':
		return fmt.Sprint(t.Unix())
	case 'n':
		return "\n"
	case 't':
		return "\t"
	case '%':
		return "%"
	}
	return ""
}
