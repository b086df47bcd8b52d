// Package kv knows what lies in a context's KV cache: which tokens in which sequence,
// each decoded under which mask.
//
// # Basics
//
// A [Ledger] is the account of one cache. [Ledger.Take] finds a sequence for a prompt: one
// that holds the prompt's beginning already, or a fresh one that shares cells with another.
// While an answer is made, [Ledger.Append] and [Ledger.Cut] follow what is decoded and
// dropped; [Ledger.Give] leaves the sequence in the cache for a later prompt. [Ledger.MakeRoom]
// takes what is not in use out of the cache: it waits in memory of its own.
//
// # Caveats
//
// A ledger only keeps account: its owner copies and removes in the cache what it says. A
// position serves again only where its token and the mask that it was decoded under are
// the ones that are wanted. The ledger belongs to one goroutine.
package kv

import (
	"io"
	"iter"
	"slices"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// maskID stands for a mask: a cell costs 6 bytes with it, 136 with the mask itself.
type maskID uint16

// mostMasks bounds the masks that are told apart. When more have come, what is cached and
// not in use is forgotten, with its masks.
const mostMasks = 1 << 15

// Ledger is the account of a KV cache. Close it after use.
type Ledger struct {
	// Grain is what the numbers of tokens that serve again are multiples of; 0 = 1.
	Grain int

	cells  int
	park   func(seq, keep int) io.Closer
	seqs   []sequence
	parked []*sequence // as many tokens as there are cells at most
	masks  []skip.Mask // by maskID
	ids    map[skip.Mask]maskID
	clock  uint64
}

type sequence struct {
	tokens  []llama.Token
	under   []maskID // (len(tokens),)
	busy    bool
	promise int    // cells that it may fill while it is busy
	used    uint64 // clock at its last use
	note    any
	state   io.Closer // of a parked one: brings it back
}

// New makes the account of an empty cache with this many sequences and cells, both at
// least 1. A cell holds one token. park takes a sequence's positions from keep on out of the
// cache and gives what brings all of it back, which the ledger closes when it is forgotten; nil =
// nothing does.
func New(sequences, cells int, park func(seq, keep int) io.Closer) *Ledger {
	return &Ledger{cells: cells, park: park, seqs: make([]sequence, sequences), ids: map[skip.Mask]maskID{}}
}

// Close forgets what is parked.
func (l *Ledger) Close() {
	for _, s := range l.parked {
		s.state.Close()
	}
	l.parked = nil
}

// Taken says how a prompt got its sequence. The owner of the cache first puts State into Seq,
// or copies From's first Cached positions to Seq if From is not Seq, then removes Seq's
// positions from Cached on.
type Taken struct {
	Seq    int
	From   int // whose positions are used; Seq itself where they are there already
	Cached int // tokens of the prompt that are in the cache, under the wanted mask

	State io.Closer // what was parked and is used; nil = nothing
	Last  bool      // State serves no other prompt: its owner closes it after use
}

// Best is how many of a prompt's tokens some sequence holds, decoded under any mask, and what
// was noted with the one that holds most; 0 and nil where none holds any.
func (l *Ledger) Best(prompt []llama.Token) (shared int, note any) {
	var best *sequence
	for _, s := range l.all() {
		if n := common(s.tokens, prompt); n > shared || n == shared && n > 0 && s.used > best.used {
			best, shared = s, n
		}
	}
	if best == nil {
		return 0, nil
	}
	return shared, best.note
}

// all are the sequences in the cache, then those that are parked.
func (l *Ledger) all() iter.Seq2[int, *sequence] {
	return func(yield func(int, *sequence) bool) {
		for i := range l.seqs {
			if !yield(i, &l.seqs[i]) {
				return
			}
		}
		for _, s := range l.parked {
			if !yield(-1, s) {
				return
			}
		}
	}
}

// Empty tells whether no sequence holds anything.
func (l *Ledger) Empty() bool {
	for _, s := range l.all() {
		if len(s.tokens) > 0 {
			return false
		}
	}
	return true
}

func common(a, b []llama.Token) (n int) {
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// Shared is how many of a prompt's tokens lie in a sequence of the cache, each decoded under mask.
func (l *Ledger) Shared(seq int, prompt []llama.Token, mask skip.Mask) int {
	return l.shared(&l.seqs[seq], prompt, mask)
}

func (l *Ledger) shared(s *sequence, prompt []llama.Token, mask skip.Mask) (n int) {
	id, known := l.ids[mask]
	if !known {
		return 0
	}
	for n < min(len(s.tokens), len(prompt)) && s.tokens[n] == prompt[n] && s.under[n] == id {
		n++
	}
	return n
}

// inPlace is the share of a sequence that a prompt must have in common with it to take
// its place; otherwise what lies there is another conversation, which is kept.
const inPlace = 0.5

// Take gives a prompt of at least one token a sequence, in which it may fill promise cells
// with itself and its answer. The prompt's last token is never taken from the cache: what
// follows is chosen from its logits. ok is false, and nothing has changed, where the sequences in
// use leave no room for it; those that are not are parked as room is needed.
func (l *Ledger) Take(prompt []llama.Token, mask skip.Mask, promise int) (t Taken, ok bool) {
	promised, busy := 0, 0
	for i := range l.seqs {
		if s := &l.seqs[i]; s.busy {
			promised += max(s.promise, len(s.tokens))
			busy += len(s.tokens)
		}
	}
	if promised+promise > l.cells || l.free(-1) < 0 {
		return Taken{}, false
	}
	var src *sequence
	t = Taken{Seq: -1, From: -1}
	for i, s := range l.all() {
		n := min(l.shared(s, prompt, mask), len(prompt)-1)
		n -= n % max(l.Grain, 1)
		if n > 0 && s.state != nil && busy+len(s.tokens) > l.cells {
			continue // all of it comes back first
		}
		if n > t.Cached || n == t.Cached && n > 0 && !s.busy && src.busy {
			src, t.From, t.Cached = s, i, n
		}
	}
	l.clock++
	same := src != nil && !src.busy && float64(t.Cached) >= inPlace*float64(len(src.tokens))
	if src != nil && !src.busy {
		src.used = l.clock // so that it is not forgotten now
	}
	if same && src.state == nil {
		t.Seq = t.From
	} else if t.Seq = l.free(t.From); t.Seq < 0 {
		t.Seq = t.From // there is no other
	}
	s := &l.seqs[t.Seq]
	switch {
	case t.Seq != t.From:
		l.clear(t.Seq, 0)
	case !same:
		l.clear(t.Seq, t.Cached)
	}
	switch {
	case src == nil:
		t.From = t.Seq
	case t.From != t.Seq:
		if src.state != nil {
			l.MakeRoom(len(src.tokens)) // all of it comes back, not only what is shared
			t.From, t.State, t.Last = t.Seq, src.state, same
		}
		s.tokens, s.under = append(s.tokens, src.tokens[:t.Cached]...), append(s.under, src.under[:t.Cached]...)
	}
	if t.Last {
		s.note = src.note
		l.parked = slices.DeleteFunc(l.parked, func(p *sequence) bool { return p == src })
	}
	s.tokens, s.under = s.tokens[:t.Cached], s.under[:t.Cached]
	s.busy, s.promise, s.used = true, promise, l.clock
	return t, true
}

// free is a sequence that is not in use and not but: an empty one, or the one that was not
// used for the longest time; -1 = there is none.
func (l *Ledger) free(but int) int {
	best := -1
	for i := range l.seqs {
		s := &l.seqs[i]
		if s.busy || i == but {
			continue
		}
		if best < 0 || len(s.tokens) == 0 && len(l.seqs[best].tokens) > 0 ||
			(len(s.tokens) == 0) == (len(l.seqs[best].tokens) == 0) && s.used < l.seqs[best].used {
			best = i
		}
	}
	return best
}

// MakeRoom parks sequences that are not in use, the one first that was not used for the longest
// time, until n cells are free or none is left.
func (l *Ledger) MakeRoom(n int) {
	for {
		used, oldest := 0, -1
		for i := range l.seqs {
			s := &l.seqs[i]
			used += len(s.tokens)
			if !s.busy && len(s.tokens) > 0 && (oldest < 0 || s.used < l.seqs[oldest].used) {
				oldest = i
			}
		}
		if used+n <= l.cells || oldest < 0 {
			return
		}
		l.clear(oldest, 0)
	}
}

// clear takes what a sequence holds from position keep on out of the cache. It is parked, if it can be.
func (l *Ledger) clear(seq, keep int) {
	s := &l.seqs[seq]
	if len(s.tokens) > keep {
		if state := l.park(seq, keep); state != nil {
			p := *s
			p.state, p.tokens, p.under = state, slices.Clone(s.tokens), slices.Clone(s.under)
			l.parked = append(l.parked, &p)
			l.forget()
		}
	}
	s.tokens, s.under, s.note = s.tokens[:keep], s.under[:keep], nil
}

// forget ends with what is parked beyond the bound, that first which was not used for the
// longest time.
func (l *Ledger) forget() {
	tokens := 0
	for _, s := range l.parked {
		tokens += len(s.tokens)
	}
	for tokens > l.cells {
		oldest := 0
		for i, s := range l.parked {
			if s.used < l.parked[oldest].used {
				oldest = i
			}
		}
		tokens -= len(l.parked[oldest].tokens)
		l.parked[oldest].state.Close()
		l.parked = slices.Delete(l.parked, oldest, oldest+1)
	}
}

// Append notes tokens that were decoded at a sequence's end under mask.
func (l *Ledger) Append(seq int, tokens []llama.Token, mask skip.Mask) {
	s, id := &l.seqs[seq], l.id(mask)
	s.tokens = append(s.tokens, tokens...)
	for range tokens {
		s.under = append(s.under, id)
	}
}

// id is mask's, a new one where it has none yet.
func (l *Ledger) id(mask skip.Mask) maskID {
	if id, ok := l.ids[mask]; ok {
		return id
	}
	if len(l.masks) == mostMasks {
		l.forgetMasks()
	}
	id := maskID(len(l.masks))
	l.masks, l.ids[mask] = append(l.masks, mask), id
	return id
}

// forgetMasks makes room for new masks. No position that was cached so far serves any
// later prompt then.
func (l *Ledger) forgetMasks() {
	l.masks, l.ids = l.masks[:0], map[skip.Mask]maskID{}
	for _, s := range l.all() {
		for at := range s.under {
			s.under[at] = mostMasks
		}
	}
}

// Cut notes that a sequence's positions from n on were dropped.
func (l *Ledger) Cut(seq, n int) {
	s := &l.seqs[seq]
	s.tokens, s.under = s.tokens[:n], s.under[:n]
}

// Give ends the use of a sequence; what it holds stays in the cache.
func (l *Ledger) Give(seq int) { l.seqs[seq].busy = false }

// Tokens are those in a sequence, by position; valid until it changes.
func (l *Ledger) Tokens(seq int) []llama.Token { return l.seqs[seq].tokens }

// Note keeps a note with a sequence until it is used by another conversation.
func (l *Ledger) Note(seq int, note any) { l.seqs[seq].note = note }

// Used is how many tokens the sequences in the cache hold, each sequence's counted for itself, at most
// the cells.
func (l *Ledger) Used() (n int) {
	for i := range l.seqs {
		n += len(l.seqs[i].tokens)
	}
	return min(n, l.cells)
}

// Cells is the cache's room, in tokens.
func (l *Ledger) Cells() int { return l.cells }
