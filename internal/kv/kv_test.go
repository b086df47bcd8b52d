package kv_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/kv"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

func tokens(text string) (all []llama.Token) {
	for _, r := range text {
		all = append(all, llama.Token(r))
	}
	return all
}

// say lets a prompt be answered: its sequence holds both afterwards.
func say(t *testing.T, l *kv.Ledger, prompt, answer string, mask skip.Mask) kv.Taken {
	t.Helper()
	taken, ok := l.Take(tokens(prompt), mask, len(prompt)+len(answer))
	require.True(t, ok)
	l.Append(taken.Seq, tokens(prompt)[taken.Cached:], mask)
	l.Append(taken.Seq, tokens(answer), mask)
	l.Give(taken.Seq)
	return taken
}

// lost is how a cache parks that cannot bring anything back.
func lost(int, int) io.Closer { return nil }

func TestTake(t *testing.T) {
	whole, layer := skip.Mask{}, skip.Layers(1)
	type turn struct {
		prompt, answer string
		mask           skip.Mask
	}
	for _, c := range []struct {
		name      string
		sequences int
		cells     int
		before    []turn
		prompt    string
		mask      skip.Mask
		promise   int
		want      kv.Taken
		refused   bool
	}{
		{name: "an empty cache", sequences: 2, cells: 100, prompt: "abc", promise: 10, want: kv.Taken{Seq: 0, From: 0}},
		{name: "the next turn", sequences: 2, cells: 100, before: []turn{{"abc", "de", whole}}, prompt: "abcdefg", promise: 10,
			want: kv.Taken{Seq: 0, From: 0, Cached: 5}},
		{name: "the last token is decoded", sequences: 2, cells: 100, before: []turn{{"abc", "de", whole}}, prompt: "abcde", promise: 10,
			want: kv.Taken{Seq: 0, From: 0, Cached: 4}},
		{name: "another mask", sequences: 2, cells: 100, before: []turn{{"abc", "de", layer}}, prompt: "abcdefg", promise: 10,
			want: kv.Taken{Seq: 1, From: 1}},
		{name: "a mask that was never decoded under", sequences: 1, cells: 100, before: []turn{{"abc", "de", whole}}, prompt: "abcdefg", mask: layer, promise: 10,
			want: kv.Taken{Seq: 0, From: 0}},
		{name: "another conversation shares the beginning", sequences: 2, cells: 100, before: []turn{{"system one", "1", whole}}, prompt: "system2", promise: 10,
			want: kv.Taken{Seq: 0, From: 0, Cached: 6}},
		{name: "a small part is copied", sequences: 2, cells: 100, before: []turn{{"system one and a long question", "1", whole}}, prompt: "system2", promise: 10,
			want: kv.Taken{Seq: 1, From: 0, Cached: 6}},
		{name: "a single token", sequences: 1, cells: 100, before: []turn{{"a", "b", whole}}, prompt: "a", promise: 10,
			want: kv.Taken{Seq: 0, From: 0}},
		{name: "an empty sequence first", sequences: 3, cells: 20, before: []turn{{"aaaa", "a", whole}, {"bbbb", "b", whole}}, prompt: "cccc", promise: 12,
			want: kv.Taken{Seq: 2, From: 2}},
		{name: "the least recently used is taken", sequences: 2, cells: 100, before: []turn{{"aaaa", "a", whole}, {"bbbb", "b", whole}, {"aaaaa", "a", whole}}, prompt: "cccc", promise: 12,
			want: kv.Taken{Seq: 1, From: 1}},
		{name: "a copy shares cells", sequences: 2, cells: 20, before: []turn{{"aaaaaaaaaaa", "aaaaa", whole}}, prompt: "aab", promise: 20,
			want: kv.Taken{Seq: 1, From: 0, Cached: 2}},
		{name: "more than there is", sequences: 2, cells: 20, before: []turn{{"aaaa", "a", whole}}, prompt: "b", promise: 21, refused: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := kv.New(c.sequences, c.cells, lost)
			for _, turn := range c.before {
				say(t, l, turn.prompt, turn.answer, turn.mask)
			}
			used := l.Used()
			taken, ok := l.Take(tokens(c.prompt), c.mask, c.promise)
			require.Equal(t, !c.refused, ok)
			require.Equal(t, c.want, taken)
			if c.refused {
				require.Equal(t, used, l.Used(), "what is refused changes nothing")
				return
			}
			require.True(t, slices.Equal(tokens(c.prompt)[:taken.Cached], l.Tokens(taken.Seq)))
		})
	}
}

func TestSequencesInUse(t *testing.T) {
	l := kv.New(2, 100, lost)
	first, ok := l.Take(tokens("abcdefgh"), skip.Mask{}, 50)
	require.True(t, ok)
	l.Append(first.Seq, tokens("abcdefgh"), skip.Mask{})
	second, ok := l.Take(tokens("abcdefgh"), skip.Mask{}, 50)
	require.True(t, ok)
	require.Equal(t, kv.Taken{Seq: 1, From: 0, Cached: 7}, second, "what another answer has decoded serves already")
	_, ok = l.Take(tokens("xyz"), skip.Mask{}, 1)
	require.False(t, ok, "both sequences are in use")
	l.Cut(second.Seq, 3)
	require.Equal(t, tokens("abc"), l.Tokens(second.Seq))
	require.Equal(t, tokens("abcdefgh"), l.Tokens(first.Seq), "a copy is cut alone")
	l.Give(first.Seq)
	_, ok = l.Take(tokens("xyz"), skip.Mask{}, 51)
	require.False(t, ok, "50 cells are promised")
	require.Equal(t, tokens("abcdefgh"), l.Tokens(0), "and nothing was dropped for what has no room all the same")
	_, ok = l.Take(tokens("xyz"), skip.Mask{}, 50)
	require.True(t, ok)
}

// TestGrain: only whole pieces serve again.
func TestGrain(t *testing.T) {
	l := kv.New(2, 100, lost)
	l.Grain = 4
	say(t, l, "abcdefgh", "ij", skip.Mask{})
	for prompt, cached := range map[string]int{"abcdefghijkl": 8, "abcdefgh": 4, "abcd": 0, "abcdefgX": 4, "abX": 0} {
		taken, ok := l.Take(tokens(prompt), skip.Mask{}, 20)
		require.True(t, ok)
		require.Equal(t, cached, taken.Cached, prompt)
		l.Cut(taken.Seq, 0)
		l.Give(taken.Seq)
		say(t, l, "abcdefgh", "ij", skip.Mask{})
	}
}

func TestBest(t *testing.T) {
	l := kv.New(3, 100, lost)
	require.True(t, l.Empty())
	best := func(prompt string) []any {
		shared, note := l.Best(tokens(prompt))
		return []any{shared, note}
	}
	require.Equal(t, []any{0, nil}, best("abc"))
	l.Note(say(t, l, "abcd", "e", skip.Layers(2)).Seq, 1)
	l.Note(say(t, l, "abxy", "z", skip.Mask{}).Seq, 2)
	require.False(t, l.Empty())
	require.Equal(t, []any{3, 1}, best("abcz"), "under whatever mask")
	require.Equal(t, []any{2, 2}, best("ab"), "of equals the last one")
	require.Zero(t, l.Shared(0, tokens("abcd"), skip.Mask{}))
	require.Equal(t, 4, l.Shared(0, tokens("abcd"), skip.Layers(2)))
	l.MakeRoom(100) // and this cache parks nothing
	require.True(t, l.Empty())
}

// TestNotes: a note stays with its conversation and is no other's, in the cache and parked.
func TestNotes(t *testing.T) {
	w := newWorld(t, 1, 100)
	l := w.ledger
	note := func(prompt string) any {
		_, note := l.Best(tokens(prompt))
		return note
	}
	l.Note(say(t, l, "abc", "de", skip.Mask{}).Seq, "said")
	require.Equal(t, "said", note("abcdefg"))
	say(t, l, "abcdefg", "", skip.Mask{})
	require.Equal(t, "said", note("abcdefg"))
	say(t, l, "xyz", "", skip.Mask{})
	require.Nil(t, note("xyz"))
	require.Equal(t, "said", note("abcdefg"), "it is parked")
	require.NotNil(t, say(t, l, "abcdefgh", "", skip.Mask{}).State)
	require.Equal(t, "said", note("abcdefg"), "and back")
}

// TestParked lets conversations take turns in a cache that holds one at a time.
func TestParked(t *testing.T) {
	w := newWorld(t, 1, 20)
	turn := func(prompt string, promise int) kv.Taken {
		taken := w.take(tokens(prompt), skip.Mask{}, promise)
		w.append(0, tokens(prompt)[taken.Cached:], skip.Mask{})
		w.ledger.Give(0)
		delete(w.busy, 0)
		w.check()
		return taken
	}
	require.Zero(t, turn("one: abcd", 15).Cached)
	require.Zero(t, turn("two: efgh", 15).Cached)
	require.Equal(t, 9, turn("one: abcdij", 15).Cached, "it comes back")
	require.Equal(t, 9, turn("two: efghk", 15).Cached)
	require.Equal(t, 3, turn("twofold", 15).Cached, "the beginning of another one is shared")
	require.Equal(t, 10, turn("two: efghkl", 15).Cached, "which is kept")
	require.Equal(t, 7, turn("twofold!", 15).Cached)
	require.Zero(t, turn("one: abcdij!", 15).Cached, "more than the cache has cells is not parked: the oldest went")
	w.ledger.Close()
	require.Empty(t, w.parked)
}

// TestManyMasks goes beyond the masks that are told apart: what is known of older ones may
// be forgotten, but is never taken for something else.
func TestManyMasks(t *testing.T) {
	const many = 1<<15 + 10
	l := kv.New(2, 100, lost)
	mask := func(i int) (m skip.Mask) {
		for bit := range 16 {
			if i>>bit&1 == 1 {
				m = m.With(bit, skip.FeedForward)
			}
		}
		return m
	}
	for i := range many {
		taken := say(t, l, "abc", "d", mask(i))
		require.Zero(t, taken.Cached)
		require.Equal(t, 4, l.Shared(taken.Seq, tokens("abcd"), mask(i)))
		if i > 0 {
			require.Zero(t, l.Shared(taken.Seq, tokens("abcd"), mask(i-1)))
		}
	}
}

// cell is what really lies in a cache.
type cell struct {
	token llama.Token
	under skip.Mask
}

// world is a cache whose owner follows a ledger.
type world struct {
	t      *testing.T
	ledger *kv.Ledger
	cells  int
	cache  [][]cell
	parked map[*parked]bool
	busy   map[int]int // promises of the sequences in use
	eager  bool        // what is not in use leaves the cache before each decode
}

// parked is what was taken out of the cache.
type parked struct {
	w     *world
	cells []cell
}

func (p *parked) Close() error {
	require.True(p.w.t, p.w.parked[p], "it is closed once")
	delete(p.w.parked, p)
	return nil
}

func newWorld(t *testing.T, sequences, cells int) *world {
	w := &world{t: t, cells: cells, cache: make([][]cell, sequences), parked: map[*parked]bool{}, busy: map[int]int{}}
	w.ledger = kv.New(sequences, cells, func(seq, keep int) io.Closer {
		require.NotContains(t, w.busy, seq)
		p := &parked{w, slices.Clone(w.cache[seq])}
		w.parked[p], w.cache[seq] = true, w.cache[seq][:keep]
		return p
	})
	return w
}

// holds is how many of a prompt's tokens are held under mask, the last one apart.
func holds(cells []cell, prompt []llama.Token, mask skip.Mask) (n int) {
	for n < min(len(cells), len(prompt)-1) && cells[n] == (cell{prompt[n], mask}) {
		n++
	}
	return n
}

func (w *world) take(prompt []llama.Token, mask skip.Mask, promise int) kv.Taken {
	promised, busy := promise, 0
	for seq, n := range w.busy {
		promised += max(n, len(w.cache[seq]))
		busy += len(w.cache[seq])
	}
	most := 0
	for seq := range w.cache {
		most = max(most, holds(w.cache[seq], prompt, mask))
	}
	for p := range w.parked {
		if busy+len(p.cells) <= w.cells {
			most = max(most, holds(p.cells, prompt, mask))
		}
	}
	taken, ok := w.ledger.Take(prompt, mask, promise)
	require.Equal(w.t, len(w.busy) < len(w.cache) && promised <= w.cells, ok, "room is found where there is some")
	if !ok {
		return taken
	}
	require.NotContains(w.t, w.busy, taken.Seq)
	require.Equal(w.t, most, taken.Cached, "no more could be taken from the cache")
	switch state, _ := taken.State.(*parked); {
	case state != nil:
		require.True(w.t, w.parked[state])
		w.cache[taken.Seq] = slices.Clone(state.cells)
		w.full()
		if taken.Last {
			require.NoError(w.t, state.Close())
		}
	case taken.From != taken.Seq:
		require.Empty(w.t, w.cache[taken.Seq])
		w.cache[taken.Seq] = slices.Clone(w.cache[taken.From][:taken.Cached])
	}
	w.cache[taken.Seq] = w.cache[taken.Seq][:taken.Cached]
	require.Equal(w.t, taken.Cached, holds(w.cache[taken.Seq], append(prompt[:taken.Cached:taken.Cached], -1), mask))
	w.busy[taken.Seq] = promise
	return taken
}

// full fails where the cache holds more than it can.
func (w *world) full() {
	sum := 0
	for _, cells := range w.cache {
		sum += len(cells)
	}
	require.LessOrEqual(w.t, sum, w.cells)
}

func (w *world) append(seq int, tokens []llama.Token, mask skip.Mask) {
	if w.eager {
		w.ledger.MakeRoom(w.cells)
		for seq := range w.cache {
			if _, busy := w.busy[seq]; !busy {
				require.Empty(w.t, w.cache[seq])
			}
		}
	} else {
		w.ledger.MakeRoom(len(tokens))
	}
	w.ledger.Append(seq, tokens, mask)
	for _, t := range tokens {
		w.cache[seq] = append(w.cache[seq], cell{t, mask})
	}
	w.full()
}

func (w *world) check() {
	sum := 0
	for seq, cells := range w.cache {
		held := w.ledger.Tokens(seq)
		if !slices.EqualFunc(cells, held, func(c cell, t llama.Token) bool { return c.token == t }) {
			require.Failf(w.t, "the ledger is not the cache", "sequence %d: %v, %v", seq, held, cells)
		}
		sum += len(cells)
	}
	require.Equal(w.t, min(sum, w.cells), w.ledger.Used())
	sum = 0
	for p := range w.parked {
		sum += len(p.cells)
	}
	require.LessOrEqual(w.t, sum, w.cells, "no more is parked than the cache holds")
}

// play does what bytes say: each step is an operation and what it is done with.
func (w *world) play(script []byte) {
	next := func() int {
		if len(script) == 0 {
			return 0
		}
		b := script[0]
		script = script[1:]
		return int(b)
	}
	masks := []skip.Mask{{}, skip.Layers(1), skip.Mask{}.With(2, skip.FeedForward)}
	text := func(n int) (tokens []llama.Token) {
		for range n {
			tokens = append(tokens, llama.Token(next()%2))
		}
		return tokens
	}
	for len(script) > 0 {
		op, seq := next(), next()%len(w.cache)
		promise, busy := w.busy[seq]
		switch {
		case op%4 == 0:
			prompt := text(1 + next()%12)
			if from := w.cache[next()%len(w.cache)]; op%8 == 0 { // a conversation goes on
				var before []llama.Token
				for _, c := range from[:min(len(from), next())] {
					before = append(before, c.token)
				}
				prompt = append(before, prompt...)
			}
			mask, busy := masks[next()%len(masks)], len(w.busy)
			if taken := w.take(prompt, mask, len(prompt)+next()%16); len(w.busy) > busy {
				w.append(taken.Seq, prompt[taken.Cached:], mask)
			}
		case op%4 == 1 && busy:
			w.append(seq, text(min(next()%4, max(promise-len(w.cache[seq]), 0))), masks[next()%len(masks)])
		case op%4 == 2 && busy:
			n := next() % (len(w.cache[seq]) + 1)
			w.ledger.Cut(seq, n)
			w.cache[seq] = w.cache[seq][:n]
		case op%4 == 3 && busy:
			w.ledger.Give(seq)
			delete(w.busy, seq)
		}
		w.check()
	}
}

// TestAgainstACache lets a ledger and the cache that follows it go through random uses.
func TestAgainstACache(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 1))
			script := make([]byte, 3000)
			for i := range script {
				script[i] = byte(random.IntN(256))
			}
			w := newWorld(t, 1+random.IntN(6), 10+random.IntN(80))
			w.eager = seed%2 == 0
			w.play(script)
		})
	}
}

func FuzzLedger(f *testing.F) {
	f.Add(uint8(2), uint8(40), []byte("0 a few bytes that say what is done 1 2 3 4"))
	f.Add(uint8(1), uint8(10), []byte{0, 0, 3, 1, 1, 1, 0, 0, 3, 0, 8, 0, 4, 0, 1, 0, 1, 0, 9})
	f.Fuzz(func(t *testing.T, sequences, cells uint8, script []byte) {
		w := newWorld(t, 1+int(sequences%8), 1+int(cells))
		w.eager = sequences >= 128
		w.play(script[:min(len(script), 4000)])
	})
}
