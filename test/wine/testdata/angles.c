/*
 * For tests under wine: the sines and cosines that llama.cpp asks the system's C library for, the
 * same on Linux and on Windows. Only products and sums of doubles, so no library's rounding is in them.
 */
#ifdef _WIN32
#define API __declspec(dllexport)
#else
#define API
#endif

/* The sine of x + quarter turns, |x| below 10^6: reduced to 45 degrees either way, then Taylor's series. */
static float turned(double x, int quarters) {
    double k = x * 0.63661977236758134308; /* 2 over pi */
    long long n = (long long)(k < 0 ? k - 0.5 : k + 0.5);
    double r = x - (double)n * 1.57079632679489661923;
    int cosine = (n + quarters) & 1;
    double term = cosine ? 1 : r, sum = term;
    for (int i = cosine ? 1 : 2; i < 18; i += 2) {
        term *= -r * r / (i * (i + 1));
        sum += term;
    }
    return (float)((n + quarters) & 2 ? -sum : sum);
}

API float sinf(float x) { return turned(x, 0); }
API float cosf(float x) { return turned(x, 1); }
API void sincosf(float x, float *sine, float *cosine) {
    *sine = turned(x, 0);
    *cosine = turned(x, 1);
}
