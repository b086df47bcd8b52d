package llama

/*
#include <stdlib.h>
#include "glue.h"
*/
import "C"

import (
	"fmt"
	"unsafe"

	"github.com/gallop-llm/gallop/skip"
)

// ownMask is a sequence's mask in a batch.
type ownMask struct {
	set  bool // else it has none of its own
	mask skip.Mask
}

// SetMask puts the tokens of a sequence under a mask of their own, in place of the one
// that [Context.Decode] is given, until the batch is cleared. A token in several
// sequences needs the same mask for all of them.
//
// A decode under different masks computes every sublayer that some sequence keeps. Each
// sequence's results are those of the sequence alone under its mask, up to the rounding by
// which any batch differs from its parts: to the bit on CPU with [Batch].Isolation. A shortlist
// counts only where every sequence's mask has one; otherwise all get exact logits.
// Decode refuses with [ErrMask] what cannot be exact: a context without KVUnified, more than NUBatch
// tokens, a sequence whose tokens do not stand side by side, and models that llama.cpp
// computes sequence by sequence (recurrent ones, where sequences have different numbers of tokens).
func (b *Batch) SetMask(seq int, mask skip.Mask) error {
	switch {
	case b.cap == 0:
		return fmt.Errorf("batch: %w", ErrClosed)
	case seq < 0 || seq >= maxSequences:
		return fmt.Errorf("%w: sequence %d, want 0 to %d", ErrBatch, seq, maxSequences-1)
	}
	if b.masks == nil {
		b.masks = make([]ownMask, maxSequences)
	}
	b.masks[seq] = ownMask{set: true, mask: mask}
	return nil
}

// rowMasks fills b.rows with the masks of all tokens, mask for those of sequences without
// one of their own, and gives what all tokens skip. One mask for all leaves b.rows without
// any. Nothing is allocated once a batch has had masks.
func (b *Batch) rowMasks(mask skip.Mask) (common skip.Mask, err error) {
	if b.rows != nil {
		b.rows.n_masks = 0
	}
	if b.masks == nil {
		return mask, nil
	}
	if b.rows == nil {
		b.rows = C.gallop_new_rows(C.int32_t(b.cap), maxSequences+1)
		if b.rows == nil {
			return mask, fmt.Errorf("%w: no memory for the masks of %d tokens", ErrBatch, b.cap)
		}
	}
	masks := unsafe.Slice((*skip.Mask)(unsafe.Pointer(b.rows.masks)), maxSequences+1)
	maskOf := unsafe.Slice(b.rows.mask_of, b.cap)
	n, before := 0, -1 // masks so far; the sequence of the token before
	for i := range b.Len() {
		seqs := b.sequences(i)
		if s := int(seqs[0]); s != before {
			before = s
			own := b.maskOf(s, mask)
			k := 0
			for k < n && masks[k] != own {
				k++
			}
			if k == n {
				masks[k] = own
				n++
			}
			maskOf[i] = C.int32_t(k)
		} else {
			maskOf[i] = maskOf[i-1]
		}
		for _, s := range seqs[1:] {
			if b.maskOf(int(s), mask) != masks[maskOf[i]] {
				return mask, fmt.Errorf("%w: token %d is in sequences %d and %d, which have different masks", ErrBatch, i, seqs[0], s)
			}
		}
	}
	if n > 1 {
		b.rows.n_masks = C.int32_t(n)
	}
	common = masks[0]
	for _, m := range masks[1:n] {
		list := min(common.Shortlist(), m.Shortlist()) // 0 = some row has the whole output matrix
		common = common.Intersection(m).WithShortlist(list)
	}
	return common, nil
}

// maskOf is the mask of a sequence; otherwise is for those that have none of their own.
func (b *Batch) maskOf(seq int, otherwise skip.Mask) skip.Mask {
	if own := &b.masks[seq]; own.set {
		return own.mask
	}
	return otherwise
}

// sequences are those of token i; C's memory.
func (b *Batch) sequences(i int) []C.llama_seq_id {
	n := unsafe.Slice(b.c.n_seq_id, b.cap)[i]
	return unsafe.Slice(unsafe.Slice(b.c.seq_id, b.cap)[i], n)
}

// several says whether rowMasks found more than one mask.
func (b *Batch) several() bool { return b.rows != nil && b.rows.n_masks > 0 }

// rowMask is the mask of token i where there are several.
func (b *Batch) rowMask(i int) *skip.Mask {
	masks := unsafe.Slice((*skip.Mask)(unsafe.Pointer(b.rows.masks)), maxSequences+1)
	return &masks[unsafe.Slice(b.rows.mask_of, b.cap)[i]]
}

// checkRows refuses masks that do not suit the context, and batches whose rows llama.cpp
// might put in another order, so that it would not be known which mask is whose.
func (c *Context) checkRows(b *Batch) error {
	switch {
	case !c.unified:
		return fmt.Errorf("%w: sequences under different masks in one batch need a context with KVUnified", ErrMask)
	case b.Len() > c.nUBatch:
		return fmt.Errorf("%w: %d tokens under different masks, the context computes %d at once: raise NUBatch or decode them in parts",
			ErrMask, b.Len(), c.nUBatch)
	}
	for _, m := range unsafe.Slice((*skip.Mask)(unsafe.Pointer(b.rows.masks)), b.rows.n_masks) {
		if err := c.checkShortlist(b, m.Shortlist()); err != nil {
			return err
		}
	}
	var ended [maxSequences]bool
	for i := 1; i < b.Len(); i++ {
		before, now := b.sequences(i - 1)[0], b.sequences(i)[0]
		if now == before {
			continue
		}
		ended[before] = true
		if ended[now] {
			return fmt.Errorf("%w: under different masks, the tokens of a sequence must stand side by side, and those of sequence %d do not", ErrMask, now)
		}
	}
	return nil
}
