package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/internal/files"
	"github.com/gallop-llm/gallop/skip"
)

// help is what /help shows.
const help = `/skip 4,6,9-11,a5,f7  skip these layers from now on (a: attention alone, f: feed-forward alone; l: local attention)
/skip none            run the whole model again
/skip                 show what is skipped
/route                let the router choose again, after a /skip
/stats                figures of the last answer
/reset, /clear        forget the conversation
/save FILE            write the conversation to FILE as one line of JSON
/help, /?             this list
/exit, /bye           leave, as Ctrl-D, "exit" and "quit" do
Ctrl-C stops an answer. A space in front of a / makes the line text.
Alt-Enter, a \ at the end of a line, and """ around several lines write a longer text.
Up and Down go through what was typed before, Ctrl-R searches there.
`

// commandPattern matches what is a command, known or not: one line whose first word
// is a / and letters, or what leaves a shell. Paths, comments and pasted code are text.
var commandPattern = regexp.MustCompile(`^/([a-z]+|\?)\s*$|^/[a-z]+[ \t][^\n]*$|^(exit|quit)\s*$`)

// repl is a conversation with a person: lines in, answers out.
type repl struct {
	session *gallop.Session
	engine  *gallop.Engine
	out     io.Writer // answers
	notes   io.Writer // everything else

	routed gallop.Skip                   // what /route goes back to
	byHand func(gallop.Skip) gallop.Skip // what else the flags say of masks that are set by hand

	// interrupt gives each answer a context that the person can end.
	interrupt func(context.Context) (context.Context, context.CancelFunc)

	mask skip.Mask // that was set by hand, or chosen last
	last gallop.Answer
}

// line answers one line or carries out a command. more is false when the person
// wants to leave. Errors are the line's own: the conversation can go on.
func (r *repl) line(ctx context.Context, line string) (more bool, err error) {
	isCommand := commandPattern.MatchString(line)
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
		if r.engine.Info().Profile == "" {
			return true, errors.New("there is no profile to route by: make one with `gallop calibrate`")
		}
		r.session.Request().Skip = r.routed
		fmt.Fprintln(r.notes, "layers are chosen by prompt")
	case "/stats":
		r.stats()
	case "/reset", "/clear":
		r.session.Reset()
		fmt.Fprintln(r.notes, "the conversation is forgotten")
	case "/save":
		return true, r.save(argument)
	case "/help", "/?":
		fmt.Fprint(r.notes, help)
	case "/exit", "/quit", "/bye", "exit", "quit":
		return false, nil
	default:
		return true, fmt.Errorf("there is no command %s: /help lists them; a space in front makes a line text", command)
	}
	return true, nil
}

func (r *repl) ask(ctx context.Context, question string) error {
	ctx, stop := r.interrupt(ctx)
	defer stop()
	answer, err := ask(ctx, r.session, question, r.out)
	if err != nil {
		return err
	}
	if answer.Text != "" {
		if _, err := fmt.Fprintln(r.out); err != nil {
			return fmt.Errorf("write the answer: %w", err)
		}
	}
	r.last = answer
	if answer.Plan.Choice != nil {
		r.mask = answer.Plan.Mask.WithShortlist(0)
	}
	if answer.Forgotten > 0 {
		fmt.Fprintf(r.notes, "[the context is full: the oldest %d turns are forgotten]\n", answer.Forgotten)
	}
	fmt.Fprintln(r.notes, summary(&answer, r.engine.Info().Layers))
	return nil
}

// ask writes the answer to a question piece by piece; nil = nowhere. An answer that ctx has
// ended is no error.
func ask(ctx context.Context, s *gallop.Session, question string, out io.Writer) (answer gallop.Answer, err error) {
	for delta, err := range s.Ask(ctx, question) {
		if delta.Answer != nil {
			answer = *delta.Answer
		}
		if out != nil && delta.Text != "" {
			if _, err := io.WriteString(out, delta.Text); err != nil {
				return answer, fmt.Errorf("write the answer: %w", err) // nobody reads on
			}
		}
		switch {
		case ctx.Err() != nil && errors.Is(err, context.Canceled):
			answer.Finish = gallop.FinishCancelled
		case errors.Is(err, gallop.ErrTooLong):
			return answer, fmt.Errorf("%w with -c", err)
		case err != nil:
			return answer, err
		}
	}
	return answer, nil
}

// summary is the line under an answer: tokens, speeds, layers.
func summary(a *gallop.Answer, nLayer int) string {
	var s strings.Builder
	fmt.Fprintf(&s, "[%d tokens", a.Usage.Generated)
	if speed := a.Speed(); speed > 0 {
		fmt.Fprintf(&s, " at %.0f/s", speed)
	}
	fmt.Fprintf(&s, " · prompt %d", a.Usage.Prompt)
	if speed := a.PromptSpeed(); speed > 0 {
		fmt.Fprintf(&s, " at %.0f/s", speed)
	}
	if a.Usage.Cached > 0 {
		fmt.Fprintf(&s, ", %d of them cached", a.Usage.Cached)
	}
	fmt.Fprintf(&s, " · %g of %d layers", a.Plan.LayersRun, nLayer)
	if layers := a.Plan.Mask.WithShortlist(0); !layers.IsEmpty() {
		fmt.Fprintf(&s, ", without %s", layers)
	}
	if n := a.Spared; n.Share > 0 {
		fmt.Fprintf(&s, " · neurons chosen by %d tokens in %s, %s copied", n.Heard, n.Took.Round(time.Millisecond), humanize.IBytes(n.Copied))
	}
	if n := a.Plan.Mask.Shortlist(); n > 0 {
		fmt.Fprintf(&s, " · shortlist v%d", n)
	}
	if a.Escalated > 0 {
		fmt.Fprintf(&s, " · %.0f %% of tokens by the whole model", 100*a.EscalatedShare())
	}
	if w := a.Weighed; w.Off {
		fmt.Fprintf(&s, " · the mask does not pay here: %d tokens by the whole model", w.Whole)
	}
	if d := a.Drafts; d != nil && d.Rounds > 0 {
		fmt.Fprintf(&s, " · drafts: %.0f %% accepted, %.1f tokens a verification, %.2f × as fast", 100*d.Acceptance(), d.TokensPerRound(), a.DraftSpeedup())
	} else if d != nil {
		s.WriteString(" · no drafts: none was expected to pay")
	}
	if a.Finish != gallop.FinishStop {
		fmt.Fprintf(&s, " · %s", map[gallop.Finish]string{gallop.FinishLength: "cut at the length limit", gallop.FinishCancelled: "stopped"}[a.Finish])
	}
	return s.String() + "]"
}

func (r *repl) skip(text string) error {
	if text != "" {
		if text == "none" {
			text = ""
		}
		mask, err := skip.Parse(text)
		if err == nil {
			err = r.setMask(mask)
		}
		if err != nil {
			return err
		}
	}
	layers := r.engine.Info().Layers
	if r.mask.IsEmpty() {
		fmt.Fprintf(r.notes, "nothing is skipped: %d of %d layers\n", layers, layers)
		return nil
	}
	fmt.Fprintf(r.notes, "skips %s: %g of %d layers\n", r.mask, r.engine.LayersRun(r.mask), layers)
	return nil
}

// setMask changes the layers that the next answers skip. Prompts are decoded as before.
func (r *repl) setMask(mask skip.Mask) error {
	request := r.session.Request()
	before, err := r.plan(*request)
	if err != nil {
		return err
	}
	next := *request
	next.Skip, next.Shortlist = r.byHand(gallop.Layers(mask).Prefill(before.Prefill)), 0
	if _, err := r.plan(next); err != nil {
		return err
	}
	*request, r.mask = next, mask.WithShortlist(0)
	return nil
}

// plan is how some question would be answered.
func (r *repl) plan(request gallop.Request) (gallop.Plan, error) {
	request.Messages = []gallop.Message{{Role: "user", Content: "x"}}
	return r.engine.Plan(context.Background(), request)
}

func (r *repl) stats() {
	if r.last.Usage.Prompt == 0 {
		fmt.Fprintln(r.notes, "no answer yet")
		return
	}
	a, removed := &r.last, r.last.Removed
	for _, row := range []struct {
		name  string
		value string
	}{
		{"prompt", fmt.Sprintf("%d tokens, %d of them cached", a.Usage.Prompt, a.Usage.Cached)},
		{"start", fmt.Sprintf("first token after %.1f ms", a.Timing.FirstToken.Seconds()*1000)},
		{"prefill", fmt.Sprintf("%.1f ms, %.0f tokens/s", a.Timing.Prefill.Seconds()*1000, a.PromptSpeed())},
		{"decode", fmt.Sprintf("%d tokens in %.1f ms, %.0f tokens/s", a.Usage.Generated, a.Timing.Decode.Seconds()*1000, a.Speed())},
		{"layers", fmt.Sprintf("%g of %d", a.Plan.LayersRun, r.engine.Info().Layers)},
		{"skipped", a.Plan.Mask.String()},
		{"routed", routing(a)},
		{"mask", weighed(a.Weighed)},
		{"shortlist", shortlisted(a)},
		{"escalated", fmt.Sprintf("%d tokens, %.1f %%, decided by the whole model", a.Escalated, 100*a.EscalatedShare())},
		{"drafts", drafts(a)},
		{"graph", fmt.Sprintf("%d of %d nodes removed", removed.NodesRemoved, removed.Nodes)},
		{"threads", threads(a.Threads)},
		{"weights", r.weights()},
		{"context", fmt.Sprintf("%d of %d tokens", a.Usage.Prompt+a.Usage.Generated, r.engine.Info().Context)},
	} {
		if a.Plan.Mask.IsEmpty() && (row.name == "skipped" || row.name == "graph") || row.value == "" ||
			a.Escalated == 0 && row.name == "escalated" {
			continue
		}
		fmt.Fprintf(r.notes, "%-9s %s\n", row.name, row.value)
	}
}

// noRounding is a distance of logits that practically never decides over a token.
const noRounding = 1e-3

// drafts says what drafting brought; "" = nothing was drafted.
func drafts(a *gallop.Answer) string {
	d := a.Drafts
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

// shortlisted says what the vocabulary shortlist did, or why there was none.
func shortlisted(a *gallop.Answer) string {
	if l := a.Shortlist; l.Size > 0 {
		return fmt.Sprintf("a list of %d tokens, %.0f exact logits on average of %d choices", l.Size, float64(l.Exact)/float64(max(l.Rows, 1)), l.Rows)
	}
	return "none: " + a.Shortlist.Why
}

// weighed says whether the mask pays; "" = it was not weighed.
func weighed(w gallop.Weighed) string {
	switch {
	case w.Masked+w.Whole == 0:
		return ""
	case w.Off:
		return fmt.Sprintf("does not pay: %.2f times as fast as the whole model, as measured; %d of %d tokens by the whole model", w.Speed, w.Whole, w.Masked+w.Whole)
	case w.Speed == 0:
		return "not measured yet whether it pays"
	}
	return fmt.Sprintf("pays: %.2f times as fast as the whole model, as measured", w.Speed)
}

// threads says why there are as many as there are; "" = their number is fixed.
func threads(t gallop.Threads) string {
	switch {
	case t.Most == 0:
		return ""
	case t.Now < t.Most:
		return fmt.Sprintf("%d of %d: other programs use the other cores; changed %d times", t.Now, t.Most, t.Changes)
	case t.Crowded:
		return fmt.Sprintf("%d: other programs use every core; changed %d times", t.Now, t.Changes)
	}
	return fmt.Sprintf("%d; changed %d times", t.Now, t.Changes)
}

// weights says how much of the model is in memory; "" = not known.
func (r *repl) weights() string {
	resident, err := r.engine.Model().ResidentWeights()
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%s of %s in memory", humanize.IBytes(resident), humanize.IBytes(r.engine.Model().Size))
}

// routing says what was chosen and why; "" = nothing was.
func routing(a *gallop.Answer) string {
	if a.Plan.Choice == nil {
		return ""
	}
	text := a.Plan.Choice.Reason
	if a.Plan.Choice.Task != "" {
		text += ", set of " + a.Plan.Choice.Task
	}
	return fmt.Sprintf("%s (%.2f ms, of which the answer waited %.2f)", text, a.Timing.Routing.Seconds()*1000, a.Timing.Waited.Seconds()*1000)
}

// save writes the conversation as JSONL's chat form: {"messages": [...]}.
func (r *repl) save(path string) error {
	if path == "" {
		return errors.New("name a file: /save conversation.jsonl")
	}
	data, err := json.Marshal(map[string]any{"messages": r.session.Messages()})
	if err != nil {
		return fmt.Errorf("save: %w", err)
	}
	if err := files.Write(path, append(data, '\n')); err != nil {
		return fmt.Errorf("save the conversation: %w", err)
	}
	fmt.Fprintf(r.notes, "%d turns in %s\n", r.session.Turns(), path)
	return nil
}
