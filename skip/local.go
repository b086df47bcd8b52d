package skip

import (
	"fmt"
	"strconv"
	"strings"
)

// Attention need not be skipped or run over all cached tokens: a mask can also make it
// *local*, or skip it with its keys and values *written*. Both leave the KV cache
// complete. Local attention, [Mask.WithLocal], is the streaming attention of
// StreamingLLM (arXiv 2309.17453), for the layers that need no more.

// localWord is the first of the words that say how attention is local or written: bit 2L
// makes layer L's local, bit 2L+1 writes the keys and values of what is skipped.
const localWord = shortlistWord + 1

// windowWord has the window of local attention, its recent tokens in the lower half.
const windowWord = localWord + shortlistWord

const halfWord = wordBits / 2

// Window is what a token sees under local attention.
type Window struct {
	Recent int // the last tokens, itself included
	Sinks  int // and the first ones of its sequence: positions below this
}

// DefaultWindow is what a text means that names none.
var DefaultWindow = Window{Recent: 256, Sinks: 4}

// MaxWindow bounds both numbers of a window.
const MaxWindow = 1 << 20

// String is the window as in a mask: "w256+4".
func (w Window) String() string { return fmt.Sprintf("w%d+%d", w.Recent, w.Sinks) }

// Check refuses windows out of range: Recent is 1 to [MaxWindow], Sinks 0 to that.
func (w Window) Check() error {
	if w.Recent < 1 || w.Recent > MaxWindow || w.Sinks < 0 || w.Sinks > MaxWindow {
		return fmt.Errorf("a window has 1 to %d recent tokens and up to as many first ones, as in %s", MaxWindow, DefaultWindow)
	}
	return nil
}

// The states of a layer's attention, from whole to skipped.
const (
	wholeAttention = iota
	localAttention
	writtenAttention
	skippedAttention
)

func (m Mask) attention(layer int) int {
	w, shift := place(layer)
	switch how := m[localWord:windowWord][w] >> shift; {
	case m.Skipped(layer)&Attention == 0:
		return int(how & 1)
	case how&2 != 0:
		return writtenAttention
	}
	return skippedAttention
}

func (m *Mask) setAttention(layer, state int) {
	w, shift := place(layer)
	halves, how := &m[:shortlistWord][w], &m[localWord:windowWord][w]
	*halves &^= uint64(Attention) << shift
	*how &^= 3 << shift
	switch state {
	case localAttention:
		*how |= 1 << shift
	case writtenAttention:
		*how |= 2 << shift
		*halves |= uint64(Attention) << shift
	case skippedAttention:
		*halves |= uint64(Attention) << shift
	}
}

// WithLocal returns the mask under which the attention of layer sees w alone, as that of
// all its local layers does. What the mask skips stays skipped. A layer outside 0 to
// MaxLayers-1, or a w that [Window.Check] refuses, is a caller's mistake and panics.
func (m Mask) WithLocal(layer int, w Window) Mask {
	if err := w.Check(); err != nil {
		panic(err)
	}
	m.setAttention(layer, max(m.attention(layer), localAttention))
	return m.withWindow(w)
}

// withWindow sets the window, where something is local.
func (m Mask) withWindow(w Window) Mask {
	m[windowWord] = 0
	if m.HasLocal() {
		m[windowWord] = uint64(w.Recent) | uint64(w.Sinks)<<halfWord
	}
	return m
}

// WithWritten returns the mask that skips the attention of layer but writes its keys and
// values. What was skipped without them stays so.
func (m Mask) WithWritten(layer int) Mask {
	m.setAttention(layer, max(m.attention(layer), writtenAttention))
	return m.withWindow(m.Window())
}

// Local tells whether the mask makes the attention of layer local.
func (m Mask) Local(layer int) bool { return m.attention(layer) == localAttention }

// Written tells whether the mask skips the attention of layer and writes its keys and values.
func (m Mask) Written(layer int) bool { return m.attention(layer) == writtenAttention }

// HasLocal tells whether the mask makes any layer's attention local.
func (m Mask) HasLocal() bool {
	const local = 0x5555555555555555
	for _, w := range m[localWord:windowWord] {
		if w&local != 0 {
			return true
		}
	}
	return false
}

// Window is what local attention sees; zero where the mask has none.
func (m Mask) Window() Window {
	return Window{Recent: int(m[windowWord] & (1<<halfWord - 1)), Sinks: int(m[windowWord] >> halfWord)}
}

// WithoutLocal returns the mask with whole attention where it is local.
func (m Mask) WithoutLocal() Mask {
	for l := 0; l <= m.Highest(); l++ {
		if m.Local(l) {
			m.setAttention(l, wholeAttention)
		}
	}
	return m.withWindow(Window{})
}

// Unread returns the mask of what a decode under m reads no weights of: it keeps local
// attention, and what writes its keys and values.
func (m Mask) Unread() Mask {
	for l := 0; l <= m.Highest(); l++ {
		if m.attention(l) != skippedAttention {
			m.setAttention(l, wholeAttention)
		}
	}
	return m.withWindow(Window{})
}

// same tells whether neither mask says more of attention than whether it is skipped.
func same(a, b *Mask) bool {
	for i := localWord; i < windowWord; i++ {
		if a[i]|b[i] != 0 {
			return false
		}
	}
	return true
}

// mergeAttention makes the attention of m what choose says of its and other's states,
// by layer; both as they were before other things of them were merged into m.
func (m *Mask) mergeAttention(before, other *Mask, window Window, choose func(a, b int) int) {
	if same(before, other) {
		return
	}
	for l := 0; l <= max(before.Highest(), other.Highest()); l++ {
		m.setAttention(l, choose(before.attention(l), other.attention(l)))
	}
	*m = m.withWindow(window)
}

// less is the window that sees what both see, and more the one that sees what either does;
// a zero one is left out of it.
func less(a, b Window) Window {
	switch {
	case a == Window{}:
		return b
	case b == Window{}:
		return a
	}
	return Window{min(a.Recent, b.Recent), min(a.Sinks, b.Sinks)}
}

func more(a, b Window) Window { return Window{max(a.Recent, b.Recent), max(a.Sinks, b.Sinks)} }

// smaller and larger choose between two states; without is a but where b is as much.
func smaller(a, b int) int { return min(a, b) }
func larger(a, b int) int  { return max(a, b) }
func without(a, b int) int {
	if b >= a {
		return wholeAttention
	}
	return a
}

// attentionText has what a mask's text says of attention: "k7,l0-3,w256+4".
func (m Mask) attentionText() (parts []string) {
	for _, kind := range []struct {
		prefix string
		state  int
	}{{"k", writtenAttention}, {"l", localAttention}} {
		parts = appendRuns(parts, kind.prefix, m.Highest(), func(l int) bool { return m.attention(l) == kind.state })
	}
	if m.HasLocal() {
		parts = append(parts, m.Window().String())
	}
	return parts
}

// parseWindow reads what is behind the "w" of a window: "256" or "256+4".
func parseWindow(text string) (Window, error) {
	recent, sinks, hasSinks := strings.Cut(text, "+")
	w := DefaultWindow
	var err error
	if w.Recent, err = strconv.Atoi(recent); err == nil && hasSinks {
		w.Sinks, err = strconv.Atoi(sinks)
	}
	if err != nil || strings.ContainsAny(text, "-_") || strings.HasPrefix(recent, "+") || strings.HasPrefix(sinks, "+") {
		return Window{}, Window{}.Check()
	}
	return w, w.Check()
}
