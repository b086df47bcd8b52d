package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop"
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
			if prompt, err = wholePrompt(cmd, g.escapes.text(prompt), words); err != nil {
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
	Text         string        `json:"text"`
	Finish       gallop.Finish `json:"finish"`
	Model        string        `json:"model"`
	Skip         string        `json:"skip"` // as --skip takes it
	Layers       int           `json:"layers"`
	LayersUsed   float64       `json:"layers_used"`
	PromptTokens int           `json:"prompt_tokens"`
	Tokens       int           `json:"tokens"`
	FirstTokenMS float64       `json:"first_token_ms"` // from the question to the first token's choice
	TemplateMS   float64       `json:"template_ms"`    // of these: writing the conversation in the model's format,
	TokenizeMS   float64       `json:"tokenize_ms"`    // turning that into tokens,
	SamplerMS    float64       `json:"sampler_ms"`     // making the sampler,
	PrefillMS    float64       `json:"prefill_ms"`     // decoding the prompt
	PrefillTPS   float64       `json:"prefill_tps"`
	DecodeMS     float64       `json:"decode_ms"`
	DecodeTPS    float64       `json:"decode_tps"`
	Prefill      string        `json:"prefill"`                          // masked or full
	Escalated    int           `json:"escalated"`                        // tokens that the mask left in doubt and the whole model decided
	Weights      uint64        `json:"weights_bytes"`                    // of the whole model
	Resident     uint64        `json:"resident_weights_bytes,omitempty"` // in main memory after the answer; absent when not known
	Threads      int           `json:"threads,omitempty"`                // for single tokens, at the answer's end; absent when fixed
	Changes      int           `json:"thread_changes,omitempty"`         // of their number
	Route        *runChoice    `json:"route,omitempty"`                  // absent when nothing was chosen
	Drafts       *runDrafts    `json:"drafts,omitempty"`                 // absent when not lossless
	Shortlist    runListed     `json:"shortlist"`
	Weighed      *runWeighed   `json:"weighed,omitempty"` // absent when no mask was weighed
	Neurons      *runNeurons   `json:"neurons,omitempty"` // absent when none were left out
}

// runNeurons is what was left out of feed-forwards.
type runNeurons struct {
	Share  float64 `json:"share"`        // of the neurons
	Heard  int     `json:"heard"`        // tokens that they were chosen by
	Copied uint64  `json:"copied_bytes"` // of weights
	Memory uint64  `json:"memory_bytes"` // beside the model
	MS     float64 `json:"ms"`           // choosing and copying
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

func draftsOf(a *gallop.Answer) *runDrafts {
	d := a.Drafts
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
	engine, request, closeAll, err := g.open(ctx, cmd)
	if err != nil {
		return err
	}
	defer closeAll()
	out := cmd.OutOrStdout()
	var text io.Writer
	if !asJSON {
		text = answers(out)
	}
	answer, err := ask(ctx, engine.NewSession(request), prompt, text)
	if err != nil {
		return err
	}
	if asJSON {
		if err := json.NewEncoder(out).Encode(resultOf(engine, &answer)); err != nil {
			return fmt.Errorf("write the answer: %w", err)
		}
		learnAfter(ctx, cmd, engine, false)
		return nil
	}
	if _, err := fmt.Fprintln(out); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	fmt.Fprintln(cmd.ErrOrStderr(), summary(&answer, engine.Info().Layers))
	if err := context.Cause(ctx); err != nil {
		return err
	}
	learnAfter(ctx, cmd, engine, isTerminal(cmd.ErrOrStderr()))
	return nil
}

// resultOf is an answer with its figures.
func resultOf(e *gallop.Engine, a *gallop.Answer) runResult {
	info := e.Info()
	r := runResult{
		Text: a.Text, Finish: a.Finish, Model: info.Path, Skip: a.Plan.Mask.String(), Layers: info.Layers, LayersUsed: a.Plan.LayersRun,
		PromptTokens: a.Usage.Prompt, Tokens: a.Usage.Generated,
		FirstTokenMS: ms(a.Timing.FirstToken), TemplateMS: ms(a.Timing.Template),
		TokenizeMS: ms(a.Timing.Tokenize), SamplerMS: ms(a.Timing.Sampler),
		PrefillMS: ms(a.Timing.Prefill), PrefillTPS: a.PromptSpeed(),
		DecodeMS: ms(a.Timing.Decode), DecodeTPS: a.Speed(),
		Prefill: a.Plan.Prefill.String(), Escalated: a.Escalated, Weights: info.Size,
		Threads: a.Threads.Now, Changes: a.Threads.Changes, Drafts: draftsOf(a), Shortlist: runListed(a.Shortlist),
	}
	if n := a.Spared; n.Share > 0 {
		r.Neurons = &runNeurons{n.Share, n.Heard, n.Copied, n.Size, ms(n.Took)}
	}
	r.Resident, _ = e.Model().ResidentWeights() // 0 where the system does not tell
	if c := a.Plan.Choice; c != nil {
		r.Route = &runChoice{c.Task, c.Reason, c.Quality, c.Novelty, ms(a.Timing.Routing), ms(a.Timing.Waited)}
	}
	if w := a.Weighed; w.Masked+w.Whole > 0 {
		r.Weighed = (*runWeighed)(&w)
	}
	return r
}

// learnAfter makes the model's vocabulary shortlist after an answer: once the answers have
// given enough hidden states, or, where a person can see what takes time and end it, at
// once. The answer is there, so an error is told and no more.
func learnAfter(ctx context.Context, cmd *cobra.Command, e *gallop.Engine, atOnce bool) {
	known, notes := e.Shortlist(), cmd.ErrOrStderr()
	if ctx.Err() != nil || known.Why != "" || known.List != nil || !atOnce && !known.Ready {
		return
	}
	fmt.Fprintln(notes, "[learning this model's vocabulary shortlist, once, in a minute or less; Ctrl-C leaves it for later]")
	switch err := e.LearnShortlist(ctx); {
	case ctx.Err() != nil:
	case err != nil:
		fmt.Fprintln(notes, "gallop:", err)
	default:
		made := e.Shortlist()
		fmt.Fprintln(notes, madeNote(&made))
	}
}

func ms(d time.Duration) float64 { return d.Seconds() * 1000 }
