package skip_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/skip"
)

func TestPrefill(t *testing.T) {
	for _, p := range []skip.Prefill{skip.MaskedPrefill, skip.FullPrefill} {
		parsed, err := skip.ParsePrefill(p.String())
		require.NoError(t, err)
		require.Equal(t, p, parsed)
	}
	_, err := skip.ParsePrefill("half")
	require.ErrorContains(t, err, "want masked or full")

	mask := skip.Layers(3)
	require.Equal(t, mask, skip.MaskedPrefill.Mask(mask, 0, 9))
	require.Equal(t, skip.Mask{}, skip.FullPrefill.Mask(mask, 7, 9))
	require.Equal(t, mask, skip.FullPrefill.Mask(mask, 8, 9), "the answer's first token comes from the last of the prompt")
}
