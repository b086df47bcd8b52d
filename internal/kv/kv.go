// Package kv knows what lies in a context's KV cache: which tokens in which sequence,
// each decoded under which mask.
//
// # Basics
//
// A [Ledger] is the account of one cache. [Ledger.Take] finds a sequence for a prompt: one
// that holds the prompt's beginning already, or a fresh one that shares cells with another.
// While an answer is made, [Ledger.Append] and [Ledger.Cut] follow what is decoded and
// dropped; [Ledger.Give] leaves the sequence in the cache for a later prompt.
//
// # Caveats
//
// A ledger only keeps account: its owner copies and removes in the cache what it says. A
// position serves again only where its token and the mask that it was decoded under are
// the ones that are wanted. The ledger belongs to one goroutine.
package kv

import (
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// maskID stands for a mask: a cell costs 6 bytes with it, 136 with the mask itself.
type maskID uint16

// mostMasks bounds the masks that are told apart. When more have come, what is cached and
// not in use is forgotten, with its masks.
const mostMasks = 1 << 15

// Ledger is the account of a KV cache.
type Ledger struct {
	// Grain is what the numbers of tokens that serve again are multiples of; 0 = 1.
	Grain int

	cells int
	seqs  []sequence
	masks []skip.Mask // by maskID
	ids   map[skip.Mask]maskID
	clock uint64
}

type sequence struct {
	tokens  []llama.Token
	under   []maskID // (len(tokens),)
	busy    bool
	promise int    // cells that it may fill while it is busy
	used    uint64 // clock at its last use
	note    any
}

// New makes the account of an empty cache with this many sequences and cells, both at
// least 1. A cell holds one token.
func New(sequences, cells int) *Ledger {
	return &Ledger{cells: cells, seqs: make([]sequence, sequences), ids: map[skip.Mask]maskID{}}
}

// Taken says how a prompt got its sequence. The owner of the cache first copies From's first
// Cached positions to Seq if From is not Seq, then removes Seq's positions from Cached on.
type Taken struct {
	Seq    int
	From   int // whose positions are used; Seq itself where they are there already
	Cached int // tokens of the prompt that are in the cache, under the wanted mask
}

// Best is the sequence that shares most of a prompt's tokens, decoded under any mask, and
// how many these are; -1, 0 where none shares any.
func (l *Ledger) Best(prompt []llama.Token) (seq, shared int) {
	seq = -1
	for i := range l.seqs {
		if n := common(l.seqs[i].tokens, prompt); n > shared || n == shared && n > 0 && l.seqs[i].used > l.seqs[seq].used {
			seq, shared = i, n
		}
	}
	return seq, shared
}

func common(a, b []llama.Token) (n int) {
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// Shared is how many of a prompt's tokens lie in a sequence, each decoded under mask.
func (l *Ledger) Shared(seq int, prompt []llama.Token, mask skip.Mask) int {
	id, known := l.ids[mask]
	if !known {
		return 0
	}
	s := &l.seqs[seq]
	n := 0
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
// use leave no room for it; those that are not make room as it is needed, see [Ledger.MakeRoom].
func (l *Ledger) Take(prompt []llama.Token, mask skip.Mask, promise int) (t Taken, ok bool) {
	from, cached := -1, 0
	for i := range l.seqs {
		n := min(l.Shared(i, prompt, mask), len(prompt)-1)
		n -= n % max(l.Grain, 1)
		if n > cached || n == cached && n > 0 && !l.seqs[i].busy && l.seqs[from].busy {
			from, cached = i, n
		}
	}
	t = Taken{Seq: -1, From: from, Cached: cached}
	if from >= 0 && !l.seqs[from].busy && float64(cached) >= inPlace*float64(len(l.seqs[from].tokens)) {
		t.Seq = from
	}
	if t.Seq < 0 {
		t.Seq = l.free(from)
	}
	if t.Seq < 0 && from >= 0 && !l.seqs[from].busy {
		t.Seq = from // there is no other
	}
	if t.Seq < 0 {
		return Taken{}, false
	}
	if from < 0 {
		t.From = t.Seq
	}
	if l.promised()+promise > l.cells {
		return Taken{}, false
	}
	s := &l.seqs[t.Seq]
	if t.From != t.Seq || cached == 0 {
		s.note = nil // it is another conversation's
	}
	if t.From != t.Seq {
		src := &l.seqs[t.From]
		s.tokens = append(s.tokens[:0], src.tokens[:cached]...)
		s.under = append(s.under[:0], src.under[:cached]...)
	}
	s.tokens, s.under = s.tokens[:cached], s.under[:cached]
	l.clock++
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

// promised is how many cells the sequences in use may fill.
func (l *Ledger) promised() (n int) {
	for i := range l.seqs {
		if s := &l.seqs[i]; s.busy {
			n += max(s.promise, len(s.tokens))
		}
	}
	return n
}

// MakeRoom empties sequences that are not in use, the one first that was not used for the
// longest time, until n cells are free. It gives these sequences, for the owner to empty.
func (l *Ledger) MakeRoom(n int) (dropped []int) {
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
			return dropped
		}
		l.seqs[oldest].drop()
		dropped = append(dropped, oldest)
	}
}

func (s *sequence) drop() { s.tokens, s.under, s.note = s.tokens[:0], s.under[:0], nil }

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
	for i := range l.seqs {
		for at := range l.seqs[i].under {
			l.seqs[i].under[at] = mostMasks
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

// Idle lists the sequences that hold something and are not in use.
func (l *Ledger) Idle() (seqs []int) {
	for i := range l.seqs {
		if s := &l.seqs[i]; !s.busy && len(s.tokens) > 0 {
			seqs = append(seqs, i)
		}
	}
	return seqs
}

// Tokens are those in a sequence, by position; valid until it changes.
func (l *Ledger) Tokens(seq int) []llama.Token { return l.seqs[seq].tokens }

// Note keeps a note with a sequence until it is emptied or used by another prompt's answer.
func (l *Ledger) Note(seq int, note any) { l.seqs[seq].note = note }

// NoteOf is what was noted last; nil = nothing.
func (l *Ledger) NoteOf(seq int) any { return l.seqs[seq].note }

// Used is how many tokens the sequences hold, each sequence's counted for itself, at most
// the cells.
func (l *Ledger) Used() (n int) {
	for i := range l.seqs {
		n += len(l.seqs[i].tokens)
	}
	return min(n, l.cells)
}

// Cells is the cache's room, in tokens.
func (l *Ledger) Cells() int { return l.cells }
