package gallop

import (
	"log/slog"
	"path/filepath"

	"github.com/gallop-llm/gallop/llama"
)

// Options says how an engine is opened. nil and zero are the defaults.
type Options struct {
	// Profile is the file to choose layers by; "" = the one beside the model or in the
	// user's cache folder, if there is one; [NoProfile] = none.
	Profile string

	Parallel int // requests that are answered at once, 1 to 128; 0 = 4
	Queue    int // requests that may wait for their turn; 0 = 64, -1 = none. More get [ErrBusy]

	// Context is the working state of the model. Its NCtx is the tokens of one request: 0 =
	// what the model was trained on, at most [DefaultContext]. NSeqMax and KVUnified are the engine's own.
	Context llama.ContextOptions

	Model llama.ModelOptions // how the model is loaded
	LoRA  []Adapter          // in use for every request

	Skip Skip // for requests that say nothing; zero = [Routed]

	// Shortlist turns the vocabulary shortlist off with -1. Otherwise it is learnt from
	// answers and, with Learn, in idle time, and kept in the user's cache folder.
	Shortlist int

	// NeuronsMemory bounds, in bytes, what the weights of kept neurons take beside the model
	// (masks such as n20%); 0 = half of the memory that is free. Answers wait where it is too little for as many at once.
	NeuronsMemory uint64

	// Learn lets the engine use idle time for what makes later answers faster. It stops
	// at once when a request comes.
	Learn bool

	// Isolate computes each request so that its text does not depend on which others are
	// answered at the same time, to the bit on CPU: prompts are decoded apart, and tokens as if
	// each were alone. It costs speed where many requests run.
	Isolate bool

	// ReleaseSkipped gives the weights that no running request needs back to the operating
	// system. Otherwise that happens only to weights that no mask needs which may be chosen.
	ReleaseSkipped bool

	// NoCosts keeps nothing of what decoding costs on this machine; it is then found out
	// each time.
	NoCosts bool

	// Cache is the folder for what is learnt of the model and of this machine; "" = the one
	// of the user's cache that all programs with this package share.
	Cache string

	// Pause, while it is on, holds all answers up: for an engine that works in the background
	// of something more urgent. nil = never.
	Pause *llama.Pause

	Logger *slog.Logger // what happens beside answers; never what is asked or answered; nil = nothing is logged
}

// cacheDir is the folder for what is learnt of one kind: in Cache, or the user's.
func (o *Options) cacheDir(name string, users func() (string, error)) (string, error) {
	if o.Cache != "" {
		return filepath.Join(o.Cache, name), nil
	}
	return users()
}

// NoProfile as [Options].Profile runs the whole model unless a request says otherwise.
const NoProfile = "off"

// Adapter is a LoRA adapter.
type Adapter struct {
	Path  string  // a GGUF file
	Scale float32 // 0 = 1
}

// Info describes an engine's model.
type Info struct {
	Path         string
	Name         string // general.name of the file, or its path's last part
	Architecture string // "llama", "qwen3": the metadata's general.architecture
	Description  string // llama.cpp's short text: "llama 1B Q4_0"
	Layers       int
	Context      int    // tokens of a request and its answer
	TrainContext int    // tokens that the model was trained on at once
	Vocab        int    // tokens
	Embd         int    // length of hidden states and embeddings
	Size         uint64 // bytes of all tensors
	Params       uint64
	Template     string // of the chat format; "" = the model completes text
	Profile      string // the file that layers are chosen by; "" = none
	Parallel     int    // requests that are answered at once
	Queue        int    // requests that may wait for their turn
}

// Stats counts what an engine has done since it was opened, and what it is doing.
type Stats struct {
	Running, Waiting   int    // requests
	Requests           uint64 // that have ended, whatever the end
	Failed, Cancelled  uint64 // of these
	PromptTokens       uint64 // of all requests
	CachedTokens       uint64 // of PromptTokens, taken from the KV cache
	Generated          uint64 // tokens
	Escalated          uint64 // of Generated, decided by the whole model again
	Drafted, Accepted  uint64 // tokens
	Decodes            uint64 // calls of llama.cpp
	PrefillSeconds     float64
	DecodeSeconds      float64
	WeightsRead        float64 // mean of [Answer].WeightsRead over tokens; 0 before any
	CacheUsed, CacheOf int     // tokens in the KV cache, and room
	Slots              []Slot  // of [Options].Parallel
}

// Slot is a place for a request that is being answered.
type Slot struct {
	Busy      bool
	Prompt    int // tokens
	Generated int
}
