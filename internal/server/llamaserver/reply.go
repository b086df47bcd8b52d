package llamaserver

import (
	"maps"
	"net/http"
	"strings"
	"unicode/utf8"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/server/wire"
	"github.com/gallop-llm/gallop/llama"
)

// Error is the body that tells of an error.
func Error(e *wire.Error) (status int, body any) {
	kinds := map[int]string{
		http.StatusUnauthorized: "authentication_error", http.StatusForbidden: "permission_error", http.StatusNotFound: "not_found_error",
		http.StatusServiceUnavailable: "unavailable_error", http.StatusInternalServerError: "server_error", http.StatusTooManyRequests: "rate_limit_error",
	}
	detail := map[string]any{"code": e.Status, "message": e.Message, "type": "invalid_request_error"}
	if kind := kinds[e.Status]; kind != "" {
		detail["type"] = kind
	}
	if e.Context > 0 {
		detail["type"], detail["n_prompt_tokens"], detail["n_ctx"] = "exceed_context_size_error", e.PromptTokens, e.Context
	}
	return e.Status, map[string]any{"error": detail}
}

type completionReply struct {
	meta    wire.Meta
	call    *wire.Call
	request *completionRequest
}

type probability struct {
	ID      llama.Token   `json:"id"`
	Token   string        `json:"token"`
	Bytes   []int         `json:"bytes"`
	LogProb *float64      `json:"logprob"`
	Top     []probability `json:"top_logprobs,omitempty"`
}

func newProbability(id llama.Token, text string, p float64) probability {
	q := probability{ID: id, Token: strings.ToValidUTF8(text, "\uFFFD"), LogProb: wire.Number(p), Bytes: make([]int, len(text))}
	for i := range len(text) {
		q.Bytes[i] = int(text[i])
	}
	return q
}

func probabilities(tokens []gallop.Token) []probability {
	list := make([]probability, len(tokens))
	for i, t := range tokens {
		list[i] = newProbability(t.ID, t.Text, t.LogProb)
		for _, a := range t.Top {
			list[i].Top = append(list[i].Top, newProbability(a.ID, a.Text, a.LogProb))
		}
	}
	return list
}

func (r *completionReply) Start() []wire.Event { return nil }

func (r *completionReply) Step(s wire.Step) []wire.Event {
	content := ""
	for _, p := range s.Pieces {
		content += p.Text
	}
	if s.End != nil {
		o := r.object(s.Answer, s.End)
		o["content"], o["tokens"] = content, ids(s.Tokens)
		if r.call.Request.Logprobs != 0 {
			o["completion_probabilities"] = probabilities(s.Tokens)
		}
		return []wire.Event{wire.JSON("", o)}
	}
	if content == "" && len(s.Tokens) == 0 {
		return nil
	}
	o := map[string]any{"index": s.Answer, "content": content, "tokens": ids(s.Tokens), "stop": false}
	if r.call.Request.Logprobs != 0 {
		o["completion_probabilities"] = probabilities(s.Tokens)
	}
	if r.call.Settings.WantsDetail() {
		o["gallop"] = wire.NewChunk(s)
	}
	return []wire.Event{wire.JSON("", o)}
}

func ids(tokens []gallop.Token) []llama.Token {
	list := make([]llama.Token, len(tokens))
	for i, t := range tokens {
		list[i] = t.ID
	}
	return list
}

// object is what there is to say of a whole answer.
func (r *completionReply) object(answer int, result *wire.Result) map[string]any {
	a := &result.Answer
	stop := "eos"
	switch {
	case a.Finish == gallop.FinishLength:
		stop = "limit"
	case a.Stopped != "":
		stop = "word"
	}
	prompt := r.call.Prompts[answer]
	text := prompt.Text
	if prompt.Tokens != nil {
		text = r.meta.Detokenize(prompt.Tokens)
	}
	o := map[string]any{
		"index": answer, "content": result.Content, "tokens": []llama.Token{}, "id_slot": -1, "stop": true, "model": r.meta.Model,
		"tokens_predicted": a.Usage.Generated, "tokens_evaluated": a.Usage.Prompt, "tokens_cached": a.Usage.Cached,
		"generation_settings": r.settings(), "prompt": text, "has_new_line": strings.Contains(result.Content, "\n"),
		"truncated": false, "stop_type": stop, "stopping_word": a.Stopped, "timings": wire.NewTimings(a),
		"gallop": wire.NewReport(result, &r.meta.Info, r.call.Settings.WantsDetail() && !r.call.Stream),
	}
	if r.request.ReturnTokens {
		o["tokens"] = a.Tokens
	}
	if r.call.Request.Logprobs != 0 {
		o["completion_probabilities"] = probabilities(result.Scored)
	}
	return o
}

func (r *completionReply) settings() map[string]any {
	s := r.meta.Sampling
	settings := samplingSettings(&s)
	maps.Copy(settings, map[string]any{"n_ctx": r.meta.Info.Context, "model": r.meta.Model, "stream": r.call.Stream, "n_probs": r.call.Request.Logprobs, "stop": orEmpty(r.call.Request.Stop), "ignore_eos": r.call.Sampling.IgnoreEOS})
	if settings["n_predict"] = r.call.Request.MaxTokens; r.call.Request.MaxTokens == 0 && !r.call.Request.ScoreOnly {
		settings["n_predict"] = -1
	}
	return settings
}

func samplingSettings(s *llama.Sampling) map[string]any {
	topP := s.TopP
	if topP == llama.LeastTopP {
		topP = 0
	}
	lastN := s.RepeatLastN
	if lastN == 0 {
		lastN = llama.DefaultSampling().RepeatLastN
	}
	return map[string]any{
		"seed": s.Seed, "temperature": s.Temp, "top_k": s.TopK, "top_p": topP, "min_p": s.MinP, "repeat_last_n": lastN,
		"repeat_penalty": s.RepeatPenalty, "presence_penalty": s.PresencePenalty, "frequency_penalty": s.FrequencyPenalty, "grammar": s.Grammar,
	}
}

func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func (r *completionReply) End([]wire.Result) []wire.Event { return nil }

func (r *completionReply) Fail(e *wire.Error) []wire.Event {
	_, body := Error(e)
	return []wire.Event{wire.JSON("error", body)}
}

func (r *completionReply) Whole(results []wire.Result) any {
	list := make([]any, len(results))
	for i := range results {
		list[i] = r.object(i, &results[i])
	}
	if len(list) == 1 {
		return list[0]
	}
	return list
}

// WriteTokens writes the tokens of /tokenize, with their texts where piece is given.
func WriteTokens(tokens []llama.Token, piece func(llama.Token) string) any {
	if piece == nil {
		if tokens == nil {
			tokens = []llama.Token{}
		}
		return map[string]any{"tokens": tokens}
	}
	list := make([]map[string]any, len(tokens))
	for i, t := range tokens {
		text := piece(t)
		list[i] = map[string]any{"id": t, "piece": text}
		if !utf8.ValidString(text) {
			list[i]["piece"] = bytesOf(text)
		}
	}
	return map[string]any{"tokens": list}
}

func bytesOf(text string) []int {
	list := make([]int, len(text))
	for i := range len(text) {
		list[i] = int(text[i])
	}
	return list
}

// Props is what /props tells of a model and its server.
type Props struct {
	Model    string // its name
	Info     gallop.Info
	Sampling llama.Sampling
	Version  string
	Models   []ModelProps
}

// ModelProps is what /props tells of each model.
type ModelProps struct {
	Name    string `json:"name"`
	Loaded  bool   `json:"loaded"`
	Layers  int    `json:"layers"`
	Context int    `json:"n_ctx"`
	Profile bool   `json:"profile"` // layers can be chosen by prompt
}

// WriteProps writes /props.
func WriteProps(p *Props) any {
	params := samplingSettings(&p.Sampling)
	params["n_predict"], params["stop"] = -1, []string{}
	return map[string]any{
		"default_generation_settings": map[string]any{"n_ctx": p.Info.Context, "params": params},
		"total_slots":                 p.Info.Parallel, "model_alias": p.Model, "model_path": p.Info.Path, "chat_template": p.Info.Template,
		"modalities": map[string]bool{"vision": false, "audio": false}, "build_info": "gallop-" + p.Version, "is_sleeping": false,
		"model": p.Model, "n_ctx": p.Info.Context, "layers": p.Info.Layers, "profile": p.Info.Profile != "", "models": p.Models,
	}
}

// WriteSlots writes /slots.
func WriteSlots(slots []gallop.Slot, context int) any {
	list := make([]map[string]any, len(slots))
	for i, s := range slots {
		list[i] = map[string]any{
			"id": i, "n_ctx": context, "speculative": false, "is_processing": s.Busy, "n_prompt_tokens": s.Prompt,
			"next_token": map[string]any{"n_decoded": s.Generated, "has_next_token": s.Busy},
		}
	}
	return list
}
