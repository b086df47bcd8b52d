package llama

/*
#include <stdlib.h>
#include "shortlist.h"
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"unsafe"

	"github.com/gallop-llm/gallop/internal/gguf"
)

// ShortlistWord is the word of a mask that holds the size of the vocabulary
// shortlist: how many tokens get exact logits. 0 = all of them.
const ShortlistWord = C.LAYERSKIP_SHORTLIST

// ErrShortlist is returned when a model cannot decode with a shortlist; the error says why.
var ErrShortlist = errors.New("no vocabulary shortlist")

// OutputMatrix is the matrix (NVocab, NEmbd) that turns a model's final hidden
// states into logits. It is read where the model has it, so the model must stay open.
type OutputMatrix struct {
	NVocab, NEmbd int
	Size          uint64 // bytes

	model  *Model
	matrix C.struct_gallop_matrix
}

// OutputMatrix finds the model's output matrix. The error wraps [ErrShortlist] where its
// rows cannot be read, rearranged for the CPU without a mapped file, and where it is on a
// GPU: what a shortlist gains there was never measured.
func (m *Model) OutputMatrix() (*OutputMatrix, error) {
	if m.vocabOnly {
		return nil, fmt.Errorf("%w: %s was loaded without its weights", ErrShortlist, m.Path)
	}
	if gpu := outputDevice(m.gpuLayers, Devices()); gpu != "" {
		return nil, fmt.Errorf("%w: the output matrix is on a GPU, %s", ErrShortlist, gpu)
	}
	for _, name := range []string{gguf.OutputName, gguf.EmbeddingName} { // tied models have the second alone
		i := slices.IndexFunc(m.Tensors, func(t Tensor) bool { return t.Name == name })
		if i < 0 {
			continue
		}
		p := m.places[i]
		rows := p.file
		if !p.repacked() {
			rows = p.used
		}
		o := &OutputMatrix{model: m, Size: m.Tensors[i].Size}
		cname := C.CString(name)
		defer C.free(unsafe.Pointer(cname))
		var why C.struct_gallop_text
		if !C.gallop_find_matrix(m.ptr, cname, C.uintptr_t(rows), &o.matrix, &why) {
			return nil, fmt.Errorf("%w: %s", ErrShortlist, C.GoString(&why.text[0]))
		}
		o.NVocab, o.NEmbd = int(o.matrix.n_vocab), int(o.matrix.n_embd)
		return o, nil
	}
	return nil, fmt.Errorf("%w: %s has no output matrix", ErrShortlist, m.Path)
}

// outputDevice is the GPU on which llama.cpp puts the output matrix: before all layers.
// A tied model keeps the embedding in main memory beside it. "" = none.
func outputDevice(gpuLayers int, devices []Device) string {
	if gpuLayers < 0 {
		return ""
	}
	for _, d := range devices {
		if d.Kind == GPU || d.Kind == IGPU {
			return d.Name
		}
	}
	return ""
}

// Rows writes these tokens' rows of the matrix into out (len(ids), NEmbd).
func (o *OutputMatrix) Rows(ids []int32, out []float32) error {
	if len(out) != len(ids)*o.NEmbd {
		return fmt.Errorf("%w: %d numbers for %d rows of %d", ErrOption, len(out), len(ids), o.NEmbd)
	}
	for _, id := range ids {
		if id < 0 || int(id) >= o.NVocab {
			return fmt.Errorf("%w: token %d, want 0 to %d", ErrOption, id, o.NVocab-1)
		}
	}
	if len(ids) > 0 {
		C.gallop_matrix_rows(&o.matrix, (*C.int32_t)(&ids[0]), C.int32_t(len(ids)), (*C.float)(&out[0]))
	}
	return nil
}

// previewBlock is how many numbers of a preview share a scale, and previewBytes what they take (Q4_0).
const (
	previewBlock = 32
	previewBytes = 18
)

// Preview multiplies the matrix with the vectors x (rank, NEmbd), rank a multiple
// of 32, and gives the products (NVocab, rank) in 4 bits each, as [OutputMatrix.NewShortlist]
// takes them. threads as in [ContextOptions]. The end of ctx stops it within a fraction
// of a second.
func (o *OutputMatrix) Preview(ctx context.Context, x []float32, threads int) ([]byte, error) {
	rank := len(x) / o.NEmbd
	if rank < previewBlock || rank%previewBlock != 0 || len(x) != rank*o.NEmbd {
		return nil, fmt.Errorf("%w: %d numbers, want some multiple of 32 vectors of %d", ErrOption, len(x), o.NEmbd)
	}
	if err := o.model.retain(); err != nil {
		return nil, err
	}
	defer o.model.release()
	_, n := o.model.threads(threads, 0)
	out := make([]byte, o.NVocab*rank/previewBlock*previewBytes)
	var why C.struct_gallop_text
	for block := range rank / previewBlock {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		columns := x[block*previewBlock*o.NEmbd:]
		at := unsafe.Pointer(&out[block*previewBytes])
		if !C.gallop_project(&o.matrix, (*C.float)(&columns[0]), n, (*C.char)(at), C.size_t(rank/previewBlock*previewBytes), &why) {
			return nil, fmt.Errorf("%w: %s", ErrShortlist, C.GoString(&why.text[0]))
		}
	}
	return out, nil
}

// Shortlist computes logits in two steps: a preview of the output matrix, of few
// dimensions, ranks all tokens, and the matrix itself gives the first of them their
// exact logits. The others keep the preview's. It implements SVD-softmax (Shim et
// al., 2017) with a basis fitted to the model's own hidden states, and a test that
// sends a token in doubt to the whole matrix.
type Shortlist struct {
	part
	Rank   int     // dimensions of the preview
	Size   uint64  // bytes of the preview and what turns hidden states into its dimensions
	Margin float32 // how far above the list's end in the preview a logit outside the list may be, in the preview's errors on the list

	c *C.struct_gallop_shortlist // owned
}

// NewShortlist makes the shortlist of a preview (NVocab, rank) in Q4_0 and the basis
// (rank, NEmbd) that hidden states are multiplied with for it. Both are copied.
func (o *OutputMatrix) NewShortlist(basis []float32, preview []byte, margin float32) (*Shortlist, error) {
	rank := len(basis) / o.NEmbd
	if rank < previewBlock || rank%previewBlock != 0 || len(basis) != rank*o.NEmbd || len(preview) != o.NVocab*rank/previewBlock*previewBytes {
		return nil, fmt.Errorf("%w: a basis of %d numbers and a preview of %d bytes do not fit %d tokens of %d dimensions",
			ErrShortlist, len(basis), len(preview), o.NVocab, o.NEmbd)
	}
	m := o.model
	if err := m.retain(); err != nil {
		return nil, err
	}
	const floatBytes = 4
	s := &Shortlist{Rank: rank, Size: uint64(len(preview) + floatBytes*len(basis)), Margin: margin, c: (*C.struct_gallop_shortlist)(C.calloc(1, C.sizeof_struct_gallop_shortlist))}
	s.c.matrix = o.matrix
	var why C.struct_gallop_text
	if !C.gallop_new_shortlist(s.c, (*C.float)(&basis[0]), (*C.char)(unsafe.Pointer(&preview[0])), C.int32_t(rank), C.bool(m.repacks), &why) {
		C.free(unsafe.Pointer(s.c))
		m.release()
		return nil, fmt.Errorf("%w: %s", ErrShortlist, C.GoString(&why.text[0]))
	}
	s.part = newPart(m, func() {
		C.gallop_free_shortlist(s.c)
		C.free(unsafe.Pointer(s.c))
		s.c = nil
	})
	return s, nil
}

// TokenShare is what a token needs of the model's bytes, 0 to 1, with a list of size
// tokens. layers is the share that it needs of what is not the output matrix, doubt the
// share of tokens that the whole matrix decides.
func (s *Shortlist) TokenShare(layers float64, size int, doubt float64) float64 {
	all, output := s.model.TokenBytes()
	matrix := float64(output) / float64(max(all, 1))
	rows := float64(size)/float64(s.model.Vocab.Size) + doubt // that are computed
	return layers*(1-matrix) + rows*matrix + float64(s.Size)/float64(max(all, 1))
}

// SetShortlist lets the context decode under masks that name a shortlist; nil = no
// longer. The shortlist stays alive while a context uses it.
func (c *Context) SetShortlist(s *Shortlist) error {
	if c.ptr == nil {
		return fmt.Errorf("set the shortlist: %w", ErrClosed)
	}
	var own *C.struct_gallop_shortlist
	if s != nil {
		if s.closed {
			return fmt.Errorf("set the shortlist: %w", ErrClosed)
		}
		if s.model != c.Model {
			return fmt.Errorf("%w: it was made for another model", ErrShortlist)
		}
		own = s.c
	}
	if !C.gallop_use_shortlist(c.own, own) {
		return fmt.Errorf("%w: no memory for it", ErrShortlist)
	}
	before := c.shortlist
	if c.shortlist = s; s != nil {
		s.retain()
	}
	if before != nil {
		before.release()
	}
	return nil
}

// Shortlist is the one that the context can decode with; nil = none.
func (c *Context) Shortlist() *Shortlist { return c.shortlist }

// checkShortlist refuses masks whose shortlist cannot be used for this batch.
func (c *Context) checkShortlist(b *Batch, size uint64) error {
	switch {
	case size == 0:
		return nil
	case c.shortlist == nil:
		return fmt.Errorf("%w: it has a shortlist of %d tokens, but none was made for this model", ErrMask, size)
	case size > uint64(c.nVocab())/4:
		return fmt.Errorf("%w: a shortlist of %d tokens saves nothing with a vocabulary of %d", ErrMask, size, c.nVocab())
	case b.Len() > c.nUBatch || c.nSeq > 1 && !c.unified:
		return fmt.Errorf("%w: with a shortlist, one decode takes up to %d tokens, and several sequences need KVUnified", ErrMask, c.nUBatch)
	}
	return nil
}

// ShortlistUse counts what became of rows of logits.
type ShortlistUse struct {
	Rows  int // computed with the shortlist
	Whole int // of these, sent to the whole matrix: the decision was too close
}

// ShortlistUse counts since the context was made.
func (c *Context) ShortlistUse() ShortlistUse { return c.listed }

// listOutputs gives the batch's logits, which are the preview's, their exact values.
func (c *Context) listOutputs(b *Batch, size int) error {
	output := 0
	for i, wanted := range unsafe.Slice(b.c.logits, b.Len()) {
		if wanted == 0 {
			continue
		}
		row := C.llama_get_logits_ith(c.ptr, C.int32_t(i))
		if row == nil {
			return fmt.Errorf("%w: no logits at place %d", ErrDecode, i)
		}
		logits := unsafe.Slice((*float32)(unsafe.Pointer(row)), c.nVocab())
		if c.measure != nil {
			c.measureRow(logits, output)
		} else if gap, _ := c.listExactly(logits, output, size); !(gap >= c.shortlist.Margin) { // also if it is no number
			c.allExactly(logits)
			c.listed.Whole++
		}
		c.listed.Rows++
		output++
	}
	return nil
}

// listExactly gives the size largest logits of a row their exact values. gap is how far
// the largest is above the list's end in the preview, in the preview's errors on the list.
func (c *Context) listExactly(logits []float32, output, size int) (gap float32, listed C.struct_gallop_listed) {
	listed = C.gallop_list_exactly(c.own, (*C.float)(&logits[0]), C.int32_t(output), C.int32_t(size))
	return float32((listed.top - listed.outside) / listed.error), listed
}

// allExactly computes a whole row of logits, from the hidden state that was listed last.
func (c *Context) allExactly(logits []float32) {
	n, parts := len(logits), runtime.GOMAXPROCS(0)
	row := (*C.float)(&logits[0])
	var running sync.WaitGroup
	for i := range parts {
		running.Go(func() { C.gallop_all_exactly(c.own, row, C.int32_t(n*i/parts), C.int32_t(n*(i+1)/parts)) })
	}
	running.Wait()
}

// ShortlistTrial is what a row of logits says of a shortlist of some size: how far above
// the list's end in the preview the likeliest logit is in the list (Gap) and outside it
// (Missed), in the preview's errors on the list. Where Missed is the larger, the list
// lacks the likeliest token.
type ShortlistTrial struct{ Gap, Missed float32 }

// MeasureShortlist is [Context.Decode] with exact logits for all tokens, and tells of each
// row what shortlists of these sizes would have come to: trials (len(sizes),), valid
// during the call. The mask has some shortlist.
func (c *Context) MeasureShortlist(b *Batch, mask [MaskWords]uint64, sizes []int, each func(row int, trials []ShortlistTrial)) error {
	trials := make([]ShortlistTrial, len(sizes))
	c.measure = func(row int, try func(size int) ShortlistTrial) {
		for i, size := range sizes {
			trials[i] = try(size)
		}
		each(row, trials)
	}
	defer func() { c.measure = nil }()
	return c.Decode(b, mask)
}

// measureRow lets measure try sizes on a row of the preview's logits, which are exact then.
func (c *Context) measureRow(logits []float32, output int) {
	preview := slices.Clone(logits)
	c.listExactly(logits, output, 1)
	c.allExactly(logits)
	exact := slices.Clone(logits)
	c.measure(output, func(size int) ShortlistTrial {
		copy(logits, preview)
		gap, listed := c.listExactly(logits, output, size)
		missed := float32(math.Inf(-1))
		for t, p := range preview {
			if p < float32(listed.outside) {
				missed = max(missed, exact[t])
			}
		}
		return ShortlistTrial{gap, float32((C.float(missed) - listed.outside) / listed.error)}
	})
	copy(logits, exact)
}

// Hidden copies the final hidden state of a row of the last decode's outputs into
// out (nEmbd,). It fails with [ErrNoOutput] where the model's graph does not end in
// one product with the output matrix.
func (c *Context) Hidden(row int, out []float32) error {
	if c.ptr == nil {
		return fmt.Errorf("hidden state: %w", ErrClosed)
	}
	if c.nOut == 0 || len(out) != c.Model.NEmbd || !bool(C.gallop_hidden(c.own, C.int32_t(row), (*C.float)(&out[0]), C.int32_t(len(out)))) {
		return fmt.Errorf("hidden state %d: %w", row, ErrNoOutput)
	}
	return nil
}
