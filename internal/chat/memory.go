package chat

import (
	"fmt"

	"github.com/gallop-llm/gallop/skip"
)

// checkRelease refuses to release what every other token needs, and what cannot
// be released.
func (s *Session) checkRelease() error {
	switch {
	case !s.opts.ReleaseSkipped:
		return nil
	case s.opts.Lossless != nil:
		return fmt.Errorf("%w: the whole model verifies each draft and would read them again each time; leave out one of the two", ErrRelease)
	case s.escalate() > 0 || s.opts.Escalate > 0:
		return fmt.Errorf("%w: the cascade decides single tokens by the whole model, which would read them again each time; leave out one of the two", ErrRelease)
	case !s.model.Releasable():
		return fmt.Errorf("%w: they are not in a mapping of the file, but were read, are locked or are on a GPU", ErrRelease)
	}
	return nil
}

// releaseWeights gives back, before a decode under mask, the weights that it can
// do without. A decode under another mask brings what it needs back by itself.
func (s *Session) releaseWeights(mask skip.Mask) error {
	if mask == s.released {
		return nil
	}
	s.released = mask
	spare, err := s.spare(mask)
	if err != nil || spare.IsEmpty() || !s.model.Releasable() {
		return err
	}
	return s.model.ReleaseWeights(spare)
}

// spare is what of mask will not be needed soon.
func (s *Session) spare(mask skip.Mask) (skip.Mask, error) {
	switch {
	case s.opts.ReleaseSkipped:
		return mask, nil
	case s.drafter != nil || s.opts.Prefill == skip.FullPrefill || s.escalate() > 0: // the whole model will be needed
		return skip.Mask{}, nil
	case s.fixed || s.opts.Routing.When == Never:
		return mask, nil
	}
	return s.opts.Routing.Profile.NeverKept(s.opts.Routing.Policy)
}
