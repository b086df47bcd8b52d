package gguf

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNoText(t *testing.T) {
	weights := []Tensor{{Name: "output.weight"}}
	for name, c := range map[string]struct {
		file File
		want string
	}{
		"llama":            {File{Metadata: Metadata{{KeyArchitecture, "llama"}}, Tensors: weights}, ""},
		"causal":           {File{Metadata: Metadata{{KeyArchitecture, "llama"}, {"llama.attention.causal", true}}, Tensors: weights}, ""},
		"no pooling":       {File{Metadata: Metadata{{KeyArchitecture, "qwen3"}, {"qwen3.pooling_type", uint32(0)}}, Tensors: weights}, ""},
		"no architecture":  {File{Tensors: weights}, ""}, // its reader says so
		"bert":             {File{Metadata: Metadata{{KeyArchitecture, "nomic-bert"}}, Tensors: weights}, "it is an embedding model (nomic-bert)"},
		"encoder":          {File{Metadata: Metadata{{KeyArchitecture, "t5encoder"}}, Tensors: weights}, "it is an embedding model (t5encoder)"},
		"two halves":       {File{Metadata: Metadata{{KeyArchitecture, "t5"}}, Tensors: weights}, "an encoder beside its decoder"},
		"both directions":  {File{Metadata: Metadata{{KeyArchitecture, "llama"}, {"llama.attention.causal", false}}, Tensors: weights}, "it is an embedding model"},
		"pooling":          {File{Metadata: Metadata{{KeyArchitecture, "qwen3"}, {"qwen3.pooling_type", uint32(3)}}, Tensors: weights}, "it is an embedding model (qwen3)"},
		"projector":        {File{Metadata: Metadata{{KeyArchitecture, "clip"}}, Tensors: weights}, "(mmproj)"},
		"newer projector":  {File{Metadata: Metadata{{KeyArchitecture, "x"}, {"general.type", "mmproj"}}, Tensors: weights}, "(mmproj)"},
		"adapter":          {File{Metadata: Metadata{{KeyArchitecture, "llama"}, {"general.type", "adapter"}}, Tensors: weights}, "--lora"},
		"matrix":           {File{Metadata: Metadata{{"general.type", "imatrix"}}, Tensors: weights}, "importance matrix"},
		"profile":          {File{Metadata: Metadata{{KeyArchitecture, "gallop-profile"}}, Tensors: weights}, "name the model that it was made for"},
		"diffusion":        {File{Metadata: Metadata{{KeyArchitecture, "llada"}}, Tensors: weights}, "by diffusion"},
		"sound":            {File{Metadata: Metadata{{KeyArchitecture, "wavtokenizer-dec"}}, Tensors: weights}, "it makes sound"},
		"vocabulary alone": {File{Metadata: Metadata{{KeyArchitecture, "llama"}}}, "it holds a vocabulary and no weights"},
	} {
		why := c.file.NoText()
		if c.want == "" {
			require.Empty(t, why, name)
		} else {
			require.Contains(t, why, c.want, name)
		}
	}
}
