// Package clients asks a server with the programs' own clients, unchanged. The server that it
// asks is named by GALLOP_URL and GALLOP_KEY, and serves the demo model.
package clients

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/anthropics/anthropic-sdk-go"
	anthropicoption "github.com/anthropics/anthropic-sdk-go/option"
	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
	"github.com/openai/openai-go/v3/shared"
	"github.com/stretchr/testify/require"
)

const model, ask = "demo", "What is 12 plus 7?"

// choose is the schema of an object with one letter.
var choose = map[string]any{
	"type": "object", "properties": map[string]any{"letter": map[string]any{"type": "string", "enum": []string{"x", "y"}}},
	"required": []string{"letter"}, "additionalProperties": false,
}

func url(t *testing.T) string {
	t.Helper()
	u := os.Getenv("GALLOP_URL")
	if u == "" {
		t.Skip("GALLOP_URL names no server")
	}
	return u
}

func openAI(t *testing.T, key string) openai.Client {
	return openai.NewClient(option.WithBaseURL(url(t)+"/v1"), option.WithAPIKey(key), option.WithMaxRetries(0))
}

func key() string { return os.Getenv("GALLOP_KEY") }

func letter(t *testing.T, document string) {
	t.Helper()
	var v struct{ Letter string }
	require.NoError(t, json.Unmarshal([]byte(document), &v), document)
	require.Contains(t, []string{"x", "y"}, v.Letter)
}

func chat() openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model: model, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(ask)}, Temperature: openai.Float(0), MaxCompletionTokens: openai.Int(30),
	}
}

func TestOpenAIChat(t *testing.T) {
	c := openAI(t, key())
	whole, err := c.Chat.Completions.New(t.Context(), chat())
	require.NoError(t, err)
	require.Contains(t, whole.Choices[0].Message.Content, "19")
	require.Equal(t, "stop", whole.Choices[0].FinishReason)
	require.Equal(t, whole.Usage.TotalTokens, whole.Usage.PromptTokens+whole.Usage.CompletionTokens)

	p := chat()
	p.StreamOptions.IncludeUsage = openai.Bool(true)
	stream := c.Chat.Completions.NewStreaming(t.Context(), p)
	var all openai.ChatCompletionAccumulator
	for stream.Next() {
		require.True(t, all.AddChunk(stream.Current()))
	}
	require.NoError(t, stream.Err())
	require.Equal(t, whole.Choices[0].Message.Content, all.Choices[0].Message.Content)
	require.Equal(t, whole.Usage.CompletionTokens, all.Usage.CompletionTokens)
	require.Positive(t, all.Usage.PromptTokensDetails.CachedTokens, "the same prompt again")

	p = chat()
	p.N, p.Logprobs, p.TopLogprobs = openai.Int(2), openai.Bool(true), openai.Int(3)
	two, err := c.Chat.Completions.New(t.Context(), p)
	require.NoError(t, err)
	require.Len(t, two.Choices, 2)
	require.Len(t, two.Choices[1].Logprobs.Content[0].TopLogprobs, 3)
}

func TestOpenAITools(t *testing.T) {
	c := openAI(t, key())
	p := chat()
	p.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{Name: "choose", Parameters: choose})}
	p.ToolChoice = openai.ChatCompletionToolChoiceOptionUnionParam{OfAuto: openai.String("required")}
	p.MaxCompletionTokens = openai.Int(100)
	for range 2 {
		r, err := c.Chat.Completions.New(t.Context(), p)
		require.NoError(t, err)
		require.Equal(t, "tool_calls", r.Choices[0].FinishReason)
		call := r.Choices[0].Message.ToolCalls[0]
		require.Equal(t, "choose", call.Function.Name)
		letter(t, call.Function.Arguments)
		p.Messages = append(p.Messages, r.Choices[0].Message.ToParam())
		for _, call := range r.Choices[0].Message.ToolCalls {
			p.Messages = append(p.Messages, openai.ToolMessage("done", call.ID))
		}
	}
	stream := c.Chat.Completions.NewStreaming(t.Context(), p)
	var all openai.ChatCompletionAccumulator
	for stream.Next() {
		all.AddChunk(stream.Current())
	}
	require.NoError(t, stream.Err())
	letter(t, all.Choices[0].Message.ToolCalls[0].Function.Arguments)
	p.ToolChoice = openai.ChatCompletionToolChoiceOptionUnionParam{OfAuto: openai.String("none")}
	r, err := c.Chat.Completions.New(t.Context(), p)
	require.NoError(t, err)
	require.Empty(t, r.Choices[0].Message.ToolCalls)
	require.NotEmpty(t, r.Choices[0].Message.Content)
}

func TestOpenAISchema(t *testing.T) {
	c := openAI(t, key())
	p := chat()
	p.ResponseFormat = openai.ChatCompletionNewParamsResponseFormatUnion{OfJSONSchema: &shared.ResponseFormatJSONSchemaParam{
		JSONSchema: shared.ResponseFormatJSONSchemaJSONSchemaParam{Name: "choice", Schema: choose, Strict: openai.Bool(true)}}}
	r, err := c.Chat.Completions.New(t.Context(), p)
	require.NoError(t, err)
	letter(t, r.Choices[0].Message.Content)
}

func TestOpenAIOthers(t *testing.T) {
	c := openAI(t, key())
	e, err := c.Embeddings.New(t.Context(), openai.EmbeddingNewParams{Model: model, Input: openai.EmbeddingNewParamsInputUnion{OfArrayOfStrings: []string{"a", "b"}}})
	require.NoError(t, err)
	require.Len(t, e.Data, 2)
	require.NotEqual(t, e.Data[0].Embedding, e.Data[1].Embedding)

	list, err := c.Models.List(t.Context())
	require.NoError(t, err)
	require.Equal(t, model, list.Data[0].ID)
	one, err := c.Models.Get(t.Context(), model)
	require.NoError(t, err)
	require.Equal(t, model, one.ID)

	text, err := c.Completions.New(t.Context(), openai.CompletionNewParams{Model: model, Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String("one two")},
		MaxTokens: openai.Int(1), Echo: openai.Bool(true), Logprobs: openai.Int(2)})
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(text.Choices[0].Text, "one two"))
	require.NotEmpty(t, text.Choices[0].Logprobs.TokenLogprobs)
}

func TestOpenAIResponses(t *testing.T) {
	c := openAI(t, key())
	p := responses.ResponseNewParams{Model: model, Input: responses.ResponseNewParamsInputUnion{OfString: openai.String(ask)}, Temperature: openai.Float(0), MaxOutputTokens: openai.Int(30)}
	whole, err := c.Responses.New(t.Context(), p)
	require.NoError(t, err)
	require.Contains(t, whole.OutputText(), "19")
	require.Equal(t, responses.ResponseStatusCompleted, whole.Status)
	stream := c.Responses.NewStreaming(t.Context(), p)
	text, done := "", ""
	for stream.Next() {
		switch e := stream.Current().AsAny().(type) {
		case responses.ResponseTextDeltaEvent:
			text += e.Delta
		case responses.ResponseCompletedEvent:
			done = e.Response.OutputText()
		}
	}
	require.NoError(t, stream.Err())
	require.Equal(t, whole.OutputText(), text)
	require.Equal(t, text, done)

	p.Tools = []responses.ToolUnionParam{{OfFunction: &responses.FunctionToolParam{Name: "choose", Parameters: choose, Strict: openai.Bool(true)}}}
	p.ToolChoice = responses.ResponseNewParamsToolChoiceUnion{OfToolChoiceMode: openai.Opt(responses.ToolChoiceOptionsRequired)}
	p.MaxOutputTokens = openai.Int(100)
	called, err := c.Responses.New(t.Context(), p)
	require.NoError(t, err)
	last := called.Output[len(called.Output)-1]
	require.Equal(t, "function_call", last.Type)
	letter(t, last.AsFunctionCall().Arguments)
}

func TestOpenAIErrors(t *testing.T) {
	refused := func(err error) *openai.Error {
		var e *openai.Error
		require.ErrorAs(t, err, &e)
		return e
	}
	_, err := func() (*openai.ChatCompletion, error) {
		c := openAI(t, "wrong")
		return c.Chat.Completions.New(t.Context(), chat())
	}()
	require.Equal(t, 401, refused(err).StatusCode)
	c := openAI(t, key())
	p := chat()
	p.Store = openai.Bool(true)
	_, err = c.Chat.Completions.New(t.Context(), p)
	require.Equal(t, 400, refused(err).StatusCode)
	require.Equal(t, "store", refused(err).Param)
	p = chat()
	p.Messages[0] = openai.UserMessage(strings.Repeat("word ", 10_000))
	_, err = c.Chat.Completions.New(t.Context(), p)
	require.Equal(t, "context_length_exceeded", refused(err).Code)
}

// long is the schema of an answer that takes a while: hundreds of tokens.
var long = map[string]any{"type": "array", "items": map[string]any{"enum": []string{"x", "y"}}, "minItems": 100}

// cancelled is how many requests of clients that were gone the server has ended.
func cancelled(t *testing.T) (n float64) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url(t)+"/metrics", nil)
	require.NoError(t, err)
	r.Header.Set("Authorization", "Bearer "+key())
	res, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), `gallop_requests_cancelled_total{model="demo"} `); ok {
			n, err = strconv.ParseFloat(value, 64)
			require.NoError(t, err)
			return n
		}
	}
	require.Fail(t, "the metric is missing")
	return 0
}

// requireCancelled waits until the server has ended one request more than before.
func requireCancelled(t *testing.T, before float64) {
	t.Helper()
	require.Eventually(t, func() bool { return cancelled(t) > before }, time.Minute, 20*time.Millisecond, "the server goes on for nobody")
}

func TestOpenAICancel(t *testing.T) {
	c, before := openAI(t, key()), cancelled(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := chat()
	p.MaxCompletionTokens = openai.Int(400)
	p.ResponseFormat = openai.ChatCompletionNewParamsResponseFormatUnion{OfJSONSchema: &shared.ResponseFormatJSONSchemaParam{
		JSONSchema: shared.ResponseFormatJSONSchemaJSONSchemaParam{Name: "long", Schema: long}}}
	stream := c.Chat.Completions.NewStreaming(ctx, p)
	require.True(t, stream.Next())
	cancel()
	for stream.Next() {
	}
	require.ErrorIs(t, stream.Err(), context.Canceled)
	requireCancelled(t, before)
}

func claude(t *testing.T, key string) anthropic.Client {
	return anthropic.NewClient(anthropicoption.WithBaseURL(url(t)), anthropicoption.WithAPIKey(key), anthropicoption.WithMaxRetries(0))
}

func message() anthropic.MessageNewParams {
	return anthropic.MessageNewParams{Model: model, MaxTokens: 30, Temperature: anthropic.Float(0), Messages: []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock(ask))}}
}

func TestAnthropicMessages(t *testing.T) {
	c := claude(t, key())
	whole, err := c.Messages.New(t.Context(), message())
	require.NoError(t, err)
	require.Contains(t, whole.Content[0].Text, "19")
	require.Equal(t, anthropic.StopReasonEndTurn, whole.StopReason)
	require.Positive(t, whole.Usage.OutputTokens)
	stream := c.Messages.NewStreaming(t.Context(), message())
	var all anthropic.Message
	for stream.Next() {
		require.NoError(t, all.Accumulate(stream.Current()))
	}
	require.NoError(t, stream.Err())
	require.Equal(t, whole.Content[0].Text, all.Content[0].Text)
	require.Equal(t, whole.Usage.OutputTokens, all.Usage.OutputTokens)
	require.Equal(t, anthropic.StopReasonEndTurn, all.StopReason)
	require.Positive(t, all.Usage.CacheReadInputTokens, "the same prompt again")
	n, err := c.Messages.CountTokens(t.Context(), anthropic.MessageCountTokensParams{Model: model, Messages: message().Messages})
	require.NoError(t, err)
	require.Equal(t, whole.Usage.InputTokens+whole.Usage.CacheReadInputTokens, n.InputTokens)
	list, err := c.Models.List(t.Context(), anthropic.ModelListParams{})
	require.NoError(t, err)
	require.Equal(t, model, list.Data[0].ID)
}

func TestAnthropicTools(t *testing.T) {
	c := claude(t, key())
	p := message()
	p.MaxTokens = 100
	p.Tools = []anthropic.ToolUnionParam{{OfTool: &anthropic.ToolParam{Name: "choose",
		InputSchema: anthropic.ToolInputSchemaParam{Properties: choose["properties"], Required: []string{"letter"}}}}}
	p.ToolChoice = anthropic.ToolChoiceUnionParam{OfAny: &anthropic.ToolChoiceAnyParam{}}
	for i := range 2 {
		var m *anthropic.Message
		if i == 0 {
			var err error
			m, err = c.Messages.New(t.Context(), p)
			require.NoError(t, err)
		} else {
			m = &anthropic.Message{}
			stream := c.Messages.NewStreaming(t.Context(), p)
			for stream.Next() {
				require.NoError(t, m.Accumulate(stream.Current()))
			}
			require.NoError(t, stream.Err())
		}
		require.Equal(t, anthropic.StopReasonToolUse, m.StopReason)
		p.Messages = append(p.Messages, m.ToParam())
		var results []anthropic.ContentBlockParamUnion
		for _, b := range m.Content {
			if call, ok := b.AsAny().(anthropic.ToolUseBlock); ok {
				letter(t, string(call.Input))
				results = append(results, anthropic.NewToolResultBlock(call.ID, "done", false))
			}
		}
		require.NotEmpty(t, results)
		p.Messages = append(p.Messages, anthropic.NewUserMessage(results...))
	}
}

func TestAnthropicSchema(t *testing.T) {
	c := claude(t, key())
	p := message()
	p.OutputConfig.Format.Schema = choose
	m, err := c.Messages.New(t.Context(), p)
	require.NoError(t, err)
	letter(t, m.Content[0].Text)
}

func TestAnthropicCancel(t *testing.T) {
	c, before := claude(t, key()), cancelled(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := message()
	p.MaxTokens = 400
	p.OutputConfig.Format.Schema = long
	stream := c.Messages.NewStreaming(ctx, p)
	require.True(t, stream.Next())
	cancel()
	for stream.Next() {
	}
	require.ErrorIs(t, stream.Err(), context.Canceled)
	requireCancelled(t, before)
}

func TestAnthropicErrors(t *testing.T) {
	c := claude(t, "wrong")
	_, err := c.Messages.New(t.Context(), message())
	var e *anthropic.Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, 401, e.StatusCode)
	c = claude(t, key())
	p := message()
	p.Messages[0] = anthropic.NewUserMessage(anthropic.NewTextBlock(strings.Repeat("word ", 10_000)))
	_, err = c.Messages.New(t.Context(), p)
	require.ErrorAs(t, err, &e)
	require.Equal(t, 400, e.StatusCode)
	require.Contains(t, err.Error(), "prompt is too long")
}
