package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop/internal/inspect"
)

func newInspectCommand() *cobra.Command {
	var model string
	var asJSON, template bool
	cmd := &cobra.Command{
		Use:   "inspect [model.gguf]",
		Short: "Show what a GGUF model is made of, with a picture of its layers",
		Long: `Show what a GGUF model is made of, without loading it: shape, quantisation,
tokenizer, chat template, and what attention and feed-forward of each layer
weigh, which is what skipping them saves. Without a model it is the demo model.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if asJSON && template {
				return usageError{errors.New("--json and --template exclude each other: the JSON has the template")}
			}
			path, err := namedModel(cmd, model, args)
			if err != nil {
				return err
			}
			return runInspect(cmd.OutOrStdout(), path, asJSON, template)
		},
	}
	cmd.Flags().StringVarP(&model, "model", "m", "", "GGUF file (default: the demo model)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	cmd.Flags().BoolVar(&template, "template", false, "write the chat template, whole and alone")
	return cmd
}

// namedModel is the model that -m or the only argument names. The argument goes
// before what the environment or the configuration file says.
func namedModel(cmd *cobra.Command, flag string, args []string) (string, error) {
	if len(args) == 0 {
		return modelPath(flag)
	}
	if cmd.Flags().Changed("model") {
		return "", usageError{fmt.Errorf("the model is named twice, %s and %s: leave one out", flag, args[0])}
	}
	return args[0], nil
}

func runInspect(out io.Writer, path string, asJSON, template bool) error {
	m, err := inspect.Read(path)
	switch {
	case err != nil:
		return err
	case template && m.ChatTemplate == "":
		return errors.New("the model has no chat template")
	case template:
		_, err := fmt.Fprintln(out, m.ChatTemplate)
		return err
	case asJSON:
		return writeJSON(out, m)
	}
	return m.WriteText(out, &inspect.TextOptions{Color: isTerminal(out) && os.Getenv("NO_COLOR") == ""})
}

// writeJSON writes a result for other programs.
func writeJSON(out io.Writer, result any) error {
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(result)
}
