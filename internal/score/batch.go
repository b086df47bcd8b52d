package score

import (
	"context"
	"errors"
	"fmt"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// job is a case, or some of its answers if they do not all fit at once.
type job struct {
	number  int           // of the case
	prompt  []llama.Token // at least one
	answers [][]llama.Token
	first   int // of answers, in the case
	cells   int // that the answers take

	prefix *prefix
	seqs   []int // (len(answers),) the first is the prefix's

	// What the whole model has in front of layers 1 to nLayer-1 at the answers' tokens:
	// (cells, nLayer-1, nEmbd), nil = not known.
	inputs []float32

	references []distribution // (cells,) nil = not known
}

// place says what an output in the batch predicts.
type place struct {
	at     int // in the batch
	job    *job
	answer int // of the job; -1 = the first token of all answers
	token  int // of the answer
	row    int // of job.inputs
}

// input is the token that the output comes from.
func (p place) input() (t llama.Token, pos int, seqs []int) {
	j := p.job
	pos = len(j.prefix.tokens) - 1 + p.token
	if p.answer < 0 {
		return j.prompt[pos], pos, j.seqs
	}
	return j.answers[p.answer][p.token-1], pos, j.seqs[p.answer : p.answer+1]
}

// jobs cuts cases into what fits into the context at once.
func (s *Scorer) jobs(cases []Case) ([]job, error) {
	room := s.ctx.NCtx()
	if room == 0 {
		return nil, fmt.Errorf("score: %w", llama.ErrClosed)
	}
	jobs := make([]job, 0, len(cases))
	for i, c := range cases {
		j := job{number: i, prompt: c.Prompt}
		for a, answer := range c.Answers {
			more := len(answer) - 1 // the last token predicts nothing
			if len(c.Prompt)+more > room {
				return nil, fmt.Errorf("%w: case %d has a prompt of %d tokens and an answer of %d, the context holds %d",
					ErrTooLong, i, len(c.Prompt), len(answer), room)
			}
			if a-j.first == cap(s.free) || len(c.Prompt)+j.cells+more > room {
				jobs = append(jobs, j)
				j = job{number: i, prompt: c.Prompt, first: a}
			}
			j.answers = c.Answers[j.first : a+1]
			j.cells += more
		}
		jobs = append(jobs, j)
	}
	return jobs, nil
}

// work lets do see all jobs, in groups that fit into the cache and give at most
// rows rows of logits, or of one job.
func (s *Scorer) work(ctx context.Context, jobs []job, mask skip.Mask, p skip.Prefill, rows int, do func(group []job) error) (err error) {
	if err := mask.Check(s.model.NLayer); err != nil {
		return err
	}
	defer s.ctx.AbortOn(ctx)()
	defer func() { err = s.cleanUp(ctx, err) }()
	if p == skip.MaskedPrefill {
		if err := s.forget(); err != nil {
			return err
		}
	}
	s.call++
	for i := range jobs {
		s.find(&jobs[i]) // what this call needs goes last
	}
	spare := s.fit(jobs)
	for len(jobs) > 0 {
		n, size, outputs := 0, 0, 0
		for n < len(jobs) {
			j := &jobs[n]
			size, outputs = size+j.cells, outputs+1+j.cells
			if p == skip.MaskedPrefill {
				size += len(j.prompt)
			}
			if n > 0 && (size > groupTokens || outputs > rows) {
				break
			}
			ok, err := s.admit(j, n == 0, spare)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			n++
		}
		if err := do(jobs[:n]); err != nil {
			return fmt.Errorf("cases %d to %d: %w", jobs[0].number, jobs[n-1].number, err)
		}
		if err := s.release(jobs[:n], p); err != nil {
			return err
		}
		jobs = jobs[n:]
	}
	return nil
}

// cleanUp ends a piece of work: after an error nothing in the cache is trusted.
func (s *Scorer) cleanUp(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	s.ctx.ReadLayerInputs(false)
	s.batch.Clear()
	s.fed.Clear()
	s.places = s.places[:0]
	s.ctx.Clear()
	s.reset()
	if ctx.Err() != nil && errors.Is(err, llama.ErrAborted) {
		return ctx.Err()
	}
	return err
}

// pass decodes a group's prompts, unless they are in the cache, and its answers
// under mask. With from > 0, the answers start with what is known to go into that
// layer, below which mask names none. read gets the logits that predict the answers,
// valid until it returns: those of all first tokens, then the others.
func (s *Scorer) pass(group []job, mask skip.Mask, p skip.Prefill, from int, read func(place, []float32)) error {
	under, first := p.Mask(mask).WithShortlist(0), read
	if p == skip.FullPrefill { // the first tokens' stay the same under every mask
		first = func(p place, logits []float32) {
			p.job.prefix.logits = append(p.job.prefix.logits[:0], logits...)
		}
	}
	for i := range group {
		j := &group[i]
		if j.prefix.filled {
			continue
		}
		for pos, t := range j.prefix.tokens[:len(j.prefix.tokens)-1] {
			if err := s.add(t, pos, j.seqs, under, first); err != nil {
				return err
			}
		}
		if err := s.addOutput(place{job: j, answer: -1}, s.batch, 0, under, first); err != nil {
			return err
		}
		j.prefix.filled = true
	}
	if p == skip.FullPrefill || under != mask {
		if err := s.flush(s.batch, under, first); err != nil {
			return err
		}
	}
	if p == skip.FullPrefill {
		for i := range group {
			read(place{job: &group[i], answer: -1}, group[i].prefix.logits)
		}
	}
	batch := s.batch
	if from > 0 {
		batch, mask = s.fed, mask.Union(below(from))
	}
	s.ctx.ReadLayerInputs(s.keeping)
	for i := range group {
		where := place{job: &group[i]}
		for a, answer := range where.job.answers {
			for k := range answer[:len(answer)-1] {
				where.answer, where.token = a, k+1
				if err := s.addOutput(where, batch, from, mask, read); err != nil {
					return err
				}
				where.row++
			}
		}
	}
	err := s.flush(batch, mask, read)
	s.ctx.ReadLayerInputs(false)
	if err != nil {
		return err
	}
	for i := range group {
		if err := s.rewind(&group[i], p); err != nil {
			return err
		}
	}
	return nil
}

// below skips the layers below one.
func below(layer int) (m skip.Mask) {
	for l := range layer {
		m = m.With(l, skip.Whole)
	}
	return m
}

// add appends a token to the batch, after decoding what is in it if it is full.
func (s *Scorer) add(t llama.Token, pos int, seqs []int, mask skip.Mask, read func(place, []float32)) error {
	if s.batch.Len() == s.most(s.batch, mask) {
		if err := s.flush(s.batch, mask, read); err != nil {
			return err
		}
	}
	return s.batch.Add(t, pos, false, seqs...)
}

// addOutput appends the token that p's output comes from, or what goes into layer from
// there, if that is > 0.
func (s *Scorer) addOutput(p place, batch *llama.Batch, from int, mask skip.Mask, read func(place, []float32)) error {
	if batch.Len() == s.most(batch, mask) || len(s.places) == s.rows {
		if err := s.flush(batch, mask, read); err != nil {
			return err
		}
	}
	p.at = batch.Len()
	s.places = append(s.places, p)
	t, pos, seqs := p.input()
	if from == 0 {
		return batch.Add(t, pos, true, seqs...)
	}
	return batch.AddEmbedding(s.input(p, from), pos, true, seqs...)
}

// most is how many tokens a decode under mask takes: with a shortlist no more than
// llama.cpp computes at once.
func (s *Scorer) most(batch *llama.Batch, mask skip.Mask) int {
	if mask.Shortlist() > 0 {
		return min(batch.Cap(), groupTokens)
	}
	return batch.Cap()
}

// Exact is the mean number of exact logits of the tokens scored under a mask with a
// shortlist; 0 before any.
func (s *Scorer) Exact(mask skip.Mask) float64 {
	use := s.listed[mask]
	return float64(use.Exact) / float64(max(use.Rows, 1))
}

// flush decodes the batch, if there is anything in it, and reads its outputs.
func (s *Scorer) flush(batch *llama.Batch, mask skip.Mask, read func(place, []float32)) error {
	if batch.Len() == 0 {
		return nil
	}
	defer func() {
		batch.Clear()
		s.places = s.places[:0]
	}()
	before := s.ctx.ShortlistUse()
	if err := s.ctx.Decode(batch, mask); err != nil {
		return err
	}
	if mask.Shortlist() > 0 {
		s.listed[mask] = s.ctx.ShortlistUse().Since(before.Since(s.listed[mask])) // that and what came since before
	}
	for _, p := range s.places {
		logits, err := s.ctx.Logits(p.at)
		if err != nil {
			return err
		}
		read(p, logits)
		if s.keeping && p.answer >= 0 {
			s.saveInputs(p)
		}
	}
	return nil
}
