package wire

import (
	"strings"

	"github.com/gallop-llm/gallop"
)

// Report is the field "gallop" of an answer: what was left out, why, and what that brought.
type Report struct {
	Skip        string  `json:"skip"` // the mask that ran; "" = the whole model
	Prefill     string  `json:"prefill"`
	LayersRun   float64 `json:"layers_run"` // a half counts ½
	Layers      int     `json:"layers"`
	Reason      string  `json:"reason,omitempty"`
	Task        string  `json:"task,omitempty"`
	Quality     float64 `json:"quality,omitempty"`  // predicted share of the whole model's probability
	Weights     float64 `json:"weights_share"`      // of the weights' bytes that a token needed, mean
	Escalated   int     `json:"escalated"`          // tokens that the whole model decided again
	Drafted     int     `json:"drafted,omitempty"`  // tokens
	Accepted    int     `json:"accepted,omitempty"` // of these
	Lossless    bool    `json:"lossless,omitempty"`
	MaskOff     bool    `json:"mask_off,omitempty"` // the mask did not pay, and the answer went on with the whole model
	Shortlist   int     `json:"shortlist,omitempty"`
	Forgotten   int     `json:"forgotten,omitempty"`    // turns that found no room
	CacheMissed string  `json:"cache_missed,omitempty"` // why nothing of the prompt was cached
	PromptSpeed float64 `json:"prompt_tps"`             // tokens/s
	Speed       float64 `json:"tps"`                    // tokens/s
	FirstToken  float64 `json:"first_token_ms"`
	Tokens      []Told  `json:"tokens,omitempty"` // with "detail"
}

// Told is a token of an answer with "detail".
type Told struct {
	Text    string        `json:"text"`
	Source  gallop.Source `json:"source"`
	LogProb *float64      `json:"logprob"`
}

// NewReport reports on an answer. detail adds its tokens.
func NewReport(r *Result, info *gallop.Info, detail bool) *Report {
	a := &r.Answer
	report := &Report{
		Skip: a.Plan.Mask.String(), Prefill: a.Plan.Prefill.String(), LayersRun: a.Plan.LayersRun, Layers: info.Layers, Weights: a.WeightsRead,
		Escalated: a.Escalated, MaskOff: a.Weighed.Off, Shortlist: a.Shortlist.Size, Forgotten: a.Forgotten, CacheMissed: a.Usage.Missed,
		PromptSpeed: a.PromptSpeed(), Speed: a.Speed(), FirstToken: 1000 * a.Timing.FirstToken.Seconds(),
	}
	if c := a.Plan.Choice; c != nil {
		report.Reason, report.Task, report.Quality = c.Reason, c.Task, c.Quality
	}
	if d := a.Drafts; d != nil {
		report.Lossless, report.Drafted, report.Accepted = true, d.Drafted, d.Accepted
	}
	if detail {
		report.Tokens = Tell(r.Scored)
	}
	return report
}

// Chunk is the field "gallop" of a stream's chunk, with "detail".
type Chunk struct {
	Tokens []Told  `json:"tokens"`
	Skip   *string `json:"skip,omitempty"` // the mask that runs; nil = it is not known yet
}

// NewChunk tells of a step.
func NewChunk(s Step) *Chunk {
	c := &Chunk{Tokens: Tell(s.Tokens)}
	mask := s.Mask
	if s.End != nil {
		mask = &s.End.Plan.Mask
	}
	if mask != nil {
		text := mask.String()
		c.Skip = &text
	}
	return c
}

// Tell is tokens with what computed them.
func Tell(tokens []gallop.Token) []Told {
	told := make([]Told, len(tokens))
	for i, t := range tokens {
		told[i] = Told{strings.ToValidUTF8(t.Text, "\uFFFD"), t.Source, Number(t.LogProb)}
	}
	return told
}

// Timings are llama-server's.
type Timings struct {
	CacheN             int     `json:"cache_n"`
	PromptN            int     `json:"prompt_n"`
	PromptMS           float64 `json:"prompt_ms"`
	PromptPerTokenMS   float64 `json:"prompt_per_token_ms"`
	PromptPerSecond    float64 `json:"prompt_per_second"`
	PredictedN         int     `json:"predicted_n"`
	PredictedMS        float64 `json:"predicted_ms"`
	PredictedPerToken  float64 `json:"predicted_per_token_ms"`
	PredictedPerSecond float64 `json:"predicted_per_second"`
}

// NewTimings are those of an answer.
func NewTimings(a *gallop.Answer) Timings {
	t := Timings{
		CacheN: a.Usage.Cached, PromptN: a.Usage.Prompt - a.Usage.Cached, PredictedN: a.Usage.Generated,
		PromptMS: 1000 * a.Timing.Prefill.Seconds(), PredictedMS: 1000 * a.Timing.Decode.Seconds(),
		PromptPerSecond: a.PromptSpeed(), PredictedPerSecond: a.Speed(),
	}
	t.PromptPerTokenMS = t.PromptMS / float64(max(t.PromptN, 1))
	t.PredictedPerToken = t.PredictedMS / float64(max(t.PredictedN-1, 1)) // the first came out of the prompt's pass
	return t
}
