package tools_test

import (
	"fmt"

	"github.com/gallop-llm/gallop/internal/tools"
)

// An answer is taken apart while it is written.
func Example() {
	format := tools.Recognise("{{- '<tool_call>' }} …")
	request := tools.Request{Functions: []tools.Function{{Name: "weather"}}}
	parser := format.Parser(request)
	var message tools.Message
	for _, piece := range []string{"Let me see.\n<tool", "_call>\n{\"name\": \"weather\", \"argum", "ents\": {\"city\": \"Os", "lo\"}}\n</tool_call>"} {
		message.Add(parser.Write(piece)...)
	}
	message.Add(parser.Close(false)...)
	fmt.Println(format.Name, message.Content, message.Calls[0].Name, message.Calls[0].Arguments)
	// Output: hermes Let me see. weather {"city": "Oslo"}
}
