package costs

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/gallop-llm/gallop/llama"
	"github.com/gallop-llm/gallop/skip"
)

// Flash is what attention was measured to take with each kernel, in seconds for a token of an
// answer and for one of a prompt, in a few layers behind some hundred cached tokens. Zero = not measured.
type Flash struct {
	On      Attention `json:"on"`  // llama.cpp's flash attention
	Off     Attention `json:"off"` // llama.cpp without it
	Grouped Attention `json:"grouped"`
}

// Attention is what it takes in seconds for a token.
type Attention struct {
	Decode float64 `json:"decode"`
	Prompt float64 `json:"prompt"`
}

func (a Attention) valid() bool {
	return a.Decode > 0 && a.Prompt > 0 && !math.IsInf(a.Decode, 0) && !math.IsInf(a.Prompt, 0)
}

// measured tells whether it was.
func (a Attention) measured() bool { return a != Attention{} }

func (f *Flash) valid() bool {
	return f.On.valid() && (!f.Off.measured() || f.Off.valid()) && (!f.Grouped.measured() || f.Grouped.valid())
}

// surelyFaster is the share of the time of the kernel before it that a kernel must be under:
// beside other programs the fastest of some decodes is off by as much.
const surelyFaster = 0.9

// Choice is what is fastest: llama.cpp's own choice, or another kernel. An answer's tokens and
// a prompt's count alike: most of a long chat's prompts is in the cache already.
func (f Flash) Choice() llama.FlashAttention {
	choice, least := llama.FlashAuto, f.On.Decode+f.On.Prompt
	for _, k := range []struct {
		kernel llama.FlashAttention
		Attention
	}{{llama.FlashGrouped, f.Grouped}, {llama.FlashOff, f.Off}} {
		if sum := k.Decode + k.Prompt; k.measured() && sum < surelyFaster*least {
			choice, least = k.kernel, sum
		}
	}
	return choice
}

const (
	// leastContext is the context in tokens from which on the choice counts.
	leastContext = 1024
	// mostScores bounds the memory for attention's scores of all cells, which flash attention does
	// without: heads times cells times the tokens computed at once, in bytes.
	mostScores = 256 << 20
)

// FlashChoices are the kernels that there are to choose from, beside llama.cpp's flash attention, for a
// context with these options, of so many cells in all: none where the caller has chosen or the context
// is short. The cache's types decide, and scores that would take too much memory.
func FlashChoices(m *llama.Model, o *llama.ContextOptions, cells int) (kernels []llama.FlashAttention) {
	const defaultUBatch, scoreBytes = 512, 4
	if o.Flash != llama.FlashAuto || cells < leastContext || m.NLayer <= probeLayers {
		return nil
	}
	halfs := []llama.CacheType{llama.CacheDefault, llama.CacheF16}
	if llama.GroupedAvailable() && slices.Contains(halfs, o.KType) && slices.Contains(halfs, o.VType) {
		kernels = append(kernels, llama.FlashGrouped)
	}
	floats := append(halfs, llama.CacheF32, llama.CacheBF16)
	if scores := cmp.Or(o.NUBatch, defaultUBatch) * cells * m.NHead * scoreBytes; slices.Contains(floats, o.VType) && scores <= mostScores {
		kernels = append(kernels, llama.FlashOff)
	}
	return kernels
}

const (
	probeLayers = 2   // that are measured
	probeCells  = 768 // cached tokens at the end
	probeChunk  = 64  // tokens of a prompt at once
	probeChunks = 6   // of these that are timed with each
	probeTurns  = 32  // single tokens with each
)

// MeasureFlash finds out by a probe of some tenths of a second. o is as for the context to be
// made, kernels are those that flash attention is compared with. The error is [llama.ErrMask] where the
// layers to be measured cannot be alone in a graph.
func MeasureFlash(m *llama.Model, o llama.ContextOptions, kernels []llama.FlashAttention) (f Flash, err error) {
	var mask skip.Mask
	for l := range m.NLayer {
		mask = mask.With(l, skip.FeedForward)
		if l >= probeLayers {
			mask = mask.With(l, skip.Attention)
		}
	}
	o.NCtx, o.NSeqMax, o.KVUnified, o.NUBatch, o.NBatch = probeCells+256, 1, false, probeChunk, probeChunk
	b, err := llama.NewBatch(probeChunk, nil)
	if err != nil {
		return f, err
	}
	defer b.Close()
	var probes []probe
	for _, o.Flash = range append([]llama.FlashAttention{llama.FlashOn}, kernels...) {
		c, err := m.NewContext(&o)
		if err != nil {
			return f, err
		}
		defer c.Close()
		probes = append(probes, probe{kernel: o.Flash, ctx: c, batch: b, mask: mask})
	}
	decode := func(turns, tokens, keep int) (fastest []float64, err error) {
		fastest = make([]float64, len(probes))
		for range turns { // each once, so that all have the same of what else runs
			for i := range probes {
				took, err := probes[i].decode(tokens)
				if err == nil && keep > 0 {
					probes[i].n = keep
					err = probes[i].ctx.Remove(0, keep, -1)
				}
				if err != nil {
					return fastest, err
				}
				if fastest[i] == 0 || took < fastest[i] {
					fastest[i] = took
				}
			}
		}
		return fastest, nil
	}
	_, err = decode(probeCells/probeChunk, probeChunk, 0)
	prompt, err2 := decode(probeChunks, probeChunk, probeCells)
	single, err3 := decode(probeTurns, 1, probeCells)
	if err := cmp.Or(err, err2, err3); err != nil {
		return f, err
	}
	for i, p := range probes {
		took := Attention{single[i], prompt[i] / probeChunk}
		if !took.valid() {
			return Flash{}, errors.New("attention took no time that could be measured")
		}
		switch p.kernel {
		case llama.FlashOff:
			f.Off = took
		case llama.FlashGrouped:
			f.Grouped = took
		default:
			f.On = took
		}
	}
	return f, nil
}

// probe is a context that is measured.
type probe struct {
	kernel llama.FlashAttention
	ctx    *llama.Context
	batch  *llama.Batch
	mask   skip.Mask
	n      int // tokens so far
}

// decode appends so many tokens, whose logits nobody wants, and gives the seconds that took.
func (p *probe) decode(tokens int) (float64, error) {
	p.batch.Clear()
	for i := range tokens {
		if err := p.batch.Add(llama.Token((p.n+i)%p.ctx.Model.Vocab.Size), p.n+i, false, 0); err != nil {
			return 0, err
		}
	}
	start := time.Now()
	if err := p.ctx.Decode(p.batch, p.mask); err != nil {
		return 0, fmt.Errorf("measure attention: %w", err)
	}
	p.n += tokens
	return time.Since(start).Seconds(), nil
}
