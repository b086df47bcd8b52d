package schema_test

import (
	"errors"
	"fmt"

	"github.com/gallop-llm/gallop/internal/schema"
)

// A schema becomes a grammar, or an error that says what stands in the way.
func Example() {
	grammar, err := schema.Grammar([]byte(`{"type": "integer", "minimum": 1, "maximum": 12}`))
	fmt.Print(grammar, err, "\n")

	_, err = schema.Grammar([]byte(`{"type": "array", "items": {"type": "number", "multipleOf": 0.5}}`))
	var wrong *schema.Error
	fmt.Println(errors.As(err, &wrong), wrong.Keyword, wrong.Pointer)
	// Output:
	// root ::= r0
	// r0 ::= [1-9] | "1" [0-2]
	// <nil>
	// true multipleOf /items/multipleOf
}
