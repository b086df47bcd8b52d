package llama

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestWaiting finds a trigger however an answer is cut into tokens, and none in reasoning.
func TestWaiting(t *testing.T) {
	think := []Marks{{"<think>", "</think>"}, {"[T]", "[/T]"}}
	for _, c := range []struct {
		lazy   Lazy
		answer string
		rest   string // up to the answer's end; "-" = there is no trigger
	}{
		{Lazy{Trigger: "<call>"}, "a <call>b", "b"},
		{Lazy{Trigger: "<call>"}, "<call>", ""},
		{Lazy{Trigger: "<call>"}, "a <<cal<call>b<call>", "b<call>"},
		{Lazy{Trigger: "<call>"}, "a <call", "-"},
		{Lazy{Trigger: "<call>", Quiet: think}, " <think>x <call></think>\n<call>b", "b"},
		{Lazy{Trigger: "<call>", Quiet: think}, "[T]x <call></think>[/T]<call>b", "b"},
		{Lazy{Trigger: "<call>", Quiet: think}, "<think>x <call>", "-"},
		{Lazy{Trigger: "<call>", Quiet: think}, "<thin <call>b", "b"},
		{Lazy{Trigger: "<call>", Quiet: think}, "a<think><call>b", "b"},
		{Lazy{Trigger: "<call>", Quiet: think, Opened: true}, "x <call>[/T] <call>b", "b"},
		{Lazy{Trigger: "<call>", Quiet: think, Opened: true}, "x</think><think><call>b", "b"},
		{Lazy{Trigger: "{", AtStart: true, Quiet: think}, "\n {b", "b"},
		{Lazy{Trigger: "{", AtStart: true, Quiet: think}, "a{b", "-"},
		{Lazy{Trigger: "{", AtStart: true, Quiet: think}, "<think>{</think> {b", "b"},
		{Lazy{Trigger: "{", AtStart: true, Quiet: think, Opened: true}, "{</think>a{", "-"},
		{Lazy{Trigger: "{\"", AtStart: true}, "{\"b", "b"},
		{Lazy{Trigger: "{\"", AtStart: true}, "{b{\"", "-"},
	} {
		for size := 1; size <= len(c.answer); size++ {
			w, rest := newWaiting(&c.lazy), "-"
			for at := 0; at < len(c.answer) && !w.over; at += size {
				end := min(at+size, len(c.answer))
				if behind, triggered := w.next(c.answer[at:end]); triggered {
					rest = behind + c.answer[end:]
				}
				require.Less(t, len(w.text), len(c.answer)+1)
			}
			require.Equal(t, c.rest, rest, "%q in pieces of %d", c.answer, size)
		}
	}
	w := newWaiting(&Lazy{Trigger: "<call>", Quiet: think})
	for range 1000 {
		w.next("some text")
	}
	require.Less(t, len(w.text), 10, "a long answer is not kept")
}
