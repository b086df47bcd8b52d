package llama

/*
#include <stdlib.h>
#include "neurons.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/skip"
)

// ErrNeurons is returned when neurons of a model cannot be left out; the error says why.
var ErrNeurons = errors.New("no neurons can be left out")

// NeuronBlock is how many neurons are chosen or left out together: a block of most quantised types.
const NeuronBlock = 32

// FeedForward is the feed-forward of a layer. A neuron is a row of its gate and up, with the
// column of its down.
type FeedForward struct {
	Width int    // neurons; 0 = the layer has no feed-forward
	Down  Tensor // (Width, NEmbd)

	down int   // place of Down in Model.Tensors
	rows []int // places of gate and up (NEmbd, Width), or of both in one (NEmbd, 2·Width), and of their biases
}

// Bytes is how many bytes of the file a neuron takes, with the column of its down.
func (f *FeedForward) Bytes(m *Model) float64 {
	if f.Width == 0 {
		return 0
	}
	sum := f.Down.Size
	for _, i := range f.rows {
		sum += m.Tensors[i].Size
	}
	return float64(sum) / float64(f.Width)
}

// FeedForwards are those of the layers, (NLayer,). The error wraps [ErrNeurons] where the
// model's neurons cannot be left out: mixtures of experts, weights on a GPU or not mapped, layers
// that share weights.
func (m *Model) FeedForwards() ([]FeedForward, error) {
	refuse := func(format string, args ...any) ([]FeedForward, error) {
		return nil, fmt.Errorf("%w: "+format, append([]any{ErrNeurons}, args...)...)
	}
	switch gpu := outputDevice(m.gpuLayers, Devices()); {
	case m.vocabOnly:
		return refuse("%s was loaded without its weights", m.Path)
	case gpu != "":
		return refuse("layers are on a GPU, %s", gpu)
	case m.runsBlocksAgain():
		return refuse("layers share their weights")
	}
	layers := make([]FeedForward, m.NLayer)
	for i, t := range m.Tensors {
		layer, rest, ok := gguf.SplitLayer(t.Name)
		if !ok || layer >= m.NLayer || !strings.HasPrefix(rest, "ffn_") {
			continue
		}
		f := &layers[layer]
		switch {
		case strings.Contains(rest, "exp"): // or those that all tokens share
			return refuse("the feed-forwards are mixtures of experts, of which the model itself chooses for each token")
		case rest == "ffn_down.weight":
			f.Width, f.Down, f.down = int(t.Shape[0]), t, i
		case slices.Contains([]string{"ffn_gate.weight", "ffn_up.weight", "ffn_gate.bias", "ffn_up.bias"}, rest):
			f.rows = append(f.rows, i)
		}
	}
	none := true
	for l := range layers {
		f := &layers[l]
		none = none && f.Width == 0
		for _, i := range append(slices.Clone(f.rows), f.down) {
			if f.Width > 0 && m.rowBytes(i) == 0 {
				return refuse("%s is not in main memory as in the file: load the model mapped", m.Tensors[i].Name)
			}
		}
		for _, i := range f.rows {
			if n := last(m.Tensors[i].Shape); f.Width > 0 && n != uint64(f.Width) && n != 2*uint64(f.Width) {
				return refuse("%s has %d rows, which do not fit %d neurons", m.Tensors[i].Name, n, f.Width)
			}
		}
		if f.Width%NeuronBlock != 0 || f.Width > 0 && len(f.rows) == 0 {
			return refuse("layer %d has %d neurons in matrices that are not known: blocks of %d are left out", l, f.Width, NeuronBlock)
		}
	}
	if none {
		return refuse("its layers have no feed-forwards that are known")
	}
	return layers, nil
}

func last(shape []uint64) uint64 { return shape[len(shape)-1] }

// rowBytes is where a tensor's bytes are as in the file; 0 = nowhere.
func (m *Model) rowBytes(i int) uintptr {
	if p := m.places[i]; !p.repacked() {
		return p.used
	}
	return m.places[i].file
}

// rows are the bytes of a matrix row by row as in the file, in memory that belongs to the
// model: they must not be written, nor read after Close.
func (m *Model) rows(i int) []byte {
	at := m.rowBytes(i)
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&at)), m.Tensors[i].Size)
}

// SortDown gives the columns of a feed-forward's down in the order of ids (Width,), row by row in
// another type. Blocks of a type that are kept whole, and numbers that are no blocks, are copied as they are; others are
// quantised anew, with weights (Width,) for the errors of columns, in the model's order. The error wraps [ErrNeurons].
func (m *Model) SortDown(f *FeedForward, ids []int32, to gguf.Type, weights []float32) ([]byte, error) {
	elements, bytes := to.Block()
	seen := make([]bool, f.Width)
	for _, id := range ids {
		if id < 0 || int(id) >= f.Width || seen[id] {
			return nil, fmt.Errorf("%w: an order of %d neurons has neuron %d twice or where there is none", ErrOption, f.Width, id)
		}
		seen[id] = true
	}
	if len(ids) != f.Width || len(weights) != f.Width || elements == 0 || NeuronBlock%elements != 0 {
		return nil, fmt.Errorf("%w: an order of %d neurons and columns of type %s for %d neurons", ErrOption, len(ids), to, f.Width)
	}
	if err := m.retain(); err != nil {
		return nil, err
	}
	defer m.release()
	out := make([]byte, f.Down.Shape[1]*uint64(f.Width)/elements*bytes)
	from := m.rows(f.down)
	if !C.gallop_sort_columns(m.weight(f.Down.Name), unsafe.Pointer(&from[0]), (*C.int32_t)(&ids[0]), (*C.float)(&weights[0]), C.int32_t(to), unsafe.Pointer(&out[0])) {
		return nil, fmt.Errorf("%w: llama.cpp cannot convert %s from %s to %s", ErrNeurons, f.Down.Name, f.Down.Type, to)
	}
	return out, nil
}

// Neurons is the part of a model's feed-forwards that some of their neurons need: smaller
// matrices beside the model, which decodes under masks with a share of neurons multiplies with
// in place of the model's (GRIFFIN, Dong et al., arXiv 2404.01365).
type Neurons struct {
	part
	Size uint64 // bytes

	c      *C.struct_gallop_neurons // owned
	layers []keptLayer
}

// keptLayer are the smaller matrices of a layer.
type keptLayer struct {
	n     int // neurons; 0 = the layer keeps all
	down  keptPart
	rows  []keptPart
	bytes []byte // scratch
}

type keptPart struct {
	tensor *C.struct_ggml_tensor // Neurons.c's
	from   int                   // place of the model's
	size   uint64
	halves int // 2: gate's rows, then up's
}

// NewNeurons makes room for kept[layer] neurons of each layer, a multiple of [NeuronBlock];
// a layer that keeps all neurons, or 0, computes with the model's own matrices. downs are the types
// that the columns are to be given in. [Neurons.Set] must fill in every other layer before a decode.
func (m *Model) NewNeurons(kept []int, downs []gguf.Type) (*Neurons, error) {
	ff, err := m.FeedForwards()
	if err != nil {
		return nil, err
	}
	if len(kept) != len(ff) || len(downs) != len(ff) {
		return nil, fmt.Errorf("%w: %d numbers of neurons for %d layers", ErrOption, len(kept), len(ff))
	}
	n := &Neurons{layers: make([]keptLayer, len(ff))}
	var parts []C.struct_gallop_part
	var places []*keptPart
	for l := range ff {
		f, k := &ff[l], &n.layers[l]
		switch {
		case kept[l] < 0 || kept[l] > f.Width || kept[l]%NeuronBlock != 0:
			return nil, fmt.Errorf("%w: %d of layer %d's %d neurons, want a multiple of %d", ErrOption, kept[l], l, f.Width, NeuronBlock)
		case kept[l] == 0 || kept[l] == f.Width:
			continue
		}
		k.n = kept[l]
		elements, bytes := downs[l].Block()
		if elements == 0 || uint64(k.n)%elements != 0 {
			return nil, fmt.Errorf("%w: columns of type %s cannot be chosen in blocks of %d", ErrNeurons, downs[l], NeuronBlock)
		}
		k.rows = make([]keptPart, len(f.rows))
		for r, i := range f.rows {
			t := m.Tensors[i]
			p := &k.rows[r]
			p.from, p.halves = i, int(last(t.Shape))/f.Width
			p.size = t.Size / uint64(f.Width) * uint64(k.n)
			part := C.struct_gallop_part{whole: m.weight(t.Name)}
			part._type, part.ne0 = part.whole._type, C.int64_t(k.n*p.halves)
			if len(t.Shape) > 1 {
				part.ne0, part.ne1 = C.int64_t(t.Shape[0]), C.int64_t(k.n*p.halves)
			}
			parts, places = append(parts, part), append(places, p)
		}
		k.down.from = f.down
		k.down.size = uint64(k.n) / elements * bytes * f.Down.Shape[1]
		parts = append(parts, C.struct_gallop_part{whole: m.weight(f.Down.Name), _type: C.int32_t(downs[l]), ne0: C.int64_t(k.n),
			ne1: C.int64_t(f.Down.Shape[1]), down: true})
		places = append(places, &k.down)
		n.Size += k.down.size
		for _, p := range k.rows {
			n.Size += p.size
		}
	}
	if len(parts) == 0 {
		return nil, fmt.Errorf("%w: every layer keeps all", ErrOption)
	}
	if err := m.retain(); err != nil {
		return nil, err
	}
	n.c = (*C.struct_gallop_neurons)(C.calloc(1, C.sizeof_struct_gallop_neurons))
	list := (*C.struct_gallop_part)(C.calloc(C.size_t(len(parts)), C.sizeof_struct_gallop_part))
	defer C.free(unsafe.Pointer(list))
	copy(unsafe.Slice(list, len(parts)), parts)
	if !C.gallop_new_neurons(n.c, list, C.int32_t(len(parts)), C.bool(m.repacks)) {
		C.free(unsafe.Pointer(n.c))
		m.release()
		return nil, fmt.Errorf("%w: no memory for %d bytes", ErrNeurons, n.Size)
	}
	for i, part := range unsafe.Slice(list, len(parts)) {
		places[i].tensor = part.kept
	}
	n.part = newPart(m, func() {
		C.gallop_free_neurons(n.c)
		C.free(unsafe.Pointer(n.c))
		n.c = nil
	})
	return n, nil
}

// weight is the model's tensor of this name.
func (m *Model) weight(name string) *C.struct_ggml_tensor {
	cname := C.CString(name)
	defer C.free(unsafe.Pointer(cname))
	return C.gallop_find_weight(m.ptr, cname)
}

// Kept is how many neurons of a layer there is room for; 0 = the layer keeps all.
func (n *Neurons) Kept(layer int) int { return n.layers[layer].n }

// Set fills in a layer's neurons: the rows of ids are copied as they are in the file, in this
// order, and down has the columns in the same order, row by row in the type that NewNeurons was
// given. No decode must use n meanwhile. Layers may be set at the same time.
func (n *Neurons) Set(layer int, ids []int32, down []byte) error {
	if n.closed {
		return fmt.Errorf("set neurons: %w", ErrClosed)
	}
	k := &n.layers[layer]
	if len(ids) != k.n || uint64(len(down)) != k.down.size {
		return fmt.Errorf("%w: %d neurons and %d bytes of columns for layer %d, want %d and %d", ErrOption, len(ids), len(down), layer, k.n, k.down.size)
	}
	if k.n == 0 {
		return nil
	}
	for _, p := range k.rows {
		whole := n.model.rows(p.from)
		all := int(last(n.model.Tensors[p.from].Shape)) / p.halves // neurons
		row := len(whole) / (all * p.halves)
		k.bytes = slices.Grow(k.bytes[:0], int(p.size))
		for half := range p.halves {
			for _, id := range ids {
				if id < 0 || int(id) >= all {
					return fmt.Errorf("%w: neuron %d of layer %d, want 0 to %d", ErrOption, id, layer, all-1)
				}
				k.bytes = append(k.bytes, whole[(half*all+int(id))*row:][:row]...)
			}
		}
		C.gallop_set_part(p.tensor, unsafe.Pointer(&k.bytes[0]), C.size_t(len(k.bytes)))
		if at := n.model.places[p.from]; n.model.pageable && at.repacked() { // what was read would stand in memory a second time
			if err := n.model.drop(at.file, n.model.Tensors[p.from].Size); err != nil {
				return err
			}
		}
	}
	C.gallop_set_part(k.down.tensor, unsafe.Pointer(&down[0]), C.size_t(len(down)))
	return nil
}

// SetNeurons lets the context decode under masks that leave out neurons by the choice of this
// number, 0 to 127; nil = no longer. n stays alive while a context uses it.
func (c *Context) SetNeurons(choice int, n *Neurons) error {
	switch {
	case c.ptr == nil || n != nil && n.closed:
		return fmt.Errorf("set neurons: %w", ErrClosed)
	case choice < 0 || choice >= C.LAYERSKIP_CHOICES:
		return fmt.Errorf("%w: choice %d of neurons, want 0 to %d", ErrOption, choice, C.LAYERSKIP_CHOICES-1)
	case n != nil && n.model != c.Model:
		return fmt.Errorf("%w: they were chosen for another model", ErrNeurons)
	}
	if c.neurons == nil {
		c.neurons = map[int]*Neurons{}
	}
	before := c.neurons[choice]
	if before == n {
		return nil
	}
	c.own.skip.neurons[choice] = nil
	delete(c.neurons, choice)
	if n != nil {
		c.own.skip.neurons[choice] = &n.c.list
		c.neurons[choice] = n
		n.retain()
	}
	// A graph that was built for the choice before reads its matrices.
	c.own.skip.built[C.LAYERSKIP_NEURONS] = ^C.uint64_t(0)
	if before != nil {
		before.release()
	}
	return nil
}

// checkNeurons refuses masks whose neurons cannot be left out in this batch.
func (c *Context) checkNeurons(b *Batch, mask skip.Mask) error {
	one := func(m *skip.Mask) error {
		if m.Neurons() != 0 && c.neurons[m.NeuronChoice()] == nil {
			return fmt.Errorf("%w: it leaves out neurons, but none were chosen", ErrMask)
		}
		return nil
	}
	if !b.several() {
		return one(&mask)
	}
	masks := unsafe.Slice((*skip.Mask)(unsafe.Pointer(b.rows.masks)), b.rows.n_masks)
	for i := range masks {
		if !masks[i].SameNeurons(masks[0]) {
			return fmt.Errorf("%w: sequences without the same neurons cannot be decoded together", ErrMask)
		}
	}
	return one(&masks[0])
}

// Activity tells how active each neuron of a layer was: the mean, over tokens, of its squared
// activation as a share of those of all of the layer's neurons.
type Activity struct {
	Tokens int       // 0 = nothing was measured
	Sums   []float32 // (Width,) of the tokens' shares; C's memory
}

// MeasureActivity says whether decodes measure how active neurons are, in masks without
// neurons. It changes no result. Measuring takes memory for each sequence. The error wraps [ErrNeurons] for models
// whose neurons cannot be left out.
func (c *Context) MeasureActivity(on bool) error {
	if c.ptr == nil {
		return fmt.Errorf("measure activity: %w", ErrClosed)
	}
	c.activity = nil
	if !on {
		C.gallop_measure_activity(c.own, nil, 0, 0, 0)
		return nil
	}
	ff, err := c.Model.FeedForwards()
	if err != nil {
		return err
	}
	at := make([]int, len(ff))
	var downs []*C.struct_ggml_tensor
	for l, f := range ff {
		at[l] = -1
		if f.Width > 0 {
			at[l] = len(downs)
			downs = append(downs, c.Model.weight(f.Down.Name))
		}
	}
	list := (**C.struct_ggml_tensor)(C.calloc(C.size_t(len(downs)), C.size_t(unsafe.Sizeof(uintptr(0)))))
	defer C.free(unsafe.Pointer(list))
	copy(unsafe.Slice(list, len(downs)), downs)
	if !C.gallop_measure_activity(c.own, list, C.int32_t(len(downs)), C.int32_t(c.nSeq), C.int32_t(c.NBatch())) {
		return fmt.Errorf("%w: no memory to measure them", ErrNeurons)
	}
	c.activity = at
	return nil
}

// MeasuresActivity tells whether decodes do.
func (c *Context) MeasuresActivity() bool { return c.activity != nil }

// Activity is what was measured of a layer in a sequence's tokens since the last
// [Context.ResetActivity]. In the last layer llama.cpp computes the tokens alone whose outputs are wanted.
func (c *Context) Activity(seq, layer int) Activity {
	if c.ptr == nil || c.activity == nil || c.checkSequences(seq) != nil || layer < 0 || layer >= len(c.activity) || c.activity[layer] < 0 {
		return Activity{}
	}
	l := &unsafe.Slice(c.own.activity.layers, c.own.activity.n)[c.activity[layer]]
	width := int(l.n_ff)
	return Activity{
		Tokens: int(unsafe.Slice(l.n, c.nSeq)[seq]),
		Sums:   unsafe.Slice((*float32)(unsafe.Pointer(l.sums)), c.nSeq*width)[seq*width:][:width],
	}
}

// ResetActivity forgets what was measured of a sequence.
func (c *Context) ResetActivity(seq int) {
	if c.ptr != nil && c.activity != nil && c.checkSequences(seq) == nil {
		C.gallop_reset_activity(c.own.activity, C.int32_t(seq))
	}
}

// owners tells whose tokens the batch has to what measures activity.
func (c *Context) owners(b *Batch) {
	a := c.own.activity
	if a == nil {
		return
	}
	owners := unsafe.Slice(a.owners, c.NBatch())
	a.n_tokens, a.only = C.int32_t(b.Len()), C.int32_t(b.sequences(0)[0])
	for i := range b.Len() {
		if owners[i] = C.int32_t(b.sequences(i)[0]); owners[i] != a.only {
			a.only = -1
		}
	}
}
