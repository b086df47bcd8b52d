/*
 * A barrier at which threads sleep while they wait for one that does not run.
 *
 * ggml's threads meet after every node of a graph, some hundred times a token, and each that is early
 * turns in a loop until the last one is there. That is the fastest way while every thread has a core
 * of its own. Where one has to share its core with another program, the others burn theirs until the
 * scheduler gives it a turn, milliseconds later and once for almost every node: two programs that
 * decode with a thread for each core come to a fiftieth of their speed. Threads that sleep instead
 * leave their core to the one that they wait for.
 *
 * Waking a sleeping thread takes tens of microseconds, longer than most nodes. So a thread turns
 * first, for as long as that usually is enough. Once a wait has shown that some thread was off its
 * core, waits turn for a moment only, until nothing of the kind was seen for some time.
 *
 * The CPU module calls its own function through the dynamic linker, which finds the one below first.
 * It works on the same counters as ggml's, in a struct whose layout is found out by having ggml's own
 * function work on one; where that is another one, ggml's function goes on to do the work.
 */
#define _GNU_SOURCE
#include "layerskip.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* ggml's, of v0.5.0, up to what a barrier needs. */
enum { CACHE_LINE = 64, THREADS_MASK = 0xffff };
struct ggml_threadpool {
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    void *graph, *plan;
    atomic_int n_graph;                              /* graphs so far and, masked, the threads of this one */
    _Alignas(CACHE_LINE) atomic_int arrived;         /* threads at the barrier */
    _Alignas(CACHE_LINE) atomic_int passed;          /* barriers so far */
    _Alignas(CACHE_LINE) char rest[16 * CACHE_LINE]; /* as far as fits() looks */
};

/* In ns. */
enum {
    PATIENT = 50000, /* how long threads turn that each have a core */
    HASTY = 1500,    /* and where they have not */
    STALL = 300000,  /* no node keeps a thread busy for as long after the others are done, when a token is decoded */
    CALM = 256,      /* barriers after which patience has grown by half, about */
};

/* What is known of the threads of a pool. Pools that share one only wake and wait more than needed. */
enum { POOLS = 64 };
static struct waiting {
    _Alignas(CACHE_LINE) atomic_int asleep;
    atomic_int patience;  /* ns; 0 = PATIENT */
    atomic_llong stalled; /* ns */
} waiting[POOLS];

static struct waiting *waiting_of(const struct ggml_threadpool *pool) {
    return &waiting[((uintptr_t)pool >> 6) * 0x9e3779b97f4a7c15u >> 58];
}

int64_t layerskip_stalled(const struct ggml_threadpool *pool) {
    return atomic_load_explicit(&waiting_of(pool)->stalled, memory_order_relaxed);
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb");
#endif
}

typedef void barrier(struct ggml_threadpool *);

/* Lets ggml's function be the last of two threads at the barrier. Whatever it takes for one of the
 * counters elsewhere holds 1, with which it comes to an end, too. */
static bool fits(barrier *real) {
    struct ggml_threadpool pool, after;
    int *words = (int *)&pool;
    for (size_t i = 0; i < sizeof pool / sizeof *words; i++) {
        words[i] = 1;
    }
    atomic_store(&pool.n_graph, THREADS_MASK + 1 + 2);
    memcpy(&after, &pool, sizeof pool);
    atomic_store(&after.arrived, 0);
    atomic_store(&after.passed, 2);
    real(&pool);
    return memcmp(&pool, &after, sizeof pool) == 0;
}

/* What to call in place of ours; NULL = nothing. Any thread may find out, and all find the same. */
static barrier *replacement(const void *return_address) {
    static atomic_bool known;
    static barrier *_Atomic instead;
    if (!atomic_load_explicit(&known, memory_order_acquire)) {
        barrier *real = (barrier *)layerskip_function_near(return_address, "ggml_barrier");
        atomic_store(&instead, fits(real) ? NULL : real);
        atomic_store_explicit(&known, true, memory_order_release);
    }
    return atomic_load_explicit(&instead, memory_order_relaxed);
}

static bool is_passed(struct ggml_threadpool *pool, int before) {
    return atomic_load_explicit(&pool->passed, memory_order_acquire) != before;
}

/* Turns until the barrier is passed, for as long as patience lasts. False: it is not. */
static bool turn(struct ggml_threadpool *pool, int before, int patience) {
    enum { BETWEEN = 32 }; /* looks at the clock, which costs as much as one turn */
    for (int64_t start = 0, time = 0; time - start < patience; time = now()) {
        if (time == 0) {
            start = time = now();
        }
        for (int i = 0; i < BETWEEN; i++) {
            if (is_passed(pool, before)) {
                return true;
            }
            relax();
        }
    }
    return false;
}

static void sleep_until_passed(struct ggml_threadpool *pool, int before, struct waiting *w) {
    atomic_fetch_add(&w->asleep, 1);
    while (atomic_load(&pool->passed) == before) {
        syscall(SYS_futex, &pool->passed, FUTEX_WAIT_PRIVATE, before, NULL, NULL, 0);
    }
    atomic_fetch_sub(&w->asleep, 1);
}

/* Waits for the barrier to be passed, and learns from how long it took. */
static void wait_for_all(struct ggml_threadpool *pool, int before) {
    struct waiting *w = waiting_of(pool);
    int patience = atomic_load_explicit(&w->patience, memory_order_relaxed);
    if (turn(pool, before, patience == 0 ? PATIENT : patience)) {
        if (patience != 0) {
            patience += patience / CALM + 1;
            atomic_store_explicit(&w->patience, patience < PATIENT ? patience : 0, memory_order_relaxed);
        }
        return;
    }
    const int64_t start = now();
    sleep_until_passed(pool, before, w);
    const int64_t slept = now() - start;
    atomic_fetch_add_explicit(&w->stalled, slept, memory_order_relaxed);
    if (slept > STALL) {
        atomic_store_explicit(&w->patience, HASTY, memory_order_relaxed);
    }
}

__attribute__((visibility("default"))) void ggml_barrier(struct ggml_threadpool *pool) {
    barrier *const real = replacement(__builtin_return_address(0));
    if (real != NULL) {
        real(pool);
        return;
    }
    const int n = atomic_load_explicit(&pool->n_graph, memory_order_relaxed) & THREADS_MASK;
    if (n == 1) {
        return;
    }
    const int before = atomic_load_explicit(&pool->passed, memory_order_relaxed);
    if (atomic_fetch_add(&pool->arrived, 1) != n - 1) {
        wait_for_all(pool, before);
        return;
    }
    atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
    atomic_fetch_add(&pool->passed, 1);
    if (atomic_load(&waiting_of(pool)->asleep) > 0) {
        syscall(SYS_futex, &pool->passed, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
    }
}
