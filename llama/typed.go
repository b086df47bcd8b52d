package llama

// #include "glue.h"
import "C"

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/template"
)

// Rendered is a conversation in a model's format. It knows which of its bytes were
// typed by somebody and which the chat template wrote; String is the text alone.
type Rendered = template.Text

// Bits of llama.cpp's token attributes.
const (
	attrUnknown = 1 << 0
	attrControl = 1 << 3
	attrLStrip  = 1 << 7 // takes the white space in front of it away
	attrRStrip  = 1 << 8 // and behind it
)

// marker is a control token's text.
type marker struct {
	text  string
	token Token
	attr  int
}

// markers are a vocabulary's control tokens, by the first byte of their text and
// from the longest on. They are read at their first use.
type markers struct {
	once sync.Once
	by   [256][]marker
}

func (v *Vocab) readMarkers() {
	for t := range Token(v.Size) {
		attr := v.attr(t)
		if attr&(attrControl|attrUnknown) == 0 {
			continue
		}
		if text := C.GoString(C.llama_vocab_get_text(v.ptr, C.llama_token(t))); text != "" {
			v.marks.by[text[0]] = append(v.marks.by[text[0]], marker{text, t, attr})
		}
	}
	for _, list := range v.marks.by {
		slices.SortStableFunc(list, func(a, b marker) int { return cmp.Compare(len(b.text), len(a.text)) })
	}
}

// IsControl reports whether t is a control token, which no typed text may become.
func (v *Vocab) IsControl(t Token) bool {
	if t < 0 || int(t) >= v.Size || v.bare || v.model.retain() != nil {
		return false
	}
	defer v.model.release()
	return v.isControl(t)
}

func (v *Vocab) isControl(t Token) bool { return v.attr(t)&(attrControl|attrUnknown) != 0 }

// attr is llama.cpp's attributes of a token. Those that the file calls control tokens are
// such even where llama.cpp, so that their text is seen, has made words of them, as it
// does of gpt-oss's: it would find words in what somebody typed.
func (v *Vocab) attr(t Token) int {
	attr := int(C.llama_vocab_get_attr(v.ptr, C.llama_token(t)))
	if int(t) < len(v.model.control) && v.model.control[t] {
		attr |= attrControl
	}
	return attr
}

// controlTokens tells by token which ones a file calls control tokens.
func controlTokens(meta gguf.Metadata) []bool {
	types, _ := meta.Uints(tokenizerKey + "token_type")
	control := make([]bool, len(types))
	for i, kind := range types {
		control[i] = kind == typeControl
	}
	return control
}

// TokenizeText turns a rendered conversation into tokens: control tokens in what
// the template wrote become their own tokens, those in what somebody typed stay
// text. BOS is put in front if the model wants it, EOS never behind.
// The error wraps [ErrTokenize].
func (v *Vocab) TokenizeText(t Rendered) ([]Token, error) {
	if err := v.model.retain(); err != nil {
		return nil, err
	}
	defer v.model.release()
	if v.bare {
		return v.Tokenize(t.String(), true)
	}
	v.marks.once.Do(v.readMarkers)
	own, typed := v.findMarkers(t)
	if !typed {
		return v.Tokenize(t.String(), true)
	}
	var tokens []Token
	if v.AddBOS && v.BOS != NoToken {
		tokens = append(tokens, v.BOS)
	}
	from, trim := 0, false
	for _, m := range own {
		text := t.String()[from:m.at]
		if trim {
			text = strings.TrimLeft(text, whiteSpace)
		}
		if m.attr&attrLStrip != 0 {
			text = strings.TrimRight(text, whiteSpace)
		}
		plain, err := v.plain(text)
		if err != nil {
			return nil, err
		}
		tokens = append(append(tokens, plain...), m.token)
		from, trim = m.at+len(m.text), m.attr&attrRStrip != 0
	}
	text := t.String()[from:]
	if trim {
		text = strings.TrimLeft(text, whiteSpace)
	}
	plain, err := v.plain(text)
	return append(tokens, plain...), err
}

// whiteSpace is C's isspace.
const whiteSpace = " \t\n\v\f\r"

// found is a control token's text in a rendered conversation.
type found struct {
	marker
	at int
}

// findMarkers gives the control tokens that the template wrote; typed tells that
// there are others, of which somebody typed at least a part.
func (v *Vocab) findMarkers(t Rendered) (own []found, typed bool) {
	text := t.String()
	for i := 0; i < len(text); i++ {
		for _, m := range v.marks.by[text[i]] {
			if !strings.HasPrefix(text[i:], m.text) {
				continue
			}
			if t.Typed(i, i+len(m.text)) {
				typed = true
				continue // a shorter one may be the template's
			}
			own = append(own, found{m, i})
			i += len(m.text) - 1
			break
		}
	}
	return own, typed
}

// plain tokenises a text without control tokens. Some tokenizers merge their way
// to one all the same: its text is taken apart then.
func (v *Vocab) plain(text string) ([]Token, error) {
	if text == "" {
		return nil, nil
	}
	tokens, err := v.tokenize(text, false, false)
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(tokens, v.isControl)
	if at < 0 {
		return tokens, nil
	}
	cut := -1
	for _, m := range v.marks.by {
		for _, m := range m {
			if i := strings.Index(text, m.text); m.token == tokens[at] && i >= 0 {
				_, first := utf8.DecodeRuneInString(m.text)
				cut = i + first
			}
		}
	}
	if cut <= 0 || cut >= len(text) {
		return nil, fmt.Errorf("%w: the text %.20q has only control tokens in this vocabulary", ErrTokenize, text)
	}
	head, err := v.plain(text[:cut])
	if err != nil {
		return nil, err
	}
	tail, err := v.plain(text[cut:])
	return append(head, tail...), err
}
