package main

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/llama"
)

// settings are the flags of the command that these tests configure.
type settings struct {
	temp  float64
	topK  int
	loras []string
	json  bool
}

// configurable is a root command with one subcommand, parsed from args.
func configurable(t *testing.T, args ...string) (*cobra.Command, *settings) {
	t.Helper()
	var s settings
	cmd := &cobra.Command{Use: "answer", Run: func(*cobra.Command, []string) {}}
	cmd.Flags().Float64Var(&s.temp, "temp", 0.5, "")
	cmd.Flags().IntVar(&s.topK, "top-k", 40, "")
	cmd.Flags().StringArrayVar(&s.loras, "lora", nil, "")
	cmd.Flags().BoolVar(&s.json, "json", false, "")
	root := &cobra.Command{Use: "root"}
	root.PersistentFlags().String("config", "", "")
	root.AddCommand(cmd)
	require.NoError(t, cmd.ParseFlags(args))
	return cmd, &s
}

func TestConfigure(t *testing.T) {
	t.Setenv("GALLOP_TOP_K", "3")
	file := writeFile(t, "config.toml", "temp = 0\ntop-k = 9\nlora = ['a', 'b']\njson = true\n")
	for name, test := range map[string]struct {
		args []string
		want settings
	}{
		"environment before file": {nil, settings{temp: 0, topK: 3, loras: []string{"a", "b"}, json: true}},
		"flag before both": {[]string{"--top-k", "7", "--temp", "1.5", "--json=false", "--lora", "c"},
			settings{temp: 1.5, topK: 7, loras: []string{"c"}}},
	} {
		t.Run(name, func(t *testing.T) {
			cmd, got := configurable(t, test.args...)
			require.NoError(t, configure(cmd, file))
			require.Equal(t, test.want, *got)
		})
	}
}

// TestSettingsMeanOneThing has settings that every command would take, each for its own.
func TestSettingsMeanOneThing(t *testing.T) {
	alone(t)
	isBool := map[string]bool{}
	root := newRootCommand(io.Discard)
	for _, cmd := range root.Commands() {
		for _, c := range append(cmd.Commands(), cmd) {
			c.Flags().VisitAll(func(flag *pflag.Flag) {
				is := flag.Value.Type() == "bool"
				before, known := isBool[flag.Name]
				require.True(t, !known || before == is || !isSetting(flag.Name), "--%s of %s", flag.Name, c.Name())
				isBool[flag.Name] = is
			})
		}
	}
	cmd, _ := configurable(t)
	require.ErrorContains(t, configure(cmd, writeFile(t, "config.toml", "lora = true")), "it takes a word or a number, not true or false")
	for _, key := range []string{"output", "prompt", "data"} {
		code, _, notes := runGallop("compare", "--config", writeFile(t, "config.toml", key+" = 'x'"))
		require.Equal(t, exitUsage, code)
		require.Contains(t, notes, "is no setting")
	}
}

func TestConfigureWithoutFile(t *testing.T) {
	alone(t)
	cmd, got := configurable(t)
	require.NoError(t, configure(cmd, ""))
	require.Equal(t, settings{temp: 0.5, topK: 40}, *got)
}

func TestConfigureUsualPlace(t *testing.T) {
	alone(t)
	require.NoError(t, os.MkdirAll(filepath.Dir(configPath()), 0o755))
	require.NoError(t, os.WriteFile(configPath(), []byte("temp = 0.25"), 0o644))
	cmd, got := configurable(t)
	require.NoError(t, configure(cmd, ""))
	require.Equal(t, 0.25, got.temp)
}

func TestGiven(t *testing.T) {
	alone(t)
	for name, test := range map[string]struct {
		args    []string
		env     string
		file    string
		isGiven bool
	}{
		"nothing":                  {},
		"an empty variable":        {isGiven: false, env: ""},
		"the default, flag":        {args: []string{"--temp", "0.5"}, isGiven: true},
		"the default, environment": {env: "0.5", isGiven: true},
		"the default, file":        {file: "temp = 0.5", isGiven: true},
		"another value":            {env: "0.25", isGiven: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("GALLOP_TEMP", test.env)
			cmd, _ := configurable(t, test.args...)
			require.NoError(t, configure(cmd, writeFile(t, "config.toml", test.file)))
			require.Equal(t, test.isGiven, given(cmd, "temp"))
			require.False(t, given(cmd, "top-k"))
		})
	}
}

// TestDefaultsGoBeforeAdvice has a value that is the program's own, but was asked
// for: the model's advice is another.
func TestDefaultsGoBeforeAdvice(t *testing.T) {
	alone(t)
	t.Setenv("GALLOP_TEMP", "0.8")
	cmd := newRunCommand()
	require.NoError(t, configure(cmd, writeFile(t, "config.toml", "top-k = 40")))
	advice := llama.Sampling{Temp: 0.1, TopK: 7, MinP: 0.3}
	g := generation{temp: 0.8, topK: 40, seed: -1}
	require.NoError(t, g.sampling(cmd, &advice))
	require.Equal(t, llama.Sampling{Temp: 0.8, TopK: 40, MinP: 0.3}, advice)
}

// TestHelpInSpiteOfSettings has a mistake in the configuration, which names the
// help that explains it.
func TestHelpInSpiteOfSettings(t *testing.T) {
	alone(t)
	require.NoError(t, os.MkdirAll(filepath.Dir(configPath()), 0o755))
	require.NoError(t, os.WriteFile(configPath(), []byte("tmep = 0"), 0o644))
	for _, args := range [][]string{{"help"}, {"help", "chat"}, {"chat", "--help"}, {"completion", "bash"}, {"__complete", "chat", "--te"}, {"--version"}} {
		code, out, notes := runGallop(args...)
		require.Equal(t, exitOK, code, notes)
		require.NotEmpty(t, out)
		require.NotContains(t, notes, "tmep")
	}
	code, out, notes := runGallop("doctor")
	require.Equal(t, exitUsage, code)
	require.Contains(t, out, "libraries")
	require.Contains(t, notes, `"tmep" is no setting`)
	code, out, notes = runGallop("run", "x")
	require.Equal(t, exitUsage, code)
	require.Empty(t, out)
	require.Contains(t, notes, `"tmep" is no setting`)
}

func TestConfigureErrors(t *testing.T) {
	alone(t)
	for name, test := range map[string]struct{ content, want string }{
		"unknown setting":   {"tempp = 1", `"tempp" is no setting; settings are the long flags of`},
		"not for files":     {"config = 'x'", `"config" is no setting`},
		"wrong type":        {"top-k = 'many'", "configuration file: top-k = many does not fit: "},
		"fraction":          {"top-k = 1.5", "configuration file: top-k = 1.5 does not fit: "},
		"list for one flag": {"temp = [1, 2]", "configuration file: temp = [1 2] does not fit: it takes one value, not a list"},
		"table":             {"[chat]\ntemp = 1", `"chat" is no setting`},
		"no TOML":           {"temp: 1", "toml: line 1"},
	} {
		t.Run(name, func(t *testing.T) {
			path := writeFile(t, "config.toml", test.content)
			cmd, _ := configurable(t)
			require.ErrorContains(t, configure(cmd, path), test.want)
		})
	}
	t.Run("environment", func(t *testing.T) {
		t.Setenv("GALLOP_TOP_K", "many")
		cmd, _ := configurable(t)
		require.ErrorContains(t, configure(cmd, ""), `environment variable GALLOP_TOP_K: "many" does not fit --top-k: `)
	})
	t.Run("folder", func(t *testing.T) {
		cmd, _ := configurable(t)
		require.ErrorContains(t, configure(cmd, t.TempDir()), "is a directory")
	})
}
