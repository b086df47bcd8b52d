// Command architectures checks masks on tiny models of every architecture that
// llama.cpp knows, each in a process of its own, and writes the table of
// docs/architectures.md and a JSON file: `make test-architectures` calls it.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gallop-llm/gallop/internal/archmodel"
	"github.com/gallop-llm/gallop/internal/files"
	"github.com/gallop-llm/gallop/internal/lab/report"
	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/llama"
)

// longest is the time that a model may take.
const longest = 10 * time.Minute

// row is what a model came to: a line of the JSON file.
type row struct {
	Model        string `json:"model"`
	Architecture string `json:"architecture"`
	Exact        int    `json:"exact"`       // masks whose logits are the reference's, to the last bit
	Refused      int    `json:"refused"`     // masks that are refused
	Wrong        int    `json:"wrong"`       // masks with other logits
	Pairs        int    `json:"pairs"`       // ordered pairs of masks in one context
	PairsWrong   int    `json:"pairs_wrong"` // of which the second had other logits than in a fresh context

	Rows       archmodel.Outcome  `json:"rows"` // sequences under different masks in one decode
	RowsReason string             `json:"rows_reason,omitempty"`
	Masks      []archmodel.Result `json:"masks"`
	Unjudged   string             `json:"unjudged,omitempty"` // why no mask could be judged
}

type options struct{ build, docs, out, models string }

func main() {
	var o options
	child := flag.String("check", "", "only check this model, and print its row")
	program := flag.String("program", "", "the compiled tensors.c that -check uses")
	flag.StringVar(&o.build, "build", "build", "folder for models, which are removed again")
	flag.StringVar(&o.out, "o", "", "JSON file to write")
	flag.StringVar(&o.docs, "docs", "", "Markdown file whose table to write; empty = none")
	flag.StringVar(&o.models, "models", "", "comma-separated names; empty = all, else nothing is written")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := error(nil)
	if *child != "" {
		err = check(ctx, *child, *program)
	} else {
		err = run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "test-architectures:", err)
		os.Exit(1)
	}
}

// library loads llama.cpp and gives the path of libllama.
func library() (string, error) {
	if _, err := libs.Load(); err != nil {
		return "", err
	}
	return llama.FindLibrary([]string{llama.Dir()})
}

// check makes a model in the working folder, checks it and prints its row.
func check(ctx context.Context, name, program string) error {
	m, err := archmodel.Find(name)
	if err != nil {
		return err
	}
	lib, err := library()
	if err != nil {
		return err
	}
	path := m.Name + ".gguf"
	defer os.Remove(path)
	maker := archmodel.Maker{Program: program, Library: lib}
	if err := maker.Write(ctx, m, path); err != nil {
		return err
	}
	r, err := archmodel.Check(ctx, m, path, ".", 1)
	line := row{Model: m.Name, Architecture: m.Arch, Masks: []archmodel.Result{}}
	if err != nil {
		line.Unjudged = err.Error()
	} else {
		line.Exact, line.Refused, line.Wrong = r.Count(archmodel.Exact), r.Count(archmodel.Refused), r.Count(archmodel.Wrong)
		line.Pairs, line.PairsWrong, line.Rows, line.RowsReason, line.Masks = r.Pairs, r.PairsWrong, r.Rows, r.RowsReason, r.Results
	}
	return json.NewEncoder(os.Stdout).Encode(line)
}

func run(ctx context.Context, o options) error {
	models := archmodel.Models()
	if o.models != "" {
		models = models[:0]
		for name := range strings.SplitSeq(o.models, ",") {
			m, err := archmodel.Find(name)
			if err != nil {
				return err
			}
			models = append(models, m)
		}
	}
	lib, err := library()
	if err != nil {
		return err
	}
	build, err := filepath.Abs(o.build)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(build, "architectures-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	maker, err := archmodel.NewMaker(ctx, work, filepath.Join("third_party", "llama.cpp", "include"), lib)
	if err != nil {
		return err
	}
	rows, err := checkAll(ctx, models, work, maker.Program)
	if err != nil {
		return err
	}
	var exact, wrong, pairsWrong, unjudged int
	for _, r := range rows {
		if r.Unjudged == "" && r.Refused == 0 && r.Wrong == 0 {
			exact++
		}
		if r.Unjudged != "" {
			unjudged++
		}
		wrong += r.Wrong
		if r.Rows == archmodel.Wrong {
			wrong++
		}
		pairsWrong += r.PairsWrong
	}
	fmt.Printf("%d models: %d exact under every mask, %d not judged; %d masks wrong, %d pairs wrong\n", len(rows), exact, unjudged, wrong, pairsWrong)
	if o.out != "" && o.models == "" {
		data, err := json.MarshalIndent(rows, "", "\t")
		if err != nil {
			return err
		}
		if err := files.Write(o.out, append(data, '\n')); err != nil {
			return err
		}
	}
	if o.docs != "" && o.models == "" {
		if err := document(o.docs, rows, exact); err != nil {
			return err
		}
	}
	if wrong+pairsWrong+unjudged > 0 {
		return fmt.Errorf("%d masks and %d pairs of masks gave wrong logits, %d models could not be judged", wrong, pairsWrong, unjudged)
	}
	return nil
}

// checkAll checks each model in a process of its own, as many at a time as there are cores.
func checkAll(ctx context.Context, models []archmodel.Model, work, program string) ([]row, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	rows := make([]row, len(models))
	jobs := make(chan int)
	var group sync.WaitGroup
	var print sync.Mutex
	for range runtime.NumCPU() {
		group.Go(func() {
			for i := range jobs {
				rows[i] = checkOne(ctx, self, models[i], work, program)
				print.Lock()
				fmt.Println(rows[i].line())
				print.Unlock()
			}
		})
	}
	for i := range models {
		jobs <- i
	}
	close(jobs)
	group.Wait()
	return rows, ctx.Err()
}

// checkOne has a process check the model. One that dies has judged nothing.
func checkOne(ctx context.Context, self string, m archmodel.Model, work, program string) (r row) {
	if ctx.Err() != nil {
		return row{Model: m.Name, Architecture: m.Arch, Unjudged: ctx.Err().Error()}
	}
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	var out, said bytes.Buffer
	cmd := exec.CommandContext(ctx, self, "-check", m.Name, "-program", program)
	cmd.Dir, cmd.Stdout, cmd.Stderr = work, &out, &said
	err := cmd.Run()
	if err == nil {
		err = json.Unmarshal(out.Bytes(), &r)
	}
	if err != nil {
		last := strings.TrimSpace(said.String())
		return row{Model: m.Name, Architecture: m.Arch, Masks: []archmodel.Result{},
			Unjudged: fmt.Sprintf("%s: %s", err, last[strings.LastIndex(last, "\n")+1:])}
	}
	return r
}

func (r row) line() string {
	if r.Unjudged != "" {
		return r.Model + "\tnot judged: " + r.Unjudged
	}
	text := fmt.Sprintf("%s\t%d exact, %d refused, %d wrong; %d of %d pairs wrong; masks by row %s",
		r.Model, r.Exact, r.Refused, r.Wrong, r.PairsWrong, r.Pairs, r.Rows)
	if r.Rows == archmodel.Wrong {
		text += ": " + r.RowsReason
	}
	for _, m := range r.Masks {
		if m.Outcome == archmodel.Wrong {
			text += fmt.Sprintf("\n\t%s: %s", m.Mask, m.Reason)
		}
	}
	return text
}

// cell says what the masks of a kind came to.
func (r row) cell(kind archmodel.Kind) string {
	n := map[archmodel.Outcome]int{}
	for _, m := range r.Masks {
		if m.Kind == kind {
			n[m.Outcome]++
		}
	}
	switch {
	case n[archmodel.Wrong] > 0:
		return "WRONG"
	case len(n) == 0:
		return "–"
	case n[archmodel.Refused] == 0:
		return "exact"
	case n[archmodel.Exact] == 0:
		return "refused"
	}
	return fmt.Sprintf("exact %d of %d", n[archmodel.Exact], n[archmodel.Exact]+n[archmodel.Refused])
}

// notes are the reasons of refusals of single layers and halves, by number of the notes below the table.
func (r row) notes(number func(reason string) int) string {
	seen := map[int]bool{}
	for _, m := range r.Masks {
		if m.Outcome == archmodel.Refused && m.Kind != archmodel.Several {
			seen[number(m.Reason)] = true
		}
	}
	if r.Rows == archmodel.Refused && len(seen) == 0 {
		seen[number(r.RowsReason)] = true
	}
	if r.Unjudged != "" {
		seen[number(r.Unjudged)] = true
	}
	var list []string
	for _, n := range slices.Sorted(maps.Keys(seen)) {
		list = append(list, fmt.Sprint(n))
	}
	return strings.Join(list, ", ")
}

const begin, end = "<!-- table: make test-architectures -->\n", "<!-- end of table -->\n"

// document puts the table into the Markdown file.
func document(path string, rows []row, exact int) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(text), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return errors.New(path + " has no marks for the table")
	}
	var reasons []string
	number := func(reason string) int {
		reason = general(reason)
		i := slices.Index(reasons, reason)
		if i < 0 {
			i = len(reasons)
			reasons = append(reasons, reason)
		}
		return i + 1
	}
	var columns []report.Column
	for _, name := range []string{"architecture", "model", "whole layers", "attention", "feed-forward", "masks by row", "why not"} {
		columns = append(columns, report.Column{Name: name, Left: true})
	}
	slices.SortFunc(rows, func(a, b row) int {
		return cmp.Or(strings.Compare(a.Architecture, b.Architecture), strings.Compare(a.Model, b.Model))
	})
	var cells [][]string
	for _, r := range rows {
		name := r.Model
		if name == r.Architecture {
			name = ""
		}
		cells = append(cells, []string{r.Architecture, name, r.cell(archmodel.OneLayer), r.cell(archmodel.OneAttention),
			r.cell(archmodel.OneFeedForward), cmp.Or(string(r.Rows), "–"), r.notes(number)})
	}
	var table strings.Builder
	fmt.Fprintf(&table, "\n%d models of %d architectures; %d exact under every mask.\n\n", len(rows), architectures(rows), exact)
	if err := report.Markdown(&table, columns, cells); err != nil {
		return err
	}
	table.WriteString("\nWhy not:\n\n")
	for i, reason := range reasons {
		fmt.Fprintf(&table, "%d. %s\n", i+1, reason)
	}
	return files.Write(path, []byte(head+begin+table.String()+"\n"+end+tail))
}

func architectures(rows []row) int {
	names := map[string]bool{}
	for _, r := range rows {
		names[r.Architecture] = true
	}
	return len(names)
}

// general leaves out of a reason which layer it is, and how many tokens.
func general(reason string) string {
	fields := strings.Fields(reason)
	for i, f := range fields {
		digits := strings.TrimRight(f, ",'s")
		if digits != "" && strings.Trim(digits, "0123456789") == "" {
			fields[i] = "N" + f[len(digits):]
		}
	}
	return strings.Join(fields, " ")
}
