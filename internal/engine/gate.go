package engine

import "context"

type gateKey struct{}

// WithGate is ctx with a gate: an answer whose context has one calls it in its own goroutine
// after each token and goes on when it returns. So a measurement lets answers of two engines
// take turns, and a machine that slows down slows down both.
func WithGate(ctx context.Context, gate func()) context.Context {
	return context.WithValue(ctx, gateKey{}, gate)
}

// GateOf is ctx's gate; nil = it has none.
func GateOf(ctx context.Context) func() {
	gate, _ := ctx.Value(gateKey{}).(func())
	return gate
}
