package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop/internal/files"
	"github.com/gallop-llm/gallop/internal/models"
)

// promptHelp is what the help of the commands that take a prompt says about it.
const promptHelp = `The prompt is the words behind the command, joined by spaces, or -p. A first word
that is a GGUF file, or a whole name as "gallop models" lists them, is the model,
as after -m. With "-" as the last word, what comes through a pipe is put below the
prompt; with no prompt at all it is the prompt. A pipe is not read otherwise.
In -p, \n stands for a new line, as in llama.cpp; words and pipes are taken as they are.`

// modelAndWords takes a command's arguments apart: a first one that is a GGUF
// file, or the whole name of a model that is here, goes into model. The others are
// words of the prompt.
func modelAndWords(cmd *cobra.Command, model *string, args []string) (words []string, err error) {
	if len(args) == 0 || !isModelFile(args[0]) && !isModelName(args[0]) {
		return args, nil
	}
	*model, err = namedModel(cmd, *model, args[:1])
	return args[1:], err
}

// magic opens every GGUF file.
const magic = "GGUF"

// isModelFile tells a model from a word of a prompt: a file that begins as GGUF
// files do, or a name that ends as theirs.
func isModelFile(arg string) bool {
	info, err := os.Stat(arg)
	exists := err == nil && info.Mode().IsRegular()
	if strings.EqualFold(filepath.Ext(arg), ".gguf") && (exists || !strings.ContainsAny(arg, " \t\n")) {
		return true
	}
	if !exists {
		return false
	}
	f, err := os.Open(arg)
	if err != nil {
		return false
	}
	defer f.Close()
	head := make([]byte, len(magic))
	_, err = io.ReadFull(f, head)
	return err == nil && string(head) == magic
}

// isModelName tells the whole name of a model that is here from a word of a prompt:
// no word of letters alone is taken for one.
func isModelName(arg string) bool {
	return strings.ContainsAny(arg, "-.:/0123456789") && slices.ContainsFunc(models.List(), func(m models.Model) bool { return strings.EqualFold(m.Name, arg) })
}

// namedModel is the model that -m or the only argument names. The argument goes
// before what the environment or the configuration file says.
func namedModel(cmd *cobra.Command, flag string, args []string) (string, error) {
	if len(args) == 0 {
		return flag, nil
	}
	if cmd.Flags().Changed("model") {
		return "", usageError{fmt.Errorf("the model is named twice, %s and %s: leave one out", flag, args[0])}
	}
	return args[0], nil
}

// tellUnread says so when there was a prompt and the pipe, which holds something,
// was not asked for.
func tellUnread(cmd *cobra.Command, words []string) {
	f, ok := cmd.InOrStdin().(*os.File)
	if !ok || len(words) > 0 && words[len(words)-1] == "-" {
		return
	}
	if info, err := f.Stat(); err != nil || info.Mode()&os.ModeNamedPipe == 0 {
		return
	}
	if holdsSomething(f) {
		fmt.Fprintln(cmd.ErrOrStderr(), `gallop: what comes through the pipe was not read: write "-" behind the prompt to add it`)
	}
}

// noArgument lets a command have flags only.
func noArgument(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("`%s` takes no argument, and got %q", cmd.CommandPath(), args[0])
	}
	return nil
}

// oneModel lets a command have one argument, its model.
func oneModel(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return fmt.Errorf("`%s` takes one argument, the model, and not %q too", cmd.CommandPath(), args[1])
	}
	return nil
}

// modelFile is the model that -m or the argument names, or the demo model.
func modelFile(cmd *cobra.Command, flag string, args []string) (string, error) {
	path, err := namedModel(cmd, flag, args)
	if err != nil {
		return "", err
	}
	return modelPath(cmd, path)
}

// errNoPrompt is returned where there is nothing to answer.
var errNoPrompt = usageError{errors.New(`nothing to answer: write the prompt behind the command, as in "Why is the sky blue?"`)}

// wholePrompt is the prompt that the words, -p, or a pipe give.
func wholePrompt(cmd *cobra.Command, flag string, words []string) (string, error) {
	n := len(words)
	piped := n > 0 && words[n-1] == "-"
	if piped {
		words = words[:n-1]
	}
	prompt := strings.Join(words, " ")
	given := len(words) > 0
	switch named := cmd.Flags().Changed("prompt"); {
	case named && given:
		return "", usageError{fmt.Errorf("the prompt is given twice, -p %q and %q: leave one out", flag, prompt)}
	case !given:
		prompt, given = flag, named || flag != ""
	}
	if in := cmd.InOrStdin(); piped || !given && !isTerminal(in) {
		text, err := io.ReadAll(in)
		if err != nil {
			return "", fmt.Errorf("read the prompt: %w", err)
		}
		below, err := files.Text(text)
		if err != nil {
			return "", fmt.Errorf("the prompt from the pipe %w", err)
		}
		prompt = strings.TrimSpace(prompt + "\n\n" + strings.TrimRight(below, "\r\n"))
	}
	if strings.TrimSpace(prompt) == "" {
		return "", errNoPrompt
	}
	return prompt, nil
}
