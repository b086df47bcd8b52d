package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop/internal/calibrate"
	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
)

func newProfileCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "profile",
		Short: "Show, check or export a model's profile",
		Long: `Show, check or export a model's profile, which "gallop calibrate" makes.

A profile serves every quantisation of its model: it is looked for beside the
model and in the cache folder, under the model's name first. Its masks and its
router stay the same; thresholds and speed are checked on the quantisation at hand.`,
		Args: noArgument,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newProfileShowCommand(), newProfileCheckCommand(), newProfileExportCommand())
	return cmd
}

// profiled is the model and the profile that a command is about.
type profiled struct{ model, profile string }

func (f *profiled) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.model, "model", "m", "", "model: a GGUF file, or a name as `gallop models` lists them (default: the demo model)")
	cmd.Flags().StringVar(&f.profile, "profile", "", "profile (default: the model's)")
}

// read finds the model and its profile.
func (f *profiled) read(cmd *cobra.Command, args []string) (path string, model router.Fingerprint, p *router.Profile, err error) {
	if path, err = modelFile(cmd, f.model, args); err != nil {
		return "", model, nil, err
	}
	if model, err = router.FingerprintOf(path); err != nil {
		return "", model, nil, err
	}
	if p, err = readProfile(path, f.profile); err != nil {
		return "", model, nil, err
	}
	return path, model, p, p.Check(model)
}

func newProfileShowCommand() *cobra.Command {
	var f profiled
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show [model.gguf]",
		Short: "Show where a profile comes from, and which layers matter for which task",
		Args:  oneModel,
		RunE: func(cmd *cobra.Command, args []string) error {
			path, model, p, err := f.read(cmd, args)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if !asJSON {
				of := "this file"
				if p.Travelled(model) {
					of = fmt.Sprintf("another quantisation, %s; `gallop profile check -m %s` measures its thresholds on this one", p.Model, path)
				}
				fmt.Fprintf(out, "%-36s %s\n%-36s %s\n", "model", model, "made for", of)
			}
			return showProfile(out, p, asJSON)
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newProfileCheckCommand() *cobra.Command {
	var f profiled
	var template, out string
	var data []string
	var threads, layers int
	cmd := &cobra.Command{
		Use:   "check [model.gguf]",
		Short: "Measure a profile's thresholds and speed on this model and machine, in a minute",
		Long: `Measure a profile's thresholds and speed on this model and machine, in about a
minute: the whole model answers a few prompts, and the masks that the profile
chooses for them are compared with that. What comes of it is written as the model's
own profile. chat and run do so by themselves for a profile that was made on
another quantisation of the model.`,
		Args: oneModel,
		RunE: func(cmd *cobra.Command, args []string) error {
			path, model, p, err := f.read(cmd, args)
			if err != nil {
				return err
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			m, err := openModel(ctx, cmd, path, &llama.ModelOptions{GPULayers: gpuLayers(layers)})
			if err != nil {
				return err
			}
			defer m.Close()
			if err := useTemplate(cmd, m, template, ""); err != nil {
				return err
			}
			examples := dataset.Starter()
			if len(data) > 0 {
				if examples, err = readData(cmd.ErrOrStderr(), data, false); err != nil {
					return err
				}
			}
			a, err := adapt(ctx, cmd, m, p, examples, max(threads, 0))
			if err != nil {
				return err
			}
			if out == "" {
				if out, err = profilePath(path, model); err != nil {
					return err
				}
			}
			if err := a.Profile.Write(out); err != nil {
				return err
			}
			fmt.Fprintln(cmd.ErrOrStderr(), a)
			fmt.Fprintln(cmd.OutOrStdout(), out)
			return nil
		},
	}
	f.add(cmd)
	addTemplate(cmd.Flags(), &template)
	cmd.Flags().StringArrayVar(&data, "data", nil, "file with prompts to check with; repeatable (default: built-in prompts)")
	cmd.Flags().StringVarP(&out, "output", "o", "", "profile to write (default: model.gallop.gguf beside the model, or in the cache folder where it cannot be there)")
	addThreads(cmd.Flags(), &threads, "threads", "t", "threads; -1 = physical cores, or 1 for a tiny model")
	cmd.Flags().IntVar(&layers, "ngl", -1, "layers on the GPU; -1 = all, 0 = none")
	return cmd
}

func newProfileExportCommand() *cobra.Command {
	var f profiled
	var out string
	cmd := &cobra.Command{
		Use:   "export [model.gguf] -o FILE",
		Short: "Write a model's profile to a file, to be published beside the model",
		Long: `Write a model's profile to a file, or into a folder under the name that it is
looked for beside the model. A profile of an earlier version learns by that to
serve other quantisations of its model. It has no prompts in it, but names of
tasks, and what "gallop profile show" prints.`,
		Args: oneModel,
		RunE: func(cmd *cobra.Command, args []string) error {
			path, model, p, err := f.read(cmd, args)
			if err != nil {
				return err
			}
			if out == "" {
				return usageError{errors.New("-o is missing: name the file or the folder to write to")}
			}
			if info, err := os.Stat(out); err == nil && info.IsDir() {
				out = filepath.Join(out, filepath.Base(router.DefaultPath(path)))
			}
			if !p.Travelled(model) {
				p.Model = model // earlier versions did not note all of it
			}
			if err := p.Write(out); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), out)
			return nil
		},
	}
	f.add(cmd)
	cmd.Flags().StringVarP(&out, "output", "o", "", "file or folder to write to")
	return cmd
}

// adapt checks a profile on a model.
func adapt(ctx context.Context, cmd *cobra.Command, m *llama.Model, p *router.Profile, examples []dataset.Example, threads int) (*calibrate.Adapted, error) {
	examples, err := leaveOut(io.Discard, examples, true, fits(m))
	if err != nil {
		return nil, err
	}
	if err := p.Open(m.Path); err != nil {
		return nil, err
	}
	report, done := stageProgress(cmd.ErrOrStderr())
	a, err := calibrate.Adapt(ctx, m, p, calibrate.Options{Examples: examples, Threads: threads, Progress: report})
	done()
	return a, errors.Join(err, p.Close())
}

// travelled is the profile that is found for a model, and its path, if layers are chosen by
// it and it was made on another quantisation; nil = it was not, or there is none.
func travelled(model string) (p *router.Profile, path string, err error) {
	path, ok := router.Find(model)
	if !ok {
		return nil, "", nil
	}
	id, err := router.FingerprintOf(model)
	if err != nil {
		return nil, "", err
	}
	p, err = router.Read(path)
	if err != nil || !p.Travelled(id) || p.Router == nil || p.Defaults.Off {
		return nil, "", nil // the engine says what is wrong with it, if anything
	}
	return p, path, nil
}

// settleProfile checks the profile that is found for m if it was made on another
// quantisation: that takes a minute and is said, and what comes of it is kept as m's
// own, so that it happens once. Where it cannot be kept, the profile serves as it is.
func settleProfile(ctx context.Context, cmd *cobra.Command, m *llama.Model, threads int) error {
	p, path, err := travelled(m.Path)
	if p == nil {
		return err
	}
	notes := cmd.ErrOrStderr()
	fmt.Fprintf(notes, "[checks the profile of another quantisation, %s, on this one: once, in about a minute]\n", path)
	a, err := adapt(ctx, cmd, m, p, dataset.Starter(), threads)
	switch {
	case ctx.Err() != nil:
		return err
	case err != nil:
		fmt.Fprintln(notes, "gallop: goes on with the profile unchecked:", err)
		return nil
	}
	fmt.Fprintf(notes, "[%s]\n", a)
	var model router.Fingerprint
	if model, err = router.FingerprintOf(m.Path); err == nil {
		path, err = profilePath(m.Path, model)
	}
	if err == nil {
		err = a.Profile.Write(path)
	}
	if err != nil {
		fmt.Fprintln(notes, "gallop: the checked profile is not kept:", err)
	}
	return nil
}
