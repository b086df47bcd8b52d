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
	var device, from string
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Fetch llama.cpp's libraries into the cache folder",
		Long: `Fetch the published libraries of llama.cpp into the cache folder, from the npm registry
that npm's configuration names; npm itself is not needed. What is there already is read and left alone, or fetched anew
where it is damaged. A GPU's libraries come beside those for the CPU.

Without a network, --from takes an archive that npm pack has fetched elsewhere, or a folder of them.`,
		Args: noArgument,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(libs.Devices, device) {
				return usageError{fmt.Errorf("%w %q: choose one of %s", libs.ErrDevice, device, strings.Join(libs.Devices, ", "))}
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			for _, d := range devices(device) {
				if err := install(ctx, cmd, &libs.Options{Device: d, From: from}); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&device, "device", libs.DefaultDevice(), "what to compute on: "+strings.Join(libs.Devices, ", "))
	cmd.Flags().StringVar(&from, "from", "", "take this archive, or one of this folder, and fetch nothing")
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

func install(ctx context.Context, cmd *cobra.Command, o *libs.Options) error {
	out := cmd.OutOrStdout()
	switch dir, err := libs.Verify(o.Device); {
	case err != nil:
		fmt.Fprintf(cmd.ErrOrStderr(), "gallop: %s: %s; fetches them anew\n", o.Device, err)
	case dir != "":
		fmt.Fprintf(out, "%s: already installed in %s\n", o.Device, dir)
		return nil
	}
	bar, stop := byteBar(cmd.ErrOrStderr(), "fetching llama.cpp for "+o.Device)
	o.Progress = func(_ string, have, total int64) { bar(have, total) }
	dir, err := libs.Install(ctx, o)
	stop()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s: installed in %s\n", o.Device, dir)
	return nil
}
