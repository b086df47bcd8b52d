//go:build unix

#define _GNU_SOURCE
#include "glue.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int gallop_drop(uintptr_t start, size_t size) { return madvise((void *)start, size, MADV_DONTNEED); }

static struct {
    pthread_mutex_t lock;
    FILE *file; /* NULL = nothing is held back, and stderr is as it was */
    int saved;  /* the real stderr */
} held = {.lock = PTHREAD_MUTEX_INITIALIZER};

void gallop_hold_stderr(void) {
    pthread_mutex_lock(&held.lock);
    held.file = tmpfile();
    held.saved = -1;
    if (held.file != NULL) {
        held.saved = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);
        if (held.saved < 0 || dup2(fileno(held.file), STDERR_FILENO) < 0) {
            fclose(held.file);
            held.file = NULL;
        }
    }
}

void gallop_release_stderr(struct gallop_text *err) {
    char text[GALLOP_TEXT];
    size_t n;
    if (held.file != NULL) {
        dup2(held.saved, STDERR_FILENO);
        rewind(held.file);
        if (err != NULL && fgets(text, sizeof text, held.file) != NULL) {
            memcpy(err->text, text, sizeof text);
        }
        while (err == NULL && (n = fread(text, 1, sizeof text, held.file)) > 0) {
            fwrite(text, 1, n, stderr);
        }
        fclose(held.file);
    }
    if (held.saved >= 0) {
        close(held.saved);
    }
    pthread_mutex_unlock(&held.lock);
}
