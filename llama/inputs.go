package llama

/*
#include "glue.h"
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// ReadLayerInputs says whether the decodes to come read what goes into each layer,
// in a context made with [ContextOptions].LayerInputs; at first they do not.
// Reading changes no result and takes memory for every token of a batch in every
// layer, until the context is closed.
func (c *Context) ReadLayerInputs(on bool) {
	if c.ptr != nil && c.own.inputs != nil {
		c.own.inputs.wanted = C.bool(on)
	}
}

// LayerInput gives the residual stream (nEmbd,) in front of a layer, 1 to nLayer-1,
// at place i of the last batch, which was decoded without a mask while layer inputs
// were read. Whoever decodes it again in a token's place, with [Batch.AddEmbedding]
// and under a mask that skips all layers below, computes the same from there on,
// as long as the model adds nothing to embeddings, lower layers' results are used
// nowhere else, and the stream is neither scaled nor normed between layers. The slice
// is C's memory, valid until the next Decode or Close.
//
// The error wraps [ErrOption] for a layer out of range, or [ErrNoOutput]: nothing
// was recorded, or rows could not be matched to tokens for this architecture or batch.
func (c *Context) LayerInput(layer, i int) ([]float32, error) {
	if layer < 1 || layer >= c.Model.NLayer {
		return nil, fmt.Errorf("layer input: %w: layer %d, want 1 to %d", ErrOption, layer, c.Model.NLayer-1)
	}
	if c.ptr == nil {
		return nil, fmt.Errorf("layer input: %w", ErrClosed)
	}
	if c.own.inputs != nil && c.unified && i >= 0 && i < c.nOut { // other caches' batches may be computed in another order
		rows := &c.own.inputs.after[layer-1]
		if int(rows.n) == c.nOut && int(rows.width) == c.Model.NEmbd {
			all := unsafe.Slice((*float32)(unsafe.Pointer(rows.data)), c.nOut*c.Model.NEmbd)
			return all[i*c.Model.NEmbd:][:c.Model.NEmbd], nil
		}
	}
	return nil, fmt.Errorf("input of layer %d, token %d: %w", layer, i, ErrNoOutput)
}
