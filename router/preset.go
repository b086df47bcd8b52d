package router

import (
	"fmt"

	"github.com/gallop-llm/gallop/skip"
)

// pudding is the name of the only preset.
const pudding = "pudding-llama-3.1-8b"

// puddingLayers is how many layers the preset's model has.
const puddingLayers = 32

// puddingSets are the ten omission sets of 7 layers that PuDDing's authors
// published for LLaMA-3.1-8B: repository tada0347/PuDDing@51a2c6c, the
// "6_advanced_tasks" set. "-diff" is their criterion of the right answer's
// margin over the wrong ones.
var puddingSets = []struct {
	task   string
	layers []int
}{
	{"mathqa", []int{9, 21, 22, 28, 20, 26, 10}},
	{"mathqa-diff", []int{18, 20, 19, 28, 27, 25, 21}},
	{"medical", []int{4, 22, 19, 14, 25, 10, 20}},
	{"medical-diff", []int{30, 5, 23, 24, 29, 26, 17}},
	{"sciq", []int{22, 28, 24, 26, 23, 19, 6}},
	{"sciq-diff", []int{28, 23, 27, 21, 22, 19, 26}},
	{"arc-easy", []int{3, 26, 25, 24, 19, 8, 28}},
	{"arc-easy-diff", []int{29, 26, 24, 23, 25, 16, 5}},
	{"winogrande", []int{26, 16, 25, 11, 8, 19, 24}},
	{"winogrande-diff", []int{26, 27, 28, 19, 23, 17, 16}},
}

// Preset gives published omission sets by name, after the empty mask:
// "pudding-llama-3.1-8b", ten sets of 7 of 32 layers from PuDDing's authors.
// Other names give an error that wraps [ErrPreset].
func Preset(name string) ([]Candidate, error) {
	if name != pudding {
		return nil, fmt.Errorf("%w: %q, there is %s", ErrPreset, name, pudding)
	}
	candidates := []Candidate{{}}
	for _, set := range puddingSets {
		mask := skip.Layers(set.layers...)
		if err := mask.Check(puddingLayers); err != nil {
			return nil, err
		}
		candidates = append(candidates, Candidate{Mask: mask, Depth: float64(len(set.layers)), Task: set.task})
	}
	return candidates, nil
}
