/*
 * How libllama comes to call the hook on Windows; a part of layerskip.c, which includes it.
 *
 * A DLL calls a function of another one through a pointer in its import table, which the loader has
 * filled from the DLL that the linker recorded. The pointer is overwritten. Its page is read-only, and
 * made writable for that moment.
 */
#define WIN32_LEAN_AND_MEAN
#include <windows.h>

enum { LAYERSKIP_PATH = 32768, LAYERSKIP_WHY = 512 }; /* Windows has no longer paths, and no longer sentences */

void *layerskip_open(const char *path, const char **why) {
    static char text[LAYERSKIP_WHY]; /* a process opens one library */
    *why = text;
    wchar_t *wide = malloc(LAYERSKIP_PATH * sizeof *wide), sentence[LAYERSKIP_WHY] = {0};
    if (wide == NULL || MultiByteToWideChar(CP_UTF8, MB_ERR_INVALID_CHARS, path, -1, wide, LAYERSKIP_PATH) == 0) {
        snprintf(text, sizeof text, "%s", wide == NULL ? "out of memory" : "its path is no UTF-8 text");
        free(wide);
        return NULL;
    }
    /* What it needs is looked for beside it. */
    HMODULE lib = LoadLibraryExW(wide, NULL, LOAD_LIBRARY_SEARCH_DLL_LOAD_DIR | LOAD_LIBRARY_SEARCH_DEFAULT_DIRS);
    const DWORD error = GetLastError();
    free(wide);
    if (lib != NULL) {
        return lib;
    }
    FormatMessageW(FORMAT_MESSAGE_FROM_SYSTEM | FORMAT_MESSAGE_IGNORE_INSERTS, NULL, error, 0, sentence, LAYERSKIP_WHY, NULL);
    if (WideCharToMultiByte(CP_UTF8, 0, sentence, -1, text, sizeof text, NULL, NULL) == 0) {
        text[0] = '\0';
    }
    text[strcspn(text, "\r\n")] = '\0';
    const size_t n = strlen(text);
    snprintf(text + n, sizeof text - n, "%serror %lu%s", n == 0 ? "" : " ", error,
             error == ERROR_MOD_NOT_FOUND ? "; a DLL that it needs is missing: install the Visual C++ runtime, `gallop doctor` says from where" : "");
    return NULL;
}

/* The import descriptors of a DLL, up to one without a name; NULL = it has none. */
static const IMAGE_IMPORT_DESCRIPTOR *imports(const void *lib) {
    const char *base = lib;
    const IMAGE_NT_HEADERS *header = (const void *)(base + ((const IMAGE_DOS_HEADER *)lib)->e_lfanew);
    const IMAGE_DATA_DIRECTORY *directory = &header->OptionalHeader.DataDirectory[IMAGE_DIRECTORY_ENTRY_IMPORT];
    return directory->VirtualAddress == 0 ? NULL : (const void *)(base + directory->VirtualAddress);
}

void *layerskip_function(void *libllama, const char *name) {
    void *function = (void *)GetProcAddress(libllama, name);
    const char *base = libllama;
    for (const IMAGE_IMPORT_DESCRIPTOR *dll = imports(libllama); dll != NULL && dll->Name != 0 && function == NULL; dll++) {
        HMODULE needed = GetModuleHandleA(base + dll->Name);
        function = needed == NULL ? NULL : (void *)GetProcAddress(needed, name);
    }
    return function;
}

void *layerskip_function_near(const void *address, const char *name) {
    HMODULE lib;
    return GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT, address, &lib)
               ? layerskip_function(lib, name)
               : NULL;
}

const char *layerskip_divert(void *libllama, const char *name, void *function) {
    char *base = libllama;
    void **slot = NULL;
    int found = 0;
    for (const IMAGE_IMPORT_DESCRIPTOR *dll = imports(libllama); dll != NULL && dll->Name != 0; dll++) {
        const IMAGE_THUNK_DATA *wanted = (const void *)(base + dll->OriginalFirstThunk);
        IMAGE_THUNK_DATA *filled = (void *)(base + dll->FirstThunk);
        for (; dll->OriginalFirstThunk != 0 && wanted->u1.AddressOfData != 0; wanted++, filled++) {
            const IMAGE_IMPORT_BY_NAME *import = (const void *)(base + wanted->u1.AddressOfData);
            if (!IMAGE_SNAP_BY_ORDINAL(wanted->u1.Ordinal) && strcmp((const char *)import->Name, name) == 0) {
                slot = (void **)&filled->u1.Function;
                found++;
            }
        }
    }
    if (found != 1) {
        return "this library calls what builds its graphs in another way than through one entry of its import table";
    }
    DWORD before;
    if (!VirtualProtect(slot, sizeof *slot, PAGE_READWRITE, &before)) {
        return "Windows does not let the library's import table be changed";
    }
    InterlockedExchangePointer(slot, function);
    VirtualProtect(slot, sizeof *slot, before, &before);
    return NULL;
}
