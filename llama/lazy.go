package llama

// #include "glue.h"
import "C"

import (
	"fmt"
	"strings"
)

// Lazy says where in an answer a grammar begins. Up to there the answer is free, and the
// grammar costs nothing.
type Lazy struct {
	Trigger string // the grammar holds behind this text

	// AtStart lets the trigger count at the beginning alone, behind white space and Quiet.
	AtStart bool

	// Quiet are the marks around what an answer may begin with and in which no trigger
	// counts, such as reasoning.
	Quiet []Marks

	// Opened says that the answer begins within what one of Quiet closes.
	Opened bool
}

// Marks are the texts around a part of an answer.
type Marks struct{ Open, Close string }

// waiting looks for the trigger of a lazy grammar.
type waiting struct {
	*Lazy          // nil = there is none
	text  string   // of the answer, as far as a trigger or a mark may begin in it
	close []string // that end the quiet part which the answer is in; nil = it is in none
	quiet bool     // there was one
	begun bool     // what an answer may begin with is over
	over  bool     // the trigger has come, or cannot come any more
}

func newWaiting(l *Lazy) waiting {
	w := waiting{Lazy: l}
	if l.Opened {
		for _, m := range l.Quiet {
			w.close = append(w.close, m.Close)
		}
	}
	return w
}

// next takes in what is new of the answer. triggered tells that the trigger has come, and
// rest is what stands behind it.
func (w *waiting) next(piece string) (rest string, triggered bool) {
	w.text += piece
	if w.close != nil && !w.leave() || !w.begun && !w.begin() {
		return "", false
	}
	at := strings.Index(w.text, w.Trigger)
	if at >= 0 {
		w.over = true
		return w.text[at+len(w.Trigger):], true
	}
	w.text = w.text[len(w.text)-min(len(w.text), len(w.Trigger)-1):]
	return "", false
}

// leave gets behind the end of a quiet part.
func (w *waiting) leave() bool {
	longest, at, end := 0, -1, 0
	for _, c := range w.close {
		longest = max(longest, len(c))
		if i := strings.Index(w.text, c); i >= 0 && (at < 0 || i < at) {
			at, end = i, i+len(c)
		}
	}
	if at < 0 {
		w.text = w.text[len(w.text)-min(len(w.text), longest-1):]
		return false
	}
	w.text, w.close, w.quiet = w.text[end:], nil, true
	return true
}

// begin gets behind what an answer begins with.
func (w *waiting) begin() bool {
	text := strings.TrimLeft(w.text, whiteSpace)
	if text == "" {
		return false
	}
	for _, m := range w.Quiet {
		switch {
		case w.quiet: // there is no second one
		case strings.HasPrefix(text, m.Open):
			w.text, w.close = text[len(m.Open):], []string{m.Close}
			return w.leave() && w.begin()
		case strings.HasPrefix(m.Open, text):
			return false // it may become one
		}
	}
	if w.AtStart {
		if !strings.HasPrefix(text, w.Trigger) {
			w.over = !strings.HasPrefix(w.Trigger, text)
			return false
		}
		w.text = text
	}
	w.begun = true
	return true
}

// check refuses what no answer could begin with.
func (l *Lazy) check() error {
	if l.Trigger == "" {
		return fmt.Errorf("%w: a lazy grammar without a trigger", ErrOption)
	}
	for _, m := range l.Quiet {
		if m.Open == "" || m.Close == "" {
			return fmt.Errorf("%w: a lazy grammar with an empty mark", ErrOption)
		}
	}
	return nil
}

// await looks whether a token that was taken brings the grammar in. Where the token
// holds more than the trigger's end and the grammar does not go on so, the answer stays free.
func (p *Sampler) await(t Token) {
	rest, triggered := p.wait.next(string(p.model.Vocab.AppendPiece(nil, t, true)))
	if !triggered {
		return
	}
	p.swap()
	if rest == "" {
		return
	}
	tokens, err := p.model.Vocab.TokenizePart(rest, false)
	if err != nil || p.model.Vocab.Text(tokens, true) != rest {
		p.swap()
		return
	}
	for _, t := range tokens {
		if !C.gallop_allows(p.steps.grammar, C.llama_token(t)) {
			p.swap()
			return
		}
		C.gallop_follow(&p.steps, C.llama_token(t))
	}
}

// swap brings a lazy grammar in, or takes it out.
func (p *Sampler) swap() {
	p.steps.grammar, p.held = p.held, p.steps.grammar
	p.steps.top_k = 0
	if p.steps.grammar == nil {
		p.steps.top_k = p.topK
	}
}

// Constrained reports whether a grammar says which token may come next.
func (p *Sampler) Constrained() bool { return p.steps.grammar != nil }
