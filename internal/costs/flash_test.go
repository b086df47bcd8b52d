package costs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
)

func TestKernelHasToBeSurelyFaster(t *testing.T) {
	for _, c := range []struct {
		on, off, grouped Attention
		want             llama.FlashAttention
	}{
		{Attention{1, 1}, Attention{1, 1}, Attention{1, 1}, llama.FlashAuto},
		{Attention{1, 1}, Attention{0.91, 0.91}, Attention{0.91, 0.95}, llama.FlashAuto}, // too close
		{Attention{4, 1}, Attention{2, 1.2}, Attention{}, llama.FlashOff},
		{Attention{4, 1}, Attention{2, 1.2}, Attention{1.5, 1}, llama.FlashGrouped},
		{Attention{4, 1}, Attention{2, 1.2}, Attention{3, 1}, llama.FlashOff},
		{Attention{2, 1}, Attention{1.8, 2}, Attention{}, llama.FlashAuto}, // prompts lose what answers gain
		{Attention{}, Attention{}, Attention{}, llama.FlashAuto},           // not measured
	} {
		require.Equal(t, c.want, Flash{c.on, c.off, c.grouped}.Choice(), "%+v", c)
	}
}

func TestKernelsToChooseFrom(t *testing.T) {
	m := &llama.Model{NLayer: 24, NHead: 14, Size: 400 << 20}
	const grouped, off = llama.FlashGrouped, llama.FlashOff
	for name, c := range map[string]struct {
		o     llama.ContextOptions
		cells int
		want  []llama.FlashAttention
	}{
		"open":            {llama.ContextOptions{}, 4096, []llama.FlashAttention{grouped, off}},
		"on":              {llama.ContextOptions{Flash: llama.FlashOn}, 4096, nil},
		"off":             {llama.ContextOptions{Flash: llama.FlashOff}, 4096, nil},
		"quantised":       {llama.ContextOptions{VType: llama.CacheQ8_0}, 4096, nil},
		"quantised keys":  {llama.ContextOptions{KType: llama.CacheQ8_0}, 4096, []llama.FlashAttention{off}},
		"short":           {llama.ContextOptions{}, 512, nil},
		"too much memory": {llama.ContextOptions{}, 16384, []llama.FlashAttention{grouped}}, // 512 * 16384 * 14 numbers
		"small pieces":    {llama.ContextOptions{NUBatch: 128}, 16384, []llama.FlashAttention{grouped, off}},
	} {
		if !llama.GroupedAvailable() {
			c.want = slices.DeleteFunc(c.want, func(k llama.FlashAttention) bool { return k == grouped })
		}
		require.ElementsMatch(t, c.want, FlashChoices(m, &c.o, c.cells), name)
	}
}

func TestMeasureFlash(t *testing.T) {
	llamatest.Library(t)
	for _, arch := range randmodel.SmallNames() {
		f, err := MeasureFlash(llamatest.Small(t, arch), llama.ContextOptions{NCtx: 4096, Threads: 1, NSeqMax: 4, KVUnified: true},
			[]llama.FlashAttention{llama.FlashOff, llama.FlashGrouped})
		require.NoError(t, err, arch)
		require.True(t, f.On.valid() && f.Off.valid() && f.Grouped.valid(), "%+v", f)
	}
	path := filepath.Join(t.TempDir(), "costs.json")
	file := New()
	file.Flash = &Flash{On: Attention{2, 1}, Off: Attention{1, 1}}
	require.NoError(t, file.Write(path))
	require.Equal(t, file, Read(path))
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `{"version":%d,"alone":1,"flash":{"on":{"decode":1}}}`, fileVersion), 0o600))
	require.Nil(t, Read(path))
}
