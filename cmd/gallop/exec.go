package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop/internal/preload"
	"github.com/gallop-llm/gallop/skip"
)

func newExecCommand() *cobra.Command {
	var mask string
	cmd := &cobra.Command{
		Use:   "exec --skip LAYERS -- PROGRAM [ARGUMENT]...",
		Short: "Run another llama.cpp program with layers skipped",
		Long: `Exec runs any program that brings llama.cpp as a shared library (llama-server,
node-llama-cpp, llama-cpp-python, ...) and skips layers in it. The program is not
changed: libgallop-skip.so, which ` + "`make preload`" + ` builds, is loaded into it.

The exit code is the program's; where it is 0 and yet nothing was skipped, 1.`,
		Example: `  gallop exec --skip 4,6 -- llama-server -m model.gguf
  gallop exec --skip a9,f10 -- node chat.mjs`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || cmd.ArgsLenAtDash() != 0 {
				return usageError{errors.New("put the program behind --, as in `gallop exec --skip 4,6 -- llama-server -m model.gguf`")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runExec(cmd, mask, args) },
	}
	cmd.Flags().StringVar(&mask, "skip", "", "what to skip: layers, a = attention only, f = feed-forward only (4,6,9-11,a5,f7)")
	return cmd
}

// runExec runs the program and turns its exit code into an error.
func runExec(cmd *cobra.Command, text string, args []string) error {
	mask, err := skip.Parse(text)
	if err != nil {
		return usageError{fmt.Errorf("--skip: %w", err)}
	}
	if mask.IsEmpty() {
		return usageError{preload.ErrNoMask}
	}
	if mask.Shortlist() != 0 {
		return usageError{fmt.Errorf("--skip %s: a vocabulary shortlist works in gallop's own commands only; leave out v%d", mask, mask.Shortlist())}
	}
	if mask.HasLocal() || mask.WithoutLocal() != mask.Unread() {
		return usageError{fmt.Errorf("--skip %s: local attention (l) and attention whose keys and values are written (k) work in gallop's own commands only", mask)}
	}
	if mask.Neurons() != 0 {
		return usageError{fmt.Errorf("--skip %s: neurons are left out in gallop's own commands only", mask)}
	}
	library, err := preload.FindLibrary(preload.SearchPath())
	if err != nil {
		return err
	}
	code, err := preload.Run(preload.Program{
		Library: library,
		Mask:    mask,
		Args:    args,
		In:      cmd.InOrStdin(),
		Out:     stdout(cmd.OutOrStdout()),
		Err:     cmd.ErrOrStderr(),
	})
	switch {
	case code == 0:
		return err
	case err == nil:
		return fmt.Errorf("%s: %w", args[0], exitCode(code))
	}
	return fmt.Errorf("%s: %w; %w", args[0], exitCode(code), err)
}
