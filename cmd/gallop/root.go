package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/gallop-llm/gallop/internal/calibrate"
	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/llama"
)

// Exit codes.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitAgain       = 75  // EX_TEMPFAIL of sysexits.h: to be tried again
	exitInterrupted = 130 // as shells count SIGINT
	exitTerminated  = 143 // and SIGTERM
)

// run is the program: it parses args, runs a command and returns the exit code.
func run(args []string, in io.Reader, out, errOut io.Writer) int {
	stdout := &output{Writer: out}
	root := newRootCommand(stdout)
	root.SetArgs(longFlags(args))
	root.SetIn(in)
	root.SetErr(errOut)
	cmd, err := root.ExecuteC()
	if err == nil && stdout.err != nil {
		err = fmt.Errorf("write the output: %w", stdout.err)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(errOut, "gallop:", harmless(err.Error()))
	}
	return codeOf(cmd.Context(), err)
}

// codeOf is the exit code of an error of a command with this context.
func codeOf(ctx context.Context, err error) int {
	var usage usageError
	var code exitCode
	var missing *calibrate.MissingError
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, context.Canceled) && strings.Contains(fmt.Sprint(context.Cause(ctx)), syscall.SIGTERM.String()):
		return exitTerminated
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &usage), errors.Is(err, llama.ErrOption):
		return exitUsage
	case errors.As(err, &missing):
		return exitAgain
	}
	return exitError
}

// usageError is a mistake in the command line itself.
type usageError struct{ error }

func asUsageError(err error) error {
	if err == nil {
		return nil
	}
	return usageError{err}
}

// exitCode is an error that ends the program with this code and no more words
// than its wrapper's.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit status %d", int(c)) }

// shortWords are llama.cpp's flags of one dash and several letters, which the
// flag library would take for several flags.
var shortWords = []string{"ngl", "tb", "ub", "fa", "ctk", "ctv", "sys", "oe", "hf"}

// longFlags gives those flags their second dash. What follows "--" is left alone.
func longFlags(args []string) []string {
	args = slices.Clone(args)
	for i, arg := range args {
		if arg == "--" {
			break
		}
		word, isShort := strings.CutPrefix(arg, "-")
		name, _, _ := strings.Cut(word, "=")
		if isShort && slices.Contains(shortWords, name) {
			args[i] = "-" + arg
		}
		if args[i] == "--fa" && args[0] != cobra.ShellCompRequestCmd && (i+1 == len(args) || strings.HasPrefix(args[i+1], "-")) { // as it was once written
			args[i] = "--fa=on"
		}
	}
	return args
}

// unknownFlag adds to the error about a flag that there is not which ones are like it.
func unknownFlag(cmd *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return err
	}
	name := strings.TrimLeft(unknown.GetSpecifiedName(), "-")
	if len(name) < 2 {
		return err
	}
	names := &cobra.Command{SuggestionsMinimumDistance: min(len(name)/2, 2)} // cobra compares names of commands
	add := func(flag *pflag.Flag) {
		names.AddCommand(&cobra.Command{Use: flag.Name, Run: func(*cobra.Command, []string) {}})
	}
	cmd.Flags().VisitAll(add)
	cmd.InheritedFlags().VisitAll(add)
	if like := names.SuggestionsFor(name); len(like) > 0 {
		return fmt.Errorf("%w; did you mean --%s?", err, strings.Join(like, " or --"))
	}
	return err
}

func newRootCommand(out io.Writer) *cobra.Command {
	var verbose bool
	var config string
	var settings error // what is wrong with them
	root := &cobra.Command{
		Use:   "gallop",
		Short: "Local GGUF chat that runs only the layers a prompt needs",
		Long: `Gallop runs local GGUF models through stock llama.cpp, and can leave out
transformer layers for any decode.

Every flag but --prompt, --data and --output can also be set in the environment
(GALLOP_TEMP=0 for --temp 0) or in the configuration file (temp = 0). Flags go before the environment, the
environment before the file; an empty variable counts as unset.`,
		Version:                    version,
		SuggestionsMinimumDistance: 2,
		SilenceErrors:              true, // run prints them
		SilenceUsage:               true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				like := ""
				if names := cmd.SuggestionsFor(args[0]); len(names) > 0 {
					like = "; did you mean " + strings.Join(names, " or ") + "?"
				}
				return fmt.Errorf("there is no command %q%s; see `gallop help`", args[0], like)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, args []string) error {
			if helps(cmd) {
				return nil
			}
			if err := configure(cmd, config); err != nil {
				if settings = (usageError{err}); cmd.Name() != "doctor" {
					return settings
				}
			}
			if err := useHub(cmd); err != nil {
				return err
			}
			if err := checkNumbers(cmd); err != nil {
				return usageError{err}
			}
			if err := checkEmpty(cmd, args); err != nil {
				return usageError{err}
			}
			if verbose {
				llama.SetLogger(slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelDebug})))
			}
			return nil
		},
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		help := strings.Replace(cmd.CommandPath(), root.Name(), root.Name()+" help", 1)
		return usageError{fmt.Errorf("%w; see `%s`", unknownFlag(cmd, err), help)}
	})
	root.PersistentFlags().BoolVarP(&verbose, "verbose", "v", false, "show llama.cpp's log on stderr")
	root.PersistentFlags().StringVar(&config, "config", "", "configuration file (default "+configPath()+")")
	root.AddCommand(newChatCommand(), newRunCommand(), newInspectCommand(), newPruneCommand(), newDoctorCommand(&settings),
		newSetupCommand(), newExecCommand(), newCalibrateCommand(), newRouteCommand(), newEvalCommand(), newCompareCommand(),
		newBenchCommand(), newModelsCommand(), newProfileCommand(), newServeCommand(), newVersionCommand())
	addHub(root)
	root.SetOut(out) // the completion command keeps what is set when it is made
	root.InitDefaultCompletionCmd()
	if completion, _, err := root.Find([]string{"completion"}); err == nil {
		completion.Args = noArgument // and not any word, with the help and exit code 0
		completion.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	}
	all := append(root.Commands(), root)
	for _, cmd := range root.Commands() {
		all = append(all, cmd.Commands()...)
	}
	for _, cmd := range all {
		addCompletions(cmd)
		if check := cmd.Args; check != nil {
			cmd.Args = func(cmd *cobra.Command, args []string) error { return asUsageError(check(cmd, args)) }
		}
	}
	return root
}

// mayBeEmpty are flags whose empty text says something.
var mayBeEmpty = []string{"prompt", "sys", "skip"}

// checkEmpty refuses a flag or a model without a value, as a shell's variable that is not
// set leaves them: the command would do something else than was meant, in silence.
func checkEmpty(cmd *cobra.Command, args []string) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if list, ok := f.Value.(pflag.SliceValue); !slices.Contains(mayBeEmpty, f.Name) &&
			(ok && slices.Contains(list.GetSlice(), "") || f.Value.Type() == "string" && f.Value.String() == "") {
			name := "--" + f.Name
			if slices.Contains(shortWords, f.Name) {
				name = "-" + f.Name
			} else if f.Name == "model" {
				name = "-m"
			}
			err = fmt.Errorf("%s is empty: give it a value, or leave it out", name)
		}
	})
	if f := cmd.Flags().Lookup("model"); err == nil && f != nil && slices.Contains(args, "") && cmd.Name() != "run" && cmd.Name() != "route" { // whose arguments are prompts
		err = errors.New("the model's name is empty: name a model, or leave it out for the demo model")
	}
	return err
}

// helps tells whether a command explains the others: a mistake in the settings
// must not keep it from that.
func helps(cmd *cobra.Command) bool {
	for ; cmd.HasParent(); cmd = cmd.Parent() {
		switch cmd.Name() {
		case "help", "version", "completion", cobra.ShellCompRequestCmd, cobra.ShellCompNoDescRequestCmd:
			return true
		}
	}
	return false
}

// interruptible is cmd's context from now on, ended by Ctrl-C or as `timeout` and init
// systems end programs: either way what is half written goes.
func interruptible(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	parent := cmd.Context()
	if parent == nil {
		parent = context.Background()
	}
	ctx, stop := endedBy(parent, os.Interrupt, syscall.SIGTERM)
	cmd.SetContext(ctx)
	return ctx, stop
}

// sameSignal is how long what follows a signal counts as part of it: `timeout` sends it to
// the program and to its group, and wrappers pass on what the terminal has sent already.
const sameSignal = 200 * time.Millisecond

// endedBy is parent, ended by one of signals. The next one then ends the program, also
// where it is in C code that looks at no context.
func endedBy(parent context.Context, signals ...os.Signal) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(parent, signals...)
	context.AfterFunc(ctx, func() { time.AfterFunc(sameSignal, stop) })
	return ctx, stop
}

// loadLibrary opens llama.cpp and tells of GPU modules that could not be used.
func loadLibrary(cmd *cobra.Command) error {
	skipped, err := libs.Load()
	for _, problem := range skipped {
		fmt.Fprintln(cmd.ErrOrStderr(), "gallop: goes on without a GPU:", problem)
	}
	return err
}
