package router

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/skip"
)

func TestChoose(t *testing.T) {
	p := made(t, "")
	story, translate := Prompt{Text: "Write about a dog, as a story."}, Prompt{Text: "Translate the word dog to French."}
	for name, c := range map[string]struct {
		prompt Prompt
		policy Policy
		want   string // mask
		reason string
	}{
		"fixed, story":           {story, Policy{Depth: 1}, "2", "lowest predicted loss at depth 1"},
		"fixed, translate":       {translate, Policy{Depth: 1}, "3", "lowest"},
		"nearest not above":      {translate, Policy{Depth: 1.4}, "3", "lowest"},
		"within the tolerance":   {translate, Policy{Depth: 1.6}, "2,3", "depth 2"},
		"deeper than any":        {translate, Policy{Depth: 9}, "2,3", "depth 2"},
		"shallower than any":     {translate, Policy{Depth: 0.1}, "", "depth 0"},
		"adaptive, story":        {story, Policy{Quality: 0.9}, "2,3", "quality of 0.9"},
		"adaptive, translate":    {translate, Policy{Quality: 0.9}, "3", "deepest"},
		"nothing is good enough": {story, Policy{Quality: 1}, "", "no set"},
		"the profile's quality":  {translate, Policy{}, "3", "quality of 0.95"},
		"unlike":                 {Prompt{Text: "SELECT id FROM users WHERE 1=1; --"}, Policy{Quality: 0.1}, "", "unlike"},
		"unlike at fixed depth":  {Prompt{Text: "SELECT id FROM users WHERE 1=1; --"}, Policy{Depth: 2}, "2,3", "lowest"},
		"too sure to be had":     {story, Policy{Quality: 0.5, Confidence: 0.999}, "", "no set"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := p.Choose(c.prompt, c.policy)
			require.NoError(t, err)
			require.Equal(t, c.want, d.Mask.String(), d.Reason)
			require.Contains(t, d.Reason, c.reason)
			require.Equal(t, p.Candidates[d.Candidate].Mask, d.Mask)
			require.Equal(t, p.Candidates[d.Candidate].Depth, d.Depth)
			require.InDelta(t, min(1, math.Exp(-d.Predicted[d.Candidate])), d.Quality, 1e-12)
		})
	}
	for _, pol := range []Policy{{Depth: -1}, {Quality: 1.1}, {Quality: math.NaN()}, {Confidence: 1}} {
		_, err := p.Choose(story, pol)
		require.ErrorIs(t, err, ErrPolicy)
	}
	p.Features = nil
	_, err := p.Choose(story, Policy{})
	require.ErrorIs(t, err, ErrFeatures)
}

func TestNeverKept(t *testing.T) {
	p := &Profile{Defaults: Defaults{Quality: 0.9, Confidence: 0.9}, Candidates: []Candidate{
		{}, {Mask: skip.Layers(2, 3, 7), Depth: 3}, {Mask: skip.Layers(3, 5, 7), Depth: 3.1}, {Mask: skip.Layers(1), Depth: 1},
	}}
	for _, c := range []struct {
		policy Policy
		want   string
	}{
		{Policy{Depth: 3}, "3,7"},
		{Policy{Depth: 1}, "1"},
		{Policy{Depth: 0.2}, ""},
		{Policy{Depth: 3, Guard: true}, ""},
		{Policy{Quality: 0.5}, ""},
	} {
		mask, err := p.NeverKept(c.policy)
		require.NoError(t, err)
		require.Equal(t, c.want, mask.String(), c.policy)
	}
	_, err := p.NeverKept(Policy{Depth: -1})
	require.ErrorIs(t, err, ErrPolicy)
}

// A wanted depth never lets in sets of a much smaller one.
func TestDepthsAreNotMixed(t *testing.T) {
	p := &Profile{Candidates: []Candidate{{}, {Depth: 2.1}, {Depth: 3.2}, {Depth: 2.9}, {Depth: 4.1}, {Depth: 0.9}}}
	require.Equal(t, []int{2, 3}, p.atDepth(3))
	require.Equal(t, []int{1}, p.atDepth(2))
	require.Equal(t, []int{4}, p.atDepth(4))
	require.Equal(t, []int{5}, p.atDepth(1))
	require.Equal(t, []int{0}, p.atDepth(0.3))
}

func TestEscalation(t *testing.T) {
	low, high := Escalation{Quality: 0.9, Threshold: 0.5, Depth: 4, Cost: 0.7}, Escalation{Quality: 0.99, Threshold: 0.9, Depth: 3, Cost: 0.8}
	d := Defaults{Escalate: []Escalation{low, high}}
	for quality, want := range map[float64]Escalation{0.8: low, 0.9: low, 0.95: high} {
		got, ok := d.EscalationFor(quality)
		require.True(t, ok)
		require.Equal(t, want, got)
	}
	_, ok := d.EscalationFor(1)
	require.False(t, ok)
}

func TestSwitch(t *testing.T) {
	at := func(candidate int, layers ...int) Decision {
		return Decision{Candidate: candidate, Mask: skip.Layers(layers...), Depth: float64(len(layers)), Predicted: []float64{0, 0.3, 0.1, 0.2}}
	}
	shallow, deep, other := at(1, 2), at(3, 2, 3, 4, 5), at(2, 6)
	cost := CostModel{Layers: 16}
	for name, c := range map[string]struct {
		now, next        Decision
		cached, expected int
		want             bool
		reason           string
	}{
		"same mask":                   {deep, deep, 100, 100, false, "stays"},
		"nothing cached":              {shallow, deep, 0, 0, true, "nothing"},
		"long answer":                 {shallow, deep, 100, 100, true, "saves the time of 18.8 tokens, decoding 100 again costs that of 7.5"},
		"long conversation":           {shallow, deep, 4000, 100, false, "would save"},
		"another mask is better":      {shallow, other, 4000, 10, true, "needs another"},
		"the old one is better":       {other, shallow, 100, 10, false, "serves"},
		"whole model for a new topic": {deep, at(0), 4000, 10, true, "needs another"},
	} {
		t.Run(name, func(t *testing.T) {
			move, reason := Switch(c.now, c.next, c.cached, c.expected, cost)
			require.Equal(t, c.want, move)
			require.Contains(t, reason, c.reason)
		})
	}
}
