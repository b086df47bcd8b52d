package skip_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/skip"
)

func ExampleMask_Neurons() {
	mask, err := skip.Parse("f3,n12.5%,v1024")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(mask.Neurons(), "of", skip.NeuronUnits, "neurons;", mask)
	fmt.Println(mask.WithNeurons(0, 0))
	// Output:
	// 125 of 1000 neurons; f3,n12.5%,v1024
	// f3,v1024
}

func TestParseNeurons(t *testing.T) {
	for text, want := range map[string]int{"n20%": 200, "n0.1%": 1, "n90%": 900, "n33.3%": 333, "4, n 7 %": 70, "n020.0%": 200} {
		m, err := skip.Parse(text)
		require.NoError(t, err, text)
		require.Equal(t, want, m.Neurons(), text)
	}
	for _, text := range []string{"n", "n%", "n20", "n0%", "n0.01%", "n90.1%", "n100%", "n-5%", "n+5%", "n1e1%", "nNaN%", "ninf%", "n12.55%", "n1.2.3%", "n7:20%", "n20%%", "20%", "n.%"} {
		m, err := skip.Parse(text)
		require.ErrorIs(t, err, skip.ErrMask, text)
		require.True(t, m.IsEmpty(), text)
	}
	_, err := skip.Parse("n95%")
	require.ErrorContains(t, err, "a share of neurons is 0.1% to 90%")
}

func TestNeuronsBesideOthers(t *testing.T) {
	m := skip.Layers(2).WithNeurons(100, 3)
	require.Equal(t, 3, m.NeuronChoice())
	require.Equal(t, "2,n10%", m.String(), "the choice's number is not in the text")
	require.Equal(t, skip.Layers(2), m.WithNeurons(0, 3))
	require.False(t, skip.Mask{}.WithNeurons(1, 0).IsEmpty())
	require.Equal(t, 2, m.Len())
	layers, only := m.WholeLayers()
	require.Equal(t, []int{2}, layers)
	require.False(t, only)

	more := skip.Layers(5).WithNeurons(200, 4)
	require.Equal(t, skip.Layers(2, 5).WithNeurons(200, 4), m.Union(more))
	require.Equal(t, m.Union(more), more.Union(m))
	require.Equal(t, skip.Mask{}, m.Intersection(more))
	require.Equal(t, skip.Mask{}.WithNeurons(100, 3), m.Intersection(skip.Layers(5).WithNeurons(100, 3)))
	require.Equal(t, skip.Layers(2), m.Minus(more))
	require.Equal(t, m, m.Minus(skip.Layers(5)))
}
