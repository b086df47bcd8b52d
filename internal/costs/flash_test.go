package costs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gallop-llm/gallop/internal/llamatest"
	"github.com/gallop-llm/gallop/internal/randmodel"
	"github.com/gallop-llm/gallop/llama"
)

func TestFlashIsLeftOutWhereSurelySlower(t *testing.T) {
	for _, c := range []struct {
		on, off Attention
		want    llama.FlashAttention
	}{
		{Attention{1, 1}, Attention{1, 1}, llama.FlashAuto},
		{Attention{1, 1}, Attention{0.91, 0.91}, llama.FlashAuto}, // too close
		{Attention{4, 1}, Attention{2, 1.2}, llama.FlashOff},
		{Attention{2, 1}, Attention{1.8, 2}, llama.FlashAuto}, // prompts lose what answers gain
		{Attention{}, Attention{}, llama.FlashAuto},           // not measured
	} {
		require.Equal(t, c.want, Flash{c.on, c.off}.Choice(), "%+v", c)
	}
}

func TestFlashIsLeftAsAsked(t *testing.T) {
	m := &llama.Model{NLayer: 24, NHead: 14, Size: 400 << 20}
	for name, c := range map[string]struct {
		o     llama.ContextOptions
		cells int
		want  bool
	}{
		"open":            {llama.ContextOptions{}, 4096, true},
		"on":              {llama.ContextOptions{Flash: llama.FlashOn}, 4096, false},
		"off":             {llama.ContextOptions{Flash: llama.FlashOff}, 4096, false},
		"quantised":       {llama.ContextOptions{VType: llama.CacheQ8_0}, 4096, false},
		"quantised keys":  {llama.ContextOptions{KType: llama.CacheQ8_0}, 4096, true},
		"short":           {llama.ContextOptions{}, 512, false},
		"too much memory": {llama.ContextOptions{}, 16384, false}, // 512 * 16384 * 14 numbers
		"small pieces":    {llama.ContextOptions{NUBatch: 128}, 16384, true},
	} {
		require.Equal(t, c.want, FlashMatters(m, &c.o, c.cells), name)
	}
	m.Size = 1 << 20
	require.False(t, FlashMatters(m, &llama.ContextOptions{}, 4096), "a tiny model")
}

func TestMeasureFlash(t *testing.T) {
	llamatest.Library(t)
	for _, arch := range randmodel.SmallNames() {
		f, err := MeasureFlash(llamatest.Small(t, arch), llama.ContextOptions{NCtx: 4096, Threads: 1, NSeqMax: 4, KVUnified: true})
		require.NoError(t, err, arch)
		require.True(t, f.On.valid() && f.Off.valid(), "%+v", f)
	}
	path := filepath.Join(t.TempDir(), "costs.json")
	file := New()
	file.Flash = &Flash{Attention{2, 1}, Attention{1, 1}}
	require.NoError(t, file.Write(path))
	require.Equal(t, file, Read(path))
	require.NoError(t, os.WriteFile(path, []byte(`{"version":1,"alone":1,"flash":{"on":{"decode":1}}}`), 0o600))
	require.Nil(t, Read(path))
}
