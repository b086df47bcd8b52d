package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/llama"
)

// asProgram is the environment variable that turns the test program into gallop
// itself, for what can be seen in a process of its own only.
const asProgram = "GALLOP_TEST_AS_PROGRAM"

// asDeaf turns it into a command that does not end when it should, as one in C code.
const asDeaf = "GALLOP_TEST_AS_DEAF"

func TestMain(m *testing.M) {
	if os.Getenv(asDeaf) != "" {
		ctx, stop := interruptible(&cobra.Command{})
		defer stop()
		fmt.Println("ready")
		<-ctx.Done()
		fmt.Println("asked to end")
		time.Sleep(time.Hour)
	}
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// runGallop runs a command line in this process, with nothing on stdin.
func runGallop(args ...string) (code int, out, errOut string) {
	var stdout, stderr bytes.Buffer
	code = run(args, strings.NewReader(""), &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

// alone hides the user's own configuration and environment from the test.
func alone(t *testing.T) {
	t.Helper()
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
}

func TestCommandLine(t *testing.T) {
	alone(t)
	for name, test := range map[string]struct {
		args []string
		code int
		want string // part of stdout when the code is 0, all of stderr otherwise
	}{
		"no command":       {nil, exitOK, "Available Commands:"},
		"help":             {[]string{"help"}, exitOK, "inspect"},
		"version":          {[]string{"--version"}, exitOK, "gallop version dev"},
		"version in full":  {[]string{"version"}, exitOK, "llama.cpp " + strings.Join(llama.Releases, " or ") + "\n" + runtime.GOOS + "/" + runtime.GOARCH},
		"unknown command":  {[]string{"jump"}, exitUsage, "gallop: there is no command \"jump\"; see `gallop help`\n"},
		"nearly a command": {[]string{"rum"}, exitUsage, "gallop: there is no command \"rum\"; did you mean run?; see `gallop help`\n"},
		"nearly a flag":    {[]string{"run", "--tepm=0"}, exitUsage, "gallop: unknown flag: --tepm; did you mean --temp?; see `gallop help run`\n"},
		"nearly two flags": {[]string{"run", "--top-j", "1"}, exitUsage, "gallop: unknown flag: --top-j; did you mean --top-k or --top-p?; see `gallop help run`\n"},
		"of a subcommand":  {[]string{"profile", "check", "--jump"}, exitUsage, "gallop: unknown flag: --jump; see `gallop help profile check`\n"},
		"unknown letter":   {[]string{"run", "-x"}, exitUsage, "gallop: unknown shorthand flag: 'x' in -x; see `gallop help run`\n"},
		"unknown flag":     {[]string{"doctor", "--jump"}, exitUsage, "gallop: unknown flag: --jump; see `gallop help doctor`\n"},
		"argument":         {[]string{"doctor", "model.gguf"}, exitUsage, "gallop: `gallop doctor` takes no argument, and got \"model.gguf\"\n"},
		"missing configuration": {[]string{"inspect", "--config", "/nowhere.toml"}, exitUsage,
			"gallop: configuration file /nowhere.toml: open /nowhere.toml: no such file or directory\n"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errOut := runGallop(test.args...)
			require.Equal(t, test.code, code, errOut)
			if code == exitOK {
				require.Contains(t, out, test.want)
				require.Empty(t, errOut)
			} else {
				require.Equal(t, test.want, errOut)
				require.Empty(t, out)
			}
		})
	}
}

func TestLongFlags(t *testing.T) {
	for name, test := range map[string]struct{ args, want []string }{
		"llama.cpp's":     {[]string{"chat", "-ngl", "4", "-fa=1"}, []string{"chat", "--ngl", "4", "--fa=1"}},
		"a lone -fa":      {[]string{"run", "-fa", "-t", "1"}, []string{"run", "--fa=on", "-t", "1"}},
		"-fa at the end":  {[]string{"run", "-fa"}, []string{"run", "--fa=on"}},
		"-fa with a word": {[]string{"run", "-fa", "off"}, []string{"run", "--fa", "off"}},
		"one letter":      {[]string{"-m", "ngl"}, []string{"-m", "ngl"}},
		"long already":    {[]string{"--ngl", "4"}, []string{"--ngl", "4"}},
		"behind dashes":   {[]string{"exec", "--", "llama-cli", "-ngl", "4"}, []string{"exec", "--", "llama-cli", "-ngl", "4"}},
		"longer word":     {[]string{"-nglx"}, []string{"-nglx"}},
		"nothing at all":  {[]string{}, []string{}},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, test.want, longFlags(test.args)) })
	}
}

// writeFile makes a file of this content in a folder of the test's own.
func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	return path
}
