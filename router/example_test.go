package router_test

import (
	"fmt"
	"log"

	"github.com/gallop-llm/gallop/router"
	"github.com/gallop-llm/gallop/skip"
)

// A router learns that stories need layer 3 and sums need layer 2.
func ExampleProfile_Choose() {
	var prompts []router.Prompt
	var losses [][]float64 // of no mask, without layer 2, without layer 3
	for i := range 30 {
		prompts = append(prompts, router.Prompt{Text: fmt.Sprintf("Tell me story %d", i)}, router.Prompt{Text: fmt.Sprintf("What is %d plus 2?", i)})
		losses = append(losses, []float64{0, 0.01, 2}, []float64{0, 2, 0.01})
	}
	features, err := router.NewFeatures(router.FeatureSpec{Kind: router.Ngrams}, nil)
	if err != nil {
		log.Fatal(err)
	}
	x, err := features.Vectors(prompts)
	if err != nil {
		log.Fatal(err)
	}
	trained, _, err := router.Train(x, losses, nil)
	if err != nil {
		log.Fatal(err)
	}
	profile := router.Profile{
		Candidates: []router.Candidate{{}, {Mask: skip.Layers(2), Depth: 1}, {Mask: skip.Layers(3), Depth: 1}},
		Router:     trained,
		Features:   features,
	}
	for _, text := range []string{"Please tell me a story", "What is 4 plus 5?"} {
		decision, err := profile.Choose(router.Prompt{Text: text}, router.Policy{Depth: 1})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: skip layer %s\n", text, decision.Mask)
	}
	// Output:
	// Please tell me a story: skip layer 2
	// What is 4 plus 5?: skip layer 3
}
