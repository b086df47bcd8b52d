package archmodel

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/gallop-llm/gallop/gguf"
)

// Model is one shape of an architecture.
type Model struct {
	Name string // unique
	Arch string // as in general.architecture

	// Blocks has the block of each layer, where a model runs blocks more than
	// once; nil = each once.
	Blocks []int

	// NoFlash: llama.cpp itself aborts with flash attention.
	NoFlash bool

	meta     values
	tensors  []string // optional tensors that it has, behind "blk.N."; "name 0 2" in blocks 0 and 2 alone; "=name" in no block
	fileMeta values   // what the file has in place of meta
}

// values are metadata by key, behind the architecture's prefix if there is one. Whole
// numbers become uint32, others float32. nil takes a key away.
type values map[string]any

// and gives the values of all; later ones count.
func (v values) and(others ...values) values {
	sum := maps.Clone(v)
	for _, o := range others {
		maps.Copy(sum, o)
	}
	return sum
}

// Sizes of all models that do not say otherwise.
const (
	layers  = 5
	embd    = 128
	heads   = 4
	kvHeads = 2
	headDim = embd / heads
)

// common is what every model has. An architecture reads what it knows.
var common = values{
	"vocab_size": 256, "context_length": 256, "block_count": layers, "embedding_length": embd, "features_length": embd,
	"feed_forward_length": 192, "use_parallel_residual": false, "logit_scale": 0.5,

	"attention.head_count": heads, "attention.head_count_kv": kvHeads, "attention.clamp_kqv": 4.0, "attention.max_alibi_bias": 8.0,
	"attention.layer_norm_epsilon": 1e-5, "attention.layer_norm_rms_epsilon": 1e-5,
	"attention.group_norm_epsilon": 1e-5, "attention.group_norm_groups": 8,
	"attention.sliding_window": 8, "attention.sliding_window_pattern": 2, "full_attention_interval": 2,
	"attention.q_lora_rank": 64, "attention.kv_lora_rank": 64, "attention.relative_buckets_count": 8,
	"attention.indexer.head_count": 1, "attention.indexer.key_length": 64, "attention.indexer.top_k": 8,
	"attention.indexer.block_size": 4, "attention.indexer.local_blocks": 1,
	"rope.dimension_count": headDim, "rope.freq_base": 10000.0, "rope.dimension_sections": []int{4, 4, 4, 4},

	"ssm.inner_size": 2 * embd, "ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.time_step_rank": 4, "ssm.group_count": 2,
	"time_mix_extra_dim": 32, "time_decay_extra_dim": 32, "token_shift_count": 2, "wkv.head_size": 32,
	"attention.decay_lora_rank": 16, "attention.iclr_lora_rank": 16, "attention.gate_lora_rank": 16,
	"attention.value_residual_mix_lora_rank": 16,
	"kda.head_dim":                           32, "shortconv.l_cache": 3,
}

// What many have in common.
var (
	experts = values{
		"expert_count": 4, "expert_used_count": 2, "expert_shared_count": 1, "leading_dense_block_count": 1,
		"interleave_moe_layer_step": 2, "expert_feed_forward_length": 64, "expert_shared_feed_forward_length": 64,
		"expert_gating_func": 2, "expert_group_scale": 1.0, "experts_per_group": 1, "expert_weights_scale": 1.5, "expert_weights_norm": true,
	}
	latent = values{ // multi-head latent attention
		"attention.head_count_kv": 1, "attention.key_length": 96, "attention.value_length": 64,
		"attention.key_length_mla": 64, "attention.value_length_mla": 32, "rope.dimension_count": 32,
	}
	allHeads  = values{"attention.head_count_kv": heads}
	hybrid    = values{"attention.head_count": []int{4, 0, 4, 0, 4}, "attention.head_count_kv": []int{2, 0, 2, 0, 2}}
	windows   = values{"attention.sliding_window_pattern": []bool{true, false, true, false, true}}
	deltaNet  = values{"ssm.inner_size": 128, "ssm.state_size": 32}
	linearKDA = latent.and(experts, values{"attention.head_count_kv": []int{1, 0, 1, 0, 1}, "kda.gate_lower_bound": -5.0})
	residuals = values{ // hyper-connections
		"hyper_connection.count": 4, "hyper_connection.epsilon": 1e-6, "hyper_connection.sinkhorn_iterations": 2,
		"hyper_connection.low_rank": 16, "hyper_connection.magnitude": 1.0,
	}
	wideStates = values{"wkv.head_size": 64} // the CPU's RWKV 7 kernel reads 64 numbers at a time
	situ       = values{"activation.situ_beta": 1.0, "activation.situ_linear_beta": 1.0}
	onePart    = values{ // each layer is a mixer, attention or a feed-forward
		"block_count": 6, "attention.head_count": []int{4, 4, 4, 4, 4, 4}, "attention.head_count_kv": []int{0, 2, 0, 0, 0, 2},
		"feed_forward_length": []int{0, 0, 192, 0, 192, 0},
	}
	heads32        = values{"attention.key_length": 32, "attention.value_length": 32}
	heads32Windows = heads32.and(values{"attention.key_length_swa": 32, "attention.value_length_swa": 32})
	gemma4         = windows.and(heads32Windows, values{"rope.freq_base_swa": 10000.0, "rope.dimension_count_swa": 32, "final_logit_softcapping": 30.0})
	// The last layers that have a KV cache of their own are one of each kind.
	sharedCaches = values{"attention.shared_kv_layers": 2, "attention.sliding_window_pattern": []bool{true, true, false, true, false}}
	noEmbeddings = values{"embedding_length_per_layer_input": 0}
	embeddings   = values{"embedding_length_per_layer_input": 32}
)

// Optional tensors that many have.
var (
	router       = []string{"ffn_gate_inp.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"}
	sharedExpert = []string{"ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"}
	dense        = []string{"ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"}
	indexer      = []string{"indexer.k_norm.weight", "indexer.k_norm.bias", "indexer.proj.weight", "indexer.attn_k.weight", "indexer.attn_q_b.weight"}
	gatedMixer   = []string{"attn_qkv.weight 0 2 4", "attn_gate.weight 0 2 4"}
	scale        = []string{"layer_output_scale.weight"}
	separateQKV  = []string{"attn_q.weight", "attn_k.weight", "attn_v.weight"}
	// Dense in the first block, experts in the others.
	mixed       = slices.Concat(in(dense, 0), in(router, 1, 2, 3, 4))
	mixedShared = slices.Concat(mixed, in(sharedExpert, 1, 2, 3, 4))
)

// in has the tensors in some blocks alone.
func in(tensors []string, blocks ...int) (list []string) {
	for _, t := range tensors {
		for _, b := range blocks {
			t += fmt.Sprint(" ", b)
		}
		list = append(list, t)
	}
	return list
}

// plain are the architectures that want nothing more.
const plain = `apertus arcee baichuan bitnet bloom chatglm codeshell cogvlm cohere2 command-r deci dream ernie4_5 exaone exaone4
	falcon gemma gemma2 gemma3 glm4 gpt2 gptneox granite hunyuan-dense hunyuan_vl internlm2 jais jais2 llada llama
	maincoder mamba mamba2 minicpm mistral3 mpt muse-glimmer nanbeige nemotron olmo olmo2 openelm orion paddleocr
	pangu-embedded phi2 plamo plamo3 qwen qwen2 qwen2vl qwen3 qwen3tts qwen3vl refact seed_oss smollm3 stablelm
	starcoder starcoder2 talkie xverse`

// withExperts are those that want experts and nothing more.
const withExperts = `afmoe arctic bailingmoe bailingmoe2 cohere2moe dbrx deepseek exaone-moe glm4moe gpt-oss granitemoe grok grovemoe
	hunyuan-moe laguna llada-moe llama4 mellum minimax-m2 phimoe qwen2moe qwen3moe qwen3vlmoe rnd1 smallthinker`

// others want more, or are further shapes of one.
var others = []Model{
	{Name: "arwkv7", meta: wideStates.and(allHeads, values{"token_shift_count": 1}), tensors: []string{"time_mix_g1.weight", "time_mix_g2.weight"}},
	{Name: "bailingmoe3", meta: linearKDA},
	{Name: "chameleon", meta: values{"vocab_size": 10240}},
	{Name: "chameleon-swin", Arch: "chameleon", meta: values{"vocab_size": 10240, "swin_norm": true}},
	{Name: "deci-nas", Arch: "deci", meta: values{"attention.head_count": []int{4, 0, 4, 4, 4}, "attention.head_count_kv": []int{2, 0, 0, 2, 2}}},
	{Name: "deci-noffn", Arch: "deci", meta: values{"feed_forward_length": []int{192, 192, 0, 192, 192}}},
	{Name: "deepseek2", meta: latent.and(experts)},
	{Name: "deepseek2-lite", Arch: "deepseek2", tensors: []string{"attn_kv_b.weight"}, meta: experts.and(allHeads, values{
		"block_count": 27, "embedding_length": 64, "feed_forward_length": 64, "attention.q_lora_rank": nil,
		"attention.key_length": 64, "attention.value_length": 32, "rope.dimension_count": 32})},
	{Name: "deepseek2-ocr", meta: experts.and(allHeads)},
	{Name: "deepseek32", meta: latent.and(experts)},
	{Name: "deepseek4", tensors: []string{"ffn_gate_tid2eid 0", "ffn_gate_tid2eid.weight 0"}, meta: experts.and(residuals, values{
		"attention.head_count_kv": 1, "attention.key_length": 64, "attention.value_length": 64, "rope.dimension_count": 32,
		"attention.output_group_count": 2, "attention.output_lora_rank": 16, "attention.indexer.head_count": 2,
		"attention.compress_rope_freq_base": 10000.0, "attention.compress_ratios": []int{0, 4, 128, 4, 0},
		"hash_layer_count": 1, "expert_gating_func": 4, "swiglu_clamp_exp": 7.0})},
	{Name: "dots1", meta: experts.and(allHeads)},
	{Name: "dots3note", meta: latent.and(experts, windows, values{
		"attention.key_length_mla_swa": 64, "attention.value_length_mla_swa": 32, "attention.kv_lora_rank_swa": 64,
		"attention.key_length_swa": 96, "attention.value_length_swa": 64, "rope.freq_base_swa": 10000.0,
		"attention.indexer.types": []bool{false, true, false, true, false}})},
	{Name: "ernie4_5-moe", meta: experts.and(values{"interleave_moe_layer_step": 1})},
	{Name: "ernie4_5-moe-noshexp", Arch: "ernie4_5-moe", meta: experts.and(values{
		"interleave_moe_layer_step": 1, "expert_shared_count": 0, "expert_shared_feed_forward_length": 0})},
	{Name: "falcon-40b", Arch: "falcon", tensors: []string{"attn_norm_2.weight", "attn_norm_2.bias"}},
	{Name: "falcon-h1", tensors: []string{"ssm_norm.weight", "ssm_conv1d.bias"}, meta: deltaNet.and(values{"ssm.group_count": 1})},
	{Name: "gemma3n", meta: values{"block_count": 22, "embedding_length": 64, "attention.head_count": 2, "attention.head_count_kv": 1,
		"attention.key_length": 32, "attention.value_length": 32}},
	{Name: "gemma4", meta: gemma4.and(noEmbeddings), tensors: scale},
	{Name: "gemma4-e2b", Arch: "gemma4", meta: gemma4.and(sharedCaches, embeddings), tensors: scale},
	{Name: "gemma4-e2b-noscale", Arch: "gemma4", meta: gemma4.and(sharedCaches, embeddings)},
	{Name: "gemma4-moe", Arch: "gemma4", meta: gemma4.and(experts, noEmbeddings), tensors: slices.Concat(router, scale, []string{
		"ffn_gate_inp.scale", "pre_ffw_norm_2.weight", "post_ffw_norm_1.weight", "post_ffw_norm_2.weight"})},
	{Name: "gemma4-noscale", Arch: "gemma4", meta: gemma4.and(noEmbeddings)},
	{Name: "gemma4-shared", Arch: "gemma4", meta: gemma4.and(sharedCaches, noEmbeddings), tensors: scale},
	{Name: "glm-dsa", meta: latent.and(experts), tensors: indexer},
	{Name: "glm-dsa-shared", Arch: "glm-dsa", tensors: indexer, meta: latent.and(experts, values{
		"attention.indexer.types": []bool{true, false, true, false, false}})},
	{Name: "glm4moe-nextn", Arch: "glm4moe", meta: experts, fileMeta: next},
	{Name: "gptneox-par", Arch: "gptneox", meta: values{"use_parallel_residual": true}},
	{Name: "granite-scaled", Arch: "granite", meta: values{"embedding_scale": 4.0, "residual_scale": 0.3, "attention.scale": 0.1}},
	{Name: "granite_swa", meta: windows},
	{Name: "granite_swa-deepstack", Arch: "granite_swa", meta: windows.and(values{"deepstack_mapping": []int32{-1, 0, -1, 1, -1}})},
	{Name: "granite_swa-moe", Arch: "granite_swa", meta: experts.and(windows, values{"residual_scale": 0.5})},
	{Name: "granitehybrid", meta: hybrid, tensors: []string{"ssm_conv1d.bias 1 3"}},
	{Name: "granitehybrid-moe", Arch: "granitehybrid", tensors: []string{"ffn_gate_exps.weight", "ssm_conv1d.bias 1 3"},
		meta: hybrid.and(experts, values{"residual_scale": 0.5, "embedding_scale": 2.0})},
	{Name: "graniteswitch", meta: values{"adapters.count": 2, "adapters.lora_rank": 4, "adapters.router_gain": 20.0,
		"adapters.token_ids_activate": []int32{254, 255}, "adapters.token_ids_substitute": []int32{1, 2}}},
	{Name: "hrm_text", Blocks: []int{0, 1, 0, 1, 2, 3}, meta: values{
		"block_count": 6, "hrm.layers_per_stack": 2, "hrm.h_cycles": 1, "hrm.l_cycles": 2}},
	{Name: "hy_v3", meta: experts, tensors: mixedShared},
	{Name: "hy_v3-nextn", Arch: "hy_v3", meta: experts, tensors: mixedShared, fileMeta: next},
	{Name: "hy_v4", meta: latent.and(experts, residuals, values{"attention.indexer.top_k": 0})},
	{Name: "jamba", meta: hybrid},
	{Name: "jamba-moe", Arch: "jamba", meta: hybrid.and(experts), tensors: []string{"ffn_gate_inp.weight 1 3"}},
	{Name: "kimi-k3", meta: linearKDA.and(situ, values{"attn_res.block_size": 2, "expert_latent_length": 64}),
		tensors: slices.Concat([]string{"attn_q_a_norm.weight 0 2 4"}, in(sharedExpert, 1, 2, 3, 4))},
	{Name: "kimi-k3-nores", Arch: "kimi-k3", meta: linearKDA.and(situ, values{"attn_res.block_size": 0}),
		tensors: slices.Concat([]string{"attn_q_a_norm.weight 0 2 4"}, in(sharedExpert, 1, 2, 3, 4))},
	{Name: "kimi-linear", meta: linearKDA, tensors: in(sharedExpert, 1, 2, 3, 4)},
	{Name: "lfm2", meta: hybrid},
	{Name: "lfm2moe", meta: hybrid.and(experts)},
	{Name: "llama-bias", Arch: "llama", tensors: []string{"attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias",
		"ffn_gate.bias", "ffn_up.bias", "ffn_down.bias", "=output.weight"}},
	{Name: "llama-moe", Arch: "llama", meta: experts},
	{Name: "llama4-dense", Arch: "llama4", meta: experts.and(values{"interleave_moe_layer_step": 1})},
	{Name: "maple", meta: experts.and(windows, values{"swiglu_clamp_exp": 7.0})},
	{Name: "mimo2", meta: experts.and(windows, heads32Windows), tensors: mixed},
	{Name: "mimo2-nextn", Arch: "mimo2", meta: experts.and(windows, heads32Windows), tensors: mixed, fileMeta: nextWindows},
	{Name: "minicpm-scaled", Arch: "minicpm", meta: values{"embedding_scale": 4.0, "residual_scale": 0.3, "logit_scale": 0.2}},
	{Name: "minicpm3", meta: allHeads.and(values{"attention.key_length": 64, "attention.value_length": 32})},
	{Name: "minimax-01", meta: experts.and(values{"residual_scale": 1.0}), tensors: []string{"ffn_gate_exps.weight"}},
	{Name: "minimax-m3", meta: experts.and(values{"attention.indexer.head_count": kvHeads})},
	{Name: "mistral4", meta: latent.and(experts)},
	{Name: "mpt-bias", Arch: "mpt", tensors: []string{"attn_norm.bias", "attn_qkv.bias", "attn_output.bias", "ffn_norm.bias",
		"ffn_up.bias", "ffn_down.bias", "=output_norm.bias"}},
	{Name: "nanbeige-loops", Arch: "nanbeige", Blocks: twice, meta: values{"block_count": 4, "num_loops": 2}},
	{Name: "nanbeige-loops-nonorm", Arch: "nanbeige", Blocks: twice, meta: values{"block_count": 4, "num_loops": 2, "skip_loop_final_norm": true}},
	{Name: "nemotron_h", meta: onePart, tensors: []string{"ssm_conv1d.bias 0 3"}},
	{Name: "nemotron_h_moe", meta: experts.and(onePart), tensors: []string{"ssm_conv1d.bias 0 3"}},
	{Name: "olmoe", meta: experts.and(allHeads)},
	{Name: "openelm-arr", Arch: "openelm", meta: values{"attention.head_count": []int{4, 2, 4, 4, 2},
		"attention.head_count_kv": []int{2, 1, 2, 4, 2}, "feed_forward_length": []int{192, 128, 192, 64, 256}}},
	{Name: "phi3", tensors: separateQKV},
	{Name: "phi3-swa", Arch: "phi3", meta: values{"attention.sliding_window": 8}, tensors: separateQKV},
	{Name: "plamo2", meta: hybrid.and(heads32, values{"ssm.group_count": 0, "ssm.inner_size": 128})},
	{Name: "plm", NoFlash: true, meta: allHeads.and(values{"attention.key_length": 48, "attention.value_length": 32, "rope.dimension_count": 16})},
	{Name: "qwen2-bias", Arch: "qwen2", tensors: []string{"attn_q.bias", "attn_k.bias", "attn_v.bias", "=output.weight"}},
	{Name: "qwen35", meta: deltaNet, tensors: gatedMixer},
	{Name: "qwen35moe", meta: experts.and(deltaNet), tensors: gatedMixer},
	{Name: "qwen3next", meta: experts.and(deltaNet), tensors: gatedMixer},
	{Name: "qwen3vl-deepstack", Arch: "qwen3vl", meta: values{"n_deepstack_layers": 2}},
	{Name: "qwen4exp", meta: experts.and(deltaNet, residuals)},
	{Name: "rwkv6", meta: allHeads.and(values{"rescale_every_n_layers": 2}), tensors: []string{"time_mix_lerp_fused.weight"}},
	{Name: "rwkv6-norescale", Arch: "rwkv6", meta: allHeads.and(values{"rescale_every_n_layers": 0}), tensors: []string{"time_mix_lerp_fused.weight"}},
	{Name: "rwkv6qwen2", meta: values{"token_shift_count": 1}},
	{Name: "rwkv7", meta: wideStates},
	{Name: "spark2_5", meta: windows},
	{Name: "spark2_5-moe", Arch: "spark2_5", meta: experts.and(windows)},
	{Name: "stablelm-seq", Arch: "stablelm", tensors: []string{"ffn_norm.weight", "ffn_norm.bias"}},
	{Name: "step35", meta: experts.and(windows), tensors: mixedShared},
	{Name: "step35-nextn", Arch: "step35", meta: experts.and(windows), tensors: mixedShared, fileMeta: nextWindows},
}

// Files whose last layer is for multi-token prediction, its tensors in another file.
var (
	next        = values{"block_count": layers + 1, "nextn_predict_layers": 1}
	nextWindows = next.and(values{"attention.sliding_window_pattern": []bool{true, false, true, false, true, true}})
	twice       = []int{0, 1, 2, 3, 0, 1, 2, 3}
)

// Models lists all, sorted by name.
func Models() []Model {
	list := slices.Clone(others)
	for _, name := range strings.Fields(plain) {
		m := Model{Name: name}
		if name == "apertus" {
			m.meta = values{"xielu.alpha_n": 0.8, "xielu.alpha_p": 0.8, "xielu.beta": 0.5, "xielu.eps": 1e-6}
		}
		list = append(list, m)
	}
	for _, name := range strings.Fields(withExperts) {
		list = append(list, Model{Name: name, meta: experts})
	}
	for i := range list {
		if list[i].Arch == "" {
			list[i].Arch = list[i].Name
		}
	}
	slices.SortFunc(list, func(a, b Model) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// Find gives the model of a name.
func Find(name string) (Model, error) {
	for _, m := range Models() {
		if m.Name == name {
			return m, nil
		}
	}
	return Model{}, fmt.Errorf("there is no model %q among those of package archmodel", name)
}

// blocks is the number of blocks that have weights.
func (m Model) blocks() int {
	if n, ok := m.meta["block_count"].(int); ok {
		return n
	}
	return layers
}

// names lists the optional tensors by their full names.
func (m Model) names() (list []string) {
	for _, t := range m.tensors {
		if name, ok := strings.CutPrefix(t, "="); ok {
			list = append(list, name)
			continue
		}
		fields := strings.Fields(t)
		if len(fields) > 1 {
			for _, block := range fields[1:] {
				list = append(list, "blk."+block+"."+fields[0])
			}
			continue
		}
		for block := range m.blocks() {
			list = append(list, fmt.Sprintf("blk.%d.%s", block, t))
		}
	}
	return list
}

// metadata gives what libllama is asked about, or with file what the file gets.
func (m Model) metadata(file bool) (meta gguf.Metadata) {
	meta.Set(gguf.KeyArchitecture, m.Arch)
	meta.Set("tokenizer.ggml.model", "no_vocab")
	all := common.and(m.meta)
	if file {
		all = all.and(m.fileMeta)
	}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		full := m.Arch + "." + key
		if strings.HasPrefix(key, "xielu.") {
			full = key
		}
		switch v := all[key].(type) {
		case nil:
		case int:
			meta.Set(full, uint32(v))
		case float64:
			meta.Set(full, float32(v))
		case []int:
			wide := make([]uint32, len(v))
			for i := range v {
				wide[i] = uint32(v[i])
			}
			meta.Set(full, wide)
		default:
			meta.Set(full, v)
		}
	}
	return meta
}
