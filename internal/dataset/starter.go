package dataset

import (
	"bytes"
	_ "embed" // for starter.jsonl
)

//go:embed starter.jsonl
var starter []byte

// Starter gives the built-in prompts, without answers: everyday requests in a
// dozen categories, which are their tasks, three quarters of them in English
// and one quarter in German. They are there for calibrating a model whose use
// is not known and for which no data is at hand.
func Starter() []Example {
	r := newReader(&Options{})
	if err := r.read("starter.jsonl", bytes.NewReader(starter)); err != nil {
		panic("dataset: the built-in prompts cannot be read: " + err.Error()) // tested
	}
	return r.examples()
}
