package llama

/*
#include <stdlib.h>
#include "glue.h"
*/
import "C"

import (
	"fmt"
	"math"
	"strings"
	"unsafe"

	"github.com/gallop-llm/gallop/internal/gguf"
)

// RandomSeed as [Sampling].Seed takes a new seed each time.
const RandomSeed = math.MaxUint32

// Sampling says how the next token is chosen from logits. The zero value is
// greedy: always the most likely token. Steps apply in the order of the
// fields from LogitBias to Temp, as in llama.cpp.
type Sampling struct {
	Grammar          string            // GBNF, its rule "root" is the start; "" = free text
	LogitBias        map[Token]float32 // added to these tokens' logits
	RepeatPenalty    float32           // divides the logits of recent tokens; 0 or 1 = off
	FrequencyPenalty float32           // taken off a recent token's logit once per occurrence; 0 = off
	PresencePenalty  float32           // taken off every recent token's logit; 0 = off
	RepeatLastN      int               // how many tokens are recent; 0 = 64
	TopK             int               // keeps the k most likely tokens; 0 = all
	TopP             float32           // keeps the likeliest that reach this share together, 0 to 1; 0 or 1 = all
	MinP             float32           // keeps those at least this likely against the likeliest; 0 = all
	Temp             float32           // divides the logits, 1e-6 to 100; 0 = greedy
	Seed             uint32            // of the choice; RandomSeed = a new one
}

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
	float := func(key string, v *float32) {
		if f, err := meta.Float("general.sampling." + key); err == nil {
			*v = float32(f)
		}
	}
	whole := func(key string, v *int) {
		if n, err := meta.Int("general.sampling." + key); err == nil {
			*v = int(n)
		}
	}
	float("temp", &s.Temp)
	float("top_p", &s.TopP)
	float("min_p", &s.MinP)
	float("penalty_repeat", &s.RepeatPenalty)
	whole("top_k", &s.TopK)
	whole("penalty_last_n", &s.RepeatLastN)
	return s
}

// Sampling gives the model's recommended sampling, [DefaultSampling] where it
// recommends nothing.
func (m *Model) Sampling() Sampling { return m.sampling }

// Sampler chooses tokens. It remembers what it chose (for penalties and
// grammar), belongs to one generation at a time, and to one goroutine.
type Sampler struct {
	model   *Model
	chain   *C.struct_llama_sampler    // owned
	grammar *C.struct_llama_sampler    // owned; nil = none
	items   *C.struct_llama_token_data // (nVocab,) owned scratch; nil = plain greedy needs none
}

// NewSampler makes a sampler for a model's vocabulary. The error wraps
// [ErrGrammar] when the grammar does not parse, [ErrOption] when a value is out
// of its range.
func (m *Model) NewSampler(s Sampling) (*Sampler, error) {
	if err := s.check(m.Vocab.Size); err != nil {
		return nil, err
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
		if p.grammar = C.gallop_new_grammar(m.Vocab.ptr, text, &why); p.grammar == nil {
			p.Close()
			return nil, cause(ErrGrammar, &why)
		}
	}
	p.chain = C.llama_sampler_chain_init(C.llama_sampler_chain_default_params())
	plain := true
	add := func(step *C.struct_llama_sampler) {
		C.llama_sampler_chain_add(p.chain, step)
		plain = false
	}
	if len(s.LogitBias) > 0 {
		bias := make([]C.struct_llama_logit_bias, 0, len(s.LogitBias))
		for t, b := range s.LogitBias {
			bias = append(bias, C.struct_llama_logit_bias{token: C.llama_token(t), bias: C.float(b)})
		}
		add(C.llama_sampler_init_logit_bias(nVocab, C.int32_t(len(bias)), &bias[0]))
	}
	if (s.RepeatPenalty != 0 && s.RepeatPenalty != 1) || s.FrequencyPenalty != 0 || s.PresencePenalty != 0 {
		lastN, repeat := s.RepeatLastN, s.RepeatPenalty
		if lastN == 0 {
			lastN = defaultLastN
		}
		if repeat == 0 {
			repeat = 1
		}
		add(C.llama_sampler_init_penalties(nVocab, C.int32_t(lastN), C.float(repeat),
			C.float(s.FrequencyPenalty), C.float(s.PresencePenalty)))
	}
	if s.Temp == 0 {
		C.llama_sampler_chain_add(p.chain, C.llama_sampler_init_greedy())
	} else {
		if s.TopK > 0 {
			add(C.llama_sampler_init_top_k(C.int32_t(s.TopK)))
		}
		if s.TopP > 0 && s.TopP < 1 {
			add(C.llama_sampler_init_top_p(C.float(s.TopP), 1))
		}
		if s.MinP > 0 {
			add(C.llama_sampler_init_min_p(C.float(s.MinP), 1))
		}
		add(C.llama_sampler_init_temp(C.float(s.Temp)))
		add(C.llama_sampler_init_dist(C.uint32_t(s.Seed)))
	}
	if !plain || p.grammar != nil {
		p.items = (*C.struct_llama_token_data)(C.calloc(C.size_t(nVocab), C.sizeof_struct_llama_token_data))
	}
	return p, nil
}

// minTemp is the lowest temperature but 0: below it logits divided by it could
// become infinite.
const minTemp = 1e-6

// maxGrammarDepth bounds the parentheses of a grammar: llama.cpp parses them by
// recursion.
const maxGrammarDepth = 1000

// check finds values that llama.cpp would take as something else in silence, or
// end the process over.
func (s *Sampling) check(nVocab int) error {
	for t, bias := range s.LogitBias {
		if t < 0 || int(t) >= nVocab {
			return fmt.Errorf("%w: a logit bias for token %d, want 0 to %d", ErrOption, t, nVocab-1)
		}
		if math.IsNaN(float64(bias)) {
			return fmt.Errorf("%w: the logit bias of token %d is no number", ErrOption, t)
		}
	}
	if strings.ContainsRune(s.Grammar, 0) {
		return fmt.Errorf("%w: it has a zero byte", ErrGrammar)
	}
	if strings.Count(s.Grammar, "(") > maxGrammarDepth {
		return fmt.Errorf("%w: it has over %d parentheses", ErrGrammar, maxGrammarDepth)
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
		outside("top-k", float32(s.TopK), 0, math.MaxInt32),
		outside("top-p", s.TopP, 0, 1),
		outside("min-p", s.MinP, 0, 1),
		outside("repeat penalty", s.RepeatPenalty, 0, 100),
		outside("frequency penalty", s.FrequencyPenalty, -100, 100),
		outside("presence penalty", s.PresencePenalty, -100, 100),
		outside("repeat-last-n", float32(s.RepeatLastN), 0, 1<<20),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

// Sample chooses a token from the logits at place i of c's last batch (-1 = the
// last output) and remembers it. The error wraps [ErrNoToken] when nothing is
// left to choose.
func (p *Sampler) Sample(c *Context, i int) (Token, error) {
	if p.chain == nil {
		return NoToken, fmt.Errorf("sample: %w", ErrClosed)
	}
	logits, err := c.Logits(i)
	if err != nil {
		return NoToken, err
	}
	if len(logits) != p.model.Vocab.Size {
		return NoToken, fmt.Errorf("sample: the sampler is for another vocabulary: %d tokens, not %d", p.model.Vocab.Size, len(logits))
	}
	t := C.gallop_sample(p.grammar, p.chain, (*C.float)(unsafe.Pointer(&logits[0])), p.items, C.int32_t(len(logits)))
	if t == C.LLAMA_TOKEN_NULL {
		return NoToken, ErrNoToken
	}
	if p.grammar != nil {
		C.llama_sampler_accept(p.grammar, t)
	}
	C.llama_sampler_accept(p.chain, t)
	return Token(t), nil
}

// Accept remembers a token of the prompt, so that the penalties count it.
func (p *Sampler) Accept(t Token) {
	if p.chain != nil {
		C.llama_sampler_accept(p.chain, C.llama_token(t))
	}
}

// Reset forgets every token, for a new generation.
func (p *Sampler) Reset() {
	if p.chain != nil {
		C.llama_sampler_reset(p.chain)
	}
	if p.grammar != nil {
		C.llama_sampler_reset(p.grammar)
	}
}

// Clone copies the sampler with all it remembers.
func (p *Sampler) Clone() (*Sampler, error) {
	if p.chain == nil {
		return nil, fmt.Errorf("clone sampler: %w", ErrClosed)
	}
	if err := p.model.retain(); err != nil {
		return nil, err
	}
	live.Add(1)
	q := &Sampler{model: p.model, chain: C.llama_sampler_clone(p.chain)}
	if p.grammar != nil {
		q.grammar = C.llama_sampler_clone(p.grammar)
	}
	if p.items != nil {
		q.items = (*C.struct_llama_token_data)(C.calloc(C.size_t(p.model.Vocab.Size), C.sizeof_struct_llama_token_data))
	}
	return q, nil
}

// Close frees the sampler. Further calls do nothing.
func (p *Sampler) Close() error {
	if p.model == nil {
		return nil
	}
	if p.chain != nil {
		C.llama_sampler_free(p.chain) // and its steps
	}
	if p.grammar != nil {
		C.llama_sampler_free(p.grammar)
	}
	C.free(unsafe.Pointer(p.items))
	p.model.release()
	*p = Sampler{}
	live.Add(-1)
	return nil
}
