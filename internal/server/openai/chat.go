package openai

import (
	"strings"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/server/wire"
)

// head is what all objects of an answer begin with.
type head struct {
	ID          string `json:"id"`
	Object      string `json:"object"`
	Created     int64  `json:"created"`
	Model       string `json:"model"`
	Fingerprint string `json:"system_fingerprint"`

	meta wire.Meta
}

func newHead(prefix string, m wire.Meta) head {
	return head{ID: prefix + m.ID, Created: m.Created.Unix(), Model: m.Model, Fingerprint: "gallop-" + m.Version, meta: m}
}

func (h head) as(object string) head {
	h.Object = object
	return h
}

type usage struct {
	Prompt     int           `json:"prompt_tokens"`
	Completion int           `json:"completion_tokens"`
	Total      int           `json:"total_tokens"`
	Details    *usageDetails `json:"prompt_tokens_details,omitempty"`
}

type usageDetails struct {
	Cached int `json:"cached_tokens"`
}

func newUsage(results []wire.Result, n int) *usage {
	u := wire.Usage(results, n)
	return &usage{u.Prompt, u.Generated, u.Prompt + u.Generated, &usageDetails{u.Cached}}
}

func finishReason(r *wire.Result) *string {
	reason := string(r.Finish)
	if r.Finish == gallop.FinishStop && r.Called() {
		reason = "tool_calls"
	}
	return &reason
}

// chatReply writes chat completions.
type chatReply struct {
	head
	call    *wire.Call
	usage   bool         // a stream ends with the usage
	started map[int]bool // answers whose first chunk is written
}

type chatObject struct {
	head
	Choices []chatChoice  `json:"choices"`
	Usage   *usage        `json:"usage,omitempty"`
	Timings *wire.Timings `json:"timings,omitempty"`
	Gallop  any           `json:"gallop,omitempty"`
}

type chatChoice struct {
	Index    int           `json:"index"`
	Message  *wholeMessage `json:"message,omitempty"`
	Delta    *chatMessage  `json:"delta,omitempty"`
	Logprobs *chatLogprobs `json:"logprobs"`
	Finish   *string       `json:"finish_reason"`
	Gallop   any           `json:"gallop,omitempty"`
}

type chatMessage struct {
	Role      string     `json:"role,omitempty"`
	Content   *string    `json:"content,omitempty"`
	Reasoning string     `json:"reasoning_content,omitempty"`
	ToolCalls []chatCall `json:"tool_calls,omitempty"`
}

// wholeMessage has a content of null where tools are called instead.
type wholeMessage struct {
	Role      string     `json:"role"`
	Content   *string    `json:"content"`
	Reasoning string     `json:"reasoning_content,omitempty"`
	ToolCalls []chatCall `json:"tool_calls,omitempty"`
}

type chatCall struct {
	Index    *int         `json:"index,omitempty"` // in streams
	ID       string       `json:"id,omitempty"`
	Type     string       `json:"type,omitempty"`
	Function chatFunction `json:"function"`
}

type chatFunction struct {
	Name      string `json:"name,omitempty"`
	Arguments string `json:"arguments"`
}

type chatLogprobs struct {
	Content []chatLogprob `json:"content"`
}

type chatLogprob struct {
	Token   string        `json:"token"`
	LogProb *float64      `json:"logprob"`
	Bytes   []int         `json:"bytes"`
	Top     []chatLogprob `json:"top_logprobs,omitzero"`
}

func (r *chatReply) logprobs(tokens []gallop.Token) *chatLogprobs {
	if r.call.Request.Logprobs == 0 {
		return nil
	}
	list := make([]chatLogprob, len(tokens))
	for i, t := range tokens {
		list[i] = newLogprob(t.Text, t.LogProb)
		list[i].Top = make([]chatLogprob, len(t.Top))
		for j, a := range t.Top {
			list[i].Top[j] = newLogprob(a.Text, a.LogProb)
		}
	}
	return &chatLogprobs{list}
}

func newLogprob(text string, p float64) chatLogprob {
	l := chatLogprob{Token: strings.ToValidUTF8(text, "\uFFFD"), LogProb: wire.Number(p), Bytes: make([]int, len(text))}
	for i := range len(text) {
		l.Bytes[i] = int(text[i])
	}
	return l
}

func (r *chatReply) Start() []wire.Event {
	r.started = map[int]bool{}
	r.head = r.as("chat.completion.chunk")
	return nil
}

func (r *chatReply) Step(s wire.Step) (events []wire.Event) {
	send := func(c chatChoice, end *wire.Result, gallop any) {
		c.Index = s.Answer
		o := chatObject{head: r.head, Choices: []chatChoice{c}, Gallop: gallop}
		if end != nil {
			timings := wire.NewTimings(&end.Answer)
			o.Timings = &timings
		}
		events = append(events, wire.JSON("", o))
	}
	if !r.started[s.Answer] {
		r.started[s.Answer] = true
		send(chatChoice{Delta: &chatMessage{Role: "assistant", Content: new(string)}}, nil, nil)
	}
	detail := r.call.Settings.WantsDetail()
	if d := chatDelta(s.Pieces); d != nil || len(s.Tokens) > 0 && (detail || r.call.Request.Logprobs != 0) {
		if d == nil {
			d = &chatMessage{}
		}
		var told any
		if detail {
			told = wire.NewChunk(s)
		}
		send(chatChoice{Delta: d, Logprobs: r.logprobs(s.Tokens)}, nil, told)
	}
	if s.End != nil {
		send(chatChoice{Delta: &chatMessage{}, Finish: finishReason(s.End)}, s.End, wire.NewReport(s.End, &r.meta.Info, false))
	}
	return events
}

// chatDelta is what is new of a message; nil = nothing.
func chatDelta(pieces []wire.Piece) *chatMessage {
	if len(pieces) == 0 {
		return nil
	}
	d := &chatMessage{}
	content := ""
	for _, p := range pieces {
		content += p.Text
		d.Reasoning += p.Reasoning
		if c := p.Call; c != nil {
			call := chatCall{Index: &c.Index, ID: c.ID, Function: chatFunction{c.Name, c.Arguments}}
			if c.ID != "" {
				call.Type = "function"
			}
			d.ToolCalls = append(d.ToolCalls, call)
		}
	}
	if content != "" {
		d.Content = &content
	}
	return d
}

func (r *chatReply) End(results []wire.Result) (events []wire.Event) {
	if r.usage {
		events = append(events, wire.JSON("", chatObject{head: r.head, Choices: []chatChoice{}, Usage: newUsage(results, r.call.N)}))
	}
	return append(events, done)
}

// done ends streams.
var done = wire.Event{Data: []byte("[DONE]")}

func (r *chatReply) Fail(e *wire.Error) []wire.Event { return fail(e) }

func fail(e *wire.Error) []wire.Event {
	_, body := Error(e)
	return []wire.Event{wire.JSON("", body), done}
}

func (r *chatReply) Whole(results []wire.Result) any {
	o := chatObject{head: r.as("chat.completion"), Choices: make([]chatChoice, len(results)), Usage: newUsage(results, r.call.N)}
	for i := range results {
		result := &results[i]
		m := &wholeMessage{Role: "assistant", Content: &result.Content, Reasoning: result.Reasoning}
		if result.Content == "" && len(result.Calls) > 0 {
			m.Content = nil
		}
		for _, c := range result.Calls {
			m.ToolCalls = append(m.ToolCalls, chatCall{ID: c.ID, Type: "function", Function: chatFunction{c.Name, c.Arguments}})
		}
		o.Choices[i] = chatChoice{Index: i, Message: m, Logprobs: r.logprobs(result.Scored), Finish: finishReason(result)}
		report := wire.NewReport(result, &r.meta.Info, r.call.Settings.WantsDetail())
		if i > 0 {
			o.Choices[i].Gallop = report // each answer has a plan of its own
			continue
		}
		o.Gallop = report
		timings := wire.NewTimings(&result.Answer)
		o.Timings = &timings
	}
	return o
}
