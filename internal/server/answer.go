package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/server/wire"
	"github.com/gallop-llm/gallop/llama"
)

// job is a call that is about to be answered by a model's engine.
type job struct {
	*wire.Parsed
	model   *loadable
	engine  Engine
	release func()

	request  gallop.Request // of the first answer
	requests []gallop.Request
	split    func() Splitter
}

// open finds and loads the model of a call, and prepares its requests. Close it.
func (s *Server) open(ctx context.Context, p *wire.Parsed, h http.Header) (*job, error) {
	j := &job{Parsed: p}
	var err error
	if j.model, err = s.choose(&p.Call, h); err != nil {
		return nil, err
	}
	if j.engine, j.release, err = s.acquire(ctx, j.model); err != nil {
		return nil, err
	}
	recordOf(ctx).model = j.model.Name
	if err = s.prepare(j); err != nil {
		j.release()
		return nil, err
	}
	return j, nil
}

// choose finds the model of a call. The words behind its name and the headers become
// settings, where the body does not say otherwise.
func (s *Server) choose(c *wire.Call, h http.Header) (*loadable, error) {
	name, words, err := wire.CutModel(c.Model)
	if err != nil {
		return nil, err
	}
	headers, err := wire.HeaderSettings(h)
	if err != nil {
		return nil, err
	}
	c.Settings = c.Settings.Or(headers).Or(words)
	return s.models.find(name)
}

// acquire is [models.acquire] for a server that has begun.
func (s *Server) acquire(ctx context.Context, l *loadable) (Engine, func(), error) {
	if s.ending.Load() {
		return nil, nil, closing()
	}
	if s.starting.Load() {
		return nil, nil, loading()
	}
	return s.models.acquire(ctx, l)
}

// loading is the error of a server whose first model is not there yet, in llama-server's words.
func loading() *wire.Error {
	return &wire.Error{Status: http.StatusServiceUnavailable, Message: "Loading model", RetryAfter: retryAfter}
}

// prepare makes the requests of a call's answers.
func (s *Server) prepare(j *job) error {
	c, r := &j.Call, j.Request
	var err error
	if r.Skip, r.Lossless, err = c.Settings.Choice(); err != nil {
		return err
	}
	if r.MaxTokens == 0 {
		r.MaxTokens = s.opts.MaxTokens
	}
	r.Detail = r.Detail || c.Settings.WantsDetail()
	r.IgnoreEOS = c.Sampling.IgnoreEOS
	sampling, err := c.Sampling.Apply(j.engine.Sampling(), func(text string) ([]llama.Token, error) {
		return j.engine.Tokenize(text, false, false)
	})
	if err != nil {
		return err
	}
	if err := s.constrain(j, &r, &sampling); err != nil {
		return err
	}
	r.Sampling = &sampling
	j.request = r
	prompts := c.Prompts
	if prompts == nil {
		prompts = []wire.Prompt{{}}
	}
	for _, p := range prompts {
		for i := range c.N {
			one, sampling := r, sampling
			if sampling.Seed != llama.RandomSeed {
				sampling.Seed += uint32(i) // another answer each
			}
			one.Sampling, one.Prompt, one.Tokens = &sampling, p.Text, p.Tokens
			j.requests = append(j.requests, one)
		}
	}
	j.request = j.requests[0]
	return nil
}

// constrain makes the answers follow a schema, and call tools in the model's format. It
// decides how the answers are told apart into text, thoughts and calls.
func (s *Server) constrain(j *job, r *gallop.Request, sampling *llama.Sampling) (err error) {
	c := &j.Call
	j.split = func() Splitter { return plain{} }
	switch {
	case c.Schema != nil && sampling.Grammar != "":
		return wire.BadRequest("grammar", "a JSON schema and a grammar exclude each other")
	case c.Schema != nil && c.Prompts != nil:
		sampling.Grammar, err = s.opts.schema(c.Schema)
		return schemaError(err)
	case c.Prompts != nil:
		return nil
	case r.Continue && (c.Schema != nil || r.Tools != nil):
		return wire.Unsupported("messages", "to continue an answer that is begun where it has to follow a JSON schema or may call tools; end with a message of the user")
	}
	format := s.opts.format(j.engine.Info().Template)
	var use ToolUse
	if r.Tools != nil {
		if c.Schema != nil || sampling.Grammar != "" {
			return wire.Unsupported("tools", "together with a JSON schema or a grammar")
		}
		if use, err = toolUse(c); err != nil {
			return err
		}
		r.Messages = instruct(r.Messages, format.Instructions(use.Tools))
	}
	r.Controls = true // which the format's marks may be
	prompt, err := j.engine.Render(*r)
	if err != nil {
		return err
	}
	use.Opened = format.Opens(prompt)
	switch {
	case c.Schema != nil:
		sampling.Grammar, err = format.Document(c.Schema, use.Opened)
		if err != nil {
			return schemaError(err)
		}
	case use.Tools != nil:
		if sampling.Grammar, sampling.Lazy, err = format.Calls(use); err != nil {
			return wire.BadRequest("tools", "tools: %v", err)
		}
	case sampling.Grammar != "":
		return nil // the client's own, which knows of no thoughts
	}
	j.split = func() Splitter { return format.Split(use) }
	return nil
}

func schemaError(err error) error {
	if err == nil {
		return nil
	}
	return wire.BadRequest("response_format", "the JSON schema: %v", err)
}

// toolUse says which tools the answers of a call may call.
func toolUse(c *wire.Call) (use ToolUse, err error) {
	if err := json.Unmarshal(c.Request.Tools, &use.Tools); err != nil {
		return use, wire.BadRequest("tools", "tools: %v", err)
	}
	use.Required, use.Parallel = c.Choice.Mode >= wire.CallAny, !c.OneCall
	if c.Choice.Mode == wire.CallOne {
		use.Tools = slices.DeleteFunc(use.Tools, func(t wire.Tool) bool { return t.Function.Name != c.Choice.Name })
	}
	return use, nil
}

// instruct puts instructions at the end of the system prompt.
func instruct(messages []gallop.Message, instructions string) []gallop.Message {
	if instructions == "" {
		return messages
	}
	if messages[0].Role == "system" {
		messages = slices.Clone(messages)
		messages[0].Content += "\n\n" + instructions
		return messages
	}
	return append([]gallop.Message{{Role: "system", Content: instructions}}, messages...)
}

// dialect is how a client is told of errors.
type dialect func(*wire.Error) (status int, body any)

// answer answers a call.
func (s *Server) answer(w *writer, r *http.Request, d dialect, p *wire.Parsed) {
	ctx, cancel := context.WithTimeout(r.Context(), s.opts.Timeout)
	defer cancel()
	begun := recordOf(ctx).begun
	var mu sync.Mutex       // of all that is written until quiet
	var events []wire.Event // to be written
	stream := func(more []wire.Event) error {
		events = append(events, more...)
		w.begin()
		err := w.send(events)
		events = events[:0]
		return err
	}
	quiet := func() {}
	if p.Stream {
		quiet = every(s.opts.KeepAlive, &mu, func() {
			if stream(nil) != nil || w.keepAlive() != nil {
				cancel()
			}
		})
	}
	defer quiet()
	j, err := s.open(ctx, p, r.Header)
	if err != nil {
		quiet()
		s.fail(w, r, d, explain(err, nil, nil), err)
		return
	}
	defer j.release()
	reply := p.Reply(s.meta(r.Context(), j))
	if p.Stream {
		mu.Lock()
		events = reply.Start()
		if w.events {
			err = stream(nil)
		}
		mu.Unlock()
		if err != nil {
			return // the client is gone
		}
	}
	results := make([]wire.Result, len(j.requests))
	heard := make([]time.Time, len(j.requests))
	err = s.generate(ctx, j, func(step wire.Step) error {
		mu.Lock()
		defer mu.Unlock()
		s.metrics.hear(j.model.Name, &step, begun, &heard[step.Answer])
		if step.End != nil {
			results[step.Answer] = *step.End
		}
		switch {
		case !p.Stream:
		case step.End != nil && len(j.requests) == 1:
			events = append(events, reply.Step(step)...) // the stream's end follows at once
		case stream(reply.Step(step)) != nil:
			return errGone
		}
		return nil
	})
	quiet()
	switch {
	case errors.Is(err, errGone):
		return
	case err != nil:
		s.failStream(w, r, d, reply, explain(err, j.engine, failedRequest(j, err)), err)
	case p.Stream:
		_ = stream(reply.End(results)) // a client that is gone needs none
	default:
		_ = w.json(http.StatusOK, reply.Whole(results)) // likewise
	}
	recordOf(ctx).add(results, p.N)
}

// errGone is the error of an answer whose client does not take it any more.
var errGone = errors.New("the client is gone")

// every calls do in such intervals, with mu held, until stop is called.
func every(interval time.Duration, mu *sync.Mutex, do func()) (stop func()) {
	mu.Lock()
	defer mu.Unlock()
	ended := false
	var timer *time.Timer
	timer = time.AfterFunc(interval, func() {
		mu.Lock()
		defer mu.Unlock()
		if !ended {
			do()
			timer.Reset(interval)
		}
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		ended = true
		timer.Stop()
	}
}

// failedRequest is the request of a job that an error is about.
func failedRequest(j *job, err error) *gallop.Request {
	if at, ok := err.(*answerError); ok {
		return &j.requests[at.answer]
	}
	return &j.request
}

// answerError is the error of one of several answers.
type answerError struct {
	answer int
	error
}

func (e *answerError) Unwrap() error { return e.error }

// generate hands on all that comes of the answers, each in the order in which it comes. As many
// are made at once as the engine answers at once, so that one client does not fill the queue.
func (s *Server) generate(ctx context.Context, j *job, take func(wire.Step) error) error {
	if len(j.requests) == 1 { // whose steps then wake no one on their way
		return s.generateOne(ctx, j, 0, take)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(max(1, j.engine.Info().Parallel))
	for i := range j.requests {
		group.Go(func() error { return s.generateOne(ctx, j, i, take) })
	}
	return group.Wait()
}

func (s *Server) generateOne(ctx context.Context, j *job, i int, take func(wire.Step) error) error {
	split := j.split()
	defer split.End(true)
	var all wire.Collector
	var scored []gallop.Token
	for d, err := range j.engine.Stream(ctx, j.requests[i]) {
		if err != nil {
			return &answerError{i, err}
		}
		step := wire.Step{Answer: i, Pieces: split.Add(d.Text, d.Controls), Tokens: d.Tokens, Mask: d.Mask}
		if d.Answer != nil {
			ended := d.Answer.Finish == gallop.FinishStop && d.Answer.Stopped == ""
			step.Pieces = append(step.Pieces, split.End(!ended)...)
		}
		all.Add(step.Pieces)
		if !j.Stream {
			scored = append(scored, d.Tokens...)
		}
		if d.Answer != nil {
			step.End = all.Result(*d.Answer, scored)
		}
		if err := take(step); err != nil || d.Answer != nil {
			return err
		}
	}
	if ctx.Err() != nil {
		return &answerError{i, context.Cause(ctx)}
	}
	return &answerError{i, errNoEnd}
}

func (s *Server) meta(ctx context.Context, j *job) wire.Meta {
	return wire.Meta{
		ID: recordOf(ctx).id, Created: time.Now(), Model: j.model.Name, Info: j.engine.Info(), Version: s.opts.Version,
		Sampling: *j.request.Sampling, Detokenize: j.engine.Detokenize,
		PromptTokens: func() int {
			n, _ := j.engine.Count(j.request) // the answer itself will tell what is wrong with it
			return n
		},
	}
}

// fail tells a client of an error. One that is gone is told nothing.
func (s *Server) fail(w *writer, r *http.Request, d dialect, e *wire.Error, cause error) {
	s.failStream(w, r, d, nil, e, cause)
}

// failStream is fail for a request whose stream may have begun; reply is nil where nothing
// of the answer was written.
func (s *Server) failStream(w *writer, r *http.Request, d dialect, reply wire.Reply, e *wire.Error, cause error) {
	switch {
	case r.Context().Err() == nil:
	case e.Status == http.StatusRequestTimeout: // which ends the context too, but not the client
	case s.ending.Load():
		e = closing()
	default:
		recordOf(r.Context()).gone = true
		return
	}
	if e.Status == http.StatusInternalServerError {
		recordOf(r.Context()).err = cause
	}
	if w.events {
		events := []wire.Event{}
		if reply != nil {
			events = reply.Fail(e)
		} else {
			_, body := d(e)
			events = append(events, wire.JSON("error", body))
		}
		_ = w.send(events) // a client that is gone needs none
		return
	}
	status, body := d(e)
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", seconds(e.RetryAfter))
	}
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	_ = w.json(status, body)
}
