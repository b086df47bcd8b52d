package template

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"sort"
	"strconv"
	"strings"
)

// FromJSON is a value written as JSON, its objects in the order of the text. With
// typed, every string in it counts as typed by somebody, keys included. The value
// can be given to [Dict.Set].
func FromJSON(data []byte, typed bool) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	v, err := readJSON(dec, typed, 0)
	if err != nil {
		return nil, fmt.Errorf("not valid JSON: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("not valid JSON: text behind the value")
	}
	return v, nil
}

func readJSON(dec *json.Decoder, typed bool, depth int) (any, error) {
	if depth > maxNesting {
		return nil, fmt.Errorf("nested deeper than %d levels", maxNesting)
	}
	t, err := dec.Token()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	text := func(s string) Text {
		if typed {
			return Typed(s)
		}
		return Own(s)
	}
	switch t := t.(type) {
	case json.Delim:
		if t == '[' {
			l := newList()
			for dec.More() {
				v, err := readJSON(dec, typed, depth+1)
				if err != nil {
					return nil, err
				}
				l.items = append(l.items, v)
			}
			_, err := dec.Token()
			return l, err
		}
		d := new(Dict)
		for dec.More() {
			key, err := dec.Token()
			if err != nil {
				return nil, err
			}
			v, err := readJSON(dec, typed, depth+1)
			if err != nil {
				return nil, err
			}
			d.set(text(key.(string)), v)
		}
		_, err := dec.Token()
		return d, err
	case string:
		return text(t), nil
	case json.Number:
		if n, err := strconv.ParseInt(string(t), 10, 64); err == nil {
			return n, nil
		}
		if n, ok := new(big.Int).SetString(string(t), 10); ok {
			return n, nil
		}
		f, err := t.Float64()
		return f, err
	}
	return t, nil // nil and bool
}

// jsonStyle is how Python's json.dumps writes.
type jsonStyle struct {
	ascii, sortKeys bool
	indent          *string // nil = all in one line
	item, key       string  // separators
}

func (s jsonStyle) write(b *textBuilder, v any, depth int) {
	if depth > maxNesting {
		fail("a value nested deeper than %d levels", maxNesting)
	}
	line := func(depth int) {
		if s.indent != nil {
			b.own("\n" + strings.Repeat(*s.indent, depth))
		}
	}
	switch v := v.(type) {
	case nil:
		b.own("null")
	case bool:
		b.own(strconv.FormatBool(v))
	case int64:
		b.own(strconv.FormatInt(v, 10))
	case *big.Int:
		b.own(v.String())
	case float64:
		b.own(jsonFloat(v))
	case Text:
		s.text(b, v)
	case *list:
		if v.kind > tuple {
			fail("Object of type %s is not JSON serializable", typeName(v))
		}
		if len(v.items) == 0 {
			b.own("[]")
			return
		}
		b.own("[")
		for i, item := range v.items {
			if i > 0 {
				b.own(s.item)
			}
			line(depth + 1)
			s.write(b, item, depth+1)
		}
		line(depth)
		b.own("]")
	case *Dict:
		s.object(b, v, line, depth)
	default:
		fail("Object of type %s is not JSON serializable", typeName(v))
	}
}

func (s jsonStyle) object(b *textBuilder, d *Dict, line func(int), depth int) {
	if len(d.keys) == 0 {
		b.own("{}")
		return
	}
	places := make([]int, len(d.keys))
	for i := range places {
		places[i] = i
	}
	if s.sortKeys {
		sort.SliceStable(places, func(i, j int) bool { return order(d.keys[places[i]], d.keys[places[j]]) < 0 })
	}
	b.own("{")
	for i, at := range places {
		if i > 0 {
			b.own(s.item)
		}
		line(depth + 1)
		switch k := d.keys[at].(type) {
		case Text:
			s.text(b, k)
		case nil, bool, int64, float64:
			b.own(`"`)
			s.write(b, k, depth)
			b.own(`"`)
		default:
			fail("keys must be str, int, float, bool or None, not %s", typeName(k))
		}
		b.own(s.key)
		s.write(b, d.values[at], depth+1)
	}
	line(depth)
	b.own("}")
}

func (s jsonStyle) text(b *textBuilder, t Text) {
	b.own(`"`)
	b.add(t.each(func(r rune) string {
		switch r {
		case '"', '\\':
			return `\` + string(r)
		case '\n':
			return `\n`
		case '\r':
			return `\r`
		case '\t':
			return `\t`
		case '\b':
			return `\b`
		case '\f':
			return `\f`
		}
		switch {
		case r < 0x20 || s.ascii && r >= 0x7f && r < 0x10000:
			if r == 0x7f {
				return string(r)
			}
			return fmt.Sprintf(`\u%04x`, r)
		case s.ascii && r >= 0x10000:
			r -= 0x10000
			return fmt.Sprintf(`\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		}
		return string(r)
	}))
	b.own(`"`)
}

func jsonFloat(f float64) string {
	switch {
	case math.IsNaN(f):
		return "NaN"
	case math.IsInf(f, 1):
		return "Infinity"
	case math.IsInf(f, -1):
		return "-Infinity"
	}
	return floatText(f)
}
