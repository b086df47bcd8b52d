package llama

/*
#include <stdlib.h>
#include "glue.h"
*/
import "C"

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"unsafe"
)

// maxSequences is llama.cpp's limit of sequences in a context.
const maxSequences = 256

// Batch collects the tokens, or embeddings, of one [Context.Decode]. Its memory
// is C's and made once, so filling it does not allocate. It is not for several
// goroutines at once.
type Batch struct {
	c     C.struct_llama_batch // every array is owned
	seqs  *C.llama_seq_id      // (cap, nSeq) owned; c.seq_id points into it
	cap   int                  // tokens
	nSeq  int                  // sequences a token may belong to
	nEmbd int                  // 0 = a batch of tokens

	shared bool // a token is in several sequences

	masks []ownMask                // of SetMask, by sequence; nil at first
	rows  *C.struct_layerskip_rows // what Decode makes of them, room for maxSequences+1 masks and cap tokens; owned, nil at first

	// Isolation says which operations compute each token apart. Clear leaves it as it is.
	Isolation Isolation
}

// Isolation selects the operations that are computed one token at a time on the CPU,
// so that a token's result does not depend on the other tokens in the batch. On a GPU
// it changes nothing. Some kernels add up in another order for several tokens than for
// one. In quantised models the last bits that differ become other steps, and a draft
// that is verified in a batch would be judged by other logits than its tokens get alone.
type Isolation int32

// Isolates tells whether this system can compute tokens of a batch apart. Where it cannot,
// [Batch].Isolation changes nothing: on macOS and Windows the CPU module calls its own functions
// directly, and nobody can come before them.
func Isolates() bool { return runtime.GOOS == "linux" }

// The steps of Isolation; each includes the ones before.
const (
	Shared          Isolation = 0 // nothing
	AttentionAlone  Isolation = 1 // flash attention, which costs next to nothing, and products with floats and k-quants
	ProductsUntiled Isolation = 2 // and those with any weights as they are in the file: these are still read once
	AllAlone        Isolation = 3 // and those with any weights that were rearranged for the CPU: expensive
)

// BatchOptions says what a batch can hold. nil and zero are the defaults.
type BatchOptions struct {
	Sequences int // sequences that one token may belong to; 0 = 1
	Embd      int // length of each embedding in a batch of embeddings; 0 = a batch of tokens
}

// NewBatch makes an empty batch for up to capacity tokens.
func NewBatch(capacity int, opts *BatchOptions) (*Batch, error) {
	o := BatchOptions{}
	if opts != nil {
		o = *opts
	}
	o.Sequences = max(o.Sequences, 1)
	// Far above any model's, and their product is safe from overflow.
	const mostTokens, mostEmbd = 1 << 24, 1 << 24
	switch {
	case capacity < 1 || capacity > mostTokens:
		return nil, fmt.Errorf("%w: capacity of %d tokens, want 1 to %d", ErrBatch, capacity, mostTokens)
	case o.Sequences > maxSequences:
		return nil, fmt.Errorf("%w: %d sequences for a token, want 1 to %d", ErrBatch, o.Sequences, maxSequences)
	case o.Embd < 0 || o.Embd > mostEmbd:
		return nil, fmt.Errorf("%w: embeddings of %d numbers, want up to %d", ErrBatch, o.Embd, mostEmbd)
	}
	b := &Batch{cap: capacity, nSeq: o.Sequences, nEmbd: o.Embd}
	n := C.size_t(capacity)
	if o.Embd > 0 {
		b.c.embd = (*C.float)(C.calloc(n*C.size_t(o.Embd), C.sizeof_float))
	} else {
		b.c.token = (*C.llama_token)(C.calloc(n, C.sizeof_llama_token))
	}
	b.c.pos = (*C.llama_pos)(C.calloc(n, C.sizeof_llama_pos))
	b.c.n_seq_id = (*C.int32_t)(C.calloc(n, C.sizeof_int32_t))
	b.c.logits = (*C.int8_t)(C.calloc(n, C.sizeof_int8_t))
	b.c.seq_id = (**C.llama_seq_id)(C.calloc(n, C.size_t(unsafe.Sizeof(uintptr(0)))))
	ids := (*C.llama_seq_id)(C.calloc(n*C.size_t(o.Sequences), C.sizeof_llama_seq_id))
	b.seqs = ids
	live.Add(1)
	if b.c.embd == nil && b.c.token == nil || b.c.pos == nil || b.c.n_seq_id == nil || b.c.logits == nil ||
		b.c.seq_id == nil || ids == nil {
		b.Close()
		return nil, fmt.Errorf("%w: no memory for %d tokens", ErrBatch, capacity)
	}
	rows, all := unsafe.Slice(b.c.seq_id, capacity), unsafe.Slice(ids, capacity*o.Sequences)
	for i := range rows {
		rows[i] = &all[i*o.Sequences]
	}
	return b, nil
}

// Len is the number of tokens in the batch.
func (b *Batch) Len() int { return int(b.c.n_tokens) }

// Cap is the number of tokens that fit.
func (b *Batch) Cap() int { return b.cap }

// Clear empties the batch and forgets the masks of its sequences.
func (b *Batch) Clear() {
	b.c.n_tokens, b.shared = 0, false
	for i := range b.masks {
		b.masks[i].set = false
	}
}

// Add appends a token at position pos of the sequences. With output, its
// logits (or embedding) can be read after the decode.
func (b *Batch) Add(t Token, pos int, output bool, sequences ...int) error {
	if b.c.token == nil {
		return b.unusable("tokens")
	}
	i, err := b.add(pos, output, sequences)
	if err != nil {
		return err
	}
	unsafe.Slice(b.c.token, b.cap)[i] = C.llama_token(t)
	return nil
}

// AddEmbedding appends an embedding (Embd,) in a token's place.
func (b *Batch) AddEmbedding(embd []float32, pos int, output bool, sequences ...int) error {
	if b.c.embd == nil {
		return b.unusable("embeddings")
	}
	if len(embd) != b.nEmbd {
		return fmt.Errorf("%w: an embedding of %d numbers, want %d", ErrBatch, len(embd), b.nEmbd)
	}
	i, err := b.add(pos, output, sequences)
	if err != nil {
		return err
	}
	row := unsafe.Slice((*float32)(unsafe.Pointer(b.c.embd)), b.cap*b.nEmbd)[i*b.nEmbd:]
	copy(row[:b.nEmbd], embd)
	return nil
}

func (b *Batch) unusable(what string) error {
	if b.cap == 0 {
		return fmt.Errorf("batch: %w", ErrClosed)
	}
	return fmt.Errorf("%w: it was not made for %s", ErrBatch, what)
}

// add fills everything but the token itself and returns its place.
func (b *Batch) add(pos int, output bool, sequences []int) (int, error) {
	i := b.Len()
	switch {
	case i == b.cap:
		return 0, fmt.Errorf("%w: it is full at %d tokens", ErrBatch, b.cap)
	case len(sequences) == 0 || len(sequences) > b.nSeq:
		return 0, fmt.Errorf("%w: a token in %d sequences, want 1 to %d", ErrBatch, len(sequences), b.nSeq)
	case pos < 0 || pos > math.MaxInt32:
		return 0, fmt.Errorf("%w: position %d, want 0 to %d", ErrBatch, pos, math.MaxInt32)
	}
	for s, id := range sequences {
		if slices.Contains(sequences[:s], id) {
			return 0, fmt.Errorf("%w: sequence %d is named twice", ErrBatch, id)
		}
		if id < 0 || id >= maxSequences {
			return 0, fmt.Errorf("%w: sequence %d, want 0 to %d", ErrBatch, id, maxSequences-1)
		}
	}
	unsafe.Slice(b.c.pos, b.cap)[i] = C.llama_pos(pos)
	unsafe.Slice(b.c.n_seq_id, b.cap)[i] = C.int32_t(len(sequences))
	for s, id := range sequences {
		unsafe.Slice(b.seqs, b.cap*b.nSeq)[i*b.nSeq+s] = C.llama_seq_id(id)
	}
	wanted := C.int8_t(0)
	if output {
		wanted = 1
	}
	unsafe.Slice(b.c.logits, b.cap)[i] = wanted
	b.c.n_tokens++
	b.shared = b.shared || len(sequences) > 1
	return i, nil
}

// Close frees the batch. Further calls do nothing.
func (b *Batch) Close() error {
	if b.cap == 0 {
		return nil
	}
	for _, p := range []unsafe.Pointer{
		unsafe.Pointer(b.c.token), unsafe.Pointer(b.c.embd), unsafe.Pointer(b.c.pos), unsafe.Pointer(b.c.n_seq_id),
		unsafe.Pointer(b.c.logits), unsafe.Pointer(b.c.seq_id), unsafe.Pointer(b.seqs), unsafe.Pointer(b.rows),
	} {
		C.free(p)
	}
	*b = Batch{}
	live.Add(-1)
	return nil
}
