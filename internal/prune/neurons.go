package prune

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/gallop-llm/gallop/gguf"
)

// ErrNeurons is returned when kept neurons do not fit the model.
var ErrNeurons = errors.New("cannot prune these neurons")

// Kept are the neurons that stay of a layer's feed-forward.
type Kept struct {
	IDs  []int32   // by their numbers in the model, in the order of the file to be written; nil = all stay as they are
	Down []byte    // down's columns in this order, row by row
	Type gguf.Type // of Down
}

// keyFeedForward is the number of neurons, of all layers or of each.
const keyFeedForward = "feed_forward_length"

// Neurons writes a copy of the model src to dst in which each layer's feed-forward has the kept
// neurons alone, kept (nLayer,). Rows of gate and up are copied as they are, columns of down are
// given. Stock llama.cpp loads it as a model with narrower feed-forwards. Errors are as of [Layers]
// and [ErrNeurons].
func Neurons(ctx context.Context, src, dst string, kept []Kept, opts *Options) error {
	return write(ctx, src, dst, opts, func(f *gguf.File) (gguf.Metadata, []gguf.Source, error) { return sparse(f, kept) })
}

// sparse gives metadata and tensors of the file without the neurons.
func sparse(f *gguf.File, kept []Kept) (gguf.Metadata, []gguf.Source, error) {
	nLayer, err := f.Metadata.LayerCount()
	if err != nil || nLayer != len(kept) {
		return nil, nil, fmt.Errorf("%w: neurons of %d layers are given, the model has %d", ErrNeurons, len(kept), nLayer)
	}
	widths := make([]uint32, nLayer)
	var tensors []gguf.Source
	for _, t := range f.Tensors {
		source := f.Copy(t)
		layer, rest, ok := gguf.SplitLayer(t.Name)
		if !ok || layer >= nLayer {
			tensors = append(tensors, source)
			continue
		}
		k := kept[layer]
		down, hasDown := f.Tensor(fmt.Sprintf("blk.%d.ffn_down.weight", layer))
		if hasDown {
			widths[layer] = uint32(down.Shape[0])
		}
		if k.IDs != nil {
			if !hasDown {
				return nil, nil, fmt.Errorf("%w: layer %d has no feed-forward that is known", ErrNeurons, layer)
			}
			if source, err = k.part(f, t, rest, int(widths[layer])); err != nil {
				return nil, nil, err
			}
			widths[layer] = uint32(len(k.IDs))
		}
		tensors = append(tensors, source)
	}
	meta := slices.Clone(f.Metadata)
	for _, key := range []string{gguf.KeySplitCount, gguf.KeySplitNo, gguf.KeySplitTensors} {
		meta.Delete(key)
	}
	key := meta.ArchKey(keyFeedForward)
	for layer, k := range kept { // qwen counts twice as many as there are
		if k.IDs == nil {
			continue
		}
		old, err := f.Metadata.Uint(key)
		down, _ := f.Tensor(fmt.Sprintf("blk.%d.ffn_down.weight", layer))
		if err == nil {
			widths[layer] = uint32(old * uint64(len(k.IDs)) / down.Shape[0])
		}
	}
	old, _ := meta.Lookup(key)
	_, isArray := gguf.ArrayLen(old)
	switch {
	case isArray:
		meta.Set(key, widths)
	case slices.Min(widths) == slices.Max(widths):
		meta.Set(key, widths[0])
	default:
		return nil, nil, fmt.Errorf("%w: %d to %d stay of a layer, and llama.cpp loads feed-forwards of one width for this model", ErrNeurons, slices.Min(widths), slices.Max(widths))
	}
	return meta, tensors, nil
}

// part is what stays of a tensor of a layer with width neurons, whose name is blk.N.rest.
func (k *Kept) part(f *gguf.File, t gguf.Tensor, rest string, width int) (gguf.Source, error) {
	source := f.Copy(t)
	shape := slices.Clone(t.Shape)
	switch rest {
	case "ffn_down.weight":
		source.Tensor.Type = k.Type
		shape[0] = uint64(len(k.IDs))
		if size, err := k.Type.Size(shape); err != nil || size != uint64(len(k.Down)) {
			return source, fmt.Errorf("%w: %d bytes of columns for %d neurons of %s", ErrNeurons, len(k.Down), len(k.IDs), t.Name)
		}
		source.Data = gguf.Bytes(k.Down)
	case "ffn_gate.weight", "ffn_up.weight", "ffn_gate.bias", "ffn_up.bias":
		rows := int(shape[len(shape)-1])
		if rows%width != 0 {
			return source, fmt.Errorf("%w: %s has %d rows for %d neurons", ErrNeurons, t.Name, rows, width)
		}
		halves, size := rows/width, int64(t.Size)/int64(rows)
		shape[len(shape)-1] = uint64(halves * len(k.IDs))
		for _, id := range k.IDs {
			if id < 0 || int(id) >= width {
				return source, fmt.Errorf("%w: neuron %d of %s, which has %d", ErrNeurons, id, t.Name, width)
			}
		}
		source.Data = func(w io.Writer) error {
			data, err := io.ReadAll(f.Reader(t))
			for half := range halves {
				for _, id := range k.IDs {
					if err == nil {
						_, err = w.Write(data[int64(half*width+int(id))*size:][:size])
					}
				}
			}
			return err
		}
	default:
		return source, nil
	}
	source.Tensor.Shape = shape
	return source, nil
}
