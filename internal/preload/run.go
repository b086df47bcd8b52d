package preload

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/gallop-llm/gallop/skip"
)

// Environment variables that the library reads.
const (
	envMask    = "GALLOP_SKIP"        // the mask, as skip.Mask writes it
	envReport  = "GALLOP_SKIP_REPORT" // the file for the library's report
	envPreload = "LD_PRELOAD"         // the dynamic linker's own
)

// signalBase added to a signal's number is the exit code of a program that the
// signal ended, as shells count.
const signalBase = 128

// Program is a program to be run with layers skipped.
type Program struct {
	Library string    // libgallop-skip.so, from [FindLibrary]
	Mask    skip.Mask // what is skipped, not empty
	Args    []string  // the program, by name or path, and its arguments; at least one
	In      io.Reader // its standard input; nil = nothing
	Out     io.Writer // its standard output; nil = dropped
	Err     io.Writer // its standard error, and what Run tells of it; nil = dropped
}

// Run runs the program to its end and returns its exit code, 128 plus the
// number for one that a signal ended. SIGINT and SIGTERM are passed on to it.
//
// The error wraps [ErrPlatform], [ErrNoMask] or [ErrProgram] when nothing was
// run, and [ErrNothingSkipped] when the program ran as it would have without
// a mask; code is then still its own.
func Run(p Program) (code int, err error) {
	if runtime.GOOS != "linux" {
		return 0, fmt.Errorf("%w, not on %s", ErrPlatform, runtime.GOOS)
	}
	if p.Mask.IsEmpty() {
		return 0, ErrNoMask
	}
	if p.Err == nil {
		p.Err = io.Discard
	}
	path, err := exec.LookPath(p.Args[0])
	if err != nil {
		return 0, fmt.Errorf("%w %q: %w", ErrProgram, p.Args[0], lookupCause(err))
	}
	report, err := os.CreateTemp("", "gallop-skip-*")
	if err != nil {
		return 0, fmt.Errorf("make the report file: %w", err)
	}
	defer os.Remove(report.Name())
	defer report.Close()

	fmt.Fprintf(p.Err, "gallop: runs %s without %s, through %s\n", path, p.Mask, p.Library)
	static := isStatic(path)
	if static {
		fmt.Fprintf(p.Err, "gallop: %s is linked statically: layers can be skipped only in other programs that it starts\n", path)
	}
	cmd := exec.Command(path, p.Args[1:]...)
	cmd.Args[0] = p.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.In, p.Out, p.Err
	cmd.Env = append(os.Environ(),
		envPreload+"="+strings.TrimSuffix(p.Library+":"+os.Getenv(envPreload), ":"),
		envMask+"="+p.Mask.String(),
		envReport+"="+report.Name())
	if code, err = wait(cmd); err != nil {
		return 0, fmt.Errorf("%w %q: %w", ErrProgram, p.Args[0], err)
	}
	lines, err := io.ReadAll(report)
	if err != nil {
		return code, fmt.Errorf("read the report file: %w", err)
	}
	return code, judge(string(lines), filepath.Base(path), static)
}

// wait starts cmd and gives its exit code; signals go on to it meanwhile.
func wait(cmd *exec.Cmd) (code int, err error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGINT && inForeground() {
				continue // Ctrl-C: the terminal has sent it to the program too
			}
			_ = cmd.Process.Signal(s) // fails when the program has just ended
		case err := <-ended:
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				return 0, err
			}
			return exitCode(cmd.ProcessState), nil
		}
	}
}

func exitCode(state *os.ProcessState) int {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return signalBase + int(status.Signal())
	}
	return state.ExitCode()
}

// judge reads the library's report: lines of "skips ..." and "refused: ...".
func judge(report, program string, static bool) error {
	const refused = "refused: "
	reason := ""
	for line := range strings.Lines(report) {
		text, isRefusal := strings.CutPrefix(strings.TrimSpace(line), refused)
		if !isRefusal {
			return nil // a graph was edited
		}
		reason = text
	}
	switch {
	case reason != "":
		return fmt.Errorf("%w: %s", ErrNothingSkipped, reason)
	case static:
		return fmt.Errorf("%w: %s is linked statically and ignores %s; use a build with shared libraries",
			ErrNothingSkipped, program, envPreload)
	}
	return fmt.Errorf("%w: %s ran no model, or llama.cpp is linked into it statically (use a build with shared libraries), or it or a wrapper clears %s",
		ErrNothingSkipped, program, envPreload)
}

// isStatic reports whether the file is a program that asks for no dynamic
// linker. Scripts and what cannot be read are not.
func isStatic(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	for _, segment := range f.Progs {
		if segment.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}

// lookupCause is the reason within an error of exec.LookPath, whose own words
// repeat the program's name.
func lookupCause(err error) error {
	var lookup *exec.Error
	if errors.As(err, &lookup) {
		return lookup.Err
	}
	return err
}
