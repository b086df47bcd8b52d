/* Some numbers at once: the compiler makes of them what the processor has. */
#ifndef GALLOP_LANES_H
#define GALLOP_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

typedef float floats __attribute__((vector_size(16)));
typedef int32_t ints __attribute__((vector_size(16)));
enum { LANES = sizeof(floats) / sizeof(float) };

/* The first n of the numbers at v; beyond them -infinity. */
static inline floats load(const float *v, int32_t n) {
    floats x = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    if (n >= LANES) {
        memcpy(&x, v, sizeof x);
    } else {
        memcpy(&x, v, (size_t)n * sizeof(float));
    }
    return x;
}

/* The largest of n numbers, n > 0; NaNs count only at the start. */
static inline float largest(const float *v, int32_t n) {
    floats tops = load(v, n);
    for (int32_t i = LANES; i < n; i += LANES) {
        const floats x = load(v + i, n - i);
        const ints higher = x > tops;
        tops = (floats)(((ints)x & higher) | ((ints)tops & ~higher));
    }
    float top = tops[0];
    for (int lane = 1; lane < LANES; lane++) {
        top = tops[lane] > top ? tops[lane] : top;
    }
    return top;
}

#endif
