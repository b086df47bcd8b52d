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

/* The larger ones; where one of x is no number, that of tops. */
static inline floats larger(floats tops, floats x) {
    const ints higher = x > tops;
    return (floats)(((ints)x & higher) | ((ints)tops & ~higher));
}

/* The largest of n numbers, n > 0. A NaN counts only among the first 16, where it may hide larger ones. */
static inline float largest(const float *v, int32_t n) {
    floats tops = load(v, n);
    int32_t i = LANES;
    if (n >= 4 * LANES) { /* independent of each other, so that none waits for the one before */
        floats second = load(v + LANES, LANES), third = load(v + 2 * LANES, LANES), fourth = load(v + 3 * LANES, LANES);
        for (i = 4 * LANES; n - i >= 4 * LANES; i += 4 * LANES) {
            tops = larger(tops, load(v + i, LANES));
            second = larger(second, load(v + i + LANES, LANES));
            third = larger(third, load(v + i + 2 * LANES, LANES));
            fourth = larger(fourth, load(v + i + 3 * LANES, LANES));
        }
        tops = larger(larger(tops, second), larger(third, fourth));
    }
    for (; i < n; i += LANES) {
        tops = larger(tops, load(v + i, n - i));
    }
    float top = tops[0];
    for (int lane = 1; lane < LANES; lane++) {
        top = tops[lane] > top ? tops[lane] : top;
    }
    return top;
}

#endif
