package gallop

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/gallop-llm/gallop/skip"
)

// Skip says what of the model may be left out for an answer. The zero value is the
// engine's default ([Options].Skip); an engine's own default is [Routed].
//
// A Skip is one comparable value with one text form, see [ParseSkip], which flags,
// configuration files and JSON fields share.
type Skip struct {
	kind     skipKind
	mask     skip.Mask    // of skipLayers
	amount   float64      // layers of skipDepth, share of skipQuality
	prefill  skip.Prefill // if prefilled
	hasFill  bool
	escalate float64 // if escalates
	hasEsc   bool
	perChat  bool
}

type skipKind uint8

const (
	skipDefault skipKind = iota
	skipRouted
	skipNothing
	skipLayers
	skipDepth
	skipQuality
)

// Routed leaves out what the profile's calibration recommends for the prompt; without a
// profile, nothing.
func Routed() Skip { return Skip{kind: skipRouted} }

// Nothing runs the whole model.
func Nothing() Skip { return Skip{kind: skipNothing} }

// Layers leaves out exactly these layers and halves of layers, for every prompt.
func Layers(m skip.Mask) Skip {
	if m.IsEmpty() {
		return Nothing()
	}
	return Skip{kind: skipLayers, mask: m}
}

// Depth leaves out this many layers' worth of weights, above 0, whatever the prompt is;
// which layers these are is chosen by prompt. It needs a profile.
func Depth(layers float64) Skip { return Skip{kind: skipDepth, amount: layers} }

// Quality leaves out as much as keeps this share, above 0 to 1, of the probability that
// the whole model gives to each token of the answer. It needs a profile.
func Quality(share float64) Skip { return Skip{kind: skipQuality, amount: share} }

// Prefill is s with prompts decoded in this way instead of the profile's.
func (s Skip) Prefill(p skip.Prefill) Skip {
	s.prefill, s.hasFill = p, true
	return s
}

// Escalate is s with tokens decided by the whole model that are less probable than this
// under the mask, 0 to 1; 0 = none. Without it, the threshold is the calibrated one. It
// needs a full prefill and masks that leave out feed-forward halves only.
func (s Skip) Escalate(probability float64) Skip {
	s.escalate, s.hasEsc = probability, true
	return s
}

// PerChat is s with the layers of a conversation chosen by its first question and kept,
// instead of chosen anew at each turn.
func (s Skip) PerChat() Skip {
	s.perChat = true
	return s
}

// Mask is what [Layers] was given; empty for what is chosen otherwise.
func (s Skip) Mask() skip.Mask { return s.mask }

// or is s with what it leaves open as other says.
func (s Skip) or(other Skip) Skip {
	if s.kind != skipDefault {
		return s
	}
	if s.hasFill {
		other = other.Prefill(s.prefill)
	}
	if s.hasEsc {
		other = other.Escalate(s.escalate)
	}
	other.perChat = other.perChat || s.perChat
	return other
}

// check refuses amounts out of range.
func (s Skip) check() error {
	switch {
	case s.kind == skipDepth && !(s.amount > 0 && s.amount <= skip.MaxLayers):
		return fmt.Errorf("%w: a depth of %g layers, want above 0 to %d", ErrSkip, s.amount, skip.MaxLayers)
	case s.kind == skipQuality && !(s.amount > 0 && s.amount <= 1):
		return fmt.Errorf("%w: a quality of %g, want above 0 to 1", ErrSkip, s.amount)
	case s.hasEsc && !(s.escalate >= 0 && s.escalate <= 1):
		return fmt.Errorf("%w: tokens escalate below a probability of %g, want 0 to 1", ErrSkip, s.escalate)
	}
	return nil
}

// String is the text that [ParseSkip] reads.
func (s Skip) String() string {
	var words []string
	switch s.kind {
	case skipRouted:
		words = append(words, "routed")
	case skipNothing:
		words = append(words, "off")
	case skipLayers:
		words = append(words, s.mask.String())
	case skipDepth:
		words = append(words, "depth="+strconv.FormatFloat(s.amount, 'g', -1, 64))
	case skipQuality:
		words = append(words, "quality="+strconv.FormatFloat(s.amount, 'g', -1, 64))
	}
	if s.hasFill {
		words = append(words, "prefill="+s.prefill.String())
	}
	if s.hasEsc {
		words = append(words, "escalate="+strconv.FormatFloat(s.escalate, 'g', -1, 64))
	}
	if s.perChat {
		words = append(words, "route=chat")
	}
	return strings.Join(words, " ")
}

// ParseSkip reads what [Skip.String] writes: words with spaces between them. The first
// says what is left out: "routed" (as the profile recommends), "off" (nothing), a mask as
// in "4,6,f9-11", "depth=3" or "quality=0.95". Behind it may stand "prefill=full" or
// "prefill=masked", "escalate=0.7" and "route=chat". "" is the zero value. The error
// wraps [ErrSkip].
func ParseSkip(text string) (Skip, error) {
	var s Skip
	for i, word := range strings.Fields(text) {
		key, value, isPair := strings.Cut(word, "=")
		number, numberErr := strconv.ParseFloat(value, 64)
		switch {
		case isPair && key == "prefill":
			p, err := skip.ParsePrefill(value)
			if err != nil {
				return Skip{}, fmt.Errorf("%w: %w", ErrSkip, err)
			}
			s = s.Prefill(p)
			continue
		case isPair && key == "route" && value == "chat":
			s = s.PerChat()
			continue
		case isPair && numberErr != nil:
			return Skip{}, fmt.Errorf("%w: %q, want a number after the equals sign of depth=, quality= or escalate=", ErrSkip, word)
		case isPair && key == "escalate":
			s = s.Escalate(number)
			continue
		case i > 0 && s.kind != skipDefault:
			return Skip{}, fmt.Errorf("%w: %q says a second time what is left out", ErrSkip, word)
		}
		var what Skip
		switch {
		case isPair && key == "depth":
			what = Depth(number)
		case isPair && key == "quality":
			what = Quality(number)
		case isPair:
			return Skip{}, fmt.Errorf("%w: %q, want depth=, quality=, prefill=, escalate= or route=chat", ErrSkip, word)
		case word == "routed":
			what = Routed()
		case word == "off":
			what = Nothing()
		default:
			m, err := skip.Parse(word)
			if err != nil {
				return Skip{}, err
			}
			what = Layers(m)
		}
		s.kind, s.mask, s.amount = what.kind, what.mask, what.amount
	}
	if err := s.check(); err != nil {
		return Skip{}, err
	}
	return s, nil
}

// MarshalText is [Skip.String].
func (s Skip) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is [ParseSkip].
func (s *Skip) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSkip(string(text))
	return err
}
