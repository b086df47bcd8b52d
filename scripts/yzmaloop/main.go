// Command yzmaloop is scripts/cloop.c in Go, through yzma: it takes the same
// arguments, does the same steps, prints the same JSON. It calls yzma as yzma's
// examples do, its greedy sampler included. It is a module of its own, so that
// Gallop does not depend on yzma.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/hybridgroup/yzma/pkg/llama"
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
		fmt.Fprintln(os.Stderr, "yzmaloop:", err)
		os.Exit(1)
	}
}

func run(args []string) (*result, error) {
	if len(args) != 6 {
		return nil, errors.New("usage: yzmaloop LIBLLAMA MODEL PROMPT_TOKENS DECODE_STEPS THREADS SEED")
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

	if err := llama.Load(filepath.Dir(args[0])); err != nil {
		return nil, err
	}
	llama.LogSet(llama.LogSilent())
	llama.Init()
	params := llama.ModelDefaultParams()
	params.NGpuLayers = 0
	model, err := llama.ModelLoadFromFile(args[1], params)
	if err != nil {
		return nil, err
	}
	defer llama.ModelFree(model)
	contextParams := llama.ContextDefaultParams()
	contextParams.NCtx = uint32(nPrompt + nSteps)
	contextParams.NBatch, contextParams.NUbatch = batchSize, batchSize
	contextParams.NThreads, contextParams.NThreadsBatch = int32(threads), int32(threads)
	ctx, err := llama.InitFromModel(model, contextParams)
	if err != nil {
		return nil, err
	}
	defer llama.Free(ctx)
	batch := llama.BatchInit(batchSize, 0, 1)
	defer llama.BatchFree(batch)
	sampler := llama.SamplerChainInit(llama.SamplerChainDefaultParams())
	llama.SamplerChainAdd(sampler, llama.SamplerInitGreedy())
	defer llama.SamplerFree(sampler)
	nVocab := int(llama.VocabNTokens(llama.ModelGetVocab(model)))
	sequence := []llama.SeqId{0}

	start := time.Now()
	for i := range nPrompt {
		if err := batch.Add(llama.Token((37*i+seed)%nVocab), llama.Pos(i), sequence, i == nPrompt-1); err != nil {
			return nil, err
		}
		if batch.NTokens == batchSize || i == nPrompt-1 {
			if err := decode(ctx, batch); err != nil {
				return nil, err
			}
			if err := batch.Clear(); err != nil {
				return nil, err
			}
		}
	}
	token := llama.SamplerSample(sampler, ctx, -1)
	r := &result{FirstTokenAt: time.Now().UnixMicro(), PrefillSeconds: time.Since(start).Seconds(), Tokens: []llama.Token{token}}

	start = time.Now()
	for i := range nSteps {
		if err := batch.Clear(); err != nil {
			return nil, err
		}
		if err := batch.Add(token, llama.Pos(nPrompt+i), sequence, true); err != nil {
			return nil, err
		}
		if err := decode(ctx, batch); err != nil {
			return nil, err
		}
		token = llama.SamplerSample(sampler, ctx, -1)
		r.Tokens = append(r.Tokens, token)
	}
	r.DecodeSeconds = time.Since(start).Seconds()
	return r, nil
}

// decode makes llama_decode's code an error.
func decode(ctx llama.Context, batch llama.Batch) error {
	code, err := llama.Decode(ctx, batch)
	if err == nil && code != 0 {
		err = fmt.Errorf("llama_decode gave %d", code)
	}
	return err
}
