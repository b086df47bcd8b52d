// Package llamaserver reads and writes the API that llama.cpp's own server has beside
// OpenAI's. It is pure conversion, without HTTP.
package llamaserver

import (
	"encoding/json"
	"math"
	"strconv"

	"github.com/gallop-llm/gallop/internal/server/openai"
	"github.com/gallop-llm/gallop/internal/server/wire"
	"github.com/gallop-llm/gallop/llama"
)

type completionRequest struct {
	wire.Sampling
	Model        string          `json:"model"`
	Prompt       json.RawMessage `json:"prompt"`
	Predict      *int            `json:"n_predict"`
	MaxTokens    *int            `json:"max_tokens"`
	Stop         json.RawMessage `json:"stop"`
	Stream       bool            `json:"stream"`
	Probs        int             `json:"n_probs"`
	LogitBias    json.RawMessage `json:"logit_bias"`
	Schema       json.RawMessage `json:"json_schema"`
	ReturnTokens bool            `json:"return_tokens"`
	Gallop       json.RawMessage `json:"gallop"`
}

// neutral are fields of samplers and of caches that Gallop does not have, with the values that
// turn them off.
var neutral = wire.Fields{
	"cache_prompt": wire.Only("true"), "id_slot": wire.Only("-1"), "n_keep": wire.Only("0", "-1"), "n_discard": wire.Only("0"),
	"n_cache_reuse": wire.Only("0"), "n_indent": wire.Only("0"), "min_keep": wire.Only("0"),
	"typical_p": wire.Only("1"), "top_n_sigma": wire.Only("-1"), "mirostat": wire.Only("0"), "mirostat_tau": wire.Label(), "mirostat_eta": wire.Label(),
	"dynatemp_range": wire.Only("0"), "dynatemp_exponent": wire.Label(),
	"dry_multiplier": wire.Only("0"), "dry_base": wire.Label(), "dry_allowed_length": wire.Label(), "dry_penalty_last_n": wire.Label(), "dry_sequence_breakers": wire.Label(),
	"xtc_probability": wire.Only("0"), "xtc_threshold": wire.Label(),
	"t_max_predict_ms": wire.Only("0"), "timings_per_token": wire.Only("false"), "return_progress": wire.Only("false"),
	"post_sampling_probs": wire.Only("false"), "response_fields": wire.Only("[]"), "lora": wire.Only("[]"), "n_cmpl": wire.Only("1"),
	"image_data": wire.Only("[]"),
}

// maxProbs bounds the alternatives of a token that a client may ask for.
const maxProbs = 100

// ParseCompletion reads a request for /completion.
func ParseCompletion(body []byte) (*wire.Parsed, error) {
	var r completionRequest
	err := wire.Decode(body, "", &r, neutral)
	if err != nil {
		return nil, err
	}
	p := &wire.Parsed{Call: wire.Call{Model: r.Model, N: 1, Sampling: r.Sampling, Stream: r.Stream, Schema: r.Schema}}
	if p.Prompts, err = openai.ParsePrompts(r.Prompt, "prompt"); err != nil {
		return nil, err
	}
	if len(p.Prompts) > 1 && r.Stream {
		return nil, wire.Unsupported("stream", "not with several prompts")
	}
	for name, n := range map[string]*int{"n_predict": r.Predict, "max_tokens": r.MaxTokens} {
		if n == nil {
			continue
		}
		// -1 is no bound, -2 until the context is full, which are the same here.
		if err := wire.InRange(name, *n, -2, math.MaxInt32); err != nil {
			return nil, err
		}
		p.Request.MaxTokens = max(*n, 0)
		p.Request.ScoreOnly = *n == 0
	}
	if p.Request.Stop, err = openai.ParseStop(r.Stop, "stop"); err != nil {
		return nil, err
	}
	p.Request.Logprobs, p.Request.Detail = r.Probs, r.Stream // whose events have the tokens
	if err := wire.InRange("n_probs", r.Probs, 0, maxProbs); err != nil {
		return nil, err
	}
	if p.Sampling.Bias, err = parseBias(r.LogitBias); err != nil {
		return nil, err
	}
	if p.Settings, err = wire.ParseSettings(r.Gallop); err != nil {
		return nil, err
	}
	if p.Schema != nil && p.Sampling.Grammar != "" {
		return nil, wire.BadRequest("json_schema", "json_schema and grammar exclude each other")
	}
	p.Reply = func(m wire.Meta) wire.Reply { return &completionReply{meta: m, call: &p.Call, request: &r} }
	return p, p.Sampling.Check()
}

// parseBias reads [[TOKEN or TEXT, BIAS or false]], or an object of such pairs.
func parseBias(raw json.RawMessage) (list []wire.Bias, err error) {
	const path = "logit_bias"
	bad := wire.BadRequest(path, `%s: want pairs as in [[15043, 1.5], ["word", false]]`, path)
	if len(raw) == 0 {
		return nil, nil
	}
	var pairs [][]json.RawMessage
	if wire.IsList(raw) {
		if json.Unmarshal(raw, &pairs) != nil {
			return nil, bad
		}
	} else {
		var object map[string]json.RawMessage
		if json.Unmarshal(raw, &object) != nil {
			return nil, bad
		}
		for key, value := range object {
			name, _ := json.Marshal(key)
			if _, err := strconv.ParseInt(key, 10, 32); err == nil {
				name = []byte(key)
			}
			pairs = append(pairs, []json.RawMessage{name, value})
		}
	}
	for _, pair := range pairs {
		var b wire.Bias
		if len(pair) != 2 {
			return nil, bad
		}
		switch what := pair[0]; {
		case wire.IsText(what):
			if json.Unmarshal(what, &b.Text) != nil || b.Text == "" {
				return nil, bad
			}
		case json.Unmarshal(what, &b.Token) != nil || b.Token < 0:
			return nil, bad
		}
		if string(pair[1]) == "false" {
			b.Value = float32(math.Inf(-1))
		} else if json.Unmarshal(pair[1], &b.Value) != nil {
			return nil, bad
		}
		list = append(list, b)
	}
	return list, nil
}

// Tokenize is a request for /tokenize.
type Tokenize struct {
	Model      string `json:"model"`
	Content    string `json:"content"`
	AddSpecial bool   `json:"add_special"` // BOS in front, where the model wants it
	Special    *bool  `json:"parse_special"`
	Pieces     bool   `json:"with_pieces"`
}

// ParseTokenize reads a request for /tokenize.
func ParseTokenize(body []byte) (*Tokenize, error) {
	var r Tokenize
	return &r, wire.Decode(body, "", &r, nil)
}

// ParseSpecial tells whether control tokens in the text count as such.
func (r *Tokenize) ParseSpecial() bool { return r.Special == nil || *r.Special }

// Detokenize is a request for /detokenize.
type Detokenize struct {
	Model  string        `json:"model"`
	Tokens []llama.Token `json:"tokens"`
}

// ParseDetokenize reads a request for /detokenize.
func ParseDetokenize(body []byte) (*Detokenize, error) {
	var r Detokenize
	return &r, wire.Decode(body, "", &r, nil)
}
