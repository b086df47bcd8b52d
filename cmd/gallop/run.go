package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop/internal/chat"
)

func newRunCommand() *cobra.Command {
	var g generation
	var prompt string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   `run [-m model.gguf] "prompt"`,
		Short: "Answer one prompt",
		Long: `Answer one prompt.

` + promptHelp,
		Example: `  gallop run "Why is the sky blue?"
  gallop run -m model.gguf "Why is the sky blue?"
  gallop run model.gguf "Summarise:" - < notes.txt`,
		RunE: func(cmd *cobra.Command, args []string) error {
			words, err := modelAndWords(cmd, &g.model, args)
			if err != nil {
				return err
			}
			if prompt, err = wholePrompt(cmd, prompt, words); err != nil {
				return err
			}
			defer tellUnread(cmd, words)
			return runRun(cmd, &g, prompt, asJSON)
		},
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
	FirstTokenMS float64     `json:"first_token_ms"` // from the question to the first token's choice
	TemplateMS   float64     `json:"template_ms"`    // of these: writing the conversation in the model's format,
	TokenizeMS   float64     `json:"tokenize_ms"`    // turning that into tokens,
	SamplerMS    float64     `json:"sampler_ms"`     // making the sampler,
	PrefillMS    float64     `json:"prefill_ms"`     // decoding the prompt
	PrefillTPS   float64     `json:"prefill_tps"`
	DecodeMS     float64     `json:"decode_ms"`
	DecodeTPS    float64     `json:"decode_tps"`
	Prefill      string      `json:"prefill"`                          // masked or full
	Escalated    int         `json:"escalated"`                        // tokens that the mask left in doubt and the whole model decided
	Weights      uint64      `json:"weights_bytes"`                    // of the whole model
	Resident     uint64      `json:"resident_weights_bytes,omitempty"` // in main memory after the answer; absent when not known
	Threads      int         `json:"threads,omitempty"`                // for single tokens, at the answer's end; absent when fixed
	Changes      int         `json:"thread_changes,omitempty"`         // of their number
	Route        *runChoice  `json:"route,omitempty"`                  // absent when nothing was chosen
	Drafts       *runDrafts  `json:"drafts,omitempty"`                 // absent when not lossless
	Shortlist    runListed   `json:"shortlist"`
	Weighed      *runWeighed `json:"weighed,omitempty"` // absent when no mask was weighed
}

// runListed is what the vocabulary shortlist did.
type runListed struct {
	Size     int    `json:"size"`          // tokens with exact logits; 0 = all
	Rows     int    `json:"rows"`          // tokens that were chosen from a shortlist
	Extended int    `json:"extended"`      // of these, those that needed a longer list
	Exact    int    `json:"exact"`         // exact logits of all of these together
	Why      string `json:"why,omitempty"` // there was none
}

// runWeighed is what was found out about the routed mask.
type runWeighed struct {
	Speed  float64 `json:"speed"`        // times as fast as the whole model, second decodes included; 0 = not measured
	Masked int     `json:"masked"`       // tokens decoded under the mask
	Whole  int     `json:"whole"`        // tokens by the whole model alone, to compare or because the mask did not pay
	Off    bool    `json:"does_not_pay"` // in the end
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
	Rounding       float64        `json:"rounding"`         // of logits in a batch, at most, as seen so far; 0 = to the last bit those of one token at a time
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
	Task    string  `json:"task"`      // whose omission set it is; "" = the whole model
	Reason  string  `json:"reason"`    // one sentence
	Quality float64 `json:"quality"`   // predicted share of the whole model's probability per token
	Novelty float64 `json:"novelty"`   // above 1: unlike the calibration data
	MS      float64 `json:"ms"`        // that choosing took
	Waited  float64 `json:"waited_ms"` // of these, for which the answer waited: before a masked prefill, or after the first token; 0 = none
}

func runRun(cmd *cobra.Command, g *generation, prompt string, asJSON bool) error {
	ctx, stop := interruptible(cmd)
	defer stop()
	session, model, closeAll, err := g.open(ctx, cmd)
	if err != nil {
		return err
	}
	defer closeAll()
	out := cmd.OutOrStdout()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	text := answers(out)
	answer, err := session.Ask(ctx, prompt, func(piece string) {
		if asJSON {
			return
		}
		if _, err := io.WriteString(text, piece); err != nil {
			cancel(fmt.Errorf("write the answer: %w", err)) // nobody reads on
		}
	})
	if err != nil {
		return err
	}
	if asJSON {
		var route *runChoice
		if r := answer.Routed; r != nil {
			route = &runChoice{r.Task, r.Reason, r.Quality, r.Novelty, ms(answer.Routing), ms(answer.Timing.Waited)}
		}
		var weighed *runWeighed
		if w := answer.Weighed; w.Masked+w.Whole > 0 {
			weighed = (*runWeighed)(&w)
		}
		resident, _ := model.ResidentWeights() // 0 where the system does not tell
		err := json.NewEncoder(out).Encode(runResult{
			Text: answer.Text, Finish: answer.Finish, Model: model.Path, Skip: answer.Mask.String(),
			Layers: model.NLayer, LayersUsed: chat.LayersUsed(answer.Mask, model.NLayer),
			PromptTokens: answer.PromptTokens, Tokens: answer.Tokens,
			FirstTokenMS: ms(answer.Timing.FirstToken), TemplateMS: ms(answer.Timing.Template),
			TokenizeMS: ms(answer.Timing.Tokenize), SamplerMS: ms(answer.Timing.Sampler),
			PrefillMS: ms(answer.Prefill), PrefillTPS: answer.PrefillSpeed(),
			DecodeMS: ms(answer.Decode), DecodeTPS: answer.DecodeSpeed(),
			Prefill: session.Prefill().String(), Escalated: answer.Escalated, Weights: model.Size, Resident: resident,
			Threads: answer.Threads.Now, Changes: answer.Threads.Changes, Route: route, Drafts: draftsOf(answer), Shortlist: runListed(answer.Listed), Weighed: weighed,
		})
		if err != nil {
			return fmt.Errorf("write the answer: %w", err)
		}
		g.learnShortlist(ctx, cmd, false)
		return nil
	}
	if _, err := fmt.Fprintln(out); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	fmt.Fprintln(cmd.ErrOrStderr(), chat.Summary(answer, model.NLayer))
	if err := context.Cause(ctx); err != nil {
		return err
	}
	g.learnShortlist(ctx, cmd, isTerminal(cmd.ErrOrStderr()))
	return nil
}

// learnShortlist makes the model's vocabulary shortlist after an answer: once the answers have
// given enough hidden states, or, where a person can see what takes time and end it, at
// once. The answer is there, so an error is told and no more.
func (g *generation) learnShortlist(ctx context.Context, cmd *cobra.Command, atOnce bool) {
	l, notes := g.learner, cmd.ErrOrStderr()
	if ctx.Err() != nil || l == nil || l.Why() != "" || l.Made() != nil || !atOnce && !l.Ready() {
		return
	}
	fmt.Fprintln(notes, "[learning this model's vocabulary shortlist, once, in a minute or less; Ctrl-C leaves it for later]")
	err := l.Learn(ctx)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		fmt.Fprintln(notes, "gallop:", err)
	default:
		fmt.Fprintln(notes, madeNote(l.Made()))
	}
}

func ms(d time.Duration) float64 { return d.Seconds() * 1000 }
