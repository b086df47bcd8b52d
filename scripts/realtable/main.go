// Command realtable compares ways to choose what a real model skips, on published
// benchmarks: accuracy, perplexity, bytes of a token, decode speed beside stock.
//
//	go run ./scripts/realtable -data FOLDER smollm2-135m-instruct
//
// FOLDER has arc_easy.jsonl and the others in the columns that they were published with.
// Everything that is measured is kept below -folder, so a run that was stopped goes on
// where it was. -page writes the document of a results' file.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/gallop-llm/gallop/internal/dataset"
	"github.com/gallop-llm/gallop/internal/realmodel"
	"github.com/gallop-llm/gallop/libs"
)

type options struct {
	data, folder, out string
	parts             string
	methodNames       string // separated by commas; "" = all
	test, calibration int
	rounds, ways      int
	threads           int
	limit             time.Duration
	names             []string
}

func main() {
	var o options
	flag.StringVar(&o.data, "data", "", "folder with the benchmarks' files")
	flag.StringVar(&o.folder, "folder", "build/real-table", "folder for what has been measured so far")
	flag.StringVar(&o.out, "o", "build/real-table.json", "file to write")
	flag.StringVar(&o.parts, "parts", "accuracy,speed,table", "what to do: accuracy, speed, table")
	flag.StringVar(&o.methodNames, "methods", "", "methods to compare, as the table names them, separated by commas; the budgets are called quality (default: all)")
	flag.IntVar(&o.test, "examples", 16, "examples of each benchmark that are measured")
	flag.IntVar(&o.calibration, "calibration", 3, "other examples of each benchmark that searches look at")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of each speed")
	flag.IntVar(&o.ways, "masks", 4, "masks whose speeds stand for a method that gives each prompt its own")
	flag.IntVar(&o.threads, "t", 0, "threads for accuracy; 0 = physical cores; speed is always measured with these")
	flag.DurationVar(&o.limit, "for", 0, "stop measuring speeds after so long; 0 = when all are measured")
	page := flag.String("page", "", "write the document of this file into -docs, and measure nothing")
	docs := flag.String("docs", "docs", "folder of real.md and its pictures")
	flag.Parse()
	o.names = flag.Args()
	var err error
	if *page != "" {
		err = writePage(*page, *docs)
	} else {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
		err = o.run(ctx)
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "realtable:", err)
		os.Exit(1)
	}
}

func (o *options) run(ctx context.Context) error {
	if len(o.names) == 0 {
		for _, m := range realmodel.List() {
			o.names = append(o.names, m.Name)
		}
	}
	if o.test < 1 || o.calibration < 1 || o.rounds < 1 || o.ways < 1 {
		return errors.New("-examples, -calibration, -rounds and -masks want 1 or more")
	}
	files, err := readData(o.data)
	if err != nil {
		return err
	}
	if _, err := libs.Load(); err != nil {
		return err
	}
	for _, name := range o.names {
		path, err := realmodel.Path(name)
		if err == nil {
			err = o.one(ctx, name, path, files)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// one measures a model.
func (o *options) one(ctx context.Context, name, path string, files [][]dataset.Example) (err error) {
	l, err := open(ctx, o, name, path, files)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	entries, err := l.methods(ctx)
	if err != nil {
		return err
	}
	if strings.Contains(o.parts, "accuracy") {
		if err := l.measure(ctx, entries); err != nil {
			return err
		}
	}
	if strings.Contains(o.parts, "speed") {
		if done, err := l.measureSpeeds(ctx, entries, o.limit); err != nil || !done {
			return err
		}
	}
	if strings.Contains(o.parts, "table") {
		return l.write(entries)
	}
	return nil
}
