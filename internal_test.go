package gallop

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// What the graph refuses, and only that, ends an answer's shortlist.
func TestShortlistThatTheGraphRefuses(t *testing.T) {
	refusal := fmt.Errorf("%w: the shortlist was made for another model", llama.ErrMask)
	l := listing{size: 1024, used: 1024}
	require.False(t, l.refused(errors.New("the decode was aborted")))
	require.Equal(t, 1024, l.size)
	require.True(t, l.refused(refusal))
	require.Equal(t, listing{why: refusal.Error()}, l)
	require.False(t, l.refused(refusal), "the layers were refused")
}

// FuzzStopper cuts a text in pieces; where they end must not matter.
func FuzzStopper(f *testing.F) {
	f.Add("one two three", "two", "e t", uint64(1))
	f.Add("aaaab", "aab", "b", uint64(2))
	f.Add("nothing", "###", "\n\n", uint64(3))
	f.Fuzz(func(t *testing.T, text, stop1, stop2 string, seed uint64) {
		if stop1 == "" || stop2 == "" {
			t.Skip()
		}
		random := rand.New(rand.NewPCG(seed, 0))
		s := stopper{stops: []string{stop1, stop2}}
		said, found := "", false
		for rest := text; rest != "" && !found; {
			n := 1 + random.IntN(len(rest))
			var piece string
			piece, found = s.next(rest[:n])
			said, rest = said+piece, rest[n:]
		}
		said += s.flush()
		require.Equal(t, found, strings.Contains(text, stop1) || strings.Contains(text, stop2))
		if !found {
			require.Equal(t, text, said)
			return
		}
		require.True(t, strings.HasPrefix(text, said))
		rest := text[len(said):]
		require.True(t, strings.HasPrefix(rest, stop1) || strings.HasPrefix(rest, stop2))
		require.True(t, strings.HasPrefix(rest, s.found), "it is told which")
	})
}

// TestPace: the first text comes at once, what follows closely comes together, and the end
// waits for nothing.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newMailbox()
		begun := time.Now()
		go func() {
			b.put(Delta{Mask: &skip.Mask{}}) // no text: it delays none
			for _, text := range []string{"a", "b", "c", "d"} {
				time.Sleep(2 * time.Millisecond)
				b.put(Delta{Text: text})
			}
			time.Sleep(20 * time.Millisecond)
			b.put(Delta{Text: "e"})
			time.Sleep(time.Millisecond)
			b.end(Answer{Text: "abcde"}, nil)
		}()
		type piece struct {
			text string
			at   time.Duration
		}
		var got []piece
		for {
			d, err, last := b.get()
			require.NoError(t, err)
			got = append(got, piece{d.Text, time.Since(begun)})
			if last {
				break
			}
		}
		const ms = time.Millisecond
		require.Equal(t, []piece{{"", 0}, {"a", 2 * ms}, {"bc", 7 * ms}, {"d", 12 * ms}, {"e", 28 * ms}, {"", 29 * ms}}, got)
	})
}

// TestSlowReaders: what a reader has not taken yet waits for it in one piece.
func TestSlowReaders(t *testing.T) {
	b := newMailbox()
	for _, text := range []string{"a", "b", "c"} {
		b.put(Delta{Text: text, Tokens: []Token{{Text: text}}})
	}
	d, err, last := b.get()
	require.NoError(t, err)
	require.False(t, last)
	require.Equal(t, "abc", d.Text)
	require.Len(t, d.Tokens, 3)
	b.put(Delta{Text: "d"})
	b.end(Answer{Text: "abcd"}, errLeft)
	d, err, last = b.get()
	require.ErrorIs(t, err, errLeft)
	require.True(t, last)
	require.Equal(t, "d", d.Text)
	require.Equal(t, "abcd", d.Answer.Text)
	b.wait()
}
