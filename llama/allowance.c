#include "faults.h"
#include "layerskip.h"

#include <stdlib.h>

_Thread_local uint64_t gallop_allowance;

/* Counts an allocation, and ends the guarded call that may have no more. */
static void count(size_t size) {
    if (gallop_allowance == 0) {
        return;
    }
    const uint64_t used = GALLOP_ALLOCATION(size);
    if (used < gallop_allowance) {
        gallop_allowance -= used;
        return;
    }
    gallop_allowance = 0;
    if (gallop_guard != NULL) {
        gallop_leave(GALLOP_TOO_MUCH);
    }
}

#ifdef __linux__

/* The libraries' own operator new, once they are open. */
static void *(*operator_new)(size_t);

void gallop_count_allocations(void *libllama) {
    operator_new = (void *(*)(size_t))(uintptr_t)layerskip_function(libllama, "_Znwm");
}

/* C++'s operator new, for the libraries: they look in the program first. Theirs is malloc too, so that
 * what frees fits; and where there is no memory, it throws. */
void *_Znwm(size_t size);

__attribute__((visibility("default"))) void *_Znwm(size_t size) {
    count(size);
    void *p = malloc(size != 0 ? size : 1);
    if (p == NULL && operator_new != NULL) {
        return operator_new(size);
    }
    if (p == NULL) {
        abort();
    }
    return p;
}

#else

/* What libllama calls for memory: operator new itself, or what its own operator new calls. */
#ifdef _WIN32
#define ALLOCATE "malloc"
#else
#define ALLOCATE "_Znwm"
#endif

static void *(*allocate)(size_t);

static void *counted(size_t size) {
    count(size);
    return allocate(size);
}

void gallop_count_allocations(void *libllama) {
    allocate = (void *(*)(size_t))layerskip_function(libllama, ALLOCATE);
    if (allocate != NULL) {
        layerskip_divert(libllama, ALLOCATE, (void *)counted); /* else checkGrammar alone has to find what takes too much */
    }
}

#endif
