package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// MaxDepth bounds how deep objects and lists of a body may be nested.
const MaxDepth = 100

// Check refuses a body that is not one JSON value of valid UTF-8, or that is nested
// deeper than [MaxDepth].
func Check(body []byte) error {
	if !utf8.Valid(body) {
		return BadRequest("", "the body is not valid UTF-8")
	}
	depth, quoted := 0, false
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > MaxDepth {
				return BadRequest("", "the body is nested deeper than %d levels", MaxDepth)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	if !json.Valid(body) {
		return BadRequest("", "the body is not valid JSON: %v", json.Unmarshal(body, new(any)))
	}
	return nil
}

// Field says which values a field may have that the server has no use for.
type Field struct {
	any    bool
	values []string
}

// Label is a field that says something about a request and nothing about its answer.
func Label() Field { return Field{any: true} }

// Only is a field that is accepted with these values alone, JSON texts that ask for what
// the server does anyway; without any, with null alone.
func Only(values ...string) Field { return Field{values: values} }

// Others as a name in [Fields] stands for all that are not known.
const Others = "*"

// Fields are the fields, by name, that are not read but may be there.
type Fields map[string]Field

func (f Field) accepts(raw json.RawMessage) bool {
	return f.any || slices.ContainsFunc(f.values, func(v string) bool { return equalJSON(raw, v) })
}

func equalJSON(raw json.RawMessage, text string) bool {
	x, errX := strconv.ParseFloat(string(raw), 64)
	y, errY := strconv.ParseFloat(text, 64)
	if errX == nil && errY == nil {
		return x == y
	}
	var short bytes.Buffer
	return json.Compact(&short, raw) == nil && short.String() == text
}

// Decode reads a JSON object into the struct that v points to. Names are those of the
// struct's json tags, to the letter. null counts as a field that is not there. path is
// the object's own place in the body, "" for the whole body.
//
// A field that neither v nor also knows is refused by name, and so is one of also with a
// value that it does not accept. Errors are [*Error].
func Decode(data []byte, path string, v any, also Fields) error {
	var found map[string]json.RawMessage
	if err := json.Unmarshal(data, &found); err != nil || found == nil {
		return BadRequest(path, "%s: want a JSON object", orBody(path))
	}
	target := reflect.ValueOf(v).Elem()
	known := fieldsOf(target.Type())
	for _, name := range slices.Sorted(maps.Keys(found)) {
		raw, at := found[name], Path(path, name)
		if string(raw) == "null" {
			continue
		}
		if index, ok := known[name]; ok {
			if err := json.Unmarshal(raw, target.FieldByIndex(index).Addr().Interface()); err != nil {
				return wrongType(at, err)
			}
			continue
		}
		field, ok := also[name]
		if !ok {
			field, ok = also[Others]
		}
		switch {
		case !ok:
			return &Error{Status: 400, Code: "unknown_parameter", Param: at,
				Message: fmt.Sprintf("%s: this server does not know this field", at)}
		case !field.accepts(raw):
			only := "leave it out"
			if len(field.values) > 0 {
				only = "only " + strings.Join(field.values, ", ")
			}
			return Unsupported(at, "%s", only)
		}
	}
	return nil
}

// typeFields are the fields of structs by their JSON names; finding them takes longer than reading a body.
var typeFields sync.Map // reflect.Type: map[string][]int

func fieldsOf(t reflect.Type) map[string][]int {
	if known, ok := typeFields.Load(t); ok {
		return known.(map[string][]int)
	}
	known := map[string][]int{}
	for _, f := range reflect.VisibleFields(t) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
			known[name] = f.Index
		}
	}
	typeFields.Store(t, known)
	return known
}

// Path is a field's place in the body: "messages[2].content".
func Path(object, name string) string {
	if object == "" {
		return name
	}
	return object + "." + name
}

func orBody(path string) string {
	if path == "" {
		return "the body"
	}
	return path
}

// wrongType is the error of a field that is not of its type.
func wrongType(path string, err error) error {
	var own *Error
	if errors.As(err, &own) {
		return own
	}
	var wrong *json.UnmarshalTypeError
	if !errors.As(err, &wrong) {
		return BadRequest(path, "%s: %v", path, err)
	}
	if wrong.Field != "" {
		path = Path(path, wrong.Field)
	}
	return BadRequest(path, "%s: want %s, not %s", path, kind(wrong.Type), wrong.Value)
}

func kind(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return kind(t.Elem())
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a text"
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Uint32:
		return "a whole number in range"
	case reflect.Float32, reflect.Float64:
		return "a number in range"
	case reflect.Slice, reflect.Array:
		return "a list"
	}
	return "an object"
}

// InRange refuses a number outside low to high.
func InRange[T int | int64 | float64](path string, v, low, high T) error {
	if v >= low && v <= high {
		return nil
	}
	return BadRequest(path, "%s is %v, want %v to %v", path, v, low, high)
}

// IsText tells a JSON string from other values.
func IsText(raw json.RawMessage) bool { return len(raw) > 0 && raw[0] == '"' }

// IsList tells a JSON array from other values.
func IsList(raw json.RawMessage) bool { return len(raw) > 0 && raw[0] == '[' }

// Texts reads a text or a list of texts.
func Texts(raw json.RawMessage, path string) ([]string, error) {
	var list []string
	if IsText(raw) {
		raw = slices.Concat([]byte("["), raw, []byte("]"))
	}
	if len(raw) > 0 && json.Unmarshal(raw, &list) != nil {
		return nil, BadRequest(path, "%s: want a text or a list of texts", path)
	}
	return list, nil
}

// Number is x for JSON, which has no way to write NaN and infinities: nil for these.
func Number(x float64) *float64 {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return nil
	}
	return &x
}
