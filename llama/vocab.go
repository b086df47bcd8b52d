package llama

/*
#include <stdlib.h>
#include "glue.h"
*/
import "C"

import (
	"fmt"
	"math"
	"unicode/utf8"
	"unsafe"
)

// Token is an entry's number in a model's vocabulary, 0 to Size-1.
type Token int32

// NoToken stands for a special token that a vocabulary does not have.
const NoToken Token = -1

// Vocab is a model's tokenizer. It is valid until its model is closed and may
// be used by several goroutines.
type Vocab struct {
	Size          int
	BOS, EOS, EOT Token // begin of text, end of text, end of turn; NoToken if absent
	AddBOS        bool  // texts start with BOS unless a chat template writes it

	model *Model // keeps the C memory alive
	ptr   *C.struct_llama_vocab
	end   []bool // (Size,) true = generation ends here
	ends  []bool // (Size,) the same without the chat template's own
	marks markers
	bare  bool // tokens are numbers without a text; asking for one would end the process
}

func newVocab(m *Model, ptr *C.struct_llama_vocab) *Vocab {
	v := &Vocab{
		Size:   int(C.llama_vocab_n_tokens(ptr)),
		BOS:    Token(C.llama_vocab_bos(ptr)),
		EOS:    Token(C.llama_vocab_eos(ptr)),
		EOT:    Token(C.llama_vocab_eot(ptr)),
		AddBOS: bool(C.llama_vocab_get_add_bos(ptr)),
		model:  m,
		ptr:    ptr,
	}
	v.bare = C.llama_vocab_type(ptr) == 0
	v.ends = make([]bool, v.Size)
	for t := range v.ends {
		v.ends[t] = bool(C.llama_vocab_is_eog(ptr, C.llama_token(t)))
	}
	v.end = v.ends
	return v
}

// IsEnd reports whether a generation ends with t: end of text, end of turn, what
// the chat template writes behind an answer.
func (v *Vocab) IsEnd(t Token) bool { return t >= 0 && int(t) < v.Size && v.end[t] }

// Tokenize turns text into tokens. With special, markers such as <|user|> in the
// text become their own tokens (leave it off for what users type; for what a chat
// template wrote there is [Vocab.TokenizeText]), and BOS is put in front if the
// model wants it. EOS is never put behind: the text is to be continued.
// The error wraps [ErrTokenize].
func (v *Vocab) Tokenize(text string, special bool) ([]Token, error) {
	if err := v.model.retain(); err != nil {
		return nil, err
	}
	defer v.model.release()
	tokens, err := v.tokenize(text, special, special)
	if last := len(tokens) - 1; err == nil && special && last >= 0 && tokens[last] == v.EOS && bool(C.llama_vocab_get_add_eos(v.ptr)) {
		tokens = tokens[:last]
	}
	return tokens, err
}

// TokenizePart is [Vocab.Tokenize] of a text that stands behind another: BOS is never put in
// front.
func (v *Vocab) TokenizePart(text string, special bool) ([]Token, error) {
	if err := v.model.retain(); err != nil {
		return nil, err
	}
	defer v.model.release()
	if text == "" {
		return nil, nil
	}
	return v.tokenize(text, special, false)
}

// tokenize is llama.cpp's; add puts BOS in front, and EOS behind, where the model
// wants them.
func (v *Vocab) tokenize(text string, special, add bool) ([]Token, error) {
	if len(text) > math.MaxInt32-16 {
		return nil, fmt.Errorf("%w: a text of %d bytes is too long", ErrTokenize, len(text))
	}
	if v.bare {
		return nil, fmt.Errorf("%w: %s has no vocabulary", ErrTokenize, v.model.Path)
	}
	if err := v.model.byteless.check(text, special); err != nil {
		return nil, err
	}
	// One token a byte is the most there can be, plus BOS and EOS.
	tokens := make([]Token, len(text)+2)
	var why C.struct_gallop_text
	once := func() C.int32_t {
		return C.gallop_tokenize(v.ptr, charPtr(text), C.int32_t(len(text)),
			(*C.llama_token)(&tokens[0]), C.int32_t(len(tokens)), C.bool(add), C.bool(special), &why)
	}
	n := once()
	if n < 0 && n != C.GALLOP_ESCAPED {
		// A tokenizer that adds more than two tokens of its own says how many it needs.
		tokens = make([]Token, -n)
		n = once()
	}
	switch {
	case n == C.GALLOP_ESCAPED:
		return nil, cause(fmt.Errorf("%w a text of %d bytes", ErrTokenize, len(text)), &why)
	case n < 0:
		return nil, fmt.Errorf("%w a text of %d bytes", ErrTokenize, len(text))
	}
	return tokens[:n], nil
}

func charPtr(s string) *C.char { return (*C.char)(unsafe.Pointer(unsafe.StringData(s))) }

// AppendPiece appends t's bytes to dst. A single token may hold part of a UTF-8
// sequence; [Detokenizer] puts them together. Control tokens have no text
// unless special is set.
func (v *Vocab) AppendPiece(dst []byte, t Token, special bool) []byte {
	if v.bare || t < 0 || int(t) >= v.Size || v.model.retain() != nil {
		return dst
	}
	defer v.model.release()
	for room := 32; ; {
		dst = append(dst, make([]byte, room)...)
		free := dst[len(dst)-room:]
		n := int(C.llama_token_to_piece(v.ptr, C.llama_token(t), (*C.char)(unsafe.Pointer(&free[0])),
			C.int32_t(room), 0, C.bool(special)))
		dst = dst[:len(dst)-room]
		if n >= 0 {
			return dst[:len(dst)+n]
		}
		room = -n
	}
}

// Text returns the text of tokens, control tokens left out unless special is set.
func (v *Vocab) Text(tokens []Token, special bool) string {
	var text []byte
	for _, t := range tokens {
		text = v.AppendPiece(text, t, special)
	}
	return string(text)
}

// Detokenizer turns a stream of tokens into UTF-8 text that never splits a rune. Bytes
// that no rune begins or goes on with become U+FFFD. The zero value with a Vocab is ready for use.
type Detokenizer struct {
	Vocab   *Vocab
	pending []byte // start of a rune whose end has not come yet
}

// Next returns the text that is complete with t, "" while a rune is unfinished.
func (d *Detokenizer) Next(t Token) string {
	d.pending = d.Vocab.AppendPiece(d.pending, t, false)
	n := completeRunes(d.pending)
	text := string(d.pending[:n])
	if !utf8.ValidString(text) {
		text = string([]rune(text)) // U+FFFD for each byte that is of no rune
	}
	d.pending = append(d.pending[:0], d.pending[n:]...)
	return text
}

// Flush returns what is left of an unfinished rune, as U+FFFD.
func (d *Detokenizer) Flush() string {
	if len(d.pending) == 0 {
		return ""
	}
	d.pending = d.pending[:0]
	return string(utf8.RuneError)
}

// completeRunes is how many bytes of b can be shown: all but the start of a
// rune at its end. Bytes that can never become a rune count as complete.
func completeRunes(b []byte) int {
	for back := 1; back <= min(utf8.UTFMax-1, len(b)); back++ {
		if start := len(b) - back; utf8.RuneStart(b[start]) {
			if !utf8.FullRune(b[start:]) {
				return start
			}
			break
		}
	}
	return len(b)
}
