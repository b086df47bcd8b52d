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
	"hash/fnv"
	"io"
	"sync"
	"time"
	"unsafe"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/skip"
)

// CPUOnly as [ModelOptions].GPULayers keeps every layer on the CPU.
const CPUOnly = -1

// progressInterval is how often a load looks for progress: often enough for a
// bar that moves, and far below what a load costs.
const progressInterval = 50 * time.Millisecond

// ModelOptions says how a model is loaded. nil and the zero value are the defaults.
type ModelOptions struct {
	// GPULayers is how many layers go to a GPU: 0 = all (as llama.cpp does;
	// without a GPU that means none), n = the last n, of which the output is the
	// first to go, [CPUOnly] = none: then a GPU computes nothing of the model.
	GPULayers int

	// RPC are the addresses of llama.cpp's RPC servers, "host:port", whose devices get layers as
	// GPUs do. They stay devices of the process. llama.cpp's RPC module has to be beside its
	// libraries. The server of an address has to stay the same; where one is gone, llama.cpp ends
	// the process.
	RPC []string

	// NoMmap reads the file into memory instead of mapping it.
	NoMmap bool

	// Mlock keeps the weights from being swapped out.
	Mlock bool

	// NoRepack leaves quantised weights as they are in the file instead of
	// rearranging them for the CPU: slower, but loading needs no memory beside the
	// mapping, and what [Model.ReleaseWeights] gave back is sooner back.
	NoRepack bool

	// VocabOnly loads the tokenizer and the metadata and no weights; such a
	// model makes no contexts.
	VocabOnly bool

	// ForText refuses, before anything is loaded, a file that is no model which
	// continues a text: an embedding model, a projector, a vocabulary alone. The error
	// wraps [ErrNoText].
	ForText bool

	// Progress is called with the loaded share, 0 to 1, now and then from one
	// goroutine at a time, with 1 when the model is loaded, and never after
	// LoadModel has returned.
	Progress func(share float32)
}

// Model is a loaded GGUF file. It may be shared by several goroutines and
// contexts; its memory is given back when it and all its contexts are closed.
type Model struct {
	Path         string
	Architecture string // "llama", "qwen3": the metadata's general.architecture
	Description  string // llama.cpp's short text: "llama 1B Q4_0"
	NLayer       int
	NEmbd        int
	NHead        int
	NHeadKV      int
	NCtxTrain    int  // tokens the model was trained on at once
	Recurrent    bool // its cache, or a part of it, forgets all or nothing
	Window       int  // tokens that its sliding windows show; 0 = it has none
	NParams      uint64
	Size         uint64            // bytes of all tensors
	Metadata     map[string]string // scalar metadata as llama.cpp prints it; arrays are left out
	Tensors      []Tensor          // in file order
	Vocab        *Vocab

	template    string // Jinja source, "" = the file has none
	chat        chatTemplate
	causal      bool // masks need causal attention
	sampling    Sampling
	vocabOnly   bool   // loaded without weights
	gpuLayers   int    // as asked for; see [ModelOptions]
	repacks     bool   // weights are rearranged for the CPU
	fingerprint uint64 // of the file
	keys        uint64 // numbers of one token's keys in all layers
	values      uint64 // likewise
	byteless    *byteless
	control     []bool // by token: the file calls it a control token

	paths    []string     // the file, or the parts of a split model
	places   []place      // (len(Tensors),)
	ends     [][]byte     // mapped files, owned; see mapEnds
	pageable bool         // weights may be dropped from memory
	weights  sync.RWMutex // held by decodes; with Lock to drop and repack
	gone     skip.Mask    // sublayers whose repacked weights are dropped; guarded by weights

	mu     sync.Mutex
	closed bool
	ptr    *C.struct_llama_model // owned; nil once closed and unused
	users  int                   // what uses ptr, plus one until Close
}

// Tensor is one weight tensor's entry in the file.
type Tensor struct {
	Name  string
	Shape []uint64 // innermost dimension first, as ggml counts
	Type  string   // "Q4_0", "F32"
	Size  uint64   // bytes
}

// TokenBytes is how many bytes of the tensors one token needs, experts whole: of an
// embedding beside an output matrix one row, which is left out. output is the
// output matrix's part.
func (m *Model) TokenBytes() (all, output uint64) {
	return gguf.TokenBytes(func(yield func(string, uint64) bool) {
		for _, t := range m.Tensors {
			if !yield(t.Name, t.Size) {
				return
			}
		}
	})
}

// LoadModel opens a GGUF file. Cancelling ctx stops the load and returns its
// error. The file is checked before llama.cpp sees it: the error then wraps
// one of package gguf's or [fs.ErrNotExist]; otherwise [ErrModel].
func LoadModel(ctx context.Context, path string, opts *ModelOptions) (*Model, error) {
	if Dir() == "" {
		return nil, ErrNotLoaded
	}
	if opts == nil {
		opts = &ModelOptions{}
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("load %s: %w", path, err)
	}
	m := &Model{Path: path, users: 1, vocabOnly: opts.VocabOnly, gpuLayers: opts.GPULayers, repacks: !opts.NoRepack}
	if err := m.readFile(opts.ForText); err != nil {
		return nil, err
	}

	if len(opts.RPC) > 0 && opts.GPULayers >= 0 {
		if err := addServers(ctx, opts.RPC); err != nil {
			return nil, err
		}
	}
	params := C.llama_model_default_params()
	params.n_gpu_layers = C.int32_t(opts.GPULayers)
	switch {
	case opts.GPULayers == 0:
		params.n_gpu_layers = -1
	case opts.GPULayers < 0:
		params.n_gpu_layers = 0
		params.devices = &C.gallop_no_devices[0] // else a GPU multiplies long batches, which rounds otherwise
	}
	params.load_mode = C.int32_t(loadMode(opts))
	params.use_extra_bufts = C.bool(!opts.NoRepack)
	params.vocab_only = C.bool(opts.VocabOnly)

	watch := newWatch()
	defer C.free(unsafe.Pointer(watch))
	stop := followLoad(ctx, watch, opts.Progress)
	cpath := C.CString(path)
	defer C.free(unsafe.Pointer(cpath))
	var why C.struct_gallop_text
	ptr := C.gallop_load_model(cpath, params, watch, &why)
	stop()
	if ptr == nil {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("load %s: %w", path, err)
		}
		return nil, fmt.Errorf("%s: %w", path, cause(ErrModel, &why))
	}
	live.Add(1)
	m.ptr = ptr
	m.readFacts()
	if err := m.placeWeights(opts.Mlock); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	if opts.Progress != nil {
		opts.Progress(1)
	}
	return m, nil
}

// loadMode is llama.cpp's number for how the file's bytes get into memory.
func loadMode(opts *ModelOptions) int {
	switch {
	case opts.NoMmap && opts.Mlock:
		return 2
	case opts.NoMmap:
		return 0
	case opts.Mlock:
		return 3
	}
	return 1
}

// followLoad reports progress and passes on a cancelled ctx until stop is called.
func followLoad(ctx context.Context, watch *C.struct_gallop_watch, progress func(float32)) (stop func()) {
	done := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(progressInterval)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-ctx.Done():
				C.gallop_watch_stop(watch, true)
				return
			case <-tick.C:
				if progress != nil {
					progress(float32(C.gallop_watch_progress(watch)))
				}
			}
		}
	})
	return func() {
		close(done)
		running.Wait()
	}
}

func newWatch() *C.struct_gallop_watch {
	return (*C.struct_gallop_watch)(C.calloc(1, C.sizeof_struct_gallop_watch))
}

// What looks at a file before llama.cpp does. Tests of what is behind leave it out.
var checkFile, checkBytes = precheck, readByteless

// readFile takes from the file what llama.cpp's API does not give.
func (m *Model) readFile(forText bool) error {
	f, err := gguf.Open(m.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	if why := f.NoText(); forText && why != "" {
		return fmt.Errorf("%s: %w: %s", m.Path, ErrNoText, why)
	}
	m.paths = f.Paths()
	for _, t := range f.Tensors {
		m.Tensors = append(m.Tensors, Tensor{Name: t.Name, Shape: t.Shape, Type: t.Type.String(), Size: t.Size})
		m.places = append(m.places, place{part: t.Part, offset: uint64(f.Place(t))})
	}
	if m.Architecture, err = f.Metadata.Architecture(); err != nil {
		return fmt.Errorf("%s: %w: it names no architecture, so it is no language model", m.Path, ErrModel)
	}
	if err := m.readShape(f.Metadata); err != nil {
		return err
	}
	if err := checkFile(f, m.vocabOnly); err != nil {
		return fmt.Errorf("%s: %w", m.Path, err)
	}
	m.byteless = checkBytes(f.Metadata)
	m.keys, m.values = f.CacheWidths()
	m.control = controlTokens(f.Metadata)
	causal, err := f.Metadata.Bool(f.Metadata.ArchKey("attention.causal"))
	m.causal = err != nil || causal // causal unless the file says otherwise
	m.sampling = readSampling(f.Metadata)
	m.fingerprint, err = fingerprint(f)
	return err
}

// readShape takes the sizes from the metadata: llama.cpp does not tell them of
// a model without weights, and ends the process over an absurd layer count.
func (m *Model) readShape(meta gguf.Metadata) (err error) {
	if m.NLayer, err = meta.LayerCount(); err != nil && !errors.Is(err, gguf.ErrNoKey) {
		return fmt.Errorf("%s: %w: %w", m.Path, ErrModel, err)
	}
	size := func(key string) int {
		n, err := meta.UintPerLayer(meta.ArchKey(key), max(m.NLayer, 1))
		if err != nil {
			return 0 // llama.cpp refuses the model, or has a default
		}
		return int(n[0])
	}
	m.NEmbd = size("embedding_length")
	m.NCtxTrain = size("context_length")
	m.NHead = size("attention.head_count")
	m.NHeadKV = cmp.Or(size("attention.head_count_kv"), m.NHead)
	return nil
}

// fingerprint tells models apart: it covers the tensor list and a few bytes of
// some tensors, so that two trainings of one shape differ too.
func fingerprint(f *gguf.File) (uint64, error) {
	const samples, sampleBytes = 16, 64
	sum := fnv.New64a()
	every := max(len(f.Tensors)/samples, 1)
	for i, t := range f.Tensors {
		fmt.Fprintln(sum, t.Name, t.Shape, t.Type)
		if i%every != 0 {
			continue
		}
		if _, err := io.CopyN(sum, f.Reader(t), int64(min(t.Size, sampleBytes))); err != nil {
			return 0, fmt.Errorf("read %s: %w", f.Path, err)
		}
	}
	return sum.Sum64(), nil
}

// Fingerprint tells models apart: two trainings of one shape differ in it.
func (m *Model) Fingerprint() uint64 { return m.fingerprint }

// readFacts takes from the loaded model what never changes.
func (m *Model) readFacts() {
	if !m.vocabOnly {
		m.readSizes()
	}
	m.Description = readText(func(buf *C.char, n C.size_t) C.int32_t { return C.llama_model_desc(m.ptr, buf, n) })
	m.Metadata = map[string]string{}
	for i := range C.llama_model_meta_count(m.ptr) {
		key := readText(func(buf *C.char, n C.size_t) C.int32_t {
			return C.llama_model_meta_key_by_index(m.ptr, i, buf, n)
		})
		ckey := C.CString(key)
		m.Metadata[key] = readText(func(buf *C.char, n C.size_t) C.int32_t {
			return C.llama_model_meta_val_str(m.ptr, ckey, buf, n)
		})
		C.free(unsafe.Pointer(ckey))
	}
	if t := C.llama_model_chat_template(m.ptr, nil); t != nil {
		m.template = C.GoString(t)
	}
	vocab := C.llama_model_get_vocab(m.ptr)
	m.Vocab = newVocab(m, vocab)
	m.findEnd()
}

func (m *Model) readSizes() {
	m.NLayer = int(C.llama_model_n_layer(m.ptr))
	m.NEmbd = int(C.llama_model_n_embd(m.ptr))
	m.NHead = int(C.llama_model_n_head(m.ptr))
	m.NHeadKV = int(C.llama_model_n_head_kv(m.ptr))
	m.NCtxTrain = int(C.llama_model_n_ctx_train(m.ptr))
	m.Recurrent = bool(C.llama_model_is_recurrent(m.ptr)) || bool(C.llama_model_is_hybrid(m.ptr))
	m.Window = int(C.llama_model_n_swa(m.ptr))
	m.NParams = uint64(C.llama_model_n_params(m.ptr))
	m.Size = uint64(C.llama_model_size(m.ptr))
}

// readText calls a C function that fills a buffer and returns the text's full
// length, as often as the text needs to fit.
func readText(fill func(buf *C.char, n C.size_t) C.int32_t) string {
	for size := 256; ; {
		buf := (*C.char)(C.malloc(C.size_t(size)))
		n := int(fill(buf, C.size_t(size)))
		if n < size {
			defer C.free(unsafe.Pointer(buf))
			return C.GoStringN(buf, C.int(max(n, 0)))
		}
		C.free(unsafe.Pointer(buf))
		size = n + 1
	}
}

// Close gives the model's memory back once all its contexts are closed too.
// Further calls do nothing.
func (m *Model) Close() error {
	m.mu.Lock()
	before := m.closed
	m.closed = true
	m.mu.Unlock()
	if !before {
		m.release()
	}
	return nil
}

// retain keeps the C model alive for one more user.
func (m *Model) retain() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return fmt.Errorf("model %s: %w", m.Path, ErrClosed)
	}
	m.users++
	return nil
}

func (m *Model) release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.users--; m.users == 0 {
		C.llama_model_free(m.ptr)
		m.ptr = nil
		live.Add(-1)
		for _, data := range m.ends {
			_ = unmapBytes(data) // fails for addresses that are not mapped, which these are
		}
	}
}
