package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/files"
	"github.com/gallop-llm/gallop/internal/lab/compare"
	"github.com/gallop-llm/gallop/internal/lab/report"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
)

// comparison holds the flags of `gallop compare`.
type comparison struct {
	generation
	data, out       string
	profiles        []string
	limit, rounds   int
	skipBad, asJSON bool
}

// builtInPrompts is how many prompts are asked where no file is named: two of
// each kind.
const builtInPrompts = 24

func newCompareCommand() *cobra.Command {
	var f comparison
	cmd := &cobra.Command{
		Use:   "compare [model.gguf] [--data file]",
		Short: "Answer prompts with and without skipping, side by side in an HTML report",
		Long: `Answer prompts by the whole model, stock llama.cpp, and routed by the model's
profile, in turns, and write what came out side by side: answers, layers used,
speeds, agreement and divergence. The report is one HTML file that needs no network.

  gallop compare                                            the demo model on built-in prompts
  gallop compare -m model.gguf --data questions.txt         your prompts
  gallop compare --profile a.gallop.gguf --profile new=b.gallop.gguf
  gallop compare --skip 9-11                                one mask in place of routing

Prompts are JSONL as for calibrate, or plain text with a prompt a line. Where
their answers are known, the report says which answers are those to the letter.
Answers are greedy unless --temp says otherwise.`,
		Args: oneModel,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if f.model, err = namedModel(cmd, f.model, args); err != nil {
				return err
			}
			return runCompare(cmd, &f)
		},
	}
	f.addOthers(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.data, "data", "", "file with prompts (default: built-in ones)")
	flags.IntVar(&f.limit, "limit", 0, fmt.Sprintf("prompts at most, spread evenly over the file; 0 = all, or %d of the built-in ones", builtInPrompts))
	flags.IntVarP(&f.rounds, "repetitions", "r", 1, "answer each prompt so often, in turns; the medians of the times count")
	flags.BoolVar(&f.skipBad, "skip-bad", false, "leave out lines that cannot be used instead of stopping at them")
	flags.StringVarP(&f.out, "output", "o", "compare.html", "the report")
	flags.BoolVar(&f.asJSON, "json", false, "print all figures as JSON in place of the table")
	flags.StringArrayVar(&f.profiles, "profile", nil, "profile to route by; twice compares two; NAME=FILE names it (default: the model's)")
	changeDefault(flags, "n-predict", "256", "tokens in an answer at most; -1 = until the model ends it")
	changeDefault(flags, "temp", "0", "temperature; 0 = always the likeliest token")
	return cmd
}

// changeDefault gives a flag another default than for other commands.
func changeDefault(flags *pflag.FlagSet, name, value, usage string) {
	f := flags.Lookup(name)
	if err := f.Value.Set(value); err != nil {
		panic(err) // tested
	}
	f.DefValue, f.Usage = value, usage
}

func runCompare(cmd *cobra.Command, f *comparison) error {
	if err := f.check(); err != nil {
		return err
	}
	examples, from, err := f.examples(cmd)
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	m, err := f.load(ctx, cmd)
	if err != nil {
		return err
	}
	defer m.Close()
	fingerprint, err := router.FingerprintOf(m.Path)
	if err != nil {
		return err
	}
	ways, closeAll, err := f.ways(ctx, cmd, m)
	defer closeAll()
	if err != nil {
		return err
	}
	room := ways[0].Engine.Info().Context
	examples, err = leaveOut(cmd.ErrOrStderr(), examples, f.skipBad, func(e dataset.Example) error {
		tokens, err := tokensOf(m, f.system, e.Prompt)
		if err == nil && tokens >= room {
			err = fmt.Errorf("%w: %d tokens, the context holds %d; choose a larger context with -c", gallop.ErrTooLong, tokens, room)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", e.Where, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	progress, done := stageProgress(cmd.ErrOrStderr())
	defer done()
	result, err := compare.Run(ctx, m, ways, examples, &compare.Options{Rounds: f.rounds, Threads: max(f.threads, 0), Progress: progress})
	if err != nil {
		return err
	}
	done()
	s := &result.Settings
	s.Data, s.Fingerprint, s.Version, s.Command = from, fingerprint.String(), version, commandLine(cmd)
	return f.write(cmd, result)
}

// tokensOf counts what a prompt without a history has.
func tokensOf(m *llama.Model, system, prompt string) (int, error) {
	messages := []llama.Message{{Role: "user", Content: prompt}}
	if system != "" {
		messages = append([]llama.Message{{Role: "system", Content: system}}, messages...)
	}
	text, err := m.Render(llama.Conversation{Messages: messages, Answer: true})
	if err != nil {
		return 0, err
	}
	tokens, err := m.Vocab.TokenizeText(text)
	return len(tokens), err
}

// check finds mistakes before anything takes time.
func (f *comparison) check() error {
	switch {
	case len(f.profiles) > 2:
		return usageError{fmt.Errorf("%d profiles, want one or two", len(f.profiles))}
	case len(f.profiles) > 0 && f.mask != "":
		return usageError{errors.New("--skip sets the layers by hand: leave out --profile")}
	case f.route == routeOff:
		return usageError{errors.New("--route off leaves nothing to compare with the whole model")}
	case len(f.lora) > 0:
		return usageError{errors.New("--lora is not compared: agreement is measured on the model alone")}
	case f.limit < 0 || f.rounds < 1:
		return usageError{fmt.Errorf("--limit is %d and -r %d, want at least 0 and 1", f.limit, f.rounds)}
	}
	if f.out == "" {
		return usageError{errors.New("-o is empty: name the report's file")}
	}
	if info, err := os.Stat(filepath.Dir(f.out)); err != nil || !info.IsDir() {
		return fmt.Errorf("%s cannot be written: there is no folder %s", f.out, filepath.Dir(f.out))
	}
	if info, err := os.Stat(f.out); err == nil && info.IsDir() {
		return fmt.Errorf("%s cannot be written: it is a folder", f.out)
	}
	return nil
}

// examples reads the prompts and says where they are from.
func (f *comparison) examples(cmd *cobra.Command) (examples []dataset.Example, from string, err error) {
	limit := f.limit
	switch {
	case f.data != "":
		from = filepath.Base(f.data)
		file, err := os.Open(f.data)
		if err != nil {
			return nil, "", fmt.Errorf("--data: %w", err)
		}
		defer file.Close()
		var problems []dataset.Problem
		if examples, problems, err = dataset.ReadPrompts(f.data, file, &dataset.Options{SkipBad: f.skipBad}); err != nil {
			return nil, "", err
		}
		tellProblems(cmd.ErrOrStderr(), problems)
	case f.model == "":
		from = "the demo model's test prompts"
		if examples, _, err = dataset.ReadPrompts("test.jsonl", bytes.NewReader(demo.Test), nil); err != nil {
			return nil, "", err
		}
	default:
		from, examples = "built-in prompts", dataset.Starter()
	}
	if limit == 0 && f.data == "" {
		limit = builtInPrompts
	}
	if n := len(examples); limit > 0 && limit < n {
		from += fmt.Sprintf(", %d of %d", limit, n)
		for i := range limit {
			examples[i] = examples[i*n/limit]
		}
		examples = examples[:limit]
	}
	return examples, from, nil
}

// ways is how the model is run beside stock. closeAll closes the engines, whatever the error.
func (f *comparison) ways(ctx context.Context, cmd *cobra.Command, m *llama.Model) (ways []compare.Way, closeAll func(), err error) {
	closeAll = func() {
		for _, w := range ways {
			w.Engine.Close()
		}
	}
	add := func(name, profile string) error {
		g := f.generation
		g.profile = profile
		opts, err := g.options(cmd, m)
		if err != nil {
			return err
		}
		if profile == "" {
			opts.Profile = gallop.NoProfile
		}
		r, err := g.request(cmd, m)
		if err != nil {
			return err
		}
		r.Sampling.Temp = f.temp // not the model's advice
		e, err := gallop.New(m, opts)
		if err != nil {
			return err
		}
		if profile != "" {
			profile = filepath.Base(profile)
		}
		ways = append(ways, compare.Way{Name: name, Profile: profile, Engine: e, Request: r})
		return g.learnListed(ctx, cmd, e, &r)
	}
	if f.mask != "" {
		return ways, closeAll, add("skip "+f.mask, "")
	}
	if len(f.profiles) == 0 {
		found, ok := router.Find(m.Path)
		if size, err := strconv.Atoi(f.shortlist); !ok && err == nil {
			return ways, closeAll, add(fmt.Sprintf("shortlist v%d", size), "")
		}
		if !ok {
			return nil, closeAll, fmt.Errorf("%s has no profile to compare the whole model with: make one with `gallop calibrate -m %s`, name layers with --skip, or tokens with --shortlist", m.Path, m.Path)
		}
		return ways, closeAll, add("routed", found)
	}
	for _, entry := range f.profiles {
		name, file := nameProfile(entry)
		if len(ways) > 0 && ways[0].Name == name {
			return ways, closeAll, usageError{fmt.Errorf("two profiles are called %s: name them with --profile NAME=FILE", name)}
		}
		if err := add(name, file); err != nil {
			return ways, closeAll, err
		}
	}
	return ways, closeAll, nil
}

// write writes the report and prints what it comes to.
func (f *comparison) write(cmd *cobra.Command, result *compare.Result) error {
	page, err := result.HTML()
	if err != nil {
		return err
	}
	if err := files.Write(f.out, page); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	fmt.Fprintln(cmd.ErrOrStderr(), "report:", f.out)
	if f.asJSON {
		return writeJSON(cmd.OutOrStdout(), result)
	}
	columns, rows := result.Table()
	return report.Table(cmd.OutOrStdout(), columns, rows)
}

// commandLine is a command with all its flags that are not as usual, wherever
// they were set.
func commandLine(cmd *cobra.Command) string {
	words := []string{cmd.CommandPath()}
	cmd.Flags().VisitAll(func(flag *pflag.Flag) {
		if flag.Value.String() == flag.DefValue || notConfigurable[flag.Name] {
			return
		}
		values := []string{flag.Value.String()}
		if list, ok := flag.Value.(pflag.SliceValue); ok {
			values = list.GetSlice()
		}
		for _, v := range values {
			words = append(words, fmt.Sprintf("--%s=%s", flag.Name, quote(v)))
		}
	})
	return strings.Join(words, " ")
}

// quote makes a word of text for a shell.
func quote(text string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./=,:+", r)
	}
	if text != "" && strings.TrimFunc(text, plain) == "" {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
