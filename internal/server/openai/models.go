package openai

import (
	"time"

	"github.com/gallop-llm/gallop"
)

// Model is a model that can be asked for by name.
type Model struct {
	Name    string
	Created time.Time
	Info    gallop.Info // zero values are not known: the model is not loaded
	Loaded  bool
}

// model has OpenAI's fields, Anthropic's and llama-server's.
type model struct {
	ID          string `json:"id"`
	Object      string `json:"object"`
	Created     int64  `json:"created"`
	OwnedBy     string `json:"owned_by"`
	Type        string `json:"type"`
	DisplayName string `json:"display_name"`
	CreatedAt   string `json:"created_at"`
	Meta        meta   `json:"meta"`
}

type meta struct {
	Loaded       bool   `json:"loaded"`
	Context      int    `json:"n_ctx,omitempty"`
	TrainContext int    `json:"n_ctx_train,omitempty"`
	Vocab        int    `json:"n_vocab,omitempty"`
	Embd         int    `json:"n_embd,omitempty"`
	Layers       int    `json:"n_layer,omitempty"`
	Params       uint64 `json:"n_params,omitempty"`
	Size         uint64 `json:"size,omitempty"`
	Architecture string `json:"architecture,omitempty"`
	Description  string `json:"description,omitempty"`
	Profile      bool   `json:"profile"` // layers can be chosen by prompt
}

// WriteModel writes one model.
func WriteModel(m Model) any {
	i := m.Info
	return model{
		ID: m.Name, Object: "model", Created: m.Created.Unix(), OwnedBy: "gallop",
		Type: "model", DisplayName: m.Name, CreatedAt: m.Created.UTC().Format(time.RFC3339),
		Meta: meta{m.Loaded, i.Context, i.TrainContext, i.Vocab, i.Embd, i.Layers, i.Params, i.Size, i.Architecture, i.Description, i.Profile != ""},
	}
}

// WriteModels writes a list of models.
func WriteModels(models []Model) any {
	list := struct {
		Object  string `json:"object"`
		Data    []any  `json:"data"`
		HasMore bool   `json:"has_more"`
		First   string `json:"first_id"`
		Last    string `json:"last_id"`
	}{Object: "list", Data: make([]any, len(models))}
	for i, m := range models {
		list.Data[i] = WriteModel(m)
	}
	if len(models) > 0 {
		list.First, list.Last = models[0].Name, models[len(models)-1].Name
	}
	return list
}
