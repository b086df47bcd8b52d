package gallop

import (
	"time"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Delta is a piece of an answer as it streams.
type Delta struct {
	Text   string     // always whole runes; "" = nothing new to read
	Tokens []Token    // that came with it, with [Request].Detail or Logprobs; what a later stop text may cut off is held back in Text, not here
	Mask   *skip.Mask // that the answer is made under from here on; nil until it is chosen
	Answer *Answer    // the whole one, with the last delta; nil before

	Controls []Control // that came with it, in their order, with [Request].Controls
}

// Control is a control token within an answer. It is no part of the answer's text.
type Control struct {
	At   int    // byte of [Delta].Text that it stands in front of; its length = behind it
	Text string // as the vocabulary has it: "[TOOL_CALLS]"
}

// Source tells what computed a token.
type Source string

// Sources of tokens.
const (
	FromPrompt    Source = "prompt"    // the prompt's own pass
	FromMask      Source = "mask"      // the model under the answer's mask
	FromWhole     Source = "whole"     // the whole model
	FromEscalated Source = "escalated" // the whole model, after the mask had left the token in doubt
	FromDraft     Source = "draft"     // drafted, and accepted by the whole model
)

// Token is a token of an answer, or of a prompt that was scored.
type Token struct {
	ID     llama.Token
	Text   string // its own bytes, which need not be whole runes
	Source Source

	// LogProb is ln of its probability, before sampling; of a prompt's first token
	// nothing is known, and it is NaN. Top are the likeliest tokens in its place, with
	// [Request].Logprobs. See [Request].Detail for what a shortlist does to it.
	LogProb float64
	Top     []Alternative
}

// Alternative is a token that could have stood in the place of another.
type Alternative struct {
	ID      llama.Token
	Text    string
	LogProb float64
}

// Finish is why an answer ended; "" = it failed.
type Finish string

// Reasons for an answer's end.
const (
	FinishStop      Finish = "stop"      // the model ended it, or one of [Request].Stop
	FinishLength    Finish = "length"    // MaxTokens, or the context is full
	FinishCancelled Finish = "cancelled" // the caller's context ended, or the engine was closed
)

// Answer is what a request gave and what it cost.
type Answer struct {
	Text    string
	Finish  Finish
	Stopped string // which of [Request].Stop ended it; "" = none
	Usage   Usage
	Plan    Plan
	Timing  Timing
	Prompt  []Token       // with [Request].PromptLogprobs
	Tokens  []llama.Token // (Usage.Generated,) the answer's, an end token included

	Forgotten int     // turns dropped from the beginning for want of room; see [Request].Forget
	Escalated int     // tokens that the mask left in doubt and the whole model decided
	Drafts    *Drafts // nil unless [Request].Lossless
	Shortlist Listed  // what the vocabulary shortlist did
	Spared    Spared  // the neurons that were left out
	Weighed   Weighed // whether the mask paid
	Threads   Threads // at the answer's end

	// WeightsRead is the share of the weights' bytes that a token needed, mean: 1 = all of
	// them, each time. Tokens that were decided again and drafts count with all that they
	// took, so it may be above 1. The first token came out of the prompt's pass and does
	// not count; 0 = there was no other. What other answers shared is not taken off.
	WeightsRead float64

	// Removed tells what the mask took out of llama.cpp's graph in the last decode.
	Removed llama.Stats
}

// Usage counts tokens.
type Usage struct {
	Prompt    int
	Cached    int // of Prompt, taken from the KV cache
	Generated int

	// Missed says in a sentence why nothing of the prompt was in the cache, "" where
	// something was.
	Missed string
}

// Plan is what is skipped for an answer, and why.
type Plan struct {
	Mask      skip.Mask    // that the answer is made under
	Prefill   skip.Prefill // how its prompt is decoded
	Escalate  float64      // escalation's threshold; 0 = none
	Depth     float64      // layers' worth of weights that is skipped for every prompt; 0 = by quality, or nothing is chosen
	Quality   float64      // share of the whole model's probability that is to be kept; 0 = the profile's, or nothing is chosen
	LayersRun float64      // of [Info].Layers; a half counts ½
	Choice    *Choice      // what the router chose; nil = it was not asked
}

// Timing is what an answer took, in the order in which it happens.
type Timing struct {
	Queued     time.Duration // until the request's turn came
	Template   time.Duration // writing the conversation in the model's format
	Tokenize   time.Duration // turning that into tokens
	Sampler    time.Duration // making the answer's sampler, and showing it the prompt's end
	Routing    time.Duration // choosing the mask, beside or after the prompt's pass
	Prefill    time.Duration // decoding what was not cached
	FirstToken time.Duration // from the request until the first token was chosen; 0 = none was
	Decode     time.Duration // generating the others

	// Waited is for how long the answer waited for the mask to be chosen: before the
	// prompt where the prefill is masked, else between the first token and the second.
	Waited time.Duration
}

// PromptSpeed is the rate of decoding the prompt, in tokens/s; 0 when all of it was
// cached, or it was not read to its end.
func (a *Answer) PromptSpeed() float64 {
	if a.Usage.Generated == 0 && a.Finish == FinishCancelled {
		return 0
	}
	return rate(a.Usage.Prompt-a.Usage.Cached, a.Timing.Prefill)
}

// Speed is the rate of generation in tokens/s. The first token comes out of the prompt's
// pass and is not counted.
func (a *Answer) Speed() float64 { return rate(a.Usage.Generated-1, a.Timing.Decode) }

// EscalatedShare is the share of tokens that the whole model decided again, 0 to 1.
func (a *Answer) EscalatedShare() float64 {
	return float64(a.Escalated) / float64(max(a.Usage.Generated-1, 1))
}

// DraftSpeedup is how much faster the answer was generated than one token at a time,
// estimated; 0 when nothing was drafted for.
func (a *Answer) DraftSpeedup() float64 {
	if a.Drafts == nil || a.Timing.Decode <= 0 {
		return 0
	}
	return a.Drafts.Plain.Seconds() / a.Timing.Decode.Seconds()
}

func rate(n int, d time.Duration) float64 {
	if n <= 0 || d <= 0 {
		return 0
	}
	return float64(n) / d.Seconds()
}

// Choice is what the router chose for a prompt, and why.
type Choice struct {
	Task    string  // whose omission set it is; "" = the whole model
	Depth   float64 // layers' worth of weights that the mask skips
	Quality float64 // predicted share of the whole model's probability per token, at most 1
	Novelty float64 // above 1: unlike the calibration prompts
	Kept    bool    // the conversation's mask stays, though this question alone had another
	Reason  string  // one sentence
}

// Listed tells what the vocabulary shortlist did for an answer.
type Listed struct {
	Size     int    // tokens with exact logits; 0 = all, from the whole output matrix
	Rows     int    // tokens of the answer that were chosen from a shortlist
	Extended int    // of these, those whose list was made longer
	Exact    int    // exact logits of all of these together
	Why      string // there was no shortlist; "" = there was one
}

// Weighed tells what was found out about the mask that an answer began with.
type Weighed struct {
	Speed  float64 // of the whole model's time for a token over that under the mask, second decodes included; 0 = not measured
	Masked int     // tokens decoded under the mask
	Whole  int     // tokens decoded by the whole model alone, to compare or because the mask did not pay
	Off    bool    // the mask did not pay in the end
}

// Threads is how many threads tokens are decoded with now, and how often that has
// changed; 0 = their number is fixed.
type Threads struct {
	Now     int
	Most    int
	Changes int
	Crowded bool // threads wait for others that other programs keep from running
}

// Drafts is what lossless drafting brought for an answer.
type Drafts struct {
	Rounds   int               // drafts that were verified
	Lengths  [17]int           // rounds by how many of their tokens were accepted
	Drafted  int               // tokens
	Accepted int               // of these
	LookedUp int               // of Drafted: were looked up
	Masks    map[skip.Mask]int // drafted tokens by mask
	Plain    time.Duration     // what generating would have taken one token at a time, estimated

	// Possible is the speed-up that the cost model predicts where the source that drafted
	// most has something to draft, at the acceptance rate seen in this answer; 0 = nothing was drafted.
	Possible float64

	// Rounding is how far a token's logits are apart at most when the token is decoded alone
	// and in a batch, as seen so far; 0 = they are equal to the bit. Where the whole model's
	// likeliest tokens are closer than that, the answer may part from the plain one.
	Rounding float64
}

// Acceptance is the share of drafted tokens that was accepted, 0 to 1.
func (d *Drafts) Acceptance() float64 { return float64(d.Accepted) / float64(max(d.Drafted, 1)) }

// TokensPerRound is how many tokens a verification gave, its own included.
func (d *Drafts) TokensPerRound() float64 {
	return float64(d.Accepted+d.Rounds) / float64(max(d.Rounds, 1))
}
