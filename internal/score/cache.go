package score

import (
	"slices"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// prefix is a prompt in the KV cache.
type prefix struct {
	tokens []llama.Token // the prompt's
	logits []float32     // (nVocab,) that predict the answers' first tokens; of a full prefill only
	key    string        // in prompts
	seq    int
	filled bool // decoded
	busy   bool // used by the group at work
	call   int  // that used it last
}

// find is the kept prompt of a job, now the most recently used; nil = none.
func (s *Scorer) find(j *job) *prefix {
	s.key = appendTokens(s.key[:0], j.prompt)
	p := s.prompts[string(s.key)]
	if p != nil {
		i := slices.Index(s.kept, p)
		s.kept = append(slices.Delete(s.kept, i, i+1), p)
		p.call = s.call
	}
	return p
}

// fit tells whether all prompts of jobs can be in the cache at once, beside the
// answers of any one.
func (s *Scorer) fit(jobs []job) bool {
	cells, answers, extra := 0, 0, 0
	for i := range jobs {
		j := &jobs[i]
		cells += len(j.prompt)
		answers, extra = max(answers, j.cells), max(extra, len(j.answers)-1)
	}
	return len(jobs)+extra <= cap(s.free) && cells+answers <= s.ctx.NCtx()
}

// admit finds room for a job, the group's first or not, and tells whether there
// is any beside those at work. Prompts that were not used for the longest time
// make room; with spare, those of this call do not. If the job's own prompt is in the
// cache, nothing is evicted for it: it waits until the current group is done.
func (s *Scorer) admit(j *job, first, spare bool) (bool, error) {
	known := s.find(j)
	seqs, cells := len(j.answers)-1, j.cells
	switch {
	case known == nil:
		seqs, cells = seqs+1, cells+len(j.prompt)
	case known.busy:
		return false, nil // by a job with the same prompt
	default:
		known.busy = true // so that it stays
	}
	for len(s.free) < seqs || s.cells+cells > s.ctx.NCtx() {
		ok, err := false, error(nil)
		if known == nil || first {
			ok, err = s.evict(spare)
		}
		if !ok {
			if known != nil {
				known.busy = false
			}
			return false, err
		}
	}
	s.cells += cells
	if known == nil {
		known = &prefix{tokens: slices.Clone(j.prompt), key: string(s.key), seq: s.takeSequence(), busy: true, call: s.call}
		s.prompts[known.key] = known
		s.kept = append(s.kept, known)
	}
	j.prefix, j.seqs = known, append(make([]int, 0, len(j.answers)), known.seq)
	for len(j.seqs) < len(j.answers) {
		seq := s.takeSequence()
		j.seqs = append(j.seqs, seq)
		if known.filled {
			if err := s.ctx.Copy(known.seq, seq, 0, -1); err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// evict drops the least recently used prompt that is not at work, or, with spare,
// needed by this call; false = none.
func (s *Scorer) evict(spare bool) (bool, error) {
	for i, p := range s.kept {
		if p.busy || spare && p.call == s.call {
			continue
		}
		s.kept = slices.Delete(s.kept, i, i+1)
		delete(s.prompts, p.key)
		s.cells -= len(p.tokens)
		return true, s.giveSequence(p.seq)
	}
	return false, nil
}

// forget drops all prompts.
func (s *Scorer) forget() error {
	for {
		if ok, err := s.evict(false); !ok || err != nil {
			return err
		}
	}
}

// rewind takes a job's answers out of the cache, and with a masked prefill its
// prompt too.
func (s *Scorer) rewind(j *job, p skip.Prefill) error {
	from := len(j.prefix.tokens)
	if p == skip.MaskedPrefill {
		from = 0
	}
	for _, seq := range j.seqs {
		if s.ctx.Remove(seq, from, -1) == nil {
			continue
		}
		from = 0 // recurrent models forget all or nothing
		for _, seq := range j.seqs {
			if err := s.ctx.Remove(seq, 0, -1); err != nil {
				return err
			}
		}
		break
	}
	j.prefix.filled = from > 0
	return nil
}

// release gives back what a group used, but for the prompts that a later call
// may use again.
func (s *Scorer) release(group []job, p skip.Prefill) error {
	for i := range group {
		j := &group[i]
		s.cells -= j.cells
		for _, seq := range j.seqs[1:] {
			if err := s.giveSequence(seq); err != nil {
				return err
			}
		}
		j.prefix.busy = false
	}
	if p == skip.MaskedPrefill {
		return s.forget()
	}
	return nil
}

// takeSequence is a free sequence.
func (s *Scorer) takeSequence() int {
	seq := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	return seq
}

// giveSequence empties a sequence and makes it free.
func (s *Scorer) giveSequence(seq int) error {
	s.free = append(s.free, seq)
	return s.ctx.Remove(seq, 0, -1)
}

// reset makes all sequences free, in a cache that is empty.
func (s *Scorer) reset() {
	s.free = s.free[:cap(s.free)]
	for i := range s.free {
		s.free[i] = len(s.free) - 1 - i
	}
	s.cells, s.kept, s.prompts = 0, nil, map[string]*prefix{}
}
