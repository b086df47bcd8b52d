package main

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop/internal/lab/report"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

func newRouteCommand() *cobra.Command {
	var model, profile, prompt string
	var policy router.Policy
	var asJSON bool
	var e escapes
	cmd := &cobra.Command{
		Use:   `route [-m model.gguf] "prompt"`,
		Short: "Show which layers a prompt would skip, and why",
		Long: `Show which layers a prompt would skip, and why.

` + promptHelp,
		RunE: func(cmd *cobra.Command, args []string) error {
			words, err := modelAndWords(cmd, &model, args)
			if err != nil {
				return err
			}
			prompt, err := wholePrompt(cmd, e.text(prompt), words)
			if err != nil {
				return err
			}
			defer tellUnread(cmd, words)
			return runRoute(cmd, model, profile, prompt, policy, asJSON)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&model, "model", "m", "", "model: a GGUF file, or a name as `gallop models` lists them (default: the demo model)")
	flags.StringVar(&profile, "profile", "", "profile to route by (default: the model's)")
	flags.StringVarP(&prompt, "prompt", "p", "", "the prompt")
	e.add(flags)
	flags.Float64Var(&policy.Depth, "depth", 0, "always skip this many layers' worth of weights; 0 = by --quality")
	flags.Float64Var(&policy.Quality, "quality", 0, "skip as much as keeps this share of the whole model's probability per token; 0 = the profile's")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// routeResult is what --json prints.
type routeResult struct {
	Skip       string           `json:"skip"` // as --skip takes it
	Task       string           `json:"task"`
	Depth      float64          `json:"depth"`
	Quality    float64          `json:"quality"`
	Novelty    float64          `json:"novelty"`
	Reason     string           `json:"reason"`
	Candidates []routeCandidate `json:"candidates"`
}

// routeCandidate is a set that could have been chosen.
type routeCandidate struct {
	Skip      string  `json:"skip"`
	Task      string  `json:"task"`
	Depth     float64 `json:"depth"`
	Predicted float64 `json:"predicted_increase"` // nats per token
}

func runRoute(cmd *cobra.Command, model, profile, prompt string, policy router.Policy, asJSON bool) error {
	path, err := modelPath(cmd, model)
	if err != nil {
		return err
	}
	p, err := readProfile(path, profile)
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	m, err := openModel(ctx, cmd, path, &llama.ModelOptions{VocabOnly: true})
	if err != nil {
		return err
	}
	defer m.Close()
	if err := p.Open(m.Path); err != nil {
		return err
	}
	defer p.Close()
	x, err := router.NewPrompt(m, prompt)
	if err != nil {
		return err
	}
	d, err := p.Choose(x, policy)
	if err != nil {
		return err
	}
	if asJSON {
		result := routeResult{d.Mask.String(), d.Task, d.Depth, d.Quality, d.Novelty, d.Reason, nil}
		for i, c := range p.Candidates {
			result.Candidates = append(result.Candidates, routeCandidate{c.Mask.String(), c.Task, c.Depth, d.Predicted[i]})
		}
		return writeJSON(cmd.OutOrStdout(), result)
	}
	return drawRoute(cmd, p, d)
}

// mostBars is how many candidates are shown: of one depth there are as many as tasks.
const mostBars = 16

// drawRoute shows the decision, the layers, and the candidates of its depth
// with their predicted losses.
func drawRoute(cmd *cobra.Command, p *router.Profile, d router.Decision) error {
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "skips %s: %s\n", cmp.Or(d.Mask.String(), "nothing"), d.Reason)
	fmt.Fprintf(out, "novelty %.2f (above 1 is unlike the calibration data), predicted quality %.3f\n\n", d.Novelty, d.Quality)
	attention, feedForward := make([]bool, p.Model.Layers), make([]bool, p.Model.Layers)
	for l := range p.Model.Layers {
		attention[l] = d.Mask.Skipped(l)&skip.Attention != 0
		feedForward[l] = d.Mask.Skipped(l)&skip.FeedForward != 0
	}
	if err := report.Map(out, attention, feedForward, 0); err != nil {
		return err
	}
	depth := d.Depth
	if d.Candidate == 0 {
		for _, c := range p.Candidates {
			depth = max(depth, c.Depth) // what was not dared
		}
	}
	var shown []int
	for c, candidate := range p.Candidates {
		if c == d.Candidate || c > 0 && candidate.At(depth) {
			shown = append(shown, c)
		}
	}
	slices.SortStableFunc(shown, func(a, b int) int { return cmp.Compare(d.Predicted[a], d.Predicted[b]) })
	var bars []report.Bar
	for _, c := range shown[:min(len(shown), mostBars)] {
		candidate := p.Candidates[c]
		bars = append(bars, report.Bar{
			Label: cmp.Or(candidate.Task, "whole model"), Value: max(d.Predicted[c], 0), Note: candidate.Mask.String(), Chosen: c == d.Candidate,
		})
	}
	fmt.Fprintf(out, "\npredicted loss increase in nats per token, sets of about %.3g layers:\n", depth)
	return report.Bars(out, bars, 0)
}

// readProfile reads the named profile, or the one that is found for a model.
func readProfile(model, named string) (*router.Profile, error) {
	if named == "" {
		found, ok := router.Find(model)
		if !ok {
			return nil, fmt.Errorf("%s has no profile: make one with `gallop calibrate -m %s`, or name one with --profile", model, model)
		}
		named = found
	}
	return router.Read(named)
}
