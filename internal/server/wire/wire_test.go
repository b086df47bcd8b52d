package wire

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/llama"
)

func TestDecode(t *testing.T) {
	type embedded struct {
		Depth *float64 `json:"depth"`
	}
	type request struct {
		embedded
		Name  string   `json:"name"`
		Count int      `json:"count"`
		List  []string `json:"list"`
	}
	also := Fields{"label": Label(), "off": Only("0", "false"), "never": Only()}
	var r request
	require.NoError(t, Decode([]byte(`{"name":"a","depth":1.5,"count":null,"label":{"x":[]},"off":0.0,"never":null}`), "", &r, also))
	require.Equal(t, "a", r.Name)
	require.Equal(t, 1.5, *r.Depth)
	for body, want := range map[string]Error{
		`{"name":1}`:             {Param: "o.name", Message: "o.name: want a text, not number"},
		`{"count":"1"}`:          {Param: "o.count", Message: "o.count: want a whole number in range, not string"},
		`{"depth":[]}`:           {Param: "o.depth", Message: "o.depth: want a number in range, not array"},
		`{"list":{}}`:            {Param: "o.list", Message: "o.list: want a list, not object"},
		`{"Name":"a"}`:           {Param: "o.Name", Message: "o.Name: this server does not know this field"},
		`{"off":1}`:              {Param: "o.off", Message: "o.off: not supported: only 0, false"},
		`{"never":{}}`:           {Param: "o.never", Message: "o.never: not supported: leave it out"},
		`[]`:                     {Param: "o", Message: "o: want a JSON object"},
		`null`:                   {Param: "o", Message: "o: want a JSON object"},
		`{"count":1e99}`:         {Param: "o.count"},
		`{"z":1,"a":1}`:          {Param: "o.a"}, // the first by name, each time
		`{"label":1,"off":true}`: {Param: "o.off"},
	} {
		var e *Error
		require.ErrorAs(t, Decode([]byte(body), "o", &request{}, also), &e, body)
		require.Equal(t, want.Param, e.Param, body)
		require.Equal(t, http.StatusBadRequest, e.Status)
		if want.Message != "" {
			require.Equal(t, want.Message, e.Message)
		}
	}
	require.NoError(t, Decode([]byte(`{"x":1}`), "", &r, Fields{Others: Label()}))
}

func TestCheck(t *testing.T) {
	for body, ok := range map[string]bool{
		`{}`: true, `{"a":"[[[{{{"}`: true, `{"a":"\"[["}`: true, strings.Repeat("[", MaxDepth) + strings.Repeat("]", MaxDepth): true,
		strings.Repeat("[", MaxDepth+1) + strings.Repeat("]", MaxDepth+1): false, "": false, "{": false, "{} {}": false, "\xff": false, `"\ud800"`: true,
		strings.Repeat("[", 1_000_000): false, strings.Repeat(`{"a":`, 1_000_000): false,
	} {
		require.Equal(t, ok, Check([]byte(body)) == nil, "%.40s", body)
	}
}

func TestSampling(t *testing.T) {
	number := func(x float64) *float64 { return &x }
	whole := func(n int) *int { return &n }
	seed := int64(-1)
	s := Sampling{Temperature: number(1e-9), TopP: number(0), TopK: whole(0), RepeatLastN: whole(0), FrequencyPenalty: number(1), Seed: &seed,
		Bias: []Bias{{Token: 3, Value: 1}, {Text: "ab", Value: 2}, {Token: 'a', Value: 1}}}
	require.NoError(t, s.Check())
	base := llama.DefaultSampling()
	base.MinP = 0.3
	got, err := s.Apply(base, func(string) ([]llama.Token, error) { return []llama.Token{'a', 'b'}, nil })
	require.NoError(t, err)
	require.Zero(t, got.Temp, "what is colder than samplers go is greedy")
	require.Equal(t, float32(llama.LeastTopP), got.TopP)
	require.Zero(t, got.FrequencyPenalty, "a window of 0 turns penalties off")
	require.Equal(t, uint32(llama.RandomSeed), got.Seed)
	require.Equal(t, float32(0.3), got.MinP, "the model's own")
	require.Equal(t, map[llama.Token]float32{3: 1, 'a': 3, 'b': 2}, got.LogitBias)
	_, err = s.Apply(base, func(string) ([]llama.Token, error) { return nil, errors.New("no") })
	require.Error(t, err)
}

func TestMessages(t *testing.T) {
	m := Messages([]Turn{
		{Role: "user", Content: "q"},
		{Role: "assistant", Calls: []ToolCall{{Name: "f", Arguments: `{"a":1}`}, {ID: "x", Name: "g", Arguments: "broken"}, {ID: "y", Name: "h"}}},
		{Role: "tool", Content: "3", CallID: "y"}, {Role: "tool", Content: "1"}, {Role: "tool", Content: "2"}, {Role: "tool", Content: "4", CallID: "unheard"},
	})
	require.JSONEq(t, `{"tool_calls":[{"id":"call00001","type":"function","function":{"name":"f","arguments":{"a":1}}},
		{"id":"x","type":"function","function":{"name":"g","arguments":"broken"}},{"id":"y","type":"function","function":{"name":"h","arguments":{}}}]}`, string(m[1].Fields))
	for i, want := range []string{`{"name":"h","tool_call_id":"y"}`, `{"name":"f","tool_call_id":"call00001"}`, `{"name":"g","tool_call_id":"x"}`, `{"tool_call_id":"unheard"}`} {
		require.JSONEq(t, want, string(m[2+i].Fields))
	}
	require.Nil(t, m[0].Fields)
}

func TestCollector(t *testing.T) {
	var c Collector
	c.Add([]Piece{{Reasoning: "a"}, {Text: "b"}, {Call: &CallPiece{ID: "1", Name: "f"}}, {Call: &CallPiece{Arguments: `{"x"`}}})
	c.Add([]Piece{{Call: &CallPiece{Arguments: `:1}`}}, {Call: &CallPiece{Index: 1, ID: "2", Name: "g"}}, {Call: &CallPiece{Index: 1, ID: "3", Name: "h", Arguments: "{"}}, {Text: "h{", Broken: true}})
	r := c.Result(gallop.Answer{}, nil)
	require.Equal(t, []ToolCall{{"1", "f", `{"x":1}`}, {"2", "g", ""}}, r.Calls)
	require.Equal(t, "bh{", r.Content)
	require.Equal(t, "a", r.Reasoning)
}

func TestSettings(t *testing.T) {
	name, s, err := CutModel("org/model:Q4@skip=4,f7 escalate=0.5@lossless@detail=true")
	require.NoError(t, err)
	require.Equal(t, "org/model:Q4", name)
	skip, lossless, err := s.Choice()
	require.NoError(t, err)
	require.Equal(t, "4,f7 escalate=0.5", skip.String())
	require.True(t, lossless && s.WantsDetail())
	for _, wrong := range []string{"a@", "a@x", "a@x=1", "a@depth=x", "a@skip=4@depth=2", "a@lossless=maybe", "a@quality=7", "a@@"} {
		_, _, err := CutModel(wrong)
		require.Error(t, err, wrong)
	}
	_, err = HeaderSettings(http.Header{"X-Gallop-Depth": {"2"}, "X-Gallop-Route": {"off"}})
	require.Error(t, err)
	no, depth := false, 2.0
	merged := Settings{Lossless: &no}.Or(Settings{Depth: &depth}).Or(s)
	skip, lossless, err = merged.Choice()
	require.NoError(t, err)
	require.Equal(t, "depth=2", skip.String(), "what is left out is said by one of them")
	require.False(t, lossless)
}

// TestReportIsJSON has no numbers that JSON cannot write.
func TestReportIsJSON(t *testing.T) {
	r := &Result{Scored: []gallop.Token{{Text: "\xff", LogProb: math.NaN()}, {Text: "a", LogProb: math.Inf(-1)}}}
	data, err := json.Marshal(NewReport(r, &gallop.Info{}, true))
	require.NoError(t, err)
	require.Contains(t, string(data), `"logprob":null`)
	_, err = json.Marshal(NewTimings(&r.Answer))
	require.NoError(t, err)
}
