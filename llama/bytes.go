package llama

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gallop-llm/gallop/gguf"
)

// byteless is the vocabulary of a SentencePiece model (tokenizer "llama") that lacks
// tokens for some bytes: llama.cpp fails over a character that has neither a token
// of its own nor tokens for all of its bytes.
type byteless struct {
	tokens  map[string]bool
	byteOf  [256]bool         // there is a token for it
	special *strings.Replacer // takes away what becomes a token before characters are looked at
	user    *strings.Replacer // the same where control tokens stay text
}

// Token types that are looked for in a text as a whole.
const (
	typeUnknown     = 2
	typeControl     = 3
	typeUserDefined = 4
)

// readByteless gives nil for a vocabulary that has all it needs.
func readByteless(meta gguf.Metadata) *byteless {
	if model, err := meta.String(tokenizerKey + "model"); err != nil || model != "llama" {
		return nil
	}
	texts, err := meta.Strings(tokenizerKey + "tokens")
	if err != nil {
		return nil
	}
	b := &byteless{tokens: make(map[string]bool, len(texts))}
	for _, text := range texts {
		b.tokens[text] = true
	}
	whole := true
	for i := range b.byteOf {
		b.byteOf[i] = b.tokens[fmt.Sprintf("<0x%02X>", i)] || b.tokens[string([]byte{byte(i)})]
		whole = whole && b.byteOf[i]
	}
	if whole {
		return nil
	}
	types, _ := meta.Uints(tokenizerKey + "token_type")
	var special, user []string
	for i, text := range texts[:min(len(texts), len(types))] {
		switch types[i] {
		case typeUserDefined:
			user = append(user, text)
			special = append(special, text)
		case typeControl, typeUnknown:
			special = append(special, text)
		}
	}
	b.special, b.user = remover(special), remover(user)
	return b
}

// remover replaces each of the texts, the longest first, by a space.
func remover(texts []string) *strings.Replacer {
	slices.SortFunc(texts, func(a, b string) int { return len(b) - len(a) })
	var pairs []string
	for _, text := range texts {
		if text != "" {
			pairs = append(pairs, text, " ")
		}
	}
	return strings.NewReplacer(pairs...)
}

// check finds a character of the text that the vocabulary cannot express. The error
// wraps [ErrTokenize].
func (b *byteless) check(text string, special bool) error {
	if b == nil {
		return nil
	}
	if special {
		text = b.special.Replace(text)
	} else {
		text = b.user.Replace(text)
	}
	const space = "▁" // stands for the space
	text = strings.ReplaceAll(text, " ", space)
	for len(text) > 0 {
		char := text[:min(lengthOf(text[0]), len(text))]
		text = text[len(char):]
		for i := range len(char) {
			if !b.byteOf[char[i]] && !b.tokens[char] {
				return fmt.Errorf("%w: the vocabulary has nothing for %q", ErrTokenize, char)
			}
		}
	}
	return nil
}

// lengthOf is how many bytes llama.cpp takes as a character, by the first of them.
func lengthOf(first byte) int {
	switch {
	case first < 0xc0:
		return 1
	case first < 0xe0:
		return 2
	case first < 0xf0:
		return 3
	}
	return 4
}
