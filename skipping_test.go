package gallop_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/skip"
)

func TestParseSkip(t *testing.T) {
	mask, err := skip.Parse("4,6,f9-11")
	require.NoError(t, err)
	for text, want := range map[string]gallop.Skip{
		"":                       {},
		"  ":                     {},
		"routed":                 gallop.Routed(),
		"off":                    gallop.Nothing(),
		"4,6,f9-11":              gallop.Layers(mask),
		"v2048":                  gallop.Layers(skip.Mask{}.WithShortlist(2048)),
		"depth=3":                gallop.Depth(3),
		"depth=2.5":              gallop.Depth(2.5),
		"quality=0.95":           gallop.Quality(0.95),
		"quality=1":              gallop.Quality(1),
		"routed prefill=full":    gallop.Routed().Prefill(skip.FullPrefill),
		"prefill=masked":         gallop.Skip{}.Prefill(skip.MaskedPrefill),
		"quality=0.9 escalate=0": gallop.Quality(0.9).Escalate(0),
		"depth=4 route=chat":     gallop.Depth(4).PerChat(),
		"f4 prefill=full escalate=0.7 route=chat": gallop.Layers(skip.Mask{}.With(4, skip.FeedForward)).Prefill(skip.FullPrefill).Escalate(0.7).PerChat(),
	} {
		got, err := gallop.ParseSkip(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
		require.Equal(t, strings.TrimSpace(text), got.String())
		var read struct{ Skip gallop.Skip }
		data, err := json.Marshal(struct{ Skip gallop.Skip }{got})
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(data, &read))
		require.Equal(t, got, read.Skip)
	}
	require.Equal(t, gallop.Nothing(), gallop.Layers(skip.Mask{}), "an empty mask is nothing")
	for _, text := range []string{
		"on", "x", "4,", "routed off", "off 4", "depth=", "depth=x", "depth=0", "depth=-1", "depth=nan", "depth=inf", "depth=513",
		"quality=0", "quality=1.1", "quality=NaN", "escalate=2", "escalate=-0.1", "escalate=nan", "prefill=half", "route=turn", "speed=3", "=",
		"depth=3 quality=0.9", "4 depth=3",
	} {
		got, err := gallop.ParseSkip(text)
		require.ErrorIs(t, err, gallop.ErrSkip, text)
		require.Zero(t, got, text)
		var s gallop.Skip
		require.ErrorIs(t, s.UnmarshalText([]byte(text)), gallop.ErrSkip, text)
	}
}

// FuzzParseSkip: what is read has one text, which reads as the same.
func FuzzParseSkip(f *testing.F) {
	for _, text := range []string{"routed", "off prefill=full", "4,6,f9-11 escalate=0.5", "depth=3 route=chat", "quality=0.95 prefill=masked", "v512", "escalate=1e-3"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := gallop.ParseSkip(text)
		if err != nil {
			require.ErrorIs(t, err, gallop.ErrSkip)
			return
		}
		again, err := gallop.ParseSkip(s.String())
		require.NoError(t, err, s.String())
		require.Equal(t, s, again)
		require.Equal(t, s.String(), again.String())
	})
}

// TestWhoSaysWhatIsSkipped: what a request leaves open is as the engine's options say.
func TestWhoSaysWhatIsSkipped(t *testing.T) {
	m := small(t)
	o := options(256)
	half := skip.Mask{}.With(1, skip.FeedForward)
	o.Skip = gallop.Layers(half).Prefill(skip.FullPrefill).Escalate(0.5)
	e := engine(t, m, o)
	for _, c := range []struct {
		skip gallop.Skip
		want gallop.Plan
	}{
		{gallop.Skip{}, gallop.Plan{Mask: half, Prefill: skip.FullPrefill, Escalate: 0.5, LayersRun: 3.5}},
		{gallop.Skip{}.Escalate(0.1), gallop.Plan{Mask: half, Prefill: skip.FullPrefill, Escalate: 0.1, LayersRun: 3.5}},
		{gallop.Skip{}.Prefill(skip.MaskedPrefill).Escalate(0), gallop.Plan{Mask: half, Prefill: skip.MaskedPrefill, LayersRun: 3.5}},
		{gallop.Nothing(), gallop.Plan{LayersRun: 4}},
		{gallop.Layers(skip.Layers(2)), gallop.Plan{Mask: skip.Layers(2), LayersRun: 3}},
		{gallop.Routed(), gallop.Plan{LayersRun: 4}}, // without a profile nothing
	} {
		plan, err := e.Plan(t.Context(), gallop.Request{Prompt: "one", Skip: c.skip})
		require.NoError(t, err)
		require.Equal(t, c.want, plan, "%q", c.skip)
	}
}
