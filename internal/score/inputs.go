package score

import (
	"context"
	"encoding/binary"
	"errors"
	"reflect"
	"slices"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Hold empties the cache and fills it with the prompts of cases, decoded by the
// whole model. What [Scorer.Score] then gives for parts of these cases, with a
// full prefill, depends on nothing that was scored before, to the last bit. held is
// false, and the cache just empty, if the prompts do not fit together. In both
// cases it does what [Scorer.Refer] does.
//
// What goes into each layer at the answers' tokens is kept too, as far as there is
// room: below the first layer that a mask names it is the same under all masks, so
// [Scorer.Score] starts there. Models that this does not fit are left alone.
func (s *Scorer) Hold(ctx context.Context, cases []Case) (held bool, err error) {
	jobs, err := s.jobs(cases)
	if err != nil {
		return false, err
	}
	if !s.fit(jobs) {
		return false, s.Refer(ctx, cases)
	}
	s.ctx.Clear()
	s.reset()
	s.inputs, s.references = nil, map[string][]distribution{}
	if s.room = s.inputBytes; s.starts || !s.tried {
		s.inputs = map[string][]float32{}
	}
	err = s.work(ctx, jobs, skip.Mask{}, skip.FullPrefill, s.ctx.NCtx(), func(group []job) error {
		s.keeping = true // also when nothing is kept, so that every hold decodes in the same steps
		want, err := s.scoreFrom(cases, group, 0, s.refer)
		s.keeping = false
		tells := slices.ContainsFunc(group, func(j job) bool { return j.inputs != nil })
		if err != nil || s.tried || !tells || !haveInputs(group) {
			return err
		}
		s.starts, err = s.inputsFit(cases, group, want)
		if s.tried = err == nil; !s.starts {
			s.inputs = nil
		}
		return err
	})
	if err != nil || !s.tried {
		s.inputs = nil
	}
	return true, err
}

// Fit tells whether [Scorer.Hold] can keep all prompts of cases.
func (s *Scorer) Fit(cases []Case) bool {
	jobs, err := s.jobs(cases)
	return err == nil && s.fit(jobs)
}

// inputsFit tells whether the whole model, started at layer inputs, scores a group
// as from the start. Some architectures scale or change what comes as an embedding,
// or use lower layers' results in layers above.
func (s *Scorer) inputsFit(cases []Case, group []job, want []Score) (bool, error) {
	for _, from := range []int{1, s.model.NLayer - 1} {
		got, err := s.scoreFrom(cases, group, from, nil)
		if errors.Is(err, llama.ErrMask) {
			for i := range group {
				if err := s.rewind(&group[i], skip.FullPrefill); err != nil {
					return false, err
				}
			}
			return false, nil
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			return false, err
		}
	}
	return true, nil
}

// scoreFrom lets the whole model score a group, started at a layer. also, unless
// nil, sees the logits too.
func (s *Scorer) scoreFrom(cases []Case, group []job, from int, also func([]Case, place, []float32)) ([]Score, error) {
	scores := newScores(cases)
	err := s.pass(group, skip.Mask{}, skip.FullPrefill, from, func(p place, logits []float32) {
		note(cases, scores, p, logits)
		if also != nil {
			also(cases, p, logits)
		}
	})
	return scores, err
}

// input is the place's part of its job's layer inputs, (nEmbd,).
func (s *Scorer) input(p place, layer int) []float32 {
	n := s.model.NEmbd
	return p.job.inputs[(p.row*(s.model.NLayer-1)+layer-1)*n:][:n]
}

// saveInputs copies what went into the layers at a place, if there is room for its job.
func (s *Scorer) saveInputs(p place) {
	j := p.job
	if p.row == 0 {
		n := j.cells * (s.model.NLayer - 1) * s.model.NEmbd
		if s.room -= 4 * n; n > 0 && s.room >= 0 && s.inputs != nil {
			j.inputs = make([]float32, n)
		}
	}
	if j.inputs == nil {
		return
	}
	for l := 1; l < s.model.NLayer; l++ {
		row, err := s.ctx.LayerInput(l, p.at)
		if err != nil { // this architecture's cannot be read
			j.inputs = nil
			return
		}
		copy(s.input(p, l), row)
	}
	if p.row == j.cells-1 {
		s.inputs[s.inputsKey(j)] = j.inputs
	}
}

// loadInputs finds the layer inputs of jobs.
func (s *Scorer) loadInputs(group []job) {
	for i := range group {
		group[i].inputs = s.inputs[s.inputsKey(&group[i])]
	}
}

// haveInputs tells whether the layer inputs of all jobs were found, or none are needed.
func haveInputs(group []job) bool {
	return !slices.ContainsFunc(group, func(j job) bool { return j.inputs == nil && j.cells > 0 })
}

// firstLayer is the layer at which a pass can start, 0 = with the tokens.
func (s *Scorer) firstLayer(group []job, mask skip.Mask, p skip.Prefill) int {
	if len(s.inputs) == 0 || p != skip.FullPrefill || mask.Lowest() == 0 {
		return 0
	}
	if s.loadInputs(group); !haveInputs(group) {
		return 0
	}
	first := mask.Lowest()
	if first < 0 { // it names none
		first = s.model.NLayer
	}
	if mask.Union(below(first)) == below(s.model.NLayer) { // one has to run
		first--
	}
	return first
}

// inputsKey is the key of a job in inputs: its tokens.
func (s *Scorer) inputsKey(j *job) string {
	s.key = binary.LittleEndian.AppendUint32(s.key[:0], uint32(len(j.prompt)))
	s.key = appendTokens(s.key, j.prompt)
	for _, answer := range j.answers {
		s.key = binary.LittleEndian.AppendUint32(s.key, uint32(len(answer)))
		s.key = appendTokens(s.key, answer)
	}
	return string(s.key)
}

func appendTokens(key []byte, tokens []llama.Token) []byte {
	for _, t := range tokens {
		key = binary.LittleEndian.AppendUint32(key, uint32(t))
	}
	return key
}
