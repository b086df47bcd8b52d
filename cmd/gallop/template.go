package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/gallop-llm/gallop/llama"
)

// variablesFlag names the flag with the template's further variables.
const variablesFlag = "chat-template-kwargs"

// addTemplate declares --chat-template and --chat-template-kwargs.
func addTemplate(flags *pflag.FlagSet, template *string) {
	flags.StringVar(template, "chat-template", "", "chat template: a format's name, as in chatml, a file, or Jinja (default: the model's; without one it continues the text)")
	flags.String(variablesFlag, "", `variables of the chat template, as JSON: {"enable_thinking": false}`)
}

// templateText is the chat template that --chat-template names: a file's text, or
// what it says itself.
func templateText(template string) (string, error) {
	info, err := os.Stat(template)
	if err != nil || !info.Mode().IsRegular() || strings.Contains(template, "{") {
		return template, nil
	}
	if info.Size() > maxTemplate {
		return "", fmt.Errorf("%s is no chat template: it has %d bytes", template, info.Size())
	}
	data, err := os.ReadFile(template)
	if err != nil {
		return "", err
	}
	if text := strings.TrimPrefix(string(data), "\ufeff"); strings.Contains(text, "{") && utf8.ValidString(text) {
		return text, nil
	}
	return "", fmt.Errorf("%s is no chat template: it has no Jinja", template)
}

// maxTemplate bounds a template's file in bytes.
const maxTemplate = 4 << 20

// useTemplate makes the model use --chat-template. A model that has no template
// all the same, and one that has no place for the system prompt, are told of.
func useTemplate(cmd *cobra.Command, m *llama.Model, template, system string) error {
	if template != "" {
		text, err := templateText(template)
		if err == nil {
			err = m.SetTemplate(text)
		}
		if err != nil {
			return usageError{fmt.Errorf("--chat-template: %w", err)}
		}
	}
	variables, err := cmd.Flags().GetString(variablesFlag)
	if err != nil {
		return err
	}
	if err := m.SetTemplateVariables(json.RawMessage(variables)); err != nil {
		return usageError{fmt.Errorf("--%s: %w", variablesFlag, err)}
	}
	notes := cmd.ErrOrStderr()
	if m.Template() == "" {
		fmt.Fprintf(notes, "gallop: %s has no chat template, as base models have none: it continues the text, as far as -n allows; a model that was trained to chat needs --chat-template\n", filepath.Base(m.Path))
		return nil
	}
	if system == "" {
		return nil
	}
	text, err := m.ApplyTemplate([]llama.Message{{Role: "system", Content: system}, {Role: "user", Content: "x"}}, true)
	switch {
	case errors.Is(err, llama.ErrTemplate):
		return fmt.Errorf("--sys: %w", err)
	case err != nil:
		return err
	case !strings.Contains(text, strings.TrimSpace(system)):
		fmt.Fprintf(notes, "gallop: the chat template of %s has no place for a system prompt: --sys does nothing; say it in the prompt\n", filepath.Base(m.Path))
	}
	return nil
}
