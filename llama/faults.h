/* What becomes of faults within llama.cpp: reads of memory that is not there, divisions by zero. */
#ifndef GALLOP_FAULTS_H
#define GALLOP_FAULTS_H

#include <setjmp.h>

/* Where the guarded call that runs on this thread was begun; NULL = none runs. */
extern _Thread_local jmp_buf *gallop_guard;

/* Ends the guarded call that runs on this thread; why becomes its error, unless it has one. */
_Noreturn void gallop_leave(const char *why);

/* Handles faults of llama.cpp's from now on; those of Go and of others stay with whoever handled them. */
void gallop_catch_faults(void);

#endif
