package schema

import (
	"math/big"
	"strings"
)

// Digits of numbers that nothing bounds: what a float64 holds, so that a model
// does not go on for ever.
const (
	freeDigits     = 17
	fractionDigits = 15
)

var (
	zeroToNine = runes{{'0', '9'}}
	oneToNine  = runes{{'1', '9'}}
)

// wholeLimits are the least and the greatest integer within bounds, nil for none.
func wholeLimits(low, high *bound) (lo, hi *big.Int) {
	one := big.NewInt(1)
	floor := func(r *big.Rat) *big.Int { return new(big.Int).Div(r.Num(), r.Denom()) } // Euclidean: down for a denominator above 0
	if low != nil {
		if lo = floor(low.at); !low.at.IsInt() || low.beside {
			lo.Add(lo, one)
		}
	}
	if high != nil {
		if hi = floor(high.at); high.at.IsInt() && high.beside {
			hi.Sub(hi, one)
		}
	}
	return lo, hi
}

// number adds the ways to write a number within bounds.
func (c *converter) number(f *flat) []seq {
	low, high := f.limits()
	if f.integer() {
		return c.integers(wholeLimits(low, high))
	}
	if low == nil && high == nil {
		return []seq{{one(c.freeNumber())}}
	}
	return c.decimals(low, high)
}

// freeInteger is a whole number without bounds.
func (c *converter) freeInteger() *rule {
	return c.shared("integer", func(r *rule) {
		digits := c.shared("whole", func(r *rule) {
			r.alts = []seq{{text("0")}, {class(oneToNine), class(zeroToNine).times(0, freeDigits)}}
		})
		r.alts = []seq{{one(digits)}, {text("-"), one(digits)}}
	})
}

func (c *converter) freeNumber() *rule {
	return c.shared("number", func(r *rule) {
		fraction := c.shared("fraction", func(r *rule) {
			r.alts = []seq{{}, {text("."), class(zeroToNine).times(1, fractionDigits)}}
		})
		exponent := c.shared("exponent", func(r *rule) {
			sign := c.shared("sign", func(r *rule) { r.alts = []seq{{}, {class(union(span{'+', '+'}, span{'-', '-'}))}} })
			r.alts = []seq{{}, {class(union(span{'e', 'e'}, span{'E', 'E'})), one(sign), class(zeroToNine).times(1, 2)}}
		})
		r.alts = []seq{{one(c.freeInteger()), one(fraction), one(exponent)}}
	})
}

// integers adds the ways to write an integer from lo to hi, nil for none.
func (c *converter) integers(lo, hi *big.Int) (alts []seq) {
	if lo == nil && hi == nil {
		return []seq{{one(c.freeInteger())}}
	}
	// What has no bound gets one that leaves room for as many digits as usual.
	far := func(near *big.Int) *big.Int {
		digits := max(len(new(big.Int).Abs(near).String())+2, freeDigits+1)
		power := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(digits)), nil)
		return power.Sub(power, big.NewInt(1))
	}
	if hi == nil {
		hi = far(lo)
	}
	if lo == nil {
		lo = far(hi)
		lo.Neg(lo)
	}
	if lo.Cmp(hi) > 0 {
		return nil
	}
	one := big.NewInt(1)
	if lo.Sign() < 0 {
		from, to := one, new(big.Int).Neg(lo)
		if hi.Sign() < 0 {
			from = new(big.Int).Neg(hi)
		}
		for _, s := range c.naturals(from, to) {
			alts = append(alts, append(seq{text("-")}, s...))
		}
	}
	if lo.Sign() <= 0 && hi.Sign() >= 0 {
		alts = append(alts, seq{text("0")})
	}
	if hi.Sign() > 0 {
		from := lo
		if from.Sign() <= 0 {
			from = one
		}
		alts = append(alts, c.naturals(from, hi)...)
	}
	return alts
}

// naturals adds the ways to write an integer from lo, at least 1, to hi.
func (c *converter) naturals(lo, hi *big.Int) (alts []seq) {
	a, b := lo.String(), hi.String()
	if len(a) == len(b) {
		return c.digits(a, b)
	}
	alts = c.digits(a, strings.Repeat("9", len(a)))
	if len(b)-len(a) > 1 {
		alts = append(alts, seq{class(oneToNine), class(zeroToNine).times(len(a), len(b)-2)})
	}
	return append(alts, c.digits("1"+strings.Repeat("0", len(b)-1), b)...)
}

// digits adds the ways to write as many digits as lo and hi have, from lo to hi.
func (c *converter) digits(lo, hi string) []seq {
	if len(lo) == 0 {
		return []seq{{}}
	}
	c.tick(len(lo))
	rest := len(lo) - 1
	free := class(zeroToNine).times(rest, rest)
	if strings.Trim(lo[1:], "0") == "" && strings.Trim(hi[1:], "9") == "" {
		return []seq{{class(runes{{rune(lo[0]), rune(hi[0])}}), free}}
	}
	after := func(lo, hi string) sym { return one(c.rule(c.digits(lo, hi), true)) }
	if lo[0] == hi[0] {
		return []seq{{text(lo[:1]), after(lo[1:], hi[1:])}}
	}
	alts := []seq{
		{text(lo[:1]), after(lo[1:], strings.Repeat("9", rest))},
		{text(hi[:1]), after(strings.Repeat("0", rest), hi[1:])},
	}
	if lo[0]+1 < hi[0] {
		alts = append(alts, seq{class(runes{{rune(lo[0] + 1), rune(hi[0] - 1)}}), free})
	}
	return alts
}

// decimals adds the ways to write a number within bounds, one of which is given.
func (c *converter) decimals(low, high *bound) (alts []seq) {
	zero := new(big.Rat)
	if low == nil || low.at.Sign() < 0 {
		from := &bound{zero, false}
		var to *bound
		if high != nil && high.at.Sign() <= 0 {
			from = &bound{new(big.Rat).Neg(high.at), high.beside}
		}
		if low != nil {
			to = &bound{new(big.Rat).Neg(low.at), low.beside}
		}
		for _, s := range c.positives(from, to) {
			alts = append(alts, append(seq{text("-")}, s...))
		}
	}
	if high == nil || high.at.Sign() >= 0 {
		from := &bound{zero, false}
		if low != nil && low.at.Sign() >= 0 {
			from = low
		}
		alts = append(alts, c.positives(from, high)...)
	}
	return alts
}

// split gives a number's whole part and its decimals, without zeros at the end.
func split(r *big.Rat) (*big.Int, string) {
	whole := new(big.Int).Div(r.Num(), r.Denom())
	_, fraction, _ := strings.Cut(r.FloatString(2*maxDigits), ".")
	return whole, strings.TrimRight(fraction, "0")
}

// positives adds the ways to write a number from low, at least 0, to high, nil for
// no bound.
func (c *converter) positives(low, high *bound) (alts []seq) {
	free := c.shared("fraction", func(r *rule) {
		r.alts = []seq{{}, {text("."), class(zeroToNine).times(1, fractionDigits)}}
	})
	lowWhole, lowPart := split(low.at)
	from := &fractionBound{lowPart, low.beside}
	var to *fractionBound
	var highWhole *big.Int
	if high != nil {
		var highPart string
		highWhole, highPart = split(high.at)
		to = &fractionBound{highPart, high.beside}
		switch order := lowWhole.Cmp(highWhole); {
		case order > 0:
			return nil
		case order == 0:
			return []seq{{text(lowWhole.String()), one(c.fraction(from, to))}}
		}
		alts = append(alts, seq{text(highWhole.String()), one(c.fraction(nil, to))})
		highWhole = new(big.Int).Sub(highWhole, big.NewInt(1))
	}
	alts = append(alts, seq{text(lowWhole.String()), one(c.fraction(from, nil))})
	for _, s := range c.integers(new(big.Int).Add(lowWhole, big.NewInt(1)), highWhole) {
		alts = append(alts, append(s[:len(s):len(s)], one(free)))
	}
	return alts
}

// fractionBound is a bound of the digits behind the point.
type fractionBound struct {
	digits string
	beside bool
}

// fraction is the rest of a number behind its whole part: nothing, or a point and
// digits that keep to the bounds, nil for none.
func (c *converter) fraction(low, high *fractionBound) *rule {
	r := c.rule(nil, true)
	if stops(low, high) {
		r.alts = append(r.alts, seq{})
	}
	r.alts = append(r.alts, seq{text("."), one(c.decimalDigits(low, high, fractionDigits, true))})
	return r
}

// stops reports whether the number may end here, as if zeros followed.
func stops(low, high *fractionBound) bool {
	return (low == nil || low.digits == "" && !low.beside) && (high == nil || high.digits != "" || !high.beside)
}

// decimalDigits is a rule for further digits, at most more of them behind those of
// the bounds.
func (c *converter) decimalDigits(low, high *fractionBound, more int, first bool) *rule {
	c.tick(1)
	if low != nil && low.digits == "" && !low.beside {
		low = nil
	}
	r := c.rule(nil, true)
	least := 0
	if first {
		least = 1
	}
	if low == nil && high == nil {
		r.alts = []seq{{class(zeroToNine).times(least, max(more, least))}}
		return r
	}
	if low == nil && high.digits == "" && !high.beside {
		r.alts = []seq{{class(runes{{'0', '0'}}).times(least, max(more, least))}}
		return r
	}
	if !first && stops(low, high) {
		r.alts = append(r.alts, seq{})
	}
	if (low == nil || low.digits == "") && (high == nil || high.digits == "") {
		if more--; more < 0 {
			return r
		}
	}
	// next is a bound behind its first digit.
	next := func(b *fractionBound) (byte, *fractionBound) {
		if b.digits == "" {
			return '0', b
		}
		return b.digits[0], &fractionBound{b.digits[1:], b.beside}
	}
	from, to := byte('0'), byte('9')
	var lowRest, highRest *fractionBound
	if low != nil {
		from, lowRest = next(low)
	}
	if high != nil {
		to, highRest = next(high)
	}
	add := func(lo, hi byte, low, high *fractionBound) {
		if lo <= hi {
			r.alts = append(r.alts, seq{class(runes{{rune(lo), rune(hi)}}), one(c.decimalDigits(low, high, more, false))})
		}
	}
	switch {
	case low != nil && high != nil && from == to:
		add(from, to, lowRest, highRest)
	case from > to:
	default:
		if low != nil {
			add(from, from, lowRest, nil)
			from++
		}
		if high != nil {
			add(to, to, nil, highRest)
			to--
		}
		add(from, to, nil, nil)
	}
	return r
}
