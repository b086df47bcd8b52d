package costs

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// machine takes made-up times for tokens, in milliseconds.
type machine struct {
	masked, whole, graph float64
	doubt                float64 // share of tokens under the mask
	noise                float64 // share that a token may take longer
	random               *rand.Rand
	before               tokenTime
	began                bool
}

// token is what the next one takes.
func (m *machine) token(whole bool) tokenTime {
	t := tokenTime{whole: whole, seconds: m.masked}
	if whole {
		t.seconds = m.whole
	}
	t.seconds *= 1 + m.noise*m.random.Float64()
	if !m.began || whole != m.before.whole || m.before.doubted {
		t.seconds += m.graph
	}
	if !whole && m.random.Float64() < m.doubt {
		t.doubted, t.again = true, m.whole+m.graph
	}
	t.seconds, t.again = t.seconds/1000, t.again/1000
	m.before, m.began = t, true
	return t
}

// answer generates tokens and gives the seconds that they took.
func (m *machine) answer(w *worth, mask skip.Mask, complete bool, tokens int) (took float64) {
	m.began = false
	w.begin(mask, complete, 1.2, 0)
	for range tokens {
		t := m.token(w.next())
		took += t.seconds + t.again
		w.saw(t, 0, 2)
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
	m, w := newMachine(), &worth{}
	took := 0.0
	for range 20 {
		took += m.answer(w, someMask, true, 100)
		a := w.end()
		require.False(t, a.Off)
		require.Equal(t, 100, a.Masked+a.Whole)
	}
	require.InDelta(t, 10./8, w.speed(), 0.06, "noise")
	m.random = rand.New(rand.NewPCG(1, 2))
	plain := 0.0
	for range 20 {
		m.began = false
		for range 100 {
			plain += m.token(false).seconds
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
			m, w := newMachine(), &worth{}
			change(m)
			m.answer(w, someMask, true, 400)
			require.True(t, w.end().Off)
			took, whole := 0.0, 0
			for range 20 {
				took += m.answer(w, someMask, true, 100)
				whole += w.end().Whole
			}
			require.Greater(t, whole, 1700)
			plain := 0.0
			m.began = false
			for range 2000 {
				plain += m.token(true).seconds
			}
			require.Less(t, took, 1.02*plain)
		})
	}
}

// TestAMaskComesBack when the text changes to one that leaves few tokens in doubt.
func TestAMaskComesBack(t *testing.T) {
	m, w := newMachine(), &worth{}
	m.doubt = 0.5
	m.answer(w, someMask, true, 400)
	require.True(t, w.end().Off)
	m.doubt = 0
	m.answer(w, someMask, true, 3000)
	require.False(t, w.end().Off)
}

// TestMasksWithoutAttention allow the whole model at an answer's beginning only.
func TestMasksWithoutAttention(t *testing.T) {
	m, w := newMachine(), &worth{}
	m.masked = 11
	mask := skip.Mask{}.With(3, skip.Attention)
	answers := 0
	for ; answers < 100 && !w.off; answers++ {
		m.began = false
		w.begin(mask, false, 1.2, 0)
		masked := false
		for range 50 {
			whole := w.next()
			require.False(t, masked && whole, "the whole model would miss keys and values")
			masked = masked || !whole
			w.saw(m.token(whole), 0, 2)
		}
		w.end()
	}
	require.True(t, w.off)
	m.answer(w, mask, false, 50)
	require.Equal(t, Weighed{Speed: 1 / w.total(), Whole: 50, Off: true}, w.end())
}

// TestTimesOnOtherThreads are not compared with each other.
func TestTimesOnOtherThreads(t *testing.T) {
	w := &worth{}
	w.begin(someMask, true, 1.2, 0)
	for i := range 40 {
		w.saw(tokenTime{whole: w.next(), seconds: 0.01}, 0, 1+i%2)
	}
	require.Zero(t, w.end().Speed)
}

// TestAskedForIsNotWeighed neither a mask set by hand nor a depth that is always skipped.
func TestAskedForIsNotWeighed(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 4))
	s, err := New(m, &Options{Context: llama.ContextOptions{NCtx: 256, Threads: 1}, MaxTokens: 30, Mask: skip.Layers(1)})
	require.NoError(t, err)
	defer s.Close()
	a, err := s.Ask(t.Context(), "say", func(string) {})
	require.NoError(t, err)
	require.Zero(t, a.Weighed)
	require.Empty(t, a.Weighed.String())
}

// TestMaskCostsAreKept beside what drafting has learnt.
func TestMaskCostsAreKept(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 4))
	path := filepath.Join(t.TempDir(), "learned.json")
	opts := Options{Context: llama.ContextOptions{NCtx: 256, Threads: 1}, Learned: path}
	first, err := New(m, &opts)
	require.NoError(t, err)
	slow := newMachine()
	slow.masked, slow.doubt = 9, 0.3
	slow.answer(&first.worth, someMask, true, 400)
	first.worth.end()
	want := first.worth.total()
	require.NoError(t, first.Close())

	opts.Lossless = &Lossless{Masks: []DraftMask{{Mask: skip.Layers(1)}}}
	drafting, err := New(m, &opts)
	require.NoError(t, err)
	require.Zero(t, drafting.drafter.pace.after.n, "nothing was learnt of batches")
	drafting.drafter.learned = true
	require.NoError(t, drafting.Close())

	opts.Lossless = nil
	second, err := New(m, &opts)
	require.NoError(t, err)
	defer second.Close()
	second.worth.begin(someMask, true, 1.2, 0)
	require.True(t, second.worth.off, "known from the start")
	require.InDelta(t, want, second.worth.total(), 1e-9, "decimals in the file")
}
