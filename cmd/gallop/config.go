package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// notConfigurable are flags that make sense on the command line alone.
var notConfigurable = map[string]bool{"help": true, "version": true, "config": true}

// ofOneCommand are flags that say what one command is to read or write: as a setting they
// would mean something else to each.
var ofOneCommand = map[string]bool{"output": true, "prompt": true, "data": true}

func isSetting(flag string) bool { return !notConfigurable[flag] && !ofOneCommand[flag] }

// configPath is where the configuration file usually is, "" when the system
// names no such place.
func configPath() string {
	dir, err := os.UserConfigDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "gallop", "config.toml")
}

// envName is the environment variable of a flag: GALLOP_TOP_K for --top-k.
func envName(flag string) string {
	return "GALLOP_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// configure fills the flags that the command line left alone from the
// environment, then from the configuration file. path "" is the usual file,
// which may be missing.
func configure(cmd *cobra.Command, path string) error {
	file, err := readConfig(cmd, path)
	if err != nil {
		return err
	}
	cmd.Flags().VisitAll(func(flag *pflag.Flag) {
		if err != nil || flag.Changed || !isSetting(flag.Name) {
			return
		}
		if value := os.Getenv(envName(flag.Name)); value != "" { // empty is as good as unset
			configured(cmd, flag)
			if setErr := flag.Value.Set(value); setErr != nil {
				err = fmt.Errorf("environment variable %s: %q does not fit --%s: %w", envName(flag.Name), value, flag.Name, setErr)
			}
			return
		}
		if value, ok := file[flag.Name]; ok {
			configured(cmd, flag)
			if setErr := setFromFile(flag, value); setErr != nil {
				err = fmt.Errorf("configuration file: %s = %v does not fit: %w", flag.Name, value, setErr)
			}
		}
	})
	return err
}

// configuredKey marks flags that the environment or the file has set; those of
// the command line are marked as changed.
const configuredKey = "gallop_configured"

func configured(cmd *cobra.Command, flag *pflag.Flag) {
	if err := cmd.Flags().SetAnnotation(flag.Name, configuredKey, nil); err != nil {
		panic(err) // flag is one of cmd's
	}
}

// given tells whether a flag was set at all, to whatever value.
func given(cmd *cobra.Command, name string) bool {
	flag := cmd.Flags().Lookup(name)
	_, isConfigured := flag.Annotations[configuredKey]
	return flag.Changed || isConfigured
}

// checkNumbers refuses values of flags that are no finite numbers: every test of a
// range would have to think of them.
func checkNumbers(cmd *cobra.Command) (err error) {
	cmd.Flags().VisitAll(func(flag *pflag.Flag) {
		values := []string{flag.Value.String()}
		switch flag.Value.Type() {
		case "float32", "float64":
		case "float32Slice", "float64Slice":
			values = flag.Value.(pflag.SliceValue).GetSlice()
		default:
			return
		}
		for _, value := range values {
			if v, parseErr := strconv.ParseFloat(value, 64); parseErr == nil && (math.IsNaN(v) || math.IsInf(v, 0)) && err == nil {
				err = fmt.Errorf("--%s is %s, want a number", flag.Name, value)
			}
		}
	})
	return err
}

// setFromFile gives a flag a value of the file; a list sets it once per entry.
func setFromFile(flag *pflag.Flag, value any) error {
	list, isList := value.([]any)
	if _, takesList := flag.Value.(pflag.SliceValue); isList && !takesList {
		return errors.New("it takes one value, not a list")
	}
	if !isList {
		list = []any{value}
	}
	for _, v := range list {
		if _, isBool := v.(bool); isBool && flag.Value.Type() != "bool" {
			return errors.New("it takes a word or a number, not true or false")
		}
		if err := flag.Value.Set(fmt.Sprint(v)); err != nil {
			return err
		}
	}
	return nil
}

// readConfig reads the file and refuses keys that are no command's flag.
func readConfig(cmd *cobra.Command, path string) (map[string]any, error) {
	optional := path == ""
	if optional {
		path = configPath()
	}
	var file map[string]any
	_, err := toml.DecodeFile(path, &file)
	if optional && (path == "" || errors.Is(err, fs.ErrNotExist)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("configuration file %s: %w", path, err)
	}
	known := map[string]bool{}
	for _, c := range append(cmd.Root().Commands(), cmd.Root()) {
		c.Flags().VisitAll(func(flag *pflag.Flag) { known[flag.Name] = isSetting(flag.Name) })
		c.PersistentFlags().VisitAll(func(flag *pflag.Flag) { known[flag.Name] = isSetting(flag.Name) })
	}
	for key := range file {
		if !known[key] {
			return nil, fmt.Errorf("configuration file %s: %q is no setting; settings are the long flags of `gallop help chat`", path, key)
		}
	}
	return file, nil
}
