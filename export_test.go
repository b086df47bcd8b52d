package gallop

import (
	"context"

	"github.com/gallop-llm/gallop/internal/costs"
	"github.com/gallop-llm/gallop/internal/shortlist"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
)

// Do lets do look at the engine's context between two decodes.
func (e *Engine) Do(do func(c *llama.Context)) error { return e.loop.Do(do) }

// SetIdleCore says whether the router runs beside the prompt.
func (e *Engine) SetIdleCore(idle bool) { e.idleCore = idle }

// UseProfile makes the engine choose by a profile that is in no file.
func (e *Engine) UseProfile(p *router.Profile) { e.profile = &sharedProfile{p, "made up", 1} }

// Learner is that of the vocabulary shortlist.
func (e *Engine) Learner() *shortlist.Learner { return e.learner }

// Weigher is what weighs masks; no answer may run.
func (e *Engine) Weigher() *costs.Weigher { return &e.weigher }

// CostsPath is where the engine keeps what it learns of the machine.
func (e *Engine) CostsPath() string { return e.costsPath }

// Logprobs is what an answer tells of its tokens.
func (e *Engine) Logprobs(logits []float32, t llama.Token, n int) (own float64, top []Alternative) {
	return e.logprobs(logits, t, n)
}

// AnswerTo answers and gives emit the pieces, in the answer's own goroutine.
func (e *Engine) AnswerTo(ctx context.Context, r Request, emit func(Delta)) (Answer, error) {
	return e.answer(ctx, r, emit)
}
