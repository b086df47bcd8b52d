package main

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop/llama"
)

// What the program is; the linker puts it there (-X), as `make build` does.
var (
	version = "dev"
	commit  = "" // git's
)

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Say what this program is",
		Long:  `Say what this program is: its version, the commit it was built from, the llama.cpp releases that it works with, and the system it was built for.`,
		Args:  noArgument,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lines := []string{"gallop " + version}
			if commit != "" {
				lines = append(lines, "commit "+commit)
			}
			lines = append(lines, "llama.cpp "+strings.Join(llama.Releases, " or "), runtime.GOOS+"/"+runtime.GOARCH+", "+runtime.Version())
			_, err := fmt.Fprintln(cmd.OutOrStdout(), strings.Join(lines, "\n"))
			return err
		},
	}
}
