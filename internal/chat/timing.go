package chat

import "time"

// Timing is what an answer took beside [Answer].Prefill, Decode and Routing, in
// the order in which it happens.
type Timing struct {
	Template   time.Duration // writing the conversation in the model's format
	Tokenize   time.Duration // turning that into tokens
	Sampler    time.Duration // making the answer's sampler, and showing it the prompt's end
	FirstToken time.Duration // from the question until the first token was chosen; 0 = none was

	// Waited is for how long the answer waited for the layers to be chosen: before
	// the prompt where the prefill is masked, else between the first token and the
	// second. 0 = that was done before the first token was there.
	Waited time.Duration
}
