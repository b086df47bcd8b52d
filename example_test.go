package gallop_test

import (
	"context"
	"fmt"
	"log"

	"github.com/gallop-llm/gallop"
	"github.com/gallop-llm/gallop/demo"
	"github.com/gallop-llm/gallop/libs"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// The demo model is embedded; your own is a path to a GGUF file.
func Example() {
	ctx := context.Background()
	if _, err := libs.Install(ctx, nil); err != nil { // once; nothing happens when llama.cpp's libraries are there
		log.Fatal(err)
	}
	path, err := demo.Path()
	if err != nil {
		log.Fatal(err)
	}
	model, err := gallop.Open(ctx, path, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	ask := gallop.Request{Messages: []gallop.Message{{Role: "user", Content: "Who are you?"}}}
	for delta, err := range model.Stream(ctx, ask) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(delta.Text)
	}
	// Output: I am Gallop, a small language model that runs on your own computer.
}

// openDemo opens the demo model for the examples below.
func openDemo(ctx context.Context) *gallop.Engine {
	if _, err := libs.Install(ctx, nil); err != nil {
		log.Fatal(err)
	}
	path, err := demo.Path()
	if err != nil {
		log.Fatal(err)
	}
	model, err := gallop.Open(ctx, path, &gallop.Options{Parallel: 1, Context: llama.ContextOptions{NCtx: 512}})
	if err != nil {
		log.Fatal(err)
	}
	return model
}

// A session keeps the conversation; what it begins with stays when old turns are forgotten.
func ExampleEngine_NewSession() {
	ctx := context.Background()
	model := openDemo(ctx)
	defer model.Close()
	talk := model.NewSession(gallop.Request{Forget: true, MaxTokens: 60})
	for _, question := range []string{"What is 12 + 7?", "What is the capital of France?"} {
		for delta, err := range talk.Ask(ctx, question) {
			if err != nil {
				log.Fatal(err)
			}
			fmt.Print(delta.Text)
		}
		fmt.Println()
	}
	fmt.Println(len(talk.Messages()), "messages")
	// Output:
	// 19
	// The capital of France is Paris.
	// 4 messages
}

// A Skip has one text, for flags, configuration files and JSON.
func ExampleParseSkip() {
	for _, text := range []string{"quality=0.95", "4,6,f9-11 prefill=full", "depth=all"} {
		s, err := gallop.ParseSkip(text)
		if err != nil {
			fmt.Println(err)
			continue
		}
		fmt.Println(s)
	}
	fmt.Println(gallop.Layers(skip.Layers(4, 6)).Prefill(skip.MaskedPrefill))
	// Output:
	// quality=0.95
	// 4,6,f9-11 prefill=full
	// not a mask: "depth=all", want a number after the equals sign of depth=, quality= or escalate=
	// 4,6 prefill=masked
}

// A plan is what would be skipped; nothing is decoded for it.
func ExampleEngine_Plan() {
	ctx := context.Background()
	model := openDemo(ctx)
	defer model.Close()
	r := gallop.Request{Messages: []gallop.Message{{Role: "user", Content: "What is 12 + 7?"}}, Skip: gallop.Layers(skip.Layers(5, 8))}
	plan, err := model.Plan(ctx, r)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("skips %s and runs %g of %d layers\n", plan.Mask, plan.LayersRun, model.Info().Layers)
	r.Skip = gallop.Depth(4)
	if plan, err = model.Plan(ctx, r); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("skips %.0f layers' worth, chosen by prompt\n", plan.Choice.Depth)
	// Output:
	// skips 5,8 and runs 10 of 12 layers
	// skips 4 layers' worth, chosen by prompt
}
