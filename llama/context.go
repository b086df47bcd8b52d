package llama

/*
#include <stdlib.h>
#include "glue.h"
*/
import "C"

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/dustin/go-humanize"

	"github.com/gallop-llm/gallop/internal/machine"
	"github.com/gallop-llm/gallop/skip"
)

// CacheType is the number format of cached keys or values.
type CacheType int32

// Cache types, by their ggml numbers. Quantised values need flash attention.
const (
	CacheDefault CacheType = 0 // F16
	CacheF32     CacheType = -1
	CacheF16     CacheType = 1
	CacheQ4_0    CacheType = 2
	CacheQ8_0    CacheType = 8
	CacheBF16    CacheType = 30
)

// ggml is the number of t in C: F32 is 0 there, which is the default here.
func (t CacheType) ggml() C.int32_t {
	switch t {
	case CacheDefault:
		return C.int32_t(CacheF16)
	case CacheF32:
		return C.GGML_TYPE_F32
	}
	return C.int32_t(t)
}

// bytes is what so many numbers of t take.
func (t CacheType) bytes(n uint64) uint64 {
	const block = 32 // numbers that share a scale of two bytes
	switch t {
	case CacheF32:
		return 4 * n
	case CacheQ8_0:
		return n / block * (2 + block)
	case CacheQ4_0:
		return n / block * (2 + block/2)
	}
	return 2 * n
}

// FlashAttention chooses the attention kernel.
type FlashAttention int32

// Choices of attention kernel.
const (
	FlashAuto    FlashAttention = 0 // llama.cpp decides
	FlashOn      FlashAttention = 1
	FlashOff     FlashAttention = 2
	FlashGrouped FlashAttention = 3 // ours where it can be, else as FlashOn; see [GroupedAvailable]
)

// GroupedAvailable says whether this processor can run [FlashGrouped]: attention that reads
// each cached token once for all query heads that share it. Its sums differ from those of
// llama.cpp's kernels by rounding. It serves caches of 16-bit floats in main memory, and heads of up to 256
// numbers; what else a model has stays with llama.cpp.
func GroupedAvailable() bool { return bool(C.layerskip_attends()) }

// ContextOptions says how a context is made. nil and zero are the defaults.
type ContextOptions struct {
	NCtx         int            // tokens the KV cache holds; 0 = what the model was trained on
	NBatch       int            // tokens in one Decode at most; 0 = 2048
	NUBatch      int            // tokens computed at once; 0 = 512
	NSeqMax      int            // sequences, up to 256; 0 = 1
	Threads      int            // for single tokens, up to 512; 0 = [Model.DefaultThreads]
	ThreadsBatch int            // for prompts, up to 512; 0 = Threads
	KType, VType CacheType      // of cached keys and values
	Flash        FlashAttention // attention kernel
	Embeddings   bool           // Decode gives embeddings beside logits
	KVUnified    bool           // one KV buffer for all sequences, for shared prefixes
	Influence    bool           // Decode measures what [Context.Influence] gives; slower
	LayerInputs  bool           // Decode can read what [Context.LayerInput] gives; not beside Influence
}

// llama.cpp's defaults.
const (
	defaultBatch  = 2048
	defaultUBatch = 512
)

// MaxThreads is ggml's own limit: it ends the process beyond.
const MaxThreads = 512

// maxCtx is the bound beyond which sizes overflow in C, in tokens.
const maxCtx = 1 << 26

// check finds what llama.cpp would answer with an abort instead of an error.
func (o *ContextOptions) check() error {
	for _, v := range []struct {
		name string
		n    int
		most int
	}{
		{"a context of %d tokens", o.NCtx, maxCtx},
		{"a batch of %d tokens", o.NBatch, maxCtx},
		{"%d tokens at once", o.NUBatch, maxCtx},
		{"%d sequences", o.NSeqMax, maxSequences},
		{"%d threads", o.Threads, MaxThreads},
		{"%d threads", o.ThreadsBatch, MaxThreads},
	} {
		if v.n < 0 || v.n > v.most {
			return fmt.Errorf("%w: "+v.name+", want up to %d", ErrOption, v.n, v.most)
		}
	}
	for _, t := range []CacheType{o.KType, o.VType} {
		if !slices.Contains([]CacheType{CacheDefault, CacheF32, CacheF16, CacheQ4_0, CacheQ8_0, CacheBF16}, t) {
			return fmt.Errorf("%w: %d is no cache type", ErrOption, t)
		}
	}
	if o.Flash < FlashAuto || o.Flash > FlashGrouped {
		return fmt.Errorf("%w: %d is no choice of flash attention", ErrOption, o.Flash)
	}
	if o.Influence && o.LayerInputs {
		return fmt.Errorf("%w: a context measures influence or reads layer inputs, not both", ErrOption)
	}
	return nil
}

// Context is a model's working state: its KV cache and the last results. Each
// context belongs to one goroutine at a time; several decode in parallel.
type Context struct {
	Model *Model

	ptr  *C.struct_llama_context  // owned
	mem  *C.struct_llama_memory_i // ptr's
	own  *C.struct_gallop_context // owned
	nOut int                      // tokens of the last decode; 0 = nothing to read
	mask skip.Mask                // of the last decode

	embeds  bool       // made with Embeddings: every token has outputs
	outputs []C.int8_t // (nOut,) of the last decode's tokens, 0 = has none; reused
	nWanted int        // of outputs that are not 0

	nSeq    int     // sequences, 0 to nSeq-1
	nUBatch int     // tokens computed at once
	unified bool    // sequences share one KV buffer
	loras   []*LoRA // in use, each kept alive
	release func()  // of AbortOn; nil = none

	pause *Pause          // that decodes wait for; nil = none
	ended <-chan struct{} // of AbortOn's context; nil = none

	shortlist *Shortlist // in use, kept alive; nil = none
	listed    ShortlistUse
	rowUse    []ShortlistUse                      // of the last batch's tokens with logits; reused
	sizes     []C.int32_t                         // of the lists of a decode's outputs; reused
	measure   func(row int, trial ShortlistTrial) // of MeasureShortlist; nil = none

	neurons  map[int]*Neurons // by choice, kept alive
	activity []int            // (NLayer,) a layer's place in own.activity, -1 = none; nil = nothing is measured
}

// Stats tells what a mask removed from the graph of the last decode.
type Stats struct {
	Layers           int // in the model's graph; 0 while no mask was used
	LayersRemoved    int
	SublayersRemoved int // of layers that kept their other half
	SublayersGated   int // that only some tokens of the batch skip
	LocalLayers      int // whose attention was local, where that hid anything
	Nodes            int // in llama.cpp's own graph
	NodesRemoved     int
}

// NewContext makes a context. The error wraps [ErrOption] for options out of
// range, [ErrMemory] when the machine has too little memory for it, and [ErrModel] when
// llama.cpp cannot make it.
func (m *Model) NewContext(opts *ContextOptions) (*Context, error) {
	o := ContextOptions{}
	if opts != nil {
		o = *opts
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := m.checkSequences(&o); err != nil {
		return nil, err
	}
	if err := m.checkMemory(&o, machineRoom()); err != nil {
		return nil, err
	}
	if err := m.retain(); err != nil {
		return nil, err
	}
	if err := m.checkDecoder(); err != nil {
		m.release()
		return nil, err
	}
	params := C.llama_context_default_params()
	params.n_ctx = C.uint32_t(o.NCtx)
	if o.NBatch > 0 {
		params.n_batch = C.uint32_t(o.NBatch)
	}
	if o.NUBatch > 0 {
		params.n_ubatch = C.uint32_t(o.NUBatch)
	}
	if o.NSeqMax > 0 {
		params.n_seq_max = C.uint32_t(o.NSeqMax)
	}
	params.n_outputs_max_per_seq = 0 // as many as the batch asks for
	params.n_threads, params.n_threads_batch = m.threads(o.Threads, o.ThreadsBatch)
	if o.Embeddings {
		params.pooling_type = poolNone // an embedding belongs to a token here, never to a text
	}
	params.type_k, params.type_v = o.KType.ggml(), o.VType.ggml()
	switch o.Flash {
	case FlashOn, FlashGrouped:
		params.flash_attn_type = 1
	case FlashOff:
		params.flash_attn_type = 0
	}
	params.embeddings = C.bool(o.Embeddings)
	params.kv_unified = C.bool(o.KVUnified)

	c := &Context{Model: m, own: (*C.struct_gallop_context)(C.calloc(1, C.sizeof_struct_gallop_context))}
	if o.Influence && !bool(C.gallop_measure_influence(c.own, &params)) || o.LayerInputs && !bool(C.gallop_read_inputs(c.own, &params)) {
		C.gallop_free_context(c.own)
		m.release()
		return nil, fmt.Errorf("%w: no memory to read the residual stream", ErrModel)
	}
	c.ptr = C.gallop_new_context(m.ptr, params, &c.own.watch, &c.own.err)
	if c.ptr == nil {
		defer C.gallop_free_context(c.own)
		m.release()
		return nil, fmt.Errorf("make a context of %d tokens for %s: %w", o.NCtx, m.Path, cause(ErrModel, &c.own.err))
	}
	c.own.skip.bidirectional = C.bool(!m.causal)
	c.own.skip.attend.on = C.bool(o.Flash == FlashGrouped && GroupedAvailable())
	// As llama.cpp's own kernels, so that a library folder with one of its modules shows each.
	c.own.skip.attend.wide = C.bool(strings.Contains(SystemInfo(), "AVX512 = 1"))
	c.own.skip.local.hooked = C.layerskip_sees_computations()
	C.gallop_set_threads(c.own, c.ptr, params.n_threads, params.n_threads_batch)
	c.mem = C.llama_get_memory(c.ptr)
	c.nSeq = int(C.llama_n_seq_max(c.ptr))
	c.nUBatch = int(C.llama_n_ubatch(c.ptr))
	c.unified = o.KVUnified
	c.embeds = o.Embeddings
	live.Add(1)
	return c, nil
}

// poolNone is llama.cpp's number for embeddings that are not pooled.
const poolNone = 0

// checkSequences refuses more sequences than the outputs have room for, at which
// llama.cpp would end the process.
func (m *Model) checkSequences(o *ContextOptions) error {
	room := cmp.Or(o.NBatch, defaultBatch)
	if n := cmp.Or(o.NCtx, m.NCtxTrain); n > 0 {
		room = min(room, n)
	}
	if o.NSeqMax > room {
		return fmt.Errorf("%w: %d sequences in a context or batch of %d tokens", ErrOption, o.NSeqMax, room)
	}
	return nil
}

// CacheBytes is what the keys and values of one token take in the KV cache of a context,
// with the given types, in bytes. Layers that are recurrent keep none.
func (m *Model) CacheBytes(keys, values CacheType) uint64 {
	return keys.bytes(m.keys) + values.bytes(m.values)
}

// room is how much memory a program can have, swap space included, in bytes.
type room struct{ free, all uint64 }

func machineRoom() room {
	free, all := machine.Memory()
	if free == 0 {
		free = all // as not every system says it
	}
	freeSwap, allSwap := machine.Swap()
	return room{free + freeSwap, all + allSwap}
}

// checkMemory refuses a context that there is no memory for before llama.cpp, which
// writes zeros all over its KV cache, has taken and written what there is. What is
// certain to be taken counts: less than a context takes in the end.
func (m *Model) checkMemory(o *ContextOptions, r room) error {
	const cell = 48 // bytes that a token takes in the KV cache beside its keys and values
	tokens := uint64(cmp.Or(o.NCtx, max(m.NCtxTrain, 0)))
	cache := tokens * cell
	if m.gpuLayers < 0 || !slices.ContainsFunc(devices(), Device.IsGPU) {
		cache += tokens * m.CacheBytes(o.KType, o.VType)
	}
	if m.causal && r.all > 0 && cache > r.free {
		return fmt.Errorf("%w: the keys and values of %d tokens take %s, and %s are free: ask for a shorter context (-c), fewer texts at once (--parallel) or smaller types (-ctk, -ctv)",
			ErrMemory, tokens, humanize.IBytes(cache), humanize.IBytes(r.free))
	}
	// What is computed with is taken at once too, but written only as it is used.
	together := min(tokens, uint64(cmp.Or(o.NBatch, defaultBatch)), uint64(cmp.Or(o.NUBatch, defaultUBatch)))
	const mask, logit = 2, 4 // bytes
	computed := max(together*tokens*mask, together*uint64(m.Vocab.Size)*logit)
	if r.all > 0 && computed > r.all {
		return fmt.Errorf("%w: to compute %d tokens of %d at once takes %s, and the machine has %s: ask for fewer at once (-ub) or a shorter context (-c)",
			ErrMemory, together, tokens, humanize.IBytes(computed), humanize.IBytes(r.all))
	}
	return nil
}

// checkDecoder refuses models that a context could not decode with.
func (m *Model) checkDecoder() error {
	if m.vocabOnly {
		return fmt.Errorf("%w: %s was loaded without its weights", ErrModel, m.Path)
	}
	if bool(C.llama_model_has_encoder(m.ptr)) && bool(C.llama_model_has_decoder(m.ptr)) {
		return fmt.Errorf("%w: %s has an encoder beside its decoder, which gallop cannot run", ErrModel, m.Path)
	}
	return nil
}

// threads fills in the defaults.
func (m *Model) threads(decode, batch int) (C.int32_t, C.int32_t) {
	if decode == 0 {
		decode = m.DefaultThreads()
	}
	if batch == 0 {
		batch = decode
	}
	return C.int32_t(decode), C.int32_t(batch)
}

// Close frees the context. Further calls do nothing.
func (c *Context) Close() error {
	if c.ptr == nil {
		return nil
	}
	if c.release != nil {
		c.release()
	}
	c.PauseWith(nil)
	C.llama_free(c.ptr)
	C.gallop_free_context(c.own)
	c.ptr, c.mem, c.own = nil, nil, nil
	c.useLoRAs(nil)
	if c.shortlist != nil {
		c.shortlist.release()
		c.shortlist = nil
	}
	for _, n := range c.neurons {
		n.release()
	}
	c.neurons, c.activity = nil, nil
	live.Add(-1)
	c.Model.release()
	return nil
}

// NCtx is the number of tokens that a sequence of this context can hold.
func (c *Context) NCtx() int {
	if c.ptr == nil {
		return 0
	}
	return int(C.llama_n_ctx_seq(c.ptr))
}

// NBatch is the number of tokens that one Decode takes at most.
func (c *Context) NBatch() int {
	if c.ptr == nil {
		return 0
	}
	return int(C.llama_n_batch(c.ptr))
}

// NUBatch is the number of tokens that are computed at once.
func (c *Context) NUBatch() int { return c.nUBatch }

// Unified tells whether all sequences share one KV buffer; see [ContextOptions].KVUnified.
func (c *Context) Unified() bool { return c.unified }

// SetThreads changes the number of threads for single tokens and for batches;
// 0 as in [ContextOptions]. The error wraps [ErrOption] or [ErrClosed].
func (c *Context) SetThreads(decode, batch int) error {
	if c.ptr == nil {
		return fmt.Errorf("set threads: %w", ErrClosed)
	}
	o := ContextOptions{Threads: decode, ThreadsBatch: batch}
	if err := o.check(); err != nil {
		return err
	}
	single, many := c.Model.threads(decode, batch)
	C.gallop_set_threads(c.own, c.ptr, single, many)
	return nil
}

// Stalled is how long, in all, threads of this context's decodes have slept while
// they waited for others, as they do for those that another program keeps from
// running. It starts anew when [Context.SetThreads] asks for more threads than
// there were so far. It is 0 on one thread and on a GPU.
func (c *Context) Stalled() time.Duration {
	if c.ptr == nil {
		return 0
	}
	return time.Duration(C.gallop_stalled(c.own))
}

// AbortOn makes ctx's end stop the decode that is running and all later ones,
// which then return [ErrAborted], until release is called, AbortOn is called
// again or the context is closed. Releasing more than once does nothing.
func (c *Context) AbortOn(ctx context.Context) (release func()) {
	if c.ptr == nil {
		return func() {}
	}
	if c.release != nil {
		c.release()
	}
	watch := &c.own.watch
	if ctx.Err() != nil { // AfterFunc would tell a moment later
		C.gallop_watch_stop(watch, true)
	}
	c.ended = ctx.Done()
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		C.gallop_watch_stop(watch, true)
		close(fired)
	})
	c.release = sync.OnceFunc(func() {
		if !stop() {
			<-fired // the flag must not be set after it is cleared
		}
		C.gallop_watch_stop(watch, false)
		c.ended = nil
	})
	return c.release
}

// Abort makes the decode that is running and later ones return [ErrAborted], until Abort(false).
// Unlike the context's other methods it may be called from any goroutine until Close.
func (c *Context) Abort(on bool) {
	if c.ptr != nil {
		C.gallop_watch_stop(&c.own.watch, C.bool(on))
	}
}

// Decode runs the batch through the model's layers that mask does not skip and
// stores their keys and values in the KV cache. The results are read with
// [Context.Logits] or [Context.Embedding]. Sequences may have masks of their own,
// see [Batch.SetMask].
//
// A mask changes what is computed, never how well: the result is that of the
// model with the skipped sublayers' output projections set to zero, bit for
// bit on CPU. What cannot be done exactly is refused with [ErrMask]. Positions
// that were cached under another mask are used as they are. A mask with a shortlist
// gives exact logits to the tokens of the list and leaves a preview's to the others.
// Under local attention a token sees what it would see through an attention mask of the
// same pattern, whatever batch it is in: to the bit where the attention kernel goes from
// cell to cell, otherwise up to the order in which it sums.
//
// Errors: [ErrBatch], [ErrFull], [ErrMask], [ErrAborted], [ErrDecode].
func (c *Context) Decode(b *Batch, mask skip.Mask) error {
	for {
		c.pause.wait(c.ended, c.aborted)
		err := c.decode(b, mask)
		if c.pause == nil || !errors.Is(err, ErrAborted) || c.aborted() {
			return err
		}
		c.forget(b)
	}
}

// aborted tells whether decodes are to return [ErrAborted].
func (c *Context) aborted() bool { return bool(C.gallop_watch_stopped(&c.own.watch)) }

// decode is Decode without pauses.
func (c *Context) decode(b *Batch, mask skip.Mask) error {
	if c.ptr == nil || b.cap == 0 {
		return fmt.Errorf("decode: %w", ErrClosed)
	}
	c.nOut = 0
	if err := c.check(b); err != nil {
		return err
	}
	mask, err := b.rowMasks(mask)
	if err != nil {
		return err
	}
	if !c.Model.causal && (b.several() || !mask.IsEmpty()) {
		return fmt.Errorf("%w: %s attends in both directions", ErrMask, c.Model.Path)
	}
	rows := (*C.struct_layerskip_rows)(nil)
	if b.several() {
		if err := c.checkRows(b); err != nil {
			return err
		}
		rows = b.rows
	} else if err := c.checkShortlist(b, mask.Shortlist()); err != nil {
		return err
	}
	if err := c.checkNeurons(b, mask); err != nil {
		return err
	}
	c.mask = mask
	c.list(b)
	c.owners(b)
	if err := c.Model.useWeights(mask); err != nil {
		return err
	}
	code := C.gallop_decode(c.own, c.ptr, b.c, (*C.uint64_t)(&c.mask[0]), rows, C.int32_t(b.Isolation))
	c.Model.weights.RUnlock()
	switch code {
	case 0:
		c.nOut = b.Len()
		c.noteOutputs(b)
		if mask.Shortlist() > 0 {
			return c.listOutputs(b)
		}
		return nil
	case 1:
		return fmt.Errorf("%w: %d more tokens do not fit into %d", ErrFull, b.Len(), c.NCtx())
	case 2:
		return ErrAborted
	case -1:
		err := cause(ErrBatch, &c.own.err)
		if strings.Contains(err.Error(), "inconsistent sequence positions") { // the rest is a page long
			err = fmt.Errorf("%w: its positions do not continue those in the KV cache", ErrBatch)
		}
		return err
	case C.LAYERSKIP_REFUSED:
		return fmt.Errorf("%w: %s", ErrMask, C.GoString(&c.own.skip.report.reason[0]))
	case C.LAYERSKIP_BROKEN:
		return fmt.Errorf("%w: %s", ErrDecode, C.GoString(&c.own.skip.report.reason[0]))
	case C.LAYERSKIP_NOT_HOOKED:
		return fmt.Errorf("%w: llama.cpp built a graph that the hook did not see", ErrMask)
	}
	return fmt.Errorf("%w (code %d)", cause(ErrDecode, &c.own.err), int(code))
}

// noteOutputs remembers which tokens of a batch have outputs.
func (c *Context) noteOutputs(b *Batch) {
	c.outputs, c.nWanted = append(c.outputs[:0], unsafe.Slice(b.c.logits, b.Len())...), 0
	for i := range c.outputs {
		if c.embeds {
			c.outputs[i] = 1
		}
		if c.outputs[i] != 0 {
			c.nWanted++
		}
	}
}

// check finds what llama.cpp would answer with an abort instead of an error.
func (c *Context) check(b *Batch) error {
	switch n := b.Len(); {
	case n == 0:
		return fmt.Errorf("%w: it is empty", ErrBatch)
	case n > c.NBatch():
		return fmt.Errorf("%w: %d tokens, the context takes %d at once", ErrBatch, n, c.NBatch())
	case n > c.nUBatch && (c.mem == nil || !c.Model.causal):
		return fmt.Errorf("%w: %d tokens, a model that attends in both directions takes %d at once: raise NUBatch",
			ErrBatch, n, c.nUBatch)
	case b.nEmbd != 0 && b.nEmbd != c.Model.NEmbd:
		return fmt.Errorf("%w: embeddings of %d numbers, the model has %d", ErrBatch, b.nEmbd, c.Model.NEmbd)
	case b.shared && !c.unified:
		return fmt.Errorf("%w: a token in several sequences needs a context with KVUnified", ErrBatch)
	}
	return nil
}

// Stats tells what the last decode's mask removed.
func (c *Context) Stats() Stats {
	if c.ptr == nil {
		return Stats{}
	}
	r := &c.own.skip.report
	return Stats{
		Layers:           int(r.n_layer),
		LayersRemoved:    int(r.layers_removed),
		SublayersRemoved: int(r.sublayers_removed),
		SublayersGated:   int(r.sublayers_gated),
		LocalLayers:      int(r.local),
		Nodes:            int(r.nodes),
		NodesRemoved:     int(r.nodes_removed),
	}
}

// GroupedLayers is how many attentions of the last graph [FlashGrouped] computes.
func (c *Context) GroupedLayers() int {
	if c.ptr == nil {
		return 0
	}
	return int(c.own.skip.attend.replaced)
}

// Logits gives the logits (nVocab,) of the token at place i of the last batch,
// -1 for its last output. The slice is C's memory: it is valid until the next
// Decode or Close, and must not be kept. The error is [ErrNaN] where they are NaN:
// one NaN in what the output matrix reads makes every logit NaN.
func (c *Context) Logits(i int) ([]float32, error) {
	p, err := c.output(i)
	if err != nil {
		return nil, err
	}
	row := C.llama_get_logits_ith(p, C.int32_t(i))
	if row == nil {
		return nil, fmt.Errorf("logits %d: %w", i, ErrNoOutput)
	}
	logits := unsafe.Slice((*float32)(unsafe.Pointer(row)), c.nVocab())
	if math.IsNaN(float64(logits[0])) {
		return nil, fmt.Errorf("logits %d: %w", i, ErrNaN)
	}
	return logits, nil
}

// Embedding gives the final hidden state (nEmbd,) of the token at place i of
// the last batch, in a context made with Embeddings. The slice is C's memory,
// valid until the next Decode or Close.
func (c *Context) Embedding(i int) ([]float32, error) {
	p, err := c.output(i)
	if err != nil {
		return nil, err
	}
	if !c.embeds {
		return nil, fmt.Errorf("embedding %d of a context without Embeddings: %w", i, ErrNoOutput)
	}
	row := C.llama_get_embeddings_ith(p, C.int32_t(i))
	if row == nil {
		return nil, fmt.Errorf("embedding %d: %w", i, ErrNoOutput)
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(row)), c.Model.NEmbd), nil
}

// output refuses places that have none: builds of llama.cpp with assertions, as those for Windows,
// end the process there.
func (c *Context) output(i int) (*C.struct_llama_context, error) {
	if c.ptr == nil {
		return nil, fmt.Errorf("output %d: %w", i, ErrClosed)
	}
	if c.nOut == 0 || i >= c.nOut || i < -c.nWanted || i >= 0 && c.outputs[i] == 0 {
		return nil, fmt.Errorf("output %d of a batch of %d: %w", i, c.nOut, ErrNoOutput)
	}
	return c.ptr, nil
}

func (c *Context) nVocab() int {
	return int(C.llama_vocab_n_tokens(C.llama_model_get_vocab(c.Model.ptr)))
}

// ---- KV cache ----

// Remove drops the positions from (inclusive) to to (exclusive) of a sequence
// from the KV cache; to < 0 means the end, seq < 0 all sequences. It fails when
// the cache cannot drop a part, as recurrent models' caches cannot.
func (c *Context) Remove(seq, from, to int) error {
	if c.ptr == nil {
		return fmt.Errorf("remove: %w", ErrClosed)
	}
	if err := c.checkSequences(max(seq, 0)); err != nil {
		return err
	}
	if !C.llama_memory_seq_rm(c.mem, C.llama_seq_id(max(seq, -1)), position(from), position(to)) {
		return fmt.Errorf("%w: this model's cache cannot drop positions %d to %d alone", ErrState, from, to)
	}
	C.layerskip_forget_cells(&c.own.skip, C.int32_t(max(seq, -1)), C.int32_t(position(from)), C.int32_t(position(to)))
	return nil
}

// Copy gives the positions from (inclusive) to to (exclusive) of sequence src
// to dst, which should be empty; to < 0 means the end. With KVUnified both share
// them; otherwise they are copied, and only a whole sequence can be.
func (c *Context) Copy(src, dst, from, to int) error {
	if c.ptr == nil {
		return fmt.Errorf("copy: %w", ErrClosed)
	}
	if err := c.checkSequences(src, dst); err != nil {
		return err
	}
	if _, last := c.Positions(src); to > last {
		to = -1
	}
	if !c.unified && src != dst && (from > 0 || to >= 0) {
		return fmt.Errorf("%w: copying a part of a sequence needs a context with KVUnified", ErrOption)
	}
	C.llama_memory_seq_cp(c.mem, C.llama_seq_id(src), C.llama_seq_id(dst), position(from), position(to))
	C.layerskip_copy_cells(&c.own.skip, C.int32_t(src), C.int32_t(dst), C.int32_t(position(from)), C.int32_t(position(to)))
	return nil
}

// checkSequences refuses numbers that would end the process in an assertion.
func (c *Context) checkSequences(seqs ...int) error {
	for _, s := range seqs {
		if s < 0 || s >= c.nSeq {
			return fmt.Errorf("%w: sequence %d, this context has 0 to %d", ErrOption, s, c.nSeq-1)
		}
	}
	return nil
}

// position is p in C's width; all negative ones mean the same.
func position(p int) C.llama_pos { return C.llama_pos(min(max(p, -1), math.MaxInt32)) }

// Clear empties the KV cache.
func (c *Context) Clear() {
	if c.ptr != nil {
		C.llama_memory_clear(c.mem, true)
		C.layerskip_forget_cells(&c.own.skip, -1, 0, -1)
	}
}

// Positions gives the first and last cached position of a sequence, -1, -1 when
// it is empty.
func (c *Context) Positions(seq int) (first, last int) {
	if c.ptr == nil || c.checkSequences(seq) != nil {
		return -1, -1
	}
	return int(C.llama_memory_seq_pos_min(c.mem, C.llama_seq_id(seq))),
		int(C.llama_memory_seq_pos_max(c.mem, C.llama_seq_id(seq)))
}
