package skip_test

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/skip"
)

func TestParseAttention(t *testing.T) {
	window := skip.Window{Recent: 128, Sinks: 2}
	for text, want := range map[string]struct {
		mask skip.Mask
		text string // as it is written
	}{
		"l0":           {skip.Mask{}.WithLocal(0, skip.DefaultWindow), "l0,w256+4"},
		"w128+2, l0-2": {skip.Mask{}.WithLocal(0, window).WithLocal(1, window).WithLocal(2, window), "l0-2,w128+2"},
		"l3,w128":      {skip.Mask{}.WithLocal(3, skip.Window{Recent: 128, Sinks: 4}), "l3,w128+4"},
		"l3,w1+0":      {skip.Mask{}.WithLocal(3, skip.Window{Recent: 1}), "l3,w1+0"},
		"k511,f511":    {skip.Mask{}.WithWritten(511).With(511, skip.FeedForward), "f511,k511"},
		"k5,a5":        {skip.Mask{}.With(5, skip.Attention), "a5"},
		"a5,k5,l5":     {skip.Mask{}.With(5, skip.Attention), "a5"},
		"l5,k5":        {skip.Mask{}.WithWritten(5), "k5"},
		"l5,5":         {skip.Layers(5), "5"},
		"4,6,a5,f7,k8,l0-1,v1024": {skip.Layers(4, 6).With(5, skip.Attention).With(7, skip.FeedForward).WithWritten(8).
			WithLocal(0, skip.DefaultWindow).WithLocal(1, skip.DefaultWindow).WithShortlist(1024), "4,6,a5,f7,k8,l0,l1,w256+4,v1024"},
	} {
		got, err := skip.Parse(text)
		require.NoError(t, err, text)
		require.Equal(t, want.mask, got, text)
		require.Equal(t, want.text, got.String())
	}
	for text, says := range map[string]string{
		"w128": "no layer that it is for", "a3,w128": "no layer that it is for", "l3,w": "as in w256+4", "l3,w0": "1 to", "l3,w-1": "as in",
		"l3,w1+": "as in", "l3,w+4": "as in", "l3,w1+2+3": "as in", "l3,w9999999": "1 to", "l3,w4+9999999": "", "l": "no layer number",
		"l512": "layers end at 511", "k3-2": "backwards", "l3,w1_0": "as in", "l3,w4++1": "as in",
	} {
		got, err := skip.Parse(text)
		require.ErrorIs(t, err, skip.ErrMask, text)
		require.ErrorContains(t, err, says, text)
		require.True(t, got.IsEmpty())
	}
}

// states of a layer's attention, from whole to skipped.
const (
	whole = iota
	local
	written
	skipped
)

func state(m skip.Mask, layer int) int {
	switch {
	case m.Local(layer):
		return local
	case m.Written(layer):
		return written
	case m.Skipped(layer)&skip.Attention != 0:
		return skipped
	}
	return whole
}

func randomAttention(r *rand.Rand, window skip.Window) (m skip.Mask, states [skip.MaxLayers]int) {
	for range r.IntN(40) {
		l, s := r.IntN(skip.MaxLayers), r.IntN(4)
		switch s {
		case local:
			m = m.WithLocal(l, window)
		case written:
			m = m.WithWritten(l)
		case skipped:
			m = m.With(l, skip.Attention)
		}
		states[l] = max(states[l], s)
		if r.IntN(2) == 0 {
			m = m.With(l, skip.FeedForward)
		}
	}
	return m, states
}

// TestAttentionOperations compares with a plain list of states.
func TestAttentionOperations(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	small, large := skip.Window{Recent: 16, Sinks: 8}, skip.Window{Recent: 64, Sinks: 1}
	for range 300 {
		a, as := randomAttention(r, small)
		b, bs := randomAttention(r, large)
		union, both, minus := a.Union(b), a.Intersection(b), a.Minus(b)
		complete, anyLocal, highest := true, false, -1
		for l := range skip.MaxLayers {
			require.Equal(t, as[l], state(a, l))
			require.Equal(t, max(as[l], bs[l]), state(union, l))
			require.Equal(t, min(as[l], bs[l]), state(both, l))
			rest := as[l]
			if bs[l] >= as[l] {
				rest = whole
			}
			require.Equal(t, rest, state(minus, l))
			require.Equal(t, a.Skipped(l)|b.Skipped(l), union.Skipped(l))
			require.Equal(t, a.Skipped(l)&skip.FeedForward&^b.Skipped(l), minus.Skipped(l)&skip.FeedForward)
			require.Equal(t, as[l] == skipped, a.Unread().Skipped(l)&skip.Attention != 0)
			complete = complete && as[l] != skipped
			anyLocal = anyLocal || as[l] == local
			if as[l] != whole || a.Skipped(l) != 0 {
				highest = l
			}
		}
		require.Equal(t, complete, a.KVComplete())
		require.Equal(t, anyLocal, a.HasLocal())
		require.Equal(t, highest, a.Highest())
		require.False(t, a.WithoutLocal().HasLocal())
		require.Equal(t, a.Len(), a.WithoutLocal().Len(), "nothing local is skipped")
		want := skip.Window{}
		if anyLocal {
			want = small
		}
		require.Equal(t, want, a.Window())
		if union.HasLocal() && anyLocal && b.HasLocal() {
			require.Equal(t, skip.Window{Recent: 16, Sinks: 1}, union.Window())
		}
		if both.HasLocal() && anyLocal && b.HasLocal() {
			require.Equal(t, skip.Window{Recent: 64, Sinks: 8}, both.Window())
		}
		for _, m := range []skip.Mask{a, union, both, minus} {
			again, err := skip.Parse(m.String())
			require.NoError(t, err)
			require.Equal(t, m, again)
		}
	}
	layers, only := skip.Layers(2).WithWritten(3).With(3, skip.FeedForward).WholeLayers()
	require.Equal(t, []int{2}, layers)
	require.False(t, only, "a file without layer 3 would not write its keys")
	_, only = skip.Layers(2).WithLocal(3, small).WholeLayers()
	require.False(t, only)
}
