/* What becomes of faults within llama.cpp: reads of memory that is not there, divisions by zero. */
#ifndef GALLOP_FAULTS_H
#define GALLOP_FAULTS_H

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>

/* Where the guarded call that runs on this thread was begun; NULL = none runs. */
extern _Thread_local jmp_buf *gallop_guard;

/* Ends the guarded call that runs on this thread; why becomes its error, unless it has one. */
_Noreturn void gallop_leave(const char *why);

/* Windows' longjmp would run the destructors of what it jumps over, unless setjmp is given no frame. */
#ifdef _WIN32
#define GALLOP_SETJMP(here) _setjmp(here, NULL)
#else
#define GALLOP_SETJMP(here) setjmp(here)
#endif

/* How much C++ code may still allocate within the guarded call that runs on this thread, which then ends:
 * the only thing that all of llama.cpp's grammar code does again and again. 0 = as much as it likes. */
extern _Thread_local uint64_t gallop_allowance;

/* The reason that such a call ends with. */
#define GALLOP_TOO_MUCH "it has too much to look through"

/* Has the allocations of the opened libllama counted. */
void gallop_count_allocations(void *libllama);

/* What is used up by an allocation: 1, and more by large ones. */
#define GALLOP_ALLOCATION(bytes) (1 + (bytes) / 512)

/* Handles faults of llama.cpp's from now on; those of Go and of others stay with whoever handled them. Not on macOS. */
void gallop_catch_faults(void);

#endif
