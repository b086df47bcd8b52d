package score

import (
	"cmp"
	"context"
	"fmt"
	"math"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Generation says how [Scorer.Generate] answers. Zero fields are the defaults.
type Generation struct {
	Mask    skip.Mask
	Masks   []skip.Mask // (len(prompts),) one a prompt, in place of Mask; nil = Mask for all
	Prefill skip.Prefill

	MaxTokens int // of an answer; 0 = 64

	// Escalate is the confidence cascade's threshold: a token whose probability
	// under the mask is below it is chosen by the whole model, which decodes the
	// token before it again and replaces its keys and values. 0 = never, above 1 =
	// always. It needs masks that keep every attention sublayer, and a full prefill.
	Escalate float64
}

// Generated is an answer.
type Generated struct {
	Tokens    []llama.Token // without the one that ends it
	Ended     bool          // by the model, not by MaxTokens
	Steps     int           // tokens decoded under the mask after the prompt: one for each token chosen but the first
	Escalated int           // of Steps, decoded again by the whole model
}

// defaultMaxTokens is enough for a short answer.
const defaultMaxTokens = 64

// generateWidth is how many answers are made at once at most: on the demo model
// 16 to 32 are fastest, as all look through one cache.
const generateWidth = 32

// refillShare is the share of generateWidth that must be free before new
// prompts are taken: a decode of a few prompts costs nearly as much as one of many.
const refillShare = 0.25

// slot is an answer in the making.
type slot struct {
	number int // of the prompt
	seq    []int
	pos    int         // of next
	next   llama.Token // to be decoded
	cells  int         // promised
}

// Generate answers the prompts, always with the likeliest token, many at once.
// Prompts with different masks share no decode. The error wraps [ErrEmpty],
// [ErrTooLong], [ErrOption], [ErrEscalate], [skip.ErrMask], ctx's own, or
// one of llama's.
func (s *Scorer) Generate(ctx context.Context, prompts [][]llama.Token, o Generation) (answers []Generated, err error) {
	if s.ctx.NCtx() == 0 {
		return nil, fmt.Errorf("generate: %w", llama.ErrClosed)
	}
	o.MaxTokens = cmp.Or(o.MaxTokens, defaultMaxTokens)
	if err := s.checkGeneration(prompts, &o); err != nil {
		return nil, err
	}
	var masks []skip.Mask // in order of appearance
	queues := map[skip.Mask][]int{}
	for i := range prompts {
		mask := o.mask(i)
		if queues[mask] == nil {
			masks = append(masks, mask)
		}
		queues[mask] = append(queues[mask], i)
	}
	answers = make([]Generated, len(prompts))
	defer s.ctx.AbortOn(ctx)()
	defer func() { err = s.cleanUp(ctx, err) }()
	if err := s.forget(); err != nil {
		return nil, err
	}
	for _, mask := range masks {
		if err := s.generate(prompts, queues[mask], mask, &o, answers); err != nil {
			return nil, fmt.Errorf("generate under the mask %q: %w", mask, err)
		}
	}
	return answers, nil
}

// mask is what prompt i is answered under.
func (o *Generation) mask(i int) skip.Mask {
	if o.Masks != nil {
		return o.Masks[i]
	}
	return o.Mask
}

func (s *Scorer) checkGeneration(prompts [][]llama.Token, o *Generation) error {
	if o.Masks != nil && len(o.Masks) != len(prompts) {
		return fmt.Errorf("%w: %d masks for %d prompts", ErrOption, len(o.Masks), len(prompts))
	}
	if o.MaxTokens < 0 {
		return fmt.Errorf("%w: at most %d tokens", ErrOption, o.MaxTokens)
	}
	if o.Escalate > 0 && o.Prefill != skip.FullPrefill {
		return fmt.Errorf("%w: the prompts have to be decoded whole, with a full prefill", ErrEscalate)
	}
	for i, prompt := range prompts {
		mask := o.mask(i)
		if err := mask.Check(s.model.NLayer); err != nil {
			return err
		}
		if o.Escalate > 0 && !mask.KeepsAttention() {
			return fmt.Errorf("%w: the mask %s skips attention, whose keys and values the whole model would miss", ErrEscalate, mask)
		}
		if len(prompt) == 0 {
			return fmt.Errorf("%w: prompt %d has no tokens", ErrEmpty, i)
		}
		if n := s.ctx.NCtx(); cellsOf(prompt, o) > n {
			return fmt.Errorf("%w: prompt %d of %d tokens and an answer of %d, the context holds %d",
				ErrTooLong, i, len(prompt), o.MaxTokens, n)
		}
	}
	return nil
}

// cellsOf is the room that a prompt and its answer may take; the answer's last
// token is not decoded.
func cellsOf(prompt []llama.Token, o *Generation) int { return len(prompt) + o.MaxTokens - 1 }

// generate answers the prompts in queue, all under one mask. When enough answers
// have ended, the next prompts take their sequences.
func (s *Scorer) generate(prompts [][]llama.Token, queue []int, mask skip.Mask, o *Generation, answers []Generated) error {
	width := min(len(s.free), generateWidth)
	enough := int(math.Ceil(refillShare * float64(width)))
	var running []slot
	for len(queue) > 0 || len(running) > 0 {
		from := len(running)
		if from == 0 || width-from >= enough {
			for len(queue) > 0 && len(running) < width && s.cells+cellsOf(prompts[queue[0]], o) <= s.ctx.NCtx() {
				fresh := slot{number: queue[0], seq: []int{s.takeSequence()}, pos: len(prompts[queue[0]]) - 1, cells: cellsOf(prompts[queue[0]], o)}
				s.cells += fresh.cells
				running, queue = append(running, fresh), queue[1:]
			}
		}
		var err error
		if from < len(running) {
			err = s.prefill(prompts, running[from:], o.Prefill.Mask(mask).WithShortlist(0), answers)
		} else {
			err = s.step(running, mask, o.Escalate, answers)
		}
		if err != nil {
			return err
		}
		left := running[:0]
		for _, r := range running {
			a := &answers[r.number]
			if !a.Ended && len(a.Tokens) < o.MaxTokens {
				left = append(left, r)
				continue
			}
			s.cells -= r.cells
			if err := s.giveSequence(r.seq[0]); err != nil {
				return err
			}
		}
		running = left
	}
	return nil
}

// prefill decodes the prompts of new slots and chooses their first tokens.
func (s *Scorer) prefill(prompts [][]llama.Token, slots []slot, mask skip.Mask, answers []Generated) error {
	first := func(p place, logits []float32) {
		r := &slots[p.row]
		s.choose(r, argMax(logits), &answers[r.number])
	}
	for i, r := range slots {
		j := &job{prompt: prompts[r.number], prefix: &prefix{tokens: prompts[r.number]}, seqs: r.seq}
		for pos, t := range j.prompt[:r.pos] {
			if err := s.add(t, pos, r.seq, mask, first); err != nil {
				return err
			}
		}
		if err := s.addOutput(place{job: j, answer: -1, row: i}, s.batch, 0, mask, first); err != nil {
			return err
		}
	}
	return s.flush(s.batch, mask, first)
}

// step decodes one token of each slot and chooses the next.
func (s *Scorer) step(slots []slot, mask skip.Mask, escalate float64, answers []Generated) error {
	var doubtful []int // of slots
	if err := s.decodeNext(slots, mask); err != nil {
		return err
	}
	for i := range slots {
		answers[slots[i].number].Steps++
		logits, err := s.ctx.Logits(i)
		if err != nil {
			return err
		}
		if escalate == 0 || mask.IsEmpty() {
			s.choose(&slots[i], argMax(logits), &answers[slots[i].number])
			continue
		}
		if t, p := llama.TopProbability(logits); p < escalate {
			doubtful = append(doubtful, i)
		} else {
			s.choose(&slots[i], t, &answers[slots[i].number])
		}
	}
	if len(doubtful) == 0 {
		return nil
	}
	again := make([]slot, len(doubtful))
	for k, i := range doubtful {
		again[k] = slots[i]
		if err := s.ctx.Remove(slots[i].seq[0], slots[i].pos, -1); err != nil {
			return err
		}
	}
	if err := s.decodeNext(again, skip.Mask{}); err != nil {
		return err
	}
	for k, i := range doubtful {
		logits, err := s.ctx.Logits(k)
		if err != nil {
			return err
		}
		answers[slots[i].number].Escalated++
		s.choose(&slots[i], argMax(logits), &answers[slots[i].number])
	}
	return nil
}

// decodeNext puts the slots' tokens through one decode; slot i's logits are at
// place i of it.
func (s *Scorer) decodeNext(slots []slot, mask skip.Mask) error {
	s.batch.Clear()
	for _, r := range slots {
		if err := s.batch.Add(r.next, r.pos, true, r.seq...); err != nil {
			return err
		}
	}
	err := s.ctx.Decode(s.batch, mask)
	s.batch.Clear()
	return err
}

// choose appends a token to an answer.
func (s *Scorer) choose(r *slot, t llama.Token, a *Generated) {
	if s.model.Vocab.IsEnd(t) {
		a.Ended = true
		return
	}
	a.Tokens = append(a.Tokens, t)
	r.next, r.pos = t, r.pos+1
}

// argMax is the likeliest token of logits (nVocab,), the first of equals.
func argMax(logits []float32) llama.Token {
	best := 0
	for i, v := range logits {
		if v > logits[best] {
			best = i
		}
	}
	return llama.Token(best)
}
