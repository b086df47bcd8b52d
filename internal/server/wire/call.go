package wire

import (
	"encoding/json"
	"fmt"
	"math"
	"time"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// MaxAnswers bounds how many answers one request may ask for.
const MaxAnswers = 2048

// Call is what a client asks for, in whichever dialect.
type Call struct {
	Model string // as the client wrote it; "" = the first one

	// Request has all that the client alone can say. Prompt, Tokens, Skip, Sampling and Lossless
	// are still to be set, from the fields below.
	Request gallop.Request

	Prompts  []Prompt // to continue; nil = Request.Messages is answered
	N        int      // answers to each, at least 1
	Sampling Sampling
	Settings Settings

	Choice  Choice          // with Request.Tools
	OneCall bool            // at most one call of a tool in an answer
	Schema  json.RawMessage // that the answer must be valid against; nil = free text
	Stream  bool
}

// Prompt is one text, or one list of tokens, that is continued.
type Prompt struct {
	Text   string
	Tokens []llama.Token // nil = Text
}

// Choice says whether tools are called.
type Choice struct {
	Mode Mode
	Name string // with [CallOne]
}

// Mode is a way to choose tools.
type Mode int

// Ways to choose tools.
const (
	CallAuto Mode = iota // the model decides
	CallNone
	CallAny // at least one is called
	CallOne // the named one is called
)

// Sampling is what a client sets of a model's sampling. nil = as the model's author
// recommends.
type Sampling struct {
	Temperature      *float64 `json:"temperature"`
	TopP             *float64 `json:"top_p"`
	TopK             *int     `json:"top_k"`
	MinP             *float64 `json:"min_p"`
	RepeatPenalty    *float64 `json:"repeat_penalty"`
	RepeatLastN      *int     `json:"repeat_last_n"`
	FrequencyPenalty *float64 `json:"frequency_penalty"`
	PresencePenalty  *float64 `json:"presence_penalty"`
	Seed             *int64   `json:"seed"` // -1 = a new one each time
	Grammar          string   `json:"grammar"`
	IgnoreEOS        bool     `json:"ignore_eos"` // the model cannot end an answer

	Bias []Bias `json:"-"`
}

// Bias is added to a token's logit.
type Bias struct {
	Token llama.Token
	Text  string // whose tokens get it, "" = Token does
	Value float32
}

// Check refuses what no model could do. Errors are [*Error].
func (s *Sampling) Check() error {
	if s.Seed != nil {
		if err := InRange("seed", *s.Seed, -1, math.MaxUint32); err != nil {
			return err
		}
	}
	if s.RepeatLastN != nil {
		if err := InRange("repeat_last_n", *s.RepeatLastN, -1, llama.MostLastN); err != nil {
			return err
		}
	}
	sampling := s.apply(llama.DefaultSampling())
	if err := sampling.Check(); err != nil {
		return BadRequest("", "%v", err)
	}
	return nil
}

// Apply is base with what the client set. tokenize turns the text of a bias into tokens.
func (s *Sampling) Apply(base llama.Sampling, tokenize func(text string) ([]llama.Token, error)) (llama.Sampling, error) {
	base = s.apply(base)
	if len(s.Bias) == 0 {
		return base, nil
	}
	base.LogitBias = map[llama.Token]float32{}
	for _, b := range s.Bias {
		tokens := []llama.Token{b.Token}
		if b.Text != "" {
			var err error
			if tokens, err = tokenize(b.Text); err != nil {
				return base, fmt.Errorf("tokens of the logit bias for %q: %w", b.Text, err)
			}
		}
		for _, t := range tokens {
			base.LogitBias[t] += b.Value
		}
	}
	return base, nil
}

// leastTemp is the lowest temperature but 0 that samplers take; what is colder always
// chooses the likeliest token.
const leastTemp = 1e-6

func (s *Sampling) apply(to llama.Sampling) llama.Sampling {
	float := func(from *float64, to *float32) {
		if from != nil {
			*to = float32(*from)
		}
	}
	float(s.Temperature, &to.Temp)
	if to.Temp > 0 && to.Temp < leastTemp {
		to.Temp = 0
	}
	if s.TopP != nil {
		to.SetTopP(float32(*s.TopP))
	}
	if s.TopK != nil {
		to.TopK = *s.TopK
	}
	float(s.MinP, &to.MinP)
	float(s.RepeatPenalty, &to.RepeatPenalty)
	float(s.FrequencyPenalty, &to.FrequencyPenalty)
	float(s.PresencePenalty, &to.PresencePenalty)
	if s.RepeatLastN != nil {
		to.SetRepeatLastN(*s.RepeatLastN)
	}
	if s.Seed != nil {
		to.Seed = uint32(*s.Seed) // -1 is llama.RandomSeed
	}
	if s.Grammar != "" {
		to.Grammar = s.Grammar
	}
	return to
}

// Meta is what a reply needs to know beside the answers.
type Meta struct {
	ID      string // 24 letters and digits
	Created time.Time
	Model   string // the name of the one that answers
	Info    gallop.Info
	Version string

	Sampling     llama.Sampling // that answers are made with
	PromptTokens func() int     // of what is answered, counted before that is done
	Detokenize   func([]llama.Token) string
}

// Piece is a part of an answer as clients see it. One of its fields is set, but Broken.
type Piece struct {
	Text      string
	Reasoning string // what the model thinks before it answers
	Call      *CallPiece
	Broken    bool // the last call is none: Text is what it began with
}

// CallPiece is a part of a call of a tool.
type CallPiece struct {
	Index     int    // of the call in the answer
	ID        string // with the call's first piece: 9 letters and digits
	Name      string // with the call's first piece
	Arguments string // what is new of the JSON object
}

// Step is what a delta brings to one of the answers.
type Step struct {
	Answer int // which one, from 0: answers to the first prompt come first
	Pieces []Piece
	Tokens []gallop.Token
	Mask   *skip.Mask // as in [gallop.Delta]
	End    *Result    // with the last step: the whole answer; nil before
}

// Result is a whole answer as clients see it.
type Result struct {
	gallop.Answer // its Text is still in the model's own format

	Content   string
	Reasoning string
	Calls     []ToolCall
	Scored    []gallop.Token // the answer's tokens, where they were asked for
}

// ToolCall is a call of a tool.
type ToolCall struct {
	ID, Name, Arguments string // Arguments is a JSON object, or the start of one: see [ToolCall.Whole]
}

// Whole reports whether a call was written to its end. One is not where a limit of tokens
// or a stop text cut the answer off.
func (c *ToolCall) Whole() bool { return json.Valid([]byte(c.Arguments)) }

// Called reports whether the answer ends with calls that can be done.
func (r *Result) Called() bool { return len(r.Calls) > 0 && r.Calls[len(r.Calls)-1].Whole() }

// Collector makes a result from pieces.
type Collector struct {
	content, reasoning, arguments []byte // arguments are the last call's
	calls                         []ToolCall
}

// Add takes the next pieces.
func (c *Collector) Add(pieces []Piece) {
	for _, p := range pieces {
		if p.Broken {
			c.calls, c.arguments = c.calls[:len(c.calls)-1], nil
		}
		c.content = append(c.content, p.Text...)
		c.reasoning = append(c.reasoning, p.Reasoning...)
		if p.Call == nil {
			continue
		}
		if p.Call.ID != "" {
			c.endCall()
			c.calls = append(c.calls, ToolCall{ID: p.Call.ID, Name: p.Call.Name})
		}
		c.arguments = append(c.arguments, p.Call.Arguments...)
	}
}

func (c *Collector) endCall() {
	if c.arguments != nil {
		c.calls[len(c.calls)-1].Arguments, c.arguments = string(c.arguments), nil
	}
}

// Result is the whole answer.
func (c *Collector) Result(a gallop.Answer, scored []gallop.Token) *Result {
	c.endCall()
	return &Result{Answer: a, Content: string(c.content), Reasoning: string(c.reasoning), Calls: c.calls, Scored: scored}
}

// Usage is what all answers took together. A prompt that is answered several times
// counts once.
func Usage(results []Result, n int) gallop.Usage {
	var sum gallop.Usage
	for i, r := range results {
		if i%n == 0 {
			sum.Prompt += r.Usage.Prompt
			sum.Cached += r.Usage.Cached
		}
		sum.Generated += r.Usage.Generated
	}
	return sum
}

// Event is one of a stream of server-sent events.
type Event struct {
	Name string // "" = none
	Data []byte
}

// JSON is an event with v as its data.
func JSON(name string, v any) Event {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err) // only types of our own, which can be marshalled
	}
	return Event{name, data}
}

// Reply writes answers in one dialect. It belongs to one request and one goroutine.
type Reply interface {
	// Start is what a stream begins with.
	Start() []Event
	// Step is what a stream says of a step.
	Step(Step) []Event
	// End is what a stream ends with.
	End([]Result) []Event
	// Fail is what a stream ends with after an error.
	Fail(*Error) []Event
	// Whole is the body of an answer that does not stream.
	Whole([]Result) any
}

// Parsed is a call that was read, and what its answers are written with.
type Parsed struct {
	Call
	Reply func(Meta) Reply
}
