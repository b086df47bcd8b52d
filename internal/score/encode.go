package score

import (
	"fmt"
	"strings"

	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/template"
	"github.com/gallop-llm/gallop/llama"
)

// End is the token that ends an answer in a chat.
func End(m *llama.Model) llama.Token {
	if m.Vocab.EOT != llama.NoToken {
		return m.Vocab.EOT
	}
	return m.Vocab.EOS
}

// Encode turns examples into tokens: conversations through the model's chat
// template, with the end of the turn as the last token of a free answer, or as
// text that goes on where the model has no template; plain text as it is, from its first token on. Examples without an answer give cases without one. Errors name
// the example's file and line; they wrap [ErrTooLong] for more tokens than the
// model was trained on, or than a [Scorer] holds, and [ErrEmpty].
func Encode(m *llama.Model, examples []dataset.Example) ([]Case, error) {
	cases := make([]Case, len(examples))
	for i, e := range examples {
		c, err := encode(m, e)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.Where, err)
		}
		cases[i] = c
	}
	return cases, nil
}

func encode(m *llama.Model, e dataset.Example) (Case, error) {
	c := Case{Right: e.Right, Task: e.Task, Text: e.Text}
	if e.Text {
		tokens, err := m.Vocab.Tokenize(e.Prompt, true)
		if err != nil {
			return c, err
		}
		if len(tokens) < 2 {
			return c, fmt.Errorf("%w: a text of %d tokens, want at least 2", ErrEmpty, len(tokens))
		}
		c.Prompt, c.Answers = tokens[:1], [][]llama.Token{tokens[1:]}
		return c, checkLength(m, len(tokens))
	}
	rendered := template.Own(e.Prompt)
	plain := e.Plain || m.Template() == "" // a base model ends no turns
	if !e.Plain {
		messages := e.Messages
		if messages == nil {
			messages = []llama.Message{{Role: "user", Content: e.Prompt}}
		}
		var err error
		if rendered, err = m.Render(llama.Conversation{Messages: messages, Answer: true}); err != nil {
			return c, err
		}
	}
	var err error
	if c.Prompt, err = m.Vocab.TokenizeText(rendered); err != nil {
		return c, err
	}
	if len(c.Prompt) == 0 {
		return c, fmt.Errorf("%w: the prompt has no tokens", ErrEmpty)
	}
	text := rendered.String()
	answers := e.Choices
	if e.Answer != "" {
		answers = []string{e.Answer}
	}
	for _, a := range answers {
		if plain && !e.Plain && !strings.HasSuffix(text, "\n") && !strings.HasPrefix(a, " ") {
			a = " " + a // as plain answers begin
		}
		tokens, err := continuation(m, plain, text, c.Prompt, a)
		if err != nil {
			return c, err
		}
		if e.Choices == nil && !plain {
			tokens = append(tokens, End(m))
		}
		if len(tokens) == 0 {
			return c, fmt.Errorf("%w: the answer %q has no tokens", ErrEmpty, a)
		}
		c.Answers = append(c.Answers, tokens)
		if err := checkLength(m, len(c.Prompt)+len(tokens)); err != nil {
			return c, err
		}
		c.AnswerBytes = append(c.AnswerBytes, len(strings.TrimPrefix(a, " ")))
	}
	return c, nil
}

// checkLength refuses more tokens than there is room for.
func checkLength(m *llama.Model, tokens int) error {
	if most := min(m.NCtxTrain, DefaultNCtx); tokens > most {
		return fmt.Errorf("%w: it has %d tokens, there is room for %d; shorten it, or cut a text into several lines", ErrTooLong, tokens, most)
	}
	return nil
}

// continuation is the tokens of an answer. Behind plain text it is tokenised
// together with the prompt, as lm-evaluation-harness does.
func continuation(m *llama.Model, plain bool, text string, prompt []llama.Token, answer string) ([]llama.Token, error) {
	if !plain {
		return m.Vocab.Tokenize(answer, false)
	}
	whole, err := m.Vocab.Tokenize(text+answer, true)
	if err != nil || len(whole) <= len(prompt) {
		return nil, err
	}
	return whole[len(prompt):], nil
}
