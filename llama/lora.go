package llama

/*
#include <stdlib.h>
#include "glue.h"
*/
import "C"

import (
	"fmt"
	"unsafe"

	"github.com/gallop-llm/gallop/gguf"
)

// LoRA is a low-rank adapter of a model's weights, loaded from a GGUF file.
type LoRA struct {
	part
	ptr *C.struct_llama_adapter_lora // owned; nil once closed and unused
}

// LoadLoRA loads an adapter that was made for this model.
func (m *Model) LoadLoRA(path string) (*LoRA, error) {
	f, err := gguf.Open(path) // for a clear word on what is no GGUF file
	if err != nil {
		return nil, err
	}
	f.Close()
	if err := m.retain(); err != nil {
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
