package gallop

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
)

// Render writes a request's messages in the model's own format, as text. The error wraps
// [ErrRequest].
func (e *Engine) Render(r Request) (string, error) {
	if r.Messages == nil {
		return r.Prompt, nil
	}
	text, err := e.render(&r)
	return text.String(), err
}

// render writes a conversation up to where the answer begins or goes on.
func (e *Engine) render(r *Request) (llama.Rendered, error) {
	text, err := e.model.Render(llama.Conversation{Messages: r.Messages, Answer: !r.Continue, Tools: r.Tools, Variables: r.Variables})
	if err != nil {
		return text, fmt.Errorf("%w: %w", ErrRequest, err)
	}
	if !r.Continue || e.model.Template() == "" { // a base model goes on with the text as it is
		return text, nil
	}
	end := text.Len()
	for end > 0 && !text.Typed(end-1, end) { // what the template writes behind an answer
		end--
	}
	text = text.Slice(0, end)
	if !strings.HasSuffix(text.String(), strings.TrimSpace(r.Messages[len(r.Messages)-1].Content)) {
		return text, fmt.Errorf("%w: the chat template does not end with the message that is to be continued", ErrRequest)
	}
	return text, nil
}

// Count is how many tokens a request's prompt has. The error wraps [ErrRequest].
func (e *Engine) Count(r Request) (tokens int, err error) {
	var t Timing
	prompt, err := e.tokens(&r, &t)
	return len(prompt), err
}

// Plan says what would be skipped for a request, without decoding anything. Errors are as of
// [Engine.Answer].
func (e *Engine) Plan(ctx context.Context, r Request) (Plan, error) {
	if err := r.check(); err != nil {
		return Plan{}, err
	}
	if err := e.slots.begin(); err != nil {
		return Plan{}, err
	}
	defer e.slots.end()
	p, err := e.resolve(&r)
	if err != nil {
		return Plan{}, err
	}
	defer p.end(e)
	if c := e.choose(p); c != nil {
		c.make()
		if c.err != nil {
			return Plan{}, c.err
		}
		if c.drafts == nil {
			p.mask, p.choice = c.decision.Mask, choiceOf(c.decision)
		}
	}
	return e.planOf(p), ctx.Err()
}

// check refuses requests that can never be answered.
func (r *Request) check() error {
	given := 0
	for _, is := range []bool{r.Messages != nil, r.Prompt != "", r.Tokens != nil} {
		if is {
			given++
		}
	}
	empty := len(r.Messages) == 0 && strings.TrimSpace(r.Prompt) == "" && len(r.Tokens) == 0
	switch {
	case given > 1:
		return fmt.Errorf("%w: it has more than one of messages, a prompt and tokens", ErrRequest)
	case empty:
		return fmt.Errorf("%w: the prompt is empty: write something to answer", ErrRequest)
	case r.MaxTokens < 0:
		return fmt.Errorf("%w: an answer of %d tokens, want at least 1, or 0 for no bound", ErrRequest, r.MaxTokens)
	case slices.Contains(r.Stop, ""):
		return fmt.Errorf("%w: an empty text to stop at", ErrRequest)
	case r.Logprobs < -1 || r.Logprobs > mostAlternatives:
		return fmt.Errorf("%w: log-probabilities of %d tokens, want up to %d", ErrRequest, r.Logprobs, mostAlternatives)
	case r.Shortlist < -1:
		return fmt.Errorf("%w: a shortlist of %d tokens", ErrRequest, r.Shortlist)
	case r.Continue && !r.endsWithAnswer():
		return fmt.Errorf("%w: there is no text of the assistant at the end of the messages to be continued", ErrRequest)
	case r.IgnoreEOS && r.Sampling != nil && r.Sampling.Grammar != "":
		return fmt.Errorf("%w: a grammar may have to end the answer, which the model is not to", ErrRequest)
	}
	if r.Sampling != nil {
		if err := r.Sampling.Check(); err != nil {
			return fmt.Errorf("%w: %w", ErrRequest, err)
		}
	}
	if err := r.Skip.check(); err != nil {
		return err
	}
	return nil
}

// endsWithAnswer tells whether the last message is a text of the assistant.
func (r *Request) endsWithAnswer() bool {
	n := len(r.Messages)
	return n > 0 && r.Messages[n-1].Role == "assistant" && strings.TrimSpace(r.Messages[n-1].Content) != ""
}

// mostAlternatives bounds [Request].Logprobs.
const mostAlternatives = 100

// tokens turns a request into its prompt and notes what that took.
func (e *Engine) tokens(r *Request, t *Timing) (prompt []llama.Token, err error) {
	start := time.Now()
	switch {
	case r.Messages != nil:
		text, err := e.render(r)
		if err != nil {
			return nil, err
		}
		t.Template += time.Since(start)
		start = time.Now()
		prompt, err = e.model.Vocab.TokenizeText(text)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrRequest, err)
		}
	case r.Tokens != nil:
		return r.Tokens, e.checkTokens(r.Tokens)
	default:
		if prompt, err = e.model.Vocab.Tokenize(r.Prompt, true); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrRequest, err)
		}
	}
	t.Tokenize += time.Since(start)
	if len(prompt) == 0 {
		return nil, fmt.Errorf("%w: the prompt is empty: write something to answer", ErrRequest)
	}
	return prompt, nil
}

// checkTokens refuses tokens that the model does not have.
func (e *Engine) checkTokens(tokens []llama.Token) error {
	for _, t := range tokens {
		if t < 0 || int(t) >= e.model.Vocab.Size {
			return fmt.Errorf("%w: token %d, the model's are 0 to %d", ErrRequest, t, e.model.Vocab.Size-1)
		}
	}
	return nil
}

// fit turns a request into its prompt and, where it asks for that, leaves out the oldest
// turns until there is room for an answer.
func (e *Engine) fit(r *Request, a *Answer) (prompt []llama.Token, err error) {
	for {
		if prompt, err = e.tokens(r, &a.Timing); err != nil {
			return nil, err
		}
		a.Usage.Prompt = len(prompt)
		room := e.nCtx - len(prompt)
		first := min(r.pinned, len(r.Messages)) // message after those that stay
		for first < len(r.Messages) && r.Messages[first].Role == "system" {
			first++
		}
		if !r.Forget || len(r.Messages)-first < 3 {
			if room < 1 {
				return nil, fmt.Errorf("%w: %d tokens, the context holds %d; shorten it or choose a larger context", ErrTooLong, len(prompt), e.nCtx)
			}
			return prompt, nil
		}
		if room >= e.answerRoom(r) {
			return prompt, nil
		}
		r.Messages = slices.Delete(slices.Clone(r.Messages), first, first+2) // a question and its answer
		a.Forgotten += 2
	}
}

// answerRoom is how many tokens an answer should find free: what it may have at most, but
// no more than a quarter of the context.
func (e *Engine) answerRoom(r *Request) int {
	room := e.nCtx / 4
	if r.MaxTokens > 0 {
		room = min(room, r.MaxTokens)
	}
	return room
}

// sampling is how a request's tokens are chosen.
func (e *Engine) sampling(r *Request) llama.Sampling {
	if r.Sampling != nil {
		return *r.Sampling
	}
	return e.model.Sampling()
}

// sampler makes the answer's sampler, which has seen what it looks back at of the prompt.
func (e *Engine) sampler(r *Request, prompt []llama.Token) (*llama.Sampler, error) {
	o := e.sampling(r)
	if o.RepeatLastN < 0 { // the whole context
		o.RepeatLastN = min(e.nCtx, llama.MostLastN)
	}
	if r.IgnoreEOS {
		bias := maps.Clone(o.LogitBias)
		if bias == nil {
			bias = map[llama.Token]float32{}
		}
		for t := range llama.Token(e.model.Vocab.Size) {
			if e.model.Vocab.IsEnd(t) {
				bias[t] = float32(math.Inf(-1))
			}
		}
		o.LogitBias = bias
	}
	sampler, err := e.model.NewSampler(o)
	if err != nil {
		return nil, asRequestError(err)
	}
	for _, t := range prompt[max(len(prompt)-o.LookBack(), 0):] {
		sampler.Accept(t)
	}
	return sampler, nil
}

// asRequestError is err as the request's fault, where it is.
func asRequestError(err error) error {
	if errors.Is(err, llama.ErrOption) || errors.Is(err, llama.ErrGrammar) {
		return fmt.Errorf("%w: %w", ErrRequest, err)
	}
	return err
}

// question is what the router looks at: the newest question, or, where a conversation stays
// with its first choice, the first one.
func question(m *llama.Model, r *Request, first bool) string {
	switch {
	case r.Tokens != nil:
		return m.Vocab.Text(r.Tokens, false)
	case r.Messages == nil:
		return r.Prompt
	case first && r.opening != "":
		return r.opening
	}
	text := ""
	for _, msg := range r.Messages {
		if msg.Role == "user" {
			text = msg.Content
			if first {
				break
			}
		}
	}
	if text == "" {
		text = r.Messages[len(r.Messages)-1].Content
	}
	return text
}

// choiceOf is a decision as it is told.
func choiceOf(d router.Decision) *Choice {
	return &Choice{Task: d.Task, Depth: d.Depth, Quality: d.Quality, Novelty: d.Novelty, Reason: d.Reason}
}
