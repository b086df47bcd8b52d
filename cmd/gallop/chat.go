package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/models"
)

func newChatCommand() *cobra.Command {
	g := generation{chats: true}
	var first []string
	var noHistory bool
	cmd := &cobra.Command{
		Use:   "chat [model.gguf]",
		Short: "Chat with a model; /help in the chat lists its commands",
		Long: `Chat with a model. Lines come from the terminal, with editing and a history, or
from a pipe. Each -p is a line said before those; commands such as "/skip 4,6"
work there too. A \ at the end of a line goes on in the next one; a text of several
lines can stand between """ and """.`,
		Args: oneModel,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if len(args) > 0 {
				if err := checkModel(args[0]); err != nil {
					return err
				}
			}
			if g.model, err = namedModel(cmd, g.model, args); err != nil {
				return err
			}
			history := historyPath()
			if noHistory {
				history = ""
			}
			return runChat(cmd, &g, g.escapes.texts(first), history)
		},
	}
	g.add(cmd)
	cmd.Flags().BoolVar(&g.learn, "learn", false, "calibrate the model in the background while you read or type, and route by the profile once it is there")
	cmd.Flags().StringArrayVarP(&first, "prompt", "p", nil, "say this first; repeatable")
	cmd.Flags().BoolVar(&noHistory, "no-history", false, "neither read nor keep what was typed in earlier chats ("+historyPath()+")")
	return cmd
}

// checkModel refuses a word that is meant to be said, not the model.
func checkModel(arg string) error {
	if isModelFile(arg) || strings.HasPrefix(arg, hubPrefix) {
		return nil
	}
	path, err := models.Path(arg)
	switch {
	case errors.Is(err, models.ErrUnknown):
		return usageError{fmt.Errorf("%w; to say it first, write -p %q", err, arg)}
	case err == nil && path == arg:
		return usageError{fmt.Errorf("%q is no GGUF file; to say it first, write -p %[1]q", arg)}
	}
	return err
}

func runChat(cmd *cobra.Command, g *generation, first []string, history string) error {
	notes := cmd.ErrOrStderr()
	lines, interactive := newLines(cmd.InOrStdin(), notes, history) // what is typed while the model loads is a line, too
	defer lines.Close()
	ctx, stop := interruptible(cmd)
	engine, request, closeAll, err := g.open(ctx, cmd)
	stop() // from here on Ctrl-C is for answers
	if err != nil {
		return err
	}
	defer closeAll()
	routed, err := g.skips(cmd, true)
	if err != nil {
		return err
	}
	r := &repl{
		session: engine.NewSession(request), engine: engine, out: answers(cmd.OutOrStdout()), notes: notes, routed: routed, byHand: g.escalating,
		interrupt: func(ctx context.Context) (context.Context, context.CancelFunc) {
			return endedBy(ctx, os.Interrupt)
		},
	}
	plan, err := r.plan(request) // a mistake shows at once
	if err != nil {
		return err
	}
	if plan.Choice == nil {
		r.mask = plan.Mask
	}
	var learning *learning
	if g.learn {
		if learning, err = g.startLearning(cmd, engine); err != nil {
			return err
		}
		defer learning.close()
	}
	info := engine.Info()
	fmt.Fprintf(notes, "%s: %d layers, context of %d tokens; /help lists the commands\n", filepath.Base(info.Path), info.Layers, info.Context)
	known := engine.Shortlist().List
	for {
		learning.idle()
		line, spoken, err := nextLine(&first, lines)
		learning.busy(notes)
		if made := engine.Shortlist(); made.List != nil && made.List != known {
			known = made.List
			fmt.Fprintln(notes, madeNote(&made))
		}
		if errors.Is(err, io.EOF) {
			if interactive {
				fmt.Fprintln(notes) // the shell's prompt belongs on a line of its own
			}
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the next line: %w", err)
		}
		if spoken || !interactive {
			fmt.Fprintln(notes, ">", line)
		}
		more, err := r.line(context.Background(), line)
		if err != nil && !interactive {
			return err
		}
		if err != nil {
			fmt.Fprintln(notes, "gallop:", err)
		}
		if !more {
			return nil
		}
	}
}

// madeNote says what was learnt while nobody waited.
func madeNote(m *gallop.ShortlistInfo) string {
	if !m.Pays {
		return fmt.Sprintf("[vocabulary shortlist: learnt in %.0f s, but it makes decoding no faster here, so it stays off]", m.Took.Seconds())
	}
	return fmt.Sprintf("[vocabulary shortlist: on, learnt in %.0f s from %d tokens; %d tokens get exact logits, decoding is %.2f times as fast]",
		m.Took.Seconds(), m.States, m.Size, m.Gain)
}

// nextLine takes the lines of -p first; spoken tells that it is one of those.
func nextLine(first *[]string, lines lineSource) (line string, spoken bool, err error) {
	if len(*first) > 0 {
		line, *first = (*first)[0], (*first)[1:]
		return line, true, nil
	}
	line, err = lines.Next()
	return line, false, err
}
