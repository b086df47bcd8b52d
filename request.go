package gallop

import (
	"encoding/json"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Message is one turn of a conversation.
type Message = llama.Message

// Request is a conversation and how to answer it. One of Messages, Prompt and Tokens is
// what is answered; every other zero field is a default.
type Request struct {
	// Messages is the conversation, written in the model's own chat format. What its
	// messages contain never becomes a control token.
	Messages []Message

	// Continue has the answer go on with the last message, which is the assistant's and says
	// how the answer begins. [Answer] has what follows.
	Continue bool

	// Prompt is text that is continued as it is, without a chat format. Control tokens
	// written in it count as such.
	Prompt string

	// Tokens is a prompt in tokens, continued as it is.
	Tokens []llama.Token

	// Tools are the functions that the model may call, a JSON array as in OpenAI's API,
	// for models whose chat format knows them; nil = none.
	Tools json.RawMessage

	// Variables are further ones of the model's chat template, a JSON object such as
	// {"enable_thinking": false}; nil = none.
	Variables json.RawMessage

	Skip      Skip            // zero = [Options].Skip
	Sampling  *llama.Sampling // nil = what the model's author recommends
	MaxTokens int             // of the answer; 0 = until the model ends it or the context is full
	Stop      []string        // the answer ends in front of any of these texts
	IgnoreEOS bool            // the model cannot end the answer; not with a grammar, which may

	// Shortlist is how many tokens of the vocabulary get exact logits from the output
	// matrix, the others a preview of theirs: 0 = as many as were measured to be best, where
	// that pays; -1 = all. What needs exact logits, such as a grammar, has them anyway.
	Shortlist int

	// Lossless answers as the whole model would: layers are skipped for drafts only,
	// which the whole model verifies. Drafts says how they are made; nil = the defaults.
	Lossless bool
	Drafts   *DraftOptions

	// NoCache decodes all of the prompt, whatever the KV cache holds of it: for measurements.
	NoCache bool

	// Forget drops the oldest turns of Messages when they do not fit into the context,
	// which is otherwise [ErrTooLong].
	Forget bool

	// Logprobs asks for each token's log-probability and those of this many of the
	// likeliest tokens; -1 = the token's own alone; 0 = none. They are the model's own,
	// before sampling, so the whole output matrix is used.
	Logprobs int

	// Detail asks for [Delta].Tokens, which are otherwise there with Logprobs alone. Their
	// log-probabilities are those of the distribution that they were chosen from: under a
	// shortlist the logits of tokens outside it are a preview's. They cost next to nothing.
	Detail bool

	// Controls asks for [Delta].Controls: the control tokens that the model writes within
	// its answer, and that are then in no case a part of the text. Many formats of tool
	// calls and of reasoning are made of them. The token that ends the answer is none.
	Controls bool

	// PromptLogprobs asks for the same of the prompt's tokens, which are then all
	// decoded anew.
	PromptLogprobs bool

	// ScoreOnly reads the prompt and generates nothing: for PromptLogprobs, or to have it in
	// the KV cache.
	ScoreOnly bool

	// What a [Session] knows of the conversation: how many of the first messages stay when
	// turns are forgotten, and its first question, which may be forgotten; "" = this is it.
	pinned  int
	opening string
}

// DraftOptions says how lossless answers draft. The zero value is the default.
type DraftOptions struct {
	MaxDraft int  // tokens in a draft at most, 1 to 16; 0 = 16
	NoMasks  bool // drafts are only looked up in what was said before
	NoLookup bool // drafts are only made by skipping layers

	// Masks are what drafts may be made under, beside the one that [Request].Skip comes to,
	// in place of the profile's; which one wins shows while generating.
	Masks []skip.Mask

	// Fixed drafts MaxDraft tokens each time, under the first mask or, without one, looked
	// up, whether that pays or not: for measurements.
	Fixed bool
}
