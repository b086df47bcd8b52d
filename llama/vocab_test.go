package llama_test

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
)

// texts are awkward ones: every length of rune, joined emoji, spaces, controls.
var texts = []string{
	"", "a", "the king is in the house", "  two  spaces ", "tab\tline\n\nend\r\n", "Grüße, 日本語, Ελληνικά",
	"👩‍👩‍👧‍👦 🏳️‍🌈", "e\u0301 \u200b\ufeff", "\x00\x01", "<|im_end|>", strings.Repeat("ab ", 3000), "\U0010ffff",
}

func TestTokenize(t *testing.T) {
	v := llamatest.Small(t, "llama").Vocab
	for _, text := range texts {
		tokens, err := v.Tokenize(text, false)
		require.NoError(t, err)
		for _, tok := range tokens {
			require.True(t, tok >= 0 && int(tok) < v.Size)
		}
		require.Equal(t, text, v.Text(tokens, true))
	}
	the, err := v.Tokenize(" the", false)
	require.NoError(t, err)
	require.Len(t, the, 1, "a merged word")

	const chat = "<|im_start|>user\nhi<|im_end|>"
	marked, err := v.Tokenize(chat, true)
	require.NoError(t, err)
	require.EqualValues(t, randmodel.TokenMessage, marked[0])
	require.EqualValues(t, randmodel.TokenEOT, marked[len(marked)-1])
	require.Equal(t, chat, v.Text(marked, true))
	require.Equal(t, "user\nhi", v.Text(marked, false))
	plain, err := v.Tokenize(chat, false)
	require.NoError(t, err)
	require.NotContains(t, plain, llama.Token(randmodel.TokenMessage), "what users type makes no markers")
}

func TestVocabFacts(t *testing.T) {
	v := llamatest.Small(t, "llama").Vocab
	require.Equal(t, []llama.Token{randmodel.TokenBOS, randmodel.TokenEOS, randmodel.TokenEOT}, []llama.Token{v.BOS, v.EOS, v.EOT})
	require.False(t, v.AddBOS)
	require.True(t, v.IsEnd(v.EOS))
	require.True(t, v.IsEnd(v.EOT))
	for _, tok := range []llama.Token{0, v.BOS, -1, llama.NoToken, llama.Token(v.Size), math.MaxInt32} {
		require.False(t, v.IsEnd(tok))
	}
	for _, tok := range []llama.Token{-1, llama.Token(v.Size), math.MaxInt32} {
		require.Empty(t, v.Text([]llama.Token{tok}, true))
	}
	require.Equal(t, "x", string(v.AppendPiece([]byte("x"), v.EOT, false)))
}

func TestBOS(t *testing.T) {
	llamatest.Library(t)
	path := llamatest.Rewrite(t, llamatest.Tiny(t, 1), func(meta *gguf.Metadata) {
		meta.Set("tokenizer.ggml.add_bos_token", true)
		meta.Set("tokenizer.chat_template", "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
	})
	m := llamatest.Open(t, path)
	require.True(t, m.Vocab.AddBOS)
	for _, text := range []string{"", "hi"} {
		tokens, err := m.Vocab.Tokenize(text, true)
		require.NoError(t, err)
		require.Equal(t, m.Vocab.BOS, tokens[0])
		plain, err := m.Vocab.Tokenize(text, false)
		require.NoError(t, err)
		require.Len(t, tokens, len(plain)+1)
	}
	// The template's own BOS must not come twice.
	text, err := m.ApplyTemplate([]llama.Message{{Role: "user", Content: "hi"}}, false)
	require.NoError(t, err)
	require.Equal(t, "hi<|endoftext|>", text)
}

// TestNoVocab has a model with numbers for tokens and no text.
func TestNoVocab(t *testing.T) {
	llamatest.Library(t)
	path := llamatest.Rewrite(t, llamatest.Tiny(t, 1), func(meta *gguf.Metadata) {
		meta.Set("tokenizer.ggml.model", "no_vocab")
	})
	m := llamatest.Open(t, path)
	_, err := m.Vocab.Tokenize("hi", true)
	require.ErrorIs(t, err, llama.ErrTokenize)
	_, err = m.NewSampler(llama.Sampling{Grammar: `root ::= "a"`})
	require.ErrorIs(t, err, llama.ErrGrammar)
	decode(t, small(t, m), prompt(3), 0, none)
	require.Empty(t, m.Vocab.Text([]llama.Token{1, 2}, true))
}

// stream puts tokens through a Detokenizer and checks every piece.
func stream(t *testing.T, v *llama.Vocab, tokens []llama.Token) (text, rest string) {
	t.Helper()
	d := llama.Detokenizer{Vocab: v}
	for _, tok := range tokens {
		text += d.Next(tok)
	}
	rest = d.Flush()
	require.Empty(t, d.Flush(), "flushed twice")
	return text, rest
}

// FuzzDetokenize streams the bytes of any text, one token a byte where no word
// was merged: what comes out is whole runes, and together the text.
func FuzzDetokenize(f *testing.F) {
	llamatest.Library(f)
	m := llamatest.Small(f, "llama")
	v := m.Vocab
	for _, text := range texts {
		f.Add([]byte(text))
	}
	for _, broken := range []string{"\xff", "\xe2\x82", "a\xe2\x82b", "\xf0\x9f\x98", "\xc0\x80", "\x80\x80\x80\x80", "\xed\xa0\x80", "é\xf4\x90\x80\x80é"} {
		f.Add([]byte(broken))
	}
	bytesAsTokens := byteTokens(f, v)
	f.Fuzz(func(t *testing.T, data []byte) {
		if utf8.Valid(data) && len(data) < 1<<12 {
			tokens, err := v.Tokenize(string(data), false)
			require.NoError(t, err)
			text, rest := stream(t, v, tokens)
			require.Equal(t, string(data), text)
			require.Empty(t, rest)
		}
		d := llama.Detokenizer{Vocab: v}
		var text strings.Builder
		for i, b := range data {
			piece := d.Next(bytesAsTokens[b])
			require.True(t, utf8.ValidString(piece), "a rune is split after byte %d", i)
			text.WriteString(piece)
		}
		rest := d.Flush()
		readable := string(bytes.Runes(data)) // U+FFFD for each byte of no rune
		held, cut := strings.CutPrefix(readable, text.String())
		require.True(t, cut, "%q is no start of %q", text.String(), readable)
		require.Equal(t, held != "", rest != "")
		require.Equal(t, strings.Repeat("\uFFFD", utf8.RuneCountInString(held)), held, "%q was held back though complete", held)
	})
}

// byteTokens finds the token of each byte.
func byteTokens(t testing.TB, v *llama.Vocab) (tokens [256]llama.Token) {
	t.Helper()
	found := 0
	for tok := range llama.Token(v.Size) {
		if piece := v.AppendPiece(nil, tok, false); len(piece) == 1 {
			tokens[piece[0]] = tok
			found++
		}
	}
	require.Equal(t, 256, found)
	return tokens
}
