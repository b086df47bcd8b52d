// Command models fetches real pretrained models for measurements and figures:
// `make models` calls it. Names choose some of them; `path NAME` prints where one
// is, for scripts.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/gallop-llm/gallop/internal/realmodel"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "models:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 2 && args[0] == "path" {
		path, err := realmodel.Path(args[1])
		if err == nil {
			fmt.Println(path)
		}
		return err
	}
	models := realmodel.List()
	if len(args) > 0 {
		models = nil
	}
	for _, name := range args { // all of them, before anything is fetched
		m, err := realmodel.Find(name)
		if err != nil {
			return err
		}
		models = append(models, m)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	for _, m := range models {
		path, err := m.Fetch(ctx, os.Stderr)
		if err != nil {
			return err
		}
		fmt.Printf("%s\t%s\t(%s)\n", m.Name, path, m.Licence)
	}
	return nil
}
