/*
 * Lets package llama's tests ask third_party/layerskip/macho.c on any system.
 *
 *     machofinder NAME...
 *
 * Reads images from stdin, each behind its size in 8 bytes. For each it prints a line: for every NAME how
 * many pointers there are, and the offsets of the first ones, with an r where they are read-only.
 */
#include "macho.c"

#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    enum { SHOWN = 4 };
    uint64_t size;
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        char *image = malloc(size); /* of its own, so that a sanitizer sees a byte too far */
        if (image == NULL || fread(image, 1, size, stdin) != size) {
            return 1;
        }
        for (int i = 1; i < argc; i++) {
            struct macho_pointer pointers[SHOWN];
            const int n = macho_find(image, size, argv[i], pointers, SHOWN);
            printf("%d", n);
            for (int k = 0; k < n && k < SHOWN; k++) {
                printf(":%llx%s", (unsigned long long)pointers[k].offset, pointers[k].read_only ? "r" : "");
            }
            printf(i + 1 < argc ? " " : "\n");
        }
        fflush(stdout);
        free(image);
    }
    return 0;
}
