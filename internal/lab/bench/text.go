package bench

import (
	"strings"

	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// text gives built-in prompts as a user would ask them, the last nPrompt tokens of that,
// and nDecode tokens that the model goes on with, drawn by the default sampling with a
// fixed seed. It leaves them in the cache.
func (e *engine) text(nPrompt, nDecode int) ([]llama.Token, error) {
	m := e.context.Model
	var said strings.Builder
	prompts, words := dataset.Starter(), 0 // a word has a token at least
	for i := 0; words < nPrompt; i++ {
		prompt := prompts[i%len(prompts)].Prompt
		said.WriteString(prompt + "\n")
		words += len(strings.Fields(prompt))
	}
	text, err := m.ApplyTemplate([]llama.Message{{Role: "user", Content: said.String()}}, true)
	if err != nil { // a base model
		text = said.String()
	}
	tokens, err := m.Vocab.Tokenize(text, true)
	if err != nil {
		return nil, err
	}
	tokens = tokens[len(tokens)-nPrompt:]
	drawing := llama.DefaultSampling()
	drawing.Seed = 1
	sampler, err := m.NewSampler(drawing)
	if err != nil {
		return nil, err
	}
	defer sampler.Close()
	if err := e.prefill(skip.Mask{}, tokens); err != nil {
		return nil, err
	}
	for pos := nPrompt; ; pos++ {
		token, err := sampler.Sample(e.context, -1)
		if err != nil {
			return nil, err
		}
		if tokens = append(tokens, token); len(tokens) == nPrompt+nDecode {
			return tokens, nil
		}
		if err := e.step(skip.Mask{}, token, pos); err != nil {
			return nil, err
		}
	}
}
