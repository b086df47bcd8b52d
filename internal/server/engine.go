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

// Of is an engine of the root package as the server needs it.
func Of(e *gallop.Engine) Engine { return engine{e} }

type engine struct{ *gallop.Engine }

func (e engine) Sampling() llama.Sampling { return e.Model().Sampling() }

// format is how the models of a family write what is no plain text: thoughts, and calls of
// tools.
type format interface {
	// Opens tells whether a rendered prompt ends within a thought.
	Opens(prompt string) bool
	// Instructions explain the tools to a model whose chat template does not; "" = it does.
	Instructions(tools []wire.Tool) string
	// Calls is the grammar of answers that may call tools. lazy says where in the answer it
	// begins; nil = at once.
	Calls(u ToolUse) (grammar string, lazy *llama.Lazy, err error)
	// Document is the grammar of answers that are valid against a JSON schema, thoughts in front
	// of them included. The error says which keyword it cannot express.
	Document(schema json.RawMessage, opened bool) (grammar string, err error)
	// Split tells the parts of one answer apart.
	Split(u ToolUse) Splitter
}

// ToolUse says which tools an answer may call.
type ToolUse struct {
	Tools    []wire.Tool
	Required bool // at least one is called
	Parallel bool // more than one may be called
	Opened   bool // the prompt ends within a thought
}

// Splitter tells the parts of an answer apart while it streams.
type Splitter interface {
	// Add takes what is new of the answer's text, and the control tokens within it.
	Add(text string, controls []gallop.Control) []wire.Piece
	// End gives what was held back. cut says that the model did not end the answer itself. It must
	// be called, and may be called again.
	End(cut bool) []wire.Piece
}

// plain is the splitter of answers that are text and nothing else.
type plain struct{}

func (plain) Add(text string, _ []gallop.Control) []wire.Piece {
	if text == "" {
		return nil
	}
	return []wire.Piece{{Text: text}}
}

func (plain) End(bool) []wire.Piece { return nil }
