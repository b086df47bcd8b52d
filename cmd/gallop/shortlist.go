package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop/internal/shortlist"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// autoShortlist is --shortlist auto, which leaves the number of tokens to what was measured.
const autoShortlist = -1

// parseShortlist reads --shortlist: a number of tokens, 0 for off, or [autoShortlist].
func parseShortlist(text string) (size int, err error) {
	switch word := strings.ToLower(text); word {
	case "auto":
		return autoShortlist, nil
	case "off":
		return 0, nil
	default:
		n, err := strconv.Atoi(word)
		if err != nil || n < skip.MinShortlist || n > skip.MaxShortlist {
			return 0, usageError{fmt.Errorf("--shortlist is %q, want auto, off or a number of tokens, %d to %d", text, skip.MinShortlist, skip.MaxShortlist)}
		}
		return n, nil
	}
}

// openShortlist takes a model's vocabulary shortlist from the folder dir, if it is there.
// Close it before the model.
func openShortlist(cmd *cobra.Command, m *llama.Model, dir string, threads int) *shortlist.Learner {
	return shortlist.Open(m, dir, threads, func(err error) { fmt.Fprintln(cmd.ErrOrStderr(), "gallop:", err) })
}

// learnShortlist learns the shortlist of a model for masks with one of up to size tokens,
// unless it is known. why says that there can be none. The error wraps [llama.ErrShortlist]
// then.
func learnShortlist(ctx context.Context, cmd *cobra.Command, m *llama.Model, size int, known bool, why string, learn func(context.Context) error) error {
	if most := m.Vocab.Size / 4; size > most {
		return fmt.Errorf("%w: a shortlist of %d tokens saves nothing with a vocabulary of %d: take up to %d", skip.ErrMask, size, m.Vocab.Size, most)
	}
	if known {
		return nil
	}
	if why == "" {
		fmt.Fprintln(cmd.ErrOrStderr(), "learning the vocabulary shortlist, which takes a minute or less and is done once for a model")
	}
	return learn(ctx)
}
