package server

import (
	"context"
	"encoding/json"
	"iter"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/server/wire"
	"github.com/gallop-llm/gallop/llama"
)

// Engine is what the server needs of a [gallop.Engine].
type Engine interface {
	Stream(ctx context.Context, r gallop.Request) iter.Seq2[gallop.Delta, error]
	Count(r gallop.Request) (tokens int, err error)
	Render(r gallop.Request) (string, error)
	Tokenize(text string, bos, special bool) ([]llama.Token, error)
	Detokenize(tokens []llama.Token) string
	Embed(ctx context.Context, inputs [][]llama.Token) ([][]float32, error)
	Sampling() llama.Sampling // what the model's author recommends
	Info() gallop.Info
	Stats() gallop.Stats // without waiting for a decode
	Close() error
}

// Schemas turns a JSON schema into a GBNF grammar of the documents that are valid against it.
// The error says which keyword it cannot express.
type Schemas func(schema json.RawMessage) (grammar string, err error)

// Tools plans calls of tools for a model.
type Tools func(ToolUse) (ToolPlan, error)

// ToolUse is what tools are planned for.
type ToolUse struct {
	Template string          // the model's chat template
	Tools    json.RawMessage // as [gallop.Request].Tools
	Choice   wire.Choice
	OneCall  bool // at most one call in an answer
}

// ToolPlan says how a model writes calls.
type ToolPlan struct {
	Grammar string          // that keeps the answer in the format; "" = none
	Split   func() Splitter // of one answer
}

// Splitter tells the parts of an answer apart while it streams.
type Splitter interface {
	// Add takes what is new of the answer's text.
	Add(text string) []wire.Piece
	// End gives what was held back.
	End() []wire.Piece
}
