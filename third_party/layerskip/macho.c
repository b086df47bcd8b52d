/*
 * Finds the pointers through which a Mach-O library calls a function of another one.
 *
 * They lie in sections of two types: "lazy" ones, which the loader may fill at the first call, and
 * others. A section says from where on in the indirect symbol table its pointers' symbols stand, one
 * number for each pointer, and the symbol has the name. All tables are in the segment __LINKEDIT, which is in
 * memory with the rest. The loader's own instructions for filling (bind opcodes or chained fixups) give
 * the same pointers and are not needed.
 *
 * This reads bytes and calls nothing of macOS. Nothing outside the given size is read, whatever the bytes say.
 * The numbers are those of Apple's headers loader.h and nlist.h.
 */
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

struct macho_pointer {
    uint64_t offset; /* from the image's beginning */
    bool read_only;  /* its segment is, once the loader has filled it */
};

enum {
    MACHO_MAGIC = 0xfeedfacf, /* 64 bits, in this machine's order of bytes */
    MACHO_HEADER = 32,
    MACHO_HEADER_COMMANDS = 16,

    MACHO_SYMBOLS = 0x2, /* kinds of load commands */
    MACHO_DYNAMIC_SYMBOLS = 0xb,
    MACHO_SEGMENT = 0x19,

    MACHO_SEGMENT_SIZE = 72, /* where a segment's command has its sections */
    MACHO_SEGMENT_READ_ONLY = 0x10,
    MACHO_SECTION_SIZE = 80,
    MACHO_SECTION_TYPE = 0xff,
    MACHO_POINTERS = 6, /* types of sections */
    MACHO_LAZY_POINTERS = 7,

    MACHO_SYMBOL_SIZE = 16,
    MACHO_INDEX_SIZE = 4,
};

/* An image as it lies in memory, and what its load commands say. */
struct macho {
    const char *bytes;
    uint64_t size;
    uint64_t text, linkedit;               /* addresses of these segments */
    uint64_t linkedit_offset;              /* in the file */
    uint64_t symbols, n_symbols;           /* offsets in the file */
    uint64_t names, names_size;            /* likewise */
    uint64_t indices, n_indices;           /* of the indirect symbol table, likewise */
    bool has_text, has_linkedit, has_symbols, has_indices;
};

static bool macho_has(const struct macho *m, uint64_t at, uint64_t n) { return at <= m->size && n <= m->size - at; }

/* Numbers that macho_has has allowed. */
static uint32_t macho_u32(const struct macho *m, uint64_t at) {
    uint32_t n;
    memcpy(&n, m->bytes + at, sizeof n);
    return n;
}

static uint64_t macho_u64(const struct macho *m, uint64_t at) {
    uint64_t n;
    memcpy(&n, m->bytes + at, sizeof n);
    return n;
}

/* The size of the load command there; 0 = it is not whole. */
static uint64_t macho_command(const struct macho *m, uint64_t at) {
    if (!macho_has(m, at, 8)) {
        return 0;
    }
    const uint32_t n = macho_u32(m, at + 4);
    const uint64_t least = macho_u32(m, at) == MACHO_SEGMENT           ? MACHO_SEGMENT_SIZE
                           : macho_u32(m, at) == MACHO_SYMBOLS         ? 24
                           : macho_u32(m, at) == MACHO_DYNAMIC_SYMBOLS ? 80
                                                                       : 8;
    return n >= least && macho_has(m, at, n) ? n : 0;
}

static bool macho_is_segment(const struct macho *m, uint64_t at, const char *name) { return strncmp(m->bytes + at + 8, name, 16) == 0; }

/* Takes in what a load command says. False: it contradicts itself. */
static bool macho_read_command(struct macho *m, uint64_t at, uint64_t size) {
    switch (macho_u32(m, at)) {
    case MACHO_SEGMENT:
        if (macho_is_segment(m, at, "__TEXT")) {
            m->has_text = true;
            m->text = macho_u64(m, at + 24);
        } else if (macho_is_segment(m, at, "__LINKEDIT")) {
            m->has_linkedit = true;
            m->linkedit = macho_u64(m, at + 24);
            m->linkedit_offset = macho_u64(m, at + 40);
        }
        return macho_u32(m, at + 64) <= (size - MACHO_SEGMENT_SIZE) / MACHO_SECTION_SIZE;
    case MACHO_SYMBOLS:
        m->has_symbols = true;
        m->symbols = macho_u32(m, at + 8);
        m->n_symbols = macho_u32(m, at + 12);
        m->names = macho_u32(m, at + 16);
        m->names_size = macho_u32(m, at + 20);
        break;
    case MACHO_DYNAMIC_SYMBOLS:
        m->has_indices = true;
        m->indices = macho_u32(m, at + 56);
        m->n_indices = macho_u32(m, at + 60);
        break;
    }
    return true;
}

/* Whether the i-th entry of the indirect symbol table is the symbol of a function, by its name in C. */
static bool macho_is(const struct macho *m, uint64_t i, const char *name) {
    const uint64_t symbol = macho_u32(m, m->indices + i * MACHO_INDEX_SIZE);
    if (symbol >= m->n_symbols) {
        return false; /* the pointer is to something of the library's own */
    }
    const uint64_t at = macho_u32(m, m->symbols + symbol * MACHO_SYMBOL_SIZE), n = strlen(name) + 1;
    if (at >= m->names_size || m->names_size - at < n + 1) {
        return false;
    }
    const char *text = m->bytes + m->names + at;
    return text[0] == '_' && memcmp(text + 1, name, n) == 0;
}

/* Adds a section's pointers to the function to those found so far. -1: it contradicts itself. */
static int macho_search(const struct macho *m, uint64_t section, bool read_only, const char *name, struct macho_pointer *found, int n, int max) {
    const uint32_t type = macho_u32(m, section + 64) & MACHO_SECTION_TYPE;
    if (type != MACHO_POINTERS && type != MACHO_LAZY_POINTERS) {
        return n;
    }
    const uint64_t at = macho_u64(m, section + 32) - m->text, size = macho_u64(m, section + 40);
    const uint64_t first = macho_u32(m, section + 68), pointers = size / sizeof(uint64_t);
    if (!macho_has(m, at, size) || at % sizeof(uint64_t) != 0 || pointers > m->n_indices || first > m->n_indices - pointers) {
        return -1;
    }
    for (uint64_t i = 0; i < pointers; i++) {
        if (macho_is(m, first + i, name)) {
            if (n < max) {
                found[n] = (struct macho_pointer){.offset = at + i * sizeof(uint64_t), .read_only = read_only};
            }
            n++;
        }
    }
    return n;
}

/*
 * Fills in at most max of the pointers to a function, by its name in C, in the image of so many bytes. Returns
 * how many there are, or -1 where this is no whole image of a 64-bit library.
 */
static int macho_find(const void *image, uint64_t size, const char *name, struct macho_pointer *found, int max) {
    struct macho m = {.bytes = image, .size = size};
    if (!macho_has(&m, 0, MACHO_HEADER) || macho_u32(&m, 0) != MACHO_MAGIC) {
        return -1;
    }
    const uint32_t commands = macho_u32(&m, MACHO_HEADER_COMMANDS);
    uint64_t at = MACHO_HEADER, step;
    for (uint32_t i = 0; i < commands; i++, at += step) {
        step = macho_command(&m, at);
        if (step == 0 || !macho_read_command(&m, at, step)) {
            return -1;
        }
    }
    if (!m.has_text || !m.has_linkedit || !m.has_symbols || !m.has_indices) {
        return -1;
    }
    /* From offsets in the file to those in the image. What is too large to be one is found out below. */
    const uint64_t move = m.linkedit - m.text - m.linkedit_offset;
    m.symbols += move;
    m.names += move;
    m.indices += move;
    if (!macho_has(&m, m.symbols, m.n_symbols * MACHO_SYMBOL_SIZE) || !macho_has(&m, m.names, m.names_size) ||
        !macho_has(&m, m.indices, m.n_indices * MACHO_INDEX_SIZE)) {
        return -1;
    }
    int n = 0;
    at = MACHO_HEADER;
    for (uint32_t i = 0; i < commands && n >= 0; i++, at += macho_command(&m, at)) {
        if (macho_u32(&m, at) != MACHO_SEGMENT) {
            continue;
        }
        const bool read_only = (macho_u32(&m, at + 68) & MACHO_SEGMENT_READ_ONLY) != 0;
        const uint64_t sections = macho_u32(&m, at + 64);
        for (uint64_t k = 0; k < sections && n >= 0; k++) {
            n = macho_search(&m, at + MACHO_SEGMENT_SIZE + k * MACHO_SECTION_SIZE, read_only, name, found, n, max);
        }
    }
    return n;
}
