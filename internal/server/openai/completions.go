package openai

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/server/wire"
)

type completionRequest struct {
	wire.Sampling
	Model         string             `json:"model"`
	Prompt        json.RawMessage    `json:"prompt"`
	MaxTokens     *int               `json:"max_tokens"`
	N             *int               `json:"n"`
	Stop          json.RawMessage    `json:"stop"`
	Stream        bool               `json:"stream"`
	StreamOptions json.RawMessage    `json:"stream_options"`
	Logprobs      *int               `json:"logprobs"`
	Echo          bool               `json:"echo"`
	LogitBias     map[string]float64 `json:"logit_bias"`
	Gallop        json.RawMessage    `json:"gallop"`
}

// defaultMaxTokens is OpenAI's bound of completions that name none.
const defaultMaxTokens = 16

// ParseCompletion reads a request for completions of texts or tokens.
func ParseCompletion(body []byte) (*wire.Parsed, error) {
	var r completionRequest
	err := wire.Decode(body, "", &r, labels(wire.Fields{"suffix": wire.Only(`""`), "best_of": wire.Only("1")}))
	if err != nil {
		return nil, err
	}
	p := &wire.Parsed{Call: wire.Call{Model: r.Model, Sampling: r.Sampling, Stream: r.Stream}}
	usage, err := (&common{r.N, r.Stop, r.StreamOptions, r.LogitBias, r.Gallop}).into(&p.Call)
	if err != nil {
		return nil, err
	}
	if p.Prompts, err = ParsePrompts(r.Prompt, "prompt"); err != nil {
		return nil, err
	}
	if n := len(p.Prompts) * p.N; n > wire.MaxAnswers {
		return nil, wire.BadRequest("n", "%d answers are asked for, want at most %d", n, wire.MaxAnswers)
	}
	p.Request.MaxTokens = defaultMaxTokens
	if r.MaxTokens != nil {
		if p.Request.MaxTokens = max(*r.MaxTokens, 0); *r.MaxTokens != -1 {
			if err := wire.InRange("max_tokens", *r.MaxTokens, 0, math.MaxInt32); err != nil {
				return nil, err
			}
			p.Request.ScoreOnly = *r.MaxTokens == 0
		}
	}
	if r.Logprobs != nil {
		if p.Request.Logprobs = *r.Logprobs; *r.Logprobs == 0 {
			p.Request.Logprobs = -1
		}
		if err := wire.InRange("logprobs", *r.Logprobs, 0, maxTop); err != nil {
			return nil, err
		}
		p.Request.PromptLogprobs = r.Echo
		if r.Echo && r.Stream {
			return nil, wire.Unsupported("stream", "not with both echo and logprobs")
		}
	}
	p.Reply = func(m wire.Meta) wire.Reply {
		return &completionReply{head: newHead("cmpl-", m).as("text_completion"), usage: usage, echo: r.Echo, call: &p.Call, offset: map[int]int{}}
	}
	return p, nil
}

// ParsePrompts reads a text, a list of texts, a list of tokens, or a list of such lists.
func ParsePrompts(raw json.RawMessage, path string) ([]wire.Prompt, error) {
	bad := wire.BadRequest(path, "%s: want a text, a list of tokens, or a list of either", path)
	if len(raw) == 0 {
		return nil, wire.BadRequest(path, "%s is missing", path)
	}
	if !wire.IsList(raw) {
		raw = json.RawMessage("[" + string(raw) + "]")
	}
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil || len(list) == 0 {
		return nil, bad
	}
	if !wire.IsText(list[0]) && !wire.IsList(list[0]) {
		list = []json.RawMessage{raw}
	}
	if len(list) > wire.MaxAnswers {
		return nil, wire.BadRequest(path, "%s has %d prompts, want at most %d", path, len(list), wire.MaxAnswers)
	}
	prompts := make([]wire.Prompt, len(list))
	for i, item := range list {
		if wire.IsText(item) {
			if json.Unmarshal(item, &prompts[i].Text) != nil {
				return nil, bad
			}
			if prompts[i].Text == "" {
				return nil, wire.BadRequest(path, "%s: an empty text cannot be continued", path)
			}
			continue
		}
		if !wire.IsList(item) || json.Unmarshal(item, &prompts[i].Tokens) != nil {
			return nil, bad
		}
		if len(prompts[i].Tokens) == 0 {
			return nil, wire.BadRequest(path, "%s: a list without tokens cannot be continued", path)
		}
		for _, t := range prompts[i].Tokens {
			if t < 0 {
				return nil, wire.BadRequest(path, "%s: %d is no token", path, t)
			}
		}
	}
	return prompts, nil
}

type completionReply struct {
	head
	call   *wire.Call
	usage  bool
	echo   bool
	offset map[int]int // of each answer: runes written in a stream
}

type completionObject struct {
	head
	Choices []completionChoice `json:"choices"`
	Usage   *usage             `json:"usage,omitempty"`
	Gallop  any                `json:"gallop,omitempty"`
}

type completionChoice struct {
	Text     string              `json:"text"`
	Index    int                 `json:"index"`
	Logprobs *completionLogprobs `json:"logprobs"`
	Finish   *string             `json:"finish_reason"`
	Gallop   any                 `json:"gallop,omitempty"`
}

type completionLogprobs struct {
	Tokens  []string              `json:"tokens"`
	Own     []*float64            `json:"token_logprobs"`
	Top     []map[string]*float64 `json:"top_logprobs"` // nil = unknown
	Offsets []int                 `json:"text_offset"`  // in runes
}

// logprobs are those of tokens that begin at this rune of the text. rest is the text from there
// on: what is not written in it, as the token that prompts begin with, has no length; "" =
// all is written.
func (r *completionReply) logprobs(tokens []gallop.Token, offset int, rest string) *completionLogprobs {
	if r.call.Request.Logprobs == 0 {
		return nil
	}
	l := &completionLogprobs{Tokens: []string{}, Own: []*float64{}, Top: []map[string]*float64{}, Offsets: []int{}}
	for _, t := range tokens {
		own := wire.Number(t.LogProb)
		l.Tokens = append(l.Tokens, printable(t.Text))
		l.Own = append(l.Own, own)
		l.Offsets = append(l.Offsets, offset)
		written := t.Text
		if rest != "" {
			if written = strings.TrimPrefix(written, " "); strings.HasPrefix(rest, t.Text) {
				written = t.Text
			} else if !strings.HasPrefix(rest, written) {
				written = ""
			}
			rest = rest[len(written):]
		}
		offset += utf8.RuneCountInString(written)
		var top map[string]*float64
		if own != nil {
			top = map[string]*float64{printable(t.Text): own}
			for _, a := range t.Top {
				// Several tokens can have the same text: the likeliest of them stands.
				if name := printable(a.Text); top[name] == nil || *top[name] < a.LogProb {
					top[name] = wire.Number(a.LogProb)
				}
			}
		}
		l.Top = append(l.Top, top)
	}
	return l
}

// printable is a token's text, or its bytes where these are no text by themselves.
func printable(text string) string {
	if utf8.ValidString(text) {
		return text
	}
	var b strings.Builder
	b.WriteString("bytes:")
	for i := range len(text) {
		fmt.Fprintf(&b, `\x%02x`, text[i])
	}
	return b.String()
}

// prompt is the text of the prompt of an answer.
func (r *completionReply) prompt(answer int) string {
	p := r.call.Prompts[answer/r.call.N]
	if p.Tokens == nil {
		return p.Text
	}
	return r.meta.Detokenize(p.Tokens)
}

func (r *completionReply) Start() []wire.Event { return nil }

func (r *completionReply) Step(s wire.Step) []wire.Event {
	c := completionChoice{Index: s.Answer, Text: text(s.Pieces)}
	at, begun := r.offset[s.Answer]
	c.Logprobs = r.logprobs(s.Tokens, at, "")
	if r.echo && !begun {
		c.Text = r.prompt(s.Answer) + c.Text
	}
	r.offset[s.Answer] = at + utf8.RuneCountInString(c.Text)
	o := completionObject{head: r.head}
	switch {
	case s.End != nil:
		c.Finish, o.Gallop = finishReason(s.End), wire.NewReport(s.End, &r.meta.Info, false)
	case c.Text == "" && len(s.Tokens) == 0:
		return nil
	}
	if r.call.Settings.WantsDetail() && s.End == nil {
		o.Gallop = wire.NewChunk(s)
	}
	o.Choices = []completionChoice{c}
	return []wire.Event{wire.JSON("", o)}
}

func text(pieces []wire.Piece) string {
	var b strings.Builder
	for _, p := range pieces {
		b.WriteString(p.Text)
	}
	return b.String()
}

func (r *completionReply) End(results []wire.Result) (events []wire.Event) {
	if r.usage {
		events = append(events, wire.JSON("", completionObject{head: r.head, Choices: []completionChoice{}, Usage: newUsage(results, r.call.N)}))
	}
	return append(events, done)
}

func (r *completionReply) Fail(e *wire.Error) []wire.Event { return fail(e) }

func (r *completionReply) Whole(results []wire.Result) any {
	o := completionObject{head: r.head, Choices: make([]completionChoice, len(results)), Usage: newUsage(results, r.call.N)}
	for i := range results {
		result := &results[i]
		c := completionChoice{Text: result.Content, Index: i, Finish: finishReason(result)}
		if tokens := result.Scored; r.echo {
			c.Text = r.prompt(i) + c.Text
			c.Logprobs = r.logprobs(append(result.Prompt[:len(result.Prompt):len(result.Prompt)], tokens...), 0, c.Text)
		} else {
			c.Logprobs = r.logprobs(tokens, 0, "")
		}
		report := wire.NewReport(result, &r.meta.Info, r.call.Settings.WantsDetail())
		if o.Choices[i] = c; i > 0 {
			o.Choices[i].Gallop = report
			continue
		}
		o.Gallop = report
	}
	return o
}

// Embedding is a request for embeddings.
type Embedding struct {
	Model  string
	Inputs []wire.Prompt
	base64 bool
}

// ParseEmbedding reads a request for embeddings.
func ParseEmbedding(body []byte) (*Embedding, error) {
	var r struct {
		Model  string          `json:"model"`
		Input  json.RawMessage `json:"input"`
		Format string          `json:"encoding_format"`
	}
	if err := wire.Decode(body, "", &r, labels(nil)); err != nil {
		return nil, err
	}
	if r.Format != "" && r.Format != "float" && r.Format != "base64" {
		return nil, wire.Unsupported("encoding_format", "%q, only float and base64", r.Format)
	}
	inputs, err := ParsePrompts(r.Input, "input")
	return &Embedding{r.Model, inputs, r.Format == "base64"}, err
}

// Write writes the embeddings of all inputs, which had so many tokens.
func (e *Embedding) Write(model string, vectors [][]float32, tokens int) any {
	type item struct {
		Object    string `json:"object"`
		Index     int    `json:"index"`
		Embedding any    `json:"embedding"`
	}
	data := make([]item, len(vectors))
	for i, v := range vectors {
		data[i] = item{"embedding", i, v}
		if e.base64 {
			data[i].Embedding = littleEndian(v) // which JSON writes in base64
		}
	}
	return struct {
		Object string `json:"object"`
		Data   []item `json:"data"`
		Model  string `json:"model"`
		Usage  any    `json:"usage"`
	}{"list", data, model, map[string]int{"prompt_tokens": tokens, "total_tokens": tokens}}
}

func littleEndian(v []float32) []byte {
	b := make([]byte, 0, 4*len(v))
	for _, x := range v {
		u := math.Float32bits(x)
		b = append(b, byte(u), byte(u>>8), byte(u>>16), byte(u>>24))
	}
	return b
}
