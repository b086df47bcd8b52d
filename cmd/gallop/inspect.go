package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop/internal/inspect"
	"github.com/gallop-llm/gallop/internal/lab/report"
	"github.com/gallop-llm/gallop/router"
)

func newInspectCommand() *cobra.Command {
	var model, profile string
	var asJSON, template bool
	cmd := &cobra.Command{
		Use:   "inspect [model.gguf]",
		Short: "Show what a GGUF model is made of, with a picture of its layers",
		Long: `Show what a GGUF model is made of, without loading it: shape, quantisation,
tokenizer, chat template, and what attention and feed-forward of each layer
weigh, which is what skipping them saves. Without a model it is the demo model.`,
		Args: oneModel,
		RunE: func(cmd *cobra.Command, args []string) error {
			if asJSON && template {
				return usageError{errors.New("--json and --template exclude each other: the JSON has the template")}
			}
			path, err := modelFile(cmd, model, args)
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("profile") {
				return inspectProfile(cmd.OutOrStdout(), path, strings.TrimSpace(profile), asJSON)
			}
			return runInspect(cmd.OutOrStdout(), path, asJSON, template)
		},
	}
	cmd.Flags().StringVarP(&model, "model", "m", "", "model: a GGUF file, or a name as `gallop models` lists them (default: the demo model)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	cmd.Flags().StringVar(&profile, "profile", "", "show the model's profile instead, or --profile=FILE: which layers matter for which task")
	cmd.Flags().Lookup("profile").NoOptDefVal = " " // --profile alone
	cmd.Flags().BoolVar(&template, "template", false, "write the chat template, whole and alone")
	return cmd
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
	return m.WriteText(out, &inspect.TextOptions{
		Color: isTerminal(out) && os.Getenv("NO_COLOR") == "" && !isDumb(), Columns: columns(out),
	})
}

// profileResult is what --profile --json prints.
type profileResult struct {
	Tasks      []string            `json:"tasks"`
	Increase   [][]*float64        `json:"loss_increase"` // by task, then attention and feed-forward of each layer; null = not measured
	Candidates []routeCandidate    `json:"candidates"`
	Provenance map[string]string   `json:"provenance"`
	Cascade    []router.Escalation `json:"cascade"`
}

// inspectProfile shows what a profile knows: where it comes from, and how much
// each layer matters for each task.
func inspectProfile(out io.Writer, model, named string, asJSON bool) error {
	p, err := readProfile(model, named)
	if err != nil {
		return err
	}
	fingerprint, err := router.FingerprintOf(model)
	if err != nil {
		return err
	}
	if err := p.Check(fingerprint); err != nil {
		return err
	}
	return showProfile(out, p, asJSON)
}

// showProfile writes what a profile knows.
func showProfile(out io.Writer, p *router.Profile, asJSON bool) error {
	if asJSON {
		result := profileResult{Tasks: p.Tasks, Provenance: map[string]string{}, Cascade: p.Defaults.Escalate}
		for _, row := range p.Units {
			figures := make([]*float64, len(row))
			for i, v := range row {
				figures[i] = report.Figure(v)
			}
			result.Increase = append(result.Increase, figures)
		}
		for _, c := range p.Candidates {
			result.Candidates = append(result.Candidates, routeCandidate{Skip: c.Mask.String(), Task: c.Task, Depth: c.Depth})
		}
		for _, f := range p.Provenance {
			result.Provenance[f.Key] = f.Value
		}
		return writeJSON(out, result)
	}
	fmt.Fprintf(out, "%d sets of layers, for %d tasks\n", len(p.Candidates)-1, len(p.Tasks))
	for _, f := range p.Provenance {
		fmt.Fprintf(out, "%-36s %s\n", f.Key, f.Value)
	}
	if p.Defaults.Speed > 0 {
		fmt.Fprintf(out, "%-36s %.2f times as fast as the whole model, on the machine that calibrated\n", "measured", p.Defaults.Speed)
	}
	if p.Defaults.Off {
		fmt.Fprintf(out, "%-36s no, it saves too little: --quality, --depth or --profile asks for it\n", "used by chat and run")
	}
	for _, e := range p.Defaults.Escalate {
		fmt.Fprintf(out, "%-36s skip %.3g layers, whole model below %g: %.0f %% of the weights read per token\n",
			fmt.Sprintf("escalation for quality %g", e.Quality), e.Depth, e.Threshold, 100*e.Cost)
	}
	if p.Units == nil {
		return nil
	}
	grid := report.Grid{Title: "What skipping half a layer costs", Label: "loss increase, nats per token", Across: "layer, attention and feed-forward", Rows: p.Tasks}
	for l := range p.Model.Layers {
		grid.Columns = append(grid.Columns, strconv.Itoa(l), "")
	}
	for _, row := range p.Units {
		values := make([]float64, len(row))
		for i, v := range row {
			if values[i] = v; !math.IsNaN(v) {
				values[i] = max(v, 0)
			}
		}
		grid.Values = append(grid.Values, values)
	}
	fmt.Fprintln(out)
	return report.Heat(out, grid, 0)
}

// writeJSON writes a result for other programs.
func writeJSON(out io.Writer, result any) error {
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(result)
}
