package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/internal/inspect"
	"github.com/gallop-llm/gallop/internal/models"
	"github.com/gallop-llm/gallop/router"
)

// hubPrefix stands before the name of a model on the hub, as in -m hf://ORG/REPO,
// which is what -hf ORG/REPO is short for.
const hubPrefix = "hf://"

// addHub declares -hf on every command that takes a model.
func addHub(root *cobra.Command) {
	for _, cmd := range root.Commands() {
		if cmd.Flags().Lookup("model") != nil {
			cmd.Flags().String("hf", "", "model of the Hugging Face hub, ORG/REPO or ORG/REPO:QUANT, which is fetched if it is not here (default QUANT: Q4_K_M, else Q8_0)")
		}
	}
}

// useHub puts -hf into -m. On the command line only one of them may stand, and it goes
// before the other of the environment or the configuration file.
func useHub(cmd *cobra.Command) error {
	hub, model := cmd.Flags().Lookup("hf"), cmd.Flags().Lookup("model")
	switch {
	case hub == nil || hub.Value.String() == "" && !hub.Changed:
		return nil
	case hub.Changed && model.Changed:
		return usageError{errors.New("-m and -hf exclude each other: each names the model")}
	case hub.Value.String() == "":
		return usageError{errors.New("-hf is empty: name a repository of the hub, as in ORG/REPO:Q4_K_M")}
	case model.Changed:
		return nil
	}
	model.Changed = hub.Changed
	return model.Value.Set(hubPrefix + hub.Value.String())
}

// modelPath is the file of the model that a command works on: one that is named by
// its path, or by its name in a store, or on the hub; the demo model when none is.
func modelPath(cmd *cobra.Command, name string) (string, error) {
	if name == "" {
		return demo.Path()
	}
	if repo, ok := strings.CutPrefix(name, hubPrefix); ok {
		return fetchModel(cmd, repo)
	}
	return models.Path(name)
}

// fetchModel brings a model from the hub. Where the hub is out of reach, what is here
// already will do.
func fetchModel(cmd *cobra.Command, name string) (string, error) {
	hub, err := models.NewHub()
	if err != nil {
		return "", err
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	told := false
	bar, done := byteBar(cmd.ErrOrStderr(), "fetching "+name)
	hub.Progress = func(have, total int64) {
		if !told && have < total {
			fmt.Fprintf(cmd.ErrOrStderr(), "fetching %s, %s of %s are here\n", name, humanize.IBytes(uint64(have)), humanize.IBytes(uint64(total)))
		}
		told = true
		bar(have, total)
	}
	path, err := hub.Fetch(ctx, name)
	done()
	if errors.Is(err, models.ErrHub) {
		if m, findErr := models.Find(name); findErr == nil && m.Store == models.HuggingFace {
			fmt.Fprintf(cmd.ErrOrStderr(), "gallop: goes on with the %s that is here: %v\n", m.Name, err)
			return m.Path, nil
		}
	}
	return path, err
}

// listed is what `gallop models --json` says of a model. Where Problem says why it
// cannot be read, the others are zero.
type listed struct {
	Name         string `json:"name"`
	Store        string `json:"store"`
	Path         string `json:"path"`
	Bytes        int64  `json:"bytes"`
	Architecture string `json:"architecture"`
	Type         string `json:"type"` // of most of its bytes, "Q4_K"
	Parameters   uint64 `json:"parameters"`
	Layers       int    `json:"layers"`
	Context      uint64 `json:"context"`           // tokens
	Profile      string `json:"profile,omitempty"` // path
	Problem      string `json:"problem,omitempty"`
}

func newModelsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "models",
		Short: "List the models that are on this machine",
		Long: `List the models that are on this machine, by the names that -m takes: those of
Gallop's own folder, and those that Hugging Face's programs, llama.cpp, Ollama,
LM Studio and Kronk have fetched. A name goes in upper or lower case, and a part
of it will do where it is clear. -hf fetches a model that is not here.`,
		Args: noArgument,
		RunE: func(cmd *cobra.Command, _ []string) error { return runModels(cmd, asJSON) },
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

func runModels(cmd *cobra.Command, asJSON bool) error {
	stop := spin(cmd.ErrOrStderr(), "reading")
	rows := []listed{}
	for _, m := range models.List() {
		row := listed{Name: m.Name, Store: m.Store, Path: m.Path}
		file, err := inspect.Read(m.Path)
		if err != nil {
			row.Problem = err.Error()
			rows = append(rows, row)
			continue
		}
		row.Bytes, row.Architecture, row.Parameters, row.Layers, row.Context = file.FileBytes, file.Architecture, file.Parameters, len(file.Layers), file.ContextLength
		if len(file.Types) > 0 {
			row.Type = file.Types[0].Type
		}
		row.Profile, _ = router.Find(m.Path)
		row.Problem = file.NoText
		rows = append(rows, row)
	}
	stop()
	if asJSON {
		return writeJSON(cmd.OutOrStdout(), rows)
	}
	return writeModels(cmd.OutOrStdout(), rows)
}

// writeModels writes a line for each model, and below it what is wrong with it.
func writeModels(out io.Writer, rows []listed) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(out, "no model is here; `-hf ORG/REPO` fetches one, and without a model the commands use the demo model")
		return err
	}
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "name\tsize\ttype\tarchitecture\tlayers\tprofile\tstore")
	for _, r := range rows {
		size, profile := "–", "–"
		if r.Bytes > 0 {
			size = humanize.IBytes(uint64(r.Bytes))
		}
		if r.Profile != "" {
			profile = "yes"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", plain(r.Name), size, r.Type, plain(r.Architecture), r.Layers, profile, r.Store)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, r := range rows {
		if r.Problem != "" {
			fmt.Fprintf(&text, "%s: %s\n", plain(r.Name), harmless(r.Problem))
		}
	}
	_, err := io.WriteString(out, text.String())
	return err
}

// plain is text of a file or folder as a table can take it.
func plain(text string) string {
	return strings.NewReplacer("\n", "\ufffd", "\t", "\ufffd").Replace(harmless(text))
}
