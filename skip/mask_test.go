package skip_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/skip"
)

func ExampleParse() {
	mask, err := skip.Parse("4, 6, 9-11, a5, f7")
	if err != nil {
		fmt.Println(err)
		return
	}
	layers, only := mask.WholeLayers()
	fmt.Println(mask)
	fmt.Println("whole layers", layers, "nothing else:", only)
	fmt.Println(mask.Len(), "sublayers, the last in layer", mask.Highest())
	fmt.Println(mask.Check(8))
	// Output:
	// 4,6,9-11,a5,f7
	// whole layers [4 6 9 10 11] nothing else: false
	// 12 sublayers, the last in layer 11
	// not a mask for this model: it names layer 11, the layers are 0 to 7
}

func ExampleMask() {
	mask := skip.Layers(2, 3).With(5, skip.Attention)
	fmt.Println(mask, mask == skip.Layers(3, 2).With(5, skip.Attention))
	fmt.Println(mask.Minus(skip.Mask{}.With(2, skip.FeedForward)))
	fmt.Println(mask.Union(skip.Layers(5)))
	// Output:
	// 2,3,a5 true
	// 3,a2,a5
	// 2,3,5
}

func TestParse(t *testing.T) {
	for text, want := range map[string]skip.Mask{
		"":               {},
		"  \t\n":         {},
		"0":              skip.Layers(0),
		"511":            skip.Layers(511),
		"7,3,3":          skip.Layers(3, 7),
		"2-2":            skip.Layers(2),
		"2-4,3-6":        skip.Layers(2, 3, 4, 5, 6),
		" 1 , 2 - 3 ":    skip.Layers(1, 2, 3),
		"a1,f1":          skip.Layers(1),
		"a0-2":           skip.Mask{}.With(0, skip.Attention).With(1, skip.Attention).With(2, skip.Attention),
		"f31,f32":        skip.Mask{}.With(31, skip.FeedForward).With(32, skip.FeedForward), // either side of a word's end
		"0-511":          all(skip.Whole),
		"f0-511,a0-511":  all(skip.Whole),
		"00000000000012": skip.Layers(12),
	} {
		got, err := skip.Parse(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for text, says := range map[string]string{
		"x": "no layer number", ",": "", "1,": "", ",1": "", "1,,2": "", "-": "", "1-": "", "-1": "", "+1": "no layer number",
		"1-2-3": "", "5-3": "backwards", "512": "layers end at 511", "0-512": "511", "99999999999999999999": "no layer number",
		"a": "", "f": "", "aa1": "", "af1": "", "A1": "", "a-1": "", "1a": "", "1.5": "", "0x3": "", "1_0": "", "½": "", "1;2": "",
		"a1-a3": "", "1\x00": "",
	} {
		got, err := skip.Parse(text)
		require.ErrorIs(t, err, skip.ErrMask, text)
		require.ErrorContains(t, err, says, text)
		require.ErrorContains(t, err, "write layers as in 4,6,9-11,a5,f7")
		require.NotContains(t, err.Error(), "\n")
		require.True(t, got.IsEmpty(), text)
	}
}

// all is half of every layer.
func all(half skip.Half) (m skip.Mask) {
	for l := range skip.MaxLayers {
		m = m.With(l, half)
	}
	return m
}

// randomMask skips each half with a chance of its own.
func randomMask(r *rand.Rand) (m skip.Mask) {
	one, two := r.IntN(100), r.IntN(100)
	for l := range 1 + r.IntN(skip.MaxLayers) {
		if r.IntN(100) < one {
			m = m.With(l, skip.Attention)
		}
		if r.IntN(100) < two {
			m = m.With(l, skip.FeedForward)
		}
	}
	if r.IntN(3) == 0 {
		m = m.WithLocal(r.IntN(skip.MaxLayers), skip.Window{Recent: 1 + r.IntN(1000), Sinks: r.IntN(9)}).WithWritten(r.IntN(skip.MaxLayers))
	}
	if r.IntN(3) == 0 {
		m = m.WithShortlist(skip.MinShortlist + r.IntN(5000))
	}
	if r.IntN(3) == 0 {
		m = m.WithNeurons(1+r.IntN(skip.MaxNeurons), 0)
	}
	return m
}

func TestRoundTrip(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		m := randomMask(r)
		got, err := skip.Parse(m.String())
		require.NoError(t, err)
		require.Equal(t, m, got)
		data, err := json.Marshal(map[string]skip.Mask{"mask": m})
		require.NoError(t, err)
		var back map[string]skip.Mask
		require.NoError(t, json.Unmarshal(data, &back))
		require.Equal(t, m, back["mask"])
	}
	m := skip.Layers(1)
	require.ErrorIs(t, m.UnmarshalText([]byte("x")), skip.ErrMask)
}

// FuzzParse checks that a text either is refused or has one meaning.
func FuzzParse(f *testing.F) {
	for _, text := range []string{"", "4,6,9-11,a5,f7", "a0-511", "1,,2", "5-3", "512", "v1024", "v4", "f2,v64", "k3,l0-2,w64+2", "w4,l3", "n20%", "n12.5%,v64", "n0%", "\xff"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		m, err := skip.Parse(text)
		if err != nil {
			require.ErrorIs(t, err, skip.ErrMask)
			require.True(t, m.IsEmpty())
			return
		}
		again, err := skip.Parse(m.String())
		require.NoError(t, err)
		require.Equal(t, m, again)
		require.Equal(t, m.String(), again.String())
	})
}

func TestShortlistInMasks(t *testing.T) {
	m, err := skip.Parse("2, v1024 ,f7")
	require.NoError(t, err)
	require.Equal(t, 1024, m.Shortlist())
	require.Equal(t, "2,f7,v1024", m.String())
	require.Equal(t, 3, m.Len(), "the shortlist is no sublayer")
	_, only := skip.Layers(2).WithShortlist(64).WholeLayers()
	require.False(t, only, "no file can have a shortlist")
	require.Equal(t, 7, m.Highest())
	require.False(t, skip.Mask{}.WithShortlist(64).IsEmpty())
	require.True(t, skip.Mask{}.WithShortlist(64).KVComplete())
	a, b, none := skip.Mask{}.WithShortlist(64), skip.Mask{}.WithShortlist(128), skip.Mask{}
	for _, c := range []struct{ union, intersection, minus, want skip.Mask }{
		{a.Union(b), b.Union(a), a.Union(none), a},
		{a.Intersection(b), b.Intersection(a), b.Minus(none), b},
		{a.Intersection(none), none.Intersection(a), a.Minus(b), none},
	} {
		require.Equal(t, c.want, c.union)
		require.Equal(t, c.want, c.intersection)
		require.Equal(t, c.want, c.minus)
	}
	for _, text := range []string{"v", "v31", "v-64", "v1.5", "v99999999", "v64-128"} {
		_, err := skip.Parse(text)
		require.ErrorContains(t, err, "as in v1024", text)
	}
}

// TestMaskOperations compares with a plain list of layers.
func TestMaskOperations(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		var halves, others [skip.MaxLayers]skip.Half
		var m, other skip.Mask
		for range r.IntN(60) {
			l, half := r.IntN(skip.MaxLayers), skip.Half(r.IntN(4))
			if r.IntN(3) > 0 {
				m, halves[l] = m.With(l, half), halves[l]|half
			} else {
				m, halves[l] = m.Minus(skip.Mask{}.With(l, half)), halves[l]&^half
			}
			other, others[l] = other.With(l, half), others[l]|half
		}
		sublayers, last, only := 0, -1, true
		var whole []int
		union := m.Union(other)
		for l, half := range halves {
			require.Equal(t, half, m.Skipped(l))
			require.Equal(t, half|others[l], union.Skipped(l))
			require.Equal(t, half&others[l], m.Intersection(other).Skipped(l))
			sublayers += int(half&1 + half>>1)
			if half != 0 {
				last = l
				only = only && half == skip.Whole
			}
			if half == skip.Whole {
				whole = append(whole, l)
			}
		}
		layers, gotOnly := m.WholeLayers()
		require.Equal(t, whole, layers)
		require.Equal(t, only, gotOnly)
		require.Equal(t, sublayers, m.Len())
		require.Equal(t, last, m.Highest())
		require.Equal(t, last < 0, m.IsEmpty())
	}
	for _, bad := range []int{-1, skip.MaxLayers} {
		require.Panics(t, func() { skip.Layers(bad) })
	}
}

func TestCheck(t *testing.T) {
	require.NoError(t, skip.Mask{}.Check(4))
	require.NoError(t, skip.Layers(0, 1, 2).Check(4))
	require.NoError(t, skip.Layers(0, 1, 2).With(3, skip.Attention).Check(4))
	require.ErrorContains(t, skip.Layers(4).Check(4), "it names layer 4, the layers are 0 to 3")
	err := skip.Layers(0, 1, 2, 3).Check(4)
	require.ErrorIs(t, err, skip.ErrMask)
	require.ErrorContains(t, err, "it skips all 4 layers, keep at least one")
}

func TestKVComplete(t *testing.T) {
	for text, want := range map[string]bool{"": true, "f0": true, "f0,f5-9": true, "a3": false, "3": false, "f1,a200": false} {
		m, err := skip.Parse(text)
		require.NoError(t, err)
		require.Equal(t, want, m.KVComplete(), text)
	}
}
