package server

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/server/anthropic"
	"github.com/gallop-llm/gallop/internal/server/llamaserver"
	"github.com/gallop-llm/gallop/internal/server/openai"
	"github.com/gallop-llm/gallop/internal/server/wire"
	"github.com/gallop-llm/gallop/llama"
)

// errNoEnd is the error of an engine that ends a stream without an answer.
var errNoEnd = errors.New("the answer's stream ended before the answer")

// handle adds an endpoint. open ones need no key.
type handle func(pattern string, d dialect, open bool, serve func(*writer, *http.Request) error)

// answers adds the endpoints that answer prompts.
func (s *Server) answers(add handle) {
	for _, e := range []struct {
		path  string
		parse func([]byte) (*wire.Parsed, error)
		fail  dialect
	}{
		{"/v1/chat/completions", openai.ParseChat, openai.Error},
		{"/chat/completions", openai.ParseChat, openai.Error},
		{"/v1/completions", openai.ParseCompletion, openai.Error},
		{"/v1/responses", openai.ParseResponse, openai.Error},
		{"/v1/messages", anthropic.ParseMessage, anthropic.Error},
		{"/completion", llamaserver.ParseCompletion, llamaserver.Error},
	} {
		add("POST "+e.path, e.fail, false, func(w *writer, r *http.Request) error {
			p, err := read(s, w, r, e.parse)
			if err != nil {
				return err
			}
			s.answer(w, r, e.fail, p)
			return nil
		})
	}
	add("POST /v1/messages/count_tokens", anthropic.Error, false, s.countTokens)
	add("POST /v1/embeddings", openai.Error, false, s.embeddings)
}

// natives adds llama-server's own endpoints.
func (s *Server) natives(add handle) {
	for _, path := range []string{"/health", "/v1/health"} {
		add("GET "+path, llamaserver.Error, true, func(w *writer, _ *http.Request) error {
			if err := s.serving(); err != nil {
				return err
			}
			return w.ok(map[string]string{"status": "ok"})
		})
	}
	add("GET /ready", llamaserver.Error, true, func(w *writer, _ *http.Request) error {
		if err := s.ready(); err != nil {
			return err
		}
		return w.ok(map[string]string{"status": "ok"})
	})
	add("GET /props", llamaserver.Error, false, s.props)
	add("GET /slots", llamaserver.Error, false, s.slots)
	add("POST /tokenize", llamaserver.Error, false, s.tokenize)
	add("POST /detokenize", llamaserver.Error, false, s.detokenize)
	add("POST /apply-template", llamaserver.Error, false, s.applyTemplate)
}

// serving tells why the server answers nothing; nil = it does.
func (s *Server) serving() error {
	switch {
	case s.ending.Load():
		return closing()
	case s.starting.Load():
		return loading()
	}
	return nil
}

// ready tells why a balancer should send new requests elsewhere; nil = it should not. A queue counts
// as full at three quarters, so that what is on its way when a balancer asks still has room.
func (s *Server) ready() error {
	if err := s.serving(); err != nil {
		return err
	}
	for _, m := range s.models.all() {
		if room := m.info.Queue; m.loaded && room > 0 && 4*m.stats.Waiting >= 3*room {
			return &wire.Error{Status: http.StatusServiceUnavailable, Code: "busy", RetryAfter: retryAfter,
				Message: fmt.Sprintf("%d requests wait for model %s, which has room for %d", m.stats.Waiting, m.Name, room)}
		}
	}
	return nil
}

// read reads a JSON body into what parse makes of it.
func read[T any](s *Server, w http.ResponseWriter, r *http.Request, parse func([]byte) (T, error)) (parsed T, err error) {
	body, err := s.readBody(w, r)
	if err != nil {
		return parsed, err
	}
	return parse(body)
}

func (s *Server) countTokens(w *writer, r *http.Request) error {
	p, err := read(s, w, r, anthropic.ParseCount)
	if err != nil {
		return err
	}
	j, err := s.open(r.Context(), p, r.Header)
	if err != nil {
		return err
	}
	defer j.release()
	n, err := j.engine.Count(j.request)
	if err != nil {
		return err
	}
	return w.ok(anthropic.WriteCount(n))
}

func (s *Server) embeddings(w *writer, r *http.Request) error {
	p, err := read(s, w, r, openai.ParseEmbedding)
	if err != nil {
		return err
	}
	model, engine, release, err := s.use(r, p.Model)
	if err != nil {
		return err
	}
	defer release()
	inputs, total := make([][]llama.Token, len(p.Inputs)), 0
	for i, in := range p.Inputs {
		if inputs[i] = in.Tokens; in.Tokens == nil {
			if inputs[i], err = engine.Tokenize(in.Text, true, false); err != nil {
				return err
			}
		}
		total += len(inputs[i])
		if most := engine.Info().Context; len(inputs[i]) > most {
			return wire.TooLong(len(inputs[i]), most)
		}
	}
	vectors, err := engine.Embed(r.Context(), inputs)
	if err != nil {
		return err
	}
	return w.ok(p.Write(model.Name, vectors, total))
}

// use gives the engine of a model by name, which stays loaded until release.
func (s *Server) use(r *http.Request, name string) (model *loadable, engine Engine, release func(), err error) {
	c := wire.Call{Model: name}
	if model, err = s.choose(&c, r.Header); err != nil {
		return nil, nil, nil, err
	}
	recordOf(r.Context()).model = model.Name
	engine, release, err = s.acquire(r.Context(), model)
	return model, engine, release, err
}

func (s *Server) listModels(w *writer, _ *http.Request) error {
	all := s.models.all()
	list := make([]openai.Model, len(all))
	for i, m := range all {
		list[i] = openai.Model{Name: m.Name, Created: m.created, Info: m.info, Loaded: m.loaded}
	}
	return w.ok(openai.WriteModels(list))
}

func (s *Server) showModel(w *writer, r *http.Request) error {
	name, _, err := wire.CutModel(r.PathValue("name"))
	if err != nil {
		return err
	}
	for _, m := range s.models.all() {
		if m.Name == name {
			return w.ok(openai.WriteModel(openai.Model{Name: m.Name, Created: m.created, Info: m.info, Loaded: m.loaded}))
		}
	}
	return &wire.Error{Status: http.StatusNotFound, Code: "model_not_found", Param: "model", Message: "there is no model " + name}
}

// asked is the model that a query names.
func (s *Server) asked(r *http.Request) (snapshot, error) {
	name, _, err := wire.CutModel(r.URL.Query().Get("model"))
	if err != nil {
		return snapshot{}, err
	}
	l, err := s.models.find(name)
	if err != nil {
		return snapshot{}, err
	}
	return s.models.one(l), nil
}

func (s *Server) props(w *writer, r *http.Request) error {
	m, err := s.asked(r)
	if err != nil {
		return err
	}
	p := &llamaserver.Props{Model: m.Name, Info: m.info, Sampling: llama.DefaultSampling(), Version: s.opts.Version}
	if m.loaded {
		p.Sampling = m.sampling
	}
	for _, m := range s.models.all() {
		p.Models = append(p.Models, llamaserver.ModelProps{Name: m.Name, Loaded: m.loaded, Layers: m.info.Layers, Context: m.info.Context, Profile: m.info.Profile != ""})
	}
	return w.ok(llamaserver.WriteProps(p))
}

func (s *Server) slots(w *writer, r *http.Request) error {
	m, err := s.asked(r)
	if err != nil {
		return err
	}
	if r.URL.Query().Get("fail_on_no_slot") == "1" && !free(m.stats.Slots) {
		return &wire.Error{Status: http.StatusServiceUnavailable, Message: "no slot available", RetryAfter: retryAfter}
	}
	return w.ok(llamaserver.WriteSlots(m.stats.Slots, m.info.Context))
}

func free(slots []gallop.Slot) bool {
	for _, s := range slots {
		if !s.Busy {
			return true
		}
	}
	return false
}

func (s *Server) tokenize(w *writer, r *http.Request) error {
	p, err := read(s, w, r, llamaserver.ParseTokenize)
	if err != nil {
		return err
	}
	_, engine, release, err := s.use(r, p.Model)
	if err != nil {
		return err
	}
	defer release()
	tokens, err := engine.Tokenize(p.Content, p.AddSpecial, p.ParseSpecial())
	if err != nil {
		return err
	}
	var piece func(llama.Token) string
	if p.Pieces {
		piece = func(t llama.Token) string { return engine.Detokenize([]llama.Token{t}) }
	}
	return w.ok(llamaserver.WriteTokens(tokens, piece))
}

func (s *Server) detokenize(w *writer, r *http.Request) error {
	p, err := read(s, w, r, llamaserver.ParseDetokenize)
	if err != nil {
		return err
	}
	_, engine, release, err := s.use(r, p.Model)
	if err != nil {
		return err
	}
	defer release()
	vocab := engine.Info().Vocab
	for _, t := range p.Tokens {
		if t < 0 || int(t) >= vocab {
			return wire.BadRequest("tokens", "%d is no token of the model, want 0 to %d", t, vocab-1)
		}
	}
	return w.ok(map[string]string{"content": engine.Detokenize(p.Tokens)})
}

func (s *Server) applyTemplate(w *writer, r *http.Request) error {
	p, err := read(s, w, r, openai.ParseChat)
	if err != nil {
		return err
	}
	_, engine, release, err := s.use(r, p.Model)
	if err != nil {
		return err
	}
	defer release()
	prompt, err := engine.Render(p.Request)
	if err != nil {
		return err
	}
	return w.ok(map[string]string{"prompt": prompt})
}
