package shortlist

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/practice"
	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

const (
	// enoughStates is how many hidden states a preview is fitted to at first. With 200 it
	// ranks nearly as well as with 1500, but more tokens are in doubt.
	enoughStates = 600
	// refitStates is by what factor the states must grow before a preview is fitted anew.
	refitStates = 4
	// keptStates bounds the states that wait to be added to the moments.
	keptStates = 1024

	// leastShare is the share of a token's bytes from which the output matrix is worth a shortlist.
	leastShare = 0.10
	// leastVocab is the vocabulary below which choosing takes as long as computing.
	leastVocab = 8192

	// maxRank is the preview's dimensions for usual models; narrow ones take a third of their width.
	maxRank = 256
	// sampledRows is how many rows of the output matrix stand for all when directions are sought.
	sampledRows = 4096

	// spreadTokens is how many tokens of other prompts' answers show how far the preview is off for
	// each token of the vocabulary, and spreadPrior how many more count as usual ones.
	spreadTokens, spreadPrior = 96, 32
	// measuredTokens is how many further tokens the margin is measured on.
	measuredTokens = 48
	// leastMargin is what the margin is at least, whatever was measured: texts unlike the built-in
	// prompts miss tokens by more.
	leastMargin = 8.5
	// headroom is how many times the largest margin that was needed the margin is.
	headroom = 1.2
	// exactTokens is how many tokens are listed. Shorter lists say less well how far the preview is off.
	exactTokens = 2048
	// longTiming is after how long a few turns of timing are enough.
	longTiming = 2 * time.Second
	// leastGain is the speed-up below which a shortlist is not used: what is measured is
	// off by a percent or two.
	leastGain = 1.03
)

// errEnough ends an answer whose further states are not needed.
var errEnough = errors.New("enough states")

// errStopped is returned when the work was given up because something more urgent came.
var errStopped = errors.New("stopped")

// Learner makes a model's shortlist while nobody waits for it. All methods may be
// called from any goroutine.
type Learner struct {
	model   *llama.Model
	matrix  *llama.OutputMatrix
	threads int
	share   float64 // of the output matrix in a token's bytes
	path    string  // of the file that it is kept in

	made atomic.Pointer[Made]

	learning sync.Mutex // one at a time: work that was stopped may still be ending when the next begins
	moments  *Moments   // guarded by learning

	mu      sync.Mutex // guards what follows
	why     string     // there can be none; "" = there can
	enough  bool       // the file has the states for a first preview: more can wait
	seen    []float32  // states not yet in moments, (n, nEmbd)
	cancel  context.CancelFunc
	running sync.WaitGroup
	started time.Time
}

// Made is a shortlist that is ready to be used.
type Made struct {
	List   *llama.Shortlist
	Size   int           // tokens in the list
	States int           // that it was fitted to
	Gain   float64       // a token's time with the whole matrix over that with the list, as measured
	Exact  float64       // exact logits of a token meanwhile, on average
	Most   float64       // exact logits of a token, on average, up to which the shortlist pays
	Took   time.Duration // from the learner's start; 0 = it was in the cache
}

// account works out Most: rows of the matrix (nVocab, ...) cost the matrix's share of a token.
func (m *Made) account(matrix float64, nVocab int) {
	m.Most = m.Exact + (1/leastGain-1/m.Gain)/matrix*float64(nVocab)
}

// Pays tells whether decoding is measurably faster with it.
func (m *Made) Pays() bool { return m.Gain >= leastGain }

// Open prepares a learner and takes the shortlist from the cache folder dir, if
// there is one for this model; a file that cannot be used is reported by warn and made
// anew. threads is for the decodes; 0 = the model's default. Close it before the model.
func Open(m *llama.Model, dir string, threads int, warn func(error)) *Learner {
	l := &Learner{model: m, threads: threads, started: time.Now()}
	var err error
	if l.matrix, err = m.OutputMatrix(); err != nil {
		l.why = reason(err)
		return l
	}
	if l.why = unfit(m); l.why != "" {
		return l
	}
	l.share = share(m)
	l.moments = NewMoments(m.NEmbd)
	l.path = kind.Path(dir, m)
	if err := l.take(); err != nil && !errors.Is(err, errNoFile) {
		warn(fmt.Errorf("the vocabulary shortlist is made anew: %w", err))
	}
	return l
}

// take begins with what is kept in the file.
func (l *Learner) take() error {
	k, err := read(l.path, l.model)
	if err != nil {
		return err
	}
	if k.made != nil {
		if k.made.List, err = l.matrix.NewShortlist(k.basis, k.preview, k.spread, k.margin); err != nil {
			return err
		}
		l.made.Store(k.made)
	}
	l.moments, l.enough = k.moments, k.moments.N >= enoughStates
	return nil
}

// Outlook says in a sentence what becomes of a model's shortlist on the CPU, by the model's
// file and the cache folder dir alone; m may be loaded without its weights. has tells
// whether there is or will be one.
func Outlook(m *llama.Model, dir string) (text string, has bool) {
	if why := unfit(m); why != "" {
		return "none: " + why, false
	}
	switch k, err := read(kind.Path(dir, m), m); {
	case err != nil && !errors.Is(err, errNoFile):
		return fmt.Sprintf("will be made anew: %v", err), true
	case err != nil || k.made == nil:
		return fmt.Sprintf("will be learnt: the output matrix is %.0f %% of a token's bytes", 100*share(m)), true
	case !k.made.Pays():
		return fmt.Sprintf("none: decoding was measured at %.2f times the speed with one of %d tokens", k.made.Gain, k.made.Size), false
	default:
		return fmt.Sprintf("%d tokens, decoding was measured at %.2f times the speed", k.made.Size, k.made.Gain), true
	}
}

// matrixOf is the output matrix's entry in the file; nil = there is none.
func matrixOf(m *llama.Model) *llama.Tensor {
	for _, name := range []string{gguf.OutputName, gguf.EmbeddingName} { // tied models have the second alone
		if i := slices.IndexFunc(m.Tensors, func(t llama.Tensor) bool { return t.Name == name }); i >= 0 && len(m.Tensors[i].Shape) == 2 {
			return &m.Tensors[i]
		}
	}
	return nil
}

// unfit says why a shortlist is not worth it for a model; "" = it may be.
func unfit(m *llama.Model) string {
	o, share := matrixOf(m), share(m)
	if o == nil {
		return "the model has no output matrix"
	}
	switch nEmbd, nVocab := int(o.Shape[0]), int(o.Shape[1]); {
	case nEmbd != m.NEmbd:
		return fmt.Sprintf("the output matrix takes %d dimensions, the model has %d", nEmbd, m.NEmbd)
	case nVocab < leastVocab:
		return fmt.Sprintf("a vocabulary of %d tokens is too small to gain from one", nVocab)
	case share < leastShare:
		return fmt.Sprintf("the output matrix is %.0f %% of a token's bytes, too little to gain from one", 100*share)
	}
	return ""
}

// share is the output matrix's share of the bytes that a token needs, 0 to 1.
func share(m *llama.Model) float64 {
	all, output := m.TokenBytes()
	return float64(output) / float64(max(all, 1))
}

// Learned takes a model's shortlist from the user's cache folder, or learns it by the built-in prompts, which may take
// a minute. It is nil where there can be none. say hears of that, and of a file that cannot be used. Close it before
// the model.
func Learned(ctx context.Context, m *llama.Model, say func(string)) (*Learner, error) {
	dir, err := Dir()
	if err != nil {
		return nil, err
	}
	l := Open(m, dir, 0, func(err error) { say(err.Error()) })
	if why := l.Why(); why != "" {
		say(why)
		return nil, l.Close()
	}
	if l.Made() == nil {
		say("learning the shortlist")
		if err := l.Learn(ctx); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	return l, nil
}

// Share is the output matrix's share of the bytes that a token needs, 0 to 1; 0 where
// there can be no shortlist.
func (l *Learner) Share() float64 { return l.share }

// Why says why the model gets no shortlist; "" = it has one or will have.
func (l *Learner) Why() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.why
}

// Made is the shortlist, nil while there is none.
func (l *Learner) Made() *Made { return l.made.Load() }

// Ready tells whether answers alone have given the states for a first shortlist, so that
// making it takes a few seconds. While it is at work it is not.
func (l *Learner) Ready() bool {
	if !l.learning.TryLock() {
		return false
	}
	defer l.learning.Unlock()
	return l.Why() == "" && l.made.Load() == nil && l.absorb() >= enoughStates
}

// Use lets c decode with the shortlist and returns it; nil while there is none.
func (l *Learner) Use(c *llama.Context) (*Made, error) {
	l.mu.Lock() // it must not be replaced meanwhile
	defer l.mu.Unlock()
	made := l.made.Load()
	if made == nil || c.Shortlist() == made.List {
		return made, nil
	}
	return made, c.SetShortlist(made.List)
}

// See takes in the hidden state of the last decode's first output row.
func (l *Learner) See(c *llama.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.seen)
	if l.why != "" || n >= keptStates*l.matrix.NEmbd || l.enough && l.made.Load() == nil {
		return
	}
	l.seen = slices.Grow(l.seen, l.matrix.NEmbd)[:n+l.matrix.NEmbd]
	if c.Hidden(0, l.seen[n:]) != nil {
		l.seen = l.seen[:n]
	}
}

// Idle tells that nobody waits: the learner goes on in the background until [Learner.Busy].
func (l *Learner) Idle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.why != "" || l.cancel != nil {
		return
	}
	var ctx context.Context
	ctx, l.cancel = context.WithCancel(context.Background())
	l.running.Go(func() { l.work(ctx) }) // an error is tried again at the next chance
}

// Busy stops the learner's work: what it is in the middle of ends within a tenth of a
// second or so, and the caller need not wait for that.
func (l *Learner) Busy() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cancel != nil {
		l.cancel()
		l.cancel = nil
	}
}

// Close stops the learner, keeps what it has learnt and frees its shortlist once no
// context uses it any more. Further calls do nothing.
func (l *Learner) Close() error {
	l.Busy()
	l.running.Wait()
	l.mu.Lock()
	made, open := l.made.Swap(nil), l.why == ""
	l.why = "closed"
	l.mu.Unlock()
	var err error
	if open && made == nil && l.absorb() > 0 {
		err = writeMoments(l.path, l.model, l.moments)
	}
	if made != nil {
		err = errors.Join(err, made.List.Close())
	}
	return err
}

// absorb adds the states that were seen to the moments and returns how many there are in all.
// learning is held, or nothing else is at work.
func (l *Learner) absorb() int {
	l.mu.Lock()
	seen := l.seen
	l.seen = nil
	l.mu.Unlock()
	if len(seen) > 0 {
		l.moments.Add(seen)
	}
	return l.moments.N
}

// Learn works until the shortlist is as good as it gets from the states at hand, or
// ctx ends.
func (l *Learner) Learn(ctx context.Context) error {
	if why := l.Why(); why != "" {
		return fmt.Errorf("%w: %s", llama.ErrShortlist, why)
	}
	l.learning.Lock()
	defer l.learning.Unlock()
	states := l.absorb()
	made := l.made.Load()
	if made != nil && states < refitStates*made.States {
		return nil
	}
	s, err := newStudent(ctx, l.model, l.matrix, l.threads)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.collect(l.moments, enoughStates); err != nil {
		return err
	}
	next, parts, err := s.make(l.moments)
	if err != nil {
		return err
	}
	next.Took = time.Since(l.started)
	if err := write(l.path, l.model, next, l.moments, parts); err != nil {
		return errors.Join(err, next.List.Close())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if before := l.made.Swap(next); before != nil {
		return before.List.Close()
	}
	return nil
}

func (l *Learner) work(ctx context.Context) {
	if err := l.Learn(ctx); err != nil && ctx.Err() == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.why = reason(err)
	}
}

// reason is why there is no shortlist.
func reason(err error) string {
	return strings.TrimPrefix(err.Error(), llama.ErrShortlist.Error()+": ")
}

// student learns from built-in prompts.
type student struct {
	*practice.Practice
	ctx     context.Context
	model   *llama.Model
	matrix  *llama.OutputMatrix
	threads int
}

func newStudent(ctx context.Context, m *llama.Model, o *llama.OutputMatrix, threads int) (*student, error) {
	p, err := practice.New(ctx, m, threads)
	if err != nil {
		return nil, err
	}
	return &student{p, ctx, m, o, threads}, nil
}

// hidden copies the hidden state of a row of the last decode into out (nEmbd,).
func (s *student) hidden(row int, out []float32) error {
	err := s.Context.Hidden(row, out)
	if errors.Is(err, llama.ErrNoOutput) { // every row has one
		return fmt.Errorf("%w: the model's graph does not end in one product with the output matrix", llama.ErrShortlist)
	}
	return err
}

// collect adds hidden states of prompts and their answers until there are enough.
func (s *student) collect(m *Moments, enough int) error {
	states := make([]float32, 0, 128*s.matrix.NEmbd)
	see := func(row int) error {
		n := len(states)
		states = slices.Grow(states, s.matrix.NEmbd)[:n+s.matrix.NEmbd]
		return s.hidden(row, states[n:])
	}
	for m.N < enough {
		states = states[:0]
		if err := s.Prompt(see); err != nil {
			return err
		}
		err := s.Continue(func(token llama.Token) error {
			if m.N+len(states)/s.matrix.NEmbd >= enough {
				return errEnough
			}
			if err := s.Decode([]llama.Token{token}, skip.Mask{}); err != nil {
				return err
			}
			return see(0)
		})
		if err != nil && !errors.Is(err, errEnough) {
			return err
		}
		m.Add(states)
		if s.ctx.Err() != nil {
			return errStopped
		}
	}
	return nil
}

// rank is the preview's dimensions for a model of this width.
func rank(nEmbd int) int { return max(min(maxRank, nEmbd/3/32*32), 32) }

// parts are what a list is made of.
type parts struct {
	basis   []float32 // (rank, nEmbd)
	preview []byte    // (nVocab, rank) in Q4_0
	spread  []float32 // (nVocab,)
	margin  float32
}

// make fits a preview to the moments and measures it.
func (s *student) make(m *Moments) (made *Made, p parts, err error) {
	o := s.matrix
	ids := make([]int32, min(sampledRows, o.NVocab))
	for i, id := range rand.New(rand.NewPCG(3, 4)).Perm(o.NVocab)[:len(ids)] {
		ids[i] = int32(id)
	}
	sample := make([]float32, len(ids)*o.NEmbd)
	if err := o.Rows(ids, sample); err != nil {
		return nil, p, err
	}
	basis, columns, err := fit(m, sample, rank(o.NEmbd), func() bool { return s.ctx.Err() != nil })
	if err != nil {
		return nil, p, err
	}
	p.basis, p.margin = basis, leastMargin
	if p.preview, err = o.Preview(s.ctx, columns, s.threads); err != nil {
		return nil, p, err
	}
	made = &Made{Size: min(exactTokens, o.NVocab/4), States: m.N}
	// First as if all tokens were alike.
	if made.List, err = o.NewShortlist(p.basis, p.preview, nil, p.margin); err != nil {
		return nil, p, err
	}
	p.spread, err = s.spread(made, m)
	if err = errors.Join(err, made.List.Close()); err != nil {
		return nil, p, errors.Join(err, s.Context.SetShortlist(nil))
	}
	if made.List, err = o.NewShortlist(p.basis, p.preview, p.spread, p.margin); err != nil {
		return nil, p, errors.Join(err, s.Context.SetShortlist(nil))
	}
	if p.margin, err = s.margin(made, m); err == nil {
		made.List.Margin = p.margin
		err = s.time(made)
	}
	if err = errors.Join(err, s.Context.SetShortlist(nil)); err != nil {
		return nil, p, errors.Join(err, made.List.Close())
	}
	return made, p, nil
}

// measure decodes n tokens of the next prompts' answers and lets see what the list comes to for each. Their
// hidden states go into the moments.
func (s *student) measure(made *Made, m *Moments, n int, see func(llama.ShortlistTrial)) error {
	if err := s.Context.SetShortlist(made.List); err != nil {
		return err
	}
	mask := skip.Mask{}.WithShortlist(made.Size)
	states := make([]float32, s.matrix.NEmbd)
	for tokens := 0; tokens < n; {
		if err := s.Prompt(func(int) error { return nil }); err != nil {
			return err
		}
		err := s.Continue(func(token llama.Token) error {
			if tokens == n {
				return errEnough
			}
			if err := s.DecodeBy([]llama.Token{token}, func(b *llama.Batch) error {
				return s.Context.MeasureShortlist(b, mask, func(_ int, t llama.ShortlistTrial) { see(t) })
			}); err != nil {
				return err
			}
			if err := s.hidden(0, states); err != nil {
				return err
			}
			m.Add(states)
			tokens++
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) {
			return err
		}
	}
	return nil
}

// spread finds how far the preview is off for each token of the vocabulary: tokens differ in how much of
// their row lies outside the preview's directions, and those that are often the likeliest differ the most.
func (s *student) spread(made *Made, m *Moments) ([]float32, error) {
	squares := make([]float64, s.matrix.NVocab)
	n := 0
	err := s.measure(made, m, spreadTokens, func(t llama.ShortlistTrial) {
		n++
		for i, e := range t.Errors {
			squares[i] += float64(e) * float64(e)
		}
	})
	if err != nil {
		return nil, err
	}
	usual := stats.Mean(squares) / float64(n)
	spread := make([]float32, len(squares))
	sum := 0.0
	for i, q := range squares {
		spread[i] = float32(math.Sqrt(q + spreadPrior*usual))
		sum += float64(spread[i])
	}
	if !(sum > 0) || math.IsInf(sum, 0) {
		return nil, fmt.Errorf("%w: the preview's errors are no numbers", llama.ErrShortlist)
	}
	for i := range spread {
		spread[i] *= float32(float64(len(spread)) / sum)
	}
	return spread, nil
}

// margin is one with which no measured token would have been missed, and more: other texts are harder.
func (s *student) margin(made *Made, m *Moments) (float32, error) {
	margin := float32(leastMargin)
	err := s.measure(made, m, measuredTokens, func(t llama.ShortlistTrial) { margin = max(margin, headroom*t.Needed) })
	return margin, err
}

// time times the tokens of answers with the whole matrix and with the list in turns, each several in a row: the first after a
// change builds a new graph.
func (s *student) time(made *Made) error {
	const turns, leastTurns, run = 8, 4, 6
	var whole, short []float64 // seconds
	start := time.Now()
	before := s.Context.ShortlistUse()
	for turn := range turns {
		if turn >= leastTurns && time.Since(start) > longTiming {
			break
		}
		for _, mask := range []skip.Mask{{}, skip.Mask{}.WithShortlist(made.Size)} {
			for i := range run {
				token, end, err := s.Next()
				if err == nil && end {
					if err = s.Prompt(func(int) error { return nil }); err == nil {
						token, _, err = s.Next()
					}
				}
				if err != nil {
					return err
				}
				began := time.Now()
				if err := s.Decode([]llama.Token{token}, mask); err != nil {
					return err
				}
				switch took := time.Since(began).Seconds(); {
				case i == 0:
				case mask.Shortlist() == 0:
					whole = append(whole, took)
				default:
					short = append(short, took)
				}
			}
		}
	}
	made.Gain = stats.Median(whole) / stats.Median(short)
	use := s.Context.ShortlistUse().Since(before)
	made.Exact = float64(use.Exact) / float64(use.Rows)
	made.account(share(s.model), s.matrix.NVocab)
	return nil
}
