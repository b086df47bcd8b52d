package main

import (
	"errors"
	"fmt"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop/internal/inspect"
	"github.com/gallop-llm/gallop/internal/neurons"
	"github.com/gallop-llm/gallop/internal/prune"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

func newPruneCommand() *cobra.Command {
	var model, mask, out string
	cmd := &cobra.Command{
		Use:   "prune [model.gguf] --skip 4,6 -o out.gguf",
		Short: "Write a smaller GGUF without some layers or neurons, for any llama.cpp program",
		Long: `Write a copy of a GGUF model without some of its layers. Every llama.cpp program
loads it as a smaller model, which computes what gallop computes with --skip on
the whole one. Without a model it is the demo model.

With --skip n20% the copy lacks the fifth of each feed-forward's neurons that is
least active on the whole. At run time gallop chooses them by prompt instead.

Models whose layers change their kind with their number are refused, and so are
masks of attention or feed-forward alone: no file can express those.`,
		Args: oneModel,
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := skip.Parse(mask)
			if err == nil && m == (skip.Mask{}).WithNeurons(m.Neurons(), 0) && !m.IsEmpty() {
				return pruneNeurons(cmd, model, args, out, m)
			}
			layers, err := wholeLayers(mask)
			if err != nil {
				return usageError{err}
			}
			if out == "" {
				return usageError{errors.New("name the file to write: -o out.gguf")}
			}
			path, err := modelFile(cmd, model, args)
			if err != nil {
				return err
			}
			return runPrune(cmd, path, out, layers)
		},
	}
	cmd.Flags().StringVarP(&model, "model", "m", "", "model: a GGUF file, or a name as `gallop models` lists them (default: the demo model)")
	cmd.Flags().StringVar(&mask, "skip", "", "layers to leave out, as in 4,6,9-11, or a share of neurons, as in n20%")
	cmd.Flags().StringVarP(&out, "output", "o", "", "file to write")
	return cmd
}

// wholeLayers reads a mask that a file can express.
func wholeLayers(mask string) ([]int, error) {
	m, err := skip.Parse(mask)
	if err != nil {
		return nil, fmt.Errorf("--skip: %w", err)
	}
	layers, only := m.WholeLayers()
	switch {
	case m.IsEmpty():
		return nil, errors.New("name the layers to leave out: --skip 4,6")
	case m.Neurons() != 0:
		return nil, fmt.Errorf("--skip %s: neurons are pruned apart from layers, as in --skip n20%%", m)
	case m.Shortlist() != 0:
		return nil, fmt.Errorf("--skip %s: no file can have a vocabulary shortlist; leave out v%d", m, m.Shortlist())
	case m.HasLocal():
		return nil, fmt.Errorf("--skip %s: no file can make attention local; use `gallop chat --skip`", m)
	case !only:
		return nil, fmt.Errorf("--skip %s: no file can leave out attention or feed-forward alone; "+
			"name whole layers, or skip at run time with `gallop chat --skip`", m)
	}
	return layers, nil
}

// pruneNeurons writes a model without the neurons that are least active on the whole.
func pruneNeurons(cmd *cobra.Command, flag string, args []string, out string, mask skip.Mask) error {
	if out == "" {
		return usageError{errors.New("name the file to write: -o out.gguf")}
	}
	path, err := modelFile(cmd, flag, args)
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	m, err := openModel(ctx, cmd, path, &llama.ModelOptions{GPULayers: llama.CPUOnly})
	if err != nil {
		return err
	}
	defer m.Close()
	dir, err := neurons.Dir()
	if err != nil {
		return err
	}
	order, err := neurons.Read(m, dir)
	if errors.Is(err, neurons.ErrNoOrder) {
		report, done := learningProgress(cmd)
		err = neurons.Learn(ctx, m, dir, 0, report)
		done()
		if err == nil {
			order, err = neurons.Read(m, dir)
		}
	}
	if err != nil {
		return err
	}
	defer order.Close()
	kept, err := order.Keep(order.Choose(nil, mask.Neurons()))
	if err != nil {
		return err
	}
	return pruneTo(cmd, path, out, func(o *prune.Options) error { return prune.Neurons(ctx, path, out, kept, o) }, func(_, _ *inspect.Model) string {
		return fmt.Sprintf("without %g %% of the neurons of feed-forwards", float64(mask.Neurons())*100/skip.NeuronUnits)
	})
}

func runPrune(cmd *cobra.Command, path, out string, layers []int) error {
	ctx, stop := interruptible(cmd)
	defer stop()
	return pruneTo(cmd, path, out, func(o *prune.Options) error { return prune.Layers(ctx, path, out, layers, o) }, func(before, after *inspect.Model) string {
		return fmt.Sprintf("%d of %d layers kept", len(after.Layers), len(before.Layers))
	})
}

// pruneTo lets write write the file and says what it has become.
func pruneTo(cmd *cobra.Command, path, out string, write func(*prune.Options) error, what func(before, after *inspect.Model) string) error {
	progress, done := byteBar(cmd.ErrOrStderr(), "pruning")
	err := write(&prune.Options{Progress: progress})
	done()
	if err != nil {
		return err
	}
	before, err := inspect.Read(path)
	if err != nil {
		return err
	}
	after, err := inspect.Read(out)
	if err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, %s instead of %s\n", out, what(before, after), humanize.IBytes(uint64(after.FileBytes)), humanize.IBytes(uint64(before.FileBytes)))
	return nil
}
