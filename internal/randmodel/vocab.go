package randmodel

import (
	"fmt"
	"strings"

	"github.com/gallop-llm/gallop/gguf"
)

// Token types of llama.cpp.
const (
	tokenNormal  int32 = 1
	tokenControl int32 = 3
	tokenUnused  int32 = 5
)

// The special tokens, last in the vocabulary of the bytes; see [MinVocab].
var specials = []string{"<|endoftext|>", "<|begin|>", "<|im_start|>", "<|im_end|>"}

// MinVocab is the smallest vocabulary, in tokens: the 256 bytes, then four
// special tokens: 256 end of text, 257 begin, 258 and 259 around a chat message.
const MinVocab = 256 + 4

// Token numbers of the special tokens.
const (
	TokenEOS     = 256 // ends a text
	TokenBOS     = 257 // begins a text; not added by the tokeniser
	TokenMessage = 258 // begins a chat message
	TokenEOT     = 259 // ends a chat message
)

// words get tokens of their own, with their beginnings, as far as Vocab allows.
var words = strings.Fields("the and ing of to in that is was for on are with as his they at be this have from")

// template is ChatML.
const template = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}" +
	"{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"

// byteRunes gives the letter by which GPT-2's vocabulary writes each byte:
// printable Latin-1 as itself, the others from U+0100 up in order.
func byteRunes() [256]rune {
	var runes [256]rune
	next := rune(256)
	for b := range runes {
		r := rune(b)
		printable := r >= '!' && r <= '~' || r >= '¡' && r <= '¬' || r >= '®' && r <= 'ÿ'
		if !printable {
			r = next
			next++
		}
		runes[b] = r
	}
	return runes
}

// vocabulary gives n tokens, their types (n,) and the merges that lead to words.
func vocabulary(n int) (tokens []string, types []int32, merges []string) {
	runes := byteRunes()
	add := func(token string, kind int32) {
		tokens = append(tokens, token)
		types = append(types, kind)
	}
	for _, r := range runes {
		add(string(r), tokenNormal)
	}
	for _, s := range specials {
		add(s, tokenControl)
	}
	seen := map[string]bool{}
	for _, word := range words {
		left := string(runes[' '])
		for _, letter := range word {
			merged := left + string(letter)
			if !seen[merged] && len(tokens) < n {
				seen[merged] = true
				merges = append(merges, left+" "+string(letter))
				add(merged, tokenNormal)
			}
			left = merged
		}
	}
	for i := len(tokens); i < n; i++ {
		add(fmt.Sprintf("<|unused_%d|>", i), tokenUnused)
	}
	return tokens, types, merges
}

// addVocabulary appends the tokeniser's keys.
func addVocabulary(meta *gguf.Metadata, n int) {
	tokens, types, merges := vocabulary(n)
	meta.Set("tokenizer.ggml.model", "gpt2")
	meta.Set("tokenizer.ggml.pre", "gpt-2")
	meta.Set("tokenizer.ggml.tokens", tokens)
	meta.Set("tokenizer.ggml.token_type", types)
	meta.Set("tokenizer.ggml.merges", merges)
	meta.Set("tokenizer.ggml.eos_token_id", uint32(TokenEOS))
	meta.Set("tokenizer.ggml.bos_token_id", uint32(TokenBOS))
	meta.Set("tokenizer.ggml.eot_token_id", uint32(TokenEOT))
	meta.Set("tokenizer.ggml.add_bos_token", false)
	meta.Set("tokenizer.chat_template", template)
}
