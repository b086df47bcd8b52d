package schema

import (
	"bytes"
	"encoding/json"
	"io"
	"math/big"
	"slices"
	"strings"
)

// object is a JSON object with its keys in order. The other values are those of
// encoding/json, numbers as json.Number.
type object struct {
	keys   []string
	values map[string]any
}

// decode reads one JSON value.
func decode(source []byte) any {
	if len(source) > maxSource {
		fail("", "", "%d bytes, more than %d", len(source), maxSource)
	}
	d := json.NewDecoder(bytes.NewReader(source))
	d.UseNumber()
	v := decodeValue(d, "", 0)
	if _, err := d.Token(); err != io.EOF {
		fail("", "", "it goes on behind its JSON value")
	}
	return v
}

func decodeValue(d *json.Decoder, at string, depth int) any {
	if depth > maxNesting {
		fail(at, "", "nested over %d deep", maxNesting)
	}
	t, err := d.Token()
	if err != nil {
		fail(at, "", "not JSON: %v", err)
	}
	switch t {
	case json.Delim('['):
		list := []any{}
		for d.More() {
			list = append(list, decodeValue(d, at, depth+1))
		}
		closeToken(d, at)
		return list
	case json.Delim('{'):
		o := &object{values: map[string]any{}}
		for d.More() {
			key, err := d.Token()
			if err != nil {
				fail(at, "", "not JSON: %v", err)
			}
			k := key.(string)
			if _, twice := o.values[k]; twice {
				fail(at, k, "given twice")
			}
			o.keys = append(o.keys, k)
			o.values[k] = decodeValue(d, pointer(at, k), depth+1)
		}
		closeToken(d, at)
		return o
	}
	return t
}

func closeToken(d *json.Decoder, at string) {
	if _, err := d.Token(); err != nil {
		fail(at, "", "not JSON: %v", err)
	}
}

// pointer is the JSON pointer to a part of what at points to.
func pointer(at, part string) string {
	return at + "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(part)
}

// encode writes a value as compact JSON, numbers as they came.
func encode(v any) string { return Notation{}.encode(v) }

// name writes the name of a property.
func (n Notation) name(s string) string {
	if n.Quote != "" {
		return s
	}
	return quote(s)
}

// encode writes a value without white space, numbers as they came.
func (n Notation) encode(v any) string {
	yes, no, none := n.words()
	switch v := v.(type) {
	case nil:
		return none
	case bool:
		if v {
			return yes
		}
		return no
	case json.Number:
		return v.String()
	case string:
		if n.Quote != "" {
			return n.Quote + v + n.Quote
		}
		return quote(v)
	case []any:
		parts := make([]string, len(v))
		for i, x := range v {
			parts[i] = n.encode(x)
		}
		return "[" + strings.Join(parts, ",") + "]"
	}
	o := v.(*object)
	parts := make([]string, len(o.keys))
	for i, k := range o.keys {
		parts[i] = n.name(k) + ":" + n.encode(o.values[k])
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// shortEscapes are the characters that JSON writes as a backslash and a letter.
const (
	shortEscapes = "\"\\\b\f\n\r\t"
	shortLetters = "\"\\bfnrt"
)

// quote writes a JSON string with no more escapes than JSON asks for.
func quote(s string) string { return `"` + escape(s) + `"` }

func escape(s string) string {
	var b strings.Builder
	for _, r := range s {
		if i := strings.IndexRune(shortEscapes, r); i >= 0 {
			b.WriteByte('\\')
			b.WriteByte(shortLetters[i])
		} else if r < ' ' {
			const hex = "0123456789abcdef"
			b.WriteString(`\u00`)
			b.WriteByte(hex[r>>4])
			b.WriteByte(hex[r&15])
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// canonical is the same text for values that are equal: numbers by value, objects
// without order.
func canonical(v any) string {
	switch v := v.(type) {
	case json.Number:
		return rational(v, "", "").RatString()
	case []any:
		parts := make([]string, len(v))
		for i, x := range v {
			parts[i] = canonical(x)
		}
		return "[" + strings.Join(parts, ",") + "]"
	case *object:
		keys := slices.Sorted(slices.Values(v.keys))
		for i, k := range keys {
			keys[i] = quote(k) + ":" + canonical(v.values[k])
		}
		return "{" + strings.Join(keys, ",") + "}"
	}
	return encode(v)
}

// rational is a number's exact value.
func rational(n json.Number, at, keyword string) *big.Rat {
	digits, exponent, _ := strings.Cut(strings.ToLower(n.String()), "e")
	e := strings.TrimLeft(strings.TrimLeft(exponent, "+-"), "0")
	if len(digits) > maxDigits || len(e) > 3 || (e != "" && len(e) == 3 && e > "400") {
		fail(at, keyword, "a number of more than %d digits", maxDigits)
	}
	r, ok := new(big.Rat).SetString(n.String())
	if !ok {
		fail(at, keyword, "%s is no number", n)
	}
	return r
}
