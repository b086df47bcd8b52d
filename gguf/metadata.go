package gguf

import (
	"fmt"
	"math"
	"reflect"
	"slices"
)

// KV is one metadata entry. Value holds one of the Go types listed in the
// package documentation.
type KV struct {
	Key   string
	Value any
}

// Metadata is the list of a file's entries in file order, keys unique.
type Metadata []KV

// Lookup gives the value as it stands in the file.
func (m Metadata) Lookup(key string) (value any, ok bool) {
	for i := range m {
		if m[i].Key == key {
			return m[i].Value, true
		}
	}
	return nil, false
}

// Set replaces the value of key in its place, or appends a new entry.
func (m *Metadata) Set(key string, value any) {
	for i := range *m {
		if (*m)[i].Key == key {
			(*m)[i].Value = value
			return
		}
	}
	*m = append(*m, KV{key, value})
}

// Delete removes the entry of key, if there is one.
func (m *Metadata) Delete(key string) {
	*m = slices.DeleteFunc(*m, func(kv KV) bool { return kv.Key == key })
}

// String gives a text value. Like all getters it fails with [ErrNoKey] when
// the key is missing and with [ErrKeyType] when the value is something else.
func (m Metadata) String(key string) (string, error) {
	return get(m, key, "a text", toType[string])
}

// Bool gives a truth value.
func (m Metadata) Bool(key string) (bool, error) {
	return get(m, key, "true or false", toType[bool])
}

// Uint gives a whole number ≥ 0 of any width and signedness.
func (m Metadata) Uint(key string) (uint64, error) {
	return get(m, key, "a whole number from 0 up", toUint)
}

// Int gives a whole number of any width and signedness.
func (m Metadata) Int(key string) (int64, error) {
	return get(m, key, "a whole number", toInt)
}

// Float gives a number; whole numbers are converted.
func (m Metadata) Float(key string) (float64, error) {
	return get(m, key, "a number", toFloat)
}

// Strings gives an array of texts, which the caller must not change.
func (m Metadata) Strings(key string) ([]string, error) {
	return get(m, key, "an array of texts", toType[[]string])
}

// Uints gives a new slice with an array's whole numbers ≥ 0. Truth values
// count as 0 and 1.
func (m Metadata) Uints(key string) ([]uint64, error) {
	return get(m, key, "an array of whole numbers from 0 up", toSlice(toUint))
}

// Floats gives a new slice with an array's numbers.
func (m Metadata) Floats(key string) ([]float64, error) {
	return get(m, key, "an array of numbers", toSlice(toFloat))
}

// UintPerLayer gives one whole number ≥ 0 for each of n layers, as a new slice
// of shape (n,): an array of that length as it is, a single number repeated.
// llama.cpp reads head counts and feed-forward lengths in the same way.
func (m Metadata) UintPerLayer(key string, n int) ([]uint64, error) {
	if one, err := m.Uint(key); err == nil {
		return slices.Repeat([]uint64{one}, n), nil
	}
	each, err := m.Uints(key)
	if err == nil && len(each) != n {
		err = fmt.Errorf("%w: %.64q has %d values, the model has %d layers", ErrKeyType, key, len(each), n)
	}
	if err != nil {
		return nil, err
	}
	return each, nil
}

// ArrayLen gives the number of elements of a metadata value; ok is false when
// the value is no array.
func ArrayLen(value any) (n int, ok bool) {
	v := reflect.ValueOf(value)
	if v.Kind() != reflect.Slice {
		return 0, false
	}
	return v.Len(), true
}

func get[T any](m Metadata, key, want string, convert func(any) (T, bool)) (T, error) {
	var zero T
	value, ok := m.Lookup(key)
	if !ok {
		return zero, fmt.Errorf("%w: %.64q", ErrNoKey, key)
	}
	result, ok := convert(value)
	if !ok {
		return zero, fmt.Errorf("%w: %.64q is %s, not %s", ErrKeyType, key, describe(value), want)
	}
	return result, nil
}

// describe names a value in an error without printing an array of 100,000.
func describe(value any) string {
	if n, ok := ArrayLen(value); ok {
		return fmt.Sprintf("an array of %d values (%T)", n, value)
	}
	const longest = 40 // characters; enough to recognise a value
	text := []rune(fmt.Sprintf("%v", value))
	if len(text) > longest {
		text = append(text[:longest], '…')
	}
	return fmt.Sprintf("%T %q", value, string(text))
}

func toType[T any](value any) (T, bool) {
	v, ok := value.(T)
	return v, ok
}

func toInt(value any) (int64, bool) {
	switch v := reflect.ValueOf(value); {
	case v.CanInt():
		return v.Int(), true
	case v.CanUint() && v.Uint() <= math.MaxInt64:
		return int64(v.Uint()), true
	}
	return 0, false
}

func toUint(value any) (uint64, bool) {
	switch v := reflect.ValueOf(value); {
	case v.CanUint():
		return v.Uint(), true
	case v.CanInt() && v.Int() >= 0:
		return uint64(v.Int()), true
	}
	return 0, false
}

func toFloat(value any) (float64, bool) {
	switch v := reflect.ValueOf(value); {
	case v.CanFloat():
		return v.Float(), true
	case v.CanUint():
		return float64(v.Uint()), true
	case v.CanInt():
		return float64(v.Int()), true
	}
	return 0, false
}

// toSlice converts arrays element by element; truth values become 0 and 1.
func toSlice[T any](one func(any) (T, bool)) func(any) ([]T, bool) {
	return func(value any) ([]T, bool) {
		n, ok := ArrayLen(value)
		if !ok {
			return nil, false
		}
		v := reflect.ValueOf(value)
		out := make([]T, n) // (n,)
		for i := range out {
			e := v.Index(i).Interface()
			if b, isBool := e.(bool); isBool {
				e = uint8(0)
				if b {
					e = uint8(1)
				}
			}
			if out[i], ok = one(e); !ok {
				return nil, false
			}
		}
		return out, true
	}
}
