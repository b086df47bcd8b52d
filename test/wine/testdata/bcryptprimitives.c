/*
 * For tests under Debian's wine 8, which lacks this library: Go's runtime asks it for random bytes
 * and does not start without. Windows has its own.
 */
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <ntsecapi.h>

__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE bytes, SIZE_T n) { return RtlGenRandom(bytes, (ULONG)n); }
