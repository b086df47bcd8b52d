package threads

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestOthersOf(t *testing.T) {
	for text, want := range map[string]int{
		"0.20 0.18 0.12 1/80 11206\n": 0, // only the one that asks
		"2.71 1.18 0.12 3/80 11206\n": 2,
		"0.20 0.18 0.12 0/80 11206\n": 0,
		"0.20 0.18 0.12 x/80 11206\n": 0,
		"0.20":                        0,
		"":                            0,
	} {
		require.Equal(t, want, othersOf(text), "%q", text)
	}
	require.GreaterOrEqual(t, Others(), 0)
}
