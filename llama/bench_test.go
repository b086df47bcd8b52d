package llama_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// stepper decodes the same position again and again.
type stepper struct {
	c *llama.Context
	b *llama.Batch
}

func newStepper(t testing.TB, layers int) stepper {
	m := llamatest.Open(t, llamatest.Tiny(t, layers))
	c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 256, Threads: 1})
	b, err := llama.NewBatch(1, nil)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return stepper{c, b}
}

// step is one token's decode, and all that a generation does in Go for it.
func (s stepper) step(mask skip.Mask) error {
	s.b.Clear()
	if err := s.b.Add(7, 0, true, 0); err != nil {
		return err
	}
	if err := s.c.Decode(s.b, mask); err != nil {
		return err
	}
	if _, err := s.c.Logits(-1); err != nil {
		return err
	}
	return s.c.Remove(0, 0, -1)
}

// TestStepAllocatesNothing holds for the path of every generated token.
func TestStepAllocatesNothing(t *testing.T) {
	llamatest.Library(t)
	s := newStepper(t, 2)
	p, err := s.c.Model.NewSampler(llama.Sampling{TopK: 5, Temp: 1, Seed: 1})
	require.NoError(t, err)
	defer p.Close()
	d := llama.Detokenizer{Vocab: s.c.Model.Vocab}
	mask := skip.Layers(1)
	require.NoError(t, s.step(mask))
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if err := s.step(mask); err != nil {
			t.Fatal(err)
		}
	}))
	decode(t, s.c, prompt(3), 0, mask)
	require.LessOrEqual(t, testing.AllocsPerRun(100, func() {
		tok, err := p.Sample(s.c, -1)
		if err != nil {
			t.Fatal(err)
		}
		_ = d.Next(tok)
	}), 1.0, "the text itself")
}

// BenchmarkDecode compares decodes under one mask with decodes whose mask changes
// each time: the difference is what a switch costs, a new graph and its edit
// included. The model has next to no weights, so what remains is overhead.
func BenchmarkDecode(b *testing.B) {
	llamatest.Library(b)
	for _, layers := range []int{8, 32, 100} {
		s := newStepper(b, layers)
		for name, masks := range map[string][2]skip.Mask{
			"whole":          {},
			"masked":         {skip.Layers(2), skip.Layers(2)},
			"switching":      {skip.Layers(2), skip.Layers(3)},
			"switching back": {skip.Layers(2), {}},
		} {
			b.Run(fmt.Sprintf("%d layers/%s", layers, name), func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					if err := s.step(masks[i%2]); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkRows decodes a token for each of 8 sequences of a 1B model: under 8 different masks, under
// one mask, and without any. The ways take turns, and each is compared with the unmasked decode of its
// own round: what is reported is the median of these ratios of speed.
func BenchmarkRows(b *testing.B) {
	llamatest.Library(b)
	const sequences, cached = 8, 32
	path, err := randmodel.Cached(context.Background(), "llama-3.2-1b", gguf.Q4_0, 1, false, nil)
	require.NoError(b, err)
	m := llamatest.Open(b, path)
	random := rand.New(rand.NewPCG(1, 8))
	different := make([]skip.Mask, sequences) // a quarter of the halves each
	for s := range different {
		for _, half := range random.Perm(2 * m.NLayer)[:m.NLayer/2] {
			different[s][half/64] |= 1 << (half % 64)
		}
	}
	ways := []struct {
		name  string
		masks []skip.Mask
	}{{"unmasked", make([]skip.Mask, sequences)}, {"different", different}, {"same", slices.Repeat(different[:1], sequences)}, {"again", make([]skip.Mask, sequences)}}
	steps := make([]func() time.Duration, len(ways))
	for w, way := range ways {
		c := llamatest.Context(b, m, &llama.ContextOptions{NCtx: 1024, NSeqMax: sequences, KVUnified: true})
		batch, err := llama.NewBatch(sequences, nil)
		require.NoError(b, err)
		b.Cleanup(func() { require.NoError(b, batch.Close()) })
		for s := range sequences {
			require.NoError(b, c.Decode(llamatest.Batch(b, prompt(cached), 0, s), none))
		}
		steps[w] = func() time.Duration {
			start := time.Now()
			batch.Clear()
			for s, mask := range way.masks {
				require.NoError(b, batch.Add(7, cached, true, s))
				require.NoError(b, batch.SetMask(s, mask))
			}
			require.NoError(b, c.Decode(batch, none))
			_, err := c.Logits(-1)
			require.NoError(b, err)
			spent := time.Since(start)
			require.NoError(b, c.Remove(-1, cached, -1))
			return spent
		}
		if way.name == "again" { // unmasked after another mask: llama.cpp's own graph, and a new plan for its memory
			way.masks = different
			steps[w]()
			way.masks = ways[w].masks
		}
		steps[w]() // builds the graph
	}
	ratios := make([][]float64, len(ways))
	for i := 0; b.Loop(); i++ {
		spent := make([]time.Duration, len(ways))
		for k := range ways {
			w := k
			if i%2 == 1 {
				w = len(ways) - 1 - k
			}
			spent[w] = steps[w]()
		}
		for w := range ways {
			ratios[w] = append(ratios[w], spent[0].Seconds()/spent[w].Seconds())
		}
	}
	for w, way := range ways[1:] {
		list := slices.Sorted(slices.Values(ratios[w+1]))
		b.ReportMetric(list[len(list)/2], way.name+"/unmasked")
	}
}

// BenchmarkHook is the edit of a graph alone, a quarter of the layers skipped.
func BenchmarkHook(b *testing.B) {
	llamatest.Library(b)
	program := hookProgram(b)
	for _, layers := range []int{32, 100} {
		model := llamatest.Tiny(b, layers)
		b.Run(fmt.Sprintf("%d layers", layers), func(b *testing.B) {
			b.ReportMetric(timeHook(b, program, model, layers/4, b.N), "ns/op") // in place of the program's whole time
		})
	}
}

// TestHookProgram keeps what the benchmark builds in step with the hook.
func TestHookProgram(t *testing.T) {
	llamatest.Library(t)
	require.Positive(t, timeHook(t, hookProgram(t), llamatest.Tiny(t, 8), 2, 3))
}

// hookProgram builds testdata/hook.c.
func hookProgram(t testing.TB) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "hook")
	out, err := exec.Command("cc", "testdata/hook.c", "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-rdynamic",
		"-I../third_party/llama.cpp/include", "-I../third_party/layerskip", "-o", program, "-ldl").CombinedOutput()
	require.NoError(t, err, "cc: %s", out)
	return program
}

// timeHook runs it: the mean nanoseconds of an edit.
func timeHook(t testing.TB, program, model string, layers, rounds int) float64 {
	t.Helper()
	lib, err := llama.FindLibrary([]string{llama.Dir()})
	require.NoError(t, err)
	out, err := exec.Command(program, lib, model, strconv.Itoa(layers), strconv.Itoa(rounds)).Output()
	require.NoError(t, err)
	ns, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	require.NoError(t, err)
	return ns
}

// BenchmarkTokenLoop is all that a generation does for a token, in a model with
// next to no weights: what Gallop and llama.cpp cost beside the arithmetic.
func BenchmarkTokenLoop(b *testing.B) {
	llamatest.Library(b)
	s := newStepper(b, 16)
	p, err := s.c.Model.NewSampler(llama.Sampling{})
	require.NoError(b, err)
	defer p.Close()
	d := llama.Detokenizer{Vocab: s.c.Model.Vocab}
	mask, tok := skip.Layers(4, 5), llama.Token(7)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if i%s.c.NCtx() == 0 {
			s.c.Clear()
		}
		s.b.Clear()
		if err := s.b.Add(tok, i%s.c.NCtx(), true, 0); err != nil {
			b.Fatal(err)
		}
		if err := s.c.Decode(s.b, mask); err != nil {
			b.Fatal(err)
		}
		if tok, err = p.Sample(s.c, -1); err != nil {
			b.Fatal(err)
		}
		_ = d.Next(tok)
	}
}

// BenchmarkSample chooses from Llama 3's vocabulary.
func BenchmarkSample(b *testing.B) {
	llamatest.Library(b)
	spec := randmodel.Small("llama")
	spec.Layers, spec.Vocab = 1, 128256
	m := llamatest.Open(b, llamatest.Write(b, spec))
	c := llamatest.Context(b, m, &llama.ContextOptions{NCtx: 256, Threads: 1})
	decode(b, c, prompt(4), 0, none)
	for name, sampling := range map[string]llama.Sampling{
		"greedy": {}, "default": llama.DefaultSampling(), "grammar": {Grammar: `root ::= [a-z]+`},
		"full": {LogitBias: map[llama.Token]float32{1: 1}, RepeatPenalty: 1.1, TopK: 40, TopP: 0.95, MinP: 0.05, Temp: 0.8},
	} {
		b.Run(name, func(b *testing.B) {
			p, err := m.NewSampler(sampling)
			require.NoError(b, err)
			defer p.Close()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := p.Sample(c, -1); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkDetokenize(b *testing.B) {
	llamatest.Library(b)
	d := llama.Detokenizer{Vocab: llamatest.Small(b, "llama").Vocab}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		_ = d.Next(llama.Token(i % 256))
	}
}
