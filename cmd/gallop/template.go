package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/gallop-llm/gallop/llama"
)

// addTemplate declares --chat-template.
func addTemplate(flags *pflag.FlagSet, template *string) {
	flags.StringVar(template, "chat-template", "", "chat template: Jinja, or a format's name, as in chatml (default: the model's; without one it continues the text)")
}

// useTemplate makes the model use --chat-template. A model that has no template
// all the same, and one that has no place for the system prompt, are told of.
func useTemplate(cmd *cobra.Command, m *llama.Model, template, system string) error {
	if template != "" {
		if err := m.SetTemplate(template); err != nil {
			return usageError{fmt.Errorf("--chat-template: %w", err)}
		}
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
