package llama

/*
#include <stdlib.h>
#include "glue.h"
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// Saved is a copy of a sequence's part of a KV cache. It serves the context that it comes
// from. Close it after use.
type Saved struct {
	ctx  *Context
	ptr  *C.uint8_t // owned; nil once closed
	size C.size_t

	cells *C.struct_layerskip_saved // owned; nil = not known
}

// Save copies a sequence's part of the KV cache. A cache with sliding windows gives the last
// window alone. The error wraps [ErrState], [ErrOption] or [ErrClosed].
func (c *Context) Save(seq int) (*Saved, error) {
	if c.ptr == nil {
		return nil, fmt.Errorf("save: %w", ErrClosed)
	}
	if err := c.checkSequences(seq); err != nil {
		return nil, err
	}
	s := &Saved{ctx: c, size: C.llama_state_seq_get_size(c.ptr, C.llama_seq_id(seq))}
	if s.ptr = (*C.uint8_t)(C.malloc(max(s.size, 1))); s.ptr == nil {
		return nil, fmt.Errorf("%w: there is no memory for %d bytes", ErrState, s.size)
	}
	if n := C.llama_state_seq_get_data(c.ptr, s.ptr, s.size, C.llama_seq_id(seq)); n == 0 || n > s.size {
		s.Close()
		return nil, fmt.Errorf("%w: llama.cpp cannot save sequence %d", ErrState, seq)
	}
	s.cells = C.layerskip_save_cells(&c.own.skip, C.int32_t(seq))
	return s, nil
}

// Restore puts what was saved into a sequence, in place of what that held; it may be done
// again. [Context.Positions] tells what is there then: where its first position is not 0, the
// sequence can only go on at its end. After an error, which wraps [ErrState], [ErrOption] or
// [ErrClosed], the sequence may be empty: there was no room.
func (c *Context) Restore(s *Saved, seq int) error {
	if c.ptr == nil || s.ptr == nil {
		return fmt.Errorf("restore: %w", ErrClosed)
	}
	if err := c.checkSequences(seq); err != nil {
		return err
	}
	if s.ctx != c {
		return fmt.Errorf("%w: another context saved it", ErrState)
	}
	C.layerskip_restore_cells(&c.own.skip, C.int32_t(seq), s.cells)
	if C.llama_state_seq_set_data(c.ptr, s.ptr, s.size, C.llama_seq_id(seq)) == 0 {
		return fmt.Errorf("%w: the cache has no room for what was saved", ErrState)
	}
	return nil
}

// Size is the memory that it takes, in bytes.
func (s *Saved) Size() int { return int(s.size) }

// Close frees it. Further calls do nothing.
func (s *Saved) Close() error {
	C.free(unsafe.Pointer(s.ptr))
	C.free(unsafe.Pointer(s.cells))
	s.ptr, s.cells = nil, nil
	return nil
}
