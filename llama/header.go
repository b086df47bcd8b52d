package llama

// #include "glue.h"
import "C"

import "github.com/gallop-llm/gallop/skip"

// A mask reaches C as it is: this does not compile where the header's have another size.
var _ [C.LAYERSKIP_WORDS]uint64 = skip.Mask{}

// What exported constants, here and in package skip, repeat of the C headers: those
// constants hold in builds without C too. A test compares them.
const (
	headerLayers    = C.LAYERSKIP_MAX_LAYERS
	headerShortlist = C.LAYERSKIP_SHORTLIST
	headerNoToken   = C.LLAMA_TOKEN_NULL
)

// headerIsolation are the header's names for the values of [Isolation], in order.
var headerIsolation = [...]Isolation{C.LAYERSKIP_TOGETHER, C.LAYERSKIP_ATTENTION_ALONE, C.LAYERSKIP_PRODUCTS_UNTILED, C.LAYERSKIP_PRODUCTS_ALONE}
