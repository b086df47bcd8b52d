package llama_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/llama"
)

// TestEdgeValues gives the edges of every range to the sampler and, as they are, to
// llama.cpp's own samplers, in a C program that knows nothing of this package: the
// tokens that are left and their probabilities must be the same.
func TestEdgeValues(t *testing.T) {
	r := newSampleRig(t)
	program := filepath.Join(t.TempDir(), "samplers")
	out, err := exec.Command("cc", "testdata/samplers.c", "-std=c11", "-Wall", "-Wextra", "-Werror",
		"-I../third_party/llama.cpp/include", "-o", program, "-ldl").CombinedOutput()
	require.NoError(t, err, "%s", out)
	libraries, err := filepath.Glob(filepath.Join(llama.Dir(), "libllama.*so"))
	require.NoError(t, err)
	require.Len(t, libraries, 1)

	type values struct { // as llama.cpp's flags take them
		topK, lastN                              int
		topP, minP, temp, repeat, freq, presence float32
	}
	plain := values{topK: 40, topP: 0.95, minP: 0.05, temp: 0.8, lastN: 64, repeat: 1}
	penalised := values{topK: 0, topP: 1, temp: 1, lastN: 64, repeat: 1.5, freq: 0.5, presence: 0.25}
	with := func(v values, change func(*values)) values { change(&v); return v }
	recent := []llama.Token{r.ranked[0], r.ranked[1], r.ranked[0], r.ranked[2]}
	left := map[string]int{}
	for name, v := range map[string]values{
		"defaults":            plain,
		"top-p 0":             with(plain, func(v *values) { v.topP = 0 }),
		"top-p 0 alone":       {topP: 0, temp: 1, repeat: 1},
		"top-p 1":             {topP: 1, temp: 1, repeat: 1},
		"top-k 0":             with(plain, func(v *values) { v.topK = 0 }),
		"top-k -1":            with(plain, func(v *values) { v.topK = -1 }),
		"top-k 1":             with(plain, func(v *values) { v.topK = 1 }),
		"min-p 0":             with(plain, func(v *values) { v.minP = 0 }),
		"min-p 1":             with(plain, func(v *values) { v.minP = 1 }),
		"hot":                 with(plain, func(v *values) { v.temp = 100 }),
		"penalties":           penalised,
		"repeat-last-n 0":     with(penalised, func(v *values) { v.lastN = 0 }),
		"repeat-last-n 1":     with(penalised, func(v *values) { v.lastN = 1 }),
		"repeat-last-n -1":    with(penalised, func(v *values) { v.lastN = -1 }),
		"repeat-penalty 1":    with(penalised, func(v *values) { v.repeat, v.freq, v.presence = 1, 0, 0 }),
		"negative penalties":  with(penalised, func(v *values) { v.freq, v.presence = -1, -2 }),
		"penalty under 1":     with(penalised, func(v *values) { v.repeat = 0.5 }),
		"penalties and top-p": with(penalised, func(v *values) { v.topP = 0 }),
	} {
		t.Run(name, func(t *testing.T) {
			s := llama.Sampling{
				TopK: v.topK, MinP: v.minP, Temp: v.temp, RepeatPenalty: v.repeat,
				FrequencyPenalty: v.freq, PresencePenalty: v.presence, Seed: 1,
			}
			s.SetTopP(v.topP)
			s.SetRepeatLastN(v.lastN)
			p := r.sampler(t, s)
			for _, token := range recent {
				p.Accept(token)
			}
			var got llama.Distribution
			require.NoError(t, p.Distribution(r.c, -1, &got))

			lastN := v.lastN
			if lastN < 0 { // llama.cpp's programs put the context's size there
				lastN = r.c.NCtx()
			}
			var in bytes.Buffer
			require.NoError(t, binary.Write(&in, binary.LittleEndian, r.logits))
			require.NoError(t, binary.Write(&in, binary.LittleEndian, recent))
			cmd := exec.Command(program, libraries[0], fmt.Sprint(len(r.logits)), fmt.Sprint(v.topK), fmt.Sprint(v.topP), fmt.Sprint(v.minP),
				fmt.Sprint(v.temp), fmt.Sprint(lastN), fmt.Sprint(v.repeat), fmt.Sprint(v.freq), fmt.Sprint(v.presence))
			cmd.Stdin = &in
			out, err := cmd.Output()
			require.NoError(t, err)
			want, sum := map[llama.Token]float64{}, 0.0
			for line := range strings.Lines(string(out)) {
				var token llama.Token
				var logit float64
				_, err := fmt.Sscan(line, &token, &logit)
				require.NoError(t, err)
				want[token] = math.Exp(logit)
				sum += want[token]
			}
			require.NotEmpty(t, want)
			require.Len(t, got.Tokens, len(want))
			for i, token := range got.Tokens {
				require.Contains(t, want, token)
				// Both are float32 softmaxes of the same logits, ours summed in float32
				// over the 300 tokens: some units in the last place.
				require.InEpsilon(t, want[token]/sum, float64(got.P[i]), 1e-4)
			}
			left[name] = len(want)
		})
	}
	require.Equal(t, 1, left["top-p 0"], "the likeliest alone")
	require.Equal(t, len(r.logits), left["top-p 1"])
}
