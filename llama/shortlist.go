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

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/skip"
)

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
// gives exact logits to every further token that could be the likeliest.
type Shortlist struct {
	part
	Rank   int     // dimensions of the preview
	Size   uint64  // bytes of the preview and what turns hidden states into its dimensions
	Margin float32 // how far a logit outside the list may be above its preview, in the preview's error on the list times the token's spread

	c *C.struct_gallop_shortlist // owned
}

// NewShortlist makes the shortlist of a preview (NVocab, rank) in Q4_0 and the basis
// (rank, NEmbd) that hidden states are multiplied with for it. spread (NVocab,) is how far
// the preview is off for each token, 1 on average; nil = all alike. All are copied.
func (o *OutputMatrix) NewShortlist(basis []float32, preview []byte, spread []float32, margin float32) (*Shortlist, error) {
	rank := len(basis) / o.NEmbd
	if rank < previewBlock || rank%previewBlock != 0 || len(basis) != rank*o.NEmbd || len(preview) != o.NVocab*rank/previewBlock*previewBytes ||
		spread != nil && len(spread) != o.NVocab {
		return nil, fmt.Errorf("%w: a basis of %d numbers, a preview of %d bytes and %d spreads do not fit %d tokens of %d dimensions",
			ErrShortlist, len(basis), len(preview), len(spread), o.NVocab, o.NEmbd)
	}
	m := o.model
	if err := m.retain(); err != nil {
		return nil, err
	}
	const floatBytes = 4
	s := &Shortlist{Rank: rank, Size: uint64(len(preview) + floatBytes*(len(basis)+o.NVocab)), Margin: margin, c: (*C.struct_gallop_shortlist)(C.calloc(1, C.sizeof_struct_gallop_shortlist))}
	s.c.matrix = o.matrix
	var why C.struct_gallop_text
	if !C.gallop_new_shortlist(s.c, (*C.float)(&basis[0]), (*C.char)(unsafe.Pointer(&preview[0])), (*C.float)(unsafe.SliceData(spread)),
		C.int32_t(rank), C.bool(m.repacks), &why) {
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

// TokenShare is what a token needs of the model's bytes, 0 to 1. layers is the share that
// it needs of what is not the output matrix, exact the mean number of exact logits.
func (s *Shortlist) TokenShare(layers, exact float64) float64 {
	all, output := s.model.TokenBytes()
	matrix := float64(output) / float64(max(all, 1))
	return layers*(1-matrix) + exact/float64(s.model.Vocab.Size)*matrix + float64(s.Size)/float64(max(all, 1))
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
	if !C.gallop_use_shortlist(c.own, own, C.int32_t(c.nUBatch)) {
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
func (c *Context) checkShortlist(b *Batch, size int) error {
	switch {
	case size == 0:
		return nil
	case c.shortlist == nil:
		return fmt.Errorf("%w: it has a shortlist of %d tokens, but none was made for this model", ErrMask, size)
	case size < 0 || size > int(c.nVocab())/4:
		return fmt.Errorf("%w: a shortlist of %d tokens saves nothing with a vocabulary of %d", ErrMask, size, c.nVocab())
	case b.Len() > c.nUBatch || c.nSeq > 1 && !c.unified:
		return fmt.Errorf("%w: with a shortlist, one decode takes up to %d tokens, and several sequences need KVUnified", ErrMask, c.nUBatch)
	}
	return nil
}

// list tells the steps at the graph's end how many tokens of each output to list: none
// where the preview itself is to be measured.
func (c *Context) list(b *Batch) {
	if c.mask.Shortlist() == 0 {
		return
	}
	c.sizes = c.sizes[:0]
	for i, wanted := range unsafe.Slice(b.c.logits, b.Len()) {
		if wanted == 0 {
			continue
		}
		size := c.mask.Shortlist()
		switch {
		case c.measure != nil:
			size = 0
		case b.several():
			size = b.rowMask(i).Shortlist()
		}
		c.sizes = append(c.sizes, C.int32_t(size))
	}
	C.gallop_list(c.own, unsafe.SliceData(c.sizes), C.int32_t(len(c.sizes)), C.float(c.shortlist.Margin))
}

// ShortlistUse counts what became of rows of logits.
type ShortlistUse struct {
	Rows     int // computed with the shortlist
	Extended int // of these, those where tokens outside the list could have been the likeliest
	Exact    int // logits of these rows that were computed exactly
}

// Since is what came after before.
func (u ShortlistUse) Since(before ShortlistUse) ShortlistUse {
	return ShortlistUse{u.Rows - before.Rows, u.Extended - before.Extended, u.Exact - before.Exact}
}

// ShortlistUse counts since the context was made.
func (c *Context) ShortlistUse() ShortlistUse { return c.listed }

// ListedAt is the [ShortlistUse] of the token at place i of the last batch, which was decoded
// under masks with a shortlist and has logits; zeros otherwise.
func (c *Context) ListedAt(i int) ShortlistUse {
	if c.mask.Shortlist() == 0 || i < 0 || i >= min(c.nOut, len(c.rowUse)) {
		return ShortlistUse{}
	}
	return c.rowUse[i]
}

// listOutputs looks at the batch's logits, some of which were given their exact values.
func (c *Context) listOutputs(b *Batch) error {
	output := 0
	c.rowUse = slices.Grow(c.rowUse[:0], b.Len())[:b.Len()]
	for i, wanted := range unsafe.Slice(b.c.logits, b.Len()) {
		if wanted == 0 {
			continue
		}
		row := C.llama_get_logits_ith(c.ptr, C.int32_t(i))
		if row == nil {
			return fmt.Errorf("%w: no logits at place %d", ErrDecode, i)
		}
		logits := unsafe.Slice((*float32)(unsafe.Pointer(row)), c.nVocab())
		use := ShortlistUse{Rows: 1}
		if c.measure != nil {
			if err := c.measureRow(logits, output); err != nil {
				return err
			}
		} else {
			listed := C.gallop_listed(c.own, C.int32_t(output))
			use.Exact = int(listed.n + listed.further)
			if listed.n == 0 { // no memory for the list
				if err := c.exactly(logits, output); err != nil {
					return err
				}
				use.Exact = len(logits)
			}
			if use.Exact > int(listed.n) {
				use.Extended = 1
			}
		}
		c.listed.Rows += use.Rows
		c.listed.Extended += use.Extended
		c.listed.Exact += use.Exact
		c.rowUse[i] = use
		output++
	}
	return nil
}

// exactly gives exact values to all of a row's logits.
func (c *Context) exactly(logits []float32, output int) error {
	if !C.gallop_prepare_exact(c.own, C.int32_t(output)) {
		return fmt.Errorf("%w: the hidden state of output %d is not known", ErrDecode, output)
	}
	parts := runtime.GOMAXPROCS(0)
	row := (*C.float)(&logits[0])
	var running sync.WaitGroup
	for i := range parts {
		running.Go(func() { C.gallop_compute_exact(c.own, row, C.int32_t(i), C.int32_t(parts)) })
	}
	running.Wait()
	return nil
}

// ShortlistTrial is what a shortlist comes to for one row of logits.
type ShortlistTrial struct {
	Needed   float32   // margin above which the likeliest token gets its exact logit; -infinity = it is in the list
	Equal    bool      // with the shortlist's own margin the likeliest token is found
	Extended bool      // with that margin, tokens outside the list get exact logits
	Exact    int       // how many do in all
	Error    float32   // the preview's on the list: the root of the mean square, each token's in its spread
	Errors   []float32 // (NVocab,) how far each token's logit is above its preview, in that error
}

// MeasureShortlist is [Context.Decode] with exact logits for all tokens, and tells of each
// row what a shortlist of the mask's size would have come to. A trial is valid during the call.
func (c *Context) MeasureShortlist(b *Batch, mask skip.Mask, each func(row int, trial ShortlistTrial)) error {
	c.measure = each
	defer func() { c.measure = nil }()
	return c.Decode(b, mask)
}

// measureRow lets measure see what the list would have come to for a row of the preview's logits, which are
// exact then.
func (c *Context) measureRow(logits []float32, output int) error {
	preview := slices.Clone(logits)
	if err := c.exactly(logits, output); err != nil {
		return err
	}
	short := slices.Clone(preview)
	listed := C.gallop_list_alone(c.own, (*C.float)(&short[0]), C.int32_t(output), C.int32_t(c.mask.Shortlist()), C.float(c.shortlist.Margin))
	likeliest, _ := TopProbability(logits)
	found, _ := TopProbability(short)
	t := ShortlistTrial{Needed: float32(math.Inf(-1)), Equal: found == likeliest, Extended: listed.further > 0, Exact: int(listed.n + listed.further), Error: float32(listed.error)}
	if preview[likeliest] < float32(listed.outside) {
		spread := unsafe.Slice((*float32)(c.shortlist.c.spread), len(logits))[likeliest]
		t.Needed = (float32(listed.top) - preview[likeliest]) / (float32(listed.error) * spread)
	}
	for i, p := range preview {
		preview[i] = (logits[i] - p) / float32(listed.error)
	}
	t.Errors = preview
	c.measure(output, t)
	return nil
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
