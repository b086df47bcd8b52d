// Command realspeed measures what gallop brings on real models beside stock decoding,
// and writes a row for each model into a JSON file:
//
//	go run ./scripts/realspeed -bin build -o build/real.json demo smollm2-135m-instruct
//
// -bin is the folder with gallop and the commands that measure the first token,
// lossless mode and busy machines. A row that is there already is replaced, so a run that
// was stopped goes on with the models that are left.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/files"
	"github.com/gallop-llm/gallop/internal/realmodel"
	"github.com/gallop-llm/gallop/internal/shortlist"
	"github.com/gallop-llm/gallop/internal/stats"
	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
)

// row is what is measured of a model. Ratios over stock are medians of pairs that take turns.
// null is what was not measured.
type row struct {
	Name           string   `json:"name"`
	StockTPS       float64  `json:"stock_tps"`            // decode, whole model and matrix
	Shortlist      *listed  `json:"shortlist"`            // null: the model gets none
	ShortlistRatio float64  `json:"shortlist_ratio"`      // decode speed over stock's; 1 without one
	ShortlistCount int      `json:"shortlist_tokens"`     // tokens with exact logits
	ShortlistEqual float64  `json:"shortlist_equal"`      // share of greedy tokens equal to the whole matrix's
	FirstToken     *float64 `json:"first_token_ratio"`    // time over stock's, worst of three prompt lengths
	Answer         float64  `json:"answer_ratio"`         // time of whole answers over stock's, worst with and without a profile
	AnswerProfile  *float64 `json:"answer_ratio_profile"` // by the model's profile; null: there is none, or none that pays
	Lossless       *float64 `json:"lossless_ratio"`       // speed over plain, worst of sources and kinds of text
	LosslessEqual  *bool    `json:"lossless_equal"`       // all of its tokens
	Busy           *float64 `json:"busy_ratio"`           // own number of threads over the best fixed one, worst situation
	Seconds        float64  `json:"seconds"`              // that measuring took
	Failed         []string `json:"failed,omitempty"`     // parts that could not be measured, and why
}

// listed is what the shortlist came to, teacher-forced.
type listed struct {
	Rows      int     `json:"rows"`       // tokens compared
	Unequal   int     `json:"unequal"`    // of these, another token than the whole matrix's
	Extended  float64 `json:"extended"`   // share of rows whose list was made longer
	Exact     float64 `json:"exact"`      // exact logits of a row, on average
	Rounds    int     `json:"rounds"`     // pairs behind shortlist_ratio
	Sampled   int     `json:"sampled"`    // rows behind the distance
	Distance  float64 `json:"distance"`   // mean total variation distance after the default sampling chain
	Share     float64 `json:"share"`      // of the matrix in a token's bytes
	LearnedIn float64 `json:"learned_in"` // seconds, from an empty cache
}

type options struct {
	bin, out string
	rows     int
	sampled  int
	rounds   int
	parts    string
	names    []string
}

func main() {
	var o options
	flag.StringVar(&o.bin, "bin", "build", "folder of the built commands")
	flag.StringVar(&o.out, "o", "build/real.json", "file to write")
	flag.IntVar(&o.rows, "rows", 10_000, "tokens compared with the whole matrix")
	flag.IntVar(&o.sampled, "sampled", 2000, "tokens whose distributions are compared")
	flag.IntVar(&o.rounds, "rounds", 20, "pairs of answers")
	flag.StringVar(&o.parts, "parts", "tokens,first,lossless,busy", "what to measure; the rest of a model's row stays as it is in the file")
	table := flag.String("table", "", "print the README's table of this file, and measure nothing")
	flag.Parse()
	o.names = flag.Args()
	if *table != "" {
		all, err := read(*table)
		if err != nil {
			fmt.Fprintln(os.Stderr, "realspeed:", err)
			os.Exit(1)
		}
		fmt.Print(all.table())
		return
	}
	if err := o.run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "realspeed:", err)
		os.Exit(1)
	}
}

func (o *options) run(ctx context.Context) error {
	if len(o.names) == 0 {
		return errors.New("name models: demo, or what `make models` fetches")
	}
	if _, err := libs.Load(); err != nil {
		return err
	}
	paths := make([]string, len(o.names))
	for i, name := range o.names {
		var err error
		if paths[i], err = pathOf(name); err != nil {
			return err
		}
	}
	for i, name := range o.names {
		fmt.Fprintf(os.Stderr, "%s (%d of %d)\n", name, i+1, len(o.names))
		r, err := o.earlier(name)
		if err == nil {
			err = o.model(ctx, paths[i], &r)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := o.keep(r); err != nil {
			return err
		}
	}
	return nil
}

func pathOf(name string) (string, error) {
	if name == "demo" {
		return demo.Path()
	}
	return realmodel.Path(name)
}

// earlier is the model's row in the file, or an empty one.
func (o *options) earlier(name string) (row, error) {
	file, err := read(o.out)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return row{}, err
	}
	if i := slices.IndexFunc(file.Models, func(m row) bool { return m.Name == name }); i >= 0 {
		return file.Models[i], nil
	}
	return row{Name: name, ShortlistRatio: 1, ShortlistEqual: 1}, nil
}

// keep puts a row in the file in place of the model's earlier one.
func (o *options) keep(r row) error {
	file, err := read(o.out)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	file.Command, file.CPU = "make real-speed", realmodel.Processor()
	if i := slices.IndexFunc(file.Models, func(m row) bool { return m.Name == r.Name }); i >= 0 {
		file.Models[i] = r
	} else {
		file.Models = append(file.Models, r)
	}
	data, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return err
	}
	return files.Write(o.out, append(data, '\n'))
}

func (o *options) model(ctx context.Context, path string, r *row) error {
	began := time.Now()
	r.Failed = nil
	step := func(part string, take func(figures row), command string, args ...string) {
		if !strings.Contains(o.parts, part) {
			return
		}
		fmt.Fprintln(os.Stderr, "  "+part)
		cmd := exec.CommandContext(ctx, filepath.Join(o.bin, command), args...)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		var figures row // the command's JSON has the row's names for what the row takes
		if err == nil {
			err = json.Unmarshal(out, &figures)
		}
		if err != nil {
			r.Failed = append(r.Failed, fmt.Sprintf("%s: %v", part, err))
			return
		}
		take(figures)
	}
	if strings.Contains(o.parts, "tokens") {
		if err := o.inProcess(ctx, path, r); err != nil {
			return err
		}
	}
	step("first", func(f row) { r.FirstToken = f.FirstToken }, "firsttoken", "-m", path, "-budget", "40s")
	step("lossless", func(f row) { r.Lossless, r.LosslessEqual = f.Lossless, f.LosslessEqual }, "losslessratio", "-m", path, "-for", "80s")
	step("busy", func(f row) { r.Busy = f.Busy }, "benchbusy", "-gallop", filepath.Join(o.bin, "gallop"), "-m", path, "-r", "2", "-limit", "5s")
	r.Seconds += time.Since(began).Seconds()
	return nil
}

// inProcess measures what answers in turns show, and the shortlist's tokens.
func (o *options) inProcess(ctx context.Context, path string, r *row) error {
	m, err := llama.LoadModel(ctx, path, nil)
	if err != nil {
		return err
	}
	defer m.Close()
	learner, err := shortlist.Learned(ctx, m, func(text string) { fmt.Fprintln(os.Stderr, "  "+text) })
	if err != nil {
		return err
	}
	if learner != nil {
		defer learner.Close()
		made := learner.Made()
		r.Shortlist = &listed{Rounds: o.rounds, Share: learner.Share(), LearnedIn: made.Took.Seconds()}
		fmt.Fprintln(os.Stderr, "  tokens of the shortlist")
		if err := o.compare(m, learner, r.Shortlist); err != nil {
			return err
		}
		r.ShortlistCount = made.Size
		r.ShortlistEqual = 1 - float64(r.Shortlist.Unequal)/float64(max(r.Shortlist.Rows, 1))
	}
	fmt.Fprintln(os.Stderr, "  answers")
	return o.answers(ctx, m, r)
}

// questions are of everyday kinds, in turns.
var questions = []string{
	"Why is the sky blue? Explain it in a few paragraphs.",
	"Write a function that finds the longest common prefix of a list of words.",
	"Write a short story about a fox and a hen.",
}

// answerTokens is the length of the answers that are timed.
const answerTokens = 100

// answers times whole answers and their decoding, stock and by default, in turns.
func (o *options) answers(ctx context.Context, m *llama.Model, r *row) error {
	plain := gallop.Options{Parallel: 1, Profile: gallop.NoProfile, NoCosts: true, Context: llama.ContextOptions{NCtx: min(m.NCtxTrain, 1024)}}
	stock, routed := plain, plain
	stock.Shortlist = -1
	ways := []gallop.Options{stock, plain}
	if found, ok := router.Find(m.Path); ok {
		p, err := router.Read(found)
		if err != nil {
			return err
		}
		if routed.Profile = found; !p.Defaults.Off {
			ways = append(ways, routed)
		}
	}
	engines := make([]*gallop.Engine, len(ways))
	for i := range ways {
		e, err := gallop.New(m, &ways[i])
		if err != nil {
			return err
		}
		defer e.Close()
		engines[i] = e
	}
	times, speeds := make([][]float64, len(ways)), make([][]float64, len(ways))
	for round := range o.rounds + 1 { // the first is for warming up
		for k := range ways {
			i := (k + round) % len(ways)
			began := time.Now()
			a, err := engines[i].Answer(ctx, gallop.Request{
				Messages: []gallop.Message{{Role: "user", Content: questions[round%len(questions)]}}, Sampling: &llama.Sampling{},
				MaxTokens: answerTokens, NoCache: true,
			})
			if err != nil {
				return err
			}
			if round > 0 {
				times[i] = append(times[i], time.Since(began).Seconds()/float64(a.Usage.Generated))
				speeds[i] = append(speeds[i], a.Speed())
			}
		}
	}
	ratio := func(v [][]float64, i int) float64 {
		var all []float64
		for k := range v[i] {
			all = append(all, v[i][k]/v[0][k])
		}
		return stats.Median(all)
	}
	r.StockTPS = stats.Median(slices.Clone(speeds[0]))
	if r.Shortlist != nil {
		r.ShortlistRatio = ratio(speeds, 1)
	}
	r.Answer = ratio(times, 1)
	if len(ways) > 2 {
		routed := ratio(times, 2)
		r.AnswerProfile = &routed
		r.Answer = max(r.Answer, routed)
	}
	return nil
}
