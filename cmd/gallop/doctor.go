package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop/internal/doctor"
)

// newDoctorCommand makes the command, which reports all the same when settings,
// a mistake in the configuration, is not nil.
func newDoctorCommand(settings *error) *cobra.Command {
	var model string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check that all is there that gallop needs",
		Long: `Check libraries, processor, devices and memory, and name the command that brings
what is missing (✗), and what becomes of the vocabulary shortlist of the demo model;
with -m of that model, and how much memory its weights need. The exit code is 1 when
something needed is missing.`,
		Args: noArgument,
		RunE: func(cmd *cobra.Command, _ []string) error { return runDoctor(cmd, model, asJSON, *settings) },
	}
	cmd.Flags().StringVarP(&model, "model", "m", "", "model whose memory and vocabulary shortlist to tell: a GGUF file, or a name as `gallop models` lists them")
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

func runDoctor(cmd *cobra.Command, model string, asJSON bool, settings error) error {
	var err error
	if model != "" {
		if model, err = modelPath(cmd, model); err != nil {
			return err
		}
	}
	report := doctor.Examine(configPath(), model)
	if asJSON {
		err = writeJSON(cmd.OutOrStdout(), report)
	} else {
		err = report.WriteText(cmd.OutOrStdout())
	}
	if err == nil && settings != nil {
		return settings
	}
	if err == nil && !report.OK {
		err = errors.New("something needed is missing: see the lines with ✗, \"missing\" in JSON")
	}
	return err
}
