// Package batch answers many requests that are known beforehand, such as those of an
// evaluation.
package batch

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/gallop-llm/gallop"
)

// Answer answers requests, as many at once as the engine does. It is fastest where requests
// with the same mask and with prompts that begin alike stand together. The first error
// ends all of them.
func Answer(ctx context.Context, e *gallop.Engine, requests []gallop.Request) ([]gallop.Answer, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	answers := make([]gallop.Answer, len(requests))
	var next atomic.Int64
	var running sync.WaitGroup
	for range min(e.Info().Parallel, len(requests)) {
		running.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(requests) && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				a, err := e.Answer(ctx, requests[i])
				if err != nil {
					cancel(err)
				}
				answers[i] = a
			}
		})
	}
	running.Wait()
	if ctx.Err() != nil {
		if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
			return nil, err
		}
		return nil, ctx.Err()
	}
	return answers, nil
}
