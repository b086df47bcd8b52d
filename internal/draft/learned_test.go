package draft

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/costs"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// TestLearnedIsKept has one drafter learn and the next one start with that.
func TestLearnedIsKept(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 4))
	o := Options{Masks: []Mask{{Mask: skip.Layers(1)}}}
	first, err := New(m, &o, nil)
	require.NoError(t, err)
	require.Nil(t, first.Learned(), "nothing was learnt")
	require.Equal(t, llama.AttentionAlone, first.Isolation())

	first.costs.addBatch(1, 10*time.Millisecond)
	first.costs.addGraph(11 * time.Millisecond)
	for range trusted {
		first.addBatch(4, 30*time.Millisecond)
	}
	first.addBatch(8, 40*time.Millisecond) // once is not enough
	first.company = true
	for range trusted { // nor are times of decodes that others took part in
		first.addBatch(12, 40*time.Millisecond)
	}
	first.same.add(4, []float32{1, 2}, []float32{1, 2.5})
	first.isolation = llama.ProductsUntiled
	batches := first.Learned()
	require.NotNil(t, batches)
	require.Nil(t, first.Learned(), "it is told once")
	require.NoError(t, first.Close())
	require.NoError(t, first.Close(), "twice does nothing")

	second, err := New(m, &o, batches)
	require.NoError(t, err)
	defer second.Close()
	second.costs.addBatch(1, 20*time.Millisecond)
	const tolerance = 1e-9 // of decimals in the file
	require.InDelta(t, 3, second.costs.of(4), tolerance)
	require.InDelta(t, 3, second.costs.cautious.of(4), tolerance)
	require.InDelta(t, 0.1, second.costs.graph, tolerance)
	require.Zero(t, second.costs.seen[8].N())
	require.Zero(t, second.costs.seen[12].N())
	require.True(t, second.same.known(4))
	require.False(t, second.same.known(8))
	require.InDelta(t, 0.5, second.same.most, tolerance)
	require.Equal(t, llama.ProductsUntiled, second.Isolation())

	third, err := New(m, &o, &costs.New().Batches)
	require.NoError(t, err)
	defer third.Close()
	require.Zero(t, third.costs.after.N(), "the file of masks alone says nothing of batches")
}

// TestNothingIsTriedBeyondItsShare looks at what may be drafted at the end of an
// answer of 100 tokens, when nothing is known of batches.
func TestNothingIsTriedBeyondItsShare(t *testing.T) {
	d := &Drafter{most: MaxDraft, lookup: &source{lookup: true, prior: priorLookup}}
	d.costs.addBatch(1, 10*time.Millisecond)
	budget := min(100*costs.LossShare+wonBefore, mostRisk)
	d.match = 20
	d.setChances(d.lookup, MaxDraft)
	cost := d.costOf(d.lookup)
	require.Zero(t, d.costs.cautious.affordable(&cost, d.lower[:], budget, d.extra), "nothing is known of what is looked up")
	for range 40 {
		d.lookup.acceptance.count(matchClass(d.match), true)
	}
	d.setChances(d.lookup, MaxDraft)
	require.GreaterOrEqual(t, d.costs.cautious.affordable(&cost, d.lower[:], budget, d.extra), 6, "looking up was right 40 times, without a draft")
	require.Zero(t, d.costs.cautious.affordable(&cost, d.lower[:3], budget, d.extra), "a short draft can hardly win where batches are dear")
}

func TestOptions(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 4))
	for _, o := range []Options{{MaxDraft: 17}, {MaxDraft: -1}, {Masks: []Mask{{}}}} {
		_, err := New(m, &o, nil)
		require.ErrorIs(t, err, ErrLossless)
	}
	_, err := New(m, &Options{Masks: []Mask{{Mask: skip.Layers(4)}}}, nil)
	require.ErrorIs(t, err, skip.ErrMask)

	d, err := New(m, &Options{NoLookup: true}, nil)
	require.NoError(t, err)
	defer d.Close()
	require.Nil(t, d.lookup)
	require.ErrorIs(t, d.Set(&Options{MaxDraft: 99}), ErrLossless)
	require.NoError(t, d.Set(&Options{MaxDraft: 3, Masks: []Mask{{Mask: skip.Layers(2)}}}))
	require.NotNil(t, d.lookup)
	require.Equal(t, 3, d.most)
	d.SetMasks(skip.Layers(1))
	require.Equal(t, []skip.Mask{skip.Layers(1), skip.Layers(2)}, []skip.Mask{d.masks[0].mask, d.masks[1].mask})
	known := d.masks[0]
	d.SetMasks(skip.Layers(2))
	require.Len(t, d.masks, 1, "once each")
	d.SetMasks(skip.Layers(1))
	require.Same(t, known, d.masks[0], "what was learned of a mask stays")

	require.ErrorIs(t, (&Options{}).Check(&llama.Model{Recurrent: true}), ErrLossless, "failed drafts could not be forgotten")
}

func TestProbe(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 4))
	masks, err := Probe(m, 1)
	require.NoError(t, err)
	require.NotEmpty(t, masks)
	for _, d := range masks {
		require.NoError(t, d.Mask.Check(m.NLayer))
		require.False(t, d.Mask.IsEmpty())
		require.Zero(t, d.Mask.Skipped(0)|d.Mask.Skipped(m.NLayer-1), "the first and the last layer stay")
	}
}
