package server

import (
	"encoding/json"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/server/wire"
	"github.com/gallop-llm/gallop/internal/tools"
	"github.com/gallop-llm/gallop/llama"
)

// recognise finds the format of a chat template.
func recognise(template string) format { return chatFormat{tools.Recognise(template)} }

// chatFormat is a format of package tools.
type chatFormat struct{ *tools.Format }

func functions(list []wire.Tool) []tools.Function {
	all := make([]tools.Function, len(list))
	for i, t := range list {
		all[i] = tools.Function{Name: t.Function.Name, Parameters: t.Function.Parameters}
	}
	return all
}

func request(u ToolUse) tools.Request {
	r := tools.Request{Functions: functions(u.Tools), Parallel: u.Parallel, Opened: u.Opened}
	if u.Required {
		r.Choice = tools.Required
	}
	return r
}

func (f chatFormat) Instructions(list []wire.Tool) string {
	return f.Format.Instructions(functions(list))
}

func (f chatFormat) Calls(u ToolUse) (grammar string, lazy *llama.Lazy, err error) {
	if u.Required {
		grammar, err = f.Grammar(request(u))
		return grammar, nil, err
	}
	t, grammar, err := f.Lazy(request(u))
	if err != nil || grammar == "" {
		return "", nil, err
	}
	lazy = &llama.Lazy{Trigger: t.Text, AtStart: t.AtStart, Opened: u.Opened}
	for _, q := range t.Quiet {
		lazy.Quiet = append(lazy.Quiet, llama.Marks{Open: q[0], Close: q[1]})
	}
	return grammar, lazy, nil
}

func (f chatFormat) Document(schema json.RawMessage, opened bool) (string, error) {
	return f.Respond(schema, opened)
}

func (f chatFormat) Split(u ToolUse) Splitter { return chatSplitter{f.Parser(request(u))} }

// chatSplitter is a parser of package tools.
type chatSplitter struct{ *tools.Parser }

func (s chatSplitter) Add(text string, controls []gallop.Control) []wire.Piece {
	var list []tools.Event
	from := 0
	for _, c := range controls {
		list = append(append(list, s.Write(text[from:c.At])...), s.Control(c.Text)...)
		from = c.At
	}
	return pieces(append(list, s.Write(text[from:])...))
}

func (s chatSplitter) End(cut bool) []wire.Piece { return pieces(s.Close(cut)) }

func pieces(events []tools.Event) (list []wire.Piece) {
	for _, e := range events {
		switch e.Kind {
		case tools.Content:
			list = append(list, wire.Piece{Text: e.Text})
		case tools.Reasoning:
			list = append(list, wire.Piece{Reasoning: e.Text})
		case tools.Begin:
			list = append(list, wire.Piece{Call: &wire.CallPiece{Index: e.Call, ID: e.ID, Name: e.Name}})
		case tools.Arguments:
			list = append(list, wire.Piece{Call: &wire.CallPiece{Index: e.Call, Arguments: e.Text}})
		case tools.Broken:
			list = append(list, wire.Piece{Text: e.Text, Broken: true})
		case tools.End: // of a call, which its arguments tell too
		}
	}
	return list
}
