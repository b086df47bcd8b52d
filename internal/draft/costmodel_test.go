package draft

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/costs"
)

// laptop is the curve of a model of LLaMA-3.2-1B's shape in Q4_0 on two cores: 1,
// 4 and 8 tokens at once take 15.1, 29.3 and 48.5 ms.
func laptop() *costModel {
	var p costModel
	for range trusted {
		p.addBatch(1, 15100*time.Microsecond)
		p.addBatch(4, 29300*time.Microsecond)
		p.addBatch(8, 48500*time.Microsecond)
	}
	return &p
}

func TestPaceFillsGaps(t *testing.T) {
	p := laptop()
	const tolerance = 1e-6 // of the decimals here
	for n, ms := range map[int]float64{1: 15.1, 2: 19.8333333, 3: 29.3, 4: 29.3, 6: 48.5, 8: 48.5, 15: 86.6714286} {
		require.InDelta(t, ms, p.of(n)*15.1, tolerance, "%d tokens", n)
	}
	var unknown costModel
	unknown.addBatch(1, 10*time.Millisecond)
	require.InDelta(t, 1.9, unknown.of(3), tolerance)
	require.InDelta(t, 4.8, unknown.cautious.of(3), tolerance)
	unknown.addBatch(4, time.Second)
	require.InDelta(t, 1.9, unknown.of(3), tolerance, "one measurement may have been interrupted")
	unknown.addBatch(4, 15*time.Millisecond)
	require.InDelta(t, 1.5, unknown.of(3), tolerance)
	require.InDelta(t, 1.5, unknown.cautious.of(3), tolerance)

	for range costs.Recent - 1 {
		p.addBatch(4, 30*time.Millisecond)
	}
	for range costs.Recent - 2 { // interruptions
		p.addBatch(4, time.Second)
	}
	require.InDelta(t, 30, p.of(4)*15.1, tolerance)

	for range costs.Recent {
		p.addBatch(1, 30200*time.Microsecond) // the context has grown, and so have batches
	}
	require.InDelta(t, 30, p.of(4)*15.1, tolerance)
}

// TestBestDraft compares with playing rounds out.
func TestBestDraft(t *testing.T) {
	p := laptop()
	random := rand.New(rand.NewPCG(1, 1))
	for _, chance := range []float64{0.1, 0.5, 0.8, 0.95} {
		cost := &draftCost{once: 0.07, each: 0.27}
		length, rate := p.best(cost, fill(make([]float64, MaxDraft), chance))
		bestPlayed, played := 0, 0.0
		for n := 1; n <= MaxDraft; n++ {
			tokens := 0
			const rounds = 20_000
			for range rounds {
				tokens++
				for i := 0; i < n && random.Float64() < chance; i++ {
					tokens++
				}
			}
			r := float64(tokens) / rounds / (cost.once + float64(n)*cost.each + p.of(n+1))
			if n == length {
				require.InEpsilon(t, r, rate, 0.03)
			}
			if r > played {
				bestPlayed, played = n, r
			}
		}
		require.InEpsilon(t, played, rate, 0.03, "%d instead of %d tokens", length, bestPlayed)
	}
	_, cheap := p.best(&draftCost{each: 0.13}, fill(make([]float64, MaxDraft), 0.95))
	require.Greater(t, cheap, 1.3, "a deep mask that is mostly right pays on two cores")
	_, poor := p.best(&draftCost{each: 0.53}, fill(make([]float64, MaxDraft), 0.3))
	require.Less(t, poor, 1.0, "and one that is mostly wrong does not")
}

func TestDraftsGoOnWhileTheyPay(t *testing.T) {
	p := laptop()
	cost := &draftCost{each: 0.27}
	length, rate := p.best(cost, fill(make([]float64, MaxDraft), 0.9))
	require.True(t, p.goOn(1, 0.9, cost, 0.9, rate, MaxDraft))
	require.False(t, p.goOn(length, 0.1, cost, 0.9, rate, MaxDraft), "hardly anything so far will be accepted")
	require.False(t, p.goOn(MaxDraft, 1, cost, 0.9, rate, MaxDraft))
}

func TestDraftsAreAffordable(t *testing.T) {
	p, cost := laptop(), &draftCost{once: 0.1, each: 0.2}
	never, none := make([]float64, MaxDraft), func(int) int { return 0 }
	require.Zero(t, p.affordable(cost, never, 0, none), "nothing is free")
	n := p.affordable(cost, never, 2, none)
	require.Equal(t, 3, n) // 0.1 + 3 × 0.2 + 29.3 / 15.1 = 2.64, of which its own token brings 1
	require.Equal(t, 2, p.affordable(cost, never, 2, func(int) int { return 1 }), "a batch that is compared has a row more")
	require.LessOrEqual(t, p.affordable(cost, never[:2], 2, none), 2)
	require.Equal(t, MaxDraft, p.affordable(cost, never, 100, none))
	mostly := fill(make([]float64, MaxDraft), 0.95)
	require.Greater(t, p.affordable(cost, mostly, 0.5, none), 3, "what mostly wins may be longer")
}

func TestHopeEndsWithMeasurements(t *testing.T) {
	var p costModel
	p.addBatch(1, 10*time.Millisecond)
	p.addBatch(4, 90*time.Millisecond) // interrupted, perhaps
	require.Less(t, p.optimistic.of(4), 2.0)
	for range trusted {
		p.addBatch(4, 90*time.Millisecond)
	}
	require.InDelta(t, 9, p.optimistic.of(4), 1e-9)
}

func TestDraftsLearnWhatTheyCost(t *testing.T) {
	cost := draftCost{each: 0.5}
	slow := []float64{0.4, 0.2, 3, 0.2} // one interruption
	cost.learn(slow)
	require.InDelta(t, 0.5, cost.each, 1e-9, "one draft is not enough")
	for range trusted {
		cost.learn([]float64{0.4, 0.2, 3, 0.2})
	}
	require.InDelta(t, 0.2, cost.each, 1e-9)
	require.InDelta(t, 0.2, cost.once, 1e-9)
	cost.learn(nil)
}

func TestOddsFollowTheText(t *testing.T) {
	var o acceptance
	require.InDelta(t, 0.7, o.mean(0.7), 1e-9, "what was believed")
	for range 200 {
		o.count(6, true)
		o.count(1, false)
	}
	require.Greater(t, o.of(6, 0.7), 0.9)
	require.Less(t, o.of(1, 0.7), 0.15)
	require.Greater(t, o.upper(0.7), o.mean(0.7))
	for range 300 {
		o.count(6, false)
	}
	require.Less(t, o.of(6, 0.7), 0.1, "what was long ago is forgotten")
	for p, class := range map[float64]int{0: 0, 0.4: 0, 0.6: 1, 0.8: 2, 0.99: 6, 1: 7} {
		require.Equal(t, class, probabilityClass(p), "%g", p)
	}
}

// TestAPromptTellsWhatBatchesCost has a prompt whose tokens took a fifth of one alone.
func TestAPromptTellsWhatBatchesCost(t *testing.T) {
	var p costModel
	p.apart = 1.5
	p.addPrompt(leastPrompt-1, time.Millisecond)
	p.addBatch(1, 10*time.Millisecond)
	unknown := p.cautious.of(8)
	p.addPrompt(40, 80*time.Millisecond)
	require.InDelta(t, 1+8*0.2*1.5, p.cautious.of(8), 1e-9)
	require.Less(t, p.cautious.of(8), unknown)
	p.addBatch(8, 50*time.Millisecond)
	p.addBatch(8, 50*time.Millisecond)
	p.addBatch(8, 50*time.Millisecond)
	require.InDelta(t, 5, p.cautious.of(8), 1e-9, "what was measured counts for more")
	p = costModel{}
	p.addBatch(1, 10*time.Millisecond)
	p.addPrompt(40, 80*time.Millisecond)
	require.InDelta(t, unknown, p.cautious.of(8), 1e-9, "where products are not computed together, a prompt tells nothing")
}
