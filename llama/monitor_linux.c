/* Go's monitor thread looks every 20 us, and by Linux's default 50 us late, whether a thread that
   is in C code has left goroutines waiting. A decode is in C code nearly all the time, and a virtual
   machine's kernel likes to wake the monitor on the decode's own core: that took 15 % of a small
   model's speed. So timers of the process may be 1 ms late. Threads inherit this from their maker,
   and Go makes its monitor before it runs anything of ours but this. */

#include <sys/prctl.h>

enum { LATE_NS = 1000000 };

__attribute__((constructor)) static void allow_late_timers(void) {
    int now = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
    if (now >= 0 && now < LATE_NS)
        prctl(PR_SET_TIMERSLACK, LATE_NS, 0, 0, 0);
}
