// Command neurons measures what answers lose when neurons or halves of feed-forwards are left
// out, at equal bytes:
//
//	go run ./scripts/neurons -data DIR -o build/neurons.json smollm2-135m-instruct
//
// The whole model answers the prompts of DIR/spec_bench.jsonl greedily. Then each token of its answers is
// predicted again with a part of the weights, behind the prompt as the whole model has read it. Neurons and halves
// are chosen by built-in prompts, by each prompt's own pass, or by both. Rows of models that were not measured
// this time stay in the file.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/files"
	"github.com/gallop-llm/gallop/internal/neurons"
	"github.com/gallop-llm/gallop/internal/realmodel"
	"github.com/gallop-llm/gallop/internal/search"
	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// row is what a method came to.
type row struct {
	Model   string  `json:"model"`
	Spared  float64 `json:"spared"` // share of the layers' bytes that a token does not read
	Method  string  `json:"method"`
	Mask    string  `json:"mask"`
	KL      float64 `json:"kl"`    // mean divergence from the whole model's distribution, nats
	Agree   float64 `json:"agree"` // share of tokens whose likeliest token stays the same
	Keep    float64 `json:"keep"`  // share of the answer's probability that is kept, per token
	Tokens  int     `json:"tokens"`
	Prompts int     `json:"prompts"`
}

type report struct {
	Rows []row `json:"rows"`
}

type options struct {
	data, out string
	prompts   int // of the test, at most
	tokens    int // at least, if the prompts have as many
	search    int // prompts that static halves are searched by
	shares    string
	threads   int
	speed     bool
	rounds    int
}

func main() {
	var o options
	flag.StringVar(&o.data, "data", "", "folder with spec_bench.jsonl")
	flag.StringVar(&o.out, "o", "build/neurons.json", "file to write")
	flag.IntVar(&o.prompts, "prompts", 1000, "most prompts to answer")
	flag.IntVar(&o.tokens, "tokens", 2000, "tokens of answers to measure on")
	flag.IntVar(&o.search, "search", 8, "built-in prompts to search static halves by")
	flag.StringVar(&o.shares, "spared", "0.1,0.2,0.3", "shares of the layers' bytes to leave out")
	flag.IntVar(&o.threads, "threads", 0, "threads, 0 = the model's default")
	flag.BoolVar(&o.speed, "speed", false, "measure the speed of model files instead of what answers lose; wants a quiet machine")
	flag.IntVar(&o.rounds, "rounds", 5, "turns of 7 tokens each, with -speed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, &o, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "neurons:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o *options, names []string) error {
	if o.speed {
		if _, err := libs.Load(); err != nil {
			return err
		}
		for _, name := range names {
			if err := speed(ctx, name, o.threads, o.rounds); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	}
	if o.data == "" || len(names) == 0 {
		return errors.New("name the folder of the data, DATA=, and models, MODELS=")
	}
	var spared []float64
	for text := range strings.SplitSeq(o.shares, ",") {
		share, err := strconv.ParseFloat(text, 64)
		if err != nil || !(share > 0 && share < 1) {
			return fmt.Errorf("-spared: %q is no share above 0 and below 1", text)
		}
		spared = append(spared, share)
	}
	prompts, problems, err := dataset.Read([]string{filepath.Join(o.data, "spec_bench.jsonl")}, nil)
	if err != nil {
		return err
	}
	for _, p := range problems {
		fmt.Fprintln(os.Stderr, "neurons:", p)
	}
	if _, err := libs.Load(); err != nil {
		return err
	}
	for _, name := range names {
		rows, err := measure(ctx, o, name, prompts, spared)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := keep(o.out, name, rows); err != nil {
			return err
		}
	}
	return nil
}

// keep puts a model's rows into the file, in place of those that were there.
func keep(path, model string, rows []row) error {
	var r report
	if data, err := os.ReadFile(path); err == nil {
		if err := json.Unmarshal(data, &r); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	r.Rows = append(slices.DeleteFunc(r.Rows, func(old row) bool { return old.Model == model }), rows...)
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return files.Write(path, append(data, '\n'))
}

// method is a way to leave something out.
type method struct {
	name   string
	mask   skip.Mask
	spared float64
	anew   int // neurons are chosen anew after as many tokens, 0 = never
	choose func(heard *neurons.Heard) [][]int32

	sums sums
}

type sums struct {
	kl, log  float64
	agree, n int
	prompts  int
}

// bench has what is measured with.
type bench struct {
	m      *llama.Model
	c      *llama.Context
	b      *llama.Batch
	order  *neurons.Order
	sizes  search.Sizes
	layers uint64 // bytes
	choice map[int]*neurons.Choice
}

const (
	contextTokens = 1024
	answerTokens  = 56
	chunk         = 16 // tokens after which neurons are chosen anew
)

func measure(ctx context.Context, o *options, name string, prompts []dataset.Example, spared []float64) (rows []row, err error) {
	path, err := realmodel.Path(name)
	if err != nil {
		return nil, err
	}
	m, err := llama.LoadModel(ctx, path, &llama.ModelOptions{GPULayers: llama.CPUOnly, ForText: true})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	t := &bench{m: m, sizes: search.SizesOf(m.Tensors, m.NLayer), choice: map[int]*neurons.Choice{}}
	dir, err := neurons.Dir()
	if err != nil {
		return nil, err
	}
	if t.order, err = neurons.Read(m, dir); errors.Is(err, neurons.ErrNoOrder) {
		fmt.Fprintln(os.Stderr, name, "learning the order of neurons")
		if err = neurons.Learn(ctx, m, dir, o.threads, nil); err == nil {
			t.order, err = neurons.Read(m, dir)
		}
	}
	if err != nil {
		return nil, err
	}
	defer t.order.Close()
	for l := range m.NLayer {
		t.layers += t.sizes.Attention[l] + t.sizes.FeedForward[l]
	}
	if t.c, err = m.NewContext(&llama.ContextOptions{NCtx: (1 + o.search) * contextTokens, NBatch: contextTokens, NSeqMax: 1 + o.search, KVUnified: true, Threads: o.threads}); err != nil {
		return nil, err
	}
	defer t.c.Close()
	if t.b, err = llama.NewBatch(contextTokens, nil); err != nil {
		return nil, err
	}
	defer t.b.Close()
	if err := t.c.MeasureActivity(true); err != nil {
		return nil, err
	}
	t.c.AbortOn(ctx)
	methods, err := t.methods(o, spared)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, c := range t.choice {
			err = errors.Join(err, c.Close())
		}
	}()
	tokens, used, start := 0, 0, time.Now()
	for _, p := range spread(prompts) {
		if tokens >= o.tokens || used == o.prompts {
			break
		}
		a, err := t.answer(p.Prompt, 0)
		if err != nil {
			return nil, err
		}
		if a == nil {
			continue
		}
		for _, m := range methods {
			if err := t.try(m, a); err != nil {
				return nil, fmt.Errorf("%s, %s: %w", m.name, m.mask, err)
			}
		}
		used++
		tokens += len(a.tokens) - 1
		fmt.Fprintf(os.Stderr, "\r%s: %d of %d tokens, %s", name, tokens, o.tokens, time.Since(start).Round(time.Second))
	}
	fmt.Fprintln(os.Stderr)
	for _, m := range methods {
		n := float64(max(m.sums.n, 1))
		r := row{name, round(m.spared), m.name, m.mask.String(), round(m.sums.kl / n), round(float64(m.sums.agree) / n), round(math.Exp(m.sums.log / n)), m.sums.n, m.sums.prompts}
		rows = append(rows, r)
		fmt.Printf("%-24s %5.3f  %-40s kl %.4f agree %.4f keep %.4f  (%d tokens) %s\n", name, r.Spared, r.Method, r.KL, r.Agree, r.Keep, r.Tokens, r.Mask)
	}
	return rows, nil
}

func round(x float64) float64 { return math.Round(x*1e4) / 1e4 }

// spread takes prompts of each task in turn.
func spread(prompts []dataset.Example) []dataset.Example {
	seen := map[string]int{}
	turn := make([]int, len(prompts))
	at := make([]int, len(prompts))
	for i, p := range prompts {
		turn[i], at[i] = seen[p.Task], i
		seen[p.Task]++
	}
	slices.SortStableFunc(at, func(a, b int) int { return cmp.Compare(turn[a], turn[b]) })
	list := make([]dataset.Example, len(prompts))
	for i, k := range at {
		list[i] = prompts[k]
	}
	return list
}

// methods are all that is measured.
func (t *bench) methods(o *options, spared []float64) ([]*method, error) {
	prompt := *t.order // without static scores
	prompt.Layers = slices.Clone(prompt.Layers)
	for l := range prompt.Layers {
		prompt.Layers[l].Static = make([]float32, len(prompt.Layers[l].Static))
	}
	var list []*method
	for _, s := range spared {
		share := t.share(s)
		if share == 0 {
			continue
		}
		c, err := t.order.New(share)
		if err != nil {
			return nil, err
		}
		t.choice[share] = c
		mask := skip.Mask{}.WithNeurons(share, len(t.choice)-1)
		if err := t.c.SetNeurons(len(t.choice)-1, c.Neurons); err != nil {
			return nil, err
		}
		real := float64(t.order.Spared(skip.Mask{}.WithNeurons(share, 0))) / float64(t.layers)
		both := func(h *neurons.Heard) [][]int32 { return t.order.Choose(h, share) }
		list = append(list,
			&method{name: "neurons, static", mask: mask, spared: real, choose: func(*neurons.Heard) [][]int32 { return t.order.Choose(nil, share) }},
			&method{name: "neurons, prompt", mask: mask, spared: real, choose: func(h *neurons.Heard) [][]int32 { return prompt.Choose(h, share) }},
			&method{name: "neurons, prompt + static", mask: mask, spared: real, choose: both},
			&method{name: "neurons, prompt + static, anew every 16 tokens", mask: mask, spared: real, choose: both, anew: chunk})
	}
	if o.search > 0 {
		halves, err := t.search(o.search, spared)
		if err != nil {
			return nil, err
		}
		for _, mask := range halves {
			list = append(list, &method{name: "halves, static", mask: mask, spared: float64(t.sizes.Bytes(mask)) / float64(t.layers)})
		}
	}
	return list, nil
}

// share is that of neurons which leaves out a share of the layers' bytes, 0 = there is none.
func (t *bench) share(spared float64) int {
	for share := 1; share <= skip.MaxNeurons; share++ {
		if float64(t.order.Spared(skip.Mask{}.WithNeurons(share, 0))) >= spared*float64(t.layers) {
			return share
		}
	}
	return 0
}

// answer is what the whole model says to a prompt.
type answer struct {
	seq    int
	prompt int           // tokens
	tokens []llama.Token // of the answer
	logs   [][]float32   // the whole model's log-probabilities after each token of the answer but the last
	top    []int32       // likeliest tokens
	heard  *neurons.Heard
	chunks []*neurons.Heard // of the answer's tokens
}

func (t *bench) answer(prompt string, seq int) (*answer, error) {
	text, err := t.m.Render(llama.Conversation{Messages: []llama.Message{{Role: "user", Content: prompt}}, Answer: true})
	if err != nil {
		return nil, err
	}
	tokens, err := t.m.Vocab.TokenizeText(text)
	if err != nil {
		return nil, err
	}
	if len(tokens) > contextTokens-answerTokens-1 {
		return nil, nil
	}
	if err := t.c.Remove(seq, 0, -1); err != nil {
		return nil, err
	}
	t.c.ResetActivity(seq)
	if err := t.decode(seq, tokens, 0, skip.Mask{}, false); err != nil {
		return nil, err
	}
	a := &answer{seq: seq, prompt: len(tokens), heard: neurons.NewHeard(t.m.NLayer)}
	a.heard.Hear(t.c, seq, 2) // the last layer sees the last token alone
	logits, err := t.c.Logits(-1)
	if err != nil {
		return nil, err
	}
	for {
		next, _ := llama.TopProbability(logits)
		if t.m.Vocab.IsEnd(next) || len(a.tokens) == answerTokens {
			break
		}
		a.tokens = append(a.tokens, next)
		if err := t.decode(seq, []llama.Token{next}, a.prompt+len(a.tokens)-1, skip.Mask{}, false); err != nil {
			return nil, err
		}
		if logits, err = t.c.Logits(-1); err != nil {
			return nil, err
		}
		a.logs = append(a.logs, logSoftmax(slices.Clone(logits)))
		likeliest, _ := llama.TopProbability(logits)
		a.top = append(a.top, int32(likeliest))
		if len(a.tokens)%chunk == 0 {
			h := neurons.NewHeard(t.m.NLayer)
			h.Hear(t.c, seq, 1)
			a.chunks = append(a.chunks, h)
		}
	}
	const least = 12 // tokens
	if len(a.tokens) < least {
		return nil, nil
	}
	return a, nil
}

// decode appends tokens; all: each has logits.
func (t *bench) decode(seq int, tokens []llama.Token, pos int, mask skip.Mask, all bool) error {
	t.b.Clear()
	for i, token := range tokens {
		if err := t.b.Add(token, pos+i, all || i == len(tokens)-1, seq); err != nil {
			return err
		}
	}
	return t.c.Decode(t.b, mask)
}

// try predicts an answer's tokens again.
func (t *bench) try(m *method, a *answer) error {
	if err := t.c.Remove(a.seq, a.prompt, -1); err != nil {
		return err
	}
	n := len(a.tokens) - 1
	step := cmp.Or(m.anew, n)
	for from := 0; from < n; from += step {
		if m.choose != nil {
			heard := a.heard
			if k := from / chunk; k > 0 {
				recent := a.chunks[k-1]
				if k > 1 {
					recent = a.chunks[k-2].Plus(recent, 1)
				}
				weight := float32(2)
				if k > 1 {
					weight = 1 // two chunks' means were added
				}
				heard = heard.Plus(recent, weight)
			}
			if _, err := t.choice[m.mask.Neurons()].Set(m.choose(heard)); err != nil {
				return err
			}
		}
		end := min(from+step, n)
		if err := t.decode(a.seq, a.tokens[from:end], a.prompt+from, m.mask, true); err != nil {
			return err
		}
		for i := from; i < end; i++ {
			logits, err := t.c.Logits(i - from)
			if err != nil {
				return err
			}
			m.sums.add(a.logs[i], logSoftmax(slices.Clone(logits)), a.top[i], int(a.tokens[i+1]))
		}
	}
	m.sums.prompts++
	return nil
}

func (s *sums) add(whole, part []float32, top int32, next int) {
	kl, best := 0.0, 0
	for i, p := range part {
		if w := whole[i]; w > -20 {
			kl += math.Exp(float64(w)) * float64(w-p)
		}
		if p > part[best] {
			best = i
		}
	}
	s.kl += kl
	s.log += float64(part[next] - whole[next])
	if int32(best) == top {
		s.agree++
	}
	s.n++
}

// logSoftmax turns logits into log-probabilities, in place.
func logSoftmax(x []float32) []float32 {
	top, sum := slices.Max(x), 0.0
	for _, v := range x {
		if d := v - top; d > -30 {
			sum += math.Exp(float64(d))
		}
	}
	z := top + float32(math.Log(sum))
	for i := range x {
		x[i] -= z
	}
	return x
}

// search finds the halves of feed-forwards whose loss on built-in prompts is least, one after
// the other, for each share of bytes. The ten best single ones are tried again for each next one.
func (t *bench) search(n int, spared []float64) (masks []skip.Mask, err error) {
	var answers []*answer
	for i, p := range spread(dataset.Starter())[:n] {
		a, err := t.answer(p.Prompt, 1+i)
		if err != nil {
			return nil, err
		}
		if a != nil {
			answers = append(answers, a)
		}
	}
	loss := func(mask skip.Mask) (float64, error) {
		m := &method{mask: mask}
		for _, a := range answers {
			if err := t.try(m, a); err != nil {
				return 0, err
			}
		}
		return m.sums.kl / float64(max(m.sums.n, 1)), nil
	}
	type half struct {
		layer int
		loss  float64
	}
	var ranked []half
	for l := range t.m.NLayer {
		x, err := loss(skip.Mask{}.With(l, skip.FeedForward))
		if err != nil {
			return nil, err
		}
		ranked = append(ranked, half{l, x})
		fmt.Fprintf(os.Stderr, "\rsearch: half %d of %d", l+1, t.m.NLayer)
	}
	slices.SortFunc(ranked, func(a, b half) int { return cmp.Compare(a.loss, b.loss) })
	mask := skip.Mask{}.With(ranked[0].layer, skip.FeedForward)
	for _, s := range spared {
		for float64(t.sizes.Bytes(mask))+0.5*float64(t.sizes.FeedForward[ranked[0].layer]) < s*float64(t.layers) {
			best, tried := half{-1, math.Inf(1)}, 0
			for _, h := range ranked {
				if mask.Skipped(h.layer) != 0 {
					continue
				}
				if tried++; tried > 10 {
					break
				}
				x, err := loss(mask.With(h.layer, skip.FeedForward))
				if err != nil {
					return nil, err
				}
				if x < best.loss {
					best = half{h.layer, x}
				}
			}
			mask = mask.With(best.layer, skip.FeedForward)
			fmt.Fprintf(os.Stderr, "\rsearch: %-40s", mask)
		}
		masks = append(masks, mask)
	}
	fmt.Fprintln(os.Stderr)
	return masks, nil
}
