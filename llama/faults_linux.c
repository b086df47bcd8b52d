#define _GNU_SOURCE
#include "faults.h"

#include <dlfcn.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

enum { SIGNALS = 3 };
static const int signals[SIGNALS] = {SIGSEGV, SIGBUS, SIGFPE};
static struct sigaction before[SIGNALS]; /* Go's own */

/* Where the thread was. */
static void *place(const ucontext_t *c) {
#if defined(__x86_64__)
    return (void *)c->uc_mcontext.gregs[REG_RIP];
#elif defined(__aarch64__)
    return (void *)c->uc_mcontext.pc;
#else
    (void)c;
    return NULL;
#endif
}

/* A jump to nowhere is taken for llama.cpp's: Go looks at what it calls before. */
static bool in_library(void *at) {
    Dl_info info;
    return at == NULL || (dladdr(at, &info) != 0 && (strstr(info.dli_fname, "libggml") != NULL || strstr(info.dli_fname, "libllama") != NULL));
}

static void say(const char *text) {
    if (write(STDERR_FILENO, text, strlen(text)) < 0) {
        _exit(1);
    }
}

static _Noreturn void leave(int number) {
    gallop_leave(number == SIGFPE ? "it divides by zero" : "it reads what is not there");
}

/* Between a guarded call's frame and the stack that its leaving runs on: more than the frame's own, less
 * than any stack has. What lies there is given up, and where the stack is full there is room. */
enum { BELOW = 16384 };

/* Lets the thread go on at leave() when the handler returns. A jump out of the handler would lose what only
 * returning restores: signal masks, and the configuration of AMX's tiles, which ggml loads once a thread. */
static bool go_on_leaving(ucontext_t *c, int number) {
    const uintptr_t stack = ((uintptr_t)gallop_guard - BELOW) & ~(uintptr_t)15;
#if defined(__x86_64__)
    enum { DIRECTION = 0x400 };
    c->uc_mcontext.gregs[REG_RSP] = (greg_t)(stack - sizeof(void *)); /* as behind a call */
    c->uc_mcontext.gregs[REG_RIP] = (greg_t)(uintptr_t)leave;
    c->uc_mcontext.gregs[REG_RDI] = number;
    c->uc_mcontext.gregs[REG_EFL] &= ~(greg_t)DIRECTION;
    return true;
#elif defined(__aarch64__)
    c->uc_mcontext.sp = stack;
    c->uc_mcontext.pc = (uintptr_t)leave;
    c->uc_mcontext.regs[0] = (unsigned)number;
    return true;
#else
    (void)c;
    (void)stack;
    (void)number;
    return false;
#endif
}

static void on_fault(int number, siginfo_t *info, void *context) {
    if (gallop_guard != NULL && go_on_leaving(context, number)) {
        return;
    }
    /* A file that is shorter than it was has no bytes for its mapping's last pages. */
    if (number == SIGBUS) {
        say("gallop: the model's file was changed or cut short while it was in use; start again\n");
        _exit(1);
    }
    if (in_library(place(context))) {
        say("gallop: llama.cpp cannot go on with this model: its file may be damaged\n");
        _exit(1);
    }
    for (int i = 0; i < SIGNALS; i++) {
        if (signals[i] == number && (before[i].sa_flags & SA_SIGINFO) != 0) {
            before[i].sa_sigaction(number, info, context);
            return;
        }
    }
    signal(number, SIG_DFL); /* and again */
}

void gallop_catch_faults(void) {
    struct sigaction ours;
    memset(&ours, 0, sizeof ours);
    ours.sa_sigaction = on_fault;
    for (int i = 0; i < SIGNALS; i++) {
        sigaction(signals[i], NULL, &before[i]);
        ours.sa_flags = before[i].sa_flags | SA_SIGINFO | SA_ONSTACK; /* on Go's own stacks */
        ours.sa_mask = before[i].sa_mask;
        sigaction(signals[i], &ours, NULL);
    }
}
