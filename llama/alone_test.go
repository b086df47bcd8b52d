package llama_test

import (
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/gguf"
	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Tokens of a batch that is decoded Alone give the logits of one token at a time,
// bit for bit, on both sides of the lengths where the CPU's flash attention
// changes its ways; else they do not.
func TestAloneIsOneAtATime(t *testing.T) {
	llamatest.Library(t)
	for _, name := range []string{"llama", "qwen3", "gemma3"} {
		for _, typ := range []gguf.Type{gguf.Q4_0, gguf.Q8_0, gguf.Q4_K} {
			t.Run(fmt.Sprint(name, " ", typ), func(t *testing.T) {
				spec := randmodel.Small(name)
				spec.Type, spec.Embd, spec.FF = typ, 256, 256 // weights are in blocks of 256
				spec.Heads, spec.HeadDim = 4, 64
				m := llamatest.Open(t, llamatest.Write(t, spec))
				c := llamatest.Context(t, m, &llama.ContextOptions{NCtx: 1024, Threads: 2, Flash: llama.FlashOn})
				const most = 17
				parted := false
				for _, cached := range []int{3, 250, 508} {
					c.Clear()
					tokens := make([]llama.Token, cached+most)
					for i := range tokens {
						tokens[i] = llama.Token((7*i*i + i) % m.Vocab.Size)
					}
					require.NoError(t, c.Decode(llamatest.Batch(t, tokens[:cached], 0), skip.Mask{}))
					want := make([][]float32, most)
					for i := range want {
						require.NoError(t, c.Decode(llamatest.Batch(t, tokens[cached+i:][:1], cached+i), skip.Mask{}))
						logits, err := c.Logits(0)
						require.NoError(t, err)
						want[i] = append(want[i], logits...)
					}
					for _, n := range []int{2, 5, most} {
						for _, alone := range []llama.Alone{llama.AttendAlone, llama.Together, llama.MultiplyAlone, llama.AttendAlone} { // the same shape each time
							require.NoError(t, c.Remove(0, cached, -1))
							b := llamatest.Batch(t, tokens[cached:][:n], cached)
							b.Alone = alone
							require.NoError(t, c.Decode(b, skip.Mask{}))
							worst := 0.0
							for i := range n {
								logits, err := c.Logits(i)
								require.NoError(t, err)
								for k := range logits {
									worst = max(worst, math.Abs(float64(logits[k]-want[i][k])))
								}
							}
							if alone == llama.MultiplyAlone || alone == llama.AttendAlone && typ != gguf.Q4_K {
								require.Zero(t, worst, "%d tokens after %d", n, cached)
							}
							parted = parted || worst > 0
						}
					}
				}
				require.True(t, parted, "batches round like single tokens by themselves now: Alone can go")
			})
		}
	}
}
