// Command testcpus runs the numeric tests under each of llama.cpp's CPU modules
// (libggml-cpu-*.so), of which llama.cpp takes the one that suits a machine best,
// and writes the table of docs/cpus.md: `make test-cpus` calls it. What this
// processor cannot run is tried under qemu-user where that is installed. Results
// are kept below the build folder until the tests change, so that a stopped run
// goes on.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gallop-llm/gallop/internal/files"
	"github.com/gallop-llm/gallop/internal/lab/report"
	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/llama"
)

// packages hold the tests whose results depend on the CPU's kernels.
var packages = []string{"llama", "internal/score", ".", "internal/draft", "internal/search", "router"}

// emulated are the tests that run under qemu, where all of them would take hours:
// what lossless mode and scores rest on.
const emulated = "^(TestAloneIsOneAtATime|TestMaskEqualsPruned|TestHold|TestDraftOfTheWholeModelIsAccepted)$"

// result is what a module came to.
type result struct {
	Module   string              `json:"module"`
	Tests    string              `json:"tests"`    // sha256 of the test programs
	By       string              `json:"by"`       // "processor", "qemu-x86_64"; "" = it does not run here
	Reason   string              `json:"reason"`   // why it does not run
	Features []string            `json:"features"` // instruction sets, as llama.cpp names them
	Passed   int                 `json:"passed"`   // tests, without their parts
	Failed   []string            `json:"failed"`
	Alone    map[string][]string `json:"alone"` // by weights' type: how far logits are apart in each step of llama.Isolation
}

type options struct {
	build, docs, modules, run string
	qemu                      bool
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "probe" {
		if _, err := libs.Load(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(llama.SystemInfo())
		return
	}
	var o options
	flag.StringVar(&o.build, "build", "build", "folder for test programs and results")
	flag.StringVar(&o.docs, "docs", "", "Markdown file whose table to write; empty = standard output alone")
	flag.StringVar(&o.modules, "modules", "", "comma-separated names, as haswell; empty = all")
	flag.StringVar(&o.run, "run", "", "only tests that match this; their results are not kept")
	flag.BoolVar(&o.qemu, "qemu", false, "run under qemu-user even what this processor can run")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "test-cpus:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	dir := libs.Installed("cpu")
	if dir == "" {
		return errors.New("llama.cpp's libraries are not there: run `gallop setup`")
	}
	names, err := filepath.Glob(filepath.Join(dir, "libggml-cpu-*.so"))
	if err != nil || len(names) == 0 {
		return fmt.Errorf("%s has no CPU modules to choose from", dir)
	}
	for i, name := range names {
		names[i] = strings.TrimSuffix(strings.TrimPrefix(filepath.Base(name), "libggml-cpu-"), ".so")
	}
	chosen := names
	if o.modules != "" {
		chosen = strings.Split(o.modules, ",")
	}
	for _, name := range chosen {
		if !slices.Contains(names, name) {
			return fmt.Errorf("there is no module %q: there are %s", name, strings.Join(names, ", "))
		}
	}
	work, err := filepath.Abs(filepath.Join(o.build, "cpus"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(work, 0o777); err != nil {
		return err
	}
	tests, err := compile(ctx, work)
	if err != nil {
		return err
	}
	var failed []string
	start, done := time.Now(), 0
	for i, name := range chosen {
		kept := filepath.Join(work, name+".json")
		r, ok := load(kept, tests)
		if !ok || o.run != "" || o.qemu {
			fmt.Fprintf(os.Stderr, "%s (%d of %d%s)\n", name, i+1, len(chosen), left(start, done, len(chosen)-i))
			if r, err = module(ctx, o, dir, work, name); err != nil {
				return err
			}
			done++
			r.Tests = tests
			if o.run == "" && !o.qemu {
				data, err := json.MarshalIndent(r, "", "\t")
				if err != nil {
					return err
				}
				if err := files.Write(kept, append(data, '\n')); err != nil {
					return err
				}
			}
		}
		switch {
		case r.By == "":
			fmt.Printf("%s\tnot run: %s\n", name, r.Reason)
		default:
			fmt.Printf("%s\tby %s: %d passed, %d failed %s\n", name, r.By, r.Passed, len(r.Failed), strings.Join(r.Failed, " "))
		}
		for _, test := range r.Failed {
			failed = append(failed, name+": "+test)
		}
	}
	if o.docs != "" && o.run == "" {
		if err := document(o.docs, work, tests, names); err != nil {
			return err
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("%d tests failed: %s; their output is in %s", len(failed), strings.Join(failed, ", "), work)
	}
	return nil
}

// left says how long the rest takes, once something was measured.
func left(start time.Time, done, rest int) string {
	if done == 0 {
		return ""
	}
	return fmt.Sprintf(", about %s left", (time.Since(start) / time.Duration(done) * time.Duration(rest)).Round(time.Minute))
}

// compile builds the test programs and gives the hash of all of them.
func compile(ctx context.Context, work string) (string, error) {
	sum := sha256.New()
	for _, pkg := range packages {
		out := filepath.Join(work, filepath.Base(pkg)+".test")
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-o", out, "./"+pkg)
		cmd.Stderr = os.Stderr
		if err := cmd.Run(); err != nil {
			return "", fmt.Errorf("compile the tests of %s: %w", pkg, err)
		}
		data, err := os.ReadFile(out)
		if err != nil {
			return "", err
		}
		sum.Write(data)
	}
	return hex.EncodeToString(sum.Sum(nil)[:8]), nil
}

func load(path, tests string) (r result, ok bool) {
	data, err := os.ReadFile(path)
	return r, err == nil && json.Unmarshal(data, &r) == nil && r.Tests == tests
}

// module runs the tests under one module.
func module(ctx context.Context, o options, dir, work, name string) (result, error) {
	r := result{Module: name, Alone: map[string][]string{}}
	lib := filepath.Join(work, name)
	if err := link(dir, lib, name); err != nil {
		return r, err
	}
	self, err := os.Executable()
	if err != nil {
		return r, err
	}
	env := append(os.Environ(), llama.EnvLibrary+"="+lib)
	probe := func(prefix ...string) bool {
		line := append(prefix, self, "probe")
		cmd := exec.CommandContext(ctx, line[0], line[1:]...)
		cmd.Env = env
		out, err := cmd.Output()
		if err == nil {
			r.Features = features(string(out))
		}
		return err == nil
	}
	var prefix []string
	qemu, machine := "", map[string]string{"amd64": "qemu-x86_64", "arm64": "qemu-aarch64"}[runtime.GOARCH]
	if path, err := exec.LookPath(machine); err == nil {
		qemu = path
	}
	switch {
	case !o.qemu && probe():
		r.By = "processor"
	case qemu != "" && probe(qemu, "-cpu", "max"):
		r.By, prefix = machine, []string{qemu, "-cpu", "max"}
	case ctx.Err() != nil:
		return r, ctx.Err()
	case qemu == "":
		r.Reason = "this processor lacks its instructions, and " + machine + " (apt install qemu-user) is not there to try"
		return r, nil
	default:
		r.Reason = "this processor lacks its instructions, and so does " + machine
		return r, nil
	}
	log, err := os.Create(filepath.Join(work, name+".log"))
	if err != nil {
		return r, err
	}
	defer log.Close()
	for _, pkg := range packages {
		line := append(slices.Clone(prefix), filepath.Join(work, filepath.Base(pkg)+".test"), "-test.v", "-test.timeout=2h")
		if pattern := o.run; pattern != "" {
			line = append(line, "-test.run="+pattern)
		} else if len(prefix) > 0 {
			line = append(line, "-test.run="+emulated)
		}
		var out bytes.Buffer
		cmd := exec.CommandContext(ctx, line[0], line[1:]...)
		cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = pkg, env, &out, &out
		err := cmd.Run()
		if _, err := log.Write(out.Bytes()); err != nil {
			return r, err
		}
		if ctx.Err() != nil {
			return r, ctx.Err()
		}
		before := len(r.Failed)
		r.read(out.String())
		if err != nil && len(r.Failed) == before {
			r.Failed = append(r.Failed, pkg+" ("+err.Error()+")")
		}
	}
	return r, nil
}

// link makes a folder of the libraries with one CPU module.
func link(dir, lib, name string) error {
	if err := os.RemoveAll(lib); err != nil {
		return err
	}
	if err := os.Mkdir(lib, 0o777); err != nil {
		return err
	}
	all, err := filepath.Glob(filepath.Join(dir, "lib*"))
	if err != nil {
		return err
	}
	for _, path := range all {
		base := filepath.Base(path)
		if strings.HasPrefix(base, "libggml-cpu-") && base != "libggml-cpu-"+name+".so" {
			continue
		}
		if err := os.Symlink(path, filepath.Join(lib, base)); err != nil {
			return err
		}
	}
	return nil
}

// features are the names that are 1 in llama.cpp's line, those of the build aside.
func features(info string) (list []string) {
	for _, m := range regexp.MustCompile(`(\w+) = 1`).FindAllStringSubmatch(info, -1) {
		if !slices.Contains([]string{"LLAMAFILE", "OPENMP", "REPACK"}, m[1]) {
			list = append(list, m[1])
		}
	}
	return list
}

var (
	resultLine = regexp.MustCompile(`(?m)^--- (PASS|FAIL|SKIP): (\w+)`)
	aloneLine  = regexp.MustCompile(`(?m)alone, (\w+): together (\S+), attention (\S+), untiled (\S+), rows (\S+)$`)
)

// read counts tests in go test's output, and takes what TestAloneIsOneAtATime logs.
func (r *result) read(out string) {
	for _, m := range resultLine.FindAllStringSubmatch(out, -1) {
		switch m[1] {
		case "PASS":
			r.Passed++
		case "FAIL":
			r.Failed = append(r.Failed, m[2])
		}
	}
	for _, m := range aloneLine.FindAllStringSubmatch(out, -1) {
		if r.Alone[m[1]] == nil {
			r.Alone[m[1]] = []string{"0", "0", "0", "0"}
		}
		for i, apart := range m[2:] {
			if apart != "0" {
				r.Alone[m[1]][i] = apart
			}
		}
	}
}

// types are the columns of the table.
var types = []string{"F32", "F16", "Q4_0", "Q8_0", "Q4_K", "IQ2_XXS"}

// step names the first step of llama.Isolation whose logits are those of single tokens.
func (r *result) step(typ string) string {
	apart, ok := r.Alone[typ]
	if !ok {
		return "–"
	}
	for i, step := range []string{"together", "attention", "untiled", "rows"} {
		if apart[i] == "0" {
			return step
		}
	}
	return "not equal"
}

// Marks of the part of the document that is written.
const begin, end = "<!-- table: make test-cpus -->\n", "<!-- end of table -->\n"

func document(path, work, tests string, names []string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s lacks the lines %q and %q, between which the table goes", path, begin, end)
	}
	var heads []report.Column
	for _, name := range append([]string{"module", "instruction sets", "tests"}, types...) {
		heads = append(heads, report.Column{Name: name, Left: true})
	}
	var cells [][]string
	for _, name := range names {
		r, ok := load(filepath.Join(work, name+".json"), tests)
		row := []string{name, strings.Join(r.Features, " "), "not run yet"}
		switch {
		case ok && r.By == "":
			row[1], row[2] = "–", "not run: "+r.Reason
		case ok && len(r.Failed) > 0:
			row[2] = fmt.Sprintf("%d passed, failed: %s", r.Passed, strings.Join(r.Failed, ", "))
		case ok:
			row[2] = fmt.Sprintf("%d passed", r.Passed)
			if r.By != "processor" {
				row[2] += " under " + r.By
			}
		}
		for _, typ := range types {
			row = append(row, r.step(typ))
		}
		cells = append(cells, row)
	}
	var table bytes.Buffer
	if err := report.Markdown(&table, heads, cells); err != nil {
		return err
	}
	return files.Write(path, []byte(before+begin+"\n"+table.String()+"\n"+end+after))
}
