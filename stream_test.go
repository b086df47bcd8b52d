package gallop_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
)

// settled waits until no request runs: an answer's end is told a moment before.
func settled(t *testing.T, e *gallop.Engine) gallop.Stats {
	t.Helper()
	require.Eventually(t, func() bool { s := e.Stats(); return s.Running == 0 && s.Waiting == 0 }, time.Minute, time.Millisecond)
	return e.Stats()
}

func TestStream(t *testing.T) {
	m := small(t)
	e := engine(t, m, options(512))
	r := greedy(12)
	r.Messages, r.Detail = user("one"), true
	want, err := e.Answer(t.Context(), r)
	require.NoError(t, err)
	stream := e.Stream(t.Context(), r)
	for range 2 { // it may be read again: that is another request
		text, tokens, answers := "", 0, 0
		for d, err := range stream {
			require.NoError(t, err)
			require.Zero(t, answers, "nothing comes behind the answer")
			text += d.Text
			for _, token := range d.Tokens {
				require.Equal(t, want.Tokens[tokens], token.ID)
				require.Negative(t, token.LogProb)
				tokens++
			}
			if d.Answer != nil {
				answers++
				require.Equal(t, text, d.Answer.Text)
			}
		}
		require.Equal(t, 1, answers)
		require.Equal(t, want.Text, text)
		require.Equal(t, len(want.Tokens), tokens)
	}
	require.EqualValues(t, 3, e.Stats().Requests)

	for d, err := range e.Stream(t.Context(), gallop.Request{}) {
		require.ErrorIs(t, err, gallop.ErrRequest)
		require.NotNil(t, d.Answer)
		require.Empty(t, d.Answer.Finish)
	}
	require.EqualValues(t, 1, e.Stats().Failed)
}

// TestControls tells of the control tokens within an answer, in their places, and of none
// behind a stop text.
func TestControls(t *testing.T) {
	m := small(t)
	e := engine(t, m, options(512))
	type place struct {
		at   int // of the whole answer
		text string
	}
	for _, c := range []struct {
		stop, text string
		want       []place
	}{
		{"", "abcdef", []place{{2, "<|im_start|>"}, {4, "<|begin|>"}, {6, "<|im_start|>"}}},
		{"bcd", "a", nil},
		{"cd", "ab", []place{{2, "<|im_start|>"}}},
		{"defg", "abcdef", []place{{2, "<|im_start|>"}, {4, "<|begin|>"}, {6, "<|im_start|>"}}}, // held back for a while
	} {
		r := greedy(0)
		r.Messages, r.Controls = user("one"), true
		r.Sampling.Grammar = `root ::= "ab<|im_start|>cd<|begin|>ef<|im_start|>"`
		r.Sampling.LogitBias = map[llama.Token]float32{randmodel.TokenMessage: 50, randmodel.TokenBOS: 50}
		if c.stop != "" {
			r.Stop = []string{c.stop}
		}
		var got []place
		text := ""
		for d, err := range e.Stream(t.Context(), r) {
			require.NoError(t, err)
			for _, control := range d.Controls {
				require.LessOrEqual(t, control.At, len(d.Text))
				got = append(got, place{len(text) + control.At, control.Text})
			}
			text += d.Text
		}
		require.Equal(t, c.text, text)
		require.Equal(t, c.want, got, c.stop)
	}
}

// TestLeavingAStream ends the request, with nothing left of it.
func TestLeavingAStream(t *testing.T) {
	m := small(t)
	o := options(2048)
	o.Parallel, o.Isolate = 2, true
	e := engine(t, m, o)
	r := endless(m)
	r.Messages = user("one")
	before := runtime.NumGoroutine()
	for range 10 {
		for _, err := range e.Stream(t.Context(), r) {
			require.NoError(t, err)
			break
		}
		s := e.Stats()
		require.Zero(t, s.Running)
		require.Less(t, s.Generated, uint64(10*2000))
		for _, slot := range s.Slots {
			require.False(t, slot.Busy)
		}
	}
	require.EqualValues(t, 10, e.Stats().Cancelled)
	for deadline := time.Now().Add(time.Minute); runtime.NumGoroutine() > before && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	require.LessOrEqual(t, runtime.NumGoroutine(), before)

	// A reader that panics leaves too.
	require.PanicsWithValue(t, "the reader", func() {
		for range e.Stream(t.Context(), r) {
			panic("the reader")
		}
	})
	require.Zero(t, e.Stats().Running)
	r = greedy(4)
	r.Messages = user("one")
	_, err := e.Answer(t.Context(), r)
	require.NoError(t, err)
}

// TestAReaderThatStops holds up nobody: another answer begins and ends meanwhile, and its own
// waits for it.
func TestAReaderThatStops(t *testing.T) {
	m := small(t)
	o := options(512)
	o.Parallel, o.Isolate = 2, true // else tokens decoded together round otherwise on some processors
	e := engine(t, m, o)
	r := greedy(40)
	r.Messages = user("one")
	want, err := e.Answer(t.Context(), r)
	require.NoError(t, err)
	text, pieces := "", 0
	for d, err := range e.Stream(t.Context(), r) {
		require.NoError(t, err)
		text += d.Text
		if pieces++; pieces == 1 {
			other := greedy(20)
			other.Messages = user("two")
			a, err := e.Answer(t.Context(), other)
			require.NoError(t, err)
			require.Positive(t, a.Usage.Generated)
			settled(t, e) // its own is whole by now
		}
	}
	require.Equal(t, want.Text, text)
	require.LessOrEqual(t, pieces, 3, "what was said while nobody read comes in one piece, and the answer with it or behind it")
}

// TestPanics end their own answer only.
func TestPanics(t *testing.T) {
	m := small(t)
	for _, parallel := range []int{1, 2} {
		o := options(512)
		o.Parallel, o.Isolate = parallel, true
		e := engine(t, m, o)
		r := greedy(24)
		r.Messages = user("one")
		want, err := e.Answer(t.Context(), r)
		require.NoError(t, err)
		for _, lossless := range []bool{false, true} {
			r.Lossless = lossless
			var others sync.WaitGroup
			if parallel > 1 {
				others.Go(func() {
					a, err := e.Answer(t.Context(), r)
					if err != nil || a.Text != want.Text {
						t.Errorf("%q, %v", a.Text, err)
					}
				})
			}
			pieces := 0
			a, err := e.AnswerTo(t.Context(), r, func(gallop.Delta) {
				if pieces++; pieces == 5 {
					panic("out of paper")
				}
			})
			others.Wait()
			require.ErrorContains(t, err, "out of paper")
			require.Empty(t, a.Finish)
			require.Zero(t, settled(t, e).Running)
			got, err := e.Answer(t.Context(), r)
			require.NoError(t, err)
			require.Equal(t, want.Tokens, got.Tokens)
		}
		require.EqualValues(t, 2, e.Stats().Failed)
	}
}

// TestClose ends what runs, what waits and what comes.
func TestClose(t *testing.T) {
	m := small(t)
	live := llama.Live()
	for _, parallel := range []int{1, 2} {
		o := options(2048)
		o.Parallel, o.Queue = parallel, 8
		e, err := gallop.New(m, &o)
		require.NoError(t, err)
		r := endless(m)
		r.Messages = user("one")
		began := make(chan struct{}, 8)
		type end struct {
			a    gallop.Answer
			text string
			err  error
		}
		ends := make(chan end, 8)
		for range 6 {
			go func() {
				var end end
				for d, err := range e.Stream(context.Background(), r) {
					if end.text == "" && d.Text != "" {
						began <- struct{}{}
					}
					end.text += d.Text
					if end.err = err; d.Answer != nil {
						end.a = *d.Answer
					}
				}
				ends <- end
			}()
		}
		for range parallel {
			<-began
		}
		require.Eventually(t, func() bool { return e.Stats().Waiting == 6-parallel }, time.Minute, time.Millisecond)
		var closing sync.WaitGroup
		for range 2 { // at the same time
			closing.Go(func() {
				if err := e.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		said := 0
		for range 6 {
			end := <-ends
			require.ErrorIs(t, end.err, gallop.ErrClosed)
			require.Equal(t, gallop.FinishCancelled, end.a.Finish)
			require.Equal(t, end.text, end.a.Text)
			if end.text != "" {
				said++
			}
		}
		require.Equal(t, parallel, said, "those that ran keep what they have said")
		closing.Wait()
		require.NoError(t, e.Close(), "further calls do nothing")
		require.Equal(t, live, llama.Live(), "nothing of C is left")

		for name, call := range map[string]func() error{
			"answer": func() error { _, err := e.Answer(t.Context(), r); return err },
			"stream": func() (failed error) {
				for _, err := range e.Stream(t.Context(), r) {
					failed = err
				}
				return failed
			},
			"plan": func() error { _, err := e.Plan(t.Context(), r); return err },
		} {
			require.ErrorIs(t, call(), gallop.ErrClosed, name)
		}
		require.Zero(t, e.Stats().Running)
		require.Equal(t, 4, e.Info().Layers)
	}
}

// TestAnOpenedModelClosesWithItsEngine, and what was asked of it then is an error.
func TestAnOpenedModelClosesWithItsEngine(t *testing.T) {
	m := small(t)
	live := llama.Live()
	o := options(256)
	e, err := gallop.Open(t.Context(), m.Path, &o)
	require.NoError(t, err)
	require.Greater(t, llama.Live(), live)
	require.NoError(t, e.Close())
	require.Equal(t, live, llama.Live())
	_, err = e.Tokenize("a", true, false)
	require.ErrorIs(t, err, gallop.ErrClosed)
	_, err = e.Count(gallop.Request{Prompt: "a"})
	require.ErrorIs(t, err, gallop.ErrClosed)
	require.Empty(t, e.Detokenize([]llama.Token{5}))

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = gallop.Open(ended, m.Path, &o)
	require.ErrorIs(t, err, context.Canceled)
	_, err = gallop.Open(t.Context(), m.Path+".none", &o)
	require.Error(t, err)
	require.Equal(t, live, llama.Live())
}

// TestASessionAfterErrors is as it was before, but for what was said.
func TestASessionAfterErrors(t *testing.T) {
	m := small(t)
	o := options(2048)
	e, err := gallop.New(m, &o)
	require.NoError(t, err)
	s := e.NewSession(greedy(8))
	ask(t, s, "one")
	before := s.Messages()
	s.Request().MaxTokens = -1
	_, err = tryAsk(t, s, "two")
	require.ErrorIs(t, err, gallop.ErrRequest)
	require.Equal(t, before, s.Messages())
	*s.Request() = endless(m)
	failed := errors.New("none")
	text := ""
	for d, err := range s.Ask(t.Context(), "two") {
		if text == "" && d.Text != "" {
			go e.Close()
		}
		text += d.Text
		failed = err
	}
	require.ErrorIs(t, failed, gallop.ErrClosed)
	require.Len(t, s.Messages(), 4, "what was said stays")
	require.Equal(t, text, s.Messages()[3].Content)
	_, err = tryAsk(t, s, "three")
	require.ErrorIs(t, err, gallop.ErrClosed)
	require.Len(t, s.Messages(), 4)
	require.True(t, strings.HasPrefix(s.Messages()[2].Content, "two"))
	require.NoError(t, e.Close())
}
