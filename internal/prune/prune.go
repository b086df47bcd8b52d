package prune

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/gallop-llm/gallop/gguf"
)

// KeyPruned is the metadata key under which a pruned file lists, as uint32 and
// sorted, the layers that it lacks, by their numbers in the original model.
// llama.cpp does not look at it.
const KeyPruned = "gallop.pruned_layers"

// Errors of [Layers]. Each is wrapped in a sentence with the values at fault.
var (
	// ErrLayers is returned when the layer list is empty, names a layer
	// that the model does not have, or names all of them.
	ErrLayers = errors.New("cannot prune these layers")

	// ErrUnprunable is returned when no file can express the pruned model, or
	// when it is not known whether one can. Skipping at run time works all the
	// same.
	ErrUnprunable = errors.New("cannot prune this model")

	// ErrTarget is returned when the target is the source itself, or is
	// there already and may not be replaced.
	ErrTarget = errors.New("cannot write the pruned model there")
)

// Options are the options of [Layers]; nil means the defaults.
type Options struct {
	// Overwrite allows a file at the target to be replaced. Default: refuse.
	Overwrite bool

	// Progress, when set, is called now and then with the bytes of tensor data
	// written so far and in total.
	Progress func(done, total int64)
}

// Layers writes a copy of the model src to dst without the given layers, in any
// order. Stock llama.cpp loads it as a smaller model and computes with it what
// it computes with src under a mask of the same whole layers: bit for bit, unless
// the last layer is among them and a prompt is processed in one batch. Then the
// new last layer works on the rows with wanted logits alone, and llama.cpp may
// sum fewer rows in another order.
//
// The layers that stay are renumbered; every metadata array with one value for
// each layer is shortened; all else is copied byte for byte. [KeyPruned] records
// what is gone.
//
// Where the kind of a layer depends on its number (every sixth has full attention,
// say), the layers behind a gap would change their kind. Layers refuses such
// models, and all that it does not know for certain to be free of this, with
// [ErrUnprunable].
//
// dst appears only when it is complete; after any failure, a full disk or a
// cancelled context nothing is left of it.
func Layers(ctx context.Context, src, dst string, layers []int, opts *Options) error {
	return write(ctx, src, dst, opts, func(f *gguf.File) (gguf.Metadata, []gguf.Source, error) { return reduce(f, layers) })
}

// write writes what change makes of the model src.
func write(ctx context.Context, src, dst string, opts *Options, change func(*gguf.File) (gguf.Metadata, []gguf.Source, error)) error {
	opts = cmp.Or(opts, &Options{})
	f, err := gguf.Open(src)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, part := range f.Paths() {
		if err := checkTarget(part, dst, opts.Overwrite); err != nil {
			return err
		}
	}
	meta, tensors, err := change(f)
	if err != nil {
		return fmt.Errorf("%s: %w", src, err)
	}
	return gguf.Write(ctx, dst, meta, tensors, &gguf.WriteOptions{Progress: opts.Progress})
}

func checkTarget(src, dst string, overwrite bool) error {
	from, err := os.Stat(src)
	if err != nil {
		return fmt.Errorf("cannot read the model: %w", err)
	}
	to, err := os.Stat(dst)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("%w: %w", ErrTarget, err)
	case os.SameFile(from, to):
		return fmt.Errorf("%w: %s is the model to be pruned, give another name", ErrTarget, dst)
	case !overwrite:
		return fmt.Errorf("%w: %s is there already, remove it or give another name", ErrTarget, dst)
	}
	return nil
}

// reduce gives the pruned file's metadata and tensors.
func reduce(f *gguf.File, layers []int) (gguf.Metadata, []gguf.Source, error) {
	if err := checkPrunable(f.Metadata); err != nil {
		return nil, nil, err
	}
	nLayer, err := f.Metadata.LayerCount()
	if err != nil {
		return nil, nil, fmt.Errorf("%w: it is no language model: %w", ErrUnprunable, err)
	}
	kept, err := keptLayers(layers, nLayer)
	if err != nil {
		return nil, nil, err
	}
	meta, err := pruneMetadata(f.Metadata, kept, nLayer)
	if err != nil {
		return nil, nil, err
	}
	tensors, err := pruneTensors(f, kept, nLayer)
	return meta, tensors, err
}

// keptLayers gives the numbers of the layers that stay, (nKept,), sorted.
func keptLayers(layers []int, nLayer int) ([]int, error) {
	if len(layers) == 0 {
		return nil, fmt.Errorf("%w: none are given", ErrLayers)
	}
	var kept []int
	for layer := range nLayer {
		if !slices.Contains(layers, layer) {
			kept = append(kept, layer)
		}
	}
	if low, high := slices.Min(layers), slices.Max(layers); low < 0 || high >= nLayer {
		return nil, fmt.Errorf("%w: %v are given, the model has 0 to %d", ErrLayers, layers, nLayer-1)
	}
	if len(kept) == 0 {
		return nil, fmt.Errorf("%w: all %d are given, at least one must stay", ErrLayers, nLayer)
	}
	return kept, nil
}

// prunable are the architectures whose layers are known not to depend on their
// number or on the number of layers, other than through the metadata that
// pruneMetadata handles. Known from llama.cpp's graph of each.
var prunable = []string{
	"deepseek", "gemma", "granite", "granitemoe", "llama", "mistral3", "olmoe", "phi3",
	"qwen2", "qwen2moe", "qwen3", "qwen3moe", "stablelm", "starcoder2",
}

// Why well-known architectures cannot be pruned.
const (
	windowByNumber    = "which of its layers see a sliding window goes by their number"
	ropeByNumber      = "which of its layers encode positions goes by their number"
	recurrentByNumber = "which of its layers are recurrent goes by their number"
	expertsByNumber   = "which of its layers have experts goes by their number"
	extraLayers       = "it ends in layers that predict further tokens"
	sharedCache       = "its last layers use the attention cache of earlier ones"
	imagesByNumber    = "its first layers take in images by their number"
)

var unprunable = map[string]string{
	"afmoe":           windowByNumber,
	"cohere2":         windowByNumber,
	"exaone-moe":      windowByNumber,
	"exaone4":         windowByNumber,
	"gemma-embedding": windowByNumber,
	"gemma2":          windowByNumber,
	"gemma3":          windowByNumber,
	"gemma3n":         sharedCache,
	"gemma4":          sharedCache,
	"gpt-oss":         windowByNumber,
	"llama4":          windowByNumber,
	"modern-bert":     windowByNumber,
	"olmo2":           windowByNumber,
	"plamo3":          windowByNumber,
	"smallthinker":    windowByNumber,
	"smollm3":         ropeByNumber,
	"qwen35":          recurrentByNumber,
	"qwen35moe":       recurrentByNumber,
	"qwen3next":       recurrentByNumber,
	"ernie4_5-moe":    expertsByNumber,
	"glm-dsa":         extraLayers,
	"glm4moe":         extraLayers,
	"qwen3vl":         imagesByNumber,
	"qwen3vlmoe":      imagesByNumber,
}

// numberedKeys are keys, under the architecture's prefix, that give layers a
// meaning by their number: a period, a count from the start or the end, a list.
// No architecture in prunable is known to use them, so their presence, other
// than as 0, means a variant that is not known.
var numberedKeys = []string{
	"attention.shared_kv_layers", "attention.sliding_window_pattern", "deepstack_mapping",
	"full_attention_interval", "hash_layer_count", "interleave_moe_layer_step", "moe_every_n_layers",
	"n_deepstack_layers", "nextn_predict_layers", "num_loops", "ple.layers",
	"rescale_every_n_layers", "target_layers",
}

// layerArrays are the keys, under the prefix, that may hold one value for each
// layer in place of a single one for all.
var layerArrays = []string{
	"attention.head_count", "attention.head_count_kv", "attention.recurrent_layers",
	"attention.sliding_window_pattern", "feed_forward_length",
}

// otherArrays are the keys, under the prefix, whose arrays have nothing to do
// with layers, whatever their length.
var otherArrays = []string{"classifier.output_labels", "rope.dimension_sections"}

// keyLeadingDense counts the layers, from the first, that have a plain
// feed-forward in a model with experts.
const keyLeadingDense = "leading_dense_block_count"

func checkPrunable(meta gguf.Metadata) error {
	arch, err := meta.Architecture()
	if err != nil {
		return fmt.Errorf("%w: it is no language model: %w", ErrUnprunable, err)
	}
	if !slices.Contains(prunable, arch) {
		why := cmp.Or(unprunable[arch], "it is not known whether its layers depend on their number")
		return fmt.Errorf("%w: architecture %s: %s; skip layers at run time instead", ErrUnprunable, arch, why)
	}
	for _, key := range numberedKeys {
		if value, ok := meta.Lookup(meta.ArchKey(key)); ok && !harmless(key, value) {
			return fmt.Errorf("%w: its %q gives layers a meaning by their number; skip layers at run time instead", ErrUnprunable, meta.ArchKey(key))
		}
	}
	return nil
}

// harmless reports whether a numbered key has a value that says nothing, or one
// for each layer, which pruneMetadata handles.
func harmless(key string, value any) bool {
	if _, isArray := gguf.ArrayLen(value); isArray {
		return slices.Contains(layerArrays, key)
	}
	return reflect.ValueOf(value).IsZero()
}

// pruneMetadata gives the metadata of the pruned file, in the old order.
func pruneMetadata(old gguf.Metadata, kept []int, nLayer int) (gguf.Metadata, error) {
	meta := slices.Clone(old)
	for _, key := range []string{gguf.KeySplitCount, gguf.KeySplitNo, gguf.KeySplitTensors} {
		meta.Delete(key) // the pruned model is one file
	}
	prefix := old.ArchKey("")
	for i, kv := range meta {
		key, own := strings.CutPrefix(kv.Key, prefix)
		n, isArray := gguf.ArrayLen(kv.Value)
		switch {
		case !own || !isArray || slices.Contains(otherArrays, key):
		case slices.Contains(layerArrays, key) && n == nLayer:
			meta[i].Value = pick(kv.Value, kept)
		case slices.Contains(layerArrays, key):
			return nil, fmt.Errorf("%w: %q has %d values for %d layers", ErrUnprunable, kv.Key, n, nLayer)
		case n == nLayer:
			return nil, fmt.Errorf("%w: it is not known whether the %d values of %q are one for each layer", ErrUnprunable, n, kv.Key)
		}
	}
	setNumber(meta, meta.ArchKey(gguf.KeyBlockCount), func(uint64) int { return len(kept) })
	setNumber(meta, meta.ArchKey(keyLeadingDense), func(lead uint64) int {
		firstRouted := slices.IndexFunc(kept, func(layer int) bool { return uint64(layer) >= lead })
		if firstRouted < 0 {
			return len(kept)
		}
		return firstRouted
	})
	pruned, err := prunedLayers(old, kept, nLayer)
	if err != nil {
		return nil, err
	}
	meta.Set(KeyPruned, pruned)
	return meta, nil
}

// pick gives the elements of an array value at the given places, in an array of
// the same type.
func pick(array any, places []int) any {
	from := reflect.ValueOf(array)
	to := reflect.MakeSlice(from.Type(), 0, len(places))
	for _, i := range places {
		to = reflect.Append(to, from.Index(i))
	}
	return to.Interface()
}

// setNumber changes a whole number in its place, keeping its type. A missing
// key stays missing.
func setNumber(meta gguf.Metadata, key string, change func(old uint64) int) {
	old, err := meta.Uint(key)
	if err != nil {
		return
	}
	value, _ := meta.Lookup(key)
	meta.Set(key, reflect.ValueOf(change(old)).Convert(reflect.TypeOf(value)).Interface())
}

// prunedLayers gives the value of KeyPruned. A file that has been pruned before
// numbers its layers anew, so they are first led back to the original.
func prunedLayers(old gguf.Metadata, kept []int, nLayer int) ([]uint32, error) {
	before, err := old.Uints(KeyPruned)
	switch {
	case errors.Is(err, gguf.ErrNoKey):
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnprunable, err)
	case len(before) > gguf.MaxLayers || slices.ContainsFunc(before, func(l uint64) bool { return l >= gguf.MaxLayers }):
		return nil, fmt.Errorf("%w: %q names layers that no model has", ErrUnprunable, KeyPruned)
	}
	pruned := []uint32{}
	for _, layer := range before {
		pruned = append(pruned, uint32(layer))
	}
	original := uint32(0)
	for layer := range nLayer {
		for slices.Contains(before, uint64(original)) {
			original++
		}
		if !slices.Contains(kept, layer) {
			pruned = append(pruned, original)
		}
		original++
	}
	slices.Sort(pruned)
	return pruned, nil
}

// pruneTensors gives the tensors of the pruned file, in the old order.
func pruneTensors(f *gguf.File, kept []int, nLayer int) ([]gguf.Source, error) {
	sources := []gguf.Source{}
	for _, t := range f.Tensors {
		source := f.Copy(t)
		if layer, rest, ok := gguf.SplitLayer(t.Name); ok {
			if layer >= nLayer {
				return nil, fmt.Errorf("%w: tensor %q is behind its last layer, %d", ErrUnprunable, t.Name, nLayer-1)
			}
			number, stays := slices.BinarySearch(kept, layer)
			if !stays {
				continue
			}
			source.Tensor.Name = fmt.Sprintf("blk.%d.%s", number, rest)
		}
		sources = append(sources, source)
	}
	return sources, nil
}
