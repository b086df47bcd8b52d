// Command goloop is scripts/cloop.c in Go, through package llama with an empty
// mask: it takes the same arguments, does the same steps, prints the same JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// batchSize is the number of tokens in one decode, and computed at once.
const batchSize = 512

// result is what all loops print.
type result struct {
	FirstTokenAt   int64         `json:"first_token_at"` // when the prompt's next token was chosen, in µs since 1970
	PrefillSeconds float64       `json:"prefill_seconds"`
	DecodeSeconds  float64       `json:"decode_seconds"`
	Tokens         []llama.Token `json:"tokens"` // the prompt's next token, then one for each step
}

func main() {
	r, err := run(os.Args[1:])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(r)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "goloop:", err)
		os.Exit(1)
	}
}

func run(args []string) (*result, error) {
	if len(args) != 6 {
		return nil, errors.New("usage: goloop LIBLLAMA MODEL PROMPT_TOKENS DECODE_STEPS THREADS SEED")
	}
	var numbers [4]int // prompt tokens, steps, threads, seed
	for i := range numbers {
		n, err := strconv.Atoi(args[2+i])
		if err != nil {
			return nil, err
		}
		numbers[i] = n
	}
	nPrompt, nSteps, threads, seed := numbers[0], numbers[1], numbers[2], numbers[3]

	if err := llama.Load([]string{filepath.Dir(args[0])}); err != nil {
		return nil, err
	}
	model, err := llama.LoadModel(context.Background(), args[1], &llama.ModelOptions{GPULayers: llama.CPUOnly})
	if err != nil {
		return nil, err
	}
	defer model.Close()
	ctx, err := model.NewContext(&llama.ContextOptions{NCtx: nPrompt + nSteps, NBatch: batchSize, NUBatch: batchSize, Threads: threads})
	if err != nil {
		return nil, err
	}
	defer ctx.Close()
	batch, err := llama.NewBatch(batchSize, nil)
	if err != nil {
		return nil, err
	}
	defer batch.Close()
	sampler, err := model.NewSampler(llama.Sampling{}) // greedy
	if err != nil {
		return nil, err
	}
	defer sampler.Close()

	start := time.Now()
	for i := range nPrompt {
		if err := batch.Add(llama.Token((37*i+seed)%model.Vocab.Size), i, i == nPrompt-1, 0); err != nil {
			return nil, err
		}
		if batch.Len() == batchSize || i == nPrompt-1 {
			if err := ctx.Decode(batch, skip.Mask{}); err != nil {
				return nil, err
			}
			batch.Clear()
		}
	}
	token, err := sampler.Sample(ctx, -1)
	if err != nil {
		return nil, err
	}
	r := &result{FirstTokenAt: time.Now().UnixMicro(), PrefillSeconds: time.Since(start).Seconds(), Tokens: []llama.Token{token}}

	start = time.Now()
	for i := range nSteps {
		batch.Clear()
		if err := batch.Add(token, nPrompt+i, true, 0); err != nil {
			return nil, err
		}
		if err := ctx.Decode(batch, skip.Mask{}); err != nil {
			return nil, err
		}
		if token, err = sampler.Sample(ctx, -1); err != nil {
			return nil, err
		}
		r.Tokens = append(r.Tokens, token)
	}
	r.DecodeSeconds = time.Since(start).Seconds()
	return r, nil
}
