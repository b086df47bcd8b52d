package eval

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Case is an example in tokens.
type Case struct {
	Prompt  []llama.Token   // at least one
	Answers [][]llama.Token // at least one token each; a single one is a free answer
	Right   int             // which of Answers is right
	Task    string
	Text    bool // plain text: the answer is all of it but its first token, the prompt
	Own     bool // the only answer is the whole model's own, greedy one

	// AnswerBytes (len(Answers),) are the lengths of the answers' texts, without
	// the space in front; nil = unknown. Only [Accuracy] needs them.
	AnswerBytes []int
}

// Score is how a model under a mask takes a case.
type Score struct {
	LogLik []float64 // (len(Answers),) sum of ln p over each answer's tokens
	Loss   float64   // task loss: nats per token of the right answer

	// Margin is the right answer's loss minus the mean loss of the wrong ones:
	// PuDDing's second criterion, gold minus others, as a loss, so lower is better.
	// Without wrong answers it is Loss.
	Margin float64

	// KL is the mean of KL(whole || masked) over the tokens of the whole model's own
	// answer, in nats: by how much a token that the whole model draws there becomes
	// less likely under the mask. Unlike Loss it doesn't fall where a mask only makes
	// the model surer of itself. NaN where [Scorer.Hold] or [Scorer.Refer] have not
	// seen the case, or the answer is another's.
	KL float64

	Exact bool // each token of the right answer is the likeliest after those before it

	Tokens []TokenScore // of the right answer

	// All (len(Answers),) are the tokens of each answer, Tokens among them; KL is
	// known of the right one's alone.
	All [][]TokenScore

	referred bool // KL is known
}

// TokenScore is how a model takes one token, given those before it.
type TokenScore struct {
	LogP float64 // ln of its probability
	Top  float64 // probability of the likeliest token
	KL   float64 // KL(whole || masked), nats; 0 where the score's is NaN
}

// Difference is how far a model under a mask is from the whole one at the right
// answer's tokens of a case.
type Difference struct {
	KL        float64 // mean of KL(whole || masked), nats
	Agreement float64 // share of tokens at which both have the same likeliest one, 0 to 1

	Tokens []TokenDifference // of the right answer
}

// TokenDifference is how far a model under a mask is from the whole one at one
// token, given those before it.
type TokenDifference struct {
	KL    float64 // KL(whole || masked), nats
	Agree bool    // both have the same likeliest token
	Top   float64 // probability of the masked model's likeliest token
}

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

// Score measures the cases under mask. The error wraps [ErrEmpty], [ErrCase],
// [ErrTooLong], [skip.ErrMask], ctx's own, or one of llama's.
func (s *Scorer) Score(ctx context.Context, cases []Case, mask skip.Mask, p skip.Prefill) ([]Score, error) {
	if err := checkCases(cases); err != nil {
		return nil, err
	}
	jobs, err := s.jobs(cases)
	if err != nil {
		return nil, err
	}
	if len(s.references) > 0 {
		for i := range jobs {
			jobs[i].references = s.references[s.name(&jobs[i])]
		}
	}
	scores := newScores(cases)
	err = s.work(ctx, jobs, mask, p, s.ctx.NCtx(), func(group []job) error {
		return s.pass(group, mask, p, s.start(group, mask, p), func(p place, logits []float32) { note(cases, scores, p, logits) })
	})
	if err != nil {
		return nil, err
	}
	for i := range scores {
		scores[i].finish(&cases[i])
	}
	return scores, nil
}

// newScores makes the scores of cases of which nothing is known yet.
func newScores(cases []Case) []Score {
	scores := make([]Score, len(cases))
	for i, c := range cases {
		scores[i] = Score{LogLik: make([]float64, len(c.Answers)), Exact: true}
		for _, answer := range c.Answers {
			scores[i].All = append(scores[i].All, make([]TokenScore, len(answer)))
		}
		scores[i].Tokens = scores[i].All[c.Right]
	}
	return scores
}

// note adds the logits at a place to the scores of cases.
func note(cases []Case, scores []Score, p place, logits []float32) {
	top, lse := logSumExp(logits)
	score, from, to := &scores[p.job.number], p.answer, p.answer+1
	if p.answer < 0 {
		from, to = 0, len(p.job.answers)
	}
	for a := from; a < to; a++ {
		token := p.job.answers[a][p.token]
		logP := float64(logits[token]) - lse
		score.LogLik[p.job.first+a] += logP
		t := TokenScore{LogP: logP, Top: math.Exp(float64(logits[top]) - lse)}
		if p.job.first+a == cases[p.job.number].Right {
			score.Exact = score.Exact && token == top
			if p.job.references != nil {
				t.KL = p.job.references[p.token].divergence(logits, lse)
				score.referred = true
			}
		}
		score.All[p.job.first+a][p.token] = t
	}
}

// Hold empties the cache and fills it with the prompts of cases, decoded by the
// whole model. What [Scorer.Score] then gives for parts of these cases, with a
// full prefill, hangs on nothing that was scored before, to the last bit. held is
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
		if err != nil || s.tried || !tells || !known(group) {
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
		if errors.Is(err, skip.ErrMask) {
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

// finish derives the losses from the log-likelihoods.
func (s *Score) finish(c *Case) {
	var wrong []float64
	for a, l := range s.LogLik {
		loss := -l / float64(len(c.Answers[a]))
		if a == c.Right {
			s.Loss = loss
		} else {
			wrong = append(wrong, loss)
		}
	}
	s.KL = math.NaN()
	if s.referred {
		s.KL = 0
		for _, t := range s.Tokens {
			s.KL += t.KL / float64(len(s.Tokens))
		}
	}
	s.Margin = s.Loss
	if len(wrong) > 0 {
		s.Margin -= Mean(wrong)
	}
}

// Compare measures the cases under each of masks, and how far the model then is
// from the whole one at the right answers: both (len(masks), len(cases)). The
// whole model sees each case once, and its logits are kept for as many cases as
// are in the cache at once, however many masks there are. Errors are those of
// [Scorer.Score].
func (s *Scorer) Compare(ctx context.Context, cases []Case, masks []skip.Mask, p skip.Prefill) ([][]Score, [][]Difference, error) {
	if err := checkCases(cases); err != nil {
		return nil, nil, err
	}
	scores, differences := make([][]Score, len(masks)), make([][]Difference, len(masks))
	for k, mask := range masks {
		if err := mask.Check(s.model.NLayer); err != nil {
			return nil, nil, err
		}
		scores[k], differences[k] = newScores(cases), make([]Difference, len(cases))
		for i, c := range cases {
			differences[k][i].Tokens = make([]TokenDifference, len(c.Answers[c.Right]))
		}
	}
	jobs, err := s.jobs(cases)
	if err != nil {
		return nil, nil, err
	}
	right := func(p place) bool {
		a := cases[p.job.number].Right - p.job.first
		return 0 <= a && a < len(p.job.answers) && (p.answer == a || p.answer < 0)
	}
	keep := func(p place, logits []float32) {
		if right(p) {
			s.whole = append(s.whole, logits...)
		}
	}
	err = s.work(ctx, jobs, skip.Mask{}, p, s.rows, func(group []job) error {
		s.whole = s.whole[:0]
		if err := s.pass(group, skip.Mask{}, p, 0, keep); err != nil {
			return err
		}
		for k, mask := range masks {
			rest := s.whole
			err := s.pass(group, mask, p, 0, func(p place, logits []float32) {
				note(cases, scores[k], p, logits)
				if !right(p) {
					return
				}
				t := divergence(rest[:len(logits)], logits)
				rest = rest[len(logits):]
				d := &differences[k][p.job.number]
				n := float64(len(d.Tokens))
				d.Tokens[p.token] = t
				d.KL += t.KL / n
				if t.Agree {
					d.Agreement += 1 / n
				}
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	for k := range masks {
		for i := range scores[k] {
			scores[k][i].finish(&cases[i])
		}
	}
	return scores, differences, nil
}

// checkCases finds cases that cannot be measured.
func checkCases(cases []Case) error {
	for i, c := range cases {
		if len(c.Prompt) == 0 {
			return fmt.Errorf("%w: case %d has no prompt", ErrEmpty, i)
		}
		if c.Right < 0 || c.Right >= len(c.Answers) {
			return fmt.Errorf("%w: case %d: answer %d of %d is said to be right", ErrCase, i, c.Right, len(c.Answers))
		}
		for a, answer := range c.Answers {
			if len(answer) == 0 {
				return fmt.Errorf("%w: answer %d of case %d has no tokens", ErrEmpty, a, i)
			}
		}
	}
	return nil
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
	defer func() { err = s.settle(ctx, err) }()
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

// settle ends a piece of work: after an error nothing in the cache is trusted.
func (s *Scorer) settle(ctx context.Context, err error) error {
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
		if err := s.ask(place{job: j, answer: -1}, s.batch, 0, under, first); err != nil {
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
				if err := s.ask(where, batch, from, mask, read); err != nil {
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

// ask appends the token that p's output comes from, or what goes into layer from
// there, if that is > 0.
func (s *Scorer) ask(p place, batch *llama.Batch, from int, mask skip.Mask, read func(place, []float32)) error {
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
			s.keep(p)
		}
	}
	return nil
}

// ---- Layer inputs ----

// input is the place's part of its job's layer inputs, (nEmbd,).
func (s *Scorer) input(p place, layer int) []float32 {
	n := s.model.NEmbd
	return p.job.inputs[(p.row*(s.model.NLayer-1)+layer-1)*n:][:n]
}

// keep copies what went into the layers at a place, if there is room for its job.
func (s *Scorer) keep(p place) {
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
		s.inputs[s.name(j)] = j.inputs
	}
}

// look finds the layer inputs of jobs.
func (s *Scorer) look(group []job) {
	for i := range group {
		group[i].inputs = s.inputs[s.name(&group[i])]
	}
}

// known tells whether the layer inputs of all jobs were found, or none are needed.
func known(group []job) bool {
	return !slices.ContainsFunc(group, func(j job) bool { return j.inputs == nil && j.cells > 0 })
}

// start is the layer at which a pass can start, 0 = with the tokens.
func (s *Scorer) start(group []job, mask skip.Mask, p skip.Prefill) int {
	if len(s.inputs) == 0 || p != skip.FullPrefill || mask.First() == 0 {
		return 0
	}
	if s.look(group); !known(group) {
		return 0
	}
	first := mask.First()
	if first < 0 { // it names none
		first = s.model.NLayer
	}
	if mask.Union(below(first)) == below(s.model.NLayer) { // one has to run
		first--
	}
	return first
}

// name is a job's tokens.
func (s *Scorer) name(j *job) string {
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

// ---- The KV cache ----

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
// make room; with spare, those of this call do not. None does for a job whose own
// prompt is kept and that can wait for the group's end.
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
		known = &prefix{tokens: slices.Clone(j.prompt), key: string(s.key), seq: s.take(), busy: true, call: s.call}
		s.prompts[known.key] = known
		s.kept = append(s.kept, known)
	}
	j.prefix, j.seqs = known, append(make([]int, 0, len(j.answers)), known.seq)
	for len(j.seqs) < len(j.answers) {
		seq := s.take()
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
		return true, s.give(p.seq)
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
			if err := s.give(seq); err != nil {
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

// take is a free sequence.
func (s *Scorer) take() int {
	seq := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	return seq
}

// give empties a sequence and makes it free.
func (s *Scorer) give(seq int) error {
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

// ---- Rows of logits ----

// logSumExp is the likeliest token of logits (nVocab,), the first of equals, and
// ln of the sum of their exponentials: a token's ln p is its logit minus that.
func logSumExp(logits []float32) (top llama.Token, lse float64) {
	top, p := llama.TopProbability(logits)
	return top, float64(logits[top]) - math.Log(p)
}

// divergence compares the distributions with these logits (nVocab,): p is the
// whole model's, q the masked one's.
func divergence(p, q []float32) (d TokenDifference) {
	topP, lseP := logSumExp(p)
	topQ, lseQ := logSumExp(q)
	for i := range p {
		lnP := float64(p[i]) - lseP
		if prob := math.Exp(lnP); prob > 0 {
			d.KL += prob * (lnP - (float64(q[i]) - lseQ))
		}
	}
	d.KL = max(d.KL, 0) // rounding may give a little less
	d.Agree, d.Top = topP == topQ, math.Exp(float64(q[topQ])-lseQ)
	return d
}
