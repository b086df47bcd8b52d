package server

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gallop-llm/gallop/internal/schema"
	"github.com/gallop-llm/gallop/internal/server/openai"
	"github.com/gallop-llm/gallop/internal/server/wire"
)

// Options says how models are served. Zero fields are the defaults.
type Options struct {
	Models  []Model // at least one; the first answers requests that name none
	Preload bool    // load the first model at once; until then requests get 503
	Memory  uint64  // bytes that loaded models may need together, by their estimates; 0 = no bound

	Keys    []string // any of them opens the server; none = it is open to all who can reach it
	Hosts   []string // names by which it may be asked for, beside addresses and localhost
	Origins []string // of web pages that may use it, as in https://example.org, beside its own

	MaxTokens   int           // of answers whose requests name no bound; 0 = until the model ends them
	MaxBody     int64         // bytes of a request; 0 = 32 MiB
	BodyTimeout time.Duration // until a request's body is there; 0 = 30 s
	Timeout     time.Duration // of an answer; 0 = 1 hour
	WriteLimit  time.Duration // that a client may take to read what was written; 0 = 30 s
	KeepAlive   time.Duration // between comments in a stream while there is nothing to say; 0 = 10 s
	Grace       time.Duration // that running requests get when the server ends; 0 = 30 s

	Page    http.Handler // at "/", for GET; nil = none
	Version string
	Logger  *slog.Logger // a line for each request, without what was asked and answered; nil = none

	// How formats are found and schemas are turned into grammars, for tests; nil = by packages tools
	// and schema.
	format func(template string) format
	schema func(source []byte) (grammar string, err error)
}

// Server is the HTTP API of some models.
type Server struct {
	opts    Options
	keys    [][sha256.Size]byte
	hosts   []string
	log     *slog.Logger
	models  *models
	metrics *metrics
	handler http.Handler

	starting atomic.Bool // the first model is being loaded
	ending   atomic.Bool
}

// New makes a server. Call [Server.Serve], or [Server.Close] when it is not needed any more.
func New(o Options) (*Server, error) {
	if len(o.Models) == 0 {
		return nil, errors.New("there is no model to serve")
	}
	names := map[string]bool{}
	for _, m := range o.Models {
		switch {
		case m.Name == "" || strings.Contains(m.Name, "@"):
			return nil, fmt.Errorf("%q cannot be a model's name: want one without @; give another with --alias", m.Name)
		case names[m.Name]:
			return nil, fmt.Errorf("two models are called %q: give them names with --alias", m.Name)
		}
		names[m.Name] = true
	}
	o.MaxBody = cmp.Or(o.MaxBody, 32<<20)
	o.BodyTimeout = cmp.Or(o.BodyTimeout, 30*time.Second)
	o.Timeout = cmp.Or(o.Timeout, time.Hour)
	o.WriteLimit = cmp.Or(o.WriteLimit, 30*time.Second)
	o.KeepAlive = cmp.Or(o.KeepAlive, 10*time.Second)
	o.Grace = cmp.Or(o.Grace, 30*time.Second)
	if o.format == nil {
		o.format, o.schema = recognise, schema.Grammar
	}
	s := &Server{opts: o, log: o.Logger, models: newModels(o.Models, o.Memory)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	for _, k := range o.Keys {
		if k == "" {
			return nil, errors.New("an API key is empty")
		}
		s.keys = append(s.keys, sha256.Sum256([]byte(k)))
	}
	s.opts.Keys = nil
	for _, h := range o.Hosts {
		s.hosts = append(s.hosts, strings.ToLower(h))
	}
	s.starting.Store(o.Preload)
	s.metrics = newMetrics(s.models)
	s.handler = s.routes()
	return s, nil
}

// ServeHTTP answers a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// Load loads the first model, which [Options].Preload asks for. [Server.Serve] calls it.
func (s *Server) Load(ctx context.Context) error {
	_, release, err := s.models.acquire(ctx, s.models.list[0])
	if err != nil {
		return err
	}
	release()
	s.starting.Store(false)
	return nil
}

// maxHeader bounds the bytes of a request's headers.
const maxHeader = 64 << 10

// Serve serves until ctx ends or the first model cannot be loaded. Requests that run then get
// [Options].Grace to end. It closes the server and the listener.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	base, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	h := &http.Server{
		Handler: s, ReadHeaderTimeout: min(10*time.Second, s.opts.BodyTimeout), IdleTimeout: 2 * time.Minute, MaxHeaderBytes: maxHeader,
		WriteTimeout: s.opts.WriteLimit, // begins anew with each write of an answer
		BaseContext:  func(net.Listener) context.Context { return base },
		ErrorLog:     slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 2)
	go func() { failed <- h.Serve(l) }()
	if s.opts.Preload {
		go func() {
			if err := s.Load(base); err != nil {
				failed <- err
			}
		}()
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	s.ending.Store(true)
	grace, stop := context.WithTimeout(context.Background(), s.opts.Grace)
	defer stop()
	if h.Shutdown(grace) != nil {
		s.log.Warn("requests still run and are ended", "grace", s.opts.Grace)
		cut()
		last, stop := context.WithTimeout(context.Background(), s.opts.WriteLimit)
		defer stop()
		if h.Shutdown(last) != nil {
			_ = h.Close() // whose clients do not read
		}
	}
	return errors.Join(err, s.Close())
}

// Close ends running requests and closes the engines. A second Close does nothing.
func (s *Server) Close() error {
	s.ending.Store(true)
	return s.models.close()
}

// record is what the log says of a request.
type record struct {
	id                        string
	begun                     time.Time
	model                     string
	err                       error  // what it was not told
	gone                      bool   // the client was
	prompt, cached, generated int    // tokens
	missed                    string // why nothing of the prompt was cached
}

type recordKey struct{}

func recordOf(ctx context.Context) *record {
	if r, ok := ctx.Value(recordKey{}).(*record); ok {
		return r
	}
	return &record{begun: time.Now()}
}

func (r *record) add(results []wire.Result, n int) {
	u := wire.Usage(results, n)
	r.prompt, r.cached, r.generated, r.missed = u.Prompt, u.Cached, u.Generated, results[0].Usage.Missed
}

// newID makes 24 letters and digits that no one can guess.
func newID() string { return rand.Text()[:24] }

// statusWriter remembers the status.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap is for [http.ResponseController].
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// guarded is an endpoint behind the rules of guard.go.
func (s *Server) guarded(d dialect, open bool, serve func(*writer, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		sw := &statusWriter{ResponseWriter: rw}
		w := &writer{ResponseWriter: sw, timeout: s.opts.WriteLimit}
		rec := &record{id: newID(), begun: time.Now()}
		r = r.WithContext(context.WithValue(r.Context(), recordKey{}, rec))
		h := w.Header()
		h.Set("X-Request-Id", rec.id)
		h.Set("X-Content-Type-Options", "nosniff")
		defer func() {
			if p := recover(); p != nil {
				rec.err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
				if sw.status == 0 {
					status, body := d(explain(rec.err, nil, nil))
					_ = w.json(status, body)
				}
			}
			s.note(r, sw.status, rec)
		}()
		foreign, refused := s.checkOrigin(r)
		if host := s.checkHost(r.Host); host != nil {
			refused = host
		}
		if foreign {
			h.Set("Access-Control-Allow-Origin", r.Header.Get("Origin"))
			h.Set("Access-Control-Expose-Headers", "Retry-After, X-Request-Id")
			h.Add("Vary", "Origin")
		}
		if refused == nil && r.Method == http.MethodOptions {
			h.Set("Access-Control-Allow-Methods", "GET, POST")
			h.Set("Access-Control-Allow-Headers", "*, Authorization")
			w.WriteHeader(http.StatusNoContent)
			return
		}
		if refused == nil && !open {
			refused = s.checkKey(r.Header)
		}
		var err error
		if refused != nil {
			err = refused
		} else {
			err = serve(w, r)
		}
		if err != nil {
			s.fail(w, r, d, explain(err, nil, nil), err)
		}
	})
}

// note logs and counts a request.
func (s *Server) note(r *http.Request, status int, rec *record) {
	took := time.Since(rec.begun)
	if rec.gone {
		status = 499 // as proxies count clients that are gone
	}
	s.metrics.count(r.Pattern, status)
	level := slog.LevelInfo
	switch {
	case rec.err != nil:
		level = slog.LevelError
	case strings.HasSuffix(r.Pattern, "/health") || strings.HasSuffix(r.Pattern, "/ready") || strings.HasSuffix(r.Pattern, "/metrics"):
		level = slog.LevelDebug // asked for all the time
	}
	attrs := []slog.Attr{slog.String("id", rec.id), slog.String("route", r.Pattern), slog.Int("status", status), slog.Duration("took", took)}
	if rec.model != "" {
		attrs = append(attrs, slog.String("model", rec.model), slog.Int("prompt_tokens", rec.prompt), slog.Int("cached_tokens", rec.cached), slog.Int("generated_tokens", rec.generated))
	}
	if rec.missed != "" {
		attrs = append(attrs, slog.String("cache_missed", rec.missed))
	}
	if rec.err != nil {
		attrs = append(attrs, slog.String("error", rec.err.Error()))
	}
	s.log.LogAttrs(r.Context(), level, "request", attrs...)
}

// routes is all that the server answers to.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, d dialect, open bool, serve func(*writer, *http.Request) error) {
		method, path, _ := strings.Cut(pattern, " ")
		mux.Handle(pattern, s.guarded(d, open, serve))
		if method == http.MethodPost { // asked by browsers before they post from another origin
			mux.Handle("OPTIONS "+path, s.guarded(d, true, func(*writer, *http.Request) error { return nil }))
		}
	}
	s.answers(handle)
	s.natives(handle)
	handle("GET /v1/models", openai.Error, false, s.listModels)
	handle("GET /models", openai.Error, false, s.listModels)
	handle("GET /v1/models/{name...}", openai.Error, false, s.showModel)
	handle("GET /metrics", openai.Error, false, func(w *writer, r *http.Request) error {
		s.metrics.ServeHTTP(w, r)
		return nil
	})
	handle("/", openai.Error, true, func(w *writer, r *http.Request) error {
		if s.opts.Page != nil && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
			s.opts.Page.ServeHTTP(w, r)
			return nil
		}
		return &wire.Error{Status: http.StatusNotFound, Code: "not_found", Message: fmt.Sprintf("there is no %s %s", r.Method, r.URL.Path)}
	})
	return mux
}

// seconds is a duration for Retry-After.
func seconds(d time.Duration) string {
	return strconv.Itoa(max(1, int(math.Ceil(d.Seconds()))))
}
