package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/inspect"
	"github.com/gallop-llm/gallop/internal/machine"
	"github.com/gallop-llm/gallop/internal/models"
	"github.com/gallop-llm/gallop/internal/server"
	"github.com/gallop-llm/gallop/internal/server/web"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
)

// serving holds the flags of `gallop serve`: llama-server's names, and its defaults.
type serving struct {
	engineFlags
	models, aliases, keys, hosts, origins  []string
	host, profile, skip                    string
	port, parallel, queue, predict, memory int
	neurons                                int
	seed                                   int64
	temp                                   float32
	timeout, grace                         time.Duration
	learn, isolate, noPage                 bool
}

func newServeCommand() *cobra.Command {
	var s serving
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve models over HTTP: OpenAI's and Anthropic's APIs, llama-server's, and a chat page",
		Long: `Serve models over HTTP, in the APIs of OpenAI, Anthropic and llama-server, with a
chat page at /. The first -m is loaded at once, further ones when they are asked
for. Without -m there are the demo model, which answers requests that name none, and all models
that gallop models lists.

A request says in its field "gallop" what may be skipped for it; clients that cannot
send it write the model's name as in name@skip=4,6, name@quality=0.95 or name@whole.`,
		Args: noArgument,
		RunE: func(cmd *cobra.Command, _ []string) error { return s.run(cmd) },
	}
	f := cmd.Flags()
	f.StringArrayVarP(&s.models, "model", "m", nil, "model: a GGUF file, or a name as gallop models lists them; repeatable (default: the demo model and all of those)")
	f.StringArrayVar(&s.aliases, "alias", nil, "name by which clients ask for a model, in the order of -m; repeatable (default: the name that -m gives)")
	f.StringVar(&s.host, "host", "127.0.0.1", "address to listen on; any that other machines can reach needs --api-key")
	f.IntVar(&s.port, "port", 8080, "port to listen on; 0 = a free one")
	f.StringArrayVar(&s.keys, "api-key", nil, "key that requests must send; repeatable")
	f.StringArrayVar(&s.hosts, "allow-host", nil, "name by which the server may be asked for, beside addresses and localhost; repeatable")
	f.StringArrayVar(&s.origins, "allow-origin", nil, "origin of web pages that may use the server, as in https://example.org; repeatable")
	f.StringVar(&s.skip, "skip", "", `what may be left out for requests that do not say, as in 4,6,f9, depth=3, quality=0.95, or off (default: as the profile recommends)`)
	f.StringVar(&s.profile, "profile", "", "profile to route by, with one -m; off = none (default: the one beside each model or in the cache, if there is one)")
	s.engineFlags.add(f)
	f.IntVar(&s.parallel, "parallel", 4, "requests that are answered at once")
	f.IntVar(&s.queue, "queue", 64, "requests that may wait for their turn; more are refused")
	f.IntVarP(&s.predict, "n-predict", "n", -1, "tokens in an answer at most, for requests that do not say; -1 = until the model ends it")
	f.Float32Var(&s.temp, "temp", 0, "temperature for requests that do not say (default: the model's own advice)")
	f.Int64Var(&s.seed, "seed", -1, "seed for requests that do not say; -1 = a new one each time")
	f.BoolVar(&s.learn, "learn", false, "use idle time for what makes later answers faster")
	f.BoolVar(&s.isolate, "isolate", false, "let no answer depend on which others are made at the same time, to the bit; slower")
	f.IntVar(&s.memory, "models-memory", 0, "MiB that loaded models may need together; those that nobody uses make room (default: seven eighths of the machine's, or of what the container or service may have)")
	addNeuronsMemory(f, &s.neurons)
	f.DurationVar(&s.timeout, "timeout", time.Hour, "time that an answer may take")
	f.DurationVar(&s.grace, "grace", 30*time.Second, "time that running requests get when the server ends")
	f.BoolVar(&s.noPage, "no-page", false, "serve no chat page")
	f.Bool("jinja", true, "use the models' own chat templates, as is always done")
	return cmd
}

func (s *serving) run(cmd *cobra.Command) error {
	if err := server.CheckAddress(s.host, s.keys); err != nil {
		return usageError{err}
	}
	options, err := s.engineOptions()
	if err != nil {
		return err
	}
	out := newServerLog(cmd.ErrOrStderr())
	defer out.Close()
	cmd.SetErr(out)
	log := slog.New(slog.NewTextHandler(out, nil))
	options.Logger = log
	list, err := s.list(cmd, options)
	if err != nil {
		return err
	}
	o := server.Options{
		Models: list, Preload: len(s.models) > 0, Memory: uint64(s.memory) << 20, Keys: s.keys, Hosts: s.hosts, Origins: s.origins,
		MaxTokens: max(s.predict, 0), Timeout: s.timeout, Grace: s.grace, Version: version, Logger: log,
	}
	if s.host != "" {
		o.Hosts = append(o.Hosts, s.host)
	}
	if s.memory == 0 {
		_, o.Memory = machine.Memory()
		o.Memory = o.Memory / 8 * 7
	}
	if !s.noPage {
		o.Page = web.Handler()
	}
	h, err := server.New(o)
	if err != nil {
		return usageError{err}
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	l, err := s.listen()
	if err != nil {
		return errors.Join(err, h.Close())
	}
	fmt.Fprintf(out, "gallop serves on http://%s\n", l.Addr())
	return h.Serve(ctx, l)
}

// listen takes the socket that systemd has opened for the program (LISTEN_FDS), or opens the one that
// the flags name.
func (s *serving) listen() (net.Listener, error) {
	sockets, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take systemd's socket: %w", err)
	}
	if len(sockets) == 0 {
		l, err := net.Listen("tcp", net.JoinHostPort(s.host, strconv.Itoa(s.port)))
		if err != nil {
			return nil, fmt.Errorf("listen: %w; another port is chosen with --port", err)
		}
		return l, nil
	}
	if len(sockets) > 1 || sockets[0] == nil {
		return nil, fmt.Errorf("systemd passes %d sockets, want one with ListenStream", len(sockets))
	}
	if address, ok := sockets[0].Addr().(*net.TCPAddr); ok { // who may open a Unix socket, its mode says
		if err := server.CheckAddress(address.IP.String(), s.keys); err != nil {
			return nil, usageError{err}
		}
	}
	return sockets[0], nil
}

// engineOptions turns the flags into how each model's engine is opened.
func (s *serving) engineOptions() (*gallop.Options, error) {
	context, err := s.context()
	switch {
	case err != nil:
		return nil, err
	case s.parallel < 1 || s.queue < 0:
		return nil, usageError{fmt.Errorf("--parallel is %d and --queue %d, want at least 1 and 0", s.parallel, s.queue)}
	case s.predict == 0 || s.predict < -1:
		return nil, usageError{fmt.Errorf("-n is %d, want -1 or at least 1", s.predict)}
	case s.seed < -1 || s.seed >= llama.RandomSeed:
		return nil, usageError{fmt.Errorf("--seed is %d, want 0 to %d, or -1 for a new one each time", s.seed, llama.RandomSeed-1)}
	case s.memory < 0 || s.timeout <= 0 || s.grace <= 0:
		return nil, usageError{fmt.Errorf("--models-memory is %d, --timeout %v and --grace %v, want at least 0 and above 0", s.memory, s.timeout, s.grace)}
	case s.profile != "" && len(s.models) != 1:
		return nil, usageError{errors.New("--profile is for one model: name it with one -m")}
	}
	skipped, err := gallop.ParseSkip(s.skip)
	if err != nil {
		return nil, usageError{fmt.Errorf("--skip: %w", err)}
	}
	memory, err := neuronsMemory(s.neurons)
	if err != nil {
		return nil, err
	}
	return &gallop.Options{
		Profile: s.profile, Parallel: s.parallel, Queue: cmp.Or(s.queue, -1), Skip: skipped, Learn: s.learn, Isolate: s.isolate, NeuronsMemory: memory,
		Context: context, Model: *s.loading(),
	}, nil
}

// list names the models. Only their files' headers are read.
func (s *serving) list(cmd *cobra.Command, o *gallop.Options) (list []server.Model, err error) {
	if len(s.aliases) > len(s.models) {
		return nil, usageError{fmt.Errorf("there are %d --alias and %d -m: each names a model of -m", len(s.aliases), len(s.models))}
	}
	for i, name := range s.models {
		path, err := modelPath(cmd, name)
		if err != nil {
			return nil, err
		}
		name = strings.TrimPrefix(name, hubPrefix)
		if path == name {
			name = strings.TrimSuffix(filepath.Base(path), ".gguf")
		}
		if i < len(s.aliases) {
			name = s.aliases[i]
		}
		m, err := s.model(cmd, name, path, o)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	if len(s.models) > 0 {
		return list, nil
	}
	path, err := demo.Path()
	if err != nil {
		return nil, err
	}
	first, err := s.model(cmd, demoName, path, o)
	if err != nil {
		return nil, err
	}
	list = append(list, first) // of requests that name no model
	known := map[string]bool{demoName: true}
	for _, found := range models.List() {
		if known[found.Name] || strings.Contains(found.Name, "@") {
			continue
		}
		m, err := s.model(cmd, found.Name, found.Path, o)
		if err != nil { // it is no use to a client, but others are
			fmt.Fprintf(cmd.ErrOrStderr(), "gallop: leaves out %s: %v\n", found.Name, err)
			continue
		}
		known[found.Name] = true
		list = append(list, m)
	}
	return list, nil
}

// demoName is what the demo model is called.
const demoName = "gallop-demo"

// model is one to serve.
func (s *serving) model(cmd *cobra.Command, name, path string, o *gallop.Options) (server.Model, error) {
	file, err := inspect.Read(path)
	switch {
	case err != nil:
		return server.Model{}, err
	case file.NoText != "":
		return server.Model{}, errors.New(file.NoText)
	}
	profile, _ := router.Find(path)
	info := gallop.Info{
		Path: path, Name: file.Name, Architecture: file.Architecture, Layers: len(file.Layers), TrainContext: int(file.ContextLength),
		Context: cmp.Or(s.ctx, min(int(file.ContextLength), gallop.DefaultContext)), Vocab: file.Vocabulary, Embd: int(file.EmbeddingWidth),
		Size: file.TensorBytes, Params: file.Parameters, Template: file.ChatTemplate, Profile: profile, Parallel: s.parallel,
	}
	open := func(ctx context.Context) (server.Engine, error) {
		if err := settleServed(ctx, cmd, path, o); err != nil {
			return nil, err
		}
		e, err := gallop.Open(ctx, path, o)
		if err != nil {
			return nil, err
		}
		return advised{server.Of(e), func(a *llama.Sampling) {
			if given(cmd, "temp") {
				a.Temp = s.temp
			}
			if s.seed >= 0 {
				a.Seed = uint32(s.seed)
			}
		}}, nil
	}
	return server.Model{Name: name, Info: info, Memory: file.TensorBytes + file.CacheBytes*uint64(info.Context*s.parallel), Open: open}, nil
}

// settleServed is [settleProfile] of a model that is about to be opened.
func settleServed(ctx context.Context, cmd *cobra.Command, path string, o *gallop.Options) error {
	if o.Profile != "" {
		return nil
	}
	if p, _, err := travelled(path); p == nil {
		return err
	}
	loading := o.Model // which other models have too
	m, err := openModel(ctx, cmd, path, &loading)
	if err != nil {
		return err
	}
	return errors.Join(settleProfile(ctx, cmd, m, o.Context.Threads), m.Close())
}

// advised is an engine with other advice for sampling than its model's author's.
type advised struct {
	server.Engine
	set func(*llama.Sampling)
}

func (a advised) Sampling() llama.Sampling {
	s := a.Engine.Sampling()
	a.set(&s)
	return s
}
