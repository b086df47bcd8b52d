#include "faults.h"

#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* Where the thread goes on once a handler has returned. */
static _Noreturn void leave(DWORD code) {
    gallop_leave(code == EXCEPTION_INT_DIVIDE_BY_ZERO ? "it divides by zero"
                 : code == EXCEPTION_ACCESS_VIOLATION ? "it reads what is not there"
                                                      : "an exception that it does not catch");
}

/* Between a guarded call's frame and the stack that its leaving runs on: more than the frame's own, less
 * than any stack has. What lies there is given up. */
enum { BELOW = 16384, CALL = 40 /* the return address, and room that a caller leaves */ };

static LONG go_on_leaving(EXCEPTION_POINTERS *e) {
#if defined(__x86_64__)
    e->ContextRecord->Rsp = (((uintptr_t)gallop_guard - BELOW) & ~(uintptr_t)15) - CALL;
    e->ContextRecord->Rip = (uintptr_t)leave;
    e->ContextRecord->Rcx = e->ExceptionRecord->ExceptionCode;
    return EXCEPTION_CONTINUE_EXECUTION;
#else
    return EXCEPTION_CONTINUE_SEARCH;
#endif
}

/* A jump to nowhere is taken for llama.cpp's: Go looks at what it calls before. */
static bool in_library(void *at) {
    HMODULE lib;
    wchar_t path[MAX_PATH];
    return at == NULL || (GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT, at, &lib) &&
                          GetModuleFileNameW(lib, path, MAX_PATH) != 0 && (wcsstr(path, L"\\ggml") != NULL || wcsstr(path, L"\\llama.") != NULL));
}

static _Noreturn void end(const char *why) {
    DWORD written;
    WriteFile(GetStdHandle(STD_ERROR_HANDLE), why, (DWORD)strlen(why), &written, NULL);
    TerminateProcess(GetCurrentProcess(), 1);
    __builtin_unreachable();
}

/* Behind Go's own handler, which takes the faults of Go code. */
static LONG CALLBACK on_fault(EXCEPTION_POINTERS *e) {
    const DWORD code = e->ExceptionRecord->ExceptionCode;
    if (code != EXCEPTION_ACCESS_VIOLATION && code != EXCEPTION_IN_PAGE_ERROR && code != EXCEPTION_INT_DIVIDE_BY_ZERO) {
        return EXCEPTION_CONTINUE_SEARCH;
    }
    if (gallop_guard != NULL) {
        return go_on_leaving(e);
    }
    if (code == EXCEPTION_IN_PAGE_ERROR) {
        end("gallop: the model's file cannot be read any more; start again\n");
    }
    if (in_library(e->ExceptionRecord->ExceptionAddress)) {
        end("gallop: llama.cpp cannot go on with this model: its file may be damaged\n");
    }
    return EXCEPTION_CONTINUE_SEARCH;
}

/* Nobody has caught it. */
static LONG CALLBACK on_uncaught(EXCEPTION_POINTERS *e) {
    enum { CXX = 0xe06d7363 }; /* the number of what C++ code throws */
    if (e->ExceptionRecord->ExceptionCode != (DWORD)CXX) {
        return EXCEPTION_CONTINUE_SEARCH;
    }
    if (gallop_guard != NULL) {
        return go_on_leaving(e);
    }
    end("gallop: llama.cpp cannot go on: an exception that it does not catch\n");
}

/* Windows asks once more where a handler has the thread go on, and Go would end the process. */
static LONG CALLBACK on_going_on(EXCEPTION_POINTERS *e) {
#if defined(__x86_64__)
    if (e->ContextRecord->Rip == (uintptr_t)leave) {
        return EXCEPTION_CONTINUE_EXECUTION;
    }
#endif
    return EXCEPTION_CONTINUE_SEARCH;
}

void gallop_catch_faults(void) {
    AddVectoredExceptionHandler(0, on_fault);
    AddVectoredContinueHandler(1, on_going_on);
    SetUnhandledExceptionFilter(on_uncaught);
}
