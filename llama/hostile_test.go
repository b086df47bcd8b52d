package llama_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// TestHostileModels has models refused that llama.cpp would end the process over, by
// our own checks and in words.
func TestHostileModels(t *testing.T) {
	llamatest.Library(t)
	short := func(name string) string {
		spec := randmodel.Small(name)
		spec.Layers = 2
		return llamatest.Write(t, spec)
	}
	model, qwen := short("llama"), short("qwen2")
	set := func(key string, value any) func(*gguf.Metadata) {
		return func(meta *gguf.Metadata) { meta.Set(key, value) }
	}
	token := func(at int, text string) func(*gguf.Metadata) {
		return func(meta *gguf.Metadata) {
			tokens, err := meta.Strings("tokenizer.ggml.tokens")
			require.NoError(t, err)
			tokens = slices.Clone(tokens)
			tokens[at] = text
			meta.Set("tokenizer.ggml.tokens", tokens)
		}
	}
	both := func(changes ...func(*gguf.Metadata)) func(*gguf.Metadata) {
		return func(meta *gguf.Metadata) {
			for _, change := range changes {
				change(meta)
			}
		}
	}
	nan := float32(math.NaN())
	for _, c := range []struct {
		change func(*gguf.Metadata)
		says   string
	}{
		{token(5, "Ā"), "tokens 0 and 5 of its vocabulary are the same"},
		{both(token(5, ""), token(6, "[EMPTY_5]")), "are the same"},
		{both(token(5, "a\x00b"), token(6, "a\x00c")), "are the same"},
		{set("tokenizer.ggml.tokens", []string{}), "has no tokens"},
		{set("tokenizer.ggml.tokens", []uint32{1, 2}), "its vocabulary"},
		{set("tokenizer.ggml.tokens", "a"), "its vocabulary"},
		{set("tokenizer.ggml.scores", []float32{1}), "has 1 entries for 384 tokens"},
		{set("tokenizer.ggml.scores", make([]float64, 384)), "is of the type"},
		{set("tokenizer.ggml.token_type", []int32{1}), "has 1 entries"},
		{set("tokenizer.ggml.token_type", make([]uint8, 384)), "is of the type"},
		{set("tokenizer.ggml.token_type", "normal"), "is of the type"},
		{set("tokenizer.ggml.merges", []uint32{1}), "is of the type"},
		{set("tokenizer.ggml.merges", uint32(1)), "is of the type"},
		{both(set("tokenizer.ggml.model", "bert"), set("tokenizer.ggml.token_type", slices.Repeat([]int32{6}, 384))), "tokens for bytes"},
		{both(set("tokenizer.ggml.model", "t5"), set("tokenizer.ggml.precompiled_charsmap", []uint8{255, 255, 0, 0, 1})), "table of characters"},
		{both(set("tokenizer.ggml.model", "t5"), set("tokenizer.ggml.precompiled_charsmap", []uint8{1})), "table of characters"},
		{both(set("tokenizer.ggml.model", "rwkv"), token(0, "x1")), "end of a line"},
		{both(set("tokenizer.ggml.model", "none"), set("llama.vocab_size", uint32(1<<30))), "vocab_size"},
		{set("llama.expert_count", uint32(8)), "none of its 8 experts"},
		{both(set("llama.expert_count", uint32(8)), set("llama.expert_used_count", uint32(0))), "none of its 8 experts"},
		{both(set("llama.expert_count", uint32(4)), set("llama.expert_used_count", uint32(5))), "5 of its 4 experts"},
		{set("llama.expert_used_count", uint32(2)), "2 of its 0 experts"},
		{both(set("llama.expert_count", uint32(513)), set("llama.expert_used_count", uint32(2))), "513 experts"},
		{both(set("llama.expert_count", uint32(1<<31)), set("llama.expert_used_count", uint32(1<<31))), "expert_count"},
		{both(set("llama.expert_count", uint32(8)), set("llama.expert_used_count", uint32(2)), set("llama.expert_group_count", uint32(3)), set("llama.expert_group_used_count", uint32(1))), "groups"},
		{set("llama.rope.scaling.type", "nonsense"), "rope.scaling.type"},
		{set("llama.rope.scaling.type", ""), "rope.scaling.type"},
		{set("llama.rope.scaling.factor", nan), "is no number"},
		{set("llama.rope.freq_base", float32(math.Inf(1))), "is no number"},
		{set("llama.rope.freq_base", float32(-1)), "below 0"},
		{set("llama.rope.dimension_count", uint32(31)), "must be even"},
		{set("llama.rope.dimension_count", uint32(64)), "at most a head's width"},
		{set("llama.attention.layer_norm_rms_epsilon", float32(-1)), "below 0"},
		{set("llama.attention.layer_norm_rms_epsilon", nan), "is no number"},
		{set("llama.attention.layer_norm_rms_epsilon", math.Inf(-1)), "is no number"},
		{set("llama.attention.head_count_kv", uint32(3)), "4 heads for 3 of keys"},
		{set("llama.attention.clamp_kqv", nan), "is no number"},
		{set("llama.pooling_type", uint32(9)), "pooling_type"},
		{set("llama.nextn_predict_layers", uint32(9)), "9 layers of its 2"},
		{set("llama.context_length", uint32(math.MaxUint32)), "context_length"},
		{set("llama.embedding_length", uint64(math.MaxUint64)), "embedding_length"},
		{set("llama.ssm.time_step_rank", uint32(0)), "is 0"},
	} {
		before := llama.Escapes()
		_, err := llama.LoadModel(context.Background(), llamatest.Rewrite(t, model, c.change), nil)
		require.ErrorIs(t, err, llama.ErrModel, c.says)
		require.ErrorContains(t, err, c.says)
		require.NotContains(t, err.Error(), "GGML")
		require.NotContains(t, err.Error(), "\n")
		require.Equal(t, before, llama.Escapes(), c.says)
	}

	// Tensors without which the graph has a hole, and types that nothing computes with.
	for says, change := range map[string]func(all []gguf.Source) []gguf.Source{
		"without queries": func(all []gguf.Source) []gguf.Source {
			return slices.DeleteFunc(all, func(s gguf.Source) bool { return s.Tensor.Name == "blk.1.attn_q.weight" })
		},
		"which nothing computes with": func(all []gguf.Source) []gguf.Source { return retype(all, "blk.1.attn_q.weight", gguf.I8) },
		"is Q8_0 and must be F32":     func(all []gguf.Source) []gguf.Source { return retype(all, "blk.1.attn_norm.weight", gguf.Q8_0) },
		"is BF16 and must be F32":     func(all []gguf.Source) []gguf.Source { return retype(all, "blk.1.attn_q.bias", gguf.BF16) },
	} {
		f, err := gguf.Open(qwen)
		require.NoError(t, err)
		var all []gguf.Source
		for _, tensor := range f.Tensors {
			all = append(all, f.Copy(tensor))
		}
		path := filepath.Join(t.TempDir(), "m.gguf")
		require.NoError(t, gguf.Write(context.Background(), path, f.Metadata, change(all), nil))
		require.NoError(t, f.Close())
		_, err = llama.LoadModel(context.Background(), path, nil)
		require.ErrorIs(t, err, llama.ErrModel)
		require.ErrorContains(t, err, says)
	}
}

// retype gives a tensor another type, and zeros.
func retype(all []gguf.Source, name string, typ gguf.Type) []gguf.Source {
	for i, s := range all {
		if s.Tensor.Name == name {
			s.Tensor.Type = typ
			size, err := typ.Size(s.Tensor.Shape)
			if err != nil {
				panic(err)
			}
			all[i] = gguf.Source{Tensor: s.Tensor, Data: gguf.Bytes(make([]byte, size))}
		}
	}
	return all
}

// TestUncheckedModels loads what the checks would refuse: where llama.cpp would end the
// process, by an assertion, an exception or a fault, the call fails and the process goes on.
func TestUncheckedModels(t *testing.T) {
	llamatest.Library(t)
	t.Cleanup(llama.WithoutChecks())
	model := llamatest.Write(t, randmodel.Small("llama"))
	twice := llamatest.Rewrite(t, model, func(meta *gguf.Metadata) {
		tokens, _ := meta.Strings("tokenizer.ggml.tokens")
		meta.Set("tokenizer.ggml.tokens", append(slices.Clone(tokens[:len(tokens)-1]), tokens[0]))
	})
	before := llama.Escapes()
	_, err := llama.LoadModel(context.Background(), twice, nil)
	require.ErrorIs(t, err, llama.ErrModel)
	require.ErrorContains(t, err, "GGML_ASSERT")
	require.Equal(t, before+1, llama.Escapes())

	bytesGone := llamatest.Open(t, llamatest.Rewrite(t, model, func(meta *gguf.Metadata) { meta.Set("tokenizer.ggml.model", "llama") }))
	for range 3 {
		_, err = bytesGone.Vocab.Tokenize("some text", false)
		require.ErrorIs(t, err, llama.ErrTokenize)
	}
	require.Equal(t, before+4, llama.Escapes())

	f, err := gguf.Open(llamatest.Write(t, randmodel.Small("phi3")))
	require.NoError(t, err)
	defer f.Close()
	var some []gguf.Source
	for _, tensor := range f.Tensors {
		if tensor.Name != "blk.1.attn_qkv.weight" {
			some = append(some, f.Copy(tensor))
		}
	}
	hole := filepath.Join(t.TempDir(), "m.gguf")
	require.NoError(t, gguf.Write(context.Background(), hole, f.Metadata, some, nil))
	m := llamatest.Open(t, hole)
	for range 3 { // reads from address 0, each time
		_, err = m.NewContext(&llama.ContextOptions{NCtx: 64})
		require.ErrorIs(t, err, llama.ErrModel)
		require.ErrorContains(t, err, "reads what is not there")
	}
	require.Equal(t, before+7, llama.Escapes())

	// Go's own faults stay Go's.
	require.Panics(t, func() { var p *int; *p = 1 }) //nolint:staticcheck // it is to fault
	require.NoError(t, llamatest.Open(t, model).Close())
}

// TestDamagedRotations decodes by models whose positions turn none of a head's numbers, or
// more than it has: ggml would never get done, or end the process. Each is refused again
// and again, whatever its metadata's key was.
func TestDamagedRotations(t *testing.T) {
	llamatest.Library(t)
	for _, c := range []struct {
		base, arch, key string
		value           any
		bothWays        bool
		works           bool
	}{
		{base: "phi3", arch: "phi3", key: "rope.dimension_count", value: uint32(2), works: true},
		{base: "phi3", arch: "phi3", key: "rope.dimension_count", value: uint32(0)},
		{base: "phi3", arch: "phi3", key: "rope.dimension_count", value: uint32(0), bothWays: true},
		{base: "gemma3", arch: "gemma3", key: "rope.dimension_count_swa", value: uint32(0)},
		{base: "qwen2", arch: "qwen2vl", key: "rope.dimension_sections", value: []uint32{8, 8, 0, 0}, works: true},
		{base: "qwen2", arch: "qwen2vl", key: "rope.dimension_sections", value: []uint32{0, 0, 0, 0}},
		{base: "qwen2", arch: "qwen2vl", key: "rope.dimension_sections", value: []int32{8, -8, 0, 0}},
		{base: "qwen2", arch: "qwen2vl", key: "rope.dimension_sections", value: []uint32{8, 8, 1000, 0}},
		{base: "llama", arch: "refact", key: "rope.dimension_count", value: uint32(0), works: true}, // turns nothing
	} {
		spec := randmodel.Small(c.base)
		spec.Layers = 2
		path := llamatest.Rewrite(t, llamatest.Write(t, spec), func(meta *gguf.Metadata) {
			rename(meta, c.arch)
			meta.Set(meta.ArchKey(c.key), c.value)
			meta.Set(meta.ArchKey("attention.causal"), !c.bothWays)
		})
		ctx := llamatest.Context(t, llamatest.Open(t, path), &llama.ContextOptions{NCtx: 64, Threads: 1})
		for range 2 {
			ctx.Clear()
			err := ctx.Decode(llamatest.Batch(t, []llama.Token{1, 2, 3}, 0), skip.Mask{})
			if c.works {
				require.NoError(t, err, "%v", c)
				continue
			}
			require.ErrorIs(t, err, llama.ErrDecode, "%v", c)
			require.ErrorContains(t, err, "the model's metadata is damaged: a position turns")
		}
	}
}

// rename gives a model another architecture, with all of its keys.
func rename(meta *gguf.Metadata, next string) {
	old, _ := meta.Architecture()
	for i := range *meta {
		if rest, ok := strings.CutPrefix((*meta)[i].Key, old+"."); ok {
			(*meta)[i].Key = next + "." + rest
		}
	}
	meta.Set(gguf.KeyArchitecture, next)
}

// TestModelCutShort cuts a model's file short while another process uses it.
func TestModelCutShort(t *testing.T) {
	llamatest.Library(t)
	path := llamatest.Write(t, randmodel.Small("llama"))
	v := startVictim(t)
	answer, survived := v.use("cut " + path)
	require.False(t, survived)
	require.Contains(t, answer, "the model's file was changed or cut short while it was in use")
	require.NotContains(t, answer, "goroutine")
	require.Contains(t, answer, "exit status 1")
}

// envVictim makes [TestVictim] the other half of [FuzzModel].
const envVictim = "GALLOP_TEST_VICTIM"

// TestVictim loads the models that it is told on stdin and answers each with a line.
// It runs in a process of its own, which a model may end.
func TestVictim(t *testing.T) {
	if os.Getenv(envVictim) == "" {
		t.Skip("only for FuzzModel")
	}
	limitMemory(t)
	llamatest.Library(t)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		before := llama.Escapes()
		path, cut := strings.CutPrefix(lines.Text(), "cut ")
		err := useModel(path, cut)
		answer := "works"
		if err != nil {
			answer = "refused: " + strings.Join(strings.Fields(err.Error()), " ")
		}
		if llama.Escapes() != before {
			answer = "escaped: " + answer
		}
		fmt.Println("victim", answer)
	}
}

// useModel does with a model what an answer does. With cut it makes the file empty first.
func useModel(path string, cut bool) (err error) {
	ctx, stop := context.WithTimeout(context.Background(), 10*time.Second)
	defer stop()
	m, err := llama.LoadModel(ctx, path, &llama.ModelOptions{GPULayers: llama.CPUOnly, ForText: true, NoRepack: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if cut {
		if err := os.Truncate(path, 0); err != nil {
			return err
		}
	}
	tokens, err := m.Vocab.Tokenize("Hello, wörld!\n<|im_end|> 日本 \xff", true)
	if err != nil {
		return err
	}
	m.Vocab.Text(tokens, true)
	for t := range llama.Token(m.Vocab.Size) {
		m.Vocab.AppendPiece(nil, t, true)
	}
	c, err := m.NewContext(&llama.ContextOptions{NCtx: 256, NBatch: 64, Threads: 1})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	b, err := llama.NewBatch(64, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	for i, token := range tokens[:min(len(tokens), 64)] {
		if err := b.Add(token, i, true, 0); err != nil {
			return err
		}
	}
	if b.Len() == 0 {
		return nil
	}
	if err := c.Decode(b, skip.Mask{}); err != nil {
		return err
	}
	s, err := m.NewSampler(llama.DefaultSampling())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	_, err = s.Sample(c, -1)
	return err
}

// victim is a process that loads models.
type victim struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	err bytes.Buffer
}

func startVictim(t testing.TB) *victim {
	t.Helper()
	v := &victim{cmd: exec.Command(os.Args[0], "-test.run", "^TestVictim$")}
	v.cmd.Env = append(os.Environ(), envVictim+"=1")
	v.cmd.Stderr = &v.err
	var err error
	v.in, err = v.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := v.cmd.StdoutPipe()
	require.NoError(t, err)
	v.out = bufio.NewScanner(out)
	require.NoError(t, v.cmd.Start())
	return v
}

// use gives the victim's answer to a model, or, where it has none, how it ended.
func (v *victim) use(path string) (answer string, survived bool) {
	late := time.AfterFunc(8*time.Second, func() { v.cmd.Process.Kill() }) // a fuzzing process ends itself after 10
	defer late.Stop()
	fmt.Fprintln(v.in, path)
	for v.out.Scan() {
		if answer, ok := strings.CutPrefix(v.out.Text(), "victim "); ok {
			return answer, true
		}
	}
	v.in.Close()
	return fmt.Sprintf("ended: %v: %.2000s", v.cmd.Wait(), v.err.String()), false
}

func (v *victim) close() {
	v.in.Close()
	v.cmd.Wait()
}

// Values at the edges of what numbers are used for.
var (
	edgeWholes = []uint64{0, 1, 2, 3, 5, 7, 31, 33, 64, 255, 256, 511, 512, 513, 65535, 65536, 1 << 20, math.MaxInt32, 1 << 31, math.MaxUint32, 1 << 32, math.MaxInt64, math.MaxUint64}
	edgeFloats = []float64{0, -1, 1e-30, 1e30, 0.5, math.NaN(), math.Inf(1), math.Inf(-1)}
	edgeTexts  = []string{"", "nonsense", "llama", "bert", "t5", "rwkv", "plamo2", "gemma4", "gpt2", "no_vocab", "none", "linear", "yarn", "longrope", "default", "llama-bpe", "phi3", "\x00", "\xff", "%s%n"}
	// Other architectures have other metadata, some of them with much the same tensors.
	edgeArchs = []string{"llama", "qwen2", "qwen3", "qwen3moe", "gemma", "gemma2", "gemma3", "gemma3n", "gemma4", "phi3", "granite", "granitemoe", "granitehybrid", "starcoder2", "stablelm", "olmo2", "minicpm", "minicpm3", "deepseek2", "mamba", "mamba2", "jamba", "command-r", "cohere2", "smollm3", "exaone", "exaone4", "internlm2", "llama4", "falcon", "falcon-h1", "rwkv6", "rwkv7", "lfm2", "glm4", "glm4moe", "chatglm", "bert", "t5", "grok", "dbrx", "gpt2", "gptneox", "mpt", "bloom", "plamo2", "nemotron", "openelm", "deci", "qwen2vl", "qwen35", "gpt-oss", "hunyuan-moe", "kimi-linear", "qwen3next", "apertus", "arcee"}
	edgeTypes = []gguf.Type{gguf.F32, gguf.F16, gguf.Q4_0, gguf.Q8_0, gguf.I8, gguf.I32, gguf.F64, gguf.BF16, gguf.IQ4NL, gguf.Q8_K, gguf.Q8_1, gguf.MXFP4, gguf.TQ1_0}
	// Keys that not every model has, but llama.cpp reads.
	edgeKeys      = []string{"rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length", "expert_count", "expert_used_count", "expert_group_count", "expert_group_used_count", "expert_shared_count", "expert_feed_forward_length", "leading_dense_block_count", "attention.key_length", "attention.value_length", "attention.sliding_window", "attention.sliding_window_pattern", "attention.layer_norm_epsilon", "attention.max_alibi_bias", "attention.clamp_kqv", "attention.causal", "pooling_type", "logit_scale", "residual_scale", "final_logit_softcapping", "rope.dimension_sections", "ssm.conv_kernel", "ssm.state_size", "ssm.inner_size", "ssm.time_step_rank", "ssm.group_count", "wkv.head_size", "nextn_predict_layers", "embedding_length_per_layer_input", "attention.shared_kv_layers", "attention.q_lora_rank", "attention.kv_lora_rank", "vocab_size", "interleave_moe_layer_step", "full_attention_interval", "attention.indexer.head_count", "embedding_length_out", "dense_2_feat_in", "classifier.output_labels", "use_parallel_residual", "tensor_data_layout", "swin_norm", "rescale_every_n_layers", "time_mix_extra_dim", "attention.temperature_length"}
	edgeTokenizer = []string{"model", "pre", "tokens", "scores", "token_type", "merges", "bos_token_id", "eos_token_id", "eot_token_id", "unknown_token_id", "padding_token_id", "add_bos_token", "add_eos_token", "add_space_prefix", "precompiled_charsmap", "suppress_tokens", "token_type_count", "remove_extra_whitespaces", "seperator_token_id"}
)

// mutation is a stream of choices.
type mutation struct{ data []byte }

func (m *mutation) byte() int {
	if len(m.data) == 0 {
		return 0
	}
	b := m.data[0]
	m.data = m.data[1:]
	return int(b)
}

func choice[T any](m *mutation, list []T) T { return list[m.byte()%len(list)] }

// value makes a metadata value.
func (m *mutation) value() any {
	n := choice(m, edgeWholes)
	switch m.byte() % 14 {
	case 0:
		return uint8(n)
	case 1:
		return int32(n)
	case 2:
		return n
	case 3:
		return choice(m, edgeTexts)
	case 4:
		return m.byte()%2 == 0
	case 5:
		return float32(choice(m, edgeFloats))
	case 6:
		return choice(m, edgeFloats)
	case 7:
		return slices.Repeat([]uint32{uint32(n)}, m.byte()%6)
	case 8:
		return slices.Repeat([]int32{int32(n)}, m.byte()%6)
	case 9:
		return slices.Repeat([]float32{float32(choice(m, edgeFloats))}, m.byte()%6)
	case 10:
		return slices.Repeat([]string{choice(m, edgeTexts)}, m.byte()%6)
	case 11:
		return slices.Repeat([]uint8{uint8(n)}, m.byte()%16)
	}
	return uint32(n)
}

// spoil changes a model's file as data says and gives the new one's path; "" where no
// file comes of it.
func spoil(t testing.TB, seeds []string, data []byte, dir string) string {
	t.Helper()
	m := &mutation{data}
	f, err := gguf.Open(choice(m, seeds))
	require.NoError(t, err)
	defer f.Close()
	meta := slices.Clone(f.Metadata)
	var tensors []gguf.Source
	for _, tensor := range f.Tensors {
		tensors = append(tensors, f.Copy(tensor))
	}
	var flips [][2]int // place, byte
	for len(m.data) > 0 {
		switch m.byte() % 10 {
		case 0, 1:
			meta.Set(choice(m, meta).Key, m.value())
		case 2:
			meta.Set(meta.ArchKey(choice(m, edgeKeys)), m.value())
		case 3:
			meta.Set("tokenizer.ggml."+choice(m, edgeTokenizer), m.value())
		case 4:
			key := choice(m, meta).Key
			if key != gguf.KeyArchitecture {
				meta.Delete(key)
			}
		case 5:
			rename(&meta, choice(m, edgeArchs))
		case 6: // one token or its type
			tokens, _ := meta.Strings("tokenizer.ggml.tokens")
			if at := m.byte()<<8 | m.byte(); len(tokens) > 0 {
				tokens = slices.Clone(tokens)
				tokens[at%len(tokens)] = choice(m, append(slices.Clone(edgeTexts), tokens[0], "<0x0A>", "</s>", "<|endoftext|>"))
				meta.Set("tokenizer.ggml.tokens", tokens)
			}
			types, _ := meta.Lookup("tokenizer.ggml.token_type")
			if list, ok := types.([]int32); ok && len(list) > 0 {
				list = slices.Clone(list)
				list[m.byte()%len(list)] = int32(m.byte()%9 - 1)
				meta.Set("tokenizer.ggml.token_type", list)
			}
		case 7:
			i := m.byte() % len(tensors)
			tensor := tensors[i].Tensor
			tensor.Shape = slices.Clone(tensor.Shape)
			switch m.byte() % 4 {
			case 0:
				tensors = slices.Delete(slices.Clone(tensors), i, i+1)
				if len(tensors) == 0 {
					return ""
				}
				continue
			case 1:
				tensor.Type = choice(m, edgeTypes)
			case 2:
				if len(tensor.Shape) > 0 {
					tensor.Shape[m.byte()%len(tensor.Shape)] = min(choice(m, edgeWholes), 1<<12)
				}
			case 3:
				tensor.Shape = append(tensor.Shape, 1+uint64(m.byte()%2))
			}
			size, err := tensor.Type.Size(tensor.Shape)
			if err != nil || size > 1<<22 {
				return ""
			}
			tensors[i] = gguf.Source{Tensor: tensor, Data: gguf.Bytes(bytes.Repeat([]byte{byte(m.byte())}, int(size)))}
		case 8:
			flips = append(flips, [2]int{m.byte()<<8 | m.byte(), m.byte()})
		case 9:
			i := m.byte() % len(tensors)
			size, _ := tensors[i].Tensor.Type.Size(tensors[i].Tensor.Shape)
			tensors[i].Data = gguf.Bytes(bytes.Repeat([]byte{byte(m.byte())}, int(size)))
		}
	}
	path := filepath.Join(dir, "spoilt.gguf")
	if gguf.Write(context.Background(), path, meta, tensors, nil) != nil {
		return ""
	}
	if len(flips) > 0 {
		content, err := os.ReadFile(path)
		require.NoError(t, err)
		for _, flip := range flips {
			content[flip[0]%len(content)] = byte(flip[1])
		}
		require.NoError(t, os.WriteFile(path, content, 0o644))
	}
	return path
}

// FuzzModel spoils models and has another process load and use those that come of
// it. Whatever our reader and checks pass, the process must survive: llama.cpp
// refuses it in words or runs it, or a call is left in its middle, which is an error too.
func FuzzModel(f *testing.F) {
	llamatest.Library(f)
	var seeds []string
	for _, name := range randmodel.SmallNames() {
		spec := randmodel.Small(name)
		spec.Layers, spec.FF = 2, 64
		seeds = append(seeds, llamatest.Write(f, spec))
	}
	for i := range seeds {
		f.Add([]byte{byte(i)})
	}
	for arch := range edgeArchs {
		f.Add([]byte{byte(arch % len(seeds)), 5, byte(arch)})
	}
	for key := range edgeKeys {
		f.Add([]byte{0, 2, byte(key), 0, 12})
		f.Add([]byte{1, 2, byte(key), 3, 12})
	}
	for key := range edgeTokenizer {
		f.Add([]byte{0, 3, byte(key), 0, 12})
		f.Add([]byte{0, 3, byte(key), 1, 10, 2, 3})
	}
	f.Add([]byte("\x00d@\x00\f"))         // positions that turn nothing
	f.Add([]byte("\x02\x1c\x1c\x85\x87")) // a key of 60,000 bytes, in an error
	dir := f.TempDir()
	v := startVictim(f)
	defer func() { v.close() }()
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 64 {
			return
		}
		path := spoil(t, seeds, data, dir)
		if path == "" {
			return
		}
		answer, survived := v.use(path)
		if !survived {
			v = startVictim(t)
		}
		require.True(t, survived, answer)
	})
}
