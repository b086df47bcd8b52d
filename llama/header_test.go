package llama

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/skip"
)

// TestHeaderAgrees compares what Go says of masks and constants with what the C headers
// say. TestMask has the meaning of the bits.
func TestHeaderAgrees(t *testing.T) {
	require.Equal(t, skip.MaxLayers, headerLayers)
	for _, layer := range []int{0, 1, 31, 32, headerLayers - 1} {
		for bit, half := range map[int]skip.Half{2 * layer: skip.Attention, 2*layer + 1: skip.FeedForward} {
			var want skip.Mask
			want[bit/64] = 1 << (bit % 64)
			require.Equal(t, want, skip.Mask{}.With(layer, half), "layer %d", layer)
		}
	}
	var want skip.Mask
	want[headerShortlist] = 1024
	require.Equal(t, want, skip.Mask{}.WithShortlist(1024))

	require.Equal(t, [...]Isolation{Shared, AttentionAlone, ProductsUntiled, AllAlone}, headerIsolation)
	require.EqualValues(t, NoToken, headerNoToken)
}
