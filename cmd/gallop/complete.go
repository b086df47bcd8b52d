package main

import (
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/gallop-llm/gallop/internal/calibrate"
	"github.com/gallop-llm/gallop/internal/lab/bench"
	"github.com/gallop-llm/gallop/internal/models"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// flagWords are the words that flags take, for the shell to complete.
func flagWords() map[string][]string {
	prefills := []string{skip.FullPrefill.String(), skip.MaskedPrefill.String()}
	caches := slices.Sorted(maps.Keys(cacheTypes))
	return map[string][]string{
		"route": {routeTurn, routeChat, routeOff}, "prefill": prefills, "shortlist": {"auto", "off"},
		"fa": slices.Sorted(maps.Keys(flashWords)), "ctk": caches, "ctv": caches,
		"draft-source": slices.Sorted(maps.Keys(draftSources)),
		"unit":         {string(calibrate.Layers), string(calibrate.Sublayers), string(calibrate.FeedForwards)},
		"features":     {router.Ngrams, router.Embedding, router.Ngrams + "+" + router.Embedding},
		"preset":       {"pudding-llama-3.1-8b"},
		"device":       libs.Devices,
		"bench output": bench.Formats, "oe": bench.Formats, "type": typeNames(), "shape": randmodel.ShapeNames(),
	}
}

// addCompletions tells the shell what a command's flags and arguments take: words,
// models by name, or files. Numbers and free text are not completed.
func addCompletions(cmd *cobra.Command) {
	words := flagWords()
	cmd.Flags().VisitAll(func(flag *pflag.Flag) {
		complete := cobra.CompletionFunc(nil)
		list := words[flag.Name]
		if list == nil {
			list = words[cmd.Name()+" "+flag.Name]
		}
		switch kind := flag.Value.Type(); {
		case list != nil:
			complete = cobra.FixedCompletions(list, cobra.ShellCompDirectiveNoFileComp)
		case flag.Name == "model":
			complete = completeModel
		case !strings.HasPrefix(kind, "string"):
			complete = cobra.NoFileCompletions
		}
		if complete != nil {
			if err := cmd.RegisterFlagCompletionFunc(flag.Name, complete); err != nil {
				panic(err) // it is registered twice
			}
		}
	})
	if strings.Contains(cmd.Use, "[model.gguf") {
		cmd.ValidArgsFunction = completeModel
	}
}

// completeModel names the models on this machine, beside which files are completed.
func completeModel(*cobra.Command, []string, string) (names []cobra.Completion, _ cobra.ShellCompDirective) {
	for _, m := range models.List() {
		names = append(names, m.Name)
	}
	return names, cobra.ShellCompDirectiveDefault
}
