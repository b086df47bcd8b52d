package llama

/*
#include <stdlib.h>
#include "glue.h"
*/
import "C"

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"unsafe"

	"github.com/gallop-llm/gallop/gguf"
)

// RandomSeed as [Sampling].Seed takes a new seed each time.
const RandomSeed = math.MaxUint32

// Sampling says how the next token is chosen from logits. The zero value is
// greedy: always the most likely token. Steps apply in the order of the
// fields from LogitBias to Temp, as in llama.cpp.
type Sampling struct {
	Grammar          string            // GBNF, its rule "root" is the start; "" = free text
	Lazy             *Lazy             // where Grammar begins; nil = at once
	LogitBias        map[Token]float32 // added to these tokens' logits
	RepeatPenalty    float32           // divides the logits of recent tokens; 0 or 1 = off
	FrequencyPenalty float32           // taken off a recent token's logit once per occurrence; 0 = off
	PresencePenalty  float32           // taken off every recent token's logit; 0 = off
	RepeatLastN      int               // how many tokens are recent; 0 = 64, -1 = as many as the model was trained on at once
	TopK             int               // keeps the k most likely tokens; 0 or less = all
	TopP             float32           // keeps the likeliest that reach this share together, 0 to 1; 0 or 1 = all; LeastTopP = the likeliest alone
	MinP             float32           // keeps those at least this likely against the likeliest; 0 = all
	Temp             float32           // divides the logits, 1e-6 to 100; 0 = greedy
	Seed             uint32            // of the choice; RandomSeed = a new one
}

// LeastTopP as [Sampling].TopP keeps the likeliest token alone, as 0 does in
// llama.cpp's programs; the field's own 0 leaves the step out.
const LeastTopP = math.SmallestNonzeroFloat32

// MostLastN bounds the window of the penalties: what it holds needs memory.
const MostLastN = 1 << 20

// defaultLastN is llama.cpp's window of the penalties.
const defaultLastN = 64

// DefaultSampling is what llama.cpp's own programs use.
func DefaultSampling() Sampling {
	return Sampling{RepeatPenalty: 1, RepeatLastN: defaultLastN, TopK: 40, TopP: 0.95, MinP: 0.05, Temp: 0.8, Seed: RandomSeed}
}

// readSampling is DefaultSampling with what the model's author recommends in
// the file's general.sampling.* metadata.
func readSampling(meta gguf.Metadata) Sampling {
	s := DefaultSampling()
	// Advice that no sampler can take is not the user's mistake: the defaults stay.
	advise := func(set func()) {
		before := s
		if set(); s.Check() != nil {
			s = before
		}
	}
	float := func(key string, set func(v float32)) {
		if f, err := meta.Float("general.sampling." + key); err == nil {
			advise(func() { set(float32(f)) })
		}
	}
	whole := func(key string, set func(n int)) {
		if n, err := meta.Int("general.sampling." + key); err == nil {
			advise(func() { set(int(n)) })
		}
	}
	if t, err := meta.Float("general.sampling.temp"); err == nil && t <= 0 {
		s.Temp = 0 // llama.cpp's greedy
	} else {
		float("temp", func(v float32) { s.Temp = v })
	}
	float("top_p", s.SetTopP)
	float("min_p", func(v float32) { s.MinP = v })
	float("penalty_repeat", func(v float32) { s.RepeatPenalty = v })
	whole("top_k", func(n int) { s.TopK = n })
	whole("penalty_last_n", s.SetRepeatLastN)
	return s
}

// SetTopP sets TopP from a value as llama.cpp's programs take it: 0 keeps the
// likeliest token alone.
func (s *Sampling) SetTopP(p float32) {
	if s.TopP = p; p == 0 {
		s.TopP = LeastTopP
	}
}

// SetRepeatLastN sets RepeatLastN from a value as llama.cpp's programs take it: 0
// turns the penalties off. Those are set first.
func (s *Sampling) SetRepeatLastN(n int) {
	if s.RepeatLastN = n; n == 0 {
		s.RepeatLastN, s.RepeatPenalty, s.FrequencyPenalty, s.PresencePenalty = defaultLastN, 1, 0, 0
	}
}

// Sampling gives the model's recommended sampling, [DefaultSampling] where it
// recommends nothing.
func (m *Model) Sampling() Sampling { return m.sampling }

// Sampler chooses tokens. It remembers what it chose (for penalties and
// grammar), belongs to one generation at a time, and to one goroutine.
type Sampler struct {
	model *Model
	steps C.struct_gallop_steps      // owned; without a chain it is closed
	items *C.struct_llama_token_data // (nVocab,) owned scratch; nil = plain greedy needs none

	held  *C.struct_llama_sampler // owned: a lazy grammar while it does not hold; nil = none
	wait  waiting                 // for that to change
	plain bool                    // there is no step but the grammar
	topK  C.int32_t               // of steps, without a grammar
}

// Distribution is what a sampler's steps leave of a row of logits: tokens in no
// order, and their probabilities, each above 0 and 1 together.
type Distribution struct {
	Tokens []Token
	P      []float32 // (len(Tokens),)
}

// Of is the probability of t.
func (d *Distribution) Of(t Token) float32 {
	if i := slices.Index(d.Tokens, t); i >= 0 {
		return d.P[i]
	}
	return 0
}

// NewSampler makes a sampler for a model's vocabulary. The error wraps
// [ErrGrammar] when the grammar does not parse, [ErrOption] when a value is out
// of its range.
func (m *Model) NewSampler(s Sampling) (*Sampler, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	for t := range s.LogitBias {
		if t < 0 || int(t) >= m.Vocab.Size {
			return nil, fmt.Errorf("%w: a logit bias for token %d, want 0 to %d", ErrOption, t, m.Vocab.Size-1)
		}
	}
	if err := m.retain(); err != nil {
		return nil, err
	}
	p := &Sampler{model: m}
	live.Add(1)
	nVocab := C.int32_t(m.Vocab.Size)
	if s.Grammar != "" {
		if m.Vocab.bare {
			p.Close()
			return nil, fmt.Errorf("%w: %s has no vocabulary", ErrGrammar, m.Path)
		}
		text := C.CString(s.Grammar)
		defer C.free(unsafe.Pointer(text))
		var why C.struct_gallop_text
		if p.steps.grammar = C.gallop_new_grammar(m.Vocab.ptr, text, &why); p.steps.grammar == nil {
			p.Close()
			return nil, cause(ErrGrammar, &why)
		}
		if s.Lazy != nil {
			lazy := *s.Lazy
			p.wait = newWaiting(&lazy)
			p.steps.grammar, p.held = nil, p.steps.grammar
		}
	}
	p.steps.chain = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
	plain := true
	add := func(step *C.struct_llama_sampler) {
		C.llama_sampler_chain_add(p.steps.chain, step)
		plain = false
	}
	if len(s.LogitBias) > 0 {
		bias := make([]C.struct_llama_logit_bias, 0, len(s.LogitBias))
		for t, b := range s.LogitBias {
			bias = append(bias, C.struct_llama_logit_bias{token: C.llama_token(t), bias: C.float(b)})
		}
		add(C.llama_sampler_init_logit_bias(nVocab, C.int32_t(len(bias)), &bias[0]))
	}
	if lastN := s.LookBack(); lastN > 0 {
		if s.RepeatLastN < 0 {
			lastN = min(m.NCtxTrain, MostLastN)
		}
		repeat := cmp.Or(s.RepeatPenalty, 1)
		add(C.llama_sampler_init_penalties(nVocab, C.int32_t(lastN), C.float(repeat),
			C.float(s.FrequencyPenalty), C.float(s.PresencePenalty)))
	}
	if s.Temp > 0 {
		if s.TopK > 0 {
			if plain && p.steps.grammar == nil {
				p.steps.top_k = C.int32_t(s.TopK)
				p.topK = p.steps.top_k
			}
			add(C.llama_sampler_init_top_k(C.int32_t(s.TopK)))
		}
		if s.TopP > 0 && s.TopP < 1 {
			add(C.llama_sampler_init_top_p(C.float(s.TopP), 1))
		}
		if s.MinP > 0 {
			add(C.llama_sampler_init_min_p(C.float(s.MinP), 1))
		}
		add(C.llama_sampler_init_temp(C.float(s.Temp)))
		p.steps.draw = C.llama_sampler_init_dist(C.uint32_t(s.Seed))
	}
	p.plain = plain
	if !plain || p.steps.grammar != nil || p.held != nil {
		p.items = newItems(nVocab)
	}
	return p, nil
}

// LookBack is how many tokens of what was said before a sampler can make use of:
// 0 without penalties.
func (s *Sampling) LookBack() int {
	if (s.RepeatPenalty == 0 || s.RepeatPenalty == 1) && s.FrequencyPenalty == 0 && s.PresencePenalty == 0 {
		return 0
	}
	if s.RepeatLastN < 0 {
		return MostLastN
	}
	return cmp.Or(s.RepeatLastN, defaultLastN)
}

func newItems(nVocab C.int32_t) *C.struct_llama_token_data {
	return (*C.struct_llama_token_data)(C.calloc(C.size_t(nVocab), C.sizeof_struct_llama_token_data))
}

// minTemp is the lowest temperature but 0: below it logits divided by it could
// become infinite.
const minTemp = 1e-6

// Check finds values that llama.cpp would take as something else in silence, or
// end the process over, and grammars that it could not get done with. Its errors wrap [ErrOption] and [ErrGrammar]. Only
// [Model.NewSampler] knows which tokens and grammars there can be.
func (s *Sampling) Check() error {
	for t, bias := range s.LogitBias {
		if math.IsNaN(float64(bias)) {
			return fmt.Errorf("%w: the logit bias of token %d is no number", ErrOption, t)
		}
	}
	if s.Grammar != "" {
		if err := checkGrammar(s.Grammar); err != nil {
			return err
		}
	}
	if s.Lazy != nil {
		if err := s.Lazy.check(); err != nil {
			return err
		}
	}
	outside := func(name string, v, low, high float32) error {
		if v >= low && v <= high { // false for NaN too
			return nil
		}
		return fmt.Errorf("%w: %s is %g, want %g to %g", ErrOption, name, v, low, high)
	}
	lowest := float32(minTemp)
	if s.Temp == 0 {
		lowest = 0
	}
	for _, err := range []error{
		outside("temperature", s.Temp, lowest, 100),
		outside("top-k", float32(s.TopK), math.MinInt32, math.MaxInt32),
		outside("top-p", s.TopP, 0, 1),
		outside("min-p", s.MinP, 0, 1),
		outside("repeat penalty", s.RepeatPenalty, 0, 100),
		outside("frequency penalty", s.FrequencyPenalty, -100, 100),
		outside("presence penalty", s.PresencePenalty, -100, 100),
		outside("repeat-last-n", float32(s.RepeatLastN), -1, MostLastN),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// Sample chooses a token from the logits at place i of c's last batch (-1 = the
// last output) and remembers it. The error wraps [ErrNoToken] when nothing is
// left to choose, and [ErrGrammar] when the grammar is so ambiguous that what may
// follow cannot be found in a second or so.
func (p *Sampler) Sample(c *Context, i int) (Token, error) {
	logits, err := p.logits(c, i)
	if err != nil {
		return NoToken, err
	}
	t := C.gallop_sample(&p.steps, (*C.float)(unsafe.Pointer(&logits[0])), p.scratch(), C.int32_t(len(logits)))
	if t == C.LLAMA_TOKEN_NULL {
		return NoToken, p.noToken()
	}
	p.Take(Token(t))
	return Token(t), nil
}

// scratch is room for all tokens; nil = the likeliest one is wanted.
func (p *Sampler) scratch() *C.struct_llama_token_data {
	if p.plain && p.steps.grammar == nil {
		return nil
	}
	return p.items
}

// Distribution writes into d what [Sampler.Sample] would draw from, at the same
// place; greedily that is one token. Nothing is drawn or remembered. It reuses
// d's slices. Errors are those of [Sampler.Sample].
func (p *Sampler) Distribution(c *Context, i int, d *Distribution) error {
	logits, err := p.logits(c, i)
	if err != nil {
		return err
	}
	d.Tokens, d.P = d.Tokens[:0], d.P[:0]
	row, n := (*C.float)(unsafe.Pointer(&logits[0])), C.int32_t(len(logits))
	if p.scratch() == nil {
		d.Tokens, d.P = append(d.Tokens, Token(C.gallop_sample(&p.steps, row, nil, n))), append(d.P, 1)
		return nil
	}
	left := C.gallop_distribute(&p.steps, row, p.items, n)
	if left == 0 {
		return p.noToken()
	}
	for _, item := range unsafe.Slice(p.items, left) {
		d.Tokens, d.P = append(d.Tokens, Token(item.id)), append(d.P, float32(item.p))
	}
	return nil
}

// noToken says why no token is left to choose.
func (p *Sampler) noToken() error {
	if p.steps.lost {
		return fmt.Errorf("%w: it is so ambiguous that what was said can be read in too many ways; give each alternative another beginning", ErrGrammar)
	}
	return ErrNoToken
}

func (p *Sampler) logits(c *Context, i int) ([]float32, error) {
	if p.steps.chain == nil {
		return nil, fmt.Errorf("sample: %w", ErrClosed)
	}
	logits, err := c.Logits(i)
	if err != nil {
		return nil, err
	}
	if len(logits) != p.model.Vocab.Size {
		return nil, fmt.Errorf("sample: the sampler is for another vocabulary: %d tokens, not %d", p.model.Vocab.Size, len(logits))
	}
	return logits, nil
}

// Take remembers the answer's next token, which must be one of those that
// [Sampler.Distribution] gave last.
func (p *Sampler) Take(t Token) {
	C.gallop_follow(&p.steps, C.llama_token(t))
	if p.wait.Lazy != nil && !p.wait.over {
		p.await(t)
	}
	p.Accept(t)
}

// Accept remembers a token of the prompt, so that the penalties count it.
func (p *Sampler) Accept(t Token) {
	if p.steps.chain != nil {
		C.llama_sampler_accept(p.steps.chain, C.llama_token(t))
	}
}

// Reset forgets every token, for a new generation.
func (p *Sampler) Reset() {
	for _, step := range p.owned() {
		C.llama_sampler_reset(step)
	}
	if p.wait.Lazy != nil {
		if p.steps.grammar != nil {
			p.swap()
		}
		p.wait = newWaiting(p.wait.Lazy)
	}
	p.steps.lost = false
}

// Clone copies the sampler with all it remembers.
func (p *Sampler) Clone() (*Sampler, error) {
	if p.steps.chain == nil {
		return nil, fmt.Errorf("clone sampler: %w", ErrClosed)
	}
	if err := p.model.retain(); err != nil {
		return nil, err
	}
	live.Add(1)
	q := &Sampler{model: p.model}
	if p.items != nil {
		q.items = newItems(C.int32_t(p.model.Vocab.Size))
	}
	q.copySteps(p)
	return q, nil
}

// Follow makes the sampler forget what it remembers and remember what p, of the
// same options, does.
func (q *Sampler) Follow(p *Sampler) error {
	if q.steps.chain == nil || p.steps.chain == nil {
		return fmt.Errorf("follow a sampler: %w", ErrClosed)
	}
	q.freeSteps()
	q.copySteps(p)
	return nil
}

func (q *Sampler) copySteps(p *Sampler) {
	q.wait, q.plain, q.topK = p.wait, p.plain, p.topK
	q.steps.chain, q.steps.top_k, q.steps.lost = C.llama_sampler_clone(p.steps.chain), p.steps.top_k, p.steps.lost
	if p.held != nil {
		q.held = C.llama_sampler_clone(p.held)
	}
	if p.steps.grammar != nil {
		q.steps.grammar = C.llama_sampler_clone(p.steps.grammar)
	}
	if p.steps.draw != nil {
		q.steps.draw = C.llama_sampler_clone(p.steps.draw)
	}
}

// owned lists the steps that there are.
func (p *Sampler) owned() (steps []*C.struct_llama_sampler) {
	for _, step := range []*C.struct_llama_sampler{p.steps.grammar, p.held, p.steps.chain, p.steps.draw} {
		if step != nil {
			steps = append(steps, step)
		}
	}
	return steps
}

func (p *Sampler) freeSteps() {
	for _, step := range p.owned() {
		C.llama_sampler_free(step) // a chain with its own steps
	}
	p.steps, p.held = C.struct_gallop_steps{}, nil
}

// Close frees the sampler. Further calls do nothing.
func (p *Sampler) Close() error {
	if p.model == nil {
		return nil
	}
	p.freeSteps()
	C.free(unsafe.Pointer(p.items))
	p.model.release()
	*p = Sampler{}
	live.Add(-1)
	return nil
}
