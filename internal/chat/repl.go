package chat

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/gallop-llm/gallop/internal/files"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// help is what /help shows.
const help = `/skip 4,6,9-11,a5,f7  skip these layers from now on (a: attention alone, f: feed-forward alone)
/skip none            run the whole model again
/skip                 show what is skipped
/route                let the router choose again, after a /skip
/stats                figures of the last answer
/reset                forget the conversation
/save FILE            write the conversation to FILE as one line of JSON
/help                 this list
/exit                 leave, as Ctrl-D does
Ctrl-C stops an answer. A space in front of a / makes the line text.
`

// commandLine matches what is a command, known or not: one line whose first word
// is a / and letters. Paths, comments and pasted code are text.
var commandLine = regexp.MustCompile(`^/[a-z]+\s*$|^/[a-z]+[ \t][^\n]*$`)

// Repl is a conversation with a person: lines in, answers out.
type Repl struct {
	Session *Session
	Model   *llama.Model
	Out     io.Writer // answers
	Notes   io.Writer // everything else

	// Interrupt gives each answer a context that the person can end.
	Interrupt func(context.Context) (context.Context, context.CancelFunc)

	last Answer
}

// Line answers one line or carries out a command. more is false when the person
// wants to leave. Errors are the line's own: the conversation can go on.
func (r *Repl) Line(ctx context.Context, line string) (more bool, err error) {
	isCommand := commandLine.MatchString(line)
	line = strings.TrimSpace(line)
	if line == "" {
		return true, nil
	}
	if !isCommand {
		return true, r.ask(ctx, line)
	}
	command, argument, _ := strings.Cut(line, " ")
	argument = strings.TrimSpace(argument)
	switch command {
	case "/skip":
		return true, r.skip(argument)
	case "/route":
		if !r.Session.Route() {
			return true, errors.New("there is no profile to route by: make one with `gallop calibrate`")
		}
		fmt.Fprintln(r.Notes, "layers are chosen by prompt")
	case "/stats":
		r.stats()
	case "/reset":
		r.Session.Reset()
		fmt.Fprintln(r.Notes, "the conversation is forgotten")
	case "/save":
		return true, r.save(argument)
	case "/help":
		fmt.Fprint(r.Notes, help)
	case "/exit", "/quit":
		return false, nil
	default:
		return true, fmt.Errorf("there is no command %s: /help lists them; a space in front makes a line text", command)
	}
	return true, nil
}

func (r *Repl) ask(ctx context.Context, question string) error {
	ctx, stop := r.Interrupt(ctx)
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var unwritten error
	write := func(piece string) {
		if _, err := io.WriteString(r.Out, piece); err != nil && unwritten == nil {
			unwritten = fmt.Errorf("write the answer: %w", err)
			cancel() // nobody reads on
		}
	}
	answer, err := r.Session.Ask(ctx, question, write)
	if answer.Text != "" {
		write("\n")
	}
	if err = cmp.Or(err, unwritten); err != nil {
		return err
	}
	r.last = answer
	if answer.Forgotten > 0 {
		fmt.Fprintf(r.Notes, "[the context is full: the oldest %d turns are forgotten]\n", answer.Forgotten)
	}
	fmt.Fprintln(r.Notes, Summary(answer, r.Model.NLayer))
	return nil
}

// Summary is the line under an answer: tokens, speeds, layers.
func Summary(a Answer, nLayer int) string {
	var s strings.Builder
	fmt.Fprintf(&s, "[%d tokens", a.Tokens)
	if speed := a.DecodeSpeed(); speed > 0 {
		fmt.Fprintf(&s, " at %.0f/s", speed)
	}
	fmt.Fprintf(&s, " · prompt %d", a.PromptTokens)
	if speed := a.PrefillSpeed(); speed > 0 {
		fmt.Fprintf(&s, " at %.0f/s", speed)
	}
	if a.CachedTokens > 0 {
		fmt.Fprintf(&s, ", %d of them cached", a.CachedTokens)
	}
	fmt.Fprintf(&s, " · %g of %d layers", LayersUsed(a.Mask, nLayer), nLayer)
	if layers := a.Mask.WithShortlist(0); !layers.IsEmpty() {
		fmt.Fprintf(&s, ", without %s", layers)
	}
	if n := a.Mask.Shortlist(); n > 0 {
		fmt.Fprintf(&s, " · shortlist v%d", n)
	}
	if a.Escalated > 0 {
		fmt.Fprintf(&s, " · %.0f %% of tokens by the whole model", 100*a.EscalatedShare())
	}
	if w := a.Weighed; w.Off {
		fmt.Fprintf(&s, " · the mask does not pay here: %d tokens by the whole model", w.Whole)
	}
	if d := a.Drafting; d != nil && d.Rounds > 0 {
		fmt.Fprintf(&s, " · drafts: %.0f %% accepted, %.1f tokens a verification, %.2f × as fast", 100*d.Acceptance(), d.TokensPerRound(), a.DraftSpeedup())
	} else if d != nil {
		s.WriteString(" · no drafts: none was expected to pay")
	}
	if a.Finish != FinishStop {
		fmt.Fprintf(&s, " · %s", map[Finish]string{FinishLength: "cut at the length limit", FinishCancelled: "stopped"}[a.Finish])
	}
	return s.String() + "]"
}

// LayersUsed counts the layers that run under a mask; each half counts ½.
func LayersUsed(mask skip.Mask, nLayer int) float64 {
	return float64(nLayer) - float64(mask.Sublayers())/2
}

func (r *Repl) skip(text string) error {
	if text != "" {
		if text == "none" {
			text = ""
		}
		mask, err := skip.Parse(text)
		if err == nil {
			err = r.Session.SetMask(mask)
		}
		if err != nil {
			return err
		}
	}
	mask := r.Session.Mask()
	if mask.IsEmpty() {
		fmt.Fprintf(r.Notes, "nothing is skipped: %d of %d layers\n", r.Model.NLayer, r.Model.NLayer)
		return nil
	}
	fmt.Fprintf(r.Notes, "skips %s: %g of %d layers\n", mask, LayersUsed(mask, r.Model.NLayer), r.Model.NLayer)
	return nil
}

func (r *Repl) stats() {
	if r.last.PromptTokens == 0 {
		fmt.Fprintln(r.Notes, "no answer yet")
		return
	}
	a, removed := r.last, r.Session.Removed()
	for _, row := range []struct {
		name  string
		value string
	}{
		{"prompt", fmt.Sprintf("%d tokens, %d of them cached", a.PromptTokens, a.CachedTokens)},
		{"start", fmt.Sprintf("first token after %.1f ms", a.Timing.FirstToken.Seconds()*1000)},
		{"prefill", fmt.Sprintf("%.1f ms, %.0f tokens/s", a.Prefill.Seconds()*1000, a.PrefillSpeed())},
		{"decode", fmt.Sprintf("%d tokens in %.1f ms, %.0f tokens/s", a.Tokens, a.Decode.Seconds()*1000, a.DecodeSpeed())},
		{"layers", fmt.Sprintf("%g of %d", LayersUsed(a.Mask, r.Model.NLayer), r.Model.NLayer)},
		{"skipped", a.Mask.String()},
		{"routed", routing(a)},
		{"mask", a.Weighed.String()},
		{"shortlist", listed(a)},
		{"escalated", fmt.Sprintf("%d tokens, %.1f %%, decided by the whole model", a.Escalated, 100*a.EscalatedShare())},
		{"drafts", drafts(a)},
		{"graph", fmt.Sprintf("%d of %d nodes removed", removed.NodesRemoved, removed.Nodes)},
		{"threads", a.Threads.String()},
		{"weights", r.weights()},
		{"context", fmt.Sprintf("%d of %d tokens", a.PromptTokens+a.Tokens, r.Session.NCtx())},
	} {
		if a.Mask.IsEmpty() && (row.name == "skipped" || row.name == "graph") || row.value == "" ||
			a.Escalated == 0 && row.name == "escalated" {
			continue
		}
		fmt.Fprintf(r.Notes, "%-9s %s\n", row.name, row.value)
	}
}

// drafts says what drafting brought; "" = nothing was drafted.
func drafts(a Answer) string {
	d := a.Drafting
	if d == nil || d.Rounds == 0 {
		return ""
	}
	var under []string
	for mask, n := range d.Masks {
		under = append(under, fmt.Sprintf("%d without %s", n, mask))
	}
	if d.LookedUp > 0 {
		under = append(under, fmt.Sprintf("%d looked up", d.LookedUp))
	}
	slices.Sort(under)
	text := fmt.Sprintf("%d of %d tokens accepted in %d verifications, %.2f × as fast as without, estimated (%s)",
		d.Accepted, d.Drafted, d.Rounds, a.DraftSpeedup(), strings.Join(under, "; "))
	if d.Rounding > noRounding {
		text += fmt.Sprintf("; batches round by up to %.2g in the logits, so the answer may part from the plain one at a near-tie", d.Rounding)
	}
	return text
}

// listed says what the vocabulary shortlist did, or why there was none.
func listed(a Answer) string {
	if l := a.Listed; l.Size > 0 {
		return fmt.Sprintf("%d tokens with exact logits, more for %d of %d choices", l.Size, l.Extended, l.Rows)
	}
	return "none: " + a.Listed.Why
}

// weights says how much of the model is in memory; "" = not known.
func (r *Repl) weights() string {
	resident, err := r.Model.ResidentWeights()
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s of %s in memory", humanize.IBytes(resident), humanize.IBytes(r.Model.Size))
}

// routing says what was chosen and why; "" = nothing was.
func routing(a Answer) string {
	if a.Routed == nil {
		return ""
	}
	text := a.Routed.Reason
	if a.Routed.Task != "" {
		text += ", set of " + a.Routed.Task
	}
	return fmt.Sprintf("%s (%.2f ms, of which the answer waited %.2f)", text, a.Routing.Seconds()*1000, a.Timing.Waited.Seconds()*1000)
}

// save writes the conversation as JSONL's chat form: {"messages": [...]}.
func (r *Repl) save(path string) error {
	if path == "" {
		return errors.New("name a file: /save conversation.jsonl")
	}
	data, err := json.Marshal(map[string]any{"messages": r.Session.Messages()})
	if err != nil {
		return fmt.Errorf("save: %w", err)
	}
	if err := files.Write(path, append(data, '\n')); err != nil {
		return fmt.Errorf("save the conversation: %w", err)
	}
	fmt.Fprintf(r.Notes, "%d turns in %s\n", len(r.Session.messages), path)
	return nil
}
