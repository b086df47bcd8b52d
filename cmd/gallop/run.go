package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop/internal/chat"
)

func newRunCommand() *cobra.Command {
	var g generation
	var prompt string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   `run -p "..."`,
		Short: "Answer one prompt",
		Long: `Answer one prompt. What comes through a pipe is added below -p, or is the prompt
when there is no -p: gallop run -p "Summarise:" < notes.txt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runRun(cmd, &g, prompt, asJSON) },
	}
	g.add(cmd)
	cmd.Flags().StringVarP(&prompt, "prompt", "p", "", "the prompt")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the answer and its figures as JSON")
	return cmd
}

// runResult is what --json prints.
type runResult struct {
	Text         string      `json:"text"`
	Finish       chat.Finish `json:"finish"`
	Model        string      `json:"model"`
	Skip         string      `json:"skip"` // as --skip takes it
	Layers       int         `json:"layers"`
	LayersUsed   float64     `json:"layers_used"`
	PromptTokens int         `json:"prompt_tokens"`
	Tokens       int         `json:"tokens"`
	PrefillMS    float64     `json:"prefill_ms"`
	PrefillTPS   float64     `json:"prefill_tps"`
	DecodeMS     float64     `json:"decode_ms"`
	DecodeTPS    float64     `json:"decode_tps"`
	Prefill      string      `json:"prefill"`                          // masked or full
	Escalated    int         `json:"escalated"`                        // tokens that the whole model decided
	Weights      uint64      `json:"weights_bytes"`                    // of the whole model
	Resident     uint64      `json:"resident_weights_bytes,omitempty"` // in main memory after the answer; absent when not known
	Threads      int         `json:"threads,omitempty"`                // for single tokens, at the answer's end; absent when fixed
	Changes      int         `json:"thread_changes,omitempty"`         // of their number
	Route        *runChoice  `json:"route,omitempty"`                  // absent when nothing was chosen
	Drafts       *runDrafts  `json:"drafts,omitempty"`                 // absent when not lossless
}

// runDrafts is what lossless drafting brought.
type runDrafts struct {
	Rounds         int            `json:"rounds"`           // drafts that were verified
	Drafted        int            `json:"drafted"`          // tokens
	Accepted       int            `json:"accepted"`         // of these
	LookedUp       int            `json:"looked_up"`        // of drafted, those that were said before
	Acceptance     float64        `json:"acceptance"`       // accepted / drafted
	TokensPerRound float64        `json:"tokens_per_round"` // its own one included
	Lengths        []int          `json:"lengths"`          // rounds by how many tokens were accepted, from 0 on
	Masks          map[string]int `json:"masks"`            // drafted tokens by mask
	Speedup        float64        `json:"speedup"`          // over one token at a time, estimated
	Rounding       float64        `json:"rounding"`         // of logits in a batch, at most, as seen at the start; 0 = to the last bit those of one token at a time
}

func draftsOf(a chat.Answer) *runDrafts {
	d := a.Drafting
	if d == nil {
		return nil
	}
	masks := map[string]int{}
	for mask, n := range d.Masks {
		masks[mask.String()] = n
	}
	return &runDrafts{
		Rounds: d.Rounds, Drafted: d.Drafted, Accepted: d.Accepted, LookedUp: d.LookedUp, Acceptance: d.Acceptance(),
		TokensPerRound: d.TokensPerRound(), Lengths: d.Lengths[:], Masks: masks, Speedup: a.DraftSpeedup(), Rounding: d.Rounding,
	}
}

// runChoice is what the router chose for the prompt.
type runChoice struct {
	Task    string  `json:"task"`    // whose omission set it is; "" = the whole model
	Reason  string  `json:"reason"`  // one sentence
	Quality float64 `json:"quality"` // predicted share of the whole model's probability per token
	Novelty float64 `json:"novelty"` // above 1: unlike the calibration data
	MS      float64 `json:"ms"`      // that choosing took
}

func runRun(cmd *cobra.Command, g *generation, prompt string, asJSON bool) error {
	prompt, err := wholePrompt(prompt, cmd.InOrStdin())
	if err != nil {
		return err
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	session, model, closeAll, err := g.open(ctx, cmd)
	if err != nil {
		return err
	}
	defer closeAll()
	out := cmd.OutOrStdout()
	answer, err := session.Ask(ctx, prompt, func(piece string) {
		if !asJSON {
			io.WriteString(out, piece)
		}
	})
	if err != nil {
		return err
	}
	if asJSON {
		var route *runChoice
		if r := answer.Routed; r != nil {
			route = &runChoice{r.Task, r.Reason, r.Quality, r.Novelty, answer.Routing.Seconds() * 1000}
		}
		resident, _ := model.ResidentWeights() // 0 where the system does not tell
		return json.NewEncoder(out).Encode(runResult{
			Text: answer.Text, Finish: answer.Finish, Model: model.Path, Skip: answer.Mask.String(),
			Layers: model.NLayer, LayersUsed: chat.LayersUsed(answer.Mask, model.NLayer),
			PromptTokens: answer.PromptTokens, Tokens: answer.Tokens,
			PrefillMS: answer.Prefill.Seconds() * 1000, PrefillTPS: answer.PrefillSpeed(),
			DecodeMS: answer.Decode.Seconds() * 1000, DecodeTPS: answer.DecodeSpeed(),
			Prefill: session.Prefill().String(), Escalated: answer.Escalated, Weights: model.Size, Resident: resident,
			Threads: answer.Threads.Now, Changes: answer.Threads.Changes, Route: route, Drafts: draftsOf(answer),
		})
	}
	fmt.Fprintln(out)
	fmt.Fprintln(cmd.ErrOrStderr(), chat.Summary(answer, model.NLayer))
	return ctx.Err()
}

// wholePrompt is the prompt of -p with what a pipe brings below it.
func wholePrompt(prompt string, in io.Reader) (string, error) {
	if isTerminal(in) {
		if prompt == "" {
			return "", usageError{errors.New(`nothing to answer: say it with -p "..." or through a pipe`)}
		}
		return prompt, nil
	}
	piped, err := io.ReadAll(in)
	if err != nil {
		return "", fmt.Errorf("read the prompt: %w", err)
	}
	parts := strings.TrimSpace(prompt + "\n\n" + strings.TrimRight(string(piped), "\r\n"))
	if parts == "" {
		return "", usageError{errors.New(`nothing to answer: say it with -p "..." or through a pipe`)}
	}
	return parts, nil
}
