package llama

/*
#include "glue.h"
*/
import "C"

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"unsafe"
)

// llama.cpp trusts the bytes that it restores, so each state carries a header
// of ours that is checked first:
//
//	8 bytes   stateMagic
//	1 byte    stateSequence
//	7 bytes   0
//	8 bytes   fingerprint of the model
//	8 bytes   length of the rest
//	8 bytes   CRC-32C of the rest, widened
const (
	stateMagic  = "gallopS1"
	stateHeader = 40

	stateSequence = 's' // a sequence's part of the cache
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal fills in the header of state, whose rest is llama.cpp's.
func (c *Context) seal(state []byte) []byte {
	rest := state[stateHeader:]
	copy(state, stateMagic)
	state[8] = stateSequence
	binary.LittleEndian.PutUint64(state[16:], c.Model.fingerprint)
	binary.LittleEndian.PutUint64(state[24:], uint64(len(rest)))
	binary.LittleEndian.PutUint64(state[32:], uint64(crc32.Checksum(rest, castagnoli)))
	return state
}

// unseal checks the header and returns llama.cpp's part.
func (c *Context) unseal(state []byte) ([]byte, error) {
	if len(state) < stateHeader || string(state[:8]) != stateMagic {
		return nil, fmt.Errorf("%w: these %d bytes are no saved state", ErrState, len(state))
	}
	rest := state[stateHeader:]
	switch {
	case state[8] != stateSequence:
		return nil, fmt.Errorf("%w: it is not of a single sequence", ErrState)
	case binary.LittleEndian.Uint64(state[16:]) != c.Model.fingerprint:
		return nil, fmt.Errorf("%w: another model wrote it, not %s", ErrState, c.Model.Path)
	case binary.LittleEndian.Uint64(state[24:]) != uint64(len(rest)),
		binary.LittleEndian.Uint64(state[32:]) != uint64(crc32.Checksum(rest, castagnoli)):
		return nil, fmt.Errorf("%w: it is damaged", ErrState)
	}
	return rest, nil
}

// SequenceState copies one sequence's part of the KV cache into memory.
func (c *Context) SequenceState(seq int) ([]byte, error) {
	if c.ptr == nil {
		return nil, fmt.Errorf("state: %w", ErrClosed)
	}
	if err := c.checkSequences(seq); err != nil {
		return nil, err
	}
	buf := make([]byte, stateHeader+int(C.llama_state_seq_get_size(c.ptr, C.llama_seq_id(seq))))
	rest := buf[stateHeader:]
	n := C.llama_state_seq_get_data(c.ptr, (*C.uint8_t)(unsafe.SliceData(rest)), C.size_t(len(rest)), C.llama_seq_id(seq))
	if n == 0 {
		return nil, fmt.Errorf("%w: llama.cpp cannot save it", ErrState)
	}
	return c.seal(buf[:stateHeader+int(n)]), nil
}

// SetSequenceState restores what SequenceState gave into sequence seq, in place
// of what that held. The context may be larger than the one that wrote it, but
// must have the same cache types and as many KV buffers: as many sequences, or
// KVUnified too. The error wraps [ErrState] or [ErrOption].
func (c *Context) SetSequenceState(state []byte, seq int) error {
	if c.ptr == nil {
		return fmt.Errorf("set state: %w", ErrClosed)
	}
	if err := c.checkSequences(seq); err != nil {
		return err
	}
	rest, err := c.unseal(state)
	if err != nil {
		return err
	}
	n := C.llama_state_seq_set_data(c.ptr, (*C.uint8_t)(unsafe.SliceData(rest)), C.size_t(len(rest)), C.llama_seq_id(seq))
	if int(n) != len(rest) {
		return fmt.Errorf("%w: it does not fit into this context, which is smaller or has another NSeqMax or cache type", ErrState)
	}
	return nil
}
