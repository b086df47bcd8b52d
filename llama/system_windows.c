#include "glue.h"

#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <fcntl.h>
#include <stdio.h>
#include <string.h>

/* llama.cpp's C library is not ours, and has file numbers of its own. */
static struct {
    SRWLOCK lock;
    int (*dup)(int);
    int (*dup2)(int, int);
    int (*close)(int);
    int (*open)(intptr_t, int);
    HANDLE file; /* NULL = nothing is held back, and stderr is as it was */
    int saved;   /* the real stderr */
} held = {.lock = SRWLOCK_INIT};

enum { STDERR = 2 };

/* A file that is gone when it is closed; NULL = there is none. */
static HANDLE temporary(void) {
    wchar_t folder[MAX_PATH + 1], path[MAX_PATH + 1];
    if (GetTempPathW(MAX_PATH, folder) == 0 || GetTempFileNameW(folder, L"gal", 0, path) == 0) {
        return NULL;
    }
    HANDLE file = CreateFileW(path, GENERIC_READ | GENERIC_WRITE | DELETE, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, NULL,
                              CREATE_ALWAYS, FILE_ATTRIBUTE_TEMPORARY | FILE_FLAG_DELETE_ON_CLOSE, NULL);
    return file == INVALID_HANDLE_VALUE ? NULL : file;
}

static bool find_functions(void) {
    HMODULE c = GetModuleHandleW(L"ucrtbase.dll");
    if (c == NULL) {
        return false;
    }
    held.dup = (int (*)(int))(void *)GetProcAddress(c, "_dup");
    held.dup2 = (int (*)(int, int))(void *)GetProcAddress(c, "_dup2");
    held.close = (int (*)(int))(void *)GetProcAddress(c, "_close");
    held.open = (int (*)(intptr_t, int))(void *)GetProcAddress(c, "_open_osfhandle");
    return held.dup != NULL && held.dup2 != NULL && held.close != NULL && held.open != NULL;
}

/* Has llama.cpp's stderr lead into the file. It is closed with the copy, which is the file's only number then. */
static bool divert(HANDLE file) {
    HANDLE copy;
    HANDLE self = GetCurrentProcess();
    if (!DuplicateHandle(self, file, self, &copy, 0, FALSE, DUPLICATE_SAME_ACCESS)) {
        return false;
    }
    const int number = held.open((intptr_t)copy, _O_BINARY);
    if (number < 0) {
        CloseHandle(copy);
        return false;
    }
    const bool done = held.dup2(number, STDERR) == 0;
    held.close(number);
    return done;
}

void gallop_hold_stderr(void) {
    AcquireSRWLockExclusive(&held.lock);
    held.file = NULL;
    held.saved = find_functions() ? held.dup(STDERR) : -1; /* -1 too where the process has no stderr */
    if (held.saved >= 0) {
        held.file = temporary();
        if (held.file != NULL && !divert(held.file)) {
            CloseHandle(held.file);
            held.file = NULL;
        }
    }
}

void gallop_release_stderr(struct gallop_text *err) {
    if (held.file != NULL) {
        held.dup2(held.saved, STDERR);
        char text[GALLOP_TEXT] = {0};
        DWORD n = 0;
        SetFilePointer(held.file, 0, NULL, FILE_BEGIN);
        while (ReadFile(held.file, text, sizeof text - 1, &n, NULL) && n > 0) {
            if (err != NULL) {
                text[strcspn(text, "\r\n")] = '\0';
                memcpy(err->text, text, sizeof text);
                break;
            }
            fwrite(text, 1, n, stderr);
        }
        CloseHandle(held.file);
    }
    if (held.saved >= 0) {
        held.close(held.saved);
    }
    ReleaseSRWLockExclusive(&held.lock);
}
