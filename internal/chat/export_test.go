package chat

import (
	"github.com/gallop-llm/gallop/internal/threads"
	"github.com/gallop-llm/gallop/llama"
)

// Cached is what the KV cache holds, as the session has it.
func (s *Session) Cached() []llama.Token { return s.cached }

// Context is the session's own.
func (s *Session) Context() *llama.Context { return s.ctx }

// SetIdleCore says whether the router runs beside the prompt.
func (s *Session) SetIdleCore(idle bool) { s.idleCore = idle }

// IsCommand tells commands from text.
func IsCommand(line string) bool { return commandLine.MatchString(line) }

// Pace makes the session choose among up to most threads.
func (s *Session) Pace(most int) { s.pacer = &pacer{Controller: *threads.New(most), batch: most} }

// Long says that tests may take minutes.
func Long() bool { return long() }

// Routing is what the session chooses by.
func (s *Session) Routing() *Routing { return s.opts.Routing }

// ForgetRouting makes the session one that was made without.
func (s *Session) ForgetRouting() { s.opts.Routing, s.fixed, s.idleCore = nil, true, false }
