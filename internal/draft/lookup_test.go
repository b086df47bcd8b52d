package draft

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/llama"
)

func tokensOf(text string) (tokens []llama.Token) {
	for _, r := range text {
		tokens = append(tokens, llama.Token(r))
	}
	return tokens
}

func TestLookup(t *testing.T) {
	for _, c := range []struct {
		text, draft string
		match       int
	}{
		{"", "", 0},
		{"a", "", 0},
		{"abcd", "", 0},
		{"xaby ab", "y ab", 2},
		{"one two three, one two", " thr", 7},
		{"abcabc", "abca", 3}, // runs on into the draft itself
		{"aaaa", "aaaa", 3},
		{"1abX 2abY ab", "Y ab", 2},  // the last place counts
		{"1abX 2abY 1ab", "X 2a", 3}, // but a longer match more
	} {
		var l lookup
		l.reset(tokensOf(c.text))
		draft, match := l.draft(nil, 4)
		require.Equal(t, tokensOf(c.draft), draft, c.text)
		require.Equal(t, c.match, match, c.text)
	}
}

// TestLookupFindsTheLongest compares with a search through the whole text.
func TestLookupFindsTheLongest(t *testing.T) {
	random := rand.New(rand.NewPCG(2, 2))
	var l lookup
	for range 500 {
		text := make([]llama.Token, random.IntN(60))
		for i := range text {
			text[i] = llama.Token(random.IntN(3))
		}
		l.reset(text)
		draft, match := l.draft(nil, 1)
		longest, next := 0, []llama.Token(nil)
		for n := min(longestGram, len(text)-1); n >= shortestGram && longest == 0; n-- {
			for at := len(text) - 1; at >= n && longest == 0; at-- {
				if slices.Equal(text[at-n:at], text[len(text)-n:]) {
					longest, next = n, text[at:at+1]
				}
			}
		}
		require.Equal(t, next, draft, "%v", text)
		require.GreaterOrEqual(t, match, longest)
		require.Equal(t, match > 0, longest > 0)
	}
	class := 0
	for match := shortestGram; match <= longestMatch; match++ {
		require.GreaterOrEqual(t, matchClass(match), class)
		class = matchClass(match)
	}
	require.Less(t, class, sureness)
}
