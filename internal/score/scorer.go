package score

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Options says how a scorer works. nil and zero are the defaults.
type Options struct {
	Threads int // 0 = [llama.Model.DefaultThreads]

	// NCtx is how many tokens the KV cache holds for all sequences together; 0 =
	// [DefaultNCtx]. A case alone must fit; a full prefill is kept between calls while the
	// prompts of all cases fit.
	NCtx int

	// Sequences is how many texts are in the cache at once, 1 to 256; 0 = 128. Each
	// takes room for a row of logits in llama.cpp, and a kept prompt for one here.
	Sequences int

	// Shortlist is what masks with a vocabulary shortlist are scored with; nil = none has
	// one. Prompts, and so an answer's first token, have the whole output matrix, as in chat.
	Shortlist *llama.Shortlist

	// Pause, while it is on, makes the scorer wait, and gives up and repeats the decode
	// that is running; nil = never. What is scored may then differ in its last digits.
	Pause *llama.Pause

	// InputBytes bounds what [Scorer.Hold] keeps of layer inputs; 0 = 1 GiB.
	InputBytes int

	attention llama.ContextOptions // its types of keys and values and its kernel; tests want none that rounds
}

// DefaultNCtx is [Options].NCtx where that is 0.
const DefaultNCtx = 8192

// Defaults and bounds of [Options].
const (
	defaultSequences = 128
	maxSequences     = 256 // llama.cpp's own limit
)

// batchTokens is what a decode takes at most: llama.cpp cuts it into parts of its
// own, so more would only delay a cancellation.
const batchTokens = 2048

// groupTokens is how many tokens of cases are in the cache at once, beside kept
// prompts: one of llama.cpp's parts. All sequences share a cache, and a token
// looks through all of it for its own: on the demo model twice as much in it
// costs a quarter more time.
const groupTokens = 512

// logitBytes bounds the logits of a decode: 110 rows of a vocabulary of 150,000.
const logitBytes = 64 << 20

// defaultInputBytes bounds what [Scorer.Hold] keeps of layer inputs: 120 answers of 64
// tokens in the shape of LLaMA-3.2-1B.
const defaultInputBytes = 1 << 30

// pausedBatch is what a decode takes at most of a scorer that can be paused. It stops
// between the nodes of its graph, which take as long as their tokens, and what it had done
// is done again.
const pausedBatch = 128

// Scorer measures one model. Close it after use.
type Scorer struct {
	model *llama.Model
	ctx   *llama.Context
	batch *llama.Batch // of tokens
	fed   *llama.Batch // of layer inputs

	rows   int     // of logits in a decode at most
	places []place // of the outputs in the batch

	inputBytes int                  // that inputs may take
	inputs     map[string][]float32 // of held jobs, by their tokens; see job.inputs; nil = not kept
	keeping    bool                 // inputs are being filled, if there is room
	room       int                  // bytes left of these
	tried      bool                 // whether the model can start at them
	starts     bool                 // it can

	list   *llama.Shortlist                 // of the masks that have one; not closed here
	listed map[skip.Mask]llama.ShortlistUse // by mask

	references map[string][]distribution // at each token of the whole model's own answers, by their jobs' tokens

	// What is in the KV cache. cells counts what is promised, not only what is
	// filled: it never passes ctx.NCtx().
	free    []int              // sequences, the next to take last
	cells   int                // tokens
	kept    []*prefix          // least recently used first
	prompts map[string]*prefix // those of kept, by their tokens
	call    int                // counts the calls

	key   []byte    // of a prompt in prompts, or a job in inputs; reused
	whole []float32 // (rows of a group, nVocab) logits of the whole model, reused
}

// NewScorer makes a scorer for m. The error wraps [ErrOption], or is one of llama's.
func NewScorer(m *llama.Model, o *Options) (*Scorer, error) {
	if o == nil {
		o = &Options{}
	}
	nCtx, sequences := cmp.Or(o.NCtx, DefaultNCtx), cmp.Or(o.Sequences, defaultSequences)
	if sequences < 1 || sequences > maxSequences {
		return nil, fmt.Errorf("%w: %d sequences, want 1 to %d", ErrOption, sequences, maxSequences)
	}
	if nCtx < sequences {
		return nil, fmt.Errorf("%w: a context of %d tokens for %d sequences, want one each at least", ErrOption, nCtx, sequences)
	}
	most := batchTokens
	if o.Pause != nil {
		most = pausedBatch
	}
	c, err := m.NewContext(&llama.ContextOptions{
		NCtx: nCtx, NBatch: min(nCtx, most), NUBatch: groupTokens, NSeqMax: sequences, Threads: o.Threads, KVUnified: true, LayerInputs: true,
		KType: o.attention.KType, VType: o.attention.VType, Flash: o.attention.Flash,
	})
	if err != nil {
		return nil, err
	}
	b, err := llama.NewBatch(c.NBatch(), &llama.BatchOptions{Sequences: sequences})
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	fed, err := llama.NewBatch(min(c.NBatch(), groupTokens), &llama.BatchOptions{Sequences: sequences, Embd: m.NEmbd})
	if err != nil {
		return nil, errors.Join(err, b.Close(), c.Close())
	}
	s := &Scorer{
		model: m, ctx: c, batch: b, fed: fed, inputBytes: cmp.Or(o.InputBytes, defaultInputBytes),
		list: o.Shortlist, listed: map[skip.Mask]llama.ShortlistUse{},
	}
	if err := c.SetShortlist(o.Shortlist); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	c.PauseWith(o.Pause)
	s.rows = min(max(logitBytes/(4*m.Vocab.Size), 1), b.Cap())
	s.free = make([]int, sequences)
	s.reset()
	return s, nil
}

// Close frees the scorer's context; the model stays open. Further calls do nothing.
func (s *Scorer) Close() error {
	return errors.Join(s.batch.Close(), s.fed.Close(), s.ctx.Close())
}

// Shortlist is [Options].Shortlist.
func (s *Scorer) Shortlist() *llama.Shortlist { return s.list }
