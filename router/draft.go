package router

import (
	"fmt"

	"github.com/gallop-llm/gallop/gguf"
	"github.com/gallop-llm/gallop/skip"
)

// Draft is a mask to draft under for lossless answers: deeper than a candidate
// may be, because the whole model verifies what it says.
type Draft struct {
	Mask       skip.Mask
	Depth      float64 // layers' worth of weight bytes that Mask skips
	Acceptance float64 // share of tokens that it gets right after the whole model's prompt, 0 to 1: at calibration, or predicted for a prompt
}

// PredictDrafts gives the profile's drafts, in their order, with the acceptance
// that is to be expected for a prompt. Features must be open where there are any.
func (p *Profile) PredictDrafts(x Prompt) ([]Draft, error) {
	drafts := append([]Draft(nil), p.Drafts...)
	if p.Drafter == nil || len(drafts) == 0 {
		return drafts, nil
	}
	if p.Features == nil {
		return nil, fmt.Errorf("%w: the profile's features are not open; call Open first", ErrFeatures)
	}
	features := borrow(p.Features.Dim())
	defer scratch.Put(features)
	if err := p.Features.Vector(*features, x); err != nil {
		return nil, err
	}
	wrong := make([]float64, p.Drafter.Out)
	p.Drafter.Predict(wrong, *features)
	for i := range drafts {
		drafts[i].Acceptance = min(max(1-wrong[i+1], 0), 1)
	}
	return drafts, nil
}

// Names of the drafts' lists in a profile's file.
const keyDrafts = "gallop.drafts."

func draftLists(drafts []Draft) []gguf.KV {
	var masks []string
	var depths, acceptance []float64
	for _, d := range drafts {
		masks, depths, acceptance = append(masks, d.Mask.String()), append(depths, d.Depth), append(acceptance, d.Acceptance)
	}
	return []gguf.KV{{Key: keyDrafts + "masks", Value: masks}, {Key: keyDrafts + "depths", Value: depths}, {Key: keyDrafts + "acceptance", Value: acceptance}}
}

// drafts reads what draftLists wrote; nil when nothing was.
func (r *reader) drafts() (drafts []Draft) {
	if _, ok := r.file.Metadata.Lookup(keyDrafts + "masks"); !ok {
		return nil
	}
	masks, depths, acceptance := r.strings(keyDrafts+"masks"), r.floats(keyDrafts+"depths"), r.floats(keyDrafts+"acceptance")
	if len(masks) != len(depths) || len(masks) != len(acceptance) {
		r.fail("its lists of drafts differ in length")
		return nil
	}
	for i, text := range masks {
		drafts = append(drafts, Draft{keep[skip.Mask](r)(skip.Parse(text)), depths[i], acceptance[i]})
	}
	return drafts
}

func (p *Profile) validateDrafts() error {
	for i, d := range p.Drafts {
		if err := d.Mask.Check(p.Model.Layers); err != nil {
			return fmt.Errorf("%w: draft %d: %w", ErrProfile, i, err)
		}
		if d.Mask.IsEmpty() || !(d.Depth > 0) || !finite(d.Depth) || !(d.Acceptance >= 0 && d.Acceptance <= 1) {
			return fmt.Errorf("%w: draft %d skips nothing, or its depth or acceptance is out of range", ErrProfile, i)
		}
	}
	if r := p.Drafter; r != nil && (p.Router == nil || !r.fits(len(p.Drafts)+1) || r.In != p.Router.In) {
		return fmt.Errorf("%w: what predicts acceptance does not fit its %d drafts or its features", ErrProfile, len(p.Drafts))
	}
	return nil
}
