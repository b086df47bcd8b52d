// Package openai reads and writes OpenAI's APIs: chat completions, completions, responses,
// embeddings and models. It is pure conversion, without HTTP.
package openai
