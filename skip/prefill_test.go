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
	require.Equal(t, mask, skip.MaskedPrefill.Mask(mask))
	require.Equal(t, skip.Mask{}, skip.FullPrefill.Mask(mask), "all of the prompt, its last token too")
}
