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

// Flash is what attention was measured to take with and without flash attention, in seconds for
// a token of an answer and for one of a prompt, in a few layers behind some hundred cached tokens.
// Zero = not measured.
type Flash struct {
	On  Attention `json:"on"`
	Off Attention `json:"off"`
}

// Attention is what it takes in seconds for a token.
type Attention struct {
	Decode float64 `json:"decode"`
	Prompt float64 `json:"prompt"`
}

func (a Attention) valid() bool {
	return a.Decode > 0 && a.Prompt > 0 && !math.IsInf(a.Decode, 0) && !math.IsInf(a.Prompt, 0)
}

// surelyFaster is the share of the time with flash attention that without it must be under:
// beside other programs the fastest of some decodes is off by as much.
const surelyFaster = 0.9

// Choice is what is faster: llama.cpp's own choice, or [llama.FlashOff]. An answer's tokens and
// a prompt's count alike: most of a long chat's prompts is in the cache already.
func (f Flash) Choice() llama.FlashAttention {
	if f.On.valid() && f.Off.valid() && f.Off.Decode+f.Off.Prompt < surelyFaster*(f.On.Decode+f.On.Prompt) {
		return llama.FlashOff
	}
	return llama.FlashAuto
}

const (
	// leastSize is the size of a model in bytes below which attention takes no time that counts.
	leastSize = 16 << 20
	// leastContext is the context in tokens from which on the choice counts.
	leastContext = 1024
	// mostScores bounds the memory for attention's scores of all cells, which flash attention does
	// without: heads times cells times the tokens computed at once, in bytes.
	mostScores = 256 << 20
)

// FlashMatters tells whether there is anything to choose for a context with these options, of so
// many cells in all: the caller has left it open, the cache's types allow both, the context is
// long enough, and not so long that the scores would take too much memory.
func FlashMatters(m *llama.Model, o *llama.ContextOptions, cells int) bool {
	const defaultUBatch, scoreBytes = 512, 4
	floats := []llama.CacheType{llama.CacheDefault, llama.CacheF32, llama.CacheF16, llama.CacheBF16}
	scores := cmp.Or(o.NUBatch, defaultUBatch) * cells * m.NHead * scoreBytes
	return m.Size >= leastSize && o.Flash == llama.FlashAuto && slices.Contains(floats, o.VType) && cells >= leastContext && scores <= mostScores &&
		m.NLayer > probeLayers
}

const (
	probeLayers = 2   // that are measured
	probeCells  = 768 // cached tokens at the end
	probeChunk  = 64  // tokens of a prompt at once
	probeChunks = 6   // of these that are timed with each
	probeTurns  = 32  // single tokens with each
)

// MeasureFlash finds out by a probe of some tenths of a second. o is as for the context to be
// made. The error is [llama.ErrMask] where the layers to be measured cannot be alone in a graph.
func MeasureFlash(m *llama.Model, o llama.ContextOptions) (f Flash, err error) {
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
	var probes [2]probe
	for i, flash := range []llama.FlashAttention{llama.FlashOn, llama.FlashOff} {
		o.Flash = flash
		c, err := m.NewContext(&o)
		if err != nil {
			return f, err
		}
		defer c.Close()
		probes[i] = probe{ctx: c, batch: b, mask: mask}
	}
	decode := func(turns, tokens, keep int) (fastest [2]float64, err error) {
		for range turns { // each once, so that both have the same of what else runs
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
	f.On, f.Off = Attention{single[0], prompt[0] / probeChunk}, Attention{single[1], prompt[1] / probeChunk}
	if !f.On.valid() || !f.Off.valid() {
		return Flash{}, errors.New("attention took no time that could be measured")
	}
	return f, nil
}

// probe is a context that is measured.
type probe struct {
	ctx   *llama.Context
	batch *llama.Batch
	mask  skip.Mask
	n     int // tokens so far
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
