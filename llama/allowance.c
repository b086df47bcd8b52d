#include "faults.h"

#include <stddef.h>
#include <stdlib.h>

_Thread_local uint64_t gallop_allowance;
void *(*gallop_operator_new)(size_t);

#ifdef __linux__
/* C++'s operator new, for the libraries: they look in the program first. Theirs is malloc too, so that
 * what frees fits; and where there is no memory, it throws. */
void *_Znwm(size_t size);

__attribute__((visibility("default"))) void *_Znwm(size_t size) {
    if (gallop_allowance != 0) {
        const uint64_t used = GALLOP_ALLOCATION(size);
        if (used >= gallop_allowance) {
            gallop_allowance = 0;
            if (gallop_guard != NULL) {
                gallop_leave(GALLOP_TOO_MUCH);
            }
        } else {
            gallop_allowance -= used;
        }
    }
    void *p = malloc(size != 0 ? size : 1);
    if (p == NULL && gallop_operator_new != NULL) {
        return gallop_operator_new(size);
    }
    if (p == NULL) {
        abort();
    }
    return p;
}
#endif
