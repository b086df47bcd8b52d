package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/skip"
)

func addNeuronsMemory(f *pflag.FlagSet, mib *int) {
	f.IntVar(mib, "neurons-memory", 0, "MiB that the kept neurons of --skip n20% may take beside the model; answers wait where that is too little for as many at once (default: half of the memory that is free)")
}

// neuronsMemory is --neurons-memory in bytes.
func neuronsMemory(mib int) (uint64, error) {
	if mib < 0 {
		return 0, usageError{fmt.Errorf("--neurons-memory is %d, want MiB, or 0 for half of what is free", mib)}
	}
	return uint64(mib) << 20, nil
}

// learnNeurons finds out which neurons are active on the whole, if the mask leaves out some and that
// is still to be done.
func learnNeurons(ctx context.Context, cmd *cobra.Command, e *gallop.Engine, mask skip.Mask) error {
	if mask.Neurons() == 0 {
		return nil
	}
	known := e.Neurons()
	if known.Learnt || known.Why != "" { // the answer says why not
		return nil
	}
	report, done := learningProgress(cmd)
	defer done()
	return e.LearnNeurons(ctx, report)
}

// learningProgress shows how far learning has come.
func learningProgress(cmd *cobra.Command) (report func(share float64), done func()) {
	bar, done := stageProgress(cmd.ErrOrStderr())
	const steps, stage = 100, "learning which neurons are active on the whole, once for a model, in a minute or so"
	bar(stage, 0, steps)
	return func(share float64) { bar(stage, int(share*steps), steps) }, done
}
