package llama

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/gallop-llm/gallop/gguf"
)

// Bounds of llama.cpp v0.5.0, which ends the process beyond them.
const (
	maxExperts = 512
	maxPooling = 4 // rank
)

// tokenizerKey are the keys of a file's vocabulary.
const tokenizerKey = "tokenizer.ggml."

// precheck finds in a file's metadata what llama.cpp would end the process over, or
// read memory for that is not there. It knows no more than that: what llama.cpp
// refuses in words is left to it. The error wraps [ErrModel].
func precheck(f *gguf.File, vocabOnly bool) error {
	c := checker{meta: f.Metadata, file: f}
	c.tokens()
	if !vocabOnly {
		c.types()
		c.projections()
		c.finite()
		c.experts()
		c.attention()
		c.rotary()
		c.recurrent()
	}
	if c.err != nil {
		return fmt.Errorf("%w: %w", ErrModel, c.err)
	}
	return nil
}

// checker looks at metadata; the first fault stays.
type checker struct {
	meta gguf.Metadata
	file *gguf.File
	err  error
}

func (c *checker) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format+"; fetch or convert the model anew", args...)
	}
}

// number is a whole number under the architecture's prefix; missing is what stands
// for one that is not there.
func (c *checker) number(key string, missing uint64) uint64 {
	return c.whole(c.meta.ArchKey(key), missing)
}

func (c *checker) whole(key string, missing uint64) uint64 {
	n, err := c.meta.Uint(key)
	if err != nil {
		if !errors.Is(err, gguf.ErrNoKey) {
			c.err = cmp.Or(c.err, err)
		}
		return missing
	}
	if n > math.MaxInt32 {
		c.fail("%.64q is %d, the most is %d", key, n, math.MaxInt32)
		return missing
	}
	return n
}

// each is a whole number of every layer, or of all of them.
func (c *checker) each(key string) []uint64 {
	layers := int(min(c.number(gguf.KeyBlockCount, 1), gguf.MaxLayers))
	n, err := c.meta.UintPerLayer(c.meta.ArchKey(key), max(layers, 1))
	if err != nil {
		return nil // llama.cpp says so
	}
	return n
}

// tokens checks the vocabulary.
func (c *checker) tokens() {
	model, err := c.meta.String(tokenizerKey + "model")
	if err != nil || model == "no_vocab" || model == "none" {
		if n := c.number("vocab_size", 0); n > maxTokens {
			c.fail("%.64q is %d, the most is %d", c.meta.ArchKey("vocab_size"), n, maxTokens)
		}
		return
	}
	tokens, err := c.meta.Strings(tokenizerKey + "tokens")
	switch {
	case errors.Is(err, gguf.ErrNoKey):
		return
	case err != nil:
		c.fail("its vocabulary: %v", err)
		return
	case len(tokens) == 0:
		c.fail("its vocabulary has no tokens")
		return
	case len(tokens) > maxTokens:
		c.fail("its vocabulary has %d tokens, the most is %d", len(tokens), maxTokens)
		return
	}
	seen := make(map[string]int, len(tokens))
	for i, text := range tokens {
		text, _, _ = strings.Cut(text, "\x00") // where C ends it
		if text == "" {
			text = "[EMPTY_" + strconv.Itoa(i) + "]" // as llama.cpp calls it
		}
		if first, ok := seen[text]; ok {
			c.fail("tokens %d and %d of its vocabulary are the same, %.40q", first, i, text)
			return
		}
		seen[text] = i
	}
	list(c, "scores", len(tokens), isOne[[]float32])
	list(c, "token_type", len(tokens), isOne[[]int32], isOne[[]uint32])
	list(c, "merges", 0, isOne[[]string])
	list(c, "precompiled_charsmap", 0, isOne[[]uint8], isOne[[]int8])
	list(c, "suppress_tokens", 0, isOne[[]int32])
	c.tokenizer(model, tokens, seen)
}

// maxTokens bounds vocabularies: the largest have some 300,000 tokens.
const maxTokens = 1 << 24

// list checks that one of the vocabulary's lists, if it is there, has a type that
// llama.cpp does not look at before it reads it, and so many entries at least.
func list(c *checker, name string, least int, types ...func(any) bool) {
	value, ok := c.meta.Lookup(tokenizerKey + name)
	if !ok {
		return
	}
	n, _ := gguf.ArrayLen(value)
	fits := false
	for _, is := range types {
		fits = fits || is(value)
	}
	switch {
	case !fits:
		c.fail("%.64q is of the type %T", tokenizerKey+name, value)
	case n < least:
		c.fail("%.64q has %d entries for %d tokens", tokenizerKey+name, n, least)
	}
}

func isOne[T any](value any) bool {
	_, ok := value.(T)
	return ok
}

// Token types, as llama.cpp numbers them.
const typeByte = 6

// tokenizer checks what one kind of tokenizer needs.
func (c *checker) tokenizer(model string, tokens []string, ids map[string]int) {
	types, _ := c.meta.Uints(tokenizerKey + "token_type")
	switch model {
	case "bert":
		if slices.Contains(types[:min(len(types), len(tokens))], typeByte) {
			c.fail("its vocabulary, of the kind %.64q, has tokens for bytes, which that kind cannot have", model)
		}
	case "t5":
		c.charsmap()
	case "rwkv":
		if !slices.ContainsFunc(tokens, func(t string) bool { return t == "\n" || t == `\n` || t == `'\n'` }) {
			c.fail("its vocabulary, of the kind %.64q, has no token for the end of a line", model)
		}
	}
}

// charsmap checks the table of characters to replace: its first four bytes are the
// size of a trie in bytes, which texts follow.
func (c *checker) charsmap() {
	value, _ := c.meta.Lookup(tokenizerKey + "precompiled_charsmap")
	n, isList := gguf.ArrayLen(value)
	if !isList {
		return
	}
	at := func(i int) uint64 {
		switch list := value.(type) {
		case []uint8:
			return uint64(list[i])
		case []int8:
			return uint64(uint8(list[i]))
		}
		return 0
	}
	const head = 4
	if n < head {
		c.fail("its table of characters has %d bytes", n)
		return
	}
	size := at(0) | at(1)<<8 | at(2)<<16 | at(3)<<24
	if size+head >= uint64(n) || size%4 != 0 {
		c.fail("its table of characters has %d bytes, and says %d", n, size+head)
	}
}

// uncomputed are the types that tensors can have and nothing computes with.
var uncomputed = []gguf.Type{gguf.I8, gguf.I16, gguf.I32, gguf.I64, gguf.F64, gguf.Q8_1, gguf.Q8_K}

// types checks that there is code for the types of the weights.
func (c *checker) types() {
	for _, t := range c.file.Tensors {
		flat := len(t.Shape) < 2 || t.Elements() == t.Shape[0]
		switch {
		case t.Type == gguf.I32 && strings.Contains(t.Name, "id"): // a table of numbers of experts
		case slices.Contains(uncomputed, t.Type):
			c.fail("tensor %.64q is %s, which nothing computes with", t.Name, t.Type)
		// What is added to each row, or multiplied with it.
		case (flat || strings.Contains(t.Name, "norm")) && t.Type != gguf.F32 && !strings.Contains(t.Name, "gate_inp"):
			c.fail("tensor %.64q is %s and must be F32", t.Name, t.Type)
		}
	}
}

// projections checks that each layer whose attention puts out something has queries.
func (c *checker) projections() {
	kv := c.each("attention.head_count_kv")
	has := map[int]uint8{}
	const out, query = 1, 2
	for _, t := range c.file.Tensors {
		layer, rest, ok := gguf.SplitLayer(t.Name)
		switch {
		case !ok:
		case rest == "attn_output.weight":
			has[layer] |= out
		case strings.HasPrefix(rest, "attn_q") && strings.HasSuffix(rest, ".weight") && !strings.Contains(rest, "norm"):
			has[layer] |= query
		}
	}
	for layer, parts := range has {
		if parts == out && (layer >= len(kv) || kv[layer] > 0) {
			c.fail("layer %d has attention without queries", layer)
		}
	}
}

// finite checks every number under the architecture's prefix. Lists may have
// infinite entries: some models have such thresholds.
func (c *checker) finite() {
	prefix := c.meta.ArchKey("")
	for _, kv := range c.meta {
		if !strings.HasPrefix(kv.Key, prefix) {
			continue
		}
		switch v := kv.Value.(type) {
		case float32:
			c.finiteOne(kv.Key, float64(v))
		case float64:
			c.finiteOne(kv.Key, v)
		case []float32:
			if slices.ContainsFunc(v, func(f float32) bool { return f != f }) {
				c.fail("%.64q has an entry that is no number", kv.Key)
			}
		case string:
			if strings.ContainsRune(v, 0) {
				c.fail("%.64q has a zero byte", kv.Key)
			}
		}
	}
	for _, key := range []string{"attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "attention.group_norm_epsilon"} {
		if eps, err := c.meta.Float(c.meta.ArchKey(key)); err == nil && eps < 0 {
			c.fail("%.64q is %g, and must not be below 0", c.meta.ArchKey(key), eps)
		}
	}
}

func (c *checker) finiteOne(key string, v float64) {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		c.fail("%.64q is %g, which is no number", key, v)
	}
}

// experts checks how many experts there are and how many of them a token gets.
func (c *checker) experts() {
	count, used := c.number("expert_count", 0), slices.Max(append(c.each("expert_used_count"), 0))
	groups, usedGroups := c.number("expert_group_count", 0), c.number("expert_group_used_count", 0)
	switch {
	case count > maxExperts:
		c.fail("it has %d experts, the most is %d", count, maxExperts)
	case used > count:
		c.fail("%d of its %d experts are to be used for a token", used, count)
	case count > 0 && used == 0:
		c.fail("none of its %d experts is used for a token", count)
	case groups > 1 && (groups >= count || count%groups != 0 || usedGroups == 0 || usedGroups >= groups):
		c.fail("%d of %d groups of its %d experts are to be used for a token", usedGroups, groups, count)
	case groups > 0 && count == 0:
		c.fail("it has %d groups of experts, and none of these", groups)
	}
}

// attention checks heads and widths.
func (c *checker) attention() {
	if n := c.number("pooling_type", 0); n > maxPooling {
		c.fail("%.64q is %d, known are 0 to %d", c.meta.ArchKey("pooling_type"), n, maxPooling)
	}
	heads, kv := c.each("attention.head_count"), c.each("attention.head_count_kv")
	for i := range min(len(heads), len(kv)) {
		if heads[i] > 0 && kv[i] > 0 && heads[i]%kv[i] != 0 {
			c.fail("layer %d has %d heads for %d of keys and values: not as many for each", i, heads[i], kv[i])
			return
		}
	}
	if n := c.number("nextn_predict_layers", 0); n > c.number(gguf.KeyBlockCount, n) {
		c.fail("%d layers of its %d are to predict further tokens", n, c.number(gguf.KeyBlockCount, n))
	}
	for _, key := range []string{"context_length", "embedding_length", "attention.key_length", "attention.value_length", "attention.sliding_window"} {
		c.number(key, 0)
	}
}

// ropeScalings are the ways to stretch positions.
var ropeScalings = map[string]bool{"none": true, "linear": true, "yarn": true, "longrope": true}

// rotary checks how positions are put in.
func (c *checker) rotary() {
	key := c.meta.ArchKey("rope.scaling.type")
	if way, err := c.meta.String(key); err == nil && !ropeScalings[way] {
		c.fail("%.64q is %.40q, known are %s", key, way, strings.Join(slices.Sorted(maps.Keys(ropeScalings)), ", "))
	}
	width := max(c.number("attention.key_length", 0), c.number("attention.key_length_mla", 0), c.number("attention.key_length_swa", 0))
	if heads := c.each("attention.head_count"); len(heads) > 0 && heads[0] > 0 {
		width = max(width, c.number("embedding_length", 0)/heads[0])
	}
	for _, name := range []string{"rope.dimension_count", "rope.dimension_count_swa"} {
		if n := c.number(name, 0); n%2 != 0 || width > 0 && n > width {
			c.fail("%.64q is %d, it must be even and at most a head's width, %d", c.meta.ArchKey(name), n, width)
		}
	}
	for _, name := range []string{"rope.freq_base", "rope.freq_base_swa"} {
		if base, err := c.meta.Float(c.meta.ArchKey(name)); err == nil && base < 0 {
			c.fail("%.64q is %g, and must not be below 0", c.meta.ArchKey(name), base)
		}
	}
}

// recurrent checks what llama.cpp divides by in layers with a state.
func (c *checker) recurrent() {
	for _, name := range []string{"ssm.group_count", "ssm.time_step_rank", "ssm.state_size", "ssm.conv_kernel", "wkv.head_size", "token_shift_count"} {
		key := c.meta.ArchKey(name)
		if n, err := c.meta.Uint(key); err == nil && n == 0 && name != "ssm.group_count" {
			c.fail("%.64q is 0", key)
		}
	}
}
