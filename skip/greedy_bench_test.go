package skip_test

import (
	"bufio"
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// demoCase is an example of the demo model's calibration data in tokens.
type demoCase struct {
	tokens []llama.Token // prompt, answer, end of turn
	answer int           // where the answer begins
}

// demoScorer is the plain way to task losses: prompt and answer of several
// examples in one decode, all under the mask.
type demoScorer struct {
	model   *llama.Model
	context *llama.Context
	batch   *llama.Batch
	tasks   []string // sorted as in the file
	cases   map[string][]demoCase
}

const (
	demoSequences = 16   // examples in one decode
	demoTokens    = 2048 // in one decode
)

func newDemoScorer(tb testing.TB) *demoScorer {
	tb.Helper()
	llamatest.Library(tb)
	path, err := demo.Path()
	require.NoError(tb, err)
	s := &demoScorer{model: llamatest.Open(tb, path), cases: map[string][]demoCase{}}
	s.context = llamatest.Context(tb, s.model, &llama.ContextOptions{
		NCtx: demoSequences * 256, NBatch: demoTokens, NUBatch: demoTokens, NSeqMax: demoSequences, Threads: 1,
	})
	s.batch, err = llama.NewBatch(demoTokens, nil)
	require.NoError(tb, err)
	tb.Cleanup(func() { s.batch.Close() })

	file, err := os.Open(filepath.Join("..", "demo", "calibration.jsonl"))
	require.NoError(tb, err)
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var example struct{ Prompt, Answer, Task string }
		require.NoError(tb, json.Unmarshal(lines.Bytes(), &example))
		text, err := s.model.ApplyTemplate([]llama.Message{{Role: "user", Content: example.Prompt}}, true)
		require.NoError(tb, err)
		prompt, err := s.model.Vocab.Tokenize(text, true)
		require.NoError(tb, err)
		answer, err := s.model.Vocab.Tokenize(example.Answer, false)
		require.NoError(tb, err)
		end := s.model.Vocab.EOT
		if end == llama.NoToken {
			end = s.model.Vocab.EOS
		}
		if s.cases[example.Task] == nil {
			s.tasks = append(s.tasks, example.Task)
		}
		s.cases[example.Task] = append(s.cases[example.Task],
			demoCase{tokens: append(append(prompt, answer...), end), answer: len(prompt)})
	}
	require.NoError(tb, lines.Err())
	return s
}

// losses gives a task's losses, in nats per answer token.
func (s *demoScorer) losses(task string) skip.Losses {
	return func(ctx context.Context, mask skip.Mask, from, to int) ([]float64, error) {
		var out []float64
		for _, cases := range chunks(s.cases[task][from:to], demoSequences) {
			losses, err := s.decode(cases, mask)
			if err != nil {
				return nil, err
			}
			out = append(out, losses...)
		}
		return out, nil
	}
}

func chunks(cases []demoCase, n int) (list [][]demoCase) {
	for len(cases) > n {
		list, cases = append(list, cases[:n]), cases[n:]
	}
	return append(list, cases)
}

func (s *demoScorer) decode(cases []demoCase, mask skip.Mask) ([]float64, error) {
	s.context.Clear()
	s.batch.Clear()
	for seq, c := range cases {
		for pos, t := range c.tokens {
			// The logits at a position are of the next token.
			output := pos >= c.answer-1 && pos < len(c.tokens)-1
			if err := s.batch.Add(t, pos, output, seq); err != nil {
				return nil, err
			}
		}
	}
	if err := s.context.Decode(s.batch, mask); err != nil {
		return nil, err
	}
	losses := make([]float64, len(cases))
	first := 0 // place of the example's first token in the batch
	for i, c := range cases {
		for pos := c.answer; pos < len(c.tokens); pos++ {
			logits, err := s.context.Logits(first + pos - 1)
			if err != nil {
				return nil, err
			}
			losses[i] += surprise(logits, c.tokens[pos]) / float64(len(c.tokens)-c.answer)
		}
		first += len(c.tokens)
	}
	return losses, nil
}

// surprise is -ln p of a token.
func surprise(logits []float32, t llama.Token) float64 {
	top := math.Inf(-1)
	for _, l := range logits {
		top = max(top, float64(l))
	}
	sum := 0.0
	for _, l := range logits {
		sum += math.Exp(float64(l) - top)
	}
	return math.Log(sum) + top - float64(logits[t])
}

// greedyProblem is a search whose result is compared with the exhaustive one's.
type greedyProblem struct {
	units   []skip.Unit
	losses  skip.Losses
	options skip.SearchOptions
}

// benchExamples is how many examples each search has.
const benchExamples = 64

// BenchmarkGreedy compares the search with the exhaustive one: its share of the
// evaluations, the geometric mean of its final losses over those of the
// exhaustive search, and the share of searches within 1 % or better. It runs on
// made-up losses, and on the demo model's (several minutes on a slow machine)
// when GALLOP_BENCH_DEMO is set.
func BenchmarkGreedy(b *testing.B) {
	const seeds = 400
	for _, c := range []struct {
		name   string
		layers int
		depth  float64
		halves bool
	}{{"layers-12", 12, 4, false}, {"sublayers-12", 12, 4, true}, {"layers-32", 32, 7, false}} {
		b.Run(c.name, func(b *testing.B) {
			units, o := skip.LayerUnits(evenSizes(c.layers)), skip.SearchOptions{Depth: c.depth}
			if c.halves {
				units, o.PerByte = skip.SublayerUnits(evenSizes(c.layers)), true
			}
			var problems []greedyProblem
			for seed := range uint64(seeds) {
				problems = append(problems, greedyProblem{units, newFakeModel(units, benchExamples, seed).losses, o})
			}
			benchGreedy(b, problems)
		})
	}
	if os.Getenv("GALLOP_BENCH_DEMO") == "" {
		return
	}
	model := newDemoScorer(b)
	log, err := skip.CreateLog(filepath.Join(b.TempDir(), "losses.log"), "demo")
	require.NoError(b, err)
	defer log.Close()
	sizes := skip.SizesOf(model.model.Tensors, model.model.NLayer)
	layers, sublayers := skip.SearchOptions{Depth: 4}, skip.SearchOptions{Depth: 4, PerByte: true}
	for _, task := range model.tasks {
		losses := log.Wrap(task, model.losses(task))
		b.Run("demo-layers-"+task, func(b *testing.B) {
			benchGreedy(b, []greedyProblem{{skip.LayerUnits(sizes), losses, layers}})
		})
		b.Run("demo-sublayers-"+task, func(b *testing.B) {
			benchGreedy(b, []greedyProblem{{skip.SublayerUnits(sizes), losses, sublayers}})
		})
	}
}

func benchGreedy(b *testing.B, problems []greedyProblem) {
	var share, ratio, near float64
	n := float64(len(problems))
	for b.Loop() {
		share, ratio, near = 0, 0, 0
		for _, p := range problems {
			few := lastStep(b, p)
			p.options.Exhaustive = true
			all := lastStep(b, p)
			share += few.Evaluations / all.Evaluations / n
			ratio += math.Log(few.Loss/all.Loss) / n
			if few.Loss <= 1.01*all.Loss {
				near += 1 / n
			}
		}
	}
	b.ReportMetric(share, "evaluations/exhaustive")
	b.ReportMetric(math.Exp(ratio), "loss/exhaustive")
	b.ReportMetric(near, "within-1%")
}

// lastStep searches and gives the end of the path.
func lastStep(tb testing.TB, p greedyProblem) skip.Step {
	tb.Helper()
	path, err := skip.Greedy(context.Background(), p.units, benchExamples, p.losses, &p.options)
	require.NoError(tb, err)
	return path[len(path)-1]
}
