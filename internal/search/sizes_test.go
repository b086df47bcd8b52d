package search_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

func TestHalfOf(t *testing.T) {
	for name, want := range map[string]skip.Half{
		"blk.7.attn_q.weight":         skip.Attention,
		"blk.7.attn_norm.weight":      skip.Attention,
		"blk.7.ffn_up.weight":         skip.FeedForward,
		"blk.7.ffn_gate_exps.weight":  skip.FeedForward,
		"blk.7.exp_probs_b.bias":      skip.FeedForward,
		"blk.7.post_ffw_norm.weight":  skip.FeedForward,
		"blk.7.ssm_in.weight":         skip.Attention,
		"blk.7.channel_mix_key.weigt": skip.FeedForward,
	} {
		layer, half, ok := search.HalfOf(name)
		require.True(t, ok, name)
		require.Equal(t, 7, layer, name)
		require.Equal(t, want, half, name)
	}
	for _, name := range []string{"output.weight", "token_embd.weight", "blk.x.ffn_up.weight", ""} {
		_, _, ok := search.HalfOf(name)
		require.False(t, ok, name)
	}
}

func TestSizes(t *testing.T) {
	var tensors []llama.Tensor
	for _, c := range []struct {
		name  string
		bytes uint64
	}{
		{"token_embd.weight", 1000},
		{"blk.0.attn_q.weight", 10}, {"blk.0.attn_k.weight", 10}, {"blk.0.ffn_up.weight", 80},
		{"blk.1.attn_q.weight", 30}, {"blk.1.ffn_up.weight", 120},
		{"blk.2.attn_q.weight", 50}, // no feed-forward
		{"blk.3.attn_q.weight", 20}, {"blk.3.ffn_up.weight", 80},
		{"blk.4.ffn_up.weight", 77}, // beyond the layers
	} {
		tensors = append(tensors, llama.Tensor{Name: c.name, Size: c.bytes})
	}
	s := search.SizesOf(tensors, 4)
	require.Equal(t, search.Sizes{Attention: []uint64{20, 30, 50, 20}, FeedForward: []uint64{80, 120, 0, 80}}, s)

	// 400 bytes in 4 layers: 100 are a layer's worth.
	require.Zero(t, s.Depth(skip.Mask{}))
	require.InDelta(t, 1.5, s.Depth(skip.Layers(1)), 1e-12)
	require.InDelta(t, 0.5+0.8, s.Depth(skip.Layers(2).With(3, skip.FeedForward)), 1e-12)
	require.InDelta(t, 4, s.Depth(skip.Layers(0, 1, 2, 3, 4)), 1e-12) // layer 4 is not there
	require.Zero(t, search.Sizes{}.Depth(skip.Layers(0)))
	require.EqualValues(t, 130, s.Bytes(skip.Layers(2).With(3, skip.FeedForward)))

	require.Equal(t, []search.Unit{{skip.Layers(1), 1.5}, {skip.Layers(2), 0.5}}, search.LayerUnits(s))
	require.Equal(t, []search.Unit{
		{skip.Mask{}.With(1, skip.Attention), 0.3},
		{skip.Mask{}.With(1, skip.FeedForward), 1.2},
		{skip.Mask{}.With(2, skip.Attention), 0.5},
	}, search.SublayerUnits(s))
	for n := range 3 {
		require.Empty(t, search.LayerUnits(evenSizes(n)), n)
	}
}

// evenSizes are the sizes of a model of equal layers.
func evenSizes(layers int) (s search.Sizes) {
	for range layers {
		s.Attention = append(s.Attention, 3)
		s.FeedForward = append(s.FeedForward, 10)
	}
	return s
}
