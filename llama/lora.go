package llama

/*
#include <stdlib.h>
#include "glue.h"
*/
import "C"

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"unsafe"

	"github.com/gallop-llm/gallop/gguf"
)

// LoRA is a low-rank adapter of a model's weights, loaded from a GGUF file.
type LoRA struct {
	part
	ptr *C.struct_llama_adapter_lora // owned; nil once closed and unused
}

// LoadLoRA loads an adapter that was made for this model. The error wraps one of
// package gguf's, or [ErrModel].
func (m *Model) LoadLoRA(path string) (*LoRA, error) {
	if err := m.retain(); err != nil {
		return nil, err
	}
	if err := m.checkLoRA(path); err != nil {
		m.release()
		return nil, err
	}
	cpath := C.CString(path)
	defer C.free(unsafe.Pointer(cpath))
	var why C.struct_gallop_text
	if err := m.checkDecoder(); err != nil {
		m.release()
		return nil, err
	}
	ptr := C.gallop_load_lora(m.ptr, cpath, &why)
	if ptr == nil {
		m.release()
		return nil, fmt.Errorf("adapter %s: %w", path, cause(ErrModel, &why))
	}
	l := &LoRA{ptr: ptr}
	l.part = newPart(m, func() {
		C.llama_adapter_lora_free(l.ptr)
		l.ptr = nil
	})
	return l, nil
}

// checkLoRA finds in an adapter's file what llama.cpp would end the process over,
// as it looks at no type before it takes a value, and what makes no adapter.
func (m *Model) checkLoRA(path string) error {
	f, err := gguf.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("adapter %s: %w: %s", path, ErrModel, fmt.Sprintf(format, args...))
	}
	for key, want := range map[string]string{"general.type": "adapter", "adapter.type": "lora", gguf.KeyArchitecture: m.Architecture} {
		value, ok := f.Metadata.Lookup(key)
		switch text, isText := value.(string); {
		case !ok || !isText:
			return refuse("it is no LoRA adapter: %q is to be %q", key, want)
		case text != want && key == gguf.KeyArchitecture:
			return refuse("it was made for %q, the model is %q", text, want)
		case text != want:
			return refuse("it is no LoRA adapter: %q is %.40q, not %q", key, text, want)
		}
	}
	if value, ok := f.Metadata.Lookup("adapter.lora.alpha"); ok {
		if alpha, isFloat := value.(float32); !isFloat || math.IsNaN(float64(alpha)) || math.IsInf(float64(alpha), 0) {
			return refuse("its alpha is %v, of the type %[1]T, and is to be a float32", value)
		}
	}
	if value, ok := f.Metadata.Lookup("adapter.alora.invocation_tokens"); ok && !isOne[[]uint32](value) {
		return refuse("its invocation tokens are of the type %T, and are to be uint32", value)
	}
	if len(f.Tensors) == 0 {
		return refuse("it has no tensors, so it would change nothing")
	}
	shapes := map[string][]uint64{}
	for _, t := range m.Tensors {
		shapes[t.Name] = t.Shape
	}
	for _, t := range f.Tensors {
		name, half := t.Name, ""
		if at := strings.LastIndex(name, ".lora_"); at >= 0 {
			name, half = name[:at], name[at+1:]
		}
		if half != "lora_a" && half != "lora_b" {
			// As norms that were trained too: llama.cpp leaves them out without a word.
			return refuse("it replaces %q, which llama.cpp cannot do: it adds to matrices alone", name)
		}
		shape, ok := shapes[name]
		if !ok {
			return refuse("it changes %q, which the model does not have", name)
		}
		if len(shape) < 2 {
			return refuse("it changes %q, a vector of %d numbers, and llama.cpp adds to matrices alone", name, sizeOf(shape, 0))
		}
		for i := 2; i < max(len(t.Shape), len(shape)); i++ { // llama.cpp looks at the first two
			if sizeOf(t.Shape, i) != sizeOf(shape, i) {
				return refuse("%q has the shape %v, which does not fit the weight's %v", t.Name, t.Shape, shape)
			}
		}
		if slices.Contains(uncomputed, t.Type) {
			return refuse("%q is %s, which nothing computes with", t.Name, t.Type)
		}
	}
	return nil
}

// sizeOf is a shape's size in a dimension, 1 where it has fewer.
func sizeOf(shape []uint64, i int) uint64 {
	if i < len(shape) {
		return shape[i]
	}
	return 1
}

// ScaledLoRA is an adapter and its weight in the sum, usually 1.
type ScaledLoRA struct {
	*LoRA
	Scale float32
}

// SetLoRA makes the context use these adapters and no others, from the next
// decode on.
func (c *Context) SetLoRA(adapters ...ScaledLoRA) error {
	if c.ptr == nil {
		return fmt.Errorf("set adapters: %w", ErrClosed)
	}
	// One entry more than needed, so that an empty list has an address too.
	ptrs := make([]*C.struct_llama_adapter_lora, len(adapters)+1)
	scales := make([]C.float, len(adapters)+1)
	for i, a := range adapters {
		if a.LoRA == nil || a.closed {
			return fmt.Errorf("set adapters: adapter %d: %w", i, ErrClosed)
		}
		if a.model != c.Model {
			return fmt.Errorf("%w: adapter %d was loaded for another model", ErrModel, i)
		}
		ptrs[i], scales[i] = a.ptr, C.float(a.Scale)
	}
	if C.llama_set_adapters_lora(c.ptr, &ptrs[0], C.size_t(len(adapters)), &scales[0]) != 0 {
		return fmt.Errorf("%w: llama.cpp refuses the adapters", ErrModel)
	}
	c.useLoRAs(adapters)
	return nil
}

// useLoRAs keeps these adapters alive and lets go of those used before.
func (c *Context) useLoRAs(adapters []ScaledLoRA) {
	before := c.loras
	c.loras = nil
	for _, a := range adapters {
		a.retain()
		c.loras = append(c.loras, a.LoRA)
	}
	for _, l := range before {
		l.release()
	}
}
