package costs

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/skip"
)

// machine takes made-up times for tokens, in milliseconds.
type machine struct {
	masked, whole, graph float64
	doubt                float64 // share of tokens under the mask
	noise                float64 // share that a token may take longer
	random               *rand.Rand
	before               Token
	began                bool
}

// token is what the next one takes.
func (m *machine) token(whole bool) Token {
	t := Token{Whole: whole, Seconds: m.masked}
	if whole {
		t.Seconds = m.whole
	}
	t.Seconds *= 1 + m.noise*m.random.Float64()
	if !m.began || whole != m.before.Whole || m.before.Doubted {
		t.Seconds += m.graph
	}
	if !whole && m.random.Float64() < m.doubt {
		t.Doubted, t.Again = true, m.whole+m.graph
	}
	t.Seconds, t.Again = t.Seconds/1000, t.Again/1000
	m.before, m.began = t, true
	return t
}

// answer generates tokens and gives the seconds that they took.
func (m *machine) answer(w *Weigher, mask skip.Mask, complete bool, tokens int) (took float64) {
	m.began = false
	w.Begin(mask, complete, 1.2, 0, 0)
	for range tokens {
		t := m.token(w.Next())
		took += t.Seconds + t.Again
		w.Saw(t, 0, 2, 0)
	}
	return took
}

func newMachine() *machine {
	return &machine{masked: 8, whole: 10, graph: 0.5, noise: 0.05, random: rand.New(rand.NewPCG(1, 2))}
}

var someMask = skip.Mask{}.With(3, skip.FeedForward)

// TestMasksThatPayStay bounds what it costs to find out: 2 % of the answers, of which
// lossShare is meant and the rest is what one run may exceed it by.
func TestMasksThatPayStay(t *testing.T) {
	m, w := newMachine(), &Weigher{}
	took := 0.0
	for range 20 {
		took += m.answer(w, someMask, true, 100)
		a := w.End()
		require.False(t, a.Off)
		require.Equal(t, 100, a.Masked+a.Whole)
	}
	require.InDelta(t, 10./8, w.speed(), 0.06, "noise")
	m.random = rand.New(rand.NewPCG(1, 2))
	plain := 0.0
	for range 20 {
		m.began = false
		for range 100 {
			plain += m.token(false).Seconds
		}
	}
	require.Less(t, took, 1.02*plain)
}

// TestMasksThatDoNotPay are left for the whole model: because the machine is no faster
// under them, or because the text leaves too many tokens in doubt. Together answers take
// no more than the whole model's, but for the 2 % and the first answer's beginning.
func TestMasksThatDoNotPay(t *testing.T) {
	for name, change := range map[string]func(*machine){
		"no faster":  func(m *machine) { m.masked = 10 },
		"slower":     func(m *machine) { m.masked = 12 },
		"in doubt":   func(m *machine) { m.doubt = 0.4 },
		"all doubt":  func(m *machine) { m.doubt = 0.9 },
		"dear graph": func(m *machine) { m.graph, m.doubt = 5, 0.15 },
	} {
		t.Run(name, func(t *testing.T) {
			m, w := newMachine(), &Weigher{}
			change(m)
			m.answer(w, someMask, true, 400)
			require.True(t, w.End().Off)
			took, whole := 0.0, 0
			for range 20 {
				took += m.answer(w, someMask, true, 100)
				whole += w.End().Whole
			}
			require.Greater(t, whole, 1700)
			plain := 0.0
			m.began = false
			for range 2000 {
				plain += m.token(true).Seconds
			}
			require.Less(t, took, 1.02*plain)
		})
	}
}

// TestAMaskComesBack when the text changes to one that leaves few tokens in doubt.
func TestAMaskComesBack(t *testing.T) {
	m, w := newMachine(), &Weigher{}
	m.doubt = 0.5
	m.answer(w, someMask, true, 400)
	require.True(t, w.End().Off)
	m.doubt = 0
	m.answer(w, someMask, true, 3000)
	require.False(t, w.End().Off)
}

// TestMasksWithoutAttention allow the whole model at an answer's beginning only.
func TestMasksWithoutAttention(t *testing.T) {
	m, w := newMachine(), &Weigher{}
	m.masked = 11
	mask := skip.Mask{}.With(3, skip.Attention)
	answers := 0
	for ; answers < 100 && !w.off; answers++ {
		m.began = false
		w.Begin(mask, false, 1.2, 0, 0)
		masked := false
		for range 50 {
			whole := w.Next()
			require.False(t, masked && whole, "the whole model would miss keys and values")
			masked = masked || !whole
			w.Saw(m.token(whole), 0, 2, 0)
		}
		w.End()
	}
	require.True(t, w.off)
	m.answer(w, mask, false, 50)
	require.Equal(t, Weighed{Speed: 1 / w.total(), Whole: 50, Off: true}, w.End())
}

// TestTimesOnOtherThreads are not compared with each other.
func TestTimesOnOtherThreads(t *testing.T) {
	w := &Weigher{}
	w.Begin(someMask, true, 1.2, 0, 0)
	for i := range 40 {
		w.Saw(Token{Whole: w.Next(), Seconds: 0.01}, 0, 1+i%2, 0)
	}
	require.Zero(t, w.End().Speed)
}

// TestTokensBesideOtherAnswers count, but their times tell nothing; and what was being
// compared ends.
func TestTokensBesideOtherAnswers(t *testing.T) {
	m, w := newMachine(), &Weigher{}
	w.Begin(someMask, true, 1.2, 0, 0)
	whole := 0
	for range 2000 { // until tokens are decoded the other way
		token := m.token(w.Next())
		w.Saw(token, 0, 2, 0)
		if token.Whole {
			whole++
			break
		}
	}
	require.Equal(t, 1, whole, "of a run of %d", wholeRun)
	speed := w.speed()
	for range 50 {
		require.False(t, w.Off())
		w.Beside(Token{Whole: w.Off(), Seconds: 1000, Doubted: true, Again: 1000})
	}
	require.InDelta(t, speed, w.speed(), 0)
	require.False(t, w.Next(), "the run is over")
	require.Greater(t, w.cost.doubt, 0.7, "the text's doubt shows all the same")
	require.Less(t, w.masked.At(1), 1.0)
	a := w.End()
	require.Equal(t, 1, a.Whole)
	require.Greater(t, a.Masked, 50)

	none := &Weigher{}
	none.Begin(skip.Mask{}, true, 1, 0, 0)
	none.Beside(Token{})
	require.Equal(t, Weighed{}, none.End())
}

// TestTheWholeModelNeverFollowsBesideOthers where tokens under a mask without attention went
// before, whoever saw them.
func TestTheWholeModelNeverFollowsBesideOthers(t *testing.T) {
	m, w := newMachine(), &Weigher{}
	w.Begin(skip.Mask{}.With(3, skip.Attention), false, 1.2, 0, 0)
	w.Beside(m.token(w.Off()))
	w.ahead = 1e9
	for range 300 {
		whole := w.Next()
		require.False(t, whole, "the whole model would miss keys and values")
		w.Saw(m.token(whole), 0, 2, 0)
	}
}

// TestMaskCostsAreKept beside what drafting has learnt.
func TestMaskCostsAreKept(t *testing.T) {
	slow, w := newMachine(), &Weigher{}
	require.False(t, w.Fresh())
	slow.masked, slow.doubt = 9, 0.3
	slow.answer(w, someMask, true, 400)
	w.End()
	want := w.total()
	require.True(t, w.Fresh())
	path := filepath.Join(t.TempDir(), "new folder", "costs.json")
	file := New()
	file.Batches.Costs = map[int]float64{4: 2}
	file.Masks, file.Ahead = w.Keep(), w.Ahead()
	require.False(t, w.Fresh())
	require.NoError(t, file.Write(path))
	read := Read(path)
	require.Equal(t, file, read)

	second := &Weigher{}
	second.Recall(read.Masks, read.Ahead)
	require.False(t, second.Fresh())
	second.Begin(someMask, true, 1.2, 0, 0)
	require.True(t, second.Off(), "known from the start")
	require.InDelta(t, want, second.total(), 1e-9, "decimals in the file")

	second.Recall(map[string]Kept{"no mask": {Speed: 2}}, -1)
	require.Empty(t, second.known)
	require.Zero(t, second.Ahead())
}

// TestLengthsAreToldApart: a mask that pays behind few tokens may not behind many, and what is known of few is what
// is believed of more.
func TestLengthsAreToldApart(t *testing.T) {
	m, w := newMachine(), &Weigher{}
	answer := func(behind, tokens int) Weighed {
		m.began = false
		w.Begin(someMask, true, 1.2, 0, behind)
		for i := range tokens {
			w.Saw(m.token(w.Next()), 0, 2, behind+i)
		}
		return w.End()
	}
	require.False(t, answer(100, 400).Off)
	require.InDelta(t, 10./8, w.speed(), 0.06)
	w.Begin(someMask, true, 1.2, 0, 5000)
	require.InDelta(t, 10./8, w.speed(), 0.06, "as behind fewer tokens")
	m.masked, m.whole = 31, 30
	require.True(t, answer(5000, 600).Off)
	w.Begin(someMask, true, 1.2, 0, 1023)
	require.False(t, w.Off())

	second := &Weigher{}
	kept := w.Keep()
	require.Len(t, kept, 2)
	require.Contains(t, kept, someMask.String())
	require.Contains(t, kept, someMask.String()+"@4096")
	second.Recall(kept, 0)
	second.Begin(someMask, true, 1.2, 0, 4096)
	require.True(t, second.Off())
	second.Begin(someMask, true, 1.2, 0, 4095)
	require.False(t, second.Off())
	second.Recall(map[string]Kept{someMask.String() + "@many": {Speed: 2}}, 0)
	require.Empty(t, second.known)
}
