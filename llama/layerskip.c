/* cgo compiles the C files of this folder only; the patch lives in third_party. */
#include "../third_party/layerskip/layerskip.c"
#ifdef __linux__ /* see layerskip.h */
#include "../third_party/layerskip/rows.c"
#include "../third_party/layerskip/barrier.c"
#include "../third_party/layerskip/memory.c"
#endif
