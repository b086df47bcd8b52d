package bench

import (
	"fmt"

	"github.com/gallop-llm/gallop/skip"
)

// Spread gives the mask that skips n whole layers of nLayer, evenly spread; the
// first and the last are kept. The error wraps [skip.ErrMask].
func Spread(nLayer, n int) (skip.Mask, error) {
	inner := nLayer - 2
	if n < 1 || n > inner {
		return skip.Mask{}, fmt.Errorf("%w: %d layers of %d, possible are 1 to %d, as the first and the last are kept", skip.ErrMask, n, nLayer, max(inner, 0))
	}
	var m skip.Mask
	for i := range n {
		m = m.With(1+(2*i+1)*inner/(2*n), skip.Whole)
	}
	return m, nil
}
