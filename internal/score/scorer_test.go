package score

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// tolerance is what a log-likelihood may differ from that of a text decoded
// alone, relative to its size: sums are made in another order, over some hundred
// float32 terms a layer. Seen: 0.00004, in gemma3, whose norms behind each half make little much.
const tolerance = 1e-4

// exact keeps keys and values in F32, and takes no flash attention, which rounds
// too. With rounding to F16 the last bit of a sum becomes one of 2048, which on
// processors without AVX-512 let two experts of llama-moe change places whose
// chances were 0.00003 apart.
var exact = llama.ContextOptions{NCtx: 1024, Threads: 1, KType: llama.CacheF32, VType: llama.CacheF32, Flash: llama.FlashOff}

var prefills = []skip.Prefill{skip.MaskedPrefill, skip.FullPrefill}

// masks are of all kinds, for models of 6 layers or more.
var masks = []skip.Mask{
	{},
	skip.Layers(1, 4),
	skip.Mask{}.With(2, skip.Attention).With(3, skip.FeedForward),
	skip.Mask{}.With(1, skip.FeedForward).With(5, skip.FeedForward),
}

// newScorer makes a scorer; the end of the test closes it.
func newScorer(t testing.TB, m *llama.Model, o Options) *Scorer {
	t.Helper()
	o.Threads, o.attention = 1, exact
	s, err := NewScorer(m, &o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

// tokens are n random ones.
func tokens(random *rand.Rand, n int) []llama.Token {
	list := make([]llama.Token, n)
	for i := range list {
		list[i] = llama.Token(random.IntN(randmodel.MinVocab))
	}
	return list
}

// randomCases have prompts of 1 to 20 tokens and up to 5 answers of up to 8. Some
// have the same prompt.
func randomCases(random *rand.Rand, n int) []Case {
	cases := make([]Case, n)
	for i := range cases {
		c := Case{Prompt: tokens(random, 1+random.IntN(20))}
		if i > 0 && random.IntN(6) == 0 {
			c.Prompt = cases[random.IntN(i)].Prompt
		}
		for range 1 + random.IntN(5) {
			c.Answers = append(c.Answers, tokens(random, 1+random.IntN(8)))
		}
		c.Right = random.IntN(len(c.Answers))
		cases[i] = c
	}
	return cases
}

// reference decodes one text at a time in one sequence.
type reference struct {
	t testing.TB
	c *llama.Context
}

func newReference(t testing.TB, m *llama.Model) reference {
	return reference{t, llamatest.Context(t, m, &exact)}
}

// rows gives the logits (len(answer), nVocab) that predict an answer.
func (r reference) rows(prompt, answer []llama.Token, mask skip.Mask, p skip.Prefill) [][]float32 {
	r.t.Helper()
	require.NoError(r.t, r.c.Remove(0, 0, -1))
	rows := r.decode(prompt, 0, p.Mask(mask))[len(prompt)-1:]
	if rest := answer[:len(answer)-1]; len(rest) > 0 {
		rows = append(rows, r.decode(rest, len(prompt), mask)...)
	}
	return rows
}

// answer is the likeliest answer to a prompt, of n tokens.
func (r reference) answer(prompt []llama.Token, mask skip.Mask, n int) (answer []llama.Token) {
	r.t.Helper()
	for len(answer) < n {
		rows := r.rows(prompt, append(answer, 0), mask, skip.MaskedPrefill)
		token, _ := llama.TopProbability(rows[len(answer)])
		answer = append(answer, token)
	}
	return answer
}

func (r reference) decode(text []llama.Token, pos int, mask skip.Mask) (rows [][]float32) {
	r.t.Helper()
	b, err := llama.NewBatch(len(text), nil)
	require.NoError(r.t, err)
	defer b.Close()
	for i, t := range text {
		require.NoError(r.t, b.Add(t, pos+i, true, 0))
	}
	require.NoError(r.t, r.c.Decode(b, mask))
	for i := range text {
		row, err := r.c.Logits(i)
		require.NoError(r.t, err)
		rows = append(rows, slices.Clone(row))
	}
	return rows
}

// logProbs is the log-softmax of logits, plainly.
func logProbs(logits []float32) []float64 {
	most, sum := float64(slices.Max(logits)), 0.0
	for _, v := range logits {
		sum += math.Exp(float64(v) - most)
	}
	out := make([]float64, len(logits))
	for i, v := range logits {
		out[i] = float64(v) - most - math.Log(sum)
	}
	return out
}

// score is what Score should give for a case.
func (r reference) score(c Case, mask skip.Mask, p skip.Prefill) Score {
	r.t.Helper()
	s := Score{Exact: true}
	wrong := 0.0
	for a, answer := range c.Answers {
		sum := 0.0
		for i, row := range r.rows(c.Prompt, answer, mask, p) {
			sum += logProbs(row)[answer[i]]
			if a == c.Right && row[answer[i]] != slices.Max(row) {
				s.Exact = false
			}
		}
		s.LogLik = append(s.LogLik, sum)
		if a == c.Right {
			s.Loss = -sum / float64(len(answer))
		} else {
			wrong += -sum / float64(len(answer)) / float64(len(c.Answers)-1)
		}
	}
	s.Margin = s.Loss - wrong
	return s
}

func requireScores(t *testing.T, r reference, s *Scorer, cases []Case, mask skip.Mask, p skip.Prefill) {
	t.Helper()
	scores, err := s.Score(t.Context(), cases, mask, p)
	require.NoError(t, err)
	require.Len(t, scores, len(cases))
	for i, got := range scores {
		want := r.score(cases[i], mask, p)
		where := fmt.Sprintf("case %d, mask %q, %s prefill", i, mask, p)
		require.InDeltaSlice(t, want.LogLik, got.LogLik, tolerance*(1-slices.Min(want.LogLik)), where)
		require.InDelta(t, want.Loss, got.Loss, tolerance*(1+want.Loss), where)
		require.InDelta(t, want.Margin, got.Margin, tolerance*(1+want.Loss), where)
		require.Equal(t, want.Exact, got.Exact, where)
	}
}

// TestScore has far more cases than sequences, and calls that find some of their
// prompts in the cache, all of them or none.
func TestScore(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 6))
	r := newReference(t, m)
	s := newScorer(t, m, Options{Sequences: 8, NCtx: 256})
	random := rand.New(rand.NewPCG(1, 1))
	many, few, other := randomCases(random, 30), randomCases(random, 4), randomCases(random, 3)
	for _, p := range prefills {
		for _, mask := range masks {
			requireScores(t, r, s, many, mask, p)
			for range 2 {
				requireScores(t, r, s, few, mask, p)
			}
			requireScores(t, r, s, few[1:3], mask, p)
			requireScores(t, r, s, other, mask, p)
		}
	}
	for range 40 {
		p, mask := prefills[random.IntN(2)], masks[random.IntN(len(masks))]
		from := random.IntN(len(few))
		requireScores(t, r, s, few[from:from+random.IntN(len(few)-from)], mask, p)
		requireScores(t, r, s, other, mask, p)
	}
}

// TestScoreExact has right answers that are the likeliest ones.
func TestScoreExact(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 6))
	s := newScorer(t, m, Options{})
	prompt := tokens(rand.New(rand.NewPCG(2, 2)), 7)
	mask := skip.Layers(2)
	right := newReference(t, m).answer(prompt, mask, 5)
	wrong := slices.Clone(right)
	wrong[len(wrong)-1] ^= 1
	scores, err := s.Score(t.Context(), []Case{
		{Prompt: prompt, Answers: [][]llama.Token{wrong, right}, Right: 1},
		{Prompt: prompt, Answers: [][]llama.Token{wrong, right}, Right: 0},
		{Prompt: prompt, Answers: [][]llama.Token{right}},
	}, mask, skip.MaskedPrefill)
	require.NoError(t, err)
	require.True(t, scores[0].Exact)
	require.False(t, scores[1].Exact)
	require.Negative(t, scores[0].Margin)
	require.InDelta(t, -scores[0].Margin, scores[1].Margin, tolerance)
	require.Equal(t, scores[2].Loss, scores[2].Margin)
}

// TestScoreArchitectures includes sliding windows and experts.
func TestScoreArchitectures(t *testing.T) {
	llamatest.Library(t)
	for _, name := range []string{"gemma3", "qwen3", "llama-moe"} {
		m := llamatest.Small(t, name)
		r := newReference(t, m)
		s := newScorer(t, m, Options{})
		cases := randomCases(rand.New(rand.NewPCG(3, 3)), 6)
		for _, p := range prefills {
			for range 2 {
				requireScores(t, r, s, cases, masks[2], p)
			}
		}
	}
}

// TestScoreInParts has answers and prompts that go through many small decodes.
func TestScoreInParts(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 6))
	r := newReference(t, m)
	for _, cap := range []int{4, 7} {
		s := newScorer(t, m, Options{Sequences: 4, NCtx: 256})
		require.NoError(t, s.batch.Close())
		var err error
		s.batch, err = llama.NewBatch(cap, &llama.BatchOptions{Sequences: 4})
		require.NoError(t, err)
		s.rows = 3
		random := rand.New(rand.NewPCG(4, uint64(cap)))
		cases := append(randomCases(random, 6), Case{Prompt: tokens(random, 60), Answers: [][]llama.Token{tokens(random, 50), tokens(random, 3)}})
		for _, p := range prefills {
			for range 2 {
				requireScores(t, r, s, cases, masks[2], p)
			}
			_, differences, err := s.Compare(t.Context(), cases, masks[1:2], p)
			require.NoError(t, err)
			for i, d := range differences[0] {
				require.InDelta(t, r.divergence(cases[i], masks[1], p), d.KL, tolerance)
			}
		}
	}
}

// TestScoreSplit has cases whose answers fit into the context one by one only.
func TestScoreSplit(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 6))
	r := newReference(t, m)
	s := newScorer(t, m, Options{Sequences: 2, NCtx: 256})
	random := rand.New(rand.NewPCG(5, 5))
	cases := []Case{{Prompt: tokens(random, 100), Right: 3}}
	for range 5 {
		cases[0].Answers = append(cases[0].Answers, tokens(random, 120))
	}
	cases = append(cases, Case{Prompt: tokens(random, 9), Answers: [][]llama.Token{tokens(random, 3), tokens(random, 2), tokens(random, 4)}})
	for _, p := range prefills {
		for range 2 {
			requireScores(t, r, s, cases, masks[1], p)
		}
	}
}

// TestPromptsStay tells that a full prefill is not made twice, with just as many
// sequences as the prompts and the answers of one of them need.
func TestPromptsStay(t *testing.T) {
	llamatest.Library(t)
	s := newScorer(t, llamatest.Open(t, llamatest.Tiny(t, 6)), Options{Sequences: 8 + 4})
	random := rand.New(rand.NewPCG(6, 6))
	var cases []Case
	for range 8 {
		c := Case{Prompt: tokens(random, 2+random.IntN(20))}
		for range 5 {
			c.Answers = append(c.Answers, tokens(random, 1+random.IntN(8)))
		}
		cases = append(cases, c)
	}
	for _, mask := range masks {
		_, err := s.Score(t.Context(), cases, mask, skip.FullPrefill)
		require.NoError(t, err)
		filled := 0
		for _, p := range s.kept {
			require.False(t, p.busy)
			require.True(t, p.filled)
			_, last := s.ctx.Positions(p.seq)
			require.Equal(t, len(p.tokens)-1, last, "the answers are removed")
			filled += len(p.tokens)
		}
		require.Equal(t, s.cells, filled)
		require.Len(t, s.kept, len(cases))
		kept := slices.Clone(s.kept) // pointers
		_, err = s.Score(t.Context(), cases[2:5], mask, skip.FullPrefill)
		require.NoError(t, err)
		for _, p := range kept {
			require.True(t, slices.Contains(s.kept, p), "none made again")
		}
	}

	_, err := s.Score(t.Context(), cases, masks[1], skip.MaskedPrefill)
	require.NoError(t, err)
	require.Empty(t, s.kept)
	require.Zero(t, s.cells)
	require.Len(t, s.free, 12)
}

// divergence is what Compare should give as KL.
func (r reference) divergence(c Case, mask skip.Mask, p skip.Prefill) float64 {
	r.t.Helper()
	answer := c.Answers[c.Right]
	whole := r.rows(c.Prompt, answer, skip.Mask{}, p)
	kl := 0.0
	for i, row := range r.rows(c.Prompt, answer, mask, p) {
		lnP, lnQ := logProbs(whole[i]), logProbs(row)
		for k := range lnP {
			kl += math.Exp(lnP[k]) * (lnP[k] - lnQ[k])
		}
	}
	return kl / float64(len(answer))
}

// TestCompare measures all masks in one go: as many results as masks, each as if
// it were measured alone.
func TestCompare(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 6))
	r := newReference(t, m)
	for _, o := range []Options{{Sequences: 8, NCtx: 256}, {Sequences: 2, NCtx: 256}} { // with 2, answers are measured apart
		s := newScorer(t, m, o)
		cases := randomCases(rand.New(rand.NewPCG(7, 7)), 25)
		for _, p := range prefills {
			scores, differences, err := s.Compare(t.Context(), cases, masks, p)
			require.NoError(t, err)
			for k, mask := range masks {
				changed := 0
				for i, d := range differences[k] {
					want := r.score(cases[i], mask, p)
					got := scores[k][i]
					require.InDeltaSlice(t, want.LogLik, got.LogLik, tolerance*(1-slices.Min(want.LogLik)))
					require.InDelta(t, want.Loss, got.Loss, tolerance*(1+want.Loss))
					require.InDelta(t, want.Margin, got.Margin, tolerance*(1+want.Loss))
					require.Equal(t, want.Exact, got.Exact)
					require.Len(t, got.Tokens, len(cases[i].Answers[cases[i].Right]))
					for a, logLik := range got.LogLik {
						sum := 0.0
						for _, token := range got.All[a] {
							sum += token.LogP
						}
						require.InDelta(t, logLik, sum, 1e-9) // the order may differ
					}
					require.InDelta(t, r.divergence(cases[i], mask, p), d.KL, tolerance)
					require.GreaterOrEqual(t, d.KL, 0.0)
					sum := 0.0
					for _, token := range d.Tokens {
						sum += token.KL / float64(len(d.Tokens))
					}
					require.InDelta(t, d.KL, sum, 1e-9)
					if mask.IsEmpty() {
						require.InDelta(t, 1, d.Agreement, 1e-9) // 1/n, n times
						require.Less(t, d.KL, 1e-5, "the same decode, but for places in the cache")
					}
					if d.Agreement < 0.99 {
						changed++
					}
				}
				if !mask.IsEmpty() {
					require.Positive(t, changed)
				}
			}
		}
	}
}

func TestScoreErrors(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 6))
	s := newScorer(t, m, Options{Sequences: 4, NCtx: 256})
	long := make([]llama.Token, 300)
	good := Case{Prompt: []llama.Token{1, 2}, Answers: [][]llama.Token{{3}, {4, 5}}}
	for name, c := range map[string]struct {
		bad  Case
		mask skip.Mask
		want error
		text string
	}{
		"no prompt":         {bad: Case{Answers: good.Answers}, want: ErrEmpty, text: "case 1 has no prompt"},
		"no answers":        {bad: Case{Prompt: long[:2]}, want: ErrCase, text: "answer 0 of 0"},
		"empty answer":      {bad: Case{Prompt: long[:2], Answers: [][]llama.Token{{3}, {}}}, want: ErrEmpty, text: "answer 1 of case 1 has no tokens"},
		"no such answer":    {bad: Case{Prompt: long[:2], Answers: good.Answers, Right: 2}, want: ErrCase, text: "answer 2 of 2"},
		"long answer":       {bad: Case{Prompt: long[:9], Answers: [][]llama.Token{{3}, long[:249]}}, want: ErrTooLong, text: "case 1 has a prompt of 9 tokens and an answer of 249, the context holds 256"},
		"long prompt":       {bad: Case{Prompt: long, Answers: good.Answers}, want: ErrTooLong, text: "a prompt of 300 tokens"},
		"no such layer":     {bad: good, mask: skip.Layers(6), want: skip.ErrMask, text: "layer 6"},
		"no such token":     {bad: Case{Prompt: []llama.Token{1 << 30, 1}, Answers: good.Answers}, want: llama.ErrBatch},
		"nothing is skewed": {bad: good},
	} {
		t.Run(name, func(t *testing.T) {
			for _, p := range prefills {
				_, err := s.Score(t.Context(), []Case{good, c.bad}, c.mask, p)
				if c.want == nil {
					require.NoError(t, err)
					continue
				}
				require.ErrorIs(t, err, c.want)
				require.ErrorContains(t, err, c.text)
				_, _, err = s.Compare(t.Context(), []Case{good, c.bad}, []skip.Mask{{}, c.mask}, p)
				require.ErrorIs(t, err, c.want)
				requireScores(t, newReference(t, m), s, []Case{good}, masks[1], p)
			}
		})
	}
	fits := Case{Prompt: long[:9], Answers: [][]llama.Token{long[:248]}}
	_, err := s.Score(t.Context(), []Case{fits}, skip.Mask{}, skip.FullPrefill)
	require.NoError(t, err, "the last token is not decoded")
	scores, err := s.Score(t.Context(), nil, skip.Mask{}, skip.FullPrefill)
	require.NoError(t, err)
	require.Empty(t, scores)
	for _, o := range []Options{{Sequences: 257}, {Sequences: -1}, {NCtx: 4, Sequences: 8}} {
		_, err := NewScorer(m, &o)
		require.ErrorIs(t, err, ErrOption)
	}
	_, err = NewScorer(m, &Options{Threads: -1})
	require.ErrorIs(t, err, llama.ErrOption)
}

func TestCancel(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Small(t, "llama")
	s := newScorer(t, m, Options{})
	random := rand.New(rand.NewPCG(9, 9))
	cases := randomCases(random, 300)
	for _, p := range prefills {
		for _, wait := range []time.Duration{0, 20 * time.Millisecond} {
			ctx, cancel := context.WithTimeout(t.Context(), wait)
			_, err := s.Score(ctx, cases, skip.Mask{}, p)
			require.ErrorIs(t, err, context.DeadlineExceeded)
			cancel()
			requireScores(t, newReference(t, m), s, cases[:3], masks[1], p)
		}
	}
}

func TestClose(t *testing.T) {
	llamatest.Library(t)
	s := newScorer(t, llamatest.Open(t, llamatest.Tiny(t, 2)), Options{})
	require.NoError(t, s.Close())
	require.NoError(t, s.Close())
	cases := []Case{{Prompt: []llama.Token{1}, Answers: [][]llama.Token{{2}}}}
	_, err := s.Score(t.Context(), cases, skip.Mask{}, skip.MaskedPrefill)
	require.ErrorIs(t, err, llama.ErrClosed)
	_, _, err = s.Compare(t.Context(), cases, nil, skip.FullPrefill)
	require.ErrorIs(t, err, llama.ErrClosed)
}

// TestRowsAllocateNothing holds for what is done with each row of logits.
func TestRowsAllocateNothing(t *testing.T) {
	p, q := make([]float32, 1000), make([]float32, 1000)
	require.Zero(t, testing.AllocsPerRun(10, func() {
		logSumExp(p)
		divergence(p, q)
	}))
}

func TestDivergence(t *testing.T) {
	inf := float32(math.Inf(-1))
	d := divergence([]float32{0, 0}, []float32{0, float32(math.Log(3))})
	require.InDelta(t, math.Log(2)-math.Log(3)/2, d.KL, 1e-7) // ½ ln(½/¼) + ½ ln(½/¾)
	require.False(t, d.Agree)
	require.InDelta(t, 0.75, d.Top, 1e-6)
	d = divergence([]float32{5, inf}, []float32{5, inf})
	require.Zero(t, d.KL, "what is impossible in both counts nothing")
	require.True(t, d.Agree)
	d = divergence([]float32{0, 0}, []float32{0, inf})
	require.True(t, math.IsInf(d.KL, 1))
	_, lse := logSumExp([]float32{1000, 1000})
	require.InDelta(t, 1000+math.Log(2), lse, 1e-6)
}

func BenchmarkLogSumExp(b *testing.B) {
	random := rand.New(rand.NewPCG(10, 10))
	logits := make([]float32, 151_936) // qwen's vocabulary
	for i := range logits {
		logits[i] = float32(4 * random.NormFloat64())
	}
	b.ReportAllocs()
	for b.Loop() {
		logSumExp(logits)
	}
}

// TestHold starts answers at the first layer that a mask names, with cases that
// have few answers, many, and more than fit at once.
func TestHold(t *testing.T) {
	llamatest.Library(t)
	for _, name := range []string{"llama", "gemma3", "qwen3", "llama-moe"} {
		t.Run(name, func(t *testing.T) {
			m := llamatest.Small(t, name)
			r := newReference(t, m)
			s := newScorer(t, m, Options{})
			cases := randomCases(rand.New(rand.NewPCG(8, 8)), 9)
			held, err := s.Hold(t.Context(), cases)
			require.NoError(t, err)
			require.True(t, held)
			last := skip.Layers(m.NLayer - 1)
			for _, mask := range append(masks, last, skip.Layers(0, 3)) {
				jobs, err := s.jobs(cases[2:7])
				require.NoError(t, err)
				want := mask.Lowest()
				if mask == last {
					want-- // something has to run
				}
				if mask.IsEmpty() {
					want = m.NLayer - 1
				}
				require.Equal(t, want, s.firstLayer(jobs, mask, skip.FullPrefill))
				requireScores(t, r, s, cases[2:7], mask, skip.FullPrefill)
				requireScores(t, r, s, cases[2:7], mask, skip.MaskedPrefill)
				_, err = s.Hold(t.Context(), cases)
				require.NoError(t, err)
			}
			other := randomCases(rand.New(rand.NewPCG(9, 9)), 2)
			requireScores(t, r, s, append(other, cases[0]), masks[1], skip.FullPrefill)

			s.inputs = nil
			requireScores(t, r, s, cases, masks[1], skip.FullPrefill)
		})
	}
}

// TestSingleTokenAnswers are the whole model's with a full prefill, whatever is
// skipped: also where no answer has a second token.
func TestSingleTokenAnswers(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 6))
	r := newReference(t, m)
	s := newScorer(t, m, Options{})
	random := rand.New(rand.NewPCG(11, 11))
	cases := randomCases(random, 7)
	for i := range cases {
		for a, answer := range cases[i].Answers {
			cases[i].Answers[a] = answer[:1]
		}
	}
	whole, err := s.Score(t.Context(), cases, skip.Mask{}, skip.FullPrefill)
	require.NoError(t, err)
	for range 2 {
		for _, mask := range masks {
			scores, differences, err := s.Compare(t.Context(), cases, []skip.Mask{mask}, skip.FullPrefill)
			require.NoError(t, err)
			for i, score := range scores[0] {
				require.True(t, math.IsNaN(score.KL), "these answers are not the model's own")
				score.KL, whole[i].KL = 0, 0 // NaN equals nothing
				require.Equal(t, whole[i], score)
			}
			for _, d := range differences[0] {
				require.Zero(t, d.KL)
				require.InDelta(t, 1, d.Agreement, 1e-9)
			}
		}
		held, err := s.Hold(t.Context(), cases)
		require.NoError(t, err)
		require.True(t, held)
		whole, err = s.Score(t.Context(), cases, masks[1], skip.FullPrefill)
		require.NoError(t, err)
	}
	more := randomCases(random, 5)
	_, err = s.Hold(t.Context(), slices.Concat(cases, more))
	require.NoError(t, err)
	requireScores(t, r, s, slices.Concat(more, cases), masks[2], skip.FullPrefill)
}

// TestHeldInputsAreChecked has layer inputs that do not lead to the model's own
// results, as those of an architecture that changes embeddings would not.
func TestHeldInputsAreChecked(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 6))
	s := newScorer(t, m, Options{})
	cases := randomCases(rand.New(rand.NewPCG(8, 8)), 3)
	_, err := s.Hold(t.Context(), cases)
	require.NoError(t, err)
	require.Len(t, s.inputs, len(cases))
	for _, change := range []float32{1, 1 + 1e-6} {
		for _, inputs := range s.inputs {
			inputs[0] *= change // of layer 1
		}
		jobs, err := s.jobs(cases)
		require.NoError(t, err)
		require.NoError(t, s.work(t.Context(), jobs, skip.Mask{}, skip.FullPrefill, s.ctx.NCtx(), func(group []job) error {
			s.loadInputs(group)
			want, err := s.scoreFrom(cases, group, 0, nil)
			require.NoError(t, err)
			fits, err := s.inputsFit(cases, group, want)
			require.Equal(t, change == 1, fits)
			return err
		}))
	}
}

// TestHeldInputsHaveTheirRoom goes on without those that find none.
func TestHeldInputsHaveTheirRoom(t *testing.T) {
	llamatest.Library(t)
	m := llamatest.Open(t, llamatest.Tiny(t, 6))
	s := newScorer(t, m, Options{})
	cases := randomCases(rand.New(rand.NewPCG(8, 8)), 5)
	jobs, err := s.jobs(cases)
	require.NoError(t, err)
	s.inputs, s.keeping = map[string][]float32{}, true
	s.room = 4 * (jobs[0].cells + jobs[1].cells) * (m.NLayer - 1) * m.NEmbd
	_, err = s.Score(t.Context(), cases, skip.Mask{}, skip.FullPrefill)
	s.keeping = false
	require.NoError(t, err)
	require.Len(t, s.inputs, 2)
	require.Equal(t, 3, s.firstLayer(jobs[:2], skip.Layers(3), skip.FullPrefill))
	require.Zero(t, s.firstLayer(jobs[:3], skip.Layers(3), skip.FullPrefill))
	requireScores(t, newReference(t, m), s, cases, masks[1], skip.FullPrefill)
}
